"""Implants: made-up tumors in the liver of any CT, with that liver's own grain.

States (SynTumor, Hu et al., CVPR 2023, and its public code): ellipsoids of four fixed sizes, bent elastically, at random
places of the liver; 65 to 145 HU times a blurred speckle texture are subtracted, the edge is a Gaussian over 1 to 2 voxels.
Chooses: the lesions of the phantom (lobed, in mm, with rim, core and edge of their kind; size log-uniform), painted on
sub-slices, so that thick slices have their partial volume. They *replace* the tissue: HU count from the liver's median, and
the noise is drawn anew from the autocorrelation measured in the same liver, at the strength it has around the lesion.
A capsule voxel changes only by its share of liver. Vessels are what is brighter than the liver's median by a robust
threshold after slight smoothing; a place is sought away from them, and no such voxel is changed. Dark vessels are not seen.
Mass effect, where wanted, moves the smooth part of the liver, vessels too, and leaves its noise in place.

Randomness: one CPU generator, the same on every device. HU and lengths of the kinds are choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from scipy import ndimage
from torch import Tensor

from workbench.data.phantom.lesions import Lesion, budding, form
from workbench.data.phantom.scanner import blur_weights
from workbench.data.phantom.shapes import Draw
from workbench.masks import bounding_box, components
from workbench.volume import Box, Refused, Spacing, three

SMOOTH_MM = 1.0  # a choice: smoothing before vessels are told from noise
BRIGHT = 2.5  # a choice: sd of the smoothed liver above which a voxel is a vessel
VESSEL_MM3 = 40.0  # a choice: smaller bright pieces are noise
TREND_MM = 5.0  # a choice: what is smoother than this in the plane is no noise
GRAIN_MM = (4.0, 6.0, 6.0)  # a choice: how far noise is alike
WINDOW_MM = (40.0, 100.0, 100.0)  # a choice: where the noise is measured
COARSE_MM = 2.5  # a choice: the grid on which places are sought
SUB_SLICE_MM = 1.5  # a choice: thickness over which partial volume in z is averaged
EDGE_MM = 2.2  # a choice: what a soft reconstruction kernel (sd .65 mm) makes of a sharp edge
PUSH = 0.3  # a choice: mass effect at the lesion's surface, in radii; it ends at 2.5 radii
FAT_HU = -100.0  # a choice: what a capsule voxel holds beside liver


@dataclass(frozen=True)
class Kind:
    """How a kind of lesion looks: ranges in mm and HU; HU count from the liver's median, `level_hu` from water."""

    diameter_mm: tuple[float, float]
    contrast_hu: tuple[float, float] = (0.0, 0.0)
    level_hu: tuple[float, float] | None = None
    rim_hu: tuple[float, float] | None = None
    core_hu: tuple[float, float] = (0.0, 0.0)
    soft_mm: tuple[float, float] = (0.3, 1.4)
    mottle_hu: tuple[float, float] = (2.0, 5.0)


IMPLANTS = {
    "metastasis": Kind((8, 40), (-60, -22), core_hu=(-14, 0)),
    "rim-enhancing": Kind((10, 45), (-65, -30), rim_hu=(-6, 18), core_hu=(-20, -4)),
    "hypervascular": Kind((8, 45), (18, 50), core_hu=(-25, 0), mottle_hu=(7, 14)),
    "cyst": Kind((5, 40), level_hu=(2, 18), soft_mm=(0.0, 0.6), mottle_hu=(0, 1)),
    "tiny": Kind((3, 8), (-65, -28)),
    "necrotic": Kind((35, 70), (-48, -20), rim_hu=(-10, 10), core_hu=(-42, -18), mottle_hu=(4, 8)),
    "infiltrative": Kind((16, 50), (-45, -20), soft_mm=(3.0, 5.5), mottle_hu=(4, 9)),
}


@dataclass(frozen=True)
class Implanted:
    """A CT `[z y x]` with made-up tumors, its labels, and a row a tumor (columns as those of a phantom's lesions)."""

    hu: Tensor
    labels: Tensor
    lesions: pd.DataFrame


