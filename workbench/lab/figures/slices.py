"""CT slices with what was found on them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.experiment import reading
from workbench.lab.figures.style import (
    BLACK,
    FAINT,
    LEDGER_COLOURS,
    LIVER_COLOUR,
    TRUTH_COLOUR,
    TUMOR_COLOUR,
    VERMILLION,
    Picture,
    as_array,
    draw_table,
    legend_below,
    say,
)
from workbench.lab.figures.view import AXES, View, box_around, label_legend, ledger_legend, slice_with_most
from workbench.volume import Refused

# --- one slice ---------------------------------------------------------------------------------------------------


def _finish(figure, ax, view: View, box, title: str, handles: list[Artist], columns: int = 4) -> Figure:
    view.zoom(ax, box)
    ax.set_title(view.title(title), fontsize=10)
    legend_below(figure, handles, columns)
    return figure


def slice_view(
    ct, spacing_mm, at: int | None = None, labels=None, truth=None, window="liver", plane="axial", box=None, title=""
) -> Figure:
    """One slice of a CT `[z y x]` in HU with the contours of label maps (1 liver, 2 tumor); the reference is dashed.

    `window` names a preset of WINDOWS or is (level, width) in HU; `at` is a slice index; `box` `[z y x]` zooms in.
    """
    ct, labels, truth = as_array(ct), as_array(labels), as_array(truth)
    figure = Picture(6.4, 6.2)
    ax, view = figure.subplots(), View(ct.shape, spacing_mm, plane, at)
    figure.colorbar(view.ct(ax, ct, window), ax=ax, label="HU", shrink=0.7)
    view.labels(ax, labels, truth)
    return _finish(figure, ax, view, box, title, label_legend(labels, truth))


def probability(
    ct,
    probability,
    spacing_mm,
    at: int | None = None,
    which="tumor",
    threshold: float | None = 0.5,
    truth=None,
    window="liver",
    plane="axial",
    box=None,
    title: str = "",
) -> Figure:
    """A probability map `[z y x]` in 0..1 over the CT, its contour at the threshold, and the reference (dashed)."""
    ct, p, truth = as_array(ct), as_array(probability), as_array(truth)
    figure = Picture(6.4, 6.2)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, slice_with_most(p >= 0.5, plane) if at is None else at)
    view.ct(ax, ct, window)
    figure.colorbar(view.probability(ax, p, which), ax=ax, label=f"{which} probability", shrink=0.7)
    handles: list[Artist] = []
    if threshold is not None:
        view.contour(ax, p >= threshold, BLACK)  # the map's own colour would not show on the map
        handles.append(Line2D([], [], color=BLACK, label=f"p ≥ {threshold:g}"))
    if truth is not None:
        view.reference(ax, truth == 2 if which == "tumor" else truth >= 1)
        handles.append(Line2D([], [], color=TRUTH_COLOUR, ls="--", label=f"{which}, reference"))
    return _finish(figure, ax, view, box, title, handles)


def ledger(ct, ledger, spacing_mm, at: int | None = None, window="liver", plane="axial", title: str = "") -> Figure:
    """Which stage decided each voxel, over the CT. The legend holds the codes that occur, with ml."""
    ct, codes = as_array(ct), as_array(ledger)
    figure = Picture(6.4, 6.8)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, slice_with_most(codes > 1, plane) if at is None else at)
    view.ct(ax, ct, window)
    view.ledger(ax, codes)
    return _finish(figure, ax, view, None, title, ledger_legend(codes, spacing_mm), columns=2)


def overlay(
    ct,
    spacing_mm,
    at: int | None = None,
    over: str = "contours",
    labels=None,
    truth=None,
    probability_map=None,
    ledger_codes=None,
    window="liver",
    plane="axial",
    title: str = "",
) -> Figure:
    """One slice with the overlay of one's choice: contours, probability, ledger or none."""
    if over == "probability":
        return probability(ct, probability_map, spacing_mm, at, truth=truth, window=window, plane=plane, title=title)
    if over == "ledger":
        return ledger(ct, ledger_codes, spacing_mm, at, window=window, plane=plane, title=title)
    if over not in ("contours", "none"):
        raise Refused("overlay", over, "contours, probability, ledger or none")
    drawn = (labels, truth) if over == "contours" else (None, None)
    return slice_view(ct, spacing_mm, at, *drawn, window=window, plane=plane, title=title)


