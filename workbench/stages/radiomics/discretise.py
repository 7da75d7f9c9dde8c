"""Grey levels: HU and sub-band values in bins of 25.

We CHOOSE PyRadiomics's fixed bin width (*fixed*, parity): level = floor(x / w) - floor(min / w) + 1, so bins start at a
multiple of the width and level 1 holds the region's minimum. The edge below the minimum is computed in the image's own
floating type, as PyRadiomics does; the rest in float64.

`Levels` carries the levels of several images (the HU image and its sub-bands) of the same regions. A *segment* is one
lesion in one image: everything texture is computed for all segments at once. A *row* is one level of one segment; the
rows of all segments are numbered through, so that counts by row need no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor

from workbench.stages.radiomics.compiled import Tally, tally, usable
from workbench.stages.radiomics.ragged import Voxels, counted, ends

BIN_WIDTH = 25.0
TABLE = 32_000_000  # most counts that a table of matrices holds at once (bytes: 8 times that)
MOST = 1000  # rule: levels in one segment, 25,000 HU; the square of it is the size of a matrix
# widths of matrices
_STEPS = (*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8), *range(80, 129, 16))
# cells that take as long as to begin the work on one more width: an estimate (on a CPU 0 to 300,000 took the same; on a GPU not measured)
PADDING = {"cpu": 40_000, "cuda": 4_000_000}


@dataclass(frozen=True)
class Levels:
    """Grey levels of several images of the same regions.

    `level` 1 .. `top`, and 0 in the last column for no neighbour (uint8 where that suffices); a segment is
    image * lesions + lesion; `top` the largest level; `constant` whether all values are equal but for
    rounding, `beyond` whether there would be more than `MOST` levels; both have the one level 1.
    """

    voxels: Voxels
    level: Integer[Tensor, "i n_and_1"]
    top: Int[Tensor, " s"]
    constant: Bool[Tensor, " s"]
    beyond: Bool[Tensor, " s"]

    def of(self, images: Sequence[int]) -> Levels:
        """The levels of some of the images."""
        if list(images) == list(range(self.images)):
            return self
        some = [*images]
        by_segment = (v.view(self.images, -1)[some].flatten() for v in (self.top, self.constant, self.beyond))
        return Levels(self.voxels, self.level[some], *by_segment)

    @property
    def images(self) -> int:
        return self.level.shape[0]

    @property
    def segments(self) -> int:
        return self.top.numel()

    @property
    def own(self) -> Integer[Tensor, "i n"]:
        """Levels of the voxels themselves."""
        return self.level[:, :-1]

    @cached_property
    def ahead(self) -> Integer[Tensor, "13 i n"]:
        """Level of the neighbour in each of the 13 directions, 0 where there is none."""
        return self._beside(self.voxels.beside[0])

    @cached_property
    def behind(self) -> Integer[Tensor, "13 i n"]:
        """Level of the neighbour against each direction."""
        return self._beside(self.voxels.beside[1])

    def _beside(self, at: Tensor) -> Tensor:
        return picked(self.level, at.flatten()).view(self.images, *at.shape).transpose(0, 1)

    @cached_property
    def tally(self) -> Tally | None:
        """The counts that compiled code has made, or None where torch counts."""
        return tally(self) if usable(self.level) else None

    @cached_property
    def paired(self) -> Bool[Tensor, "13 l"]:
        """In which directions two voxels of each lesion are neighbours."""
        if self.tally:
            return self.tally.paired
        end = self.voxels.count.cumsum(0)
        met = torch.nn.functional.pad((self.voxels.beside[0] < self.voxels.lesion.numel()).cumsum(1), (1, 0))
        return met[:, end] > met[:, end - self.voxels.count]

    @cached_property
    def equal(self) -> Bool[Tensor, "13 i n"]:
        """Whether the neighbour ahead has the same level."""
        return self.ahead == self.own

    @cached_property
    def equal_behind(self) -> Bool[Tensor, "13 i n"]:
        """Whether the neighbour against each direction has the same level."""
        return self.behind == self.own

    def by_voxel(self, values: Shaped[Tensor, " s"]) -> Shaped[Tensor, "i n"]:
        """Values of the segments at their voxels."""
        return values.view(self.images, -1).index_select(1, self.voxels.lesion)

    @cached_property
    def first_row(self) -> Int[Tensor, " s"]:
        """The first row of each segment."""
        return self.top.cumsum(0) - self.top

    @cached_property
    def row_segment(self) -> Int[Tensor, " r"]:
        """The segment of each row."""
        return torch.arange(self.segments, device=self.top.device).repeat_interleave(self.top)

    @cached_property
    def row_level(self) -> Int[Tensor, " r"]:
        """The level of each row."""
        place = torch.arange(self.row_segment.numel(), device=self.top.device)
        return place - self.first_row[self.row_segment] + 1

    @cached_property
    def row(self) -> Int[Tensor, "i n"]:
        """The row of each voxel, int32."""
        return self.by_voxel((self.first_row - 1).int()) + self.own

    @cached_property
    def row_count(self) -> Int[Tensor, " r"]:
        """How many voxels each row has."""
        return counted(self.row.flatten(), self.row_segment.numel())

    def groups(self, cells_per_level: int, dear: int = 1) -> Iterator[Group]:
        """Segments with about as many levels, at most `TABLE` cells at once.

        A segment's matrix takes `cells_per_level` cells for each of its pairs of levels, one more column than rows. A
        width joins the next where filling up to it costs less than work of its own (`PADDING`, for cells `dear` times as dear).
        """
        steps = torch.tensor([*_STEPS, 1 << 30], device=self.top.device)
        size = steps[torch.searchsorted(steps, self.top)]
        size = torch.where(size == 1 << 30, (self.top + 63) // 64 * 64, size)
        order = size.argsort(stable=True)
        held: list[tuple[Tensor, int, int]] = []
        cells, spare = 0, PADDING[self.top.device.type] // (cells_per_level * dear)
        widths, counts = (v.tolist() for v in torch.unique(size, return_counts=True))
        for width, count in _joined(widths, counts, spare):
            each = width * (width + 1)
            here, order = order[:count], order[count:]
            for some in here.split(max(1, TABLE // (each * cells_per_level))):
                if held and (cells + each * some.numel()) * cells_per_level > TABLE:
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
        self.parts: list[tuple[Tensor, int, slice]] = []
        self.cells = 0
        for some, width, each in held:
            self.start[some] = self.cells + each * torch.arange(some.numel(), device=device)
            self.width[some] = width
            end = self.cells + each * some.numel()
            self.parts.append((some, width, slice(self.cells, end)))
            self.cells = end


def _joined(widths: list[int], counts: list[int], spare: int) -> Iterator[tuple[int, int]]:
    """Widths and their counts, ascending, each with the narrower ones that it takes in for at most `spare` more cells."""
    waiting, filled = 0, 0
    for k, (width, count) in enumerate(zip(widths, counts)):
        waiting, filled = waiting + count, filled + count * width**2
        if k + 1 < len(widths) and waiting * widths[k + 1] ** 2 - filled <= spare:
            continue
        yield width, waiting
        waiting, filled = 0, 0


def picked(values: Shaped[Tensor, "i n"], at: Int[Tensor, " m"]) -> Shaped[Tensor, "i m"]:
    """`values[:, at]`; image by image where there are many voxels, which is four times faster on a CPU."""
    if values.is_cuda or at.numel() < 2000:
        return values.index_select(1, at)
    out = values.new_empty((values.shape[0], at.numel()))
    for one, row in zip(out, values):
        torch.index_select(row, 0, at, out=one)
    return out


def _steps(values: Tensor, edge: Tensor, width: float) -> Tensor:
    """How many bin edges above `edge` each value reaches. One just below an edge may lie a whole number of widths above `edge` by rounding."""
    steps = (values - edge).div_(width).floor_()
    return steps.sub_((steps * width + edge > values).double())


def discretise(
    values: Float[Tensor, "i n"], voxels: Voxels, noise: Float[Tensor, " l"], width: float = BIN_WIDTH
) -> Levels:
    """Levels of `values`; a segment whose range is at most `noise` counts as constant, with level 1."""
    images, n = values.shape
    low, high = ends(values, voxels.lesion, voxels.count.numel())
    constant = high - low <= noise
    edge = (low - low.remainder(width)).double()
    span = torch.where(constant, 0, _steps(high.double(), edge, width))
    beyond = ~(span < MOST)  # not a number counts as beyond
    top = torch.where(beyond, 0, span).long() + 1
    level = values.new_zeros((images, n + 1), dtype=torch.uint8 if int(top.max()) < 256 else torch.int16)
    first, single = (v.index_select(1, voxels.lesion) for v in (edge, constant | beyond))
    level[:, :-1] = _steps(values.double(), first, width).masked_fill_(single, 0).add_(1)
    return Levels(voxels, level, top.flatten(), constant.flatten(), beyond.flatten())
