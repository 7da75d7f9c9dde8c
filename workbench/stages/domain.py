"""What a scan is like, and whether a model has learned from scans like it.

Ours; the paper has none. A scan is measured on the work grid: liver, noise, spacing, extent, contrast phase, metal, and whether the liver is
cut. Each measure is compared with those of the training scans. A measure far outside them gives one warning in plain words.
The phase follows from the HU of aorta, liver and spleen, which are looked for beside the spine (*empirical*, docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from workbench.volume import Spacing, resample, shape_at

DOMAIN = "domain.csv"  # of the liver stage: the training scans, measured
GRID_MM = 3.0  # a choice: pixels on which organs are looked for
BONE_HU, METAL_HU = 200.0, 2500.0
METAL_ML = 0.3  # a choice: of voxels above METAL_HU, beside the liver
CUT_CM2 = 20.0  # a choice: liver on the outermost slice; the tip of a liver that is whole is smaller
# How far outside the training scans a measure may lie before a warning: (share of it, at least so much). Choices.
SLACK = {
    "liver_hu": (0.0, 20.0),
    "noise_hu": (0.5, 3.0),
    "slice_mm": (0.1, 0.25),
    "pixel_mm": (0.3, 0.2),
    "width_mm": (0.25, 30.0),
    "liver_ml": (0.3, 200.0),
}
UPWARDS = ("slice_mm", "pixel_mm")  # finer ones are averaged up to the work grid
WORDS = {
    "liver_hu": ("the liver's median is {:.0f} HU", "HU", "Contrast phase, fat or iron may be unlike."),
    "noise_hu": ("noise in the liver is {:.0f} HU", "HU", ""),
    "slice_mm": ("slices are {:.1f} mm apart", "mm", "Small lesions may be missed."),
    "pixel_mm": ("pixels are {:.2f} mm wide", "mm", ""),
    "width_mm": ("the body is {:.0f} mm wide", "mm", ""),
    "liver_ml": ("the liver has {:,.0f} ml", "ml", "Look at its contour."),
}
PHASES = ("without contrast", "arterial", "portal venous", "delayed")
PATIENTS = 3  # rule: from so many on, patients are what a scan is compared with, and no phantoms


@dataclass(frozen=True)
class Organs:
    """Median HU; NaN where nothing was found."""

    aorta: float
    liver: float
    spleen: float

    @property
    def phase(self) -> str:
        """One of PHASES; empty where the aorta was not found."""
        if math.isnan(self.aorta) or math.isnan(self.liver):
            return ""
        if self.aorta < 80 or (self.aorta < 135 and self.liver < 65):
            return PHASES[0]
        if self.aorta > 250:
            return PHASES[1]
        return PHASES[2] if self.aorta > 120 else PHASES[3]


def organs(hu: Tensor, liver: Tensor, spacing_mm: Spacing) -> Organs:
    """HU of aorta, liver and spleen of a scan `hu` [z y x] with its liver mask, canonical axes."""
    shape = shape_at((len(hu), hu.shape[1], hu.shape[2]), spacing_mm, (None, GRID_MM, GRID_MM))
    if not bool(liver.any()):
        return Organs(math.nan, math.nan, math.nan)
    level = float(hu[liver].float().median())
    slices = liver.flatten(1).any(1).nonzero().flatten().tolist()
    image = resample(hu.float(), shape).numpy()
    mask = (resample(liver.float(), shape) >= 0.5).numpy()
    step = max(1, round(6.0 / spacing_mm[0]))
    found = [_beside_spine(image[k], mask[k]) for k in range(slices[0], slices[-1] + 1, step)]
    aorta = [a for a, _ in found if not math.isnan(a)]
    upper = [s for _, s in found[len(found) // 2 :] if not math.isnan(s)]
    return Organs(float(np.median(aorta)) if aorta else math.nan, level, float(np.median(upper)) if upper else math.nan)


def _beside_spine(image: np.ndarray, liver: np.ndarray) -> tuple[float, float]:
    """HU of the aorta and of the spleen in a slice [y x] of pixels of GRID_MM."""
    nothing = (math.nan, math.nan)
    body, count = ndimage.label(ndimage.binary_opening(image > -300, iterations=2))
    if not count:
        return nothing
    body = ndimage.binary_fill_holes(body == 1 + np.bincount(body.ravel())[1:].argmax())
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    middle, depth = (columns[0] + columns[-1]) / 2, rows[-1] - rows[0]
    smooth = ndimage.uniform_filter(image, 3)
    bone, count = ndimage.label(smooth > BONE_HU)
    # the vertebra: the largest piece of bone in the middle of the back half
    best, size = None, 12
    for number, place in enumerate(ndimage.find_objects(bone), 1):
        y, x = ((s.start + s.stop) / 2 for s in place)
        n = int((bone[place] == number).sum())
        if abs(x - middle) < 0.12 * (columns[-1] - columns[0]) and y > rows[0] + 0.5 * depth and n > size:
            best, size = number, n
    if best is None:
        return nothing
    vertebra = np.pad(bone == best, 6)  # its inside is softer than BONE_HU
    vertebra = ndimage.binary_fill_holes(ndimage.binary_closing(vertebra, iterations=5))
    core = ndimage.binary_opening(vertebra, iterations=5)  # an aorta as bright as bone is not wide enough for it
    vertebra = (core if core.sum() > 40 else vertebra)[6:-6, 6:-6]
    front, centre = np.flatnonzero(vertebra.any(1))[0], np.flatnonzero(vertebra.any(0)).mean()
    near = ndimage.binary_dilation(vertebra, iterations=2)

    def window(y0: float, y1: float, x0: float, x1: float) -> np.ndarray:
        """Pixels of a window in mm from the vertebra's front and centre; x to the patient's left."""
        out = np.zeros(image.shape, bool)
        out[
            max(0, round(front + y0 / GRID_MM)) : max(0, round(front + y1 / GRID_MM)),
            max(0, round(centre + x0 / GRID_MM)) : max(0, round(centre + x1 / GRID_MM)),
        ] = True
        return out & body & ~near & ~liver

    ball = ndimage.uniform_filter(image, 3)  # 9 mm: smaller vessels do not fill it
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(image**2, 3) - ball**2, 0))
    there = window(-45, 8, -12, 38) & (spread < np.maximum(20, 0.12 * np.abs(ball))) & (ball > 0)
    aorta = float(np.sort(ball[there])[-4]) if there.sum() >= 4 else math.nan  # so many pixels an aorta has at least
    ball = ndimage.uniform_filter(image, 5)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(image**2, 5) - ball**2, 0))
    there = window(-20, 70, 45, 200) & (spread < 25) & (ball > 20) & (ball < 220)
    pieces, count = ndimage.label(there)
    if not count:
        return aorta, math.nan
    largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return aorta, float(np.median(ball[largest])) if largest.sum() > 30 else math.nan


def measure(hu: Tensor, liver: Tensor, spacing_mm: Spacing, own_mm: Spacing) -> dict:
    """The measures of a scan on the work grid: those of SLACK, phase, aorta_hu, spleen_hu, metal_ml, cut_cm2. own_mm: the scan's own spacing."""
    body = hu > -300
    inner = liver & (hu > -50) & (hu < 400)
    values = hu[inner].float()
    slices = liver.flatten(1).any(1)
    columns = body[slices].any(1).sum(1).float() if bool(slices.any()) else torch.zeros(1)
    found = organs(hu, liver, spacing_mm)
    area = spacing_mm[1] * spacing_mm[2] / 100
    ends = max(float(liver[k].sum()) * area for k in (0, -1))
    ml = math.prod(spacing_mm) / 1000
    return {
        "liver_hu": float(values.median()) if len(values) else math.nan,
        "noise_hu": _noise(hu, liver),
        "slice_mm": own_mm[0],
        "pixel_mm": own_mm[1],
        "width_mm": float(columns.median()) * spacing_mm[2],
        "liver_ml": float(liver.sum()) * ml,
        "phase": found.phase,
        "aorta_hu": found.aorta,
        "spleen_hu": found.spleen,
        "metal_ml": float((hu[slices] >= METAL_HU).sum()) * ml,
        "cut_cm2": ends,
    }


