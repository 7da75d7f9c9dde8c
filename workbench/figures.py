"""Every picture of the method: plain arrays and tables in, a matplotlib figure out.

States: the paper's figures are not known here. Chooses: axial slices as radiologists see them (canonical `[z y x]`,
the patient's left on the right), axes in mm, the colours of Okabe and Ito (2008), which colour-blind readers can tell
apart, and the same colour for the same thing in every figure, in napari and in the widgets. A figure that shows
statistics has its number of patients in the title. Nothing here needs pyplot, a display, or any other module's types:
arrays may be numpy or torch, tables are data frames with the columns of the experiment folder.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench import folders, metrics
from workbench.files import write_atomic
from workbench.ledger import CODES
from workbench.volume import Refused

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"

LIVER_COLOUR = SKY
TUMOR_COLOUR = ORANGE
TRUTH_COLOUR = YELLOW  # and dashed, so that it does not rest on colour alone
LEDGER_COLOURS = {
    1: SKY,
    2: ORANGE,
    3: GREEN,
    4: PURPLE,
    5: YELLOW,
    6: VERMILLION,
    7: BLUE,
    8: "#FFFFFF",  # the palette's black would pass for fat on a CT
    # darker: an earlier stage had changed the voxel already
    21: "#8C8420",
    22: "#7A3600",
    23: "#003A5C",
    24: "#BBBBBB",
    39: "#3F51FF",
    55: "#6A1B9A",
    71: "#00F0D0",
    87: "#404040",
}
LEDGER_MEANINGS = {code: meaning for code, meaning in CODES.items() if code > 0}
STAGE_COLOURS = {
    "cohort": GREY,
    "liver": LIVER_COLOUR,
    "tumor": TUMOR_COLOUR,
    "cascade": TUMOR_COLOUR,
    "consistency": GREEN,
    "candidates": YELLOW,
    "radiomics": PURPLE,
    "selection": "#7F4F71",
    "forest": VERMILLION,
    "boundary": BLUE,
    "metrics": BLACK,
}
GROUP_COLOURS = {"intensity": ORANGE, "texture": BLUE, "shape": GREEN, "boundary": VERMILLION, "wavelet": PURPLE}
GROUP_MARKERS = {"intensity": "o", "texture": "s", "shape": "^", "boundary": "D", "wavelet": "v"}
FOLD_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
TRUE_COLOUR, FALSE_COLOUR = BLUE, VERMILLION  # a true lesion, a false positive
SPLIT_COLOURS = {"train": BLUE, "test": VERMILLION}
VERDICT_COLOURS = {"true lesion": TRUE_COLOUR, "false positive": FALSE_COLOUR, "missed lesion": GREY}
WINDOWS = {"liver": (60, 350), "tumor": (90, 180), "soft tissue": (40, 400), "lung": (-600, 1500), "bone": (400, 1800)}


def _map_to(colour: str, name: str) -> LinearSegmentedColormap:
    r, g, b = to_rgb(colour)
    return LinearSegmentedColormap.from_list(name, [(r, g, b, 0), (r, g, b, 0.85)])


PROBABILITY_MAPS = {"liver": _map_to(LIVER_COLOUR, "liver"), "tumor": _map_to(TUMOR_COLOUR, "tumor")}


class Picture(Figure):
    """A figure that draws itself with Agg and shows itself in a notebook, without pyplot's global list of figures."""

    def __init__(self, width: float = 7, height: float = 5, **kwargs):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained", **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    return data.getvalue()


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write the figure as PNG, whole or not at all."""
    path = Path(path)
    write_atomic(path, png(figure, dpi))
    return path


def _array(a) -> np.ndarray | None:
    if a is None:
        return None
    if hasattr(a, "detach"):
        a = a.detach().cpu()
        a = a.float().numpy() if a.is_floating_point() else a.numpy()
    return np.asarray(a)


def _patients(table: pd.DataFrame) -> str:
    return f"{table['patient'].nunique()} patients" if "patient" in table else f"{len(table)} rows, patients not named"


def _say(ax, words: str) -> None:
    """An empty panel says why it is empty."""
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=GREY, wrap=True)


def stage_key(stage: str) -> str:
    """`+ forest`, `Forest` and `forest` are one stage."""
    return str(stage).replace("→", "").replace("+", "").strip().lower()


def stage_colour(stage: str) -> str:
    return STAGE_COLOURS.get(stage_key(stage), GREY)


# --- slices -----------------------------------------------------------------------------------------------------

AXES = {"axial": 0, "coronal": 1, "sagittal": 2}
_SIDES = {
    "axial": ("mm, to the patient's left", "mm, to the back"),
    "coronal": ("mm, to the patient's left", "mm, to the head"),
    "sagittal": ("mm, to the back", "mm, to the head"),
}


def slice_with_most(mask, plane: str = "axial") -> int:
    """Index of the slice with most voxels of a mask; the middle one when it is empty."""
    mask = _array(mask) > 0
    counts = mask.sum(axis=tuple(a for a in range(3) if a != AXES[plane]))
    return int(counts.argmax()) if counts.any() else mask.shape[AXES[plane]] // 2


def box_around(mask, spacing_mm, margin_mm: float = 20) -> tuple[slice, slice, slice] | None:
    """Box `[z y x]` around a mask for zooming in; None (the whole picture) when it is empty."""
    mask = _array(mask) > 0
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
        self.height_over_width = (high - low) / (right - left)
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

    def labels(self, ax, labels, truth=None):
        """Liver and tumor as contours; a reference is dashed."""
        for volume, style, tumor in ((labels, "solid", TUMOR_COLOUR), (truth, (0, (3, 2)), TRUTH_COLOUR)):
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

    def zoom(self, ax, box):
        """Show only a box `[z y x]` of the grid."""
        if box is None:
            ax.set_xlim(self.extent[0], self.extent[1])
            ax.set_ylim(self.extent[2], self.extent[3])
            return
        down, across = box[self.axes[0]], box[self.axes[1]]
        ax.set_xlim((across.start - 0.5) * self.across, (across.stop - 0.5) * self.across)
        low, high = (down.start - 0.5) * self.down, (down.stop - 0.5) * self.down
        ax.set_ylim(*((high, low) if self.plane == "axial" else (low, high)))

    def title(self) -> str:
        return f"{self.plane} slice {self.at} ({self.at_mm:.0f} mm)"


def _label_legend(labels, truth) -> list:
    handles = []
    if labels is not None:
        handles += [
            Line2D([], [], color=LIVER_COLOUR, label="liver"),
            Line2D([], [], color=TUMOR_COLOUR, label="tumor"),
        ]
    if truth is not None:
        handles += [
            Line2D([], [], color=LIVER_COLOUR, ls="--", label="liver, reference"),
            Line2D([], [], color=TRUTH_COLOUR, ls="--", label="tumor, reference"),
        ]
    return handles


def _legend(figure, handles, columns=4) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


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
    ct, labels, truth = _array(ct), _array(labels), _array(truth)
    figure = Picture(6.4, 6.2)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, at)
    figure.colorbar(view.ct(ax, ct, window), ax=ax, label="HU", shrink=0.7)
    view.labels(ax, labels, truth)
    view.zoom(ax, box)
    ax.set_title(f"{title}: {view.title()}" if title else view.title(), fontsize=10)
    _legend(figure, _label_legend(labels, truth))
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
    ct, p, truth = _array(ct), _array(probability), _array(truth)
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
        view.contour(ax, truth == 2 if which == "tumor" else truth >= 1, TRUTH_COLOUR, (0, (3, 2)))
        handles += [Line2D([], [], color=TRUTH_COLOUR, ls="--", label=f"{which}, reference")]
    view.zoom(ax, box)
    ax.set_title(f"{title}: {view.title()}" if title else view.title(), fontsize=10)
    _legend(figure, handles)
    return figure


def montage(
    ct,
    spacing_mm,
    labels=None,
    truth=None,
    slices: int = 12,
    columns: int = 4,
    window="liver",
    title: str = "",
    along: str = "liver",
) -> Figure:
    """Axial slices spread evenly over the liver (or over the volume, without labels) with contours.

    With `along="tumor"` they are spread over the slices that hold tumor in either label map, where there are such.
    """
    ct, labels, truth = _array(ct), _array(labels), _array(truth)
    of = labels if labels is not None else truth
    on = np.flatnonzero((of > 0).any(axis=(1, 2))) if of is not None else np.arange(len(ct))
    on = on if len(on) else np.arange(len(ct))
    tumor = [(a == 2).any(axis=(1, 2)) for a in (labels, truth) if a is not None]
    if along == "tumor" and np.any(tumor):
        on = np.flatnonzero(np.any(tumor, axis=0))
    chosen = on[np.unique(np.linspace(0, len(on) - 1, min(slices, len(on))).round().astype(int))]
    columns = min(columns, len(chosen))
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
    _legend(figure, _label_legend(labels, truth))
    return figure


def case_montage(cases, columns: int = 4, window="liver", title: str = "") -> Figure:
    """The slice with most tumor of each case: an iterable of (name, ct, labels, spacing_mm)."""
    cases = list(cases)
    columns = max(1, min(columns, len(cases)))
    rows = max(1, math.ceil(len(cases) / columns))
    figure = Picture(3.1 * columns, 2.9 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, (name, ct, labels, spacing_mm) in zip(axes, cases):
        ct, labels = _array(ct), _array(labels)
        view = View(ct.shape, spacing_mm, "axial", slice_with_most(labels == 2 if (labels == 2).any() else labels))
        view.ct(ax, ct, window)
        view.labels(ax, labels)
        ax.set_title(f"{name}: {view.title()}", fontsize=8)
    for ax in list(axes):
        ax.set_axis_off()
    figure.suptitle(title or f"{len(cases)} cases", fontsize=11)
    _legend(figure, _label_legend(True, None))
    return figure


def ledger(
    ct,
    ledger,
    spacing_mm,
    at: int | None = None,
    meanings: dict | None = None,
    window="liver",
    plane="axial",
    box=None,
    title: str = "",
) -> Figure:
    """Which stage decided each voxel, over the CT. The legend holds the codes that occur, with ml."""
    ct, codes = _array(ct), _array(ledger)
    figure = Picture(6.4, 6.8)
    ax = figure.subplots()
    view = View(ct.shape, spacing_mm, plane, slice_with_most(codes > 1, plane) if at is None else at)
    view.ct(ax, ct, window)
    _draw_ledger(view, ax, codes)
    view.zoom(ax, box)
    ax.set_title(f"{title}: {view.title()}" if title else view.title(), fontsize=10)
    _legend(figure, _ledger_legend(codes, spacing_mm, meanings), columns=2)
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
    ct, maps = _array(ct), {"liver": _array(liver_probability), "tumor": _array(tumor_probability)}
    codes, labels, truth = _array(ledger_codes), _array(labels), _array(truth)
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
    figure.suptitle(f"{title}: {view.title()}" if title else view.title(), fontsize=11)
    _legend(figure, _ledger_legend(codes, spacing_mm, None) + _label_legend(labels, truth), columns=4)
    return figure


def decided(ct, spacing_mm, ledger_codes, labels, truth, measures: pd.DataFrame, at=None, title: str = "") -> Figure:
    """What the stages decide in one axial slice, ledger and final contours, beside the measures after each stage
    (columns stage, dice, found, missed, false_positives, assd_mm)."""
    ct, codes, labels, truth = (_array(a) for a in (ct, ledger_codes, labels, truth))
    of = truth == 2 if (truth == 2).any() else codes > 1 if (codes > 1).any() else labels
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(of) if at is None else at)
    box = box_around(np.maximum(labels, truth), spacing_mm, 20)
    figure = Picture(13, 4.8)
    left, right, beside = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    for ax, name in ((left, "ledger"), (right, "final contours, reference dashed")):
        view.ct(ax, ct, "liver")
        view.zoom(ax, box)
        ax.set_title(name, fontsize=10)
    _draw_ledger(view, left, codes)
    view.labels(right, labels, truth)
    beside.set_axis_off()
    rows = [
        [row.stage, f"{row.dice:.3f}", f"{row.found}", f"{row.missed}", f"{row.false_positives}", f"{row.assd_mm:.1f}"]
        for row in measures.itertuples()
    ]
    heads = ["after", "Dice", "found", "missed", "false", "ASSD mm"]
    table = beside.table(rows, colLabels=heads, loc="center", cellLoc="center", colWidths=[0.26] + [0.14] * 4 + [0.18])
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.6)
    figure.suptitle(f"{title}: {view.title()}" if title else view.title(), fontsize=11)
    _legend(figure, _ledger_legend(codes, spacing_mm, None) + _label_legend(labels, truth), columns=5)
    return figure


def attention(image, maps, pixel_mm: float, title: str = "") -> Figure:
    """What each gate lets through of one slice: `image` HU `[y x]`, `maps` a list of `[h w]` in 0..1, finest first."""
    image, maps = _array(image), [_array(m) for m in maps]
    figure = Picture(3.4 * (1 + len(maps)), 3.8)
    first, *others = figure.subplots(1, 1 + len(maps))
    level, width = WINDOWS["liver"]
    extent = (-pixel_mm / 2, (image.shape[1] - 0.5) * pixel_mm, (image.shape[0] - 0.5) * pixel_mm, -pixel_mm / 2)
    first.imshow(image, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, extent=extent)
    first.set_title("CT", fontsize=9)
    for number, (ax, gate) in enumerate(zip(others, maps), 1):
        drawn = ax.imshow(gate, cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        ax.set_title(f"gate {number}: {gate.shape[0]} x {gate.shape[1]}, mean {gate.mean():.2f}", fontsize=9)
    for ax in (first, *others):
        ax.set_xlabel("mm, to the patient's left", fontsize=8)
        ax.tick_params(labelsize=7)
    first.set_ylabel("mm, to the back", fontsize=8)
    if others:
        figure.colorbar(drawn, ax=others, label="let through (share)", shrink=0.7)
    figure.suptitle(title or "attention gates", fontsize=11)
    return figure


def architecture(layout, slices: int, extra: int, stride: int = 1, title: str = "") -> Figure:
    """The 2.5D network as `SlabNet.layout` describes it: encoder down the left, gates in the middle, decoder up the right;
    `stride` of the stem, which a last step up takes back."""
    depth = len(layout)
    figure = Picture(10.5, 1.05 * depth + 1.0)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.set_xlim(-0.3, 10.3)
    ax.set_ylim(-depth + 0.5, 1.0)

    def box(x, y, text, colour):
        ax.text(
            x, y, text, ha="center", va="center", fontsize=8.5, linespacing=1.35,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": (*to_rgb(colour), 0.25), "edgecolor": colour},
        )  # fmt: skip

    def arrow(start, end, colour=BLACK, style="-"):
        ax.annotate(
            "",
            end,
            start,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linestyle": style, "shrinkA": 3, "shrinkB": 3},
        )

    inputs = f"slab: {slices} slices" + (f" + {extra} map" if extra else "")
    ax.text(1.5, 0.85, inputs, ha="center", fontsize=9)
    ax.text(8.6, 0.85, "logits of the middle slice", ha="center", fontsize=9)
    arrow((1.5, 0.8), (1.5, 0.25))
    arrow((8.6, 0.25), (8.6, 0.8))
    if stride > 1:
        ax.text(
            1.4,
            0.5,
            f"{layout[0]['pixels'][0] * stride} pixels, stride {stride}",
            ha="right",
            fontsize=7.5,
            color="#555555",
        )
        ax.text(8.72, 0.5, f"sub-pixel x{stride}", fontsize=7.5, color="#555555")
    for level, row in enumerate(layout):
        h, w = row["pixels"]
        ax.text(-0.3, -level, f"{h} x {w}", fontsize=8.5, va="center", color="#555555")
        last = "raised" not in row
        words = f"{row['layers']} dense layers\n{row['encoded']} channels"
        box(5.2 if last else 1.5, -level, words, SKY)
        if last:
            arrow((1.5, -level + 0.75), (4.4, -level + 0.08))
            arrow((6.0, -level + 0.08), (8.5, -level + 0.75))
            continue
        box(5.2, -level, "attention gate", GREEN)
        box(8.6, -level, f"sub-pixel x2: {row['raised']}\nmerged: {row['decoded']} channels", ORANGE)
        arrow((2.25, -level), (4.5, -level))
        arrow((5.9, -level), (7.6, -level))
        arrow((7.7, -level + 0.2), (5.9, -level + 0.12), GREEN, ":")  # the decoder at its own scale
        if level + 2 < depth:
            arrow((1.5, -level - 0.25), (1.5, -level - 0.75))
            arrow((8.6, -level - 0.75), (8.6, -level - 0.25))
            arrow((7.8, -level - 0.72), (5.7, -level - 0.18), GREEN, ":")  # and the coarser one
        ax.text(
            1.4,
            -level - 0.5,
            f"{row['passed']} channels, pooled",
            fontsize=7.5,
            color="#555555",
            va="center",
            ha="right",
        )
        ax.text(8.72, -level + 0.48 if level else 0.48, "logits too" if level else "", fontsize=7.5, color=VERMILLION)
    figure.suptitle(title or "the network of both cascade stages", fontsize=11)
    return figure


def _draw_ledger(view: View, ax, codes: np.ndarray) -> None:
    for code in np.unique(_cut(codes, view.plane, view.at)):
        if int(code) == 1:
            view.contour(ax, codes >= 1, LEDGER_COLOURS[1], width=1)
        elif int(code) > 1:
            view.fill(ax, codes == code, LEDGER_COLOURS.get(int(code), GREY), 0.8)


def _ledger_legend(codes: np.ndarray, spacing_mm, meanings: dict | None) -> list:
    meanings = {**LEDGER_MEANINGS, **{int(k): v for k, v in (meanings or {}).items()}}
    ml = math.prod(spacing_mm) / 1000
    values, counts = np.unique(codes, return_counts=True)
    return [
        Patch(
            facecolor=LEDGER_COLOURS.get(int(v), GREY),
            edgecolor="#444444",
            lw=0.5,
            label=f"{v} {meanings.get(int(v), 'unknown')} ({n * ml:.3g} ml)",
        )
        for v, n in zip(values, counts)
        if v > 0
    ]


def consistency(
    ct, before, after, spacing_mm, at: int | None = None, truth=None, window="liver", box=None, title: str = ""
) -> Figure:
    """Three neighbouring axial slices before and after the rule: what it restored and what it suppressed."""
    ct, before, after, truth = _array(ct), _array(before) > 0, _array(after) > 0, _array(truth)
    at = slice_with_most(before != after) if at is None else at
    box = box or box_around(before != after if (before != after).any() else before | after, spacing_mm, 25)
    figure = Picture(9.6, 7)
    neighbours = [z if 0 <= z < len(ct) else None for z in (at - 1, at, at + 1)]
    for row, (mask, name) in zip(figure.subplots(2, 3), ((before, "before"), (after, "after"))):
        for ax, z in zip(row, neighbours):
            if z is None:
                ax.set_axis_off()
                _say(ax, "outside the volume")
                continue
            view = View(ct.shape, spacing_mm, "axial", z)
            view.ct(ax, ct, window)
            if name == "after":
                view.fill(ax, after & ~before, LEDGER_COLOURS[3], 0.6)
                view.fill(ax, before & ~after, LEDGER_COLOURS[4], 0.6)
            view.contour(ax, mask, TUMOR_COLOUR)
            if truth is not None:
                view.contour(ax, truth == 2, TRUTH_COLOUR, (0, (3, 2)))
            view.zoom(ax, box)
            ax.set_title(f"{name}: {view.title()}", fontsize=8)
    ml = math.prod(spacing_mm) / 1000
    figure.suptitle(
        f"{title or 'three-slice consistency'}: {(after & ~before).sum() * ml:.3g} ml restored, "
        f"{(before & ~after).sum() * ml:.3g} ml suppressed",
        fontsize=11,
    )
    _legend(
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
    ct, before, after, spacing_mm, at: int | None = None, truth=None, window="tumor", box=None, title: str = ""
) -> Figure:
    """A lesion's contour before and after relabelling, and the voxels that changed."""
    ct, before, after, truth = _array(ct), _array(before) > 0, _array(after) > 0, _array(truth)
    at = slice_with_most(before != after) if at is None else at
    if box is None:
        box = box_around(before | after, spacing_mm, 12)
    figure = Picture(10.4, 5)
    left, right = figure.subplots(1, 2)
    view = View(ct.shape, spacing_mm, "axial", at)
    for ax in (left, right):
        view.ct(ax, ct, window)
        view.zoom(ax, box)
    view.contour(left, before, TUMOR_COLOUR)
    view.contour(left, after, LEDGER_COLOURS[7], width=1.8)
    view.fill(right, after & ~before, LEDGER_COLOURS[7])
    view.fill(right, before & ~after, LEDGER_COLOURS[8])
    for ax in (left, right):
        if truth is not None:
            view.contour(ax, truth == 2, TRUTH_COLOUR, (0, (3, 2)))
    left.set_title(f"contours, {view.title()}", fontsize=9)
    right.set_title("voxels that changed", fontsize=9)
    ml = math.prod(spacing_mm) / 1000
    figure.suptitle(
        f"{title or 'boundary relabelling'}: {(after & ~before).sum() * ml:.3g} ml added, "
        f"{(before & ~after).sum() * ml:.3g} ml removed",
        fontsize=11,
    )
    _legend(
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


def _truth_handle(truth) -> list:
    return [] if truth is None else [Line2D([], [], color=TRUTH_COLOUR, ls="--", label="reference")]


def preview(
    ct=None,
    labels=None,
    tumor_probability=None,
    ledger=None,
    spacing_mm=(1.0, 1.0, 1.0),
    slices: int = 3,
    meanings: dict | None = None,
    title: str = "",
) -> Figure:
    """Contact sheet of a case from arrays `[z y x]`; what is None is left out.

    Rows: CT with contours, tumor probability, ledger; columns: the axial slices with most tumor (else liver) and one
    coronal slice.
    """
    ct, labels, p, codes = _array(ct), _array(labels), _array(tumor_probability), _array(ledger)
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
    views = [("axial", z) for z in _spread(of.sum(axis=(1, 2)), slices)] + [("coronal", slice_with_most(of, "coronal"))]
    rows = [r for r, a in (("contours", labels), ("tumor probability", p), ("ledger", codes)) if a is not None] or [
        "CT"
    ]
    liver = labels >= 1 if labels is not None else of
    box = box_around(liver, spacing_mm, 25)
    figure = Picture(3 * len(views), 2.7 * len(rows) + 0.9)
    for row, name in zip(figure.subplots(len(rows), len(views), squeeze=False), rows):
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
            ax.set_title(view.title(), fontsize=8)
        row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}", fontsize=8)
        if name == "tumor probability":
            figure.colorbar(image, ax=list(row), label="probability", shrink=0.8)
    figure.suptitle(title or "preview", fontsize=11)
    handles = _label_legend(labels, None) if codes is None else _ledger_legend(codes, spacing_mm, meanings)
    _legend(figure, handles, columns=3)
    return figure


