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

import torch
from torch import Tensor

from workbench.radiomics import compiled
from workbench.radiomics.catalogue import BANDS
from workbench.radiomics.ragged import Boxes

# coif1 (Daubechies 1992), decomposition filter without its factor sqrt(2), (sqrt(7) - 3) / 32 and so on; *fixed*. The
# digits are those whose product with sqrt(2) is PyWavelets's filter to the last bit: closed forms differ there.
LOW = (-0.011070271529231544, -0.05142972847076845, 0.2721405430584631,
       0.6028594569415369, 0.23892972847076846, -0.05142972847076845)  # fmt: skip
HIGH = tuple(-c if k % 2 == 0 else c for k, c in enumerate(reversed(LOW)))
BEFORE, AFTER = 2, 3  # voxels that the filter reads on either side


def scaled(taps: tuple[float, ...], dtype: torch.dtype) -> list[float]:
    """The filter in a floating type, rounded as PyWavelets rounds it: factor and tap first, then their product."""
    return (torch.tensor(taps, dtype=dtype) * torch.tensor(math.sqrt(2), dtype=dtype)).tolist()


def filtered(image: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    """One pass along an axis, shorter by 5: out[i] = sum_j taps[j] image[i + 5 - j]."""
    n, scale = image.shape[axis] - BEFORE - AFTER, scaled(taps, image.dtype)
    if compiled.usable(image) and image.dtype in compiled.FILTERS:
        return compiled.filtered(image, scale, axis)
    out = image.narrow(axis, 5, n) * scale[0]
    for j in range(1, 6):
        out = out + image.narrow(axis, 5 - j, n) * scale[j]
    return out


def bands(boxes: Boxes, names: Sequence[str] = BANDS) -> Tensor:
    """Sub-bands at the region's voxels `[b n]`, in the image's floating type."""
    inner = boxes.inner(0)
    cut = (inner[0], *(slice(s.start - BEFORE, s.stop + AFTER) for s in inner[1:]))
    where = boxes.voxels.within(inner)
    values = {}
    image = boxes.hu[cut]
    taps = {"L": LOW, "H": HIGH}
    for a in sorted({band[0] for band in names}):
        x = filtered(image, taps[a], 3)
        for b in sorted({band[1] for band in names if band[0] == a}):
            xy = filtered(x, taps[b], 2)
            for c in sorted({band[2] for band in names if band[:2] == a + b}):
                values[a + b + c] = filtered(xy, taps[c], 1).flatten()[where]
    return torch.stack([values[band] for band in names])