def planes(ct, spacing_mm, at, labels=None, window="liver", opacity: float = 0.6, box=None, title: str = "") -> Figure:
    """The three planes through one voxel `at` (z, y, x), labels (1 liver, 2 tumor) as colours over them; `box` zooms in."""
    ct, labels = as_array(ct), as_array(labels)
    figure = Picture(13, 5)
    axes = figure.subplots(1, 3)
    for ax, plane in zip(axes, AXES):
        view = View(ct.shape, spacing_mm, plane, at[AXES[plane]])
        grey = view.ct(ax, ct, window)
        if labels is not None:
            view.fill(ax, labels == 1, LIVER_COLOUR, FAINT * opacity)
            view.fill(ax, labels == 2, TUMOR_COLOUR, opacity)
        down, across = view.axes
        ax.axhline(at[down] * spacing_mm[down], color=VERMILLION, lw=0.8)
        ax.axvline(at[across] * spacing_mm[across], color=VERMILLION, lw=0.8)
        view.zoom(ax, box)
        ax.set_title(view.title(), fontsize=9)
    figure.colorbar(grey, ax=axes, label="HU", shrink=0.7)
    figure.suptitle(title or "three planes", fontsize=11)
    if labels is not None:
        legend_below(figure, [Patch(color=c, label=n) for n, c in (("liver", LIVER_COLOUR), ("tumor", TUMOR_COLOUR))])
    return figure


# --- many slices -------------------------------------------------------------------------------------------------


def montage(
    ct, spacing_mm, labels=None, truth=None, slices: int = 12, window="liver", title: str = "", along: str = "liver"
) -> Figure:
    """Axial slices spread evenly over the liver (or over the volume, without labels) with contours.

    With `along="tumor"` they are spread over the slices that hold tumor in either label map, where there are such.
    """
    ct, labels, truth = as_array(ct), as_array(labels), as_array(truth)
    of = labels if labels is not None else truth
    on = np.flatnonzero((of > 0).any(axis=(1, 2))) if of is not None else np.arange(len(ct))
    on = on if len(on) else np.arange(len(ct))
    tumor = [(a == 2).any(axis=(1, 2)) for a in (labels, truth) if a is not None]
    if along == "tumor" and np.any(tumor):
        on = np.flatnonzero(np.any(tumor, axis=0))
    chosen = on[np.unique(np.linspace(0, len(on) - 1, min(slices, len(on))).round().astype(int))]
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    box = box_around(of, spacing_mm, 25) if of is not None else None
    figure = Picture(max(6.4, 3 * columns), 2.8 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, at in zip(axes, chosen):
        view = View(ct.shape, spacing_mm, "axial", int(at))
        view.ct(ax, ct, window)
        view.labels(ax, labels, truth)
        view.zoom(ax, box)
        ax.set_title(view.title(), fontsize=8)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    figure.suptitle(title or "axial slices through the liver", fontsize=11)
    legend_below(figure, label_legend(labels, truth))
    return figure


def case_montage(cases, title: str = "") -> Figure:
    """The slice with most tumor of each case: an iterable of (name, ct, labels, spacing_mm)."""
    cases = list(cases)
    columns = max(1, min(4, len(cases)))
    rows = max(1, math.ceil(len(cases) / columns))
    figure = Picture(3.1 * columns, 2.9 * rows + 0.6)
    axes, seen = figure.subplots(rows, columns, squeeze=False).flatten(), np.zeros(3, int)
    for ax, (name, ct, labels, spacing_mm) in zip(axes, cases):
        ct, labels = as_array(ct), as_array(labels)
        present = np.intersect1d(labels, (0, 1, 2))
        seen[present] = present
        view = View(ct.shape, spacing_mm, "axial", slice_with_most(labels == 2 if (labels == 2).any() else labels))
        view.ct(ax, ct, "liver")
        view.labels(ax, labels)
        ax.set_title(f"{name}: {view.title()}", fontsize=8)
    for ax in axes[len(cases) :]:
        ax.set_axis_off()
    figure.suptitle(title or f"{len(cases)} cases", fontsize=11)
    legend_below(figure, label_legend(seen))
    return figure


# --- what the stages did -----------------------------------------------------------------------------------------


def _most_of(labels, codes) -> np.ndarray:
    """What a picture is to show: tumor, else what the ledger says more of than liver, else the labels."""
    return labels == 2 if (labels == 2).any() else codes > 1 if (codes > 1).any() else labels


def steps(
    ct, spacing_mm, liver_probability, tumor_probability, ledger_codes, labels, at=None, truth=None, title: str = ""
) -> Figure:
    """The method along one axial slice: CT, liver map, tumor map, ledger, final contours (the reference dashed)."""
    ct, maps = as_array(ct), {"liver": as_array(liver_probability), "tumor": as_array(tumor_probability)}
    codes, labels, truth = as_array(ledger_codes), as_array(labels), as_array(truth)
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(_most_of(labels, codes)) if at is None else at)
    box = box_around(labels, spacing_mm, 25)
    figure = Picture(17, 4.6)
    axes, bars = figure.subplots(2, 5, height_ratios=[24, 1])
    for bar in bars[3:]:
        bar.set_axis_off()
    for ax, name in zip(axes, ("CT", "liver probability", "tumor probability", "ledger", "final contours")):
        grey = view.ct(ax, ct, "liver")
        view.zoom(ax, box)
        ax.set_title(name, fontsize=10)
    figure.colorbar(grey, cax=bars[0], label="HU", orientation="horizontal")
    for ax, bar, (which, p) in zip(axes[1:], bars[1:], maps.items()):
        image = view.probability(ax, p, which)
        figure.colorbar(image, cax=bar, label="probability (1)", orientation="horizontal")
    view.ledger(axes[3], codes)
    view.labels(axes[4], labels, truth)
    figure.suptitle(view.title(title), fontsize=11)
    legend_below(figure, ledger_legend(codes, spacing_mm) + label_legend(labels, truth), columns=4)
    return figure


