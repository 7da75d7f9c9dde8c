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
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from workbench.data.threads import side_by_side
from workbench.stages.radiomics import engine, wavelet
from workbench.stages.radiomics.catalogue import NAMES
from workbench.stages.radiomics.ragged import (
    Boxes,
    Found,
    batch_voxels,
    blur,
    crop,
    find,
    groups_by_size,
    held,
    margins,
    with_room,
)
from workbench.volume import Refused, Spacing

NOISE_VOXELS = 4_000_000  # rule: enough to know the noise to a thousandth
_SMOOTH_MM = 1.0  # blur of the mask that ranks voxels by their distance to the contour
_FIELD_MM = 3.0  # width of the smooth random field that moves the contour
_NEAR = 8  # voxels around a lesion's own box in which its contour may be drawn anew
_CLEAR = 4  # voxels along a box's faces that stay empty: the wavelet reads 3 beyond the region


@dataclass(frozen=True)
class Perturbation:
    """One change, or a chain of changes, of image and mask.

    `kind` is "systematic" (the same change for every lesion) or "random" (noise and contour drawn anew for each; the chains' shift and turn are
    the same for every lesion, and what they do to all alike counts as disagreement in ICC(1,1)). `noise` in units of the
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


UNCHANGED = Perturbation("none", "systematic")


def describe_perturbed(
    image: Real[Tensor, "z y x"],
    lesions: Integer[Tensor, "z y x"],
    spacing_mm: Spacing,
    liver: Real[Tensor, "z y x"] | Bool[Tensor, "z y x"] | None = None,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    seed: int = 0,
    names: Collection[str] = NAMES,
) -> tuple[Float[np.ndarray, "perturbation lesion 728"], list[list[str]]]:
    """Descriptors in float64, NaN for names that were not asked for, and for each why others are
    NaN; lesions in ascending order of label, as `describe` has them. A perturbation's draws depend on its place in the list."""
    found = find(lesions)
    out = np.full((len(perturbations), found.labels.numel(), len(NAMES)), np.nan)
    reasons = [[""] * out.shape[1] for _ in perturbations]
    sd = noise_hu(image, liver) if any(p.noise for p in perturbations) else 0.0
    extent = found.high - found.low + 1
    more = _room(perturbations, extent, spacing_mm)
    z, y, x = (a + b for a, b in zip(margins(spacing_mm), more))
    margin = z, y, x
    at_once = 2 * batch_voxels(image.device)
    batches = list(groups_by_size(extent, margin, at_once))
    boxes = [crop(image, lesions, liver, spacing_mm, found, index, common, more) for index, common in batches]
    items, cores = [], torch.get_num_threads() if image.device.type == "cpu" else 1
    for number in reversed(range(len(batches))):  # as many copies in one batch as fit and leave work for each core
        share = math.ceil(len(perturbations) * len(batches) / cores)
        share = max(1, min(len(perturbations), share, at_once // boxes[number].hu.numel()))
        items += [(number, range(k, min(k + share, len(perturbations)))) for k in range(0, len(perturbations), share)]

    def work(item: tuple[int, range], tell: Callable[..., None]) -> None:
        number, some = item
        index = batches[number][0]
        own = found.some(index)
        draws = [Draw.of(own, margin, (seed, k), spacing_mm) for k in some]
        changes = perturbations[some.start : some.stop]
        values, words = with_room(
            lambda boxes: engine.describe(perturb(boxes, changes, sd, draws), names=names), boxes[number]
        )
        out[some.start : some.stop, index] = values.cpu().numpy().reshape(len(some), len(index), -1)
        for at, text in enumerate(words):
            reasons[some[at // len(index)]][index[at % len(index)]] = text
        tell()

    side_by_side(work, items, lambda: None, image.device)
    return out, reasons


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
    return room[0], room[1], room[2]


def noise_hu(image: Real[Tensor, "z y x"], liver: Real[Tensor, "z y x"] | Bool[Tensor, "z y x"] | None = None) -> float:
    """Standard deviation of the image's white noise in HU, from the highest sub-band (of a large volume's middle)."""
    across = max(NOISE_VOXELS // math.prod(image.shape[1:]), 16)
    first = max(0, (image.shape[0] - across) // 2)
    middle = slice(first, first + across)
    image, liver = image[middle], None if liver is None else liver[middle]
    band = image.float()
    for axis in range(3):
        if image.shape[axis] <= wavelet.BEFORE + wavelet.AFTER:
            return 0.0
        band = wavelet.filtered(band, "H", axis)[0]
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
    def of(found: Found, start: Sequence[int], key: Sequence[int], spacing_mm: Spacing) -> Draw:
        """For some lesions: seeds from `key` and from where and how large each is."""
        low, high = found.low.tolist(), found.high.tolist()
        seeds = [_seed((*key, *a, *b)) for a, b in zip(low, high)]
        return Draw(seeds, start, [[n - m + 1 for m, n in zip(a, b)] for a, b in zip(low, high)], spacing_mm)

    @staticmethod
    def joined(draws: Sequence[Draw]) -> Draw:
        """Those of several copies of the same boxes, one after the other."""
        seeds, extent = ([one for draw in draws for one in getattr(draw, what)] for what in ("seeds", "extent"))
        return replace(draws[0], seeds=seeds, extent=extent)

    def white(self, like: Float[Tensor, "l z y x"]) -> Float[Tensor, "l z y x"]:
        """White noise, sd 1, around each lesion in boxes; 0 further away than any descriptor reads."""
        reach = [m + _NEAR for m in margins(self.spacing_mm)]
        return self._placed(self._drawn(reach, 0).to(like), reach, like)

    def smooth(self, like: Float[Tensor, "l z y x"], blur_mm: float) -> Float[Tensor, "l z y x"]:
        """The same noise blurred to a smooth field, sd 1."""
        shares = [torch.exp(-0.5 * (torch.arange(-60, 61) / (max(blur_mm, s) / s)) ** 2) for s in self.spacing_mm]
        sd = math.prod(float((w / w.sum()).square().sum().sqrt()) for w in shares)
        reach = [_NEAR] * 3
        field = blur(self._drawn(reach, 1).to(like), self.spacing_mm, blur_mm) / sd
        size = torch.tensor(self.extent, device=like.device) + 2 * _NEAR
        for axis in (1, 2, 3):  # the blur reaches beyond what was drawn
            at = torch.arange(field.shape[axis], device=like.device) < size[:, axis - 1, None]
            field = field * at.view(len(at), *[n if a == axis else 1 for a, n in enumerate(field.shape)][1:])
        return self._placed(field, reach, like)

    def _drawn(self, reach: Sequence[int], more: int) -> Tensor:
        """White noise on each lesion's own box and `reach` voxels around it, filled up with 0 to a common size."""
        sizes = [[n + 2 * r for n, r in zip(extent, reach)] for extent in self.extent]
        out = torch.zeros((len(sizes), *(max(size) for size in zip(*sizes))))
        for one, seed, (z, y, x) in zip(out, self.seeds, sizes):
            one[:z, :y, :x] = torch.randn((z, y, x), generator=torch.Generator().manual_seed(seed + more))
        return out

    def _placed(self, field: Tensor, reach: Sequence[int], like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        first = [s - r for s, r in zip(self.start, reach)]
        inside = [slice(max(0, f), min(n, f + m)) for f, n, m in zip(first, like.shape[1:], field.shape[1:])]
        cut = [slice(s.start - f, s.stop - f) for s, f in zip(inside, first)]
        out[:, *inside] = field[:, *cut]
        return out


def _seed(numbers: Sequence[int]) -> int:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**62 - 57)
    return seed


def perturb(boxes: Boxes, changes: Sequence[Perturbation], noise_sd: float, draws: Sequence[Draw]) -> Boxes:
    """The same lesions with image and mask changed, a copy for each change, one after the other."""
    l = boxes.count
    hu, region, seen = (v.repeat(len(changes), 1, 1, 1) for v in (boxes.hu, boxes.region, boxes.seen))
    liver = None if boxes.liver is None else boxes.liver.repeat(len(changes), 1, 1, 1)

    def those(
        which: Callable[[Perturbation], bool],
    ) -> tuple[slice | list[int], list[Perturbation], list[Draw]]:
        """The copies of which changes, as a slice (no copy is made of it) where they stand side by side, and what is theirs."""
        some = [k for k, change in enumerate(changes) if which(change)]
        rows: slice | list[int] = [k * l + lesion for k in some for lesion in range(l)]
        if some and some[-1] - some[0] + 1 == len(some):
            rows = slice(some[0] * l, (some[-1] + 1) * l)
        return rows, [changes[k] for k in some], [draws[k] for k in some]

    def each(values: Sequence[float]) -> Tensor:
        """A number of each change at its copies `[n 1 1 1]`."""
        return hu.new_tensor(values).repeat_interleave(l).view(-1, 1, 1, 1)

    rows, own, _ = those(lambda change: bool(change.turn_deg) or any(change.shift))
    if own:
        grid, up = _grid(boxes, own), each([change.shift[0] for change in own])
        seen[rows] = there = _sampled(seen[rows], grid, up, "nearest") > 0.5
        if liver is not None:
            liver[rows] = _sampled(liver[rows], grid, up, "nearest") > 0.5
        before = region[rows]
        region[rows] = _kept((_sampled(before, grid, up) >= 0.5) & there, before)
        hu[rows] = _sampled(hu[rows], grid, up).to(hu.dtype)
    rows, own, drawn = those(lambda change: bool(change.noise and noise_sd))
    if own:
        hu[rows] += each([change.noise * noise_sd for change in own]) * Draw.joined(drawn).white(hu[rows])
    rows, own, _ = those(lambda change: bool(change.volume))
    if own:
        before = region[rows]
        grown = _resized(before, seen[rows], boxes.spacing_mm, each([change.volume for change in own]))
        region[rows] = _kept(grown, before)
    rows, own, drawn = those(lambda change: bool(change.contour_mm))
    if own:
        before = region[rows]
        field = each([change.contour_mm for change in own]) * Draw.joined(drawn).smooth(before.float(), _FIELD_MM)
        region[rows] = _kept(_moved(before, boxes.spacing_mm, field) & seen[rows], before)
    return Boxes(hu, region, seen, liver, boxes.spacing_mm)


def _kept(region: Tensor, before: Tensor) -> Tensor:
    """The new region without the box's rim, or the old one where nothing is left."""
    clear = torch.zeros_like(region)
    rim = slice(_CLEAR, -_CLEAR)
    clear[:, rim, rim, rim] = region[:, rim, rim, rim]
    some = clear.flatten(1).any(1)
    return torch.where(some[:, None, None, None], clear, before)


def _grid(boxes: Boxes, changes: Sequence[Perturbation]) -> Tensor:
    """Where each column of the changed boxes lies in the old ones, turned about its centroid and shifted, `[k l y x 2]`
    flattened to `[n y x 2]`.

    In the units of `grid_sample`: x, y, from -1 to 1. Columns stay upright: the turn is about the body's axis.
    """
    _, _, y, x = boxes.hu.shape
    device, (_, mm_y, mm_x) = boxes.hu.device, boxes.spacing_mm
    voxels = boxes.voxels
    centre = torch.zeros((boxes.count, 3), device=device).index_add(0, voxels.lesion, voxels.zyx.float())
    centre = (centre / voxels.count[:, None])[:, :, None, None]
    turn = [math.radians(change.turn_deg) for change in changes]
    numbers = zip(*((math.cos(a), math.sin(a), *change.shift[1:]) for a, change in zip(turn, changes)))
    cos, sin, shift_y, shift_x = (torch.tensor(v, device=device).view(-1, 1, 1, 1) for v in numbers)
    b = (torch.arange(y, device=device)[:, None] - centre[:, 1]) * mm_y
    a = (torch.arange(x, device=device) - centre[:, 2]) * mm_x
    at_y = (cos * b - sin * a) / mm_y + centre[:, 1] + shift_y
    at_x = (cos * a + sin * b) / mm_x + centre[:, 2] + shift_x
    return torch.stack([2 * at_x / (x - 1) - 1, 2 * at_y / (y - 1) - 1], -1).flatten(0, 1)


def _sampled(values: Tensor, grid: Tensor, up: Tensor, mode: str = "bilinear") -> Tensor:
    """`values` `[n z y x]` at the columns of `grid` and `up` `[n 1 1 1]` voxels further along z, linear or nearest, float32."""
    out = torch.nn.functional.grid_sample(values.float(), grid, mode, "border", align_corners=True)
    if mode == "nearest":
        up = up.round()
    low, last = up.floor(), values.shape[1] - 1
    z = torch.arange(last + 1, device=values.device) + low.long().view(-1, 1)
    each = torch.arange(len(z), device=values.device)[:, None]
    below = out[each, z.clamp(0, last)]
    return below if mode == "nearest" else below.lerp(out[each, (z + 1).clamp(0, last)], (up - low).float())


def _resized(region: Tensor, seen: Tensor, spacing_mm: Spacing, share: Tensor) -> Tensor:
    """Add (or take) the voxels next to the contour that the blurred region ranks first: volumes change by a share `[n 1 1 1]`."""
    cut = held(region, _CLEAR)  # where a contour can move
    own, out = region[cut], region.clone()
    rank, inside = blur(own.float(), spacing_mm, _SMOOTH_MM).flatten(1), own.flatten(1)
    share = share.flatten()
    change = (inside.sum(1) * share.abs()).round().long()
    more = torch.where(inside | ~seen[cut].flatten(1), -1.0, rank)
    rank = torch.where(share[:, None] > 0, more, torch.where(inside, -rank, -2.0))
    room = torch.where(share > 0, (more >= 0).sum(1), change)  # in the volume
    change = torch.minimum(change, room)
    order = rank.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(inside.shape[1], device=inside.device) < change[:, None]
    out[cut] = (inside ^ torch.zeros_like(inside).scatter(1, order, first)).view_as(own)
    return out


def _moved(region: Tensor, spacing_mm: Spacing, field_mm: Tensor) -> Tensor:
    """Move the contour by a field of distances `[l z y x]`, outwards where it is positive."""
    cut = held(region, _CLEAR)
    own, out = region[cut], region.clone()
    sigma = max(_SMOOTH_MM, *spacing_mm)
    depth = sigma * torch.special.ndtri(blur(own.float(), spacing_mm, _SMOOTH_MM).clamp(0.001, 0.999))
    # a blurred small region is below one half at its own edge: the level that holds its volume is its contour
    volume = own.flatten(1).sum(1)
    level = depth.flatten(1).topk(int(volume.max()) + 1).values.gather(1, volume[:, None])
    depth = depth - level[..., None, None]
    depth = torch.where(own, depth.clamp_min(0.05), depth.clamp_max(-0.05))  # mm inside; the mask itself without a move
    out[cut] = torch.where(depth.abs() < 2 * sigma, depth + field_mm[cut] > 0, own)
    return out
