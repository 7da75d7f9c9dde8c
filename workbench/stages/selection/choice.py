"""The steps of the selection, and the reason of each feature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are asked for
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from workbench.stages.selection.relevance import rank_forest, rank_l1, rank_mutual
from workbench.stages.selection.settings import SAME, SelectionSettings
from workbench.stages.selection.stability import ICCS, icc_table
from workbench.volume import Refused

SYSTEMATIC, RANDOM, UNPERTURBED = "systematic", "random", "unperturbed"
STEPS = ("undefined", "unstable", "redundant", "less relevant", "kept")
STRATEGIES = {"rank_mutual": "mutual information", "rank_l1": "L1 stability", "rank_forest": "forest"}
COLUMNS = ["name", *ICCS, "repeated", "cluster", *STRATEGIES, "borda", "rank", "step", "reason", "kept"]


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


def select(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    repeats: Float[np.ndarray, "perturbation lesion feature"],
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

    missing = ~np.isfinite(table)
    share = missing.mean(axis=0)
    too_many = share > settings.max_missing
    filled = np.where(missing, _medians(table), table)
    constant = ~too_many & (filled.std(axis=0) <= SAME * np.abs(filled.mean(axis=0)))
    most = f"at most {settings.max_missing:.0%} may be"
    _leave(rows, "undefined", too_many, [f"undefined for {s:.0%} of the lesions, {most}" for s in share[too_many]])
    _leave(rows, "undefined", constant, ["the same for all lesions"] * int(constant.sum()))
    defined = ~(too_many | constant)

    stability, why = _stability(rows, original, changed, kind, settings)
    stability[~defined] = -np.inf
    if defined.sum() < settings.keep:
        raise Refused("selection", f"{defined.sum()} features that are defined and vary", f"at least {settings.keep}")
    rho = np.atleast_2d(np.abs(np.corrcoef(scipy.stats.rankdata(filled[:, defined], axis=0), rowvar=False)))
    place = np.cumsum(defined) - 1  # feature -> its row of rho
    bound, chosen, cluster = _stable_representatives(stability, rho, place, settings)
    stable = stability >= bound
    unstable = defined & ~stable
    _leave(rows, "unstable", unstable, [_unstable(rows.loc[i], why[i], bound) for i in np.flatnonzero(unstable)])
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
    pairs = zip(ahead, rho[place[behind], place[ahead]])
    less = [f"says what {names[j]} says, which is no less stable (|rho| {r:.2f})" for j, r in pairs]
    _leave(rows, "redundant", behind, less)
    rows["cluster"] = pd.Series(cluster).where(cluster > 0).astype("Int64")

    ranks = {
        "rank_mutual": rank_mutual(filled[:, chosen], truth, settings),
        "rank_l1": rank_l1(filled[:, chosen], truth, groups, settings),
        "rank_forest": rank_forest(filled[:, chosen], truth, groups, settings),
    }
    order = _joined(rows, chosen, ranks, stability[chosen], bound, settings)
    rows["kept"] = rows["step"] == "kept"
    return Selection(tuple(names[chosen[order[: settings.keep]]]), rows[COLUMNS], bound)


def _leave(rows: pd.DataFrame, step: str, where: np.ndarray, reasons: Sequence[str]) -> None:
    """Note at which step some features leave, and why."""
    rows.loc[where, "step"] = step
    rows.loc[where, "reason"] = list(reasons)


def _stability(
    rows: pd.DataFrame, original: np.ndarray, changed: np.ndarray, kind: np.ndarray, settings: SelectionSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The lower of the lower ends of both ICCs, `[feature]`, -inf where one is undefined, and why it is. `rows` gets the ICCs."""
    systematic, random = (
        icc_table(np.concatenate([original, changed[kind == which]]), settings.min_repeated)
        for which in (SYSTEMATIC, RANDOM)
    )
    for name, source in (("icc21", systematic), ("icc11", random)):
        for column in (name, f"{name}_low", f"{name}_high"):
            rows[column] = source[column]
    rows["repeated"] = np.minimum(systematic["lesions"], random["lesions"])
    low = rows[["icc21_low", "icc11_low"]].to_numpy()
    why = np.where(systematic["reason"] != "", systematic["reason"], random["reason"])
    return np.where(np.isnan(low).any(axis=1), -np.inf, low.min(axis=1)), why


def _joined(
    rows: pd.DataFrame,
    chosen: np.ndarray,
    ranks: dict[str, np.ndarray],
    stability: np.ndarray,
    bound: float,
    settings: SelectionSettings,
) -> np.ndarray:
    """The order of the representatives `chosen`, best first, by a Borda count of their `ranks`. `rows` gets ranks and reasons."""
    n = len(chosen)
    points = np.sum([n - rank for rank in ranks.values()], axis=0)
    order = np.lexsort([np.arange(n), -stability, -points])
    final = np.empty(n, dtype=np.int64)
    final[order] = np.arange(1, n + 1)
    for column, rank in ranks.items():
        rows[column] = pd.Series(rank, index=chosen).reindex(rows.index)
    rows["borda"] = pd.Series(points, index=chosen).reindex(rows.index)
    rows["rank"] = pd.Series(final, index=chosen).reindex(rows.index).astype("Int64")
    for i, feature in enumerate(chosen):
        kept = final[i] <= settings.keep
        verdict = f"{'one of the' if kept else 'not among the'} {settings.keep} kept"
        votes = "; ".join(f"{word} {ranks[column][i]:g}" for column, word in STRATEGIES.items())
        late = f"; stable only at the lowered bound of {bound:.2f}" if stability[i] < settings.icc_bound else ""
        reason = f"rank {final[i]} of {n}, {verdict} ({votes}){late}"
        rows.loc[feature, ["step", "reason"]] = ["kept" if kept else "less relevant", reason]
    return order


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
    return pd.DataFrame(np.where(np.isfinite(table), table, np.nan)).median().fillna(0).to_numpy()


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
