"""What the forest decides, how well, and why."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.lab.figures.style import (
    BLACK,
    BLUE,
    FALSE_COLOUR,
    GREY,
    GROUP_COLOURS,
    PROBABILITY_MAPS,
    SKY,
    TRUE_COLOUR,
    TUMOR_COLOUR,
    Paragraph,
    Picture,
    as_array,
    draw_table,
    patients_of,
    say,
)
from workbench.lab.figures.view import View, box_around, slice_with_most
from workbench.stages import metrics

SPLITS = 8  # of a tree's way that a card has room for


def _at_thresholds(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds falling, and the numbers of true and of false candidates that reach each of them."""
    levels = np.unique(table["score"].to_numpy(float))[::-1]
    levels = np.concatenate([[np.inf], levels])
    true = np.sort(table.loc[table["is_lesion"].astype(bool), "score"].to_numpy(float))
    false = np.sort(table.loc[~table["is_lesion"].astype(bool), "score"].to_numpy(float))
    return levels, len(true) - np.searchsorted(true, levels), len(false) - np.searchsorted(false, levels)


def _once(table: pd.DataFrame) -> pd.DataFrame:
    """Each lesion by its best candidate, beside all false ones."""
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
    ax.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.3f}")
    ax.set(xlabel="forest score (1)", ylabel="lesions and false positives", xlim=(0, 1))
    ax.legend(fontsize=8)


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
    figure.suptitle(
        f"{title or 'the forest as a filter'} ({patients_of(table)}, {int(true[-1])} lesions, {int(false[-1])} false candidates)",
        fontsize=11,
    )
    return figure


def importance(table: pd.DataFrame, patients: int, groups: dict[str, str] | None = None, title: str = "") -> Figure:
    """Permutation importance of features with intervals (columns name, drop, low, high), coloured by group (name -> group)."""
    rows = table.sort_values("drop")
    figure = Picture(7.6, 1.4 + 0.24 * max(4, len(rows)))
    ax = figure.subplots()
    for at, row in enumerate(rows.itertuples()):
        ax.barh(at, row.drop, color=GROUP_COLOURS.get((groups or {}).get(row.name), GREY), height=0.65)
        if np.isfinite([row.low, row.high]).all():
            ax.plot([row.low, row.high], [at, at], color=BLACK, lw=1.2)
    ax.set_yticks(range(len(rows)), rows["name"], fontsize=7)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set(xlabel="fall of the area under the curve when permuted, 95 % interval")
    figure.suptitle(f"{title or 'what the forest looks at'} ({patients} patients)", fontsize=11)
    return figure


def lesion_card(card: dict, about: dict, ct, spacing_mm, after, probability, piece, work_mm, truth=None) -> Figure:
    """One card of `workbench.lab.cards`: picture, probability, features among the training candidates, votes, what would have changed it.

    `ct`, `after` and `truth` (tumor in the end and in the reference) on one grid, `probability` and `piece` on the work grid,
    whose outer corner is the same. `about`: all cards of the case.
    """
    ct, after, truth, probability, piece = (as_array(a) for a in (ct, after, truth, probability, piece))
    figure = Picture(14, 7.4)
    figure.set_layout_engine("none")  # every part has its place: cards are drawn by the dozen
    verdict = TRUE_COLOUR if card["kept"] else FALSE_COLOUR
    _draw_places(figure, ct, spacing_mm, after, truth, probability, piece, work_mm)
    _draw_features(figure, card, about)
    _draw_votes(figure, card, about["threshold"], verdict)
    figure.add_artist(Paragraph(0.775, 0.59, _reasons(card), 7.2, 0.0195))
    title = f"{about['case']}, candidate {card['candidate']}: {card['words'][0]}"
    figure.suptitle(title, fontsize=11, color=verdict, y=0.97)
    return figure


def _draw_features(figure, card: dict, about: dict) -> None:
    """Middle: each feature among the training candidates, and its push on the score."""
    bottom, top = 0.09, 0.88
    strips = figure.add_axes((0.432, bottom, 0.213, top - bottom))
    pushes = figure.add_axes((0.655, bottom, 0.095, top - bottom))
    features = pd.DataFrame(card["features"])
    names, rows = features["name"].to_list(), np.arange(len(features))
    pushes.barh(rows, features.contribution, 0.6, color=np.where(features.contribution > 0, TRUE_COLOUR, FALSE_COLOUR))
    if "percentile" in features:
        for up, what, colour in ((-0.17, "lesions", TRUE_COLOUR), (0.17, "look_alikes", FALSE_COLOUR)):
            least, low, middle, high, most = np.array(features[what].to_list()).T
            strips.hlines(rows + up, least, most, color=colour, lw=1)
            strips.hlines(rows + up, low, high, color=colour, lw=4, alpha=0.55)
            strips.plot(middle, rows + up, "|", color=colour, ms=6, mew=1.6)
        strips.hlines(rows, features.percentile, features.turns_percentile, color=BLACK, lw=0.8, ls=":")
        strips.plot(features.turns_percentile, rows, "o", mfc="white", mec=BLACK, ms=5)
        strips.plot(features.percentile, rows, "D", color=BLACK, ms=4.5)
    row = (top - bottom) / (len(names) + 0.2)
    figure.add_artist(Paragraph(0.428, top - 0.6 * row, names, 6.3, row, right=True))
    for ax in (strips, pushes):
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(alpha=0.25, axis="x")
        ax.set_yticks([])
    pushes.axvline(0, color=BLACK, lw=0.8)
    pushes.set_xlabel("push on the score\n(right: lesion)", fontsize=8)
    strips.set(xlim=(-2, 102))
    strips.set_xlabel("percentile among the training candidates", fontsize=8)
    if about["training"] is None:
        say(strips, "the training candidates\nare not beside the models")
    else:
        n = about["training"]
        strips.set_title(
            f"blue: {n['lesions']} training lesions, red: {n['look_alikes']} look-alikes (5, 25, 50, 75, 95 %)\n"
            "diamond: this one; circle: where this feature alone would turn the verdict",
            fontsize=7.5,
            y=1,
        )


