"""napari's layers without napari, the contact sheet, and one look at the real window."""

import importlib
import json
import sys
from pathlib import Path

import fake_folders as fake
import matplotlib.image
import nibabel
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

import workbench
from workbench.data import phantom
from workbench.experiment import reading, verdicts
from workbench.lab import figures, qa
from workbench.lab.qa import worklist
from workbench.volume import Refused

MANIFEST = Path(workbench.__file__).parent / "lab/qa/napari.yaml"


@pytest.fixture
def folder(tmp_path):
    return fake.result(tmp_path / "case 1 result", "case 1")


def named(folder) -> dict:
    return {keywords["name"]: (data, keywords, kind) for data, keywords, kind in qa.layers(folder)}


@pytest.mark.parametrize("oblique", [False, True])
def test_layers_are_the_canonical_arrays_with_scale_in_mm(tmp_path, oblique):
    folder = fake.result(tmp_path / "r", "c", oblique=oblique)
    found, truth = named(folder), fake.arrays()
    assert [k for k in found] == [
        "CT (HU)", "liver probability", "tumor probability", "labels", "candidates by score", "ledger",
        "before boundary", "after boundary", "candidates",
    ]  # fmt: skip
    for name, key in (
        ("CT (HU)", "ct"),
        ("labels", "labels"),
        ("ledger", "ledger"),
        ("candidates by score", "candidates"),
        ("tumor probability", "tumor_probability"),
        ("liver probability", "liver_probability"),
    ):
        data, keywords, _ = found[name]
        np.testing.assert_array_equal(data, truth[key], name)
        assert keywords["scale"] == pytest.approx(fake.SPACING), "also where the file's axes are oblique"
        assert "affine" not in keywords and keywords["units"] == "mm"
    assert found["CT (HU)"][0].dtype == np.int16 and found["ledger"][0].dtype == np.uint8, "no copy in float"
    affine = np.array(found["labels"][1]["metadata"]["affine_xyz_to_ras_mm"])
    # the canonical origin is the patient's right, front, feet corner: the far end of the file's i and j axes
    i, j = (fake.SHAPE[2] - 1) * 1.5, (fake.SHAPE[1] - 1) * 2.0
    corner = np.array([-30.0 + i, -55.0 + j, 120.0])
    if oblique:
        a = np.radians(12)
        corner[1:] = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ corner[1:]
    assert affine[:3, 3] == pytest.approx(corner, abs=1e-4)


def test_colours_are_those_of_the_figures(folder):
    found = named(folder)
    labels, ledger = found["labels"][1]["colormap"], found["ledger"][1]["colormap"]
    assert to_hex(labels[1]).upper() == figures.LIVER_COLOUR and labels[2] == figures.TUMOR_COLOUR
    assert {c: to_hex(ledger[c]).upper() for c in figures.LEDGER_COLOURS} == {
        c: v.upper() for c, v in figures.LEDGER_COLOURS.items()
    }
    assert np.allclose(
        found["tumor probability"][1]["colormap"]["colors"], figures.PROBABILITY_MAPS["tumor"](np.linspace(0, 1, 32))
    )


def test_candidates_lie_in_their_lesions_and_say_what_is_known(folder):
    data, keywords, kind = named(folder)["candidates"]
    assert kind == "points" and data.tolist() == [[7, 15, 13], [5, 25, 22], [9, 12, 24]]
    assert [fake.arrays()["candidates"][tuple(int(v) for v in p)] for p in data] == [1, 2, 3]
    features = keywords["features"]
    assert features["forest_score"].tolist()[:2] == [0.93, 0.11] and features["reason"].tolist()[0] == ""
    true, false, unknown = (np.array(c) for c in keywords["border_color"])
    assert np.linalg.norm(true[:3] - to_rgb(figures.TRUE_COLOUR)) < 0.1
    assert np.linalg.norm(false[:3] - to_rgb(figures.FALSE_COLOUR)) < 0.2 and to_hex(unknown) == figures.GREY


