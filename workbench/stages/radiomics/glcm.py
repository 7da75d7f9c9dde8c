"""Grey level co-occurrence (Haralick et al. 1973): 24 values of each segment.

For each of 13 directions, how often levels i and j are neighbours, symmetric; values per direction, then their mean
over the directions in which any two region voxels are neighbours. Formulas in float64.

All but entropy, energy, maximum and MCC follow from the distributions of i, i + j and abs(i - j). MCC, the square
root of the second eigenvalue of PyRadiomics's Q, is the second largest absolute eigenvalue of p(i,j) / sqrt(px(i)
px(j)), which is symmetric here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.masks import DIRECTIONS, together
from workbench.stages.radiomics import compiled
from workbench.stages.radiomics.discretise import MOST, Group, Levels
from workbench.stages.radiomics.ragged import counted

NAMES = (
    "autocorrelation", "cluster_prominence", "cluster_shade", "cluster_tendency", "contrast", "correlation",
    "difference_average", "difference_entropy", "difference_variance", "id", "idm", "idmn", "idn", "imc1", "imc2",
    "inverse_variance", "joint_average", "joint_energy", "joint_entropy", "mcc", "maximum_probability", "sum_average",
    "sum_entropy", "sum_squares",
)  # fmt: skip
EPS = 2.0**-52  # rule: what PyRadiomics adds to the MCC's denominators,
RARE = 3e-5  # rule: which counts for a level of fewer voxels than this share, in regions of some 15,000 voxels and more
UNDEFINED_IF_CONSTANT = ("correlation", "imc1", "imc2", "mcc")


def matrices(levels: Levels, group: Group) -> Int[Tensor, "13 cells"]:
    """Counts of neighbours for the segments of a group (not yet symmetric).

    A matrix has one more column than rows: the first counts voxels without a neighbour, and is not used.
    """
    if compiled.usable(levels.level):
        return compiled.pairs(levels, group.start, group.width, group.cells)
    width, start = (levels.by_voxel(v.int()) for v in (group.width, group.start))
    row = torch.where(start >= 0, start + (levels.own - 1) * (width + 1), group.cells)
    wide = group.cells + MOST + 1  # what is beyond `cells` belongs to other groups
    tables = []
    for d in together(row.numel(), row.device):
        ahead = levels.ahead[d]
        first = wide * torch.arange(len(ahead), dtype=torch.int32, device=row.device)[:, None, None]
        tables.append(counted((ahead + row + first).flatten(), len(ahead) * wide).view(-1, wide)[:, : group.cells])
    return torch.cat(tables)


def describe(levels: Levels, names: Collection[str] = NAMES) -> Float[Tensor, "s 24"]:
    """Values in the order of `NAMES`; NaN where no two region voxels are neighbours, and for names that were not asked for."""
    out = torch.full((levels.segments, len(NAMES)), torch.nan, dtype=torch.float64, device=levels.top.device)
    for group in levels.groups(len(DIRECTIONS), 8 if "mcc" in names else 1):
        table = matrices(levels, group)
        for some, width, part in group.parts:
            counts = table[:, part].view(len(DIRECTIONS), len(some), width, width + 1)[..., 1:]
            out[some] = features(counts.transpose(0, 1).double(), levels.top[some], names)
    return out


def features(
    counts: Float[Tensor, "s 13 l l"], top: Int[Tensor, " s"], names: Collection[str] = NAMES
) -> Float[Tensor, "s 24"]:
    """Values of matrices with `top` levels in use; NaN for names that were not asked for."""
    pairs = Pairs(counts, top)
    held = (pairs.whole > 0).double()
    nothing = torch.full_like(held[:, 0], torch.nan)
    values = {name: (of(pairs) * held).sum(1) / held.sum(1) for name, of in FORMULAS.items() if name in names}
    return torch.stack([values.get(name, nothing) for name in NAMES], 1)


class Pairs:
    """Matrices and what the formulas share of them, each worked out when it is asked for first."""

    def __init__(self, counts: Float[Tensor, "s 13 l l"], top: Int[Tensor, " s"]):
        counts = counts + counts.mT
        self.whole, self.top = counts.sum((2, 3)), top
        self.p = counts / self.whole.clamp_min(1)[..., None, None]
        self.width = counts.shape[-1]

    def steps(self, first: int, last: int) -> Tensor:
        """The numbers first .. last."""
        return torch.arange(first, last + 1, dtype=self.p.dtype, device=self.p.device)

    @cached_property
    def px(self) -> Tensor:
        """The distribution of a level `[s 13 l]`."""
        return self.p.sum(3)

    @cached_property
    def k_plus(self) -> Tensor:
        """The values of i + j."""
        return self.steps(2, 2 * self.width)

    @cached_property
    def plus(self) -> Tensor:
        """The distribution of i + j."""
        return _skewed(self.p)

    @cached_property
    def k(self) -> Tensor:
        """The values of abs(i - j)."""
        return self.steps(0, self.width - 1)

    @cached_property
    def minus(self) -> Tensor:
        """The distribution of abs(i - j)."""
        skewed, l = _skewed(self.p.flip(3)), self.width
        return skewed[..., l - 1 :] + torch.nn.functional.pad(skewed[..., : l - 1].flip(-1), (1, 0))

    @cached_property
    def mean(self) -> Tensor:
        return (self.px * self.steps(1, self.width)).sum(2)

    @cached_property
    def variance(self) -> Tensor:
        return (self.px * (self.steps(1, self.width) - self.mean[..., None]) ** 2).sum(2)

    @cached_property
    def about(self) -> Tensor:
        """i + j less its mean."""
        return self.k_plus - 2 * self.mean[..., None]

    @cached_property
    def tendency(self) -> Tensor:
        return (self.plus * self.about**2).sum(2)

    @cached_property
    def contrast(self) -> Tensor:
        return (self.minus * self.k**2).sum(2)

    @cached_property
    def difference(self) -> Tensor:
        return (self.minus * self.k).sum(2)

    @cached_property
    def hx(self) -> Tensor:
        return _entropy(self.px).sum(2)

    @cached_property
    def hxy(self) -> Tensor:
        return _entropy(self.p).sum((2, 3))

    @property
    def mutual(self) -> Tensor:
        return 2 * self.hx - self.hxy

    @property
    def n(self) -> Tensor:
        """Levels in use."""
        return self.top.to(self.p.dtype)[:, None, None]


FORMULAS: dict[str, Callable[[Pairs], Tensor]] = dict(
    autocorrelation=lambda t: ((t.plus * t.k_plus**2).sum(2) - t.contrast) / 4,
    cluster_prominence=lambda t: (t.plus * t.about**4).sum(2),
    cluster_shade=lambda t: (t.plus * t.about**3).sum(2),
    cluster_tendency=lambda t: t.tendency,
    contrast=lambda t: t.contrast,
    correlation=lambda t: torch.where(
        t.variance > 0, (t.tendency - t.contrast) / 4 / t.variance.clamp_min(1e-300), 1.0
    ),
    difference_average=lambda t: t.difference,
    difference_entropy=lambda t: _entropy(t.minus).sum(2),
    difference_variance=lambda t: (t.minus * (t.k - t.difference[..., None]) ** 2).sum(2),
    id=lambda t: (t.minus / (1 + t.k)).sum(2),
    idm=lambda t: (t.minus / (1 + t.k**2)).sum(2),
    idmn=lambda t: (t.minus / (1 + t.k**2 / t.n**2)).sum(2),
    idn=lambda t: (t.minus / (1 + t.k / t.n)).sum(2),
    imc1=lambda t: torch.where(t.hx > 0, -t.mutual / t.hx.clamp_min(1e-300), 0.0),
    imc2=lambda t: (1 - torch.exp(-2 * t.mutual.clamp_min(0))).sqrt(),
    inverse_variance=lambda t: (t.minus[..., 1:] / t.k[1:] ** 2).sum(2),
    joint_average=lambda t: t.mean,
    joint_energy=lambda t: (t.p**2).sum((2, 3)),
    joint_entropy=lambda t: t.hxy,
    mcc=lambda t: _mcc(t.p, t.px, t.top),
    maximum_probability=lambda t: t.p.amax((2, 3)),
    sum_average=lambda t: (t.plus * t.k_plus).sum(2),
    sum_entropy=lambda t: _entropy(t.plus).sum(2),
    sum_squares=lambda t: t.variance,
)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) / math.log(2)


def _skewed(p: Tensor) -> Tensor:
    """Sums over the anti-diagonals `[.. l l] -> [.. 2 l - 1]`: rows of width 2 l read back as rows of width 2 l - 1."""
    l = p.shape[-1]
    flat = torch.nn.functional.pad(p, (0, l)).flatten(-2)
    return flat[..., : l * (2 * l - 1)].unflatten(-1, (l, 2 * l - 1)).sum(-2)


def _mcc(p: Tensor, px: Tensor, top: Tensor) -> Tensor:
    if p.shape[-1] == 1:
        return torch.ones_like(p[..., 0, 0])
    scale = torch.where(px > 0, px.clamp_min(1e-300).rsqrt(), 0.0)
    values = torch.linalg.eigvalsh(p * scale[..., :, None] * scale[..., None, :]).abs()
    second = values.topk(2, dim=-1).values[..., 1]
    rare = torch.where(px > 0, px, 1.0).amin(-1) < RARE
    if bool(rare.any()):
        q = (p[rare] / (px[rare][:, :, None] * px[rare][:, None, :] + EPS)) @ p[rare].mT
        values = torch.linalg.eigvals(q.cpu()).real  # few, and a GPU has them only with MAGMA
        second[rare] = values.topk(2, dim=-1).values[..., 1].clamp_min(0).sqrt().to(p.device)
    return torch.where(top[:, None] > 1, second, 1.0)
