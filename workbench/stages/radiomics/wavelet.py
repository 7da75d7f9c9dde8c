"""The 8 sub-bands of the undecimated coif1 wavelet, one level, at the region's voxels.

The paper STATES a wavelet group. We CHOOSE PyRadiomics's transform, so that each value has a twin: separable filters
of 6 taps along x, then y, then z, periodic at the volume's ends (`ragged.wrapped` lays the boxes out so). Computed on
each lesion's box, which gives the values of the whole volume. Taps are added in the order and in the floating type in
which PyWavelets adds them: high-pass bands of a smooth image are near 0, where a bin edge lies, and the last bit
decides a bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.stages.radiomics import compiled
from workbench.stages.radiomics.catalogue import BANDS
from workbench.stages.radiomics.ragged import Boxes

# coif1 (Daubechies 1992), decomposition filter without its factor sqrt(2), (sqrt(7) - 3) / 32 and so on; *fixed*. The
# digits are those whose product with sqrt(2) is PyWavelets's filter to the last bit: closed forms differ there.
LOW = (-0.011070271529231544, -0.05142972847076845, 0.2721405430584631,
       0.6028594569415369, 0.23892972847076846, -0.05142972847076845)  # fmt: skip
HIGH = tuple(-c if k % 2 == 0 else c for k, c in enumerate(reversed(LOW)))
BEFORE, AFTER = 2, 3  # voxels that the filter reads on either side
FILTERS = {"L": LOW, "H": HIGH}


def scaled(taps: tuple[float, ...], dtype: torch.dtype) -> list[float]:
    """The filter in a floating type, rounded as PyWavelets rounds it: factor and tap first, then their product."""
    return (torch.tensor(taps, dtype=dtype) * torch.tensor(math.sqrt(2), dtype=dtype)).tolist()


@cache
def _taps(which: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([scaled(FILTERS[name], dtype) for name in which], dtype=dtype, device=device)


def filtered(image: Float[Tensor, "*k"], which: str, axis: int) -> Float[Tensor, "filter ..."]:
    """One pass along an axis by each filter, "L" or "H", shorter by 5: out[i] = sum_j taps[j] image[i + 5 - j]."""
    axis %= image.ndim
    if compiled.usable(image) and image.dtype in compiled.FILTERS:
        return torch.stack([compiled.filtered(image, scaled(FILTERS[name], image.dtype), axis) for name in which])
    n = image.shape[axis] - BEFORE - AFTER
    taps = _taps(which, image.dtype, image.device).T.reshape(6, len(which), *[1] * image.ndim)
    out = image.narrow(axis, 5, n) * taps[0]
    for j in range(1, 6):
        out = out + image.narrow(axis, 5 - j, n) * taps[j]
    return out


def bands(boxes: Boxes, names: Sequence[str] = BANDS) -> Float[Tensor, "b n"]:
    """Sub-bands at the region's voxels, in the image's floating type."""
    inner = boxes.inner(0)
    cut = (inner[0], *(slice(s.start - BEFORE, s.stop + AFTER) for s in inner[1:]))
    where = boxes.voxels.within(inner)
    image, asked = boxes.hu[cut], ["".join(sorted({name[place] for name in names})) for place in range(3)]
    for which, axis in zip(asked, (-1, -2, -3)):
        image = filtered(image, which, axis)
    values = image.flatten(3)[..., where]  # [z y x], the filter along each, and the voxels
    return torch.stack([values[tuple(asked[n].index(name[n]) for n in (2, 1, 0))] for name in names])
