"""Widgets: a slider moves, the picture changes, and it is the picture that the headless twin draws. In a browser: test_browser.py."""

import base64
import gzip
from dataclasses import replace

import fake_folders as fake
import ipywidgets
import nibabel
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from workbench.experiment import Experiment
from workbench.lab import figures, review, widgets
from workbench.stages import forest, radiomics, selection
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
    assert kinds == {widgets.Live, ipywidgets.HBox, ipywidgets.FloatSlider, ipywidgets.Image, ipywidgets.Label}


def test_a_line_says_while_the_picture_is_drawn():
    live, said = widgets.browse(A["ct"], MM), []
    draw = live.draw
    live.draw = lambda **chosen: said.append(live.working.value) or draw(**chosen)
    assert live.working.value == ""
    live.controls["at"].value = 3
    assert said == ["working…"] and live.working.value == ""
    live.draw = lambda **chosen: 1 / 0
    with pytest.raises(ZeroDivisionError):
        live.controls["at"].value = 4
    assert live.working.value == "", "nobody works any more"


def test_one_change_draws_once(trained, monkeypatch):
    live, drawn = widgets.cases(trained), []
    draw = live.draw
    live.draw = lambda **chosen: drawn.append(chosen) or draw(**chosen)
    live.controls["plane"].value = "sagittal"
    live.controls["case"].value = "toy-03"
    assert len(drawn) == 2 and drawn[1]["case"] == "toy-03" and drawn[1]["plane"] == "sagittal"


def test_without_a_browser_the_twin_stands_in():
    live = widgets.browse(A["ct"], MM, A["labels"])
    live.controls["at"].value = 3
    bundle = live._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == figures.png(live.figure(), live.dpi) == live.picture.value


def test_cases_of_an_experiment(trained):
    live = widgets.cases(trained)
    first = review.shown(trained)
    assert live.controls["case"].value == first and live.controls["overlay"].options[-1] == "none"
    live.controls["case"].value = "toy-00"
    of = review.seen(trained, "toy-00")
    at = figures.slice_with_most(of.labels == 2 if (of.labels == 2).any() else of.labels)
    assert live.controls["at"].value == at and of.title == "toy-00 (train), work grid"
    assert set(live.controls["overlay"].options) == {"contours", "probability", "none"}
    twin = figures.slice_view(of.ct, of.spacing_mm, at, of.labels, of.truth, title=of.title)
    assert live.picture.value == figures.png(twin, live.dpi)
    with pytest.raises(Refused, match="one of toy-00"):
        widgets.cases(trained, "nobody")


def test_a_case_is_seen_as_far_as_its_stages_went(trained, tmp_path, monkeypatch):
    result = review.seen(trained, "toy-08")
    assert result.title == "toy-08 (test), result" and result.ledger.shape == result.ct.shape == result.truth.shape
    train = review.seen(trained, "toy-00")
    assert torch.equal(train.labels == 2, review.kept(trained, "toy-00") > 0) and train.ledger is None
    known = replace(forest.load(trained.path("forest")), largest_ml=1e-3)
    monkeypatch.setattr(forest, "load", lambda _: known)  # a piece larger than all that it learnt from is not doubted
    assert set(review.kept(trained, "toy-00").unique().tolist()) == {0.0, 1.0}
    for stage, there in (("cohort", ()), ("liver", ("labels",)), ("tumor", ("labels", "probability"))):
        folder = tmp_path / stage
        folder.mkdir()
        for name in ("experiment.json", "cohort", "liver", "tumor")[: 2 + len(there)]:
            (folder / name).symlink_to(trained.folder / name)
        of = review.seen(Experiment(folder, "cpu"), "toy-00")
        assert tuple(n for n in ("labels", "probability", "ledger") if getattr(of, n) is not None) == there
        assert there == () or not (of.labels == 2).any()


def test_stability_shows_what_its_twin_draws(trained):
    live = widgets.stability(trained)
    name, which = live.controls["name"], live.controls["which"]
    kept = trained.table("selection", "table.csv").query("kept").sort_values("rank").name
    assert list(name.options) == list(kept) and name.value == kept.iloc[0]
    first = live.picture.value
    name.index, which.value = 1, "shrink"
    found = review.repeats(trained)
    values = found.values[:, :, radiomics.NAMES.index(kept.iloc[1])]
    unit = radiomics.CATALOGUE.set_index("name").unit[kept.iloc[1]]
    twin = figures.stability(
        *(values, review.agreement(values, found.changes), "shrink", found.rows.is_lesion, kept.iloc[1], unit),
        *(trained.settings.selection.icc_bound, found.rows.patient.nunique()),
    )
    assert live.picture.value == figures.png(twin, live.dpi) != first
    live.controls["among"].value = "shape"
    assert len(name.options) == 14 and name.index == 0 and name.value.startswith("shape_")
    assert widgets.stability(trained, "intensity_mean").controls["name"].value == "intensity_mean"


