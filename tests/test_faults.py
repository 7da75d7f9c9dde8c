"""The table of faults: the row, the fault, and the one line it gets. `python tests/test_faults.py` writes docs/faults.md from it.

`FAULTS` are input files: each builder writes a fault into a folder and returns the path that a user would give.
`ACTS` are all other refusals. `OUTCOMES` are rows that end in no refusal, or that a test elsewhere holds. Messages are those of the
program, whole, after the path.
"""

import ast
import gzip
import hashlib
import json
import os
import platform
import re
import warnings
from dataclasses import replace
from pathlib import Path

import dicoms
import nbformat
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import safetensors.torch
import tiny
import torch
from pydicom.uid import JPEGLosslessSV1

from workbench import __main__, experiment
from workbench.data import cohort, files, readers
from workbench.data.readers import WorkbenchWarning, slices
from workbench.data.readers import nifti as nifti_file
from workbench.experiment import pipeline
from workbench.nets import cascade, fit, slabs
from workbench.nets.network import NetworkSettings, SlabNet
from workbench.run import batch, doctor
from workbench.run.commands import scans, shared, training
from workbench.stages import boundary, candidates, forest, radiomics
from workbench.volume import Refused

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"

ROWS = {  # what must be survived
    1: "truncated .nii.gz",
    2: "header larger than the data",
    3: "a header that claims 30000 x 30000 x 30000 voxels",
    4: "zero-byte file, wrong magic, plain NIfTI named .gz",
    5: "NaN or infinity in HU",
    6: "sform and qform disagree",
    7: "neither form code set",
    8: "sheared or singular affine",
    9: "oblique affine",
    10: "spacing of exactly 1, 1, 1",
    11: "slices of 5 mm or more",
    12: "4D image",
    13: "no HU: 0..255, 0..1, offset by 1024",
    14: "a single slice",
    15: "DICOM: missing slice, doubled position, all positions equal",
    16: "DICOM: gantry tilt",
    17: "DICOM: several series or a scout in the folder",
    18: "DICOM: rescale slope that varies by slice",
    19: "DICOM: compressed without its decoder, damaged",
    20: "a path out of its folder",
    21: "mask and image on different grids",
    22: "label values not whole, 255 or unknown",
    23: "empty mask",
    24: "one-voxel, one-line, one-slice lesion",
    25: "flat region",
    26: "lesion on the volume's border, lesion that fills the liver",
    27: "no liver in the scan",
    28: "lesion outside the liver in a reference",
    29: "reference without tumor",
    30: "one patient or one scan on two sides",
    31: "a cohort too small, or with one class",
    32: "disk full in the middle of a write",
    33: "SIGKILL during a checkpoint",
    34: "damaged checkpoint",
    35: "checkpoint of another configuration",
    36: "`--resume` with nothing there",
    37: "model files from a stranger",
    38: "tracking store locked or down",
    39: "SIGTERM, Ctrl-C",
    40: "two runs on one folder",
    41: "no GPU, GPU out of memory, no bfloat16",
    42: "read-only folder, odd paths, no display",
    43: "unknown notebook parameter",
    44: "a notebook's cell fails in a batch",
    45: "patient names in DICOM headers",
    46: "a table that is not what it seems",
    47: "results, labels and cases that belong to another patient",
    48: "one bad input among several, odd names and terminals",
    49: "an experiment that was edited",
}
SILENT = {1, 2, 5, 6, 15, 16, 34, 43}  # rows that pass without a word in common libraries

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


def series(folder, n=5, step=5.0, names="{}.dcm", **changes):
    """A DICOM series of n slices `[slice row column]` of 7 x 8, as `dicoms.series` writes them."""
    stored = np.stack([1000 + 10 * k + np.arange(56).reshape(7, 8) for k in range(n)])
    about = {"SeriesNumber": 2, "PixelRepresentation": 0, "RescaleIntercept": -1024, **changes}
    uid = about.pop("SeriesInstanceUID", "1.2.826.0.1.3680043.8.498.1")
    return dicoms.series(folder, stored, uid=uid, step=step, names=names, **about)


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


def mha(folder, cut=0, name="ct.mha", packed=False):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(ct().transpose(2, 1, 0))
    image.SetSpacing((2, 2, 5))
    sitk.WriteImage(image, folder / name, packed)
    return bytes_of(folder / name, lambda b: b[: len(b) - cut])


def two_series(folder):
    series(folder / "scan", 3)
    series(folder / "scan", 4, names="b{}.dcm", SeriesInstanceUID="1.2.3", SeriesNumber=3)
    return folder / "scan"


