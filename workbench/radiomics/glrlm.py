"""Grey level runs (Galloway 1975): 16 values of each segment.

A run is a stretch of equal level along one of 13 directions. It begins where the voxel before has another level; how
long it is follows by doubling, for all voxels and directions at once. Values per direction, then their mean over the
directions in which some line holds two region voxels (PyRadiomics drops the others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.connected import DIRECTIONS, true_at
from workbench.radiomics import emphasis
from workbench.radiomics.discretise import Levels
from workbench.radiomics.ragged import Voxels, counted

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
AT_ONCE = 30_000_000  # rule: voxels of images and directions looked at together, about 40 bytes each


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


def runs(levels: Levels) -> Tensor:
    """Count of runs by row (`Levels`), direction and length less 1, `[r 13 longest]`."""
    rows, longest, each = levels.row_segment.numel(), max(levels.voxels.shape), levels.equal[0].numel()
    counts = torch.zeros((rows, len(DIRECTIONS), longest), dtype=torch.int64, device=levels.top.device)
    for some in torch.arange(len(DIRECTIONS)).split(max(1, AT_ONCE // max(1, each))):
        d = slice(int(some[0]), int(some[-1]) + 1)
        equal = levels.equal[d]
        place = torch.arange(equal.numel(), dtype=torch.int32, device=equal.device).view(equal.shape)
        ahead = levels.voxels.beside[0][d, None] + place[..., :1]
        end = torch.tensor([equal.numel()], dtype=torch.int32, device=equal.device)
        ahead = torch.cat([torch.where(equal, ahead, end).flatten(), end])
        length = (torch.arange(ahead.numel(), device=equal.device) < end).int()
        reach = 1
        while reach < longest:  # the voxels of the run from here on, within twice as many steps
            length = length + length.index_select(0, ahead)
            ahead = ahead.index_select(0, ahead)
            reach *= 2
        first = true_at(~levels.equal_behind[d].flatten())
        row = levels.row.flatten().index_select(0, first % each)
        key = (row * len(some) + first // each) * longest + length.index_select(0, first) - 1
        counts[:, d] = counted(key, rows * len(some) * longest).view(rows, len(some), longest)
    return counts


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`; NaN where no line holds two region voxels."""
    s, held = levels.segments, directions(levels).repeat(1, levels.images)
    table = levels.tally.runs if levels.tally else runs(levels)
    cells = emphasis.Cells.counted(levels, table)
    values = emphasis.describe(cells)
    values["percentage"] = values["count"] / values["voxels"]
    values = torch.stack([values[name].view(-1, s) for name in NAMES.values()], 2)
    return torch.where(held[..., None], values, 0.0).sum(0) / held.sum(0)[:, None]
