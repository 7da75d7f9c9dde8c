"""What a researcher moves in a notebook: slices, volumes, descriptors, decisions, thresholds. Offline, without an Output widget.

Chooses: a control replaces the PNG in an `ipywidgets.Image`; an Output widget that holds a figure can stall a headless
run. Each widget's `figure()` is what `figures` draws of the controls as they stand, without a browser; a notebook that is run
headless or exported shows that picture in the widget's place.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch
from ipyniivue import NiiVue, ShowRender, SliceType, Volume
from ipywidgets import Dropdown, FloatSlider, HBox, Image, IntSlider, Label, SelectionSlider, VBox, Widget
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench.experiment import Experiment
from workbench.experiment.whatif import Choice, WhatIf
from workbench.lab import figures, review
from workbench.lab.review import Seen
from workbench.stages import radiomics
from workbench.volume import Spacing, canonical_affine

WIDE, WORDS = {"width": "34em"}, {"description_width": "8em"}
VEIL = 0.03  # the liver's share of the tumor's opacity in 3D, where it adds up along the ray


class Twin(VBox):
    """A widget with a headless twin: `figure()`."""

    dpi = 80

    def figure(self) -> Figure:
        """The figure of the controls as they stand."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget for a browser, and the twin's picture for whoever has none."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle:
            bundle["image/png"] = base64.b64encode(figures.png(self.figure(), self.dpi)).decode()
        return bundle


class Live(Twin):
    """Controls above a picture: a change of any control draws the picture anew. While it is drawn a line says so, and the former
    picture stands.

    `follow`: by the name of a control, what else a change of it moves before the picture is drawn once.
    """

    def __init__(
        self, draw: Callable[..., Figure], controls: dict, follow: dict[str, Callable[[], None]] | None = None
    ):
        self.draw, self.controls, self.follow = draw, controls, follow or {}
        self.picture = Image(format="png", value=b"", layout={"align_self": "flex-start", "max_width": "100%"})
        self.working = Label(layout={"height": "22px"})  # its place is kept, so that the picture does not jump
        super().__init__([HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), self.working, self.picture])
        self._following = False
        for name, control in controls.items():
            control.observe(lambda _, name=name: self._changed(name), names="value")
        self._redraw()

    def figure(self) -> Figure:
        return self.draw(**{name: control.value for name, control in self.controls.items()})

    def _changed(self, name: str) -> None:
        if self._following:
            return
        self._following = True
        try:
            self.follow.get(name, lambda: None)()
        finally:
            self._following = False
        self._redraw()

    def _redraw(self) -> None:
        self.working.value = "working…"
        try:
            self.picture.value = figures.png(self.figure(), self.dpi)
        finally:
            self.working.value = ""


def browse(ct, spacing_mm, labels=None, truth=None, probability=None, ledger=None, title: str = "") -> Live:
    """Walk through a volume `[z y x]`: slice, plane, window and overlay. Twin: `figures.overlay`."""
    one = Seen(ct, spacing_mm, labels, truth, probability, ledger, title)
    return _browser([title], lambda _: one)


def cases(made: Experiment, case: str = "") -> Live:
    """The same over the cases of an experiment, each with what its stages have left so far (`review.seen`)."""
    names = list(made.cases().sort_values(["split", "case"]).case)
    return _browser(names, lru_cache(maxsize=1)(lambda name: review.seen(made, name)), review.shown(made, case))


