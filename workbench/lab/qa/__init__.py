"""A result in napari: every stage's layer over the CT, in the colours of the figures, and a panel to judge it.

Chooses: `layers` is pure (no Qt, no napari) and says what there is to see; `show` opens the window with the panel,
`contact_sheet` draws the same layers as a PNG where there is no display. Layers lie in mm, `[z y x]` canonical: napari turns an
oblique affine into something else in 2D, so only scale is used here, and the true affine rides in the metadata. Volumes
are not copied to float: napari shows what the files hold, and what is hidden at first is read when it is first shown.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from workbench.experiment import reading, verdicts
from workbench.lab import figures
from workbench.lab.qa import sheet, worklist
from workbench.stages.ledger import HISTORY

log = logging.getLogger(__name__)
Layer = tuple[Any, dict, str]
PHANTOM_PRESET = "demo"  # the full size takes most of a minute

FAINT = "50"  # the liver lies under everything: its colour is there, the CT stays readable
LABEL_COLOURS = {0: "transparent", 1: figures.LIVER_COLOUR + FAINT, 2: figures.TUMOR_COLOUR, None: figures.GREY}
CORRECTED = "corrected labels"
VOLUMES = {
    "labels": np.uint8,
    "liver_probability": np.float32,
    "tumor_probability": np.float32,
    "ledger": np.uint8,
    "candidates": np.int16,
}
BOUNDARY = {  # column of the ledger's history -> the contour after that stage
    3: ("before boundary", figures.STAGE_COLOURS["forest"]),
    4: ("after boundary", figures.STAGE_COLOURS["boundary"]),
}
LEDGER_COLOURS = {0: "transparent", None: figures.GREY, **figures.LEDGER_COLOURS, 1: figures.LIVER_COLOUR + FAINT}


def _probability_colours(which: str) -> dict:
    """The figures' colour map in the words that napari takes."""
    return {"name": f"workbench {which}", "colors": figures.PROBABILITY_MAPS[which](np.linspace(0, 1, 32))}


