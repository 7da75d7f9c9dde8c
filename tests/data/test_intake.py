"""Collections in the layouts in which they are handed out, each built here in that layout; real ones where they lie beside the checkout."""

import json
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import tiny
from dicoms import PLAIN, TILTED, abdomen, series
from pydicom.sr.codedict import codes

from workbench.data import cohort, intake, readers
from workbench.data.export import nnunet
from workbench.data.readers import archive, chaos, meanings, nifti, scans, tissue, walk
from workbench.volume import Refused

AFFINE = np.diag([-0.7, -0.9, 5.0, 1.0])
ML = 0.7 * 0.9 * 5 / 1000


def save(path, array, affine=AFFINE):
    """`array` [slice row column] as NIfTI whose axes are column, row, slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine), path)


def png(path, mask):
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(mask), path)


def take(kind, root, out):
    """The manifest as a table, the lines, and what it came to."""
    lines = []
    done = intake.take(kind, root, out, lines.append)
    return pd.read_csv(done.manifest, dtype=str, keep_default_na=False).set_index("case"), lines, done


def holds(table, out, case, labels, hu=None):
    """CT and labels of a case, read from the manifest, are these [slice row column], and its volumes too."""
    (one,) = (c for c in cohort.read_manifest(out / "manifest.csv") if c.case == case)
    ct, found = one.read()
    stored = lambda volume: ct.source.to_file_order(volume.array.numpy()).transpose(2, 1, 0)
    assert np.array_equal(stored(found), labels)
    assert hu is None or np.array_equal(stored(ct), hu)
    voxel_ml = ct.voxel_ml
    assert float(table.liver_ml[case]) == pytest.approx((labels > 0).sum() * voxel_ml, abs=1e-4)
    assert float(table.tumor_ml[case]) == pytest.approx((labels == 2).sum() * voxel_ml, abs=1e-4)


# -- layouts ---------------------------------------------------------------------------------------------------------------


def test_lits(tmp_path):
    made = {n: abdomen(seed=n) for n in (3, 28)}
    for n, (hu, labels) in made.items():
        batch = tmp_path / "root" / f"Training Batch {1 if n == 3 else 2}"
        save(batch / f"volume-{n}.nii", hu)
        save(batch / f"segmentation-{n}.nii", labels)
    save(tmp_path / "root" / "volume-130.nii.gz", abdomen(seed=5)[0])
    table, lines, done = take("lits", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["lits-3", "lits-28"] and (done.refused, done.unlabelled) == (0, 1)
    assert lines[-1] == "lits-130: left out, it has no labels"
    assert table.ct["lits-3"] == "../root/Training Batch 1/volume-3.nii"
    for n, (hu, labels) in made.items():
        holds(table, tmp_path / "data", f"lits-{n}", labels, hu)
    assert not (tmp_path / "data" / "labels").exists() and not (tmp_path / "data" / "ct").exists()
    assert list(table.columns) == [c for c in intake.COLUMNS if c != "case"]


def decathlon(root, names, labels, value=lambda labels: labels):
    about = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": labels,
        "training": [],
        "test": ["./imagesTs/liver_132.nii.gz"],
    }
    for n in names:
        hu, truth = abdomen(seed=n)
        save(root / "imagesTr" / f"liver_{n}.nii.gz", hu)
        save(root / "labelsTr" / f"liver_{n}.nii.gz", value(truth).astype(np.uint8))
        about["training"].append({"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"})
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def test_msd(tmp_path):
    decathlon(tmp_path / "Task03_Liver", (0, 12), {"0": "background", "1": "liver", "2": "cancer"})
    table, lines, done = take("msd", tmp_path, tmp_path / "data")
    assert table.index.tolist() == ["liver_0", "liver_12"] and done.unlabelled == 1
    assert table.labels["liver_12"] == "../Task03_Liver/labelsTr/liver_12.nii.gz"
    holds(table, tmp_path / "data", "liver_12", abdomen(seed=12)[1], abdomen(seed=12)[0])


def test_msd_in_another_coding(tmp_path):
    names = {"0": "background", "5": "Liver", "7": "liver tumour", "9": "spleen"}
    recode = lambda labels: np.array([9, 5, 7])[labels]
    decathlon(tmp_path / "root", (0,), names, recode)
    table, lines, _ = take("msd", tmp_path / "root", tmp_path / "data")
    assert table.labels["liver_0"] == "labels/liver_0.nii.gz"
    assert lines[0].endswith("labels written in LiTS's coding (5 to 1, 7 to 2); dropped: spleen (1.58 ml)")
    holds(table, tmp_path / "data", "liver_0", abdomen(seed=0)[1])


def test_a_value_that_means_something_else_is_not_taken_for_liver_or_tumor(tmp_path):
    """As another organ's; a CSV says the same with one value alone, and what it does not name is dropped."""
    decathlon(tmp_path / "root", (0,), {"0": "background", "1": "liver", "2": "kidney"})
    table, lines, _ = take("msd", tmp_path / "root", tmp_path / "data")
    truth = np.array((0, 1, 0))[abdomen(seed=0)[1]]
    holds(table, tmp_path / "data", "liver_0", truth)
    dropped = f"{(abdomen(seed=0)[1] == 2).sum() * ML:.2f} ml"
    assert f"dropped: kidney ({dropped})" in lines[0] and table.tumor_labels["liver_0"] == "none"  # no tumor is labelled
    place = tmp_path / "root"
    (place / "list.csv").write_text("case,ct,labels,liver\none,imagesTr/liver_0.nii.gz,labelsTr/liver_0.nii.gz,1\n")
    table, lines, _ = take("csv", place / "list.csv", tmp_path / "more")
    holds(table, tmp_path / "more", "one", truth)
    assert f"dropped: value 2 ({dropped})" in lines[0]


def test_tumors_without_a_liver_are_refused(tmp_path):
    """As of the decathlon's hepatic vessels, whose 1 is no liver: the liver would be the tumor."""
    root = decathlon(tmp_path / "root", (0,), {"0": "background", "1": "Vessel", "2": "Tumour"})
    with pytest.raises(Refused, match="found labels called Vessel, Tumour; expected one called liver"):
        intake.take("msd", tmp_path / "root", tmp_path / "data")
    (root / "list.csv").write_text("case,ct,labels,tumor\none,imagesTr/liver_0.nii.gz,labelsTr/liver_0.nii.gz,2\n")
    lines = []
    with pytest.raises(Refused, match="1 cases refused"):
        intake.take("csv", root / "list.csv", tmp_path / "data", lines.append)
    assert re.search(r"ml of tumor \(2\) and no liver \(1\); expected a liver around the tumors", lines[0])
    (root / "m.csv").write_text(f"case,patient,ct,labels\na,a,imagesTr/liver_0.nii.gz,only.nii.gz\n")
    save(root / "only.nii.gz", np.where(abdomen(seed=0)[1] == 2, 2, 0).astype(np.uint8))
    assert "and no liver (1)" in next(iter(cohort.check(root / "m.csv"))).message