def preview_of(folder: str | Path) -> Figure:
    """The contact sheet of a result folder; its title says when the CT is no longer there."""
    case = folders.result(folder)
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


# --- cohort and training ----------------------------------------------------------------------------------------


def curves(table: pd.DataFrame, title: str = "", x: str = "step") -> Figure:
    """Loss and Dice (of slabs, of whole volumes) against the training step, one line a fold (columns as in curves.csv)."""
    names = [c for c in ("loss", "dice", "volume_dice", "inner_dice", "net_error") if c in table] or [
        c for c in table.columns if c not in ("fold", x, "seconds")
    ]
    figure = Picture(5 * max(1, len(names)), 3.8)
    folds = list(table.groupby("fold")) if "fold" in table else [("", table)]
    for ax, name in zip(np.atleast_1d(figure.subplots(1, max(1, len(names)))), names):
        for n, (fold, rows) in enumerate(folds):
            rows = rows.dropna(subset=[name])
            ax.plot(
                rows[x],
                rows[name],
                color=FOLD_COLOURS[n % len(FOLD_COLOURS)],
                ls=("-", "--", ":", "-.")[n % 4],
                label=f"fold {fold}" if "fold" in table else None,
                lw=1.4,
                marker="." if len(rows) < len(table) / len(folds) else None,
            )
        ax.set_xlabel(x)
        ax.set_ylabel(
            {
                "dice": "Dice (1)",
                "volume_dice": "Dice of whole volumes (1)",
                "inner_dice": "Dice of whole volumes, choosing (1)",
                "loss": "loss (1)",
                "net_error": "band wrong (share)",
            }.get(name, name)
        )
        if name.endswith("dice"):
            ax.set_ylim(0, 1)
        if name == "net_error" and "mask_error" in table:
            ax.axhline(table["mask_error"].iloc[-1], color=BLACK, ls="--", lw=1, label="the mask before")
            ax.lines[0].set_label("the net")
            ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
        if "fold" in table:
            ax.legend(fontsize=8)
    figure.suptitle(f"{title or 'learning curves'} ({len(folds)} {'folds' if 'fold' in table else 'run'})", fontsize=11)
    return figure


