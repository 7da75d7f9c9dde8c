"""Descriptors under perturbation of image and mask: how far each can be trusted.

The paper STATES that the 20 features kept are stable. We CHOOSE the perturbations of Zwanenburg et al. 2019
(10.1038/s41598-018-36938-4): noise, sub-voxel translation, rotation, volume growth and shrinkage, contour
randomisation, and chains of them, in that order: rotate and shift, add noise, change the volume, randomise the contour.

Where we depart from it: grown or shed voxels are those that a blurred mask ranks first, not whole layers; the contour
is moved by a smooth random field (1 sd = `contour_mm`) instead of by supervoxels. Noise is white, its size the
image's own (median absolute value of the highest sub-band / 0.6745, Chang et al. 2000), measured in the liver when
that is known.

Each lesion is perturbed in its own box, all lesions of about one size at once. Seeds are fixed; a lesion that a
perturbation would empty keeps its mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.radiomics import engine, wavelet
from workbench.radiomics.catalogue import GROUPS, NAMES
from workbench.radiomics.ragged import (
    BATCH_VOXELS,
    Boxes,
    Found,
    blur,
    crop,
    find,
    groups_by_size,
    held,
    joined,
    margins,
)
from workbench.threads import side_by_side
from workbench.volume import Refused, Spacing

NOISE_VOXELS = 4_000_000  # rule: enough to know the noise to a thousandth
_SMOOTH_MM = 1.0  # blur of the mask that ranks voxels by their distance to the contour
_FIELD_MM = 3.0  # width of the smooth random field that moves the contour
_NEAR = 8  # voxels around a lesion's own box in which its contour may be drawn anew
_CLEAR = 4  # voxels along a box's faces that stay empty: the wavelet reads 3 beyond the region


@dataclass(frozen=True)
class Perturbation:
    """One change, or a chain of changes, of image and mask.

    `kind` is "systematic" (the same change for every lesion) or "random" (drawn anew for each). `noise` in units of the
    image's own, `shift` in voxels along z, y, x, `turn_deg` about the body's axis, `volume` the change as a share,
    `contour_mm` the standard deviation of the contour's displacement.
    """

    name: str
    kind: str
    noise: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: float = 0.0
    volume: float = 0.0
    contour_mm: float = 0.0

    def __post_init__(self):
        if self.kind not in ("systematic", "random"):
            raise Refused(f"perturbation {self.name}", repr(self.kind), "systematic or random")
        if not -0.9 <= self.volume <= 2:
            raise Refused(f"perturbation {self.name}", f"volume change {self.volume}", "between -0.9 and 2")


PERTURBATIONS = (  # empirical choices, of the size that Zwanenburg et al. use
    Perturbation("noise", "random", noise=1.0),
    Perturbation("contour", "random", contour_mm=0.5),
    Perturbation("contour_again", "random", contour_mm=0.5),
    Perturbation("chain", "random", noise=1.0, shift=(0.25, 0.25, 0.25), turn_deg=3.0, contour_mm=0.4),
    Perturbation("chain_again", "random", noise=1.0, shift=(-0.25, 0.25, -0.25), turn_deg=-3.0, contour_mm=0.4),
    Perturbation("shift", "systematic", shift=(0.25, 0.25, 0.25)),
    Perturbation("turn_left", "systematic", turn_deg=4.0),
    Perturbation("turn_right", "systematic", turn_deg=-4.0),
    Perturbation("grow", "systematic", volume=0.15),
    Perturbation("shrink", "systematic", volume=-0.15),
)


def describe_perturbed(
    image: Tensor,
    lesions: Tensor,
    spacing_mm: Spacing,
    liver: Tensor | None = None,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    groups: Collection[str] = tuple(GROUPS),
) -> np.ndarray:
    """Descriptors `[perturbation lesion 728]` float64; lesions in ascending order of label, as `describe` has them;
    NaN in groups that were not asked for."""
    found = find(lesions)
    out = np.full((len(perturbations), found.labels.numel(), len(NAMES)), np.nan)
    sd = noise_hu(image, liver) if any(p.noise for p in perturbations) else 0.0
    extent = found.high - found.low + 1
    more = _room(perturbations, extent, spacing_mm)
    margin = tuple(a + b for a, b in zip(margins(spacing_mm), more))
    done, whole = 0, out.shape[0] * out.shape[1]
    at_once = 2 * BATCH_VOXELS[image.device.type]
    batches = list(groups_by_size(extent, margin, at_once))
    boxes = [crop(image, lesions, liver, spacing_mm, found, index, common, more) for index, common in batches]
    items = []
    for number in reversed(range(len(batches))):  # as many copies in one batch as fit
        share = max(1, min(len(perturbations), at_once // boxes[number].hu.numel()))
        items += [(number, range(k, min(k + share, len(perturbations)))) for k in range(0, len(perturbations), share)]

    def work(item: tuple[int, range], tell: Callable) -> None:
        number, some = item
        index = batches[number][0]
        draws = [Draw.of(found, index, margin, (seed, k), spacing_mm) for k in some]
        copies = [perturb(boxes[number], perturbations[k], sd, draw) for k, draw in zip(some, draws)]
        values, _ = engine.describe(joined(copies), groups=groups)
        out[some.start : some.stop, index] = values.cpu().numpy().reshape(len(some), len(index), -1)
        tell(perturbations[some[-1]].name, len(index) * len(some))

    def tell(name: str, count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(name, done, whole)

    side_by_side(work, items, tell, image.device)
    return out


def _room(perturbations: Sequence[Perturbation], extent: Tensor, spacing_mm: Spacing) -> tuple[int, int, int]:
    """Voxels that a region may grow beyond its box, per axis; its corner moves by half its length when turned."""
    longest = extent.amax(0).tolist() if extent.numel() else [1, 1, 1]
    room = []
    for axis, (s, n) in enumerate(zip(spacing_mm, longest)):
        turn = max((abs(math.sin(math.radians(p.turn_deg))) for p in perturbations), default=0.0) if axis else 0.0
        size = max(a * b for a, b in zip(longest, spacing_mm)) / 2
        grow = max((abs(p.volume) for p in perturbations), default=0.0) * n / 3
        contour = 3 * max((p.contour_mm for p in perturbations), default=0.0) / s
        room.append(2 + math.ceil(min(n, turn * size / s) + min(grow, 4) + min(contour, 4)))
    return tuple(room)


def noise_hu(image: Tensor, liver: Tensor | None = None) -> float:
    """Standard deviation of the image's white noise in HU, from the highest sub-band (of a large volume's middle)."""
    across = max(NOISE_VOXELS // math.prod(image.shape[1:]), 16)
    first = max(0, (image.shape[0] - across) // 2)
    middle = slice(first, first + across)
    image, liver = image[middle], None if liver is None else liver[middle]
    band = image.float()
    for axis in range(3):
        if image.shape[axis] <= wavelet.BEFORE + wavelet.AFTER:
            return 0.0
        band = wavelet.filtered(band, wavelet.HIGH, axis)
    cut = tuple(slice(wavelet.BEFORE, n - wavelet.AFTER) for n in image.shape)
    if liver is not None and bool((liver[cut] != 0).any()):
        band = band[liver[cut] != 0]
    else:
        tissue = (image[cut] > -200) & (image[cut] < 300)  # soft tissue: air and bone have edges, not noise
        band = band[tissue] if bool(tissue.any()) else band.flatten()
    return float(band.abs().median()) / 0.6745


@dataclass(frozen=True)
class Draw:
    """Random numbers of each lesion that depend on the lesion alone: not on its neighbours, its batch or the device.

    `seeds` `[l]`; the lesions' own boxes begin at `start` in the common box and measure `extent` `[l][3]` voxels.
    """

    seeds: Sequence[int]
    start: Sequence[int]
    extent: Sequence[Sequence[int]]
    spacing_mm: Spacing

    @staticmethod
    def of(found: Found, index: Sequence[int], start: Sequence[int], key: Sequence[int], spacing_mm: Spacing) -> Draw:
        """For the lesions `index` of `found`: seeds from `key` and from where and how large each lesion is."""
        low, high = (v[index].tolist() for v in (found.low, found.high))
        seeds = [_seed((*key, *a, *b)) for a, b in zip(low, high)]
        return Draw(seeds, start, [[n - m + 1 for m, n in zip(a, b)] for a, b in zip(low, high)], spacing_mm)

    def white(self, like: Tensor) -> Tensor:
        """White noise, sd 1, around each lesion in boxes `[l z y x]`; 0 further away than any descriptor reads."""
        return self._fields(like, [m + _NEAR for m in margins(self.spacing_mm)], 0, lambda field: field)

    def smooth(self, like: Tensor, blur_mm: float) -> Tensor:
        """The same noise blurred to a smooth field, sd 1."""
        shares = [torch.exp(-0.5 * (torch.arange(-60, 61) / (max(blur_mm, s) / s)) ** 2) for s in self.spacing_mm]
        sd = math.prod(float((w / w.sum()).square().sum().sqrt()) for w in shares)
        return self._fields(like, [_NEAR] * 3, 1, lambda field: blur(field[None], self.spacing_mm, blur_mm)[0] / sd)

    def _fields(self, like: Tensor, reach: Sequence[int], more: int, made: Callable[[Tensor], Tensor]) -> Tensor:
        out = torch.zeros(like.shape, dtype=torch.float32)
        for one, seed, extent in zip(out, self.seeds, self.extent):
            draw = torch.Generator().manual_seed(seed + more)
            field = made(torch.randn([n + 2 * r for n, r in zip(extent, reach)], generator=draw))
            first = [s - r for s, r in zip(self.start, reach)]
            inside = [slice(max(0, f), min(n, f + m)) for f, n, m in zip(first, one.shape, field.shape)]
            one[tuple(inside)] = field[tuple(slice(s.start - f, s.stop - f) for s, f in zip(inside, first))]
        return out.to(like)


def _seed(numbers: Sequence[int]) -> int:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**62 - 57)
    return seed


def perturb(boxes: Boxes, change: Perturbation, noise_sd: float, draw: Draw) -> Boxes:
    """The same lesions with image and mask changed."""
    hu, region, seen, liver = boxes.hu, boxes.region, boxes.seen, boxes.liver
    if change.turn_deg or any(change.shift):
        grid, up = _grid(boxes, change), change.shift[0]
        seen = _sampled(seen, grid, up, "nearest") > 0.5
        liver = None if liver is None else _sampled(liver, grid, up, "nearest") > 0.5
        region = _kept((_sampled(region, grid, up) >= 0.5) & seen, region)
        hu = _sampled(hu, grid, up).to(hu.dtype)
    if change.noise and noise_sd:
        hu = hu + change.noise * noise_sd * draw.white(hu)
    if change.volume:
        region = _kept(_resized(region, seen, boxes.spacing_mm, change.volume), region)
    if change.contour_mm:
        region = _kept(
            _moved(region, boxes.spacing_mm, change.contour_mm * draw.smooth(region.float(), _FIELD_MM)) & seen, region
        )
    return Boxes(hu, region, seen, liver, boxes.spacing_mm)


def _kept(region: Tensor, before: Tensor) -> Tensor:
    """The new region without the box's rim, or the old one where nothing is left."""
    clear = torch.zeros_like(region)
    rim = slice(_CLEAR, -_CLEAR)
    clear[:, rim, rim, rim] = region[:, rim, rim, rim]
    some = clear.flatten(1).any(1)
    return torch.where(some[:, None, None, None], clear, before)


