"""DICOM-SEG out and in: coded, on the source's own slices, the same voxel by voxel in three libraries."""

import json

import fake_folders
import highdicom
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from dicoms import PLAIN, TILTED, abdomen, series
from pydicom.sr.coding import Code
from pydicom.sr.codedict import codes

from workbench.data import cohort, readers
from workbench.data.export import dicomseg
from workbench.data.readers import dicomseg as reader
from workbench.data.readers import meanings, nifti, scans
from workbench.experiment import verdicts
from workbench.volume import Refused

FEET_FIRST = (1, 0, 0, 0, -1, 0)  # the normal points to the feet
SAGITTAL = (0, 1, 0, 0, 0, -1)


def segmented(tmp_path, cosines=PLAIN, **changes):
    """A CT as DICOM, labels of it as NIfTI, both made from the same array; (source, labels file, array [slice row column])."""
    hu, labels = abdomen()
    source = series(tmp_path / "dicom", hu, cosines=cosines, names="{}.dcm", **changes)
    ct = readers.read(source)
    assert np.array_equal(ct.source.to_file_order(ct.array.numpy()).transpose(2, 1, 0), hu)
    canonical = ct.source.to_canonical(labels.transpose(2, 1, 0))
    nifti.write(ct.with_array(torch.from_numpy(np.ascontiguousarray(canonical))), tmp_path / "labels.nii.gz")
    return source, tmp_path / "labels.nii.gz", labels


@pytest.mark.parametrize(
    "cosines", [PLAIN, TILTED, FEET_FIRST, SAGITTAL], ids=["plain", "tilted", "feet first", "sagittal"]
)
def test_voxel_by_voxel_in_other_libraries(tmp_path, cosines):
    source, file, labels = segmented(tmp_path, cosines)
    out = dicomseg.export(file, source, tmp_path / "seg.dcm")

    # highdicom: by the source's instances
    seg = highdicom.seg.segread(out)
    slices = sorted((pydicom.dcmread(p) for p in source.iterdir()), key=lambda s: s.InstanceNumber)
    pixels = seg.get_pixels_by_source_instance([s.SOPInstanceUID for s in slices], assert_missing_frames_are_empty=True)
    assert np.array_equal(pixels[..., 0], labels >= 1) and np.array_equal(pixels[..., 1], labels == 2)

    # highdicom: by its own geometry, in mm
    volume = seg.get_volume()
    ct = readers.read(source)
    to_mm = np.diag([-1.0, -1, 1, 1]) @ ct.source.affine
    for segment, wanted in ((0, labels >= 1), (1, labels == 2)):
        k, r, c = np.nonzero(volume.array[..., segment])
        there = volume.affine @ np.stack([k, r, c, np.ones_like(k)])
        k, r, c = np.nonzero(wanted)
        here = to_mm @ np.stack([c, r, k, np.ones_like(k)])
        assert np.allclose(sorted(map(tuple, there.T.round(4))), sorted(map(tuple, here.T.round(4))), atol=2e-4)

    # pydicom alone: each frame beside the image that it refers to
    whole = pydicom.dcmread(out)
    by_uid = {s.SOPInstanceUID: n for n, s in enumerate(slices)}
    for frame, about in zip(whole.pixel_array, whole.PerFrameFunctionalGroupsSequence, strict=True):
        n = by_uid[about.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        segment = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert about.PlanePositionSequence[0].ImagePositionPatient == slices[n].ImagePositionPatient
        assert np.array_equal(frame, labels[n] >= 1 if segment == 1 else labels[n] == 2)
    shared = whole.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == slices[0].ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.9, 0.7]


