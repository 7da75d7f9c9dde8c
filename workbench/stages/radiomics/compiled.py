"""The engine's inner loops on a CPU by compiled code (loops.c), where it was built; without it, and on CUDA, by torch.

Both count the same whole numbers and add in the same order, so that no descriptor depends on which of them did (decision
0007). The code is built with the package where there is a C compiler, and called without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int, c_int32, c_int64, c_uint8, c_uint16, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.masks import DIRECTIONS, steps

if TYPE_CHECKING:
    from workbench.stages.radiomics.discretise import Levels
    from workbench.stages.radiomics.ragged import Voxels

FILTERS = {torch.float32: "workbench_filter_float", torch.float64: "workbench_filter_double"}
VERSION = 1  # of loops.c
MOST_EQUAL = 3**3  # a voxel and its 26 neighbours


# Along an axis first: such a neighbour touches most of the others. BEFORE: which earlier ones touch a neighbour.
ORDER = sorted(range(len(DIRECTIONS)), key=lambda d: (sum(map(abs, DIRECTIONS[d])), -DIRECTIONS[d][0]))
BEFORE = {
    d: [e for e in ORDER[:k] if all(abs(a - b) <= 1 for a, b in zip(DIRECTIONS[d], DIRECTIONS[e]))]
    for k, d in enumerate(ORDER)
}


class _Work(Structure):
    _fields_ = [
        ("level", c_void_p),
        *((name, c_int64) for name in ("bytes", "stride", "images", "lesions", "box")),
        *((name, POINTER(c_int64)) for name in ("begin", "local", "steps")),
    ]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None where it was not built, or from other source than this."""
    built = [Path(__file__).with_name(f"_loops{suffix}") for suffix in EXTENSION_SUFFIXES]
    built = [path for path in built if path.is_file()]
    if not built:
        return None
    code = ctypes.CDLL(str(built[0]))
    if code.workbench_version() != VERSION:
        return None
    work, whole, real, count = POINTER(_Work), POINTER(c_int64), POINTER(c_double), POINTER(c_int32)
    line = [c_void_p, c_int64, c_int64, c_int64]
    takes = {
        "workbench_pairs": (c_int, [work, whole, whole, c_int64, count]),
        "workbench_tally": (
            c_int64,
            [work, whole, c_int64, POINTER(c_uint16), count, count, real, POINTER(c_uint8), count, count],
        ),
        "workbench_surface": (c_int, [POINTER(c_uint8), c_int64, whole, whole, real, real, whole, real, real]),
        "workbench_smooth": (c_int, [*line, POINTER(c_float), c_int64, c_void_p]),
        **{name: (None, [*line, real, c_void_p]) for name in FILTERS.values()},
    }
    for name, (gives, own) in takes.items():
        function = getattr(code, name)
        function.restype, function.argtypes = gives, own
    return code


def _code() -> ctypes.CDLL:
    """The compiled code, where `usable` has said that it is there."""
    code = library()
    assert code is not None
    return code


def usable(tensor: Tensor) -> bool:
    """Whether compiled code can work where a tensor lies."""
    return tensor.device.type == "cpu" and library() is not None


def pairs(levels: Levels, start: Int[Tensor, " s"], width: Int[Tensor, " s"], cells: int) -> Int[Tensor, "13 cells"]:
    """Counts of levels ahead of levels, int32, as `glcm.matrices` lays them out."""
    table = torch.zeros((len(DIRECTIONS), cells), dtype=torch.int32)
    work = _work(levels)
    if _code().workbench_pairs(byref(work), _at(start), _at(width), cells, _at(table)):
        raise MemoryError("texture counts")
    return table


@dataclass(frozen=True)
class Tally:
    """`runs` by row (`Levels`), direction and length less 1; `dependences` by how many of a voxel's 26 neighbours have its
    level; `distance` summed to the mean level of the neighbours; `paired` whether two voxels are neighbours; row and size
    of each zone."""

    runs: Int[Tensor, "r 13 longest"]
    dependences: Int[Tensor, "r 27"]
    distance: Float[Tensor, " r"]
    paired: Bool[Tensor, "13 l"]
    zone_row: Int[Tensor, " z"]
    zone_size: Int[Tensor, " z"]


