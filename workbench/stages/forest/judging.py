"""What each feature is worth to a forest, and what simpler features would be: drawn again by patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from workbench.data.threads import Tell, side_by_side
from workbench.stages.forest.fitting import (
    CPU,
    Choose,
    OutOfFold,
    boosted,
    checked,
    fit,
    grouped_folds,
    numbered,
    out_of_fold,
)
from workbench.stages.forest.measures import areas, auc, threshold_for_recall
from workbench.stages.forest.settings import ForestSettings
from workbench.volume import Refused


def importance(
    found: OutOfFold,
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    repeats: int = 10,
) -> pd.DataFrame:
    """How much the area under the out-of-fold curve falls when a feature is shuffled among the candidates of each fold.

    Columns name, drop (mean of `repeats` shuffles), low, high (95 %, patients drawn again 100 times for each shuffle), forests (how many
    of the folds' forests read it; where one does not, its scores stay). The largest drop first.
    """
    truth, groups = np.asarray(target).astype(bool), numbered(patients)
    if truth.all() or not truth.any() or len(truth) != len(features):
        raise Refused("importance", f"{truth.sum()} lesions in {len(features)} rows", "both classes")
    names = list(dict.fromkeys(name for forest in found.forests for name in forest.names))
    scores = np.tile(found.scores, (len(names), repeats, 1))  # [feature shuffle candidate]
    rng = np.random.default_rng(0)
    folds = [np.flatnonzero(found.fold == number) for number in np.unique(found.fold)]
    shuffled = [[rng.permutation(len(held)) for _ in range(repeats)] for held in folds]

    def work(number: int, tell: Tell) -> None:
        forest, held, orders = found.forests[number], folds[number], shuffled[number]
        table = forest.table(features.iloc[held])
        for column, name in enumerate(forest.names):
            copies = np.tile(table, (repeats, 1))
            copies[:, column] = np.concatenate([table[order, column] for order in orders])
            says = forest.judge(copies).reshape(repeats, -1)
            scores[names.index(name)][:, held] = says

    side_by_side(work, range(len(folds)), lambda *_: None, CPU)
    weights = _drawn(groups, truth, 100, rng)
    whole, base = auc(found.scores, truth), areas(found.scores, truth, weights)
    result = []
    for name, ones in zip(names, scores):
        falls = np.concatenate([base - areas(one, truth, weights) for one in ones])
        low, high = np.quantile(falls, (0.025, 0.975)) if len(falls) else (math.nan, math.nan)
        used = sum(name in forest.names for forest in found.forests)
        result.append((name, float(np.mean([whole - auc(one, truth) for one in ones])), low, high, used))
    table = pd.DataFrame(result, columns=["name", "drop", "low", "high", "forests"])
    return table.sort_values("drop", ascending=False, kind="stable", ignore_index=True)


def baselines(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    simpler: Mapping[str, Sequence[str]],
    selected: Choose | Sequence[str] | None = None,
    settings: ForestSettings | None = None,
    fold: np.ndarray | None = None,
    draws: int = 1000,
    lesions: ArrayLike | None = None,
    known: OutOfFold | None = None,
) -> pd.DataFrame:
    """The same folds and recall for a forest on each `simpler` set of columns (by its name), on the selected features, on all of them, and
    for gradient boosting on the selected ones.

    `selected` is best a function of the training rows (see `out_of_fold`): names chosen on all rows would flatter
    themselves. `known`: their out-of-fold scores, where they are there already. One row each: features (what), columns (how many), auc,
    threshold, recall, false_positives, removed, removed_share; with _low and _high of auc, threshold and removed_share when patients are
    drawn again and the threshold is chosen anew for each draw, of recall by Wilson. auc_gain and removed_gain: what the selected ones
    have more, from the same draws.
    """
    settings = settings or ForestSettings()
    truth = checked(target, len(features), settings)
    fold = grouped_folds(truth, patients, settings.folds, settings.seed) if fold is None else np.asarray(fold)
    weights = _drawn(numbered(patients), truth, draws, np.random.default_rng(settings.seed))
    sets = dict(simpler) | {"selected": selected, "all": list(features.columns), "boosting": selected}
    rows, drawn = [], []
    for what, columns in sets.items():
        if columns is None:
            continue
        make = boosted if what == "boosting" else fit
        found = known if what == "selected" else None
        found = found or out_of_fold(features, truth, patients, columns, settings, fold, make)
        chosen = threshold_for_recall(found.scores, truth, settings.recall, lesions)
        removed = (found.scores < chosen.threshold) & ~truth
        drawn.append(again(found.scores, truth, lesions, settings.recall, weights))
        low, high = _middle_95(drawn[-1])
        rows.append(
            {
                "features": what,
                "columns": float(np.mean([len(f.names) for f in found.forests])),
                "auc": auc(found.scores, truth),
                "auc_low": low[0],
                "auc_high": high[0],
                "threshold": chosen.threshold,
                "threshold_low": low[2],
                "threshold_high": high[2],
                "recall": chosen.recall,
                "recall_low": chosen.recall_low,
                "recall_high": chosen.recall_high,
                "lesions": chosen.lesions,
                "lost": chosen.lesions - chosen.kept,
                "false_positives": int((~truth).sum()),
                "removed": int(removed.sum()),
                "removed_share": float(removed.sum() / (~truth).sum()),
                "removed_share_low": low[1],
                "removed_share_high": high[1],
            }
        )
    table = pd.DataFrame(rows)
    if "selected" not in set(table.features):
        return table
    best = int(np.flatnonzero(table.features == "selected")[0])
    for n, measure in enumerate(("auc", "removed_share")):
        gain = measure.replace("_share", "") + "_gain"
        table[gain] = table[measure][best] - table[measure]
        ends = [_middle_95(drawn[best][n : n + 1] - own[n : n + 1]) for own in drawn]
        table[f"{gain}_low"], table[f"{gain}_high"] = ([float(end[side][0]) for end in ends] for side in (0, 1))
    return table


def again(
    scores: Float[np.ndarray, " candidate"],
    truth: Bool[np.ndarray, " candidate"],
    lesions: ArrayLike | None,
    recall: float,
    weights: Float[np.ndarray, "draw candidate"],
) -> Float[np.ndarray, "3 draw"]:
    """AUC, share of false positives removed, and the threshold that each draw of patients (`weights` `[draw candidate]`) would choose,
    `[3 draw]`."""
    names = np.arange(len(scores)) if lesions is None else np.asarray(lesions)
    own = pd.DataFrame({"lesion": names, "score": scores, "row": np.arange(len(scores))})[truth]
    best = own.sort_values("score", ascending=False, kind="stable").drop_duplicates("lesion")
    heard = weights[:, best.row].cumsum(1)  # lesions kept as the threshold falls
    enough = heard >= recall * heard[:, -1:] - 1e-9
    threshold = best.score.to_numpy()[enough.argmax(1)]
    removed = (scores < threshold[:, None]) & ~truth
    shares = (weights * removed).sum(1) / weights[:, ~truth].sum(1)
    return np.stack([areas(scores, truth, weights), shares, threshold])


def _drawn(groups: np.ndarray, truth: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each candidate is there when patients are drawn with replacement, `[draw candidate]`; draws of both classes only."""
    people = len(np.unique(groups))
    chosen = rng.integers(0, people, (draws, people))
    weights = np.stack([np.bincount(row, minlength=people) for row in chosen])[:, groups].astype(float)
    return weights[(weights[:, truth].sum(1) > 0) & (weights[:, ~truth].sum(1) > 0)]  # a draw of one class has no area


def _middle_95(drawn: np.ndarray) -> np.ndarray:
    """Low and high 2.5 % of each row, `[2 row]`; NaN without a draw."""
    return np.quantile(drawn, (0.025, 0.975), axis=1) if drawn.shape[1] else np.full((2, len(drawn)), np.nan)
