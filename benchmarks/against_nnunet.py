"""The workbench against nnU-Net v2: the same patients, the same seconds of training, the same cores, in the same run.

    python benchmarks/against_nnunet.py [--quick] [--json FILE] [--minutes 10] [--train 60] [--test 20] [--fresh 5] [--batch N]
        [--configurations 2d 3d_fullres] [--device cpu|cuda] [--work FOLDER] [--nnunet COMMANDS]

The work: phantoms from a seed that nothing here was tuned on, the last of them held out, exported by `workbench export nnunet`. nnU-Net
lives in an environment of its own below --work (made once, about 2 GB with torch for the CPU), or where --nnunet says that its commands are. Each finished part leaves its figures below
--work and is not done again; one that was interrupted begins anew, so that its clock is whole. To measure changed code, remove the run's folder.

Equal: training and held-out patients, and the files that both segment; the device, and every core that this process may use; the
seconds of training; threads that wait give their core away instead of spinning, since nnU-Net's net shares the cores with its own
augmentation. The workbench trains first, with the demo's settings and its steps scaled by minutes / 10 (the demo's time on two
idle cores for 60 phantoms); what that took from the first import to the last model, scans brought to the work grid and all stages
included, is then nnU-Net's time. Scores come from `workbench.stages.metrics` for both.

Not equal, in favour of nnU-Net: its fingerprint, plan and preprocessing (given as preprocess_s), its imports and the start of its loaders are not
on its clock, which runs from its first step; it does not validate while it trains; one net learns from all training patients, while
each net of the workbench learns from half of them, so that later stages have out-of-fold maps. Against it: its recipe is made for 250,000
steps and gets as many as fit here (the decay of its rate follows the clock, all else is its own), one configuration and no ensemble of
folds, no postprocessing, which needs cross-validation. So this compares what minutes buy, not what either method can do. Neither:
nnU-Net writes labels alone, the workbench also maps, ledger, lesion table, preview and report in the same seconds. Phantoms are the workbench's own.

nnU-Net plans its batch for a GPU's memory: on a CPU a step of it takes most of a minute, and --batch makes it smaller in exchange for more steps.

Configuration: 2d on a CPU, where minutes buy too few steps in 3D, else 3d_fullres; --configurations says otherwise. Prediction as nnU-Net does it
(mirrored copies averaged) and without mirroring. Seconds a case: a fresh command for one case (median of the first --fresh held-out
cases), and one command for all held-out cases, divided by their number. Peak memory: what all processes of the command hold together
(shared pages once), looked at four times a second. A training sample is what a net sees at once: a slab of 3 or 5 slices, or nnU-Net's patch.

Output: a table; JSON with the work, the device, each side's figures and the paired differences. Exit status 1 when nnU-Net trained for less time than
the workbench, or when its tumor Dice is higher with an interval over patients that excludes zero. --quick (6 and 2 phantoms, a minute)
shows that both sides run; its scores mean nothing, and the second reason for status 1 is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench import experiment
from workbench.data import cohort, readers
from workbench.data.export import nnunet
from workbench.data.files import read_json, write_atomic, write_json
from workbench.experiment import pipeline
from workbench.stages import metrics
from workbench.volume import Refused

PINS = (
    "torch==2.13.0",
    "nnunetv2==2.8.1",
)  # together: alone, nnU-Net's torchvision, which it never imports, lifts torch
SEED = 20_001
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
DATASET, NAME = 501, "Liver"
DEMO_MINUTES = 10.0  # empirical: two idle cores, 60 phantoms
TRAINED = ("cohort", "liver", "tumor", "consistency", "candidates", "radiomics", "selection", "forest", "boundary")
MIRRORING = {"": [], ", no mirroring": ["--disable_tta"]}
TRAINER = '''"""nnU-Net's own trainer, which stops by the clock: WORKBENCH_SECONDS from its first step on."""

import json
import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TimeIsUp(Exception):
    pass


class BudgetTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 10**9  # one epoch without end: no second goes into checks on the way
        self.began, self.steps = None, 0

    def train_step(self, batch):
        budget, now = float(os.environ["WORKBENCH_SECONDS"]), time.monotonic()
        self.began = self.began or now
        if now - self.began >= budget:
            raise TimeIsUp
        self.lr_scheduler.step(self.num_epochs * (now - self.began) / budget)
        self.steps += 1
        return super().train_step(batch)

    def run_training(self):
        try:
            super().run_training()
        except TimeIsUp:
            seconds = time.monotonic() - self.began
        self.on_train_end()
        about = {"seconds": seconds, "steps": self.steps, "batch": self.batch_size}
        about["patch"] = [int(n) for n in self.configuration_manager.patch_size]
        with open(os.path.join(self.output_folder, "trained.json"), "w") as f:
            json.dump(about, f)

    def perform_actual_validation(self, save_probabilities=False):
        """Nothing: with fold `all` it would segment the training cases once more."""
