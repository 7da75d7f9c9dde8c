"""MLflow as a view of the experiment folder: complete, idempotent, and never in the way."""

import ast
import json
import shutil
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_folders as fake
import numpy as np
import pytest

from workbench.experiment import reading
from workbench.lab import contours, review
from workbench.run import lineage, tracking
from workbench.volume import Refused


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A synced store and its experiment folder; making its tables takes seconds, so the tests share it."""
    place = tmp_path_factory.mktemp("tracking")
    experiment = fake.experiment(place / "it's exp", results=False)
    (experiment / "figures" / "ablation.png").write_bytes(fake.PREVIEW)
    samples = "seconds,cpu_percent,memory_mb,gpu_memory_mb\n2,150,900,0\n4,180,950.5,0\n"
    (experiment / "liver" / "system.csv").write_text(samples)
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
    assert (tags["workbench.patients"], tags["workbench.dataset_sha256"]) == ("12", "ab" * 32)
    for name, context in (("it's exp", "training"), ("liver", "training"), ("metrics", "evaluation")):
        (used,) = found[name].inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("cohort/manifest.csv", ("ab" * 32)[:36])
        assert json.loads(used.dataset.profile)["patients"] == 12 and used.tags[0].value == context
    liver = found["liver"]
    assert liver.data.params["net.width"] == "8" and liver.data.params["input.cohort"] == "0" * 64
    own = {k: v for k, v in liver.data.metrics.items() if not k.startswith("system/")}
    assert own == {"dice": 0.95, "fold0_dice": 0.94, "seconds": 3.0}, "what is no number is left out"
    assert parent.data.metrics["forest.recall"] == 0.98
    assert (liver.info.end_time - liver.info.start_time) == 3000
    client = tracking._Store(mlruns).client
    curve = client.get_metric_history(found["liver fold 1"].info.run_id, "loss")
    rows = fake.tables()["curves"].query("fold == 1")
    assert [(m.step, m.value) for m in curve] == list(zip(rows["step"], rows["loss"]))
    assert len(client.get_metric_history(found["boundary"].info.run_id, "loss")) == 12

    def files(name, path=None):
        return {a.path for a in client.list_artifacts(found[name].info.run_id, path)}

    memory = client.get_metric_history(liver.info.run_id, "system/process_memory_usage_megabytes")
    assert [(m.value, m.timestamp - liver.info.start_time) for m in memory] == [(900.0, 2000), (950.5, 4000)]
    assert not any("gpu" in name for name in liver.data.metrics), "no GPU, no chart of it"
    assert files("liver fold 0") == {"fold0.json"} and "table.csv" in files("selection")
    assert {"figures", "notebooks", "experiment.json"} <= files("it's exp")
    assert files("it's exp", "notebooks") == {"notebooks/02_liver.ipynb"}
    assert (mlruns / "mlflow.db").is_file() and (mlruns / "artifacts").is_dir()
    assert str(report).startswith("MLflow: 15 added, 0 stages unchanged")


def another(experiment, name):
    """Another training of the same kind: its stages are others by their hashes."""
    made = shutil.copytree(experiment, experiment.parent / name)
    for file in made.glob("*/stage.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"another": name}))
    return made


def test_a_copied_experiment_registers_nothing_again(store):
    experiment, mlruns, _ = store
    tracking.sync(experiment, mlruns)
    client = tracking._Store(mlruns).client
    versions, stages = len(client.search_model_versions()), len(reading.experiment(experiment).stages)
    copy = shutil.copytree(experiment, experiment.parent / "moved")
    report = tracking.sync(copy, mlruns)
    assert report.ok and report.added == () and report.unchanged == stages and runs(copy, mlruns) == []
    fake._stage(copy, "boundary", {"assd_gain_mm": 0.5}, {"band_mm": 5.0})
    report = tracking.sync(copy, mlruns)
    assert report.unchanged == stages - 1 and {"moved", "boundary"} <= set(report.added)
    assert {r.info.run_name for r in runs(copy, mlruns)} == {"moved", "boundary"}
    assert len(client.search_model_versions()) - versions <= 1


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
    assert new.data.tags["workbench.stage_sha256"] == reading.stage_hashes(experiment)["forest"]


def test_a_sync_that_was_cut_short_is_done_again(store, monkeypatch):
    experiment, mlruns, _ = store
    copy = another(experiment, "cut short")
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
    assert stages == set(reading.experiment(copy).stages)
    assert sum("mlflow.parentRunId" not in r.data.tags for r in runs(copy, mlruns)) == 1
    assert found["boundary"].data.params["band_mm"] == "4.0" and tracking.sync(copy, mlruns).added == ()


def test_settings_that_were_changed_since_they_were_logged_stand_in_a_tag(store):
    """MLflow lets no parameter be logged anew."""
    experiment, mlruns, _ = store
    copy = another(experiment, "changed")
    assert tracking.sync(copy, mlruns).ok
    file = copy / "experiment.json"
    about = json.loads(file.read_text())
    for steps, tag in ((50, "50"), (100, "100")):
        about["settings"]["liver"]["steps"] = steps
        file.write_text(json.dumps(about | {"manifest_rows": {"a": "0" * 16}}))
        assert tracking.sync(copy, mlruns).ok
        (parent,) = (r for r in runs(copy, mlruns) if "mlflow.parentRunId" not in r.data.tags)
        assert {k: v for k, v in parent.data.tags.items() if k.startswith("changed")} == {"changed.liver.steps": tag}
        assert parent.data.params["liver.steps"] == "100" and not any("rows" in k for k in parent.data.params)


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


def test_two_syncs_at_once_make_one_run_of_a_folder(store, monkeypatch):
    experiment, mlruns, _ = store
    copy = another(experiment, "at once")
    real = tracking._Store.runs

    def slow(self, key):
        found = real(self, key)
        time.sleep(1)
        return found

    monkeypatch.setattr(tracking._Store, "runs", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: tracking.sync(copy, mlruns), range(2))
    assert one.ok and other.ok and sorted([len(one.added), len(other.added)])[0] == 0
    monkeypatch.setattr(tracking._Store, "runs", real)
    assert sum("mlflow.parentRunId" not in r.data.tags for r in runs(copy, mlruns)) == 1

    monkeypatch.setattr(tracking, "TURN_SECONDS", 0.1)
    with tracking._alone(mlruns):
        late = tracking.sync(copy, mlruns)
    assert not late.ok and "another sync holds the store" in late.reason and "next sync catches up" in str(late)


def models(mlruns: Path, name: str) -> list:
    client = tracking._Store(mlruns).client
    found = client.search_model_versions(f"name = '{name}'")  # without their aliases
    return [client.get_model_version(name, v) for v in sorted(int(v.version) for v in found)]


def test_the_champion_follows_its_own_experiment_and_no_other(store):
    experiment, mlruns, _ = store
    mine = [v for v in models(mlruns, "workbench-tumor") if v.tags["workbench.folder"] == str(experiment.resolve())]
    assert [v.aliases for v in mine] == [["champion"]]
    other = another(experiment, "another")
    fake._stage(other, "tumor", {"dice": 0.99}, {"steps": 7})
    assert tracking.sync(other, mlruns).ok
    *_, newest = models(mlruns, "workbench-tumor")
    assert newest.tags["workbench.folder"] == str(other) and newest.aliases == [], (
        "a person moves it to another experiment"
    )
    fake._stage(experiment, "tumor", {"dice": 0.5}, {"steps": 8})
    assert tracking.sync(experiment, mlruns).ok
    *_, newest = models(mlruns, "workbench-tumor")
    assert newest.tags["workbench.folder"] == str(experiment.resolve()) and newest.aliases == ["champion"]


@pytest.fixture(scope="module")
def tracked(trained, tmp_path_factory):
    """The trained toy experiment in a store of its own."""
    mlruns = tmp_path_factory.mktemp("tracked") / "mlruns"
    report = tracking.sync(trained.folder, mlruns)
    assert report.ok, report.reason
    return trained, mlruns


def loaded(mlruns: Path, stage: str):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking.uri(mlruns))
    try:
        return mlflow.pyfunc.load_model(f"models:/workbench-{stage}@champion")
    finally:
        mlflow.set_tracking_uri(before)


def test_each_champion_has_a_signature_and_says_what_its_stage_said(tracked):
    made, mlruns = tracked
    assert not [p for p in mlruns.rglob("*") if p.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth")]
    case = made.cases("test").case.iloc[0]
    hu, _, spacing = made.work(case)
    stored = {stage: made.array(stage, "maps", case).float().numpy() for stage in ("liver", "tumor")}
    given = {"hu": hu.numpy().astype("float32"), "spacing_mm": np.array(spacing)}
    liver = loaded(mlruns, "liver").predict(given)
    np.testing.assert_allclose(liver, stored["liver"], atol=1e-3)  # maps are stored in half precision
    tumor = loaded(mlruns, "tumor").predict(given | {"liver_probability": stored["liver"]})
    np.testing.assert_allclose(tumor, stored["tumor"], atol=5e-3)  # its channel is the stored liver map

    forest = loaded(mlruns, "forest")
    scores = made.table("forest", "scores.csv", dtype=review.AS_TEXT).query("split == 'test'")
    features = made.table("radiomics", "features.csv", dtype=review.AS_TEXT)
    asked = scores[["case", "candidate"]].merge(features, how="left", validate="one_to_one")
    names = forest.metadata.get_input_schema().input_names()
    np.testing.assert_allclose(forest.predict(asked[names]), scores.score, atol=1e-6)

    edge = contours.redrawn(made)[case].edge
    volumes = {"tumor_probability": stored["tumor"], "tumor": review.kept(made, case).numpy()}
    volumes["liver"] = made.array("liver", "masks", case).bool().numpy()
    assert (loaded(mlruns, "boundary").predict(given | volumes) == edge.mask.cpu().numpy()).all()
    with pytest.raises(Exception, match="spacing_mm"):
        loaded(mlruns, "liver").predict({"hu": given["hu"]})


def test_a_result_leads_back_to_the_runs_of_its_models(tracked, tmp_path):
    made, mlruns = tracked
    result = reading.experiment(made.folder).results()[0]
    origins, reason = lineage.of(result, mlruns)
    assert reason == "" and [o.stage for o in origins] == ["liver", "tumor", "forest", "boundary"]
    client = tracking._Store(mlruns).client
    hashes = reading.stage_hashes(made.folder)
    for origin in origins:
        run = client.get_run(origin.run)
        assert run.info.run_name == origin.stage and origin.sha256 == hashes[origin.stage]
        assert origin.model == f"workbench-{origin.stage} 1 @champion"
        (out,) = run.outputs.model_outputs
        assert client.get_logged_model(out.model_id).source_run_id == origin.run
    metrics = client.get_run(by_name(made.folder, mlruns)["metrics"].info.run_id)  # a search leaves its models out
    assert len(metrics.inputs.model_inputs) == 4, "the evaluation names the models that it used"
    assert any(name.startswith("system/process_cpu") for name in metrics.data.metrics)
    assert metrics.data.tags["workbench.versions.torch"]

    none = lineage.of(result, tmp_path / "nowhere")
    assert "no mlflow.db" in none[1] and [o.sha256 for o in none[0]] == [o.sha256 for o in origins]
    assert not (tmp_path / "nowhere").exists(), "asking makes no store"
    with pytest.raises(Refused, match="names no models|no models named"):
        lineage.of(fake.result(tmp_path / "r"))


def test_importing_the_module_does_not_import_mlflow():
    tree = ast.parse(Path(tracking.__file__).read_text())
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) and "mlflow" in ast.unparse(n)]
