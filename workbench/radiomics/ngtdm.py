"""Neighbourhood grey tone difference (Amadasun and King 1989): 5 values of each segment.

n(i) voxels of level i, s(i) the sum over them of the distance to the mean level of their neighbours in the region.
A voxel without neighbours counts in n with distance 0, as in PyRadiomics (IBSI leaves it out).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.radiomics.discretise import Levels
from workbench.radiomics.ragged import DIRECTIONS

NAMES = ("busyness", "coarseness", "complexity", "contrast", "strength")
UNDEFINED_IF_CONSTANT = ("busyness", "coarseness", "contrast", "strength")
CAP = 1e6  # PyRadiomics's coarseness where all distances are 0


def describe(levels: Levels) -> Tensor:
    """Values `[s 5]`; NaN where no two region voxels are neighbours."""
    voxels = levels.voxels
    own = levels.level[:, :-1]
    around, count = torch.zeros_like(own), torch.zeros_like(voxels.lesion)
    for table in (voxels.ahead, voxels.behind):
        for d in range(len(DIRECTIONS)):
            around += levels.level[:, table[d]]
            count += table[d] < voxels.lesion.numel()
    distance = (own.double() - around / count.clamp_min(1)).abs()
    distance = torch.where(count > 0, distance, 0.0)
    out = torch.empty((levels.segments, len(NAMES)), dtype=torch.float64, device=own.device)
    for group in levels.groups(1, squared=True):
        start = group.start[levels.segment]
        key = torch.where(start >= 0, start + own - 1, group.cells).flatten()
        n = torch.bincount(key, minlength=group.cells + 1).double()
        s = torch.bincount(key, weights=distance.flatten(), minlength=group.cells + 1)
        for some, width, part in group.parts:
            # a group's cell is a pair of levels; the first row of each matrix holds the levels themselves
            own_n, own_s = (v[part].view(len(some), width, width)[:, 0] for v in (n, s))
            out[some] = features(own_n, own_s)
    met = torch.bincount(voxels.lesion[count > 0], minlength=voxels.count.numel()) > 0
    return torch.where(met.repeat(levels.images)[:, None], out, torch.nan)


def features(n: Tensor, s: Tensor) -> Tensor:
    """Values `[s 5]` from counts and summed distances `[s l]`."""
    whole = n.sum(1)
    p = n / whole[:, None]
    i = torch.arange(1, n.shape[1] + 1, dtype=p.dtype, device=p.device)
    held = (n > 0).to(p.dtype)
    both = held[:, :, None] * held[:, None, :]
    apart = i[:, None] - i
    present = held.sum(1)
    ps, summed = p * s, s.sum(1)
    coarse = ps.sum(1)
    pairs = p[:, :, None] + p[:, None, :]
    busy = (both * (i * p)[:, :, None].sub((i * p)[:, None, :]).abs()).sum((1, 2))
    contrast = (p[:, :, None] * p[:, None, :] * apart**2).sum((1, 2)) * summed / whole
    complexity = both * apart.abs() * (ps[:, :, None] + ps[:, None, :]) / torch.where(pairs > 0, pairs, 1.0)
    strength = (both * pairs * apart**2).sum((1, 2))

    def ratio(a: Tensor, b: Tensor, otherwise: float) -> Tensor:
        return torch.where(b != 0, a / torch.where(b != 0, b, 1.0), otherwise)

    return torch.stack(
        [
            ratio(coarse, busy, 0.0),
            ratio(torch.ones_like(coarse), coarse, CAP),
            complexity.sum((1, 2)) / whole,
            ratio(contrast, present * (present - 1), 0.0),
            ratio(strength, summed, 0.0),
        ],
        1,
    )