def _noise(hu: Tensor, liver: Tensor) -> float:
    """sd of the HU in the liver without what changes slowly: differences of neighbours in x, robust."""
    both = liver[..., 1:] & liver[..., :-1]
    apart = (hu[..., 1:].float() - hu[..., :-1].float())[both]
    return float(1.4826 * apart.abs().median() / math.sqrt(2)) if len(apart) else math.nan


def known(table: pd.DataFrame) -> pd.DataFrame:
    """Of the measured training scans those that a scan is compared with: patients, or phantoms where there are too few."""
    real = table[~table.phantom.astype(bool)]
    return real if real.patient.nunique() >= PATIENTS else table


def doubts(scan: Mapping, table: pd.DataFrame, whole: bool = True) -> list[str]:
    """A line for each measure of a scan that is unlike those of the training scans `table`. whole: the liver should be in view."""
    like, lines = known(table), []
    what = f"{like.patient.nunique()} {'phantoms' if like.phantom.astype(bool).all() else 'patients'}"
    for name, (share, least) in SLACK.items():
        low, high, value = like[name].min(), like[name].max(), scan[name]
        slack = max(share * high, least)
        low = -math.inf if name in UPWARDS else low
        if not math.isnan(value) and not math.isnan(high) and not low - slack <= value <= high + slack:
            said, unit, more = WORDS[name]
            lines.append(
                f"{said.format(value)}; the model learned from {like[name].min():.4g} to {high:.4g} {unit} ({what}). {more}".strip()
            )
    counts = like.groupby("phase").patient.nunique()
    if scan["phase"] in PHASES and len(counts) and counts.get(scan["phase"], 0) < 2:
        often = ", ".join(f"{n} {phase}" for phase, n in counts.sort_values(ascending=False).items() if phase)
        lines.append(
            f"the scan seems {scan['phase']} (aorta {scan['aorta_hu']:.0f}, liver {scan['liver_hu']:.0f} HU); "
            f"the model learned from {often or 'other phases'}. Expect more errors."
        )
    if scan["metal_ml"] > max(METAL_ML, like.metal_ml.max()):
        lines.append(f"metal beside the liver ({scan['metal_ml']:.1f} ml): streaks can look like lesions.")
    if whole and scan["cut_cm2"] > CUT_CM2:
        lines.append(
            f"the liver is cut by the scan's end ({scan['cut_cm2']:.0f} cm2 there): what lies beyond is unknown."
        )
    return lines
