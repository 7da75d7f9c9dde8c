"""The shape group: 14 values of each region's surface mesh and voxels, float64.

We CHOOSE PyRadiomics's set. The mesh is marching cubes at 0.5 of the mask (Lorensen and Cline 1987) with the
triangles of the widespread public-domain table (Bloyd, in Bourke's "Polygonising a scalar field", 1994); a cube whose
corner (z 1, y 1, x 0) is inside takes the triangles of its complement, as PyRadiomics does. The mesh is never built:
area and volume are sums over cubes of a value of the cube's code. The signed volume of a triangle is linear in the
cube's place, so a table of its constant and of its three slopes is enough; the origin matters (complemented cubes
leave small holes) and is PyRadiomics's, one voxel before the region's box.

Largest distances between mesh vertices: a vertex inside a line of vertices cannot be an end of the longest distance, so
only the points that end their lines along each of 13 directions (4 in a plane) are compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.masks import DIRECTIONS
from workbench.stages.radiomics import compiled
from workbench.stages.radiomics.ragged import Boxes, Voxels, ends, total
from workbench.volume import Spacing

NAMES = (
    "elongation", "flatness", "least_axis", "major_axis", "maximum_diameter_xz", "maximum_diameter_yz",
    "maximum_diameter_xy", "maximum_diameter", "mesh_volume", "minor_axis", "sphericity", "surface_area",
    "surface_volume_ratio", "voxel_volume",
)  # fmt: skip
PAIRS = 20_000_000  # pairs of points compared at once

# Triangles of cube codes 0 .. 127, three edges each (hexadecimal). Bit k of a code is corner k.
_TRIANGLES = """
- 083 019 183981 12a 08312a 92a029 2832a8a98 3b2 0b28b0 19023b 1b219b98b 3a1ba3 0a108a8ba 3903b9ba9 98aa8b
478 430734 019847 419471731 12a847 34730412a 92a902847 2a9297273794
8473b2 b47b24204 90184723b 47b94b9b2921 3a13ba784 1ba14b1047b4 47890b9bab03 47b4b99ba
954 954083 054150 854835315 12a954 30812a495 52a542402 2a5325354348
95423b 0b208b495 05401523b 21525828b485 a3ba13954 4950a108a8ba 54050b5bab03 54858aa8b
978579 930953573 078017157 153357 978957a12 a12950530573 802825857a52 2a5253357
7957893b2 95797292027b 23b018178157 b21b17715 958857a13a3b 5705097b010aba0 ba0b03a50807570 ba57b5
a65 0835a6 9015a6 1831985a6 165261 165126308 965906026 598582526328
23ba65 b08b20a65 01923b5a6 5a61929b298b 63b653513 08b0b50515b6 3b6036065059 65969bb98
5a6478 43047365a 1905a6847 a65197173794 612651478 125526304347 847905065026 739794329596269
3b2784a65 5a647242027b 01947823b5a6 9219b294b7b45a6 8473b53515b6 51b5b610b7b404b 059065036b63847 65969b4797b9
a4964a 4a649a083 a01a60640 83181686461a 149124264 308129249264 024426 832824426
a49a64b23 08228b49a4a6 3b201606461a 64161a48121b8b1 964936913b63 8b1810b61914641 3b6360064 648b68
7a678a89a 0730a709a67a a671a7178180 67aa71173 126168189867 269291679093739 780706602 732672
23ba68a89867 20727b09767a9a7 1801781a767a23b b21b17a61671 896867916b63136 091b67 7807063b0b60 7b6
""".split()
_EDGES = (  # the middle of each of the cube's 12 edges, (z, y, x)
    (0, 0, 0.5), (0, 0.5, 1), (0, 1, 0.5), (0, 0.5, 0), (1, 0, 0.5), (1, 0.5, 1), (1, 1, 0.5), (1, 0.5, 0),
    (0.5, 0, 0), (0.5, 0, 1), (0.5, 1, 1), (0.5, 1, 0),
)  # fmt: skip
_CORNERS = ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0))


@lru_cache
def tables(spacing_mm: Spacing) -> tuple[Float[Tensor, " 256"], Float[Tensor, "256 4"]]:
    """For each cube code: area in mm²; volume terms in voxels, constant and slopes along z, y, x."""
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    edges = torch.tensor(_EDGES, dtype=torch.float64)
    area, terms = torch.zeros(256, dtype=torch.float64), torch.zeros((256, 4), dtype=torch.float64)
    for code, text in enumerate(_TRIANGLES):
        if text == "-":
            continue
        a, b, c = edges[[int(e, 16) for e in text]].view(-1, 3, 3).unbind(1)
        area[code] = torch.linalg.cross((a - c) * spacing, (b - c) * spacing).norm(dim=1).sum() / 2
        normal = torch.linalg.cross(a, b) + torch.linalg.cross(b, c) + torch.linalg.cross(c, a)
        terms[code, 0] = (torch.linalg.cross(a, b) * c).sum() / 6
        terms[code, 1:] = normal.sum(0) / 6
    # the complement has the same triangles, turned over
    return area + area.flip(0), terms - terms.flip(0)


def describe(boxes: Boxes, names: Collection[str] = NAMES) -> Float[Tensor, "l 14"]:
    """Values in the order of `NAMES`; NaN for the axes' ratios of a single voxel, and on a GPU for diameters where none was asked for."""
    voxels, l, spacing_mm = boxes.voxels, boxes.count, boxes.spacing_mm
    voxel_mm3 = math.prod(spacing_mm)
    if compiled.usable(boxes.hu):
        area, volume, *across = _compiled(boxes)
    else:
        area, volume = _surface(boxes)
        far = any("diameter" in name for name in names)
        across = diameters(boxes) if far else [torch.full_like(area, torch.nan)] * 4
    d_xy, d_xz, d_yz, d_3d = across
    axes = _axes(voxels, spacing_mm)
    least, minor, major = (4 * axes.sqrt()).unbind(1)
    several = voxels.count > 1
    out = dict(
        elongation=minor / major, flatness=least / major, least_axis=least, major_axis=major, minor_axis=minor,
        maximum_diameter_xz=d_xz, maximum_diameter_yz=d_yz, maximum_diameter_xy=d_xy, maximum_diameter=d_3d,
        mesh_volume=volume, surface_area=area, sphericity=(36 * math.pi * volume**2) ** (1 / 3) / area,
        surface_volume_ratio=area / volume, voxel_volume=voxels.count.double() * voxel_mm3,
    )  # fmt: skip
    for name in ("elongation", "flatness", "least_axis", "major_axis", "minor_axis"):
        out[name] = torch.where(several, out[name], torch.nan)
    return torch.stack([out[name].reshape(l) for name in NAMES], 1)


