"""Cohorts through Snakemake, and single folds as jobs of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from workbench.data import cohort
from workbench.data.files import held, write_json
from workbench.experiment import Experiment, pipeline
from workbench.experiment.pipeline import order
from workbench.nets.fit import load_tensors
from workbench.run import cluster
from workbench.stages import metrics
from workbench.volume import Refused

needs_snakemake = pytest.mark.skipif(
    not (Path(sys.executable).parent / "snakemake").is_file() and shutil.which("snakemake") is None,
    reason="no snakemake: `pip install snakemake` in an environment of its own, on the path",
)


# -- folds ------------------------------------------------------------------------------------------------------------


def test_folds_one_by_one_are_the_stage(trained, toy_cohort, tmp_path):
    made = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    pipeline.run(made, "cohort")
    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // made.settings.folds))  # as the stage does: equal to the bit
    try:
        with held(made.folder, shared=True):  # another fold is at work
            for fold in reversed(range(made.settings.folds)):
                pipeline.train_fold(made, "liver", fold)
    finally:
        torch.set_num_threads(cores)
    kept = {f: (tmp_path / "liver" / f).stat().st_mtime_ns for f in ("fold0.json", "fold1.json")}
    assert not made.finished("liver") and not (tmp_path / "liver" / "stage.json").exists()
    pipeline.run(made, "liver")
    assert made.finished("liver")
    assert kept == {f: (tmp_path / "liver" / f).stat().st_mtime_ns for f in kept}
    for fold in range(made.settings.folds):
        ours, theirs = (load_tensors(e.path("liver") / f"fold{fold}")[0] for e in (made, trained))
        assert all(bool((ours[k] == theirs[k]).all()) for k in theirs)
    assert not [o for o in json.loads((tmp_path / "liver" / "stage.json").read_text())["outputs"] if "lock" in o]


def test_a_fold_is_trained_by_one_and_not_while_the_whole_is(toy_cohort, tmp_path):
    made = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    pipeline.run(made, "cohort")
    with held(made.folder), pytest.raises(Refused, match="in use by process"):
        pipeline.train_fold(made, "liver", 0)
    (tmp_path / "liver").mkdir()
    order.begin(made, "liver")
    with held(tmp_path / "liver", name=".fold0.lock"), pytest.raises(Refused, match="in use by process"):
        pipeline.train_fold(made, "liver", 0)
    with pytest.raises(Refused, match="liver or tumor, fold 0 to 1"):
        pipeline.train_fold(made, "liver", 2)
    with pytest.raises(Refused, match="liver or tumor"):
        pipeline.train_fold(made, "forest", 0)
    with pytest.raises(Refused, match="liver has not run"):
        pipeline.train_fold(made, "tumor", 0)


def test_what_other_settings_left_is_not_taken_over_by_a_fold(toy_cohort, tmp_path):
    made = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    pipeline.run(made, "cohort")
    (tmp_path / "liver").mkdir()
    write_json(tmp_path / "liver" / "started.json", {"stage": "liver", "version": "another"})
    (tmp_path / "liver" / "fold1.json").write_text("{}")
    pipeline.train_fold(made, "liver", 0)
    assert (tmp_path / "liver" / "fold0.json").is_file() and not (tmp_path / "liver" / "fold1.json").exists()


# -- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_says_what_failed_and_why(toy_cohort, tmp_path):
    cases = cohort.read_manifest(toy_cohort)
    done, bad, stopped = cases[0], cases[1], cases[2]
    truth = done.read()[1]
    measured = metrics.evaluate_case(truth.array.numpy(), truth.array.numpy(), truth.spacing_mm, done.case)
    for folder in ("evaluation", "logs/check", "logs/segment"):
        (tmp_path / folder).mkdir(parents=True)
    write_json(tmp_path / "evaluation" / f"{done.case}.json", metrics.summarise([measured]))
    (tmp_path / "logs/check" / f"{bad.case}.txt").write_text(
        "warning: spacing\nREFUSED ct.nii.gz  ct.nii.gz: found half\n"
    )
    (tmp_path / "logs/check" / f"{stopped.case}.txt").write_text("")
    (tmp_path / "logs/segment" / f"{stopped.case}.txt").write_text("  liver\nerror: no memory\nKilled\n")
    found = cluster.summary(cases, tmp_path)
    rows = found.cases.set_index("case")
    assert rows.status[done.case] == "done" and rows.tumor_dice[done.case] == 1
    assert rows.reason[bad.case] == "check: REFUSED ct.nii.gz  ct.nii.gz: found half"
    assert rows.reason[stopped.case] == "segment: error: no memory"
    assert (rows.status.drop([done.case, bad.case, stopped.case]) == "open").all()
    assert found.measures["tumor"]["dice_per_case"] == 1 and len(found.measures["cases"]) == 1
    held_out = {c.case for c in cases if c.split == "test"}
    assert set(cluster.summary(cases, tmp_path, everyone=False).cases.case) == held_out


def test_what_cannot_start_is_refused_before_anything_is_made(trained, toy_cohort, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(Refused, match="profile"):
        cluster.run(toy_cohort, out, trained.folder, profile="pbs")
    table = pd.read_csv(toy_cohort).assign(split="train")
    for column in ("ct", "labels"):
        table[column] = [toy_cohort.parent / p for p in table[column]]
    table.to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(Refused, match="no models and no held-out case"):
        cluster.run(tmp_path / "all.csv", out)
    for name in ("{x}", "-x", "all"):
        table.assign(case=[name, *table.case[1:]]).to_csv(tmp_path / "odd.csv", index=False)
        with pytest.raises(Refused, match=f"case '{name}'"):
            cluster.run(tmp_path / "odd.csv", out, trained.folder)
    with pytest.raises(Refused, match="braces"):
        cluster.run(toy_cohort, tmp_path / "{case}", trained.folder)
    monkeypatch.setattr(cluster.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="environment of its own"):
        cluster.run(toy_cohort, out, trained.folder)
    assert not out.exists()


def test_a_case_without_labels_is_done_when_it_is_segmented(toy_cohort, tmp_path):
    table = pd.read_csv(toy_cohort).head(3)
    for column in ("ct", "labels"):
        table[column] = [toy_cohort.parent / p for p in table[column]]
    table.drop(columns="labels").to_csv(tmp_path / "none.csv", index=False)
    table.assign(labels=["", *table.labels[1:]]).to_csv(tmp_path / "some.csv", index=False)
    for name, without in (("none", 3), ("some", 1)):
        with pytest.raises(Refused, match="labels"):
            cohort.read_manifest(tmp_path / f"{name}.csv")
        cases = cohort.read_manifest(tmp_path / f"{name}.csv", labelled=False)
        assert [c.labels is None for c in cases] == [n < without for n in range(3)]
    (tmp_path / "segmented").mkdir()
    (tmp_path / "segmented" / cases[0].case).touch()
    (tmp_path / "segmented" / cases[1].case).touch()  # has labels, and is still to be evaluated
    found = cluster.summary(cases, tmp_path)
    assert found.cases.status.tolist() == ["done", "open", "open"] and found.measures == {"cases": []}


# -- Snakemake --------------------------------------------------------------------------------------------------------


def started(manifest, out, *words):
    command = [sys.executable, "-m", "workbench", "cohort", manifest, "-o", out, "--device", "cpu", *words]
    return [str(w) for w in command]


@needs_snakemake
@pytest.mark.timeout(600)
def test_a_poisoned_case_stops_only_itself_and_a_killed_run_goes_on(trained, toy_cohort, tmp_path):
    table = pd.read_csv(toy_cohort).head(4)
    for column in ("ct", "labels"):
        table[column] = [toy_cohort.parent / p for p in table[column]]
    table["case"] = ["a b", "a_b", "Müller's (2), 50 % #1 $HOME", "007"]  # all that a manifest allows
    poisoned = tmp_path / "poisoned.nii.gz"
    poisoned.write_bytes(Path(table.ct[1]).read_bytes()[:2000])
    table.loc[1, "ct"] = poisoned
    table.loc[3, "labels"] = ""  # is segmented, not evaluated
    table.to_csv(tmp_path / "manifest.csv", index=False)
    out = tmp_path / "out of: it #1"
    command = started(tmp_path / "manifest.csv", out, "--models", trained.folder, "--cores", "2")
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not list(out.glob("evaluation/*.json")):
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = [out / "results" / p.stem / "result.json" for p in out.glob("evaluation/*.json")]
    kept = {p: p.stat().st_mtime_ns for p in finished}
    again = subprocess.run(command, capture_output=True, text=True)
    rows = pd.read_csv(out / "summary.csv", dtype={"case": str}).set_index("case")
    assert again.returncode == 1, again.stderr[-2000:]
    assert "3 of 4 cases done, 1 failed" in again.stdout
    assert rows.status.tolist() == ["done", "failed", "done", "done"]
    assert "poisoned.nii.gz" in rows.reason.iloc[1] and "poisoned.nii.gz" in again.stderr
    assert kept and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    shutil.copy(table.ct[0], poisoned)  # mended (with another's voxels)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (pd.read_csv(out / "summary.csv").status == "done").all()
    assert {p.name for p in out.glob("notebooks/*.html")} == {f"result-{case}.html" for case in table.case}


@needs_snakemake
@pytest.mark.timeout(300)
def test_the_plan_trains_each_fold_in_a_job_of_its_own(toy_cohort, tmp_path):
    command = started(toy_cohort, tmp_path / "out", "--cores", "2", "-n")
    told = subprocess.run(command, capture_output=True, text=True)
    words = told.stdout + told.stderr
    counts = dict(
        line.split()[:2] for line in words.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit()
    )
    held_out = sum(c.split == "test" for c in cohort.read_manifest(toy_cohort))
    assert counts["fold"] == "4" and counts["stage"] == "8" and counts["segment"] == str(held_out)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld") is None or Path("/etc/slurm/slurm.conf").exists(),
    reason="no slurmctld, or not root, or a SLURM that is there already",
)
def test_a_slurm_in_miniature_runs_a_job_and_leaves_nothing_behind(tmp_path):
    script = Path(cluster._workflow()).parent / "slurm_in_miniature.sh"
    cores = os.cpu_count()
    words = [
        script,
        tmp_path / "slurm",
        "env",
        "-u",
        "SLURM_CONF",
        "srun",
        f"-c{cores}",
        "printenv",
        "SLURM_CPUS_PER_TASK",
    ]
    told = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert told.returncode == 0 and told.stdout.strip() == str(cores), told.stderr
    assert not Path("/etc/slurm/slurm.conf").exists()
    for name in ("slurmctld", "slurmd", "munged"):
        pid = tmp_path / "slurm" / f"{name}.pid"
        assert not pid.exists() or not Path("/proc", pid.read_text().strip()).exists(), name
