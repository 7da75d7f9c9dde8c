"""The score of a sweep's trial: a Dice of the training patients, by models that have not learnt from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from workbench.data.files import read_json
from workbench.experiment import Experiment, pipeline
from workbench.experiment.table import names
from workbench.stages import boundary, forest

Report = Callable[[float, float], None]  # share of the work that is done, figure


def score(made: Experiment, first: str, after: str, report: Report) -> pd.Series:
    """Run the stages from `first` on and give the Dice after `after` of each training case, by models that have not learnt from it.

    Of liver and tumor, every fold's net has its own patients held out. The forest's verdicts are out of fold, those of a fold
    with the threshold that the other folds ask for. The boundary net is trained once for each fold of the cascade.
    The first stage with a model that runs tells `report` how it does: Dice of held-out slabs, AUC of held-out candidates, or Dice.
    """
    stages = names()[names().index(first) : names().index(after) + 1]
    telling = next((stage for stage in names(model=True) if stage in stages), "")
    kept: pd.Series | None = None
    for stage in stages:
        tell = report if stage == telling else lambda *_: None
        if stage in names(by_fold=True):
            _train_folds(made, stage, tell)
        if stage == "forest":
            kept = verdicts(made, tell)
        elif stage == "boundary":
            return _contours(made, verdicts(made) if kept is None else kept, tell)
        else:
            pipeline.run(made, stage)
    if kept is not None:
        masks = {c: pipeline.candidates_chance(made, c, *said(kept[c])) > 0 for c in kept.index}
        return pd.Series({c: _tumor_dice(made, c, mask) for c, mask in masks.items()})
    column = "dice_after" if after == "consistency" else "dice"
    return made.table(after, "cases.csv", column, dtype={"case": str}).set_index("case")[column].dropna()


def _tumor_dice(made: Experiment, case: str, found: torch.Tensor) -> float:
    return pipeline.dice(found, made.work(case)[1] == 2)


def _train_folds(made: Experiment, stage: str, report: Report) -> None:
    """The nets of a cascade stage, one fold after the other, each told of by the Dice of its held-out patients' slabs."""
    folds, quiet = made.settings.folds, made.progress
    ended: list[float] = []

    def tell(_: str, done: int, total: int, row: dict) -> None:
        if "dice" in row:
            report((len(ended) + done / total) / folds, float(np.mean([*ended, row["dice"]])))

    made.progress = tell
    for fold in range(folds):
        pipeline.train_fold(made, stage, fold)
        ended.append(read_json(made.path(stage) / f"fold{fold}.json", curve=list)["curve"][-1].get("dice", math.nan))
    made.progress = quiet


def verdicts(made: Experiment, report: Report | None = None) -> pd.Series:
    """The numbers of the candidates that are kept and P(lesion) of each, by case, from the scores of the stage forest where it has run, else of
    forests made here."""
    rows, s = pipeline.forest_rows(made), made.settings.forest
    folds, scores = np.unique(rows.fold), np.full(len(rows.truth), np.nan)
    if made.finished("forest"):
        stored = made.table("forest", "scores.csv", "score", dtype={"case": str}).set_index(["case", "candidate"]).score
        scores = stored.loc[list(zip(rows.table.case, rows.table.candidate))].to_numpy(float)
    else:
        areas: list[float] = []

        def tell(held_out: np.ndarray, found: np.ndarray) -> None:
            areas.append(forest.auc(found, rows.truth[held_out]) if len(set(rows.truth[held_out])) > 1 else math.nan)
            known = [area for area in areas if math.isfinite(area)]
            if report is not None and known:
                report(len(areas) / len(folds), float(np.mean(known)))

        scores = forest.out_of_fold(
            rows.features, rows.truth, rows.patients, rows.chosen, s, rows.fold, tell=tell
        ).scores
    kept, likely, volume_ml = np.zeros(len(scores), bool), scores.copy(), rows.table.volume_ml.to_numpy()
    for n in folds:
        own = rows.fold == n
        likely[own] = forest.chances(scores[own], volume_ml[own], volume_ml[~own].max())
        others = (scores[~own], rows.truth[~own], s.recall, rows.lesions[~own])
        kept[own] = scores[own] >= forest.threshold_for_recall(*others).threshold
    table = rows.table.assign(score=likely)[kept].set_index("candidate")
    return pd.Series({c: table.score[table.case == c].to_dict() for c in pipeline.learned_from(made).case})


def said(kept: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(kept), list(kept.values())


def _contours(made: Experiment, kept: pd.Series, report: Report) -> pd.Series:
    """Dice of each case after its boundary was drawn anew by a net of the other folds' patients."""
    s, table = made.settings.boundary, pipeline.learned_from(made)
    chances = {c: pipeline.candidates_chance(made, c, *said(kept[c])) for c in table.case}
    cases = {row.case: pipeline.boundary_case(made, row, chances[row.case] > 0) for row in table.itertuples()}
    dice: dict[str, float] = {}
    folds, start = sorted(set(table.fold)), made.start / "boundary" if made.start else None
    for n, fold in enumerate(folds):
        others = [cases[c] for c in table.case[table.fold != fold]]
        folder = made.path("boundary") / f"fold{fold}"
        model = boundary.train(others, s, made.settings.seed, None, made.device, folder, start)
        for c in table.case[table.fold == fold]:
            case = cases[c]
            given = case.image, case.tumor_probability, chances[c], case.liver, case.spacing_mm
            dice[c] = _tumor_dice(made, c, boundary.relabel(model, *given).mask)
        report((n + 1) / len(folds), float(np.mean(list(dice.values()))))
    return pd.Series(dice)