def _surface(boxes: Boxes) -> tuple[Tensor, Tensor]:
    area_of, terms_of = (t.to(boxes.hu.device) for t in tables(boxes.spacing_mm))
    cut = boxes.voxels.inner.to(torch.uint8)
    z, y, x = (n - 1 for n in cut.shape[1:])
    code = torch.zeros((cut.shape[0], z, y, x), dtype=torch.uint8, device=cut.device)
    for bit, (dz, dy, dx) in enumerate(_CORNERS):
        code |= cut[:, dz : dz + z, dy : dy + y, dx : dx + x] << bit
    lesion, *place = ((code > 0) & (code < 255)).nonzero(as_tuple=True)
    code = code[(lesion, *place)].long()
    low, terms = _low(boxes), terms_of[code]
    volume = terms[:, 0]
    for axis in range(3):
        volume = volume + terms[:, axis + 1] * (place[axis] - low[lesion, axis])
    area, volume = total(torch.stack([area_of[code], volume]), lesion, boxes.count)
    return area, volume * math.prod(boxes.spacing_mm)


def _low(boxes: Boxes) -> Tensor:
    """One less than the first voxel of each region in the boxes of `inner`, along each axis `[l 3]`."""
    low, _ = ends(boxes.voxels.zyx.T, boxes.voxels.lesion, boxes.count)
    return (low.T - 1 - low.new_tensor([cut.start for cut in boxes.inner(1)[1:]])).contiguous()


def _compiled(boxes: Boxes) -> tuple[Tensor, ...]:
    """What `_surface` and `diameters` give."""
    half = torch.tensor(boxes.spacing_mm, dtype=torch.float64) / 2
    found = compiled.surface(boxes.voxels, _low(boxes), torch.tensor(_CORNERS), *tables(boxes.spacing_mm), half)
    area, volume, *distances = found.unbind(1)
    return area, volume * math.prod(boxes.spacing_mm), *(d.sqrt() for d in distances)


def _axes(voxels: Voxels, spacing_mm: Spacing) -> Tensor:
    """Eigenvalues of the covariance of voxel centres in mm, ascending `[l 3]`; rounding below 0 is cut."""
    l = voxels.count.numel()
    mm = voxels.zyx.T * torch.tensor(spacing_mm, dtype=torch.float64, device=voxels.zyx.device)[:, None]
    away = mm - (total(mm, voxels.lesion, l) / voxels.count)[:, voxels.lesion]
    covariance = (total(away[:, None] * away, voxels.lesion, l) / voxels.count).permute(2, 0, 1)
    values = torch.linalg.eigvalsh(covariance)
    return torch.where(values > 1e-13 * values[:, 2:], values, 0.0)