COLUMNS = (
    "lesion", "kind", "volume_ml", "diameter_mm", "z_mm", "y_mm", "x_mm", "contrast_hu", "at_capsule", "at_vessel",
)  # fmt: skip


def implant(
    hu: Shaped[Tensor, "z y x"],
    labels: Shaped[Tensor, "_ _ _"],
    spacing_mm: Spacing,
    seed: int,
    count: tuple[int, int] = (1, 4),
    kinds: Sequence[str] = tuple(IMPLANTS),
    mass_effect: bool = False,
) -> Implanted:
    """Draw tumors into the liver (label 1) of a CT; what is labelled otherwise keeps its HU bit for bit.

    hu: HU `[z y x]` of any dtype, which is kept. labels: 0, 1 liver, 2 tumor, uint8. Of `count` (least, most) tumors as many are
    drawn as find room. The same seed gives the same tumors. Raises Refused where there is no liver or no room at all.
    """
    _judge(hu, labels, spacing_mm, seed, count, kinds)
    box = bounding_box(labels == 1, spacing_mm, 0)
    if box is None:
        raise Refused("the labels", "no voxel of liver (label 1)", "a liver to draw tumors into")
    d = Draw(seed)
    before = hu[box].float()
    liver = _Liver(before.clone(), labels[box].clone(), spacing_mm)
    rows: list[dict] = []
    for _ in range(d.integer(*count)):
        row = _one(d, liver, kinds[d.integer(0, len(kinds) - 1)], mass_effect)
        if row is not None:
            rows.append({"lesion": len(rows) + 1, **row})
    if count[0] and not rows:
        raise Refused(
            "the liver", "no room for a tumor of " + ", ".join(kinds), "free liver away from vessels and tumors",
            "Choose smaller kinds, or a whole liver.",
        )  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS)
    for axis, name in enumerate(("z_mm", "y_mm", "x_mm")):
        table[name] += box[axis].start * spacing_mm[axis]
    new = liver.hu.clamp(float(hu.min()), float(hu.max()))
    new = new if hu.is_floating_point() else new.round()
    out_hu, out_labels = hu.clone(), labels.clone()
    out_hu[box] = torch.where((labels[box] == 1) & (liver.hu != before), new.to(hu.dtype), hu[box])
    out_labels[box] = liver.labels
    return Implanted(out_hu, out_labels, table)


def _judge(hu: Tensor, labels: Tensor, spacing_mm: Spacing, seed: int, count, kinds: Sequence[str]) -> None:
    if hu.ndim != 3 or hu.shape != labels.shape:
        raise Refused("CT and labels", f"{tuple(hu.shape)} and {tuple(labels.shape)}", "one grid [z y x]")
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm) or len(spacing_mm) != 3:
        raise Refused("the spacing", f"{tuple(spacing_mm)} mm", "three positive lengths")
    if not bool(torch.isfinite(hu).all()):
        raise Refused("the CT", "voxels that are no numbers", "HU", "Fill them first.")
    if labels.dtype != torch.uint8 or int(labels.max()) > 2:
        raise Refused("the labels", f"{labels.dtype} up to {labels.max().item()}", "uint8: 0, 1 liver, 2 tumor")
    if seed < 0:
        raise Refused("the seed", str(seed), "a whole number from 0")
    if len(count) != 2 or not 0 <= count[0] <= count[1] or count[1] < 1:
        raise Refused("count", str(tuple(count)), "the least and the most tumors, as 1 4")
    unknown = [k for k in kinds if k not in IMPLANTS]
    if unknown or not kinds:
        raise Refused("kinds", ", ".join(unknown) or "none", "some of " + ", ".join(IMPLANTS))


