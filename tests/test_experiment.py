"""What an experiment is asked to be: settings from a preset, from a file, and as it records them."""

import json
from dataclasses import asdict, replace

import pytest
import tiny

from workbench import experiment, report
from workbench.experiment import Experiment
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
    experiment.write_json(file, asdict(replace(paper, folds=4)))
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