def with_scout(folder):
    series(folder / "scan", 3)
    scout = dict(SeriesInstanceUID="1.2.3", SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return series(folder / "scan", 1, names="scout.dcm", **scout)


def with_mr(folder):
    series(folder / "scan", 3)
    return series(
        folder / "scan",
        4,
        names="b{}.dcm",
        SeriesInstanceUID="1.2.3",
        SeriesNumber=3,
        Modality="MR",
    )


def missing_slice(folder):
    series(folder / "scan", 6)
    (folder / "scan" / "2.dcm").unlink()
    return folder / "scan"


def tilted(k, degrees=12.0):
    return [-10, -20 + 5 * k * np.tan(np.radians(degrees)), 100 + 5 * k]


def moved(affine=AFFINE):
    affine = affine.copy()
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
     "found damaged gzip data (Error -6 Incorrect checksum found); expected a gzipped "
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
    (2, "header smaller than the data, unpacked", lambda d: nifti(d, name="ct.nii", header={"dim": [3, 8, 7, 5, 1, 1, 1, 1]}), READ,
     "found 1,024 bytes; expected 912 for the 8 x 7 x 5 voxels of the header. The header leaves slices out."),
    (2, "MHA packed, only its checksum lost", lambda d: mha(d, 4, packed=True), READ,
     "found 671 bytes of voxels; expected 672 for the 8 x 7 x 6 voxels of the header. The file is truncated or "
     "its header is wrong."),
    (2, "NRRD packed, only its checksum lost", lambda d: mha(d, 8, "ct.nrrd", packed=True), READ,
     "found 671 bytes of voxels; expected 672 for the 8 x 7 x 6 voxels of the header. The file is truncated or "
     "its header is wrong."),
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
    (2, "MHA with another number of dimensions", lambda d: bytes_of(mha(d), lambda b: b.replace(b"NDims = 3", b"NDims = -1 x")), READ,
     "found -1 x dimensions for the sizes 8 7 6; expected 3. The header is damaged."),
    (2, "MHA that does not say where its voxels are", lambda d: bytes_of(mha(d), lambda b: b.replace(b"LOCAL", b"")), READ,
     "found an empty ElementDataFile; expected LOCAL or a file's name. The header is damaged."),
    (2, "MHA with a number of its geometry lost", lambda d: bytes_of(mha(d), lambda b: b.replace(b"Offset = 0 0 0", b"Offset = 0 0")), READ,
     "found offset '0 0'; expected 3 numbers. The header is damaged."),
    (2, "MHA with a field told twice", lambda d: bytes_of(mha(d), lambda b: b.replace(b"Offset = 0 0 0", b"Offset = 0 0 0\nOrigin = 0 0 0")), READ,
     "found offset told twice; expected once. The header is damaged."),
    (2, "MHA with a digit that is no number", lambda d: bytes_of(mha(d), lambda b: b.replace(b"DimSize = 8 7 6", b"DimSize = 8 7 \xb3")), READ,
     "found sizes 8 7 \xb3; expected three lengths in the header."),
    (2, "MHA whose data file is a pattern", lambda d: bytes_of(mha(d), lambda b: b.replace(b"LOCAL", b"%s%n 1 6 1")), READ,
     "found voxels in several files (%s%n 1 6 1); expected in one. Write it again as one file."),
    (2, "NRRD whose data file is a pattern", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b.replace(b"\n\n", b"\ndatafile: x%1000d.raw 1 6 1\n\n", 1)), READ,
     "found voxels in several files (x%1000d.raw 1 6 1); expected in one. Write it again as one file."),
    (2, "NRRD with a header without end", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b.replace(b"\n\n", b"\n# " + b"x" * 65536 + b"\n\n", 1)), READ,
     "found a header of more than 65,536 bytes; expected less. The header is damaged."),
    (4, "NRRD packed by bzip2", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b.replace(b"encoding: raw", b"encoding: bzip2")), READ,
     "found voxels packed by bzip2; expected raw or gzip. Write it again so, as `unu save -f nrrd -e gzip` does."),
    (4, "text named .nrrd", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b"hello"), READ,
     "found a file that starts with b'hell'; expected NRRD. Is this another format under this name?"),
    (4, "text named .mha", lambda d: bytes_of(mha(d), lambda b: b"hello"), READ,
     "found no MetaImage header; expected lines up to ElementDataFile. Is this another format under this "
     "name?"),
    (5, "NaN", lambda d: nifti(d, one_nan()), READ,
     "found 1 of 336 voxels NaN or infinite, the first at (3, 2, 1); expected finite HU. Repair the file, or "
     "fill them, as outside a scanner's circle: workbench convert FILE -o NEW.nii.gz --fill -1024."),
    (5, "infinity", lambda d: nifti(d, np.where(np.isnan(one_nan()), -np.inf, one_nan())), READ,
     "found 1 of 336 voxels NaN or infinite, the first at (3, 2, 1); expected finite HU. Repair the file, or "
     "fill them, as outside a scanner's circle: workbench convert FILE -o NEW.nii.gz --fill -1024."),
    (13, "scaled to -1..1", lambda d: nifti(d, (ct() / 400).clip(-1, 1).astype(np.float32)), READ,
     "found values from -0.2275 to 0.4575, not whole; expected HU. They look normalised (-1..1, or by mean and "
     "deviation); give the CT itself."),
    (13, "a signed 8-bit picture", lambda d: nifti(d, ct().clip(-128, 127).astype(np.int8)), READ,
     "found values from -91 to 127, as in an 8-bit picture; expected HU. Undo the windowing: HU = lower + "
     "grey * (upper - lower) / 255."),
    (13, "an offset of 1024 and padding below", lambda d: nifti(d, np.where(np.arange(336).reshape(SHAPE) < 60, -2000, ct() + 1024).astype(np.int16)), READ,
     "found values from -2000 to 1207 with soft tissue near 1060, an offset of 1024; expected HU, with water "
     "at 0. Subtract 1024 (set the intercept, scl_inter, to -1024)."),
    (10, "a field of three metres", lambda d: nifti(d, np.tile(ct(), (4, 1, 1)), affine=np.diag([-45.0, -45, 45, 1])), READ,
     "found a field of view of 270 x 315 x 1440 mm (z y x); expected at most 2500 x 1200 x 1200. The voxel size "
     "may be in another unit."),
    (6, "sform and qform disagree", conflict, READ,
     "found an sform (LPS) and a qform (RPS) that put the same voxel up to 32 mm apart; expected at most 0.1 "
     "mm. Programs disagree on where left is: set the wrong one's code to 0."),
    (6, "qform that is no rotation", lambda d: nifti(d, sform=0, qform=1, header={"quatern_b": 3.0}), READ,
     "found a qform that is no rotation (w2 should be positive, but is -9.000000e+00); expected a valid "
     "qform. Set qform_code to 0 if the sform is right."),
    (7, "no form code", lambda d: nifti(d, sform=0), READ,
     "found neither sform nor qform set, so left and right are unknown; expected one of them. Set it from the "
     "original DICOM, or say it: workbench convert FILE -o NEW.nii.gz --orientation LPS --spacing X,Y,Z (where "
     "the file's axes lead, mm along each)."),
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
    (13, "an infinite slope", lambda d: nifti(d, header={"scl_slope": np.inf}), READ,
     "found a scale (scl_slope) of inf; expected a finite slope. The header is damaged."),
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
     "found 2 series or grids: [CT series 2, 3 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1], [CT series 3, "
     "4 images of 8 x 7, UID 1.2.3]; expected one CT series. Choose one: workbench convert scan -o NEW.nii.gz "
     "--series UID, or move the one you want to a folder of its own."),
    (17, "a scout beside the series", with_scout, READ,
     "found 2 series or grids: [CT series 2, 3 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1, ImageType "
     "ORIGINAL\\PRIMARY\\AXIAL], [scout series 1, 1 image of 8 x 7, UID 1.2.3, ImageType "
     "ORIGINAL\\PRIMARY\\LOCALIZER]; expected one CT series. Choose one: workbench convert scan -o NEW.nii.gz "
     "--series UID, or move the one you want to a folder of its own."),
    (17, "MR beside the CT", with_mr, READ,
     "found 2 series or grids: [CT series 2, 3 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1], [MR series 3, "
     "4 images of 8 x 7, UID 1.2.3]; expected one CT series. Choose one: workbench convert scan -o NEW.nii.gz "
     "--series UID, or move the one you want to a folder of its own."),
    (17, "two grids in one series", lambda d: series(d / "scan", ImageOrientationPatient=lambda k: [1, 0, 0, 0, 1, 0] if k < 4 else [1, 0, 0, 0, 0.8, 0.6]), READ,
     "found 1 of 5 slices on another grid, by up to 4.88 pixels at a corner, as 4.dcm (PixelSpacing 0.9\\0.7, "
     "ImageOrientationPatient 1\\0\\0\\0\\0.8\\0.6); expected PixelSpacing 0.9\\0.7 and ImageOrientationPatient "
     "1\\0\\0\\0\\1\\0, within 0.05 pixels. Move the slices of one grid to a folder of their own, or resample "
     "them onto one."),
    (8, "directions of DICOM that stretch", lambda d: series(d / "scan", ImageOrientationPatient=[1.2, 0, 0, 0, 1, 0]), READ,
     "found row and column directions [1.2, 0.0, 0.0] and [0.0, 1.0, 0.0]; expected two unit vectors at right "
     "angles. The orientation is damaged."),
    (8, "a negative spacing of DICOM", lambda d: series(d / "scan", PixelSpacing=[-0.9, 0.7]), READ,
     "found a PixelSpacing of -0.9\\0.7 mm; expected two lengths above 0. The header is damaged."),
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
    (19, "the last slice of 0 bytes", lambda d: bytes_of(series(d / "scan") / "4.dcm", lambda b: b"").parent, READ,
     "found a file of 0 bytes; expected an image. The copy or download failed; fetch it again."),
    (19, "the last slice cut in its header", lambda d: bytes_of(series(d / "scan") / "4.dcm", lambda b: b[:400]).parent, READ,
     "found damaged DICOM (a header without Rows and Columns, as of a truncated file); expected a DICOM "
     "image. Fetch the series again."),
    (19, "the last slice no DICOM", lambda d: bytes_of(series(d / "scan", names="IM{}") / "IM4", lambda b: b"x" * 400).parent, READ,
     "found no DICOM, under a name like those of the slices; expected a slice. Fetch it again, or move it away "
     "if it is none."),
    (21, "mask of another shape", lambda d: nifti(d, np.ones((8, 7, 5), np.uint8)), on_ct,
     "found 8 x 7 x 5 voxels of 2 x 2 x 5 mm; expected 8 x 7 x 6 voxels of 2 x 2 x 5 mm, the grid of p1. "
     "Resample one onto the other first; if their voxels agree and only the headers differ, copy the CT's header to the labels."),
    (21, "mask moved by a voxel", lambda d: nifti(d, np.ones(SHAPE, np.uint8), moved()), on_ct,
     "found voxels 2 mm away from those of p1; expected the grid of p1 (8 x 7 x 6 voxels of 2 x 2 x 5 mm). "
     "Resample one onto the other first; if their voxels agree and only the headers differ, copy the CT's header to the labels."),
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
    (22, "nearly a label", lambda d: nifti(d, np.float32(0.9999999) * (ct() > 60)), LABELS,
     "found label values that are not whole numbers, as 0.9999999; expected integers: 0 background, 1 liver, 2 "
     "tumor. Resample label maps with nearest neighbour, and threshold probabilities first."),
    (22, "negative label", lambda d: nifti(d, -np.int16(ct() > 60)), any_label,
     "found label values -1, 0; expected values of 0 and above. Renumber the regions from 1."),
    (22, "NaN in labels", lambda d: nifti(d, one_nan()), LABELS,
     "found label values that are NaN or infinite; expected integers: 0 background, 1 liver, 2 tumor."),
    (23, "empty mask", lambda d: nifti(d, np.zeros(SHAPE, np.uint8)), filled,
     "found an empty mask; expected at least one voxel above 0."),
    (7, "an identity header, in RAS", lambda d: nifti(d, affine=np.eye(4)), READ,
     "found an identity header (1 mm voxels, no turn, the origin at 0), as when orientation and spacing were "
     "lost; expected a header that says where left is and how large a voxel. Say so: workbench convert FILE -o "
     "NEW.nii.gz --orientation LPS --spacing X,Y,Z (where the file's axes lead, mm along each). Of LiTS, whose "
     "volumes 28 to 47 are such, workbench import lits repairs them."),
    (17, "two phases in one series", lambda d: series(d / "scan", 8, AcquisitionNumber=lambda k: 1 + k % 2), READ,
     "found 2 acquisitions in one series, mixed: AcquisitionNumber 1 and 2; expected the slices of one scan, not "
     "of several phases. Choose one: workbench convert scan -o NEW.nii.gz --phase AcquisitionNumber=1, or move "
     "one to a folder of its own; if they are one scan: --phase all."),
    (17, "two parts of a body in two phases", lambda d: series(d / "scan", 8, AcquisitionNumber=lambda k: 1 + k // 4), READ,
     "found 2 acquisitions in one series, one above the other: AcquisitionNumber 1 and 2; expected the slices of "
     "one scan, not of several phases. Choose one: workbench convert scan -o NEW.nii.gz --phase "
     "AcquisitionNumber=1, or move one to a folder of its own; if they are one scan: --phase all."),
    (17, "neighbours that a minute lies between, to and fro", lambda d: series(d / "scan", 8, AcquisitionTime=lambda k: f"10{11 + k % 2}00"), READ,
     "found slices of several times mixed, as neighbours with AcquisitionTime 101100 and 101200; expected the "
     "slices of one scan, not of several phases. Choose one: workbench convert scan -o NEW.nii.gz --phase "
     "AcquisitionTime=101100, or move one to a folder of its own; if they are one scan: --phase all."),
    (17, "two patients under one UID", lambda d: series(d / "scan", 8, PatientID=lambda k: f"X{k % 2}"), READ,
     "found 2 series or grids: [CT series 2, 4 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1], [CT series 2, "
     "4 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1]; PatientID with 2 values, not shown; expected one CT "
     "series. Move the one you want to a folder of its own."),
    (17, "two reconstructions under one UID", lambda d: series(d / "scan", 8, ConvolutionKernel=lambda k: f"B{3 + k % 2}0f"), READ,
     "found 2 series or grids: [CT series 2, 4 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1, "
     "ConvolutionKernel B30f], [CT series 2, 4 images of 8 x 7, UID 1.2.826.0.1.3680043.8.498.1, "
     "ConvolutionKernel B40f]; expected one CT series. Choose one: workbench convert scan -o NEW.nii.gz --phase "
     "'ConvolutionKernel=B30f', or move the one you want to a folder of its own."),
    (17, "a study UID for each slice", lambda d: series(d / "scan", 8, StudyInstanceUID=lambda k: f"1.2.{k}"), READ,
     "found 8 values of StudyInstanceUID in 8 images; expected one for all slices of a series. An anonymizer "
     "does this. If they are one series: workbench convert scan -o NEW.nii.gz --series all."),
    (17, "one SOPInstanceUID for all slices", lambda d: series(d / "scan", SOPInstanceUID="1.2.3"), READ,
     "found 1 SOPInstanceUID for 5 slices; expected one for each slice. Their headers were damaged or are "
     "copies: fetch the original series. If their positions are right: workbench convert scan -o NEW.nii.gz "
     "--series all."),
    (17, "another quantity than HU", lambda d: series(d / "scan", RescaleType="MGML"), READ,
     "found a RescaleType of 'MGML'; expected HU. These are values of another kind than CT numbers: give the CT "
     "series itself."),
    (18, "an empty slope", lambda d: series(d / "scan", RescaleSlope=""), READ,
     "found an empty RescaleSlope; expected a slope other than 0 and an intercept. Say what is right: workbench "
     "convert FOLDER -o NEW.nii.gz --rescale 1,-1024 (slope, intercept)."),
    (18, "a slope of 0", lambda d: series(d / "scan", RescaleSlope=0), READ,
     "found 0.0 as RescaleSlope; expected a slope other than 0 and an intercept. Say what is right: workbench "
     "convert FOLDER -o NEW.nii.gz --rescale 1,-1024 (slope, intercept)."),
    (19, "bits that do not fit", lambda d: series(d / "scan", HighBit=11), READ,
     "found BitsAllocated 16, BitsStored 16, HighBit 11, PixelRepresentation 0; expected BitsStored up to "
     "BitsAllocated, HighBit one less than it (15), PixelRepresentation 0 or 1. Such a header does not tell the "
     "values: fetch the original series, or correct it."),
    (19, "values that do not fit the bits", lambda d: series(d / "scan", BitsStored=10, HighBit=9), READ,
     "found 32 pixels that BitsStored 10 and PixelRepresentation 0 cannot hold, as 1024; expected values of 10 "
     "bits. The header does not fit the pixels: fetch the original series, or correct it."),
    (19, "signs that the header denies", lambda d: series(d / "scan", RescaleIntercept=0, PixelData=lambda k: (np.arange(56) - 40).astype("<i2").tobytes()), READ,
     "found PixelRepresentation 0 (no signs) with 71.4% of the pixels from 65496 to 65535, as negative numbers "
     "look; expected PixelRepresentation 1 for negative values. Correct the header, or fetch the original "
     "series."),
    (19, "a link in a series that leads nowhere", lambda d: ((series(d / "scan") / "9.dcm").symlink_to("gone.dcm"), d / "scan")[1], READ,
     "found a link to gone.dcm, which is not there; expected a file. Fetch the file, or remove the link."),
    (8, "NRRD in a unit that nobody knows", lambda d: bytes_of(mha(d, name="ct.nrrd"), lambda b: b.replace(b"encoding", b'space units: "ell" "ell" "ell"\nencoding', 1)), READ,
     "found lengths in \"ell\" \"ell\" \"ell\"; expected mm. Write it again in mm."),
]  # fmt: skip


