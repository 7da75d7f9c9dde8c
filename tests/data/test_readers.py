"""Readers: canonical axes, HU kept, results on the input's own grid with its affine bit for bit."""

import gzip
import itertools
import math
import os
import re
import sys
import warnings
import zlib

import dicoms
import nibabel
import numpy as np
import pytest
import torch

from workbench.data import readers
from workbench.data.readers import WorkbenchWarning, case_name, gates, itk, nifti
from workbench.volume import Refused, Volume, canonical_affine

SHAPE = (4, 6, 9)  # unequal, so that a transposition shows


def hu(shape=SHAPE):
    """Every voxel with a value of its own, -1000 and up."""
    return (np.arange(np.prod(shape)).reshape(shape) * 7 - 1000).astype(np.int16)


def save(path, array, affine, sform=1, qform=0):
    image = nibabel.Nifti1Image(array, None)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nibabel.save(image, path)
    return path


def rotation(degrees, axis):
    a = np.radians(degrees)
    i, j = [k for k in range(3) if k != axis]
    r = np.eye(3)
    r[i, i] = r[j, j] = np.cos(a)
    r[i, j], r[j, i] = -np.sin(a), np.sin(a)
    return r


def placed(columns, origin=(12.25, -30.5, 101.125)):
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = origin
    return affine


TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize("order, signs", TURNS, ids=lambda v: "".join(map(str, v)))
def test_every_axis_order_comes_in_canonical_and_goes_out_as_it_was(tmp_path, order, signs):
    columns = np.zeros((3, 3))
    for i, (world, sign) in enumerate(zip(order, signs)):
        columns[world, i] = sign * (0.7, 0.9, 2.5)[world]
    affine = placed(columns)
    path = save(tmp_path / "case.nii.gz", hu(), affine)
    volume = readers.read(path)

    # each canonical voxel holds what the file holds at the same place in the patient
    back = np.linalg.inv(affine) @ volume.affine
    for z, y, x in itertools.product(*(range(n) for n in volume.shape)):
        at = np.rint(back @ (x, y, z, 1)).astype(int)[:3]
        assert volume.array[z, y, x] == hu()[tuple(at)]
    assert np.array_equal(np.sign(volume.affine[:3, :3]), np.diag([-1, -1, 1]))
    assert volume.spacing_mm == (2.5, 0.9, 0.7)

    nifti.write(volume, tmp_path / "out.nii.gz")
    out = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(out.affine, nibabel.load(path).affine)
    assert np.array_equal(np.asarray(out.dataobj), hu()) and out.get_data_dtype() == np.int16


@pytest.mark.parametrize("sform, qform", [(1, 0), (0, 1), (1, 1), (2, 1), (0, 4)])
@pytest.mark.parametrize("keep_source", [True, False])
def test_oblique_affine_bit_for_bit(tmp_path, sform, qform, keep_source):
    columns = rotation(7.3, 0) @ rotation(-3.1, 2) @ np.diag([-0.743, -0.743, 1.6])
    path = save(tmp_path / "case.nii.gz", hu(), placed(columns), sform, qform)
    before = nibabel.load(path)
    volume = readers.read(path)
    if not keep_source:
        path.unlink()  # the header to copy from is gone
    nifti.write(volume.with_array(volume.array.to(torch.uint8)), tmp_path / "out.nii.gz")
    out = nibabel.load(tmp_path / "out.nii.gz")
    assert out.affine.tobytes() == before.affine.tobytes()
    if keep_source:
        assert (out.header["sform_code"], out.header["qform_code"]) == (sform, qform)
    assert out.header.get_xyzt_units()[0] == "mm"
    assert volume.spacing_mm == pytest.approx((1.6, 0.743, 0.743), abs=1e-5)
    # kept oblique, not straightened: the normal leans 7 degrees
    lean = np.degrees(np.arccos(volume.affine[2, 2] / 1.6))
    assert 5 < lean < 10


def test_other_dtypes_and_the_canonical_grid(tmp_path):
    spacing = (2.5, 0.9, 0.7)
    generator = torch.Generator().manual_seed(0)
    float_map = torch.rand(SHAPE, generator=generator)
    for array, dtype in (
        (float_map, np.float32),
        (float_map.half(), np.float32),
        (float_map > 0.5, np.uint8),
        ((float_map * 4).to(torch.uint8), np.uint8),
        ((float_map * 9e4).to(torch.int64), np.int32),
    ):
        nifti.write(Volume(array, spacing, canonical_affine(spacing)), tmp_path / "m.nii")
        out = nibabel.load(tmp_path / "m.nii")
        assert out.get_data_dtype() == dtype
        assert out.shape == SHAPE[::-1]
        assert np.array_equal(np.asarray(out.dataobj).transpose(2, 1, 0), array.to(torch.float64).numpy().astype(dtype))
        assert nibabel.aff2axcodes(out.affine) == ("L", "P", "S")
        assert (out.header["sform_code"], out.header["qform_code"]) == (1, 1)


def test_writing_is_atomic_and_repeatable(tmp_path, monkeypatch):
    spacing = (2.0, 1.0, 1.0)
    volume = Volume(torch.zeros(SHAPE), spacing, canonical_affine(spacing))
    path = tmp_path / "p.nii.gz"
    nifti.write(volume, path)
    first = path.read_bytes()
    nifti.write(volume, path)
    assert path.read_bytes() == first  # no time stamp

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        nifti.write(volume.with_array(torch.ones(SHAPE)), path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["p.nii.gz"]
    with pytest.raises(Refused, match="suffix"):
        nifti.write(volume, tmp_path / "p.png")


def test_scale_and_intercept_give_hu(tmp_path):
    for slope, inter, stored, expected in (
        (1.0, -1024.0, np.uint16([0, 1024, 1500, 1084]), torch.int16),
        (2.0, -1000.0, np.int16([0, 500, 900, 530]), torch.int16),
        (0.5, 10.5, np.int16([-2000, 0, 99, 100]), torch.float32),
    ):
        array = np.resize(stored, SHAPE)
        header = nibabel.Nifti1Header()
        header.set_data_dtype(stored.dtype)
        header.set_data_shape(SHAPE)
        header.set_sform(placed(np.diag([-1.0, -1, 2])), 1)
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
        path = tmp_path / "s.nii"
        path.write_bytes(header.binaryblock + bytes(4) + array.tobytes(order="F"))
        volume = readers.read(path)
        assert volume.array.dtype == expected
        wanted = nibabel.load(path).get_fdata().transpose(2, 1, 0)
        assert np.array_equal(volume.array.numpy(), wanted)


def test_integers_stay_int16_and_fractions_float32(tmp_path):
    affine = placed(np.diag([-1.0, -1, 2]))
    for array, dtype in (
        (hu().astype(np.int32), torch.int16),
        (hu().astype(np.float64), torch.int16),
        (hu().astype(np.float32) + 0.25, torch.float32),
        (hu().astype(np.int32) * 40, torch.float32),
        (hu().astype(np.int32).clip(max=500) + 32268, torch.float32),  # one more than int16 holds, at one end
        (hu().astype(np.int32) - 31769, torch.float32),
        (hu().astype(">i2"), torch.int16),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WorkbenchWarning)
            volume = readers.read(save(tmp_path / "c.nii.gz", array, affine))
        assert volume.array.dtype == dtype
        assert np.array_equal(volume.array.numpy(), array.transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_nrrd_and_meta_images_have_nifti_geometry(tmp_path, suffix, compressed):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(hu())  # [z y x]
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-12.5, 30.25, -7.0))
    image.SetDirection((rotation(20, 0) @ np.diag([1, -1, 1])).ravel())
    sitk.WriteImage(image, tmp_path / f"scan{suffix}", useCompression=compressed)
    sitk.WriteImage(image, tmp_path / "scan.nii.gz")
    volume, twin = readers.read(tmp_path / f"scan{suffix}"), readers.read(tmp_path / "scan.nii.gz")
    assert torch.equal(volume.array, twin.array)
    assert np.allclose(volume.affine, twin.affine, atol=1e-5)
    assert volume.spacing_mm == twin.spacing_mm == (2.5, 0.9, 0.7)
    nifti.write(volume, tmp_path / "out.nii.gz")  # the grid of the input, in RAS
    back = sitk.ReadImage(tmp_path / "out.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(back), hu())
    assert np.allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
    assert np.allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)