@pytest.mark.parametrize(
    ("names", "value", "joined"),
    [
        ({"liver": 2, "tumor": 1, "liver_vessel": 3}, [0, 2, 1, 3, 3], "liver_vessel"),
        ({"liver": 1, "tumor": 2, "cyst": 4}, [0, 1, 2, 4, 4], "cyst"),
        ({"liver": 1, "tumor": 2, "portal vein": 3}, [0, 1, 2, 3, 3], "portal vein"),
        ({"liver": 1, "hcc": 2, "something": 7}, [0, 1, 2, 7, 7], "something"),
        ({**{f"liver_segment_{n}": n for n in range(2, 9)}, "caudate lobe": 1, "tumor": 9, "vessel": 10}, [0, 1, 9, 10, 10], "vessel"),
        ({"liver": 1, "tumor": 2, "spleen": 5}, [0, 1, 2, 1, 5], ""),
    ],
)  # fmt: skip
def test_what_lies_in_the_liver_belongs_to_it(tmp_path, names, value, joined):
    """Another class inside the liver, and a piece of it elsewhere, which is dropped with its volume."""
    hu, labels = abdomen((10, 30, 30))
    coded = labels.copy()
    inside = np.zeros_like(coded, bool)
    inside[5:8, 3:5, 3:4] = labels[5:8, 3:5, 3:4] == 1
    coded[inside] = 3
    coded[:, 25:, 25:] = 4
    place = tmp_path / "Dataset001_L"
    save(place / "imagesTr" / "a_0000.nii.gz", hu)
    save(place / "labelsTr" / "a.nii.gz", np.array(value, np.uint8)[coded])
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **names}, "file_ending": ".nii.gz"}
    (place / "dataset.json").write_text(json.dumps(about))
    table, lines, _ = take("nnunet", place, tmp_path / "data")
    holds(table, tmp_path / "data", "a", labels)
    assert not joined or f"joined to the liver: {joined} ({inside.sum() * ML:.2f} ml)" in lines[0]
    assert f"dropped: {joined or 'spleen'} ({250 * ML:.2f} ml)" in lines[0]


