"""Grey level runs (Galloway 1975): 16 values of each segment.

A run is a stretch of equal level along one of 13 directions. The order of voxels along each direction's lines depends
on the region alone and is shared by all images. Only runs of two voxels and more are looked for; the other voxels are
runs of one. Values per direction, then their mean over the directions in which some line holds two region voxels
(PyRadiomics drops the others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.connected import DIRECTIONS, true_at
from workbench.radiomics import emphasis
from workbench.radiomics.discretise import Levels, picked
from workbench.radiomics.ragged import Voxels

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


def along(voxels: Voxels, d: int) -> tuple[Tensor, Tensor]:
    """Voxels in order along the lines of direction d, as positions `[n]`, and which is next to the one after it `[n]`.

    In flat memory a line is an arithmetic progression: a table as wide as its step holds each line in a column.
    """
    z, y, x = voxels.shape
    step = sum(s * m for s, m in zip(DIRECTIONS[d], (y * x, x, 1)))
    n = voxels.at.numel()
    ahead = voxels.beside[0][d]
    if step == 1:
        order = torch.arange(n, dtype=torch.int32, device=ahead.device)  # the list runs along x already
    else:
        size = voxels.count.numel() * z * y * x
        place = torch.full(((size + step - 1) // step * step,), -1, dtype=torch.int32, device=ahead.device)
        place[voxels.local] = torch.arange(n, dtype=torch.int32, device=ahead.device)
        order = place.view(-1, step).T.flatten()
        order = order.index_select(0, true_at(order >= 0))
    return order, ahead.index_select(0, order) < n


def lines(voxels: Voxels, d: int) -> Tensor:
    """Whether each lesion has a line along direction d that holds two of its voxels `[l]`."""
    step, size, place = DIRECTIONS[d], voxels.shape, voxels.place
    moving = next(a for a in range(3) if step[a])
    key, wide = voxels.lesion, 1
    for a in range(3):
        if a != moving:  # where the line meets the plane t = 0: the same for all its voxels
            key = key * (size[a] + 2 * size[moving]) + place[:, a] - place[:, moving] * step[a] + size[moving]
            wide *= size[a] + 2 * size[moving]
    return torch.bincount(key, minlength=voxels.count.numel() * wide).view(-1, wide).amax(1) > 1


def counted(levels: Levels) -> Tensor:
    """For which directions each lesion counts, `[13 l]`: some line along it holds two of the lesion's voxels."""
    held = levels.paired.clone()
    for d in (~held).any(1).nonzero().flatten().tolist():  # two voxels of a line need not touch
        held[d] = lines(levels.voxels, d)
    return held


def runs(levels: Levels, d: int) -> Tensor:
    """Count of runs along direction d by row (`Levels`) and length less 1, `[r longest]`."""
    order, linked = along(levels.voxels, d)
    row = picked(levels.row, order)
    same = torch.zeros_like(row, dtype=torch.bool)  # the next voxel goes on with the run
    torch.eq(row[:, 1:], row[:, :-1], out=same[:, :-1])
    same &= linked
    same = same.flatten()
    turn = same.clone()
    turn[1:] ^= same[:-1]
    first, last = true_at(turn).view(-1, 2).unbind(1)  # of the runs of two and more
    rows, wide = levels.row_segment.numel(), max(levels.voxels.shape)
    table = torch.bincount(row.flatten()[first] * wide + (last - first), minlength=rows * wide).view(rows, wide)
    table[:, 0] = levels.row_count - (table * torch.arange(1, wide + 1, device=table.device)).sum(1)
    return table


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`; NaN where no line holds two region voxels."""
    s, directions = levels.segments, range(len(DIRECTIONS))
    held = counted(levels).repeat(1, levels.images)
    table = levels.tally.runs if levels.tally else torch.stack([runs(levels, d) for d in directions], 1)
    cells = emphasis.Cells.counted(levels, table)
    values = emphasis.describe(cells)
    values["percentage"] = values["count"] / values["voxels"]
    values = torch.stack([values[name].view(-1, s) for name in NAMES.values()], 2)
    return torch.where(held[..., None], values, 0.0).sum(0) / held.sum(0)[:, None]