@pytest.mark.parametrize("row, fault, build, reader, message", FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
@pytest.mark.filterwarnings("ignore::workbench.data.readers.WorkbenchWarning")
def test_refused_in_one_line(tmp_path, row, fault, build, reader, message):
    path = build(tmp_path)
    with pytest.raises(Refused) as refused:
        reader(path)
    line = str(refused.value)
    subject, _, rest = line.partition(": ")
    assert rest.replace(f"{tmp_path}/", "") == message
    assert subject.startswith(str(tmp_path))  # which file
    assert re.search("found .*; expected ", rest) and "\n" not in line


# -- refusals that are no input file: act(folder, request) does what is wrong ----------------------------------------


def manifest(folder, *rows, columns=("case", "patient", "ct", "labels", "split")):
    (folder / "x.nii.gz").touch()
    (folder / "m.csv").write_text("\n".join(",".join(r) for r in (columns, *rows)) + "\n")
    return folder / "m.csv"


def two_copies(folder, request):
    """One scan under two names."""
    rows = []
    for n, seed in enumerate((0, 0, 1, 2)):
        ct, labels = tiny.patient(seed)
        (folder / f"c{n}").mkdir()
        nifti_file.write(ct, folder / f"c{n}" / "ct.nii.gz")
        nifti_file.write(labels, folder / f"c{n}" / "labels.nii.gz")
        rows.append((f"c{n}", f"p{n}", f"c{n}/ct.nii.gz", f"c{n}/labels.nii.gz", "test" if n == 1 else "train"))
    quiet = lambda *_: None
    made = experiment.Experiment.create(folder / "e", manifest(folder, *rows), tiny.settings(), "cpu", quiet)
    pipeline.run(made, "cohort")


SMALL = NetworkSettings(width=4, growth=2, layers=(1, 1))


def net_in(folder, edit=None, restate=True, **about):
    """A stored net, its file edited, with the checksum that fits."""
    torch.manual_seed(0)
    config = {"network": json.loads(json.dumps(SMALL.__dict__))}
    fit.save_tensors(folder / "fold0", SlabNet(SMALL).state_dict(), {"config": config, "curve": []} | about)
    (held,) = folder.glob("*.safetensors")
    if edit:
        held = held.rename(folder / "net.safetensors")
        held.write_bytes(edit(held.read_bytes()))
        stated = json.loads((folder / "fold0.json").read_text()) | {"file": held.name}
        if restate:
            stated["sha256"] = hashlib.sha256(held.read_bytes()).hexdigest()
        (folder / "fold0.json").write_text(json.dumps(stated))
    return held


def load_net(folder, net=SMALL):
    return cascade.load_fold(folder, replace(tiny.settings().liver.cascade, network=net), 0, "cpu")


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 64]) + data[-8:]


PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."


def small_forest(folder):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    made = forest.fit(table, table.a.to_numpy() > 0, replace(tiny.settings().forest, trees=2))
    forest.save(made, folder)
    return made, table


def strange_forest(data):
    def act(folder, request):
        small_forest(folder)
        held = data if isinstance(data, bytes) else data(folder)
        (folder / "forest.safetensors").write_bytes(held)
        about = json.loads((folder / "forest.json").read_text())
        about["sha256"]["forest.safetensors"] = hashlib.sha256(held).hexdigest()
        (folder / "forest.json").write_text(json.dumps(about))
        forest.load(folder)

    return act


def loose_tree(folder):
    """A forest with a split that leads back to itself: to follow it would never end."""
    held = safetensors.torch.load_file(folder / "forest.safetensors")
    held["left"][1, 1] = 0
    return safetensors.torch.save(held)


def other_settings(folder, request):
    cohort_of = request.getfixturevalue("toy_cohort")
    experiment.Experiment.create(folder / "e", cohort_of, tiny.settings(), "cpu")
    files.write_json(folder / "e" / "cohort" / "stage.json", {})
    changed = replace(tiny.settings(), folds=3, forest=replace(tiny.settings().forest, trees=500))
    experiment.Experiment.create(folder / "e", cohort_of, changed, "cpu")


def changed_settings(folder, request):
    experiment.Experiment.create(folder / "e", request.getfixturevalue("toy_cohort"), tiny.settings(), "cpu")
    about = json.loads((folder / "e" / "experiment.json").read_text())
    about["settings"]["liver"]["pixel_mm"] = "wide"
    (folder / "e" / "experiment.json").write_text(json.dumps(about))
    experiment.Experiment(folder / "e", "cpu")


def in_use(folder, request):
    with files.held(folder), files.held(folder):
        pass


def book(folder, source="n = 1\nrate = 0.5"):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "02_liver.ipynb")
    return folder / "02_liver.ipynb"


def no_notebook(folder, request):
    (folder / "02_liver.ipynb").write_text('{"cells": 7}')
    batch.parameters(folder / "02_liver.ipynb")


def read_only(folder, request):
    (folder / "there").mkdir()
    (folder / "there").chmod(0o555)
    shared.writable(folder / "there" / "new")


def few(lesions, alike):
    truth = np.arange(lesions + alike) < lesions
    return lambda d, _: forest.fit(pd.DataFrame({"a": truth + 0.0}), truth)


def on_cuda(folder, request):
    request.getfixturevalue("monkeypatch").setattr(torch.cuda, "is_available", lambda: False)
    experiment.pick_device("cuda")


def folds_of(patients):
    cases = [cohort.Case(f"c{i}", p, Path("c"), Path("l")) for i, p in enumerate(patients)]
    return lambda d, _: cohort.folds(cases, {c.case: 0.0 for c in cases}, 2)