def test_a_list_that_leads_out_of_its_collection_is_refused(tmp_path):
    root = decathlon(tmp_path / "root", (0,), {"0": "background", "1": "liver"})
    save(tmp_path / "outside.nii.gz", abdomen()[0])
    about = json.loads((root / "dataset.json").read_text())
    about["training"][0]["image"] = "../outside.nii.gz"
    (root / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(Refused, match=r"a file '\.\./outside.nii.gz'; expected files below"):
        intake.take("msd", root, tmp_path / "data")


def patient(place, seed=0, cosines=PLAIN, **masks_changes):
    """A patient of 3D-IRCADb-01: two tumors of the liver, a cyst in it, one tumor elsewhere; (HU, labels)."""
    hu, labels = abdomen(seed=seed)
    series(place / "PATIENT_DICOM", hu, cosines=cosines)
    tumor = labels == 2
    first = tumor.copy()
    first[:, 3:] = False
    elsewhere = np.zeros_like(tumor)
    elsewhere[0, 7, 8:] = True
    cyst = np.zeros_like(tumor)
    cyst[3, 1, 2] = True
    for name, mask in (("liver", labels > 0), ("livertumor01", first), ("livertumors", tumor & ~first),
                       ("leftsurretumor", elsewhere), ("livercyst", cyst), ("bone", elsewhere)):  # fmt: skip
        series(
            place / "MASKS_DICOM" / name,
            mask * 255,
            cosines=cosines,
            Modality="OT",
            RescaleIntercept=-1024,
            **masks_changes,
        )
    return hu, labels


def zipped(folder):
    """The folder as an archive in its place."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w") as z:
        for file in sorted(folder.rglob("*")):
            z.write(file, file.relative_to(folder.parent))
    shutil.rmtree(folder)
    return path


@pytest.mark.parametrize("cosines", [PLAIN, TILTED, (1, 0, 0, 0, -1, 0)], ids=["plain", "tilted", "feet first"])
def test_ircadb(tmp_path, cosines):
    hu, labels = patient(tmp_path / "3Dircadb1" / "3Dircadb1.7", cosines=cosines)
    table, lines, _ = take("ircadb", tmp_path / "3Dircadb1", tmp_path / "data")
    assert table.ct["3Dircadb1.7"] == "../3Dircadb1/3Dircadb1.7/PATIENT_DICOM"
    assert "labels written from liver, livertumor01, livertumors; dropped: bone (0.01 ml), leftsurretumor (0.01 ml)" in lines[0]
    holds(table, tmp_path / "data", "3Dircadb1.7", labels, hu)


@pytest.mark.parametrize("how", ["parts", "whole"])
def test_ircadb_zipped(tmp_path, how):
    place = tmp_path / "root" / "3Dircadb1.7"
    hu, labels = patient(place)
    for part in ("PATIENT_DICOM", "MASKS_DICOM"):
        zipped(place / part)
    if how == "whole":
        zipped(place)
    table, lines, _ = take("ircadb", tmp_path / "root", tmp_path / "data")
    assert table.ct["3Dircadb1.7"] == "ct/3Dircadb1.7.nii.gz" and "CT written from the archive" in lines[0]
    holds(table, tmp_path / "data", "3Dircadb1.7", labels, hu)
    assert "Doe" not in (tmp_path / "data" / "imported" / "3Dircadb1.7.json").read_text()


def test_ircadb_masks_without_positions_go_by_their_names(tmp_path):
    hu, labels = patient(tmp_path / "root" / "p", ImagePositionPatient=None, ImageOrientationPatient=None)
    holds(take("ircadb", tmp_path / "root", tmp_path / "data")[0], tmp_path / "data", "p", labels, hu)
    for file in sorted((tmp_path / "root" / "p" / "MASKS_DICOM" / "liver").iterdir()):
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(Refused, match="1 cases refused"):
        intake.take("ircadb", tmp_path / "root", tmp_path / "other", lambda _: None)


def test_ircadb_masks_are_matched_by_position_not_by_name(tmp_path):
    """The same slices under names in reversed order."""
    hu, labels = patient(tmp_path / "root" / "p")
    folder = tmp_path / "root" / "p" / "MASKS_DICOM" / "liver"
    for k in range(6):
        (folder / f"image_{k}").rename(folder / f"was_{k}")
    for k in range(6):
        (folder / f"was_{k}").rename(folder / f"image_{5 - k}")
    holds(take("ircadb", tmp_path / "root", tmp_path / "data")[0], tmp_path / "data", "p", labels, hu)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("aside", "no image within 0.01 mm of image_2; expected one for each slice of the CT"),
        ("grey", "values 0, 100, 255; expected 0 and one other"),
        ("gone", "5 images of 11 x 9; expected 6 of 11 x 9, as the CT has"),
    ],
)
def test_ircadb_masks_that_do_not_fit_their_ct_are_refused(tmp_path, fault, says):
    patient(tmp_path / "root" / "p")
    file = tmp_path / "root" / "p" / "MASKS_DICOM" / "liver" / "image_2"
    image = pydicom.dcmread(file)
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [x, y + 0.5 * (fault == "aside"), z]
    if fault == "grey":
        grey = np.where(np.arange(11) < 3, 100, 255) * (image.pixel_array > 0)
        image.PixelData = grey.astype(np.int16).tobytes()
    image.save_as(file)
    if fault == "gone":
        file.unlink()
    lines = []
    with pytest.raises(Refused, match="1 cases refused"):
        intake.take("ircadb", tmp_path / "root", tmp_path / "data", lines.append)
    assert says in lines[0]


def test_tumor_outside_the_liver_is_told(tmp_path):
    place = tmp_path / "root" / "p"
    _, labels = patient(place)
    shutil.rmtree(place / "MASKS_DICOM" / "livertumors")
    (place / "MASKS_DICOM" / "bone").rename(place / "MASKS_DICOM" / "livertumors")
    table, lines, _ = take("ircadb", tmp_path / "root", tmp_path / "data")
    assert "0.01 ml of tumor outside the liver's mask" in lines[0]
    truth = np.where((labels == 2) & (np.arange(9)[:, None] >= 3), 1, labels)  # the second tumor is gone, and is liver
    truth[0, 7, 8:] = 2
    holds(table, tmp_path / "data", "p", truth)


def test_nnunet_and_back(tmp_path):
    """Our own export comes back with its cases, patients and split; a region and another coding too."""
    rows = []
    for n, (case, person, split) in enumerate(
        [("a", "p1", "train"), ("b", "p2", "train"), ("c", "p3", "train"), ("d", "p4", "test")]
    ):
        hu, labels = abdomen(seed=n)
        save(tmp_path / f"{case}.nii.gz", hu)
        save(tmp_path / f"{case}-labels.nii.gz", labels)
        rows.append([case, person, f"{case}.nii.gz", f"{case}-labels.nii.gz", split])
    pd.DataFrame(rows, columns=[*cohort.COLUMNS, "split"]).to_csv(tmp_path / "m.csv", index=False)
    place = nnunet.export(tmp_path / "m.csv", tmp_path / "nnUNet_raw", folds=2)
    table, *_ = take("nnunet", tmp_path / "nnUNet_raw", tmp_path / "data")
    assert table.patient.to_dict() == {r[0]: r[1] for r in rows} and table.split.to_dict() == {r[0]: r[4] for r in rows}
    holds(table, tmp_path / "data", "d", abdomen(seed=3)[1], abdomen(seed=3)[0])

    (place / "cases.csv").unlink()
    about = json.loads((place / "dataset.json").read_text())
    about["labels"] = {"background": 0, "vessel": 3, "liver": [1, 2], "tumor": 2, "ignore": 4}
    (place / "dataset.json").write_text(json.dumps(about))
    table, *_ = take("nnunet", place, tmp_path / "more")
    assert table.index.tolist() == [f"Liver_{n:04d}" for n in (1, 2, 3, 4)]
    holds(table, tmp_path / "more", "Liver_0001", abdomen(seed=0)[1])


def donor(place, first, shape=(12, 40, 44), cosines=PLAIN, seed=0):
    """A donor of CHAOS whose PNGs begin at the lowest or the topmost slice; (HU, labels) in the order of the slices."""
    hu, labels = abdomen(shape, seed)
    series(place / "DICOM_anon", hu, cosines=cosines, names="i{:04d},0000b.dcm")
    upwards = np.cross(cosines[:3], cosines[3:])[2] > 0
    stack = labels if (first == "lowest") == upwards else labels[::-1]
    for k, mask in enumerate(stack):
        png(place / "Ground" / f"liver_GT_{k:03d}.png", ((mask > 0) * 255).astype(np.uint8))
    return hu, (labels > 0).astype(np.uint8)


@pytest.mark.parametrize("first", ["lowest", "topmost"])
@pytest.mark.parametrize("cosines", [PLAIN, (1, 0, 0, 0, -1, 0)], ids=["head first", "feet first"])
def test_chaos_in_either_order(tmp_path, first, cosines):
    hu, labels = donor(tmp_path / "Train_Sets" / "CT" / "14", first, cosines=cosines)
    donor(tmp_path / "Test_Sets" / "CT" / "3", "lowest", seed=1)
    shutil.rmtree(tmp_path / "Test_Sets" / "CT" / "3" / "Ground")
    (tmp_path / "Train_Sets" / "MR" / "14" / "DICOM_anon").mkdir(parents=True)
    table, lines, done = take("chaos", tmp_path, tmp_path / "data")
    assert table.index.tolist() == ["chaos-ct-14"] and done.unlabelled == 1
    assert f"labels written from 12 PNGs, the first the {first} (1.000 of it on soft tissue, otherwise 0." in lines[1]
    holds(table, tmp_path / "data", "chaos-ct-14", labels, hu)


def mirrored(place):
    for file in (place / "Ground").iterdir():
        import SimpleITK as sitk

        png(file, np.ascontiguousarray(sitk.GetArrayFromImage(sitk.ReadImage(file))[:, ::-1]))


def symmetric(place):
    files = sorted((place / "Ground").iterdir())
    for low, high in zip(files[:6], files[:5:-1], strict=True):
        shutil.copy(low, high)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (mirrored, "of the mask on soft tissue; expected 0.9 or more in one order"),
        (symmetric, "The order of these masks cannot be told"),
        (lambda p: (p / "Ground" / "liver_GT_003.png").unlink(), "found 11 PNG files; expected 12"),
        (
            lambda p: png(p / "Ground" / "liver_GT_003.png", np.zeros((40, 43), np.uint8)),
            "43 x 40 pixels of 1 values; expected 44 x 40",
        ),
        (
            lambda p: png(p / "Ground" / "liver_GT_003.png", np.full((40, 44), 63, np.uint8)),
            "values 0, 63, 255; expected 0 and one",
        ),
        (lambda p: (p / "Ground" / "liver_GT_003.png").write_bytes(b"no"), "cannot be read"),
    ],
)
def test_chaos_refuses_what_it_cannot_tell(tmp_path, fault, says):
    donor(tmp_path / "14", "topmost")
    fault(tmp_path / "14")
    (scan,) = chaos.list_cases(tmp_path)
    with pytest.raises(Refused, match=says):
        chaos.read(scan)


def test_chaos_asks_for_both_a_large_share_and_a_gap(tmp_path):
    """Solvable by hand: soft tissue in the left half of the two lowest of six slices, or everywhere."""
    half = np.full((6, 4, 10), -900, np.int16)
    half[:2, :, :5] = 60
    mask = np.zeros((6, 4, 10), bool)
    ct = readers.read(series(tmp_path / "half", half))
    mask[0, :, :5], mask[1, 0, 5] = True, True  # 20 of 21 voxels on soft tissue; reversed none
    assert chaos.in_order(mask, ct, "it")[1] == "the first the lowest (0.952 of it on soft tissue, otherwise 0.000)"
    mask[1, :3, 5] = True  # 20 of 23
    with pytest.raises(
        Refused, match="with the first the lowest 0.870 of the mask on soft tissue and with the first the topmost 0.000"
    ):
        chaos.in_order(mask, ct, "it")
    half[half < 0] = 60
    half[5, 0, 5] = -900
    ct = readers.read(series(tmp_path / "all", half))
    mask[:] = False
    mask[0] = True  # 40 of 40; reversed 39 of 40
    with pytest.raises(Refused, match="1.000 of the mask on soft tissue and with the first the topmost 0.975"):
        chaos.in_order(mask, ct, "it")


def studies(root):
    """Two studies of one patient and one of another: (study, patient, seed); the last has its series in one folder with another."""
    made = {}
    for study, person, seed in (("s1", "4711", 0), ("s2", "4711", 1), ("s3", "4712", 2)):
        hu, labels = abdomen(seed=seed)
        uid = pydicom.uid.generate_uid()
        ct = series(root / study / ("ct" if study != "s3" else "all"), hu, uid=uid, PatientID=person)
        images = [pydicom.dcmread(p) for p in sorted(ct.iterdir())]
        described = [
            highdicom.seg.SegmentDescription(1, "Liver", codes.SCT.AnatomicalStructure, codes.SCT.Liver, "MANUAL"),
            highdicom.seg.SegmentDescription(2, "Tumor", codes.SCT.Tissue, codes.SCT.Neoplasm, "MANUAL"),
            highdicom.seg.SegmentDescription(3, "Portal vein", codes.SCT.Tissue, codes.SCT.PortalVein, "MANUAL"),
        ]
        masks = np.stack([labels > 0, labels == 2, labels == 0], -1)
        new = pydicom.uid.generate_uid
        seg = highdicom.seg.Segmentation(images, masks, "BINARY", described, new(), 9, new(), 1, "a", "b", "1", "0")
        (root / study / "seg").mkdir()
        seg.save_as(root / study / "seg" / "1.dcm")
        made[study] = (hu, labels)
    series(root / "s3" / "all", abdomen(seed=9)[0], names="other_{}", PatientID="4712", SeriesNumber=7)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PatientID": "4712"}
    series(root / "s3" / "all", abdomen(seed=9)[0][:1], names="scout_{}", **scout)
    return made


def test_dicom(tmp_path):
    made = studies(tmp_path / "root")
    table, lines, done = take("dicom", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["s1", "s2", "s3-all-4"] and done.unlabelled == 1
    assert table.patient.tolist() == ["s1", "s1", "s3-all-4"]  # by the IDs, which are not kept
    assert table.ct.tolist() == ["../root/s1/ct", "../root/s2/ct", "ct/s3-all-4.nii.gz"]
    assert re.search(r"labels written from the segments Liver, Tumor; dropped: Portal vein \(1.\d\d ml\)$", lines[0])
    for case, study in zip(table.index, made, strict=True):
        holds(table, tmp_path / "data", case, made[study][1], made[study][0])
    left = "".join(p.read_text() for p in (tmp_path / "data").rglob("*") if p.suffix in (".csv", ".json")) + "".join(
        lines
    )
    assert "4711" not in left and "Doe" not in left


def test_tumors_in_segments_and_objects_of_their_own_are_joined(tmp_path, monkeypatch):
    hu, labels = abdomen()
    ct = readers.read(series(tmp_path / "ct", hu))
    flat = lambda mask: np.flatnonzero(ct.source.to_canonical(mask.transpose(2, 1, 0)))
    tumor = flat(labels == 2)
    held = {
        "a": [(scans.LIVER, "Liver", flat(labels > 0)), (scans.TUMOR, "Tumor 1", tumor[::3]), (scans.TUMOR, "Tumor 2", tumor[1::3])],
        "b": [(scans.TUMOR, "Tumor 3", tumor[2::3]), (meanings.OTHER, "Spleen", np.array([0]))],
    }
    held = {name: [scans.Structure(*one) for one in structures] for name, structures in held.items()}
    reader = intake.KINDS["dicom"]
    monkeypatch.setattr(reader, "segments", lambda path, _: held[path.name])
    scan = scans.Scan("c", "p", tmp_path / "ct", tmp_path / "ct", (tmp_path / "a", tmp_path / "b"))
    _, found, words = reader.read(scan)
    assert np.array_equal(found.source.to_file_order(found.array.numpy()).transpose(2, 1, 0), labels)
    assert words == "labels written from the segments Liver, Tumor 1, Tumor 2, Tumor 3; dropped: Spleen (0.00 ml)"


def test_of_two_series_in_one_study_the_one_that_is_referred_to_is_meant(tmp_path):
    studies(tmp_path / "root")
    series(tmp_path / "root" / "s1" / "plain", abdomen(seed=5)[0], names="plain_{}", SeriesNumber=9)
    study = pydicom.dcmread(next((tmp_path / "root" / "s1" / "ct").iterdir())).StudyInstanceUID
    for file in (tmp_path / "root" / "s1" / "plain").iterdir():
        image = pydicom.dcmread(file)
        image.StudyInstanceUID = study
        image.SeriesInstanceUID = f"{image.SeriesInstanceUID}.9"
        image.save_as(file)
    table, *_ = take("dicom", tmp_path / "root", tmp_path / "data")
    assert table.ct[table.ct.str.contains("s1")].tolist() == ["../root/s1/ct"]


def test_a_segmentation_of_a_ct_that_is_not_there_is_refused(tmp_path):
    studies(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "s1" / "ct")
    table, lines, done = take("dicom", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["s2", "s3-all-4"] and done.refused == 1
    assert "REFUSED" in lines[0] and "a segmentation that fits 0 CT series" in lines[0]


def test_csv(tmp_path):
    hu, labels = abdomen()
    save(tmp_path / "x" / "scan.nii.gz", hu)
    save(tmp_path / "x" / "grey.nii.gz", np.uint8([0, 127, 255])[labels])
    save(tmp_path / "x" / "y.nii.gz", abdomen(seed=1)[0])
    save(tmp_path / "x" / "liver.nii.gz", (labels > 0).astype(np.uint8))
    half = (labels == 2) & (np.arange(9)[:, None] < 3)
    save(tmp_path / "x" / "t1.nii.gz", half * np.uint8(3))
    save(tmp_path / "x" / "t2.nii.gz", ((labels == 2) & ~half) * np.uint8(255))
    (tmp_path / "list.csv").write_text(
        "case,patient,ct,labels,liver,tumor,split,field_of_view\n"
        "one,p,x/scan.nii.gz,x/grey.nii.gz,127,255,test,liver box\n"
        "two,q,x/y.nii.gz,,x/liver.nii.gz,x/t1.nii.gz; x/t2.nii.gz,,\n"
    )
    table, lines, _ = take("csv", tmp_path / "list.csv", tmp_path / "data")
    assert table.split.to_dict() == {"one": "test", "two": "train"} and table.patient["two"] == "q"
    assert table.field_of_view.to_dict() == {"one": "liver box", "two": "whole"}
    assert lines[0].endswith("(127 to 1, 255 to 2)") and lines[1].endswith("labels written from 3 masks")
    for case, ct in (("one", "scan"), ("two", "y")):
        holds(table, tmp_path / "data", case, labels)
        written = nibabel.load(tmp_path / "data" / "labels" / f"{case}.nii.gz")
        assert written.affine.tobytes() == nibabel.load(tmp_path / "x" / f"{ct}.nii.gz").affine.tobytes()


@pytest.mark.parametrize(
    ("kind", "says"),
    [(kind, "found no|found a folder|found no dataset.json|no case") for kind in intake.KINDS]
    + [("kits", "expected lits, msd")],
)
def test_a_root_without_a_case_is_refused(tmp_path, kind, says):
    (tmp_path / "root").mkdir()
    with pytest.raises(Refused, match=says):
        intake.take(kind, tmp_path / "root", tmp_path / "data")
    assert not (tmp_path / "data").exists()


LIVERS = """liver|Whole_Liver|Liver mask|LIVER|Leber|foie|Hígado|fegato|肝脏|печень|hepatic parenchyma|liver with tumor|non-tumoral liver
left_liver|Right lobe of liver|caudate lobe|liver_segment_3|liver_segment_4a|Couinaud hepatic segment IV|S8|Liver_Remnant"""
TUMORS = """livertumor|livertumors|livertumor07|Liver_Tumor 2|cancer|Lesions|hepatic metastasis|metastases|HCC|HCC-1|Met 17mm|liver-tumour
Tumor segment VIII|Lebermetastasen|tumeur du foie|lésion hépatique|肝脏肿瘤|опухоль печени|viable tumor|liver lesion 3 (seg 4)"""
BENIGN = "livercyst|liverkyste|cyst|Cyst of liver|hemangioma|cystic lesion|liver vessels|intrahepatic bile ducts"
WITHIN = "portalvein|hepatic vein|vessel|venoussystem|tumor thrombus|liver capsule|no tumor|delivery|tumor board|stent 3"
OTHER = "leftsurretumor|kidney tumor|renal cyst|background|inferior_vena_cava|gallbladder|lymph node metastasis|"
WORDS = {meanings.LIVER: LIVERS, meanings.TUMOR: TUMORS, meanings.BENIGN: BENIGN, meanings.WITHIN: WITHIN, meanings.OTHER: OTHER}


@pytest.mark.parametrize("meant", WORDS)
def test_words(meant):
    names = re.split(r"[|\n]", WORDS[meant])
    assert {name: meanings.meaning(name) for name in names} == dict.fromkeys(names, meant)


def test_each_code_and_number_of_the_table_is_in_what_is_printed():
    text = "\n".join(meanings.lines())
    assert all(code in text for code in meanings.CODES) and all(name in text for name in meanings.NUMBERS)
    assert all(meanings.known(words) for words in meanings.CODES.values())


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["left lobe", "Right lobe of liver"], ""),
        ([f"liver_segment_{n}" for n in range(1, 9)], ""),
        (["left lateral section", "left medial section", "right liver"], ""),
        (["liver", "liver remnant"], ""),
        (["liver remnant"], "2, 3, 4, 5, 6, 7, 8"),
        (["left lobe"], "5, 6, 7, 8"),
        ([f"S{n}" for n in range(2, 9)], "1"),
    ],
)
def test_parts_are_a_liver_if_together_they_are_whole(names, lacking):
    if not lacking:
        assert set(meanings.each(names, "it", "").values()) == {meanings.LIVER}
        return
    with pytest.raises(Refused, match=f"without the Couinaud segments {lacking}; expected a whole liver"):
        meanings.each(names, "it", "")


# -- folders and headers ---------------------------------------------------------------------------------------------------


def test_linked_folders_are_entered_once_and_without_loops(tmp_path):
    lits(tmp_path / "root" / "b1", (1, 2))
    lits(tmp_path / "disk", (3,))
    (tmp_path / "root" / "b2").symlink_to(tmp_path / "disk")
    (tmp_path / "root" / "a-copy").symlink_to(tmp_path / "root" / "b1")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "root")
    table, *_ = take("lits", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["lits-1", "lits-2", "lits-3"] and table.ct["lits-1"] == "../root/b1/volume-1.nii"
    hu = abdomen()[0]
    series(tmp_path / "ct" / "one", hu[:3])
    whole = series(tmp_path / "whole", hu)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "slices").symlink_to(whole)
    assert readers.read(tmp_path / "linked").shape == hu.shape and readers.list_cases(tmp_path / "linked")


def test_what_cannot_be_read_is_named_and_stops_no_other(tmp_path, monkeypatch):
    lits(tmp_path / "root" / "b1", (1,))
    lits(tmp_path / "root" / "locked", (2,))
    (tmp_path / "root" / "volume-5.nii").symlink_to(tmp_path / "gone.nii")
    scandir = walk.os.scandir

    def deny(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", deny)
    table, lines, done = take("lits", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["lits-1"] and done.refused == 2
    text = "\n".join(lines)
    assert re.search("REFUSED, .*locked: found what cannot be read .permission denied.", text)
    assert re.search("REFUSED, .*volume-5.nii: found a link to .*gone.nii, which is not there", text)
    with pytest.raises(Refused, match="(locked|volume-5.nii): found (what cannot be read|a link)"):
        walk.files(tmp_path / "root")


def test_names_in_another_case_and_macos_leftovers(tmp_path):
    lits(tmp_path / "root", (4,))
    (tmp_path / "root" / "volume-4.nii").rename(tmp_path / "root" / "Volume-4.NII")
    (tmp_path / "root" / "segmentation-4.nii").rename(tmp_path / "root" / "SEGMENTATION-4.nii")
    (tmp_path / "root" / "._Volume-4.NII").write_bytes(bytes(100))
    assert take("lits", tmp_path / "root", tmp_path / "a")[0].index.tolist() == ["lits-4"]
    place = tmp_path / "Dataset001_L"
    save(place / "imagestr" / "a_0000.nii.gz", abdomen()[0])
    save(place / "LabelsTr" / "a.nii.gz", abdomen()[1])
    (place / "imagestr" / "a_0000.nii.gz").rename(place / "imagestr" / "a_0000.NII.GZ")
    (place / "imagestr" / "._a_0000.nii.gz").write_bytes(bytes(100))
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}, "file_ending": ".nii.gz"}
    (place / "Dataset.json").write_text(json.dumps(about))
    assert take("nnunet", place, tmp_path / "b")[0].index.tolist() == ["a"]
    patient(tmp_path / "irc" / "p")
    for name in ("PATIENT_DICOM", "MASKS_DICOM"):
        (tmp_path / "irc" / "p" / name).rename(tmp_path / "irc" / "p" / name.lower())
    assert take("ircadb", tmp_path / "irc", tmp_path / "c")[0].index.tolist() == ["p"]


def test_nnunet_v1_and_a_byte_order_mark(tmp_path):
    place = tmp_path / "Task001_L"
    save(place / "imagesTr" / "a_0000.nii.gz", abdomen()[0])
    save(place / "labelsTr" / "a.nii.gz", abdomen()[1])
    about = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}, "training": []}
    (place / "dataset.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(about).encode())
    table, *_ = take("nnunet", tmp_path, tmp_path / "data")
    holds(table, tmp_path / "data", "a", abdomen()[1])


@pytest.mark.parametrize("told", [{"modality": {"0": "MRI"}}, {"modality": "MR"}, {"channel_names": {"0": "T2w"}}, {"channel_names": {"0": "CT", "1": "PET"}}])  # fmt: skip
@pytest.mark.parametrize("kind", ["msd", "nnunet"])
def test_another_modality_is_refused(tmp_path, kind, told):
    root = decathlon(tmp_path / "root", (0,), {"0": "background", "1": "liver", "2": "cancer"})
    about = json.loads((root / "dataset.json").read_text())
    del about["modality"]
    (root / "dataset.json").write_text(json.dumps({**about, **told}))
    with pytest.raises(Refused, match=f"found {next(iter(told))} .*; expected CT"):
        intake.take(kind, root, tmp_path / "data")


def test_series_of_one_study_are_of_one_patient(tmp_path):
    study = pydicom.uid.generate_uid()
    for name, seed in (("a", 0), ("b", 1)):
        series(tmp_path / name, abdomen(seed=seed)[0], study=study, PatientID="" if name == "a" else None)
    series(tmp_path / "c", abdomen(seed=2)[0], PatientID="")
    listed = intake.KINDS["dicom"].list_cases(tmp_path)
    assert [(scan.case, scan.patient) for scan in listed] == [("a", "a"), ("b", "a"), ("c", "c")]


@pytest.mark.parametrize(
    ("turn", "says"),
    [((0,), "feet and head"), ((1,), "front and back"), ((2,), "left and right"), ((1, 2), "front and back, left and right")],
)
def test_labels_whose_header_is_turned_are_refused(tmp_path, turn, says):
    """On the same grid, so that no header tells: in an import, in `check` and in `train`."""
    hu, labels = abdomen((12, 24, 26))
    save(tmp_path / "volume-1.nii", hu)
    save(tmp_path / "segmentation-1.nii", np.flip(labels, turn))
    lines = []
    with pytest.raises(Refused, match="1 cases refused"):
        intake.take("lits", tmp_path, tmp_path / "data", lines.append)
    assert re.search(f"lie on soft tissue .0 to 250 HU., but 1.000 with {says} exchanged; expected labels that lie", lines[0])
    (tmp_path / "m.csv").write_text("case,patient,ct,labels\na,a,volume-1.nii,segmentation-1.nii\n")
    assert f"with {says} exchanged" in next(iter(cohort.check(tmp_path / "m.csv"))).message
    (case,) = cohort.read_manifest(tmp_path / "m.csv")
    with pytest.raises(Refused, match="labels that lie as their CT does"):
        case.read()


def test_labels_in_the_air_are_refused_and_doubtful_ones_warned_of(tmp_path):
    ct, labels = tiny.patient(3)
    hu = ct.array.clone()
    hu[labels.array > 0] = -500
    with pytest.raises(Refused, match="of the labelled voxels in air"):
        tissue.hold(ct.with_array(hu), labels, "it")
    hu[:] = -50
    with readers.gates.heard() as told:
        tissue.hold(ct.with_array(hu), labels, "it")
    assert "only 0.000 of the labelled voxels have 0 to 250 HU" in told[0]


def test_labels_through_a_scale_and_rounded_headers(tmp_path):
    hu, labels = abdomen()
    save(tmp_path / "ct.nii.gz", hu)
    ct = readers.read(tmp_path / "ct.nii.gz")
    for kind in (np.uint8, np.int16):
        image = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(np.float32), AFFINE)
        image.set_data_dtype(kind)
        nibabel.save(image, tmp_path / "l.nii.gz")
        with readers.gates.heard() as told:
            read = readers.read_labels(tmp_path / "l.nii.gz", like=ct)
        assert np.array_equal(ct.source.to_file_order(read.array.numpy()).transpose(2, 1, 0), labels)
        assert "stored with a scale (scl_slope" in told[0]
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0) * np.float32(0.7), AFFINE)
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "l.nii.gz")
    with pytest.raises(Refused, match="stored with a scale .scl_slope 0.005.*; expected whole numbers"):
        readers.read_labels(tmp_path / "l.nii.gz", like=ct)
    near = AFFINE.copy()
    near[0, 0] -= 1e-5
    near[:3, 3] += 0.01
    save(tmp_path / "l.nii.gz", labels, near)
    assert np.array_equal(readers.read_labels(tmp_path / "l.nii.gz", like=ct).affine, ct.affine)
    near[:3, 3] += 0.2
    save(tmp_path / "l.nii.gz", labels, near)
    with pytest.raises(Refused, match="copy the CT's header to the labels"):
        readers.read_labels(tmp_path / "l.nii.gz", like=ct)


def slicer(path, array, names, layers=False):
    """A segmentation as 3D Slicer saves it: {value: name}."""
    head = "NRRD0004\ntype: unsigned char\nspace: left-posterior-superior\nencoding: raw\nspace origin: (0,0,0)\n"
    head += f"dimension: {array.ndim}\nsizes: {' '.join(map(str, array.shape))}\n"
    head += f"space directions: {'none ' * layers}(1,0,0) (0,1,0) (0,0,2)\n"
    for n, (value, name) in enumerate(names.items()):
        head += f"Segment{n}_ID:=Segment_{n}\nSegment{n}_Name:={name}\nSegment{n}_LabelValue:={value}\nSegment{n}_Layer:=0\n"
    path.write_bytes(head.encode() + b"\n" + array.tobytes(order="F"))
    return path


def test_slicers_segments_are_known_by_their_names(tmp_path):
    truth = abdomen()[1].transpose(2, 1, 0)
    path = slicer(tmp_path / "a.seg.nrrd", np.uint8([0, 2, 1])[truth], {1: "Tumor", 2: "Liver"})
    held = readers.read_labels(path)
    assert np.array_equal(held.source.to_file_order(held.array.numpy()), truth)
    assert int(readers.read_labels(path, allowed=None).array.sum()) != int(held.array.sum())  # as stored, where asked for
    slicer(path, truth, {1: "Segment_1", 2: "Segment_2"})
    with pytest.raises(Refused, match="segments called Segment_1, Segment_2; expected names such as liver and tumor"):
        readers.read_labels(path)
    slicer(path, np.stack([truth > 0, truth == 2]).astype(np.uint8), {1: "Liver", 2: "Tumor"}, layers=True)
    with pytest.raises(Refused, match="with several layers.* In 3D Slicer, .*export to a Labelmap with the CT as Reference volume"):
        readers.read_labels(path)
    slicer(path, truth[1:], {1: "Liver", 2: "Tumor"})
    save(tmp_path / "ct.nii.gz", abdomen()[0])
    with pytest.raises(Refused, match="In 3D Slicer"):
        readers.read_labels(path, like=readers.read(tmp_path / "ct.nii.gz"))


def test_predictions_under_the_names_of_images(tmp_path):
    for folder, tail in (("truth", ""), ("found", "_0000")):
        for n in (1, 2):
            save(tmp_path / folder / f"liver_{n}{tail}.nii.gz", abdomen()[1])
    pairs = readers.pair_labels(tmp_path / "truth", tmp_path / "found")
    assert [(a.name, b.name) for _, a, b in pairs] == [(f"liver_{n}.nii.gz", f"liver_{n}_0000.nii.gz") for n in (1, 2)]


# -- archives --------------------------------------------------------------------------------------------------------------


def member(name, data=b"x", mode=0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, data


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([member("a/../../evil")], r"a member 'a/\.\./\.\./evil'; expected names that stay inside"),
        ([member("/etc/evil")], "a member '/etc/evil'"),
        ([member("..\\evil")], "stay inside"),
        ([member("C:/evil")], "stay inside"),
        ([member("link", b"/etc/passwd", stat.S_IFLNK | 0o777)], "a link 'link'"),
        ([member("twice"), member("twice")], "found twice twice; expected each file once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_stays_inside(tmp_path, members, says):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for info, data in members:
            z.writestr(info, data)
    (tmp_path / "in" / "here").mkdir(parents=True)
    with pytest.raises(Refused, match=says):
        archive.unpack(tmp_path / "a.zip", tmp_path / "in" / "here")
    assert [p for p in tmp_path.rglob("*") if p.name in ("evil", "link")] == []


def test_a_damaged_or_huge_archive_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(10**6))
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:200])
    at = whole.index(b"zeros") + 20
    (tmp_path / "bad.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    for name in ("cut.zip", "bad.zip"):
        with pytest.raises(Refused, match="a damaged archive"), archive.opened(tmp_path / name):
            pass
    monkeypatch.setattr(archive, "MAX_BYTES", 10**5)
    with pytest.raises(Refused, match="1 files of 0.0 GiB"), archive.opened(tmp_path / "a.zip"):
        pass


# -- one manifest ----------------------------------------------------------------------------------------------------------


def lits(root, numbers, affine=AFFINE):
    for n in numbers:
        hu, labels = abdomen(seed=n)
        save(root / f"volume-{n}.nii", hu, affine)
        save(root / f"segmentation-{n}.nii", labels, affine)
    return root


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    lits(tmp_path / "root", (1, 2))
    take("lits", tmp_path / "root", tmp_path / "data")
    read = []
    whole = readers.read
    monkeypatch.setattr(readers, "read", lambda path, **more: read.append(path.name) or whole(path, **more))
    _, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert read == [] and lines[0] == "lits-1: as before; CT and labels used where they are"
    lits(tmp_path / "root", (2, 3))  # written anew
    _, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert sorted(set(read)) == ["volume-2.nii", "volume-3.nii"]
    (tmp_path / "root" / "volume-1.nii").unlink()
    table, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert table.index.tolist() == ["lits-2", "lits-3"] and "lits-1: no longer there" in lines[-1]


def test_voxels_beside_their_header_are_part_of_a_case(tmp_path, monkeypatch):
    """Labels drawn anew under an unchanged .mhd are read again; so are a CT's voxels under an .nhdr."""
    import SimpleITK as sitk

    hu, labels = abdomen()
    root = tmp_path / "root"
    root.mkdir()
    for name, array in (("ct.nhdr", hu), ("labels.mhd", labels.astype(np.uint8))):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetOrigin((-30.0, -40.0, 50.0))
        sitk.WriteImage(image, root / name)
    (root / "list.csv").write_text("case,ct,labels\none,ct.nhdr,labels.mhd\n")
    table, *_ = take("csv", root / "list.csv", tmp_path / "data")
    assert float(table.tumor_ml["one"]) > 0
    for name, column, old, new in (
        ("labels.raw", "tumor_ml", b"\2", b"\1"),
        ("ct.raw", "voxel_hash", b"\xfc", b"\xfb"),
    ):
        (root / name).write_bytes((root / name).read_bytes().replace(old, new))
        again, lines, _ = take("csv", root / "list.csv", tmp_path / "data")
        assert again[column]["one"] != table[column]["one"] and "as before" not in lines[0]
    header = (root / "labels.mhd").read_text().replace("labels.raw", str((root / "labels.raw").resolve()))
    (root / "labels.mhd").write_text(header)
    monkeypatch.chdir(root)  # named from here, its voxels from above
    table, lines, _ = take("csv", Path("list.csv"), tmp_path / "data")
    assert table.index.tolist() == ["one"] and "REFUSED" not in lines[0]


def test_an_import_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    patient(tmp_path / "root" / "a", seed=1)
    patient(tmp_path / "root" / "b", seed=2)
    write = intake.write_json

    def cut(path, value):
        if path.stem == "b":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(intake, "write_json", cut)
    with pytest.raises(KeyboardInterrupt):
        take("ircadb", tmp_path / "root", tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.csv").exists()
    monkeypatch.setattr(intake, "write_json", write)
    table, lines, _ = take("ircadb", tmp_path / "root", tmp_path / "data")
    assert lines[0].startswith("a: as before") and lines[1].startswith("b: 11 x 9 x 6 voxels")
    assert sorted(p.name for p in (tmp_path / "data").rglob("*") if p.is_file()) == [
        "a.json", "a.nii.gz", "b.json", "b.nii.gz", "manifest.csv",
    ]  # fmt: skip


def test_labels_that_were_removed_are_written_again(tmp_path):
    patient(tmp_path / "root" / "a")
    take("ircadb", tmp_path / "root", tmp_path / "data")
    (tmp_path / "data" / "labels" / "a.nii.gz").unlink()
    _, lines, _ = take("ircadb", tmp_path / "root", tmp_path / "data")
    assert "as before" not in lines[0] and (tmp_path / "data" / "labels" / "a.nii.gz").is_file()


def test_a_killed_import_loses_nothing(tmp_path):
    """SIGKILL once the first case is done: the same command goes on, and ends with what an uninterrupted one has."""
    for n in range(6):
        patient(tmp_path / "root" / f"p{n}", seed=n)
    command = (
        f"from workbench.data import intake; intake.take('ircadb', {str(tmp_path / 'root')!r}, {str(tmp_path / 'data')!r})"
    )
    killed = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL)
    while not list((tmp_path / "data" / "imported").glob("*.json")):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data" / "imported").glob("*.json")}
    assert 1 <= len(done) < 6 and not (tmp_path / "data" / "manifest.csv").exists()
    take("ircadb", tmp_path / "root", tmp_path / "data")
    assert done == {name: (tmp_path / "data" / "imported" / name).stat().st_mtime_ns for name in done}
    take("ircadb", tmp_path / "root", tmp_path / "whole")
    files = lambda place: {p.relative_to(place): p.read_bytes() for p in place.rglob("[!.]*") if p.is_file()}
    assert files(tmp_path / "data") == files(tmp_path / "whole")


def test_a_refused_case_stops_no_other_and_leaves_nothing(tmp_path):
    lits(tmp_path / "root", (1, 2))
    take("lits", tmp_path / "root", tmp_path / "data")
    (tmp_path / "root" / "volume-1.nii").write_bytes((tmp_path / "root" / "volume-1.nii").read_bytes()[:-500])
    table, lines, done = take("lits", tmp_path / "root", tmp_path / "data")
    assert (done.cases, done.refused) == (1, 1) and table.index.tolist() == ["lits-2"]
    assert re.match("lits-1: REFUSED, .*volume-1.nii: found .* The file is truncated", lines[0])
    assert not (tmp_path / "data" / "imported" / "lits-1.json").exists()


def test_a_file_that_is_missing_stops_no_other_case(tmp_path):
    lits(tmp_path, (1,))
    (tmp_path / "folder.mhd").mkdir()
    (tmp_path / "list.csv").write_text(
        "case,ct,labels\ngone,gone.nii,segmentation-1.nii\nbare,volume-1.nii,gone.mhd\nodd,folder.mhd,segmentation-1.nii\n"
        "one,volume-1.nii,segmentation-1.nii\n"
    )
    table, lines, done = take("csv", tmp_path / "list.csv", tmp_path / "data")
    assert (done.cases, done.refused) == (1, 3) and table.index.tolist() == ["one"]
    said = dict(line.split(": REFUSED, ") for line in lines if "REFUSED" in line)
    assert set(said) == {"gone", "bare", "odd"} and "no such file" in said["gone"] and "no such file" in said["bare"]


def test_what_was_changed_by_hand_stays(tmp_path):
    lits(tmp_path / "root", (1, 2))
    table, *_ = take("lits", tmp_path / "root", tmp_path / "data")
    table.loc["lits-2", ["patient", "split"]] = ["Q", "test"]
    table.loc["lits-1", "field_of_view"] = "liver box"
    table.loc["lits-2", "liver_ml"] = "1"  # is measured
    table.assign(note="a, b").reset_index().to_csv(tmp_path / "data" / "manifest.csv", index=False)
    lits(tmp_path / "root", (2, 3))
    again, *_ = take("lits", tmp_path / "root", tmp_path / "data")
    assert again.split.tolist() == ["train", "test", "train"] and again.patient.tolist() == ["lits-1", "Q", "lits-3"]
    assert again.field_of_view["lits-1"] == "liver box" and again.note.tolist() == ["a, b", "a, b", ""]
    assert float(again.liver_ml["lits-2"]) == pytest.approx((abdomen(seed=2)[1] > 0).sum() * ML, abs=1e-4)


def test_a_spreadsheet_that_made_1_of_001_does_not_undo_what_was_set_by_hand(tmp_path):
    for n in ("001", "002"):
        for name, array in zip(("volume", "segmentation"), abdomen(seed=int(n)), strict=True):
            save(tmp_path / f"{name}-{n}.nii", array)
    rows = [f"{n},volume-{n}.nii,segmentation-{n}.nii" for n in ("001", "002")]
    (tmp_path / "list.csv").write_text("\n".join(["case;ct;labels", *rows]).replace(",", ";"))
    table, *_ = take("csv", tmp_path / "list.csv", tmp_path / "data")
    assert list(table.index) == ["001", "002"]
    manifest = tmp_path / "data" / "manifest.csv"
    held_out = table.assign(split=["test", "train"]).reset_index()
    held_out.assign(case=["1", "2"]).to_csv(manifest, index=False)
    before = manifest.read_bytes()
    with pytest.raises(Refused, match="line 2: found a case 1, which was not imported; .* made it of 001: write it so"):
        take("csv", tmp_path / "list.csv", tmp_path / "data")
    assert manifest.read_bytes() == before
    held_out.to_csv(manifest, index=False)
    assert take("csv", tmp_path / "list.csv", tmp_path / "data")[0].split.tolist() == ["test", "train"]


def test_what_was_set_by_hand_never_goes_unsaid(tmp_path):
    lits(tmp_path / "root", (1, 2))
    table, *_ = take("lits", tmp_path / "root", tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.csv"
    table.assign(split=["train", "test"]).reset_index().to_csv(manifest, index=False)
    ct = next((tmp_path / "root").rglob("volume-2.nii"))
    whole = ct.read_bytes()
    save(ct, np.where((hu := abdomen(seed=2)[0]) > 0, hu + 5, hu))  # another CT under the same name
    table, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert "lits-2 has another CT than before; what was set by hand (split test) stays" in "".join(lines)
    assert table.split["lits-2"] == "test"
    ct.write_bytes(whole[:1000])
    _, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert "what was set by hand (split test) goes with it" in "".join(lines)
    ct.write_bytes(whole)
    take("lits", tmp_path / "root", tmp_path / "data")
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:2]))
    _, lines, _ = take("lits", tmp_path / "root", tmp_path / "data")
    assert "lits-2: in the manifest again, from which its row was removed" in lines


