"""CT slices with what was found on them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.experiment import reading
from workbench.lab.figures.style import (
    BLACK,
    DASHED,
    FAINT,
    GREY,
    LEDGER_COLOURS,
    LEDGER_MEANINGS,
    LIVER_COLOUR,
    PROBABILITY_MAPS,
    TRUTH_COLOUR,
    TUMOR_COLOUR,
    VERMILLION,
    WINDOWS,
    Picture,
    as_array,
    legend_below,
    say,
)
from workbench.volume import Refused

AXES = {"axial": 0, "coronal": 1, "sagittal": 2}
_SIDES = {
    "axial": ("mm, to the patient's left", "mm, to the back"),
    "coronal": ("mm, to the patient's left", "mm, to the head"),
    "sagittal": ("mm, to the back", "mm, to the head"),
}


def slice_with_most(mask, plane: str = "axial") -> int:
    """Index of the slice with most voxels of a mask; the middle one when it is empty."""
    mask = as_array(mask) > 0
    counts = mask.sum(axis=tuple(a for a in range(3) if a != AXES[plane]))
    return int(counts.argmax()) if counts.any() else mask.shape[AXES[plane]] // 2


def box_around(mask, spacing_mm, margin_mm: float = 20) -> tuple[slice, slice, slice] | None:
    """Box `[z y x]` around a mask for zooming in; None (the whole picture) when it is empty."""
    mask = as_array(mask) > 0
    if not mask.any():
        return None
    box = []
    for axis, n in enumerate(mask.shape):
        on = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(margin_mm / spacing_mm[axis])
        box.append(slice(max(0, int(on[0]) - margin), min(n, int(on[-1]) + 1 + margin)))
    return tuple(box)


def _cut(a: np.ndarray | None, plane: str, at: int) -> np.ndarray | None:
    if a is None:
        return None
    return a[(slice(None),) * AXES[plane] + (at,)]


class View:
    """One slice plane of a grid: which voxel pitch runs down and across, and where pictures of it lie in mm."""

    def __init__(self, shape, spacing_mm, plane, at):
        self.plane = plane
        if at is None:
            at = shape[AXES[plane]] // 2
        if not 0 <= at < shape[AXES[plane]]:
            raise IndexError(f"{plane} slice {at} of {shape[AXES[plane]]}")
        self.at = at
        down, across = [a for a in range(3) if a != AXES[plane]]
        self.down, self.across = spacing_mm[down], spacing_mm[across]
        rows, columns = shape[down], shape[across]
        left, right = -self.across / 2, (columns - 0.5) * self.across
        low, high = -self.down / 2, (rows - 0.5) * self.down
        self.extent = (left, right, high, low) if plane == "axial" else (left, right, low, high)
        self.axes = (down, across)
        self.spacing_mm = spacing_mm
        self.at_mm = at * spacing_mm[AXES[plane]]

    def show(self, ax, image, **kwargs):
        return ax.imshow(
            _cut(image, self.plane, self.at),
            extent=self.extent,
            origin="upper" if self.plane == "axial" else "lower",
            **kwargs,
        )

    def ct(self, ax, ct, window):
        level, width = WINDOWS[window] if isinstance(window, str) else window
        image = self.show(ax, ct, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, interpolation="nearest")
        ax.set_xlabel(_SIDES[self.plane][0], fontsize=8)
        ax.set_ylabel(_SIDES[self.plane][1], fontsize=8)
        ax.tick_params(labelsize=7)
        return image

    def contour(self, ax, mask, colour, style="solid", width=1.4):
        cut = np.asarray(_cut(mask, self.plane, self.at))
        if not cut.any():
            return
        padded = np.pad(cut.astype(np.float32), 1)  # a mask that touches the edge still closes
        y = (np.arange(padded.shape[0]) - 1) * self.down
        x = (np.arange(padded.shape[1]) - 1) * self.across
        ax.contour(x, y, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=[width])

    def reference(self, ax, mask):
        """The contour of a reference, dashed; none without one."""
        if mask is not None:
            self.contour(ax, mask, TRUTH_COLOUR, DASHED)

    def labels(self, ax, labels, truth=None):
        """Liver and tumor as contours; a reference is dashed."""
        for volume, style, tumor in ((labels, "solid", TUMOR_COLOUR), (truth, DASHED, TRUTH_COLOUR)):
            if volume is not None:
                self.contour(ax, volume >= 1, LIVER_COLOUR, style)
                self.contour(ax, volume == 2, tumor, style)

    def fill(self, ax, mask, colour, alpha=0.75):
        cut = np.asarray(_cut(mask, self.plane, self.at)).astype(bool)
        rgba = np.zeros((*cut.shape, 4), np.float32)
        r, g, b, own = to_rgba(colour)
        rgba[cut] = (r, g, b, own * alpha)
        ax.imshow(
            rgba, extent=self.extent, origin="upper" if self.plane == "axial" else "lower", interpolation="nearest"
        )

    def zoom(self, ax, box=None):
        """Show only a box `[z y x]` of the grid; all of it without one."""
        if box is None:
            ax.set_xlim(self.extent[0], self.extent[1])
            ax.set_ylim(self.extent[2], self.extent[3])
            return
        down, across = box[self.axes[0]], box[self.axes[1]]
        ax.set_xlim((across.start - 0.5) * self.across, (across.stop - 0.5) * self.across)
        low, high = (down.start - 0.5) * self.down, (down.stop - 0.5) * self.down
        ax.set_ylim(*((high, low) if self.plane == "axial" else (low, high)))

    def title(self, of: str = "") -> str:
        """Which slice this is, and `of` what."""
        return f"{of}: " * bool(of) + f"{self.plane} slice {self.at} ({self.at_mm:.0f} mm)"


def _label_legend(labels, truth) -> list:
    handles = []
    for of, colour, style, words in ((labels, TUMOR_COLOUR, "-", ""), (truth, TRUTH_COLOUR, "--", ", reference")):
        if of is not None:
            handles.append(Line2D([], [], color=LIVER_COLOUR, ls=style, label=f"liver{words}"))
            if (of == 2).any():
                handles.append(Line2D([], [], color=colour, ls=style, label=f"tumor{words}"))
    return handles


def slice_view(
    ct,
    spacing_mm,
    at: int | None = None,
    labels=None,
    truth=None,
    window="liver",
    plane="axial",
    box=None,
    title: str = "",
) -> Figure:
    """One slice of a CT `[z y x]` in HU with the contours of label maps (1 liver, 2 tumor); the reference is dashed.

    `window` names a preset of WINDOWS or is (level, width) in HU; `at` is a slice index; `box` `[z y x]` zooms in.
    """
    ct, labels, truth = as_array(ct), as_array(labels), as_array(truth)
    figure = Picture(6.4, 6.2)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, at)
    figure.colorbar(view.ct(ax, ct, window), ax=ax, label="HU", shrink=0.7)
    view.labels(ax, labels, truth)
    view.zoom(ax, box)
    ax.set_title(view.title(title), fontsize=10)
    legend_below(figure, _label_legend(labels, truth))
    return figure


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
    image = view.show(ax, p.astype(np.float32), cmap=PROBABILITY_MAPS[which], vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=ax, label=f"{which} probability", shrink=0.7)
    handles = []
    if threshold is not None:
        view.contour(ax, p >= threshold, BLACK)  # the map's own colour would not show on the map
        handles = [Line2D([], [], color=BLACK, label=f"p ≥ {threshold:g}")]
    if truth is not None:
        view.reference(ax, truth == 2 if which == "tumor" else truth >= 1)
        handles += [Line2D([], [], color=TRUTH_COLOUR, ls="--", label=f"{which}, reference")]
    view.zoom(ax, box)
    ax.set_title(view.title(title), fontsize=10)
    legend_below(figure, handles)
    return figure


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


def montage(
    ct,
    spacing_mm,
    labels=None,
    truth=None,
    slices: int = 12,
    window="liver",
    title: str = "",
    along: str = "liver",
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
    for ax, at in zip(
        figure.subplots(rows, columns, squeeze=False).flat, list(chosen) + [None] * (rows * columns - len(chosen))
    ):
        if at is None:
            ax.set_axis_off()
            continue
        view = View(ct.shape, spacing_mm, "axial", int(at))
        view.ct(ax, ct, window)
        view.labels(ax, labels, truth)
        view.zoom(ax, box)
        ax.set_title(view.title(), fontsize=8)
    figure.suptitle(title or "axial slices through the liver", fontsize=11)
    legend_below(figure, _label_legend(labels, truth))
    return figure


def case_montage(cases, title: str = "") -> Figure:
    """The slice with most tumor of each case: an iterable of (name, ct, labels, spacing_mm)."""
    cases = list(cases)
    columns = max(1, min(4, len(cases)))
    rows = max(1, math.ceil(len(cases) / columns))
    figure = Picture(3.1 * columns, 2.9 * rows + 0.6)
    axes, seen = figure.subplots(rows, columns, squeeze=False).flat, np.zeros(3, int)
    for (name, ct, labels, spacing_mm), ax in zip(cases, axes):  # in this order, so that no axis is lost
        ct, labels = as_array(ct), as_array(labels)
        present = np.intersect1d(labels, (0, 1, 2))
        seen[present] = present
        view = View(ct.shape, spacing_mm, "axial", slice_with_most(labels == 2 if (labels == 2).any() else labels))
        view.ct(ax, ct, "liver")
        view.labels(ax, labels)
        ax.set_title(f"{name}: {view.title()}", fontsize=8)
    for ax in list(axes):
        ax.set_axis_off()
    figure.suptitle(title or f"{len(cases)} cases", fontsize=11)
    legend_below(figure, _label_legend(seen, None))
    return figure


def ledger(
    ct,
    ledger,
    spacing_mm,
    at: int | None = None,
    window="liver",
    plane="axial",
    title: str = "",
) -> Figure:
    """Which stage decided each voxel, over the CT. The legend holds the codes that occur, with ml."""
    ct, codes = as_array(ct), as_array(ledger)
    figure = Picture(6.4, 6.8)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, slice_with_most(codes > 1, plane) if at is None else at)
    view.ct(ax, ct, window)
    _draw_ledger(view, ax, codes)
    view.zoom(ax)
    ax.set_title(view.title(title), fontsize=10)
    legend_below(figure, _ledger_legend(codes, spacing_mm), columns=2)
    return figure


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


def steps(
    ct, spacing_mm, liver_probability, tumor_probability, ledger_codes, labels, at=None, truth=None, title: str = ""
) -> Figure:
    """The method along one axial slice: CT, liver map, tumor map, ledger, final contours (the reference dashed)."""
    ct, maps = as_array(ct), {"liver": as_array(liver_probability), "tumor": as_array(tumor_probability)}
    codes, labels, truth = as_array(ledger_codes), as_array(labels), as_array(truth)
    of = labels == 2 if (labels == 2).any() else codes > 1 if (codes > 1).any() else labels
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(of) if at is None else at)
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
        image = view.show(
            ax, p.astype(np.float32), cmap=PROBABILITY_MAPS[which], vmin=0, vmax=1, interpolation="nearest"
        )
        figure.colorbar(image, cax=bar, label="probability (1)", orientation="horizontal")
    _draw_ledger(view, axes[3], codes)
    view.labels(axes[4], labels, truth)
    figure.suptitle(view.title(title), fontsize=11)
    legend_below(figure, _ledger_legend(codes, spacing_mm) + _label_legend(labels, truth), columns=4)
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
    _draw_ledger(view, left, codes)
    view.labels(right, labels, truth)
    beside.set_axis_off()
    rows = [
        [
            row.stage,
            f"{row.dice:.3f}",
            f"{row.found}",
            f"{row.missed}",
            f"{row.false_positives}",
            f"{row.assd_mm:.1f}" if np.isfinite(row.assd_mm) else "none",
        ]
        for row in measures.itertuples()
    ]
    heads = ["after", "Dice", "found", "missed", "false", "ASSD mm"]
    table = beside.table(rows, colLabels=heads, loc="center", cellLoc="center", colWidths=[0.26] + [0.13] * 4 + [0.22])
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.6)
    figure.suptitle(view.title(title), fontsize=11)
    legend_below(figure, _ledger_legend(codes, spacing_mm) + _label_legend(labels, truth), columns=5)
    return figure


def _draw_ledger(view: View, ax, codes: np.ndarray) -> None:
    for code in np.unique(_cut(codes, view.plane, view.at)):
        if int(code) == 1:
            view.contour(ax, codes >= 1, LEDGER_COLOURS[1], width=1)
        elif int(code) > 1:
            view.fill(ax, codes == code, LEDGER_COLOURS.get(int(code), GREY), 0.8)


def _ledger_legend(codes: np.ndarray, spacing_mm, meanings: dict | None = None) -> list:
    meanings = {**LEDGER_MEANINGS, **{int(k): v for k, v in (meanings or {}).items()}}
    ml = math.prod(spacing_mm) / 1000
    values, counts = np.unique(codes, return_counts=True)
    return [
        Patch(
            facecolor=LEDGER_COLOURS.get(int(v), GREY),
            edgecolor="#444444",
            lw=0.5,
            label=f"{v} {meanings.get(int(v), 'unknown')} ({n * ml:{'.0f' if n * ml >= 1000 else '.3g'}} ml)",
        )
        for v, n in zip(values, counts)
        if v > 0
    ]


def consistency(ct, before, after, spacing_mm, truth=None, title: str = "") -> Figure:
    """Three neighbouring axial slices before and after the rule: what it restored and what it suppressed."""
    ct, before, after, truth = as_array(ct), as_array(before) > 0, as_array(after) > 0, _tumor(truth)
    restored, suppressed = after & ~before, before & ~after
    at = slice_with_most(before != after)
    near = np.zeros(before.shape, bool)
    near[max(0, at - 1) : at + 2] = (before != after)[max(0, at - 1) : at + 2]
    box = box_around(near if near.any() else before | after, spacing_mm, 25)
    figure = Picture(9.6, 7)
    neighbours = [z if 0 <= z < len(ct) else None for z in (at - 1, at, at + 1)]
    for row, (mask, name) in zip(figure.subplots(2, 3), ((before, "before"), (after, "after"))):
        for ax, z in zip(row, neighbours):
            if z is None:
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
    ml = math.prod(spacing_mm) / 1000
    figure.suptitle(
        f"{title or 'three-slice consistency'}: {restored.sum() * ml:.3g} ml restored, "
        f"{suppressed.sum() * ml:.3g} ml suppressed",
        fontsize=11,
    )
    legend_below(
        figure,
        [
            Line2D([], [], color=TUMOR_COLOUR, label="tumor mask"),
            Patch(color=LEDGER_COLOURS[3], label="restored"),
            Patch(color=LEDGER_COLOURS[4], label="suppressed"),
        ]
        + _truth_handle(truth),
    )
    return figure


def boundary_change(
    ct, before, after, spacing_mm, at: int | None = None, truth=None, box=None, title: str = ""
) -> Figure:
    """A lesion's contour before and after relabelling, and the voxels that changed."""
    ct, before, after, truth = as_array(ct), as_array(before) > 0, as_array(after) > 0, _tumor(truth)
    added, removed = after & ~before, before & ~after
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
    ml = math.prod(spacing_mm) / 1000
    figure.suptitle(
        f"{title or 'boundary relabelling'}: {added.sum() * ml:.3g} ml added, {removed.sum() * ml:.3g} ml removed",
        fontsize=11,
    )
    legend_below(
        figure,
        [
            Line2D([], [], color=TUMOR_COLOUR, label="before"),
            Line2D([], [], color=LEDGER_COLOURS[7], label="after"),
            Patch(color=LEDGER_COLOURS[7], label="added"),
            Patch(facecolor=LEDGER_COLOURS[8], edgecolor="#444444", label="removed"),
        ]
        + _truth_handle(truth),
        columns=5,
    )
    return figure