ROW = ["a", "p", "x.nii.gz", "x.nii.gz", "train"]
ACTS = [
    (20, "a case named ../x in a manifest", lambda d, _: cohort.read_manifest(manifest(d, ["../x", "p", "x.nii.gz", "x.nii.gz", "train"])),
     "m.csv, line 2: found the case '../x'; expected a name that a file can have. Use letters, digits, - "
     "and _."),
    (20, "a row of a manifest cut short", lambda d, _: cohort.read_manifest(manifest(d, ["c", "p", "x.nii.gz"])),
     "m.csv, line 2: found no labels; expected a value for each column."),
    (23, "empty mask for radiomics", lambda d, _: scans.radiomics(nifti(d), nifti(d, np.zeros(SHAPE, np.uint8), name="m.nii.gz"), d / "x.csv"),
     "m.nii.gz: found an empty mask; expected at least one region on background 0. Draw a region first."),
    (30, "a patient in train and in test", lambda d, _: cohort.read_manifest(manifest(d, ["a", "p", "x.nii.gz", "x.nii.gz", "train"], ["b", "p", "x.nii.gz", "x.nii.gz", "test"])),
     "m.csv: found patient p in train and in test: a (train), b (test); expected each patient on one side. Give all scans of a "
     "patient the same split."),
    (30, "one scan under two names", two_copies,
     "m.csv: found the same voxels in cases c0 (patient p0, train) and c1 (patient p1, test); expected each scan once. Remove one of the "
     "two: MSD Task03 is LiTS under other names, and 3D-IRCADb-01 is inside both."),
    (31, "too few patients", folds_of("aab"),
     "the cohort: found 2 training patients; expected at least 3. Add patients."),
    (31, "too few candidates", few(3, 3),
     "forest: found 3 lesions and 3 look-alikes; expected at least 20 candidates, 5 of each class. Use a "
     "larger cohort."),
    (31, "candidates of one class", few(30, 1),
     "forest: found 30 lesions and 1 look-alikes; expected at least 20 candidates, 5 of each class. Use a "
     "larger cohort."),
    (33, "weights that are not there", lambda d, _: load_net(d),
     "fold0.json: found no such model; expected a trained one. Train this stage first."),
    (34, "a bit of the weights flipped", lambda d, _: (net_in(d, flipped, restate=False), load_net(d)),
     "net.safetensors: found a checksum other than the recorded one, or no file; expected CHECKSUM. The "
     "file is damaged: restore it, or remove fold0.json and train this stage again."),
    (34, "JSON of a checkpoint cut short", lambda d, _: (net_in(d), bytes_of(d / "fold0.json", lambda b: b[:40]), load_net(d)),
     "fold0.json: found no JSON (Unterminated string starting at: line 4 column 4 (char 33)); expected "
     "what the workbench wrote there. The file is damaged: restore it, or remove it and run this again."),
    (34, "settings of another kind in experiment.json", changed_settings,
     "e/experiment.json: found liver.pixel_mm \"wide\"; expected a number. The file is damaged: restore it, "
     "or remove it and run this again."),
    (35, "a net of another width", lambda d, _: (net_in(d), load_net(d, replace(SMALL, width=8))),
     "fold0: found a net of another configuration, (stored, asked for) {'width': (4, 8)}; expected the "
     "same. Train this stage again."),
    (35, "weights that do not fit their own settings", lambda d, _: (net_in(d, lambda b: b.replace(b'"gate', b'"gait')), load_net(d)),
     "fold0: found weights of another network; expected those of this version. Train this stage again."),
    (35, "an experiment with other settings", other_settings,
     "e: found an experiment with other settings (folds 2 instead of 3; forest.trees 30 instead of 500), on "
     "which its finished stage cohort rests; expected the same, to go on with it. Choose another folder with "
     "-o, or train it again with --retrain cohort."),
    (36, "nothing to resume", lambda d, _: training.train("all", d / "m.csv", d / "e", resume=True),
     "--resume e: found no experiment there; expected one that was started before. Leave --resume out to "
     "start it."),
    (37, "a pickle in place of weights", lambda d, _: (net_in(d, lambda b: PICKLE), load_net(d)),
     "net.safetensors: found no safetensors (Error while deserializing: header too large); expected the "
     "weights of a net. Train this stage again."),
    (37, "a pickle in place of the forest", strange_forest(PICKLE),
     "forest.safetensors: found no trees (Error while deserializing: header too large); expected a forest. "
     "Train the forest stage."),
    (37, "a tree that never ends", strange_forest(loose_tree),
     "forest.safetensors: found loose ends in tree 1; expected a tree. It is not used: train the forest stage."),
    (40, "a second run on one experiment", in_use,
     "FOLDER: found in use by process N on HOST; expected an experiment that nobody else writes to. Wait "
     "for it or choose another folder."),
    (41, "CUDA asked for, none there", on_cuda,
     "--device: found cuda; expected a device that is there. No CUDA device was found: use --device cpu."),
    (42, "read-only folder", read_only,
     "there/new: found there is read-only; expected a folder that can be written. Choose another with -o."),
    (42, "a file where a folder should be", lambda d, _: ((d / "f").touch(), shared.writable(d / "f")),
     "f: found f is a file; expected a folder that can be written. Choose another with -o."),
    (43, "unknown notebook parameter", lambda d, _: batch.checked(book(d), {"treshold": 0.5}),
     "02_liver.ipynb: found unknown parameter treshold; expected one of n, rate."),
    (43, "a parameter of another type", lambda d, _: batch.checked(book(d), {"n": "three"}),
     "02_liver.ipynb: parameter n: found 'three'; expected int, like 1."),
    (43, "a file that is no notebook", no_notebook,
     "02_liver.ipynb: found no notebook (TypeError 'int' object is not iterable); expected a Jupyter "
     "notebook. Restore it from the repository."),
    (43, "parameters that are no Python", lambda d, _: batch.parameters(book(d, "n = (1")),
     "02_liver.ipynb: found a cell of parameters that is no Python ('(' was never closed (<unknown>, line "
     "1)); expected name = value, line by line."),
    (46, "a column that is nearly ours", lambda d, _: cohort.read_manifest(manifest(d, ROW, columns=("case", "patient", "ct", "labels", "set"))),
     "m.csv: found a column 'set', which nothing reads; expected the name split. Rename it to split, or to something unlike it if it is a "
     "column of your own."),
    (46, "a column twice", lambda d, _: cohort.read_manifest(manifest(d, [*ROW, "test"], columns=("case", "patient", "ct", "labels", "split", "Split"))),
     "m.csv: found the column split 2 times (split, Split); expected each column once. Remove or rename the others."),
    (46, "a column of another name", lambda d, _: cohort.read_manifest(manifest(d, ROW, columns=("case", "PatientID", "ct", "labels", "split"))),
     "m.csv: found the columns case, PatientID, ct, labels, split; expected case, patient, ct, labels. Rename PatientID to patient."),
    (46, "one patient written in two ways on both sides", lambda d, _: cohort.read_manifest(manifest(d, ["a", "P01", *ROW[2:]], ["b", "p1", *ROW[2:4], "test"])),
     "m.csv: found patient P01 in train and patient p1 in test; expected names that differ in more than case, spaces, marks and zeros. "
     "Write one patient in one way, with the same split in each row; give two patients other names."),
    (47, "two case numbers given as a pair", lambda d, _: readers.pair_labels(nifti(d, name="segmentation-3.nii"), nifti(d, name="volume-7.nii")),
     "segmentation-3.nii and volume-7.nii: found the cases segmentation-3 and volume-7; expected one case. Give both files the same name if they are of one "
     "case."),
]  # fmt: skip


def told(refused: Refused, folder: Path) -> str:
    """The line without what differs from run to run."""
    line = str(refused).replace(f"{folder}/", "").replace(str(folder), "FOLDER")
    line = line.replace(f"process {os.getpid()} on {platform.node()}", "process N on HOST")
    return re.sub(r"\b[0-9a-f]{12}\b", "CHECKSUM", line)


@pytest.mark.parametrize("row, fault, act, message", ACTS, ids=[f"{f[0]}-{f[1]}" for f in ACTS])
def test_refused_wherever_it_happens(tmp_path, request, row, fault, act, message):
    with pytest.raises(Refused) as refused:
        act(tmp_path, request)
    assert told(refused.value, tmp_path) == message
    assert re.search("found .*; expected ", message)


def test_the_verdict_of_check_is_the_same_line(tmp_path):
    verdict = readers.check(short(tmp_path))
    assert not verdict.ok
    assert verdict.message.endswith("expected 192,352 for the 64 x 60 x 25 voxels of the header. "
                                    "The file is truncated or its header is wrong.")  # fmt: skip


