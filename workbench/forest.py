"""A random forest on the selected features that rejects false-positive candidates.

States (Li et al., arXiv 2512.07574): a random forest on the 20 features rejects false-positive regions.

Chooses: scikit-learn's forest, each tree balanced on its own bootstrap sample, trained on candidates of out-of-fold
maps. The leaf size is chosen inside each fold's training patients (nested). A missing value takes the training median, which is stored beside the names, so that every device fills alike
and anyone can read what was filled in; a value that float32 cannot hold counts as missing. The threshold is the
largest that keeps a stated share of the true lesions (99 %) among *out-of-fold* scores; what it removes is always
told together with what it loses. Two baselines stand beside the selected features: size alone, and shape alone (Bhat
2022 found that these carry much of the gain). A fitted forest also runs as tensors, on any device, with
scikit-learn's probabilities to 1e-6.

Stored as skops, as safetensors and JSON. Nothing is unpickled: the files must have the checksums that the JSON states, skops may
name only the types listed here, and both must give the stored scores of the stored rows again, whatever versions read
them. The tensors score; scikit-learn's model is built when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy  # its parts are imported when they are asked for
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import Tensor

from workbench.files import from_dict, read_json, write_atomic
from workbench.threads import Tell, side_by_side
from workbench.volume import Refused

if TYPE_CHECKING:  # scikit-learn and skops take longer to import than a case takes to judge
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

MODEL_FILE, TENSOR_FILE, INFO_FILE = "forest.skops", "forest.safetensors", "forest.json"
AT_ONCE = 256  # rows whose ways through all trees are followed together
CPU = torch.device("cpu")  # where trees grow, folds side by side
_Z95 = 1.959963984540054  # fixed: the normal quantile of a 95 % interval

# What a forest consists of, and nothing else: skops' node kind and the type that it makes.
ALLOWED_TYPES = frozenset(
    {
        ("ObjectNode", "sklearn.ensemble._forest.RandomForestClassifier"),
        ("ObjectNode", "sklearn.tree._classes.DecisionTreeClassifier"),
        ("TreeNode", "sklearn.tree._tree.Tree"),
        ("TypeNode", "builtins.str"),
        ("DictNode", "builtins.dict"),
        ("ListNode", "builtins.list"),
        ("TupleNode", "builtins.tuple"),
        ("JsonNode", "builtins.str"),
        ("NdArrayNode", "numpy.ndarray"),
        ("NdArrayNode", "numpy.int64"),
    }
)
_BEYOND_SKOPS = ("sklearn.tree._tree.Tree",)  # the only type of them that skops asks about


@dataclass(frozen=True)
class ForestSettings:
    trees: int = 500  # a score's sd between seeds is below 0.02 (0.04 at most) on a synthetic table of 120 lesions
    criterion: str = "log_loss"  # empirical (docs/log.md, 2026-11-25): sharper than gini where few lesions score low
    min_leaf: int | None = None  # None: the one of `leaf_choices` that ranks unseen patients best
    max_features: str | float = "sqrt"
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
        if not self.leaf_choices or min(self.leaf_choices) < 1:
            raise Refused("ForestSettings.leaf_choices", str(self.leaf_choices), "one or more, at least 1 each")
        if not 0 < self.recall <= 1:
            raise Refused("ForestSettings.recall", str(self.recall), "more than 0, at most 1")

    @property
    def leaf(self) -> int:
        """The least number of candidates in a leaf; before it is chosen, the first of the choices."""
        return self.min_leaf or self.leaf_choices[0]


class RecallThreshold(NamedTuple):
    """A candidate is kept when its score reaches `threshold`; the recall it has, with its Wilson 95 % interval."""

    threshold: float
    recall: float
    recall_low: float
    recall_high: float
    kept: int
    lesions: int


@dataclass(frozen=True)
class Forest:
    """A forest: the names and medians of its features, its settings, the threshold once chosen, and what decides: scikit-learn's
    model where it was fitted, tensors where it was read from the folder that holds both. `largest_ml`: of the candidates that it learnt
    from; what is larger it has never seen (decision 0015)."""

    names: tuple[str, ...]
    medians: np.ndarray  # [feature], float32
    fitted: RandomForestClassifier | HistGradientBoostingClassifier | Path
    settings: ForestSettings = field(default_factory=ForestSettings)
    threshold: RecallThreshold | None = None
    stored: TensorForest | None = None
    largest_ml: float = math.inf

    def table(self, features: pd.DataFrame) -> np.ndarray:
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

    def score(self, features: pd.DataFrame) -> np.ndarray:
        """P(lesion) of every row, `[candidate]` in [0, 1]. A table that lacks a feature is refused."""
        table = self.table(features)
        if not len(table):
            return np.zeros(0)
        if self.stored is None:
            return self.model.predict_proba(table)[:, 1]
        return torch.cat([self.stored(rows) for rows in torch.from_numpy(table).split(AT_ONCE)]).numpy()

    def keeps(self, features: pd.DataFrame) -> np.ndarray:
        """The verdict on every row, `[candidate]` bool: the score reaches the threshold."""
        if self.threshold is None:
            raise Refused("forest", "no threshold", "one chosen on out-of-fold scores", "Use with_threshold.")
        return self.score(features) >= self.threshold.threshold

    def with_threshold(self, threshold: RecallThreshold) -> Forest:
        return replace(self, threshold=threshold)

    @cached_property
    def model(self) -> RandomForestClassifier | HistGradientBoostingClassifier:
        """scikit-learn's; read from its folder when it is asked for."""
        return _built(self.fitted, self) if isinstance(self.fitted, Path) else self.fitted

    @cached_property
    def flat(self) -> TensorForest:
        """The forest as flat tensors on the CPU, made once."""
        return self.stored or TensorForest.of(self)

    def tensors(self, device: torch.device | str = "cpu") -> TensorForest:
        """The same forest as flat tensors on `device`."""
        return self.flat.to(device)


