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
from workbench.data import cohort
from workbench.data.files import held, read_json, sha256, sweep, write_json
from workbench.experiment import PACKED, STAGES, Experiment, versions
from workbench.experiment.segmentation import Result
from workbench.experiment.table import names, resting_on
from workbench.experiment.watch import watched
from workbench.nets import distributed
from workbench.volume import Refused

KILLED = "killed.json"  # in a stage that was interrupted, until it is gone on with


def run(
    experiment: Experiment,
    stage: str,
    keep: Callable[[Result, Path], object] | None = None,
    retrain: str | None = None,
) -> Path:
    """Run one stage, unless what it left still holds. `keep`, a function of a module, writes the result
    folders of the held-out cases (stage metrics), which processes share on a CPU.

    Refused: a finished stage that no longer holds, unless it is the stage `retrain` or rests on it; it then runs again.
    """
    if stage not in STAGES:
        raise Refused("stage", stage, ", ".join(STAGES))
    if (experiment.folder / PACKED).is_file():
        raise Refused(
            experiment.folder, "a packed model, without its scans", "an experiment, to train a stage of",
            "`workbench adapt` or `workbench train --start` make one that begins with this model.",
        )  # fmt: skip
    for need in STAGES[stage].needs:
        experiment.need(need)
    folder = experiment.path(stage)
    if stage not in resting_on(retrain):
        keep_finished(experiment, stage)
    if distributed.agree(experiment.finished(stage)):
        return folder
    if distributed.rank() > 0:  # the first process does all else, and the others wait for it
        distributed.wait()
        if STAGES[stage].train:
            STAGES[stage].call("train")(experiment, folder)
        distributed.wait()
        return folder
    with held(experiment.folder):
        began = time.monotonic()
        identity = begin(experiment, stage)
        distributed.wait()
        try:
            with watched(folder / "system.csv", experiment.device):
                figures = STAGES[stage].call("run")(
                    experiment, folder, **({"keep": keep} if STAGES[stage].keeps else {})
                )
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
    distributed.wait()
    return folder


def keep_finished(experiment: Experiment, stage: str) -> None:
    """Refuse where a stage is finished and no longer holds, naming what differs."""
    done = experiment.path(stage) / "stage.json"
    if done.is_file() and (differs := experiment.differences(stage, read_json(done))):
        raise Refused(
            done.parent, f"a finished stage made with {differs}", "the same",
            f"It is kept. `--retrain {stage}` trains it again, and what rests on it.",
        )  # fmt: skip


def begin(experiment: Experiment, stage: str) -> dict:
    """Make a stage's folder ready and say what it is made from; what other settings or inputs left there goes."""
    folder, identity = experiment.path(stage), experiment.identity(stage)
    mark = folder / "started.json"
    if mark.is_file() and not experiment.holds(stage, read_json(mark)):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *folder.glob("*/")):
        sweep(place)
    for name in ("stage.json", KILLED):
        (folder / name).unlink(missing_ok=True)
    write_json(mark, identity)
    return identity


def train_fold(experiment: Experiment, stage: str, fold: int, retrain: str | None = None) -> Path:
    """Train one fold's net of a cascade stage and nothing else, beside other processes that train the other folds.

    The stage itself, run afterwards, finds the nets there.
    """
    folded = names(by_fold=True)
    if stage not in folded or not 0 <= fold < experiment.settings.folds:
        raise Refused(
            "stage and fold",
            f"{stage}, fold {fold}",
            f"{' or '.join(folded)}, fold 0 to {experiment.settings.folds - 1}",
        )
    for need in STAGES[stage].needs:
        experiment.need(need)
    folder = experiment.path(stage)
    if not experiment.finished(stage):
        with held(experiment.folder, shared=True):
            with one_at_a_time(experiment.folder):
                if not _begun(experiment, stage):
                    if stage not in resting_on(retrain):
                        keep_finished(experiment, stage)
                    begin(experiment, stage)
            with held(folder, name=f".fold{fold}.lock"):
                STAGES[stage].call("train")(experiment, folder, fold)
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


def train(
    experiment: Experiment,
    stages: str = "all",
    keep: Callable[[Result, Path], object] | None = None,
    retrain: str | None = None,
) -> None:
    """All stages in order, or one (`run`). Of all, the last is left out when no case is held out."""
    wanted = names() if stages == "all" else (stages,)
    if stages == "all" and not any(c.split == "test" for c in cohort.read_manifest(experiment.manifest)):
        print(f"{experiment.manifest.name} holds no case out: all train, and the stage metrics has nothing to measure")
        wanted = wanted[: wanted.index("metrics")]
    for stage in wanted:
        fresh = (
            not experiment.finished(stage)
            if all((experiment.path(n) / "stage.json").is_file() for n in STAGES[stage].needs)
            else True
        )
        if fresh and distributed.rank() == 0:
            print(f"{stage}", flush=True)
        run(experiment, stage, keep, retrain)
