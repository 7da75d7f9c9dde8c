"""A result in napari: every stage's layer over the CT, in the colours of the figures.

Chooses: `layers` is pure (no Qt, no napari) and says what there is to see; `show` opens the window, `contact_sheet`
draws the same layers as a PNG where there is no display. Layers lie in mm, `[z y x]` canonical: napari turns an oblique
affine into something else in 2D, so only scale is used here, and the true affine rides in the metadata. Volumes are
not copied to float: napari shows what the files hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench import figures, folders

Layer = tuple[Any, dict, str]
PHANTOM_PRESET = "demo"  # the full size takes most of a minute

FAINT = "50"  # the liver lies under everything: its colour is there, the CT stays readable
LABEL_COLOURS = {0: "transparent", 1: figures.LIVER_COLOUR + FAINT, 2: figures.TUMOR_COLOUR, None: figures.GREY}
LEDGER_COLOURS = {0: "transparent", None: figures.GREY, **figures.LEDGER_COLOURS, 1: figures.LIVER_COLOUR + FAINT}


def _probability_colours(which: str) -> dict:
    """The figures' colour map in the words that napari takes."""
    return {"name": f"workbench {which}", "colors": figures.PROBABILITY_MAPS[which](np.linspace(0, 1, 32))}


def layers(folder: str | Path) -> list[Layer]:
    """(data, keywords, type) of every layer of a result folder, from the bottom up.

    CT (when the input is still there), liver and tumor probability, candidates as points with what is known of them,
    labels, ledger. Scale is in mm.
    """
    case = folders.result(folder)
    ct, why = case.ct()
    found: list[Layer] = []
    about: dict = {}
    for name in ("labels", "ledger", "liver_probability", "tumor_probability"):
        if (volume := case.volume(name)) is not None:
            about[name] = volume
    if not about:
        return found
    _, spacing_mm, affine = next(iter(about.values()))
    metadata = {"affine_xyz_to_ras_mm": affine.tolist(), "case": case.case, "folder": str(case.path)}
    common = {"scale": spacing_mm, "units": "mm", "metadata": metadata}

    if ct is not None:
        level, width = figures.WINDOWS["liver"]
        limits = (level - width / 2, level + width / 2)
        found.append((ct, {**common, "name": "CT (HU)", "colormap": "gray", "contrast_limits": limits}, "image"))
    else:
        metadata["no_ct"] = why
    for which in ("liver", "tumor"):
        if f"{which}_probability" in about:
            data = about[f"{which}_probability"][0]
            found.append(
                (
                    data,
                    {
                        **common,
                        "name": f"{which} probability",
                        "colormap": _probability_colours(which),
                        "contrast_limits": (0.0, 1.0),
                        "blending": "translucent",
                        "visible": False,
                    },
                    "image",
                )
            )
    if "labels" in about:
        found.append(
            (
                np.asarray(about["labels"][0], np.uint8),
                {**common, "name": "labels", "colormap": dict(LABEL_COLOURS), "opacity": 0.45},
                "labels",
            )
        )
    if "ledger" in about:
        data = np.asarray(about["ledger"][0], np.uint8)
        meanings = {**figures.LEDGER_MEANINGS, **{int(k): v for k, v in case.info.get("ledger_codes", {}).items()}}
        found.append(
            (
                data,
                {
                    **common,
                    "name": "ledger",
                    "colormap": dict(LEDGER_COLOURS),
                    "opacity": 0.7,
                    "visible": False,
                    "metadata": {**metadata, "meanings": meanings},
                },
                "labels",
            )
        )
    lesions = case.lesions()
    if len(lesions):
        points = lesions[["z_mm", "y_mm", "x_mm"]].to_numpy(float) / spacing_mm
        shown = [
            c for c in ("candidate", "kept", "reason", "forest_score", "volume_ml", "long_axis_mm") if c in lesions
        ]
        features = lesions[shown].copy()
        features["reason"] = features["reason"].fillna("")
        colours = [_score_colour(s) for s in lesions["forest_score"]]
        text = {"string": "{candidate}: {forest_score:.2f}", "color": "white", "size": 9, "translation": [0, -6, 0]}
        found.append(
            (
                points,
                {
                    **common,
                    "name": "candidates",
                    "features": features,
                    "face_color": colours,
                    "symbol": "ring",
                    "border_color": "black",
                    "size": 8 / np.mean(spacing_mm),
                    "text": text,
                },
                "points",
            )
        )
    return found


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
    from workbench import phantom

    case = phantom.generate(seed, PHANTOM_PRESET)
    common = {"scale": case.ct.spacing_mm, "units": "mm", "metadata": {"case": case.ct.name}}
    level, width = figures.WINDOWS["liver"]
    ct = {
        **common,
        "name": "phantom CT (HU)",
        "colormap": "gray",
        "contrast_limits": (level - width / 2, level + width / 2),
    }
    truth = {**common, "name": "phantom truth", "colormap": dict(LABEL_COLOURS), "opacity": 0.45}
    return [
        (case.ct.array.cpu().numpy(), ct, "image"),
        (case.labels.array.cpu().numpy().astype(np.uint8), truth, "labels"),
    ]


