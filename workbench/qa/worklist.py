"""Which cases there are to look at, and which lesion of a case first. Pure: no Qt, no napari."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from workbench import folders
from workbench.readers import gates
from workbench.volume import Refused

STEP = 0.05  # choice: scores this near to one another are as doubtful, and size decides


def cases(path: str | Path) -> list[Path]:
    """The result folders of an experiment or of a folder of results; those beside it for one result folder."""
    path = Path(path)
    place = path.resolve().parent if (path / "result.json").is_file() else path
    for below in ("*/", "results/*/"):
        if found := sorted(folders.results_at(place, below), key=gates.natural):
            return found
    raise Refused(path, "no result", "a result folder, a folder of them, or an experiment whose stage metrics has run")


def threshold(lesions: pd.DataFrame) -> float:
    """The forest's threshold as the table shows it: midway between the highest score below and the lowest that reaches it."""
    scores, kept = lesions.forest_score.to_numpy(float), lesions.kept.to_numpy(bool)
    known = np.isfinite(scores)
    above, below = scores[known & kept], scores[known & ~kept]
    edges = [*([above.min()] if len(above) else []), *([below.max()] if len(below) else [])]
    return float(np.mean(edges)) if edges else 0.5


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
