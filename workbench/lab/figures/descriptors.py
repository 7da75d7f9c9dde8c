"""Descriptors: parity, stability, redundancy, and which are kept."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.lab.figures.style import (
    BLACK,
    FALSE_COLOUR,
    GREY,
    GROUP_COLOURS,
    GROUP_MARKERS,
    TRUE_COLOUR,
    Picture,
    legend_below,
)


def parity(ours, theirs, groups, title: str = "") -> Figure:
    """Two engines' values of the same descriptors, and their relative difference, by group; all `[k]`."""
    ours, theirs, groups = np.asarray(ours, float), np.asarray(theirs, float), np.asarray(groups)
    both = np.isfinite(ours) & np.isfinite(theirs)
    figure = Picture(10.5, 4.4)
    left, right = figure.subplots(1, 2)
    apart = relative_difference(ours, theirs)
    for group in [g for g in GROUP_COLOURS if (groups[both] == g).any()]:
        on = both & (groups == group)
        look = {"color": GROUP_COLOURS[group], "marker": GROUP_MARKERS[group], "ls": "", "ms": 4}
        left.plot(theirs[on], ours[on], **look, label=f"{group} ({on.sum()})")
        right.plot(np.flatnonzero(on), np.maximum(apart[on], 1e-16), **look)
    ends = np.array([min(theirs[both].min(), 0), theirs[both].max()]) if both.any() else np.array([0, 1])
    left.plot(ends, ends, color=GREY, lw=1, zorder=0)
    left.set_xscale("symlog", linthresh=1)  # -1, 0 and 1 stand a decade apart
    left.set_yscale("symlog", linthresh=1)
    left.tick_params(labelsize=8)
    left.set(xlabel="PyRadiomics (each in its own unit)", ylabel="here (each in its own unit)")
    left.legend(fontsize=8)
    right.set(yscale="log", xlabel="place in the catalogue", ylabel="relative difference (1; none drawn at 1e-16)")
    right.grid(alpha=0.3)
    figure.suptitle(
        f"{title or 'two engines'} ({both.sum()} descriptors that both define, "
        f"largest relative difference {np.nanmax(apart[both], initial=0):.1e})",
        fontsize=11,
    )
    return figure