def decided(ct, spacing_mm, ledger_codes, labels, truth, measures: pd.DataFrame, at=None, title: str = "") -> Figure:
    """What the stages decide in one axial slice, ledger and final contours, beside the measures after each stage
    (columns stage, dice, found, missed, false_positives, assd_mm)."""
    ct, codes, labels, truth = (as_array(a) for a in (ct, ledger_codes, labels, truth))
    of = truth == 2 if (truth == 2).any() else codes > 1 if (codes > 1).any() else labels
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(of) if at is None else at)
    box = box_around(np.maximum(labels, truth), spacing_mm, 20)
    figure = Picture(13, 5)
    figure.set_layout_engine("none")  # laid out by hand: a table beside pictures of a fixed aspect is too much for it
    place = {"left": 0.05, "right": 0.99, "top": 0.88, "bottom": 0.22, "wspace": 0.14}
    left, right, beside = figure.subplots(1, 3, width_ratios=[1, 1, 0.95], gridspec_kw=place)
    for ax, name in ((left, "ledger"), (right, "final contours, reference dashed")):
        view.ct(ax, ct, "liver")
        view.zoom(ax, box)
        ax.set_title(name, fontsize=10)
    view.ledger(left, codes)
    view.labels(right, labels, truth)
    rows = [
        [row.stage, f"{row.dice:.3f}", f"{row.found}", f"{row.missed}", f"{row.false_positives}",
         f"{row.assd_mm:.1f}" if np.isfinite(row.assd_mm) else "none"]
        for row in measures.itertuples()
    ]  # fmt: skip
    heads = {"after": 0.26, "Dice": 0.13, "found": 0.13, "missed": 0.13, "false": 0.13, "ASSD mm": 0.22}
    draw_table(beside, rows, heads, 1.6)
    figure.suptitle(view.title(title), fontsize=11)
    legend_below(figure, ledger_legend(codes, spacing_mm) + label_legend(labels, truth), columns=5)
    return figure


def _changed(ct, before, after, truth) -> tuple:
    """CT, mask before and after, what was added, what was removed, and the reference's tumor (None without one)."""
    before, after = as_array(before) > 0, as_array(after) > 0
    reference = None if truth is None else as_array(truth) == 2
    return as_array(ct), before, after, after & ~before, before & ~after, reference


