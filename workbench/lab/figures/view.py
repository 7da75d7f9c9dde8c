"""One plane of a volume, drawn in mm, and the legends of what is drawn over it."""

import math

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.lab.figures.style import (
    DASHED,
    GREY,
    LEDGER_COLOURS,
    LIVER_COLOUR,
    PROBABILITY_MAPS,
    TRUTH_COLOUR,
    TUMOR_COLOUR,
    as_array,
    limits,
    meanings_of,
)

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


class View:
    """One slice plane of a grid: which voxel pitch runs down and across, and where pictures of it lie in mm."""

    def __init__(self, shape, spacing_mm, plane: str = "axial", at: int | None = None):
        axis = AXES[plane]
        at = shape[axis] // 2 if at is None else at
        if not 0 <= at < shape[axis]:
            raise IndexError(f"{plane} slice {at} of {shape[axis]}")
        self.plane, self.at, self.at_mm, self.spacing_mm = plane, at, at * spacing_mm[axis], spacing_mm
        self.axes = down, across = tuple(a for a in range(3) if a != axis)
        self.down, self.across = spacing_mm[down], spacing_mm[across]
        self.origin = "upper" if plane == "axial" else "lower"
        left, right = -self.across / 2, (shape[across] - 0.5) * self.across
        low, high = -self.down / 2, (shape[down] - 0.5) * self.down
        self.extent = (left, right, high, low) if plane == "axial" else (left, right, low, high)

    def cut(self, a) -> np.ndarray:
        """The plane of a volume `[z y x]`, `[down across]`."""
        return np.asarray(a[(slice(None),) * AXES[self.plane] + (self.at,)])

    def show(self, ax, cut, **kwargs):
        """A picture `[down across]` in its place."""
        return ax.imshow(cut, extent=self.extent, origin=self.origin, interpolation="nearest", **kwargs)

    def ct(self, ax, ct, window):
        low, high = limits(window)
        image = self.show(ax, self.cut(ct), cmap="gray", vmin=low, vmax=high)
        ax.set_xlabel(_SIDES[self.plane][0], fontsize=8)
        ax.set_ylabel(_SIDES[self.plane][1], fontsize=8)
        ax.tick_params(labelsize=7)
        return image

    def probability(self, ax, p, which: str):
        """A probability map, 0 to 1, in the colour of its part."""
        return self.show(ax, self.cut(p).astype(np.float32), cmap=PROBABILITY_MAPS[which], vmin=0, vmax=1)

    def contour(self, ax, mask, colour, style="solid", width=1.4):
        cut = self.cut(mask)
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
        cut = self.cut(mask).astype(bool)
        rgba = np.zeros((*cut.shape, 4), np.float32)
        r, g, b, own = to_rgba(colour)
        rgba[cut] = (r, g, b, own * alpha)
        self.show(ax, rgba)

    def ledger(self, ax, codes):
        """Which stage decided each voxel, in the ledger's colours; the liver's as a contour."""
        for code in np.unique(self.cut(codes)):
            if int(code) == 1:
                self.contour(ax, codes >= 1, LEDGER_COLOURS[1], width=1)
            elif int(code) > 1:
                self.fill(ax, codes == code, LEDGER_COLOURS.get(int(code), GREY), 0.8)

    def zoom(self, ax, box=None):
        """Show only a box `[z y x]` of the grid; all of it without one."""
        if box is None:
            ax.set(xlim=self.extent[:2], ylim=self.extent[2:])
            return
        down, across = box[self.axes[0]], box[self.axes[1]]
        low, high = (down.start - 0.5) * self.down, (down.stop - 0.5) * self.down
        ax.set_xlim((across.start - 0.5) * self.across, (across.stop - 0.5) * self.across)
        ax.set_ylim(*((high, low) if self.plane == "axial" else (low, high)))

    def title(self, of: str = "") -> str:
        """Which slice this is, and `of` what."""
        return f"{of}: " * bool(of) + f"{self.plane} slice {self.at} ({self.at_mm:.0f} mm)"


def label_legend(labels, truth=None) -> list[Artist]:
    handles: list[Artist] = []
    for of, colour, style, words in ((labels, TUMOR_COLOUR, "-", ""), (truth, TRUTH_COLOUR, "--", ", reference")):
        if of is not None:
            handles.append(Line2D([], [], color=LIVER_COLOUR, ls=style, label=f"liver{words}"))
            if (of == 2).any():
                handles.append(Line2D([], [], color=colour, ls=style, label=f"tumor{words}"))
    return handles


def ledger_legend(codes: np.ndarray, spacing_mm, meanings: dict | None = None) -> list[Artist]:
    """The codes that occur, with ml."""
    known, ml = meanings_of(meanings), math.prod(spacing_mm) / 1000
    return [
        Patch(
            facecolor=LEDGER_COLOURS.get(int(v), GREY),
            edgecolor="#444444",
            lw=0.5,
            label=f"{v} {known.get(int(v), 'unknown')} ({n * ml:{'.0f' if n * ml >= 1000 else '.3g'}} ml)",
        )
        for v, n in zip(*np.unique(codes, return_counts=True))
        if v > 0
    ]
