"""The models of an experiment as MLflow keeps and serves them: safetensors and JSON, nothing pickled.

Chooses: one model a stage (all its folds together), with the settings of its experiment beside its files; MLflow finds the
code by the package's name and calls `_load_pyfunc` there. A net takes a whole volume and is asked as the pipeline asks it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench.data.files import from_dict, read_json
from workbench.experiment import Settings, pick_device, reading
from workbench.nets import cascade
from workbench.stages import boundary, forest, liver, tumor

# What goes in, all `[z y x]` on one grid but the spacing `[3]`, and what comes out; the forest reads a table instead
VOLUMES = {
    "liver": {"hu": "float32", "spacing_mm": "float64"},
    "tumor": {"hu": "float32", "liver_probability": "float32", "spacing_mm": "float64"},
    "boundary": {
        "hu": "float32",
        "tumor_probability": "float32",
        "tumor": "float32",  # P(lesion) of the piece in each of its voxels, 1 if nobody has judged it or of its size; 0 elsewhere
        "liver": "bool",
        "spacing_mm": "float64",
    },
}
GIVES = {"liver": "float32", "tumor": "float32", "boundary": "bool", "forest": "float64"}


def weights(stage: reading.StageFolder) -> list[Path]:
    """The model files that a stage left; empty for a stage that is no model."""
    return [stage.path / name for name in sorted(stage.info.get("outputs", {})) if name.endswith(".safetensors")]


def gather(stage: reading.StageFolder, settings: dict, to: Path) -> None:
    """Copy what `_load_pyfunc` needs into a new folder: weights, their descriptions, the experiment's settings."""
    to.mkdir(parents=True)
    for file in [*weights(stage), *(p for p in stage.path.glob("*.json") if _describes(p))]:
        shutil.copy2(file, to / file.name)
    (to / "served.json").write_text(json.dumps({"stage": stage.name, "settings": settings}, indent=1))


def _describes(path: Path) -> bool:
    return path.stem in ("model", "forest") or path.stem.startswith("fold")


def columns(folder: Path) -> list[str]:
    """The descriptors that a stored forest reads, in its order."""
    return list(read_json(folder / "forest.json", "names")["names"])


def load(path: str) -> Served:
    """A logged model, as MLflow finds it through `workbench._load_pyfunc`."""
    return Served(Path(path))


class Served:
    """One stage's model: `predict` takes what `VOLUMES` names, or the forest's table."""

    def __init__(self, folder: Path, device: str = "auto"):
        about = read_json(folder / "served.json", "stage", "settings")
        s, on = from_dict(Settings, about["settings"]), pick_device(device)
        self.stage: str = about["stage"]
        self._ask: Callable = {"liver": _liver, "tumor": _tumor, "forest": _forest, "boundary": _boundary}[self.stage](
            folder, s, on
        )

    def predict(self, inputs: dict[str, np.ndarray] | pd.DataFrame, params: dict | None = None) -> np.ndarray:
        """Probability or mask `[z y x]` of a volume; the score of each row of the forest's table."""
        if isinstance(inputs, pd.DataFrame):
            return self._ask(inputs)
        given = {name: torch.as_tensor(np.array(value)) for name, value in inputs.items()}
        spacing = tuple(float(mm) for mm in given.pop("spacing_mm"))
        return self._ask(spacing_mm=spacing, **given).cpu().numpy()


def _liver(folder: Path, s: Settings, on: torch.device) -> Callable:
    nets = cascade.load(folder, s.liver.cascade, on)
    return lambda hu, spacing_mm: liver.probability(nets, hu, spacing_mm, s.liver, on)


def _tumor(folder: Path, s: Settings, on: torch.device) -> Callable:
    nets = cascade.load(folder, s.tumor.cascade, on)

    def ask(hu, liver_probability, spacing_mm):
        box = tumor.box(liver.mask(liver_probability, spacing_mm, s.liver), spacing_mm, s.tumor)
        return tumor.probability(nets, hu, liver_probability, box, s.tumor, on)

    return ask


def _forest(folder: Path, s: Settings, on: torch.device) -> Callable:
    return forest.load(folder).score


def _boundary(folder: Path, s: Settings, on: torch.device) -> Callable:
    model = boundary.load(folder, s.boundary, on)

    def ask(hu, tumor_probability, tumor, liver, spacing_mm):
        return boundary.relabel(model, hu, tumor_probability, tumor, liver, spacing_mm, s.boundary).mask

    return ask