def test_one_scan_in_two_collections_is_refused(tmp_path):
    """LiTS 4 = MSD liver_4, stored there along other axes: neither manifest nor training takes both."""
    lits(tmp_path / "lits", (3, 4))
    root = decathlon(tmp_path / "msd", (4, 5), {"0": "background", "1": "liver", "2": "cancer"})
    for part in ("imagesTr", "labelsTr"):
        path = root / part / "liver_4.nii.gz"
        image = nibabel.load(path)
        turned = nibabel.as_closest_canonical(
            nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine)
        )
        nibabel.save(turned, path)
    take("lits", tmp_path / "lits", tmp_path / "data")
    before = (tmp_path / "data" / "manifest.csv").read_bytes()
    says = r"same voxels in cases lits-4 \(patient lits-4, train\) and liver_4 \(patient liver_4, train\); expected each scan once"
    with pytest.raises(Refused, match=says):
        take("msd", root, tmp_path / "data")
    assert (tmp_path / "data" / "manifest.csv").read_bytes() == before
    (root / "dataset.json").write_text(
        (root / "dataset.json").read_text().replace("liver_4.nii.gz", "liver_5.nii.gz", 0)
    )
    about = json.loads((root / "dataset.json").read_text())
    about["training"] = about["training"][1:]
    (root / "dataset.json").write_text(json.dumps(about))
    table, *_ = take("msd", root, tmp_path / "data")
    assert sorted(table.index) == ["lits-3", "lits-4", "liver_5"] and table.kind["liver_5"] == "msd"
    assert all(v.ok for v in cohort.check(tmp_path / "data" / "manifest.csv"))


