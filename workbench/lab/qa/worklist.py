"""Which cases there are to look at, and which lesion of a case first. Pure: no Qt, no napari."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from workbench.data.readers import gates
from workbench.experiment import reading
from workbench.volume import Refused

STEP = 0.05  # choice: scores this near to one another are as doubtful, and size decides


def cases(path: str | Path) -> list[Path]:
    """The result folders of an experiment or of a folder of results; those beside it for one result folder."""
    path = Path(path)
    place = path.resolve().parent if (path / "result.json").is_file() else path
    for below in ("*/", "results/*/"):
        if found := sorted(reading.results_at(place, below), key=gates.natural):
            return found
    raise Refused(path, "no result", "a result folder, a folder of them, or an experiment whose stage metrics has run")


def threshold(lesions: pd.DataFrame) -> float:
    """The forest's threshold as the table shows it: midway between the highest score below and the lowest that reaches it."""
    scores, kept = lesions.forest_score.to_numpy(float), lesions.kept.to_numpy(bool)
    known = np.isfinite(scores)
    above, below = scores[known & kept], scores[known & ~kept]
    edges = [*([above.min()] if len(above) else []), *([below.max()] if len(below) else [])]
    return float(np.mean(edges)) if edges else 0.5


def kept_at(lesions: pd.DataFrame, info: dict, point: str) -> pd.Series:
    """Which candidates the forest keeps at an operating point, by result.json: whatever its score, what is larger than all that it learned from."""
    largest = info.get("largest_ml")
    beyond = lesions.volume_ml > largest if largest is not None else False
    return (lesions.forest_score >= info["operating_points"][point]) | beyond


def labels_at(labels: np.ndarray, numbers: np.ndarray, before: Collection[int], kept: Collection[int]) -> np.ndarray:
    """Labels (1 liver, 2 tumor) `[z y x]` with other candidates kept than `before`. A lesion that is there stays as it was drawn while one of its
    candidates is kept; one that comes back has the voxels of its candidate, before the boundary stage."""
    out = np.array(labels)
    pieces, _ = ndimage.label(labels == 2, np.ones((3, 3, 3)))
    for number, place in enumerate(ndimage.find_objects(pieces), 1):
        own = pieces[place] == number
        owners = set(np.unique(numbers[place][own])) & {*before}
        if owners and not owners & {*kept}:
            out[place][own] = 1
    out[np.isin(numbers, [*({*kept} - {*before})])] = 2
    return out


def order(lesions: pd.DataFrame, at: float | None = None) -> pd.DataFrame:
    """The lesions, what to check first on top.

    The rule: the nearer a score lies to the forest's threshold `at`, the earlier, in steps of `STEP`; within a step the
    smaller lesion first, since small ones are missed and made up most; of two alike, the one that touches the scan's
    edge. What the forest was not asked about comes last, small before large. Verdicts do not move a row.
    """
    at = threshold(lesions) if at is None else at
    edge = lesions.touches_border if "touches_border" in lesions else pd.Series(False, lesions.index)
    keys = pd.DataFrame(
        {
            "doubt": ((lesions.forest_score.astype(float) - at).abs() / STEP).round(9) // 1,
            "volume_ml": lesions.volume_ml,
            "inside": ~edge.astype(bool),
        }
    )
    return lesions.loc[keys.sort_values(["doubt", "volume_ml", "inside"], kind="stable", na_position="last").index]