def test_what_it_says(tmp_path):
    source, file, _ = segmented(tmp_path)
    whole = pydicom.dcmread(dicomseg.export(file, source, tmp_path / "seg.dcm"))
    liver, tumor = whole.SegmentSequence
    kind = lambda s: highdicom.sr.CodedConcept.from_dataset(s.SegmentedPropertyTypeCodeSequence[0])
    assert (liver.SegmentLabel, kind(liver)) == ("Liver", codes.SCT.Liver)
    assert (tumor.SegmentLabel, kind(tumor)) == ("Liver tumor", codes.SCT.Neoplasm)
    assert tumor.AnatomicRegionSequence[0].CodeValue == codes.SCT.Liver.value
    assert tumor.SegmentedPropertyCategoryCodeSequence[0].CodeValue == codes.SCT.MorphologicallyAbnormalStructure.value
    assert liver.SegmentAlgorithmType == "AUTOMATIC" and liver.SegmentAlgorithmName == "Liver Workbench"
    first = pydicom.dcmread(source / "0.dcm")
    for tag in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
                "AccessionNumber", "StudyID", "FrameOfReferenceUID"):  # fmt: skip
        assert whole[tag].value == first[tag].value, tag
    assert whole.Modality == "SEG" and whole.SeriesInstanceUID != first.SeriesInstanceUID
    assert "research use only" in whole.SeriesDescription
    (referenced,) = whole.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID and len(referenced.ReferencedInstanceSequence) == 6


def test_the_same_result_has_the_same_uids(tmp_path):
    source, file, _ = segmented(tmp_path)
    one, other = (pydicom.dcmread(dicomseg.export(file, source, tmp_path / name)) for name in ("a.dcm", "b.dcm"))
    assert one.SOPInstanceUID == other.SOPInstanceUID and one.SeriesInstanceUID == other.SeriesInstanceUID
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.clip(np.asarray(image.dataobj), 0, 1), image.affine), tmp_path / "liver.nii.gz")
    third = pydicom.dcmread(dicomseg.export(tmp_path / "liver.nii.gz", source, tmp_path / "c.dcm"))
    assert third.SOPInstanceUID != one.SOPInstanceUID
    assert [s.SegmentLabel for s in third.SegmentSequence] == ["Liver", "Liver tumor"]  # looked for, and none found


def test_what_the_standard_lets_be_empty_may_be_missing(tmp_path):
    missing = dict.fromkeys(("PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber", "StudyID"))
    source, file, _ = segmented(tmp_path, **missing, SpecificCharacterSet="")
    assert pydicom.dcmread(dicomseg.export(file, source, tmp_path / "seg.dcm")).PatientName == ""


def test_a_name_in_another_character_set_arrives(tmp_path):
    source, file, _ = segmented(tmp_path, SpecificCharacterSet="ISO_IR 144", PatientName="Петров^Ян")
    whole = pydicom.dcmread(dicomseg.export(file, source, tmp_path / "seg.dcm"))
    assert str(whole.PatientName) == "Петров^Ян" and whole.SpecificCharacterSet == "ISO_IR 192"


def moved(tmp_path):
    image = nibabel.load(tmp_path / "labels.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 0.7
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "labels.nii.gz")


def emptied(tmp_path):
    image = nibabel.load(tmp_path / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * 0, image.affine), tmp_path / "labels.nii.gz")