def cohort(cases: pd.DataFrame, title: str = "") -> Figure:
    """Liver and tumor volume, voxel spacing and tumors per case, train against test (columns of cohort/cases.csv)."""
    figure = Picture(11, 7.4)
    volumes, spacing, numbers, names = figure.subplots(2, 2).flat
    looks = {"train": (SPLIT_COLOURS["train"], "o"), "test": (SPLIT_COLOURS["test"], "s")}
    for split, rows in cases.groupby("split"):
        colour, marker = looks.get(split, (GREY, "^"))
        volumes.scatter(
            rows["liver_ml"],
            rows["tumor_ml"].clip(lower=0.01),
            c=colour,
            marker=marker,
            label=f"{split} ({len(rows)})",
            s=28,
        )
        spacing.scatter(rows["spacing_x_mm"], rows["spacing_z_mm"], c=colour, marker=marker, label=split, s=28)
    volumes.set(xlabel="liver (ml)", ylabel="tumor (ml; none drawn at 0.01)", yscale="log")
    volumes.legend(fontsize=8, title="cases")
    spacing.set(xlabel="pixel spacing (mm)", ylabel="slice spacing (mm)")
    spacing.legend(fontsize=8)
    top = int(cases["tumors"].max()) if len(cases) else 0
    numbers.hist(
        [rows["tumors"] for _, rows in cases.groupby("split")],
        bins=np.arange(-0.5, top + 1.5),
        stacked=True,
        color=[looks.get(s, (GREY, ""))[0] for s, _ in cases.groupby("split")],
    )
    numbers.set(xlabel="tumors per case", ylabel="cases")
    shown = cases.head(14)
    names.set_axis_off()
    columns = [
        c
        for c in ("case", "split", "fold", "slices", "spacing_z_mm", "spacing_x_mm", "liver_ml", "tumors", "tumor_ml")
        if c in cases
    ]
    text = [
        [(f"{v:.3g}" if abs(v) < 100 else f"{v:.0f}") if isinstance(v, float) else str(v) for v in row]
        for row in shown[columns].itertuples(index=False)
    ]
    if text:
        table = names.table(text, colLabels=[c.replace("_", "\n", 1) for c in columns], loc="center", cellLoc="center")
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)
        table.auto_set_column_width(list(range(len(columns))))
        for (row, _), cell in table.get_celld().items():
            cell.set_height(0.11 if row == 0 else 0.058)
            cell.set_linewidth(0.3)
    names.set_title(f"first {len(shown)} of {len(cases)} cases", fontsize=9)
    figure.suptitle(f"{title or 'cohort'} ({_patients(cases)}, {len(cases)} cases)", fontsize=11)
    return figure


