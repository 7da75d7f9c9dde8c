"""Radiomics: 728 descriptors of every candidate lesion of a case, in one batch on the device.

The paper STATES that candidate lesions are described by 728 values in five groups. We CHOOSE the values (catalogue.py)
and describe all lesions of a case at once (ragged.py). `engine="pyradiomics"` computes the standard 707 by PyRadiomics
instead, lesion by lesion, for cross-checks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.radiomics import reference
from workbench.radiomics.catalogue import BANDS, CATALOGUE, GROUPS, NAMES
from workbench.volume import Refused, Spacing

__all__ = ["BANDS", "CATALOGUE", "GROUPS", "NAMES", "describe"]

ENGINES = ("torch", "pyradiomics")


def describe(
    image: Tensor,
    lesions: Tensor,
    spacing_mm: Spacing,
    liver: Tensor | None = None,
    engine: str = "torch",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """All 728 descriptors of every label value.

    `image` HU `[z y x]`, `lesions` integer labels `[z y x]` (0 is background), `liver` a mask `[z y x]` or None. One
    row a label, ascending: `label`, the 728 names in catalogue order (float64, NaN where one is not defined), and `reason` (why
    some are NaN, else empty). `progress(done, total)` is called as lesions are done.
    """
    if engine not in ENGINES:
        raise Refused("radiomics engine", repr(engine), " or ".join(ENGINES))
    if image.ndim != 3 or tuple(image.shape) != tuple(lesions.shape):
        raise Refused("radiomics", f"labels {tuple(lesions.shape)}", f"the image's grid {tuple(image.shape)}")
    if lesions.is_floating_point():
        raise Refused("radiomics", f"labels of type {lesions.dtype}", "integers")
    labels = [int(v) for v in torch.unique(lesions) if v != 0]
    values, reasons = reference.describe(image.cpu().numpy(), lesions.cpu().numpy(), spacing_mm, labels, progress)
    return table(labels, values, reasons)


def table(labels: list[int], values: np.ndarray, reasons: list[str]) -> pd.DataFrame:
    """The data frame that `describe` returns."""
    frame = pd.DataFrame(values, columns=list(NAMES))
    frame.insert(0, "label", np.array(labels, dtype=np.int64))
    frame["reason"] = pd.array(reasons, dtype="str") if reasons else pd.Series(dtype="str")
    return frame
