"""What out-of-fold scores are worth: threshold for a recall, area under the curve, calibration."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are asked for
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike

from workbench.volume import Refused

_Z95 = 1.959963984540054  # fixed: the normal quantile of a 95 % interval


class RecallThreshold(NamedTuple):
    """A candidate is kept when its score reaches `threshold`; the recall it has, with its Wilson 95 % interval."""

    threshold: float
    recall: float
    recall_low: float
    recall_high: float
    kept: int
    lesions: int


def threshold_for_recall(
    scores: ArrayLike, target: ArrayLike, recall: float = 0.98, lesions: ArrayLike | None = None
) -> RecallThreshold:
    """The largest threshold at which at least `recall` of the true lesions are kept.

    `lesions` names the lesion of each candidate: one that lies in several pieces is kept when any of them is (score >=
    threshold); without it each true candidate is a lesion of its own. The threshold is one of the lesions' own scores; lesions that
    tie with it are kept too. `scores` should be out of fold. The interval is Wilson's, lesions taken as independent: it
    tells what this many lesions can say about lesions to come.
    """
    score, truth = np.asarray(scores, dtype=np.float64), np.asarray(target).astype(bool)
    if score.shape != truth.shape or score.ndim != 1:
        raise Refused("threshold", f"scores {score.shape} and targets {truth.shape}", "one score for every target")
    if not np.isfinite(score).all():
        raise Refused("threshold", f"{(~np.isfinite(score)).sum()} scores that are not finite", "a score a row")
    if not 0 < recall <= 1:
        raise Refused("threshold", f"a recall of {recall}", "more than 0, at most 1")
    if not truth.any():
        raise Refused("threshold", "no true lesion", "at least 1")
    names = np.arange(len(score)) if lesions is None else np.asarray(lesions)
    best = np.sort(pd.Series(score[truth]).groupby(names[truth]).max().to_numpy())[::-1]
    threshold = float(best[math.ceil(recall * len(best) - 1e-9) - 1])
    kept = int((best >= threshold).sum())
    return RecallThreshold(threshold, kept / len(best), *wilson(kept, len(best)), kept, len(best))


PURPOSES = {  # fixed names, in files and on the command line
    "recall": "keeps at least the stated share of the true lesions",
    "dice": "best mean tumor Dice a patient",
    "f1": "best F1 of lesions",
    "fp": "most lesions with at most the stated number of false positives a scan",
}
FALSE_ML = math.pi / 6 * 5.0**3 / 1000  # a ball of 5 mm; smaller false positives are not counted


def operating_points(
    scores: Float[np.ndarray, " candidate"],
    truth: Bool[np.ndarray, " candidate"],
    lesions: Shaped[np.ndarray, " candidate"],
    recall: float,
    volumes: pd.DataFrame | None = None,
    reference_ml: pd.Series | None = None,
    patients: pd.Series | None = None,
    copies: Collection[str] = (),
    false_a_scan: float = 1.0,
) -> dict[str, RecallThreshold]:
    """The threshold for each of `PURPOSES`, from out-of-fold scores of candidates `[candidate]`.

    lesions: as in `threshold_for_recall`. volumes: case, volume_ml and shared_ml (what lies in the reference) of each candidate;
    reference_ml: of each case; patients: of each case, by default each its own. Without volumes there is no `dice`. Of thresholds that do
    equally well the lowest is taken; for `dice` those do whose mean lies within one standard error over patients of the best (Breiman 1984).
    `fp` is the lowest threshold with at most `false_a_scan` false positives over 5 mm a scan; `copies`: cases with synthetic lesions, which are no scans
    of their own.
    """
    points = {"recall": threshold_for_recall(scores, truth, recall, lesions)}
    tried = np.unique(scores)
    best = pd.Series(scores[truth]).groupby(lesions[truth]).max().to_numpy()
    found = (best[None] >= tried[:, None]).sum(1)
    wrong = ((scores >= tried[:, None]) & ~truth).sum(1)
    spare: dict[str, float] = {}
    values = {"f1": 2 * found / (len(best) + found + wrong)}
    if volumes is not None and reference_ml is not None:
        dice = _dice_at(tried, scores, volumes, reference_ml)
        values["dice"], best_at = dice.mean(0), int(np.argmax(np.round(dice.mean(0), 9)))
        whose = reference_ml.index if patients is None else patients.reindex(reference_ml.index).to_numpy()
        each = pd.Series(dice[:, best_at]).groupby(np.asarray(whose)).mean()
        spare["dice"] = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else 0.0
        scans = [case for case in reference_ml.index if case not in set(copies)]
        counted = ~truth & volumes.case.isin(scans).to_numpy() & (volumes.volume_ml.to_numpy() > FALSE_ML)
        values["fp"] = (
            -((scores >= tried[:, None]) & counted).sum(1).clip(min=math.floor(false_a_scan * len(scans) + 1e-9))
        )
    for name, value in values.items():
        at = float(tried[int(np.argmax(value >= value.max() - max(spare.get(name, 0.0), 1e-9)))])
        kept = int((best >= at).sum())
        points[name] = RecallThreshold(at, kept / len(best), *wilson(kept, len(best)), kept, len(best))
    return points


def _dice_at(tried: np.ndarray, scores: np.ndarray, volumes: pd.DataFrame, reference_ml: pd.Series) -> np.ndarray:
    """Dice `[case tried]` if candidates from each of the `tried` scores on are kept; a case without tumor has 1 where nothing is kept, else 0."""
    out = np.empty((len(reference_ml), len(tried)))
    for row, (case, reference) in enumerate(reference_ml.items()):
        of = volumes.case.to_numpy() == case
        keep = scores[of] >= tried[:, None]
        kept_ml, shared_ml = (keep @ volumes[column].to_numpy()[of] for column in ("volume_ml", "shared_ml"))
        both = kept_ml + reference
        out[row] = np.where(both > 0, 2 * shared_ml / np.where(both > 0, both, 1), 1.0)
    return out


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    p, z2 = hits / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def auc(scores: ArrayLike, target: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a lesion outscores a look-alike, ties half. NaN with one class."""
    truth = np.asarray(target).astype(bool)
    lesions, alike = int(truth.sum()), int((~truth).sum())
    if lesions == 0 or alike == 0:
        return math.nan
    return float((scipy.stats.rankdata(scores)[truth].sum() - lesions * (lesions + 1) / 2) / (lesions * alike))


