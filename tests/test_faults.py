"""Faulty input at the readers: the row of the table of faults (docs/faults.md), the fault, and the one line it gets.

Each builder writes a fault into a folder and returns the path that a user would give. `FAULTS` is read as the
documentation of the messages: what follows the path, whole. Rows below 23 that are absent here belong to later stages.
"""

import gzip
import re
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from workbench import readers
from workbench.readers import WorkbenchWarning, dicom
from workbench.volume import Refused

SHAPE = (8, 7, 6)
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def ct():
    return np.random.default_rng(0).normal(60, 40, SHAPE).round().astype(np.int16)


def nifti(folder, array=None, affine=AFFINE, name="ct.nii.gz", sform=1, qform=0, header=None):
    """A NIfTI file; `header` fields are overwritten after the voxels are in place."""
    image = nibabel.Nifti1Image(ct() if array is None else array, None)
    image.set_sform(affine, sform)
    image.set_qform(None if affine is None or not qform else affine, qform)
    raw = bytearray(image.to_bytes())
    if header:
        changed = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
        for key, value in header.items():
            changed[key] = value
        raw[:348] = changed.binaryblock
    path = folder / name
    path.write_bytes(gzip.compress(raw, 1) if name.endswith(".gz") else bytes(raw))
    return path


def bytes_of(path, edit):
    path.write_bytes(edit(path.read_bytes()))
    return path


def series(folder, n=5, step=5.0, names=None, **changes):
    """A DICOM series of n slices; `changes` maps a keyword to a value or to a function of the slice number."""
    folder.mkdir(exist_ok=True)
    uid = changes.pop("SeriesInstanceUID", "1.2.826.0.1.3680043.8.498.1")
    for k in range(n):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = changes.get("syntax", ExplicitVRLittleEndian)
        ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.Modality = uid, 2, "CT"
        ds.PatientName, ds.PatientID = "Doe^Jane", "4711"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = 7, 8
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelSpacing, ds.SliceThickness = [0.9, 0.7], step
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-10, -20, 100 + step * k]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (1000 + 10 * k + np.arange(56).reshape(7, 8)).astype(np.uint16).tobytes()
        for key, value in changes.items():
            if key != "syntax":
                setattr(ds, key, value(k) if callable(value) else value)
        ds.save_as(folder / (names[k] if names else f"{k}.dcm"), enforce_file_format=True)
    return folder


def sheared():
    affine = AFFINE.copy()
    affine[1, 2] = 1.0  # y moves with z
    return affine


def one_nan():
    array = ct().astype(np.float32)
    array[3, 2, 1] = np.nan
    return array


def short(folder):
    header = nibabel.Nifti1Header()
    header.set_data_shape((64, 60, 25))
    header.set_data_dtype("i2")
    header["vox_offset"] = 352
    header.set_sform(AFFINE, 1)
    path = folder / "short.nii"
    path.write_bytes(header.binaryblock + bytes(4) + np.zeros((64, 60, 20), "i2").tobytes())
    return path


def conflict(folder):
    image = nibabel.Nifti1Image(ct(), None)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), 1)
    nibabel.save(image, folder / "ct.nii.gz")
    return folder / "ct.nii.gz"


def mha(folder, cut=0, name="ct.mha"):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(ct().transpose(2, 1, 0))
    image.SetSpacing((2, 2, 5))
    sitk.WriteImage(image, folder / name)
    return bytes_of(folder / name, lambda b: b[: len(b) - cut])


def two_series(folder):
    series(folder / "scan", 3)
    series(folder / "scan", 4, names=[f"b{k}.dcm" for k in range(4)], SeriesInstanceUID="1.2.3", SeriesNumber=3)
    return folder / "scan"