def _browser(names: Sequence[str], seen: Callable[[str], Seen], first: str | None = None) -> Live:
    case = Dropdown(options=names, value=first or names[0], description="case")
    plane = Dropdown(options=list(figures.AXES), value="axial", description="plane")
    window = Dropdown(options=list(figures.WINDOWS), value="liver", description="window")
    overlay = Dropdown(options=_overlays(seen(case.value)), description="overlay")
    at = _slice(0, 0, 10_000, continuous_update=False)

    def turned() -> None:
        of = seen(case.value)
        at.max = of.ct.shape[figures.AXES[plane.value]] - 1
        at.value = _start(of.labels, of.truth, tuple(of.ct.shape), plane.value)

    def opened() -> None:
        chosen, overlay.options = overlay.value, _overlays(seen(case.value))
        overlay.value = chosen if chosen in overlay.options else overlay.options[0]
        turned()

    def draw(plane: str, at: int, window: str, overlay: str, case: str = names[0]) -> Figure:
        of = seen(case)
        maps = of.labels, of.truth, of.probability, of.ledger
        return figures.overlay(of.ct, of.spacing_mm, at, overlay, *maps, window, plane, of.title)

    turned()
    controls: dict = {"case": case} if len(names) > 1 else {}
    controls |= {"plane": plane, "at": at, "window": window, "overlay": overlay}
    return Live(draw, controls, {"plane": turned, "case": opened})


def _overlays(of: Seen) -> list[str]:
    drawn = of.labels if of.labels is not None else of.truth
    there = {"contours": drawn, "probability": of.probability, "ledger": of.ledger}
    return [name for name, a in there.items() if a is not None] + ["none"]


def _start(labels, truth, shape: tuple[int, ...], plane: str) -> int:
    of = labels if labels is not None else truth
    if of is None:
        return shape[figures.AXES[plane]] // 2
    return figures.slice_with_most(of == 2 if bool((of == 2).any()) else of, plane)