class Later:
    """An array that is read when it is first looked at. napari asks a hidden layer for its first plane's dtype, no more."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._read = tuple(shape), np.dtype(dtype), read
        self.ndim, self.size = len(shape), int(np.prod(shape))

    @cached_property
    def whole(self) -> np.ndarray:
        return np.asarray(self._read(), self.dtype)

    def __getitem__(self, at: Any) -> np.ndarray | Later:
        if isinstance(at, int):
            return Later(self.shape[1:], self.dtype, lambda: self.whole[at])
        return self.whole[at]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.whole, dtype, copy=copy)


def _after(ledger: Later, stage: int) -> Later:
    """The tumor after a stage of the ablation, 0 or 1, from the ledger alone."""
    on = np.zeros(256, np.uint8)
    on[[code for code, (_, history) in HISTORY.items() if history[stage]]] = 1
    return Later(ledger.shape, np.uint8, lambda: on[ledger.whole])


def layers(folder: str | Path) -> list[Layer]:
    """(data, keywords, type) of every layer of a result folder, from the bottom up.

    CT (when the input is still there), liver and tumor probability, labels, the candidates' voxels coloured by score, ledger,
    the contour before and after the boundary stage, corrected labels where there are any, candidates as points with what is
    known of them. Scale is in mm.
    """
    case = reading.result(folder)
    there = [name for name in VOLUMES if case.file(name).exists()]
    if not there:
        return []
    first = "labels" if "labels" in there else there[0]
    array, spacing_mm, affine = case.volume(first)
    held = {name: Later(array.shape, VOLUMES[name], partial(_read, case, name)) for name in there}
    held[first] = Later(array.shape, VOLUMES[first], lambda: array)
    metadata = {"affine_xyz_to_ras_mm": affine.tolist(), "case": case.case, "folder": str(case.path)}
    common = {"scale": spacing_mm, "units": "mm", "axis_labels": ("z", "y", "x"), "metadata": metadata}
    lesions, found = case.lesions(), []

    def put(kind: str, name: str, data: Any, **keywords) -> None:
        found.append((data, {**common, "name": name, **keywords}, kind))

    ct, why = case.ct()
    if ct is not None:
        put("image", "CT (HU)", ct, colormap="gray", contrast_limits=figures.limits("liver"))
    else:
        metadata["no_ct"] = why
    for which in ("liver", "tumor"):
        if f"{which}_probability" in there:
            colours = _probability_colours(which)
            put("image", f"{which} probability", held[f"{which}_probability"], colormap=colours, contrast_limits=(0.0, 1.0),
                blending="translucent", visible=False)  # fmt: skip
    if "labels" in there:
        put("labels", "labels", held["labels"].whole, colormap=dict(LABEL_COLOURS), opacity=0.45)
    if "candidates" in there:
        by_score = {int(n): _score_colour(s) for n, s in zip(lesions.candidate, lesions.forest_score)}
        put("labels", "candidates by score", held["candidates"], opacity=0.7, visible=False, features=_indexed(_known(lesions), "candidate"),
            colormap={0: "transparent", None: figures.GREY, **by_score})  # fmt: skip
    if "ledger" in there:
        meanings = figures.meanings_of(case.info.get("ledger_codes"))
        codes = pd.DataFrame(list(meanings.items()), columns=["code", "meaning"])
        put("labels", "ledger", held["ledger"], colormap=dict(LEDGER_COLOURS), opacity=0.7, visible=False,
            features=_indexed(codes, "code"))  # fmt: skip
        for n, (name, colour) in BOUNDARY.items():
            put("labels", name, _after(held["ledger"], n), colormap={0: "transparent", None: colour}, opacity=1.0,
                visible=False, metadata={**metadata, "contour": 1})  # fmt: skip
    if (corrected := verdicts.corrected(case.path)) is not None:
        put("labels", CORRECTED, corrected.array.numpy(), colormap=dict(LABEL_COLOURS), opacity=0.45)
        next(keywords for _, keywords, _ in found if keywords["name"] == "labels")["visible"] = False
    if len(lesions):
        put("points", "candidates", lesions[["z_mm", "y_mm", "x_mm"]].to_numpy(float) / spacing_mm, features=_known(lesions),
            face_color="transparent", border_color=[_score_colour(s) for s in lesions.forest_score], border_width=0.08,
            size=16 / np.mean(spacing_mm),
            text={"string": "{candidate}: {forest_score:.2f}", "color": "white", "size": 9, "translation": [0, -6, 0]},
        )  # fmt: skip
    return found


def _known(lesions: pd.DataFrame) -> pd.DataFrame:
    """What napari says of a candidate below the picture."""
    shown = [c for c in ("candidate", "kept", "reason", "forest_score", "volume_ml", "long_axis_mm") if c in lesions]
    return lesions[shown].assign(reason=lesions["reason"].fillna(""))


def _indexed(table: pd.DataFrame, values: str) -> pd.DataFrame:
    """A table as napari wants it to say of a voxel what its value means: the values in a column `index`."""
    return table.rename(columns={values: "index"}).astype({"index": int}).reset_index(drop=True)


def _read(case: reading.ResultFolder, name: str) -> np.ndarray:
    return case.volume(name)[0]


def _score_colour(score: float) -> tuple[float, float, float, float]:
    """From the colour of false positives (0) to that of true lesions (1); grey where the forest was not asked."""
    if not np.isfinite(score):
        return (*to_rgb(figures.GREY), 1.0)
    low, high = (np.array(to_rgb(c)) for c in (figures.FALSE_COLOUR, figures.TRUE_COLOUR))
    return (*(low + (high - low) * float(score)), 1.0)


def reader(path: str | list[str]) -> Callable | None:
    """npe2 reader: takes result folders, leaves everything else to others."""
    if isinstance(path, list) or not (Path(path) / "result.json").is_file():
        return None
    return lambda p: layers(p)


def phantom_layers(seed: int = 0) -> list[Layer]:
    """npe2 sample data: a synthetic case with its true labels."""
    from workbench.data import phantom

    case = phantom.generate(seed, PHANTOM_PRESET)
    common = {"scale": case.ct.spacing_mm, "units": "mm", "metadata": {"case": case.ct.name}}
    ct = {**common, "name": "phantom CT (HU)", "colormap": "gray", "contrast_limits": figures.limits("liver")}
    truth = {**common, "name": "phantom truth", "colormap": dict(LABEL_COLOURS), "opacity": 0.45}
    return [
        (case.ct.array.cpu().numpy(), ct, "image"),
        (case.labels.array.cpu().numpy().astype(np.uint8), truth, "labels"),
    ]


def add(viewer, folder: str | Path) -> list:
    """Put the layers of a result into a viewer, at the largest candidate."""
    found = layers(folder)
    added = []
    for data, keywords, kind in found:
        if isinstance(keywords.get("colormap"), dict) and "colors" in keywords["colormap"]:
            from napari.utils.colormaps import Colormap

            keywords = {**keywords, "colormap": Colormap(**keywords["colormap"])}
        added.append(getattr(viewer, f"add_{kind}")(data, **keywords))
        if kind == "labels":
            added[-1].contour = keywords["metadata"].get("contour", 0)  # napari takes it from nobody who adds a layer
    largest = next((data[0] for data, _, kind in found if kind == "points"), None)
    if largest is not None:
        viewer.dims.set_point(range(3), largest * found[0][1]["scale"])
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.title = str(Path(folder).resolve().name)
    return added


def show(path: str | Path, block: bool = True):
    """Open napari on a result folder, or on the first of several, with the panel beside it. The viewer, when `block` is off."""
    os.environ.setdefault("QT_API", "pyside6")
    import napari

    from workbench.lab.qa.panel import Panel

    viewer = napari.Viewer()
    _, panel = viewer.window.add_plugin_dock_widget("liver-workbench", Panel.TITLE)
    panel.open(path)
    if block:
        napari.run()
    return viewer


def why_no_window() -> str:
    """Empty when a window can be opened here, else what is missing. Asked in another process: Qt would end this one."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    code = "from PySide6.QtWidgets import QApplication; QApplication([]); import napari._qt"
    tried = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "QT_API": "pyside6"}
    )
    if tried.returncode == 0:
        return ""
    lines = [line for line in tried.stderr.splitlines() if line.strip()]
    return f"Qt cannot open a window: {lines[-1] if lines else f'exit status {tried.returncode}'}"


def contact_sheet(folder: str | Path, path: str | Path | None = None) -> Path:
    """The same layers as one PNG, for a machine without a display."""
    path = Path(path) if path else Path(folder) / "layers.png"
    return figures.save(sheet.draw(layers(folder), Path(folder).resolve().name), path)


def view(path: str | Path, to: str | Path | None = None) -> Path | None:
    """`workbench view`: napari in a process of its own; without a display the contact sheet and a line that says so.

    `path`: a result folder, a folder of them, or an experiment. The sheet goes to `to`, or beside the result.
    """
    first = Path(path) if (Path(path) / "result.json").is_file() else worklist.cases(path)[0]
    if why := why_no_window():
        made = contact_sheet(first, to)
        log.warning("%s: the layers are in %s", why, made)
        return made
    code = "import sys; from workbench.lab import qa; qa.show(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(Path(path).resolve())], env={**os.environ, "QT_API": "pyside6"}, check=True
    )
    return None