def add(viewer, folder: str | Path) -> list:
    """Put the layers of a result into a viewer, at the slice with most tumor."""
    found = layers(folder)
    added = []
    for data, keywords, kind in found:
        if isinstance(keywords.get("colormap"), dict) and "colors" in keywords["colormap"]:
            from napari.utils.colormaps import Colormap

            keywords = {**keywords, "colormap": Colormap(**keywords["colormap"])}
        added.append(getattr(viewer, f"add_{kind}")(data, **keywords))
    labels = next((data for data, keywords, _ in found if keywords["name"] == "labels"), None)
    if labels is not None:
        at = figures.slice_with_most(labels == 2 if np.any(labels == 2) else labels)
        viewer.dims.set_point(0, at * found[0][1]["scale"][0])
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.title = str(Path(folder).resolve().name)
    return added


def show(folder: str | Path, block: bool = True):
    """Open napari on a result folder. The viewer, when `block` is off."""
    os.environ.setdefault("QT_API", "pyside6")
    import napari

    viewer = napari.Viewer()
    add(viewer, folder)
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
    return figures.save(_sheet(layers(folder), Path(folder).resolve().name), path)


def _sheet(found: list[Layer], title: str) -> Figure:
    by_name = {keywords["name"]: (data, keywords) for data, keywords, _ in found}
    points = by_name.pop("candidates", None)
    labels = by_name.get("labels", next(iter(by_name.values())))[0]
    spacing_mm = next(iter(by_name.values()))[1]["scale"]
    of = labels == 2 if np.any(labels == 2) else labels
    views = [("axial", figures.slice_with_most(of)), ("coronal", figures.slice_with_most(of, "coronal"))]
    ct = by_name.pop("CT (HU)", (np.full(labels.shape, -1000, np.int16), None))[0]
    figure = figures.Picture(3.6 * (len(by_name) + 1), 7.2)
    columns = [("CT and all candidates" if points else "CT", None), *by_name.items()]
    for row, (plane, at) in zip(figure.subplots(2, len(columns), squeeze=False), views):
        for ax, (name, layer) in zip(row, columns):
            view = figures.View(ct.shape, spacing_mm, plane, at)
            view.ct(ax, ct, "liver")
            if layer is not None and "contrast_limits" in layer[1]:
                view.show(
                    ax,
                    layer[0],
                    cmap=figures.PROBABILITY_MAPS[name.split()[0]],
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
            elif layer is not None:
                for value in np.unique(layer[0]):
                    if value and (colour := layer[1]["colormap"].get(int(value), figures.GREY)):
                        view.fill(ax, layer[0] == value, colour, layer[1]["opacity"])
            elif points is not None:
                down, across = view.axes
                mm = points[0] * spacing_mm
                ax.scatter(
                    mm[:, across],
                    mm[:, down],
                    s=60,
                    facecolors="none",
                    edgecolors=points[1]["face_color"],
                    linewidths=1.5,
                )
            view.zoom(ax, None)
            ax.set_title(f"{name}\n{view.title()}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def view(folder: str | Path, path: str | Path | None = None) -> Path | None:
    """`workbench view`: napari in a process of its own; without a display the contact sheet and a line that says so."""
    folders.result(folder)
    if why := why_no_window():
        sheet = contact_sheet(folder, path)
        print(f"{why}: the layers are in {sheet}", file=sys.stderr)
        return sheet
    code = "import sys; from workbench import qa; qa.show(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(Path(folder).resolve())], env={**os.environ, "QT_API": "pyside6"}, check=True
    )
    return None
