"""How stable a feature is under perturbations (ICC), and how stable the selection is when patients are drawn again (Nogueira)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are asked for
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike
from scipy.special import ndtri

from workbench.stages.selection.settings import SAME, SelectionSettings
from workbench.volume import Refused

ICCS = ["icc21", "icc21_low", "icc21_high", "icc11", "icc11_low", "icc11_high"]
DRAWN_AGAIN = 20  # a choice: draws for each resample wanted, until enough are large enough


def icc(values: np.ndarray) -> dict[str, float | int | str]:
    """ICC(2,1) and ICC(1,1) with 95 % intervals of one feature, `values [lesion repeat]`. Keys as `icc_table`."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise Refused("icc", f"{values.ndim} dimensions", "2 (lesion, repeat)")
    return icc_table(values.T[:, :, None]).iloc[0].to_dict()


def icc_table(values: np.ndarray, minimum: int = 3) -> pd.DataFrame:
    """The same for all features in one pass, `values [repeat lesion feature]`: one row a feature.

    Lesions with a value missing in any repeat are dropped, feature by feature. Columns icc21, icc21_low, icc21_high,
    icc11, icc11_low, icc11_high, lesions (that were left), reason (empty, or why all six are NaN: fewer than
    `minimum` lesions, or a feature that is constant over lesions and repeats). Repeats that agree exactly give 1 with
    the interval [1, 1].
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] < 2:
        raise Refused("repeats", f"shape {values.shape}", "(repeat, lesion, feature) with at least 2 repeats")
    if minimum < 2:
        raise Refused("icc", f"a minimum of {minimum} lesions", "at least 2")
    k = values.shape[0]
    defined = np.isfinite(values).all(axis=0)  # [lesion feature]
    count = defined.sum(axis=0)
    n = np.maximum(count, 2)  # keeps the formulas finite where they are not used
    level = np.where(defined, values, 0).sum(axis=(0, 1)) / (n * k)
    x = np.where(defined, values - level, 0)
    lesion = x.mean(axis=0)  # [lesion feature], 0 where undefined
    repeat = x.sum(axis=1) / n  # [repeat feature]
    total = (x**2).sum(axis=(0, 1))
    within = x - lesion
    msb = k * (lesion**2).sum(axis=0) / (n - 1)
    msw = (within**2).sum(axis=(0, 1)) / (n * (k - 1))
    msj = n * (repeat**2).sum(axis=0) / (k - 1)
    mse = (np.where(defined, within - repeat[:, None], 0) ** 2).sum(axis=(0, 1)) / ((n - 1) * (k - 1))

    few = count < minimum
    constant = ~few & (np.sqrt(total / (n * k)) <= SAME * np.abs(level))
    usable = ~few & ~constant
    # Exact agreement would divide by zero; a floor this far under the spread leaves every digit and gives 1 [1, 1].
    floor = np.where(usable, 1e-30 * total / (n * k), 1.0)
    msw, mse = np.maximum(msw, floor), np.maximum(mse, floor)

    upper = 0.975
    one = (msb - msw) / (msb + (k - 1) * msw)
    f = msb / msw
    low_f = f / scipy.stats.f.ppf(upper, n - 1, n * (k - 1))
    high_f = f * scipy.stats.f.ppf(upper, n * (k - 1), n - 1)
    two = (msb - mse) / (msb + (k - 1) * mse + k * (msj - mse) / n)
    fj = msj / mse
    rest = n * (1 + (k - 1) * two) - k * two
    spread = (n - 1) * (k * two * fj) ** 2 + rest**2
    v = (n - 1) * (k - 1) * (k * two * fj + rest) ** 2 / np.where(spread > 0, spread, 1)
    v = np.maximum(v, 1e-6)  # Satterthwaite's degrees of freedom; 0 only where nothing is defined
    low_q, high_q = scipy.stats.f.ppf(upper, n - 1, v), scipy.stats.f.ppf(upper, v, n - 1)
    common = k * msj + (k * n - k - n) * mse
    with np.errstate(invalid="ignore", over="ignore"):
        two_low = n * (msb - low_q * mse) / (low_q * common + n * msb)
        two_high = n * (high_q * msb - mse) / (common + n * high_q * msb)
    # With v near 0 the quantiles overflow: the limits of the two quotients.
    two_low = np.where(np.isfinite(low_q), two_low, -n * mse / np.maximum(common, floor))
    two_high = np.where(np.isfinite(high_q), two_high, 1.0)

    one_low, one_high = (low_f - 1) / (low_f + k - 1), (high_f - 1) / (high_f + k - 1)
    numbers = np.column_stack([two, two_low, two_high, one, one_low, one_high])
    numbers[~usable] = np.nan
    table = pd.DataFrame(numbers, columns=ICCS)
    table["lesions"] = count
    table["reason"] = [
        "" if c >= minimum else f"{c} lesions have a value in every repeat, {minimum} are needed" for c in count
    ]
    table.loc[constant, "reason"] = "constant over lesions and repeats"
    return table


def repeats_within(
    repeats: Float[np.ndarray, "perturbation lesion feature"], repeat_rows: ArrayLike, rows: ArrayLike
) -> tuple[Float[np.ndarray, "perturbation kept feature"], Shaped[np.ndarray, " kept"]]:
    """The repeats `[perturbation lesion feature]` of those lesions that are among `rows`, and their labels.

    `repeat_rows` and `rows` are index labels of the feature table. Use it to cut the repeats to the patients of a fold.
    """
    labels = np.asarray(repeat_rows)
    inside = pd.Index(labels).isin(pd.Index(np.asarray(rows)))
    return repeats[:, inside], labels[inside]


def resamples(target: ArrayLike, patients: ArrayLike, settings: SelectionSettings) -> list[Bool[np.ndarray, " lesion"]]:
    """`settings.resamples` sets of rows, bool each: those of as many patients as there are, drawn with replacement, each taken once.

    A draw that `select` would refuse for its size is drawn again; none at all where that does not help.
    """
    truth, groups = np.asarray(target).astype(bool), pd.factorize(np.asarray(patients))[0]
    people, rng, found = int(groups.max()) + 1, np.random.default_rng(settings.seed), []
    for _ in range(DRAWN_AGAIN * settings.resamples):
        of = np.unique(rng.integers(0, people, people))
        use = np.isin(groups, of)
        least = min(int(truth[use].sum()), int((~truth[use]).sum()))
        if len(of) >= settings.min_patients and use.sum() >= settings.min_lesions and least >= settings.min_class:
            found.append(use)
        if len(found) == settings.resamples:
            return found
    return []


class Stability(NamedTuple):
    """Nogueira's index (1 always the same features, 0 as if drawn at random) with its 95 % interval."""

    value: float
    low: float
    high: float


