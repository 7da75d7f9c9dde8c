"""Claim: whatever is killed at whatever moment goes on to the end of a run that was never killed, bit for bit.

`python benchmarks/survive.py [--quick] [--json FILE] [--kills N] [--only JOB]`. Four jobs on toy patients, on the CPU: training all stages,
segmenting, a batch of notebooks, the demo. Each is done once undisturbed; then it is killed N times with SIGKILL at random moments, what lies
there is checked to be whole each time, and the same call goes on. The short job, segmenting, is begun anew for each kill, the long ones are
killed again and again on their way. Seconds, hashes over seconds and what a zip archive says of itself are left out of the comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nbformat  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

from workbench import experiment  # noqa: E402
from workbench.data import cohort, readers  # noqa: E402
from workbench.experiment import pipeline, reading, segmentation  # noqa: E402
from workbench.lab import results  # noqa: E402
from workbench.nets import fit  # noqa: E402
from workbench.run import batch, demo, tracking  # noqa: E402
from workbench.stages import forest  # noqa: E402
from workbench.volume import Refused  # noqa: E402

Job = Callable[[Path], object]
TIMES = {
    "manifest",
    "seconds",
    "finished",
    "timings",
    "outputs",
    "inputs",
    "stages_after",
    "stages_before",
    "stages",
    "versions",
    "at",
}
CLOCKS = re.compile(r"\btimings\b|\.seconds\b|widgets\.what_if\(")  # in a cell that writes seconds into its picture

# -- one attempt ------------------------------------------------------------------------------------------------------


def attempt(job: Job, folder: Path, after_s: float | None = None, number: int = signal.SIGKILL) -> tuple[int, float]:
    """The job in a process of its own, sent a signal after some seconds: its exit status (-9: killed) and seconds."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = open(folder.parent / f"{folder.name}.log", "a", buffering=1)
            for standard in (1, 2):
                os.dup2(log.fileno(), standard)
            sys.stdout = sys.stderr = log
            job(folder)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    sent = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - began
        if not sent and after_s is not None and time.monotonic() - began >= after_s:
            os.kill(child, number)
            sent = True
        time.sleep(0.002)


# -- what must be whole, and what must be equal -----------------------------------------------------------------------


def whole(folder: Path) -> int:
    """Read every file that has its final name: how many. Raises when one is half a file."""
    count = 0
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if (
            not path.is_file()
            or any(p.startswith(".") for p in inside)
            or ".partial." in path.name
            or "mlruns" in inside
        ):
            continue
        count += 1
        if path.suffix == ".json":
            about = json.loads(path.read_text())
            if isinstance(about, dict) and "file" in about and "sha256" in about:
                fit.load_tensors(path.with_suffix(""))
            elif path.name == "forest.json":
                forest.load(path.parent)
        elif path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".csv" and path.stat().st_size > 1:
            pd.read_csv(path)
        elif path.name.endswith(".nii.gz"):
            readers.nifti.voxels(path)
        elif path.suffix == ".ipynb":
            nbformat.read(path, as_version=4)
        elif path.suffix == ".png" and not path.read_bytes().endswith(b"IEND\xaeB\x60\x82"):
            raise ValueError(f"{path}: a picture cut short")
        elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
            raise ValueError(f"{path}: a page cut short")
        elif path.name == "result.json":
            reading.result(path.parent).volume("labels")
    return count


