"""What readers said, taken up by training: of training cases only, noticed by resume, and felt by the right stages."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_folders as fake
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from workbench import experiment
from workbench.data import cohort, files, readers
from workbench.data.readers import nifti
from workbench.experiment import corrections, pipeline, segmentation, verdicts
from workbench.lab import results
from workbench.volume import Refused


@pytest.fixture
def reviewed(tmp_path):
    """Three results with verdicts, and a cohort in which the first trains, the second is held out, the third is none."""
    folders = [fake.result(tmp_path / "results" / f"r{n}", f"c{n}") for n in range(3)]
    for n, folder in enumerate(folders):
        info = json.loads((folder / "result.json").read_text()) | {"input": f"../c{n} ct.nii.gz"}
        (folder / "result.json").write_text(json.dumps(info))
        verdicts.give(folder, 1, "accept", who="Ann")
        verdicts.give(folder, 2, "reject", who="Ben")
    place = tmp_path / "results"
    cases = [
        cohort.Case(f"case-{n}", f"p{n}", place / f"c{n} ct.nii.gz", place / "none.nii.gz", split)
        for n, split in ((0, "train"), (1, "test"))
    ]
    return folders, cases


def test_only_what_was_said_of_training_cases_is_kept(reviewed, tmp_path):
    folders, cases = reviewed
    lines = corrections.gather([tmp_path / "results"], cases, tmp_path / "kept")
    assert lines[0].endswith("r0: 1 rejected candidate")
    assert lines[1].endswith("r1: left out, case case-1 is held out and nothing said of it may train")
    assert lines[2].endswith("r2: left out, its CT is none of the cohort's")
    kept = corrections.read(tmp_path / "kept")
    assert list(kept) == ["case-0"] and kept["case-0"].rejected == (2,) and kept["case-0"].who == ("Ben",)
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"corrections.json", "case-0.rejected.nii.gz"}
    where = corrections.rejected(tmp_path / "kept", "case-0", fake.SHAPE).numpy()
    np.testing.assert_array_equal(where, fake.arrays()["candidates"] == 2)


def test_a_name_does_not_make_a_held_out_case_a_training_case(reviewed, tmp_path):
    """The result of the held-out CT, under the training case's name, is still of the held-out CT."""
    folders, cases = reviewed
    info = json.loads((folders[1] / "result.json").read_text()) | {"case": "case-0"}
    (folders[1] / "result.json").write_text(json.dumps(info))
    with pytest.raises(Refused, match="case case-1 is held out"):
        corrections.gather([folders[1]], cases, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_candidate_whose_outline_needs_an_edit_is_not_rejected(reviewed, tmp_path):
    folders, cases = reviewed
    verdicts.give(folders[0], 2, "needs edit", who="Ann")
    with pytest.raises(Refused, match="nothing rejected and nothing corrected"):
        corrections.gather([folders[0]], cases, tmp_path / "kept")


def test_labels_are_copied_and_a_changed_result_keeps_only_them(reviewed, tmp_path):
    folders, cases = reviewed
    fixed = fake.arrays()["labels"].copy()
    fixed[fixed == 2] = 1
    file = verdicts.correct(folders[0], fixed, "Ann")
    corrections.gather([folders[0]], cases, tmp_path / "kept")
    both = corrections.read(tmp_path / "kept")["case-0"]
    assert both.rejected == (2,) and both.who == ("Ann", "Ben") and both.labels_sha256 == files.sha256(file)
    (folders[0] / "lesions.csv").write_text((folders[0] / "lesions.csv").read_text() + "\n")
    (line,) = corrections.gather([folders[0]], cases, tmp_path / "kept")
    assert "changed since 2 verdicts and the corrected labels" in line and line.endswith("corrected labels")
    kept = corrections.read(tmp_path / "kept")["case-0"]
    assert kept.rejected == () and not corrections.rejected_file(tmp_path / "kept", "case-0").exists()
    np.testing.assert_array_equal(
        readers.read_labels(corrections.labels_file(tmp_path / "kept", "case-0")).array, fixed
    )


def test_what_was_said_follows_the_voxels_not_the_name(reviewed, tmp_path):
    """Another patient's CT under the name of the one that was corrected: nothing said of the first is taken for the second."""
    folders, cases = reviewed
    verdicts.correct(folders[0], fake.arrays()["labels"], "Ann")
    ct = cases[0].ct
    fake.write_nifti(ct, fake.arrays(seed=5)["ct"])
    info = json.loads((folders[0] / "result.json").read_text())
    own = verdicts.read(folders[0]).corrected.voxel_hash
    for known, says in ((own, "the CT it was made from was changed"), ("", "only labels hold on|another CT")):
        (folders[0] / "result.json").write_text(json.dumps(info | ({"voxel_hash": known} if known else {})))
        with pytest.raises(Refused, match=says):
            corrections.gather([folders[0]], cases, tmp_path / "kept")
        (folders[0] / "lesions.csv").write_text((folders[0] / "lesions.csv").read_text() + "\n")
    # what lies in a result of another CT is refused, wherever it came from
    (folders[0] / "result.json").write_text(json.dumps(info | {"voxel_hash": "0" * 16}))
    with pytest.raises(Refused, match="labels of another CT"):
        verdicts.corrected(folders[0])


def test_a_result_of_a_copy_of_the_ct_belongs_to_its_case(reviewed, tmp_path):
    folders, cases = reviewed
    voxels = [cohort.voxel_hash(readers.read(case.ct).array.numpy()) for case in cases]
    info = json.loads((folders[2] / "result.json").read_text()) | {"voxel_hash": "1" * 16}
    (folders[2] / "result.json").write_text(json.dumps(info))
    told = [replace(cases[0], measured={"voxel_hash": "1" * 16}), replace(cases[1], measured={"voxel_hash": voxels[1]})]
    (line,) = corrections.gather([folders[2]], told, tmp_path / "kept")
    assert line.endswith("1 rejected candidate") and list(corrections.read(tmp_path / "kept")) == ["case-0"]


def test_labels_of_0_1_0_hold_only_with_the_result_they_were_drawn_on(reviewed, tmp_path):
    folders, cases = reviewed
    verdicts.correct(folders[0], fake.arrays()["labels"], "Ann")
    file = folders[0] / "verdicts" / "verdicts.json"
    held = json.loads(file.read_text())
    del held["corrected"]["voxel_hash"]
    file.write_text(json.dumps(held))
    assert corrections.gather([folders[0]], cases, tmp_path / "kept")[0].endswith(
        "corrected labels; 1 rejected candidate"
    )
    (folders[0] / "lesions.csv").write_text((folders[0] / "lesions.csv").read_text() + "\n")
    with pytest.raises(Refused, match="its corrected labels left out, since 0.1.0 did not keep of which CT they are"):
        corrections.gather([folders[0]], cases, tmp_path / "kept")


def test_what_cannot_be_used_is_refused_and_the_former_stays(reviewed, tmp_path):
    folders, cases = reviewed
    corrections.gather([folders[0]], cases, tmp_path / "kept")
    before = corrections.read(tmp_path / "kept")
    with pytest.raises(Refused, match="no result; expected"):
        corrections.gather([tmp_path / "kept"], cases, tmp_path / "kept")
    with pytest.raises(Refused, match="no verdict and no corrected labels"):
        corrections.gather([fake.result(tmp_path / "other" / "r", "c")], cases, tmp_path / "kept")
    twin = tmp_path / "results" / "twin"
    shutil.copytree(folders[0], twin)
    with pytest.raises(Refused, match="another review of case case-0"):
        corrections.gather([folders[0], twin], cases, tmp_path / "kept")
    (folders[0] / "candidates.nii.gz").unlink()
    with pytest.raises(Refused, match="no candidates.nii.gz"):
        corrections.gather([folders[0]], cases, tmp_path / "kept")
    assert corrections.read(tmp_path / "kept") == before
    assert [p.name for p in tmp_path.glob(".*.part")] == []


def test_the_former_ones_outlast_an_end_while_they_are_replaced(reviewed, tmp_path, monkeypatch):
    folders, cases = reviewed
    corrections.gather([folders[0]], cases, tmp_path / "kept")
    former, rename = (tmp_path / "kept" / "corrections.json").read_bytes(), Path.rename

    def cut(path, to):
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        corrections.gather([folders[0]], cases, tmp_path / "kept")
    monkeypatch.undo()
    assert (tmp_path / "kept" / "corrections.json").read_bytes() == former
    (tmp_path / "kept").rename(tmp_path / ".kept.old")  # as a kill leaves it
    with pytest.raises(Refused, match="held out"):
        corrections.gather([folders[1]], cases, tmp_path / "kept")
    assert (tmp_path / "kept" / "corrections.json").read_bytes() == former and not (tmp_path / ".kept.old").exists()


def test_an_experiment_that_goes_on_takes_up_corrections_that_a_kill_left_aside(toy_cohort, tmp_path):
    made = experiment.Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    (tmp_path / ".corrections.old").mkdir()
    (tmp_path / ".corrections.old" / "corrections.json").write_text("{}")
    experiment.Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    assert (made.path("corrections") / "corrections.json").read_text() == "{}"
    assert not (tmp_path / ".corrections.old").exists()


def test_falsified_by_hand():
    labels = torch.tensor([[[1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0, 3, 3, 3]]])
    where = torch.tensor([[[1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]]).bool()
    truth = torch.tensor([[[0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1]]]).bool()
    # 1: three voxels rejected, one left of the reference; 2: one rejected, four left; 3: never touched
    assert corrections.falsified(labels, truth, where, 0.1).tolist() == [True, False, False]
    assert corrections.falsified(labels, truth & False, where, 0.1).tolist() == [True, True, False]
    assert corrections.falsified(labels, truth & False, where, 0.2).tolist() == [True, True, False], (
        "one of five is a fifth"
    )
    assert corrections.falsified(labels, truth & False, where, 0.3).tolist() == [True, False, False]
    assert corrections.falsified(labels * 0, truth, where, 0.1).tolist() == []


# -- on the toy patients ----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
    about = json.loads((folder / "experiment.json").read_text()) | {"manifest": str(trained.manifest)}
    (folder / "experiment.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def judged(trained, models, tmp_path_factory):
    """Results of a training case and of a held-out one, each with its largest candidate rejected: a true lesion of both."""
    place, made = tmp_path_factory.mktemp("judged"), {}
    for split in ("train", "test"):
        case = next(c for c in cohort.read_manifest(trained.manifest) if c.split == split)
        result = segmentation.segment(case.read()[0], models)
        made[split] = case.case, results.keep(result, place / case.case, case.ct)
        verdicts.give(made[split][1], 1, "reject", "a look-alike", "Ann")
    return made


def test_candidates_in_the_result_are_those_of_the_table(judged):
    _, folder = judged["train"]
    numbers = readers.read_labels(folder / "candidates.nii.gz", allowed=None)
    table = pd.read_csv(folder / "lesions.csv")
    assert len(table) and set(np.unique(numbers.array)) == {0, *table.candidate}
    codes = readers.read_labels(folder / "ledger.nii.gz", allowed=None).array
    was = segmentation.ledger.tumor_after(codes, "candidates")
    assert torch.equal(numbers.array > 0, was), "a number for each voxel of the mask after this stage, and for no other"
    for row in table.itertuples():
        at = torch.nonzero(numbers.array == row.candidate).double().mean(0) * torch.tensor(numbers.spacing_mm)
        assert np.allclose(at, [row.z_mm, row.y_mm, row.x_mm], atol=1e-6), "the toys' grid is the work grid"


def test_a_result_made_anew_keeps_what_was_said(judged, models, trained, tmp_path):
    _, source = judged["train"]
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    before = verdicts.read(folder)
    case = next(c for c in cohort.read_manifest(trained.manifest) if c.split == "train")
    results.keep(segmentation.segment(case.read()[0], models), folder, case.ct)
    assert verdicts.read(folder) == before and before.outdated(verdicts.fingerprint(folder)) == ""
    assert "Readers: 1 reject (Ann)." in (folder / "report.html").read_text()


def test_a_rejected_candidate_is_a_false_positive_for_the_forest(trained, judged, copy, toy_cohort, capsys):
    (case, good), held = judged["train"], judged["test"][0]
    made = experiment.Experiment.create(copy, toy_cohort, tiny.settings(), "cpu", with_corrections=[good.parent])
    said = capsys.readouterr().out
    assert f"case {held} is held out" in said and "1 rejected candidate" in said
    assert list(made.corrections) == [case]
    assert made.finished("cohort") and made.finished("tumor") and made.finished("consistency")
    assert not made.finished("candidates") and made.taking_up_corrections() == "candidates"
    for stage in ("candidates", "radiomics", "selection", "forest"):
        pipeline.run(made, stage, retrain="candidates")
    assert all(made.finished(s) for s in ("candidates", "radiomics", "selection", "forest"))
    before, after = (e.table("candidates", "candidates.csv").set_index(["case", "candidate"]) for e in (trained, made))
    flipped = after[after.rejected]
    assert len(flipped) >= 1 and set(flipped.index.get_level_values("case")) == {case}
    assert before.loc[flipped.index].is_lesion.all() and not flipped.is_lesion.any() and not flipped.lesion.any()
    others = ~after.rejected
    assert after[others].is_lesion.equals(before[others].is_lesion)
    scores = made.table("forest", "scores.csv").set_index(["case", "candidate"])
    assert not scores.loc[flipped.index].is_lesion.any(), "so the forest has learned"
    again = experiment.Experiment.create(copy, toy_cohort, tiny.settings(), "cpu")
    assert again.corrections == made.corrections and again.finished("candidates"), "resume knows them"
    shutil.rmtree(copy / "corrections")
    assert not again.finished("candidates"), "and misses them"


def test_corrected_labels_stand_in_place_of_the_reference(trained, judged, copy, toy_cohort, call, tmp_path):
    (case, good), bad = judged["train"], judged["test"][1]
    fixed = trained.work(case)[1].numpy().copy()
    fixed[fixed == 2] = 1
    fixed[6, 18:22, 18:22] = 2
    verdicts.correct(bad, fixed, "Ann")
    like = readers.read_labels(good / "labels.nii.gz")
    nifti.write(like.with_array(torch.from_numpy(fixed)), tmp_path / "drawn elsewhere.nii.gz")
    assert call("correct", good, tmp_path / "drawn elsewhere.nii.gz", "--who", "Ann")[0] == 0
    made = experiment.Experiment.create(copy, toy_cohort, tiny.settings(), "cpu", with_corrections=[good, bad])
    assert not made.finished("cohort") and made.taking_up_corrections() == "cohort"
    pipeline.run(made, "cohort", retrain="cohort")
    np.testing.assert_array_equal(made.work(case)[1].numpy(), fixed)
    for other in set(made.cases().case) - {case}:
        assert torch.equal(made.work(other)[1], trained.work(other)[1]), other
    table = made.cases().set_index("case")
    assert table.index[table.corrected].tolist() == [case] and table.loc[case, "tumors"] == 1
    assert made.finished("cohort") and not made.finished("liver")


def test_a_held_out_case_in_the_experiments_own_copy_is_refused(trained, judged, copy):
    """Were the copy tampered with, the stages look once more."""
    held = judged["test"][0]
    for stage, row in (("cohort", {"labels_sha256": "x"}), ("candidates", {"rejected_sha256": "x", "rejected": [1]})):
        kept = {held: {"labels_sha256": "", "rejected_sha256": "", "rejected": [], "who": [], "result": ""} | row}
        files.write_json(copy / "corrections" / corrections.FILE, kept)
        with pytest.raises(Refused, match="corrections of a held-out case"):
            pipeline.run(experiment.Experiment(copy, "cpu"), stage, retrain=stage)
        shutil.copytree(trained.path("cohort"), copy / "cohort", dirs_exist_ok=True)
