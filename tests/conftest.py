"""What all tests share: shapes checked, threads kept apart, and one place that knows where windows and real CT are."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import browser
import pytest
import shapes

os.environ.setdefault("QT_API", "pyside6")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

shapes.install()  # before anything imports the package

ROOT = Path(__file__).resolve().parents[1]
REALDATA = ROOT.parent / "shared" / "realdata"  # beside the checkout: not ours to ship


def pytest_configure(config):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        import torch

        torch.set_num_threads(1)  # one core a worker; more would only wait for one another


def _why_no_window() -> str:
    """Empty when a window can be opened here, else what is missing."""
    spec = importlib.util.spec_from_file_location("display", ROOT / ".ci" / "display.py")
    display = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(display)
    if packages := display.missing():
        return f"no window can be opened: install {' '.join(packages)}"
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no display: `make test` brings one, or put `xvfb-run -a` before the command"
    return ""


def pytest_collection_modifyitems(items):
    """Tests that need a window, a browser or real CT are marked so; without their means they are skipped, with the reason."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"make_napari_viewer", "make_napari_viewer_proxy", "qtbot", "qapp"}:
            item.add_marker(pytest.mark.gui)
        if "realdata" in fixtures:
            item.add_marker(pytest.mark.realdata)
    for mark, why_not in (("gui", _why_no_window), ("browser", browser.why_not)):
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and not os.environ.get("REQUIRE_DISPLAY") and (why := why_not()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def gpu():
    """A GPU, or a pretended one."""
    import pretend
    import torch

    with nullcontext() if torch.cuda.is_available() else pretend.gpu():
        yield


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real CT (cohort.csv and one folder a scan)."""
    if not (REALDATA / "cohort.csv").is_file():
        pytest.skip("real CT is not beside this checkout (../shared/realdata)")
    return REALDATA


@pytest.fixture(scope="session")
def small_phantom():
    """One phantom case of the demo's size, the same in every test; whoever changes it takes a copy."""
    from workbench.data import phantom

    return phantom.generate(seed=7, preset="demo")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program; gives (exit status, standard output, standard error)."""

    from workbench.__main__ import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["workbench", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


# napari's pytest plugin has two fixtures that load napari and Qt for every test: nine seconds a worker, and an error in
# each where Qt's libraries are missing. Under the same names they stand aside here, unless the test opens a window.


@pytest.fixture(autouse=True)
def _clean_themes():
    return None


@pytest.fixture(autouse=True)
def _disable_qt_warnings(request):
    if request.node.get_closest_marker("gui"):
        from napari._qt import qt_main_window

        request.getfixturevalue("monkeypatch").setattr(qt_main_window, "SHOW_QT_WARNING", False)


@pytest.fixture(scope="session")
def toy_cohort(tmp_path_factory) -> Path:
    """Manifest of the toy patients of tiny.py."""
    import tiny

    return tiny.cohort(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def trained(toy_cohort, tmp_path_factory):
    """An experiment with every stage trained on the toy patients, for reading only."""
    import tiny

    from workbench import experiment
    from workbench.experiment import pipeline
    from workbench.lab import results

    made = experiment.Experiment.create(tmp_path_factory.mktemp("trained"), toy_cohort, tiny.settings(), "cpu")
    pipeline.train(made, "all", results.keep)
    return made


@pytest.fixture(scope="session")
def models(trained):
    from workbench.experiment import segmentation

    return segmentation.Models.load(trained.folder, "cpu")


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """Manifest of seven other toy patients. To learn from: two whose tumors are to be left out, one with all labelled, two whose tumors were painted over,
    the last of them without any labels. Held out: two with all labelled."""
    import pandas as pd
    import tiny

    from workbench.data import cohort
    from workbench.data.readers import nifti

    place = tmp_path_factory.mktemp("healthy")
    rows = []
    for seed, known in zip(range(100, 107), ("exclude", "exclude", "complete", "none", "none", "complete", "complete")):
        ct, labels = tiny.patient(seed)
        if known == "none":
            ct.array[labels.array == 2] = 110
            labels = labels.with_array(labels.array.clamp(max=1))
        folder = place / ct.name
        folder.mkdir()
        nifti.write(ct, folder / "ct.nii.gz")
        nifti.write(labels, folder / "labels.nii.gz")
        told = f"{ct.name}/labels.nii.gz" if seed != 104 else ""
        rows.append([ct.name, ct.name, f"{ct.name}/ct.nii.gz", told, known, "train" if seed < 105 else "test"])
    pd.DataFrame(rows, columns=[*cohort.COLUMNS, "tumor_labels", "split"]).to_csv(place / "manifest.csv", index=False)
    return place / "manifest.csv"