def test_agreement_is_the_icc_with_the_unperturbed_value(trained):
    found = review.repeats(trained)
    values = found.values[:, :, radiomics.NAMES.index("intensity_mean")]
    table = review.agreement(values, found.changes).set_index("change")
    assert list(table.index) == list(found.changes.name[1:])
    for change, key in (("noise", "icc11"), ("grow", "icc21")):
        pair = values[[0, list(found.changes.name).index(change)]].T
        assert table.icc[change] == selection.icc(pair)[key]
    order = review.steadiest(trained)
    assert order.kept.is_monotonic_decreasing and set(order.name) == set(radiomics.NAMES)


def test_decisions_show_what_their_twin_draws(trained):
    live = widgets.decisions(trained)
    of = review.Decisions(trained)
    assert of.table.score.is_monotonic_decreasing and set(of.table.split) == {"test"}
    first = live.picture.value
    live.controls["place"].value = 1
    live.controls["threshold"].value = 0.9
    twin = figures.decision(of.table, 0, *of(0), of.lesions, of.patients, 0.9, "held out")
    assert live.picture.value == figures.png(twin, live.dpi) != first
    kept = of.table.score >= 0.9
    assert f"({kept.sum()} of {len(kept)} candidates kept" in twin._suptitle.get_text()


def test_a_decision_is_the_forests_own(trained):
    of = review.Decisions(trained, neighbours=3)
    for place in (0, len(of.table) - 1):
        row, one = of.table.iloc[place], of(place)
        assert (
            one.votes.mean() == pytest.approx(row.score, abs=1e-6) and len(one.votes) == trained.settings.forest.trees
        )
        assert one.contributions.attrs["score"] == pytest.approx(row.score, abs=1e-6)
        ct, mask, _, spacing = one.candidate
        assert mask.sum() * np.prod(spacing) / 1000 == pytest.approx(row.volume_ml) and ct.shape == mask.shape
        for (_, mask, _, spacing), is_lesion, words in one.alike:
            ml = mask.sum() * np.prod(spacing) / 1000
            near = of.known[[f"{k.case}, candidate {k.candidate}\n" in words for k in of.known.itertuples()]].iloc[0]
            assert near.volume_ml == pytest.approx(ml) and near.is_lesion == is_lesion
        assert len(one.alike) == 3 and all(any(c in words for c in of.known.case) for *_, words in one.alike)
    assert not set(of.known.patient) & set(of.table.patient)


def test_planes_hand_the_browser_what_the_twin_draws():
    view = widgets.Planes(torch.from_numpy(A["ct"]), MM, torch.from_numpy(A["labels"]), margin_mm=4, title="c1")
    box, at = view.box, view.at
    assert at == tuple(figures.slice_with_most(A["labels"] == 2, plane) for plane in figures.AXES)
    for volume, a in zip(view.view.volumes, (A["ct"], A["labels"] == 1, A["labels"] == 2)):
        sent = nibabel.Nifti1Image.from_bytes(gzip.decompress(volume.data))
        assert np.array_equal(np.asarray(sent.dataobj).transpose(2, 1, 0), a[box])
        assert np.allclose(np.diag(sent.affine), (-MM[2], -MM[1], MM[0], 1)), "to the left, to the back, to the head"
    assert (view.view.volumes[0].cal_min, view.view.volumes[0].cal_max) == (-115, 235)
    for volume, colour in zip(view.view.volumes[1:], (figures.LIVER_COLOUR, figures.TUMOR_COLOUR)):
        lut = np.reshape(volume.colormap_label.lut, (2, 4))
        assert np.allclose(lut[1] / 255, (*to_rgb(colour), 1), atol=0.003) and lut[0, 3] == 0
    first = figures.png(view.figure())
    assert first == figures.png(figures.planes(A["ct"], MM, at, A["labels"], "liver", 0.6, box, "c1"))
    view.controls["at"].value = box[0].start
    view.controls["window"].value = "bone"
    assert view.at == (box[0].start, *at[1:]) and view.view.volumes[0].cal_max == 1300
    view.view.set_state(
        {"scene": {"crosshairPos": [0.001, 0.999, 0.999]}}
    )  # a click at the front, on the left, near the head
    assert view.at == (box[0].stop - 1, box[1].start, box[2].stop - 1)
    where = {"frac": [0.999, 0.001, 0.999], "vox": [], "mm": []}
    view.view.set_state({"scene": {"crosshairPos": where["frac"]}})
    view.view._handle_custom_msg({"event": "location_change", "data": where}, [])
    assert view.controls["at"].value == box[0].stop - 1, "the slider stands where the click went"
    assert view.view.scene.crosshair_pos == where["frac"], "and does not move what was clicked"
    assert view.view.opts.sagittal_nose_left, "as `figures.planes` has it"
    view.controls["opacity"].value = 0.25
    assert [v.opacity for v in view.view.volumes[1:]] == [0.25 * figures.FAINT, 0.25]
    twin = figures.planes(A["ct"], MM, view.at, A["labels"], "bone", 0.25, box, "c1")
    assert figures.png(view.figure()) == figures.png(twin) != first