def _ml(mask: np.ndarray, spacing_mm) -> str:
    return f"{mask.sum() * (math.prod(spacing_mm) / 1000):.3g} ml"


def _truth_handle(truth) -> list[Artist]:
    return [] if truth is None else [Line2D([], [], color=TRUTH_COLOUR, ls="--", label="reference")]


def consistency(ct, before, after, spacing_mm, truth=None, title: str = "") -> Figure:
    """Three neighbouring axial slices before and after the rule: what it restored and what it suppressed."""
    ct, before, after, restored, suppressed, truth = _changed(ct, before, after, truth)
    at = slice_with_most(before != after)
    near = np.zeros(before.shape, bool)
    near[max(0, at - 1) : at + 2] = (before != after)[max(0, at - 1) : at + 2]
    box = box_around(near if near.any() else before | after, spacing_mm, 25)
    figure = Picture(9.6, 7)
    for row, (mask, name) in zip(figure.subplots(2, 3), ((before, "before"), (after, "after"))):
        for ax, z in zip(row, (at - 1, at, at + 1)):
            if not 0 <= z < len(ct):
                ax.set_axis_off()
                say(ax, "outside the volume")
                continue
            view = View(ct.shape, spacing_mm, "axial", z)
            view.ct(ax, ct, "liver")
            if name == "after":
                view.fill(ax, restored, LEDGER_COLOURS[3], 0.6)
                view.fill(ax, suppressed, LEDGER_COLOURS[4], 0.6)
            view.contour(ax, mask, TUMOR_COLOUR)
            view.reference(ax, truth)
            view.zoom(ax, box)
            ax.set_title(f"{name}: {view.title()}", fontsize=8)
    figure.suptitle(
        f"{title or 'three-slice consistency'}: {_ml(restored, spacing_mm)} restored, {_ml(suppressed, spacing_mm)} suppressed",
        fontsize=11,
    )
    handles = [
        Line2D([], [], color=TUMOR_COLOUR, label="tumor mask"),
        Patch(color=LEDGER_COLOURS[3], label="restored"),
        Patch(color=LEDGER_COLOURS[4], label="suppressed"),
    ]
    legend_below(figure, handles + _truth_handle(truth))
    return figure


def boundary_change(
    ct, before, after, spacing_mm, at: int | None = None, truth=None, box=None, title: str = ""
) -> Figure:
    """A lesion's contour before and after relabelling, and the voxels that changed."""
    ct, before, after, added, removed, truth = _changed(ct, before, after, truth)
    at = slice_with_most(before != after) if at is None else at
    if box is None:
        box = box_around(before | after, spacing_mm, 12)
    figure = Picture(10.4, 5)
    left, right = figure.subplots(1, 2)
    view = View(ct.shape, spacing_mm, "axial", at)
    for ax in (left, right):
        view.ct(ax, ct, "tumor")
        view.zoom(ax, box)
    view.contour(left, before, TUMOR_COLOUR)
    view.contour(left, after, LEDGER_COLOURS[7], width=1.8)
    view.fill(right, added, LEDGER_COLOURS[7])
    view.fill(right, removed, LEDGER_COLOURS[8])
    for ax in (left, right):
        view.reference(ax, truth)
    left.set_title(f"contours, {view.title()}", fontsize=9)
    right.set_title("voxels that changed", fontsize=9)
    figure.suptitle(
        f"{title or 'boundary relabelling'}: {_ml(added, spacing_mm)} added, {_ml(removed, spacing_mm)} removed",
        fontsize=11,
    )
    handles = [
        Line2D([], [], color=TUMOR_COLOUR, label="before"),
        Line2D([], [], color=LEDGER_COLOURS[7], label="after"),
        Patch(color=LEDGER_COLOURS[7], label="added"),
        Patch(facecolor=LEDGER_COLOURS[8], edgecolor="#444444", label="removed"),
    ]
    legend_below(figure, handles + _truth_handle(truth), columns=5)
    return figure


# --- a case on one sheet -----------------------------------------------------------------------------------------


