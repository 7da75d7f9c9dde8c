"""Grey levels: HU and sub-band values in bins of 25.

We CHOOSE PyRadiomics's fixed bin width (*fixed*, parity): level = floor(x / w) - floor(min / w) + 1, so bins start at a
multiple of the width and level 1 holds the region's minimum. The edge below the minimum is computed in the image's own
floating type, as PyRadiomics does; the rest in float64.

`Levels` carries the levels of several images (the HU image and its sub-bands) of the same regions. A *segment* is one
lesion in one image: everything texture is computed for all segments at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.radiomics.ragged import Voxels

BIN_WIDTH = 25.0
TABLE = 32_000_000  # most counts that a table of matrices holds at once (bytes: 8 times that)
_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


@dataclass(frozen=True)
class Levels:
    """Grey levels of several images of the same regions.

    `level` `[i n + 1]`, 1 .. `top`, and 0 in the last column for no neighbour; `segment` `[i n]` is image * lesions +
    lesion; `top` `[s]` the largest level; `constant` `[s]` whether all values are equal but for rounding.
    """

    voxels: Voxels
    level: Tensor
    segment: Tensor
    top: Tensor
    constant: Tensor

    @property
    def images(self) -> int:
        return self.level.shape[0]

    @property
    def segments(self) -> int:
        return self.top.numel()

    def groups(self, cells_per_level: int, squared: bool) -> Iterator[Group]:
        """Segments with about as many levels, at most `TABLE` cells at once.

        A segment's matrix takes `cells_per_level` cells for each of its levels (or pairs of levels).
        """
        steps = torch.tensor([*_STEPS, 1 << 30], device=self.top.device)
        size = steps[torch.searchsorted(steps, self.top)]
        size = torch.where(size == 1 << 30, (self.top + 63) // 64 * 64, size)
        order = size.argsort(stable=True)
        held, cells = [], 0
        for width, count in zip(*(v.tolist() for v in torch.unique(size, return_counts=True))):
            each = cells_per_level * width * (width if squared else 1)
            here, order = order[:count], order[count:]
            for some in here.split(max(1, TABLE // each)):
                if held and cells + each * some.numel() > TABLE:
                    yield Group(held, self.segments)
                    held, cells = [], 0
                held.append((some, width, each))
                cells += each * some.numel()
        if held:
            yield Group(held, self.segments)


class Group:
    """A table of counts for some segments: `start` `[s]` of each segment's matrix, or -1; `width` `[s]` its levels."""

    def __init__(self, held: list[tuple[Tensor, int, int]], segments: int):
        device = held[0][0].device
        self.start = torch.full((segments,), -1, dtype=torch.int64, device=device)
        self.width = torch.ones((segments,), dtype=torch.int64, device=device)
        self.parts, at = [], 0
        for some, width, each in held:
            self.start[some] = at + each * torch.arange(some.numel(), device=device)
            self.width[some] = width
            self.parts.append((some, width, slice(at, at + each * some.numel())))
            at += each * some.numel()
        self.cells = at

    @property
    def whole(self) -> bool:
        return bool((self.start >= 0).all())


def discretise(values: Tensor, voxels: Voxels, noise: Tensor, width: float = BIN_WIDTH) -> Levels:
    """Levels of `values` `[i n]`; a segment whose range is at most `noise` `[l]` counts as constant, with level 1."""
    images, n = values.shape
    l = voxels.count.numel()
    segment = voxels.lesion + l * torch.arange(images, device=values.device)[:, None]
    flat = segment.flatten()
    ends = values.new_zeros(images * l)
    low = ends.scatter_reduce(0, flat, values.flatten(), "amin", include_self=False)
    high = ends.scatter_reduce(0, flat, values.flatten(), "amax", include_self=False)
    constant = (high - low).view(images, l) <= noise
    edge = (low - low.remainder(width)).double()
    level = torch.floor((values.double() - edge[segment]) / width).long() + 1
    level = torch.where(constant.flatten()[segment], 1, level)
    top = level.new_ones(images * l).scatter_reduce(0, flat, level.flatten(), "amax")
    level = torch.cat([level, level.new_zeros((images, 1))], 1)
    return Levels(voxels, level, segment, top, constant.flatten())
