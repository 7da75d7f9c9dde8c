"""Grey level zones (Thibault et al. 2009): 16 values of each segment.

A zone is a 26-connected set of voxels of one level (`workbench.masks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.masks import pieces, true_at
from workbench.stages.radiomics import emphasis
from workbench.stages.radiomics.discretise import Levels
from workbench.stages.radiomics.ragged import counted

NAMES = {
    "gray_level_non_uniformity": "level_non_uniformity",
    "gray_level_non_uniformity_normalized": "level_non_uniformity_normalized",
    "gray_level_variance": "level_variance",
    "high_gray_level_zone_emphasis": "high",
    "large_area_emphasis": "large",
    "large_area_high_gray_level_emphasis": "large_high",
    "large_area_low_gray_level_emphasis": "large_low",
    "low_gray_level_zone_emphasis": "low",
    "size_zone_non_uniformity": "size_non_uniformity",
    "size_zone_non_uniformity_normalized": "size_non_uniformity_normalized",
    "small_area_emphasis": "small",
    "small_area_high_gray_level_emphasis": "small_high",
    "small_area_low_gray_level_emphasis": "small_low",
    "zone_entropy": "entropy",
    "zone_percentage": "percentage",
    "zone_variance": "size_variance",
}
UNDEFINED_IF_CONSTANT = ()


def zones(levels: Levels) -> tuple[Tensor, Tensor]:
    """Row (`Levels`) and size of every zone."""
    if levels.tally:
        return levels.tally.zone_row, levels.tally.zone_size
    piece, voxel = pieces(levels.equal, levels.voxels.beside[0])
    size = counted(piece.flatten(), voxel.numel())
    zone = true_at(size > 0)
    return levels.row.flatten()[voxel[zone]], size[zone]


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`."""
    values = emphasis.describe(emphasis.Cells.of(levels, *zones(levels)))
    values["percentage"] = values["count"] / values["voxels"]
    return torch.stack([values[name] for name in NAMES.values()], 1)
