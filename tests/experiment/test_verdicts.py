"""Verdicts and corrected labels: kept, read back, told from those on a former result, refused when damaged."""

import json
from pathlib import Path

import fake_folders as fake
import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from workbench.experiment import verdicts
from workbench.volume import Refused


@pytest.fixture
def folder(tmp_path):
    return fake.result(tmp_path / "case 1 result", "case 1")


def test_a_verdict_comes_back_with_who_when_and_what(folder):
    assert verdicts.read(folder) == verdicts.Review()
    verdicts.give(folder, 2, "reject", "a vessel, ½ cut", "Ann")
    verdicts.give(folder, 1, "accept")
    sha = verdicts.fingerprint(folder)
    said = verdicts.read(folder).of(sha)
    assert sorted(said) == [1, 2] and said[1].who and said[1].note == ""
    v = said[2]
    assert (v.verdict, v.note, v.who, v.result_sha256) == ("reject", "a vessel, ½ cut", "Ann", sha)
    assert v.when.endswith("+00:00") and len(v.when) == 25
    verdicts.give(folder, 2, "needs edit")
    assert [(v.candidate, v.verdict) for v in sorted(verdicts.read(folder).verdicts, key=lambda v: v.candidate)] == [
        (1, "accept"),
        (2, "needs edit"),
    ]
    verdicts.withdraw(folder, 2)
    assert list(verdicts.read(folder).of(sha)) == [1]


def test_what_cannot_be_said_is_refused(folder, tmp_path):
    with pytest.raises(Refused, match="'maybe'; expected accept, reject, needs edit"):
        verdicts.give(folder, 1, "maybe")
    with pytest.raises(Refused, match="no candidate 9"):
        verdicts.give(folder, 9, "reject")
    with pytest.raises(Refused, match="no result.json"):
        verdicts.give(tmp_path, 1, "reject")
    assert not (folder / "verdicts").exists()


def test_a_result_that_changed_is_said_and_its_old_verdicts_are_kept(folder):
    verdicts.give(folder, 1, "accept")
    verdicts.give(folder, 2, "reject")
    before = verdicts.fingerprint(folder)
    assert verdicts.read(folder).outdated(before) == ""
    table = pd.read_csv(folder / "lesions.csv")
    table.loc[0, "forest_score"] = 0.5
    table.to_csv(folder / "lesions.csv", index=False)
    after = verdicts.fingerprint(folder)
    assert after != before
    review = verdicts.read(folder)
    assert review.of(after) == {} and len(review.of(before)) == 2
    assert review.outdated(after).startswith("the result has changed since 2 verdicts (last on 2")
    verdicts.give(folder, 1, "reject")
    review = verdicts.read(folder)
    assert review.of(before)[1].verdict == "accept" and review.of(after)[1].verdict == "reject"


