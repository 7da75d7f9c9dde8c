"""Grey level runs (Galloway 1975): 16 values of each segment.

A run is a stretch of equal level along one of 13 directions. The order of voxels along each direction's lines depends
on the region alone and is shared by all images. Only runs of two voxels and more are looked for; the other voxels are
runs of one. Values per direction, then their mean over the directions in which some line holds two region voxels
(PyRadiomics drops the others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.masks import DIRECTIONS, steps, together, true_at
from workbench.stages.radiomics import emphasis
from workbench.stages.radiomics.discretise import Levels, picked
from workbench.stages.radiomics.ragged import Voxels, counted

NAMES = {
    "gray_level_non_uniformity": "level_non_uniformity",
    "gray_level_non_uniformity_normalized": "level_non_uniformity_normalized",
    "gray_level_variance": "level_variance",
    "high_gray_level_run_emphasis": "high",
    "long_run_emphasis": "large",
    "long_run_high_gray_level_emphasis": "large_high",
    "long_run_low_gray_level_emphasis": "large_low",
    "low_gray_level_run_emphasis": "low",
    "run_entropy": "entropy",
    "run_length_non_uniformity": "size_non_uniformity",
    "run_length_non_uniformity_normalized": "size_non_uniformity_normalized",
    "run_percentage": "percentage",
    "run_variance": "size_variance",
    "short_run_emphasis": "small",
    "short_run_high_gray_level_emphasis": "small_high",
    "short_run_low_gray_level_emphasis": "small_low",
}
UNDEFINED_IF_CONSTANT = ()


def lines(voxels: Voxels, d: int) -> Tensor:
    """Whether each lesion has a line along direction d that holds two of its voxels `[l]`."""
    step, size, place = DIRECTIONS[d], voxels.shape, voxels.place
    moving = next(a for a in range(3) if step[a])
    key, wide = voxels.lesion, 1
    for a in range(3):
        if a != moving:  # where the line meets the plane t = 0: the same for all its voxels
            key = key * (size[a] + 2 * size[moving]) + place[:, a] - place[:, moving] * step[a] + size[moving]
            wide *= size[a] + 2 * size[moving]
    return counted(key, voxels.count.numel() * wide).view(-1, wide).amax(1) > 1


def directions(levels: Levels) -> Tensor:
    """Which directions count for each lesion `[13 l]`: some line along it holds two of the lesion's voxels."""
    held = levels.paired.clone()
    for d in (~held).any(1).nonzero().flatten().tolist():  # two voxels of a line need not touch
        held[d] = lines(levels.voxels, d)
    return held


def along(voxels: Voxels) -> Tensor:
    """Voxels in order along the lines of each direction, as positions `[13 n]`.

    In flat memory a line is an arithmetic progression: in a table as wide as its step it would be a column.
    """
    wide = torch.tensor(steps(voxels.shape), device=voxels.local.device)[:, None]
    return (voxels.local % wide * voxels.inner.numel() + voxels.local // wide).argsort(1)


def runs(levels: Levels) -> Tensor:
    """Count of runs by row (`Levels`), direction and length less 1, `[r 13 longest]`."""
    order, wide, tables = along(levels.voxels), max(levels.voxels.shape), []
    for d in together(levels.row.numel(), order.device):
        tables.append(_runs(levels, order[d], levels.voxels.beside[0][d], wide))
    table = torch.cat(tables, 1)
    longer = (table * torch.arange(1, wide + 1, device=table.device)).sum(2)
    table[:, :, 0] = levels.row_count[:, None] - longer
    return table


def _runs(levels: Levels, order: Tensor, ahead: Tensor, wide: int) -> Tensor:
    """Runs of two voxels and more along some directions `[r d wide]`."""
    many, n = order.shape
    row = picked(levels.row, order.flatten())
    same = torch.zeros_like(row, dtype=torch.bool)  # the next voxel goes on with the run
    torch.eq(row[:, 1:], row[:, :-1], out=same[:, :-1])
    same &= (ahead.gather(1, order) < n).flatten()
    same = same.flatten()
    turn = same.clone()
    turn[1:] ^= same[:-1]
    first, last = true_at(turn).view(-1, 2).unbind(1)
    rows = levels.row_segment.numel()
    key = (row.flatten()[first] * many + first // n % many) * wide + (last - first)
    return counted(key, rows * many * wide).view(rows, many, wide)


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`; NaN where no line holds two region voxels."""
    s, held = levels.segments, directions(levels).repeat(1, levels.images)
    table = levels.tally.runs if levels.tally else runs(levels)
    cells = emphasis.Cells.counted(levels, table)
    values = emphasis.describe(cells)
    values["percentage"] = values["count"] / values["voxels"]
    values = torch.stack([values[name].view(-1, s) for name in NAMES.values()], 2)
    return torch.where(held[..., None], values, 0.0).sum(0) / held.sum(0)[:, None]