def chances(scores: ArrayLike, volume_ml: ArrayLike, largest_ml: float) -> np.ndarray:
    """P(lesion) of scored candidates as the boundary stage takes it, `[candidate]`: 1, no doubt, for what is larger than all that the
    forest learnt from."""
    return np.where(np.asarray(volume_ml, float) > largest_ml, 1.0, np.asarray(scores, float))


# ---------------------------------------------------------------------------------------------- fitting


def fit(features: pd.DataFrame, target: ArrayLike, settings: ForestSettings | None = None) -> Forest:
    """Train on `features [candidate feature]`, `target` true for lesions. Refuses few candidates or a single class."""
    settings = settings or ForestSettings()
    truth = _truth(target, len(features), settings)
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
    truth = _truth(target, len(features), settings)
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        class_weight="balanced", min_samples_leaf=settings.leaf, early_stopping=False, random_state=settings.seed
    ).fit(single(features), truth.astype(np.int64))
    return Forest(tuple(features.columns), np.full(features.shape[1], np.nan, np.float32), model, settings)


def settled(
    features: pd.DataFrame, target: ArrayLike, patients: ArrayLike, settings: ForestSettings | None = None
) -> tuple[ForestSettings, pd.DataFrame]:
    """The settings with the leaf size of `leaf_choices` whose forests rank unseen patients best, and a table: min_leaf, auc.

    Each choice is tried on the given rows alone, in `inner_folds` patient-grouped folds (nested: give it a fold's training rows). The
    first where they tie, or where the rows are too few to leave patients out. There is no choice where `min_leaf` is set.
    """
    settings = settings or ForestSettings()
    first = replace(settings, min_leaf=settings.leaf)
    truth, areas = np.asarray(target).astype(bool), []
    if settings.min_leaf or len(settings.leaf_choices) == 1 or len(np.unique(_groups(patients))) < settings.inner_folds:
        return first, pd.DataFrame({"min_leaf": [first.min_leaf], "auc": [math.nan]})
    fold = grouped_folds(truth, patients, settings.inner_folds, settings.seed)
    if any(len(np.unique(truth[fold != n])) < 2 for n in range(settings.inner_folds)):
        return first, pd.DataFrame({"min_leaf": [first.min_leaf], "auc": [math.nan]})
    for leaf in settings.leaf_choices:
        tried = replace(first, min_leaf=leaf, trees=settings.inner_trees, min_candidates=2, min_class=1)
        areas.append(auc(out_of_fold(features, truth, patients, None, tried, fold).scores, truth))
    best = settings.leaf_choices[int(np.argmax(np.round(areas, 12)))]
    return replace(first, min_leaf=best), pd.DataFrame({"min_leaf": settings.leaf_choices, "auc": areas})


Choose = Callable[[np.ndarray], Sequence[str]]  # positions of the training rows -> names of the features


class OutOfFold(NamedTuple):
    """Scores of rows by forests that never saw their patients, the fold of each row, and the forest of each fold."""

    scores: np.ndarray  # [candidate]
    fold: np.ndarray  # [candidate]
    forests: tuple[Forest, ...]