@pytest.mark.parametrize("name", ["lesions.csv", "ledger.nii.gz", "labels.nii.gz"])
def test_the_fingerprint_sees_each_part(folder, name):
    before = verdicts.fingerprint(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    assert verdicts.fingerprint(folder) != before


DAMAGE = {
    "no JSON": lambda held: None,
    "no verdicts": lambda held: held.pop("verdicts"),
    "format 7": lambda held: held.update(format=7),
    "verdicts that are no list": lambda held: held.update(verdicts={}),
    "verdict 1: found the verdict 'maybe'": lambda held: held["verdicts"][0].update(verdict="maybe"),
    "verdict 1: found candidate '1'": lambda held: held["verdicts"][0].update(candidate="1"),
    "verdict 1: found candidate True": lambda held: held["verdicts"][0].update(candidate=True),
    "verdict 1: found the fields verdict": lambda held: held["verdicts"][0].pop("candidate"),
    "verdict 1: found 5": lambda held: held.update(verdicts=[5]),
    "corrected labels: found 'x'": lambda held: held.update(corrected="x"),
    "a name without a folder": lambda held: held.update(
        corrected=dict(file="../labels.nii.gz", sha256="", who="", when="", result_sha256="")
    ),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_file_is_one_clear_line(folder, said):
    verdicts.give(folder, 1, "accept")
    file = folder / "verdicts" / "verdicts.json"
    held = json.loads(file.read_text())
    if said == "no JSON":
        file.write_text(file.read_text()[:40])
    else:
        DAMAGE[said](held)
        file.write_text(json.dumps(held))
    with pytest.raises(Refused) as caught:
        verdicts.read(folder)
    assert said in str(caught.value) and "verdicts.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("oblique", [False, True])
def test_corrected_labels_lie_on_the_files_own_grid(tmp_path, oblique):
    folder = fake.result(tmp_path / "r", "c", oblique=oblique)
    fixed = fake.arrays()["labels"].copy()
    fixed[2, 3:6, 30] = 2
    first = verdicts.correct(folder, fixed, "Ann")
    np.testing.assert_array_equal(verdicts.corrected(folder).array.numpy(), fixed)
    own, kept = nibabel.load(folder / "labels.nii.gz"), nibabel.load(first)
    assert kept.affine.tobytes() == own.affine.tobytes() and kept.shape == own.shape
    assert kept.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(kept.dataobj) == 2, fixed[:, ::-1, ::-1].transpose(2, 1, 0) == 2)
    fixed[2] = 0
    verdicts.give(folder, 1, "needs edit")
    second = verdicts.correct(folder, fixed)
    assert sorted(p.name for p in (folder / "verdicts").iterdir()) == [second.name, "verdicts.json"] and first != second
    about = verdicts.read(folder).corrected
    assert about.file == second.name and about.result_sha256 == verdicts.fingerprint(folder)
    assert len(verdicts.read(folder).verdicts) == 1, "a verdict stays when labels are kept"


def test_corrected_labels_that_are_none_are_refused(folder):
    labels = fake.arrays()["labels"]
    with pytest.raises(Refused, match="expected the volume's grid"):
        verdicts.correct(folder, labels[1:])
    with pytest.raises(Refused, match=r"the values \[3\]"):
        verdicts.correct(folder, labels + (labels == 2))
    assert verdicts.corrected(folder) is None
    file = verdicts.correct(folder, labels, "Ann")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Refused, match="another file than the one that was kept; expected the labels of Ann"):
        verdicts.corrected(folder)
    file.unlink()
    with pytest.raises(Refused, match="no such file"):
        verdicts.corrected(folder)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_labels_drawn_elsewhere_come_in_by_the_command_line(tmp_path, call, suffix):
    """As another program writes them: another order and direction of the axes, another type."""
    folder = fake.result(tmp_path / "r", "c", oblique=True)
    fixed = fake.arrays()["labels"].copy()
    fixed[2, 3:6, 30] = 2
    fake.write_nifti(tmp_path / "drawn.nii.gz", fixed.astype(np.int16), oblique=True)
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "drawn.nii.gz")), "SAR")
    sitk.WriteImage(turned, str(tmp_path / f"fixed{suffix}"))
    status, out, err = call("correct", folder, tmp_path / f"fixed{suffix}", "--who", "Ann")
    assert status == 0 and "1 piece(s) of tumor, 0.045 ml in all, touch no liver" in err
    assert out.strip().startswith(str(folder / "verdicts" / "labels-"))
    np.testing.assert_array_equal(verdicts.corrected(folder).array.numpy(), fixed)
    about = verdicts.read(folder).corrected
    assert (about.who, about.file) == ("Ann", Path(out.strip()).name)
    by_panel = fake.result(tmp_path / "other", "c", oblique=True)
    assert verdicts.correct(by_panel, fixed, "Ann").read_bytes() == Path(out.strip()).read_bytes()
    assert call("correct", folder, tmp_path / f"fixed{suffix}")[0] == 0 and verdicts.read(folder).corrected.who != ""


def test_labels_of_another_grid_or_with_other_values_are_refused(tmp_path, call):
    folder = fake.result(tmp_path / "r", "c")
    labels = fake.arrays()["labels"]
    for name, array, oblique in (
        ("cut", labels[1:], False),
        ("turned", labels, True),
        ("three", labels * 3 // 2, False),
    ):
        fake.write_nifti(tmp_path / f"{name}.nii.gz", array, oblique)
    for name, said in (
        ("cut", "the grid of"),
        ("turned", "mm away from those of"),
        ("three", "label values 0, 1, 3; expected only 0, 1, 2"),
        ("none", "no such file"),
    ):
        status, out, err = call("correct", folder, tmp_path / f"{name}.nii.gz")
        assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
        assert said in err and f"{name}.nii.gz" in err, err
    assert not (folder / "verdicts").exists()
    status, _, err = call("correct", tmp_path, tmp_path / "cut.nii.gz")
    assert status == 2 and "no result.json" in err
