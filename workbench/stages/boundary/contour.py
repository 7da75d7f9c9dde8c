"""The band decided anew, lesion by lesion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import Tensor

from workbench.masks import bounding_box
from workbench.stages.boundary.grid import carry, onto_grid
from workbench.stages.boundary.net import dense_logits
from workbench.stages.boundary.settings import BoundarySettings
from workbench.stages.boundary.surface import distance_to
from workbench.stages.boundary.training import BoundaryModel
from workbench.volume import Refused, Spacing


@dataclass(frozen=True)
class Relabelled:
    """What the band became, all `[z y x]` on the input's grid and device. `lesions`: one row a lesion of the mask."""

    mask: Tensor  # bool
    probability: Tensor  # the net's (and the blend's) in the band, less for a doubtful piece; the cascade's elsewhere
    added: Tensor
    removed: Tensor
    band: Tensor
    smoothing_change_ml: float  # of the contour's smoothing alone
    lesions: pd.DataFrame  # lesion, voxels_before, added, removed, voxels_after, parts, restored, unmerged


def _gaussian(field: Tensor, spacing_mm: Spacing, sigma_mm: float) -> Tensor:
    """Separable Gaussian in mm, the border's voxels repeated."""
    out = field[None, None]
    for axis, s in enumerate(spacing_mm):
        radius = math.ceil(3 * sigma_mm / s)
        if radius == 0 or sigma_mm == 0:
            continue
        at = torch.arange(-radius, radius + 1, device=field.device) * s
        kernel = torch.exp(-0.5 * (at / sigma_mm) ** 2)
        shape = [1] * 5
        shape[axis + 2] = -1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, pad, mode="replicate"), (kernel / kernel.sum()).view(shape))
    return out[0, 0]


def _one_for_one(old: Tensor, new: Tensor, spacing_mm: Spacing) -> tuple[Tensor, pd.DataFrame]:
    """`new`, changed so that each lesion of `old` is there, alone, and nothing else is; and a row for each lesion."""
    everywhere, out = np.ones((3, 3, 3)), new.clone()
    box = bounding_box(old | new, spacing_mm, 0) or (slice(0, 1),) * 3
    before, n = ndimage.label(old[box].cpu().numpy(), everywhere)
    after = new[box].cpu().numpy().copy()
    was = before > 0
    restored = np.setdiff1d(np.arange(1, n + 1), before[after])
    if len(restored):
        after |= np.isin(before, restored)
    unmerged = np.zeros(n + 1, int)
    pieces = ndimage.label(after, everywhere)[0]
    for k, part in enumerate(ndimage.find_objects(pieces), 1):
        piece = pieces[part] == k
        names = np.unique(before[part][piece & was[part]])
        if len(names) < 2:
            continue
        part = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in part)
        piece = pieces[part] == k
        seeds = np.where(np.isin(before[part], names), before[part], 0)
        nearest = ndimage.distance_transform_edt(seeds == 0, spacing_mm, return_distances=False, return_indices=True)
        owner = np.where(piece, seeds[tuple(nearest)], 0)
        most = ndimage.maximum_filter(owner, 3, mode="constant")
        least = ndimage.minimum_filter(np.where(piece, owner, n + 1), 3, mode="constant", cval=n + 1)
        bridge = piece & (most != least) & ~was[part]
        after[part] &= ~bridge
        unmerged += np.bincount(owner[bridge], minlength=n + 1)
    if unmerged.any():
        pieces = ndimage.label(after, everywhere)[0]
    m = int(pieces.max())
    rooted = np.zeros(m + 1, bool)
    rooted[pieces[was & after]] = True
    after &= rooted[pieces]
    home = np.zeros(m + 1, int)  # the old lesion of each new piece
    home[pieces[was & after]] = before[was & after]
    kept = np.bincount(before[was & after], minlength=n + 1)
    size = np.bincount(before[was], minlength=n + 1)
    added = np.bincount(home[pieces[after & ~was]], minlength=n + 1)
    parts = np.bincount(np.array(home[1:][rooted[1:]], int), minlength=n + 1)
    index = np.arange(1, n + 1)
    out[box] = torch.as_tensor(after, device=old.device)
    return out, pd.DataFrame(
        {
            "lesion": index,
            "voxels_before": size[1:],
            "added": added[1:],
            "removed": (size - kept)[1:],
            "voxels_after": (kept + added)[1:],
            "parts": parts[1:],
            "restored": np.isin(index, restored),
            "unmerged": unmerged[1:],
        }
    )