class _Liver:
    """The box of a liver: what is known of it, and what has been drawn so far."""

    def __init__(self, hu: Tensor, labels: Tensor, spacing_mm: Spacing):
        self.hu, self.labels, self.spacing_mm = hu, labels, spacing_mm
        tissue = labels == 1
        self.fine = _smooth(hu, tissue, (SMOOTH_MM,) * 3, spacing_mm)
        low, self.median, high = _quantiles(self.fine[tissue])
        self.sd = min(self.median - low, high - self.median)  # the side without vessels, or without dark lesions
        self.vessel = _large(tissue & (self.fine > self.median + BRIGHT * self.sd), spacing_mm)
        self.plain = tissue & ((self.fine - self.median).abs() < BRIGHT * self.sd)
        self.grain = _Grain.measured(self)
        self._survey()

    def _survey(self) -> None:
        """Distances in mm on a coarse grid: to the nearest vessel, to the liver's edge, to the nearest tumor."""
        self.steps = [min(n, max(1, round(COARSE_MM / s))) for n, s in zip(self.hu.shape, self.spacing_mm)]
        cell = [k * s for k, s in zip(self.steps, self.spacing_mm)]

        def coarse(mask: Tensor) -> np.ndarray:
            return F.max_pool3d(mask[None].float(), self.steps)[0].cpu().numpy() > 0

        middle = tuple(slice(k // 2, k * (n // k), k) for k, n in zip(self.steps, self.hu.shape))
        self.inside = (self.labels[middle] == 1).cpu().numpy()
        self.to_edge = _distance(self.labels[middle].cpu().numpy() == 0, cell)
        self.to_vessel = _distance(coarse(self.vessel), cell)
        self.to_tumor = _distance(coarse(self.labels == 2), cell)

    def place(self, d: Draw, r: float, at_capsule: bool) -> tuple[tuple[float, ...], float] | None:
        """A random point (mm) for a ball of radius `r`, as far from vessels as can be had, and how far; None without room."""
        free = self.inside & (self.to_tumor >= 1.3 * r + 3)
        cut = free & (self.to_edge >= 0.3 * r) & (self.to_edge <= 0.8 * r)
        free = cut if at_capsule and cut.any() else free & (self.to_edge >= r + 1)
        for share in (1.0, 0.7, 0.4):
            at = np.argwhere(free & (self.to_vessel >= share * r + 1))
            if len(at):
                cell = at[d.integer(0, len(at) - 1)]
                point = tuple(
                    float((c + d.uniform(0.25, 0.75)) * k * s - s / 2)
                    for c, k, s in zip(cell, self.steps, self.spacing_mm)
                )
                return point, float(self.to_vessel[tuple(cell)])
        return None

    def occupy(self, point: Sequence[float], r: float) -> None:
        axes = [
            (np.arange(n) + 0.5) * k * s - s / 2 - p
            for n, k, s, p in zip(self.inside.shape, self.steps, self.spacing_mm, point)
        ]
        away = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2] ** 2) - r
        self.to_tumor = np.minimum(self.to_tumor, away)

    def at(self, field: np.ndarray, box: Box) -> Tensor:
        """A coarse field, linearly, on the voxels of a box."""
        like = self.hu
        axes = []
        for s, k, n in zip(box, self.steps, field.shape):
            at = (torch.arange(s.start, s.stop, device=like.device) + 0.5) / (k * n) * 2 - 1
            axes.append(at)
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
        values = torch.from_numpy(np.asarray(field, np.float32)).to(like.device)[None, None]
        return F.grid_sample(values, grid, padding_mode="border", align_corners=False)[0, 0]


def _smooth(image: Tensor, mask: Tensor, sd_mm: Spacing, spacing_mm: Spacing) -> Tensor:
    """Gaussian mean over the masked voxels `[z y x]`, as matrix products; 0 far from all of them."""

    down, back, left = (
        torch.where(
            (w := blur_weights(n, max(sd / s, 0.1), image.device)) < 1e-6, 0, w
        )  # products of denormals are slow
        for n, sd, s in zip(image.shape, sd_mm, spacing_mm)
    )

    def blur(a: Tensor) -> Tensor:
        return (down @ ((back @ a) @ left.T).flatten(1)).view(a.shape)

    weight = mask.float()
    return blur(image * weight) / blur(weight).clamp_min(1e-4)