# -- silent elsewhere: the library below reads the file without a word, and we do not ---------------------------------


@pytest.mark.parametrize("fault", ["truncated .nii.gz", "header larger than the data, gzip", "NaN", "gantry tilt"])
def test_a_library_reads_it_in_silence(tmp_path, fault, capfd):
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
    if fault == "truncated .nii.gz":
        assert (sitk.GetArrayFromImage(image)[-1] == 0).all()  # the last slices were never there
    with pytest.raises(Refused):
        READ(path)


@pytest.mark.parametrize("fault", ["all positions equal", "doubled position", "missing DICOM slice"])
def test_a_library_makes_a_volume_of_such_positions(tmp_path, fault):
    import SimpleITK as sitk

    build = next(f[2] for f in FAULTS if f[1] == fault)
    folder = build(tmp_path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # a warning on stderr is all that there is
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in sorted(folder.iterdir())])
    assert reader.Execute().GetSize()[2] == len(list(folder.iterdir()))
    with pytest.raises(Refused):
        READ(folder)


def test_row_34_libraries_load_a_flipped_bit(tmp_path):
    from safetensors.torch import load_file

    whole = SlabNet(SMALL)
    held = net_in(tmp_path, flipped, restate=False)
    torch.manual_seed(0)
    sound = SlabNet(SMALL).state_dict()
    damaged = load_file(held)
    assert sum(not torch.equal(damaged[k], v) for k, v in sound.items()) == 1
    whole.load_state_dict(damaged)  # nor does torch say a word
    with pytest.raises(Refused, match="checksum"):
        load_net(tmp_path)


def test_row_43_papermill_runs_the_defaults(tmp_path, caplog):
    import papermill

    made = papermill.execute_notebook(
        book(tmp_path), tmp_path / "out.ipynb", {"treshold": 0.5}, prepare_only=True, progress_bar=False,
        kernel_name="python3", language="python",
    )  # fmt: skip
    assert [r.levelname for r in caplog.records if "treshold" in r.getMessage()] == ["WARNING"]
    assert "treshold = 0.5" in "".join(c.source for c in made.cells)


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
        readers.read(nifti(tmp_path, affine=moved(np.diag([-1.0, -1, 1, 1]))))


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


def test_row_13_a_series_without_rescale_is_told_of(tmp_path):
    folder = series(tmp_path / "s", PixelData=lambda k: (40 + np.arange(56).reshape(7, 8)).astype(np.uint16).tobytes())
    for file in sorted(folder.iterdir())[:2]:
        ds = pydicom.dcmread(file)
        del ds.RescaleIntercept
        ds.save_as(file)
    with pytest.warns(WorkbenchWarning, match="2 of 5 slices have no RescaleIntercept"):
        readers.read(folder)


def test_row_18_rescale_that_varies_by_slice(tmp_path):
    slope = (1, 1.5, 1, 0.5, 4)
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
    assert "PatientName" not in slices.TAGS


def test_row_11_radiomics_of_thick_slices_are_marked():
    image, labels = torch.rand(8, 9, 10) * 100, torch.zeros(8, 9, 10, dtype=torch.long)
    labels[2:6, 2:6, 2:6] = 1
    thick, thin = (
        radiomics.describe(image, labels, (mm, 1.0, 1.0), names=radiomics.named("shape")).reason[0] for mm in (5.0, 4.9)
    )
    assert "slices of 5 mm: texture across them is coarse" in thick and "slices of" not in thin


def test_row_26_lesions_at_the_border_and_all_over_the_liver_are_described():
    ball = torch.zeros(14, 40, 40, dtype=torch.bool)
    ball[0:8, 10:30, 10:30] = True
    found = candidates.find(ball, ball.float(), ball, (4.0, 2.0, 2.0))
    assert found.table.touches_border.tolist() == [True] and found.table.volume_ml[0] == pytest.approx(3200 * 0.016)
    row = radiomics.describe(torch.rand(ball.shape) * 50, ball.long(), (4.0, 2.0, 2.0), ball).iloc[0]
    assert "at the border of the volume" in row.reason and row.boundary_liver_contact > 0.8
    net = boundary.BoundaryModel(boundary.PatchNet(boundary.DEMO).eval(), boundary.DEMO)
    edge = boundary.relabel(net, torch.rand(ball.shape) * 50, ball.float(), ball, ball, (4.0, 2.0, 2.0))
    assert edge.mask.shape == ball.shape and bool(edge.mask.any())


def test_row_28_tumor_beside_the_liver_is_told_with_its_volume(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:4], labels[2, 2, 2], labels[4, 4, 4] = 1, 2, 2  # inside, and by a corner
    path = nifti(tmp_path, labels, name="labels.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error", WorkbenchWarning)
        LABELS(path)
    labels[6, 5, 4:6] = 2
    nifti(tmp_path, labels, name="labels.nii.gz")
    with pytest.warns(WorkbenchWarning, match=r"1 piece\(s\) of tumor, 0.04 ml in all, touch no liver"):
        LABELS(path)


def test_row_41_out_of_memory_goes_on_with_fewer_slices(capsys):
    class Tight(torch.nn.Module):
        """A device with room for two slices."""

        settings = NetworkSettings(width=4, growth=2, layers=(1, 1))

        def forward(self, x):
            if len(x) > 2:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return x[:, 1:2]

    hu = torch.rand(7, 8, 8)
    whole = torch.sigmoid(slabs.normalise(hu, (-1.0, 1.0)))
    assert torch.allclose(slabs.predict([Tight()], hu, None, (-1.0, 1.0), "cpu", batch=7), whole)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"the device is out of memory: going on with {n} slices at a time" for n in (3, 1)]