def _timeless(value: object, own: str) -> object:
    """JSON without seconds, and without the place where this run and its manifest lie."""
    if isinstance(value, dict):
        return {k: _timeless(v, own) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [_timeless(v, own) for v in value]
    return value.replace(own, "HERE") if isinstance(value, str) else value


def facts(folder: Path) -> dict[str, str]:
    """Every file of a finished run by what it says, but not when."""
    found, own = {}, str(folder.resolve())
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(("mlruns/", ".")) or path.suffix in (".html", ".log"):
            continue
        if path.name == "system.csv":  # what the machine did meanwhile
            continue
        if path.suffix == ".json":
            value = _timeless(json.loads(path.read_text()), own)
            text = json.dumps(value, sort_keys=True)
        elif path.suffix == ".csv" and path.stat().st_size > 1:
            table = pd.read_csv(path)
            text = table.drop(columns=[c for c in ("seconds",) if c in table]).to_csv(index=False)
        elif path.suffix == ".ipynb":
            cells = [
                [
                    cell.source,
                    [o.data for o in cell.get("outputs", ()) if "data" in o and not CLOCKS.search(cell.source)],
                ]
                for cell in nbformat.read(path, as_version=4).cells
            ]
            text = _words(json.dumps(cells, sort_keys=True).replace(own, "HERE"))
        else:
            text = path.read_bytes().hex()
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _words(text: str) -> str:
    """What notebooks show (not the progress that a resumed stage does not print again) without seconds and the numbers that
    widgets and tables draw for themselves."""
    return re.sub(r"[\d.]+ s\b|[0-9a-f]{32}|0x[0-9a-f]+|\bT_[0-9a-f]{5}(?=[_\\\\])", "N", text)


def apart(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The files of two finished runs that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def left_over(folder: Path) -> list[str]:
    """What a finished run must not leave."""
    return [
        p.name for p in folder.rglob("*") if re.search(r"\.(part|old)$|\.partial\.|-resume\.|^killed\.json$", p.name)
    ]


# -- the campaign -----------------------------------------------------------------------------------------------------


def campaign(name: str, job: Job, kills: int, place: Path, seed: int = 0, along: bool = False) -> dict:
    """The counts of one job; `along`: one run killed again and again, else a run for each kill. Raises at the first difference."""
    rng = random.Random(f"{name} {seed}")
    status, length = attempt(job, place / "undisturbed")
    if status:
        raise RuntimeError(
            f"{name}: the undisturbed run ended with {status}\n{(place / 'undisturbed.log').read_text()[-3000:]}"
        )
    wanted = facts(place / "undisturbed")
    done = {"job": name, "length_s": round(length, 1), "kills": 0, "ended_first": 0, "files_checked": 0, "equal": 0}
    trial = 0
    while done["kills"] < kills:
        trial += 1
        folder = place / (f"killed{trial}" if not along else f"killed{done['equal'] + done['ended_first'] + 1}")
        status, _ = attempt(job, folder, rng.uniform(0, min(length / 6, 40.0) if along else length))
        if status == -signal.SIGKILL:
            done["kills"] += 1
            if folder.exists():
                done["files_checked"] += whole(folder)
            if along:
                time.sleep(2)  # a kernel looks once a second whether its parent is there
            if along and done["kills"] < kills:
                continue
            status, _ = attempt(job, folder)
        elif status == 0:
            done["ended_first"] += 1
        if status:
            log = (folder.parent / f"{folder.name}.log").read_text()
            raise RuntimeError(f"{name}, after {done['kills']} kills: the run ended with {status}\n{log[-3000:]}")
        if differ := apart(wanted, facts(folder)) + left_over(folder):
            raise RuntimeError(f"{name}, after {done['kills']} kills: {', '.join(differ)}")
        done["equal"] += 1
    return done


# -- jobs -------------------------------------------------------------------------------------------------------------


def quiet(*_: object) -> None:
    return None


def training(
    manifest: Path, settings: experiment.Settings, stages: tuple[str, ...] = ("all",), threads: int = 1
) -> Job:
    def job(folder: Path) -> None:
        torch.set_num_threads(threads)
        made = experiment.Experiment.create(folder, manifest, settings, "cpu", quiet)
        for stage in stages:
            pipeline.train(made, stage, results.keep)

    return job


def segmenting(scan: Path, models: Path) -> Job:
    def job(folder: Path) -> None:
        torch.set_num_threads(1)
        volume = readers.read(scan)
        results.keep(segmentation.segment(volume, segmentation.Models.load(models, "cpu")), folder / volume.name, scan)

    return job


def notebooks(trained: Path, only: list[str]) -> Job:
    """Notebooks on a copy of a finished experiment."""
    import shutil

    def job(folder: Path) -> None:
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.copy")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(trained, part)
            about = json.loads((part / "experiment.json").read_text())
            about["manifest"] = str((trained / about["manifest"]).resolve())
            (part / "experiment.json").write_text(json.dumps(about))
            part.rename(folder)
        outcomes = [batch.run(one, folder, {"device": "cpu"}, progress=quiet) for one in only]
        if not all(o.ok for o in outcomes):
            raise RuntimeError([o.error for o in outcomes])

    return job


def small_demo(settings: experiment.Settings, cases: int = 10, held_out: int = 2) -> Job:
    """The demo as it is, with fewer phantoms and toy nets: begun here, since a notebook's kernel knows of no patch."""
    run_all = batch.run_all

    def without_preset(folder: Path, given: dict, **more) -> list[batch.Outcome]:
        return run_all(folder, {k: v for k, v in given.items() if k != "preset"}, **more)

    def job(folder: Path) -> None:
        with (
            patch.object(demo, "CASES", cases),
            patch.object(demo, "HELD_OUT", held_out),
            patch.dict(experiment.PRESETS, demo=lambda: settings),
            patch.object(batch, "run_all", without_preset),
            patch.object(tracking, "default_store", lambda: folder / "mlruns"),
            patch.object(cohort, "cores", lambda: 1),
        ):
            demo.begin(folder, "demo", device="cpu")
            if demo.run(folder, "cpu"):
                raise RuntimeError("a notebook failed")

    return job


def brisk(steps: int, save_every_s: float = 0.5) -> experiment.Settings:
    """Toy settings with checkpoints so frequent that kills meet them."""
    s = tiny.settings()

    def stage(one):
        f = replace(one.cascade.fit, steps=steps, check_every=max(1, steps // 3), save_every_s=save_every_s)
        return replace(one, cascade=replace(one.cascade, fit=f))

    return replace(s, liver=stage(s.liver), tumor=stage(s.tumor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two kills a job, without the demo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("training", "segment", "notebooks", "demo"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    kills = 2 if asked.quick else asked.kills
    found = []
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        manifest, trained = tiny.cohort(place / "toys"), place / "models"
        if asked.only != "demo":
            status, _ = attempt(training(manifest, brisk(60)), trained)
            if status:
                raise RuntimeError((place / "models.log").read_text()[-3000:])
        ct = tiny.patient(50)[0]
        readers.nifti.write(ct, place / "toy.nii.gz")
        jobs = {
            "training": (training(manifest, brisk(60)), True),
            "segment": (segmenting(place / "toy.nii.gz", trained), False),
            "notebooks": (notebooks(trained, ["04", "07", "08"]), True),
            "demo": (small_demo(replace(brisk(60), pixel_mm=4.0)), True),
        }
        for name, (job, along) in jobs.items():
            if asked.only not in (None, name) or (asked.quick and name == "demo"):
                continue
            (place / name).mkdir()
            found.append(campaign(name, job, kills, place / name, asked.seed, along))
            print(json.dumps(found[-1]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"device": "cpu", "threads": 1, "jobs": found}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(str(refused))
