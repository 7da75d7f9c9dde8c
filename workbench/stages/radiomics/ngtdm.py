"""Neighbourhood grey tone difference (Amadasun and King 1989): 5 values of each segment.

n(i) voxels of level i, s(i) the sum over them of the distance to the mean level of their neighbours in the region.
A voxel without neighbours counts in n with distance 0, as in PyRadiomics (IBSI leaves it out).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.stages.radiomics.discretise import Levels
from workbench.stages.radiomics.ragged import total

NAMES = ("busyness", "coarseness", "complexity", "contrast", "strength")
UNDEFINED_IF_CONSTANT = ("busyness", "coarseness", "contrast", "strength")
CAP = 1e6  # PyRadiomics's coarseness where all distances are 0


def describe(levels: Levels) -> Tensor:
    """Values `[s 5]`; NaN where no two region voxels are neighbours."""
    n = levels.row_count.double()
    s = levels.tally.distance if levels.tally else distances(levels)
    out = torch.empty((levels.segments, len(NAMES)), dtype=torch.float64, device=n.device)
    first = levels.top.cumsum(0) - levels.top
    for group in levels.groups(1):
        for some, width, _ in group.parts:
            level = torch.arange(width, device=n.device)
            held = level < levels.top[some, None]
            at = (first[some, None] + level).clamp_max(n.numel() - 1)
            out[some] = features(torch.where(held, n[at], 0.0), torch.where(held, s[at], 0.0))
    return torch.where(levels.paired.any(0).repeat(levels.images)[:, None], out, torch.nan)


def distances(levels: Levels) -> Tensor:
    """Summed distance of the voxels to the mean level of their neighbours, by row `[r]`."""
    own, n = levels.own, levels.voxels.lesion.numel()
    around = sum(beside.sum(0, dtype=torch.int32) for beside in (levels.ahead, levels.behind))
    count = sum((beside < n).sum(0) for beside in levels.voxels.beside)
    distance = around.double().div_(count.clamp_min(1)).sub_(own).abs_().mul_(count > 0)
    return total(distance.flatten(), levels.row.flatten(), levels.row_segment.numel())


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