def relative_difference(a, b) -> np.ndarray:
    """|a - b| over the larger of the two, 0 where both are 0, NaN where one is not defined."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    largest = np.maximum(np.abs(a), np.abs(b))
    return np.where(
        largest > 0, np.abs(a - b) / np.where(largest > 0, largest, 1), np.where(np.isnan(a + b), np.nan, 0)
    )


def perturbed(spread: pd.DataFrame, candidates: int, patients: int) -> Figure:
    """How far descriptors move: index = perturbation, columns = groups, values in sd between candidates (median)."""
    figure = Picture(7.4, 1.6 + 0.36 * max(4, len(spread)))
    ax = figure.subplots()
    image = ax.imshow(spread.to_numpy(float), cmap="cividis", aspect="auto", vmin=0)
    figure.colorbar(image, ax=ax, label="median change (sd between candidates)", shrink=0.8)
    top = np.nanmax(spread.to_numpy(float), initial=0)
    for (y, x), value in np.ndenumerate(spread.to_numpy(float)):
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=BLACK if value > top / 2 else "white")
    ax.set_xticks(range(spread.shape[1]), spread.columns)
    ax.set_yticks(range(len(spread)), [str(name).replace("_", " ") for name in spread.index])
    ax.set(xlabel="group of descriptors", ylabel="perturbation")
    figure.suptitle(f"descriptors under perturbation ({patients} patients, {candidates} candidates)", fontsize=11)
    return figure


ICC_KINDS = {"icc21": "systematic changes, ICC(2,1)", "icc11": "random changes, ICC(1,1)"}


def icc_forest(table: pd.DataFrame, bound: float, patients: int, title: str = "") -> Figure:
    """Stability of features: both ICCs with their 95 % intervals, coloured by group.

    `table`: a selection's, with name, group, icc21 and icc11, and the ends of both. Of more than 40 rows an even spread over
    the ranking is drawn. `bound`: the lowest lower end that is kept.
    """
    kinds = list(ICC_KINDS)
    rows = table.dropna(subset=kinds)
    rows = rows.loc[rows[kinds].min(axis=1).sort_values(kind="stable").index]
    drawn = (
        rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(40, len(rows))).round().astype(int))]
        if len(rows)
        else rows
    )
    figure = Picture(5.4 + 3 * len(kinds), 1.6 + 0.19 * max(6, len(drawn)))
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lowest = min([-0.05, *(float(drawn[f"{kind}_low"].min()) for kind in kinds if len(drawn))])
    for ax, kind in zip(axes, kinds):
        for at, (_, row) in enumerate(drawn.iterrows()):
            colour, marker = GROUP_COLOURS.get(row["group"], GREY), GROUP_MARKERS.get(row["group"], "o")
            ax.plot([row[f"{kind}_low"], row[f"{kind}_high"]], [at, at], color=colour, lw=1.6)
            ax.plot(row[kind], at, marker, color=colour, ms=4)
        ax.set(xlabel="ICC (1), 95 % interval", xlim=(lowest, 1.02), title=ICC_KINDS[kind])
        ax.title.set_fontsize(9)
        ax.axvline(bound, color=BLACK, ls="--", lw=1)
    axes[0].set_yticks(range(len(drawn)), drawn["name"], fontsize=6)
    legend_below(
        figure,
        [
            Line2D([], [], color=c, marker=GROUP_MARKERS[g], label=f"{g} ({(rows['group'] == g).sum()})")
            for g, c in GROUP_COLOURS.items()
            if (rows["group"] == g).any()
        ],
        columns=5,
    )
    reach = (rows[[f"{kind}_low" for kind in kinds]].min(axis=1) >= bound).sum()
    figure.suptitle(
        f"{title or 'stability'} ({patients} patients, {len(drawn)} of {len(rows)} features drawn, "
        f"{reach} with a lower bound of at least {bound:g})",
        fontsize=10,
    )
    return figure


def stability(
    values,
    changes: pd.DataFrame,
    which: str,
    is_lesion,
    name: str,
    unit: str,
    bound: float | None = None,
    patients: int | None = None,
) -> Figure:
    """One descriptor under every perturbation: its ICCs with 95 % intervals, and what one perturbation does to each candidate.

    `values [repeat candidate]`, the first repeat unperturbed; `changes`: a row a further repeat, in their order, with change,
    kind (systematic or random), icc, low, high; `which` names the one that is drawn candidate by candidate.
    """
    values, lesion = np.asarray(values, float), np.asarray(is_lesion, bool)
    figure = Picture(11, 4.9)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    looks = {"systematic": ("s", ICC_KINDS["icc21"]), "random": ("o", ICC_KINDS["icc11"])}
    for at, row in enumerate(changes[::-1].itertuples()):
        strong = {"color": BLACK, "lw": 2.6, "ms": 8} if row.change == which else {"color": GREY, "lw": 1.4, "ms": 5}
        left.plot([row.low, row.high], [at, at], color=strong["color"], lw=strong["lw"])
        left.plot(row.icc, at, looks[row.kind][0], color=strong["color"], ms=strong["ms"])
    left.set_yticks(range(len(changes)), [c.replace("_", " ") for c in changes.change[::-1]], fontsize=8)
    lowest = np.nanmin([-0.05, *changes.low])
    left.set(xlabel="ICC with the unperturbed value (1), 95 % interval", xlim=(lowest, 1.02))
    if bound is not None:
        left.axvline(bound, color=BLACK, ls="--", lw=1)
    left.grid(alpha=0.3, axis="x")
    before, after = values[0], values[1 + list(changes.change).index(which)]
    for on, colour, marker, who in (
        (~lesion, FALSE_COLOUR, "x", "false positives"),
        (lesion, TRUE_COLOUR, "o", "true lesions"),
    ):
        right.plot(before[on], after[on], marker, color=colour, ms=4, alpha=0.6, label=f"{who} ({on.sum()})")
    both = values[np.isfinite(values)]
    ends = [both.min(), both.max()] if len(both) else [0, 1]
    right.plot(ends, ends, color=GREY, lw=1, zorder=0)
    right.set(xlabel=f"unperturbed ({unit})", ylabel=f"{which.replace('_', ' ')} ({unit})")
    right.set_title("each candidate; on the line: unchanged", fontsize=9)
    right.legend(fontsize=8)
    handles = [Line2D([], [], color=GREY, marker=m, label=words) for m, words in looks.values()]
    legend_below(
        figure, handles + [Line2D([], [], color=BLACK, ls="--", label="bound of the selection")] * (bound is not None)
    )
    who = f"{patients} patients, " if patients is not None else ""
    figure.suptitle(f"{name} ({who}{len(lesion)} training candidates)", fontsize=11)
    return figure


def redundancy(features: pd.DataFrame, clusters: dict[str, int], patients: int) -> Figure:
    """Absolute Spearman correlation of features `[candidate x k]`, ordered so that clusters lie together (name -> cluster)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    varied = features.loc[:, features.nunique() > 1]
    rho = varied.rank().fillna(varied.rank().mean()).corr().abs().fillna(0).to_numpy(copy=True)
    np.fill_diagonal(rho, 1)
    order = np.arange(len(rho))
    if len(rho) > 2:
        order = leaves_list(linkage(squareform(np.clip(1 - rho, 0, None), checks=False), "average"))
    number = np.array([clusters.get(c, -1) for c in varied.columns], float)
    order = order[np.argsort(number[order], kind="stable")]
    figure = Picture(7.4, 6.6)
    ax = figure.subplots()
    image = ax.imshow(rho[np.ix_(order, order)], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=ax, label="|Spearman correlation| (1)", shrink=0.8)
    names = [varied.columns[i] for i in order]
    if len(names) <= 45:
        ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.set(xlabel="feature, ordered by cluster", ylabel="" if len(names) <= 45 else "feature, ordered by cluster")
    edges = np.flatnonzero(np.diff(number[order])) + 0.5
    for edge in edges if len(edges) < 60 else []:
        ax.axhline(edge, color="white", lw=0.6)
        ax.axvline(edge, color="white", lw=0.6)
    figure.suptitle(f"redundancy ({patients} patients, {len(features)} candidates, {len(names)} features)", fontsize=11)
    return figure