def test_row_41_without_bfloat16_it_is_float32_and_said(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with slabs.autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setattr(doctor, "_networks", lambda settings: {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.examine()["bfloat16"] is False


def test_row_42_odd_letters_in_paths(tmp_path):
    odd = tmp_path / "mit Leerraum, ö, 肝 {x} 100%"
    odd.mkdir()
    path = nifti(odd)
    nifti_file.write(READ(path), odd / "zurück.nii.gz")
    assert np.array_equal(READ(odd / "zurück.nii.gz").array, READ(path).array)
    net_in(odd)
    load_net(odd)
    rows = ["f\N{LATIN SMALL LETTER U WITH DIAERESIS}r", "p", "x.nii.gz", "x.nii.gz", "train"]
    assert cohort.read_manifest(manifest(odd, rows))[0].case == "für"


# -- the page ---------------------------------------------------------------------------------------------------------

OUTCOMES = [  # row, what happens, tests that hold it
    (5, "filled with a stated value when asked to, with a warning that counts the voxels", "test_faults::test_row_5_filled_when_asked_to"),
    (6, "`form=` settles it; the result lies where the chosen form says", "test_faults::test_rows_6_and_7_settled_by_a_choice"),
    (7, "`form=\"pixdim\"` guesses when asked to", "test_faults::test_rows_6_and_7_settled_by_a_choice"),
    (9, "kept in the result bit for bit; resampled for display only", "test_readers::test_oblique_affine_bit_for_bit test_qa::test_layers_are_the_canonical_arrays_with_scale_in_mm"),
    (10, "warning: spacing is exactly 1 x 1 x 1 mm, which often means that it was lost; sizes in mm may be wrong", "test_faults::test_row_10_spacing_of_1_1_1_is_suspect"),
    (11, "read; each row of radiomics says: slices of 5 mm: texture across them is coarse", "test_faults::test_row_11_thick_slices_are_read test_faults::test_row_11_radiomics_of_thick_slices_are_marked"),
    (12, "an axis of length 1 is dropped with a warning", "test_readers::test_a_singleton_axis_is_dropped_with_a_word"),
    (13, "doubtful values are read with a warning that names the range", "test_faults::test_row_13_doubtful_values_are_warned_of"),
    (17, "`series=UID` reads one of several", "test_faults::test_row_17_one_of_several_series_can_be_asked_for"),
    (18, "each slice's own slope and intercept: right HU", "test_faults::test_row_18_rescale_that_varies_by_slice"),
    (19, "the package of the decoder is named: slices compressed as JPEG Lossless ...; expected a decoder for it. Install ...", "test_faults::test_row_19_the_package_of_a_missing_decoder_is_named"),
    (20, "an image header that names a data file elsewhere: found voxels in ../outside.raw; expected a data file in the same folder", "test_faults::test_row_20_a_header_cannot_reach_out_of_its_folder"),
    (20, "an archive of scans whose members would leave its folder: found a member 'a/../../evil'; expected names that stay inside", "test_intake::test_an_archive_stays_inside"),
    (23, "a case with empty reference or empty prediction has its row; no figure is made up, none dropped", "test_metrics::test_four_empty_cases test_metrics::test_no_case_drops_out_of_the_mean"),
    (24, "described where defined, else NaN; the column `reason` says: one voxel, no two voxels are neighbours", "test_radiomics::test_degenerate_regions_get_reasons_and_leave_the_others_alone"),
    (25, "texture as the catalogue says, else NaN; `reason`: flat region, flat sub-band", "test_radiomics::test_degenerate_regions_get_reasons_and_leave_the_others_alone"),
    (26, "described; `touches_border` in the table, `reason`: at the border of the volume", "test_faults::test_row_26_lesions_at_the_border_and_all_over_the_liver_are_described"),
    (27, "an empty result with the status `no liver`", "test_pipeline::test_air_is_no_liver test_report::test_case_report_of_a_case_without_liver"),
    (27, "a flat or noisy volume that a net takes for one: warning: a liver of ... ml that fills ... of the scan: look at it before anything of this result is used", "test_main::test_a_flat_or_noisy_volume_is_no_liver_without_a_word"),
    (28, "warning: 1 piece(s) of tumor, 0.04 ml in all, touch no liver", "test_faults::test_row_28_tumor_beside_the_liver_is_told_with_its_volume"),
    (29, "false positives counted; the case stays in every mean", "test_metrics::test_four_empty_cases test_metrics::test_no_case_drops_out_of_the_mean"),
    (32, "one line with the path and the system's reason; no partial file; the same command goes on", "test_kill::test_a_full_disk_leaves_nothing_and_is_gone_on_from test_kill::test_a_full_or_read_only_disk_gets_no_part_of_a_result test_kill::test_a_notebook_on_a_full_or_read_only_disk_is_not_taken_for_done test_files::test_a_write_that_fails_leaves_the_former_file_and_nothing_else"),
    (33, "the one before loads; the end is that of a run never killed, bit for bit", "test_kill::test_killed_and_gone_on_with test_fit::test_the_former_checkpoint_stays_until_the_new_one_is_whole"),
    (37, "no file of the project loads a pickle", "test_forest::test_a_pickle_is_refused test_trust::test_the_package_has_no_door_for_a_pickle"),
    (38, "MLflow: not reached (...); the folder keeps the record and the next sync catches up", "test_tracking::test_a_locked_or_dead_store_is_reported_not_raised test_tracking::test_a_sync_that_was_cut_short_is_done_again test_tracking::test_two_syncs_at_once_make_one_run_of_a_folder"),
    (39, "interrupted: the same command goes on from here. Exit status 143 (Ctrl-C: 130); `killed.json` in the stage, the tracked run KILLED, until it is gone on with", "test_kill::test_a_signal_is_told_marked_and_gone_on_from"),
    (40, "the second process is told the first one's number and host", "test_kill::test_a_second_process_is_told_who_is_first"),
    (41, "the device is out of memory: going on with 3 slices at a time; the same result", "test_faults::test_row_41_out_of_memory_goes_on_with_fewer_slices"),
    (41, "the device is out of memory: going on with some descriptors on the CPU; the same within rounding", "test_cuda::test_descriptors_for_which_the_device_has_no_room_are_the_cpus"),
    (41, "patient7: found no memory left on cuda in boundary; expected room for its voxels. Use --device cpu, or fewer processes at once (--workers).", "test_pipeline::test_a_scan_too_large_for_the_device_is_refused_and_the_next_one_goes_on"),
    (41, "training tumor, step 0: found no memory left on the device for a batch of 32; expected a batch that fits.", "test_fit::test_a_batch_too_large_for_the_device_is_refused_and_the_way_so_far_kept"),
    (41, "float32 where bfloat16 is not native; `workbench doctor` says so", "test_faults::test_row_41_without_bfloat16_it_is_float32_and_said"),
    (42, "said at the start, before the work", "test_main::test_a_place_that_cannot_be_written_is_refused test_kill::test_a_read_only_file_system_is_said_at_the_start"),
    (42, "any letters and spaces in paths", "test_faults::test_row_42_odd_letters_in_paths test_batch::test_run_keeps_the_result_skips_the_second_time_and_shows_the_error"),
    (42, "without a display `workbench view` writes a contact sheet and says so", "test_qa::test_view_without_a_display_writes_the_sheet_and_says_so"),
    (44, "the error with notebook and cell; the notebook is kept with it, those that do not rest on a missing stage run, exit status 1", "test_batch::test_run_keeps_the_result_skips_the_second_time_and_shows_the_error test_batch::test_after_a_failure_only_what_rests_on_a_missing_stage_is_skipped test_faults::test_row_44_the_others_go_on"),
    (45, "never told: cases are named by manifest or folder, and IDs are compared as digests", "test_faults::test_row_45_patients_are_not_named test_trust::test_no_patient_is_named_anywhere"),
    (7, "`orientation=\"LPS\"` and `spacing_mm=` (`workbench convert --orientation --spacing`) say what a header lost; LiTS 28 to 47 are repaired by `import lits`", "test_readers::test_an_identity_header_says_nothing_and_is_asked test_readers::test_a_header_without_forms_can_be_told_what_it_lacks test_readers::test_lits_volumes_without_orientation_are_repaired"),
    (8, "lengths of NRRD and MetaImage in another known unit become mm", "test_readers::test_nrrd_says_its_unit test_readers::test_a_meta_image_says_its_unit"),
    (13, "warning: air, fat or soft tissue are not where HU put them (HU times ten, shifted, a window)", "test_readers::test_air_fat_and_soft_tissue_are_where_hu_put_them"),
    (15, "positions rounded to 0.1 mm or whole mm are put on their line, with a warning; missing slices are none", "test_readers::test_rounded_positions_are_put_on_their_line test_readers::test_missing_slices_are_no_rounding"),
    (17, "`phase=\"AcquisitionNumber=2\"` (`workbench convert --phase`) reads one of several; the rotations of one scan are one volume", "test_readers::test_slices_that_differ_in_what_one_volume_has_once_are_no_volume test_readers::test_rotations_of_one_scan_are_one_volume"),
    (17, "warning: an iodine map, a projection, a virtual non-contrast or another derived image", "test_readers::test_images_made_of_a_ct_are_warned_of"),
    (18, "`rescale=(1, -1024)` (`workbench convert --rescale`) in place of the header's; a Modality LUT is applied", "test_readers::test_a_scale_that_says_nothing_is_named_and_can_be_said test_readers::test_a_modality_lut_gives_hu"),
    (19, "padding (PixelPaddingValue, also as its twin with or without sign, and up to PixelPaddingRangeLimit) is air", "test_readers::test_padding_is_air"),
    (19, "read: slices without preamble, header extensions of any length, signs and overlays in unused bits", "test_readers::test_slices_without_preamble_are_slices test_readers::test_header_extensions_of_any_length test_readers::test_unused_bits_hold_a_sign_or_an_overlay"),
    (19, "a file or folder of a series that may not be read is refused by its name; linked folders are entered once", "test_readers::test_what_cannot_be_read_is_named_by_every_way_through_a_folder test_readers::test_linked_folders_are_entered_once"),
    (46, "semicolons, tabs, spaces, capitals, a byte order mark, UTF-16 and other Unicode forms are the same manifest; what was set by hand never goes unsaid", "test_cohort::test_what_spreadsheets_write_is_the_same_manifest test_cohort::test_two_unicode_forms_are_one_name test_intake::test_what_was_set_by_hand_never_goes_unsaid test_intake::test_a_spreadsheet_that_made_1_of_001_does_not_undo_what_was_set_by_hand"),
    (47, "results and corrections are known by the voxel hash of their CT: another patient's are refused or left out, with a line", "test_results::test_another_patient_of_the_same_name_does_not_take_the_place test_corrections::test_what_was_said_follows_the_voxels_not_the_name test_dicomseg::test_a_source_of_another_patient_is_refused"),
    (47, "every case of the reference is scored or named, a stray file is named", "test_readers::test_every_case_of_the_reference_is_scored_or_named test_readers::test_a_stray_label_file_is_named test_readers::test_two_case_numbers_are_no_pair"),
    (48, "one message for the bad one, the others go on, exit status 2 (`check`: 1)", "test_results::test_one_file_that_may_not_be_read_is_one_message test_results::test_a_name_that_no_page_takes_is_refused_before_anything_is_segmented test_results::test_a_damaged_result_does_not_keep_the_lesions_of_the_others"),
    (49, "refused with the setting and both values, before anything is segmented", "test_models::test_an_edited_experiment_is_refused_before_anything_is_segmented"),
    (20, "linked folders are entered once, without loops; a folder or link that cannot be read is refused by name, and the other cases go on", "test_intake::test_linked_folders_are_entered_once_and_without_loops test_intake::test_what_cannot_be_read_is_named_and_stops_no_other"),
    (21, "labels that are mirrored on the same grid are refused by tissue: on import, in `check` and in `train`", "test_intake::test_labels_whose_header_is_turned_are_refused"),
    (21, "headers apart by less than a twentieth of a voxel are those of one grid; 3D Slicer's layers and crops are refused with what to do there", "test_intake::test_labels_through_a_scale_and_rounded_headers test_intake::test_slicers_segments_are_known_by_their_names"),
    (22, "one table says what a label means: parts make a liver, what lies in it belongs to it, the rest is dropped with its volume; without a liver: refused", "test_intake::test_words test_intake::test_what_lies_in_the_liver_belongs_to_it test_intake::test_tumors_without_a_liver_are_refused"),
    (30, "series of one study are of one patient", "test_intake::test_series_of_one_study_are_of_one_patient"),
]  # fmt: skip
PROOF = {  # a silent row: the test that the library below says nothing
    **dict.fromkeys((1, 2, 5, 16), "test_faults::test_a_library_reads_it_in_silence"),
    6: "test_faults::test_two_libraries_put_one_file_on_opposite_sides",
    15: "test_faults::test_a_library_makes_a_volume_of_such_positions",
    34: "test_faults::test_row_34_libraries_load_a_flipped_bit",
    43: "test_faults::test_row_43_papermill_runs_the_defaults",
}


def test_row_44_the_others_go_on(tmp_path, monkeypatch):
    for name in ("01_a", "02_b"):
        book(tmp_path).rename(tmp_path / f"{name}.ipynb")
    ran = []

    def run(path, *_, **__):
        ran.append(path.stem)
        return batch.Outcome(path.stem, path, "failed" if path.stem == "01_a" else "done", error="cell 1: no")

    (tmp_path / "e" / "cohort").mkdir(parents=True)
    (tmp_path / "e" / "cohort" / "stage.json").touch()
    monkeypatch.setattr(batch, "folder", lambda: tmp_path)
    monkeypatch.setattr(batch, "run", run)
    monkeypatch.setattr("sys.argv", ["workbench", "run", "all", "-o", str(tmp_path / "e")])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 1 and ran == ["01_a", "02_b"]


def page() -> str:
    """The table as Markdown."""

    def cell(text: str) -> str:
        return text.replace("|", r"\|").replace("<", "&lt;")

    lines = []
    for number, title in ROWS.items():
        own = [(f, "test_faults::test_refused_in_one_line", m) for n, f, _, _, m in FAULTS if n == number]
        own += [(f, "test_faults::test_refused_wherever_it_happens", m) for n, f, _, m in ACTS if n == number]
        own += [("", tests, words) for n, words, tests in OUTCOMES if n == number]
        if number in PROOF:
            own.append(("", PROOF[number], "*silent in the library below*"))
        for k, (fault, tests, words) in enumerate(own):
            places = [test.split("::") for test in tests.split()]
            where = {p.stem: p.relative_to(ROOT) for p in (ROOT / "tests").rglob("test_*.py")}
            links = " ".join(f"[{name.removeprefix('test_')}](../{where[file].as_posix()})" for file, name in places)
            lines.append(
                f"| {number if k == 0 else ''} | {title if k == 0 else ''} | {fault} | {links} | {cell(words)} |"
            )
    zero = [f"| {cell(m)} | {f} |" for n, f, _, _, m in FAULTS if n == 0]
    return "\n".join(
        [HEAD, *lines, "", "Beside the table:", "", "| what the user gets | fault |", "|---|---|", *zero, ""]
    )


HEAD = """# What is survived

Each row: a fault, the test that commits it, and what the user gets. Refusals are one line on stderr, `error: FILE: found ...; expected ...`,
with exit status 2; here stands what follows the file. Written by `python tests/test_faults.py`, and a test fails when it is out of date.
How often the program was damaged and killed at random is in [benchmarks.md](benchmarks.md), who may be trusted with what in [trust.md](trust.md).

| # | row | fault | test | what the user gets |
|---|---|---|---|---|"""


def test_every_row_is_held():
    held = {f[0] for f in FAULTS} | {a[0] for a in ACTS} | {o[0] for o in OUTCOMES}
    assert held - {0} == set(ROWS) == set(range(1, len(ROWS) + 1))
    assert set(PROOF) == SILENT


@pytest.mark.parametrize("test", sorted({t for o in OUTCOMES for t in o[2].split()} | set(PROOF.values())))
def test_a_named_test_is_there(test):
    file, name = test.split("::")
    tree = ast.parse(next((ROOT / "tests").rglob(f"{file}.py")).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "python tests/test_faults.py"


if __name__ == "__main__":
    PAGE.write_text(page())