def grouped_folds(target: ArrayLike, patients: ArrayLike, folds: int, seed: int = 0) -> np.ndarray:
    """A fold 0.. for every row: all of a patient in one, lesions and look-alikes spread as evenly as that allows."""
    from sklearn.model_selection import StratifiedGroupKFold

    truth, groups = np.asarray(target).astype(bool), _groups(patients)
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
    """Scores of every row by a forest of the other patients, made by `fit` with `settled` settings (or by `boosted`).

    `choose` gives the features of each fold's forest from the positions of its training rows, so that selection stays
    inside the fold (it must look at those rows only); names do for features that were not chosen on these rows; None
    takes all. `fold` are given folds (0.., one a row); without it patients are grouped into `settings.folds`. `tell` is told the
    rows of each fold and their scores when it is done.
    """
    settings = settings or ForestSettings()
    truth = _truth(target, len(features), settings)
    fold = grouped_folds(truth, patients, settings.folds, settings.seed) if fold is None else np.asarray(fold)
    shared = pd.Series(fold).groupby(pd.Series(np.asarray(patients)).astype(str).to_numpy()).nunique()
    if (shared > 1).any():
        raise Refused("forest", f"patient {shared.index[shared > 1][0]} in several folds", "every patient in one fold")
    scores, forests = np.full(len(features), np.nan), {}

    def work(number: int, done: Tell) -> None:
        train, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        names = list(features.columns) if choose is None else list(choose(train) if callable(choose) else choose)
        given = features.iloc[train][names], truth[train]
        own = settled(*given, np.asarray(patients)[train], settings)[0] if make is fit else settings
        forest = make(*given, replace(own, min_candidates=2))
        scores[held] = forest.score(features.iloc[held])
        forests[number] = forest
        done(held, scores[held])

    numbers = list(np.unique(fold))
    side_by_side(work, numbers, tell or (lambda *_: None), CPU)
    return OutOfFold(scores, fold, tuple(forests[number] for number in numbers))


# ---------------------------------------------------------------------------------------------- threshold


def threshold_for_recall(
    scores: ArrayLike, target: ArrayLike, recall: float = 0.98, lesions: ArrayLike | None = None
) -> RecallThreshold:
    """The largest threshold at which at least `recall` of the true lesions are kept.

    `lesions` names the lesion of each candidate: one that lies in several pieces is kept when any of them is (score >=
    threshold); without it each true candidate is a lesion of its own. The threshold is one of the lesions' own scores; lesions that
    tie with it are kept too. `scores` should be out of fold. The interval is Wilson's, lesions taken as independent: it
    tells what this many lesions can say about lesions to come.
    """
    score, truth = np.asarray(scores, dtype=np.float64), np.asarray(target).astype(bool)
    if score.shape != truth.shape or score.ndim != 1:
        raise Refused("threshold", f"scores {score.shape} and targets {truth.shape}", "one score for every target")
    if not np.isfinite(score).all():
        raise Refused("threshold", f"{(~np.isfinite(score)).sum()} scores that are not finite", "a score a row")
    if not 0 < recall <= 1:
        raise Refused("threshold", f"a recall of {recall}", "more than 0, at most 1")
    if not truth.any():
        raise Refused("threshold", "no true lesion", "at least 1")
    names = np.arange(len(score)) if lesions is None else np.asarray(lesions)
    best = np.sort(pd.Series(score[truth]).groupby(names[truth]).max().to_numpy())[::-1]
    threshold = float(best[math.ceil(recall * len(best) - 1e-9) - 1])
    kept = int((best >= threshold).sum())
    return RecallThreshold(threshold, kept / len(best), *wilson(kept, len(best)), kept, len(best))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    p, z2 = hits / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


# ---------------------------------------------------------------------------------------------- tensors


PACKED = {
    "feature": torch.int32,
    "threshold": torch.float32,
    "left": torch.int32,
    "right": torch.int32,
    "value": torch.float64,
}


