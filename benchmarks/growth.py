"""How seconds and memory of each stage grow: with voxels, with lesions, with cases, with folds.

    python benchmarks/growth.py [MODELS] [--quick] [--json FILE] [--plot FILE] [--device cpu|cuda] [--threads 2] [--only voxels ...]

MODELS is a trained experiment (the demo's will do). Each point runs in a process of its own, whose peak memory is read at its end.

voxels: `workbench segment` on one phantom of the demo, resampled to 64^3 up to 800 x 512 x 512 over the same millimetres, from file to result folder. The demo's nets
work on a grid in mm, so what grows there is all else; --device cuda or cpu of `benchmarks/inference.py` has the nets on the CT's own grid. lesions: 1 to 500
balls of 12 mm in a made-up liver, everything after the nets. scans: one `workbench segment` of 1 to 200 phantoms, from its start to the last report;
each stage's seconds are summed over the scans and shared by the processes, and what is left of the clock's is start, reading and writing. cohort: 4 to 200 phantoms made and taken through every stage from the cohort to radiomics, as `workbench train` does, the nets with a twentieth of the
demo's steps, whose number does not depend on patients. cases: selection and forest on 10 to 200 patients drawn from the experiment's own candidates, each value moved by up to 1 %. folds: the nets on 20 phantoms,
selection and forest on 60 patients, in 2 to 10 folds.

An exponent is the slope between the two largest points: 1 is in proportion. JSON: the work, the device, each point's seconds by stage and the largest process's peak GiB, exponents.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from workbench.data import cohort, phantom, readers
from workbench.data.files import write_json, write_table
from workbench.data.readers import nifti
from workbench.data.threads import at_once
from workbench.experiment import Experiment, pipeline, segmentation
from workbench.experiment import demo as demo_settings
from workbench.experiment.table import before
from workbench.lab import results
from workbench.volume import Volume, canonical_affine, resample

VOXELS = ((64, 64, 64), (128, 128, 128), (256, 256, 256), (200, 512, 512), (400, 512, 512), (800, 512, 512))
POINTS = {
    "voxels": range(len(VOXELS)),
    "lesions": (1, 5, 20, 100, 500),
    "scans": (1, 4, 20, 50, 200),
    "cohort": (4, 10, 50, 200),
    "cases": (10, 20, 50, 100, 200),
    "folds": (2, 3, 5, 10),
}
QUICK = {"voxels": (0, 1), "lesions": (1, 5), "scans": (1, 4), "cohort": (4, 6), "cases": (10, 20), "folds": (2, 3)}
NAMES = {
    "voxels": "voxels",
    "lesions": "lesions in one CT",
    "scans": "scans in one command",
    "cohort": "patients, to radiomics",
    "cases": "patients, selection and forest",
    "folds": "folds",
}
MOVED, SHORTER, SEED = 0.01, 20, 30_001
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito


def of_voxels(models: Path, which: int, device: str, place: Path) -> dict[str, float]:
    shape = VOXELS[which]
    case = phantom.generate(seed=7, preset="demo")
    spacing = tuple(n * s / m for n, s, m in zip(case.ct.shape, case.ct.spacing_mm, shape))
    hu = resample(case.ct.array, shape).round().to(torch.int16)
    nifti.write(Volume(hu, spacing, canonical_affine(spacing), "ct"), place / "ct.nii.gz")
    del hu, case
    loaded = segmentation.Models.load(models, device)
    began = time.perf_counter()
    volume = readers.read(place / "ct.nii.gz")
    read = time.perf_counter()
    result = segmentation.segment(volume, loaded)
    done = time.perf_counter()
    results.keep(result, place / "result")
    return {"read": read - began, **result.timings, "write": time.perf_counter() - done}


def of_lesions(models: Path, count: int, device: str, place: Path) -> dict[str, float]:
    loaded = segmentation.Models.load(models, device)
    spacing, shape = (3.0, 2.0, 2.0), (100, 180, 180)
    rng = np.random.default_rng(0)
    columns = [8 + 14 * np.arange(n) for n in (7, 12, 12)]  # voxels, 28 mm and more apart
    cells = np.stack(np.meshgrid(*columns, indexing="ij"), -1).reshape(-1, 3)
    cells = cells.astype(int)[rng.permutation(len(cells))][:count]
    p = torch.full(shape, 0.02)
    axes = [np.arange(n) for n in shape]
    for z, y, x in cells:
        box = tuple(slice(max(0, c - 4), c + 5) for c in (z, y, x))
        at = np.stack(np.meshgrid(*(a[b] for a, b in zip(axes, box)), indexing="ij"), -1)
        p[box][torch.from_numpy(np.linalg.norm((at - [z, y, x]) * spacing, axis=-1) <= 6)] = 0.9
    hu = (110 - 50 * (p > 0.5) + 12 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).round()
    inside = torch.ones(shape, dtype=torch.bool)
    maps = segmentation.Maps(hu, inside.float(), inside, p, spacing)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str):
        began = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - began

    found = segmentation.decide(maps, loaded, timed=timed)
    assert len(found.lesions) == count, f"{len(found.lesions)} candidates of {count} lesions"
    return seconds


def of_scans(models: Path, count: int, device: str, place: Path, workers: int) -> dict[str, float]:
    """One command on phantoms of the demo, its processes and their start included."""
    manifest = cohort.write_phantoms(place / "phantoms", count, SEED, held_out=0)
    inputs, out = [case.ct for case in cohort.read_manifest(manifest)], place / "results"
    words = ["segment", *inputs, "--models", models, "-o", out, "--device", device, "--workers", workers]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "workbench", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    told = [json.loads(path.read_text())["timings"] for path in sorted(out.glob("*/result.json"))]
    assert len(told) == count, f"{len(told)} results of {count} scans"
    seconds = {stage: sum(one[stage] for one in told) / min(workers, count) for stage in told[0]}
    return seconds | {"start, read, write": wall - sum(seconds.values())}


def of_cohort(patients: int, device: str, place: Path, folds: int = 2, upto: str = "radiomics") -> dict[str, float]:
    """Phantoms made and taken through the stages up to `upto`, in one experiment; the nets learn shortly."""
    seconds, demo = {}, demo_settings()

    def shorter(stage):
        fit = stage.cascade.fit
        return replace(stage, cascade=replace(stage.cascade, fit=replace(fit, steps=fit.steps // SHORTER)))

    few = replace(demo.selection, min_patients=1, min_class=1)  # selection is not reached
    settings = replace(demo, folds=folds, liver=shorter(demo.liver), tumor=shorter(demo.tumor), selection=few)
    began = time.perf_counter()
    manifest = cohort.write_phantoms(place / "phantoms", patients, SEED, held_out=0)
    seconds["phantoms"] = time.perf_counter() - began
    made = Experiment.create(place / "experiment", manifest, settings, device, lambda *_: None)
    for stage in (*before(upto), upto):
        began = time.perf_counter()
        pipeline.run(made, stage)
        seconds[stage] = time.perf_counter() - began
    return seconds


def of_tables(models: Path, patients: int, folds: int | None, place: Path) -> dict[str, float]:
    """Selection and forest on patients drawn with replacement from the experiment's training patients."""
    source, rng = Experiment(models, "cpu"), np.random.default_rng(0)
    table = source.table("candidates", "candidates.csv", dtype={"case": str, "patient": str}).query("split == 'train'")
    features = source.table("radiomics", "features.csv", dtype={"case": str})
    again = source.table("radiomics", "repeats.csv", dtype={"case": str})
    repeats = np.load(source.path("radiomics") / "repeats.npy", allow_pickle=False)
    row_of = {key: n for n, key in enumerate(zip(again.case, again.candidate))}
    drawn, described, order = [], [], []
    for n, patient in enumerate(rng.choice(table.patient.unique(), patients)):
        own = table[table.patient == patient]
        joined = own[["case", "candidate"]].merge(features, on=["case", "candidate"])
        order += [row_of[key] for key in zip(own.case, own.candidate)]
        name = f"drawn-{n:03d}"
        drawn.append(own.assign(case=name, patient=name, candidate=range(1, len(own) + 1)))
        described.append(joined.assign(case=name, candidate=range(1, len(own) + 1)))
    values = pd.concat(described, ignore_index=True)
    numbers = list(values.columns.drop(["case", "candidate", "reason"]))
    values[numbers] *= 1 + MOVED * rng.uniform(-1, 1, (len(values), len(numbers)))
    for stage in ("candidates", "radiomics"):
        (place / stage).mkdir()
    about = json.loads((models / "experiment.json").read_text())
    for part in ("selection", "forest") if folds else ():
        about["settings"][part]["folds"] = folds
    write_json(place / "experiment.json", about)
    write_table(place / "candidates/candidates.csv", pd.concat(drawn))
    write_table(place / "radiomics/features.csv", values)
    write_table(place / "radiomics/repeats.csv", values[["case", "candidate"]])
    moved = repeats[:, order] * (1 + MOVED * rng.uniform(-1, 1, (1, len(order), repeats.shape[2])))
    np.save(place / "radiomics/repeats.npy", moved, allow_pickle=False)
    shutil.copy(source.path("radiomics") / "perturbations.json", place / "radiomics")
    torch.set_num_threads(1)  # in this process, which alone knows the next line
    Experiment.need = lambda self, stage: None  # the tables are here, and no stage made them
    made, seconds = Experiment(place, "cpu"), {}
    for stage in ("selection", "forest"):
        (place / stage).mkdir()
        began = time.perf_counter()
        pipeline.RUN[stage](made, place / stage)
        seconds[stage] = time.perf_counter() - began
    return seconds