TURN = "0.8 0.6 0 -0.6 0.8 0 0 0 1"  # row by row an axis' direction
HEADERS = {
    "as written": {},
    "turned": {"TransformMatrix": TURN},
    "turned, by another name": {"TransformMatrix": None, "Rotation": TURN},
    "origin, by another name": {"Offset": None, "Position": "-12.5 30.25 7"},
    "origin, by a third name": {"Offset": None, "Origin": "-12.5 30.25 7"},
    "a centre of rotation": {"CenterOfRotation": "5 -6 7", "TransformMatrix": TURN},
    "size of the voxels only": {"ElementSpacing": None, "ElementSize": "0.7 0.9 2.5"},
    "spacing and size": {"ElementSize": "1 1 1"},
    "no words on the order of bytes": {"BinaryDataByteOrderMSB": None},
    "order of bytes, by another name": {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "False"},
    "no word on binary": {"BinaryData": None},
    "no word on compression": {"CompressedData": None},
    "one channel": {"ElementNumberOfChannels": "1"},
    "words that say nothing of the grid": {
        "Comment": "a = b",
        "Modality": "MET_MOD_CT",
        "AnatomicalOrientation": "LPS",
    },
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_meta_images_are_read_as_itk_reads_them(tmp_path, header, zipped, beside):
    import SimpleITK as sitk

    kinds = {"MET_SHORT": "i2"} if header != "as written" else {
        "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
        "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}  # fmt: skip
    for (kind, dtype), order in itertools.product(kinds.items(), "<>" if header == "as written" else "<"):
        stored = np.random.default_rng(0).integers(0, 120, SHAPE).astype(order + dtype)
        data = zlib.compress(stored.tobytes(order="F")) if zipped else stored.tobytes(order="F")
        fields = {
            "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": str(order == ">"),
            "CompressedData": str(zipped), "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-12.5 30.25 7",
            "CenterOfRotation": "0 0 0", "ElementSpacing": "0.7 0.9 2.5", "DimSize": " ".join(map(str, SHAPE)),
        } | HEADERS[header] | {"ElementType": kind, "ElementDataFile": "the voxels.raw" if beside else "LOCAL"}  # fmt: skip
        if zipped and fields["CompressedData"] is None:
            pytest.skip("compressed data must be said to be")
        if zipped:  # without it ITK takes what memory holds for the voxels
            fields = {"CompressedDataSize": str(len(data))} | fields
        words = "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None).encode()
        path = tmp_path / ("scan.mhd" if beside else "scan.mha")
        path.write_bytes(words if beside else words + data)
        (tmp_path / "the voxels.raw").write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array, affine = itk.voxels(path)
        image = sitk.ReadImage(path)
        assert np.array_equal(array, sitk.GetArrayFromImage(image).T) and np.array_equal(array, stored)
        assert array.dtype == np.dtype(dtype) == sitk.GetArrayFromImage(image).dtype and array.flags.writeable
        for at in itertools.product((0, 3), (0, 5), (0, 8)):
            assert np.allclose(
                (affine @ (*at, 1))[:3] * (-1, -1, 1), image.TransformIndexToPhysicalPoint(at), atol=1e-9
            )


@pytest.mark.parametrize("field, value, found", [
    ("BinaryData", "False", "voxels as text"), ("HeaderSize", "-1", "a header of their own"), ("HeaderSize", "12", "a header of their own"),
    ("ElementNumberOfChannels", "3", "3 values a voxel"), ("ElementType", "MET_STRING", "voxels of type MET_STRING"),
    ("ElementDataFile", "LIST", "several files"), ("ElementDataFile", "slice%03d.raw 1 6 1", "several files"),
    ("ElementDataFile", "../scan.raw", "voxels in ../scan.raw"), ("ElementDataFile", "other.raw", "no file other.raw"),
    ("ElementSpacing", "1 1", "elementspacing '1 1'"), ("Offset", "1 x 1", "offset '1 x 1'"), ("TransformMatrix", "1 0 0 nan 1 0 0 0 1", "transformmatrix"),
    ("DimSize", "4 6", "3 dimensions"), ("DimSize", "4 6 900", "bytes of voxels"), ("CompressedData", "True", "damaged compressed data"),
    ("Position", "0 0 0", "offset told twice"), ("DimSize", "9" * 5000 + " 1 1", "sizes 999"),
])  # fmt: skip
def test_other_meta_images_are_refused(tmp_path, field, value, found):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(hu()), tmp_path / "scan.mhd")
    lines = [line for line in (tmp_path / "scan.mhd").read_text().splitlines() if not line.startswith(f"{field} ")]
    lines.insert(len(lines) - (field != "ElementDataFile"), f"{field} = {value}")
    (tmp_path / "scan.mhd").write_text("\n".join(lines) + "\n")
    with pytest.raises(Refused, match=re.escape(found)):
        readers.read(tmp_path / "scan.mhd")


def test_a_pattern_of_data_files_is_no_way_out_of_the_folder(tmp_path):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(hu()), tmp_path / "scan.nhdr")
    head = (tmp_path / "scan.nhdr").read_text()
    (tmp_path / "in").mkdir()
    for name in ("%d.raw 1 9 1", f"{tmp_path}/%d.raw 1 9 1", "LIST\n../1.raw", "../scan.raw", f"{tmp_path}/scan.raw"):
        for spelling in ("data file", "datafile"):
            lines = [f"{spelling}: {name}" if "data file" in line else line for line in head.splitlines()]
            (tmp_path / "in" / "scan.nhdr").write_text("\n".join(lines) + "\n")
            with pytest.raises(Refused, match="several files|same folder"):
                readers.read(tmp_path / "in" / "scan.nhdr")


def test_a_singleton_axis_is_dropped_with_a_word(tmp_path):
    image = nibabel.Nifti1Image(hu()[..., None], placed(np.diag([-1.0, -1, 2])))
    nibabel.save(image, tmp_path / "c.nii.gz")
    with pytest.warns(WorkbenchWarning, match="axes of length 1 were dropped"):
        volume = readers.read(tmp_path / "c.nii.gz")
    assert volume.shape == SHAPE[::-1]
    nifti.write(volume, tmp_path / "o.nii.gz")
    assert nibabel.load(tmp_path / "o.nii.gz").shape == SHAPE