def _grid(boxes: Boxes, change: Perturbation) -> Tensor:
    """Where each column of the changed box lies in the old one, turned about its centroid and shifted, `[l y x 2]`.

    In the units of `grid_sample`: x, y, from -1 to 1. Columns stay upright: the turn is about the body's axis.
    """
    _, _, y, x = boxes.hu.shape
    device, (_, mm_y, mm_x) = boxes.hu.device, boxes.spacing_mm
    voxels = boxes.voxels
    centre = torch.zeros((boxes.count, 3), device=device).index_add(0, voxels.lesion, voxels.zyx.float())
    centre = centre / voxels.count[:, None]
    turn = math.radians(change.turn_deg)
    b = (torch.arange(y, device=device) - centre[:, 1, None])[:, :, None] * mm_y
    a = (torch.arange(x, device=device) - centre[:, 2, None])[:, None, :] * mm_x
    at_y = (math.cos(turn) * b - math.sin(turn) * a) / mm_y + centre[:, 1, None, None] + change.shift[1]
    at_x = (math.cos(turn) * a + math.sin(turn) * b) / mm_x + centre[:, 2, None, None] + change.shift[2]
    return torch.stack([2 * at_x / (x - 1) - 1, 2 * at_y / (y - 1) - 1], -1)


def _sampled(values: Tensor, grid: Tensor, up: float, mode: str = "bilinear") -> Tensor:
    """`values` `[l z y x]` at the columns of `grid` and `up` voxels further along z, linear or nearest, float32."""
    out = torch.nn.functional.grid_sample(values.float(), grid, mode, "border", align_corners=True)
    if mode == "nearest":
        up = float(round(up))
    low = math.floor(up)
    z = torch.arange(values.shape[1], device=values.device) + low
    below, above = (out[:, k.clamp(0, values.shape[1] - 1)] for k in (z, z + 1))
    return below if up == low else below.lerp(above, up - low)


