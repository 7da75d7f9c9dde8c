"""Widgets: a slider moves, the picture changes, and it is the picture that the headless twin draws."""

import fake_folders as fake
import ipywidgets
import pytest
import torch

from workbench import figures, widgets
from workbench.volume import Refused

A, MM = fake.arrays(), fake.SPACING


def all_of(widget) -> list:
    return [widget, *(w for child in getattr(widget, "children", ()) for w in all_of(child))]


def test_browser_shows_what_its_twin_draws():
    live = widgets.browse(
        torch.from_numpy(A["ct"]),
        MM,
        torch.from_numpy(A["labels"]),
        probability=A["tumor_probability"],
        ledger=A["ledger"],
        title="c1",
    )
    at = live.controls["at"]
    assert (at.value, at.max) == (7, 13), "starts where most tumor is"
    first = live.picture.value
    assert first == figures.png(figures.slice_view(A["ct"], MM, 7, A["labels"], title="c1"), live.dpi)
    at.value = 3
    assert live.picture.value != first
    live.controls["overlay"].value = "ledger"
    live.controls["window"].value = "tumor"
    assert live.picture.value == figures.png(
        figures.ledger(A["ct"], A["ledger"], MM, 3, window="tumor", title="c1"), live.dpi
    )
    live.controls["plane"].value = "sagittal"
    assert at.max == 51 and at.value == figures.slice_with_most(A["labels"] == 2, "sagittal")
    at.value = 51
    live.controls["plane"].value = "axial"
    assert at.max == 13 and at.value == 7 and live.picture.value == figures.png(live.figure(), live.dpi)


def test_browser_offers_only_what_is_there():
    live = widgets.browse(A["ct"], MM)
    assert live.controls["overlay"].options == ("none",) and live.controls["at"].value == 7
    live.picture.value = b""
    live.controls["at"].value = 0
    assert bytes(live.picture.value).startswith(b"\x89PNG")
    with pytest.raises(Refused, match="contours, probability, ledger or none"):
        figures.overlay(A["ct"], MM, 3, "sound")


def test_threshold_what_if():
    scores = fake.tables()["scores"]
    live = widgets.threshold(scores, 0.4)
    first = live.picture.value
    assert first == figures.png(figures.what_if(scores, 0.4), live.dpi)
    live.controls["threshold"].value = 0.7
    assert live.picture.value == figures.png(figures.what_if(scores, 0.7), live.dpi) != first


def test_no_output_widget_and_every_control_is_a_plain_one():
    kinds = {type(w) for w in all_of(widgets.threshold(fake.tables()["scores"]))}
    assert ipywidgets.Output not in kinds
    assert kinds == {widgets.Live, ipywidgets.HBox, ipywidgets.FloatSlider, ipywidgets.Image}
