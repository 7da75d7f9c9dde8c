"""Grey level zones (Thibault et al. 2009): 16 values of each segment.

A zone is a 26-connected set of voxels of one level. Zones are the components of a graph whose nodes are the runs
along x and whose edges are touches of runs of equal level; components by hooking the larger root to the smaller and
pointer jumping, which needs a few rounds of scatter and gather and no loop over lesions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.radiomics import emphasis, glrlm
from workbench.radiomics.discretise import Levels
from workbench.radiomics.ragged import DIRECTIONS

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


def components(nodes: int, a: Tensor, b: Tensor) -> Tensor:
    """Root (smallest node) of each node's component `[nodes]`, for edges a, b."""
    root = torch.arange(nodes, device=a.device)
    while True:
        ra, rb = root[a], root[b]
        open_ = ra != rb
        if not bool(open_.any()):
            return root
        a, b, ra, rb = a[open_], b[open_], ra[open_], rb[open_]
        root = root.scatter_reduce(0, torch.maximum(ra, rb), torch.minimum(ra, rb), "amin")
        while True:
            further = root[root]
            if torch.equal(further, root):
                break
            root = further


def zones(levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
    """Segment, level and size of every zone."""
    voxels = levels.voxels
    level, n = levels.level, voxels.lesion.numel()
    own = level[:, :-1]
    order, start, _ = glrlm.along(voxels, 0)
    at, value, length = glrlm.runs(own, order, start)
    first = torch.zeros(own.numel(), dtype=torch.bool, device=own.device)
    first[at] = True
    run = (first.cumsum(0) - 1).view_as(own)
    first = first.view_as(own)
    edges = []
    for d, step in enumerate(DIRECTIONS):
        if step[2] or not (step[0] or step[1]):
            continue
        ahead = voxels.ahead[d]
        straight = level[:, ahead] == own
        # two runs that touch along a stretch need one edge: where either begins
        other = ahead.clamp(max=n - 1)
        edges.append((straight & (first | first[:, other]), other))
        for side in (-1, 1):
            diagonal = voxels.ahead[DIRECTIONS.index((step[0], step[1], side))]
            edges.append(((level[:, diagonal] == own) & ~straight, diagonal.clamp(max=n - 1)))
    a, b = [], []
    for touch, other in edges:
        image, voxel = touch.nonzero(as_tuple=True)
        a.append(run[image, voxel])
        b.append(run[image, other[voxel]])
    root = components(at.numel(), torch.cat(a), torch.cat(b))
    size = torch.bincount(root, weights=length.double(), minlength=at.numel()).long()
    zone = (size > 0).nonzero().flatten()
    return levels.segment.flatten()[at[zone]], value[zone], size[zone]


def describe(levels: Levels) -> Tensor:
    """Values `[s 16]`."""
    segment, level, size = zones(levels)
    values = emphasis.describe(emphasis.Cells.of(segment, level, size, levels.segments))
    values["percentage"] = values["count"] / values["voxels"]
    return torch.stack([values[name] for name in NAMES.values()], 1)