def lesions(
    table: pd.DataFrame, by: str = "kind", size: str = "volume_ml", title: str = "", what: str = "lesions"
) -> Figure:
    """Number of lesions (or `what` the rows are) of each kind, and their sizes on a log scale."""
    figure = Picture(10, 4)
    left, right = figure.subplots(1, 2)
    groups = list(table.groupby(table[by].astype(str))) if by in table else [("all", table)]
    colours = [(BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)[n % 8] for n in range(len(groups))]
    colours = [(VERDICT_COLOURS | SPLIT_COLOURS).get(str(kind), colour) for (kind, _), colour in zip(groups, colours)]
    left.barh([str(k) for k, _ in groups], [len(rows) for _, rows in groups], color=colours)
    left.set(xlabel=what, ylabel=by if by in table else "")
    values = [rows[size].to_numpy(float) for _, rows in groups]
    every = np.concatenate(values) if values else np.zeros(0)
    if (every > 0).any():
        bins = np.geomspace(every[every > 0].min() * 0.9, every.max() * 1.1, 16)
        right.hist(values, bins=bins, stacked=True, color=colours, label=[str(k) for k, _ in groups])
        right.set_xscale("log")
        right.legend(fontsize=7)
    else:
        _say(right, "no lesion has a size")
    right.set(xlabel=size.replace("_", " (") + ")" if "_" in size else size, ylabel=what)
    who = f"{_patients(table)}, " if "patient" in table else ""
    figure.suptitle(f"{title or what} ({who}{len(table)} {what})", fontsize=11)
    return figure