def point(kind: str, value: int, asked: argparse.Namespace) -> dict:
    """One point, in this process."""
    torch.set_num_threads(asked.threads)
    with TemporaryDirectory() as folder:
        place, models = Path(folder), asked.models
        if kind == "voxels":
            seconds = of_voxels(models, value, asked.device, place)
        elif kind == "lesions":
            seconds = of_lesions(models, value, asked.device, place)
        elif kind == "scans":
            seconds = of_scans(models, value, asked.device, place, at_once(torch.device(asked.device)))
        elif kind == "cohort":
            seconds = of_cohort(value, asked.device, place)
        elif kind == "cases":
            seconds = of_tables(models, value, None, place)
        else:
            seconds = of_cohort(20, asked.device, place, value, "tumor")
            seconds = {stage: seconds[stage] for stage in ("liver", "tumor")} | of_tables(models, 60, value, place)
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # stages share work out to processes
    return {
        "at": math.prod(VOXELS[value]) if kind == "voxels" else value,
        "seconds": seconds,
        "peak_gib": max(resource.getrusage(one).ru_maxrss for one in who) / 2**20,
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if asked.device == "cuda" else None,
    }


def exponents(points: list[dict]) -> dict[str, float]:
    """Of seconds by stage, in all, and of memory, between the two largest points."""
    one, other = points[-2:]
    slope = lambda a, b: math.log(max(b, 1e-4) / max(a, 1e-4)) / math.log(other["at"] / one["at"])
    out = {stage: slope(one["seconds"][stage], s) for stage, s in other["seconds"].items()}
    total = slope(*(sum(p["seconds"].values()) for p in (one, other)))
    return out | {"all": total, "memory": slope(one["peak_gib"], other["peak_gib"])}