def test_below_the_picture_stands_what_a_value_means(folder):
    """napari says the row of `features` whose `index` is the value under the pointer."""
    found = named(folder)
    ledger, pieces = (found[name][1]["features"].set_index("index") for name in ("ledger", "candidates by score"))
    assert set(np.unique(fake.arrays()["ledger"])) <= set(ledger.index)
    assert ledger.meaning[6] == figures.LEDGER_MEANINGS[6]
    assert pieces.forest_score.tolist()[:2] == [0.93, 0.11] and list(pieces.index) == [1, 2, 3]


def test_what_is_missing_is_left_out(folder, tmp_path):
    (tmp_path / "case 1 ct.nii.gz").unlink()
    (folder / "ledger.nii.gz").unlink()
    (folder / "lesions.csv").unlink()
    found = named(folder)
    assert list(found) == ["liver probability", "tumor probability", "labels", "candidates by score"]
    assert "no longer there" in found["labels"][1]["metadata"]["no_ct"]
    empty = named(fake.result(tmp_path / "no liver", "none", status="no liver"))
    assert "candidates" not in empty and not empty["labels"][0].any()
    with pytest.raises(Refused, match="no result.json"):
        qa.layers(tmp_path)


def test_contact_sheet_shows_the_same_layers(folder, tmp_path):
    path = qa.contact_sheet(folder)
    assert path == folder / "layers.png"
    shown = matplotlib.image.imread(path)[..., :3]
    tumor = np.array(to_rgb(figures.LEDGER_COLOURS[7])) * 0.7
    assert shown.std() > 0.15 and (np.abs(shown - to_rgb(figures.TUMOR_COLOUR)).max(-1) < 0.25).sum() > 500
    assert (np.abs(shown - (tumor + 0.3 * 0.4)).max(-1) < 0.12).any(), "what the boundary added"
    for name, colour in qa.BOUNDARY.values():
        assert (np.abs(shown - to_rgb(colour)).max(-1) < 0.02).sum() > 500, name
    assert (
        qa.contact_sheet(fake.result(tmp_path / "n", "none", status="no liver"), tmp_path / "x.png").stat().st_size
        > 1000
    )


def test_view_without_a_display_writes_the_sheet_and_says_so(folder, tmp_path, monkeypatch, caplog):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert qa.view(folder, tmp_path / "sheet.png") == tmp_path / "sheet.png"
    assert "there is no display" in caplog.text and (tmp_path / "sheet.png").exists()
    assert qa.view(tmp_path) == folder / "layers.png", "of a folder of results the first"
    (tmp_path / "none").mkdir()
    with pytest.raises(Refused, match="no result"):
        qa.view(tmp_path / "none")


def test_reader_takes_result_folders_only(folder, tmp_path):
    assert qa.reader(str(tmp_path)) is None and qa.reader(str(folder / "labels.nii.gz")) is None
    assert qa.reader([str(folder)]) is None
    assert len(qa.reader(str(folder))(str(folder))) == 9


def test_phantom_sample():
    small = phantom.PRESETS["demo"]
    (ct, about, kind), (truth, labelled, _) = qa.phantom_layers()
    assert kind == "image" and ct.shape == truth.shape == (len(ct), small.matrix, small.matrix)
    assert set(np.unique(truth)) <= {0, 1, 2} and about["scale"] == labelled["scale"]


def test_manifest_points_at_what_is_there():
    npe2 = pytest.importorskip("npe2", reason="napari is not installed")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    for command in manifest.contributions.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    assert (
        manifest.contributions.readers[0].accepts_directories and manifest.contributions.sample_data[0].key == "phantom"
    )