STEPS = {"undefined": "defined", "unstable": "stable", "redundant": "not redundant", "less relevant": "kept"}


def _left_after(table: pd.DataFrame) -> pd.DataFrame:
    """Features left in each group after each step, from the step at which each of them left."""
    order = list(STEPS)
    left_at = table["step"].map({step: n for n, step in enumerate(order)}).fillna(len(order))
    groups = [g for g in GROUP_COLOURS if (table["group"] == g).any()]
    rows = {"all": table["group"].value_counts()}
    rows |= {STEPS[step]: table.loc[left_at > n, "group"].value_counts() for n, step in enumerate(order)}
    return pd.DataFrame(rows).reindex(groups).fillna(0).astype(int).T


def survival(table: pd.DataFrame, patients: int) -> Figure:
    """How many features of each group are left after each step of a selection, from its table: `group`, and the `step` at which it left."""
    steps = _left_after(table)
    figure = Picture(8.4, 4.4)
    ax = figure.subplots()
    at = np.arange(len(steps))
    bottom = np.zeros(len(steps))
    share = steps.div(steps.sum(axis=1).replace(0, 1), axis=0)
    for group in steps.columns:
        ax.bar(at, share[group], 0.65, bottom=bottom, color=GROUP_COLOURS[group], label=group, edgecolor="white")
        for x, low, value, n in zip(at, bottom, share[group], steps[group]):
            if value > 0.04:
                ax.text(x, low + value / 2, str(int(n)), ha="center", va="center", fontsize=8, color="white")
        bottom += share[group].to_numpy()
    ax.set_xticks(at, [f"{s}\n{int(n)} left" for s, n in zip(steps.index, steps.sum(axis=1))], fontsize=8)
    ax.set(ylabel="share of the features left (1)", ylim=(0, 1))
    legend_below(figure, ax.get_legend_handles_labels()[0], columns=5)
    total = [int(n) for n in steps.sum(axis=1)]
    figure.suptitle(f"selection ({' → '.join(map(str, total))} features, {patients} patients)", fontsize=11)
    return figure