def _quantiles(values: Tensor) -> list[float]:
    """About the 16th, 50th and 84th percentile: one sd to both sides of the median."""
    some = values[:: max(1, len(values) // 200_000)].sort().values
    return [float(some[int(q * (len(some) - 1))]) for q in (0.16, 0.5, 0.84)]


def _large(mask: Tensor, spacing_mm: Spacing) -> Tensor:
    """The pieces of a mask that are no specks."""
    pieces, _ = components(mask)
    size = np.bincount(pieces.ravel()) * math.prod(spacing_mm)
    size[0] = 0
    return torch.from_numpy((size >= VESSEL_MM3)[pieces]).to(mask.device)


def _distance(there: np.ndarray, cell_mm: Sequence[float]) -> np.ndarray:
    """Distance in mm from `there`; far where there is nothing."""
    return ndimage.distance_transform_edt(~there, cell_mm) if there.any() else np.full(there.shape, 1e3)


@dataclass(frozen=True)
class _Grain:
    """Noise by its autocorrelation at lags -reach..reach along each axis, HU squared `[z y x]`."""

    lags: Tensor
    sd: float

    @staticmethod
    def measured(liver: _Liver) -> _Grain:
        """From the plain parenchyma in a window about the liver's middle."""
        plain, spacing_mm = liver.plain, liver.spacing_mm
        window = []
        for axis, (mm, s) in enumerate(zip(WINDOW_MM, spacing_mm)):
            along = plain.sum(dim=[a for a in range(3) if a != axis]).cumsum(0)
            middle, half = int((along < along[-1] / 2).sum()), math.ceil(mm / s / 2)
            window.append(slice(max(0, middle - half), middle + half + 1))
        hu, mask = liver.hu[tuple(window)], plain[tuple(window)]
        if int(mask.sum()) < 200:
            raise Refused("the liver", f"{int(mask.sum())} voxels of plain tissue", "200 or more, to measure its noise")
        rest = (hu - _smooth(hu, mask, (0, TREND_MM, TREND_MM), spacing_mm)) * mask
        reach = [min(n - 1, max(1, math.ceil(mm / s))) for mm, s, n in zip(GRAIN_MM, spacing_mm, hu.shape)]
        size = [n + k for n, k in zip(hu.shape, reach)]
        sums, pairs = (
            torch.fft.irfftn(torch.fft.rfftn(a, size).abs().square(), size) for a in (rest, mask.to(rest.dtype))
        )
        lags = torch.where(pairs > 50, sums / pairs.clamp_min(1), 0)
        for axis, k in enumerate(reach):
            lag = torch.arange(-k, k + 1, device=hu.device)
            fade = (2 - 2 * lag.abs() / (k + 1)).clamp(max=1)
            lags = lags.index_select(axis, lag % size[axis]) * fade.view([-1 if a == axis else 1 for a in range(3)])
        return _Grain(lags, float(lags[tuple(reach)].sqrt()))

    def draw(self, d: Draw, shape: Sequence[int]) -> Tensor:
        """Noise `[z y x]` of unit sd with this autocorrelation (its spectrum, made positive, on white noise)."""
        size = [max(n, k) for n, k in zip(shape, self.lags.shape)]
        kernel = torch.zeros(size, device=self.lags.device)
        kernel[tuple(slice(0, k) for k in self.lags.shape)] = self.lags
        kernel = kernel.roll([-(k // 2) for k in self.lags.shape], (0, 1, 2))
        power = torch.fft.fftn(kernel).real.clamp_min(0)
        white = torch.randn(size, generator=d.generator).to(kernel.device)
        noise = torch.fft.ifftn(torch.fft.fftn(white) * (power / power.mean()).sqrt()).real
        return noise[tuple(slice(0, n) for n in shape)]


def _one(d: Draw, liver: _Liver, name: str, mass_effect: bool) -> dict | None:
    """Find a place for one tumor and draw it; smaller where there is no room for it, None where there is none at all."""
    kind = IMPLANTS[name]
    low, high = kind.diameter_mm
    r = 0.5 * low * (high / low) ** d.uniform(0, 1)
    at_capsule = d.chance(0.25)
    while (found := liver.place(d, r, at_capsule)) is None:
        if r <= 0.5 * low:
            return None
        r = max(0.5 * low, 0.8 * r)
    point, vessel_mm = found
    lesion = _planned(d, name, point, r, liver.median, vessel_mm < r + 2)
    row = _draw_in(d, liver, lesion, mass_effect)
    liver.occupy(point, r)
    return row


def _planned(d: Draw, name: str, centre, r: float, base: float, at_vessel: bool) -> Lesion:
    kind = IMPLANTS[name]
    shape, outline, lobes = form(d, name, centre, r)
    contrast = d.uniform(*kind.contrast_hu)
    if kind.level_hu is not None:
        contrast = min(d.uniform(*kind.level_hu) - base, -12.0)
    if contrast < 0:
        contrast = max(contrast, min(-12.0, -base))  # not darker than water, not the liver's own HU
    rim_hu, rim_mm = 0.0, 0.0
    if kind.rim_hu is not None:
        rim_hu, rim_mm = d.uniform(*kind.rim_hu), min(d.uniform(1.0, 2.5), 0.22 * r)
    core, soft, mottle = (d.uniform(*span) for span in (kind.core_hu, kind.soft_mm, kind.mottle_hu))
    buds = ()
    if name not in ("cyst", "tiny") and r > 7 and d.chance(0.4):
        shape, buds = budding(d, shape, r)
    return Lesion(name, shape, r, outline, lobes, contrast, rim_hu, rim_mm, soft, core, at_vessel, buds, mottle)


def _draw_in(d: Draw, liver: _Liver, lesion: Lesion, mass_effect: bool) -> dict:
    """Draw a lesion into the liver's HU and labels; its row of the table."""
    spacing_mm, device, r = liver.spacing_mm, liver.hu.device, lesion.reach_mm
    low, high = lesion.bounds()
    reach = max(0.0, 0.75 * r - 4) if mass_effect else 0.0
    box = three(
        slice(max(0, math.floor((a - reach) / s)), min(n, math.ceil((b + reach) / s) + 1))
        for a, b, s, n in zip(low, high, spacing_mm, liver.hu.shape)
    )
    z, y, x = (torch.arange(b.start, b.stop, device=device) * s for b, s in zip(box, spacing_mm))
    if mass_effect:
        _push(liver, lesion, box, (z, y, x))
    tissue = liver.labels[box] == 1
    may = tissue & ~liver.vessel[box]

    # what it looks like without noise, on sub-slices
    subs = max(1, round(spacing_mm[0] / SUB_SLICE_MM))
    at = (z[:, None] + ((torch.arange(subs, device=device) + 0.5) / subs - 0.5) * spacing_mm[0]).flatten()
    cell = max(2.5, 0.35 * r)
    mottle = d.smooth(cell, tuple(v - cell for v in low), tuple(v + cell for v in high)).at(at, y, x)[0]
    distance = lesion.sdf(at, y, x)
    width = math.hypot(EDGE_MM, spacing_mm[1], spacing_mm[0] / subs)
    cover = lesion.cover(distance, width, mottle)
    level = cover * lesion.hu(distance, liver.median, mottle)
    share = (0.5 - distance / (math.hypot(spacing_mm[1], spacing_mm[0] / subs) / math.sqrt(2))).clamp(0, 1)
    cover, level, share = (a.view(len(z), subs, len(y), len(x)).mean(1) for a in (cover, level, share))
    level = level / cover.clamp_min(1e-6)
    cover = torch.where(may & (cover > 0.02), cover, 0)
    share = torch.where(may, share, 0)

    # into the liver: replaced inside, by the share of liver at the capsule
    hu, plain = liver.hu[box], liver.plain[box]
    rim = tissue & (F.max_pool3d((liver.labels[box] == 0).float()[None], (1, 3, 3), 1, (0, 1, 1))[0] > 0)
    trend = torch.where(rim, liver.median, _smooth(hu, plain, (0, TREND_MM, TREND_MM), spacing_mm))
    of_liver = ((liver.fine[box] - FAT_HU) / (liver.median - FAT_HU)).clamp(0, 1)
    rest = hu - trend
    around = plain & ~rim
    sd = float(rest[around].square().mean().sqrt()) if int(around.sum()) >= 200 else liver.grain.sd
    new = torch.where(rim, 0, cover)  # how much of the noise is new; the variance stays
    noise = sd * liver.grain.draw(d, hu.shape)
    drawn = cover * torch.where(rim, of_liver, 1) * (level - trend)
    liver.hu[box] = torch.where(cover > 0, hu + drawn + ((1 - new.square()).sqrt() - 1) * rest + new * noise, hu)

    chosen = share >= 0.5
    if not bool(chosen.any()):
        chosen = (share == share.max()) & may
    liver.labels[box].masked_fill_(chosen, 2)
    liver.plain[box].logical_and_(~chosen)
    volume = float(share.double().sum()) * math.prod(spacing_mm) / 1000
    centre = [
        float((share.sum(dim=[b for b in range(3) if b != a]) * axis).sum() / share.sum())
        for a, axis in enumerate((z, y, x))
    ]
    return {
        "kind": lesion.kind,
        "volume_ml": volume,
        "diameter_mm": (6000 * volume / math.pi) ** (1 / 3),
        **dict(zip(("z_mm", "y_mm", "x_mm"), centre)),
        "contrast_hu": float(liver.hu[box][chosen].mean()) - liver.median,
        "at_capsule": bool((chosen & rim).any()),
        "at_vessel": lesion.at_vessel,
    }


def _push(liver: _Liver, lesion: Lesion, box: Box, axes: tuple[Tensor, Tensor, Tensor]) -> None:
    """Move what surrounds a lesion away from it, within the liver and clear of its edge and of other tumors.

    Only the smoothed image is moved, the noise stays: no interpolation changes its grain.
    """
    r, shape = lesion.reach_mm, [b.stop - b.start for b in box]
    rel = torch.stack(torch.meshgrid(*[a - c for a, c in zip(axes, lesion.shape.centre)], indexing="ij"))
    away = rel.norm(dim=0).clamp_min(1e-3)
    fall = ((2.5 - away / r) / 1.5).clamp(0, 1)
    room = liver.at(np.minimum(liver.to_edge, liver.to_tumor), box)
    shift = PUSH * r * fall * fall * (3 - 2 * fall) * (room / (0.6 * r)).clamp(0, 1)
    steps = torch.tensor(liver.spacing_mm, device=away.device).view(3, 1, 1, 1)
    source = torch.stack(torch.meshgrid(*[torch.arange(n, device=away.device) for n in shape], indexing="ij"))
    source = source - rel * (shift / away).clamp(max=1) / steps
    sizes = torch.tensor(shape, device=away.device).view(3, 1, 1, 1)
    grid = ((source + 0.5) / sizes * 2 - 1).flip(0).movedim(0, -1)[None]
    fields = torch.stack([liver.fine[box], liver.vessel[box].float(), liver.plain[box].float()])[None]
    fine, vessel, plain = F.grid_sample(fields, grid, padding_mode="border", align_corners=False)[0]
    tissue = liver.labels[box] == 1
    liver.hu[box] += torch.where(tissue, fine - liver.fine[box], 0)
    liver.fine[box] = torch.where(tissue, fine, liver.fine[box])
    liver.vessel[box] = tissue & (vessel > 0.5)
    liver.plain[box] = tissue & (plain > 0.5)
