"""Sliders for notebooks: browse a volume, move the forest's threshold. Offline, and without an Output widget.

Chooses: a slider replaces the PNG in an `ipywidgets.Image`; an Output widget that holds a figure can stall a headless
run. Each widget has a twin in `figures` that draws the same picture without a browser, for papermill and
reports.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from ipywidgets import Dropdown, FloatSlider, HBox, Image, IntSlider, VBox
from matplotlib.figure import Figure

from workbench import figures
from workbench.whatif import Choice, WhatIf


class Live(VBox):
    """Controls above a picture: a change of any control draws the picture anew. `figure()` is what is shown now."""

    def __init__(self, draw: Callable[..., Figure], controls: dict, dpi: int = 80):
        self.draw, self.controls, self.dpi = draw, controls, dpi
        self.picture = Image(format="png", value=b"")
        super().__init__([HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), self.picture])
        for control in controls.values():
            control.observe(self._changed, names="value")
        self._changed()

    def figure(self) -> Figure:
        """The figure of the controls as they stand: the headless twin."""
        return self.draw(**{name: control.value for name, control in self.controls.items()})

    def _changed(self, _change: object = None) -> None:
        self.picture.value = figures.png(self.figure(), self.dpi)


def browse(ct, spacing_mm, labels=None, truth=None, probability=None, ledger=None, title: str = "") -> Live:
    """Walk through a volume `[z y x]`: slice, plane, window and overlay. Twin: `figures.overlay`."""
    shape = tuple(ct.shape)
    overlays = [
        name
        for name, a in (
            ("contours", labels if labels is not None else truth),
            ("probability", probability),
            ("ledger", ledger),
        )
        if a is not None
    ] + ["none"]
    at = IntSlider(
        value=_start(labels, truth, shape, "axial"),
        min=0,
        max=shape[0] - 1,
        description="slice",
        continuous_update=False,
    )
    plane = Dropdown(options=list(figures.AXES), value="axial", description="plane")
    window = Dropdown(options=list(figures.WINDOWS), value="liver", description="window")
    overlay = Dropdown(options=overlays, description="overlay")

    def draw(plane: str, at: int, window: str, overlay: str) -> Figure:
        return figures.overlay(
            ct,
            spacing_mm,
            min(at, shape[figures.AXES[plane]] - 1),
            overlay,
            labels,
            truth,
            probability,
            ledger,
            window,
            plane,
            title=title,
        )

    live = Live(draw, {"plane": plane, "at": at, "window": window, "overlay": overlay})

    def turned(change: dict) -> None:
        at.max = shape[figures.AXES[change["new"]]] - 1
        at.value = _start(labels, truth, shape, change["new"])

    plane.observe(turned, names="value")
    return live


def _start(labels, truth, shape: tuple[int, ...], plane: str) -> int:
    of = labels if labels is not None else truth
    if of is None:
        return shape[figures.AXES[plane]] // 2
    return figures.slice_with_most(of == 2 if bool((of == 2).any()) else of, plane)


def what_if(case: WhatIf, title: str = "") -> Live:
    """Move what decides one case and see what becomes of it: ledger, contours, measures.

    Twin: `figures.decided` of what `case(choice)` gives.
    """
    start, s = case.start, case.models.settings
    moves = {
        "threshold": (start.threshold, 0.02, 0.98, "tumor from"),
        "low": (start.low, 0.0, 0.98, "restore from"),
        "keep": (start.keep, 0.02, 1.0, "one slice from"),
        "score": (start.score, 0.0, 1.0, "forest score"),
        "band_mm": (start.band_mm, 0.5, s.boundary.band_mm, "band (mm)"),
    }
    controls: dict = {
        name: FloatSlider(
            value=value, min=low, max=high, step=0.005, description=words, readout_format=".2f", continuous_update=False
        )
        for name, (value, low, high, words) in moves.items()
    }
    depth = case.maps.hu.shape[0]
    first = _start(case.truth, None, tuple(case.maps.hu.shape), "axial")
    controls["at"] = IntSlider(value=first, min=0, max=depth - 1, description="slice", continuous_update=False)

    def draw(at: int, **chosen: float) -> Figure:
        outcome = case(Choice(**chosen))
        labels = case.maps.liver.to(torch.uint8)
        labels[outcome.masks["boundary"]] = 2
        words = f"{title or case.case}, decided in {outcome.seconds:.1f} s"
        return figures.decided(
            case.maps.hu, case.maps.spacing_mm, outcome.ledger, labels, case.truth, outcome.measures, at, words
        )

    return Live(draw, controls)


def threshold(scores: pd.DataFrame, start: float = 0.5, title: str = "") -> Live:
    """What another threshold of the forest would keep and lose (columns patient, is_lesion, score).

    Twin: `figures.what_if`.
    """
    slider = FloatSlider(
        value=start,
        min=0.0,
        max=1.0,
        step=0.005,
        description="threshold",
        readout_format=".3f",
        continuous_update=False,
    )

    def draw(threshold: float) -> Figure:
        return figures.what_if(scores, threshold, title)

    return Live(draw, {"threshold": slider})