def test_one_name_in_two_collections_is_refused(tmp_path):
    for n in (1, 2):
        lits(tmp_path / f"root{n}", (7,), AFFINE * n)
    take("lits", tmp_path / "root1", tmp_path / "data")
    _, lines, done = take("lits", tmp_path / "root2", tmp_path / "data")
    assert done.refused == 1 and "one imported from lits ../root1" in lines[0]


def test_a_name_that_is_no_files_is_refused(tmp_path):
    save(tmp_path / "x.nii.gz", abdomen()[0])
    save(tmp_path / "y.nii.gz", abdomen()[1])
    rows = [["../../evil", "x.nii.gz", "y.nii.gz"], ["good", "x.nii.gz", "y.nii.gz"]]
    pd.DataFrame(rows, columns=["case", "ct", "labels"]).to_csv(tmp_path / "list.csv", index=False)
    _, lines, done = take("csv", tmp_path / "list.csv", tmp_path / "data" / "in")
    assert done.refused == 1 and "the case '../../evil'; expected a name that a file can have" in lines[0]
    assert [p.name for p in tmp_path.rglob("evil*")] == []


def test_the_commands(tmp_path, call):
    lits(tmp_path / "root", (1, 2))
    status, out, err = call("import", "lits", tmp_path / "root", "-o", tmp_path / "data")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"2 cases, 0 refused, 0 without labels -> {tmp_path / 'data' / 'manifest.csv'}"
    status, out, _ = call("check", tmp_path / "data" / "manifest.csv", tmp_path / "root" / "volume-1.nii")
    assert status == 0 and [line[:7] for line in out.splitlines()] == ["ok     "] * 4
    (tmp_path / "root" / "volume-1.nii").write_bytes(b"")
    status, out, _ = call("check", tmp_path / "data" / "manifest.csv")
    assert status == 1 and "REFUSED" in out and "a file of 0 bytes" in out
    assert call("import", "lits", tmp_path / "root", "-o", tmp_path / "data")[0] == 2
    status, _, err = call("import", "kits", tmp_path / "root", "-o", tmp_path / "data")
    assert status == 2 and err.startswith("error: the kind of collection: found 'kits'; expected lits, msd")