def nogueira(selections: Sequence[Sequence[str]], n_features: int) -> Stability:
    """How alike `selections` (the names chosen on resamples or folds, two or more) out of `n_features` are.

    Nogueira, Sechidis & Brown, JMLR 18 (2018), theorem 4 and corollary 9. NaN when every selection is empty or whole:
    then there was nothing to choose.
    """
    chosen = [set(names) for names in selections]
    names = sorted(set().union(*chosen)) if chosen else []
    if len(chosen) < 2:
        raise Refused("nogueira", f"{len(chosen)} selections", "at least 2")
    if len(names) > n_features:
        raise Refused("nogueira", f"{len(names)} different names", f"at most n_features ({n_features})")
    z = np.array([[name in s for name in names] for s in chosen], dtype=np.float64).reshape(len(chosen), -1)
    m, d = len(chosen), n_features
    p, k = z.mean(axis=0), z.sum(axis=1)
    share = k.mean() / d
    chance = share * (1 - share)
    if chance <= 0:
        return Stability(math.nan, math.nan, math.nan)
    index = 1 - (m / (m - 1) * p * (1 - p)).sum() / d / chance
    correction = index / 2 * (2 * k * k.mean() / d**2 - k / d - k.mean() / d + 1)
    each = ((z @ p) / d - k * k.mean() / d**2 + correction) / chance
    half = ndtri(0.975) * math.sqrt(4 / m**2 * ((each - each.mean()) ** 2).sum())
    return Stability(float(index), float(index - half), float(index + half))
