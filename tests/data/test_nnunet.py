import json

import nibabel
import numpy as np
import pandas as pd
import pytest

from workbench.data.export import nnunet
from workbench.volume import Refused

AFFINE = np.array(
    [[0, 0, -2.5, 7.1], [0.7, 0, 0, -3.3], [0, 0.9, 0, 11.7], [0, 0, 0, 1.0]]
)  # P, S, L: no axis in its place


def scan(folder, case, seed):
    """A noise CT whose axes are turned and flipped, and its labels, stored along the axes that nibabel prefers."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-100, 200, (9, 7, 5)).astype(np.int16)
    labels = rng.integers(0, 3, hu.shape).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(hu, AFFINE), folder / f"{case}.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(nibabel.Nifti1Image(labels, AFFINE)), folder / f"{case}-labels.nii.gz")
    return hu, labels


@pytest.fixture
def cohort(tmp_path):
    """Six training scans of four patients and two held-out ones, in no order; (manifest, what each case holds)."""
    patients = {"f": "p1", "b": "p1", "d": "p2", "a": "p2", "e": "p3", "c": "p4", "t": "p5", "s": "p6"}
    held = {case: scan(tmp_path, case, n) for n, case in enumerate(patients)}
    rows = [[c, p, f"{c}.nii.gz", f"{c}-labels.nii.gz", "test" if c in "ts" else "train"] for c, p in patients.items()]
    pd.DataFrame(rows, columns=["case", "patient", "ct", "labels", "split"]).to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv", held


def change(manifest, **columns):
    pd.read_csv(manifest).assign(**columns).to_csv(manifest, index=False)


def test_the_layout_and_dataset_json(cohort, tmp_path):
    place = nnunet.export(cohort[0], tmp_path / "raw", 7, "Toy", folds=2)
    assert place == tmp_path / "raw" / "Dataset007_Toy"
    files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
    numbers = [f"Toy_{n:04d}" for n in range(1, 9)]
    assert files == [
        "cases.csv",
        "dataset.json",
        *(f"imagesTr/{n}_0000.nii.gz" for n in numbers[:6]),
        *(f"imagesTs/{n}_0000.nii.gz" for n in numbers[6:]),
        *(f"labelsTr/{n}.nii.gz" for n in numbers[:6]),
        *(f"labelsTs/{n}.nii.gz" for n in numbers[6:]),
        "splits_final.json",
    ]
    assert json.loads((place / "dataset.json").read_text()) == {
        "name": "Toy",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset007_Toy"]


def test_voxels_and_grid_are_those_of_the_ct(cohort, tmp_path):
    place = nnunet.export(cohort[0], tmp_path / "raw", folds=2)
    for row in pd.read_csv(place / "cases.csv").itertuples():
        hu, labels = cohort[1][row.case]
        images, masks = nnunet.SIDES[row.split]
        for file, array in ((f"{images}/{row.name}_0000.nii.gz", hu), (f"{masks}/{row.name}.nii.gz", labels)):
            written = nibabel.load(place / file)
            assert np.array_equal(np.asarray(written.dataobj), array) and written.get_data_dtype() == array.dtype
            assert np.array_equal(written.affine, nibabel.load(tmp_path / f"{row.case}.nii.gz").affine)


def test_folds_keep_patients_together(cohort, tmp_path):
    place = nnunet.export(cohort[0], tmp_path / "raw", folds=2)
    table = pd.read_csv(place / "cases.csv").set_index("name")
    assert table.case.tolist() == sorted("abcdefst") and table.fold[table.split == "test"].eq(-1).all()
    folds = json.loads((place / "splits_final.json").read_text())
    train = set(table.index[table.split == "train"])
    assert len(folds) == 2
    for n, fold in enumerate(folds):
        assert set(fold["val"]) == set(table.index[table.fold == n])
        assert set(fold["train"]) | set(fold["val"]) == train
        assert not set(table.patient[fold["train"]]) & set(table.patient[fold["val"]])


def test_names_do_not_depend_on_the_order_of_the_manifest(cohort, tmp_path):
    one = nnunet.export(cohort[0], tmp_path / "one", folds=2)
    pd.read_csv(cohort[0]).iloc[::-1].to_csv(cohort[0], index=False)
    other = nnunet.export(cohort[0], tmp_path / "other", folds=2)
    files = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
    assert files and all((one / f).read_bytes() == (other / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"number": 0}, "1 to 999"),
        ({"number": 1000}, "1 to 999"),
        ({"name": "../Toy"}, "letters and digits"),
        ({"folds": 5}, "4 training patients"),
    ],
)
def test_what_is_refused(cohort, tmp_path, choice, says):
    with pytest.raises(Refused, match=says):
        nnunet.export(cohort[0], tmp_path / "raw", **choice, progress=lambda *_: pytest.fail("a scan was read"))
    assert not (tmp_path / "raw").exists()


def test_a_dataset_that_is_there_is_left_alone(cohort, tmp_path):
    (tmp_path / "raw" / "Dataset501_Other").mkdir(parents=True)
    with pytest.raises(Refused, match="a dataset of this number"):
        nnunet.export(cohort[0], tmp_path / "raw", folds=2)
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset501_Other"]


def test_a_cohort_without_training_cases_is_refused(cohort, tmp_path):
    change(cohort[0], split="test")
    with pytest.raises(Refused, match="no training case"):
        nnunet.export(cohort[0], tmp_path / "raw")


def test_a_scan_that_is_there_twice_is_refused(cohort, tmp_path):
    image = nibabel.load(tmp_path / "f.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "s.nii.gz")  # held out, in other axes
    labels = nibabel.load(tmp_path / "f-labels.nii.gz")
    nibabel.save(labels, tmp_path / "s-labels.nii.gz")
    with pytest.raises(Refused, match=r"same voxels in cases f \(patient p1, train\) and s \(patient p6, test\)"):
        nnunet.export(cohort[0], tmp_path / "raw", folds=2)
    assert not list((tmp_path / "raw").iterdir())


def test_nothing_is_left_when_a_file_is_bad(cohort, tmp_path):
    file = tmp_path / "s-labels.nii.gz"  # next to the last to be written
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(Refused, match="s-labels"):
        nnunet.export(cohort[0], tmp_path / "raw", folds=2)
    assert not list((tmp_path / "raw").iterdir())


def test_without_held_out_cases_there_is_no_test_folder(cohort, tmp_path):
    change(cohort[0], split="train")
    place = nnunet.export(cohort[0], tmp_path / "raw")
    assert not (place / "imagesTs").exists() and json.loads((place / "dataset.json").read_text())["numTraining"] == 8
