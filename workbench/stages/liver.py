"""Stage 1: the liver's probability map.

States: the first network of the cascade gives a liver probability map.
Chooses: the whole field of view at a reduced in-plane resolution; half of the slabs are drawn for a tumor in them, since the net
otherwise leaves dark tumors at the capsule out of the liver, and what is left out here no later stage finds; the liver is
the largest 26-connected piece above one half, its holes filled slice by slice (tumors and vessels belong to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from workbench.masks import numbered
from workbench.nets import slabs
from workbench.nets.cascade import CascadeSettings
from workbench.volume import Spacing, resample, shape_at


@dataclass(frozen=True)
class LiverSettings:
    """The grid of the net, and what of its map is the liver."""

    pixel_mm: float = 3.0
    threshold: float = 0.5
    minimum_ml: float = 100.0  # a choice: less than this is no liver
    cascade: CascadeSettings = field(default_factory=lambda: CascadeSettings(slabs=slabs.SlabSettings(blobs=0.5)))


# rule: twice a large liver, 60 % of a scan; the largest in the real CT at hand has 3,142 ml, the largest share is 18 %
PLAUSIBLE_ML, PLAUSIBLE_SHARE = 4000.0, 0.6


def to_grid(array: Tensor, spacing_mm: Spacing, settings: LiverSettings) -> Tensor:
    """HU or occupancy [z y x] on this stage's grid: the same slices, coarser pixels."""
    return resample(array, shape_at(array.shape, spacing_mm, (None, settings.pixel_mm, settings.pixel_mm)))


def bank_case(hu: Tensor, labels: Tensor, spacing_mm: Spacing, settings: LiverSettings) -> slabs.BankCase:
    """One case for training, `hu` and `labels` [z y x], on this stage's grid."""
    tumor = to_grid(labels == 2, spacing_mm, settings) >= 0.5
    return slabs.BankCase(
        to_grid(hu, spacing_mm, settings).round(),
        to_grid(labels >= 1, spacing_mm, settings) >= 0.5,
        lesions=numbered(tumor),
    )


def probability(
    nets: Sequence[nn.Module],
    hu: Tensor,
    spacing_mm: Spacing,
    settings: LiverSettings,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Liver probability [z y x] on the grid of `hu`."""
    small = to_grid(hu, spacing_mm, settings)
    p = slabs.predict(nets, small, None, settings.cascade.slabs.window_hu, device)
    return resample(p, hu.shape).clamp(0, 1)


def mask(probability: Tensor, spacing_mm: Spacing, settings: LiverSettings) -> Tensor:
    """The liver, bool [z y x]; all False when no piece is as large as a liver."""
    pieces, count = ndimage.label((probability >= settings.threshold).cpu().numpy(), structure=np.ones((3, 3, 3)))
    if count == 0:
        return torch.zeros_like(probability, dtype=torch.bool)
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max() * np.prod(spacing_mm) / 1000 < settings.minimum_ml:
        return torch.zeros_like(probability, dtype=torch.bool)
    return filled(torch.from_numpy(pieces == 1 + int(sizes.argmax()))).to(probability.device)


def filled(mask: Tensor) -> Tensor:
    """A mask bool [z y x] with its holes filled slice by slice: tumors and vessels that it leaves out belong to the liver."""
    slices = [ndimage.binary_fill_holes(s) if s.any() else s for s in mask.cpu().numpy()]
    return torch.from_numpy(np.stack(slices)).to(mask.device)


def doubts(liver: Tensor, spacing_mm: Spacing) -> list[str]:
    """What speaks against a mask [z y x] that a net calls a liver, a line each: a flat or noisy volume is tissue to it."""
    voxels = int(liver.sum())  # a mean would take a float copy of a whole CT
    ml, share = voxels * float(np.prod(spacing_mm)) / 1000, voxels / liver.numel()
    if ml <= PLAUSIBLE_ML and share <= PLAUSIBLE_SHARE:
        return []
    return [
        f"a liver of {ml:,.0f} ml that fills {share:.0%} of the scan; expected at most {PLAUSIBLE_ML:,.0f} ml and "
        f"{PLAUSIBLE_SHARE:.0%}: look at it before anything of this result is used"
    ]
