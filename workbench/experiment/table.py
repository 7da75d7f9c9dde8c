"""The table of stages: what each needs, how it runs and what it leaves. A new stage is a module, a row here and a notebook.

The order of the rows is the order of the method, and the number of a row is that of its notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from workbench.volume import Refused

PIPELINE = "workbench.experiment.pipeline"


@dataclass(frozen=True)
class Stage:
    """One row. Functions may be given as "module:name", which is imported when the stage runs."""

    needs: tuple[str, ...]
    run: str | Callable[..., dict]  # (experiment, folder) -> figures for metrics.json
    train: str | Callable | None = None  # its nets alone, (experiment, folder): all processes of a run do this together
    by_fold: bool = False  # a net a fold: `train` takes one fold as a third argument
    # What its files mean and how they are computed. Raise the number only when the stage computes something else than before; a stage
    # that recorded none was written by 0.1.0, which had format 1. The version of the package takes no part.
    format: int = 1
    model: bool = False  # leaves a model that `segment` needs
    scored: bool = False  # there is a Dice after it
    keeps: bool = False  # `run` takes `keep`, which writes the result folders of the held-out cases
    colour: str = "#999999"

    def call(self, what: str) -> Callable[..., Any]:
        """The function `run` or `train`."""
        given = getattr(self, what)
        return resolve_name(given) if isinstance(given, str) else given


STAGES: dict[str, Stage] = {
    "cohort": Stage((), f"{PIPELINE}.nets:run_cohort"),
    "liver": Stage(
        ("cohort",), f"{PIPELINE}.nets:run_liver", f"{PIPELINE}.nets:train_liver", by_fold=True, model=True, scored=True,
        colour="#56B4E9",
    ),
    "tumor": Stage(
        ("cohort", "liver"), f"{PIPELINE}.nets:run_tumor", f"{PIPELINE}.nets:train_tumor", by_fold=True, model=True, scored=True,
        colour="#E69F00",
    ),
    "consistency": Stage(("cohort", "tumor"), f"{PIPELINE}.lesions:run_consistency", scored=True, colour="#009E73"),
    "candidates": Stage(
        ("cohort", "liver", "tumor", "consistency"), f"{PIPELINE}.lesions:run_candidates", colour="#F0E442"
    ),
    "radiomics": Stage(("cohort", "liver", "candidates"), f"{PIPELINE}.lesions:run_radiomics", colour="#CC79A7"),
    "selection": Stage(("cohort", "candidates", "radiomics"), f"{PIPELINE}.decisions:run_selection", colour="#7F4F71"),
    "forest": Stage(
        ("cohort", "candidates", "radiomics", "selection"), f"{PIPELINE}.decisions:run_forest", model=True, scored=True,
        colour="#D55E00",
    ),
    "boundary": Stage(
        ("cohort", "liver", "tumor", "candidates", "forest"), f"{PIPELINE}.decisions:run_boundary",
        f"{PIPELINE}.decisions:train_boundary", model=True, scored=True, colour="#0072B2",
    ),
    "metrics": Stage(
        ("liver", "tumor", "forest", "boundary"), f"{PIPELINE}.held_out:run_metrics", keeps=True, colour="#000000"
    ),
}  # fmt: skip


def names(**wanted: bool) -> tuple[str, ...]:
    """Stages in order, those whose flags are as `wanted`: `names(model=True)`."""
    return tuple(name for name, row in STAGES.items() if all(getattr(row, k) == v for k, v in wanted.items()))


def nets() -> tuple[str, ...]:
    """The stages that train a network."""
    return tuple(name for name, row in STAGES.items() if row.train is not None)


def resting_on(stage: str | None) -> tuple[str, ...]:
    """A stage and those that need it, directly or through others, in order; none for None."""
    if stage is not None and stage not in STAGES:
        raise Refused("--retrain", stage, ", ".join(STAGES))
    found = {stage}
    for name, row in STAGES.items():
        found |= {name} if found & set(row.needs) else set()
    return tuple(name for name in STAGES if name in found)


def before(stage: str) -> tuple[str, ...]:
    """The stages before one, in order."""
    return names()[: names().index(stage)]