def test_what_must_be_accepted(tmp_path):
    """Soft tissue alone, clipped crops and flat volumes are no faults."""
    rng = np.random.default_rng(0)
    affine = np.diag([2, 2, 5, 1.0])
    tissue = rng.normal(60, 20, (64, 60, 24)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WorkbenchWarning)
        volume = readers.read(save(tmp_path / "tissue.nii.gz", tissue, affine))
        assert volume.array.dtype == torch.float32
        clipped = np.clip(rng.normal(60, 200, SHAPE), -160, 240).astype(np.int16)
        assert readers.read(save(tmp_path / "clipped.nii.gz", clipped, affine)).array.min() == -160
    with pytest.warns(WorkbenchWarning, match="every voxel is -1000 HU"):
        readers.read(save(tmp_path / "air.nii.gz", np.full(SHAPE, -1000, np.int16), affine))


def test_slices_are_counted_along_the_body_wherever_the_file_has_them(tmp_path):
    """z is the file's first axis."""
    lying = placed(np.array([[0, 0, 0.9], [0, 0.7, 0], [2.5, 0, 0]]))
    assert readers.read(save(tmp_path / "three.nii.gz", hu((3, 9, 2)), lying)).shape == (3, 9, 2)
    with pytest.raises(Refused, match="2 slice.s. in a grid of 2 x 9 x 6"):
        readers.read(save(tmp_path / "two.nii.gz", hu((2, 9, 6)), lying))


def test_labels(tmp_path):
    affine = placed(rotation(4, 1) @ np.diag([0.7, -0.9, 2.5]))
    mask = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3).astype(np.float64)
    ct = readers.read(save(tmp_path / "ct.nii.gz", hu(), affine))
    volume = readers.read_labels(save(tmp_path / "labels.nii.gz", mask, affine), like=ct)
    assert volume.array.dtype == torch.uint8
    assert np.array_equal(volume.source.to_file_order(volume.array.numpy()), mask)
    # the same mask stored in other axes lies on the same grid once both are canonical
    turned = nibabel.as_closest_canonical(nibabel.load(tmp_path / "labels.nii.gz"))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    assert torch.equal(readers.read_labels(tmp_path / "turned.nii.gz", like=ct).array, volume.array)
    regions = save(tmp_path / "regions.nii.gz", (hu() + 1000).astype(np.int32), affine)
    assert readers.read_labels(regions, allowed=None).array.dtype == torch.int32
    for value, dtype in ((255, torch.uint8), (256, torch.int32), (2**31 - 1, torch.int32)):
        found = readers.read_labels(
            save(tmp_path / "region.nii.gz", (mask * (mask < 2) * value).astype(np.uint32), affine), allowed=None
        )
        assert found.array.dtype == dtype and found.array.unique().tolist() == [0, value]
    with pytest.raises(Refused, match="label values 0, 2147483648"):
        readers.read_labels(
            save(tmp_path / "region.nii.gz", (mask * (mask < 2) * 2.0**31).astype(np.uint32), affine), allowed=None
        )
    empty = save(tmp_path / "empty.nii.gz", mask * 0, affine)
    assert not readers.read_labels(empty).array.any()
    with pytest.raises(Refused, match="an empty mask"):
        readers.read_labels(empty, allow_empty=False)


def test_case_names(tmp_path):
    assert case_name("data/p07.nii.gz") == "p07"
    assert case_name("data/p07/ct.nii.gz") == "p07"
    assert case_name("data/p.07.nrrd") == "p.07"
    assert case_name("data/p07/dicom") == case_name("data/p07/dicom/image") == case_name("data/p07/DICOM_anon") == "p07"
    assert case_name(tmp_path / "volume-12.nii") == "volume-12"


def test_list_cases_and_check(tmp_path):
    affine = placed(np.diag([-1.0, -1, 2]))
    for name in ("p10/ct.nii.gz", "p2/ct.nii.gz", "p2/labels.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, hu(), affine)
    (tmp_path / "p2" / "bad.nii.gz").write_bytes(b"")
    found = readers.list_cases(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in found] == ["p2/bad.nii.gz", "p2/ct.nii.gz", "p10/ct.nii.gz"]
    bad, good, _ = (readers.check(p) for p in found)
    assert (good.ok, good.warnings) == (True, ())
    assert good.message == "4 x 6 x 9 voxels of 1 x 1 x 2 mm, -1000 to 505 HU"
    assert not bad.ok and "0 bytes" in bad.message
    assert not readers.check(tmp_path / "none.nii").ok
    assert readers.list_cases(found[0]) == [found[0]]


def test_pair_labels(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")

    def pairs(a, b):
        root = tmp_path
        return [
            (n, str(t.relative_to(root)), str(p.relative_to(root)))
            for n, t, p in readers.pair_labels(root / a, root / b)
        ]

    touch("t/a.nii.gz", "t/b.nii.gz", "p/b.nii", "p/a.nrrd")
    assert pairs("t", "p") == [("a", "t/a.nii.gz", "p/a.nrrd"), ("b", "t/b.nii.gz", "p/b.nii")]
    assert pairs("t/a.nii.gz", "p/b.nii") == [("b", "t/a.nii.gz", "p/b.nii")]  # two files are a pair by being named
    # result folders of `segment` against a cohort's folders, and against LiTS's names
    touch("r/c2/labels.nii.gz", "r/c2/ledger.nii.gz", "r/c10/labels.nii.gz")
    touch("cohort/c2/ct.nii.gz", "cohort/c2/labels-liver1-tumour2.nii.gz", "cohort/c10/labels.nii.gz")
    assert [n for n, _, _ in pairs("cohort", "r")] == ["c2", "c10"]
    touch("lits/volume-3.nii", "lits/segmentation-3.nii", "out/volume-3/labels.nii.gz")
    assert pairs("lits", "out") == [("3", "lits/segmentation-3.nii", "out/volume-3/labels.nii.gz")]
    assert pairs("cohort/c2", "r/c2") == [("c2", "cohort/c2/labels-liver1-tumour2.nii.gz", "r/c2/labels.nii.gz")]
    touch("p/extra.nii.gz", "t/only.nii.gz")
    with pytest.raises(Refused, match=r"1 truth without prediction \(only\), 1 prediction without truth \(extra\)"):
        readers.pair_labels(tmp_path / "t", tmp_path / "p")
    with readers.gates.heard() as said:
        some = readers.pair_labels(tmp_path / "t", tmp_path / "p", common=True)
    assert [name for name, *_ in some] == ["a", "b"] and len(said) == 1
    assert "2 cases in both; left out: 1 truth without prediction (only), 1 prediction without truth (extra)" in said[0]
    with pytest.raises(Refused, match="2 prediction without truth .* a case name that is on both sides"):
        readers.pair_labels(tmp_path / "lits", tmp_path / "r", common=True)
    touch("two/c2/labels-a.nii.gz", "two/c2/labels-b.nii.gz")
    with pytest.raises(Refused, match="2 label files"):
        readers.pair_labels(tmp_path / "two", tmp_path / "r")
    with pytest.raises(Refused, match="no such file"):
        readers.pair_labels(tmp_path / "missing", tmp_path / "r")


def files_at(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("segmentation-3.nii", "segmentation-7.nii"),
        ("segmentation-3.nii", "volume-7/labels.nii.gz"),
        ("liver_003.nii.gz", "liver_007.nii.gz"),
        ("Segmentation-3.nii", "7.nii"),
        ("case-3/labels.nii.gz", "case-7/labels.nii.gz"),
    ],
)
def test_two_case_numbers_are_no_pair(tmp_path, one, other):
    a, b = files_at(tmp_path / "a", one), files_at(tmp_path / "b", other)
    for pair in ((a, b), (a / one, b / other)):
        with pytest.raises(Refused, match="3"):
            readers.pair_labels(*pair)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("reader1.nii.gz", "reader2.nii.gz"),
        ("p3_v1.nii.gz", "p3_v2.nii.gz"),
        ("segmentation-3.nii", "volume-3.nii"),
        ("liver_3.nii", "segmentation-3.nii"),
        ("truth.nii", "prediction7.nii"),
    ],
)
def test_two_files_of_one_case_are_a_pair(tmp_path, one, other):
    a, b = files_at(tmp_path / "a", one), files_at(tmp_path / "b", other)
    assert len(readers.pair_labels(a / one, b / other)) == 1