# -- real collections --------------------------------------------------------------------------------------------------------


def test_a_real_donor_of_chaos(realdata, tmp_path):
    table, lines, _ = take("chaos", realdata / "chaos-ct-03", tmp_path / "data")
    assert float(table.liver_ml["chaos-ct-03"]) == pytest.approx(1417.49, abs=0.01)
    assert "the first the topmost (0.992 of it on soft tissue, otherwise 0.811)" in lines[0]
    (case,) = cohort.read_manifest(tmp_path / "data" / "manifest.csv")
    ct, labels = case.read()
    known = readers.read_labels(realdata / "chaos-ct-03" / "liver.nii.gz", like=ct)  # put in order by others
    assert np.array_equal(labels.array.numpy(), known.array.numpy())


def test_a_real_dicom_segmentation(realdata, tmp_path):
    table, lines, _ = take("dicom", realdata / "dcmqi-ct-3slice", tmp_path / "data")
    assert float(table.liver_ml["dcmqi-ct-3slice"]) == pytest.approx(70.36, abs=0.01)
    with pytest.raises(Refused, match="0 cases refused and 1 without labels"):
        take("dicom", realdata / "crlm-ct-1004", tmp_path / "other")


def test_real_scans_through_a_csv(realdata, tmp_path):
    """Joined from separate masks it is the label map that others joined; a scan of 3D-IRCADb under two names is seen."""
    at = realdata / "ircadb01-17"
    rows = [
        {"case": "masks", "ct": at / "ct.nii.gz", "liver": at / "liver.nii.gz", "tumor": at / "tumours.nii.gz"},
        {"case": "lits-01", "ct": realdata / "lits-01" / "ct.nii.gz", "labels": realdata / "lits-01" / "labels.nii.gz"},
    ]
    write = lambda: pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    write()
    table, lines, _ = take("csv", tmp_path / "list.csv", tmp_path / "data")
    assert [float(v) for v in table.liver_ml] == pytest.approx([1485.93, 1860.62], abs=0.01)
    assert float(table.tumor_ml["masks"]) == pytest.approx(85.64 + 78.64, abs=0.02)
    ct = readers.read(at / "ct.nii.gz")
    joined = readers.read_labels(tmp_path / "data" / "labels" / "masks.nii.gz", like=ct)
    known = readers.read_labels(at / "labels-liver1-tumour2.nii.gz", like=ct)
    assert np.array_equal(joined.array.numpy(), known.array.numpy())
    for part in ("ct", "labels"):
        image = nibabel.load(realdata / "lits-01" / f"{part}.nii.gz")
        nibabel.save(image.slicer[::-1, :, :], tmp_path / f"{part}.nii.gz")
    rows.append({"case": "other name", "ct": tmp_path / "ct.nii.gz", "labels": tmp_path / "labels.nii.gz"})
    write()
    with pytest.raises(Refused, match="same voxels in cases lits-01 .* and other name"):
        take("csv", tmp_path / "list.csv", tmp_path / "data")


