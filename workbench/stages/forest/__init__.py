"""A random forest on the selected features that rejects false-positive candidates.

States (Li et al., arXiv 2512.07574): a random forest on the 20 features rejects false-positive regions.

Chooses: scikit-learn's forest, each tree balanced on its own bootstrap sample, trained on candidates of out-of-fold
maps. The leaf size is chosen inside each fold's training patients (nested). Three operating points are stored: for a stated recall, for the best
Dice a patient, for the best F1 of lesions; `ForestSettings.operating_point` names the default. A missing value takes the training median, which is stored beside the names, so that every device fills alike
and anyone can read what was filled in; a value that float32 cannot hold counts as missing. The threshold is the
largest that keeps a stated share of the true lesions (99 %) among *out-of-fold* scores; what it removes is always
told together with what it loses. Simpler filters stand beside the selected features: size alone, shape alone (Bhat
2022 found that these carry much of the gain), and all of shape and boundary. A fitted forest also runs as tensors, on any device, with
scikit-learn's probabilities to 1e-6.

Stored once, as safetensors and JSON; nothing is unpickled. The file must have the checksum that the JSON states, and must give the
stored scores of the stored rows again, whatever versions read it. scikit-learn is needed to fit a forest, not to use one.
"""

from workbench.stages.forest.disk import load, pack, save
from workbench.stages.forest.fitting import Choose, OutOfFold, boosted, fit, grouped_folds, out_of_fold, settled
from workbench.stages.forest.judging import baselines, importance
from workbench.stages.forest.measures import (
    PURPOSES,
    Calibration,
    RecallThreshold,
    auc,
    calibration,
    operating_points,
    threshold_for_recall,
    wilson,
)
from workbench.stages.forest.model import Forest, chances, single
from workbench.stages.forest.settings import ForestSettings
from workbench.stages.forest.trees import TensorForest

__all__ = [
    "PURPOSES",
    "Calibration",
    "Choose",
    "Forest",
    "ForestSettings",
    "OutOfFold",
    "RecallThreshold",
    "TensorForest",
    "auc",
    "baselines",
    "boosted",
    "calibration",
    "chances",
    "fit",
    "grouped_folds",
    "importance",
    "load",
    "pack",
    "operating_points",
    "out_of_fold",
    "save",
    "settled",
    "single",
    "threshold_for_recall",
    "wilson",
]