def test_every_case_of_the_reference_is_scored_or_named(tmp_path):
    truth = files_at(tmp_path / "t", *(f"segmentation-{n}.nii" for n in (0, 1)), "liver_2.nii", "liver_3.nii")
    found = files_at(tmp_path / "p", *(f"volume-{n}/labels.nii.gz" for n in (0, 1)))
    with pytest.raises(Refused, match=r"2 truth without prediction \(liver_2, liver_3\)"):
        readers.pair_labels(truth, found)
    with readers.gates.heard() as said:
        assert len(readers.pair_labels(truth, found, common=True)) == 2
    assert "liver_2, liver_3" in said[0]
    files_at(found, "liver_2/labels.nii.gz", "liver_3.nii.gz")
    assert [n for n, *_ in readers.pair_labels(truth, found)] == ["0", "1", "liver_2", "liver_3"]
    files_at(truth, "volume-0.nii", "volume-9.nii", "case5/odd.nii.gz")  # CTs beside their labels, and what is no case
    with readers.gates.heard() as said:
        assert len(readers.pair_labels(truth, found)) == 4
    assert "volume-9.nii" in said[0] and "volume-0" not in said[0] and "case5: no file named labels" in said[1]


@pytest.mark.parametrize("others", [("segmentation-0.nii", "segmentation-1.nii"), ("p1/labels.nii.gz",), ("c_1.nii", "c_2.nii")])
def test_a_stray_label_file_is_named(tmp_path, others):
    folder = files_at(tmp_path / "p", "labels.nii.gz", *others)
    with pytest.raises(Refused, match="labels.nii.gz: found a label file of one case beside"):
        readers.pair_labels(folder, folder)


def test_pairs_are_found_in_any_unicode_form_and_with_nnunets_channel(tmp_path):
    truth = files_at(tmp_path / "t", "\u00fc1.nii.gz", "\u00fc2.nii.gz")
    found = files_at(tmp_path / "p", "u\u03081_0000.nii.gz", "u\u03082_0000.nii.gz")
    assert [n for n, *_ in readers.pair_labels(truth, found)] == ["\u00fc1", "\u00fc2"]


@pytest.mark.parametrize("names", ["{}.dcm", "im{}"])
def test_no_cut_of_a_last_slice_makes_a_shorter_stack(tmp_path, names):
    folder = dicoms.series(tmp_path / "scan", dicoms.abdomen()[0], names=names)
    last = folder / names.format(5)
    whole = last.read_bytes()
    for length in (*range(0, 700, 7), 100, 132, 400, 537):  # 537 ends in the middle of the modality
        last.write_bytes(whole[:length])
        with pytest.raises(Refused, match=last.name):
            readers.read(folder)
    last.write_bytes(b"x" * 4000)
    with pytest.raises(Refused, match=f"{last.name}: found (damaged|no) DICOM"):
        readers.read(folder)
    (folder / names.format(2)).write_bytes(whole[:400])  # and none in the middle is only a gap
    last.write_bytes(whole)
    with pytest.raises(Refused, match=f"{names.format(2)}: found damaged DICOM"):
        readers.read(folder)


def test_a_grid_told_with_rounding_is_one_grid(tmp_path):
    """11 columns of 0.7 mm, 9 rows of 0.9 mm: the far corner is 10 mm away, so half a turn of 0.006 moves it by .043 pixels."""
    hu = dicoms.abdomen()[0]
    turned = lambda by: lambda k: [1, by * (k % 2), 0, -by * (k % 2), 1, 0]
    straight = readers.read(dicoms.series(tmp_path / "one", hu))
    for n, rounded in enumerate(
        (
            dict(ImageOrientationPatient=turned(0.0006)),
            dict(PixelSpacing=lambda k: [0.9, 0.7 + 1e-7 * (k % 2)]),
            dict(ImageOrientationPatient=turned(0.006)),
        )
    ):
        volume = readers.read(dicoms.series(tmp_path / f"rounded{n}", hu, **rounded))
        assert torch.equal(volume.array, straight.array) and volume.spacing_mm == pytest.approx((5, 0.9, 0.7), abs=1e-4)
        far = np.array([10, 8, 5, 1])  # the volume's last voxel, as x y z
        assert np.linalg.norm((volume.affine - straight.affine) @ far) < 0.05 * 0.7
    with pytest.raises(Refused, match=r"6 of 6 slices on another grid, by up to 0.0574 pixels at a corner"):
        readers.read(dicoms.series(tmp_path / "off", hu, ImageOrientationPatient=turned(0.008)))
    with pytest.raises(
        Refused, match=r"1 of 6 slices on another grid.* image_3 \(PixelSpacing 0.9.0.8, .*PixelSpacing 0.9.0.7 "
    ):
        readers.read(dicoms.series(tmp_path / "wide", hu, PixelSpacing=lambda k: [0.9, 0.8 if k == 3 else 0.7]))


@pytest.mark.parametrize("names", ["{}.dcm", "im{}"])
def test_what_is_no_image_may_lie_beside_a_series(tmp_path, names):
    folder = dicoms.series(tmp_path / "scan", dicoms.abdomen()[0], names=names)
    alone = readers.read(folder).array
    for name in ("README", "readme.txt", ".DS_Store", "Thumbs.db", "DICOMDIR", "LICENSE2"):
        (folder / name).write_bytes(b"x" * 500)
    (folder / "empty.txt").touch()
    for name, kind, modality in (
        ("report.dcm", "1.2.840.10008.5.1.4.1.1.88.67", "SR"),
        ("raw", "1.2.840.10008.5.1.4.1.1.66", "CT"),
        ("index", "1.2.840.10008.1.3.10", None),
    ):
        dicoms.series(
            folder,
            np.zeros((1, 2, 2)),
            names=name,
            SOPClassUID=kind,
            Modality=modality,
            Rows=None,
            Columns=None,
            PixelData=None,
        )
    for name, modality in (("seg.dcm", "SEG"), ("dose.dcm", "RTDOSE"), ("page.dcm", "OT")):
        dicoms.series(folder, np.zeros((1, 9, 11)), names=name, Modality=modality)
    assert torch.equal(readers.read(folder).array, alone)


@pytest.mark.parametrize("modality", ["MR", "PT", "NM", ""])
def test_a_ct_beside_other_images_must_be_asked_for(tmp_path, modality):
    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "scan", hu, uid="1.2.3")
    alone = readers.read(folder).array
    dicoms.series(folder, hu[:, :4, :5], uid="1.2.4", Modality=modality, names="b{}")
    with pytest.raises(
        Refused,
        match=rf"2 series or grids: (?=.*\[CT series 4, 6 images).*\[{modality or re.escape('?')} series 4, 6 images of 5 x 4",
    ):
        readers.read(folder)
    assert torch.equal(readers.read(folder, series="1.2.3").array, alone)


def _edited(folder, edit):
    """The same series with each data set edited by its number."""
    import pydicom

    for k, file in enumerate(sorted(folder.iterdir(), key=gates.natural)):
        ds = pydicom.dcmread(file)
        edit(ds, k)
        ds.save_as(file)
    return folder


