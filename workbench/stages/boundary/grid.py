"""A scan on the net's grid in mm, and back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from workbench.masks import bounding_box
from workbench.stages.boundary.settings import BoundarySettings, Size
from workbench.stages.boundary.surface import CONTRAST_MM, nearest_voxel, relative_contrast, signed_distance
from workbench.volume import Box, Spacing


def _weights(n_in: int, start_in: int, n_out: int, start_out: int, scale: float, device: torch.device) -> Tensor:
    """Linear interpolation [out in] between two grids with one outer corner; `scale` is out / in spacing.

    A triangle as wide as the new voxel when shrinking. `start_*`: where the part at hand begins on its grid.
    """
    centre = (torch.arange(start_out, start_out + n_out, dtype=torch.float64) + 0.5) * scale - 0.5 - start_in
    centre = centre.clamp(0, n_in - 1)
    weight = (1 - (torch.arange(n_in) - centre[:, None]).abs() / max(scale, 1.0)).clamp_min(0)
    return (weight / weight.sum(1, keepdim=True)).float().to(device)  # small: many steps on a GPU would take longer


def carry(
    array: Shaped[Tensor, "*c z y x"], box_in: Box, spacing_in: Spacing, box_out: Box, spacing_out: Spacing
) -> Float[Tensor, "*c oz oy ox"]:
    """The part `array` `[.. z y x]` (voxels `box_in` of one grid) at the voxels `box_out` of another grid in mm; float32."""
    out = array.float()
    for axis in (-3, -2, -1):
        a, b = box_in[axis], box_out[axis]
        scale = spacing_out[axis] / spacing_in[axis]
        if scale == 1 and (a.start, a.stop) == (b.start, b.stop):
            continue
        weight = _weights(a.stop - a.start, a.start, b.stop - b.start, b.start, scale, out.device)
        out = torch.movedim(torch.tensordot(weight, out, dims=([1], [axis])), 0, axis)
    return out.contiguous()


class OnGrid(NamedTuple):
    """A part of a scan on the net's grid: channels `[4 z y x]`, which voxels belong to a band, and where it lies."""

    channels: Tensor
    band: Tensor
    drawn: Tensor  # the mask
    native_box: Box
    grid_box: Box
    distance: Tensor  # native, signed, mm
    nearest: Int[np.ndarray, "3 z y x"]  # voxel of the mask, native


def onto_grid(
    image: Shaped[Tensor, "z y x"],
    tumor_probability: Float[Tensor, "z y x"],
    mask: Bool[Tensor, "z y x"],
    liver: Bool[Tensor, "z y x"] | None,
    spacing_mm: Spacing,
    settings: BoundarySettings,
    reach: Size,
    device: torch.device | None = None,
) -> OnGrid | None:
    """Channels around the mask, `reach` grid voxels beyond its band where the volume has them; None without a band. Only what lies
    around the mask goes to another `device`."""
    grid = settings.grid_mm
    full = tuple(max(1, round(n * s / g)) for n, s, g in zip(mask.shape, spacing_mm, grid))
    margin = settings.band_mm + max((r + 2) * g for r, g in zip(reach, grid))
    native = bounding_box(mask, spacing_mm, margin)
    if native is None:
        return None
    image, tumor_probability, mask = (v[native].to(device or v.device) for v in (image, tumor_probability, mask))
    around = None if liver is None else liver[native].to(mask.device)
    far = signed_distance(mask, spacing_mm, max(CONTRAST_MM, 1.01 * settings.band_mm))
    distance = far.clamp(-1.01 * settings.band_mm, 1.01 * settings.band_mm)
    near = distance.abs() <= settings.band_mm
    if not bool(near.any()):
        return None
    z, y, x = (
        slice(min(max(0, math.floor(b.start * s / g)), n - 1), max(1, min(n, math.ceil(b.stop * s / g))))
        for b, s, g, n in zip(native, spacing_mm, grid, full)
    )
    box = (z, y, x)
    low, high = settings.window_hu
    nearest = nearest_voxel(mask, spacing_mm)
    contrast = relative_contrast(image, mask, around, spacing_mm, far, nearest)
    parts = (image, tumor_probability, distance, contrast, mask, near)
    hu, p, away, contrast, drawn, near = carry(torch.stack([v.float() for v in parts]), native, spacing_mm, box, grid)
    channels = torch.stack(
        [
            (hu.clamp(low, high) - low) / (high - low) * 2 - 1,
            p * 2 - 1,
            (away / settings.band_mm).clamp(-1, 1),
            contrast,
        ]
    )
    return OnGrid(channels, near > 0, drawn >= 0.5, native, box, distance, nearest)
