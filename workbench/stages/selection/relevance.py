"""Three strategies that rank features by what they tell of lesions: mRMR, L1 stability, permutation in a forest."""

from __future__ import annotations

import math

import numpy as np
import scipy  # its parts are imported when they are asked for
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import entr, ndtri

from workbench.stages.selection.settings import SAME, SelectionSettings
from workbench.volume import Refused


def mutual_information(codes: Int[np.ndarray, "lesion column"], n_codes: int) -> Float[np.ndarray, "column column"]:
    """Mutual information in nats of every pair of columns of `codes [lesion column]`, values 0..n_codes-1.

    The plug-in estimate less its bias (Miller 1955), never below 0. `[column column]`; the diagonal is the entropy's.
    """
    n, m = codes.shape
    hot = (codes[:, :, None] == np.arange(n_codes)).reshape(n, m * n_codes).astype(np.float32)  # [n m*code]
    joint = (hot.T @ hot).astype(np.float64).reshape(m, n_codes, m, n_codes) / n
    single = hot.mean(axis=0, dtype=np.float64).reshape(m, n_codes)
    entropy = entr(single).sum(axis=1)
    filled = (single > 0).sum(axis=1) - 1
    plug_in = entropy[:, None] + entropy[None] - entr(joint).sum(axis=(1, 3))
    return np.maximum(plug_in - np.outer(filled, filled) / (2 * n), 0)


def quantile_codes(values: Shaped[np.ndarray, "lesion column"], bins: int) -> Int[np.ndarray, "lesion column"]:
    """Columns `[lesion column]` as equally filled classes 0..bins-1; equal values share a class."""
    position = (scipy.stats.rankdata(values, axis=0) - 0.5) / len(values)
    return np.minimum((position * bins).astype(np.int64), bins - 1)


def rank_mutual(
    values: Shaped[np.ndarray, "lesion feature"], target: Bool[np.ndarray, " lesion"], settings: SelectionSettings
) -> Float[np.ndarray, " feature"]:
    """mRMR (difference form): rank 1 has the most information, each next one the most beyond those before it."""
    codes = np.column_stack([quantile_codes(values, settings.bins), target.astype(np.int64)])
    information = mutual_information(codes, max(settings.bins, 2))
    relevance, redundancy = information[:-1, -1], information[:-1, :-1]
    rank = np.zeros(len(relevance))
    overlap = np.zeros(len(relevance))
    for place in range(len(relevance)):
        gain = relevance - overlap / max(place, 1)
        best = int(np.argmax(np.where(rank == 0, gain, -np.inf)))
        rank[best] = place + 1
        overlap += redundancy[best]
    return rank


def rank_l1(
    values: Shaped[np.ndarray, "lesion feature"],
    target: Bool[np.ndarray, " lesion"],
    patients: Shaped[np.ndarray, " lesion"],
    settings: SelectionSettings,
) -> Float[np.ndarray, " feature"]:
    """How often an L1-logistic model on half of the patients uses a feature, and how strongly where that ties.

    The features enter as normal scores of their ranks: heavy tails and units play no part. Two penalties, 3 and 10
    times weaker than the one at which the first feature enters, so that few and many features both have a say.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import l1_min_c

    rng = np.random.default_rng([settings.seed, 1])
    scores = ndtri((scipy.stats.rankdata(values, axis=0) - 0.5) / len(values))
    scores /= np.maximum(scores.std(axis=0), SAME)
    unique = np.unique(patients)
    used, strength, done = np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0
    for _ in range(20 * settings.draws):  # a half may hold one class only; there are enough draws for the others
        if done == settings.draws:
            break
        half = np.isin(patients, rng.choice(unique, math.ceil(len(unique) / 2), replace=False))
        x, y = scores[half], target[half]
        if min(y.sum(), (~y).sum()) < 2:
            continue
        first = l1_min_c(x, y, loss="log")
        for weaker in (3, 10):
            model = LogisticRegression(
                solver="liblinear",
                l1_ratio=1.0,
                C=first * weaker,
                tol=1e-3,
                class_weight="balanced",
                random_state=settings.seed,
            )
            size = np.abs(model.fit(x, y).coef_[0])
            used += size > 0
            strength += size
        done += 1
    if done == 0:
        raise Refused(
            "selection",
            "no half of the patients with two lesions and two look-alikes",
            "both classes spread over several patients",
            "Use more patients.",
        )
    return _rank(used, strength)


def rank_forest(
    values: Shaped[np.ndarray, "lesion feature"],
    target: Bool[np.ndarray, " lesion"],
    patients: Shaped[np.ndarray, " lesion"],
    settings: SelectionSettings,
) -> Float[np.ndarray, " feature"]:
    """Permutation importance, on patients held out from the forest, as the growth of the class-balanced Brier score.

    The Brier score still moves where the area under the curve is already 1. A tree that does not use a feature does not
    change when it is permuted, so only the others are asked.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng([settings.seed, 2])
    folds = min(settings.inner_folds, len(np.unique(patients)))
    weight = np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
    values = np.ascontiguousarray(values, dtype=np.float32)
    growth = np.zeros(values.shape[1])
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=settings.seed).split(values, target, patients)
    for train, held in split:
        if len(held) == 0 or len(np.unique(target[train])) < 2:
            continue
        forest = RandomForestClassifier(
            settings.trees, min_samples_leaf=2, class_weight="balanced_subsample", random_state=settings.seed, n_jobs=1
        ).fit(values[train], target[train])
        trees = [estimator.tree_ for estimator in forest.estimators_]
        users: list[list] = [[] for _ in growth]
        for tree in trees:
            for feature in np.unique(tree.feature[tree.feature >= 0]):
                users[feature].append(tree)
        before = np.tile(np.mean([tree.predict(values[held])[:, 1] for tree in trees], axis=0), settings.permutations)
        shuffled = [rng.permutation(len(held)) for _ in range(settings.permutations)]  # the same for every feature
        copies = np.tile(values[held], (settings.permutations, 1))
        truth, w = np.tile(target[held], settings.permutations), np.tile(weight[held], settings.permutations)
        for feature, its in enumerate(users):
            if not its:
                continue
            kept = copies[:, feature].copy()
            intact = sum(tree.predict(copies)[:, 1] for tree in its)
            copies[:, feature] = np.concatenate([values[held, feature][order] for order in shuffled])
            after = before + (sum(tree.predict(copies)[:, 1] for tree in its) - intact) / len(trees)
            copies[:, feature] = kept
            growth[feature] += (w * ((after - truth) ** 2 - (before - truth) ** 2)).sum()
    return _rank(growth)


def _rank(*keys: np.ndarray) -> np.ndarray:
    """Rank 1 for the largest; later keys decide ties of earlier ones; what still ties shares its mean rank."""
    rows = np.column_stack([np.round(key, 12) for key in keys])
    _, group = np.unique(rows, axis=0, return_inverse=True)  # groups come sorted by the first key, then the next
    return scipy.stats.rankdata(-group.ravel())
