"""Models by name: packed from an experiment, whole or refused, and of the same result as the experiment."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch

from workbench.data import cohort, files, readers
from workbench.data.files import write_table
from workbench.experiment import Experiment, models, pipeline, segmentation, table
from workbench.experiment.pipeline.lesions import learned_from
from workbench.experiment.table import before
from workbench.lab import cards
from workbench.run import adapt
from workbench.stages import forest
from workbench.stages.metrics import json_safe
from workbench.volume import Refused, Volume

SAYS = {
    "version": "3",
    "trained_on": "toys",
    "measured_on": ["2 toys: Dice .9"],
    "licence": "Apache-2.0",
    "attribution": "nobody",
    "intended_use": "tests",
}


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    return models.pack(trained.folder, tmp_path_factory.mktemp("packed") / "toy", SAYS)


@pytest.fixture
def shipped(packed, monkeypatch):
    monkeypatch.setattr(models, "HOME", packed.parent)
    return packed


def test_a_packed_model_segments_as_its_experiment_does(trained, packed):
    case = trained.cases("test").case.iloc[0]
    volume = readers.read(trained.manifest.parent / case / "ct.nii.gz")
    one, other = (segmentation.segment(volume, segmentation.Models.load(f, "cpu")) for f in (trained.folder, packed))
    assert torch.equal(one.labels, other.labels) and torch.equal(one.ledger, other.ledger)
    assert one.lesions.equals(other.lesions) and len(one.lesions)
    assert json_safe(cards.of(one)) == json_safe(cards.of(other)) and cards.of(other)["training"] is not None


def test_it_holds_no_scan_and_no_pickle(packed):
    kinds = {path.suffix for path in packed.rglob("*") if path.is_file()}
    assert kinds == {".json", ".csv", ".safetensors"}


def test_names_and_folders(shipped, tmp_path, monkeypatch):
    assert models.names() == ["toy"] and models.find("toy") == shipped == models.find(shipped)
    assert "toy 3 (" in models.words(next(models.listed())) and "2 toys: Dice .9" in models.as_json()
    (about,) = json.loads(models.as_json())
    assert set(about["operating_points"]) == {"recall", "dice", "f1", "fp"}
    with pytest.raises(Refused, match="no model of this name; expected an experiment folder or toy"):
        models.find("toys")
    shutil.copytree(shipped, tmp_path / "toy")  # a folder goes before a name
    monkeypatch.chdir(tmp_path)
    assert models.find("toy").resolve() == (tmp_path / "toy").resolve()


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_model_is_refused(packed, tmp_path, harm):
    folder = shutil.copytree(packed, tmp_path / "toy")
    file = folder / "radiomics" / "features.csv"
    file.unlink() if harm == "missing" else file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(Refused, match=r"features.csv: found a file that is missing or was changed"):
        models.find(folder)


def test_what_is_packed_needs_a_description_and_a_free_place(trained, tmp_path):
    with pytest.raises(Refused, match="description of a model"):
        models.pack(trained.folder, tmp_path / "m", {"version": "1"})
    (tmp_path / "m").mkdir()
    with pytest.raises(Refused, match="something that is no model"):
        models.pack(trained.folder, tmp_path / "m", SAYS)
    assert not list(tmp_path.glob(".*"))


def test_no_stage_of_a_packed_model_is_trained_and_nothing_of_it_goes(packed):
    before = sorted(p for p in packed.rglob("*") if p.is_file())
    with pytest.raises(Refused, match="a packed model, without its scans"):
        pipeline.run(Experiment(packed, "cpu"), "liver")
    assert sorted(p for p in packed.rglob("*") if p.is_file()) == before


def test_adapt_begins_with_a_model_by_name_and_outlives_its_next_version(shipped, healthy, tmp_path, call):
    status, out, err = call(
        "adapt", "toy", "--cohort", healthy, "-o", tmp_path / "own", "--copies", 2, "--device", "cpu"
    )
    assert status == 0, err
    made = Experiment(tmp_path / "own", "cpu")
    assert made.about["patients_before"] and all(made.finished(stage) for stage in before("metrics"))
    newer = shutil.copytree(shipped, tmp_path / "newer")
    for stage in table.nets():
        record = newer / stage / "stage.json"
        files.write_json(record, files.read_json(record) | {"seconds": 0})
    about = files.read_json(made.folder / "experiment.json")
    files.write_json(made.folder / "experiment.json", about | {"start": str(newer)})
    again = Experiment(made.folder, "cpu")
    assert all(again.finished(stage) for stage in before("metrics"))


def test_patients_of_an_experiment_that_recorded_none_before_it(trained, shipped, healthy, tmp_path):
    """As 0.1.0 left them: it looked one experiment back."""
    made = adapt.begin(trained.folder, healthy, tmp_path / "own", "cpu", 2)
    pipeline.run(made, "cohort")
    about = files.read_json(made.folder / "experiment.json")
    del about["patients_before"]
    files.write_json(made.folder / "experiment.json", about)
    assert set(trained.cases("train").patient) <= Experiment(made.folder, "cpu").patients_learned_from()


def test_segment_without_models_uses_the_one_that_comes_along(call, tmp_path, monkeypatch, packed, trained):
    shutil.copytree(packed, tmp_path / "home" / models.DEFAULT)
    monkeypatch.setattr(models, "HOME", tmp_path / "home")
    ct = trained.manifest.parent / trained.cases("test").case.iloc[0] / "ct.nii.gz"
    status, _, err = call("segment", ct, "-o", tmp_path / "out", "--device", "cpu")
    assert status == 0, err
    info = json.loads(next((tmp_path / "out").glob("*/result.json")).read_text())
    assert info["models"]["name"] == "toy 3" and info["models"]["stages"]


def test_a_liver_that_is_given_takes_the_place_of_the_nets(call, tmp_path, trained, shipped):
    folder = trained.manifest.parent / trained.cases("test").case.iloc[0]
    mask = readers.read_labels(folder / "labels.nii.gz")
    hole = mask.array > 0
    middle = [int(v) for v in hole.nonzero().float().mean(0).round()]
    given = hole.clone()
    given[tuple(slice(m, m + 2) for m in middle)] = False  # as masks leave tumors and vessels out
    readers.nifti.write(mask.with_array(given.to(torch.uint8)), tmp_path / "liver.nii.gz")
    words = (
        "segment",
        folder / "ct.nii.gz",
        "--models",
        "toy",
        "--device",
        "cpu",
        "--keep-done",
        "-o",
        tmp_path / "out",
    )
    status, _, err = call(*words, "--liver", tmp_path / "liver.nii.gz")
    assert status == 0, err
    (result,) = (tmp_path / "out").glob("*/")
    assert torch.equal(readers.read_labels(result / "labels.nii.gz").array > 0, hole)
    assert json.loads((result / "result.json").read_text())["liver_given"].endswith("liver.nii.gz")
    assert "1 of 1 results are there" in call(*words, "--liver", tmp_path / "liver.nii.gz")[1]
    assert "0 of 1 results are there" in call(*words)[1]  # with the net's own liver it is another result
    readers.nifti.write(mask.with_array(torch.zeros_like(mask.array)), tmp_path / "empty.nii.gz")
    status, _, err = call(*words, "--liver", tmp_path / "empty.nii.gz")
    assert status == 2 and "no voxel of a liver" in err
    shifted = Volume(mask.array[1:], mask.spacing_mm, mask.affine)
    readers.nifti.write(shifted, tmp_path / "other.nii.gz")
    assert call(*words, "--liver", tmp_path / "other.nii.gz")[0] == 2
    status, _, err = call("segment", folder / "ct.nii.gz", folder / "labels.nii.gz", "--liver", tmp_path / "liver.nii.gz",
                          "--models", "toy", "-o", tmp_path / "two")  # fmt: skip
    assert status == 2 and "expected one input" in err


def test_the_tumor_net_sees_a_given_liver_without_holes(trained, packed):
    volume, full = (
        read(trained.manifest.parent / trained.cases("test").case.iloc[0] / name)
        for read, name in ((readers.read, "ct.nii.gz"), (readers.read_labels, "labels.nii.gz"))
    )
    known = segmentation.Models.load(packed, "cpu")
    liver = full.array > 0
    holed = liver & (full.array != 2)  # as another program leaves tumors out
    inner = segmentation.liver.filled(holed)
    assert bool((inner & ~holed).any())
    seen, whole = (segmentation.look(volume, known, liver_given=mask) for mask in (holed, inner))
    assert torch.equal(seen.p_liver, whole.p_liver) and torch.equal(seen.p, whole.p)


@pytest.mark.parametrize("wrong", [{"version": 3}, {"measured_on": "text"}, {"measured_on": []}, {"more": "x"}])
def test_a_description_of_another_kind_is_refused(wrong):
    with pytest.raises(Refused, match=f"no fitting {next(iter(wrong))}"):
        models.described(SAYS | wrong)


def test_another_version_of_a_model_does_not_go_on_where_nets_are_unfinished(shipped, healthy, tmp_path):
    made = adapt.begin(shipped, healthy, tmp_path / "own", "cpu", 2)
    pipeline.run(made, "cohort")
    record = shipped / "liver" / "stage.json"
    before = record.read_bytes()
    files.write_json(record, files.read_json(record) | {"seconds": 0})
    try:
        with pytest.raises(Refused, match="another version of the model"):
            adapt.begin(shipped, healthy, tmp_path / "own", "cpu", 2)
    finally:
        record.write_bytes(before)


def test_phantoms_alone_is_packed_with_a_model(trained, tmp_path):
    made = Experiment(tiny.copied(trained, tmp_path / "made"), "cpu")
    write_table(made.path("cohort") / "cases.csv", made.cases().assign(phantom=True))
    assert segmentation.Models.load(models.pack(made.folder, tmp_path / "m", SAYS), "cpu").phantoms == 8


def test_a_copy_of_the_settings_is_that_of_the_experiment(trained, packed):
    assert Experiment(packed, "cpu").settings == trained.settings == tiny.settings()


def test_patients_come_before_phantoms(tmp_path):
    """Where there are patients enough, selection and forest learn from them alone; nets and folds hold both kinds evenly."""
    manifest = tiny.cohort(tmp_path / "cohort")
    rows = pd.read_csv(manifest, dtype=str)
    synthetic = list(rows.case[rows.split == "train"][::2])
    for case in synthetic:
        (manifest.parent / case / cohort.PHANTOM).write_text("{}")
    made = Experiment.create(tmp_path / "made", manifest, tiny.settings(), "cpu")
    for stage in before("boundary"):
        pipeline.run(made, stage)
    cases = made.cases("train")
    assert sorted(cases.case[cases.phantom]) == sorted(synthetic) and len(synthetic) == 4
    assert cases.groupby(["fold", "phantom"]).size().tolist() == [2, 2, 2, 2]
    scores = made.table("forest", "scores.csv")
    assert set(scores.case[scores.split == "phantom"]) == set(synthetic)
    assert set(made.table("selection", "folds.csv").case) == set(scores.case[scores.split == "train"])
    assert not set(synthetic) & set(scores.case[scores.split == "train"]) and scores.score.notna().all()
    known = cards.Known.of(SimpleNamespace(folder=made.folder, forest=forest.load(made.path("forest"))))
    assert set(known.table.case) == set(scores.case[scores.split == "train"])
    few = replace(made.settings, selection=replace(made.settings.selection, min_patients=5))
    assert len(learned_from(SimpleNamespace(settings=few, cases=made.cases))) == 8
    both = replace(made.settings, selection=replace(made.settings.selection, patients_first=False))
    assert len(learned_from(SimpleNamespace(settings=both, cases=made.cases))) == 8


def test_training_that_begins_with_a_model_takes_its_settings(shipped, healthy, tmp_path, call):
    """The same nets and grid, fewer and slower steps: a preset of another grid would spoil the nets."""
    status, _, err = call(
        "train", "liver", "--cohort", healthy, "-o", tmp_path / "own", "--start", "toy", "--device", "cpu"
    )
    assert status == 2 and "the stage cohort has not run" in err
    status, _, err = call(
        "train", "cohort", "--cohort", healthy, "-o", tmp_path / "own", "--start", "toy", "--device", "cpu"
    )
    assert status == 0, err
    own, of = Experiment(tmp_path / "own", "cpu").settings, Experiment(shipped, "cpu").settings
    assert (own.pixel_mm, own.slice_mm, own.folds) == (of.pixel_mm, of.slice_mm, of.folds)
    for stage in ("liver", "tumor"):
        one, other = getattr(own, stage).cascade, getattr(of, stage).cascade
        assert one.network == other.network and one.fit.steps == other.fit.steps // 4 and one.fit.rate < other.fit.rate
    status, _, err = call(
        "train", "cohort", "--cohort", healthy, "-o", tmp_path / "own", "--start", "toy", "--device", "cpu"
    )
    assert status == 0, err  # the same command goes on


EDITS = {
    "boundary.new_setting": lambda s: s["boundary"].update(new_setting=3),
    "settings that this version does not know": lambda s: s.update(new_setting=3),
    "no settings of boundary": lambda s: s.pop("boundary"),
    "pixel_mm 5.0 instead of 1.5": lambda s: s.update(pixel_mm=5.0),
    "pixel_mm 2.5 instead of 1.5": lambda s: s.pop("pixel_mm"),
    "cascade.fit.steps 1 instead of": lambda s: s["liver"]["cascade"]["fit"].update(steps=1),
    "expected a number or null": lambda s: s.update(pixel_mm="1,5"),
    "threshold": lambda s: s["consistency"].pop("threshold"),
}


@pytest.mark.parametrize("says", EDITS)
def test_an_edited_experiment_is_refused_before_anything_is_segmented(tmp_path, says):
    place = shutil.copytree(models.find("clinical"), tmp_path / "mine")
    (place / "model.json").unlink()
    Experiment(place, "cpu").checked()
    about = json.loads((place / "experiment.json").read_text())
    EDITS[says](about["settings"])
    (place / "experiment.json").write_text(json.dumps(about))
    with pytest.raises(Refused) as refused:
        segmentation.Models.load(place, "cpu")
    assert says in str(refused.value) and "experiment.json" in str(refused.value)
