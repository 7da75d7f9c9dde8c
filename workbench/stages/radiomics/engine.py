"""The torch engine: the 728 descriptors of a batch of boxes, or some of them, and the words for what is not defined.

Order of work for a batch: sub-bands at the region's voxels, levels of all nine images, then each family for all lesions
and images at once. On CPU and CUDA alike; integer counts and float64 formulas.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.masks import true_at
from workbench.stages.radiomics import boundary, discretise, intensity, shape, texture, wavelet
from workbench.stages.radiomics.catalogue import BANDS, NAMES
from workbench.stages.radiomics.ragged import Boxes
from workbench.volume import Spacing

THICK_MM = 5.0  # a choice: slices from here on are marked in each row
NO_MIDDLE = "no voxel between the 10th and the 90th percentile: rmad"
_IMAGES = ("", *(f"wavelet_{band.lower()}_" for band in BANDS))
_COLUMN = {name: column for column, name in enumerate(NAMES)}


def describe(
    boxes: Boxes, bin_width: float = discretise.BIN_WIDTH, names: Collection[str] = NAMES
) -> tuple[Float[Tensor, "l 728"], list[str]]:
    """Values in catalogue order, float64, NaN for names that were not asked for, and for each lesion why
    others are NaN (empty if none is). Images and families of which nothing was asked are not computed."""
    voxels, l = boxes.voxels, boxes.count
    wanted = {k: [i for i, image in enumerate(_IMAGES) if _of(names, f"{image}{k}_")] for k in texture.NAMES}
    counted = sorted(
        {i for kind, some in wanted.items() if kind != "glcm" for i in some}
    )  # compiled code counts all at once
    images = sorted({0, *wanted["glcm"], *counted})  # HU always

    hu = boxes.hu.flatten()[voxels.at]
    # a range below the rounding of the transform is no texture
    noise = 32 * torch.finfo(boxes.hu.dtype).eps * boxes.hu.abs().amax((1, 2, 3))
    bands = [BANDS[i - 1] for i in images[1:]]
    values = torch.cat([hu[None], wavelet.bands(boxes, bands)]) if bands else hu[None]
    levels = discretise.discretise(values, voxels, noise, bin_width)
    flat, beyond = levels.constant.view(-1, l), levels.beyond.view(-1, l)
    columns: list[int] = []
    parts: list[Tensor] = []

    def add(prefixes: Collection[str], own: Collection[str], found: Tensor) -> None:
        columns.extend(_COLUMN[prefix + name] for prefix in prefixes for name in own)
        parts.append(found)

    if own := _of(names, "intensity_"):
        found = intensity.describe(hu, voxels, levels, math.prod(boxes.spacing_mm))
        undefined, binned = (
            _among(intensity.NAMES, n, hu) for n in (intensity.UNDEFINED_IF_CONSTANT, intensity.BINNED)
        )
        undefined = flat[0][:, None] & undefined | beyond[0][:, None] & binned
        add(["intensity_"], intensity.NAMES, torch.where(undefined, torch.nan, found))
    for family in (shape, boundary):
        prefix = family.__name__.rpartition(".")[2] + "_"
        if own := _of(names, prefix):
            add([prefix], family.NAMES, family.describe(boxes, own))
    together = levels.of([images.index(i) for i in counted])
    for kind, own in texture.NAMES.items():
        if not wanted[kind]:
            continue
        some, mine = counted, together
        if kind == "glcm":
            some, mine = wanted[kind], levels.of([images.index(i) for i in wanted[kind]])
        found = texture.describe(kind, mine, {name.rpartition("glcm_")[2] for name in names if "glcm_" in name})
        undefined = mine.constant[:, None] & _among(own, texture.UNDEFINED_IF_CONSTANT.get(kind, ()), hu)
        found = torch.where(undefined | mine.beyond[:, None], torch.nan, found)
        found = found.view(len(some), l, -1).transpose(0, 1).flatten(1)
        add([f"{_IMAGES[i]}{kind}_" for i in some], own, found)

    out = torch.full((l, len(NAMES)), torch.nan, dtype=torch.float64, device=hu.device)
    if parts:
        out[:, columns] = torch.cat(parts, 1)
    asked = _among(NAMES, frozenset(names), hu)
    out = torch.where(asked, out, torch.nan)
    return out, _reasons(out, boxes, flat, beyond, names)


def _of(names: Collection[str], prefix: str) -> list[str]:
    """What follows the prefix in those that begin with it."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _among(names: Collection[str], some: Collection[str], like: Tensor) -> Tensor:
    """Which of the names are among some of them, bool `[n]`."""
    return torch.tensor([name in some for name in names], device=like.device)


def _reasons(values: Tensor, boxes: Boxes, flat: Tensor, beyond: Tensor, asked: Collection[str]) -> list[str]:
    count, flat = boxes.voxels.count.tolist(), flat.T.tolist()
    edge = _at_border(boxes).tolist()
    many = beyond.any(0).tolist()
    missing = (values.isnan() & _among(NAMES, frozenset(asked), values)).cpu().numpy()
    out = []
    for lesion in range(boxes.count):
        names = [NAMES[i] for i in np.flatnonzero(missing[lesion])]
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
        if count[lesion] > 1 and "intensity_rmad" in names:
            words.append(NO_MIDDLE)
        margin = [name for name in names if name.startswith("boundary_") and name != "boundary_liver_contact"]
        if margin:
            words.append("boundary not defined: " + " ".join(name.removeprefix("boundary_") for name in margin))
        if boxes.liver is None and "boundary_liver_contact" in asked:
            words.append("no liver mask: liver_contact")
        out.append("; ".join(words + surroundings(edge[lesion], boxes.spacing_mm)))
    return out


def surroundings(at_border: bool, spacing_mm: Spacing) -> list[str]:
    """What its place and the slices say of a region's values, whichever engine computed them."""
    words = ["at the border of the volume"] if at_border else []
    if max(spacing_mm) >= THICK_MM:
        words.append(f"slices of {max(spacing_mm):.3g} mm: texture across them is coarse")
    return words


def _at_border(boxes: Boxes) -> Tensor:
    """Whether a region voxel has a neighbour that is not in the volume `[l]`."""
    voxels, (_, _, y, x) = boxes.voxels, boxes.hu.shape
    steps = torch.tensor([y * x, x, 1], device=voxels.at.device)
    around = torch.cat([steps, -steps])[:, None] + voxels.at
    out = torch.zeros(boxes.count, dtype=torch.bool, device=voxels.at.device)
    return out.index_fill_(0, voxels.lesion[true_at(~boxes.seen.flatten()[around].all(0))], True)