def diameters(
    boxes: Boxes,
) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"], Float[Tensor, " l"], Float[Tensor, " l"]]:
    """Largest distance of mesh vertices in mm: of one z, of one y, of one x, of all."""
    cut, owners, places = boxes.voxels.inner, [], []
    for axis in range(3):  # a vertex in the middle of each edge between region and background; half voxels as integers
        n = cut.shape[axis + 1] - 1
        at = (cut.narrow(axis + 1, 0, n) ^ cut.narrow(axis + 1, 1, n)).nonzero()
        half = 2 * at[:, 1:]
        half[:, axis] += 1
        owners.append(at[:, 0])
        places.append(half)
    spacing = torch.tensor(boxes.spacing_mm, dtype=torch.float64, device=cut.device) / 2

    def largest(same: int | None) -> Tensor:
        """Of those with one coordinate along this axis."""
        lesion, place = torch.cat(owners), torch.cat(places)
        for step in DIRECTIONS:
            if same is None or step[same] == 0:
                keep = _line_ends(lesion, place, step)
                lesion, place = lesion[keep], place[keep]
        return _farthest(lesion, place, spacing, same, boxes.count)

    return largest(0), largest(1), largest(2), largest(None)


def _line_ends(lesion: Tensor, place: Tensor, step: tuple[int, int, int]) -> Tensor:
    """Positions of the first and last point of each line along a direction."""
    moving = next(a for a in range(3) if step[a])
    t = place[:, moving]
    foot = [place[:, a] - t * step[a] + 4096 for a in range(3) if a != moving]
    key = ((lesion * 16384 + foot[0]) * 16384 + foot[1]) * 4096 + t
    key, order = key.sort()
    line = key >> 12
    new = torch.ones_like(line, dtype=torch.bool)
    new[1:] = line[1:] != line[:-1]
    last = torch.ones_like(new)
    last[:-1] = new[1:]
    return order[new | last]


def _farthest(lesion: Tensor, place: Tensor, spacing: Tensor, same: int | None, l: int) -> Tensor:
    """Largest distance of two points of one lesion (and of one coordinate along `same`), `[l]` mm."""
    key = lesion if same is None else lesion * 4096 + place[:, same]
    order = key.argsort(stable=True)
    key, lesion, mm = key[order], lesion[order], place[order] * spacing
    if same is None:
        keep = _far(lesion, mm, l)
        key, lesion, mm = key[keep], lesion[keep], mm[keep]
    _, count = torch.unique_consecutive(key, return_counts=True)
    first = count.cumsum(0) - count
    order = count.argsort(stable=True)
    sizes, out, begin = count[order].tolist(), mm.new_zeros(l), 0
    while begin < len(sizes):  # groups of about one size at once, each filled up with its last point
        stop = begin + 1
        while (
            stop < len(sizes)
            and sizes[stop] <= 1.5 * sizes[begin] + 8
            and (stop + 1 - begin) * sizes[stop] ** 2 <= PAIRS
        ):
            stop += 1
        some = order[begin:stop]
        rank = torch.arange(sizes[stop - 1], device=key.device).minimum(count[some, None] - 1)
        points = mm[first[some, None] + rank]
        apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").amax((1, 2))
        out = out.scatter_reduce(0, lesion[first[some]], apart, "amax")
        begin = stop
    return out


def _far(lesion: Tensor, mm: Tensor, l: int) -> Tensor:
    """Which points can be an end of their lesion's longest distance.

    The farthest pair among the extreme points along 13 directions bounds it from below; a point's distance to the
    middle of the bounding box plus the largest such distance bounds that point's pairs from above.
    """
    low, high = ends(mm.T, lesion, l)
    away = mm - ((low + high) / 2).T[lesion]
    radius = away.norm(dim=1)
    largest = mm.new_zeros(l).scatter_reduce(0, lesion, radius, "amax")
    least = mm.new_zeros(l)
    for z, y, x in _CORNERS + ((0, 1, -1), (1, 0, -1), (1, -1, 0), (1, -1, 1), (1, 1, -1), (1, -1, -1)):
        if (z, y, x) == (0, 0, 0):
            continue
        unit = mm.new_tensor([z, y, x]) / math.sqrt(z * z + y * y + x * x)
        bottom, top = ends(away @ unit, lesion, l)
        least = torch.maximum(least, top - bottom)  # two points are at least as far apart as their heights
    return radius + largest[lesion] >= least[lesion] * (1 - 1e-9)