def draw(measured: dict[str, list[dict]], plot: Path) -> None:
    """Seconds of each stage and peak memory, a column a kind of growth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(measured), figsize=(3.6 * len(measured), 6), layout="constrained", squeeze=False
    )
    looks = [(colour, mark) for mark in ("o", "s") for colour in COLOURS]
    for n, (kind, points) in enumerate(measured.items()):
        at = [p["at"] for p in points]
        for stage, (colour, mark) in zip(points[-1]["seconds"], looks):
            seconds = [max(p["seconds"][stage], 1e-3) for p in points]
            axes[0, n].loglog(at, seconds, color=colour, marker=mark, ms=3.5, label=stage)
        low, high = axes[0, n].get_ylim()
        axes[0, n].set_ylim(low, high * (high / low) ** 0.5)  # room for the legend
        axes[0, n].legend(fontsize=7, ncols=3, loc="upper left", frameon=False)
        axes[1, n].semilogx(at, [p["peak_gib"] for p in points], marker="o", ms=3, color="black")
        axes[1, n].set(xlabel=NAMES[kind], ylim=(0, None))
        for panel in axes[:, n]:
            panel.grid(alpha=0.3)
            if kind == "folds":
                panel.set_xticks(at, at)
                panel.minorticks_off()
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory of a process, GiB")
    figure.savefig(plot, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="?", default=Path("experiments/demo"))
    parser.add_argument("--quick", action="store_true", help="the two smallest points of each")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(POINTS), choices=POINTS)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not (asked.models / "experiment.json").is_file():
        print(f"no trained experiment at {asked.models}: nothing is measured (`workbench demo` makes one)")
        return 0
    if asked.point:
        print(json.dumps(point(asked.point[0], int(asked.point[1]), asked)))
        return 0
    measured: dict[str, list[dict]] = {}
    for kind in asked.only:
        for value in (QUICK if asked.quick else POINTS)[kind]:
            words = ["--device", asked.device, "--threads", str(asked.threads), "--point", kind, str(value)]
            done = subprocess.run(
                [sys.executable, __file__, str(asked.models), *words], check=True, stdout=subprocess.PIPE
            )
            measured.setdefault(kind, []).append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, json.dumps(measured[kind][-1]), file=sys.stderr, flush=True)
    out = {
        "benchmark": "growth",
        "device": torch.cuda.get_device_name()
        if asked.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": asked.threads,
        "points": measured,
        "exponents": {kind: exponents(points) for kind, points in measured.items()},
    }
    print(json.dumps(out["exponents"], indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n")
    if asked.plot:
        draw(measured, asked.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
