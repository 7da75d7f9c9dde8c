"""Stages in their order, each run when what it left no longer holds."""

from __future__ import annotations

import fcntl
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import workbench
from workbench import cohort, processes
from workbench.experiment import NEEDS, PACKED, Experiment, versions
from workbench.files import held, read_json, sha256, sweep, write_json
from workbench.folders import STAGES
from workbench.pipeline.decisions import run_boundary, run_forest, run_selection, train_boundary
from workbench.pipeline.held_out import run_metrics
from workbench.pipeline.lesions import run_candidates, run_consistency, run_radiomics
from workbench.pipeline.nets import run_cohort, run_liver, run_tumor, train_liver, train_tumor
from workbench.segmentation import Result
from workbench.volume import Refused
from workbench.watch import watched

KILLED = "killed.json"  # in a stage that was interrupted, until it is gone on with


def run(experiment: Experiment, stage: str, keep: Callable[[Result, Path], object] | None = None) -> Path:
    """Run one stage, unless what it left still holds. `keep`, a function of a module, writes the result
    folders of the held-out cases (stage metrics), which processes share on a CPU."""
    if stage not in STAGES:
        raise Refused("stage", stage, ", ".join(STAGES))
    if (experiment.folder / PACKED).is_file():
        raise Refused(
            experiment.folder, "a packed model, without its scans", "an experiment, to train a stage of",
            "`workbench adapt` or `workbench train --start` make one that begins with this model.",
        )  # fmt: skip
    for need in NEEDS[stage]:
        experiment.need(need)
    folder = experiment.path(stage)
    if processes.agree(experiment.finished(stage)):
        return folder
    if processes.rank() > 0:  # the first process does all else, and the others wait for it
        processes.wait()
        if stage in TRAIN:
            TRAIN[stage](experiment, folder)
        processes.wait()
        return folder
    with held(experiment.folder):
        began = time.monotonic()
        identity = begin(experiment, stage)
        processes.wait()
        try:
            with watched(folder / "system.csv", experiment.device):
                figures = RUN[stage](experiment, folder, **({"keep": keep} if stage == "metrics" else {}))
        except KeyboardInterrupt:
            write_json(folder / KILLED, {"stage": stage, "at": datetime.now(UTC).isoformat(timespec="seconds")})
            raise
        write_json(folder / "metrics.json", {k: v for k, v in figures.items() if v is not None and math.isfinite(v)})
        outputs = {
            str(p.relative_to(folder)): sha256(p)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("stage.json", "started.json", "system.csv") and p.suffix != ".lock"
        }
        write_json(
            folder / "stage.json",
            identity
            | {
                "outputs": outputs,
                "seconds": round(time.monotonic() - began, 1),
                "device": str(experiment.device),
                "versions": {"workbench": workbench.__version__, **versions()},
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
    processes.wait()
    return folder


def begin(experiment: Experiment, stage: str) -> dict:
    """Make a stage's folder ready and say what it is made from; what other settings or inputs left there goes."""
    folder, identity = experiment.path(stage), experiment._identity(stage)
    mark, done = folder / "started.json", folder / "stage.json"
    if done.is_file() and (was := read_json(done).get("format", 1)) != identity["format"]:
        raise Refused(
            folder, f"a finished stage of format {was}", f"format {identity['format']}, which computes something else",
            "It is kept. Remove the folder to have the stage run again.",
        )  # fmt: skip
    if mark.is_file() and not experiment.holds(stage, read_json(mark)):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *folder.glob("*/")):
        sweep(place)
    for name in ("stage.json", KILLED):
        (folder / name).unlink(missing_ok=True)
    write_json(mark, identity)
    return identity


def train_fold(experiment: Experiment, stage: str, fold: int) -> Path:
    """Train one fold's net of a cascade stage and nothing else, beside other processes that train the other folds.

    The stage itself, run afterwards, finds the nets there.
    """
    if stage not in FOLDS or not 0 <= fold < experiment.settings.folds:
        raise Refused(
            "stage and fold",
            f"{stage}, fold {fold}",
            f"{' or '.join(FOLDS)}, fold 0 to {experiment.settings.folds - 1}",
        )
    for need in NEEDS[stage]:
        experiment.need(need)
    folder = experiment.path(stage)
    if not experiment.finished(stage):
        with held(experiment.folder, shared=True):
            with one_at_a_time(experiment.folder):
                if not _begun(experiment, stage):
                    begin(experiment, stage)
            with held(folder, name=f".fold{fold}.lock"):
                FOLDS[stage](experiment, folder, fold)
    return folder


def _begun(experiment: Experiment, stage: str) -> bool:
    """Whether somebody is at this stage already, with these settings and inputs."""
    folder = experiment.path(stage)
    mark = folder / "started.json"
    begun = mark.is_file() and experiment.holds(stage, read_json(mark))
    return begun and not (folder / "stage.json").is_file()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """For a moment: the next one waits."""
    with open(folder / ".begin.lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def train(experiment: Experiment, stages: str = "all", keep: Callable[[Result, Path], object] | None = None) -> None:
    """All stages in order, or one. Of all, the last is left out when no case is held out."""
    wanted = STAGES if stages == "all" else (stages,)
    if stages == "all" and not any(c.split == "test" for c in cohort.read_manifest(experiment.manifest)):
        print(f"{experiment.manifest.name} holds no case out: all train, and the stage metrics has nothing to measure")
        wanted = wanted[: wanted.index("metrics")]
    for stage in wanted:
        fresh = (
            not experiment.finished(stage)
            if all((experiment.path(n) / "stage.json").is_file() for n in NEEDS[stage])
            else True
        )
        if fresh and processes.rank() == 0:
            print(f"{stage}", flush=True)
        run(experiment, stage, keep)


TRAIN: dict[str, Callable[[Experiment, Path], object]] = {  # what all processes of a run do together
    "liver": train_liver,
    "tumor": train_tumor,
    "boundary": train_boundary,
}
FOLDS: dict[str, Callable[[Experiment, Path, int], None]] = {  # a net a fold
    "liver": train_liver,
    "tumor": train_tumor,
}
RUN: dict[str, Callable[..., dict]] = {
    "cohort": run_cohort,
    "liver": run_liver,
    "tumor": run_tumor,
    "consistency": run_consistency,
    "candidates": run_candidates,
    "radiomics": run_radiomics,
    "selection": run_selection,
    "forest": run_forest,
    "boundary": run_boundary,
    "metrics": run_metrics,
}