@dataclass(frozen=True)
class TensorForest:
    """A forest as flat tensors `[tree node]`, small trees padded. Leaves point to themselves.

    scikit-learn compares a float32 value with a float64 threshold; the thresholds here are rounded down to float32,
    which decides every float32 value the same. The mean over trees is taken in float64.
    """

    names: tuple[str, ...]
    medians: Tensor  # [feature] float32
    feature: Tensor  # int64; 0 at leaves
    threshold: Tensor  # float32
    left: Tensor  # int64
    right: Tensor  # int64
    value: Tensor  # float64, P(lesion) at every node, inner ones too
    depth: int

    @staticmethod
    def of(forest: Forest) -> TensorForest:
        trees = [estimator.tree_ for estimator in forest.model.estimators_]
        shape = (len(trees), max(tree.node_count for tree in trees))
        feature, threshold = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        left = np.broadcast_to(np.arange(shape[1]), shape).copy()
        right, value = left.copy(), np.zeros(shape)
        for row, tree in enumerate(trees):
            inner = np.flatnonzero(tree.children_left >= 0)
            feature[row, inner] = tree.feature[inner]
            threshold[row, inner] = _round_down(tree.threshold[inner])
            left[row, inner], right[row, inner] = tree.children_left[inner], tree.children_right[inner]
            counts = tree.value[:, 0]
            value[row, : tree.node_count] = counts[:, 1] / counts.sum(axis=1)
        medians, feature, threshold, left, right, value = map(
            torch.from_numpy, (forest.medians, feature, threshold, left, right, value)
        )
        depth = max(tree.max_depth for tree in trees)
        return TensorForest(forest.names, medians, feature, threshold, left, right, value, depth)

    def packed(self) -> bytes:
        """As safetensors."""
        return tensors.save({name: getattr(self, name).to(kind) for name, kind in PACKED.items()})

    @staticmethod
    def unpacked(file: Path, data: bytes, names: tuple[str, ...], medians: np.ndarray) -> TensorForest:
        """What `packed` gave. Refused when a child does not come after its parent or a split has no feature."""
        try:
            held = tensors.load(data)
            if {name: part.dtype for name, part in held.items()} != PACKED or len(medians) != len(names):
                raise ValueError(f"{len(medians)} medians, {len(names)} names, {sorted(held)}")
            feature, threshold, left, right, value = (held[name] for name in PACKED)
            if feature.ndim != 2 or not feature.numel() or len({part.shape for part in held.values()}) != 1:
                raise ValueError(f"shapes {sorted({tuple(part.shape) for part in held.values()})}")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Refused(file, f"no trees ({error})", "a forest", "Train the forest stage.") from error
        at, (trees, nodes) = torch.arange(feature.shape[1]), feature.shape
        leaf = (left == at) & (right == at)
        sound = (leaf | ((left > at) & (right > at) & (left < nodes) & (right < nodes))).all(1)
        sound &= ((feature >= 0) & (feature < len(names))).all(1) & value.isfinite().all(1)
        if not sound.all():
            number = int((~sound).nonzero()[0])
            raise Refused(file, f"loose ends in tree {number}", "a tree", "It is not used: train the forest stage.")
        depth = torch.zeros((trees, nodes), dtype=torch.int64)
        feature, left, right = (part.long() for part in (feature, left, right))
        for node in range(nodes):  # a child comes after its parent
            below = torch.where(leaf[:, node], 0, depth[:, node] + 1)[:, None]
            for child in (left, right):
                own = child[:, node, None]
                depth.scatter_(1, own, torch.where(leaf[:, node, None], depth.gather(1, own), below))
        return TensorForest(names, torch.from_numpy(medians), feature, threshold, left, right, value, int(depth.max()))

    def to(self, device: torch.device | str) -> TensorForest:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def paths(self, features: Tensor) -> Tensor:
        """The nodes that every row passes, `[candidate tree step]`; a leaf repeats to the end."""
        return torch.stack([*self._steps(features)], dim=-1) - self._first[:, None]

    def leaves(self, features: Tensor) -> Tensor:
        """The leaf in which every row ends, `[candidate tree]`."""
        *_, last = self._steps(features)
        return last - self._first

    @property
    def _first(self) -> Tensor:
        """The number of each tree's first node where the nodes of all trees are numbered through `[tree]`."""
        trees, nodes = self.feature.shape
        return nodes * torch.arange(trees, device=self.feature.device)

    def _steps(self, features: Tensor) -> Iterator[Tensor]:
        """Nodes `[candidate tree]`, numbered through."""
        x = features.to(torch.float32)
        x = torch.where(torch.isfinite(x), x, self.medians)
        node = self._first.expand(len(x), -1)
        children = torch.stack([self.left, self.right], 2) + self._first[:, None, None]
        yield node
        for _ in range(self.depth):
            goes_right = x.gather(1, self.feature.take(node)) > self.threshold.take(node)
            node = children.take(2 * node + goes_right)
            yield node

    def __call__(self, features: Tensor) -> Tensor:
        """P(lesion) `[candidate]` of `features [candidate feature]`, columns as in `names`, NaN where missing."""
        if features.ndim != 2 or features.shape[1] != len(self.names):
            raise Refused("forest", f"a tensor of shape {tuple(features.shape)}", f"(candidate, {len(self.names)})")
        leaf = self.leaves(features)
        return self.value[torch.arange(len(self.feature), device=leaf.device), leaf].mean(dim=1)


