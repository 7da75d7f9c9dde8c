"""What the forest decides, how well, and why."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.figures.slices import View, box_around, slice_with_most
from workbench.figures.style import (
    BLACK,
    BLUE,
    FALSE_COLOUR,
    GREY,
    GROUP_COLOURS,
    TRUE_COLOUR,
    TRUTH_COLOUR,
    TUMOR_COLOUR,
    Picture,
    as_array,
    patients_of,
    say,
)


def _at_thresholds(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds falling, and the numbers of true and of false candidates that reach each of them."""
    levels = np.unique(table["score"].to_numpy(float))[::-1]
    levels = np.concatenate([[np.inf], levels])
    true = np.sort(table.loc[table["is_lesion"].astype(bool), "score"].to_numpy(float))
    false = np.sort(table.loc[~table["is_lesion"].astype(bool), "score"].to_numpy(float))
    return levels, len(true) - np.searchsorted(true, levels), len(false) - np.searchsorted(false, levels)


def _once(table: pd.DataFrame) -> pd.DataFrame:
    """Each lesion by its best candidate, where `lesion` names it, beside all false ones."""
    if "lesion" not in table:
        return table
    true = table["is_lesion"].astype(bool)
    best = table[true].sort_values("score", ascending=False, kind="stable").drop_duplicates(["case", "lesion"])
    return pd.concat([best, table[~true]])


def _draw_scores(ax, table, threshold):
    bins = np.linspace(0, 1, 26)
    lesion = table["is_lesion"].astype(bool)
    ax.hist(
        [table.loc[lesion, "score"], table.loc[~lesion, "score"]],
        bins=bins,
        color=[TRUE_COLOUR, FALSE_COLOUR],
        label=[f"true lesions ({lesion.sum()})", f"false positives ({(~lesion).sum()})"],
    )
    if threshold is not None:
        ax.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.3f}")
    ax.set(xlabel="forest score (1)", ylabel="lesions and false positives", xlim=(0, 1))
    ax.legend(fontsize=8)


def scores(table: pd.DataFrame, threshold: float | None = None, title: str = "") -> Figure:
    """Forest scores of true lesions and false positives (columns patient, is_lesion, score)."""
    figure = Picture(7, 4)
    _draw_scores(figure.subplots(), table, threshold)
    figure.suptitle(f"{title or 'forest scores'} ({patients_of(table)}, {len(table)} candidates)", fontsize=11)
    return figure


def _draw_tradeoff(ax, table, threshold):
    levels, true, false = _at_thresholds(table)
    n_true, n_false = max(1, true[-1]), max(1, false[-1])
    ax.step(1 - false / n_false, true / n_true, where="post", color=BLUE)
    if threshold is not None:
        kept = table["score"] >= threshold
        lesion = table["is_lesion"].astype(bool)
        x, y = 1 - (kept & ~lesion).sum() / n_false, (kept & lesion).sum() / n_true
        ax.plot(
            x,
            y,
            "o",
            color=BLACK,
            label=f"threshold {threshold:.3f}: {x:.0%} of false positives removed,\n{y:.1%} of true lesions kept",
        )
        ax.legend(fontsize=8, loc="lower left")
    ax.set(
        xlabel="false positives removed (share)", ylabel="true lesions kept (share)", xlim=(-0.02, 1.02), ylim=(0, 1.03)
    )
    ax.grid(alpha=0.3)


def tradeoff(table: pd.DataFrame, threshold: float | None = None, title: str = "") -> Figure:
    """ROC curve, and what a threshold buys: false positives removed against true lesions kept."""
    figure, table = Picture(10, 4.6), _once(table)
    roc, right = figure.subplots(1, 2)
    _, true, false = _at_thresholds(table)
    tpr, fpr = true / max(1, true[-1]), false / max(1, false[-1])
    area = float(np.trapezoid(tpr, fpr))
    roc.plot(fpr, tpr, color=BLUE)
    roc.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1)
    roc.set(
        xlabel="false positives kept (share)",
        ylabel="true lesions kept (share)",
        title=f"ROC, area {area:.3f}",
        aspect="equal",
    )
    roc.grid(alpha=0.3)
    _draw_tradeoff(right, table, threshold)
    figure.suptitle(f"{title or 'the forest as a filter'} ({patients_of(table)}, {len(table)} candidates)", fontsize=11)
    return figure


