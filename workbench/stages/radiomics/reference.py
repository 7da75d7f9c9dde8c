"""PyRadiomics as the second engine: the standard 707 descriptors, one lesion after the other.

We CHOOSE it for cross-checks. It is imported only when asked for, and told to be silent. Each lesion is cropped before
it is handed over, with enough voxels around it (indices wrap at the volume's ends, as the periodic wavelet does) that
the sub-bands inside equal those of the whole volume.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Real
from scipy import ndimage

from workbench.stages.radiomics.catalogue import CATALOGUE, NAMES
from workbench.stages.radiomics.discretise import BIN_WIDTH
from workbench.stages.radiomics.engine import NO_MIDDLE, surroundings
from workbench.volume import Spacing

MARGIN = 8  # rule: the coif1 filter reaches 3 voxels, one more where an axis is odd


def wrapped(low: int, high: int, n: int) -> Int[np.ndarray, " m"]:
    """Indices low .. high - 1 on an axis of n as the periodic wavelet sees it: odd axes repeat the first voxel."""
    return np.arange(low, high) % (n + n % 2) % n


@contextlib.contextmanager
def _quiet():
    import radiomics  # its import sets the logger's level, so it comes first

    logger = radiomics.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def extractor(bin_width: float = BIN_WIDTH, **settings: Any) -> Any:
    """PyRadiomics's extractor for the original image and the coif1 sub-bands, every feature on."""
    from radiomics import featureextractor

    made = featureextractor.RadiomicsFeatureExtractor(
        binWidth=bin_width, additionalInfo=False, minimumROIDimensions=1, **settings
    )
    made.enableImageTypeByName("Wavelet")
    made.enableAllFeatures()
    return made


def crop(
    image: Real[np.ndarray, "z y x"], mask: Bool[np.ndarray, "z y x"]
) -> tuple[Real[np.ndarray, "c b a"], Bool[np.ndarray, "c b a"]]:
    """The lesion's box with its margin; voxels beyond the volume are wrapped ones and never in the mask."""
    box, inside = [], []
    for axis, n in enumerate(mask.shape):
        on = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = int(on[0]) - MARGIN, int(on[-1]) + 1 + MARGIN
        box.append(wrapped(low, high, n))
        at = np.arange(low, high)
        inside.append((at >= 0) & (at < n))
    region = mask[np.ix_(*box)] & inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    return image[np.ix_(*box)], region


def describe(
    image: Real[np.ndarray, "z y x"],
    lesions: Integer[np.ndarray, "z y x"],
    spacing_mm: Spacing,
    labels: list[int],
    progress: Callable[[str, int, int], None] | None = None,
    bin_width: float = BIN_WIDTH,
    names: Collection[str] = NAMES,
) -> tuple[Float[np.ndarray, "lesion 728"], list[str]]:
    """The 707 standard values of each label, with NaN in the boundary group, and a reason a lesion, of those
    that are asked for by their `names`."""
    import SimpleITK as sitk

    twins = CATALOGUE["pyradiomics"]
    values = np.full((len(labels), len(CATALOGUE)), np.nan)
    reasons, names = [""] * len(labels), frozenset(names)
    with _quiet():
        engine = extractor(bin_width)
        for row, label in enumerate(labels):
            if image.dtype not in (np.float32, np.float64):
                image = image.astype(np.float64)
            mask = lesions == label
            box, region = crop(image, mask)
            pair = [sitk.GetImageFromArray(np.ascontiguousarray(a)) for a in (box, region.astype(np.uint8))]
            for one in pair:
                one.SetSpacing(tuple(float(s) for s in spacing_mm[::-1]))
            try:
                result = engine.execute(*pair, label=1)
            except (ValueError, IndexError, ZeroDivisionError, FloatingPointError) as error:
                failed = [f"PyRadiomics: {error}"]
            else:
                failed = []
                for column, key in enumerate(twins):
                    if isinstance(key, str):
                        values[row, column] = np.real(result[key])
            missing = [name for name, value in zip(NAMES, values[row]) if name in names and np.isnan(value)]
            words = _of_region(box, region, missing) + failed
            if any(name.startswith("boundary_") for name in missing):
                words.append("boundary not computed by PyRadiomics")
            ends = any(mask.take(end, axis).any() for axis in range(3) for end in (0, -1))
            reasons[row] = "; ".join(words + surroundings(ends, spacing_mm))
            if progress:
                progress("regions", row + 1, len(labels))
    return values, reasons


def _of_region(hu: np.ndarray, region: np.ndarray, missing: list[str]) -> list[str]:
    """Why texture of a region is not defined or says little, in the words of the torch engine."""
    count = int(region.sum())
    if count == 1:
        return ["one voxel"]
    if np.ptp(hu[region]) == 0:
        return ["flat region"]
    apart = ndimage.label(region, np.ones((3, 3, 3)))[1] == count and any("gl" in name for name in missing)
    return ["no two voxels are neighbours"] * apart + [NO_MIDDLE] * ("intensity_rmad" in missing)