def tally(levels: Levels) -> Tally:
    """All counts but pairs, of all segments."""
    voxels, rows = levels.voxels, levels.row_segment.numel()
    longest, lesions, n = max(voxels.shape), voxels.count.numel(), voxels.local.numel()
    runs = torch.zeros((rows, len(DIRECTIONS), longest), dtype=torch.int32)
    dependences = torch.zeros((rows, MOST_EQUAL), dtype=torch.int32)
    distance = torch.zeros(rows, dtype=torch.float64)
    paired = torch.zeros((len(DIRECTIONS), lesions), dtype=torch.uint8)
    row, size = torch.empty((2, levels.images * n), dtype=torch.int32)
    work = _work(levels)
    zones = _code().workbench_tally(
        byref(work), _at(levels.first_row), longest, _needed(), _at(runs), _at(dependences), _at(distance), _at(paired),
        _at(row), _at(size),
    )  # fmt: skip
    if zones < 0:
        raise MemoryError("texture counts")
    runs[..., 0] = levels.row_count[:, None] - runs @ torch.arange(1, longest + 1, dtype=torch.int32)
    return Tally(runs, dependences, distance, paired.bool(), row[:zones], size[:zones])


def surface(
    voxels: Voxels,
    low: Int[Tensor, "l 3"],
    corners: Int[Tensor, "8 3"],
    area: Float[Tensor, " 256"],
    terms: Float[Tensor, "256 4"],
    half_mm: Float[Tensor, " 3"],
) -> Float[Tensor, "*shorter"]:
    """Sums over the surface and largest distances of its vertices: area in mm², volume in voxels, squared
    distances in mm² of two vertices in one plane of z, of y, of x, and of any two.

    `low` one less than the first voxel of each region in `voxels.inner`; `corners` of a cube; `area` and `terms` by its
    code; `half_mm` the size of half a voxel.
    """
    l, z, y, x = voxels.inner.shape
    out = torch.empty((l, 6), dtype=torch.float64)
    shape, corner = torch.tensor([z, y, x]), corners @ torch.tensor([y * x, x, 1])
    region = voxels.inner.view(torch.uint8)
    if _code().workbench_surface(
        _at(region), l, _at(shape), _at(corner), _at(area), _at(terms), _at(low), _at(half_mm), _at(out)
    ):
        raise MemoryError("surfaces")
    return out


def filtered(image: Float[Tensor, "*k"], taps: Sequence[float], axis: int) -> Float[Tensor, "*shorter"]:
    """A filter of 6 taps along an axis: out[i] = sum over j of taps[j] image[i + 5 - j]."""
    image = image.contiguous()
    step, n = image.stride(axis), image.shape[axis]
    out = image.new_empty([m - 5 if a == axis else m for a, m in enumerate(image.shape)])
    getattr(_code(), FILTERS[image.dtype])(
        image.data_ptr(), image.numel() // (n * step), n * step, step, (c_double * 6)(*taps), out.data_ptr()
    )
    return out


def smoothed(volume: Float[Tensor, "*k"], taps: Sequence[float], axis: int) -> Float[Tensor, "*k"]:
    """A symmetric filter of a float32 volume along an axis, its taps from the middle outwards, zero outside."""
    volume = volume.contiguous()
    assert volume.dtype == torch.float32
    step, n, out = volume.stride(axis), volume.shape[axis], torch.empty_like(volume)
    if _code().workbench_smooth(
        volume.data_ptr(), volume.numel() // (n * step), n, step, (c_float * len(taps))(*taps), len(taps) - 1,
        out.data_ptr(),
    ):  # fmt: skip
        raise MemoryError("blur")
    return out


@lru_cache
def _needed() -> ctypes.Array:
    """For each set of neighbours of equal level (bits), those to join: not those that touch an earlier one."""
    masks = [0]
    for mask in range(1, 1 << len(DIRECTIONS)):
        held = [d for d in ORDER if mask >> d & 1]
        masks.append(sum(1 << d for d in held if not any(mask >> e & 1 for e in BEFORE[d])))
    return (c_uint16 * len(masks))(*masks)


_TYPES = {torch.uint8: c_uint8, torch.int32: c_int32, torch.int64: c_int64, torch.float64: c_double}


def _at(tensor: Tensor) -> ctypes._Pointer:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.cast(tensor.data_ptr(), POINTER(_TYPES[tensor.dtype]))


def _work(levels: Levels) -> _Work:
    voxels, level = levels.voxels, levels.level
    assert level.is_contiguous() and level.dtype in (torch.uint8, torch.int16)
    assert voxels.local.is_contiguous() and voxels.local.dtype == torch.int64
    z, y, x = voxels.shape
    begin = torch.nn.functional.pad(voxels.count.cumsum(0), (1, 0))
    far = torch.tensor(steps(voxels.shape))
    work = _Work(
        level.data_ptr(), level.element_size(), level.shape[1], level.shape[0], voxels.count.numel(), z * y * x,
        _at(begin), _at(voxels.local), _at(far),
    )  # fmt: skip
    work.held = begin, far, voxels.local, level  # as long as their addresses are
    return work