def importance(table: pd.DataFrame, patients: int | None = None, groups: dict | None = None, title: str = "") -> Figure:
    """Importance of features with intervals (columns name, importance or drop, low, high; group if known)."""
    rows = table.rename(columns={"drop": "importance"}).sort_values("importance")
    figure = Picture(7.6, 1.4 + 0.24 * max(4, len(rows)))
    ax = figure.subplots()
    for at, row in enumerate(rows.itertuples()):
        colour = GROUP_COLOURS.get(getattr(row, "group", None) or (groups or {}).get(row.name), GREY)
        ax.barh(at, row.importance, color=colour, height=0.65)
        if hasattr(row, "low") and np.isfinite([row.low, row.high]).all():
            ax.plot([row.low, row.high], [at, at], color=BLACK, lw=1.2)
    ax.set_yticks(range(len(rows)), rows["name"], fontsize=7)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set(xlabel="permutation importance (loss of score), interval")
    who = f" ({patients} patients)" if patients is not None else ""
    figure.suptitle(f"{title or 'what the forest looks at'}{who}", fontsize=11)
    return figure


def decision_card(
    ct,
    mask,
    spacing_mm,
    score: float,
    threshold: float,
    contributions: pd.Series | pd.DataFrame | None = None,
    facts: dict | None = None,
    truth=None,
    window="tumor",
    title: str = "",
) -> Figure:
    """One candidate: its picture, its score against the threshold, and what each feature contributed.

    `contributions`: feature -> change of the score (above 0: like a lesion); a series, or columns name, contribution.
    """
    if isinstance(contributions, pd.DataFrame):
        contributions = contributions.set_index("name")["contribution"]
    figure = Picture(12, 4.6)
    image, bar, reasons = figure.subplots(1, 3, width_ratios=[1.2, 0.35, 1.3])
    _draw_candidate(image, ct, mask, truth, spacing_mm, window)
    kept = score >= threshold
    bar.bar([0], [score], color=TRUE_COLOUR if kept else FALSE_COLOUR)
    bar.axhline(threshold, color=BLACK, ls="--")
    bar.text(0, min(score + 0.02, 0.95), f"{score:.3f}", ha="center", fontsize=10)
    bar.set(
        ylim=(0, 1),
        xticks=[],
        ylabel="forest score (1)",
        title=f"{'kept' if kept else 'rejected'}\nthreshold {threshold:.3f}",
    )
    bar.title.set_fontsize(9)
    if contributions is not None and len(contributions):
        _draw_reasons(reasons, contributions)
    else:
        reasons.set_axis_off()
        say(reasons, "contributions not given")
    words = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in (facts or {}).items())
    figure.suptitle(f"{title or 'candidate'}{': ' + words if words else ''}", fontsize=11)
    return figure


def _draw_candidate(ax, ct, mask, truth, spacing_mm, window="tumor") -> None:
    """The slice with most of a candidate and 25 mm around it; the reference is dashed."""
    ct, mask, truth = as_array(ct), as_array(mask) > 0, as_array(truth)
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(mask))
    view.ct(ax, ct, window)
    view.contour(ax, mask, TUMOR_COLOUR)
    if truth is not None:
        view.contour(ax, truth == 2, TRUTH_COLOUR, (0, (3, 2)))
    view.zoom(ax, box_around(mask, spacing_mm, 25))
    ax.set_title(view.title(), fontsize=9)