@pytest.mark.parametrize(
    ("fault", "changes", "says"),
    [
        (moved, {}, "voxels 0.7 mm away from those of"),
        (emptied, {}, "an empty mask"),
        (lambda d: (d / "dicom" / "2.dcm").unlink(), {}, "1 missing slice"),
        (None, {"FrameOfReferenceUID": None}, "no FrameOfReferenceUID; expected an image that others can refer to"),
        (None, {"StudyInstanceUID": None}, "no StudyInstanceUID"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, fault, changes, says):
    source, file, _ = segmented(tmp_path, **changes)
    if fault is not None:
        fault(tmp_path)
    with pytest.raises(Refused, match=says) as refused:
        dicomseg.export(file, source, tmp_path / "out" / "seg.dcm")
    assert "Doe" not in str(refused.value) and not list((tmp_path / "out").glob("*"))


def test_odd_values_of_the_source_are_emptied_with_a_warning(tmp_path):
    odd = {"PatientSex": "male", "PatientAge": "64", "StudyDate": "2020-01-01", "SliceThickness": None}
    with pydicom.config.disable_value_validation():
        source, file, labels = segmented(tmp_path, **odd)
    with readers.gates.heard() as said:
        made = pydicom.dcmread(dicomseg.export(file, source, tmp_path / "seg.dcm"))
    assert (made.PatientSex, made.StudyDate, str(made.PatientName) != "") == ("", "", True)
    said = "\n".join(said)
    for name in ("PatientSex", "PatientAge", "StudyDate"):
        assert said.count(f"its {name} is no valid DICOM and is left empty") >= 1
    assert "slices say no SliceThickness" in said and "male" not in said and "2020" not in said
    highdicom.seg.segread(tmp_path / "seg.dcm")


def test_it_says_what_contributed_and_which_algorithm(tmp_path):
    source, file, _ = segmented(tmp_path)
    about = {"models": {"name": "clinical 1", "stages": {}}}
    (tmp_path / "result.json").write_text(json.dumps(about))
    with readers.gates.heard() as said:
        made = pydicom.dcmread(dicomseg.export(file, source, tmp_path / "seg.dcm"))
    assert "make sure that it is the source" in said[-1]  # a result of 0.1.0
    ours = [item for item in made.ContributingEquipmentSequence if item.Manufacturer == "Liver Workbench"]
    assert ours[0].PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Equipment"
    for segment in made.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmName == "Liver Workbench" and "clinical 1" in str(algorithm.AlgorithmParameters)


@pytest.mark.parametrize("folder", [True, False])
def test_a_source_of_another_patient_is_refused(tmp_path, folder):
    source, file, _ = segmented(tmp_path)
    about = {"voxel_hash": cohort.voxel_hash(readers.read(source).array.numpy())}
    (tmp_path / "result.json").write_text(json.dumps(about))
    result = tmp_path if folder else file
    dicomseg.export(result, source, tmp_path / "seg.dcm")
    other = series(tmp_path / "other", abdomen(seed=7)[0], names="{}.dcm")
    with pytest.raises(Refused, match=f"a CT of voxel hash .*; expected {about['voxel_hash']}, the one that"):
        dicomseg.export(result, other, tmp_path / "wrong.dcm")
    assert not (tmp_path / "wrong.dcm").exists()


def test_a_file_that_reads_back_differently_is_not_left(tmp_path, monkeypatch):
    source, file, _ = segmented(tmp_path)
    right = dicomseg.encode
    monkeypatch.setattr(dicomseg, "encode", lambda labels, *others: right(labels.flip(1), *others))
    with pytest.raises(Refused, match="voxels that read back differently"):
        dicomseg.export(file, source, tmp_path / "seg.dcm")
    assert not list(tmp_path.glob("*seg.dcm*"))


def test_the_commands(tmp_path, call):
    source, file, labels = segmented(tmp_path)
    folder = fake_folders.result(tmp_path / "r", "case 1")
    about = {"voxel_hash": cohort.voxel_hash(readers.read(source).array.numpy())}
    (folder / "result.json").write_text(json.dumps(json.loads((folder / "result.json").read_text()) | about))
    file.replace(folder / "labels.nii.gz")
    status, out, err = call("export", "dicomseg", folder, "--source", source, "-o", tmp_path / "seg.dcm")
    assert (status, out.strip(), err) == (0, str(tmp_path / "seg.dcm"), "")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").number_of_segments == 2
    status, _, err = call("export", "dicomseg", folder, "--source", tmp_path / "none", "-o", tmp_path / "x.dcm")
    assert status == 2 and "no such file or folder" in err and not (tmp_path / "x.dcm").exists()


def test_lesions_of_several_results_in_one_table(tmp_path, call):
    for n in (1, 2):
        fake_folders.result(tmp_path / f"r{n}", f"case {n}")
    (tmp_path / "r2" / "lesions.csv").unlink()
    held = pd.read_csv(tmp_path / "r1" / "lesions.csv")
    for name in ("all.csv", "all.json"):
        assert call("export", "lesions", tmp_path / "r1", tmp_path / "r2", "-o", tmp_path / name)[0] == 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert table.case.tolist() == ["case 1"] * len(held) and table.status.eq("ok").all()
    pd.testing.assert_frame_equal(table[held.columns], held)
    told = json.loads((tmp_path / "all.json").read_text())
    assert [row["candidate"] for row in told] == held.candidate.tolist()
    assert held.isna().any().any() and all(v == v for row in told for v in row.values())  # null, never NaN
    fake_folders.result(tmp_path / "e" / "results" / "r3", "case 3")
    for folder, cases in ((tmp_path, ["case 1"]), (tmp_path / "e", ["case 3"])):
        assert call("export", "lesions", folder, "-o", tmp_path / "all.csv")[0] == 0
        assert pd.read_csv(tmp_path / "all.csv").case.unique().tolist() == cases
    out = call("export", "lesions", tmp_path / "r1", tmp_path / "e" / "results", "-o", tmp_path / "all.csv")[1]
    assert out.startswith("6 candidates of 2 results")
    status, _, err = call("export", "lesions", tmp_path / "all.csv", "-o", tmp_path / "x.csv")
    assert status == 2 and "found no result; expected a result folder, a folder of them" in err
    status, _, err = call("export", "lesions", tmp_path / "r1", "-o", tmp_path / "all.xls")
    assert status == 2 and "expected .csv or .json" in err


def test_lesions_say_what_readers_said_while_it_counts(tmp_path, call):
    for n in (1, 2, 3):
        fake_folders.result(tmp_path / f"r{n}", f"case {n}")
    verdicts.give(tmp_path / "r1", 2, "reject", "a vessel, cut", "Ann")
    verdicts.give(tmp_path / "r1", 3, "accept", who="Ben")
    verdicts.give(tmp_path / "r2", 1, "accept", "of a result that has changed since", "Ann")
    (tmp_path / "r2" / "lesions.csv").write_text((tmp_path / "r2" / "lesions.csv").read_text() + "\n")
    status, _, err = call("export", "lesions", *(tmp_path / f"r{n}" for n in (1, 2, 3)), "-o", tmp_path / "all.csv")
    assert status == 0 and "r2: the result has changed since 1 verdict" in err
    table = pd.read_csv(tmp_path / "all.csv", keep_default_na=False)
    said = table[["case", "candidate", "verdict", "reader", "note"]].to_numpy().tolist()
    assert said[:3] == [
        ["case 1", 1, "", "", ""],
        ["case 1", 2, "reject", "Ann", "a vessel, cut"],
        ["case 1", 3, "accept", "Ben", ""],
    ]
    assert len(said) == 9 and not any(any(row[2:]) for row in said[3:])


@pytest.mark.parametrize("oblique", [False, True])
def test_lesions_of_an_earlier_version_get_their_place_in_the_world(tmp_path, call, oblique):
    folder = fake_folders.result(tmp_path / "r", "case 1", oblique)
    assert call("export", "lesions", folder, "-o", tmp_path / "all.csv")[0] == 0
    image = nibabel.load(folder / "candidates.nii.gz")
    table = pd.read_csv(tmp_path / "all.csv")
    at = np.linalg.inv(image.affine) @ np.vstack([table[["r_mm", "a_mm", "s_mm"]].to_numpy().T, np.ones(3)])
    i, j, k = np.rint(at[:3]).astype(int)
    assert np.asarray(image.dataobj)[i, j, k].tolist() == [1, 2, 3], "the voxels of the file there"
    assert np.allclose(at[:3], [i, j, k], atol=1e-3)
    empty = fake_folders.result(tmp_path / "none", "case 2", status="no liver")
    assert call("export", "lesions", empty, "-o", tmp_path / "none.csv")[0] == 0
    assert "r_mm" in pd.read_csv(tmp_path / "none.csv").columns


# -- in -----------------------------------------------------------------------------------------------------------------


def written(path, source, masks, described, kind="BINARY", **more):
    """A segmentation by highdicom: `masks` [slice row column segment] or a label map, `described` (label, type, region)."""
    images = sorted((pydicom.dcmread(p) for p in source.iterdir()), key=lambda s: s.InstanceNumber)
    segments = [
        highdicom.seg.SegmentDescription(
            n, label, codes.SCT.Tissue, code, "MANUAL", anatomic_regions=None if region is None else [region]
        )
        for n, (label, code, region) in enumerate(described, 1)
    ]
    uid = highdicom.UID
    highdicom.seg.Segmentation(
        images, masks, kind, segments, uid(), 9, uid(), 1, "maker", "model", "1", "0", **more
    ).save_as(path)
    return path


SRT_LIVER = pydicom.sr.coding.Code("T-62000", "SRT", "Liver")
OTHER = pydicom.sr.coding.Code("1", "99LOCAL", "Segment")
CODES = [
    ("Segment 1", codes.SCT.Liver, None, scans.LIVER),
    ("a", SRT_LIVER, None, scans.LIVER),
    ("Liver", OTHER, None, scans.LIVER),
    ("Segment 2", codes.SCT.NeoplasmSecondary, None, scans.TUMOR),
    ("Tumor_3", OTHER, None, scans.TUMOR),
    ("x", codes.SCT.Mass, codes.SCT.Liver, scans.TUMOR),
    ("x", codes.SCT.Mass, codes.SCT.Kidney, 0),
    ("Portal vein", codes.SCT.PortalVein, None, meanings.WITHIN),
    ("Liver_Remnant", OTHER, None, scans.LIVER),
    ("Segment 2", Code("126851005", "SCT", "Neoplasm of liver"), None, scans.TUMOR),
    ("Segment 2", Code("99999", "SCT", "Secondary malignant neoplasm of liver"), None, scans.TUMOR),
    ("HCC-1", OTHER, None, scans.TUMOR),
    ("Met 17mm", codes.SCT.Tissue, codes.SCT.Abdomen, scans.TUMOR),
    ("Tumor", codes.SCT.Neoplasm, Code("48521005", "SCT", "Right lobe of liver"), scans.TUMOR),
    ("Tumor", codes.SCT.Neoplasm, Code("277962002", "SCT", "Couinaud hepatic segment VIII"), scans.TUMOR),
    ("Left kidney tumor", codes.SCT.Neoplasm, None, 0),
    ("Liver cyst", Code("85057007", "SCT", "Cyst of liver"), None, meanings.BENIGN),
    ("Segment_1", codes.SCT.Tissue, None, meanings.WITHIN),
]


@pytest.mark.parametrize(("label", "code", "region", "meant"), CODES)
def test_what_a_segment_means(tmp_path, label, code, region, meant):
    source, _, labels = segmented(tmp_path)
    path = written(tmp_path / "seg.dcm", source, (labels > 0)[..., None], [(label, code, region)])
    ((found, told, voxels, _),) = reader.segments(path, readers.read(source))
    assert (found, told, len(voxels)) == (meant, label, int((labels > 0).sum()))


def test_a_segment_that_contradicts_itself_is_refused(tmp_path):
    source, _, labels = segmented(tmp_path)
    path = written(tmp_path / "seg.dcm", source, (labels > 0)[..., None], [("Liver", codes.SCT.Neoplasm, None)])
    with pytest.raises(Refused, match="called 'Liver' and coded as Neoplasm"):
        reader.segments(path, readers.read(source))


BOTH = [("Liver", codes.SCT.Liver, None), ("Tumor", codes.SCT.Neoplasm, None)]


@pytest.mark.parametrize("cosines", [PLAIN, TILTED, FEET_FIRST])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_every_kind_of_object(tmp_path, kind, cosines):
    source, _, labels = segmented(tmp_path, cosines)
    path = written(tmp_path / "seg.dcm", source, labels, BOTH, kind)
    ct = readers.read(source)
    back, outside = scans.joined(ct, reader.segments(path, ct))
    assert np.array_equal(ct.source.to_file_order(back.array.numpy()).transpose(2, 1, 0), labels)
    assert float(outside.split()[0]) == pytest.approx(
        4 * 0.9 * 0.7 * 5 / 1000, abs=0.005
    )  # the label map's liver has a hole


def test_a_probability_below_one_half_is_none(tmp_path):
    source, _, labels = segmented(tmp_path)
    chance = np.where(labels > 0, 0.4, 0.0)
    chance[2, 1, 2] = 0.6
    path = written(tmp_path / "seg.dcm", source, chance[..., None], BOTH[:1], "FRACTIONAL")
    ((_, _, voxels, _),) = reader.segments(path, readers.read(source))
    assert len(voxels) == 1


def test_frames_in_any_order_and_flipped_lie_where_their_positions_say(tmp_path):
    """A segmentation whose rows run the other way than the CT's."""
    source, _, labels = segmented(tmp_path)
    volume = highdicom.Volume(
        np.ascontiguousarray((labels > 0)[::-1, :, ::-1]).astype(np.uint8),
        np.array([[0, 0, -0.7, -10 + 10 * 0.7], [0, 0.9, 0, -20], [-5, 0, 0, 125], [0, 0, 0, 1]]),
        coordinate_system="PATIENT",
        frame_of_reference_uid=pydicom.dcmread(source / "0.dcm").FrameOfReferenceUID,
    )
    path = written(tmp_path / "seg.dcm", source, volume, BOTH[:1])
    assert highdicom.seg.segread(path).get_volume().affine[0, 2] < 0
    ct = readers.read(source)
    ((_, _, voxels, _),) = reader.segments(path, ct)
    assert np.array_equal(voxels, np.flatnonzero(ct.source.to_canonical((labels > 0).transpose(2, 1, 0))))


def test_a_grid_that_is_not_the_cts_is_refused(tmp_path):
    source, file, labels = segmented(tmp_path)
    for name, origin, says in (
        ("aside", (-10.3, -20, 100), "0.3 mm beside those"),
        ("above", (-10, -20, 105), "outside the CT"),
    ):
        other = readers.read(series(tmp_path / name, abdomen()[0], origin=origin))
        path = written(tmp_path / f"{name}.dcm", source, (labels > 0)[..., None], BOTH[:1])
        with pytest.raises(Refused, match=says):
            reader.segments(path, other)


def test_damaged_objects_are_refused(tmp_path):
    source, _, labels = segmented(tmp_path)
    ct = readers.read(source)
    path = written(tmp_path / "seg.dcm", source, (labels > 0)[..., None], BOTH[:1])
    whole = path.read_bytes()
    for name, data, says in (
        ("short", whole[:-40], "damaged segmentation"),
        ("text", b"x" * 200, "damaged segmentation"),
        ("ct", (source / "0.dcm").read_bytes(), "class CT Image Storage; expected a segmentation"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Refused, match=says):
            reader.segments(tmp_path / name, ct)
    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    ds.save_as(tmp_path / "lost")
    with pytest.raises(Refused, match="damaged segmentation"):
        reader.segments(tmp_path / "lost", ct)


# -- real files ------------------------------------------------------------------------------------------------------------


def test_a_real_object_of_another_program_and_back(realdata, tmp_path):
    """dcmqi's: its segment is coded in SRT, and its own NRRD has the same voxels."""
    source = realdata / "dcmqi-ct-3slice" / "dicom"
    ct = readers.read(source)
    (found,) = reader.segments(realdata / "dcmqi-ct-3slice" / "liver.dcm", ct)
    mask = np.zeros(ct.shape, bool)
    mask.flat[found.voxels] = True
    nrrd = readers.read_labels(realdata / "dcmqi-ct-3slice" / "liver_seg.nrrd", like=ct, allowed=None).array.numpy()
    assert (found.meant, found.name) == (scans.LIVER, "Liver") and np.array_equal(mask, nrrd > 0)
    nifti.write(ct.with_array(torch.from_numpy(mask.astype(np.uint8))), tmp_path / "labels.nii.gz")
    seg = highdicom.seg.segread(dicomseg.export(tmp_path / "labels.nii.gz", source, tmp_path / "seg.dcm"))
    uids = [pydicom.dcmread(p, stop_before_pixels=True) for p in source.iterdir()]
    uids = [s.SOPInstanceUID for s in sorted(uids, key=lambda s: s.ImagePositionPatient[2])]
    pixels = seg.get_pixels_by_source_instance(uids)[..., 0]
    assert np.array_equal(ct.source.to_canonical(pixels.transpose(2, 1, 0)), mask)
