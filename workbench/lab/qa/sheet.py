"""The layers of a result as one picture, for a machine without a display."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from workbench.lab import figures

Layer = tuple  # (data, keywords, type), as napari's readers give them


def draw(found: list[Layer], title: str) -> Figure:
    """CT, maps, labels and ledger of a result, axial and coronal, where most tumor is."""
    by_name = {keywords["name"]: (np.asarray(data), keywords) for data, keywords, kind in found}
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
                view.probability(ax, layer[0], name.split()[0])
            elif layer is not None:
                colours = layer[1]["colormap"]
                for value in np.unique(layer[0]):
                    if value:
                        view.fill(ax, layer[0] == value, colours.get(int(value), colours[None]), layer[1]["opacity"])
            elif points is not None:
                down, across = ((points[0] * spacing_mm)[:, axis] for axis in view.axes)
                edges = points[1]["border_color"]
                ax.scatter(across, down, s=60, facecolors="none", edgecolors=edges, linewidths=1.5)
            view.zoom(ax)
            ax.set_title(f"{name}\n{view.title()}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