def _draw_reasons(ax, contributions: pd.Series) -> None:
    top = contributions[contributions.abs().sort_values(ascending=False).index].head(10)[::-1]
    ax.barh(range(len(top)), top.to_numpy(), color=[TRUE_COLOUR if v > 0 else FALSE_COLOUR for v in top])
    ax.set_yticks(range(len(top)), top.index, fontsize=7)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set(xlabel="contribution to the score (above 0: lesion)")


def froc(table: pd.DataFrame, lesions: int, patients: int, threshold: float | None = None, title: str = "") -> Figure:
    """Lesions found against false positives per patient as the threshold falls.

    `lesions` counts all reference lesions, so that those without any candidate hold the curve down. A lesion with
    several candidates counts once where `lesion` names it, else each true candidate counts.
    """
    figure = Picture(6.6, 4.8)
    _draw_froc(figure.subplots(), table, lesions, patients, threshold)
    figure.suptitle(f"{title or 'FROC'} ({patients} patients, {lesions} lesions)", fontsize=11)
    return figure


def _draw_froc(ax, table, lesions, patients, threshold):
    once = _once(table)
    levels, true, false = _at_thresholds(once)
    ax.step(false / max(1, patients), true / max(1, lesions), where="post", color=BLUE)
    if threshold is not None:
        kept = once["score"] >= threshold
        lesion = once["is_lesion"].astype(bool)
        ax.plot(
            (kept & ~lesion).sum() / max(1, patients),
            (kept & lesion).sum() / max(1, lesions),
            "o",
            color=BLACK,
            label=f"threshold {threshold:.3f}",
        )
        ax.legend(fontsize=8, loc="lower right")
    ax.set(xlabel="false positives per patient", ylabel="lesions found (share)", ylim=(0, 1.03))
    ax.grid(alpha=0.3)


def decision(
    table: pd.DataFrame,
    place: int,
    candidate: tuple,
    votes,
    contributions: pd.DataFrame,
    alike: list[tuple],
    lesions: int,
    patients: int,
    threshold: float,
    title: str = "",
) -> Figure:
    """One candidate of a list, and what a threshold makes of all: card, votes, neighbours; list and FROC.

    `table`: a row a candidate from the highest score down (case, candidate, patient, is_lesion, volume_ml, score; lesion
    where known), `place`: which of them. A candidate is (HU, mask, labels `[z y x]`, spacing_mm); `votes`: the probability that
    each tree gives; `contributions`: columns name, contribution; `alike`: (candidate, is_lesion, words) of each neighbour.
    """
    one, kept, true = table.iloc[place], table["score"] >= threshold, table["is_lesion"].astype(bool)
    figure = Picture(14, 11)
    above, middle, below = figure.subfigures(3, 1, squeeze=False, height_ratios=[1, 1, 0.72])[:, 0]
    image, trees, reasons = above.subplots(1, 3, width_ratios=[1, 0.9, 1.1])
    _draw_candidate(image, *candidate)
    trees.hist(as_array(votes), bins=np.linspace(0, 1, 21), color=GREY)
    trees.axvline(one["score"], color=TRUE_COLOUR if kept.iloc[place] else FALSE_COLOUR, lw=2, label="mean: the score")
    trees.axvline(threshold, color=BLACK, ls="--", lw=1.2, label="threshold")
    trees.set(xlabel="probability that a tree gives (1)", ylabel="trees", xlim=(0, 1))
    trees.set_title(f"votes of {len(votes)} trees: {one['score']:.3f}, {_verdict(kept.iloc[place])}", fontsize=9)
    trees.legend(fontsize=8)
    _draw_reasons(reasons, contributions.set_index("name")["contribution"])

    curve, rows = middle.subplots(1, 2, width_ratios=[1, 1.6])
    _draw_froc(curve, table, lesions, patients, threshold)
    _draw_list(rows, table, kept, place)
    axes = below.subplots(1, max(1, len(alike)), squeeze=False)[0]
    for ax, (near, is_lesion, words) in zip(axes, alike):
        _draw_candidate(ax, *near)
        ax.set_title(words, fontsize=8, color=TRUE_COLOUR if is_lesion else FALSE_COLOUR)
    below.suptitle("training candidates that most trees put into the same leaf", fontsize=9)
    found = len(_once(table[true & kept]))
    figure.suptitle(
        f"{title or 'decisions'}, threshold {threshold:.3f}: {found} of {lesions} lesions found, "
        f"{(kept & ~true).sum() / max(1, patients):.1f} false positives a patient "
        f"({kept.sum()} of {len(table)} candidates kept, {patients} patients)",
        fontsize=11,
    )
    return figure


