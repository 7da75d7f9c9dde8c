"""The intensity group: 18 statistics of HU in each region, float64.

We CHOOSE PyRadiomics's set (IBSI 1 intensity statistics, two histogram values, total energy). Kurtosis is not excess.
In a flat region skewness and kurtosis are not defined (PyRadiomics says 0); here they are NaN.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.stages.radiomics.discretise import Levels
from workbench.stages.radiomics.ragged import Voxels, counted, ends, quantiles, total

NAMES = (
    "p10", "p90", "energy", "entropy", "iqr", "kurtosis", "maximum", "mad", "mean", "median", "minimum", "range",
    "rmad", "rms", "skewness", "total_energy", "uniformity", "variance",
)  # fmt: skip
UNDEFINED_IF_CONSTANT = ("kurtosis", "skewness")
BINNED = ("entropy", "uniformity")


def describe(values: Float[Tensor, " n"], voxels: Voxels, levels: Levels, voxel_mm3: float) -> Float[Tensor, "l 18"]:
    """Values of HU in the order of `NAMES`; the first image of `levels` is that of `values`."""
    lesion, l = voxels.lesion, voxels.count.numel()
    x = values.double()
    p10, p25, p50, p75, p90 = quantiles(x, lesion, l, (0.10, 0.25, 0.50, 0.75, 0.90)).unbind(1)
    low, high = ends(x, lesion, l)
    count = voxels.count.double()
    middle = ((x >= p10[lesion]) & (x <= p90[lesion])).double()
    whole, energy, within, middle_mean = total(torch.stack([x, x**2, middle, x * middle]), lesion, l)
    average, middle_mean = whole / count, middle_mean / within
    away = x - average[lesion]
    square = away * away
    from_middle = (x - middle_mean[lesion]).abs() * middle
    spread = torch.stack([square, square * away, square * square, away.abs(), from_middle])
    *powers, rmad = total(spread, lesion, l)
    m2, m3, m4, mad = (power / count for power in powers)
    wide = int(levels.top[:l].max())
    share = counted(lesion * wide + levels.level[0, :-1] - 1, l * wide).view(l, wide)
    share = share / count[:, None]
    out = dict(
        p10=p10, p90=p90, energy=energy, entropy=torch.special.entr(share).sum(1) / math.log(2), iqr=p75 - p25,
        kurtosis=m4 / m2**2, maximum=high, mad=mad, mean=average, median=p50, minimum=low,
        range=high - low, rmad=rmad / within, rms=(energy / voxels.count).sqrt(), skewness=m3 / m2**1.5, total_energy=energy * voxel_mm3, uniformity=(share**2).sum(1),
        variance=m2,
    )  # fmt: skip
    return torch.stack([out[name] for name in NAMES], 1)