def per_case(table: pd.DataFrame, metric: str, by: str = "split", title: str = "") -> Figure:
    """One dot a case, and the mean with its 95 % interval over patients, for each value of a column."""
    figure = Picture(6.4, 4.2)
    ax = figure.subplots()
    groups = list(table.groupby(by))
    looks = {"train": (SPLIT_COLOURS["train"], "o"), "test": (SPLIT_COLOURS["test"], "s")}
    for at, (name, rows) in enumerate(groups):
        values = rows[metric].to_numpy(float)
        colour, marker = looks.get(name, (FOLD_COLOURS[at % len(FOLD_COLOURS)], "o"))
        ax.scatter(at + np.linspace(-0.25, 0.25, len(values)), values, c=colour, marker=marker, s=22, alpha=0.75)
        mean, low, high = metrics.bootstrap(values, groups=rows["patient"].to_numpy() if "patient" in rows else None)
        ax.plot([at - 0.32, at + 0.32], [mean, mean], color=BLACK, lw=2)
        ax.fill_between([at - 0.32, at + 0.32], low, high, color=BLACK, alpha=0.15)
    ax.set_xticks(range(len(groups)), [f"{k}\n{_patients(rows)}" for k, rows in groups])
    ax.set(
        xlim=(-0.6, len(groups) - 0.4), ylabel=f"{_units(metric)} (1)" if metric.endswith("dice") else _units(metric)
    )
    ax.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{title or _units(metric)} ({_patients(table)}; bar: mean, shade: 95 % interval)", fontsize=10)
    return figure


