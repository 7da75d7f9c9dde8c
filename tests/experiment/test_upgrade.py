"""Nothing is lost by an upgrade: what 0.1.0 trained opens, segments and goes on; a finished stage is never deleted unasked."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny

from workbench.data.readers import nifti
from workbench.experiment import STAGES, Experiment, Stage, pipeline, reading, segmentation, table, verdicts
from workbench.lab import results
from workbench.nets import cascade
from workbench.stages import boundary, forest
from workbench.volume import Refused

# Trained by 0.1.0 (commit def710b) on six toy patients of tests/tiny.py, with nets of four channels, three perturbations and eight trees;
# the stage metrics taken out, the held-out case's result kept with a verdict.
OLD = Path(__file__).with_name("experiment_0.1.0.zip")


@pytest.fixture
def old(tmp_path) -> Path:
    with zipfile.ZipFile(OLD) as packed:
        packed.extractall(tmp_path)
    for case in (tmp_path / "cohort").glob("toy-*"):  # CTs of training cases are not read again, but must be there
        (case / "ct.nii.gz").touch()
    return tmp_path / "e"


def records(folder: Path) -> dict[str, bytes]:
    return {stage: (folder / stage / "stage.json").read_bytes() for stage in STAGES if (folder / stage).is_dir()}


def test_an_experiment_of_0_1_0_opens_segments_and_goes_on_without_training(old, monkeypatch):
    for module, name in ((cascade, "train_fold"), (boundary, "train"), (forest, "fit")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("workbench.__version__", "9.0.0")
    before = records(old)
    made = Experiment(old, "cpu")
    assert [stage for stage in STAGES if made.finished(stage)] == list(table.before("metrics"))
    ct = nifti.read(old.parent / "cohort/toy-06/ct.nii.gz")
    said = segmentation.segment(ct, segmentation.Models.load(old, "cpu"))
    kept = reading.result(old / "results/toy-06")
    assert said.status == kept.info["status"]
    assert list(said.lesions.kept) == list(kept.lesions().kept)
    assert said.lesions.forest_score.to_list() == pytest.approx(kept.lesions().forest_score.to_list(), abs=1e-6)
    pipeline.train(made, "all", results.keep)
    assert made.finished("metrics") and {k: v for k, v in records(old).items() if k != "metrics"} == before


def test_a_result_and_its_verdict_of_0_1_0_are_read(old):
    folder = old / "results/toy-06"
    (verdict,) = verdicts.read(folder).of(verdicts.fingerprint(folder)).values()
    assert (verdict.candidate, verdict.verdict, verdict.note, verdict.who) == (1, "reject", "a vessel", "Ann")
    assert reading.result(folder).volume("ledger")[0].shape == tiny.SHAPE


def test_another_version_alone_changes_nothing(trained, monkeypatch):
    monkeypatch.setattr("workbench.__version__", "9.0.0")
    assert all(Experiment(trained.folder, "cpu").finished(stage) for stage in STAGES)


def test_a_stage_of_another_format_is_kept_and_named(trained, tmp_path, monkeypatch):
    made = Experiment(tiny.copied(trained, tmp_path / "e"), "cpu")
    monkeypatch.setitem(STAGES, "boundary", replace(STAGES["boundary"], format=2))
    before = records(made.folder)
    assert not made.finished("boundary") and made.finished("forest")
    with pytest.raises(Refused, match="boundary: found .* format 1 instead of 2.*It is kept.*--retrain boundary"):
        pipeline.train(made)
    assert records(made.folder) == before
    pipeline.train(made, "boundary", retrain="boundary")
    after = records(made.folder)
    assert json.loads(after["boundary"])["format"] == 2
    assert {k for k in after if after[k] != before[k]} == {"boundary"}


def test_a_changed_input_is_named_and_what_rests_on_it_is_trained_on_demand(trained, tmp_path):
    made = Experiment(tiny.copied(trained, tmp_path / "e"), "cpu")
    done = made.path("forest") / "stage.json"
    done.write_text(done.read_text() + " ")
    before = records(made.folder)
    with pytest.raises(
        Refused, match="boundary: found a finished stage made with other inputs .forest.;.*--retrain boundary"
    ):
        pipeline.train(made, keep=results.keep)
    assert records(made.folder) == before
    pipeline.train(made, "all", results.keep, retrain="boundary")
    after = records(made.folder)
    assert {k for k in after if after[k] != before[k]} == {"boundary", "metrics"} and made.finished("metrics")


def test_a_changed_setting_is_named_and_taken_with_retrain(trained, toy_cohort, tmp_path):
    folder, other = tiny.copied(trained, tmp_path / "e"), replace(tiny.settings(), boundary=replace(tiny.settings().boundary, band_mm=4.0))  # fmt: skip
    with pytest.raises(Refused, match="boundary.band_mm .* instead of 4.0.*--retrain boundary"):
        Experiment.create(folder, toy_cohort, other, "cpu")
    made = Experiment.create(folder, toy_cohort, other, "cpu", retrain="boundary")
    assert made.settings.boundary.band_mm == 4.0 and (made.path("boundary") / "stage.json").is_file()
    with pytest.raises(Refused, match="boundary: found .*settings band_mm .* instead of 4.0.*--retrain boundary"):
        pipeline.run(made, "boundary")
    pipeline.run(made, "boundary", retrain="boundary")
    assert made.finished("boundary")


def test_a_changed_row_is_named_and_taken_with_retrain(trained, toy_cohort, tmp_path):
    folder, rows = tiny.copied(trained, tmp_path / "e"), pd.read_csv(toy_cohort)
    rows.loc[0, "patient"] = "another"
    other = toy_cohort.with_name("other.csv")  # paths of the rows are relative to it
    rows.to_csv(other, index=False)
    before = records(folder)
    with pytest.raises(Refused, match=rf"rows in its manifest \({rows.case[0]}\).*--retrain cohort"):
        Experiment.create(folder, other, tiny.settings(), "cpu")
    made = Experiment.create(folder, other, tiny.settings(), "cpu", retrain="cohort")
    with pytest.raises(
        Refused, match="cohort: found a finished stage made with other inputs .manifest.;.*--retrain cohort"
    ):
        pipeline.run(made, "cohort")
    assert records(folder) == before
    pipeline.run(made, "cohort", retrain="cohort")
    assert "another" in set(made.cases().patient) and made.finished("cohort")


def test_a_stage_that_is_not_there_cannot_be_retrained(trained):
    with pytest.raises(Refused, match="--retrain: found lever; expected cohort, liver"):
        pipeline.run(trained, "metrics", retrain="lever")


def test_the_command_takes_retrain(trained, toy_cohort, tmp_path, call, monkeypatch):
    folder = tiny.copied(trained, tmp_path / "e")
    monkeypatch.setitem(STAGES, "metrics", replace(STAGES["metrics"], format=2))
    words = ("train", "metrics", "--cohort", toy_cohort, "-o", folder, "--device", "cpu")
    status, _, err = call(*words)
    assert status == 2 and "--retrain metrics" in err
    assert call(*words, "--retrain", "metrics")[0] == 0
    assert json.loads((folder / "metrics" / "stage.json").read_text())["format"] == 2


def test_a_new_stage_is_a_function_and_a_row(trained, tmp_path, monkeypatch):
    """What a new stage takes: its function and its row in the table (and a notebook)."""

    def brightest(experiment: Experiment, folder: Path) -> dict:
        rows = [{"case": c, "hu": int(experiment.work(c)[0].max())} for c in experiment.cases().case]
        pd.DataFrame(rows).to_csv(folder / "brightest.csv", index=False)
        return {"brightest_hu": max(row["hu"] for row in rows)}

    monkeypatch.setitem(STAGES, "brightest", Stage(("cohort",), brightest))
    made = Experiment(tiny.copied(trained, tmp_path / "e"), "cpu")
    pipeline.train(made, keep=results.keep)
    assert made.finished("brightest") and len(made.table("brightest", "brightest.csv")) == len(made.cases())
    assert reading.experiment(made.folder).stages["brightest"].metrics()["brightest_hu"] > 100
