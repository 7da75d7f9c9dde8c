"""Sweeps: trials are scored on patients that their models have not learnt from, and no held-out patient takes part."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench import experiment
from workbench.data import files
from workbench.data.files import held
from workbench.experiment import Experiment, pipeline
from workbench.run import scoring, sweep, tracking
from workbench.stages import boundary
from workbench.volume import Refused

pytest.importorskip("optuna", reason="no Optuna: pip install 'liver-workbench[sweep]'")

FOREST = ["forest.max_features=float:0.1:0.9", "forest.criterion=one:gini,log_loss"]
RATE = ["tumor.cascade.fit.rate=one:0.01,1e-7"]


@pytest.fixture
def mlruns(tmp_path) -> Path:
    return tmp_path / "mlruns"


def swept(trained, folder: Path, over, trials: int, mlruns: Path, workers: int = 1, **more) -> pd.DataFrame:
    plan = sweep.prepare(trained.folder, folder, over, device="cpu", **more)
    return sweep.run(plan, trials, workers, "cpu", mlruns)


# -- what is swept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("forest.tres=int:1:9", "forest.tres.*forest.trees"),
        ("trees=int:1:9", "trees.*dotted name"),
        ("folds=int:2:5", "folds"),  # changes what is measured
        ("forest.seed=int:0:9", "forest.seed.*no seed"),
        ("forest.trees=float:1:9", "trees 1.0"),
        ("forest.recall=float:0.5:2", "recall"),
        ("forest.trees=int:9:1", "a lower and a higher"),
        ("forest.max_features=log:0:1", "above 0"),
        ("forest.trees=int:1", "int:LOW:HIGH"),
        ("forest.trees", "no values"),
        ("boundary.grid_mm=one:[[4,2],[4,2,2]]", "grid_mm"),
    ],
)
def test_a_name_or_a_range_that_does_not_fit_is_refused(trained, tmp_path, over, said):
    with pytest.raises(Refused, match=said) as told:
        sweep.prepare(trained.folder, tmp_path / "s", [over], device="cpu")
    assert "\n" not in str(told.value) and not (tmp_path / "s").exists()


def test_what_cannot_go_together_is_refused(trained, tmp_path, mlruns):
    with pytest.raises(Refused, match="forest.trees twice"):
        sweep.prepare(trained.folder, tmp_path / "s", ["forest.trees=int:1:9"] * 2)
    with pytest.raises(Refused, match="forest or boundary, since selection is swept"):
        sweep.prepare(trained.folder, tmp_path / "s", ["selection.keep=int:5:9"], after="tumor")
    plan = sweep.prepare(trained.folder, tmp_path / "s", FOREST, device="cpu")
    with held(plan.folder, shared=True, name=".work.lock"), pytest.raises(Refused, match="in use by process"):
        sweep.run(plan, 1, 1, "cpu", mlruns)  # a worker of a killed sweep is still there
    with pytest.raises(Refused, match="a sweep with other over, first"):
        sweep.prepare(trained.folder, tmp_path / "s", ["selection.keep=int:5:9"], device="cpu")
    half = tmp_path / "half"
    shutil.copytree(trained.folder, half, ignore=shutil.ignore_patterns("selection", "results"))
    about = json.loads((half / "experiment.json").read_text())
    about["manifest"] = os.path.relpath(trained.manifest, half)
    (half / "experiment.json").write_text(json.dumps(about))
    with pytest.raises(Refused, match="selection has not run"):
        sweep.prepare(half, tmp_path / "other", FOREST, device="cpu")


def test_a_settings_file_says_what_is_trained(trained, tmp_path, toy_cohort):
    other = sweep.changed(trained.settings, {"forest.trees": 7, "boundary.grid_mm": [4.0, 2.0, 2.0]})
    assert other.forest == replace(trained.settings.forest, trees=7) and other.boundary.grid_mm == (4.0, 2.0, 2.0)
    assert other.tumor == trained.settings.tumor
    file = tmp_path / "s.json"
    files.write_json(file, asdict(other))
    assert experiment.read_settings(file) == other
    file.write_text('{"forest": {"tres": 3}}')
    with pytest.raises(Refused, match="no setting forest.tres"):
        experiment.read_settings(file)


# -- whom a trial sees ------------------------------------------------------------------------------------------------


def spoiled(trained, folder: Path) -> Path:
    """A copy in which all that is known of the held-out patients is something else."""
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("results"))
    about = json.loads((folder / "experiment.json").read_text())
    about["manifest"] = os.path.relpath(trained.manifest, folder)
    (folder / "experiment.json").write_text(json.dumps(about))
    held_out = set(trained.cases("test").case)
    for file in folder.rglob("*.npy"):
        if file.stem in held_out:
            array = np.load(file)
            np.save(file, np.flip(array, 0) if array.dtype.kind == "f" else np.roll(array, 5, 1))
    for file in folder.rglob("*.csv"):
        table = pd.read_csv(file, dtype={"case": str})
        if "case" in table:
            rows = table.case.isin(held_out)
            for column in table.select_dtypes("float").columns:
                table.loc[rows, column] = 1 - table.loc[rows, column]
            table.to_csv(file, index=False)
    return folder


@pytest.mark.timeout(300)
def test_no_trial_sees_a_held_out_patient(trained, tmp_path, mlruns):
    table = swept(trained, tmp_path / "s", FOREST, 3, mlruns)
    names = [*trained.cases("test").case, *trained.cases("test").patient]
    assert names and list(table.state) == ["complete"] * 3
    for file in (p for p in (tmp_path / "s").rglob("*") if p.is_file()):
        assert not any(name in str(file.relative_to(tmp_path)) for name in names)
        assert not any(name.encode() in file.read_bytes() for name in names), file
    base = Experiment(tmp_path / "s" / "base", "cpu")
    assert list(base.cases().case) == list(trained.cases("train").case) and set(base.cases().split) == {"train"}
    assert all(base.finished(stage) for stage in ("cohort", "tumor", "selection")) and not base.path("forest").exists()
    other = Experiment(spoiled(trained, tmp_path / "spoiled"), "cpu")
    again = swept(other, tmp_path / "again", FOREST, 3, mlruns)
    assert table.drop(columns="seconds").equals(again.drop(columns="seconds"))


def test_the_first_trial_is_the_experiment_as_it_is(trained, tmp_path, mlruns):
    swept(trained, tmp_path / "s", ["forest.recall=float:0.5:1"], 1, mlruns)
    (told,) = sweep.trials_of(tmp_path / "s")
    assert told["values"] == {"forest.recall": trained.settings.forest.recall}
    stage = scoring.verdicts(trained)  # from what the stage forest left
    own = scoring.verdicts(Experiment(tmp_path / "s" / "base", "cpu"))  # from forests made anew
    assert stage.equals(own)
    for case, dice in told["dice"].items():
        found = pipeline.candidates_chance(trained, case, *scoring.said(stage[case])) > 0
        assert dice == pipeline.dice(found, trained.work(case)[1] == 2)
    assert set(told["dice"]) == set(trained.cases("train").case) and told["score"] == np.mean([*told["dice"].values()])


def test_the_threshold_of_a_fold_is_the_other_folds(trained, monkeypatch):
    rows, asked = pipeline.forest_rows(trained), []
    threshold = scoring.forest.threshold_for_recall
    monkeypatch.setattr(scoring.forest, "threshold_for_recall", lambda *a: (asked.append(set(a[3])), threshold(*a))[1])
    scoring.verdicts(trained)
    for fold, seen in zip(np.unique(rows.fold), asked, strict=True):
        assert seen == set(rows.lesions[rows.fold != fold])
        assert not {name.split("/")[0] for name in seen} & set(rows.table.case[rows.fold == fold])


def test_a_fold_is_doubted_as_far_as_the_other_folds_candidates_reach(trained, monkeypatch):
    rows, asked = pipeline.forest_rows(trained), []
    monkeypatch.setattr(scoring.forest, "chances", lambda *a: (asked.append(a), np.full(len(a[0]), 0.25))[1])
    said = scoring.verdicts(trained)
    assert {p for kept in said for p in kept.values()} == {0.25}
    for fold, (scores, volume_ml, largest) in zip(np.unique(rows.fold), asked, strict=True):
        own = rows.fold == fold
        assert len(scores) == own.sum() and volume_ml.tolist() == rows.table.volume_ml[own].to_list()
        assert largest == rows.table.volume_ml[~own].max()


def test_a_contour_is_judged_by_a_net_of_other_patients(trained, tmp_path, mlruns, monkeypatch):
    learnt, train = [], boundary.train
    monkeypatch.setattr(
        boundary, "train", lambda cases, *a: (learnt.append({c.patient for c in cases}), train(cases, *a))[1]
    )
    swept(trained, tmp_path / "s", ["boundary.band_mm=float:3:8"], 1, mlruns)
    table = trained.cases("train")
    assert learnt == [set(table.patient[table.fold != fold]) for fold in (0, 1)]
    (told,) = sweep.trials_of(tmp_path / "s")
    assert told["state"] == "complete" and set(told["dice"]) == set(table.case) and 0 < told["score"] < 1
    assert [step for step, _ in told["curve"]] == [50, 100]


# -- many trials ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_a_hopeless_trial_is_cut_short_and_earlier_stages_are_not_trained_again(trained, tmp_path, mlruns, monkeypatch):
    ran, train = set(), pipeline.train_fold
    monkeypatch.setattr(pipeline, "train_fold", lambda made, stage, fold: (ran.add(stage), train(made, stage, fold))[1])
    table = swept(trained, tmp_path / "s", RATE, 4, mlruns, startup=1)
    assert ran == {"tumor"}
    pruned, done = table[table.state == "pruned"], table[table.state == "complete"]
    assert len(pruned) and len(done) and len(table) == 4 and table["score"].isna().sum() == len(pruned)
    for told in sweep.trials_of(tmp_path / "s"):
        last = told["curve"][-1][0]
        assert told["values"]["tumor.cascade.fit.rate"] == (1e-7 if told["state"] == "pruned" else 0.01)
        assert last < 100 if told["state"] == "pruned" else last == 100
    assert done.score.iloc[0] == pytest.approx(
        trained.table("tumor", "cases.csv").query("split == 'train'").dice.mean()
    )
    best = experiment.read_settings(tmp_path / "s" / "best.json")
    assert best == trained.settings and (tmp_path / "s" / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_method_refuses_is_a_failed_trial_with_its_reason(trained, tmp_path, mlruns):
    over = ["consistency.low=one:0.0,0.3", "consistency.threshold=one:0.1,0.8"]  # low may come to lie above
    table = swept(trained, tmp_path / "s", over, 8, mlruns)
    failed = table[table.state == "fail"]
    assert len(table) == 8 and 0 < len(failed) < 8
    assert failed.reason.str.contains("rising order").all() and failed.score.isna().all()
    low, threshold = (table[name.split("=")[0]] for name in over)
    assert (failed.index == table.index[low > threshold]).all()


SCRIPT = """
import sys
from pathlib import Path
from workbench.run import sweep
if __name__ == "__main__":
    experiment, folder, store, trials, workers, *over = sys.argv[1:]
    plan = sweep.prepare(experiment, folder, over, device="cpu")
    sweep.run(plan, int(trials), int(workers), "cpu", Path(store))