def preview(
    ct=None,
    labels=None,
    tumor_probability=None,
    ledger=None,
    spacing_mm=(1.0, 1.0, 1.0),
    meanings: dict | None = None,
    title: str = "",
) -> Figure:
    """Contact sheet of a case from arrays `[z y x]`; what is None is left out.

    Rows: CT with contours, tumor probability, ledger; columns: the three axial slices with most tumor (else liver) and one
    coronal slice.
    """
    ct, labels, p, codes = as_array(ct), as_array(labels), as_array(tumor_probability), as_array(ledger)
    some = next(a for a in (labels, p, codes, ct) if a is not None)
    if ct is None:
        ct = np.full(some.shape, -1000, np.int16)
    none = np.zeros(some.shape, np.uint8)
    of = _most_of(none if labels is None else labels, none if codes is None else codes) > 0
    views = [("axial", z) for z in _spread(of.sum(axis=(1, 2)), 3)] + [("coronal", slice_with_most(of, "coronal"))]
    rows = [r for r, a in (("contours", labels), ("tumor probability", p), ("ledger", codes)) if a is not None] or [
        "CT"
    ]
    box = box_around(labels >= 1 if labels is not None else of, spacing_mm, 25)
    high = 2.6 * len(rows) + 1.2
    figure = Picture(3 * len(views) + 0.8, high)
    figure.set_layout_engine("none")  # every part has its place: each case has such a sheet
    place = {"left": 0.055, "right": 0.92, "bottom": 0.95 / high, "top": 1 - 0.6 / high, "wspace": 0.22, "hspace": 0.1}
    cells = figure.subplots(len(rows), len(views), squeeze=False, gridspec_kw=place)
    for row, name in zip(cells, rows):
        for ax, (plane, at) in zip(row, views):
            view = View(ct.shape, spacing_mm, plane, at)
            view.ct(ax, ct, "liver")
            if name == "contours":
                view.labels(ax, labels)
            elif name == "ledger":
                view.ledger(ax, codes)
            elif name == "tumor probability":
                image = view.probability(ax, p, "tumor")
            view.zoom(ax, box)
            if name == rows[0]:
                ax.set_title(view.title(), fontsize=8, y=1)
            if name != rows[-1]:
                ax.set_xticks([])
                ax.set_xlabel("")
            if plane == "axial" and ax is not row[0]:
                ax.set_yticks([])
                ax.set_ylabel("")
        row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}", fontsize=8)
        if name == "tumor probability":
            beside = row[-1].get_position()
            bar = figure.add_axes((0.94, beside.y0, 0.012, beside.height))
            figure.colorbar(image, cax=bar, label="probability").ax.tick_params(labelsize=7)
    figure.suptitle(title or "preview", fontsize=11, y=1 - 0.2 / high)
    handles = label_legend(labels) if codes is None else ledger_legend(codes, spacing_mm, meanings)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def preview_of(folder: str | Path) -> Figure:
    """The contact sheet of a result folder; its title says when the CT is no longer there."""
    case = reading.result(folder)
    found = {name: case.volume(name) for name in ("labels", "tumor_probability", "ledger")}
    grid = next((v for v in found.values() if v is not None), None)
    if grid is None:
        raise Refused(folder, "no volume", "labels.nii.gz, tumor_probability.nii.gz or ledger.nii.gz")
    ct, why = case.ct()
    title = f"{case.case}: {case.info.get('status', '')}" + (f" (no CT: {why})" if ct is None else "")
    labels, probability_map, history = (None if v is None else v[0] for v in found.values())
    return preview(ct, labels, probability_map, history, grid[1], meanings=case.info.get("ledger_codes"), title=title)


def _spread(counts: np.ndarray, n: int) -> list[int]:
    """The slices with most voxels, no two closer than a tenth of their extent, in order."""
    if not counts.any():
        return [len(counts) // 2]
    apart = max(1, np.count_nonzero(counts) // 10)
    chosen: list[int] = []
    for z in np.argsort(-counts, kind="stable"):
        if counts[z] and all(abs(int(z) - c) >= apart for c in chosen):
            chosen.append(int(z))
        if len(chosen) == n:
            break
    return sorted(chosen)
