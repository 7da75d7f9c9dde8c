"""All lesions in one batch: boxes of about one size, and ragged lists of the voxels in them.

We CHOOSE (METHOD 4) to describe every lesion of a case, or every perturbed copy of it, at once. `Boxes` holds crops
padded to one common box, because a neighbour is then one constant step in flat memory; lesions are grouped by size so
that little of it is padding. `Voxels` is the ragged list of region voxels with its table of neighbours, shared by the
image and all its sub-bands. Every family of descriptors takes these two and loops over no lesion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, Integer, Real, Shaped
from torch import Tensor

from workbench.masks import neighbours, true_at
from workbench.stages.radiomics import compiled
from workbench.volume import Spacing

REACH_MM = 4.0  # empirical choice: how far from the surface the boundary group looks
Out = TypeVar("Out")
BATCH_VOXELS = {"cpu": 1_000_000, "cuda": 8_000_000}  # rule: box voxels in one batch
BYTES = 2_000  # rule: of a GPU's free memory for each, half for perturbed copies; .4 to 1.3, .4 to .7 kB were measured (the log, 2026-11-27)
PADDING = 200_000  # empirical: box voxels that take as long as the operations that every group needs
_LEAST_MARGIN = 5  # rule: the wavelet reads 3 voxels beyond, the smoothed surface one more on either side


def batch_voxels(device: torch.device) -> int:
    """Box voxels in one batch, fewer where a GPU's free memory is short."""
    most = BATCH_VOXELS[device.type]
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        most = min(most, (torch.cuda.mem_get_info(device)[0] + unused) // BYTES)
    return most


def with_room(work: Callable[[Boxes], Out], boxes: Boxes) -> Out:
    """work(boxes), on the CPU where their device has no memory left for it."""
    try:
        return work(boxes)
    except torch.cuda.OutOfMemoryError:
        print("the device is out of memory: going on with some descriptors on the CPU")
    return work(boxes.to("cpu"))


def margins(spacing_mm: Spacing) -> tuple[int, int, int]:
    """Voxels around a lesion that its descriptors read, per axis."""
    z, y, x = (max(_LEAST_MARGIN, math.ceil((REACH_MM + 0.5 * s) / s) + 2) for s in spacing_mm)
    return z, y, x


def held(region: Bool[Tensor, "l z y x"], pad: int) -> tuple[slice, ...]:
    """The part of boxes that holds any region, with `pad` voxels around it."""
    _, z, y, x = region.shape
    at = true_at(region.flatten())
    low, high = torch.stack([at // (y * x) % z, at // x % y, at % x]).aminmax(dim=1)
    bounds = torch.stack([low, high + 1], 1).tolist()
    return (slice(None), *(slice(max(0, a - pad), min(n, b + pad)) for (a, b), n in zip(bounds, (z, y, x))))


@dataclass(frozen=True)
class Boxes:
    """Lesions in boxes of one size: HU, the region, which voxels exist, and the liver (or None)."""

    hu: Float[Tensor, "l z y x"]
    region: Bool[Tensor, "l z y x"]
    seen: Bool[Tensor, "l z y x"]
    liver: Bool[Tensor, "l z y x"] | None
    spacing_mm: Spacing

    @property
    def count(self) -> int:
        return self.hu.shape[0]

    def to(self, device: str) -> Boxes:
        """The same on a device."""
        liver = None if self.liver is None else self.liver.to(device)
        return Boxes(self.hu.to(device), self.region.to(device), self.seen.to(device), liver, self.spacing_mm)

    @cached_property
    def voxels(self) -> Voxels:
        return Voxels.of(self.region, self.inner(1))

    @cached_property
    def _held(self) -> tuple[slice, ...]:
        return held(self.region, 0)

    def inner(self, pad: int) -> tuple[slice, ...]:
        """The part of the boxes that holds any region, with `pad` voxels around it."""
        cuts = zip(self._held[1:], self.hu.shape[1:])
        return (slice(None), *(slice(max(0, s.start - pad), min(n, s.stop + pad)) for s, n in cuts))


@dataclass(frozen=True)
class Voxels:
    """The region voxels of a batch as one list, sorted by lesion, then z, y, x.

    `at` flat index, `zyx` index in the box, `count` voxels of each lesion; `local` flat index in `inner`, which holds the
    regions and one voxel around them.
    """

    at: Int[Tensor, " n"]
    lesion: Int[Tensor, " n"]
    zyx: Int[Tensor, "n 3"]
    count: Int[Tensor, " l"]
    local: Int[Tensor, " n"]
    inner: Bool[Tensor, "l z y x"]

    @classmethod
    def of(cls, region: Bool[Tensor, "l z y x"], inner: tuple[slice, ...]) -> Voxels:
        """From regions and the part of the boxes that holds them and a voxel around them."""
        cut = region[inner].contiguous()
        l, z, y, x = cut.shape
        local = true_at(cut.flatten())
        lesion, (first_z, first_y, first_x) = local // (z * y * x), (s.start for s in inner[1:])
        zyx = torch.stack([local // (y * x) % z + first_z, local // x % y + first_y, local % x + first_x], 1)
        return cls(_flat(lesion, zyx.unbind(1), region.shape[1:]), lesion, zyx, counted(lesion, l), local, cut)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the boxes of `inner`."""
        _, z, y, x = self.inner.shape
        return z, y, x

    @cached_property
    def beside(self) -> tuple[Int[Tensor, "13 n"], Int[Tensor, "13 n"]]:
        """Place in this list of the neighbour in each direction, and against it, n where there is none."""
        return neighbours(self.inner, self.local)

    @cached_property
    def place(self) -> Int[Tensor, "n 3"]:
        """Indices within `shape` less 1: 0 is the first that any region holds."""
        return self.zyx - self.zyx.amin(0)

    @cached_property
    def edge(self) -> tuple[Int[Tensor, "m 3"], Int[Tensor, " m"]]:
        """Indices and lesions of the voxels that have a face in common with the background."""
        _, y, x = self.shape
        flat = self.inner.flatten()
        inside = torch.ones_like(self.local, dtype=torch.bool)
        for step in (1, x, y * x):
            inside &= flat[self.local + step] & flat[self.local - step]
        at = true_at(~inside)
        return self.zyx[at], self.lesion[at]

    def within(self, inner: tuple[slice, ...]) -> Int[Tensor, " n"]:
        """Flat index of the voxels in that part of the boxes."""
        first = torch.tensor([s.start for s in inner[1:]], device=self.zyx.device)
        return _flat(self.lesion, (self.zyx - first).unbind(1), [s.stop - s.start for s in inner[1:]])


def _flat(lesion: Tensor, zyx: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Flat index `[n ...]` of places z, y, x `[n ...]` of the lesions `[n]` in boxes of a shape."""
    index = lesion.view(-1, *[1] * (zyx[0].ndim - 1))
    for at, n in zip(zyx, shape):
        index = index * n + at
    return index


def ends(
    values: Shaped[Tensor, "*k n"], group: Int[Tensor, " n"], groups: int
) -> tuple[Shaped[Tensor, "*k g"], Shaped[Tensor, "*k g"]]:
    """Least and largest value of each group; 0 of an empty one."""
    empty = values.new_zeros((*values.shape[:-1], groups))
    index = group.expand_as(values)
    low = empty.scatter_reduce(-1, index, values, "amin", include_self=False)
    return low, empty.scatter_reduce(-1, index, values, "amax", include_self=False)


def total(values: Shaped[Tensor, "*k n"], group: Int[Tensor, " n"], groups: int) -> Float[Tensor, "*k g"]:
    """Sums of `values` by group, float64."""
    sums = torch.zeros((*values.shape[:-1], groups), dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, group, values.double())


def counted(group: Int[Tensor, " n"], groups: int) -> Int[Tensor, " g"]:
    """How many of each group there are, int64; a GPU need not be waited for, as `bincount` does."""
    count = torch.zeros(groups, dtype=torch.int64, device=group.device)
    return count.index_add_(0, group, count.new_ones(()).expand(group.shape))


def mean(
    values: Float[Tensor, "*k n"], weights: Float[Tensor, " n"], group: Int[Tensor, " n"], groups: int
) -> Float[Tensor, "*k g"]:
    """Weighted means of `values` by group; NaN where a group has no weight."""
    return total(values * weights, group, groups) / total(weights, group, groups)


def quantiles(
    values: Float[Tensor, " n"], group: Int[Tensor, " n"], groups: int, shares: tuple[float, ...]
) -> Float[Tensor, "g shares"]:
    """Quantiles by group, linear between ranks as numpy's; NaN values are left out.

    `group` is in ascending order.
    """
    kept = ~values.isnan()
    values, group = values[kept], group[kept]
    count = counted(group, groups)
    table = values.new_full((groups, max(1, int(count.max()))), torch.inf)
    table[group, torch.arange(group.numel(), device=group.device) - (count.cumsum(0) - count)[group]] = values
    table = table.sort(1).values
    rank = (count - 1).clamp_min(0)[:, None] * values.new_tensor(shares, dtype=torch.float64)
    low = rank.floor().long()
    part = rank - low
    a, b = table.gather(1, low), table.gather(1, torch.minimum(low + 1, (count - 1).clamp_min(0)[:, None]))
    q = torch.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))
    return torch.where(count[:, None] > 0, q, torch.nan)


def wrapped(first: Int[Tensor, " l"], length: int, n: int) -> Int[Tensor, "l length"]:
    """Indices first .. first + length - 1 on an axis of n voxels as the periodic wavelet sees it.

    PyRadiomics gives an odd axis one more voxel, a copy of the first, before it filters periodically.
    """
    at = first[:, None] + torch.arange(length, device=first.device)
    return at.remainder(n + n % 2).remainder(n)


def nearest(boxes: Boxes, lesion: Int[Tensor, " f"], at: Float[Tensor, "f ... 3"]) -> Int[Tensor, "f ..."]:
    """Flat index of the voxel nearest to places of the lesions, in voxels."""
    shape = boxes.hu.shape[1:]
    zyx = (at + 0.5).floor().long().unbind(-1)
    return _flat(lesion, [i.clamp(0, n - 1) for i, n in zip(zyx, shape)], shape)


def linear(
    boxes: Boxes, values: Real[Tensor, "l z y x"], lesion: Int[Tensor, " f"], at: Float[Tensor, "f ... 3"]
) -> Float[Tensor, "f ..."]:
    """`values` of the boxes at places of the lesions, in voxels, trilinear, float32."""
    _, z, y, x = boxes.hu.shape
    values = values.flatten().float()
    limit = at.new_tensor([z - 1, y - 1, x - 1])
    at = torch.minimum(at.clamp_min(0), limit)
    low = torch.minimum(at.floor(), limit - 1)
    corner, (fz, fy, fx) = _flat(lesion, low.long().unbind(-1), (z, y, x)), (at - low).unbind(-1)

    def row(shift: int) -> Tensor:
        a = values[corner + shift]
        return a + (values[corner + shift + 1] - a) * fx

    def plane(shift: int) -> Tensor:
        a = row(shift)
        return a + (row(shift + x) - a) * fy

    a = plane(0)
    return a + (plane(y * x) - a) * fz


def blur(volume: Float[Tensor, "l z y x"], spacing_mm: Sequence[float], blur_mm: float) -> Float[Tensor, "l z y x"]:
    """Gaussian blur, float32, zero outside and cut off at 4 standard deviations.

    Taps are added in a fixed order, from the middle outwards: a lesion's values do not depend on the others in the batch.
    """
    for axis, s in enumerate(spacing_mm, 1):
        sigma = max(blur_mm, s) / s
        taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(math.ceil(4 * sigma) + 1)]
        taps = [tap / (taps[0] + 2 * sum(taps[1:])) for tap in taps]
        volume = smoothed(volume.float(), taps, axis)
    return volume


def smoothed(volume: Float[Tensor, "*k"], taps: Sequence[float], axis: int) -> Float[Tensor, "*k"]:
    """A symmetric filter along an axis, its taps from the middle outwards, zero outside."""
    if compiled.usable(volume):
        return compiled.smoothed(volume, taps, axis)
    n, reach = volume.shape[axis], len(taps) - 1
    pad = [0] * (2 * (volume.ndim - 1 - axis)) + [reach, reach]
    around = torch.nn.functional.pad(volume, pad)
    out = volume * taps[0]
    for k in range(1, reach + 1):
        out += (around.narrow(axis, reach - k, n) + around.narrow(axis, reach + k, n)) * taps[k]
    return out


@dataclass(frozen=True)
class Found:
    """Where the lesions are: label values ascending, first and last voxel of each along z, y, x."""

    labels: Integer[Tensor, " l"]
    low: Int[Tensor, "l 3"]
    high: Int[Tensor, "l 3"]

    def some(self, index: Sequence[int]) -> Found:
        """Those at some places of the list, on the CPU."""
        return Found(*(v[index].cpu() for v in (self.labels, self.low, self.high)))


def find(lesions: Integer[Tensor, "z y x"]) -> Found:
    """Labels and bounding boxes of a label map, in one pass."""
    at = lesions.nonzero().T
    labels, which = torch.unique(lesions[tuple(at)], return_inverse=True)
    low, high = ends(at, which, labels.numel())
    return Found(labels, low.T, high.T)


def groups_by_size(
    extent: Int[Tensor, "l 3"], margin: tuple[int, int, int], voxels: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Split lesions into groups with a common box: (indices, common extent), at most `voxels` a group.

    A new group begins where filling up to the common box would cost more than a group of its own (`PADDING`).
    """
    extents = extent.tolist()
    volume = [math.prod(e + 2 * m for e, m in zip(one, margin)) for one in extents]
    held: list[int] = []
    common, filled = [0, 0, 0], 0
    for i in sorted(range(len(extents)), key=volume.__getitem__):
        wider = [max(a, b) for a, b in zip(common, extents[i])]
        size = math.prod(e + 2 * m for e, m in zip(wider, margin)) * (len(held) + 1)
        if held and (size > voxels or size - filled - volume[i] > PADDING):
            yield held, common
            held, wider, filled = [], extents[i], 0
        held.append(i)
        common, filled = wider, filled + volume[i]
    if held:
        yield held, common


def crop(
    image: Real[Tensor, "z y x"], lesions: Integer[Tensor, "z y x"], liver: Real[Tensor, "z y x"] | Bool[Tensor, "z y x"] | None,
    spacing_mm: Spacing, found: Found, index: list[int], extent: list[int], more: tuple[int, int, int] = (0, 0, 0),
) -> Boxes:  # fmt: skip
    """Boxes around the lesions `index` of `found`, each with its margins (and `more` voxels), on one common size."""
    margin = tuple(a + b for a, b in zip(margins(spacing_mm), more))
    pick = torch.tensor(index, device=image.device)
    low = found.low[pick] - torch.tensor(margin, device=image.device)
    at, inside = [], []
    for axis, n in enumerate(image.shape):
        length = extent[axis] + 2 * margin[axis]
        at.append(wrapped(low[:, axis], length, n))
        plain = low[:, axis, None] + torch.arange(length, device=image.device)
        inside.append((plain >= 0) & (plain < n))
    where = at[0][:, :, None, None], at[1][:, None, :, None], at[2][:, None, None, :]
    seen = inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]
    region = (lesions[where] == found.labels[pick][:, None, None, None]) & seen
    hu = image[where]
    if not hu.is_floating_point():
        hu = hu.double()  # as PyWavelets does with integers
    return Boxes(hu, region, seen, None if liver is None else (liver[where] != 0) & seen, spacing_mm)