def _round_down(values: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64."""
    single = values.astype(np.float32)
    return np.where(single.astype(np.float64) > values, np.nextafter(single, np.float32(-np.inf)), single)


# ---------------------------------------------------------------------------------------------- judging


def importance(
    found: OutOfFold,
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    repeats: int = 10,
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """How much the area under the out-of-fold curve falls when a feature is shuffled among the candidates of each fold.

    Columns name, drop (mean of `repeats` shuffles), low, high (95 %, patients drawn again `draws` times for each shuffle), forests (how many
    of the folds' forests read it; where one does not, its scores stay). The largest drop first.
    """
    truth, groups = np.asarray(target).astype(bool), _groups(patients)
    if truth.all() or not truth.any() or len(truth) != len(features):
        raise Refused("importance", f"{truth.sum()} lesions in {len(features)} rows", "both classes")
    names = list(dict.fromkeys(name for forest in found.forests for name in forest.names))
    scores = np.tile(found.scores, (len(names), repeats, 1))  # [feature shuffle candidate]
    rng = np.random.default_rng(seed)
    folds = [np.flatnonzero(found.fold == number) for number in np.unique(found.fold)]
    shuffled = [[rng.permutation(len(held)) for _ in range(repeats)] for held in folds]

    def work(number: int, tell: Tell) -> None:
        forest, held, orders = found.forests[number], folds[number], shuffled[number]
        table = forest.table(features.iloc[held])
        for column, name in enumerate(forest.names):
            copies = np.tile(table, (repeats, 1))
            copies[:, column] = np.concatenate([table[order, column] for order in orders])
            says = forest.model.predict_proba(copies)[:, 1].reshape(repeats, -1)
            scores[names.index(name)][:, held] = says

    side_by_side(work, range(len(folds)), lambda *_: None, CPU)
    weights = _drawn(groups, truth, draws, rng)
    whole, base = auc(found.scores, truth), _areas(found.scores, truth, weights)
    result = []
    for name, ones in zip(names, scores):
        falls = np.concatenate([base - _areas(one, truth, weights) for one in ones])
        low, high = np.quantile(falls, (0.025, 0.975)) if len(falls) else (math.nan, math.nan)
        used = sum(name in forest.names for forest in found.forests)
        result.append((name, float(np.mean([whole - auc(one, truth) for one in ones])), low, high, used))
    table = pd.DataFrame(result, columns=["name", "drop", "low", "high", "forests"])
    return table.sort_values("drop", ascending=False, kind="stable", ignore_index=True)


def _areas(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`auc` with each candidate counted as often as `weights` `[draw candidate]` says, `[draw]`."""
    order = np.argsort(scores, kind="stable")
    ordered, lesion, weights = scores[order], truth[order], weights[:, order]
    alike = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * ~lesion, axis=1)], axis=1)
    below, upto = (alike[:, np.searchsorted(ordered, ordered, side)] for side in ("left", "right"))
    return ((below + upto) / 2 * weights * lesion).sum(1) / (weights[:, lesion].sum(1) * alike[:, -1])


class Calibration(NamedTuple):
    """Bins of about as many candidates: `score` their mean, `share` of lesions, `low`, `high` (Wilson), `n`; the Brier
    score, and how far scores and shares are apart in the mean (expected calibration error)."""

    bins: pd.DataFrame
    brier: float
    error: float


def calibration(scores: ArrayLike, target: ArrayLike, bins: int = 8) -> Calibration:
    """How often candidates of about one score are lesions: a balanced forest's scores are votes, not chances."""
    scores, truth = np.asarray(scores, float), np.asarray(target).astype(bool)
    if not len(scores) or len(scores) != len(truth) or not np.isfinite(scores).all():
        raise Refused(
            "calibration", f"{len(scores)} scores, {len(truth)} verdicts", "a finite score for each candidate"
        )
    rows = []
    for part in np.array_split(np.argsort(scores, kind="stable"), min(bins, len(scores))):
        low, high = wilson(int(truth[part].sum()), len(part))
        rows.append((scores[part].mean(), truth[part].mean(), low, high, len(part)))
    table = pd.DataFrame(rows, columns=["score", "share", "low", "high", "n"])
    error = float((table.n * (table.score - table.share).abs()).sum() / len(scores))
    return Calibration(table, float(((scores - truth) ** 2).mean()), error)


