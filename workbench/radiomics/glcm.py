"""Grey level co-occurrence (Haralick et al. 1973): 24 values of each segment.

For each of 13 directions, how often levels i and j are neighbours, symmetric; values per direction, then their mean
over the directions in which any two region voxels are neighbours. Formulas in float64.

All but entropy, energy, maximum and MCC follow from the distributions of i, i + j and abs(i - j). MCC, the square
root of the second eigenvalue of PyRadiomics's Q, is the second largest absolute eigenvalue of p(i,j) / sqrt(px(i)
px(j)), which is symmetric here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.connected import DIRECTIONS
from workbench.radiomics import compiled
from workbench.radiomics.discretise import Group, Levels

NAMES = (
    "autocorrelation", "cluster_prominence", "cluster_shade", "cluster_tendency", "contrast", "correlation",
    "difference_average", "difference_entropy", "difference_variance", "id", "idm", "idmn", "idn", "imc1", "imc2",
    "inverse_variance", "joint_average", "joint_energy", "joint_entropy", "mcc", "maximum_probability", "sum_average",
    "sum_entropy", "sum_squares",
)  # fmt: skip
UNDEFINED_IF_CONSTANT = ("correlation", "imc1", "imc2", "mcc")


def matrices(levels: Levels, group: Group) -> Tensor:
    """Counts of neighbours for the segments of a group `[13 cells]` (not yet symmetric).

    A matrix has one more column than rows: the first counts voxels without a neighbour, and is not used.
    """
    if compiled.usable(levels.level):
        return compiled.pairs(levels, group.start, group.width, group.cells)
    width, start = (levels.by_voxel(v.int()) for v in (group.width, group.start))
    row = torch.where(start >= 0, start + (levels.own - 1) * (width + 1), group.cells)
    some = bool((group.start < 0).any())
    keys = ((row + (ahead * (start >= 0) if some else ahead)).flatten() for ahead in levels.ahead)
    return torch.stack([torch.bincount(key, minlength=group.cells + 1)[: group.cells] for key in keys])


def describe(levels: Levels, mcc: bool = True) -> Tensor:
    """Values `[s 24]`; NaN where no two region voxels are neighbours, and for the MCC, which takes longest, where it is left out."""
    out = torch.full((levels.segments, len(NAMES)), torch.nan, dtype=torch.float64, device=levels.top.device)
    for group in levels.groups(len(DIRECTIONS), 8 if mcc else 1):
        table = matrices(levels, group)
        for some, width, part in group.parts:
            counts = table[:, part].view(len(DIRECTIONS), len(some), width, width + 1)[..., 1:]
            out[some] = features(counts.transpose(0, 1).double(), levels.top[some], mcc)
    return out


def features(counts: Tensor, top: Tensor, mcc: bool = True) -> Tensor:
    """Values `[s 24]` of matrices `[s 13 l l]` with `top` `[s]` levels in use."""
    width = counts.shape[-1]
    counts = counts + counts.mT
    whole = counts.sum((2, 3))
    p = counts / whole.clamp_min(1)[..., None, None]
    i = torch.arange(1, width + 1, dtype=p.dtype, device=p.device)
    px = p.sum(3)
    plus, minus = _skewed(p), _skewed(p.flip(3))
    k_plus = torch.arange(2, 2 * width + 1, dtype=p.dtype, device=p.device)
    minus = minus[..., width - 1 :] + torch.nn.functional.pad(minus[..., : width - 1].flip(-1), (1, 0))  # abs(i - j)
    k = torch.arange(width, dtype=p.dtype, device=p.device)
    n = top.to(p.dtype)[:, None, None]

    mx = (px * i).sum(2)
    variance = (px * (i - mx[..., None]) ** 2).sum(2)
    about = k_plus - 2 * mx[..., None]
    tendency = (plus * about**2).sum(2)
    contrast = (minus * k**2).sum(2)
    difference = (minus * k).sum(2)
    hx, hxy = _entropy(px).sum(2), _entropy(p).sum((2, 3))
    mutual = 2 * hx - hxy
    values = dict(
        autocorrelation=((plus * k_plus**2).sum(2) - contrast) / 4,
        cluster_prominence=(plus * about**4).sum(2),
        cluster_shade=(plus * about**3).sum(2),
        cluster_tendency=tendency,
        contrast=contrast,
        correlation=torch.where(variance > 0, (tendency - contrast) / 4 / variance.clamp_min(1e-300), 1.0),
        difference_average=difference,
        difference_entropy=_entropy(minus).sum(2),
        difference_variance=(minus * (k - difference[..., None]) ** 2).sum(2),
        id=(minus / (1 + k)).sum(2),
        idm=(minus / (1 + k**2)).sum(2),
        idmn=(minus / (1 + k**2 / n**2)).sum(2),
        idn=(minus / (1 + k / n)).sum(2),
        imc1=torch.where(hx > 0, -mutual / hx.clamp_min(1e-300), 0.0),
        imc2=(1 - torch.exp(-2 * mutual.clamp_min(0))).sqrt(),
        inverse_variance=(minus[..., 1:] / k[1:] ** 2).sum(2),
        joint_average=mx,
        joint_energy=(p**2).sum((2, 3)),
        joint_entropy=hxy,
        mcc=_mcc(p, px, top) if mcc else torch.full_like(mx, torch.nan),
        maximum_probability=p.amax((2, 3)),
        sum_average=(plus * k_plus).sum(2),
        sum_entropy=_entropy(plus).sum(2),
        sum_squares=variance,
    )
    held = (whole > 0).to(p.dtype)
    return torch.stack([(values[name] * held).sum(1) / held.sum(1) for name in NAMES], 1)


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
    return torch.where(top[:, None] > 1, second, 1.0)
