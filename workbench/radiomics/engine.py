"""The torch engine: all 728 descriptors of a batch of boxes, and the words for what is not defined.

Order of work for a batch: sub-bands at the region's voxels, levels of all nine images, then each family for all lesions
and images at once. On CPU and CUDA alike; integer counts and float64 formulas.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from workbench.radiomics import boundary, discretise, glcm, gldm, glrlm, glszm, intensity, ngtdm, shape, wavelet
from workbench.radiomics.catalogue import BANDS, CATALOGUE, GROUPS, NAMES
from workbench.radiomics.ragged import Boxes

THICK_MM = 5.0  # a choice: slices from here on are marked in each row
_TEXTURE = dict(glcm=glcm, glrlm=glrlm, glszm=glszm, gldm=gldm, ngtdm=ngtdm)
_IMAGES = ("", *(f"wavelet_{band.lower()}_" for band in BANDS))
_TEXTURE_NAMES = [f"{kind}_{name}" for kind, module in _TEXTURE.items() for name in module.NAMES]
_ORDER = (
    [f"intensity_{name}" for name in intensity.NAMES]
    + [f"shape_{name}" for name in shape.NAMES]
    + [f"boundary_{name}" for name in boundary.NAMES]
    + [image + name for image in _IMAGES for name in _TEXTURE_NAMES]
)
_FIRST = dict(intensity=0, shape=len(intensity.NAMES), boundary=len(intensity.NAMES + shape.NAMES))
_FIRST["texture"] = _FIRST["boundary"] + len(boundary.NAMES)
_COLUMN = {name: column for column, name in enumerate(_ORDER)}
_TO_CATALOGUE = [_COLUMN[name] for name in NAMES]
_IF_CONSTANT = [name.split("_", 1)[1] in _TEXTURE[name.split("_")[0]].UNDEFINED_IF_CONSTANT for name in _TEXTURE_NAMES]


def describe(
    boxes: Boxes, bin_width: float = discretise.BIN_WIDTH, groups: Collection[str] = tuple(GROUPS)
) -> tuple[Tensor, list[str]]:
    """Values `[l 728]` float64 in catalogue order, NaN in the groups that were not asked for, and for each lesion why
    others are NaN (empty if none is)."""
    voxels, l = boxes.voxels, boxes.count
    hu = boxes.hu.flatten()[voxels.at]
    # a range below the rounding of the transform is no texture
    noise = 32 * torch.finfo(boxes.hu.dtype).eps * boxes.hu.abs().amax((1, 2, 3))
    images = [hu[None], wavelet.bands(boxes)] if "wavelet" in groups else [hu[None]]
    levels = discretise.discretise(torch.cat(images), voxels, noise, bin_width)
    flat = levels.constant.view(-1, l)
    out = torch.full((l, len(_ORDER)), torch.nan, dtype=torch.float64, device=hu.device)
    texture = out[:, _FIRST["texture"] :].view(l, len(_IMAGES), -1)  # the images one after the other

    if "texture" in groups or "wavelet" in groups:
        found = torch.cat([module.describe(levels) for module in _TEXTURE.values()], 1)
        undefined = torch.tensor(_IF_CONSTANT, device=found.device)
        undefined = levels.constant[:, None] & undefined | levels.beyond[:, None]
        found = torch.where(undefined, torch.nan, found).view(len(flat), l, -1)
        first = 0 if "texture" in groups else 1
        texture[:, first : len(flat)] = found[first:].transpose(0, 1)
    if "intensity" in groups:
        found = intensity.describe(hu, voxels, levels, math.prod(boxes.spacing_mm))
        undefined = torch.tensor([n in intensity.UNDEFINED_IF_CONSTANT for n in intensity.NAMES], device=found.device)
        binned = torch.tensor([n in intensity.BINNED for n in intensity.NAMES], device=found.device)
        undefined = flat[0][:, None] & undefined | levels.beyond[:l, None] & binned
        out[:, : _FIRST["shape"]] = torch.where(undefined, torch.nan, found)
    if "shape" in groups:
        out[:, _FIRST["shape"] : _FIRST["boundary"]] = shape.describe(boxes)
    if "boundary" in groups:
        out[:, _FIRST["boundary"] : _FIRST["texture"]] = boundary.describe(boxes)
    values = out[:, _TO_CATALOGUE]
    return values, _reasons(values, boxes, flat, levels.beyond.view(-1, l), groups)


def _reasons(values: Tensor, boxes: Boxes, flat: Tensor, beyond: Tensor, groups: Collection[str]) -> list[str]:
    count, flat = boxes.voxels.count.tolist(), flat.T.tolist()
    edge = (_at_border(boxes)).tolist()
    many = beyond.any(0).tolist()
    asked = torch.tensor([group in groups for group in CATALOGUE["group"]])
    missing = values.isnan().cpu() & asked
    out = []
    for lesion in range(boxes.count):
        names = [NAMES[i] for i in missing[lesion].nonzero().flatten().tolist()]
        words = []
        if count[lesion] == 1:
            words.append("one voxel")
        elif flat[lesion][0]:
            words.append("flat region")
        elif any(flat[lesion]):
            words.append("flat sub-band")
        elif not many[lesion] and any("gl" in name for name in names):
            words.append("no two voxels are neighbours")
        if many[lesion]:
            words.append(f"more than {discretise.MOST} grey levels, in the image or a sub-band")
        margin = [name for name in names if name.startswith("boundary_") and name != "boundary_liver_contact"]
        if margin:
            words.append("boundary not defined: " + " ".join(name.removeprefix("boundary_") for name in margin))
        if boxes.liver is None and "boundary" in groups:
            words.append("no liver mask: liver_contact")
        if edge[lesion]:
            words.append("at the border of the volume")
        if max(boxes.spacing_mm) >= THICK_MM:
            words.append(f"slices of {max(boxes.spacing_mm):.3g} mm: texture across them is coarse")
        out.append("; ".join(words))
    return out


def _at_border(boxes: Boxes) -> Tensor:
    """Whether a region voxel has a neighbour that is not in the volume `[l]`."""
    region, seen = (v[boxes.inner(1)] for v in (boxes.region, boxes.seen))
    out = torch.zeros(boxes.count, dtype=torch.bool, device=region.device)
    for axis in (1, 2, 3):
        n = region.shape[axis] - 1
        a, b = (slice(0, n), slice(1, n + 1))
        for one, other in ((a, b), (b, a)):
            own, beside = (t.narrow(axis, s.start, n) for t, s in ((region, one), (seen, other)))
            out |= (own & ~beside).flatten(1).any(1)
    return out