"""


def command(trained, tmp_path: Path, trials: int, workers: int, over) -> list[str]:
    (tmp_path / "go.py").write_text(SCRIPT)
    words = [tmp_path / "go.py", trained.folder, tmp_path / "s", tmp_path / "mlruns", trials, workers, *over]
    return [sys.executable, *map(str, words)]


@pytest.mark.timeout(600)
def test_a_killed_sweep_goes_on_with_the_trial_it_was_at(trained, tmp_path):
    words = command(trained, tmp_path, 3, 1, ["tumor.cascade.fit.rate=log:1e-3:1e-1"])
    first = subprocess.Popen(words, start_new_session=True)
    second = tmp_path / "s" / "trials" / "0001"
    while first.poll() is None and not list(second.glob("tumor/fold0.json")):
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (second / "trial.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("s/trials/0000/trial.json")}
    with pytest.raises(Refused, match="another sweep|a sweep with other over"):
        sweep.prepare(trained.folder, tmp_path / "s", FOREST, device="cpu")
    values = read_values(second)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    assert len(table) == 3 and table.trial.is_unique and (table.state == "complete").all()
    assert kept and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert table.set_index("trial")["tumor.cascade.fit.rate"][1] == values["rate"], "the same trial, in its own folder"
    told = json.loads((second / "trial.json").read_text())
    assert told["curve"][0][0] > 50, "the net of fold 0 was there already"


def read_values(folder: Path) -> dict:
    return json.loads((folder / "experiment.json").read_text())["settings"]["tumor"]["cascade"]["fit"]


@pytest.mark.timeout(600)
def test_two_workers_share_one_study_and_mlflow_has_each_trial(trained, tmp_path):
    done = subprocess.run(command(trained, tmp_path, 5, 2, FOREST), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = sweep.trials_of(tmp_path / "s")
    assert len(told) == 5 and [t["state"] for t in told] == ["complete"] * 5
    assert len({json.dumps(t["values"]) for t in told}) == 5
    assert any(a["began"] < b["ended"] and b["began"] < a["ended"] for n, a in enumerate(told) for b in told[:n])
    runs = tracking._Store(tmp_path / "mlruns").runs(tracking.folder_key(tmp_path / "s"))
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = {r.data.tags["workbench.trial"]: r for r in runs if r is not parent}
    assert len(runs) == 6 and all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in children.values())
    for t in told:
        run = children[str(t["trial"])]
        assert run.data.metrics["score"] == t["score"] and run.info.status == "FINISHED"
        assert run.data.params == {k: str(v) for k, v in t["values"].items()}
    assert parent.data.metrics["best"] == max(t["score"] for t in told)
    assert parent.data.params["over.forest.criterion"] == "one:gini,log_loss"
    again = tracking.sync_sweep(tmp_path / "s", tmp_path / "mlruns")
    assert again.ok and not again.added and again.unchanged == 5


def test_the_command_line_says_what_was_best(trained, tmp_path, mlruns, call, monkeypatch):
    monkeypatch.setattr(tracking, "default_store", lambda: mlruns)
    words = ("sweep", trained.folder, "-o", tmp_path / "s", "--over", "forest.recall=float:0.5:1", "--device", "cpu")
    status, out, err = call(*words, "--trials", 1)
    assert status == 0, err
    status, out, err = call(*words, "--trials", 2)  # one more
    assert status == 0 and "2 trials: 2 complete" in out and f"its settings: {tmp_path / 's' / 'best.json'}" in out
    status, out, err = call("sweep", trained.folder, "-o", tmp_path / "t", "--over", "forest.tres=int:1:2")
    assert status == 2 and err.count("\n") == 1 and "forest.trees" in err
