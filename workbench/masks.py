"""Masks: connected pieces on the device (voxels that touch, 26-connected, and belong together), and boxes around them.

No loop over voxels or pieces. Each voxel first points to the furthest voxel ahead of it in the raster that
it belongs with, which makes a forest without cycles; pointer jumping finds the roots; the edges between different trees
join their roots (hooking the larger to the smaller).

Source: pointer jumping and hooking as Shiloach and Vishkin (1982).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from workbench.volume import Box, Spacing, three

# The 13 directions of the 26-neighbourhood along (z, y, x), one of each opposite pair; x alone comes first.
DIRECTIONS = tuple(d for d in ((z, y, x) for z in (0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)) if d > (0, 0, 0))

# rule: elements of several directions together; on a CPU what its caches hold, on a GPU an estimate, not measured
AT_ONCE = {"cpu": 2_000_000, "cuda": 60_000_000}


def together(each: int, device: torch.device) -> list[slice]:
    """The directions in parts that are worked on at once, for `each` elements a direction."""
    step = max(1, AT_ONCE[device.type] // max(1, each))
    return [slice(d, min(d + step, len(DIRECTIONS))) for d in range(0, len(DIRECTIONS), step)]


def steps(shape: Sequence[int]) -> list[int]:
    """How far the neighbour in each direction is in flat memory, for boxes `[z y x]`."""
    _, y, x = shape
    return [(dz * y + dy) * x + dx for dz, dy, dx in DIRECTIONS]


def neighbours(region: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Who is next to whom among the voxels `at` `[n]` (flat index) of `[l z y x]` regions, in raster order.

    Position in this list of the neighbour in each direction and against it, int32 `[13 n]` both, n where there is
    none. Regions keep clear of their box's faces by a voxel or more.
    """
    n = at.numel()
    place = torch.full((region.numel(),), n, dtype=torch.int32, device=region.device)
    place[at] = torch.arange(n, dtype=torch.int32, device=region.device)
    near, far = at.int(), torch.tensor(steps(region.shape[1:]), dtype=torch.int32, device=at.device)[:, None]
    ahead, behind = (place.index_select(0, there.flatten()).view(there.shape) for there in (near + far, near - far))
    return ahead, behind


def true_at(flags: Tensor) -> Tensor:
    """Where `flags` `[n]` is true, int64; on the CPU by numpy, whose search is four times faster."""
    if flags.is_cuda:
        return flags.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(flags.numpy()))


def pieces(joined: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the piece of each voxel `[i n]`, and for each number a voxel of that piece (flat place in `[i n]`).

    `joined`: for each direction, whether a voxel belongs to the same piece as its neighbour ahead, bool `[13 i n]` (several
    images of the same voxels). `ahead` `[13 n]` from `neighbours`. Numbers start at 0; not every number is used, and an
    unused one's voxel means nothing.
    """
    _, images, n = joined.shape
    place = torch.arange(images * n, dtype=torch.int32, device=ahead.device).view(images, n)
    first, some = place[:, :1], together(place.numel(), ahead.device)

    def there(d: slice) -> Tensor:
        """What a voxel belongs with in these directions, itself where nothing."""
        return torch.where(joined[d], ahead[d, None] + first, place)

    furthest = [there(d).amax(0) for d in some]  # ahead: no cycles
    root_of = _jump(reduce(torch.maximum, furthest).flatten())
    root = true_at(root_of == place.flatten())
    number = torch.zeros_like(root_of)
    number[root] = torch.arange(root.numel(), dtype=torch.int32, device=ahead.device)
    own, edges = number.index_select(0, root_of), []
    for d in some:
        beyond = own.index_select(0, there(d).flatten())
        apart = true_at((beyond.view(-1, own.numel()) != own).flatten())
        edges.append((own.index_select(0, apart % own.numel()), beyond.index_select(0, apart)))
    a, b = (torch.cat(ends) for ends in zip(*edges))
    return _joined(root.numel(), a, b).index_select(0, own).view(images, n), root


def _jump(parent: Tensor) -> Tensor:
    while True:
        further = parent.index_select(0, parent)
        if torch.equal(further, parent):
            return parent
        parent = further


def _joined(nodes: int, a: Tensor, b: Tensor) -> Tensor:
    """The smallest node of each node's component `[nodes]`, for edges a, b; int32 all."""
    root = torch.arange(nodes, dtype=torch.int32, device=a.device)
    while True:
        ra, rb = root.index_select(0, a), root.index_select(0, b)
        apart = true_at(ra != rb)
        if not apart.numel():
            return root
        a, b, ra, rb = (v.index_select(0, apart) for v in (a, b, ra, rb))
        root = root.scatter_reduce(0, torch.maximum(ra, rb).long(), torch.minimum(ra, rb), "amin")
        root = _jump(root)


def label(mask: Tensor) -> tuple[Tensor, int]:
    """The pieces of a mask `[z y x]` numbered 1.. in the order of their first voxels, int32, and how many there are."""
    inside = torch.nn.functional.pad(mask, (1, 1, 1, 1, 1, 1))[None]
    at = true_at(inside.flatten())
    ahead, _ = neighbours(inside, at)
    n = at.numel()
    out = torch.zeros(inside.numel(), dtype=torch.int32, device=mask.device)
    count = 0
    if n:
        piece = pieces((ahead < n)[:, None], ahead)[0][0].long()
        place = torch.arange(n, device=mask.device)
        first = torch.full_like(place, n).scatter_reduce(0, piece, place, "amin")
        count = int((first < n).sum())
        number = torch.empty_like(place)
        number[first.argsort()] = place + 1  # unused numbers come last
        out[at] = number[piece].int()
    return out.view(inside.shape)[0, 1:-1, 1:-1, 1:-1], count


def bounding_box(mask: Tensor, spacing_mm: Spacing, margin_mm: float) -> Box | None:
    """Smallest box around a mask, widened by a margin in mm and cut at the volume; None when empty."""
    on = mask.bool().view(torch.uint8)  # its maximum is found ten times as fast as whether any is
    if not on.numel():
        return None
    flat, box = on.amax(0), []
    for n, s, line in zip(mask.shape, spacing_mm, (on.amax((1, 2)), flat.amax(1), flat.amax(0))):
        held = line.nonzero().flatten().tolist()
        if not held:
            return None
        margin = math.ceil(margin_mm / s)
        box.append(slice(max(0, held[0] - margin), min(n, held[-1] + 1 + margin)))
    return three(box)


TOUCHING = np.ones((3, 3, 3))  # 26-connected


def components(mask: Tensor) -> tuple[np.ndarray, int]:
    """Numbers of the 26-connected pieces [z y x] in the order of their first voxels, and how many there are."""
    if mask.is_cuda:
        pieces, count = label(mask)
        return pieces.cpu().numpy(), count
    return ndimage.label(mask.cpu().numpy(), structure=TOUCHING)


def numbered(mask: Tensor) -> Tensor:
    """The 26-connected pieces of a mask as numbers 1.. on background 0, [z y x]."""
    return torch.from_numpy(components(mask)[0])