def _verdict(kept: bool) -> str:
    return "kept" if kept else "rejected"


def _draw_list(ax, table: pd.DataFrame, kept: pd.Series, place: int, rows: int = 11) -> None:
    """The neighbours in the list of one candidate, which is marked; what is rejected lies on grey."""
    ax.set_axis_off()
    first = max(0, min(place - rows // 2, len(table) - rows))
    part = table.iloc[first : first + rows]
    heads = ["place", "case", "candidate", "ml", "score", "reference", "verdict"]
    cells = [
        [n + 1, row.case, row.candidate, f"{row.volume_ml:.2f}", f"{row.score:.3f}",
         "lesion" if row.is_lesion else "false positive", _verdict(kept.iloc[n])]
        for n, row in enumerate(part.itertuples(), first)
    ]  # fmt: skip
    drawn = ax.table(
        cells, colLabels=heads, loc="center", cellLoc="center", colWidths=[0.1, 0.2, 0.13, 0.1, 0.1, 0.2, 0.14]
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.45)
    for (line, column), cell in drawn.get_celld().items():
        if line == 0:
            continue
        n = first + line - 1
        cell.set_facecolor("white" if kept.iloc[n] else "#E4E4E4")
        if column == 5:
            cell.get_text().set_color(TRUE_COLOUR if part.iloc[line - 1]["is_lesion"] else FALSE_COLOUR)
        if n == place:
            cell.get_text().set_fontweight("bold")
            cell.set_edgecolor(BLACK)
            cell.set_linewidth(2)
            cell.set_zorder(3)


def calibration(bins: pd.DataFrame, brier: float, error: float, patients: int, title: str = "") -> Figure:
    """Share of lesions among candidates of about one score, with 95 % intervals: `forest.calibration`'s bins."""
    figure = Picture(5.2, 4.8)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="a score that is a chance")
    spread = [(bins.share - bins.low).clip(0), (bins.high - bins.share).clip(0)]  # rounding may put an end inside
    ax.errorbar(bins.score, bins.share, spread, color=BLUE, marker="o", capsize=3, label="candidates")
    for row in bins.itertuples():
        ax.annotate(str(row.n), (row.score, row.share), xytext=(6, -11), textcoords="offset points", fontsize=7)
    ax.set_xlabel("score of the forest (mean of the bin)")
    ax.set_ylabel("share that are lesions")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.legend(fontsize=8, loc="upper left")
    words = f"{int(bins.n.sum())} candidates, {patients} patients; Brier {brier:.3f}, calibration error {error:.3f}"
    figure.suptitle(f"{title or 'calibration'}\n{words}", fontsize=10)
    return figure


def what_if(table: pd.DataFrame, threshold: float, title: str = "") -> Figure:
    """The forest at a threshold of one's own: who is kept, who is lost (columns patient, is_lesion, score)."""
    figure, table = Picture(10, 4.2), _once(table)
    left, right = figure.subplots(1, 2)
    _draw_scores(left, table, threshold)
    _draw_tradeoff(right, table, threshold)
    kept, lesion = table["score"] >= threshold, table["is_lesion"].astype(bool)
    figure.suptitle(
        f"{title or 'what if the threshold were'} {threshold:.3f}: "
        f"{(kept & lesion).sum()} of {lesion.sum()} lesions and "
        f"{(kept & ~lesion).sum()} of {(~lesion).sum()} false positives kept ({patients_of(table)})",
        fontsize=10,
    )
    return figure
