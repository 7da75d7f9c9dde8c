"""The intensity group: 18 statistics of HU in each region, float64.

We CHOOSE PyRadiomics's set (IBSI 1 intensity statistics, two histogram values, total energy). Kurtosis is not excess.
In a flat region skewness and kurtosis are not defined (PyRadiomics says 0); here they are NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.radiomics.discretise import Levels
from workbench.radiomics.ragged import Voxels, mean, quantiles, total

NAMES = (
    "p10", "p90", "energy", "entropy", "iqr", "kurtosis", "maximum", "mad", "mean", "median", "minimum", "range",
    "rmad", "rms", "skewness", "total_energy", "uniformity", "variance",
)  # fmt: skip
UNDEFINED_IF_CONSTANT = ("kurtosis", "skewness")
BINNED = ("entropy", "uniformity")


def describe(values: Tensor, voxels: Voxels, levels: Levels, voxel_mm3: float) -> Tensor:
    """Values `[l 18]` of HU `[n]`; the first image of `levels` is that of `values`."""
    lesion, l = voxels.lesion, voxels.count.numel()
    x, one = values.double(), torch.ones_like(lesion)
    p10, p25, p50, p75, p90 = quantiles(x, lesion, l, (0.10, 0.25, 0.50, 0.75, 0.90)).unbind(1)
    low = x.new_zeros(l).scatter_reduce(0, lesion, x, "amin", include_self=False)
    high = x.new_zeros(l).scatter_reduce(0, lesion, x, "amax", include_self=False)
    average = mean(x, one, lesion, l)
    away = x - average[lesion]
    square = away * away
    m2, m3, m4 = (mean(power, one, lesion, l) for power in (square, square * away, square * square))
    middle = ((x >= p10[lesion]) & (x <= p90[lesion])).double()
    middle_mean = mean(x, middle, lesion, l)
    energy = total(x**2, lesion, l)
    wide = int(levels.top[:l].max())
    share = torch.bincount(lesion * wide + levels.level[0, :-1] - 1, minlength=l * wide).view(l, wide)
    share = share / voxels.count[:, None].double()
    out = dict(
        p10=p10, p90=p90, energy=energy, entropy=torch.special.entr(share).sum(1) / math.log(2), iqr=p75 - p25,
        kurtosis=m4 / m2**2, maximum=high, mad=mean(away.abs(), one, lesion, l), mean=average, median=p50, minimum=low,
        range=high - low, rmad=mean((x - middle_mean[lesion]).abs(), middle, lesion, l), rms=(energy /
        voxels.count).sqrt(), skewness=m3 / m2**1.5, total_energy=energy * voxel_mm3, uniformity=(share**2).sum(1),
        variance=m2,
    )  # fmt: skip
    return torch.stack([out[name] for name in NAMES], 1)