def _draw_votes(figure, card: dict, threshold: float, colour: str) -> None:
    votes = figure.add_axes((0.80, 0.68, 0.185, 0.2))
    votes.bar(np.arange(0.05, 1, 0.1), card["votes"]["shares"], width=0.09, color=GREY)
    votes.axvline(card["score"], color=colour, lw=2, label=f"score {card['score']:.3f}")
    votes.axvline(threshold, color=BLACK, ls="--", lw=1.2, label=f"threshold {threshold:.3f}")
    votes.set(xlim=(0, 1))
    votes.set_xlabel("P(lesion) of a tree", fontsize=8)
    votes.set_ylabel("trees", fontsize=8)
    votes.tick_params(labelsize=7)
    votes.legend(fontsize=7, loc="upper center")
    votes.set_title(f"{card['votes']['for']} of {card['votes']['trees']} trees for a lesion", fontsize=8, y=1)


def _reasons(card: dict) -> list[str]:
    """What would have changed the verdict, what was alike in training, and the way through one tree, in lines."""
    text = ["What would have changed it", *card["words"][2:]]
    text = [part for line in text for part in textwrap.wrap(line, 50, subsequent_indent="  ")]
    if card.get("nearest"):
        text += ["", "Most alike in training (share of common leaves)"]
        text += [
            f"{'lesion' if n['is_lesion'] else 'look-alike'} {n['case']}/{n['candidate']}  {n['alike']:.2f}  score {n['score']:.2f}"
            for n in card["nearest"]
        ]
    splits = card["way"]["splits"]
    text += ["", f"Its way through tree {card['way']['tree']}, most nearly of the score"]
    for s in splits[:SPLITS]:
        line = f"{s['name']} {s['value']:.3g}, {s['goes']} {s['threshold']:.3g}: {s['probability']:.2f}"
        text += textwrap.wrap(line, 54, subsequent_indent="  ")
    return text + [f"and {len(splits) - SPLITS} more"] * (len(splits) > SPLITS)


def _draw_places(figure, ct, spacing_mm, after, truth, probability, piece, work_mm):
    """Left: CT and tumor probability around a piece, with its own contour and the tumor's in the end."""
    z = slice_with_most(piece)
    own_z = min(int((z + 0.5) * work_mm[0] / spacing_mm[0]), ct.shape[0] - 1)
    view, coarse = View(ct.shape, spacing_mm, "axial", own_z), View(piece.shape, work_mm, "axial", z)
    shift = [(a - b) / 2 for a, b in zip(work_mm, spacing_mm)]  # between the centres of the two first voxels
    rows, columns = (np.flatnonzero(piece[z].any(axis=a)) for a in (1, 0))
    half = max(np.ptp(rows) * work_mm[1], np.ptp(columns) * work_mm[2]) / 2 + 22
    cy, cx = (r.mean() * mm + s for r, mm, s in zip((rows, columns), work_mm[1:], shift[1:]))
    y, x = (np.arange(n) * mm + s for n, mm, s in zip(piece.shape[1:], work_mm[1:], shift[1:]))
    for n, (low, name) in enumerate(((0.52, "CT"), (0.07, "tumor probability"))):
        ax = figure.add_axes((0.035, low, 0.18, 0.37))
        view.ct(ax, ct, "tumor")
        if n:
            left, right, bottom, top = coarse.extent
            extent = (left + shift[2], right + shift[2], bottom + shift[1], top + shift[1])
            ax.imshow(
                probability[z], extent=extent, cmap=PROBABILITY_MAPS["tumor"], vmin=0, vmax=1, interpolation="nearest"
            )
        view.contour(ax, after, TUMOR_COLOUR)
        view.reference(ax, truth)
        ax.contour(
            x, y, piece[z].astype(np.float32), levels=[0.5], colors=[SKY], linestyles=["dotted"], linewidths=[1.6]
        )
        ax.set(xlim=(cx - half, cx + half), ylim=(cy + half, cy - half))
        ax.locator_params(nbins=5)
        ax.set_title(f"{name}, slice {own_z} ({view.at_mm:.0f} mm)", fontsize=8, y=1)
        ax.set_xlabel("")
    words = "mm, from the right to the left of the patient; dotted: the candidate; orange: tumor in the end" + (
        "; dashed: reference" if truth is not None else ""
    )
    figure.text(0.035, 0.015, words, fontsize=7.5)


