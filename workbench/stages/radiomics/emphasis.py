"""The formulas that run lengths, zones and dependences share: emphasis, non-uniformity, variance and entropy.

A matrix P(i, j) is given as the list of its filled cells: its owner, level i, size j and count. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.masks import true_at
from workbench.stages.radiomics.discretise import Levels
from workbench.stages.radiomics.ragged import counted, total

SHORT = 64  # sizes up to this are counted in a table; the few larger ones are sorted


@dataclass(frozen=True)
class Cells:
    """Filled cells of `owners` matrices: `owner`, level `i`, size `j` and count `p`, all `[c]`."""

    owner: Tensor
    i: Tensor
    j: Tensor
    p: Tensor
    owners: int

    @classmethod
    def counted(cls, levels: Levels, table: Tensor) -> Cells:
        """From counts by row (`Levels`) and size less 1, several tables `[r t j]`: the matrices of the first come first."""
        _, tables, wide = table.shape
        at = true_at(table.flatten() > 0)
        row = at // (wide * tables)
        owner = at // wide % tables * levels.segments + levels.row_segment[row]
        return cls(owner, levels.row_level[row], at % wide + 1, table.flatten()[at], tables * levels.segments)

    @classmethod
    def of(cls, levels: Levels, row: Tensor, size: Tensor) -> Cells:
        """From a list of zones or dependences: the row (`Levels`) and size of each, one matrix a segment."""
        rows = levels.row_segment.numel()
        wide = min(SHORT, int(size.max()) if size.numel() else 1) + 1
        table = counted(row * wide + size.clamp_max(SHORT + 1) % (SHORT + 1), rows * wide)
        cell = true_at(table.view(rows, wide)[:, 1:].flatten() > 0)
        at, j, p = cell.div(wide - 1, rounding_mode="floor"), cell % (wide - 1) + 1, None
        p = table[at * wide + j]
        long = true_at(size > SHORT)
        if long.numel():
            most = int(size.max()) + 1
            key, count = torch.unique(row[long].long() * most + size[long], return_counts=True)
            at, j, p = torch.cat([at, key // most]), torch.cat([j, key % most]), torch.cat([p, count])
        return cls(levels.row_segment[at], levels.row_level[at], j, p, levels.segments)


def describe(cells: Cells) -> dict[str, Tensor]:
    """Values `[owners]` by plain names; NaN for an empty matrix."""
    owner, owners = cells.owner, cells.owners
    p, i, j = cells.p.double(), cells.i.double(), cells.j.double()
    i2, j2 = i**2, j**2
    weights = torch.stack([torch.ones_like(p), i, j, 1 / j2, j2, 1 / i2, i2, 1 / (i2 * j2), i2 / j2, j2 / i2, i2 * j2])
    sums = total(weights.mul_(p), owner, owners)
    n, voxels = sums[0], sums[2]
    mean_i, mean_j, small, large, low, high, small_low, small_high, large_low, large_high = sums[1:] / n
    about = torch.stack([(i - mean_i[owner]) ** 2 * p, (j - mean_j[owner]) ** 2 * p, torch.special.entr(p / n[owner])])
    level_spread, size_spread, entropy = total(about, owner, owners)
    ends = torch.stack([cells.i.amax(), cells.j.amax()]).tolist() if p.numel() else (0, 0)
    by_i, by_j = (
        (total(p, owner * (most + 1) + size, owners * (most + 1)).view(owners, -1) ** 2).sum(1)  # squared marginals
        for size, most in zip((cells.i, cells.j), ends)
    )
    return dict(
        count=n,
        small=small,
        large=large,
        low=low,
        high=high,
        small_low=small_low,
        small_high=small_high,
        large_low=large_low,
        large_high=large_high,
        level_non_uniformity=by_i / n,
        level_non_uniformity_normalized=by_i / n**2,
        size_non_uniformity=by_j / n,
        size_non_uniformity_normalized=by_j / n**2,
        level_variance=level_spread / n,
        size_variance=size_spread / n,
        entropy=entropy / math.log(2),
        voxels=voxels,
    )
