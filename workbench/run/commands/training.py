"""Commands that train, adapt and tune, and those on trained models."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.run.commands.shared import Device, writable

if TYPE_CHECKING:
    from workbench.experiment import Settings

Retrain = Annotated[
    str | None,
    typer.Option(help="A finished stage that no longer holds: train it and what rests on it again, in its place."),
]


def train(
    stage: Annotated[str, typer.Argument(help="all, or one stage")],
    cohort: Annotated[Path, typer.Option(help="Manifest (CSV).")],
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="demo, clinical or paper; by default what the experiment, or --start, began with, else demo."
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of settings, such as a sweep's best.json: all of them, or some to lay over --preset."
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="An experiment, or the name of a model, whose nets these begin with.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Of liver or tumor, the net of this fold alone.")] = None,
    with_corrections: Annotated[
        list[Path] | None,
        typer.Option(
            help="Results whose verdicts and corrected labels to learn from, or a folder of them; repeatable."
        ),
    ] = None,
    retrain: Retrain = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an experiment that is there.")] = False,
    device: Device = "auto",
) -> None:
    """Train one stage or all; finished stages are kept, an interrupted one goes on. Also under `accelerate launch`."""
    from workbench.experiment import PRESETS, Experiment, models, pipeline
    from workbench.experiment.table import STAGES
    from workbench.lab import results
    from workbench.nets import distributed
    from workbench.run import tracking
    from workbench.volume import Refused

    if preset is not None and preset not in PRESETS:
        raise Refused("--preset", preset, " or ".join(PRESETS))
    if stage != "all" and stage not in STAGES:
        raise Refused("stage", stage, "all, " + ", ".join(STAGES))
    if resume and not (experiment / "experiment.json").is_file():
        raise Refused(
            f"--resume {experiment}",
            "no experiment there",
            "one that was started before",
            "Leave --resume out to start it.",
        )
    device = _joined(device)
    if fold is not None and distributed.count() > 1:
        raise Refused("--fold", f"{distributed.count()} processes", "one, while others train the other folds")
    if distributed.rank() > 0:
        distributed.wait()  # for the folder
        pipeline.train(Experiment(experiment, device), stage, retrain=retrain)
        return
    writable(experiment)
    new = fold is None and distributed.count() == 1 and not experiment.exists()
    origin = None if start is None else models.find(start)
    wanted = _wanted(experiment, preset, settings, origin)
    made = Experiment.create(
        experiment, cohort, wanted, device, start=origin, with_corrections=with_corrections or (), retrain=retrain
    )
    distributed.wait()
    if with_corrections and not retrain:
        retrain = made.taking_up_corrections()
    with _trained(experiment, new):
        if fold is not None:
            print(pipeline.train_fold(made, stage, fold, retrain))
            return
        pipeline.train(made, stage, results.keep, retrain)
    print(tracking.sync(experiment))


def _wanted(experiment: Path, preset: str | None, settings: Path | None, origin: Path | None) -> Settings:
    """The settings to train with: those asked for, else those that the experiment began with, else those to tune the origin's nets with."""
    from workbench.experiment import PRESETS, Experiment, read_settings
    from workbench.run import adapt

    if preset is None and not settings and (experiment / "experiment.json").is_file():
        return Experiment(experiment, "cpu").settings
    tuning = adapt.fine_tuning(Experiment(origin, "cpu")) if origin and preset is None else None
    return read_settings(settings, preset, tuning) if settings else tuning or PRESETS[preset or "demo"]()


@contextmanager
def _trained(experiment: Path, new: bool) -> Iterator[None]:
    """Around training: a new experiment that is refused before any stage has finished is removed, so that the mended command can begin; a run
    that is interrupted is on record."""
    from workbench.data.files import held
    from workbench.experiment.table import STAGES
    from workbench.run import tracking
    from workbench.volume import Refused

    try:
        yield
    except Refused:
        if new and not any((experiment / s / "stage.json").is_file() for s in STAGES):
            with suppress(Refused), held(experiment):  # nobody else has begun there
                shutil.rmtree(experiment)
        raise
    except KeyboardInterrupt:
        print(tracking.sync(experiment), file=sys.stderr)
        raise


