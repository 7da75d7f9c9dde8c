"""MLflow as a view of the experiment folder: complete, idempotent, and never in the way."""

import ast
import shutil
import sqlite3
import sys
from pathlib import Path

import fake_folders as fake
import pytest

from workbench import folders, tracking
from workbench.volume import Refused


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A synced store and its experiment folder; making its tables takes seconds, so the tests share it."""
    place = tmp_path_factory.mktemp("tracking")
    experiment = fake.experiment(place / "it's exp", results=False)
    (experiment / "figures" / "ablation.png").write_bytes(fake.PREVIEW)
    report = tracking.sync(experiment, place / "mlruns")
    assert report.ok, report.reason
    return experiment, place / "mlruns", report


def runs(experiment: Path, mlruns: Path) -> list:
    return tracking._Store(mlruns).runs(tracking.folder_key(experiment))


def by_name(experiment, mlruns) -> dict:
    return {r.info.run_name: r for r in runs(experiment, mlruns) if "workbench.superseded" not in r.data.tags}


def test_everything_of_the_folder_is_in_the_store(store):
    experiment, mlruns, report = store
    found = by_name(experiment, mlruns)
    stages = ["cohort", "liver", "tumor", "selection", "forest", "boundary", "metrics"]
    assert set(found) == {"it's exp", *stages, "liver fold 0", "liver fold 1", "tumor fold 0", "tumor fold 1"}
    parent = found["it's exp"]
    assert all(found[s].data.tags["mlflow.parentRunId"] == parent.info.run_id for s in stages)
    assert found["liver fold 1"].data.tags["mlflow.parentRunId"] == found["liver"].info.run_id
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    assert parent.data.params["liver.steps"] == "100" and parent.data.params["seed"] == "1"
    tags = parent.data.tags
    assert (tags["workbench.patients"], tags["workbench.device"], tags["workbench.dataset_sha256"]) == (
        "12",
        "cpu",
        "ab" * 32,
    )
    assert parent.inputs.dataset_inputs[0].dataset.name == "cohort"
    liver = found["liver"]
    assert liver.data.params["net.width"] == "8" and liver.data.params["input.cohort"] == "0" * 64
    assert liver.data.metrics == {"dice": 0.95, "fold0_dice": 0.94, "seconds": 3.0}, "what is no number is left out"
    assert parent.data.metrics["forest.recall"] == 0.98
    assert (liver.info.end_time - liver.info.start_time) == 3000
    client = tracking._Store(mlruns).client
    curve = client.get_metric_history(found["liver fold 1"].info.run_id, "loss")
    rows = fake.tables()["curves"].query("fold == 1")
    assert [(m.step, m.value) for m in curve] == list(zip(rows["step"], rows["loss"]))
    assert len(client.get_metric_history(found["boundary"].info.run_id, "loss")) == 12

    def files(name, path=None):
        return {a.path for a in client.list_artifacts(found[name].info.run_id, path)}

    assert files("liver fold 0", "model") == {"model/fold0.safetensors"} and "table.csv" in files("selection")
    assert {"figures", "notebooks", "experiment.json"} <= files("it's exp")
    assert files("it's exp", "notebooks") == {"notebooks/02_liver.ipynb"}
    assert (mlruns / "mlflow.db").is_file() and (mlruns / "artifacts").is_dir()
    assert str(report).startswith("MLflow: 15 added, 0 stages unchanged")


def test_a_second_sync_adds_nothing_and_a_new_stage_is_caught_up(store):
    experiment, mlruns, _ = store
    before, files = len(runs(experiment, mlruns)), sorted(mlruns.rglob("*"))
    again = tracking.sync(experiment, mlruns)
    assert again.ok and again.added == () and again.unchanged == 7
    assert len(runs(experiment, mlruns)) == before and sorted(mlruns.rglob("*")) == files

    fake._stage(experiment, "radiomics", {"features": 728}, {"engine": "torch"})
    fake._stage(experiment, "forest", {"recall": 0.99}, {"trees": 300}, seconds=5)
    later = tracking.sync(experiment, mlruns)
    assert later.ok and set(later.added) == {"radiomics", "forest"} and later.unchanged == 6
    old, new = sorted(
        (r for r in runs(experiment, mlruns) if r.info.run_name == "forest"), key=lambda r: int(r.data.params["trees"])
    )
    assert old.data.tags["workbench.superseded"] == "true" and "workbench.superseded" not in new.data.tags
    assert new.data.tags["workbench.stage_sha256"] == folders.stage_hashes(experiment)["forest"]


def test_a_sync_that_was_cut_short_is_done_again(store, monkeypatch):
    experiment, mlruns, _ = store
    copy = shutil.copytree(experiment, experiment.parent / "cut short")
    real = tracking._Store.log

    def dies(self, run, parameters=None, metrics=None):
        if parameters and "band_mm" in parameters:  # the boundary stage, after six others
            raise OSError("disk gone")
        return real(self, run, parameters, metrics)

    monkeypatch.setattr(tracking._Store, "log", dies)
    broken = tracking.sync(copy, mlruns)
    assert not broken.ok and "disk gone" in broken.reason and "next sync catches up" in str(broken)
    monkeypatch.setattr(tracking._Store, "log", real)
    assert tracking.sync(copy, mlruns).ok
    found = by_name(copy, mlruns)
    stages = {r.data.tags.get("workbench.stage") for r in found.values() if "workbench.stage_sha256" in r.data.tags}
    assert stages == set(folders.experiment(copy).stages)
    assert sum("mlflow.parentRunId" not in r.data.tags for r in runs(copy, mlruns)) == 1
    assert found["boundary"].data.params["band_mm"] == "4.0" and tracking.sync(copy, mlruns).added == ()


def test_a_locked_or_dead_store_is_reported_not_raised(store, tmp_path, monkeypatch):
    experiment, mlruns, _ = store
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
    holder = sqlite3.connect(mlruns / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        locked = tracking.sync(experiment, mlruns)
    finally:
        holder.rollback()
        holder.close()
    assert not locked.ok and "locked" in locked.reason and locked.seconds < 5
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "mlflow.db").write_bytes(b"this is no database" * 99)
    assert "not a database" in tracking.sync(experiment, tmp_path / "broken").reason
    (tmp_path / "file").write_text("")
    assert not tracking.sync(experiment, tmp_path / "file").ok
    assert tracking.sync(experiment, mlruns).ok
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    assert (
        "ImportError" in tracking.sync(experiment, mlruns).reason
        or "ModuleNotFoundError" in tracking.sync(experiment, mlruns).reason
    )
    with pytest.raises(Refused, match="no experiment.json"):
        tracking.sync(tmp_path / "nowhere", mlruns)


def test_importing_the_module_does_not_import_mlflow():
    tree = ast.parse(Path(tracking.__file__).read_text())
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) and "mlflow" in ast.unparse(n)]
