"""From the 728 descriptors to 20: stable, not redundant, informative, each with its reason.

States (Li et al., arXiv 2512.07574): a multi-strategy selection leaves 20 stable, highly informative features.

Chooses:
1. *defined*: a feature that is missing for too many lesions, or the same for all, leaves.
2. *stable*: every feature is computed again under perturbations of image and mask (Zwanenburg et al. 2019,
   10.1038/s41598-018-36938-4). ICC(2,1) over the systematic ones (each perturbation is a rater with a shift of its
   own), ICC(1,1) over the random ones (repeats are interchangeable); the unperturbed value is one more repeat of
   both. A feature stays when the lower ends of both 95 % intervals reach the bound (Shrout & Fleiss 1979; McGraw &
   Wong 1996). If too few uncorrelated features are left to choose from, the bound is lowered step by step; the
   reason of a feature that is kept only so says it.
3. *not redundant*: complete linkage on 1 - |Spearman rho|, so any two members of a cluster correlate at least as
   stated; the most stable member stands for its cluster. The target is not looked at up to here, so that this part
   cannot overfit to it.
4. *relevant*: three strategies rank the representatives, and a Borda count joins the ranks: mRMR on mutual
   information (Peng et al. 2005), L1-logistic stability selection on halves of the patients (Meinshausen & Bühlmann
   2010), and permutation importance of a small forest on patients that it did not see.
5. 20 remain.

A table goes in, names with reasons come out. The result depends on the given rows only: whoever holds patients back
does not pass them (`repeats_within` cuts the repeats to the same rows), and a repeat of a lesion that is not among the
rows is refused. The Nogueira index says how stable the selection itself is (Nogueira, Sechidis & Brown 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are asked for
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.special import entr, ndtri

from workbench.volume import Refused

SYSTEMATIC, RANDOM, UNPERTURBED = "systematic", "random", "unperturbed"
STEPS = ("undefined", "unstable", "redundant", "less relevant", "kept")
STRATEGIES = {"rank_mutual": "mutual information", "rank_l1": "L1 stability", "rank_forest": "forest"}
DRAWN_AGAIN = 20  # a choice: draws for each resample wanted, until enough are large enough
_SAME = 1e-12  # fixed: spread relative to the level below which a float64 feature counts as constant


@dataclass(frozen=True)
class SelectionSettings:
    """How strict each step is. Sizes are chosen so that 300 lesions and 728 features take seconds on one core."""

    keep: int = 20  # fixed: stated by the paper
    own_features: bool = False  # whether the candidates' own (depth, probability) may be chosen beside the 728
    patients_first: bool = True  # phantoms are not learned from where there are patients enough (docs/decisions/0016)
    icc_bound: float = 0.5  # empirical (docs/decisions/0005): "moderate" (Koo & Li 2016), of the interval's lower end
    icc_step: float = 0.05  # by how much the bound is lowered at a time
    icc_floor: float = 0.0  # under it a feature repeats no better than chance: the bound never goes lower
    choose_from: int = 30  # the bound is lowered until this many representatives are left
    rho: float = 0.9  # |Spearman| from which two features say the same
    max_missing: float = 0.2  # share of lesions for which a feature may be undefined
    bins: int = 6  # quantile bins of the mutual information
    draws: int = 60  # halves of the patients for the L1 stability selection
    folds: int = 5  # patient-grouped: each leaves its patients out of selection and forest
    resamples: int = 20  # of the patients, on which the choice is made again to see how alike it is; 0 or 2 and more
    inner_folds: int = 3
    trees: int = 200
    permutations: int = 3
    min_lesions: int = 20
    min_class: int = 6  # lesions and look-alikes, each
    min_patients: int = 4
    min_repeated: int = 8  # lesions with repeats, for an interval that means something
    seed: int = 0

    def __post_init__(self):
        for name in (
            "keep",
            "choose_from",
            "bins",
            "draws",
            "folds",
            "inner_folds",
            "trees",
            "permutations",
            "min_repeated",
        ):
            least = 2 if name in ("bins", "folds", "inner_folds", "min_repeated") else 1
            if getattr(self, name) < least:
                raise Refused(f"SelectionSettings.{name}", str(getattr(self, name)), f"at least {least}")
        if self.resamples < 0 or self.resamples == 1:
            raise Refused("SelectionSettings.resamples", str(self.resamples), "0 or at least 2")
        if self.choose_from < self.keep:
            raise Refused("SelectionSettings.choose_from", str(self.choose_from), f"at least keep ({self.keep})")
        for name, low in (("icc_bound", self.icc_floor), ("icc_floor", 0.0), ("rho", 0.0), ("max_missing", 0.0)):
            if not low <= getattr(self, name) <= 1:
                raise Refused(f"SelectionSettings.{name}", str(getattr(self, name)), f"{low} to 1")
        if not self.icc_step > 0:
            raise Refused("SelectionSettings.icc_step", str(self.icc_step), "more than 0")


@dataclass(frozen=True)
class Selection:
    """The names that stay, best first, and one row for every feature with the step at which it left, and why.

    `table` columns: name, icc21, icc21_low, icc21_high, icc11, icc11_low, icc11_high, repeated (lesions behind the
    ICCs), cluster, rank_mutual, rank_l1, rank_forest, borda (points), rank, step (one of STEPS), reason, kept.
    `bound` is the ICC bound that was used in the end.
    """

    names: tuple[str, ...]
    table: pd.DataFrame
    bound: float


# ---------------------------------------------------------------------------------------------- stability


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
    constant = ~few & (np.sqrt(total / (n * k)) <= _SAME * np.abs(level))
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
    table = pd.DataFrame(numbers, columns=["icc21", "icc21_low", "icc21_high", "icc11", "icc11_low", "icc11_high"])
    table["lesions"] = count
    table["reason"] = [
        "" if c >= minimum else f"{c} lesions have a value in every repeat, {minimum} are needed" for c in count
    ]
    table.loc[constant, "reason"] = "constant over lesions and repeats"
    return table


def repeats_within(repeats: np.ndarray, repeat_rows: ArrayLike, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The repeats `[perturbation lesion feature]` of those lesions that are among `rows`, and their labels.

    `repeat_rows` and `rows` are index labels of the feature table. Use it to cut the repeats to the patients of a fold.
    """
    labels = np.asarray(repeat_rows)
    inside = pd.Index(labels).isin(pd.Index(np.asarray(rows)))
    return repeats[:, inside], labels[inside]


