"""What a forest is asked to be."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.stages.forest.measures import PURPOSES
from workbench.volume import Refused


@dataclass(frozen=True)
class ForestSettings:
    """The forest, how it is tried out of fold, and the recall that its threshold keeps."""

    trees: int = 500  # a score's sd between seeds is below 0.02 (0.04 at most) on a synthetic table of 120 lesions
    criterion: str = "log_loss"  # empirical (docs/log.md, 2026-11-25): sharper than gini where few lesions score low
    min_leaf: int | None = None  # None: the one of `leaf_choices` that ranks unseen patients best
    max_features: str | float = "sqrt"
    operating_point: str = "recall"  # which of `measures.PURPOSES` sets the threshold (docs/decisions/0017)
    false_a_scan: float = 1.0  # a choice: of the point `fp`
    recall: float = 0.99  # share of the lesions to keep out of fold; new patients keep less (docs/decisions/0005)
    folds: int = 5  # patient-grouped, for out-of-fold scores
    leaf_choices: tuple[int, ...] = (3, 1, 8)  # first 3, so that one odd candidate makes no leaf of its own
    inner_folds: int = 3
    inner_trees: int = 40  # of the forests that are tried
    min_candidates: int = 20
    min_class: int = 5
    seed: int = 0

    def __post_init__(self):
        least_of = {"trees": 1, "min_leaf": 1, "folds": 2, "inner_folds": 2, "inner_trees": 1}
        for name, least in (least_of | {"min_candidates": 2, "min_class": 1}).items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise Refused(f"ForestSettings.{name}", str(getattr(self, name)), f"at least {least}")
        if self.operating_point not in PURPOSES:
            raise Refused("ForestSettings.operating_point", self.operating_point, ", ".join(PURPOSES))
        if not self.leaf_choices or min(self.leaf_choices) < 1:
            raise Refused("ForestSettings.leaf_choices", str(self.leaf_choices), "one or more, at least 1 each")
        if self.false_a_scan < 0:
            raise Refused("ForestSettings.false_a_scan", str(self.false_a_scan), "0 or more")
        if not 0 < self.recall <= 1:
            raise Refused("ForestSettings.recall", str(self.recall), "more than 0, at most 1")

    @property
    def leaf(self) -> int:
        """The least number of candidates in a leaf; before it is chosen, the first of the choices."""
        return self.min_leaf or self.leaf_choices[0]
