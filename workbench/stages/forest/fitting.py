"""A forest is fitted; out of fold by patients, its settings chosen within each fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from workbench.data.threads import Tell, side_by_side
from workbench.stages.forest.measures import auc
from workbench.stages.forest.model import Forest, single
from workbench.stages.forest.settings import ForestSettings
from workbench.volume import Refused

CPU = torch.device("cpu")  # where trees grow, folds side by side


def fit(features: pd.DataFrame, target: ArrayLike, settings: ForestSettings | None = None) -> Forest:
    """Train on `features [candidate feature]`, `target` true for lesions. Refuses few candidates or a single class."""
    settings = settings or ForestSettings()
    truth = checked(target, len(features), settings)
    if features.shape[1] == 0 or not features.columns.is_unique:
        raise Refused("forest", f"columns {list(features.columns)[:5]}", "one or more features with unique names")
    values = single(features)
    known = [column[np.isfinite(column)] for column in values.T]
    medians = np.array([np.median(column) if len(column) else 0 for column in known], dtype=np.float32)
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        settings.trees,
        criterion=settings.criterion,
        min_samples_leaf=settings.leaf,
        max_features=settings.max_features,
        class_weight="balanced_subsample",
        random_state=settings.seed,
        n_jobs=-1 if settings.trees > 100 else 1,  # the trees do not depend on it
    ).fit(np.where(np.isfinite(values), values, medians), truth.astype(np.int64))
    model.n_jobs = 1  # a few rows are scored sooner by one
    return Forest(tuple(str(name) for name in features.columns), medians, model, settings)


def boosted(features: pd.DataFrame, target: ArrayLike, settings: ForestSettings | None = None) -> Forest:
    """Gradient boosting in the forest's place, scikit-learn's by histograms: the baseline, not stored."""
    settings = settings or ForestSettings()
    truth = checked(target, len(features), settings)
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        class_weight="balanced", min_samples_leaf=settings.leaf, early_stopping=False, random_state=settings.seed
    ).fit(single(features), truth.astype(np.int64))
    return Forest(tuple(features.columns), np.full(features.shape[1], np.nan, np.float32), model, settings)


def settled(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    settings: ForestSettings | None = None,
    make: Callable[..., Forest] = fit,
) -> tuple[ForestSettings, pd.DataFrame]:
    """The settings with the leaf size of `leaf_choices` whose forests rank unseen patients best, and a table: min_leaf, auc.

    Each choice is tried on the given rows alone, in `inner_folds` patient-grouped folds (nested: give it a fold's training rows). The
    first where they tie, or where the rows are too few to leave patients out. There is no choice where `min_leaf` is set. `make`: `fit` or `boosted`.
    """
    settings = settings or ForestSettings()
    first = replace(settings, min_leaf=settings.leaf)
    truth, areas = np.asarray(target).astype(bool), []
    if (
        settings.min_leaf
        or len(settings.leaf_choices) == 1
        or len(np.unique(numbered(patients))) < settings.inner_folds
    ):
        return first, pd.DataFrame({"min_leaf": [first.min_leaf], "auc": [math.nan]})
    fold = grouped_folds(truth, patients, settings.inner_folds, settings.seed)
    if any(len(np.unique(truth[fold != n])) < 2 for n in range(settings.inner_folds)):
        return first, pd.DataFrame({"min_leaf": [first.min_leaf], "auc": [math.nan]})
    for leaf in settings.leaf_choices:
        tried = replace(first, min_leaf=leaf, trees=settings.inner_trees, min_candidates=2, min_class=1)
        areas.append(auc(out_of_fold(features, truth, patients, None, tried, fold, make).scores, truth))
    best = settings.leaf_choices[int(np.argmax(np.round(areas, 12)))]
    return replace(first, min_leaf=best), pd.DataFrame({"min_leaf": settings.leaf_choices, "auc": areas})


Choose = Callable[[np.ndarray], Sequence[str]]  # positions of the training rows -> names of the features


class OutOfFold(NamedTuple):
    """Scores of rows by forests that never saw their patients, the fold of each row, and the forest of each fold."""

    scores: np.ndarray  # [candidate]
    fold: np.ndarray  # [candidate]
    forests: tuple[Forest, ...]


def grouped_folds(target: ArrayLike, patients: ArrayLike, folds: int, seed: int = 0) -> Int[np.ndarray, " candidate"]:
    """A fold 0.. for every row: all of a patient in one, lesions and look-alikes spread as evenly as that allows."""
    from sklearn.model_selection import StratifiedGroupKFold

    truth, groups = np.asarray(target).astype(bool), numbered(patients)
    people = len(np.unique(groups))
    if people < folds:
        raise Refused("forest", f"{people} patients", f"at least {folds}, one a fold", "Use fewer folds.")
    fold = np.full(len(truth), -1)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(truth)), truth, groups)
    for number, (_, held) in enumerate(split):
        fold[held] = number
    return fold


def out_of_fold(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    choose: Choose | Sequence[str] | None = None,
    settings: ForestSettings | None = None,
    fold: np.ndarray | None = None,
    make: Callable[..., Forest] = fit,
    tell: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> OutOfFold:
    """Scores of every row by a forest of the other patients, made by `fit` (or `boosted`) with `settled` settings.

    `choose` gives the features of each fold's forest from the positions of its training rows, so that selection stays
    inside the fold (it must look at those rows only); names do for features that were not chosen on these rows; None
    takes all. `fold` are given folds (0.., one a row); without it patients are grouped into `settings.folds`. `tell` is told the
    rows of each fold and their scores when it is done.
    """
    settings = settings or ForestSettings()
    truth = checked(target, len(features), settings)
    fold = grouped_folds(truth, patients, settings.folds, settings.seed) if fold is None else np.asarray(fold)
    shared = pd.Series(fold).groupby(pd.Series(np.asarray(patients)).astype(str).to_numpy()).nunique()
    if (shared > 1).any():
        raise Refused("forest", f"patient {shared.index[shared > 1][0]} in several folds", "every patient in one fold")
    scores, forests = np.full(len(features), np.nan), {}

    def work(number: int, done: Tell) -> None:
        train, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        names = list(features.columns) if choose is None else list(choose(train) if callable(choose) else choose)
        given = features.iloc[train][names], truth[train]
        own = settled(*given, np.asarray(patients)[train], settings, make)[0]
        forest = make(*given, replace(own, min_candidates=2))
        scores[held] = forest.score(features.iloc[held])
        forests[number] = forest
        done(held, scores[held])

    numbers = list(np.unique(fold))
    side_by_side(work, numbers, tell or (lambda *_: None), CPU)
    return OutOfFold(scores, fold, tuple(forests[number] for number in numbers))


def numbered(patients: ArrayLike) -> Int[np.ndarray, " candidate"]:
    """Patients as numbers 0.., in the order of their names."""
    return pd.factorize(pd.Series(np.asarray(patients)).astype(str), sort=True)[0]


def checked(target: ArrayLike, rows: int, settings: ForestSettings) -> Bool[np.ndarray, " candidate"]:
    """The target as bool `[candidate]`; refused where it does not fit the rows, or one class is too small."""
    given = np.asarray(target)
    if given.shape != (rows,):
        raise Refused("forest", f"targets of shape {given.shape}", f"({rows},), one a row")
    if not np.isin(given, (0, 1)).all():
        raise Refused("forest", "a target that is neither true nor false", "a boolean for every row")
    truth = given.astype(bool)
    lesions, alike = int(truth.sum()), int((~truth).sum())
    if rows < settings.min_candidates or min(lesions, alike) < settings.min_class:
        raise Refused(
            "forest",
            f"{lesions} lesions and {alike} look-alikes",
            f"at least {settings.min_candidates} candidates, {settings.min_class} of each class",
            "Use a larger cohort.",
        )
    return truth
