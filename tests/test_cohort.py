import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import cohort
from workbench.cohort import Case
from workbench.volume import Refused


def manifest(folder, rows, columns=(*cohort.COLUMNS, "split")):
    (folder / "x.nii.gz").touch()
    pd.DataFrame(rows, columns=columns).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def row(case, patient="p", split="train", ct="x.nii.gz"):
    return [case, patient, ct, "x.nii.gz", split]


def test_paths_are_relative_to_the_manifest(tmp_path):
    (case,) = cohort.read_manifest(manifest(tmp_path, [row("a")]))
    assert case.ct == tmp_path / "x.nii.gz" and case.patient == "p"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a"), row("a")], "case a more than once"),
        ([row("a", split="valid")], "train or test"),
        ([row("a", ct="gone.nii")], "no file"),
        ([row("a"), row("b", split="test")], "patient p in train and in test"),
    ],
)
def test_what_is_refused(tmp_path, rows, says):
    with pytest.raises(Refused, match=says):
        cohort.read_manifest(manifest(tmp_path, rows))


def test_all_train_where_no_split_is_given(tmp_path):
    (case,) = cohort.read_manifest(manifest(tmp_path, [row("a")[:4]], cohort.COLUMNS))
    assert case.split == "train" and case.field_of_view == "whole"


def test_a_cut_field_of_view_is_read_and_a_strange_one_refused(tmp_path):
    columns = (*cohort.COLUMNS, "field_of_view")
    path = manifest(tmp_path, [[*row("a")[:4], "liver box"], [*row("b")[:4], "whole"]], columns)
    assert [c.field_of_view for c in cohort.read_manifest(path)] == ["liver box", "whole"]
    with pytest.raises(Refused, match="field_of_view 'half'; expected whole or liver box"):
        cohort.read_manifest(manifest(tmp_path, [[*row("a")[:4], "half"]], columns))


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(Refused, match="Add labels"):
        cohort.read_manifest(manifest(tmp_path, [["a", "p", "x.nii.gz"]], ["case", "patient", "ct"]))
    with pytest.raises(Refused, match="no such file"):
        cohort.read_manifest(tmp_path / "none.csv")


def cases(patients):
    return [Case(f"c{i}", p, None, None, "train") for i, p in enumerate(patients)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=30), st.integers(2, 4))
def test_a_patient_is_in_one_fold(patients, count):
    if len(set(patients)) < max(count, 3):
        return
    made = cases(patients)
    of = cohort.folds(made, {c.case: float(i) for i, c in enumerate(made)}, count)
    together = pd.DataFrame({"patient": patients, "fold": [of[c.case] for c in made]})
    assert together.groupby("patient").fold.nunique().max() == 1
    assert set(of.values()) == set(range(count))


def test_tumor_load_is_spread():
    made = cases("abcdef")
    of = cohort.folds(made, dict(zip([c.case for c in made], [60, 50, 40, 3, 2, 1], strict=True)), 3)
    load = [sum(ml for c, ml in zip(made, [60, 50, 40, 3, 2, 1], strict=True) if of[c.case] == f) for f in range(3)]
    assert max(load) - min(load) <= 20


def test_each_fold_has_whole_fields_of_view():
    made = [Case(n, n, None, None, field_of_view="whole" if n in "be" else "liver box") for n in "abcdef"]
    of = cohort.folds(made, dict(zip("abcdef", [60, 50, 40, 3, 0, 1], strict=True)), 2)
    assert of["b"] != of["e"]


def test_too_few_patients_are_refused():
    with pytest.raises(Refused, match="2 training patients"):
        cohort.folds(cases("aab"), {f"c{i}": 0.0 for i in range(3)}, 2)


def test_voxel_hash_sees_voxels_only():
    a = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert cohort.voxel_hash(a) == cohort.voxel_hash(np.asfortranarray(a)) != cohort.voxel_hash(a + 1)


def test_phantoms_are_kept_and_held_out(tmp_path):
    told = []
    path = cohort.write_phantoms(tmp_path, 3, 5, progress=lambda *a: told.append(a))
    first = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*/ct.nii.gz")}
    table = pd.read_csv(path)
    assert table.split.tolist() == ["train", "train", "test"] and len(told) == 3
    read = cohort.read_manifest(path)
    ct, labels = read[0].read()
    assert ct.shape == labels.shape and set(labels.array.unique().tolist()) <= {0, 1, 2}
    cohort.write_phantoms(tmp_path, 3, 5)
    assert {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*/ct.nii.gz")} == first