# ---------------------------------------------------------------------------------------------- relevance


def mutual_information(codes: np.ndarray, n_codes: int) -> np.ndarray:
    """Mutual information in nats of every pair of columns of `codes [lesion column]`, values 0..n_codes-1.

    The plug-in estimate less its bias (Miller 1955), never below 0. `[column column]`; the diagonal is the entropy's.
    """
    n, m = codes.shape
    hot = (codes[:, :, None] == np.arange(n_codes)).reshape(n, m * n_codes).astype(np.float32)  # [n m*code]
    joint = (hot.T @ hot).astype(np.float64).reshape(m, n_codes, m, n_codes) / n
    single = hot.mean(axis=0, dtype=np.float64).reshape(m, n_codes)
    entropy = entr(single).sum(axis=1)
    filled = (single > 0).sum(axis=1) - 1
    plug_in = entropy[:, None] + entropy[None] - entr(joint).sum(axis=(1, 3))
    return np.maximum(plug_in - np.outer(filled, filled) / (2 * n), 0)


def quantile_codes(values: np.ndarray, bins: int) -> np.ndarray:
    """Columns `[lesion column]` as equally filled classes 0..bins-1; equal values share a class."""
    position = (scipy.stats.rankdata(values, axis=0) - 0.5) / len(values)
    return np.minimum((position * bins).astype(np.int64), bins - 1)


