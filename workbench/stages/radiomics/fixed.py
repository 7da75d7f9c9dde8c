"""Descriptors on voxels of a fixed size in mm, and how they change with the resolution.

Texture depends on the voxels: between a scan of 0.7 x 1 mm and one of 0.9 x 5 mm more than half of the descriptors move by more than half of
what lesions differ by. On a fixed grid they move less. What still moves is told by one more copy of each lesion, on coarser voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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
    """HU, numbered lesions and liver `[z y x]` on one grid."""

    image: Tensor
    lesions: Tensor
    spacing_mm: Spacing
    liver: Tensor | None

    def on(self, grid_mm: Spacing | None) -> Scan:
        """The same field of view on voxels of about this size. No lesion is lost: one that falls between the voxels keeps the nearest."""
        if grid_mm is None:
            return self
        shape = shape_at(tuple(self.image.shape), self.spacing_mm, grid_mm)
        spacing = tuple(mm * n / m for mm, n, m in zip(self.spacing_mm, self.image.shape, shape))
        liver = None if self.liver is None else resample(self.liver.float(), shape) >= 0.5
        return Scan(resample(self.image, shape), _labels(self.lesions, shape), spacing, liver)

    def coarser(self) -> Scan:
        return self.on(tuple(mm * COARSER for mm in self.spacing_mm))


def _labels(lesions: Tensor, shape: tuple[int, int, int]) -> Tensor:
    out = resample_labels(lesions, shape)
    there = set(out.unique().tolist())
    for number in set(lesions.unique().tolist()) - there:
        voxels = (lesions == number).nonzero().float()
        place = (voxels.mean(0) + 0.5) * torch.tensor([m / n for n, m in zip(lesions.shape, shape)]).to(voxels)
        free = (out == 0).nonzero()  # no lesion takes the place of another
        out[tuple(free[((free.float() + 0.5 - place) ** 2).sum(1).argmin()].tolist())] = number
    return out


def joined(values: np.ndarray, labels: list[int], coarse: np.ndarray, seen: list[int]) -> np.ndarray:
    """`values [copy lesion name]` with one more copy `coarse [lesion name]`, matched by label; NaN where that copy has no such lesion."""
    row = np.full((1, *values.shape[1:]), np.nan)
    at = {label: n for n, label in enumerate(labels)}
    for label, own in zip(seen, coarse):
        row[0, at[label]] = own
    return np.concatenate([values, row])
