"""A fitted forest, and what it says of candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike

from workbench.stages.forest.measures import RecallThreshold
from workbench.stages.forest.settings import ForestSettings
from workbench.stages.forest.trees import TensorForest
from workbench.volume import Refused

if TYPE_CHECKING:  # scikit-learn takes longer to import than a case takes to judge
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier


AT_ONCE = 256  # rows whose ways through all trees are followed together


@dataclass(frozen=True)
class Forest:
    """A forest: the names and medians of its features, what decides (scikit-learn's model where it was fitted, tensors where it was
    read from a folder), its settings and the threshold once chosen. `largest_ml`: of the candidates that it learnt from; what is larger
    it has never seen (decision 0015). `points`: the thresholds of `PURPOSES`; `point`: the name of the one in use, None of another threshold."""

    names: tuple[str, ...]
    medians: Float32[np.ndarray, " feature"]
    model: RandomForestClassifier | HistGradientBoostingClassifier | TensorForest
    settings: ForestSettings = field(default_factory=ForestSettings)
    threshold: RecallThreshold | None = None
    largest_ml: float = math.inf
    points: dict[str, RecallThreshold] = field(default_factory=dict)
    point: str | None = None

    def table(self, features: pd.DataFrame) -> Float32[np.ndarray, "candidate feature"]:
        """The columns that the forest reads, in its order, filled: `[candidate feature]` float32."""
        absent = [name for name in self.names if name not in features.columns]
        if absent:
            raise Refused(
                "forest",
                f"no column {', '.join(absent[:5])}" + (" ..." if len(absent) > 5 else ""),
                f"its {len(self.names)} features",
                "Describe the candidates with the same catalogue.",
            )
        values = single(features.loc[:, list(self.names)])
        if values.shape[1] != len(self.names):
            raise Refused("forest", "a column twice", "unique names")
        return np.where(np.isfinite(values), values, self.medians)

    def score(self, features: pd.DataFrame) -> Float[np.ndarray, " candidate"]:
        """P(lesion) of every row, `[candidate]` in [0, 1]. A table that lacks a feature is refused."""
        return self.judge(self.table(features))

    def judge(self, table: Float[np.ndarray, "candidate feature"]) -> Float[np.ndarray, " candidate"]:
        """P(lesion) of every row that `table` gave."""
        if not len(table):
            return np.zeros(0)
        if not isinstance(self.model, TensorForest):
            return self.model.predict_proba(table)[:, 1]
        return torch.cat([self.model(rows) for rows in torch.from_numpy(table).split(AT_ONCE)]).numpy()

    @property
    def _chosen(self) -> RecallThreshold:
        if self.threshold is None:
            raise Refused("forest", "no threshold", "one, chosen out of fold", "Train the forest stage.")
        return self.threshold

    @property
    def cut(self) -> float:
        """The lowest score that stays; refused where none was chosen."""
        return self._chosen.threshold

    def keeps(self, scores: ArrayLike, volume_ml: ArrayLike) -> np.ndarray:
        """Which candidates stay, bool `[candidate]`: those that reach the threshold, and those larger than all that it learned from, which it
        cannot judge (docs/decisions/0017)."""
        return (np.asarray(scores) >= self.cut) | (np.asarray(volume_ml) > self.largest_ml)

    def deciding_at(self, score: float) -> Forest:
        """The same forest with another lowest score that stays."""
        return self.with_threshold(self._chosen._replace(threshold=score))

    def with_threshold(self, threshold: RecallThreshold) -> Forest:
        return replace(self, threshold=threshold, point=None)

    def at(self, point: str) -> Forest:
        """The same forest at one of its operating points; refused where it has no such point."""
        if point not in self.points:
            raise Refused(
                "the operating point", point, ", ".join(self.points) or "none: this forest stores no points",
                "An earlier version made it: remove the experiment's folders candidates to boundary, and train again, to have all of them.",
            )  # fmt: skip
        return replace(self, threshold=self.points[point], point=point)

    @cached_property
    def flat(self) -> TensorForest:
        """The forest as flat tensors on the CPU, made once."""
        return (
            self.model
            if isinstance(self.model, TensorForest)
            else TensorForest.of(self.model, self.names, self.medians)
        )


def chances(scores: ArrayLike, volume_ml: ArrayLike, largest_ml: float) -> Float[np.ndarray, ...]:
    """P(lesion) of scored candidates as the boundary stage takes it, `[candidate]`: 1, no doubt, for what is larger than all that the
    forest learnt from."""
    return np.where(np.asarray(volume_ml, float) > largest_ml, 1.0, np.asarray(scores, float))


def single(features: pd.DataFrame) -> Float32[np.ndarray, "row feature"]:
    """float32, as the forest reads it; what float32 cannot hold becomes infinite, and so missing."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(features.to_numpy(dtype=np.float64).astype(np.float32))