def test_what_to_check_first():
    """Near the threshold first, in steps; within a step the small; then what touches the edge; the unscored last."""
    rows = {
        "candidate": [1, 2, 3, 4, 5, 6],
        "kept": [True, True, False, True, False, False],
        "forest_score": [0.95, 0.52, 0.49, 0.53, np.nan, 0.10],
        "volume_ml": [9.0, 3.0, 1.0, 3.0, 0.1, 0.1],
        "touches_border": [False, False, False, True, False, False],
    }
    table = pd.DataFrame(rows)
    assert worklist.threshold(table) == pytest.approx(0.505)
    assert worklist.order(table).candidate.tolist() == [3, 4, 2, 6, 1, 5]
    assert worklist.order(table, at=0.94).candidate.tolist() == [1, 4, 2, 3, 6, 5]
    assert worklist.threshold(table[table.kept]) == pytest.approx(0.52)
    assert worklist.threshold(table[:0]) == 0.5 and len(worklist.order(table[:0])) == 0


def test_cases_of_an_experiment_of_a_folder_and_beside_a_result(tmp_path):
    made = [fake.result(tmp_path / "e" / "results" / f"case {n}", f"case {n}") for n in (10, 2)]
    (tmp_path / "e" / "results" / ".case 3.part").mkdir()
    (tmp_path / "e" / "results" / ".case 3.part" / "result.json").touch()
    for path in (tmp_path / "e", tmp_path / "e" / "results", made[0]):
        assert [p.name for p in worklist.cases(path)] == ["case 2", "case 10"], path
    with pytest.raises(Refused, match="no result"):
        worklist.cases(tmp_path)


def test_hidden_layers_are_read_when_they_are_looked_at(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        reading.ResultFolder,
        "volume",
        lambda self, name, was=reading.ResultFolder.volume: read.append(name) or was(self, name),
    )
    found = named(folder)
    assert set(read) == {"labels"}
    after, before = found["after boundary"][0], found["before boundary"][0]
    assert after.shape == fake.SHAPE and read.count("ledger") == 0
    codes = fake.arrays()["ledger"]
    assert after[7].dtype == np.uint8 and after[7].shape == fake.SHAPE[1:] and read.count("ledger") == 0
    np.testing.assert_array_equal(np.asarray(after[7]) > 0, np.isin(codes[7], (2, 3, 7)))
    np.testing.assert_array_equal(after[7:9, 3] > 0, np.isin(codes[7:9, 3], (2, 3, 7)))
    np.testing.assert_array_equal(before, np.isin(codes, (2, 3, 8, 24)))
    np.asarray(found["ledger"][0])
    assert read.count("ledger") == 1, "once for all three"


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize(
    "slope, inter, kind", [(1, 0, np.int16), (1, -1024, np.int16), (1, 40000, np.float32), (0.5, 1, np.float32)]
)
def test_a_ct_is_mapped_or_read_and_never_blown_up(tmp_path, slope, inter, kind, suffix):
    raw = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(raw, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, tmp_path / f"ct.{suffix}")
    array, spacing_mm, _ = reading.canonical(nibabel.load(tmp_path / f"ct.{suffix}"))
    assert array.dtype == kind and spacing_mm == (3.0, 2.0, 1.0)
    base = array
    while isinstance(base.base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) == (suffix == "nii" and (slope, inter) == (1, 0)), "mapped where it can be"
    np.testing.assert_allclose(array, (raw.astype(float) * slope + inter).transpose(2, 1, 0)[:, ::-1, ::-1])