def right_and_wrong(table: pd.DataFrame, unit: str = "voxels", patients: int | None = None, title: str = "") -> Figure:
    """What was right and what was wrong of each thing done: index = what, columns right and wrong (counts)."""
    figure = Picture(8, 1.5 + 0.5 * max(2, len(table)))
    ax = figure.subplots()
    rows = table[::-1]
    at = np.arange(len(rows))
    ax.barh(at, rows["right"], color=TRUE_COLOUR, label="right")
    ax.barh(at, rows["wrong"], left=rows["right"], color=FALSE_COLOUR, hatch="//", edgecolor="white", label="wrong")
    for y, row in zip(at, rows.itertuples()):
        total = row.right + row.wrong
        said = f"{row.right / total:.0%} of {total:g} right" if total else "none"
        ax.text(total, y, f" {said}", va="center", fontsize=8)
    ax.set_yticks(at, rows.index)
    ax.set(xlabel=unit)
    ax.margins(x=0.3)
    ax.legend(fontsize=8, loc="lower right")
    who = f" ({patients} patients)" if patients is not None else ""
    figure.suptitle(f"{title or 'right and wrong'}{who}", fontsize=11)
    return figure


# --- radiomics and selection ------------------------------------------------------------------------------------


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
    left.set_xscale("symlog")
    left.set_yscale("symlog")
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


def perturbed(spread: pd.DataFrame, lesions: int, patients: int | None = None, title: str = "") -> Figure:
    """How far descriptors move: index = perturbation, columns = groups, values in sd between lesions (median)."""
    figure = Picture(7.4, 1.6 + 0.36 * max(4, len(spread)))
    ax = figure.subplots()
    image = ax.imshow(spread.to_numpy(float), cmap="cividis", aspect="auto", vmin=0)
    figure.colorbar(image, ax=ax, label="median change (sd between lesions)", shrink=0.8)
    top = np.nanmax(spread.to_numpy(float), initial=0)
    for (y, x), value in np.ndenumerate(spread.to_numpy(float)):
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=BLACK if value > top / 2 else "white")
    ax.set_xticks(range(spread.shape[1]), spread.columns)
    ax.set_yticks(range(len(spread)), [str(name).replace("_", " ") for name in spread.index])
    ax.set(xlabel="group of descriptors", ylabel="perturbation")
    who = f"{patients} patients, " if patients is not None else ""
    figure.suptitle(f"{title or 'descriptors under perturbation'} ({who}{lesions} candidates)", fontsize=11)
    return figure


ICC_KINDS = {"icc21": "systematic changes, ICC(2,1)", "icc11": "random changes, ICC(1,1)"}