TWO = {  # an attribute that slices 3 to 5 have of their own, and what of it is told
    "AcquisitionNumber": ((1, 2), "AcquisitionNumber 1 and 2"),
    "PatientID": (("4711", "4712"), "PatientID with 2 values, not shown"),
    "PatientBirthDate": (("19700203", "19710203"), "PatientBirthDate with 2 values, not shown"),
    "StudyInstanceUID": (("1.2.3", "1.2.4"), "StudyInstanceUID 1.2.3"),
    "SeriesNumber": ((4, 5), "CT series 5"),
    "FrameOfReferenceUID": (("1.2.3", "1.2.4"), "FrameOfReferenceUID 1.2.4"),
    "ImageType": ((["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]), r"ImageType DERIVED.PRIMARY.AXIAL"),
    "RescaleType": (("HU", "MGML"), "RescaleType MGML"),
    "TemporalPositionIdentifier": ((1, 2), "TemporalPositionIdentifier 2"),
    "NominalPercentageOfCardiacPhase": ((40, 70), "NominalPercentageOfCardiacPhase 70"),
    "PatientPosition": (("HFS", "FFS"), "PatientPosition FFS"),
    "ConvolutionKernel": (("B30f", "B70f"), "ConvolutionKernel B70f"),
    "KVP": ((80, 140), "KVP 140"),
    "SeriesDescription": (("arterial", "portal"), "SeriesDescription portal"),
}


@pytest.mark.parametrize("tag", TWO)
@pytest.mark.parametrize("mixed", [False, True])
def test_slices_that_differ_in_what_one_volume_has_once_are_no_volume(tmp_path, tag, mixed):
    values, told = TWO[tag]
    hu, second = dicoms.abdomen((8, 9, 11))[0], lambda k: k % 2 if mixed else k >= 4
    folder = dicoms.series(tmp_path / "s", hu, uid="1.2.9", study="1.2.3", **{tag: lambda k: values[second(k)]})
    with pytest.raises(Refused, match=told) as refused:
        readers.read(folder)
    assert "convert" in str(refused.value) or "folder of its own" in str(refused.value)
    assert "4711" not in str(refused.value) and "1970" not in str(refused.value)
    if not isinstance(values[0], list):
        if tag == "RescaleType":
            assert readers.read(folder, phase="RescaleType=HU").shape[0] == 4
        else:
            some = readers.read(folder, phase=f"{tag}={values[1]}")
            assert torch.equal(some.array, torch.from_numpy(hu[1::2] if mixed else hu[4:]))
    with pytest.raises(Refused, match="no slice with|an attribute and its value"):
        readers.read(folder, phase=f"{tag}=9.9")
    with pytest.raises(Refused, match="all or an attribute and its value"):
        readers.read(folder, phase="9")


def test_rotations_of_one_scan_are_one_volume(tmp_path):
    """Step and shoot: an acquisition for each slice, or for each rotation of a few slices."""
    hu = dicoms.abdomen((12, 9, 11))[0]
    each = readers.read(dicoms.series(tmp_path / "each", hu, AcquisitionNumber=lambda k: k + 1))
    with gates.heard() as said:
        fours = readers.read(dicoms.series(tmp_path / "fours", hu, AcquisitionNumber=lambda k: k // 4))
        assert torch.equal(each.array, fours.array)
    assert "3 acquisitions one above the other" in said[0]
    one = dicoms.series(tmp_path / "two", hu, AcquisitionNumber=lambda k: k // 6)
    assert torch.equal(readers.read(one, phase="all").array, fours.array)


@pytest.mark.parametrize("tag", ["AcquisitionTime", "ContentTime"])
def test_times_tell_mixed_phases(tmp_path, tag):
    hu = dicoms.abdomen((8, 9, 11))[0]
    time = lambda k: f"1011{10 + k:02d}.5" if k % 2 else f"1012{10 + k:02d}"
    with pytest.raises(Refused, match=f"slices of several times mixed, as neighbours with {tag} 1011"):
        readers.read(dicoms.series(tmp_path / "s", hu, **{tag: time}))
    readers.read(dicoms.series(tmp_path / "t", hu, **{tag: lambda k: f"1012{30 - k:02d}"}))  # one scan takes its seconds


def test_a_uid_for_each_slice_is_counted_not_listed(tmp_path):
    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "s", hu, SeriesInstanceUID=lambda k: f"1.2.{k}", StudyInstanceUID=lambda k: f"1.3.{k}")
    with pytest.raises(Refused, match="found 6 values of SeriesInstanceUID, StudyInstanceUID in 6 images; .*--series all"):
        readers.read(folder)
    assert torch.equal(readers.read(folder, series="all").array, torch.from_numpy(hu))


def test_slices_that_share_a_uid_are_no_source_of_references(tmp_path):
    from workbench.data.readers import dicom

    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "s", hu, SOPInstanceUID="1.2.3")
    for read in (readers.read, dicom.stack, lambda f: dicom.stack(f, "all")):
        with pytest.raises(Refused, match="found 1 SOPInstanceUID for 6 slices"):
            read(folder)
    assert torch.equal(readers.read(folder, series="all").array, torch.from_numpy(hu))


@pytest.mark.parametrize("about", [
    {"HighBit": 11}, {"BitsStored": 12}, {"BitsStored": 12, "HighBit": 15}, {"BitsStored": 17, "HighBit": 16}, {"PixelRepresentation": 2},
    {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}, {"BitsStored": 10, "HighBit": 9}, {"PixelRepresentation": 0},
])  # fmt: skip
def test_bits_that_do_not_fit_are_refused(tmp_path, about):
    folder = dicoms.series(tmp_path / "s", dicoms.abdomen()[0], **about)
    with pytest.raises(Refused, match="(HighBit|BitsStored|PixelRepresentation).*(expected|correct it)"):
        readers.read(folder)


def test_unused_bits_hold_a_sign_or_an_overlay(tmp_path):
    hu = dicoms.abdomen()[0]
    bits = dict(BitsStored=12, HighBit=11)
    cut = dicoms.series(tmp_path / "cut", hu, **bits, PixelData=lambda k: (hu[k] & 0x0FFF).astype("<u2").tobytes())
    assert torch.equal(readers.read(cut).array, torch.from_numpy(hu))
    drawn = dicoms.series(tmp_path / "drawn", hu, **bits, PixelData=lambda k: (hu[k] & 0x0FFF | 0x8000 * (hu[k] > 0)).astype("<u2").tobytes())
    with pytest.raises(Refused, match="pixels that BitsStored 12"):
        readers.read(drawn)
    _edited(drawn, lambda ds, k: (ds.add_new(0x60000100, "US", 1), ds.add_new(0x60000102, "US", 15)))
    assert torch.equal(readers.read(drawn).array, torch.from_numpy(hu))


PADDED = {  # stored value, signed, intercept, the tags, HU there
    "unsigned twin of a signed tag": (63536, 0, -1024, (("SS", -2000), None), -1024),
    "the same number": (63536, 0, -1024, (("US", 63536), None), -1024),
    "signed twin of an unsigned tag": (-2000, 1, 0, (("US", 63536), None), -2000),
    "a range": (4000, 0, -1024, (("US", 3900), ("US", 4090)), -1024),
    "a range, from above": (4000, 0, -1024, (("US", 4090), ("US", 3900)), -1024),
    "bright among CT numbers": (1024, 1, 0, (("SS", 1024), None), -1024),
    "untold": (63536, 0, -1024, (None, None), -1024),
}


@pytest.mark.parametrize("kind", PADDED)
def test_padding_is_air(tmp_path, kind):
    value, signed, intercept, tags, expected = PADDED[kind]
    hu = dicoms.abdomen()[0]
    stored = hu.astype(np.int64) - intercept
    stored[:, -2:, :] = value
    stored[:, 3, 5] = 4095 if not signed else 3000  # a bright voxel is none, wherever it lies
    stored[3, 2, 4] = value if kind.startswith("bright") else stored[3, 2, 4]  # within the body it is tissue
    folder = dicoms.series(
        tmp_path / "s", hu, PixelRepresentation=signed, RescaleIntercept=intercept, PixelData=lambda k: (stored[k] & 0xFFFF).astype("<u2").tobytes()
    )
    names = (0x00280120, 0x00280121)
    _edited(folder, lambda ds, k: [ds.add_new(name, *tag) for name, tag in zip(names, tags) if tag])
    wanted = stored + intercept
    wanted[:, -2:, :] = expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkbenchWarning)
        assert np.array_equal(readers.read(folder).array.numpy(), wanted)


@pytest.mark.parametrize("kind, told", [
    (["DERIVED", "SECONDARY", "REFORMATTED"], "computed from other images"), (["DERIVED", "PRIMARY", "AXIAL", "DE_IODINE"], "a map of a material"),
    (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"], "a projection"), (["DERIVED", "SECONDARY", "VNC"], "a virtual non-contrast image"),
    (["DERIVED", "PRIMARY", "AXIAL", "MONOENERGETIC 70 KEV"], "a virtual image of one energy"), (["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], ""),
])  # fmt: skip
def test_images_made_of_a_ct_are_warned_of(tmp_path, kind, told):
    with gates.heard() as said:
        readers.read(dicoms.series(tmp_path / "s", dicoms.abdomen()[0], ImageType=kind))
    assert told in said[0] and kind[-1] in said[0] if told else not said


@pytest.mark.parametrize("kind", ["MGML", "EDW", "ED", "Z_EFF", "OD", "PCT"])
def test_other_quantities_than_hu_are_refused(tmp_path, kind):
    folder = dicoms.series(tmp_path / "s", dicoms.abdomen()[0], RescaleType=kind)
    with pytest.raises(Refused, match=f"a RescaleType of '{kind}'"):
        readers.read(folder)
    with pytest.warns(WorkbenchWarning, match=f"RescaleType {kind}"):
        readers.read(folder, as_stored=True)


@pytest.mark.parametrize("tag, value", [("RescaleSlope", ""), ("RescaleIntercept", ""), ("RescaleSlope", 0)])
def test_a_scale_that_says_nothing_is_named_and_can_be_said(tmp_path, tag, value):
    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "s", hu - 24, **{tag: value})
    with pytest.raises(Refused, match=f"{tag}.*--rescale 1,-1024"):
        readers.read(folder)
    assert torch.equal(readers.read(folder, rescale=(1.0, 24.0)).array, torch.from_numpy(hu))
    with pytest.raises(Refused, match="a slope other than 0"):
        readers.read(folder, rescale=(0.0, 24.0))


@pytest.mark.parametrize("first", [0, -1000])
def test_a_modality_lut_gives_hu(tmp_path, first):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    hu = dicoms.abdomen()[0]

    def lut(ds, k):
        item = Dataset()
        item.add_new(0x00283002, "SS" if first else "US", [2048, first, 16])
        item.ModalityLUTType = "HU"
        item.add_new(0x00283006, "OW", (np.arange(2048) - 1000).astype("<i2").tobytes())
        ds.ModalityLUTSequence = Sequence([item])
        del ds.RescaleSlope, ds.RescaleIntercept

    folder = _edited(dicoms.series(tmp_path / "s", hu + 1000 + first), lut)
    assert torch.equal(readers.read(folder).array, torch.from_numpy(hu))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
@pytest.mark.parametrize("names", ["{}.dcm", "IM{}"])
@pytest.mark.parametrize("meta", [False, True])
def test_slices_without_preamble_are_slices(tmp_path, syntax, names, meta):
    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "s", hu, names=names, syntax=syntax)
    for file in folder.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[132 + (0 if meta else 12 + int.from_bytes(whole[140:144], "little")) :])
    assert torch.equal(readers.read(folder).array, torch.from_numpy(hu))
    assert readers.list_cases(tmp_path) == [folder]


@pytest.mark.parametrize("unit, step", [(0.1, 0.625), (0.1, 0.75), (0.1, 1.25), (1, 1.5), (1, 2.5)])
@pytest.mark.parametrize("to", [np.round, np.floor])
def test_rounded_positions_are_put_on_their_line(tmp_path, unit, step, to):
    hu = dicoms.abdomen((20, 9, 11))[0]
    at = lambda k: [-10, -20, float(round(to((100.03 + k * step) / unit) * unit, 1))]
    with pytest.warns(WorkbenchWarning, match=f"positions rounded to {unit:g} mm .* even distance of {step:g} mm"):
        volume = readers.read(dicoms.series(tmp_path / "s", hu, step=5.0, ImagePositionPatient=at))
    assert torch.equal(volume.array, torch.from_numpy(hu)) and volume.spacing_mm[0] == step
    assert abs(volume.affine[2, 3] - 100.03) <= unit


def test_missing_slices_are_no_rounding(tmp_path):
    hu = dicoms.abdomen((20, 9, 11))[0]
    for n, lost in enumerate(({5}, {5, 12}, {3, 7, 11, 15}, {2, 3})):
        folder = dicoms.series(tmp_path / f"s{n}", hu, step=1.0)
        for k in lost:
            (folder / f"image_{k}").unlink()
        with pytest.raises(Refused, match=f"{len(lost)} missing slice"):
            readers.read(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("what", ["2.dcm", "part"])
def test_what_may_not_be_read_in_a_series_is_refused_by_name(tmp_path, what):
    hu = dicoms.abdomen()[0]
    folder = dicoms.series(tmp_path / "s", hu, names="{}.dcm")
    dicoms.series(folder / "part", hu, names="b{}.dcm")
    (folder / what).chmod(0)
    try:
        with pytest.raises(Refused, match=f"{what}: found permission denied"):
            readers.read(folder)
    finally:
        (folder / what).chmod(0o755)


def test_what_cannot_be_read_is_named_by_every_way_through_a_folder(tmp_path, monkeypatch):
    """As for a user without the right to: root has it."""
    folder = dicoms.series(tmp_path / "s", dicoms.abdomen()[0], names="{}.dcm")
    (folder / "link.dcm").symlink_to("nowhere.dcm")
    with pytest.raises(Refused, match="link.dcm: found a link to nowhere.dcm, which is not there"):
        readers.read(folder)
    (folder / "link.dcm").unlink()
    (folder / "part").mkdir()
    scan = os.scandir

    def locked(path):
        if str(path).endswith("part"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    for look in (readers.read, readers.list_cases):
        with pytest.raises(Refused, match=r"part: found what cannot be read .permission denied."):
            look(folder)


def test_linked_folders_are_entered_once(tmp_path):
    hu = dicoms.abdomen()[0]
    dicoms.series(tmp_path / "disk" / "scan", hu)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "disk" / "scan")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert torch.equal(readers.read(tmp_path / "data").array, torch.from_numpy(hu))
    assert readers.list_cases(tmp_path / "data") == [tmp_path / "data" / "link"]


@pytest.mark.parametrize("unit, mm", [("cm", 10), ("m", 1000), ("um", 0.001), ("in", 25.4), ("mm", 1)])
def test_nrrd_says_its_unit(tmp_path, unit, mm):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(hu())
    image.SetSpacing(tuple(float(s) / mm for s in (0.7, 0.9, 2.5)))
    image.SetOrigin(tuple(float(s) / mm for s in (-12.5, 30.25, -7)))
    sitk.WriteImage(image, tmp_path / "scan.nrrd")
    path, units = tmp_path / "scan.nrrd", " ".join([f'"{unit}"'] * 3)
    path.write_bytes(path.read_bytes().replace(b"\nencoding", f"\nspace units: {units}\nencoding".encode(), 1))
    volume = readers.read(path)
    assert volume.spacing_mm == pytest.approx((2.5, 0.9, 0.7)) and volume.affine[:3, 3] == pytest.approx((12.5, -30.25, -7))
    path.write_bytes(path.read_bytes().replace(units.encode(), b'"ell" "ell" "ell"'))
    with pytest.raises(Refused, match="lengths in .*ell"):
        readers.read(path)


def test_a_meta_image_says_its_unit(tmp_path):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(hu())
    image.SetSpacing((0.07, 0.09, 0.25))
    sitk.WriteImage(image, tmp_path / "scan.mha")
    path = tmp_path / "scan.mha"
    path.write_bytes(path.read_bytes().replace(b"DimSize", b"DistanceUnits = cm\nDimSize", 1))
    assert readers.read(path).spacing_mm == pytest.approx((2.5, 0.9, 0.7))


@pytest.mark.parametrize("size", [300, 5000, 70_000, 300_000])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_extensions_of_any_length(tmp_path, size, suffix):
    image = nibabel.Nifti1Image(hu(), placed(np.diag([-0.7, -0.9, 2.5])))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * size))
    nibabel.save(image, tmp_path / f"scan{suffix}")
    volume = readers.read(tmp_path / f"scan{suffix}")
    assert np.array_equal(volume.source.to_file_order(volume.array.numpy()), hu())


def bodied(shape=(40, 40, 20), air=-1000):
    """A body of fat with soft tissue and a spine in air, HU."""
    i, j, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    away = np.hypot(i - 20, j - 20)
    hu = np.select([np.hypot(i - 20, j - 27) < 3, away < 14, away < 17], [500, 60, -100], air)
    return (hu + np.random.default_rng(0).normal(0, 12, shape)).round().astype(np.int16)


@pytest.mark.parametrize("change, told", [
    (lambda v: v, ""), (lambda v: np.clip(v, -160, 240), ""), (lambda v: np.clip(v, -100, 400), ""), (lambda v: np.maximum(v, -1024) * 1.0 + 0.25, ""),
    (lambda v: np.where(v < -900, -3024, v), ""), (lambda v: v[10:30, 10:30], ""), (lambda v: v * 10, "darker than air"),
    (lambda v: np.where(v < -900, -1000, v) * 10, "darker than air|fat and soft tissue"), (lambda v: v * 3, "darker than air"), (lambda v: v + 300, "air near|soft tissue"), (lambda v: v - 300, "darker"),
    (lambda v: v - 1024, "darker|soft tissue"), (lambda v: np.clip((v + 160) / 400 * 255, 0, 255).round() - 128, "8-bit"),
    (lambda v: np.clip((v + 1000) / 2, 0, 1000), "no voxel below 0"),
])  # fmt: skip
def test_air_fat_and_soft_tissue_are_where_hu_put_them(tmp_path, change, told):
    values = np.asarray(change(bodied()))
    with gates.heard() as said:
        readers.read(save(tmp_path / "ct.nii.gz", values if values.dtype.kind == "f" else values.astype(np.int16), placed(np.diag([-8, -8, 10]))))
    assert re.search(told, said[0]) if told else not said


IDENTITIES = {"RAS": np.eye(4), "LPS": np.diag([-1.0, -1, 1, 1])}


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_an_identity_header_says_nothing_and_is_asked(tmp_path, kind, name):
    import SimpleITK as sitk

    save(tmp_path / "ct.nii.gz", hu(), IDENTITIES[kind])
    path = tmp_path / name
    if name != "ct.nii.gz":
        sitk.WriteImage(sitk.ReadImage(tmp_path / "ct.nii.gz"), path)
    with pytest.raises(Refused, match="an identity header .*--orientation LPS --spacing"):
        readers.read(path)
    with pytest.warns(WorkbenchWarning, match="an identity header"):
        readers.read(path, as_stored=True)
    volume = readers.read(path, orientation="SRA", spacing_mm=(2.5, 0.7, 0.9))
    assert volume.spacing_mm == (2.5, 0.9, 0.7) and volume.shape == (4, 9, 6)
    assert np.array_equal(volume.array.numpy(), hu().transpose(0, 2, 1)[:, ::-1, ::-1])
    for orientation, spacing in (("LPX", (1.0, 1, 1)), ("LPP", (1.0, 1, 1)), ("LPS", (1.0, 1)), ("LPS", (1.0, 0, 1)), ("LPS", None), (None, (1.0, 1, 1))):  # fmt: skip
        with pytest.raises(Refused, match="orientation|spacing"):
            readers.read(path, orientation=orientation, spacing_mm=spacing)


def test_a_header_without_forms_can_be_told_what_it_lacks(tmp_path):
    path = save(tmp_path / "ct.nii.gz", hu(), None, 0, 0)
    with pytest.raises(Refused, match="neither sform nor qform"):
        readers.read(path)
    assert readers.read(path, orientation="LPS", spacing_mm=(0.7, 0.9, 2.5)).spacing_mm == (2.5, 0.9, 0.7)
    folder = dicoms.series(tmp_path / "s", dicoms.abdomen()[0])
    for choice in ({"orientation": "LPS"}, {"form": "sform"}):
        with pytest.raises(Refused, match="input has"):
            readers.read(folder, **choice)
    with pytest.raises(Refused, match="series=1, .*|no series, which only dicom input has"):
        readers.read(path, series="1")


def test_lits_volumes_without_orientation_are_repaired(tmp_path):
    from workbench.data.readers import lits

    array = np.zeros((512, 512, 91), np.int16) - 1000
    array[100:400, 150:400] = 60
    array[200:300, 200:250, 10:60] = 100
    labels = (array == 100).astype(np.uint8)
    for n in (31, 45):
        save(tmp_path / f"volume-{n}.nii", array[..., : 91 if n == 31 else 20], np.eye(4))
        save(tmp_path / f"segmentation-{n}.nii", labels[..., : 91 if n == 31 else 20], np.eye(4))
    save(tmp_path / "volume-4.nii", array, placed(np.diag([-0.7, -0.7, 5])))
    save(tmp_path / "segmentation-4.nii", labels, placed(np.diag([-0.7, -0.7, 5])))
    plain, known, unknown = lits.list_cases(tmp_path)
    assert plain.ct and plain.labels and not (known.ct or known.labels or unknown.ct or unknown.labels)
    ct, drawn, said = lits.read(known)
    assert ct.spacing_mm == drawn.spacing_mm == (2.0, 0.742, 0.742) and "LPS" in said
    assert np.array_equal(ct.array.numpy(), array.transpose(2, 1, 0)) and np.array_equal(drawn.array.numpy(), labels.transpose(2, 1, 0))
    with pytest.raises(Refused, match="volume-45.nii: found no orientation and voxel size for 512 x 512 x 20"):
        lits.read(unknown)


def test_the_package_does_not_import_the_libraries():
    import subprocess

    code = "import sys, workbench.data.readers; print([m for m in ('nibabel', 'pydicom', 'SimpleITK') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# -- real scans ----------------------------------------------------------------------------------------------------

# sizes, spacing [z y x], HU mean of the liver, its volume: measured by others on the same files
SCANS = [
    ("ircadb01-17/ct.nii.gz", "ircadb01-17/liver.nii.gz", (119, 512, 512), (1.6, 0.743, 0.743), 99, 1860.62),
    ("chaos-ct-03/DICOM_anon", "chaos-ct-03/liver.nii.gz", (78, 512, 512), (2.0, 0.726562, 0.726562), 141, 1417.49),
    ("dcmqi-ct-3slice/dicom", "dcmqi-ct-3slice/liver_seg.nrrd", (3, 512, 512), (1.0, 0.810547, 0.810547), 37, 70.36),
    (
        "totalseg-example/example_ct.nii.gz",
        "totalseg-example/example_ct_liver.nii.gz",
        (112, 101, 122),
        (3, 3, 3),
        44,
        1123.25,
    ),
    ("crlm-ct-1004/dicom", None, (41, 512, 512), (5.0, 0.796875, 0.796875), None, None),
] + [
    (f"lits-0{n}/ct.nii.gz", f"lits-0{n}/labels.nii.gz", shape, spacing, None, ml)
    for n, shape, spacing, ml in [
        (0, (28, 313, 395), (5.0, 0.703125, 0.703125), 1364.15),
        (1, (27, 339, 414), (5.0, 0.675781, 0.675781), 1485.93),
        (3, (164, 378, 352), (1.0, 0.693359, 0.693359), 1559.77),
        (4, (240, 299, 376), (0.8, 0.902344, 0.902344), 3141.83),
        (6, (174, 302, 341), (1.0, 0.873047, 0.873047), 1883.02),
    ]
]


@pytest.mark.parametrize("ct, mask, shape, spacing, mean, ml", SCANS, ids=[s[0].split("/")[0] for s in SCANS])
def test_real_scans(realdata, tmp_path, ct, mask, shape, spacing, mean, ml):
    path = realdata / ct
    with warnings.catch_warnings():
        warnings.simplefilter("error", WorkbenchWarning)
        volume = readers.read(path)
    assert volume.shape == shape
    assert volume.spacing_mm == pytest.approx(spacing, abs=1e-6)
    assert volume.array.dtype == torch.int16
    assert volume.name == ct.split("/")[0] or ct.startswith("totalseg")
    if mask:
        liver = readers.read_labels(realdata / mask, like=volume).array > 0
        assert int(liver.sum()) * volume.voxel_ml == pytest.approx(ml, abs=0.01)
        if mean:
            assert volume.array[liver].float().mean().item() == pytest.approx(mean, abs=0.6)
    if ct.startswith(("ircadb", "lits-00", "totalseg")):  # one of each kind of header: writing takes time
        before = nibabel.load(path)
        nifti.write(volume, tmp_path / "out.nii.gz")
        after = nibabel.load(tmp_path / "out.nii.gz")
        assert after.affine.tobytes() == before.affine.tobytes()
        assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))


