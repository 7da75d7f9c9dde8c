"""What an experiment is asked to be: settings from a preset, from a file, and as it records them."""

import json
import os
from dataclasses import asdict, replace

import pandas as pd
import pytest
import tiny

from workbench import experiment
from workbench.data import files
from workbench.data.files import held
from workbench.experiment import Experiment
from workbench.experiment.table import before
from workbench.lab import report
from workbench.volume import Refused


def test_a_settings_file_is_laid_over_the_preset_that_is_named(tmp_path, toy_cohort, call):
    file, folder = tmp_path / "s.json", tmp_path / "e"
    file.write_text('{"folds": 4, "tumor": {"cascade": {"fit": {"batch": 6}}}}')
    paper = experiment.paper()
    made = experiment.read_settings(file, "paper")
    assert (made.folds, made.tumor.cascade.fit.batch) == (4, 6)
    fit = replace(made.tumor.cascade.fit, batch=paper.tumor.cascade.fit.batch)
    tumor = replace(made.tumor, cascade=replace(made.tumor.cascade, fit=fit))
    assert replace(made, folds=paper.folds, tumor=tumor) == paper
    assert experiment.read_settings(file).tumor.cascade.fit.steps == experiment.Settings().tumor.cascade.fit.steps
    files.write_json(file, asdict(replace(paper, folds=4)))
    assert experiment.read_settings(file, "paper") == replace(paper, folds=4) == experiment.read_settings(file)
    words = ("train", "radiomics", "--cohort", toy_cohort, "-o", folder, "--settings", file, "--preset", "demo")
    status, _, err = call(*words)
    assert status == 2 and f"--preset: found demo; expected paper, as {file} says." in err and not folder.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [(experiment.demo(), "demo"), (replace(experiment.paper(), folds=4), "paper, changed"), (tiny.settings(), "demo, changed")],
)  # fmt: skip
def test_an_experiment_says_where_its_settings_are_not_the_preset_s(tmp_path, toy_cohort, settings, said):
    made = Experiment.create(tmp_path / "e", toy_cohort, settings, "cpu")
    assert made.about["preset"] == said and made.settings == settings
    assert f"preset: {said} " in report.experiment_report(made.folder)


def finished(folder, *stages):
    for stage in stages:
        files.write_json(folder / stage / "stage.json", {})


def test_settings_of_stages_that_are_still_to_come_may_change(tmp_path, toy_cohort, capsys):
    s, folder = tiny.settings(), tmp_path / "e"
    first = Experiment.create(folder, toy_cohort, s, "cpu")
    finished(folder, *before("selection"))
    fewer = replace(s, selection=replace(s.selection, min_lesions=5))
    made = Experiment.create(folder, toy_cohort, fewer, "cpu")
    assert made.settings == fewer == Experiment(folder, "cpu").settings
    assert "other settings from here on: selection.min_lesions 5 instead of 8" in capsys.readouterr().out
    for stage in ("cohort", "liver", "radiomics"):
        assert made.identity(stage) == first.identity(stage)
    with held(folder), pytest.raises(Refused, match="in use by process"):
        Experiment.create(folder, toy_cohort, s, "cpu")
    finished(folder, "selection")
    with pytest.raises(Refused, match=r"min_lesions 5 instead of 8\), on which its finished stage selection rests"):
        Experiment.create(folder, toy_cohort, s, "cpu")
    assert Experiment(folder, "cpu").settings == fewer


def test_nets_that_are_half_trained_are_not_thrown_away_by_other_settings(tmp_path, toy_cohort):
    """Not by settings that were forgotten on the second call, nor by an order."""
    Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    finished(tmp_path, *before("tumor"))
    (tmp_path / "tumor").mkdir()
    (tmp_path / "tumor" / "fold0.abc.safetensors").touch()
    with pytest.raises(Refused, match="on which what its stage tumor has learnt so far rests"):
        Experiment.create(
            tmp_path,
            toy_cohort,
            replace(tiny.settings(), consistency=replace(tiny.settings().consistency, threshold=0.45)),
            "cpu",
        )
    assert Experiment(tmp_path, "cpu").settings == tiny.settings()


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("cohort", {"seed": 1}),
        ("liver", {"liver": replace(tiny.settings().liver, threshold=0.4)}),
        ("tumor", {"consistency": replace(tiny.settings().consistency, threshold=0.45)}),
        ("forest", {"candidates": replace(tiny.settings().candidates, overlap=0.7)}),
        ("metrics", {"boundary": replace(tiny.settings().boundary, steps=11)}),
    ],
)
def test_settings_on_which_a_finished_stage_rests_may_not(tmp_path, toy_cohort, stage, changed):
    """Also of a stage that is to be run again, while one that needs it still stands."""
    Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    other = replace(tiny.settings(), **changed)
    finished(tmp_path, stage)
    with pytest.raises(Refused, match=f"on which its finished stage {stage} rests"):
        Experiment.create(tmp_path, toy_cohort, other, "cpu")
    (tmp_path / stage / "stage.json").unlink()
    assert Experiment.create(tmp_path, toy_cohort, other, "cpu").settings == other