class Planes(Twin):
    """A volume `[z y x]` around its labels (1 liver, 2 tumor) in three planes and in 3D, drawn by ipyniivue in the browser.

    A click moves the planes and the slider, the slider the axial plane. Only a box with `margin_mm` around the labels goes to the
    browser. Twin: `figures.planes` through the same voxel; it has no 3D.
    """

    def __init__(self, ct, spacing_mm: Spacing, labels, margin_mm: float = 25, title: str = ""):
        self.ct, self.labels, self.spacing_mm, self.title = ct, labels, spacing_mm, title
        self.box = figures.box_around(labels, spacing_mm, margin_mm) or tuple(slice(0, n) for n in ct.shape)
        low, high = figures.limits("liver")
        data = _nifti(ct[self.box], np.int16, spacing_mm)
        hu = Volume(data=data, name="hu.nii.gz", colormap="gray", cal_min=low, cal_max=high)
        over = {}  # a volume each: in one, both labels would have one opacity
        for value, part in ((1, "liver"), (2, "tumor")):
            mask = _nifti(labels[self.box] == value, np.uint8, spacing_mm)
            over[part] = Volume(data=mask, name=f"{part}.nii.gz", colorbar_visible=False)
            over[part].set_colormap_label(label_colour(part))
        self.view = NiiVue(
            height=460,
            is_radiological_convention=True,
            sagittal_nose_left=True,  # as in the figures and in napari
            is_nearest_interpolation=True,
            multiplanar_show_render=ShowRender.NEVER,
            crosshair_width=0.3,
            crosshair_color=(*to_rgb(figures.VERMILLION), 1.0),
            show_legend=False,
        )
        self.view.load_volumes([hu, *over.values()])
        self._go([_start(labels, None, tuple(ct.shape), plane) for plane in figures.AXES])
        layouts = {"planes": SliceType.MULTIPLANAR, "axial": SliceType.AXIAL, "coronal": SliceType.CORONAL,
                   "sagittal": SliceType.SAGITTAL, "3D": SliceType.RENDER}  # fmt: skip
        self.controls = {
            "at": _slice(self.at[0], self.box[0].start, self.box[0].stop - 1),
            "window": Dropdown(options=list(figures.WINDOWS), value="liver", description="window"),
            "opacity": FloatSlider(value=0.6, min=0, max=1, step=0.05, description="labels"),
            "layout": Dropdown(options=list(layouts), description="view"),
        }
        super().__init__([HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"}), self.view])

        def windowed(_: object = None) -> None:
            hu.cal_min, hu.cal_max = figures.limits(self.controls["window"].value)

        def coloured(_: object = None) -> None:
            opacity, solid = self.controls["opacity"].value, self.controls["layout"].value == "3D"
            hu.opacity = 0.0 if solid else 1.0  # in 3D the skin hides what lies within, and so would much of the liver
            over["liver"].opacity, over["tumor"].opacity = opacity * (VEIL if solid else figures.FAINT), opacity

        def turned(_: object = None) -> None:
            coloured()
            self.view.set_slice_type(layouts[self.controls["layout"].value])

        def clicked(where: dict) -> None:
            self.clicked = True  # the planes are there already
            self.controls["at"].value = self._voxel(where["frac"])[0]
            self.clicked = False

        def slid(change: dict) -> None:
            if not self.clicked:
                self._go([change["new"], *self.at[1:]])

        coloured()
        self.clicked = False
        self.view.on_location_change(clicked)
        self.controls["at"].observe(slid, names="value")
        for name, follow in (("window", windowed), ("opacity", coloured), ("layout", turned)):
            self.controls[name].observe(follow, names="value")

    @property
    def at(self) -> tuple[int, ...]:
        """The voxel (z, y, x) in which the planes meet."""
        return self._voxel(self.view.scene.crosshair_pos)

    def _voxel(self, position: Sequence[float]) -> tuple[int, ...]:
        right, front, head = position  # shares of the box
        shares = head, 1 - front, 1 - right
        return tuple(min(b.start + int((b.stop - b.start) * s), b.stop - 1) for b, s in zip(self.box, shares))

    def _go(self, at: Sequence[int]) -> None:
        head, back, left = ((i - b.start + 0.5) / (b.stop - b.start) for i, b in zip(at, self.box))
        self.view.scene.crosshair_pos = [1 - left, 1 - back, head]

    def figure(self) -> Figure:
        window, opacity = self.controls["window"].value, self.controls["opacity"].value
        of = self.ct, self.spacing_mm, self.at, self.labels
        return figures.planes(*of, window, opacity, self.box, self.title)


def _slice(value: int, first: int, last: int, words: str = "slice", **options: Any) -> IntSlider:
    return IntSlider(value=value, min=first, max=last, description=words, **options)


def _share(
    value: float, low: float = 0.0, high: float = 1.0, words: str = "threshold", form: str = ".3f", **options: Any
) -> FloatSlider:
    options |= {"step": 0.005, "readout_format": form, "continuous_update": False}
    return FloatSlider(value=value, min=low, max=high, description=words, **options)


def label_colour(part: str) -> dict:
    """The figures' colour of the liver or the tumor, as ipyniivue takes that of a mask."""
    colour = to_rgb({"liver": figures.LIVER_COLOUR, "tumor": figures.TUMOR_COLOUR}[part])
    red, green, blue = ([0, round(255 * v)] for v in colour)
    return {"R": red, "G": green, "B": blue, "A": [0, 255], "I": [0, 1], "labels": ["", part]}


def _nifti(a, kind: type, spacing_mm: Spacing) -> bytes:
    voxels: np.ndarray = np.ascontiguousarray(np.asarray(a).astype(kind).transpose(2, 1, 0))
    image = nibabel.Nifti1Image(voxels, canonical_affine(spacing_mm))
    return gzip.compress(image.to_bytes(), 1)


def stability(made: Experiment, feature: str = "", change: str = "noise") -> Live:
    """A descriptor's ICC under each perturbation, and what one of them does to each training candidate.

    The slider walks through a group of descriptors or through those that the selection kept, the steadiest first. Twin:
    `figures.stability`.
    """
    found, order = review.repeats(made), review.steadiest(made)
    units, patients = radiomics.CATALOGUE.set_index("name").unit, found.rows.patient.nunique()
    groups = {"kept": list(order.name[order.kept])} if order.kept.any() else {}
    groups |= {"all": list(order.name)} | {group: list(part.name) for group, part in order.groupby("group", sort=False)}
    first = next(iter(groups))
    start = first if feature in ["", *groups[first]] else "all"
    among, names = Dropdown(options=list(groups), value=start, description="among"), groups[start]
    name = SelectionSlider(options=names, value=feature or names[0], description="descriptor", continuous_update=False,
                           readout=False, layout=WIDE)  # fmt: skip
    which = Dropdown(options=list(found.changes.name[1:]), value=change, description="drawn")

    def regrouped() -> None:
        name.options = groups[among.value]
        name.index = 0

    def draw(among: str, name: str, which: str) -> Figure:
        values = found.values[:, :, radiomics.NAMES.index(name)]
        table, unit = review.agreement(values, found.changes), units[name]
        bound = made.settings.selection.icc_bound
        return figures.stability(values, table, which, found.rows.is_lesion, name, unit, bound, patients)

    return Live(draw, {"among": among, "name": name, "which": which}, {"among": regrouped})


def decisions(made: Experiment, place: int | None = None, title: str = "held out") -> Live:
    """The forest's verdicts on the held-out candidates: walk down the list, move the threshold.

    Starts at the candidate that is nearest to the threshold. Twin: `figures.decision`.
    """
    of = review.Decisions(made)
    one = lru_cache(maxsize=1)(of)
    place = int((of.table.score - of.threshold).abs().argmin()) if place is None else place
    controls = {
        "place": _slice(place + 1, 1, len(of.table), "place in list", continuous_update=False, layout=WIDE),
        "threshold": _share(of.threshold, layout=WIDE),
    }

    def draw(place: int, threshold: float) -> Figure:
        return figures.decision(of.table, place - 1, *one(place - 1), of.lesions, of.patients, threshold, title)

    return Live(draw, controls)


OWN_SCORE = "as the slider says"


def what_if(case: WhatIf, title: str = "") -> Live:
    """Move what decides one case, or choose an operating point of its forest, and see what becomes of it: ledger, contours, measures.

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
    controls: dict[str, Widget] = {name: _share(*of, ".2f", style=WORDS) for name, of in moves.items()}
    first = _start(case.truth, None, tuple(case.maps.hu.shape), "axial")
    controls["at"] = _slice(first, 0, case.maps.hu.shape[0] - 1, continuous_update=False)

    decide = lru_cache(maxsize=1)(case)  # another slice is no other choice
    hooks: dict[str, Callable[[], None]] = {}
    points = case.models.forest.points
    if points:
        own = next((name for name in points if case.at(name) == start), OWN_SCORE)
        options = [*points, OWN_SCORE]
        controls["point"] = Dropdown(options=options, value=own, description="operating point", style=WORDS)

        def moved() -> None:
            if controls["point"].value in points:
                controls["score"].value = case.at(controls["point"].value).score

        def by_hand() -> None:
            controls["point"].value = OWN_SCORE

        hooks |= {"point": moved, "score": by_hand}

    def draw(at: int, point: str = "", **chosen: float) -> Figure:
        if point in points:  # the slider shows the score in steps
            chosen["score"] = case.at(point).score
        outcome = decide(Choice(**chosen))
        labels = case.maps.liver.to(torch.uint8)
        labels[outcome.masks["boundary"]] = 2
        words, maps = f"{title or case.case}, decided in {outcome.seconds:.1f} s", (outcome.ledger, labels, case.truth)
        return figures.decided(case.maps.hu, case.maps.spacing_mm, *maps, outcome.measures, at, words)

    return Live(draw, controls, hooks)


def threshold(scores: pd.DataFrame, start: float = 0.5, title: str = "") -> Live:
    """What another threshold of the forest would keep and lose (columns patient, is_lesion, score).

    Twin: `figures.what_if`.
    """

    def draw(threshold: float) -> Figure:
        return figures.what_if(scores, threshold, title)

    return Live(draw, {"threshold": _share(start)})