def test_real_slices_in_the_layout_of_ircadb(realdata, tmp_path):
    """CHAOS's own DICOM slices and masks made from its reference, under 3D-IRCADb's names and in archives."""
    source = realdata / "chaos-ct-03" / "DICOM_anon"
    place = tmp_path / "root" / "3Dircadb1.99"
    (place / "MASKS_DICOM" / "liver").mkdir(parents=True)
    shutil.copytree(source, place / "PATIENT_DICOM")
    ct = readers.read(source)
    known = readers.read_labels(realdata / "chaos-ct-03" / "liver.nii.gz", like=ct)
    stored = ct.source.to_file_order(known.array.numpy()).transpose(2, 1, 0)
    order, _ = readers.dicom.stack(source)
    for s, mask in zip(order, stored, strict=True):
        ds = pydicom.dcmread(s.file)
        ds.PixelData = (mask * 255).astype(np.uint16).tobytes()
        ds.save_as(place / "MASKS_DICOM" / "liver" / s.file.name)
    for part in ("PATIENT_DICOM", "MASKS_DICOM"):
        zipped(place / part)
    table, lines, _ = take("ircadb", tmp_path / "root", tmp_path / "data")
    assert float(table.liver_ml["3Dircadb1.99"]) == pytest.approx(1417.49, abs=0.01)
    (case,) = cohort.read_manifest(tmp_path / "data" / "manifest.csv")
    again, labels = case.read()
    assert np.array_equal(again.array.numpy(), ct.array.numpy())
    assert np.array_equal(labels.array.numpy(), known.array.numpy())


