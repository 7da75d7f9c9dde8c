"""A forest in its folder: skops under an allow-list, safetensors, JSON. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.data.files import from_dict, read_json, write_atomic
from workbench.stages.forest.measures import RecallThreshold
from workbench.stages.forest.model import Forest
from workbench.stages.forest.settings import ForestSettings
from workbench.stages.forest.trees import TensorForest
from workbench.volume import Refused

if TYPE_CHECKING:  # scikit-learn and skops take longer to import than a case takes to judge
    from sklearn.ensemble import RandomForestClassifier


MODEL_FILE, TENSOR_FILE, INFO_FILE = "forest.skops", "forest.safetensors", "forest.json"


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
        "points": {name: point._asdict() for name, point in forest.points.items()},
        "point": forest.point,
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


def pack(source: Path, folder: Path) -> None:
    """Copy a saved forest without scikit-learn's model, which is large: the flat tensors score alike."""
    info = read_json(source / INFO_FILE, sha256=dict)
    info["sha256"].pop(MODEL_FILE, None)
    write_atomic(folder / TENSOR_FILE, (source / TENSOR_FILE).read_bytes())
    write_atomic(folder / INFO_FILE, (json.dumps(info, indent=1) + "\n").encode())


def _there(file: Path) -> Path:
    if not file.is_file():
        raise Refused(file, "no file", "a forest that was saved here", "Train the forest stage.")
    return file


def load(folder: str | Path) -> Forest:
    """Read what `save` wrote. Refused: a missing file, another checksum, a type that no forest holds, a tree that does not end,
    other scores. scikit-learn's model itself is built when it is asked for; a packed forest (`pack`) has none."""
    folder = Path(folder)
    _there(folder / INFO_FILE)
    try:
        info = read_json(folder / INFO_FILE, "threshold", sha256=dict, probe=dict, names=list, versions=dict | None)
        names, medians = tuple(map(str, info["names"])), np.array(info["medians"], dtype=np.float32)
        settings = from_dict(ForestSettings, info["settings"], folder / INFO_FILE)
        rows, scored = (np.array(info["probe"][key], dtype) for key, dtype in (("rows", np.float32), ("scores", float)))
        cut, largest = info["threshold"], info.get("largest_ml")
        threshold = None if cut is None else from_dict(RecallThreshold, cut, folder / INFO_FILE)
        points = {
            str(name): from_dict(RecallThreshold, point, folder / INFO_FILE)
            for name, point in dict(info.get("points") or ({"recall": cut} if cut else {})).items()
        }
        point = info.get("point") or ("recall" if cut and "points" not in info else None)
        if not (point is None or point in points):
            raise ValueError(f"point {point!r:.40}")
        if largest is not None and not (type(largest) in (int, float) and 0 < largest < math.inf):
            raise ValueError(f"largest_ml {largest!r:.40}")
        largest_ml = math.inf if largest is None else float(largest)
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Refused(folder / INFO_FILE, f"{type(error).__name__} {error}", "the description of a forest") from error
    held = {}
    for name in [MODEL_FILE] * (MODEL_FILE in info["sha256"]) + [TENSOR_FILE]:
        held[name] = _there(folder / name).read_bytes()
        checksum, stated = hashlib.sha256(held[name]).hexdigest(), info["sha256"].get(name)
        if checksum != stated:
            raise Refused(
                folder / name,
                f"checksum {checksum[:12]}",
                f"{str(stated)[:12]} as {INFO_FILE} states",
                "The file is damaged or of another run: restore it or train the forest stage.",
            )
    if MODEL_FILE in held:
        _refuse_unknown_types(folder / MODEL_FILE, held[MODEL_FILE])
    flat = TensorForest.unpacked(folder / TENSOR_FILE, held[TENSOR_FILE], names, medians)
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise Refused(folder / INFO_FILE, f"a probe of shape {rows.shape}", f"rows of {len(names)} features")
    _refuse_other_scores(folder, flat(torch.from_numpy(rows)).numpy(), scored, "those that scikit-learn gave")
    return Forest(names, medians, partial(_built, folder, names), settings, threshold, flat, largest_ml, points, point)


def _built(folder: Path, names: tuple[str, ...]) -> RandomForestClassifier:
    """scikit-learn's model of a forest that `load` has read; refused when it is another forest."""
    import sklearn
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    data, info = _there(folder / MODEL_FILE).read_bytes(), read_json(folder / INFO_FILE, sha256=dict, probe=dict)
    _refuse_unknown_types(folder / MODEL_FILE, data)
    try:
        model = skops.io.loads(data, trusted=list(_BEYOND_SKOPS))
        if not isinstance(model, RandomForestClassifier) or len(names) != model.n_features_in_:
            kind = type(model).__name__
            raise Refused(folder, f"a {kind}, {len(names)} names", "a forest and a name for each feature")
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
