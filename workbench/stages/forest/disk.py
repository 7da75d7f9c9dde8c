"""A forest in its folder: safetensors and JSON. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from workbench.data.files import from_dict, read_json, write_atomic
from workbench.stages.forest.measures import RecallThreshold
from workbench.stages.forest.model import Forest
from workbench.stages.forest.settings import ForestSettings
from workbench.stages.forest.trees import TensorForest
from workbench.volume import Refused

TENSOR_FILE, INFO_FILE = "forest.safetensors", "forest.json"  # 0.1.0 wrote forest.skops too; it is not read


def save(forest: Forest, folder: str | Path) -> None:
    """Write forest.safetensors (the trees as flat tensors) and forest.json (names, medians, threshold, settings, versions, checksum),
    each at once. The forest must have been fitted here; copy the files of one that was read (`pack`)."""
    import sklearn

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat, probe = forest.flat.packed(), _probe(forest)
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
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "sha256": {TENSOR_FILE: hashlib.sha256(flat).hexdigest()},
        "probe": {"rows": probe.tolist(), "scores": forest.judge(probe).tolist()},
    }
    write_atomic(folder / TENSOR_FILE, flat)
    write_atomic(folder / INFO_FILE, (json.dumps(info, indent=1) + "\n").encode())


def pack(source: Path, folder: Path) -> None:
    """Copy a saved forest."""
    for name in (TENSOR_FILE, INFO_FILE):
        write_atomic(folder / name, (source / name).read_bytes())


def _there(file: Path) -> Path:
    if not file.is_file():
        raise Refused(file, "no file", "a forest that was saved here", "Train the forest stage.")
    return file


def load(folder: str | Path) -> Forest:
    """Read what `save` wrote. Refused: a missing file, another checksum, a tree that does not end, other scores."""
    folder = Path(folder)
    _there(folder / INFO_FILE)
    try:
        info = read_json(folder / INFO_FILE, "threshold", sha256=dict, probe=dict, names=list)
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
    data = _there(folder / TENSOR_FILE).read_bytes()
    checksum, stated = hashlib.sha256(data).hexdigest(), info["sha256"].get(TENSOR_FILE)
    if checksum != stated:
        raise Refused(
            folder / TENSOR_FILE,
            f"checksum {checksum[:12]}",
            f"{str(stated)[:12]} as {INFO_FILE} states",
            "The file is damaged or of another run: restore it or train the forest stage.",
        )
    flat = TensorForest.unpacked(folder / TENSOR_FILE, data, names, medians)
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise Refused(folder / INFO_FILE, f"a probe of shape {rows.shape}", f"rows of {len(names)} features")
    scores = flat(torch.from_numpy(rows)).numpy()
    if scores.shape != scored.shape or not np.allclose(scores, scored, rtol=0, atol=1e-6):
        apart = np.abs(scores - scored).max() if scores.shape == scored.shape else math.nan
        found = f"scores that differ by {apart:.2g} from those stored"
        raise Refused(folder, found, "those that scikit-learn gave", "Train the forest stage.")
    return Forest(names, medians, flat, settings, threshold, largest_ml, points, point)


def _probe(forest: Forest) -> np.ndarray:
    """Eight rows that pass through many splits: quantiles of the forest's own thresholds, `[row feature]` float32."""
    if isinstance(forest.model, TensorForest):
        raise Refused("forest", "a forest that was read from a folder", "one that was fitted here", "Copy its files.")
    rng = np.random.default_rng(0)
    rows = np.tile(forest.medians, (8, 1))
    trees = [estimator.tree_ for estimator in forest.model.estimators_]
    feature, cut = np.concatenate([t.feature for t in trees]), np.concatenate([t.threshold for t in trees])
    for column in range(len(forest.names)):
        cuts = cut[feature == column]
        if len(cuts):
            rows[:, column] = rng.choice(cuts, len(rows)) + rng.normal(size=len(rows)) * cuts.std()
    return rows