def areas(
    scores: Float[np.ndarray, " candidate"],
    truth: Bool[np.ndarray, " candidate"],
    weights: Float[np.ndarray, "draw candidate"],
) -> Float[np.ndarray, " draw"]:
    """`auc` with each candidate counted as often as `weights` `[draw candidate]` says, `[draw]`."""
    order = np.argsort(scores, kind="stable")
    ordered, lesion, weights = scores[order], truth[order], weights[:, order]
    alike = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * ~lesion, axis=1)], axis=1)
    below, upto = (alike[:, np.searchsorted(ordered, ordered, side)] for side in ("left", "right"))
    return ((below + upto) / 2 * weights * lesion).sum(1) / (weights[:, lesion].sum(1) * alike[:, -1])


class Calibration(NamedTuple):
    """Bins of about as many candidates: `score` their mean, `share` of lesions, `low`, `high` (Wilson), `n`; the Brier
    score, and how far scores and shares are apart in the mean (expected calibration error)."""

    bins: pd.DataFrame
    brier: float
    error: float


def calibration(scores: ArrayLike, target: ArrayLike, bins: int = 8) -> Calibration:
    """How often candidates of about one score are lesions: a balanced forest's scores are votes, not chances."""
    scores, truth = np.asarray(scores, float), np.asarray(target).astype(bool)
    if not len(scores) or len(scores) != len(truth) or not np.isfinite(scores).all():
        raise Refused(
            "calibration", f"{len(scores)} scores, {len(truth)} verdicts", "a finite score for each candidate"
        )
    rows = []
    for part in np.array_split(np.argsort(scores, kind="stable"), min(bins, len(scores))):
        low, high = wilson(int(truth[part].sum()), len(part))
        rows.append((scores[part].mean(), truth[part].mean(), low, high, len(part)))
    table = pd.DataFrame(rows, columns=["score", "share", "low", "high", "n"])
    error = float((table.n * (table.score - table.share).abs()).sum() / len(scores))
    return Calibration(table, float(((scores - truth) ** 2).mean()), error)
