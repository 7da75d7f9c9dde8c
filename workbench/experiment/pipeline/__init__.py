"""The method in order on a cohort: every stage trained, its held-out cases measured.

Each stage leaves a folder in the experiment; one whose manifest still holds is
not run again. Later stages learn from out-of-fold maps only.
"""

from workbench.experiment.pipeline.decisions import boundary_case, candidates_chance, forest_rows, simpler
from workbench.experiment.pipeline.lesions import learned_from
from workbench.experiment.pipeline.nets import dice
from workbench.experiment.pipeline.order import one_at_a_time, run, train, train_fold

__all__ = [
    "boundary_case",
    "candidates_chance",
    "dice",
    "forest_rows",
    "learned_from",
    "one_at_a_time",
    "run",
    "simpler",
    "train",
    "train_fold",
]