@pytest.mark.gui
def test_the_window_shows_it(folder, make_napari_viewer):
    """A real napari: opened by the plugin's reader, right scale and colours, and a picture with something on it."""
    import npe2

    manager = npe2.PluginManager.instance()
    if "liver-workbench" not in manager:
        manager.register(npe2.PluginManifest.from_file(MANIFEST))
    viewer = make_napari_viewer(show=True)
    viewer.open(str(folder), plugin="liver-workbench")
    assert [layer.name for layer in viewer.layers] == list(named(folder))
    viewer.layers.clear()
    qa.add(viewer, folder)
    for layer in viewer.layers:
        assert tuple(layer.scale) == pytest.approx(fake.SPACING)
    assert viewer.dims.current_step[0] == 7 and viewer.canvas.overlays.scale_bar.visible
    labels, ledger = viewer.layers["labels"], viewer.layers["ledger"]
    assert (
        to_hex(labels.get_color(2)).upper() == figures.TUMOR_COLOUR
        and to_hex(ledger.get_color(6)).upper() == figures.LEDGER_COLOURS[6]
    )
    assert viewer.layers["candidates"].world_to_data((35.0, 30.0, 19.5)) == pytest.approx((7, 15, 13))
    viewer.layers["CT (HU)"].visible = True
    plain = viewer.screenshot(flash=False).astype(int)
    ledger.visible = True
    with_ledger = viewer.screenshot(flash=False).astype(int)
    assert plain[..., :3].std() > 10
    changed = (np.abs(plain - with_ledger).max(-1) > 30).mean()
    assert 0.002 < changed < 0.5
    near_tumor = np.abs(with_ledger[..., :3] - 255 * np.array(to_rgb(figures.TUMOR_COLOUR))).max(-1) < 60
    assert near_tumor.sum() > 50


# -- the panel, in a real napari --------------------------------------------------------------------------------------


@pytest.fixture
def window(tmp_path, make_napari_viewer):
    """A viewer with the panel on two oblique results, the second open, opened as the plugin's own command does."""
    places = [fake.result(tmp_path / f"case {n}", f"case {n}", oblique=True) for n in (1, 2)]
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1400, 900)
    _, panel = viewer.window.add_plugin_dock_widget("liver-workbench", "Review")
    panel.open(places[1])
    return viewer, panel, places


