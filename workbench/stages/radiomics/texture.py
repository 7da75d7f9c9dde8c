"""Texture: the 75 values of each segment (`Levels`), 24 of co-occurrence (glcm.py) and 51 of what is here.

- Runs (Galloway 1975): stretches of equal level along one of 13 directions. The order of voxels along each direction's
  lines depends on the region alone and is shared by all images. Only runs of two voxels and more are looked for; the
  other voxels are runs of one. Values per direction, then their mean over the directions in which some line holds two
  region voxels (PyRadiomics drops the others).
- Zones (Thibault et al. 2009): 26-connected sets of voxels of one level (`workbench.masks`).
- Dependences (Sun and Wee 1983): one plus how many of a voxel's 26 neighbours have its level.
- Neighbourhood differences (Amadasun and King 1989): n(i) voxels of level i, s(i) the sum over them of the distance to
  the mean level of their neighbours in the region. A voxel without neighbours counts in n with distance 0, as in
  PyRadiomics (IBSI leaves it out).

Runs, zones and dependences share their formulas. A matrix P(i, j) is given as the list of its filled cells: its owner,
level i, size j and count. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.masks import DIRECTIONS, pieces, steps, together, true_at
from workbench.stages.radiomics import glcm
from workbench.stages.radiomics.discretise import Levels, picked
from workbench.stages.radiomics.ragged import Voxels, counted, total

SHORT = 64  # sizes up to this are counted in a table; the few larger ones are sorted
CAP = 1e6  # PyRadiomics's coarseness where all distances are 0


def _names(thing: str, small: str, large: str, level: str, sizes: str) -> dict[str, str]:
    """The catalogue's names of what `emphasis` gives, in its order, and the plain ones."""
    names = {f"{thing}_entropy": "entropy", f"{thing}_variance": "size_variance", f"{thing}_percentage": "percentage"}
    names |= {"gray_level_variance": "level_variance", f"{small}_emphasis": "small", f"{large}_emphasis": "large"}
    for end in ("", "_normalized"):
        names[f"gray_level_non_uniformity{end}"] = f"level_non_uniformity{end}"
        names[f"{sizes}_non_uniformity{end}"] = f"size_non_uniformity{end}"
    for end in ("low", "high"):
        names[f"{end}_{level}_emphasis"] = end
        names |= {
            f"{size}_{end}_gray_level_emphasis": f"{of}_{end}" for size, of in ((small, "small"), (large, "large"))
        }
    return dict(sorted(names.items()))


_PLAIN = {
    "glrlm": _names("run", "short_run", "long_run", "gray_level_run", "run_length"),
    "glszm": _names("zone", "small_area", "large_area", "gray_level_zone", "size_zone"),
    "gldm": _names("dependence", "small_dependence", "large_dependence", "gray_level", "dependence"),
}
# each voxel has one dependence: the one would always be 1, the other the uniformity of the intensity group
del _PLAIN["gldm"]["dependence_percentage"], _PLAIN["gldm"]["gray_level_non_uniformity_normalized"]
NAMES: dict[str, tuple[str, ...]] = {
    "glcm": glcm.NAMES,
    **{kind: tuple(names) for kind, names in _PLAIN.items()},
    "ngtdm": ("busyness", "coarseness", "complexity", "contrast", "strength"),
}
UNDEFINED_IF_CONSTANT = {
    "glcm": glcm.UNDEFINED_IF_CONSTANT,
    "ngtdm": ("busyness", "coarseness", "contrast", "strength"),
}


def describe(kind: str, levels: Levels, names: Collection[str] = NAMES["glcm"]) -> Float[Tensor, "s k"]:
    """Values of a family in the order of its `NAMES`; of co-occurrence only those that are asked for by their `names`.

    NaN where no two region voxels are neighbours, of runs where no line holds two.
    """
    if kind == "glcm":
        return glcm.describe(levels, names)
    if kind == "ngtdm":
        return differences(levels)
    tally, held = levels.tally, None
    if kind == "glrlm":
        cells = Cells.counted(levels, tally.runs if tally else runs(levels))
        held = directions(levels).repeat(1, levels.images)
    elif kind == "glszm":
        cells = Cells.of(levels, *zones(levels))
    elif tally:
        cells = Cells.counted(levels, tally.dependences[:, None])
    else:
        cells = Cells.of(levels, levels.row.flatten(), dependences(levels).flatten())
    found = emphasis(cells)
    values = torch.stack([found[name].view(-1, levels.segments) for name in _PLAIN[kind].values()], 2)
    if held is None:
        return values[0]
    return torch.where(held[..., None], values, 0.0).sum(0) / held.sum(0)[:, None]


# -- what runs, zones and dependences share