@pytest.mark.parametrize("folder", ["crlm-ct-1004/dicom", "chaos-ct-03/DICOM_anon", "dcmqi-ct-3slice/dicom"])
def test_dicom_against_itk(realdata, tmp_path, folder):
    import SimpleITK as sitk

    path = realdata / folder
    volume = readers.read(path)
    series = sitk.ImageSeriesReader()
    series.SetFileNames(series.GetGDCMSeriesFileNames(str(path)))
    image = series.Execute()
    assert np.array_equal(volume.array.numpy(), sitk.GetArrayFromImage(image))
    nifti.write(volume, tmp_path / "out.nii.gz")
    back = sitk.ReadImage(tmp_path / "out.nii.gz")
    assert back.GetSize() == image.GetSize()
    assert np.allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.allclose(back.GetSpacing(), image.GetSpacing(), atol=1e-5)
    assert np.allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)


def test_padding_of_a_scanner_is_kept(realdata):
    assert readers.read(realdata / "crlm-ct-1004/dicom").array.min() == -3024


def test_a_real_file_cut_short_is_refused(realdata, tmp_path):
    """SimpleITK reads such a file without a word and fills the rest with zeros."""
    whole = (realdata / "lits-01/ct.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match="truncated"):
        readers.read(tmp_path / "cut.nii.gz")
    flipped = bytearray(gzip.compress(gzip.decompress(whole), 1))
    flipped[len(flipped) // 2] ^= 16
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    with pytest.raises(Refused, match="gzip"):
        readers.read(tmp_path / "flipped.nii.gz")


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "f4", "f8"])
def test_descriptors_read_what_itk_reads(tmp_path, kind):
    """Real numbers keep their type, and scaled ones are worked out in float64, so that no value changes its bin on the way."""
    sitk = pytest.importorskip("SimpleITK")
    stored = (np.random.default_rng(0).random(SHAPE) * 120 - 100 * (kind[0] != "u")).astype(kind)
    for slope, inter in ((1, 0), (0.7, 0), (0.7, 3.3), (1, -30.5)):
        header = nibabel.Nifti1Header()
        header.set_data_shape(SHAPE)
        header.set_data_dtype(kind)
        header.set_sform(np.diag([0.7, 0.9, 2.5, 1]), 1)
        header.set_qform(np.diag([0.7, 0.9, 2.5, 1]), 1)
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
        path = tmp_path / "case.nii"
        path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WorkbenchWarning)
            array = readers.read(path, as_stored=True).in_file_order()[0].numpy()
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(path))
        assert np.array_equal(array, theirs)
        assert array.dtype == theirs.dtype if theirs.dtype.kind == "f" else array.dtype in (np.int16, np.float64)


