"""DICOM series of given voxels: a CT, or anything else with an image a slice."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PLAIN = (1, 0, 0, 0, 1, 0)
TILTED = (0.8, 0.36, 0.48, 0, 0.8, -0.6)  # both cosines have parts along all axes, in whole hundredths


def series(
    folder, hu, *, uid=None, study=None, cosines=PLAIN, origin=(-10, -20, 100), step=5.0, names="image_{}",
    syntax=ExplicitVRLittleEndian, **changes,
):  # fmt: skip
    """Write `hu` [slice row column] as slices `step` mm apart along their normal, in files called by the pattern or the list `names`;
    `changes` maps keywords to values or functions of the slice's number; None leaves an attribute out."""
    folder.mkdir(parents=True, exist_ok=True)
    uid, study = uid or generate_uid(), study or generate_uid()
    frame = generate_uid(entropy_srcs=[study])
    normal = np.cross(cosines[:3], cosines[3:])
    for k, image in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = syntax
        ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.SeriesNumber, ds.InstanceNumber, ds.Modality = 4, k + 1, "CT"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "4711", "19700203", "F"
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200102", "101112", "A17", "S9"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = image.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelSpacing, ds.SliceThickness = [0.9, 0.7], step
        ds.ImageOrientationPatient = list(cosines)
        ds.ImagePositionPatient = [round(float(v), 6) for v in np.array(origin) + step * k * normal]
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = image.astype(np.int16).tobytes()
        for key, value in changes.items():
            value = value(k) if callable(value) else value
            if value is None:
                delattr(ds, key)
            else:
                setattr(ds, key, value)
        ds.save_as(folder / (names.format(k) if isinstance(names, str) else names[k]), enforce_file_format=True)
    return folder


def abdomen(shape=(6, 9, 11), seed=0):
    """HU [slice row column] of soft tissue in air with a brighter block, the liver, and labels of it: 1, and a dark tumor, 2.

    The liver grows from slice to slice and lies aside, so that no turn of it is itself.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for k in range(shape[0]):
        labels[k, 1 : 2 + k, 2 : 5 + k // 2] = 1
    labels[shape[0] - 2, 2:4, 3:5] = 2
    hu = np.full(shape, -900) + rng.integers(-40, 40, shape)
    hu[labels == 1] = 110 + rng.integers(-20, 20, int((labels == 1).sum()))
    hu[labels == 2] = 60 + rng.integers(-20, 20, int((labels == 2).sum()))
    return hu.astype(np.int16), labels