def _draw_candidate(ax, ct, mask, truth, spacing_mm) -> None:
    """The slice with most of a candidate and 25 mm around it; the reference is dashed."""
    ct, mask, truth = as_array(ct), as_array(mask) > 0, as_array(truth)
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(mask))
    view.ct(ax, ct, "tumor")
    view.contour(ax, mask, TUMOR_COLOUR)
    if truth is not None:
        view.reference(ax, truth == 2)
    view.zoom(ax, box_around(mask, spacing_mm, 25))
    ax.set_title(view.title(), fontsize=9)


def _draw_reasons(ax, contributions: pd.Series) -> None:
    top = contributions[contributions.abs().sort_values(ascending=False).index].head(10)[::-1]
    ax.barh(range(len(top)), top.to_numpy(), color=[TRUE_COLOUR if v > 0 else FALSE_COLOUR for v in top])
    ax.set_yticks(range(len(top)), top.index, fontsize=7)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="x", labelsize=8)
    ax.set(xlabel="contribution to the score (above 0: lesion)")


def froc(table: pd.DataFrame, lesions: int, patients: int, threshold: float | None = None, title: str = "") -> Figure:
    """Lesions found against false positives per patient as the threshold falls.

    `table`: case, is_lesion, lesion (which of the case's, so that one with several candidates counts once), score. `lesions`
    counts all reference lesions, so that those without any candidate hold the curve down.
    """
    figure = Picture(6.6, 4.8)
    _draw_froc(figure.subplots(), table, lesions, patients, threshold)
    figure.suptitle(f"{title or 'FROC'} ({patients} patients, {lesions} lesions)", fontsize=11)
    return figure


def _draw_froc(ax, table, lesions, patients, threshold):
    named = table["case"].astype(str) + "/" + table["lesion"].astype(str)
    curve = metrics.froc(table["score"], table["is_lesion"], lesions, patients, named)
    curve = curve.fillna(0)  # nothing there: none found
    ax.step(curve.false_positives_per_case, curve.sensitivity, where="post", color=BLUE)
    if threshold is not None:
        at = curve[curve.threshold >= threshold].iloc[-1]
        ax.plot(at.false_positives_per_case, at.sensitivity, "o", color=BLACK, label=f"threshold {threshold:.3f}")
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

    `table`: a row a candidate from the highest score down (case, candidate, patient, is_lesion, lesion, volume_ml,
    score), `place`: which of them. A candidate is (HU, mask, labels `[z y x]`, spacing_mm); `votes`: the probability that
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


def _draw_list(ax, table: pd.DataFrame, kept: pd.Series, place: int) -> None:
    """The neighbours in the list of one candidate, which is marked; what is rejected lies on grey."""
    rows = 11
    first = max(0, min(place - rows // 2, len(table) - rows))
    part = table.iloc[first : first + rows]
    widths = {"place": 0.1, "case": 0.2, "candidate": 0.13, "ml": 0.1, "score": 0.1, "reference": 0.2, "verdict": 0.14}
    cells = [
        [n + 1, row.case, row.candidate, f"{row.volume_ml:.2f}", f"{row.score:.3f}",
         "lesion" if row.is_lesion else "false positive", _verdict(kept.iloc[n])]
        for n, row in enumerate(part.itertuples(), first)
    ]  # fmt: skip
    for (line, column), cell in draw_table(ax, cells, widths, 1.45).get_celld().items():
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
    n = " to ".join(str(n) for n in sorted({int(bins.n.min()), int(bins.n.max())}))  # bins of a size: no label at each
    spread = [(bins.share - bins.low).clip(0), (bins.high - bins.share).clip(0)]  # rounding may put an end inside
    ax.errorbar(bins.score, bins.share, spread, color=BLUE, marker="o", capsize=3, label=f"candidates, {n} a point")
    ax.set_xlabel("score of the forest (mean of the bin)")
    ax.set_ylabel("share that are lesions")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.legend(fontsize=8, loc="upper left")
    words = f"{int(bins.n.sum())} candidates, {patients} patients; Brier {brier:.3f}, calibration error {error:.3f}"
    figure.suptitle(f"{title or 'calibration'}\n{words}", fontsize=10)
    return figure


def what_if(table: pd.DataFrame, threshold: float, title: str = "") -> Figure:
    """The forest at a threshold of one's own: who is kept, who is lost (columns case, patient, is_lesion, lesion, score)."""
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