@dataclass(frozen=True)
class Cells:
    """Filled cells of `owners` matrices: `owner`, level `i`, size `j` and count `p`."""

    owner: Int[Tensor, " c"]
    i: Int[Tensor, " c"]
    j: Int[Tensor, " c"]
    p: Int[Tensor, " c"]
    owners: int

    @classmethod
    def counted(cls, levels: Levels, table: Int[Tensor, "r t j"]) -> Cells:
        """From counts by row (`Levels`) and size less 1, several tables: the matrices of the first come first."""
        _, tables, wide = table.shape
        at = true_at(table.flatten() > 0)
        row = at // (wide * tables)
        owner = at // wide % tables * levels.segments + levels.row_segment[row]
        return cls(owner, levels.row_level[row], at % wide + 1, table.flatten()[at], tables * levels.segments)

    @classmethod
    def of(cls, levels: Levels, row: Int[Tensor, " z"], size: Int[Tensor, " z"]) -> Cells:
        """From a list of zones or dependences: the row (`Levels`) and size of each, one matrix a segment."""
        rows = levels.row_segment.numel()
        wide = min(SHORT, int(size.max()) if size.numel() else 1) + 1
        table = counted(row * wide + size.clamp_max(SHORT + 1) % (SHORT + 1), rows * wide)
        cell = true_at(table.view(rows, wide)[:, 1:].flatten() > 0)
        at, j = cell.div(wide - 1, rounding_mode="floor"), cell % (wide - 1) + 1
        p = table[at * wide + j]
        long = true_at(size > SHORT)
        if long.numel():
            most = int(size.max()) + 1
            key, count = torch.unique(row[long].long() * most + size[long], return_counts=True)
            at, j, p = torch.cat([at, key // most]), torch.cat([j, key % most]), torch.cat([p, count])
        return cls(levels.row_segment[at], levels.row_level[at], j, p, levels.segments)


def emphasis(cells: Cells) -> dict[str, Float[Tensor, " o"]]:
    """Emphasis, non-uniformity, variance and entropy of each matrix by plain names; NaN for an empty one."""
    owner, owners = cells.owner, cells.owners
    p, i, j = cells.p.double(), cells.i.double(), cells.j.double()
    i2, j2 = i**2, j**2
    weights = torch.stack([torch.ones_like(p), i, j, 1 / j2, j2, 1 / i2, i2, 1 / (i2 * j2), i2 / j2, j2 / i2, i2 * j2])
    sums = total(weights.mul_(p), owner, owners)
    n, voxels = sums[0], sums[2]
    mean_i, mean_j, small, large, low, high, small_low, small_high, large_low, large_high = sums[1:] / n
    about = torch.stack([(i - mean_i[owner]) ** 2 * p, (j - mean_j[owner]) ** 2 * p, torch.special.entr(p / n[owner])])
    level_spread, size_spread, entropy = total(about, owner, owners)
    ends = torch.stack([cells.i.amax(), cells.j.amax()]).tolist() if p.numel() else (0, 0)
    by_i, by_j = (
        (total(p, owner * (most + 1) + size, owners * (most + 1)).view(owners, -1) ** 2).sum(1)  # squared marginals
        for size, most in zip((cells.i, cells.j), ends)
    )
    return dict(
        small=small, large=large, low=low, high=high,
        small_low=small_low, small_high=small_high, large_low=large_low, large_high=large_high,
        level_non_uniformity=by_i / n, level_non_uniformity_normalized=by_i / n**2,
        size_non_uniformity=by_j / n, size_non_uniformity_normalized=by_j / n**2,
        level_variance=level_spread / n, size_variance=size_spread / n,
        entropy=entropy / math.log(2), percentage=n / voxels,
    )  # fmt: skip


# -- the counts by torch, where compiled code has not made them


def directions(levels: Levels) -> Bool[Tensor, "13 l"]:
    """Which directions count for each lesion: some line along it holds two of the lesion's voxels."""
    held = levels.paired.clone()
    for d in (~held).any(1).nonzero().flatten().tolist():  # two voxels of a line need not touch
        held[d] = _lines(levels.voxels, d)
    return held


def _lines(voxels: Voxels, d: int) -> Tensor:
    """Whether each lesion has a line along direction d that holds two of its voxels `[l]`."""
    step, size, place = DIRECTIONS[d], voxels.shape, voxels.place
    moving = next(a for a in range(3) if step[a])
    key, wide = voxels.lesion, 1
    for a in range(3):
        if a != moving:  # where the line meets the plane t = 0: the same for all its voxels
            key = key * (size[a] + 2 * size[moving]) + place[:, a] - place[:, moving] * step[a] + size[moving]
            wide *= size[a] + 2 * size[moving]
    return counted(key, voxels.count.numel() * wide).view(-1, wide).amax(1) > 1


def runs(levels: Levels) -> Int[Tensor, "r 13 longest"]:
    """Count of runs by row (`Levels`), direction and length less 1."""
    voxels, tables = levels.voxels, []
    # In flat memory a line is an arithmetic progression: in a table as wide as its step it would be a column.
    step = torch.tensor(steps(voxels.shape), device=voxels.local.device)[:, None]
    order = (voxels.local % step * voxels.inner.numel() + voxels.local // step).argsort(1)  # along the lines [13 n]
    wide = max(voxels.shape)
    for d in together(levels.row.numel(), order.device):
        tables.append(_runs(levels, order[d], voxels.beside[0][d], wide))
    table = torch.cat(tables, 1)
    longer = (table * torch.arange(1, wide + 1, device=table.device)).sum(2)
    table[:, :, 0] = levels.row_count[:, None] - longer
    return table


def _runs(levels: Levels, order: Tensor, ahead: Tensor, wide: int) -> Tensor:
    """Runs of two voxels and more along some directions `[r d wide]`."""
    many, n = order.shape
    row = picked(levels.row, order.flatten())
    same = torch.zeros_like(row, dtype=torch.bool)  # the next voxel goes on with the run
    torch.eq(row[:, 1:], row[:, :-1], out=same[:, :-1])
    same &= (ahead.gather(1, order) < n).flatten()
    same = same.flatten()
    turn = same.clone()
    turn[1:] ^= same[:-1]
    first, last = true_at(turn).view(-1, 2).unbind(1)
    rows = levels.row_segment.numel()
    key = (row.flatten()[first] * many + first // n % many) * wide + (last - first)
    return counted(key, rows * many * wide).view(rows, many, wide)


def zones(levels: Levels) -> tuple[Int[Tensor, " z"], Int[Tensor, " z"]]:
    """Row (`Levels`) and size of every zone."""
    if levels.tally:
        return levels.tally.zone_row, levels.tally.zone_size
    piece, voxel = pieces(levels.equal, levels.voxels.beside[0])
    size = counted(piece.flatten(), voxel.numel())
    zone = true_at(size > 0)
    return levels.row.flatten()[voxel[zone]], size[zone]


def dependences(levels: Levels) -> Int[Tensor, "i n"]:
    """How many of each voxel and its neighbours have its level."""
    return 1 + levels.equal.sum(0, dtype=torch.int32) + levels.equal_behind.sum(0, dtype=torch.int32)


def distances(levels: Levels) -> Float[Tensor, " r"]:
    """Summed distance of the voxels to the mean level of their neighbours, by row."""
    n, (ahead, behind) = levels.voxels.lesion.numel(), levels.voxels.beside
    around = levels.ahead.sum(0, dtype=torch.int32) + levels.behind.sum(0, dtype=torch.int32)
    count = (ahead < n).sum(0) + (behind < n).sum(0)
    distance = around.double().div_(count.clamp_min(1)).sub_(levels.own).abs_().mul_(count > 0)
    return total(distance.flatten(), levels.row.flatten(), levels.row_segment.numel())


# -- neighbourhood differences


def differences(levels: Levels) -> Float[Tensor, "s 5"]:
    """Values of neighbourhood differences; NaN where no two region voxels are neighbours."""
    n = levels.row_count.double()
    s = levels.tally.distance if levels.tally else distances(levels)
    out = torch.empty((levels.segments, 5), dtype=torch.float64, device=n.device)
    for group in levels.groups(1):
        for some, width, _ in group.parts:
            level = torch.arange(width, device=n.device)
            held = level < levels.top[some, None]
            at = (levels.first_row[some, None] + level).clamp_max(n.numel() - 1)
            out[some] = _differences(torch.where(held, n[at], 0.0), torch.where(held, s[at], 0.0))
    return torch.where(levels.paired.any(0).repeat(levels.images)[:, None], out, torch.nan)


def _differences(n: Tensor, s: Tensor) -> Tensor:
    """Values `[s 5]` from counts and summed distances `[s l]`."""
    whole = n.sum(1)
    p = n / whole[:, None]
    i = torch.arange(1, n.shape[1] + 1, dtype=p.dtype, device=p.device)
    held = (n > 0).to(p.dtype)
    both = held[:, :, None] * held[:, None, :]
    apart = i[:, None] - i
    present = held.sum(1)
    ps, summed = p * s, s.sum(1)
    coarse = ps.sum(1)
    pairs = p[:, :, None] + p[:, None, :]
    busy = (both * (i * p)[:, :, None].sub((i * p)[:, None, :]).abs()).sum((1, 2))
    contrast = (p[:, :, None] * p[:, None, :] * apart**2).sum((1, 2)) * summed / whole
    complexity = both * apart.abs() * (ps[:, :, None] + ps[:, None, :]) / torch.where(pairs > 0, pairs, 1.0)
    strength = (both * pairs * apart**2).sum((1, 2))

    def ratio(a: Tensor, b: Tensor, otherwise: float) -> Tensor:
        return torch.where(b != 0, a / torch.where(b != 0, b, 1.0), otherwise)

    values = dict(
        busyness=ratio(coarse, busy, 0.0),
        coarseness=ratio(torch.ones_like(coarse), coarse, CAP),
        complexity=complexity.sum((1, 2)) / whole,
        contrast=ratio(contrast, present * (present - 1), 0.0),
        strength=ratio(strength, summed, 0.0),
    )
    return torch.stack([values[name] for name in NAMES["ngtdm"]], 1)
