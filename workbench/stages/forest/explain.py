"""Why a forest says what it says of one candidate.

Ours; the paper has none. The votes and the way through a tree, what each split pushed (Saabas 2014), the leaves in which candidates
end together (Breiman's proximity), and what one feature alone would have to be to turn the verdict. All from the forest's tensors.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.stages.forest import Forest, TensorForest, single
from workbench.volume import Refused


def pushes(forest: Forest, row: pd.Series | pd.DataFrame) -> pd.DataFrame:
    """What pushed one candidate's score, `row` with the forest's features: the strongest feature first.

    Every split on the candidate's way through a tree changes the probability; the change belongs to the feature that
    was asked (Saabas 2014), averaged over trees. Columns name, value, median (of the training rows), contribution,
    and missing (the median stood in). Contributions add up to `attrs["score"]` - `attrs["prior"]`.
    """
    row = row.to_frame().T if isinstance(row, pd.Series) else row
    flat, path = _way(forest, row)
    tree = torch.arange(len(path))[:, None]
    change = flat.value[tree, path].diff(dim=1)
    contribution = torch.zeros(len(forest.names), dtype=torch.float64)
    contribution.index_put_((flat.feature[tree, path[:, :-1]].ravel(),), change.ravel(), accumulate=True)
    raw = single(row[list(forest.names)])[0]
    table = pd.DataFrame(
        {
            "name": forest.names,
            "value": np.where(np.isfinite(raw), raw, np.nan).astype(np.float64),
            "median": forest.medians.astype(np.float64),
            "contribution": contribution.numpy() / len(path),
            "missing": ~np.isfinite(raw),
        }
    )
    table = table.sort_values("contribution", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    table.attrs = {"prior": float(flat.value[:, 0].mean()), "score": float(flat.value[tree[:, 0], path[:, -1]].mean())}
    return table


def _way(forest: Forest, row: pd.DataFrame) -> tuple[TensorForest, Tensor]:
    """The nodes that one candidate passes, `[tree step]`."""
    if len(row) != 1:
        raise Refused("explain", f"{len(row)} rows", "one candidate")
    return forest.flat, forest.flat.paths(torch.from_numpy(forest.table(row)))[0]


def votes(forest: Forest, row: pd.DataFrame) -> Float[np.ndarray, " tree"]:
    """What each tree says of one candidate, `[tree]` in [0, 1]: the share of lesions in its leaf. Their mean is the score."""
    flat, path = _way(forest, row)
    return flat.value[torch.arange(len(path)), path[:, -1]].numpy()


def way(forest: Forest, row: pd.DataFrame) -> pd.DataFrame:
    """One candidate's way through the tree that says most nearly what the forest says: a row a split.

    Columns name, value, threshold, goes ("at most" or "above"), probability (of a lesion, once there). `attrs["tree"]` is its number.
    """
    flat, path = _way(forest, row)
    says = votes(forest, row)
    tree = int(np.argmin(np.abs(says - says.mean())))
    nodes = path[tree][: int((path[tree].diff() != 0).sum()) + 1]  # a leaf repeats to the end
    at, then = nodes[:-1], nodes[1:]
    asked = flat.feature[tree, at].numpy()
    table = pd.DataFrame(
        {
            "name": np.array(forest.names, dtype=object)[asked],
            "value": forest.table(row)[0, asked].astype(np.float64),
            "threshold": flat.threshold[tree, at].double().numpy(),
            "goes": np.where((then == flat.left[tree, at]).numpy(), "at most", "above"),
            "probability": flat.value[tree, then].numpy(),
        }
    )
    table.attrs = {"tree": tree}
    return table


def alone(forest: Forest, row: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """What one feature alone would have to be to turn the verdict: the nearest value within the range of `features`.

    Exact: while the others stay, the score is a step function of the one that moves, and its steps are the forest's own
    splits. Columns name, value (as the forest reads it), turns_at (NaN: no value that any of `features` spans), score (there).
    """
    if forest.threshold is None:
        raise Refused("forest", "no threshold", "one chosen on out-of-fold scores", "Use with_threshold.")
    if len(row) != 1 or not len(features):
        raise Refused(
            "alone", f"{len(row)} rows beside {len(features)}", "one candidate, and those that span the range"
        )
    flat, x, known = forest.flat, forest.table(row)[0], forest.table(features)
    low, high = _reached(flat, x)
    value, leaf = flat.value.numpy(), flat.left.numpy() == np.arange(flat.left.shape[1])
    kept = bool(votes(forest, row).mean() >= forest.threshold.threshold)
    turns = np.full(len(x), np.nan)
    for number, (least, most) in enumerate(zip(known.min(0), known.max(0))):
        on = leaf & (low[number] < high[number])
        begins, ends, says = low[number][on], high[number][on], value[on] / len(value)
        edges = np.unique(np.concatenate([begins, ends, [-np.inf, np.inf]])).astype(np.float32)
        change = np.bincount(np.searchsorted(edges, begins), says, len(edges))
        change -= np.bincount(np.searchsorted(edges, ends), says, len(edges))
        other = (np.cumsum(change)[:-1] >= forest.threshold.threshold) != kept  # of each piece (edge, next edge]
        first = np.maximum(np.nextafter(edges[:-1], np.float32(np.inf)), least)[other]
        last = np.minimum(edges[1:], most)[other]
        nearest = np.clip(x[number], first, last)[first <= last]
        if len(nearest):
            turns[number] = nearest[np.argmin(np.abs(nearest - x[number]))]
    moved = np.tile(x, (len(x), 1))
    np.fill_diagonal(moved, np.where(np.isnan(turns), x, turns))
    score = np.where(np.isnan(turns), np.nan, flat(torch.from_numpy(moved)).numpy())
    return pd.DataFrame({"name": forest.names, "value": x.astype(np.float64), "turns_at": turns, "score": score})


def _reached(flat: TensorForest, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With which values of one feature a node is reached while the others are `x`: `low < value <= high`, each
    `[feature tree node]`; low is not below high where none does."""
    feature, cut, left, right = (t.numpy() for t in (flat.feature, flat.threshold, flat.left, flat.right))
    shape = (len(x), *feature.shape)
    low, high = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
    low[..., 0], high[..., 0] = -np.inf, np.inf
    for node in range(feature.shape[1]):  # a child's number is above its parent's
        tree = np.flatnonzero(left[:, node] != node)
        asked = feature[tree, node] == np.arange(len(x))[:, None]
        goes_left, at = x[feature[tree, node]] <= cut[tree, node], cut[tree, node]
        a, b = low[:, tree, node], high[:, tree, node]
        low[:, tree, left[tree, node]] = np.where(asked | goes_left, a, np.inf)
        high[:, tree, left[tree, node]] = np.where(asked, np.minimum(b, at), np.where(goes_left, b, -np.inf))
        low[:, tree, right[tree, node]] = np.where(asked, np.maximum(a, at), np.where(goes_left, np.inf, a))
        high[:, tree, right[tree, node]] = np.where(asked | ~goes_left, b, -np.inf)
    return low, high


def leaves(forest: Forest, features: pd.DataFrame) -> Int[Tensor, "candidate tree"]:
    """The leaf in which each row ends, `[candidate tree]`. The share of trees in which two end in one says how alike they are (Breiman's
    proximity)."""
    return forest.flat.leaves(torch.from_numpy(forest.table(features)))