def _tumor(truth) -> np.ndarray | None:
    """The tumor of a label map `[z y x]`, bool; None without one."""
    return None if truth is None else as_array(truth) == 2


def _truth_handle(truth) -> list:
    return [] if truth is None else [Line2D([], [], color=TRUTH_COLOUR, ls="--", label="reference")]


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
    of = (
        labels == 2
        if labels is not None and (labels == 2).any()
        else codes > 1
        if codes is not None and (codes > 1).any()
        else labels >= 1
        if labels is not None
        else np.zeros(some.shape, bool)
    )
    views = [("axial", z) for z in _spread(of.sum(axis=(1, 2)), 3)] + [("coronal", slice_with_most(of, "coronal"))]
    rows = [r for r, a in (("contours", labels), ("tumor probability", p), ("ledger", codes)) if a is not None] or [
        "CT"
    ]
    liver = labels >= 1 if labels is not None else of
    box = box_around(liver, spacing_mm, 25)
    high = 2.6 * len(rows) + 1.2
    figure = Picture(3 * len(views) + 0.8, high)
    figure.set_layout_engine("none")  # every part has its place: each case has such a sheet
    cells = figure.subplots(
        len(rows),
        len(views),
        squeeze=False,
        gridspec_kw={
            "left": 0.055,
            "right": 0.92,
            "bottom": 0.95 / high,
            "top": 1 - 0.6 / high,
            "wspace": 0.22,
            "hspace": 0.1,
        },
    )
    for n, (row, name) in enumerate(zip(cells, rows)):
        for ax, (plane, at) in zip(row, views):
            view = View(ct.shape, spacing_mm, plane, at)
            view.ct(ax, ct, "liver")
            if name == "contours":
                view.labels(ax, labels)
            elif name == "ledger":
                _draw_ledger(view, ax, codes)
            elif name == "tumor probability":
                image = view.show(
                    ax, p.astype(np.float32), cmap=PROBABILITY_MAPS["tumor"], vmin=0, vmax=1, interpolation="nearest"
                )
            view.zoom(ax, box)
            if n == 0:
                ax.set_title(view.title(), fontsize=8, y=1)
            if n < len(rows) - 1:
                ax.set_xticks([])
                ax.set_xlabel("")
            if plane == "axial" and ax is not row[0]:
                ax.set_yticks([])
                ax.set_ylabel("")
        row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}", fontsize=8)
        if name == "tumor probability":
            place = row[-1].get_position()
            bar = figure.colorbar(
                image, cax=figure.add_axes((0.94, place.y0, 0.012, place.height)), label="probability"
            )
            bar.ax.tick_params(labelsize=7)
    figure.suptitle(title or "preview", fontsize=11, y=1 - 0.2 / high)
    handles = _label_legend(labels, None) if codes is None else _ledger_legend(codes, spacing_mm, meanings)
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
