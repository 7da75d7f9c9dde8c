"""napari's layers without napari, the contact sheet, and one look at the real window."""

import importlib
import sys
from pathlib import Path

import fake_folders as fake
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from workbench import figures, phantom, qa
from workbench.volume import Refused

MANIFEST = Path(qa.__file__).with_name("napari.yaml")


@pytest.fixture
def folder(tmp_path):
    return fake.result(tmp_path / "case 1 result", "case 1")


def named(folder) -> dict:
    return {keywords["name"]: (data, keywords, kind) for data, keywords, kind in qa.layers(folder)}


@pytest.mark.parametrize("oblique", [False, True])
def test_layers_are_the_canonical_arrays_with_scale_in_mm(tmp_path, oblique):
    folder = fake.result(tmp_path / "r", "c", oblique=oblique)
    found, truth = named(folder), fake.arrays()
    assert [k for k in found] == ["CT (HU)", "liver probability", "tumor probability", "labels", "ledger", "candidates"]
    for name, key in (
        ("CT (HU)", "ct"),
        ("labels", "labels"),
        ("ledger", "ledger"),
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
    true, false, unknown = (np.array(c) for c in keywords["face_color"])
    assert np.linalg.norm(true[:3] - to_rgb(figures.TRUE_COLOUR)) < 0.1
    assert np.linalg.norm(false[:3] - to_rgb(figures.FALSE_COLOUR)) < 0.2 and to_hex(unknown) == figures.GREY


def test_what_is_missing_is_left_out(folder, tmp_path):
    (tmp_path / "case 1 ct.nii.gz").unlink()
    (folder / "ledger.nii.gz").unlink()
    (folder / "lesions.csv").unlink()
    found = named(folder)
    assert list(found) == ["liver probability", "tumor probability", "labels"]
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
    assert (
        qa.contact_sheet(fake.result(tmp_path / "n", "none", status="no liver"), tmp_path / "x.png").stat().st_size
        > 1000
    )


def test_view_without_a_display_writes_the_sheet_and_says_so(folder, tmp_path, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert qa.view(folder, tmp_path / "sheet.png") == tmp_path / "sheet.png"
    assert "there is no display" in capsys.readouterr().err and (tmp_path / "sheet.png").exists()
    with pytest.raises(Refused):
        qa.view(tmp_path)


def test_reader_takes_result_folders_only(folder, tmp_path):
    assert qa.reader(str(tmp_path)) is None and qa.reader(str(folder / "labels.nii.gz")) is None
    assert qa.reader([str(folder)]) is None
    assert len(qa.reader(str(folder))(str(folder))) == 6


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
