"""Radiomics: 728 descriptors of every candidate lesion of a case, in one batch on the device.

The paper STATES that candidate lesions are described by 728 values in five groups. We CHOOSE the values (catalogue.py)
and describe all lesions of a case at once (ragged.py). `engine="pyradiomics"` computes the standard 707 by PyRadiomics
instead, lesion by lesion, for cross-checks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from workbench.data.threads import side_by_side
from workbench.stages.radiomics import engine as engine_
from workbench.stages.radiomics import fixed, perturb, ragged, reference
from workbench.stages.radiomics.catalogue import BANDS, CATALOGUE, GROUPS, NAMES, named
from workbench.stages.radiomics.discretise import BIN_WIDTH
from workbench.stages.radiomics.fixed import RadiomicsSettings
from workbench.volume import Refused, Spacing

__all__ = ["BANDS", "CATALOGUE", "GROUPS", "NAMES", "RadiomicsSettings", "describe", "named", "steady"]

ENGINES = ("torch", "pyradiomics")


def describe(
    image: Tensor,  # shapes and types of all three are refused in plain words
    lesions: Tensor,
    spacing_mm: Spacing,
    liver: Tensor | None = None,
    engine: str = "torch",
    progress: Callable[[str, int, int], None] | None = None,
    bin_width: float = BIN_WIDTH,
    names: Collection[str] = NAMES,
) -> pd.DataFrame:
    """All 728 descriptors of every label value, or some by their `names` (`named` gives those of a group); the torch engine
    leaves out the images and families of which nothing was asked.

    `image` HU `[z y x]`, `lesions` integer labels `[z y x]` (0 is background), `liver` a mask `[z y x]` or None. One
    row a label, ascending: `label`, the names in catalogue order (float64, NaN where one is not defined), and
    `reason` (why some are NaN and what else to know of it, else empty). `progress(what, done, total)` is called as lesions are done.
    `bin_width` of the grey levels, in HU.
    """
    if engine not in ENGINES:
        raise Refused("radiomics engine", repr(engine), " or ".join(ENGINES))
    if image.ndim != 3 or tuple(image.shape) != tuple(lesions.shape):
        raise Refused("radiomics", f"labels {tuple(lesions.shape)}", f"the image's grid {tuple(image.shape)}")
    if unknown := set(names) - set(NAMES):
        raise Refused(
            "radiomics", f"descriptors {', '.join(sorted(unknown))}", "names of the catalogue (docs/descriptors.md)"
        )
    if not bin_width > 0:
        raise Refused("radiomics bin width", f"{bin_width} HU", "more than 0")
    if lesions.is_floating_point():
        raise Refused("radiomics", f"labels of type {lesions.dtype}", "integers")
    if liver is not None and tuple(liver.shape) != tuple(image.shape):
        raise Refused("radiomics", f"a liver mask {tuple(liver.shape)}", f"the image's grid {tuple(image.shape)}")
    found = ragged.find(lesions)
    labels = found.labels.tolist()
    if engine == "pyradiomics":
        values, reasons = reference.describe(
            image.cpu().numpy(), lesions.cpu().numpy(), spacing_mm, labels, progress, bin_width, names
        )
        return table(labels, values, reasons, names)
    values, reasons = np.full((len(labels), len(NAMES)), np.nan), [""] * len(labels)
    at_once = ragged.batch_voxels(image.device)
    batches = ragged.groups_by_size(found.high - found.low + 1, ragged.margins(spacing_mm), at_once)
    done = 0

    def work(batch: tuple[list[int], list[int]], tell: Callable[..., None]) -> None:
        index, extent = batch
        boxes = ragged.crop(image, lesions, liver, spacing_mm, found, index, extent)
        here, words = ragged.with_room(lambda boxes: engine_.describe(boxes, bin_width, names), boxes)
        values[index] = here.cpu().numpy()
        for i, text in zip(index, words):
            reasons[i] = text
        tell(len(index))

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("regions", done, len(labels))

    side_by_side(work, list(batches)[::-1], tell, image.device)  # the largest first, so that no thread is left with it
    return table(labels, values, reasons, names)


def steady(
    image: Real[Tensor, "z y x"],
    lesions: Integer[Tensor, "z y x"],
    spacing_mm: Spacing,
    liver: Real[Tensor, "z y x"] | Bool[Tensor, "z y x"] | None = None,
    names: Collection[str] = NAMES,
    settings: RadiomicsSettings | None = None,
    resolution: bool = False,
) -> tuple[pd.DataFrame, Float[np.ndarray, "copy lesion 728"]]:
    """Descriptors, all or some by their `names`, averaged over each lesion and its perturbed copies, and the values behind the averages.

    The table as `describe` gives it; a descriptor that is not defined for the lesion itself stays NaN, a copy for
    which it is not defined is left out. The values are the lesion's own first, then
    those under `perturb.PERTURBATIONS`, and with `resolution` those on coarser voxels, which are not averaged.
    """
    scan = fixed.Scan(image, lesions, spacing_mm, liver).on(settings.grid_mm if settings else None)
    image, lesions, spacing_mm, liver = scan.image, scan.lesions, scan.spacing_mm, scan.liver
    changes = (*perturb.PERTURBATIONS, perturb.UNCHANGED)
    values, reasons = perturb.describe_perturbed(image, lesions, spacing_mm, liver, changes, names=names)
    own, values = values[-1], np.roll(values, 1, axis=0)
    known = np.isfinite(values)
    average = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
    average = np.where(np.isfinite(own), average, own)
    labels = ragged.find(lesions).labels.tolist()
    if resolution:
        coarse = scan.coarser()
        seen = describe(coarse.image, coarse.lesions, coarse.spacing_mm, coarse.liver, names=names)
        other = seen.reindex(columns=list(NAMES)).to_numpy(float)  # NaN where nothing was asked
        values = fixed.joined(values, labels, other, seen.label.tolist())
    return table(labels, average, reasons[-1], names), values


def table(
    labels: list[int], values: Float[np.ndarray, "lesion 728"], reasons: list[str], names: Collection[str] = NAMES
) -> pd.DataFrame:
    """The data frame that `describe` returns."""
    asked = CATALOGUE["name"].isin(names).to_numpy()
    frame = pd.DataFrame(values[:, asked], columns=CATALOGUE["name"][asked])
    frame.insert(0, "label", np.array(labels, dtype=np.int64))
    frame["reason"] = pd.array(reasons, dtype="str") if reasons else pd.Series(dtype="str")
    return frame