def _around(region: Tensor) -> tuple[slice, ...]:
    """The part of the boxes in which a contour can move."""
    cuts = (slice(max(0, s.start - _CLEAR), s.stop + _CLEAR) for s in held(region))
    return (slice(None), *cuts)


def _resized(region: Tensor, seen: Tensor, spacing_mm: Spacing, share: float) -> Tensor:
    """Add (or take) the voxels next to the contour that the blurred region ranks first: volume changes by a share."""
    cut = _around(region)
    own, out = region[cut], region.clone()
    rank, inside = blur(own.float(), spacing_mm, _SMOOTH_MM).flatten(1), own.flatten(1)
    change = (inside.sum(1) * abs(share)).round().long()
    rank = torch.where(inside | ~seen[cut].flatten(1), -1.0, rank) if share > 0 else torch.where(inside, -rank, -2.0)
    if share > 0:
        change = torch.minimum(change, (rank >= 0).sum(1))  # no more than there is room for in the volume
    order = rank.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(inside.shape[1], device=inside.device) < change[:, None]
    out[cut] = (inside ^ torch.zeros_like(inside).scatter(1, order, first)).view_as(own)
    return out


def _moved(region: Tensor, spacing_mm: Spacing, field_mm: Tensor) -> Tensor:
    """Move the contour by a field of distances `[l z y x]`, outwards where it is positive."""
    cut = _around(region)
    own, out = region[cut], region.clone()
    sigma = max(_SMOOTH_MM, *spacing_mm)
    depth = sigma * torch.special.ndtri(blur(own.float(), spacing_mm, _SMOOTH_MM).clamp(0.001, 0.999))
    # a blurred small region is below one half at its own edge: the level that holds its volume is its contour
    rank = own[0].numel() - own.flatten(1).sum(1)
    level = torch.stack([one.flatten().kthvalue(k).values for one, k in zip(depth, rank.tolist())])
    depth = depth - level[:, None, None, None]
    depth = torch.where(own, depth.clamp_min(0.05), depth.clamp_max(-0.05))  # mm inside; the mask itself without a move
    out[cut] = torch.where(depth.abs() < 2 * sigma, depth + field_mm[cut] > 0, own)
    return out
