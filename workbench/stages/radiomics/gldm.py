"""Grey level dependence (Sun and Wee 1983): 14 values of each segment.

The dependence of a voxel is one plus how many of its 26 neighbours have its level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.stages.radiomics import emphasis
from workbench.stages.radiomics.discretise import Levels

NAMES = {
    "dependence_entropy": "entropy",
    "dependence_non_uniformity": "size_non_uniformity",
    "dependence_non_uniformity_normalized": "size_non_uniformity_normalized",
    "dependence_variance": "size_variance",
    "gray_level_non_uniformity": "level_non_uniformity",
    "gray_level_variance": "level_variance",
    "high_gray_level_emphasis": "high",
    "large_dependence_emphasis": "large",
    "large_dependence_high_gray_level_emphasis": "large_high",
    "large_dependence_low_gray_level_emphasis": "large_low",
    "low_gray_level_emphasis": "low",
    "small_dependence_emphasis": "small",
    "small_dependence_high_gray_level_emphasis": "small_high",
    "small_dependence_low_gray_level_emphasis": "small_low",
}
UNDEFINED_IF_CONSTANT = ()


def describe(levels: Levels) -> Tensor:
    """Values `[s 14]`."""
    if levels.tally:
        cells = emphasis.Cells.counted(levels, levels.tally.dependences[:, None])
    else:
        cells = emphasis.Cells.of(levels, levels.row.flatten(), dependences(levels).flatten())
    values = emphasis.describe(cells)
    return torch.stack([values[name] for name in NAMES.values()], 1)


def dependences(levels: Levels) -> Tensor:
    """How many of each voxel and its neighbours have its level `[i n]`."""
    return 1 + sum(equal.sum(0, dtype=torch.int32) for equal in (levels.equal, levels.equal_behind))