def press(viewer, key: str) -> None:
    """The key as the window system sends it to the picture, whichever layer is active."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    shift = Qt.KeyboardModifier.ShiftModifier if key.startswith("Shift-") else Qt.KeyboardModifier.NoModifier
    QTest.keyClick(viewer.window._qt_viewer.canvas.native, getattr(Qt.Key, f"Key_{key[-1]}"), shift)


def test_the_panel_jumps_to_what_to_check_first(window):
    viewer, panel, _ = window
    assert [panel.table.item(n, 0).text() for n in range(3)] == ["2", "1", "3"] and panel.candidate() == 2
    assert viewer.dims.point == pytest.approx((25.0, 50.0, 33.0)) and viewer.dims.current_step[0] == 5
    assert viewer.scene.camera.center[-2:] == pytest.approx((50.0, 33.0))
    press(viewer, "J")
    assert panel.candidate() == 1 and viewer.dims.point == pytest.approx((35.0, 30.0, 19.5))
    assert viewer.layers["candidates"].selected_data == {0}
    press(viewer, "H")
    assert viewer.dims.order == (1, 0, 2) and viewer.scene.camera.orientation2d[0] == "up", "the head is up"
    assert viewer.scene.camera.center[-2:] == pytest.approx((35.0, 19.5))
    press(viewer, "K")
    panel.table.selectRow(2)
    assert viewer.dims.point == pytest.approx((45.0, 24.0, 36.0))


def test_labels_at_another_point_by_hand():
    """Two lesions, one of them drawn wider than its candidate; a third candidate was rejected. Kept instead: 2 and 3."""
    labels, numbers = np.ones((1, 3, 12), np.uint8), np.zeros((1, 3, 12), np.int16)
    labels[0, :, 0:3] = labels[0, 1, 5:7] = 2
    numbers[0, :, 0:2], numbers[0, 1, 5:8], numbers[0, 1, 9:11] = (
        1,
        2,
        3,
    )  # the boundary stage took a voxel off the second
    out = worklist.labels_at(labels, numbers, [1, 2], [2, 3])
    assert out[0, 1].tolist() == [1, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2, 1] and labels[0, 0, 0] == 2, "a copy"
    assert np.array_equal(worklist.labels_at(labels, numbers, [1, 2], [1, 2]), labels)
    numbers[0, 0, 2] = 3  # the first lesion was drawn into a voxel of the third candidate
    out = worklist.labels_at(labels, numbers, [1, 2], [2, 3])
    assert out[0, 1, 9] == 2 and out[0, 0, :3].tolist() == [1, 1, 2]
    lesions = pd.DataFrame({"forest_score": [0.4, 0.7, 0.1], "volume_ml": [1.0, 1.0, 90.0]})
    info = {"operating_points": {"f1": 0.5}, "largest_ml": 60.0}
    assert worklist.kept_at(lesions, info, "f1").tolist() == [False, True, True]


def test_another_operating_point_is_shown_in_the_table_and_the_picture(window):
    viewer, panel, places = window
    assert not panel.point_row.isVisible(), "an earlier version's result names no points"
    file = places[0] / "result.json"
    told = {
        "operating_point": "dice",
        "operating_points": {"recall": 0.05, "dice": 0.5, "f1": 0.95},
        "largest_ml": 50.0,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | told | {"forest_threshold": 0.5}))
    panel.show_case(0)
    assert panel.point_row.isVisible() and panel.point.currentText() == "dice"
    verdicts_of = lambda: dict((panel.table.item(n, 0).text(), panel.table.item(n, 4).text()) for n in range(3))
    numbers, own = (np.asarray(reading.result(places[0]).volume(name)[0]) for name in ("candidates", "labels"))
    assert verdicts_of()["1"] == "kept" and verdicts_of()["2"] == "rejected"
    panel.point.setCurrentText("recall")
    assert verdicts_of()["1"] == verdicts_of()["2"] == "kept" and not viewer.layers["labels"].visible
    shown = np.asarray(viewer.layers["labels at recall"].data)
    assert (shown[numbers == 2] == 2).all() and np.array_equal(shown[numbers != 2], own[numbers != 2])
    panel.point.setCurrentText("f1")
    assert "kept" not in verdicts_of().values() and "labels at recall" not in viewer.layers
    assert not (np.asarray(viewer.layers["labels at f1"].data)[numbers == 1] == 2).any()
    panel.point.setCurrentText("dice")
    assert not [layer.name for layer in viewer.layers if layer.name.startswith("labels at")]
    assert viewer.layers["labels"].visible and verdicts_of()["2"] == "rejected"
    assert np.array_equal(reading.result(places[0]).volume("labels")[0], own), "the result on disk stays"


def test_windows_stages_and_cases_are_turned_through(window):
    viewer, panel, places = window
    assert tuple(viewer.layers["CT (HU)"].contrast_limits) == figures.limits("liver")
    press(viewer, "D")
    assert tuple(viewer.layers["CT (HU)"].contrast_limits) == figures.limits("tumor")

    def shown() -> set[str]:
        return {layer.name for layer in viewer.layers if layer.visible}

    assert shown() == {"CT (HU)", "labels", "candidates"}
    press(viewer, "G")
    assert shown() == {"CT (HU)"}
    for button in panel.sets["Stage"].buttons():
        button.click()
        if button.text() == "boundary":
            assert shown() == {"CT (HU)", "before boundary", "after boundary"}
            assert viewer.layers["after boundary"].contour == 1
    press(viewer, "Shift-J")
    assert panel.case.path == places[1], "there is no next one"
    press(viewer, "Shift-K")
    assert panel.case.path == places[0] and viewer.layers["labels"].metadata["case"] == "case 1"
    assert "case 1 of 2, 0 of 3 lesions judged" in panel.state.text()


def test_the_view_that_was_chosen_stays_with_the_next_case(window):
    viewer, panel, places = window
    panel._stage("ledger")
    press(viewer, "D")
    press(viewer, "H")
    press(viewer, "Shift-K")
    assert panel.case.path == places[0]
    assert {layer.name for layer in viewer.layers if layer.visible} == {"CT (HU)", "ledger"}
    assert tuple(viewer.layers["CT (HU)"].contrast_limits) == figures.limits("tumor")
    assert viewer.dims.order == (1, 0, 2) and viewer.scene.camera.orientation2d[0] == "up"
    assert [panel.sets[which].checkedButton().text() for which in panel.sets] == ["ledger", "tumor", "coronal"]
    viewer.dims.ndisplay = 3
    press(viewer, "H")
    assert viewer.dims.ndisplay == 2 and viewer.dims.order == (2, 0, 1), "a plane is seen in two dimensions"


def test_in_3d_the_tumor_is_seen_in_a_veil_of_liver_and_2d_is_as_it_was(window):
    viewer, panel, places = window
    layers = viewer.layers

    def state() -> list:
        return [(x.name, x.visible, x.opacity) for x in layers] + [layers.selection.active.name]

    def tumor() -> int:  # orange, shaded
        red, _, blue = np.moveaxis(viewer.screenshot(flash=False)[..., :3].astype(int), -1, 0)
        return int(((red > 90) & (blue < red / 4)).sum())

    layers["labels"].opacity, layers["candidates"].visible = 0.7, False
    press(viewer, "J")
    was = state()
    viewer.dims.ndisplay = 3
    assert not layers["CT (HU)"].visible and layers["labels"].visible and layers["liver in 3D"].opacity < 0.5
    assert layers["labels"].colormap.color_dict[1][3] == 0 and layers["ledger"].colormap.color_dict[1][3] == 0
    assert layers["liver in 3D"].visible
    seen = tumor()
    layers["labels"].visible = False
    assert seen > tumor() + 50, "it lies within the liver"
    viewer.dims.ndisplay = 2
    assert state() == was and layers["labels"].colormap.color_dict[1][3] > 0
    panel._stage("CT")
    viewer.dims.ndisplay = 3
    assert layers["labels"].visible
    press(viewer, "Shift-K")
    assert panel.case.path == places[0] and viewer.dims.ndisplay == 2
    assert {x.name for x in layers if x.visible} == {"CT (HU)"}
    panel.correct()
    viewer.dims.ndisplay = 3
    viewer.cursor._view_direction = np.array([1.0, 0.0, 0.0])  # as the pointer's first move over the picture leaves it
    panel._stage("ledger")
    viewer.dims.ndisplay = 2
    assert {x.name for x in layers if x.visible} == {"CT (HU)", "ledger"}


def test_the_pointer_asks_what_is_shown_and_the_keys_work_there(window):
    viewer, panel, places = window
    asked = {"CT": "CT (HU)", "maps": "tumor probability", "candidates": "candidates by score", "ledger": "ledger",
             "boundary": "after boundary", "result": "candidates"}  # fmt: skip
    for stage, name in asked.items():
        panel._stage(stage)
        active = viewer.layers.selection.active
        assert active.visible and active.name == name
        for key, verdict in (("T", "accept"), ("R", "reject"), ("W", "needs edit"), ("U", None)):
            press(viewer, key)
            said = verdicts.read(places[1]).of(panel.sha).get(2)
            assert (said.verdict if said else None) == verdict
        press(viewer, "J")
        press(viewer, "K")
        assert panel.candidate() == 2
    panel._stage("ledger")
    press(viewer, "J")
    meaning = viewer.layers["ledger"].get_status((35, 30, 19.5), world=True)["value"]
    assert meaning == "2; meaning: tumor (cascade, unchanged)"


def test_a_large_lesion_is_written_out():
    from workbench.lab.qa.panel import _ml

    assert [_ml(ml) for ml in (0.0234, 2.36, 9.96, 62.3, 123.4, 1234.5)] == ["0.023", "2.4", "10", "62", "123", "1234"]


def test_verdicts_are_saved_and_come_back(window, make_napari_viewer):
    viewer, panel, places = window
    panel.who.setText("Ann")
    panel.note.setText("a vessel")
    press(viewer, "R")
    press(viewer, "J")
    assert panel.note.text() == ""
    press(viewer, "T")
    said = verdicts.read(places[1]).of(verdicts.fingerprint(places[1]))
    assert {c: (v.verdict, v.note, v.who) for c, v in said.items()} == {
        2: ("reject", "a vessel", "Ann"),
        1: ("accept", "", "Ann"),
    }
    panel.note.setText("certain")
    panel.note.editingFinished.emit()
    press(viewer, "Shift-K")
    assert not panel.review.verdicts and panel.table.item(0, 5).text() == ""
    press(viewer, "Shift-J")
    assert [panel.table.item(n, 5).text() for n in range(3)] == ["✗ reject", "✓ accept", ""]
    assert panel.note.text() == "a vessel" and "2 of 3 lesions judged" in panel.state.text()
    assert {v.candidate: v.note for v in panel.review.verdicts} == {1: "certain", 2: "a vessel"}
    press(viewer, "U")
    assert panel.table.item(0, 5).text() == "" and len(verdicts.read(places[1]).verdicts) == 1
    table = pd.read_csv(places[1] / "lesions.csv")
    table.loc[0, "forest_score"] = 0.4
    table.to_csv(places[1] / "lesions.csv", index=False)
    panel.open(places[1])
    assert "the result has changed since 1 verdict " in panel.state.text()
    assert [panel.table.item(n, 5).text() for n in range(3)] == ["", "", ""]


def test_corrected_labels_are_painted_saved_and_come_back(window, monkeypatch):
    from qtpy.QtWidgets import QMessageBox

    viewer, panel, places = window
    panel.correct()
    layer = viewer.layers[qa.CORRECTED]
    assert not viewer.layers["labels"].visible and layer.visible and tuple(layer.scale) == pytest.approx(fake.SPACING)
    layer.brush_size = 1
    layer.paint((2, 4, 30), 2)
    assert panel.painted and viewer.layers["labels"].data[2, 4, 30] != 2, "the result's own stay"
    asked = []
    answers = [QMessageBox.StandardButton.Cancel, QMessageBox.StandardButton.Save]
    monkeypatch.setattr(QMessageBox, "question", lambda *a: asked.append(a) or answers[len(asked) - 1])
    press(viewer, "Shift-K")
    assert panel.case.path == places[1] and panel.choice.currentIndex() == 1 and layer in viewer.layers
    press(viewer, "Shift-K")
    assert panel.case.path == places[0] and len(asked) == 2
    expected = fake.arrays()["labels"].copy()
    expected[2, 4, 30] = 2
    np.testing.assert_array_equal(verdicts.corrected(places[1]).array.numpy(), expected)
    (file,) = (places[1] / "verdicts").glob("labels-*.nii.gz")
    own = nibabel.load(places[1] / "labels.nii.gz")
    assert nibabel.load(file).affine.tobytes() == own.affine.tobytes()
    press(viewer, "Shift-J")
    np.testing.assert_array_equal(viewer.layers[qa.CORRECTED].data, expected)
    assert "labels corrected by" in panel.state.text() and not panel.painted


def test_painted_labels_that_were_thrown_away_hold_nobody(window, monkeypatch):
    from qtpy.QtWidgets import QMessageBox

    viewer, panel, places = window
    monkeypatch.setattr(QMessageBox, "question", lambda *a: QMessageBox.StandardButton.Save)
    panel.keep()
    assert "no layer" in panel.said.text()
    panel.correct()
    viewer.layers[qa.CORRECTED].paint((2, 4, 30), 2)
    viewer.layers.remove(qa.CORRECTED)
    press(viewer, "Shift-K")
    assert panel.case.path == places[0] and not (places[1] / "verdicts").exists()
    assert panel.said.text() == "", "what was said was said of the case before"


@pytest.mark.parametrize("how", ["hidden", "closed", "opened again"])
def test_painted_labels_are_asked_for_also_without_their_panel(window, monkeypatch, how):
    from qtpy.QtWidgets import QMessageBox

    viewer, panel, places = window
    panel.correct()
    layer = viewer.layers[qa.CORRECTED]
    layer.paint((2, 4, 30), 2)
    layer.name = "mine"
    dock = panel.parentWidget()
    dock.close() if how == "hidden" else dock.destroyOnClose()
    if how == "opened again":
        _, panel = viewer.window.add_plugin_dock_widget("liver-workbench", "Review")
    asked = []
    monkeypatch.setattr(QMessageBox, "question", lambda *a: asked.append(a) or QMessageBox.StandardButton.Cancel)
    assert not viewer.window._qt_window.close() and len(asked) == 1 and viewer.window._qt_window.isVisible()
    if how == "opened again":
        panel.open(places[0])
        assert len(asked) == 2 and layer in viewer.layers
    press(viewer, "Shift-S")
    assert verdicts.corrected(places[1]).array[2, 4, 30] == 2 and not (places[0] / "verdicts").exists()
    assert panel.may_leave() and len(asked) < 3


def test_a_painted_layer_may_have_any_name(window, monkeypatch):
    from qtpy.QtWidgets import QMessageBox

    viewer, panel, places = window
    panel.correct()
    layer = viewer.layers[qa.CORRECTED]
    layer.name = "mine"
    layer.paint((2, 4, 30), 2)
    panel._stage("CT")
    assert not layer.visible
    panel._stage("result")
    assert layer.visible and not viewer.layers["labels"].visible
    panel.correct()
    assert qa.CORRECTED not in viewer.layers and viewer.layers.selection.active is layer, "it is painted on further"
    monkeypatch.setattr(QMessageBox, "question", lambda *a: QMessageBox.StandardButton.Save)
    press(viewer, "Shift-K")
    assert panel.case.path == places[0] and verdicts.corrected(places[1]).array[2, 4, 30] == 2


def test_damaged_verdicts_are_said_and_the_list_stays(window, caplog):
    viewer, panel, places = window
    (places[0] / "verdicts").mkdir()
    (places[0] / "verdicts" / "verdicts.json").write_text("{")
    press(viewer, "Shift-K")
    assert panel.case.path == places[1] and panel.choice.currentIndex() == 1
    assert "damaged" in panel.said.text() and "damaged" in caplog.text


def test_the_whole_window_is_a_picture(window):
    viewer, panel, _ = window
    viewer.layers["candidates by score"].visible = True
    shot = viewer.screenshot(canvas_only=False, flash=False)[..., :3].astype(int)
    assert shot.shape[0] >= 700 and shot.shape[1] >= 1000 and shot.std() > 20
    canvas = viewer.screenshot(flash=False)[..., :3].astype(int)
    assert canvas.std() > 10 and (np.abs(canvas - 255 * np.array(to_rgb(figures.FALSE_COLOUR))).max(-1) < 90).sum() > 30
    assert panel.isVisible() and panel.table.height() >= 160


def test_napari_leaves_what_is_hidden_on_disk(tmp_path, make_napari_viewer, monkeypatch):
    folder, read = fake.result(tmp_path / "r", "c"), []
    was = reading.ResultFolder.volume
    monkeypatch.setattr(reading.ResultFolder, "volume", lambda self, name: read.append(name) or was(self, name))
    viewer = make_napari_viewer()
    qa.add(viewer, folder)
    assert read == ["labels"]
    viewer.layers["after boundary"].visible = True
    viewer.layers["tumor probability"].visible = True
    assert read == ["labels", "ledger", "tumor_probability"]