def test_a_manifest_is_known_by_what_is_read_of_it(tmp_path, toy_cohort):
    table = pd.read_csv(toy_cohort)
    for column in ("ct", "labels"):
        table[column] = [str(toy_cohort.parent / p) for p in table[column]]

    def written(table):
        table.to_csv(tmp_path / "m.csv", index=False)
        return tmp_path / "m.csv"

    made = Experiment.create(tmp_path / "e", written(table), tiny.settings(), "cpu")
    identity = made.identity("cohort")
    relative = [os.path.relpath(p, tmp_path) for p in table.ct]
    again = Experiment.create(tmp_path / "e", written(table.assign(note="mine", ct=relative)), tiny.settings(), "cpu")
    assert again.about == made.about and again.identity("cohort") == identity
    moved = table.assign(split=["test", *table.split[1:]])
    for other, said in (
        (moved, f"rows in its manifest \\({table.case[0]}\\)"),
        (table[1:], f"rows in its manifest \\({table.case[0]}\\)"),
        (table[::-1], "in another order"),
        (table.assign(patient="p", split="train"), "and 6 more"),
        (table.assign(field_of_view=["liver box", *["whole"] * 9]), f"rows in its manifest \\({table.case[0]}\\)"),
        (
            table.assign(voxel_hash=["ab" * 8, *[""] * 9]),
            f"rows in its manifest \\({table.case[0]}\\)",
        ),  # imported again
    ):
        with pytest.raises(Refused, match=f"an experiment with other .*{said}"):
            Experiment.create(tmp_path / "e", written(other), tiny.settings(), "cpu")
        assert Experiment(tmp_path / "e", "cpu").identity("cohort") != identity


def test_an_experiment_that_has_its_manifest_s_hash_alone_is_known_by_the_bytes(tmp_path, toy_cohort):
    made = Experiment.create(tmp_path / "e", toy_cohort, tiny.settings(), "cpu")
    about = {k: v for k, v in made.about.items() if k != "manifest_rows"}
    files.write_json(tmp_path / "e" / "experiment.json", about)
    again = Experiment.create(tmp_path / "e", toy_cohort, tiny.settings(), "cpu")
    assert again.about == about and again.identity("cohort") == made.identity("cohort")
    about["manifest_sha256"] = "ab" * 32
    files.write_json(tmp_path / "e" / "experiment.json", about)
    with pytest.raises(Refused, match="rows in its manifest .it was recorded by the file's hash alone"):
        Experiment.create(tmp_path / "e", toy_cohort, tiny.settings(), "cpu")


@pytest.mark.parametrize("folds", [0, 1])
def test_settings_with_less_than_two_folds_are_refused(tmp_path, folds):
    (tmp_path / "s.json").write_text(json.dumps({"folds": folds}))
    with pytest.raises(Refused, match=f"Settings.folds: found {folds}; expected at least 2"):
        experiment.read_settings(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"forest": {"trees": "many"}}', 'forest.trees "many"; expected a whole number.'),
        ('{"forest": {"trees": 2.5}}', "forest.trees 2.5; expected a whole number."),
        ('{"forest": {"trees": true}}', "forest.trees true; expected a whole number."),
        ('{"pixel_mm": "fine"}', 'pixel_mm "fine"; expected a number or null.'),
        ('{"boundary": {"grid_mm": [2, 1]}}', "boundary.grid_mm [2, 1]; expected a list of 3, each a number."),
        ('{"forest": {"leaf_choices": 3}}', "forest.leaf_choices 3; expected a list, each a whole number."),
        ('{"liver": {"cascade": 3}}', "liver.cascade 3; expected an object."),
        ('{"liver": {"cascade": {"steps": 3}}}', "no setting liver.cascade.steps; expected names as in an"),
        ("[1]", "Settings [1]; expected an object."),
        ('{"folds": 2', "no JSON (Expecting"),
    ],
)
def test_a_settings_file_is_told_what_is_wrong_in_it(tmp_path, text, says):
    """It is its author's own, and not damaged."""
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(Refused) as refused:
        experiment.read_settings(tmp_path / "s.json")
    assert f"s.json: found {says}" in str(refused.value) and "damaged" not in str(refused.value)


def test_who_needs_a_stage_is_told_where_to_begin(tmp_path, toy_cohort):
    made = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    for stage in ("cohort", "liver", "tumor"):
        made.path(stage).mkdir()
        (made.path(stage) / "stage.json").write_text("{}")
    made.need("tumor")
    with pytest.raises(
        Refused, match=r"the stage consistency has not run; .* Run notebook 04 or `workbench train consistency`"
    ):
        made.need("consistency")
    with pytest.raises(
        Refused, match="the stage consistency has not run, on which forest rests; .* Run notebooks 04 to 08, or"
    ):
        made.need("forest")
