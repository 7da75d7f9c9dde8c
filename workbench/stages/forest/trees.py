"""A forest as flat tensors, which score on any device with scikit-learn's probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import Tensor

from workbench.volume import Refused

if TYPE_CHECKING:  # takes longer to import than a case takes to judge
    from sklearn.ensemble import RandomForestClassifier


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
    def of(model: RandomForestClassifier, names: tuple[str, ...], medians: np.ndarray) -> TensorForest:
        trees = [estimator.tree_ for estimator in model.estimators_]
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
        filled, feature, threshold, left, right, value = map(
            torch.from_numpy, (medians, feature, threshold, left, right, value)
        )
        depth = max(tree.max_depth for tree in trees)
        return TensorForest(names, filled, feature, threshold, left, right, value, depth)

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
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def paths(self, features: Float[Tensor, "candidate feature"]) -> Int[Tensor, "candidate tree step"]:
        """The nodes that every row passes, `[candidate tree step]`; a leaf repeats to the end."""
        return torch.stack([*self._steps(features)], dim=-1) - self._first[:, None]

    def leaves(self, features: Float[Tensor, "candidate feature"]) -> Int[Tensor, "candidate tree"]:
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

    def __call__(self, features: Shaped[Tensor, ...]) -> Float[Tensor, " candidate"]:
        """P(lesion) `[candidate]` of `features [candidate feature]`, columns as in `names`, NaN where missing."""
        if features.ndim != 2 or features.shape[1] != len(self.names):
            raise Refused("forest", f"a tensor of shape {tuple(features.shape)}", f"(candidate, {len(self.names)})")
        leaf = self.leaves(features)
        return self.value[torch.arange(len(self.feature), device=leaf.device), leaf].mean(dim=1)


def _round_down(values: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64."""
    single = values.astype(np.float32)
    return np.where(single.astype(np.float64) > values, np.nextafter(single, np.float32(-np.inf)), single)