def test_scans_without_known_tumors_are_said_to_be_such(tmp_path, call):
    """CHAOS's donors, and what a CSV says; a record of 0.1.0, which knew no such column, is taken along."""
    for name in "ab":
        ct, labels = tiny.patient(3)
        nifti.write(ct, tmp_path / f"{name}.nii.gz")
        nifti.write(labels.with_array(labels.array.clamp(max=1)), tmp_path / f"{name}-l.nii.gz")
    ct, labels = tiny.patient(4)
    nifti.write(ct, tmp_path / "b.nii.gz")
    rows = "case,ct,labels,tumor_labels\na,a.nii.gz,a-l.nii.gz,none\nb,b.nii.gz,b-l.nii.gz,\n"
    (tmp_path / "t.csv").write_text(rows)
    out = tmp_path / "data"
    assert call("import", "csv", tmp_path / "t.csv", "-o", out)[0] == 0
    table = pd.read_csv(out / "manifest.csv").set_index("case")
    assert table.tumor_labels.to_dict() == {"a": "none", "b": "complete"}
    record = out / "imported" / "b.json"
    told = json.loads(record.read_text())
    del told["row"]["tumor_labels"]
    record.write_text(json.dumps(told))
    status, text, _ = call("import", "csv", tmp_path / "t.csv", "-o", out)
    assert status == 0 and pd.read_csv(out / "manifest.csv").set_index("case").tumor_labels["b"] == "complete"
    assert [c.tumor_labels for c in cohort.read_manifest(out / "manifest.csv")] == ["none", "complete"]