def icc_forest(
    table: pd.DataFrame, limit: float | None = None, most: int = 40, patients: int | None = None, title: str = ""
) -> Figure:
    """Stability of features: ICC with its 95 % interval, coloured by group.

    Columns: name, group, icc, icc_low, icc_high; or icc21 and icc11 with theirs (a selection's table), side by side.

    Of more than `most` rows an even spread over the ranking is drawn. `limit` is the lowest lower bound that is kept.
    """
    kinds = [kind for kind in ICC_KINDS if kind in table] or ["icc"]
    rows = table.dropna(subset=kinds)
    rows = rows.loc[rows[kinds].min(axis=1).sort_values(kind="stable").index]
    drawn = (
        rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
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
        ax.set(xlabel="ICC (1), 95 % interval", xlim=(lowest, 1.02), title=ICC_KINDS.get(kind, ""))
        ax.title.set_fontsize(9)
        if limit is not None:
            ax.axvline(limit, color=BLACK, ls="--", lw=1)
    axes[0].set_yticks(range(len(drawn)), drawn["name"], fontsize=6)
    _legend(
        figure,
        [
            Line2D([], [], color=c, marker=GROUP_MARKERS[g], label=f"{g} ({(rows['group'] == g).sum()})")
            for g, c in GROUP_COLOURS.items()
            if (rows["group"] == g).any()
        ],
        columns=5,
    )
    reach = (rows[[f"{kind}_low" for kind in kinds]].min(axis=1) >= limit).sum() if limit is not None else 0
    stable = f", {reach} with a lower bound of at least {limit:g}" if limit is not None else ""
    who = f"{patients} patients, " if patients is not None else ""
    figure.suptitle(f"{title or 'stability'} ({who}{len(drawn)} of {len(rows)} features drawn{stable})", fontsize=10)
    return figure


def redundancy(
    features: pd.DataFrame,
    groups: dict | None = None,
    clusters: dict | None = None,
    patients: int | None = None,
    title: str = "",
) -> Figure:
    """Absolute Spearman correlation of features `[lesion x k]`, ordered so that clusters lie together."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    varied = features.loc[:, features.nunique() > 1]
    rho = varied.rank().fillna(varied.rank().mean()).corr().abs().fillna(0).to_numpy(copy=True)
    np.fill_diagonal(rho, 1)
    order = np.arange(len(rho))
    if len(rho) > 2:
        order = leaves_list(linkage(squareform(np.clip(1 - rho, 0, None), checks=False), "average"))
    if clusters:
        number = np.array([clusters.get(c, -1) for c in varied.columns], float)
        order = order[np.argsort(number[order], kind="stable")]
    figure = Picture(7.4, 6.6)
    ax = figure.subplots()
    image = ax.imshow(rho[np.ix_(order, order)], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=ax, label="|Spearman correlation| (1)", shrink=0.8)
    names = [varied.columns[i] for i in order]
    if len(names) <= 45:
        ax.set_yticks(range(len(names)), names, fontsize=6)
        for tick, name in zip(ax.get_yticklabels(), names):
            tick.set_color(GROUP_COLOURS.get((groups or {}).get(name), BLACK))
    ax.set(xlabel="feature, ordered by cluster", ylabel="" if len(names) <= 45 else "feature, ordered by cluster")
    if clusters:
        edges = np.flatnonzero(np.diff(number[order])) + 0.5
        for edge in edges if len(edges) < 60 else []:
            ax.axhline(edge, color="white", lw=0.6)
            ax.axvline(edge, color="white", lw=0.6)
    who = f"{patients} patients, " if patients is not None else ""
    figure.suptitle(f"{title or 'redundancy'} ({who}{len(features)} lesions, {len(names)} features)", fontsize=11)
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


def survival(steps: pd.DataFrame, title: str = "", patients: int | None = None) -> Figure:
    """How many features of each group are left after each step: index = step, columns = groups.

    A selection's table (a row a feature, with `group` and the `step` at which it left) is counted first.
    """
    if "step" in steps:
        steps = _left_after(steps)
    figure = Picture(8.4, 4.4)
    ax = figure.subplots()
    at = np.arange(len(steps))
    bottom = np.zeros(len(steps))
    share = steps.div(steps.sum(axis=1).replace(0, 1), axis=0)
    for group in steps.columns:
        ax.bar(
            at, share[group], 0.65, bottom=bottom, color=GROUP_COLOURS.get(group, GREY), label=group, edgecolor="white"
        )
        for x, low, value, n in zip(at, bottom, share[group], steps[group]):
            if value > 0.04:
                ax.text(x, low + value / 2, str(int(n)), ha="center", va="center", fontsize=8, color="white")
        bottom += share[group].to_numpy()
    ax.set_xticks(at, [f"{s}\n{int(n)} left" for s, n in zip(steps.index, steps.sum(axis=1))], fontsize=8)
    ax.set(ylabel="share of the features left (1)", ylim=(0, 1))
    _legend(figure, ax.get_legend_handles_labels()[0], columns=5)
    who = f", {patients} patients" if patients is not None else ""
    total = [int(n) for n in steps.sum(axis=1)]
    figure.suptitle(f"{title or 'selection'} ({' → '.join(map(str, total))} features{who})", fontsize=11)
    return figure


# --- forest -----------------------------------------------------------------------------------------------------


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
    figure.suptitle(f"{title or 'forest scores'} ({_patients(table)}, {len(table)} candidates)", fontsize=11)
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
    figure.suptitle(f"{title or 'the forest as a filter'} ({_patients(table)}, {len(table)} candidates)", fontsize=11)
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
    ct, mask, truth = _array(ct), _array(mask) > 0, _array(truth)
    figure = Picture(12, 4.6)
    image, bar, reasons = figure.subplots(1, 3, width_ratios=[1.2, 0.35, 1.3])
    view = View(ct.shape, spacing_mm, "axial", slice_with_most(mask))
    view.ct(image, ct, window)
    view.contour(image, mask, TUMOR_COLOUR)
    if truth is not None:
        view.contour(image, truth == 2, TRUTH_COLOUR, (0, (3, 2)))
    view.zoom(image, box_around(mask, spacing_mm, 25))
    image.set_title(view.title(), fontsize=9)
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
        top = contributions[contributions.abs().sort_values(ascending=False).index].head(10)[::-1]
        reasons.barh(range(len(top)), top.to_numpy(), color=[TRUE_COLOUR if v > 0 else FALSE_COLOUR for v in top])
        reasons.set_yticks(range(len(top)), top.index, fontsize=7)
        reasons.axvline(0, color=BLACK, lw=0.8)
        reasons.set(xlabel="contribution to the score (above 0: lesion)")
    else:
        reasons.set_axis_off()
        _say(reasons, "contributions not given")
    words = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in (facts or {}).items())
    figure.suptitle(f"{title or 'candidate'}{': ' + words if words else ''}", fontsize=11)
    return figure


def froc(table: pd.DataFrame, lesions: int, patients: int, threshold: float | None = None, title: str = "") -> Figure:
    """Lesions found against false positives per patient as the threshold falls.

    `lesions` counts all reference lesions, so that those without any candidate hold the curve down. A lesion with
    several candidates counts once where `lesion` names it, else each true candidate counts.
    """
    figure = Picture(6.6, 4.8)
    ax = figure.subplots()
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
    figure.suptitle(f"{title or 'FROC'} ({patients} patients, {lesions} lesions)", fontsize=11)
    return figure


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
        f"{(kept & ~lesion).sum()} of {(~lesion).sum()} false positives kept ({_patients(table)})",
        fontsize=10,
    )
    return figure


# --- metrics ----------------------------------------------------------------------------------------------------


def _units(metric: str) -> str:
    return metric.replace("_mm", " (mm)").replace("_ml", " (ml)").replace("_", " ")


def ablation(
    table: pd.DataFrame,
    cases: pd.DataFrame | None = None,
    metrics: list[str] | None = None,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """Each metric after each stage: mean and 95 % interval over patients, and one thin line a patient where given.

    `table`: stage, metric, mean, low, high, n in stage order; `cases`: stage, case, patient and a column per metric.
    """
    stages = list(dict.fromkeys(table["stage"]))
    metrics = [m for m in (metrics or dict.fromkeys(table["metric"])) if (table["metric"] == m).any()]
    columns = max(1, min(columns, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    figure = Picture(4.2 * columns, 3.2 * rows + 0.6)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    if not metrics:
        _say(axes[0], "no metric in the table")
    for ax, metric in zip(axes, metrics):
        part = table[table["metric"] == metric].drop_duplicates("stage").set_index("stage").reindex(stages)
        if cases is not None and metric in cases:
            wide = cases.groupby(["patient", "stage"])[metric].mean().unstack().reindex(columns=stages)
            ax.plot(range(len(stages)), wide.to_numpy(float).T, color=GREY, lw=0.7, alpha=0.6)
        for at, (stage, row) in enumerate(part.iterrows()):
            if np.isfinite(row["mean"]):
                if np.isfinite([row["low"], row["high"]]).all():
                    ax.plot([at, at], [row["low"], row["high"]], color=stage_colour(stage), lw=3, alpha=0.8)
                ax.plot(at, row["mean"], "o", color=stage_colour(stage), mec=BLACK, ms=7)
        ax.set_xticks(range(len(stages)), stages, fontsize=8, rotation=15)
        n = part["n"].dropna()
        count = (
            ""
            if n.empty
            else f" (n = {int(n.iloc[0])})"
            if n.nunique() == 1
            else f" (n = {int(n.min())} to {int(n.max())})"
        )
        ax.set_ylabel(_units(metric), fontsize=9)
        ax.set_title(f"{_units(metric)}{count}", fontsize=9)
        ax.grid(alpha=0.3, axis="y")
    for ax in axes[len(metrics) :]:
        ax.set_axis_off()
    n = int(table["n"].max()) if len(table) else 0
    who = _patients(cases) if cases is not None and "patient" in cases else f"n up to {n}"
    figure.suptitle(
        f"{title or 'ablation'} ({who}; mean and 95 % interval{', thin: each patient' if cases is not None else ''})",
        fontsize=11,
    )
    return figure


def paired(cases: pd.DataFrame, before: str, after: str, metrics: list[str], title: str = "") -> Figure:
    """Metrics of two stages per patient, joined by lines: what a stage did (columns stage, patient, metrics)."""
    figure = Picture(3.4 * len(metrics), 4)
    key = cases["stage"].map(stage_key)
    patients = 0
    for ax, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics):
        a = cases[key == stage_key(before)].groupby("patient")[metric].mean()
        b = cases[key == stage_key(after)].groupby("patient")[metric].mean()
        both = pd.concat([a, b], axis=1, keys=["a", "b"]).dropna()
        patients = max(patients, len(both))
        for row in both.itertuples():
            ax.plot([0, 1], [row.a, row.b], color=GREY, lw=0.8)
        ax.plot(np.zeros(len(both)), both["a"], "o", color=stage_colour(before))
        ax.plot(np.ones(len(both)), both["b"], "s", color=stage_colour(after))
        if len(both):
            ax.plot([0, 1], [both["a"].mean(), both["b"].mean()], color=BLACK, lw=2)
        ax.set_xticks([0, 1], [before, after])
        ax.set_xlim(-0.4, 1.4)
        ax.set_ylabel(_units(metric))
        ax.set_title(
            f"mean change {(both['b'] - both['a']).mean():+.3g} (n = {len(both)})"
            if len(both)
            else "no patient has both",
            fontsize=9,
        )
        ax.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{title or f'{before} → {after}'} ({patients} patients)", fontsize=11)
    return figure


def boundary_gain(cases: pd.DataFrame, before: str = "forest", after: str = "boundary", title: str = "") -> Figure:
    """Surface distances and Dice before and after the boundary stage, patient by patient."""
    wanted = ("tumor_assd_mm", "assd_mm", "tumor_surface_dice", "tumor_msd_mm", "msd_mm", "tumor_dice", "dice")
    known = [m for m in wanted if m in cases]
    return paired(
        cases,
        before,
        after,
        known[:3] or [c for c in cases.columns if c not in ("stage", "case", "patient")][:3],
        title or "boundary relabelling",
    )


def timings(seconds: dict, title: str = "") -> Figure:
    """How long each stage took, in seconds."""
    figure = Picture(7, 1.2 + 0.35 * max(2, len(seconds)))
    ax = figure.subplots()
    names = list(seconds)[::-1]
    ax.barh(names, [seconds[n] for n in names], color=[stage_colour(n) for n in names])
    for at, name in enumerate(names):
        ax.text(seconds[name], at, f" {seconds[name]:.1f} s", va="center", fontsize=8)
    ax.set_xlabel("seconds")
    ax.margins(x=0.15)
    figure.suptitle(title or f"timings ({sum(seconds.values()):.1f} s in all)", fontsize=11)
    return figure