@torch.no_grad()
def relabel(
    model: BoundaryModel,
    image: Shaped[Tensor, "_ _ _"],
    tumor_probability: Shaped[Tensor, "_ _ _"],
    mask: Shaped[Tensor, "_ _ _"],
    liver: Shaped[Tensor, "_ _ _"] | None,
    spacing_mm: Spacing,
    settings: BoundarySettings | None = None,
) -> Relabelled:
    """Decide the band of `mask` anew; outside the band nothing changes.

    image in HU; mask bool, or P(lesion) of the piece in each of its voxels and 0 elsewhere (`chances`); liver None sets no limit; all
    on one grid of `spacing_mm`. `settings` may differ from the model's in threshold, blend, smooth_mm and liver_margin_mm, and in a
    narrower band_mm.
    """
    own = model.settings
    settings = settings or own
    device = next(model.net.parameters()).device
    arrays = {"image": image, "tumor_probability": tumor_probability, "mask": mask} | (
        {} if liver is None else {"liver": liver}
    )
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(image.shape):
            raise Refused(
                name,
                f"grid {tuple(array.shape)}",
                f"{tuple(image.shape)}, the image's",
                "Resample one onto the other first.",
            )
    if settings.band_mm > own.band_mm:
        raise Refused("band_mm", f"{settings.band_mm}", f"at most {own.band_mm}, the band the net was trained on")
    chance, mask = mask, mask > 0
    nothing = torch.zeros_like(mask)
    probability = tumor_probability.float().clone()
    liver = None if liver is None else liver.bool()
    part = onto_grid(image, probability, mask, liver, spacing_mm, own, own.reach, device)
    if part is None:
        lesions = _one_for_one(mask, mask, spacing_mm)[1]
        return Relabelled(mask.clone(), probability, nothing, nothing.clone(), nothing.clone(), 0.0, lesions)
    box = part.native_box
    near = part.distance.abs() <= settings.band_mm
    drawn, was = mask[box].to(device), probability[box].to(device)
    known = model.net.known(was)
    correction = dense_logits(model.net, part.channels, part.band) - model.net.known((part.channels[1] + 1) / 2)
    logits = known + carry(correction, part.grid_box, own.grid_mm, box, spacing_mm)
    p = torch.where(near, logits.sigmoid() * (1 - settings.blend) + was * settings.blend, drawn.float())
    lesion = 1.0
    if chance.is_floating_point():
        at = tuple(torch.as_tensor(a, device=device, dtype=torch.long) for a in part.nearest)
        lesion = (2 * chance[box].to(device)[at]).clamp_max(1)
    around = None if liver is None else liver[box].to(device)
    allowed = drawn if around is None else drawn | _near_liver(around, spacing_mm, settings.liver_margin_mm)
    sharp = torch.where(near, p * lesion >= settings.threshold, drawn)
    smooth = torch.where(near, _gaussian(p, spacing_mm, settings.smooth_mm) * lesion >= settings.threshold, drawn)
    if liver is not None:
        sharp, smooth = sharp & allowed, smooth & allowed
    decided, lesions = _one_for_one(drawn, smooth, spacing_mm)
    final, whole_band = mask.clone(), nothing.clone()
    final[box] = decided.to(final.device)
    whole_band[box] = near.to(final.device)
    probability[box] = torch.where(near, p * lesion, was).to(final.device)
    voxel_ml = math.prod(spacing_mm) / 1000
    smoothing_ml = float(smooth.sum() - sharp.sum()) * voxel_ml
    return Relabelled(final, probability, final & ~mask, mask & ~final, whole_band, smoothing_ml, lesions)


def chances(labels: Shaped[Tensor, "z y x"], numbers: ArrayLike, scores: ArrayLike) -> Float[Tensor, "z y x"]:
    """P(lesion) in the voxels of some numbered pieces `[z y x]`, never 0 there; 0 elsewhere."""
    of = torch.zeros(int(labels.max()) + 1)
    of[torch.tensor(np.asarray(numbers, np.int64))] = torch.tensor(np.asarray(scores, np.float32)).clamp_min(1e-6)
    return of.to(labels.device)[labels.long()]


def _near_liver(liver: Tensor, spacing_mm: Spacing, margin_mm: float) -> Tensor:
    return liver | distance_to(liver, spacing_mm, margin_mm).isfinite()