def with_scout(folder):
    series(folder / "scan", 3)
    scout = dict(SeriesInstanceUID="1.2.3", SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return series(folder / "scan", 1, names=["scout.dcm"], **scout)


def missing_slice(folder):
    series(folder / "scan", 6)
    (folder / "scan" / "2.dcm").unlink()
    return folder / "scan"


def tilted(k, degrees=12.0):
    return [-10, -20 + 5 * k * np.tan(np.radians(degrees)), 100 + 5 * k]


def moved():
    affine = AFFINE.copy()
    affine[0, 3] = 2.0
    return affine


def on_ct(path):
    """Read a mask for the CT that lies beside it."""
    (path.parent / "p1").mkdir()
    return readers.read_labels(path, like=readers.read(nifti(path.parent / "p1")))


def any_label(path):
    return readers.read_labels(path, allowed=None)


def filled(path):
    return readers.read_labels(path, allow_empty=False)


READ, LABELS = readers.read, readers.read_labels

# row, fault, builder, reader, the line after the path
FAULTS = [
    (0, "missing file", lambda d: d / "ct.nii.gz", READ,
     "found no such file or folder; expected an existing NIfTI, NRRD, MHA or MHD file or a DICOM folder."),
    (0, "another format", lambda d: nifti(d, name="ct.nii").rename(d / "ct.png"), READ,
     "found a file named .png; expected NIfTI (.nii, .nii.gz), NRRD, MHA, MHD or a DICOM folder."),
    (1, "truncated .nii.gz", lambda d: bytes_of(nifti(d), lambda b: b[: len(b) // 2]), READ,
     "found gzip data that ends after 578 bytes; expected 1,024 for the 8 x 7 x 6 voxels of the header. The "
     "file is truncated or its header is wrong; fetch it again."),
    (1, "truncated .nii.gz, only its checksum lost", lambda d: bytes_of(nifti(d), lambda b: b[:-3]), READ,
     "found gzip data without its end and checksum; expected a whole file. The file is truncated; fetch it "
     "again."),
    (1, "bit flipped in .nii.gz", lambda d: bytes_of(nifti(d), lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:]), READ,
     "found damaged gzip data (Error -3 while decompressing data: incorrect data check); expected a gzipped "
     "NIfTI file. Fetch it again."),
    (2, "header larger than the data", short, READ,
     "found 153,952 bytes; expected 192,352 for the 64 x 60 x 25 voxels of the header. The file is truncated "
     "or its header is wrong."),
    (2, "header larger than the data, gzip", lambda d: nifti(d, header={"dim": [3, 8, 7, 9, 1, 1, 1, 1]}), READ,
     "found gzip data that ends after 1,024 bytes; expected 1,360 for the 8 x 7 x 9 voxels of the header. The "
     "file is truncated or its header is wrong; fetch it again."),
    (2, "header smaller than the data", lambda d: nifti(d, header={"dim": [3, 8, 7, 4, 1, 1, 1, 1]}), READ,
     "found data beyond 800 bytes; expected 800 for the 8 x 7 x 4 voxels of the header. The header leaves "
     "slices out."),
    (2, "MHA cut short", lambda d: mha(d, 100), READ,
     "found 572 bytes of voxels; expected 672 for the 8 x 7 x 6 voxels of the header. The file is truncated "
     "or its header is wrong."),
    (2, "NRRD cut short", lambda d: mha(d, 100, "ct.nrrd"), READ,
     "found 572 bytes of voxels; expected 672 for the 8 x 7 x 6 voxels of the header. The file is truncated "
     "or its header is wrong."),
    (3, "absurd size", lambda d: nifti(d, header={"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}), READ,
     "found a header that claims 30000 x 30000 x 30000 voxels; expected 1 to 8192 along each axis and at most "
     "2,147,483,648 in all. The header is damaged."),
    (3, "negative size", lambda d: nifti(d, header={"dim": [3, 8, -7, 6, 1, 1, 1, 1]}), READ,
     "found a header that claims 8 x -7 x 6 voxels; expected 1 to 8192 along each axis and at most "
     "2,147,483,648 in all. The header is damaged."),
    (4, "zero bytes", lambda d: bytes_of(nifti(d), lambda b: b""), READ,
     "found a file of 0 bytes; expected an image. The copy or download failed; fetch it again."),
    (4, "text", lambda d: bytes_of(nifti(d), lambda b: b"not an image"), READ,
     "found a file that starts with b'not ', not gzip; expected a gzipped NIfTI file."),
    (4, "wrong magic", lambda d: nifti(d, header={"magic": b"abc"}), READ,
     "found the magic 'abc'; expected n+1 or n+2, the mark of NIfTI. The header is damaged."),
    (4, "plain NIfTI named .gz", lambda d: nifti(d, name="a.nii").rename(d / "ct.nii.gz"), READ,
     "found a plain NIfTI file named .gz; expected gzip data. Rename it to .nii, or gzip it."),
    (4, "gzip named .nii", lambda d: nifti(d).rename(d / "ct.nii"), READ,
     "found gzip data in a file not named .gz; expected a plain NIfTI file. Rename it to .nii.gz."),
    (4, "text named .nrrd", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b"hello"), READ,
     "found a file that starts with b'hell'; expected NRRD. Is this another format under this name?"),
    (4, "text named .mha", lambda d: bytes_of(mha(d), lambda b: b"hello"), READ,
     "found no MetaImage header; expected lines up to ElementDataFile. Is this another format under this "
     "name?"),
    (5, "NaN", lambda d: nifti(d, one_nan()), READ,
     "found 1 of 336 voxels NaN or infinite, the first at (3, 2, 1); expected finite HU. Repair the file, or "
     "fill them: in Python, readers.read(path, fill_nonfinite=-1024)."),
    (5, "infinity", lambda d: nifti(d, np.where(np.isnan(one_nan()), -np.inf, one_nan())), READ,
     "found 1 of 336 voxels NaN or infinite, the first at (3, 2, 1); expected finite HU. Repair the file, or "
     "fill them: in Python, readers.read(path, fill_nonfinite=-1024)."),
    (6, "sform and qform disagree", conflict, READ,
     "found an sform (LPS) and a qform (RPS) that put the same voxel up to 32 mm apart; expected at most 0.1 "
     "mm. Programs disagree on where left is: set the wrong one's code to 0."),
    (6, "qform that is no rotation", lambda d: nifti(d, sform=0, qform=1, header={"quatern_b": 3.0}), READ,
     "found a qform that is no rotation (w2 should be positive, but is -9.000000e+00); expected a valid "
     "qform. Set qform_code to 0 if the sform is right."),
    (7, "no form code", lambda d: nifti(d, sform=0), READ,
     "found neither sform nor qform set, so left and right are unknown; expected one of them. Set it from the "
     "original DICOM, or guess: in Python, readers.read(path, form='pixdim')."),
    (8, "sheared affine", lambda d: nifti(d, affine=sheared()), READ,
     "found a sheared affine (two axes 78.69 degrees apart); expected axes at right angles. Gantry tilt does "
     "this: resample onto a rectangular grid first."),
    (8, "singular affine", lambda d: nifti(d, affine=np.diag([-2.0, -2, 0, 1])), READ,
     "found a singular affine (column lengths 2 x 2 x 0 mm); expected three independent axes. Set the affine "
     "from the original DICOM."),
    (8, "NaN in the affine", lambda d: nifti(d, header={"srow_x": [np.nan, 0, 0, 0]}), READ,
     "found an affine with NaN or infinite entries; expected finite numbers. Set the affine from the original "
     "DICOM."),
    (8, "lengths in metres", lambda d: nifti(d, header={"xyzt_units": 1}), READ,
     "found lengths in metres; expected mm. Rewrite the header in mm (xyzt_units)."),
    (8, "spacing of another unit", lambda d: nifti(d, affine=np.diag([-0.002, -0.002, 0.005, 1])), READ,
     "found voxels of 0.002 x 0.002 x 0.005 mm; expected 0.05 to 50 mm. The lengths may be in another unit."),
    (12, "4D", lambda d: nifti(d, np.stack([ct(), ct()], -1)), READ,
     "found a 4D image of shape (8, 7, 6, 2); expected one 3D volume. Write the volume you want (one phase, "
     "one time point) to a file of its own."),
    (12, "2D", lambda d: nifti(d, ct()[..., 0]), READ,
     "found a 2D image of shape (8, 7); expected 3D, at least 3 slices."),
    (13, "0..1", lambda d: nifti(d, (ct() - ct().min()) / np.float32(np.ptp(ct()))), READ,
     "found values from 0 to 1; expected HU. This looks like a mask or a picture scaled to 0..1; give the CT "
     "itself."),
    (13, "0..255", lambda d: nifti(d, np.clip(ct() + 30, 0, 255).astype(np.uint8)), READ,
     "found values from 0 to 213, as in an 8-bit picture; expected HU. Undo the windowing: HU = lower + grey "
     "* (upper - lower) / 255."),
    (13, "offset by 1024", lambda d: nifti(d, ct() + 1024), READ,
     "found values from 933 to 1207 with soft tissue near 1060, an offset of 1024; expected HU, with water at "
     "0. Subtract 1024 (set the intercept, scl_inter, to -1024)."),
    (13, "beyond any HU", lambda d: nifti(d, ct().astype(np.float32) * 1e6), READ,
     "found values from -9.1e+07 to 1.83e+08; expected HU, -1024 to a few thousand. The scale in the header "
     "is damaged."),
    (14, "a single slice", lambda d: nifti(d, ct()[..., :1]), READ,
     "found 1 slice(s) in a grid of 8 x 7 x 1; expected at least 3 slices. Give the whole scan, not one image "
     "of it."),
    (14, "two DICOM slices", lambda d: series(d / "scan", 2), READ,
     "found 2 slice(s); expected at least 3. Give the whole series."),
    (15, "missing DICOM slice", missing_slice, READ,
     "found 1 missing slice(s): 10 mm between 1.dcm (105) and 3.dcm (115); expected 5 mm between all slices. "
     "Fetch the whole series."),
    (15, "doubled position", lambda d: series(d / "scan", ImagePositionPatient=lambda k: [0, 0, 5 * min(k, 3)]), READ,
     "found 1 doubled slice position(s): 3.dcm = 4.dcm at 15 mm; expected one slice a position. Remove the "
     "copies, or separate the phases or reconstructions."),
    (15, "all positions equal", lambda d: series(d / "scan", ImagePositionPatient=[0, 0, 7]), READ,
     "found all 5 slices at one position (7 mm); expected one position a slice. The positions were lost; "
     "fetch the original series."),
    (15, "uneven distances", lambda d: series(d / "scan", ImagePositionPatient=lambda k: [0, 0, 5 * k + (k > 2)]), READ,
     "found uneven slice distances: 6 mm between 2.dcm (10) and 3.dcm (16); expected 5 mm between all slices. "
     "Resample it onto even slices first."),
    (15, "a slice aside", lambda d: series(d / "scan", ImagePositionPatient=lambda k: [k == 2, 0, 5 * k]), READ,
     "found 2.dcm 1 mm beside the line of the slices; expected slices on one line."),
    (15, "no position", lambda d: series(d / "scan", ImagePositionPatient=None), READ,
     "found no ImagePositionPatient; expected a slice that says where it lies."),
    (16, "gantry tilt", lambda d: series(d / "scan", ImagePositionPatient=tilted), READ,
     "found a gantry tilt of 12.0 degrees (each slice 1.06 mm aside of the last); expected slices straight "
     "above each other. Undo the tilt first, as dcm2niix does for CT, and give the NIfTI."),
    (17, "two series", two_series, READ,
     "found 2 series or grids: [CT series 2, 3 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1], [CT series "
     "3, 4 images of 8 x 7, UID 1.2.3]; expected one CT series. Move the one you want to a folder of its own; "
     "in Python, readers.read(path, series=UID)."),
    (17, "a scout beside the series", with_scout, READ,
     "found 2 series or grids: [CT series 2, 3 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1], [scout "
     "series 1, 1 image of 8 x 7, UID 1.2.3]; expected one CT series. Move the one you want to a folder of "
     "its own; in Python, readers.read(path, series=UID)."),
    (17, "another modality", lambda d: series(d / "scan", Modality="MR"), READ,
     "found 5 DICOM images of modality MR; expected CT."),
    (17, "one file of a series", lambda d: series(d / "scan") / "1.dcm", READ,
     "found a single DICOM file; expected the folder that holds the whole series. Give scan."),
    (17, "no DICOM in the folder", lambda d: nifti(d).parent, READ,
     "found no DICOM image in the folder; expected a folder with the slices of one CT series. Give the folder "
     "that holds them, or a NIfTI file."),
    (19, "pixels cut short", lambda d: series(d / "scan", PixelData=lambda k: bytes(112 - 20 * (k == 3))), READ,
     "found pixels that cannot be read (The number of bytes of pixel data is less than expected (92 vs 112 "
     "bytes) - the dataset may be corrupted, have an invalid group 0028 element value, or the transfer syntax "
     "may be incorrect); expected a whole slice. The file is truncated or damaged; fetch it again."),
    (21, "mask of another shape", lambda d: nifti(d, np.ones((8, 7, 5), np.uint8)), on_ct,
     "found 8 x 7 x 5 voxels of 2 x 2 x 5 mm; expected 8 x 7 x 6 voxels of 2 x 2 x 5 mm, the grid of p1. "
     "Resample one onto the other first."),
    (21, "mask moved by a voxel", lambda d: nifti(d, np.ones(SHAPE, np.uint8), moved()), on_ct,
     "found voxels 2 mm away from those of p1; expected the grid of p1 (8 x 7 x 6 voxels of 2 x 2 x 5 mm). "
     "Resample one onto the other first."),
    (22, "label 255", lambda d: nifti(d, np.uint8(255) * (ct() > 60)), LABELS,
     "found label values 0, 255; expected only 0, 1, 2. It looks like an 8-bit mask: map 255 to 1 (liver) or "
     "2 (tumor)."),
    (22, "labels 127 and 255", lambda d: nifti(d, np.uint8(127) * (ct() > 50) + np.uint8(128) * (ct() > 90)), LABELS,
     "found label values 0, 127, 255; expected only 0, 1, 2. It looks like an 8-bit mask: map 127 to 1 "
     "(liver) and 255 to 2 (tumor)."),
    (22, "unknown label", lambda d: nifti(d, np.uint8(5) * (ct() > 60) + np.uint8(ct() > 90)), LABELS,
     "found label values 0, 5, 6; expected only 0, 1, 2. Map the liver to 1, tumors to 2 and everything else "
     "to 0."),
    (22, "half a label", lambda d: nifti(d, np.float32(0.5) * (ct() > 60)), LABELS,
     "found label values that are not whole numbers, as 0.5; expected integers: 0 background, 1 liver, 2 "
     "tumor. Resample label maps with nearest neighbour, and threshold probabilities first."),
    (22, "negative label", lambda d: nifti(d, -np.int16(ct() > 60)), any_label,
     "found label values -1, 0; expected values of 0 and above. Renumber the regions from 1."),
    (22, "NaN in labels", lambda d: nifti(d, one_nan()), LABELS,
     "found label values that are NaN or infinite; expected integers: 0 background, 1 liver, 2 tumor."),
    (23, "empty mask", lambda d: nifti(d, np.zeros(SHAPE, np.uint8)), filled,
     "found an empty mask; expected at least one voxel above 0."),
]  # fmt: skip


@pytest.mark.parametrize("row, fault, build, reader, message", FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
@pytest.mark.filterwarnings("ignore::workbench.readers.WorkbenchWarning")
def test_refused_in_one_line(tmp_path, row, fault, build, reader, message):
    path = build(tmp_path)
    with pytest.raises(Refused) as refused:
        reader(path)
    line = str(refused.value)
    subject, _, rest = line.partition(": ")
    assert rest.replace(f"{tmp_path}/", "") == message
    assert subject.startswith(str(tmp_path))  # which file
    assert re.search("found .*; expected ", rest) and "\n" not in line


def test_the_verdict_of_check_is_the_same_line(tmp_path):
    verdict = readers.check(short(tmp_path))
    assert not verdict.ok
    assert verdict.message.endswith("expected 192,352 for the 64 x 60 x 25 voxels of the header. "
                                    "The file is truncated or its header is wrong.")  # fmt: skip


# -- silent elsewhere: the library below reads the file without a word, and we do not ---------------------------------


@pytest.mark.parametrize("fault", ["truncated .nii.gz", "header larger than the data, gzip", "NaN", "gantry tilt"])
def test_a_library_reads_it_in_silence(tmp_path, fault):
    import SimpleITK as sitk

    build = next(f[2] for f in FAULTS if f[1] == fault)
    path = build(tmp_path)
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
        assert np.allclose(image.GetDirection(), np.eye(3).ravel())  # the tilt is gone
    else:
        image = sitk.ReadImage(path)
    if fault == "NaN":
        assert sitk.GetArrayFromImage(image)[1, 2, 3] == 0  # a hole in the liver that looks like water
    with pytest.raises(Refused):
        READ(path)


def test_two_libraries_put_one_file_on_opposite_sides(tmp_path):
    import SimpleITK as sitk

    path = conflict(tmp_path)
    one = nibabel.load(path).affine[:3, :3] @ (1, 0, 0)
    other = np.diag([-1, -1, 1]) @ np.array(sitk.ReadImage(path).TransformContinuousIndexToPhysicalPoint((1.0, 0, 0)))
    origin = np.diag([-1, -1, 1]) @ np.array(sitk.ReadImage(path).GetOrigin())
    assert np.allclose(one, (-2, 0, 0)) or np.allclose(other - origin, (-2, 0, 0))
    assert np.allclose(one + (other - origin), 0) or np.allclose(one, other - origin)


# -- faults that are settled, warned of or survived -------------------------------------------------------------------


def test_row_5_filled_when_asked_to(tmp_path):
    with pytest.warns(
        WorkbenchWarning, match=r"1 voxels that were NaN or infinite, the first at \(3, 2, 1\), became -1024"
    ):
        volume = readers.read(nifti(tmp_path, one_nan()), fill_nonfinite=-1024)
    assert volume.source.to_file_order(volume.array.numpy())[3, 2, 1] == -1024


def test_rows_6_and_7_settled_by_a_choice(tmp_path):
    path = conflict(tmp_path)
    by_sform, by_qform = (readers.read(path, form=form) for form in ("sform", "qform"))
    assert np.array_equal(by_sform.array.flip(2), by_qform.array)
    assert np.array_equal(by_sform.source.affine, AFFINE)
    # and the result lies where the chosen form says
    out = tmp_path / "out.nii.gz"
    readers.nifti.write(by_qform, out)
    assert np.array_equal(nibabel.load(out).affine, by_qform.source.affine)
    guessed = readers.read(nifti(tmp_path, sform=0, header={"pixdim": [1, 2, 2, 5, 0, 0, 0, 0]}), form="pixdim")
    assert guessed.spacing_mm == (5.0, 2.0, 2.0)
    with pytest.raises(Refused, match="form=sform; expected no form, which only nifti input has"):
        readers.read(mha(tmp_path), form="sform")


def test_row_10_spacing_of_1_1_1_is_suspect(tmp_path):
    with pytest.warns(WorkbenchWarning, match="spacing is exactly 1 x 1 x 1 mm"):
        readers.read(nifti(tmp_path, affine=np.diag([-1.0, -1, 1, 1])))


def test_row_11_thick_slices_are_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", WorkbenchWarning)
        assert readers.read(nifti(tmp_path, affine=np.diag([-0.8, -0.8, 7.5, 1]))).spacing_mm[0] == 7.5


@pytest.mark.parametrize(
    "array, text",
    [
        (np.abs(ct()), "no voxel below 0 HU"),
        (np.clip(ct() - 900, -1000, -500), "no soft tissue"),
        (ct() * np.int32(400), "beyond any CT number"),
        (np.full(SHAPE, 40, np.int16), "every voxel is 40 HU"),
    ],
)
def test_row_13_doubtful_values_are_warned_of(tmp_path, array, text):
    with pytest.warns(WorkbenchWarning, match=text):
        readers.read(nifti(tmp_path, array))
    verdict = readers.check(tmp_path / "ct.nii.gz")
    assert verdict.ok and text in verdict.warnings[0]


def test_row_17_one_of_several_series_can_be_asked_for(tmp_path):
    folder = two_series(tmp_path)
    assert readers.read(folder, series="1.2.3").shape == (4, 7, 8)
    with pytest.raises(Refused, match=r"no CT series 9.9; expected one of \[CT series 2"):
        readers.read(folder, series="9.9")


def test_row_18_rescale_that_varies_by_slice(tmp_path):
    slope = (1, 2, 1, 0.5, 4)
    folder = series(tmp_path / "scan", RescaleSlope=lambda k: slope[k], RescaleIntercept=lambda k: -1024 - k)
    volume = readers.read(folder)
    stored = np.arange(56).reshape(7, 8) + 1000
    expected = np.stack([(stored + 10 * k) * slope[k] - 1024 - k for k in range(5)])
    assert np.array_equal(volume.array.numpy(), expected)
    assert volume.array.numpy().dtype == np.float32  # one slice has halves


def test_slices_are_ordered_by_position_not_by_name(tmp_path):
    straight = readers.read(series(tmp_path / "a"))
    mixed = readers.read(series(tmp_path / "b", names=["z", "10.dcm", "9.dcm", "a.dcm", "0"]))
    assert np.array_equal(straight.array, mixed.array)
    assert straight.array.numpy().dtype == np.int16 and straight.spacing_mm == (5.0, 0.9, 0.7)
    # head first or feet first, columns tilted: every voxel stays where the header puts it
    row, column = [0.8, 0, 0.6], [0, -1, 0]
    normal = np.cross(row, column)
    place = lambda k: [float(v) for v in (10, 20, 30) + 5 * (4 - k) * normal]
    oblique = readers.read(series(tmp_path / "c", ImageOrientationPatient=row + column, ImagePositionPatient=place))
    first = oblique.source.to_file_order(oblique.array.numpy())
    assert np.array_equal(first[:, :, 0].T, np.arange(56).reshape(7, 8) + 1040 - 1024)
    lps = np.diag([-1, -1, 1, 1]) @ oblique.source.affine
    assert np.allclose(
        lps @ (2, 3, 4, 1),
        [*(np.array([10, 20, 30]) + 2 * 0.7 * np.array(row) + 3 * 0.9 * np.array(column) + 20 * normal), 1],
    )


def test_row_19_the_package_of_a_missing_decoder_is_named(tmp_path, monkeypatch):
    decoder = pydicom.pixels.get_decoder(JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})  # as in an environment without any
    with pytest.raises(Refused, match=r"compressed as JPEG Lossless.*a decoder for it\. Install .*pylibjpeg"):
        readers.read(
            series(
                tmp_path / "scan",
                PixelData=pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(20)]),
                syntax=JPEGLosslessSV1,
            )
        )


@pytest.mark.parametrize("name", ["../outside.raw", "/etc/hostname"])
def test_row_20_a_header_cannot_reach_out_of_its_folder(tmp_path, name):
    inner = tmp_path / "in"
    inner.mkdir()
    path = mha(inner, name="ct.mhd")
    (inner / "ct.raw").rename(tmp_path / "outside.raw")
    bytes_of(path, lambda b: b.replace(b"ct.raw", name.encode()))
    with pytest.raises(Refused, match=f"voxels in {name}; expected a data file in the same folder"):
        readers.read(path)


def test_row_45_patients_are_not_named(tmp_path):
    (tmp_path / "p07").mkdir()
    folder = series(tmp_path / "p07" / "dicom")
    volume = readers.read(folder)
    assert volume.name == "p07"
    (folder / "2.dcm").unlink()
    for text in (repr(volume), readers.check(folder).message):
        assert "Doe" not in text and "4711" not in text
    assert "PatientName" not in dicom.TAGS
