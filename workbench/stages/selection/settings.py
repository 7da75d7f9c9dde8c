"""How strict the selection is."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.volume import Refused

SAME = 1e-12  # fixed: spread relative to the level below which a float64 feature counts as constant


@dataclass(frozen=True)
class SelectionSettings:
    """How strict each step is. Sizes are chosen so that 300 lesions and 728 features take seconds on one core."""

    keep: int = 20  # fixed: stated by the paper
    own_features: bool = False  # whether the candidates' own (depth, probability) may be chosen beside the 728
    patients_first: bool = True  # phantoms are not learned from where there are patients enough (docs/decisions/0016)
    icc_bound: float = 0.5  # empirical (docs/decisions/0005): "moderate" (Koo & Li 2016), of the interval's lower end
    icc_step: float = 0.05  # by how much the bound is lowered at a time
    icc_floor: float = 0.0  # under it a feature repeats no better than chance: the bound never goes lower
    choose_from: int = 30  # the bound is lowered until this many representatives are left
    rho: float = 0.9  # |Spearman| from which two features say the same
    max_missing: float = 0.2  # share of lesions for which a feature may be undefined
    bins: int = 6  # quantile bins of the mutual information
    draws: int = 60  # halves of the patients for the L1 stability selection
    folds: int = 5  # patient-grouped: each leaves its patients out of selection and forest
    resamples: int = 20  # of the patients, on which the choice is made again to see how alike it is; 0 or 2 and more
    inner_folds: int = 3
    trees: int = 200
    permutations: int = 3
    min_lesions: int = 20
    min_class: int = 6  # lesions and look-alikes, each
    min_patients: int = 4
    min_repeated: int = 8  # lesions with repeats, for an interval that means something
    seed: int = 0

    def __post_init__(self):
        least_of = dict.fromkeys(("keep", "choose_from", "draws", "trees", "permutations"), 1)
        for name, least in (least_of | dict.fromkeys(("bins", "folds", "inner_folds", "min_repeated"), 2)).items():
            if getattr(self, name) < least:
                raise Refused(f"SelectionSettings.{name}", str(getattr(self, name)), f"at least {least}")
        if self.resamples < 0 or self.resamples == 1:
            raise Refused("SelectionSettings.resamples", str(self.resamples), "0 or at least 2")
        if self.choose_from < self.keep:
            raise Refused("SelectionSettings.choose_from", str(self.choose_from), f"at least keep ({self.keep})")
        for name, low in (("icc_bound", self.icc_floor), ("icc_floor", 0.0), ("rho", 0.0), ("max_missing", 0.0)):
            if not low <= getattr(self, name) <= 1:
                raise Refused(f"SelectionSettings.{name}", str(getattr(self, name)), f"{low} to 1")
        if not self.icc_step > 0:
            raise Refused("SelectionSettings.icc_step", str(self.icc_step), "more than 0")
