"""What napari shows of a result: a stage's layers, a window, a plane; in 3D the tumor in a veil of liver."""

from __future__ import annotations

import napari
import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from workbench.lab import figures, qa

PLANES = {  # order of the axes, and which way the first of the plane runs: the head is up
    "axial": ((0, 1, 2), "down"),
    "coronal": ((1, 0, 2), "up"),
    "sagittal": ((2, 0, 1), "up"),
}
STAGES = {  # what each button shows over the CT; below the picture napari says what the last one holds under the pointer
    "CT": (),
    "maps": ("liver probability", "tumor probability"),
    "candidates": ("candidates", "candidates by score"),
    "ledger": ("ledger",),
    "boundary": tuple(name for name, _ in qa.BOUNDARY.values()),
    "result": ("labels", "candidates", qa.CORRECTED),
}
WINDOWS = ("liver", "tumor", "soft tissue", "lung", "bone")
CT = "CT (HU)"
VEIL, VEIL_OPACITY = "liver in 3D", 0.35
PAINTED = "painted, not kept"  # in the metadata of the layer of corrected labels


class Look:
    """The layers of a viewer, as a stage, a window and a plane show them."""

    def __init__(self, viewer: napari.viewer.Viewer):
        self.viewer = viewer
        self.flat: list[tuple[napari.layers.Layer, str, object]] = []  # what 3D changed, and what it was in 2D
        viewer.dims.events.ndisplay.connect(self._dimensions)

    @property
    def drawn(self) -> napari.layers.Labels | None:
        """The layer of corrected labels, whatever the reader has called it since."""
        return next((layer for layer in self.viewer.layers if PAINTED in layer.metadata), None)

    def stage(self, name: str) -> None:
        shown, every = set(STAGES[name]), {layer for names in STAGES.values() for layer in names}
        if qa.CORRECTED in shown and self.drawn is not None:
            shown.discard("labels")
        for layer in self.viewer.layers:
            called = qa.CORRECTED if layer is self.drawn else layer.name
            if called in every:
                layer.visible = called in shown
                self.flat = [one for one in self.flat if one[:2] != (layer, "visible")]  # chosen in 3D, it stays in 2D
        pointed = [layer for layer in (CT, *STAGES[name]) if layer in self.viewer.layers]
        if pointed:
            self.viewer.layers.selection.active = self.viewer.layers[pointed[-1]]

    def window(self, name: str) -> None:
        if CT in self.viewer.layers:
            layer, (low, high) = self.viewer.layers[CT], figures.limits(name)
            layer.contrast_limits_range = (min(low, -1024), max(high, 2048))
            layer.contrast_limits = (low, high)

    def plane(self, name: str) -> None:
        self.viewer.dims.ndisplay = 2
        self.viewer.dims.order, down = PLANES[name]
        self.viewer.scene.camera.orientation2d = (down, "right")

    def veil(self) -> None:
        """The liver without its tumor's hole, for 3D; hidden, and made when it is first looked at."""
        if "labels" in self.viewer.layers:
            labels = self.viewer.layers["labels"]
            data = labels.data
            self.viewer.add_labels(
                qa.Later(data.shape, np.uint8, lambda: data > 0), name=VEIL, colormap={0: "transparent", None: figures.LIVER_COLOUR},
                opacity=VEIL_OPACITY, blending="translucent_no_depth", visible=False, scale=labels.scale, units=labels.units)  # fmt: skip
            self.viewer.layers.move(len(self.viewer.layers) - 1, 1 if CT in self.viewer.layers else 0)

    def _dimensions(self, _: object = None) -> None:
        """In 3D the tumor in a veil of liver, as the notebooks have it: the CT's projection and a solid liver would hide what lies
        within. In 2D everything as the reader had it."""
        if self.viewer.dims.ndisplay == 2:
            for layer, what, was in self.flat:
                setattr(layer, what, was)
            self.flat = []
            return
        there = {layer.name: layer for layer in self.viewer.layers}
        labels = self.drawn or there.get("labels")
        if labels is None or VEIL not in there or there[VEIL].visible:
            return
        staged = {name for names in STAGES.values() for name in names} - {"candidates"}
        others = any(layer.visible for name, layer in there.items() if name in staged and layer is not labels)
        wanted: list[tuple[napari.layers.Layer, str, object]] = [
            (labels, "opacity", 1.0),
            (there[VEIL], "visible", True),
        ]
        if not others:
            wanted.append((labels, "visible", True))
        if CT in there:
            wanted.append((there[CT], "visible", False))
        for layer in {labels, there.get("labels", labels), there.get("ledger", labels)}:
            if isinstance(layer.colormap, DirectLabelColormap):
                bare = DirectLabelColormap(color_dict={**layer.colormap.color_dict, 1: np.zeros(4)})  # no liver
                wanted.append((layer, "colormap", bare))
        self.flat = [(layer, what, getattr(layer, what)) for layer, what, _ in wanted]
        for layer, what, value in wanted:
            setattr(layer, what, value)