def rank_mutual(values: np.ndarray, target: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """mRMR (difference form): rank 1 has the most information, each next one the most beyond those before it."""
    codes = np.column_stack([quantile_codes(values, settings.bins), target.astype(np.int64)])
    information = mutual_information(codes, max(settings.bins, 2))
    relevance, redundancy = information[:-1, -1], information[:-1, :-1]
    rank = np.zeros(len(relevance))
    overlap = np.zeros(len(relevance))
    for place in range(len(relevance)):
        gain = relevance - overlap / max(place, 1)
        best = int(np.argmax(np.where(rank == 0, gain, -np.inf)))
        rank[best] = place + 1
        overlap += redundancy[best]
    return rank


def rank_l1(values: np.ndarray, target: np.ndarray, patients: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """How often an L1-logistic model on half of the patients uses a feature, and how strongly where that ties.

    The features enter as normal scores of their ranks: heavy tails and units play no part. Two penalties, 3 and 10
    times weaker than the one at which the first feature enters, so that few and many features both have a say.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import l1_min_c

    rng = np.random.default_rng([settings.seed, 1])
    scores = ndtri((scipy.stats.rankdata(values, axis=0) - 0.5) / len(values))
    scores /= np.maximum(scores.std(axis=0), _SAME)
    unique = np.unique(patients)
    used, strength, done = np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0
    for _ in range(20 * settings.draws):  # a half may hold one class only; there are enough draws for the others
        if done == settings.draws:
            break
        half = np.isin(patients, rng.choice(unique, math.ceil(len(unique) / 2), replace=False))
        x, y = scores[half], target[half]
        if min(y.sum(), (~y).sum()) < 2:
            continue
        first = l1_min_c(x, y, loss="log")
        for weaker in (3, 10):
            model = LogisticRegression(
                solver="liblinear",
                l1_ratio=1.0,
                C=first * weaker,
                tol=1e-3,
                class_weight="balanced",
                random_state=settings.seed,
            )
            size = np.abs(model.fit(x, y).coef_[0])
            used += size > 0
            strength += size
        done += 1
    if done == 0:
        raise Refused(
            "selection",
            "no half of the patients with two lesions and two look-alikes",
            "both classes spread over several patients",
            "Use more patients.",
        )
    return _rank(used, strength)


def rank_forest(
    values: np.ndarray, target: np.ndarray, patients: np.ndarray, settings: SelectionSettings
) -> np.ndarray:
    """Permutation importance, on patients held out from the forest, as the growth of the class-balanced Brier score.

    The Brier score still moves where the area under the curve is already 1. A tree that does not use a feature does not
    change when it is permuted, so only the others are asked.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng([settings.seed, 2])
    folds = min(settings.inner_folds, len(np.unique(patients)))
    weight = np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
    values = np.ascontiguousarray(values, dtype=np.float32)
    growth = np.zeros(values.shape[1])
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=settings.seed).split(values, target, patients)
    for train, held in split:
        if len(held) == 0 or len(np.unique(target[train])) < 2:
            continue
        forest = RandomForestClassifier(
            settings.trees, min_samples_leaf=2, class_weight="balanced_subsample", random_state=settings.seed, n_jobs=1
        ).fit(values[train], target[train])
        trees = [estimator.tree_ for estimator in forest.estimators_]
        users = [[] for _ in growth]
        for tree in trees:
            for feature in np.unique(tree.feature[tree.feature >= 0]):
                users[feature].append(tree)
        before = np.tile(np.mean([tree.predict(values[held])[:, 1] for tree in trees], axis=0), settings.permutations)
        shuffled = [rng.permutation(len(held)) for _ in range(settings.permutations)]  # the same for every feature
        copies = np.tile(values[held], (settings.permutations, 1))
        truth, w = np.tile(target[held], settings.permutations), np.tile(weight[held], settings.permutations)
        for feature, its in enumerate(users):
            if not its:
                continue
            kept = copies[:, feature].copy()
            intact = sum(tree.predict(copies)[:, 1] for tree in its)
            copies[:, feature] = np.concatenate([values[held, feature][order] for order in shuffled])
            after = before + (sum(tree.predict(copies)[:, 1] for tree in its) - intact) / len(trees)
            copies[:, feature] = kept
            growth[feature] += (w * ((after - truth) ** 2 - (before - truth) ** 2)).sum()
    return _rank(growth)


def _rank(*keys: np.ndarray) -> np.ndarray:
    """Rank 1 for the largest; later keys decide ties of earlier ones; what still ties shares its mean rank."""
    rows = np.column_stack([np.round(key, 12) for key in keys])
    _, group = np.unique(rows, axis=0, return_inverse=True)  # groups come sorted by the first key, then the next
    return scipy.stats.rankdata(-group.ravel())


# ---------------------------------------------------------------------------------------------- selection


def select(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    repeats: np.ndarray,
    kinds: ArrayLike,
    settings: SelectionSettings | None = None,
    repeat_rows: ArrayLike | None = None,
) -> Selection:
    """Choose `settings.keep` columns of `features [lesion feature]` that tell lesions (`target` true) from look-alikes.

    `patients [lesion]` groups the inner resampling. `repeats [perturbation lesion feature]` holds the same columns in
    the same order under each perturbation, `kinds [perturbation]` its kind, "systematic" or "random". The unperturbed
    values come from `features`, or from a repeat of the kind "unperturbed" where `features` holds averages. `repeat_rows` are the index labels in `features` of the repeated
    lesions; without it every row is repeated, in order. Deterministic with `settings.seed`. Refused: a cohort too
    small or of one class, a missing kind, repeats of lesions that are not among the rows, fewer than `keep` usable
    features.
    """
    settings = settings or SelectionSettings()
    table, truth, groups = _checked(features, target, patients, settings)
    original, changed, kind = _checked_repeats(features, repeats, kinds, repeat_rows, settings)
    names = features.columns.astype(str)
    rows = pd.DataFrame({"name": names, "step": "", "reason": ""})

    def leave(step: str, where: np.ndarray, reasons: Sequence[str]) -> None:
        rows.loc[where, "step"] = step
        rows.loc[where, "reason"] = list(reasons)

    missing = ~np.isfinite(table)
    share = missing.mean(axis=0)
    too_many = share > settings.max_missing
    filled = np.where(missing, _medians(table), table)
    spread = filled.std(axis=0)
    constant = ~too_many & (spread <= _SAME * np.abs(filled.mean(axis=0)))
    leave(
        "undefined",
        too_many,
        [f"undefined for {s:.0%} of the lesions, at most {settings.max_missing:.0%} may be" for s in share[too_many]],
    )
    leave("undefined", constant, ["the same for all lesions"] * int(constant.sum()))

    systematic = icc_table(np.concatenate([original, changed[kind == SYSTEMATIC]]), settings.min_repeated)
    random = icc_table(np.concatenate([original, changed[kind == RANDOM]]), settings.min_repeated)
    for column in ("icc21", "icc21_low", "icc21_high"):
        rows[column] = systematic[column]
    for column in ("icc11", "icc11_low", "icc11_high"):
        rows[column] = random[column]
    rows["repeated"] = np.minimum(systematic["lesions"], random["lesions"])
    stability = np.minimum(rows["icc21_low"], rows["icc11_low"]).to_numpy(copy=True)
    why = np.where(systematic["reason"] != "", systematic["reason"], random["reason"])
    stability[np.isnan(rows[["icc21_low", "icc11_low"]].to_numpy()).any(axis=1)] = -np.inf
    stability[too_many | constant] = -np.inf

    defined = ~(too_many | constant)
    if defined.sum() < settings.keep:
        raise Refused("selection", f"{defined.sum()} features that are defined and vary", f"at least {settings.keep}")
    rho = np.atleast_2d(np.abs(np.corrcoef(scipy.stats.rankdata(filled[:, defined], axis=0), rowvar=False)))
    place = np.cumsum(defined) - 1  # feature -> its row of rho
    bound, chosen, cluster = _stable_representatives(stability, rho, place, settings)
    stable = stability >= bound
    unstable = defined & ~stable
    leave("unstable", unstable, [_unstable(rows.loc[i], why[i], bound) for i in np.flatnonzero(unstable)])
    if len(chosen) < settings.keep:
        raise Refused(
            "selection",
            f"{len(chosen)} uncorrelated features with ICC intervals from {bound:.2f} up",
            f"at least {settings.keep}",
            "Repeat more lesions or keep fewer features.",
        )
    leader = {cluster[i]: i for i in chosen}
    behind = np.flatnonzero(stable & ~np.isin(np.arange(len(names)), chosen))
    ahead = [leader[cluster[i]] for i in behind]
    leave(
        "redundant",
        behind,
        [
            f"says what {names[j]} says, which is no less stable (|rho| {r:.2f})"
            for j, r in zip(ahead, rho[place[behind], place[ahead]])
        ],
    )
    rows["cluster"] = pd.Series(cluster).where(cluster > 0).astype("Int64")

    values = filled[:, chosen]
    ranks = {
        "rank_mutual": rank_mutual(values, truth, settings),
        "rank_l1": rank_l1(values, truth, groups, settings),
        "rank_forest": rank_forest(values, truth, groups, settings),
    }
    points = sum(len(chosen) - rank for rank in ranks.values())
    order = np.lexsort([np.arange(len(chosen)), -stability[chosen], -points])
    final = np.empty(len(chosen), dtype=np.int64)
    final[order] = np.arange(1, len(chosen) + 1)
    for column, rank in ranks.items():
        rows[column] = pd.Series(rank, index=chosen).reindex(rows.index)
    rows["borda"] = pd.Series(points, index=chosen).reindex(rows.index)
    rows["rank"] = pd.Series(final, index=chosen).reindex(rows.index).astype("Int64")
    votes = [
        "; ".join(f"{word} {ranks[column][i]:g}" for column, word in STRATEGIES.items()) for i in range(len(chosen))
    ]
    late = [
        f"; stable only at the lowered bound of {bound:.2f}" if s < settings.icc_bound else ""
        for s in stability[chosen]
    ]
    kept = final <= settings.keep
    for step, part, verdict in (("kept", kept, "one of the"), ("less relevant", ~kept, "not among the")):
        verdict += f" {settings.keep} kept"
        leave(
            step,
            chosen[part],
            [f"rank {final[i]} of {len(chosen)}, {verdict} ({votes[i]}){late[i]}" for i in np.flatnonzero(part)],
        )
    rows["kept"] = rows["step"] == "kept"
    columns = [
        "name",
        "icc21",
        "icc21_low",
        "icc21_high",
        "icc11",
        "icc11_low",
        "icc11_high",
        "repeated",
        "cluster",
        *STRATEGIES,
        "borda",
        "rank",
        "step",
        "reason",
        "kept",
    ]
    winners = tuple(names[chosen[order[: settings.keep]]])
    return Selection(winners, rows[columns], bound)


def _stable_representatives(
    stability: np.ndarray, rho: np.ndarray, place: np.ndarray, settings: SelectionSettings
) -> tuple[float, np.ndarray, np.ndarray]:
    """The bound that leaves enough to choose from, the most stable member of each cluster, every feature's cluster."""
    steps = math.ceil((settings.icc_bound - settings.icc_floor) / settings.icc_step - 1e-9)
    bounds = [max(round(settings.icc_bound - i * settings.icc_step, 10), settings.icc_floor) for i in range(steps + 1)]
    for bound in bounds:
        stable = np.flatnonzero(stability >= bound)
        cluster = np.zeros(len(stability), dtype=np.int64)
        label = _clusters(rho[np.ix_(place[stable], place[stable])], settings.rho)
        best = stable[np.lexsort([stable, -stability[stable]])]  # the most stable first, then the first column
        cluster[stable] = label
        _, first = np.unique(cluster[best], return_index=True)
        chosen = np.sort(best[first])
        if len(chosen) >= settings.choose_from:
            break
    return bound, chosen, cluster


def _clusters(rho: np.ndarray, threshold: float) -> np.ndarray:
    """Complete-linkage labels 1.. of features with pairwise |rho|: every pair of a cluster reaches the threshold."""
    if len(rho) < 2:
        return np.ones(len(rho), dtype=np.int64)
    distance = np.clip(1 - (rho + rho.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return fcluster(linkage(squareform(distance, checks=False), "complete"), 1 - threshold + 1e-12, "distance")


def _unstable(row: pd.Series, why: str, bound: float) -> str:
    if why:
        return why
    parts = [
        f"{name} {row[column]:.2f}"
        for name, column in (("ICC(2,1)", "icc21_low"), ("ICC(1,1)", "icc11_low"))
        if row[column] < bound
    ]
    return f"lower end of {' and of '.join(parts)} is under {bound:.2f}"


def _medians(table: np.ndarray) -> np.ndarray:
    """Column medians of the finite values; 0 for a column without any."""
    finite = np.isfinite(table)
    ordered = np.sort(np.where(finite, table, np.inf), axis=0)
    count = finite.sum(axis=0)
    column = np.arange(table.shape[1])
    low = ordered[np.maximum((count - 1) // 2, 0), column]
    high = ordered[np.minimum(count // 2, len(table) - 1), column]
    return np.where(count > 0, (np.where(count > 0, low, 0) + np.where(count > 0, high, 0)) / 2, 0.0)


def _checked(
    features: pd.DataFrame, target: ArrayLike, patients: ArrayLike, settings: SelectionSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not features.columns.is_unique:
        twice = features.columns[features.columns.duplicated()][0]
        raise Refused("selection", f"the column {twice} twice", "unique names")
    table = features.to_numpy(dtype=np.float64)
    given, people = np.asarray(target), np.asarray(patients)
    if given.shape != (len(table),) or people.shape != given.shape:
        raise Refused("selection", f"{len(table)} rows, targets {given.shape}, patients {people.shape}", "one a row")
    if not np.isin(given, (0, 1)).all():
        raise Refused("selection", "a target that is neither true nor false", "a boolean for every row")
    truth, groups = given.astype(bool), pd.factorize(pd.Series(people).astype(str), sort=True)[0]
    lesions, alike, patients_n = int(truth.sum()), int((~truth).sum()), len(np.unique(groups))
    small = len(table) < settings.min_lesions or min(lesions, alike) < settings.min_class
    if small or patients_n < settings.min_patients:
        raise Refused(
            "selection",
            f"{lesions} lesions and {alike} look-alikes of {patients_n} patients",
            f"at least {settings.min_lesions} candidates of {settings.min_patients} patients, "
            f"{settings.min_class} of each class",
            "Use a larger cohort.",
        )
    return table, truth, groups


def _checked_repeats(
    features: pd.DataFrame,
    repeats: np.ndarray,
    kinds: ArrayLike,
    repeat_rows: ArrayLike | None,
    settings: SelectionSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the repeated lesions: unperturbed `[1 lesion feature]`, `[perturbation lesion feature]`, and the kinds."""
    changed, kind = np.asarray(repeats, dtype=np.float64), np.asarray(kinds, dtype=str)
    own = kind == UNPERTURBED
    if set(kind[~own].tolist()) != {SYSTEMATIC, RANDOM} or own.sum() > 1:
        raise Refused(
            "selection",
            f"perturbations of the kinds {sorted(kind.tolist())}",
            f"both {SYSTEMATIC} and {RANDOM} ones, at most one {UNPERTURBED} and no other",
        )
    labels = features.index if repeat_rows is None else pd.Index(np.asarray(repeat_rows))
    if not features.index.is_unique:
        raise Refused("selection", "a row label twice", "a unique index")
    strangers = labels.difference(features.index)
    if len(strangers):
        raise Refused(
            "selection",
            f"repeats of {len(strangers)} lesions outside the table, such as {strangers[0]}",
            "repeats of the given rows only",
            "Cut them with repeats_within.",
        )
    expected = (len(kind), len(labels), features.shape[1])
    if changed.shape != expected:
        raise Refused("selection", f"repeats of shape {changed.shape}", f"{expected} (perturbation, lesion, feature)")
    if len(labels) < settings.min_repeated:
        raise Refused(
            "selection",
            f"{len(labels)} lesions with repeats",
            f"at least {settings.min_repeated}",
            "Repeat more lesions.",
        )
    original = changed[own] if own.any() else features.loc[labels].to_numpy(dtype=np.float64)[None]
    return original, changed[~own], kind[~own]


# ---------------------------------------------------------------------------------------------- Nogueira's index


def resamples(target: ArrayLike, patients: ArrayLike, settings: SelectionSettings) -> list[np.ndarray]:
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

    index: float
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
