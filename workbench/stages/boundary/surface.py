"""Distances to a mask's surface, the band around it, and how like a lesion what lies there is."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from workbench.masks import bounding_box
from workbench.volume import Spacing

CORE_MM, AROUND_MM, LEAST_HU = 1.5, (4.0, 12.0), 8.0  # choices: where a lesion and its surroundings are read
CONTRAST_MM = AROUND_MM[1] + 1  # how far distances are known for that


def distance_to(on: Bool[Tensor, "*n z y x"], spacing_mm: Spacing, limit_mm: float) -> Float[Tensor, "*n z y x"]:
    """mm from each voxel's centre to the nearest point of a voxel that is on, for masks `[.. z y x]`; inf beyond `limit_mm`.

    Per axis a voxel k steps away begins (k - 1/2) spacings away, and squares add up: three passes of running minima.
    """
    square = torch.where(on, 0.0, torch.inf).float()
    for axis, s in zip((-3, -2, -1), spacing_mm):
        n = on.shape[axis]
        most = max(0, min(n - 1, math.floor(limit_mm / s + 0.5)))
        around = F.pad(square, [0] * 2 * (-1 - axis) + [most, most], value=math.inf)
        for k in range(1, most + 1):
            either = torch.minimum(around.narrow(axis, most - k, n), around.narrow(axis, most + k, n))
            square = torch.minimum(square, either.add_(((k - 0.5) * s) ** 2))
    distance = square.sqrt()
    return torch.where(distance <= limit_mm, distance, torch.inf)


def signed_distance(mask: Bool[Tensor, "z y x"], spacing_mm: Spacing, limit_mm: float) -> Float[Tensor, "z y x"]:
    """mm from each voxel's centre `[z y x]` to the mask's surface of voxel faces, negative inside, cut at ±`limit_mm`.

    The volume's own border is no surface: a lesion that leaves the scan goes on beyond it.
    """
    outside, inside = distance_to(torch.stack([mask, ~mask]), spacing_mm, limit_mm)
    return torch.where(mask, -inside, outside).clamp(-limit_mm, limit_mm)


def band(mask: Bool[Tensor, "z y x"], spacing_mm: Spacing, band_mm: float) -> Bool[Tensor, "z y x"]:
    """Voxels whose centre is at most `band_mm` from the mask's surface, on either side. Empty for an empty mask."""
    near = torch.zeros_like(mask)
    box = bounding_box(mask, spacing_mm, band_mm + max(spacing_mm))
    if box is not None:
        part = mask[box]
        near[box] = signed_distance(part, spacing_mm, band_mm + max(spacing_mm)).abs() <= band_mm
    return near


def relative_contrast(
    image: Float[Tensor, "z y x"],
    mask: Bool[Tensor, "z y x"],
    liver: Bool[Tensor, "z y x"] | None,
    spacing_mm: Spacing,
    distance: Float[Tensor, "z y x"] | None = None,
    nearest: Int[np.ndarray, "3 z y x"] | None = None,
) -> Float[Tensor, "z y x"]:
    """How like the nearest lesion, 1, or like the tissue around it, -1, each voxel's HU is; cut at twice that.

    Zero is the middle between the medians of the lesion's inside and of the liver around it (Chan & Vese 2001), where a
    blurred edge runs. Zero everywhere near a lesion that has no contrast, or no liver around it. `distance` (cut at `CONTRAST_MM` or
    beyond) and `nearest` of the mask, where known already.
    """
    hu, inside = image.float().cpu().numpy(), mask.cpu().numpy()
    lesions, n = ndimage.label(inside, np.ones((3, 3, 3)))
    out = np.zeros(hu.shape, np.float32)
    if n:
        distance = signed_distance(mask, spacing_mm, CONTRAST_MM) if distance is None else distance
        distance = distance.cpu().numpy()
        owner = lesions[tuple(nearest_voxel(mask, spacing_mm) if nearest is None else nearest)]
        tissue = (distance > AROUND_MM[0]) & (distance < AROUND_MM[1])
        if liver is not None:
            tissue &= liver.cpu().numpy()
        for k, box in enumerate(ndimage.find_objects(owner), 1):
            own, values, deep = owner[box] == k, hu[box], distance[box] < -CORE_MM
            around, core = values[own & tissue[box]], values[own & deep]
            if len(core) < 4:
                core = values[lesions[box] == k]
            if len(around) < 10:
                continue
            high, low = np.median(core), np.median(around)
            if abs(high - low) >= LEAST_HU:
                out[box][own] = np.clip((values[own] - low) / (high - low) * 2 - 1, -2, 2)
    return torch.as_tensor(out, device=image.device)


def nearest_voxel(mask: Bool[Tensor, "z y x"], spacing_mm: Spacing) -> Int[np.ndarray, "3 z y x"]:
    """Everywhere the indices of the nearest voxel of the mask."""
    return ndimage.distance_transform_edt(~mask.cpu().numpy(), spacing_mm, return_distances=False, return_indices=True)