def _joined(device: str) -> str:
    """The device of this process, once it has met the others that a launcher started with it; alone, the one asked for."""
    from workbench.experiment import pick_device
    from workbench.volume import Refused

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
            raise Refused(
                "accelerate launch",
                "one process where several were asked for",
                "all of them (without GPUs Accelerate starts them only when told so)",
                "Add --multi_gpu to accelerate launch, also on a CPU.",
            )
        return device
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise Refused(
            "several processes", "no accelerate", "it installed", "pip install 'liver-workbench[parallel]'"
        ) from None
    cpu = pick_device(device).type == "cpu"
    return str(PartialState(cpu=cpu, timeout=timedelta(days=7)).device)  # others wait while the first one evaluates


def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The models that come with the workbench: what each learned from, its figures on patients, operating points, licence."""
    from workbench.experiment import models

    print(models.as_json() if as_json else "\n\n".join(map(models.words, models.listed())))


def pack(
    experiment: Path,
    out: Annotated[Path, typer.Option("-o", help="Folder of the model; its name is the model's.")],
    about: Annotated[
        Path, typer.Option(help="JSON: version, trained_on, measured_on, licence, attribution, intended_use.")
    ],
) -> None:
    """Pack a trained experiment as a model without its scans, with a hash of each file."""
    from workbench.data.files import read_json
    from workbench.experiment import models

    models.described(says := read_json(about), about)
    print(models.pack(experiment, out, says))


def adapt(
    models: Annotated[str, typer.Argument(help="A trained experiment, or the name of a model.")],
    cohort: Annotated[Path, typer.Option(help="Manifest (CSV) with a column tumor_labels: none, exclude or complete.")],
    out: Annotated[Path, typer.Option("-o", help="Folder of the adapted experiment.")],
    copies: Annotated[int | None, typer.Option(help="Copies of each scan with synthetic lesions.")] = None,
    tumor_steps: Annotated[int, typer.Option(help="Steps for which the tumor net is tuned; 0: not at all.")] = 0,
    operating_point: Annotated[
        str, typer.Option(help="recall, dice, f1 or fp: what sets the forest's threshold.")
    ] = "dice",
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="CASE/NUMBER of adapt/suspects.csv: leave this region out of training; repeatable."),
    ] = None,
    retrain: Retrain = None,
    device: Device = "auto",
) -> None:
    """Adapt an experiment to your scanner with scans that have no known tumors. The same command resumes."""
    from workbench.experiment import models as known
    from workbench.lab import results
    from workbench.run import adapt as a
    from workbench.run import tracking

    writable(out)
    new = not out.exists()
    made = a.begin(known.find(models), cohort, out, device, copies, tumor_steps, operating_point, retrain=retrain)
    if exclude:
        print(*a.exclude(made, exclude), sep="\n", flush=True)
    with _trained(out, new):
        a.run(made, results.keep, retrain or ("candidates" if exclude else None))
    for line in a.phases(made):
        print(f"warning: {line}", file=sys.stderr)
    print(a.words(made))
    print(tracking.sync(out))


def sweep(
    experiment: Annotated[
        Path, typer.Argument(help="A trained experiment; the stages before the swept ones are taken from it.")
    ],
    out: Annotated[Path, typer.Option("-o", help="Folder of the sweep.")],
    over: Annotated[
        list[str],
        typer.Option(
            help="A setting and its range, repeatable: forest.max_features=float:0.05:0.5, boundary.band_mm=float:2:8, "
            "tumor.cascade.fit.rate=log:1e-4:1e-2, forest.criterion=one:gini,log_loss"
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="How many in all; with more, the same command goes on.")] = 30,
    workers: Annotated[int, typer.Option(min=1, help="Processes that take trials at once.")] = 1,
    after: Annotated[
        str, typer.Option(help="The stage whose Dice is the score: liver, tumor, consistency, forest or boundary.")
    ] = "",
    startup: Annotated[int, typer.Option(min=0, help="Trials that end before one is cut short.")] = 5,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Try other settings of some stages on the training patients, scored out of fold; no held-out patient takes part."""
    from workbench.run import sweep as s

    writable(out)
    plan = s.prepare(experiment, out, over, after, seed, startup, device)
    table = s.run(plan, trials, workers, device, tell=partial(print, flush=True))
    count = [f"{n} {state}" for state in ("complete", "pruned", "fail") if (n := int((table.state == state).sum()))]
    print(f"{len(table)} trials: {', '.join(count)} -> {out / 'trials.csv'}")
    done = table[table.state == "complete"]
    if done.empty:
        raise typer.Exit(1)
    best = done.loc[done.score.idxmax()]
    print(f"best: trial {best.trial}, Dice {best.score:.4f} after {plan.after}; its settings: {out / 'best.json'}")
