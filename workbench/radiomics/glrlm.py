"""Grey level runs (Galloway 1975): 16 values of each segment.

A run is a stretch of equal level along one of 13 directions. The order of voxels along each direction's lines depends
on the region alone: it is sorted once and shared by all images. Values per direction, then their mean over the
directions in which some line holds two region voxels (PyRadiomics drops the others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.radiomics import emphasis
from workbench.radiomics.discretise import Levels
from workbench.radiomics.ragged import DIRECTIONS, Voxels

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


def along(voxels: Voxels, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels in order along the lines of direction d: their positions `[n]`, where a stretch starts `[n]`, and
    whether each lesion has a line with two voxels `[l]`."""
    step = DIRECTIONS[d]
    zyx = voxels.zyx
    moving = next(a for a in range(3) if step[a])
    t = zyx[:, moving]
    # where the line meets the plane t = 0: the same for all its voxels, 4096 > any box keeps the two coordinates apart
    foot = [zyx[:, a] - t * step[a] for a in range(3) if a != moving]
    key = ((voxels.lesion * 4096 + foot[0] + 2048) * 4096 + foot[1] + 2048) * 2048 + t
    if d == 0:
        order = torch.arange(key.numel(), device=key.device)  # the list runs along x already
    else:
        key, order = key.sort()
    line = key >> 11
    start = torch.ones_like(line, dtype=torch.bool)
    start[1:] = key[1:] != key[:-1] + 1
    start[1:] |= line[1:] != line[:-1]
    pair = line[1:] == line[:-1]
    held = torch.bincount(voxels.lesion[order[1:]][pair], minlength=voxels.count.numel()) > 0
    return order, start, held


def runs(level: Tensor, order: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of `level` `[i n]`: flat place in `[i n]` of the first in the order, its level, and the length."""
    own = level[:, order]
    first = start.expand_as(own).clone()
    first[:, 1:] |= own[:, 1:] != own[:, :-1]
    at = first.flatten().nonzero().flatten()
    return at, own.flatten()[at], torch.diff(at, append=at.new_tensor([own.numel()]))


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`; NaN where no line holds two region voxels."""
    voxels, s = levels.voxels, levels.segments
    n = voxels.lesion.numel()
    lesions = voxels.count.numel()
    whole = torch.zeros((s, len(NAMES)), dtype=torch.float64, device=levels.top.device)
    directions = torch.zeros(lesions, dtype=torch.float64, device=whole.device)
    for d in range(len(DIRECTIONS)):
        order, start, held = along(voxels, d)
        at, level, length = runs(levels.level[:, :-1], order, start)
        segment = at // n * lesions + voxels.lesion[order[at % n]]
        values = emphasis.describe(emphasis.Cells.of(segment, level, length, s))
        values["percentage"] = values["count"] / values["voxels"]
        values = torch.stack([values[name] for name in NAMES.values()], 1)
        whole += torch.where(held.repeat(levels.images)[:, None], values, 0.0)
        directions += held
    return whole / directions.repeat(levels.images)[:, None]