'''


def part(run: Path, name: str, make: Callable[[], dict]) -> dict:
    """What a part of the run found, from its file where it is finished."""
    file = run / "parts" / f"{name}.json"
    if not file.is_file():
        print(f"  {name}", file=sys.stderr, flush=True)
        write_json(file, metrics.json_safe(make()))
    return read_json(file)


def environment(folder: Path) -> Path:
    """nnU-Net's own virtual environment, made once, with the trainer above; gives the folder of its commands.

    The trainer lies where nnU-Net looks first: on the way to an external folder it imports all of its trainers, with them torchvision.
    """
    mark = folder / "pins.json"
    if not mark.is_file() or json.loads(mark.read_text()) != list(PINS):
        print(f"  {' '.join(PINS)} -> {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-qq", *PINS], check=True)
        write_json(mark, PINS)
    (package,) = folder.glob("lib/python*/site-packages/nnunetv2")
    with_trainer(package)
    return folder / "bin"


def with_trainer(package: Path) -> None:
    write_atomic(package / "training" / "nnUNetTrainer" / "budget.py", TRAINER.encode())


def installed(commands: Path) -> Path:
    """The folder of an nnU-Net's commands that this Python can import too, with the trainer above put into it."""
    found = importlib.util.find_spec("nnunetv2")
    if found is None or not (commands / "nnUNetv2_train").is_file():
        raise Refused(commands, "no nnU-Net", "the folder of nnUNetv2_train, of the nnunetv2 that this Python imports")
    with_trainer(Path(found.origin).parent)
    return commands


def spent(command: list, log: Path, **variables: object) -> dict[str, float]:
    """Wall seconds and peak memory in GiB of a command with all its processes; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    peak, began = 0.0, time.perf_counter()
    with open(log, "w") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | WAITING | {key: str(value) for key, value in variables.items()},
            start_new_session=True,
        )
        try:
            while process.returncode is None:
                try:
                    process.wait(0.25)
                except subprocess.TimeoutExpired:
                    peak = max(peak, held_gib(process.pid))
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
    seconds = time.perf_counter() - began
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing said"])[-1]
        raise Refused(Path(str(command[0])).name, f"exit status {process.returncode} ({last})", "0", f"See {log}.")
    return {"seconds": seconds, "peak_gib": peak}


def held_gib(session: int) -> float:
    """Memory of all processes of a session together, shared pages counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):  # it ended while it was looked at
            continue
    return total / 2**20


def settings(minutes: float) -> experiment.Settings:
    """The demo's, its steps scaled to the minutes asked for."""
    demo, share = experiment.demo(), minutes / DEMO_MINUTES

    def steps(part):
        return replace(part, steps=max(1, round(part.steps * share)))

    def stage(part):
        return replace(part, cascade=replace(part.cascade, fit=steps(part.cascade.fit)))

    return replace(demo, liver=stage(demo.liver), tumor=stage(demo.tumor), boundary=steps(demo.boundary))


def fit(manifest: Path, folder: Path, minutes: float, device: str) -> None:
    """Every stage of the workbench that learns."""
    made = experiment.Experiment.create(folder, manifest, settings(minutes), device)
    for stage in TRAINED:
        pipeline.train(made, stage)


class Workbench:
    """The workbench's side of a run."""

    def __init__(self, run: Path, asked: argparse.Namespace):
        self.run, self.asked, self.models = run, asked, run / "workbench" / "models"

    def train(self, manifest: Path) -> dict:
        shutil.rmtree(self.models, ignore_errors=True)
        words = ["--minutes", self.asked.minutes, "--device", self.asked.device]
        command = [sys.executable, __file__, "--fit", manifest, self.models, *words]
        out, s = spent(command, self.run / "logs" / "workbench-train.txt"), settings(self.asked.minutes)
        at_once = min(s.folds, len(os.sched_getaffinity(0))) if self.asked.device == "cpu" else 1
        samples = voxels = seconds = 0.0
        for name, stage in (("liver", s.liver.cascade), ("tumor", s.tumor.cascade)):
            curves = [read_json(self.models / name / f"fold{n}.json", "curve")["curve"] for n in range(s.folds)]
            seconds += sum(curve[-1]["seconds"] for curve in curves) / at_once  # folds that share the cores
            samples += s.folds * stage.fit.steps * stage.fit.batch
            voxels += s.folds * stage.fit.steps * stage.fit.batch * stage.network.slices * np.prod(stage.slabs.crop)
        return out | {"samples_per_s": samples / seconds, "megavoxels_per_s": voxels / seconds / 1e6}

    def segment(self, inputs: list[Path], out: Path, log: str) -> dict:
        command = [sys.executable, "-m", "workbench", "segment", *inputs, "--models", self.models, "-o", out]
        return spent([*command, "--device", self.asked.device], self.run / "logs" / f"{log}.txt")

    def labels(self, out: Path, name: str) -> Path:
        return out / f"{name}_0000" / "labels.nii.gz"


class NnUNet:
    """nnU-Net's side of a run, in one configuration."""

    def __init__(self, run: Path, asked: argparse.Namespace, commands: Path, configuration: str):
        self.run, self.asked, self.commands, self.configuration = run, asked, commands, configuration
        self.home, cores = run / "nnunet", len(os.sched_getaffinity(0))
        self.variables = {f"nnUNet_{kind}": self.home / kind for kind in ("raw", "preprocessed", "results")}
        self.variables |= {"nnUNet_n_proc_DA": cores, "nnUNet_def_n_proc": cores}

    def call(self, command: str, *words: object, log: str, **variables: object) -> dict:
        return spent([self.commands / command, *words], self.run / "logs" / f"{log}.txt", **self.variables, **variables)

    def prepare(self) -> dict:
        """Fingerprint, plan and preprocessed training cases."""
        words = ("-d", DATASET, "-c", self.configuration, "-npfp", self.variables["nnUNet_def_n_proc"])
        used = self.call("nnUNetv2_plan_and_preprocess", *words, log=f"nnunet-{self.configuration}-prepare")
        (file,) = self.home.glob("preprocessed/*/nnUNetPlans.json")
        plans = read_json(file, "configurations")
        planned = plans["configurations"][self.configuration]
        used["planned_batch"] = planned["batch_size"]
        if self.asked.batch:
            planned["batch_size"] = min(self.asked.batch, planned["batch_size"])
            write_json(file, plans)
        return used

    def train(self, seconds: float) -> dict:
        words = (DATASET, self.configuration, "all", "-tr", "BudgetTrainer", "-device", self.asked.device)
        log = f"nnunet-{self.configuration}-train"
        used = self.call("nnUNetv2_train", *words, log=log, WORKBENCH_SECONDS=seconds)
        (file,) = self.home.glob(f"results/*/BudgetTrainer__*__{self.configuration}/fold_all/trained.json")
        out = read_json(file, "seconds", "steps", "batch", "patch")
        rate = out["steps"] * out["batch"] / out["seconds"]
        voxels = rate * float(np.prod(out["patch"])) / 1e6
        return out | {"samples_per_s": rate, "megavoxels_per_s": voxels, "peak_gib": used["peak_gib"]}

    def segment(self, inputs: list[Path], out: Path, log: str, mirroring: list[str]) -> dict:
        place = out.with_name(f"{out.name}-inputs")
        for folder in (place, out):
            shutil.rmtree(folder, ignore_errors=True)
        place.mkdir(parents=True)
        for file in inputs:
            (place / file.name).symlink_to(file.resolve())
        model = ("-d", DATASET, "-c", self.configuration, "-f", "all", "-tr", "BudgetTrainer")
        words = ("-i", place, "-o", out, *model, "-device", self.asked.device, *mirroring)
        return self.call("nnUNetv2_predict", *words, log=log)

    def labels(self, out: Path, name: str) -> Path:
        return out / f"{name}.nii.gz"


def predict(run: Path, side: str, segment: Callable[..., dict], inputs: list[Path], fresh: int) -> dict:
    """Seconds a case and peak memory: a fresh command for each of the first cases, then one for all; that one's labels are scored."""
    key = side.replace(", ", "-").replace(" ", "-")
    single = []
    for file in inputs[:fresh]:
        log = f"{key}-alone-{file.name.removesuffix('_0000.nii.gz')}"
        single.append(part(run, log, lambda f=file, n=log: segment([f], run / "predictions" / key / "alone", n)))
        shutil.rmtree(run / "predictions" / key / "alone", ignore_errors=True)
    batch = part(run, f"{key}-batch", lambda: segment(inputs, run / "predictions" / key / "batch", f"{key}-batch"))
    return {
        "fresh_s_per_case": statistics.median(one["seconds"] for one in single),
        "fresh_peak_gib": max(one["peak_gib"] for one in single),
        "batch_s_per_case": batch["seconds"] / len(inputs),
        "batch_peak_gib": batch["peak_gib"],
        "alone": single,
    }


def score(dataset: Path, table: pd.DataFrame, labels: Callable[[str], Path]) -> list[dict]:
    """The measures of every held-out case, each on the grid of its truth."""
    out = []
    for row in table.itertuples():
        truth = readers.read_labels(dataset / "labelsTs" / f"{row.name}.nii.gz")
        found = readers.read_labels(labels(row.name), like=truth)
        measured = metrics.evaluate_case(truth.array, found.array, truth.spacing_mm, row.case)
        out.append(measured | {"patient": row.patient})
    return out


def summary(cases: list[dict]) -> dict:
    """Mean Dice with its interval over patients; lesions found, in all and by diameter (at IoU 0.5, which both lists know)."""
    patients = [case["patient"] for case in cases]
    out: dict = {
        f"{structure}_dice": metrics.bootstrap([case[structure]["dice"] for case in cases], groups=patients)
        for structure in ("liver", "tumor")
    }
    for overlap in metrics.OVERLAPS:
        out[f"lesions_{overlap}"] = rates(*(sum(c["detection"][overlap][k] for c in cases) for k in ("tp", "fp", "fn")))
    for size in metrics.SIZES:
        found = [lesion["detected_iou50"] for case in cases for lesion in case["lesions"] if lesion["size"] == size]
        false = sum(piece["size"] == size for case in cases for piece in case["false_positives"])
        out[f"lesions_iou50_{size}"] = rates(sum(found), false, len(found) - sum(found))
    return out


def rates(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Counts with precision, recall and F1; NaN where there is nothing to divide by."""
    share = lambda a, b: a / b if b else float("nan")
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "f1": share(2 * tp, 2 * tp + fp + fn),
    }


def measure(asked: argparse.Namespace) -> dict:
    """The whole comparison."""
    work = asked.work.resolve()
    commands = installed(asked.nnunet.resolve()) if asked.nnunet else environment(work / "venv")
    run = (
        work
        / f"{asked.train}-{asked.test}-{asked.minutes:g}min-{asked.device}{f'-batch{asked.batch}' * bool(asked.batch)}"
    )
    manifest = cohort.write_phantoms(run / "phantoms", asked.train + asked.test, SEED, "demo", asked.test)
    raw = run / "nnunet" / "raw"
    part(run, "export", lambda: {"path": str(nnunet.export(manifest, raw, DATASET, NAME, folds=2).relative_to(run))})
    dataset = raw / f"Dataset{DATASET:03d}_{NAME}"
    table = pd.read_csv(dataset / "cases.csv", dtype={"case": str, "patient": str}).query("split == 'test'")
    inputs = [dataset / "imagesTs" / f"{name}_0000.nii.gz" for name in table.name]

    ours = Workbench(run, asked)
    trained = part(run, "workbench-train", lambda: ours.train(manifest))
    budget = trained["seconds"]
    sides = {"workbench": {"train": trained, "predict": predict(run, "workbench", ours.segment, inputs, asked.fresh)}}
    found = {"workbench": lambda name: ours.labels(run / "predictions" / "workbench" / "batch", name)}
    for configuration in asked.configurations:
        peer = NnUNet(run, asked, commands, configuration)
        prepared = part(run, f"nnunet-{configuration}-prepare", peer.prepare)
        trained = part(run, f"nnunet-{configuration}-train", lambda p=peer: p.train(budget))
        for what, words in MIRRORING.items():
            side = f"nnU-Net {configuration}{what}"
            segment = lambda files, out, log, p=peer, w=words: p.segment(files, out, log, w)
            predicted = predict(run, side, segment, inputs, asked.fresh)
            sides[side] = {"train": trained | {"preprocess_s": prepared["seconds"]}, "predict": predicted}
            place = run / "predictions" / side.replace(", ", "-").replace(" ", "-") / "batch"
            found[side] = lambda name, p=peer, at=place: p.labels(at, name)
    cases = {side: score(dataset, table, labels) for side, labels in found.items()}
    patients = table.patient.to_list()
    for side in sides:
        sides[side]["scores"] = summary(cases[side])
        if side != "workbench":
            sides[side]["workbench_minus_this"] = {
                f"{structure}_dice": metrics.paired(
                    *([c[structure]["dice"] for c in cases[one]] for one in (side, "workbench")), groups=patients
                )
                for structure in ("liver", "tumor")
            }
    return metrics.json_safe(
        {
            "benchmark": "against_nnunet",
            "work": f"{asked.train} phantoms to train on, {asked.test} held out, seed {SEED}; "
            f"{budget:.0f} s of training a side",
            "device": torch.cuda.get_device_name()
            if asked.device == "cuda"
            else platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "peer": list(PINS),
            "quick": asked.quick,
            "budget_s": budget,
            "sides": sides,
        }
    )


def words(figures: dict) -> str:
    """The table of the comparison, a column a side."""
    span = lambda v: "undefined" if v[0] is None else f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]"
    three = lambda v: " / ".join("-" if v[k] is None else f"{v[k]:.2f}" for k in ("precision", "recall", "f1"))
    columns = {}
    for side, held in figures["sides"].items():
        scores, predicted, trained = held["scores"], held["predict"], held["train"]
        column = {"liver Dice": span(scores["liver_dice"]), "tumor Dice": span(scores["tumor_dice"])}
        for key, counts in scores.items():
            if key.startswith("lesions"):
                column[key.replace("_", " ") + ", P / R / F1"] = three(counts)
        column |= {
            "s a case, fresh / in one batch": f"{predicted['fresh_s_per_case']:.1f} / {predicted['batch_s_per_case']:.1f}",
            "peak GiB, one case / batch": f"{predicted['fresh_peak_gib']:.2f} / {predicted['batch_peak_gib']:.2f}",
            "training s (peak GiB)": f"{trained['seconds']:.0f} ({trained['peak_gib']:.2f})",
            "training steps x batch": f"{trained['steps']} x {trained['batch']}" if "steps" in trained else "",
            "training samples / s (Mvoxel / s)": f"{trained['samples_per_s']:.1f} ({trained['megavoxels_per_s']:.2f})",
        }
        if side != "workbench":
            gap = held["workbench_minus_this"]["tumor_dice"]
            column["workbench minus this, tumor Dice"] = span((gap["difference"], gap["low"], gap["high"]))
        columns[side] = column
    return pd.DataFrame(columns).fillna("").to_string()


def failures(figures: dict) -> list[str]:
    """Which claims do not hold."""
    out = []
    for side, held in figures["sides"].items():
        if side == "workbench":
            continue
        if held["train"]["seconds"] < figures["budget_s"]:
            out.append(f"{side} trained for {held['train']['seconds']:.0f} s of {figures['budget_s']:.0f}")
        high = held["workbench_minus_this"]["tumor_dice"]["high"]
        if not figures["quick"] and high is not None and high < 0:
            out.append(f"{side} has the higher tumor Dice")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 and 2 phantoms, a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--minutes", type=float, help="of training a side, about")
    parser.add_argument("--train", type=int, help="phantoms to train on")
    parser.add_argument("--test", type=int, help="phantoms held out")
    parser.add_argument("--fresh", type=int, help="held-out cases that get a command of their own")
    parser.add_argument("--configurations", nargs="+", choices=("2d", "3d_fullres"))
    parser.add_argument("--batch", type=int, default=0, help="the largest that nnU-Net may train with; 0: as it plans")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--nnunet", type=Path, help="the commands' folder of an nnU-Net that is installed already")
    parser.add_argument("--work", type=Path, default=Path("experiments/against_nnunet"))
    parser.add_argument("--fit", type=Path, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends with it
    if asked.fit:
        fit(*asked.fit, asked.minutes, asked.device)
        return 0
    usual = (
        {"minutes": 1, "train": 6, "test": 2, "fresh": 1}
        if asked.quick
        else {"minutes": 10, "train": 60, "test": 20, "fresh": 5}
    )
    for name, value in usual.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    asked.configurations = asked.configurations or ["2d" if asked.device == "cpu" else "3d_fullres"]
    try:
        figures = measure(asked)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    print(f"{figures['work']}\n{words(figures)}")
    if asked.json:
        write_json(asked.json, figures)
    failed = failures(figures)
    print("holds" if not failed else f"FAILS: {'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
