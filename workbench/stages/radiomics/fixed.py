"""Descriptors on voxels of a fixed size in mm, and how they change with the resolution.

Texture depends on the voxels: between a scan of 0.7 x 1 mm and one of 0.9 x 5 mm more than half of the descriptors move by more than half of
what lesions differ by. On a fixed grid they move less. What still moves is told by one more copy of each lesion, on coarser voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from workbench.volume import Refused, Spacing, resample, resample_labels, shape_at

COARSER = 1.5  # a choice: by how much the voxels of that copy are longer
RESOLUTION = ("resolution", "systematic")  # its name and kind among the perturbations


@dataclass(frozen=True)
class RadiomicsSettings:
    """On which voxels candidates are described."""

    grid_mm: Spacing | None = None  # None: those of the work grid
    resolution: bool = False  # whether selection sees a copy on voxels COARSER times as long

    def __post_init__(self):
        if self.grid_mm is not None and not (len(self.grid_mm) == 3 and min(self.grid_mm) > 0):
            raise Refused("radiomics.grid_mm", str(self.grid_mm), "three positive lengths")


@dataclass(frozen=True)
class Scan:
    """HU, numbered lesions and liver on one grid."""

    image: Real[Tensor, "z y x"]
    lesions: Integer[Tensor, "z y x"]
    spacing_mm: Spacing
    liver: Real[Tensor, "z y x"] | Bool[Tensor, "z y x"] | None

    def on(self, grid_mm: Spacing | None) -> Scan:
        """The same field of view on voxels of about this size. No lesion is lost: one that falls between the voxels keeps the nearest."""
        if grid_mm is None:
            return self
        z, y, x = self.image.shape
        shape = shape_at((z, y, x), self.spacing_mm, grid_mm)
        z_mm, y_mm, x_mm = (mm * n / m for mm, n, m in zip(self.spacing_mm, self.image.shape, shape))
        liver = None if self.liver is None else resample(self.liver.float(), shape) >= 0.5
        return Scan(resample(self.image, shape), _labels(self.lesions, shape), (z_mm, y_mm, x_mm), liver)

    def coarser(self) -> Scan:
        z, y, x = self.spacing_mm
        return self.on((z * COARSER, y * COARSER, x * COARSER))


def _labels(lesions: Tensor, shape: tuple[int, int, int]) -> Tensor:
    out = resample_labels(lesions, shape)
    there = set(out.unique().tolist())
    for number in set(lesions.unique().tolist()) - there:
        voxels = (lesions == number).nonzero().float()
        place = (voxels.mean(0) + 0.5) * torch.tensor([m / n for n, m in zip(lesions.shape, shape)]).to(voxels)
        free = (out == 0).nonzero()  # no lesion takes the place of another
        out[tuple(free[((free.float() + 0.5 - place) ** 2).sum(1).argmin()].tolist())] = number
    return out


def joined(
    values: Float[np.ndarray, "copy lesion name"],
    labels: list[int],
    coarse: Float[np.ndarray, "seen name"],
    seen: list[int],
) -> Float[np.ndarray, "copies lesion name"]:
    """`values` with one more copy `coarse`, matched by label; NaN where that copy has no such lesion."""
    row = np.full((1, *values.shape[1:]), np.nan)
    at = {label: n for n, label in enumerate(labels)}
    for label, own in zip(seen, coarse):
        row[0, at[label]] = own
    return np.concatenate([values, row])