# ---------------------------------------------------------------------------------------------- baselines


def auc(scores: np.ndarray, target: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a lesion outscores a look-alike, ties half. NaN with one class."""
    truth = np.asarray(target).astype(bool)
    lesions, alike = int(truth.sum()), int((~truth).sum())
    if lesions == 0 or alike == 0:
        return math.nan
    return float((scipy.stats.rankdata(scores)[truth].sum() - lesions * (lesions + 1) / 2) / (lesions * alike))


def baselines(
    features: pd.DataFrame,
    target: ArrayLike,
    patients: ArrayLike,
    size_columns: Sequence[str],
    shape_columns: Sequence[str],
    selected: Choose | Sequence[str] | None = None,
    settings: ForestSettings | None = None,
    fold: np.ndarray | None = None,
    draws: int = 1000,
    lesions: ArrayLike | None = None,
    known: OutOfFold | None = None,
) -> pd.DataFrame:
    """The same folds and recall for a forest on size alone, shape alone, the selected features and all of them, and for
    gradient boosting on the selected ones.

    `selected` is best a function of the training rows (see `out_of_fold`): names chosen on all rows would flatter
    themselves. `known`: their out-of-fold scores, where they are there already. One row each: features (what), columns (how many), auc,
    threshold, recall, false_positives, removed, removed_share; with _low and _high of auc and removed_share from a bootstrap over patients at the fixed threshold,
    of recall by Wilson. auc_gain and removed_gain: what the selected ones have more, from the same draws.
    """
    settings = settings or ForestSettings()
    truth = _truth(target, len(features), settings)
    fold = grouped_folds(truth, patients, settings.folds, settings.seed) if fold is None else np.asarray(fold)
    groups = _groups(patients)
    sets = {
        "size": list(size_columns),
        "shape": list(shape_columns),
        "selected": selected,
        "all": list(features.columns),
        "boosting": selected,
    }
    rows, drawn = [], []
    for what, columns in sets.items():
        if columns is None:
            continue
        make = boosted if what == "boosting" else fit
        found = known if what == "selected" else None
        found = found or out_of_fold(features, truth, patients, columns, settings, fold, make)
        chosen = threshold_for_recall(found.scores, truth, settings.recall, lesions)
        removed = (found.scores < chosen.threshold) & ~truth
        drawn.append(_by_patient(found.scores, truth, removed, groups, draws, settings.seed))
        low, high = _middle_95(drawn[-1])
        rows.append(
            {
                "features": what,
                "columns": float(np.mean([len(f.names) for f in found.forests])),
                "auc": auc(found.scores, truth),
                "auc_low": low[0],
                "auc_high": high[0],
                "threshold": chosen.threshold,
                "recall": chosen.recall,
                "recall_low": chosen.recall_low,
                "recall_high": chosen.recall_high,
                "lesions": chosen.lesions,
                "lost": chosen.lesions - chosen.kept,
                "false_positives": int((~truth).sum()),
                "removed": int(removed.sum()),
                "removed_share": float(removed.sum() / (~truth).sum()),
                "removed_share_low": low[1],
                "removed_share_high": high[1],
            }
        )
    table = pd.DataFrame(rows)
    if "selected" not in set(table.features):
        return table
    best = int(np.flatnonzero(table.features == "selected")[0])
    for n, measure in enumerate(("auc", "removed_share")):
        gain = measure.replace("_share", "") + "_gain"
        table[gain] = table[measure][best] - table[measure]
        ends = [_middle_95(drawn[best][n : n + 1] - own[n : n + 1]) for own in drawn]
        table[f"{gain}_low"], table[f"{gain}_high"] = ([float(end[side][0]) for end in ends] for side in (0, 1))
    return table


def _by_patient(
    scores: np.ndarray, truth: np.ndarray, removed: np.ndarray, groups: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """AUC and share of false positives removed `[2 draw]` when patients are drawn with replacement; the same draws for one seed."""
    weights = _drawn(groups, truth, draws, np.random.default_rng(seed))
    shares = (weights * removed).sum(1) / weights[:, ~truth].sum(1)
    return np.stack([_areas(scores, truth, weights), shares])


def _drawn(groups: np.ndarray, truth: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each candidate is there when patients are drawn with replacement, `[draw candidate]`; draws of both classes only."""
    people = len(np.unique(groups))
    chosen = rng.integers(0, people, (draws, people))
    weights = np.stack([np.bincount(row, minlength=people) for row in chosen])[:, groups].astype(float)
    return weights[(weights[:, truth].sum(1) > 0) & (weights[:, ~truth].sum(1) > 0)]  # a draw of one class has no area


def _middle_95(drawn: np.ndarray) -> np.ndarray:
    """Low and high 2.5 % of each row, `[2 row]`; NaN without a draw."""
    return np.quantile(drawn, (0.025, 0.975), axis=1) if drawn.shape[1] else np.full((2, len(drawn)), np.nan)


# ---------------------------------------------------------------------------------------------- on disk


def save(forest: Forest, folder: str | Path) -> None:
    """Write forest.skops, forest.safetensors (the same trees as flat tensors, which score) and forest.json (names, medians, threshold,
    settings, versions, checksums), each at once."""
    import sklearn
    import skops
    import skops.io

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, flat = skops.io.dumps(forest.model), forest.flat.packed()
    probe = _probe(forest)
    info = {
        "names": list(forest.names),
        "medians": [float(v) for v in forest.medians],
        "threshold": None if forest.threshold is None else forest.threshold._asdict(),
        "largest_ml": forest.largest_ml if math.isfinite(forest.largest_ml) else None,
        "recall": forest.settings.recall,
        "settings": asdict(forest.settings),
        "versions": {
            "scikit-learn": sklearn.__version__,
            "skops": skops.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "sha256": {MODEL_FILE: hashlib.sha256(data).hexdigest(), TENSOR_FILE: hashlib.sha256(flat).hexdigest()},
        "probe": {"rows": probe.tolist(), "scores": forest.model.predict_proba(probe)[:, 1].tolist()},
    }
    write_atomic(folder / MODEL_FILE, data)
    write_atomic(folder / TENSOR_FILE, flat)
    write_atomic(folder / INFO_FILE, (json.dumps(info, indent=1) + "\n").encode())


def load(folder: str | Path) -> Forest:
    """Read what `save` wrote. Refused: a missing file, another checksum, a type that no forest holds, a tree that does not end,
    other scores. scikit-learn's model itself is built when it is asked for."""
    folder = Path(folder)
    for name in (INFO_FILE, MODEL_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise Refused(folder / name, "no file", "a forest that was saved here", "Train the forest stage.")
    try:
        info = read_json(folder / INFO_FILE, "threshold", sha256=dict, probe=dict, names=list, versions=dict | None)
        names, medians = tuple(map(str, info["names"])), np.array(info["medians"], dtype=np.float32)
        settings = from_dict(ForestSettings, info["settings"], folder / INFO_FILE)
        rows, scored = (np.array(info["probe"][key], dtype) for key, dtype in (("rows", np.float32), ("scores", float)))
        cut, largest = info["threshold"], info.get("largest_ml")
        threshold = None if cut is None else from_dict(RecallThreshold, cut, folder / INFO_FILE)
        if largest is not None and not (type(largest) in (int, float) and 0 < largest < math.inf):
            raise ValueError(f"largest_ml {largest!r:.40}")
        largest_ml = math.inf if largest is None else float(largest)
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Refused(folder / INFO_FILE, f"{type(error).__name__} {error}", "the description of a forest") from error
    held = {}
    for name in (MODEL_FILE, TENSOR_FILE):
        held[name] = (folder / name).read_bytes()
        checksum, stated = hashlib.sha256(held[name]).hexdigest(), info["sha256"].get(name)
        if checksum != stated:
            raise Refused(
                folder / name,
                f"checksum {checksum[:12]}",
                f"{str(stated)[:12]} as {INFO_FILE} states",
                "The file is damaged or of another run: restore it or train the forest stage.",
            )
    _refuse_unknown_types(folder / MODEL_FILE, held[MODEL_FILE])
    flat = TensorForest.unpacked(folder / TENSOR_FILE, held[TENSOR_FILE], names, medians)
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise Refused(folder / INFO_FILE, f"a probe of shape {rows.shape}", f"rows of {len(names)} features")
    _refuse_other_scores(folder, flat(torch.from_numpy(rows)).numpy(), scored, "those that scikit-learn gave")
    return Forest(names, medians, folder, settings, threshold, flat, largest_ml)


def _built(folder: Path, forest: Forest) -> RandomForestClassifier:
    """scikit-learn's model of a forest that `load` has read; refused when it is another forest."""
    import sklearn
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    data, info = (folder / MODEL_FILE).read_bytes(), read_json(folder / INFO_FILE, sha256=dict, probe=dict)
    _refuse_unknown_types(folder / MODEL_FILE, data)
    try:
        model = skops.io.loads(data, trusted=list(_BEYOND_SKOPS))
        if not isinstance(model, RandomForestClassifier) or len(forest.names) != model.n_features_in_:
            kind = type(model).__name__
            raise Refused(folder, f"a {kind}, {len(forest.names)} names", "a forest and a name for each feature")
        _refuse_loose_trees(folder / MODEL_FILE, model)
        scores = model.predict_proba(np.array(info["probe"]["rows"], np.float32))[:, 1]
    except Refused:
        raise
    except Exception as error:  # a damaged archive fails anywhere in skops, zipfile, NumPy and scikit-learn
        line = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise Refused(folder / MODEL_FILE, line, "a forest", "Train the forest stage.") from error
    made = dict(info.get("versions") or {}).get("scikit-learn")
    _refuse_other_scores(folder, scores, np.array(info["probe"]["scores"], float), f"the scores of scikit-learn {made}",
                         f"This is scikit-learn {sklearn.__version__}: use that version or train the forest stage.")  # fmt: skip
    return model


def _refuse_other_scores(folder: Path, scores: np.ndarray, stated: np.ndarray, whose: str, fix: str = "") -> None:
    if scores.shape != stated.shape or not np.allclose(scores, stated, rtol=0, atol=1e-6):
        apart = np.abs(scores - stated).max() if scores.shape == stated.shape else math.nan
        fix = fix or "Train the forest stage."
        raise Refused(folder, f"scores that differ by {apart:.2g} from those stored", whose, fix)


def _refuse_loose_trees(file: Path, model: RandomForestClassifier) -> None:
    """Each node's children come after it and are there, each split has its feature: scikit-learn follows them without looking."""
    for number, estimator in enumerate(model.estimators_):
        tree = estimator.tree_
        at, inner = np.arange(tree.node_count), tree.children_left != -1
        sound = np.array_equal(inner, tree.children_right != -1) and tree.n_features == model.n_features_in_
        for child in (tree.children_left[inner], tree.children_right[inner]):
            sound &= bool(((child > at[inner]) & (child < tree.node_count)).all())
        split = tree.feature[inner]
        if not sound or ((split < 0) | (split >= model.n_features_in_)).any():
            raise Refused(file, f"loose ends in tree {number}", "a tree", "It is not used: train the forest stage.")


def _refuse_unknown_types(file: Path, data: bytes) -> None:
    """Walk the file's own description of what it would build, before anything of it is built."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RecursionError, NotImplementedError) as error:
        line = f"no skops file ({type(error).__name__} {error})"
        raise Refused(file, line, "a forest", "Restore it, or train the forest stage.") from error
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Mapping):
            if {"__loader__", "__class__", "__module__"} & node.keys():
                kind = node.get("__loader__"), f"{node.get('__module__')}.{node.get('__class__')}"
                if kind not in ALLOWED_TYPES:
                    raise Refused(
                        file,
                        f"the type {kind[1]} ({kind[0]})",
                        "the types that a forest consists of",
                        "It is not loaded: do not trust where it came from.",
                    )
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)


def _probe(forest: Forest) -> np.ndarray:
    """Eight rows that pass through many splits: quantiles of the forest's own thresholds, `[row feature]` float32."""
    rng = np.random.default_rng(0)
    rows = np.tile(forest.medians, (8, 1))
    trees = [estimator.tree_ for estimator in forest.model.estimators_]
    feature, cut = np.concatenate([t.feature for t in trees]), np.concatenate([t.threshold for t in trees])
    for column in range(len(forest.names)):
        cuts = cut[feature == column]
        if len(cuts):
            rows[:, column] = rng.choice(cuts, len(rows)) + rng.normal(size=len(rows)) * cuts.std()
    return rows


# ---------------------------------------------------------------------------------------------- checks


def single(features: pd.DataFrame) -> np.ndarray:
    """float32, as the forest reads it; what float32 cannot hold becomes infinite, and so missing."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(features.to_numpy(dtype=np.float64).astype(np.float32))


def _groups(patients: ArrayLike) -> np.ndarray:
    """Patients as numbers 0.., in the order of their names."""
    return pd.factorize(pd.Series(np.asarray(patients)).astype(str), sort=True)[0]


def _truth(target: ArrayLike, rows: int, settings: ForestSettings) -> np.ndarray:
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