def test_whole_numbers_in_a_float_file_stay_real_for_descriptors(tmp_path):
    path = save(tmp_path / "case.nii.gz", hu().astype(np.float32), placed(np.diag([0.7, 0.9, 2.5])))
    assert readers.read(path).array.dtype == torch.int16
    assert readers.read(path, as_stored=True).array.dtype == torch.float32


def test_what_cannot_be_hu_is_described_with_a_warning(tmp_path):
    picture = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    path = save(tmp_path / "case.nii.gz", picture, placed(np.diag([0.7, 0.9, 2.5])))
    with pytest.raises(Refused, match="scaled to 0..1"):
        readers.read(path)
    with pytest.warns(WorkbenchWarning, match="found values from 0 to 1; expected HU"):
        readers.read(path, as_stored=True)


@pytest.mark.parametrize(("degrees", "told"), [(0, 0), (20, 0), (40, 1), (50, 1)])
def test_axes_far_off_the_body_s_are_warned_of(tmp_path, degrees, told):
    """Beyond 45 degrees axes are exchanged: what is called axial is another plane."""
    a, hu = math.radians(degrees), np.random.default_rng(0).normal(40, 300, (20, 18, 12)).astype("i2")
    turn = np.array([[1, 0, 0, 0], [0, math.cos(a), -math.sin(a), 0], [0, math.sin(a), math.cos(a), 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(hu, turn @ np.diag([0.8, 0.8, 2.5, 1])), tmp_path / "o.nii.gz")
    with gates.heard() as said:
        readers.read(tmp_path / "o.nii.gz")
    assert sum("degrees off the body's" in line for line in said) == told
    assert degrees != 40 or "up to 40 degrees" in said[0]
