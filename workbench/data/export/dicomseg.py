"""A result as DICOM-SEG, so that a hospital's viewer shows it on the CT it belongs to.

Two BINARY segments on the source's own slices, each frame with a reference to its source image: the whole liver, tumors included (SNOMED CT
10200004), and the tumors (108369006, neoplasm, in the anatomic region liver). Patient and study are those of the source, as DICOM
demands: the file names the patient, nothing else that is written or said here does. UIDs follow from source and voxels, so the same result
has the same ones. The file is read back through `readers.dicomseg`, which shares nothing with the library that encodes it, and compared
voxel by voxel before it comes into its place. A result goes only onto the CT that it was made from, by its voxel hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
import warnings
from pathlib import Path

import numpy as np
import torch

import workbench
from workbench.data import cohort
from workbench.data.files import read_json, write_atomic
from workbench.data.readers import dicom, dicomseg, gates, read_labels, scans, slices
from workbench.volume import Refused, Volume

# type 2 of the standard: present, and empty where unknown
EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
         "ReferringPhysicianName")  # fmt: skip
CARRIED = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020)  # groups of what is carried over from the source
TEXT = ("AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM")
UTF_8 = "ISO_IR 192"  # fixed: takes every name, whatever character set the source has
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")


def export(result: str | Path, source: str | Path, out: str | Path, series: str | None = None) -> Path:
    """Write the labels of a result (its folder, or a label map: 1 liver, 2 tumor) as a segmentation of a DICOM series.

    `source` is the folder of the CT, `series` the UID where it holds several. Labels must lie on the source's grid.
    """
    result, source, out = Path(result), Path(source), Path(out)
    order, affine = dicom.stack(source, series)
    shape = (order[0].columns, order[0].rows, len(order))
    ct = gates.canonical(np.zeros(shape, np.uint8), affine, source)
    labels = read_labels(result / "labels.nii.gz" if result.is_dir() else result, like=ct, allow_empty=False)
    about = _about(result)
    _same_ct(result, about, source, series)
    data = encode(labels.array, ct, [s.file for s in order], _model(about))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        write_atomic(part, data)
        _compare(part, labels.array, ct)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _about(result: Path) -> dict:
    """The result.json of a result folder, or of the one in which a label map lies; empty for any other label map."""
    places = (result,) if result.is_dir() else (result.parent, result.parent.parent)  # corrected ones lie in `verdicts`
    files = [place / "result.json" for place in places if (place / "result.json").is_file()]
    return read_json(files[0]) if files else {}


def _same_ct(result: Path, about: dict, source: Path, series: str | None) -> None:
    """Refuse a source whose voxels are not those of the CT that was segmented: the file would name another patient."""
    if not (was := about.get("voxel_hash")):
        if about:
            gates.warn(result, "an earlier version made it and did not keep of which CT it is: make sure that it is the source")
        return
    found = cohort.voxel_hash(dicom.read(source, series=series).array.numpy())
    if found != was:
        raise Refused(source, f"a CT of voxel hash {found}", f"{was}, the one that {result} was made from",
                      "Give the series of that patient and phase.")  # fmt: skip


def encode(labels: torch.Tensor, ct: Volume, files: list[Path], model: str = "") -> bytes:
    """The bytes of a segmentation from labels [z y x] on the grid of `ct`, whose slices along its file's third axis are `files`. `model` made it."""
    try:
        import highdicom
    except ModuleNotFoundError:
        raise Refused("workbench export dicomseg", "no highdicom", "it installed", "pip install highdicom") from None
    images = [_source(file) for file in files]
    _thickness(images, ct, files[0].parent)
    stored = np.ascontiguousarray(ct.source.to_file_order(labels.cpu().numpy()).transpose(2, 1, 0))
    pixels = np.stack([stored >= 1, stored == 2], -1).astype(np.uint8)  # [slice row column segment]
    about = (images[0].SeriesInstanceUID, hashlib.sha256(stored.tobytes()).hexdigest(), workbench.__version__)
    uids = [highdicom.UID.from_uuid(str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join((*about, part))))) for part in "si"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values in the source that are no valid DICOM
            made = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_described(highdicom, model),
                contributing_equipment=[_equipment(highdicom)],
                series_instance_uid=uids[0],
                series_number=(int(images[0].get("SeriesNumber") or 0) % 10000) * 100 + 1,
                sop_instance_uid=uids[1],
                instance_number=1,
                manufacturer="Liver Workbench",
                manufacturer_model_name="Liver Workbench",
                software_versions=workbench.__version__,
                device_serial_number="0",
                content_label="LIVER_TUMOR",
                content_description="Liver and liver tumors; research use only",
                series_description="Liver and liver tumors (research use only)",
                specific_character_set=UTF_8,
            )
            held = io.BytesIO()
            made.save_as(held)
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # highdicom has no type of its own for what it will not encode
        raise Refused(files[0].parent, f"headers that cannot be carried over ({slices.first_line(error)})", "valid DICOM",
                      "Correct the source's headers first.") from error  # fmt: skip
    return held.getvalue()


def _described(highdicom, model: str) -> list:
    """What the two segments are, coded with SNOMED CT, and by what they were made."""
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        "Liver Workbench",
        codes.DCM.ArtificialIntelligence,
        workbench.__version__,
        parameters={"model": model} if model else None,
    )
    kind = highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    category = (codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure)
    return [
        highdicom.seg.SegmentDescription(1, "Liver", category[0], codes.SCT.Liver, kind, algorithm),
        highdicom.seg.SegmentDescription(
            2, "Liver tumor", category[1], codes.SCT.Neoplasm, kind, algorithm, anatomic_regions=[codes.SCT.Liver]
        ),
    ]


def _equipment(highdicom):
    """The workbench as what contributed the segmentation; highdicom adds the scanner and itself."""
    from pydicom.sr.codedict import codes

    return highdicom.ContributingEquipment(
        "Liver Workbench",
        codes.DCM.ProcessingEquipment,
        manufacturer_model_name="Liver Workbench",
        software_versions=workbench.__version__,
        contribution_description="Segmentation of liver and liver tumors; research use only",
    )


def _model(about: dict) -> str:
    """The models that made a result, by name or by the hash of what they are."""
    models = about.get("models") or {}
    stages = json.dumps(models.get("stages", {}), sort_keys=True)
    return str(models.get("name") or (hashlib.sha256(stages.encode()).hexdigest()[:16] if models else ""))


def _source(file: Path):
    """The header of a source image, with what the standard lets be empty; refused without what it does not. Odd values are emptied, with a warning."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = slices.dataset(file, stop_before_pixels=True)
        lacking = [tag for tag in NEEDED if not image.get(tag)]
        if lacking:
            raise Refused(
                file, f"no {', '.join(lacking)}", "an image that others can refer to", "Fetch the original series."
            )
        odd = [tag for tag in image.keys() if tag.group in CARRIED and not _valid(image, tag)]
    for tag in odd:
        name = pydicom.datadict.keyword_for_tag(tag) or str(tag)
        gates.warn(file.parent, f"its {name} is no valid DICOM and is left empty in the segmentation")  # never its value
        vr = pydicom.datadict.dictionary_VR(tag)
        del image[tag]
        image.add_new(tag, vr, None)
    for tag in EMPTY:
        if tag not in image:
            setattr(image, tag, "")
    return image


def _valid(image, tag) -> bool:
    """Whether an element's value is one that the standard lets it have; of a UID, a sequence and what is private nothing is asked."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    if tag.is_private or image.get_item(tag).VR in ("SQ", "UI", "UN"):
        return True
    try:
        element = image[tag]
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            if element.VR in TEXT and value not in (None, ""):
                validate_value(element.VR, str(value), config.RAISE)
        return element.keyword != "PatientSex" or element.value in ("M", "F", "O", "", None)
    except (ValueError, TypeError, AttributeError, NotImplementedError, KeyError):
        return False


def _thickness(images: list, ct: Volume, folder: Path) -> None:
    """Where a slice says no thickness, the distance between the slices stands for it, with a warning."""
    across = abs(np.linalg.det(ct.source.affine[:3, :3])) / np.prod(np.linalg.norm(ct.source.affine[:3, :2], axis=0))
    bare = [image for image in images if not image.get("SliceThickness")]
    for image in bare:
        image.SliceThickness = f"{across:.6g}"
    if bare:
        gates.warn(folder, f"{len(bare)} of {len(images)} slices say no SliceThickness: {across:.4g} mm, the distance between slices, is taken")


def _compare(path: Path, labels: torch.Tensor, ct: Volume) -> None:
    """Refuse a file whose segments, read back, are not the labels voxel by voxel."""
    back, _ = scans.joined(ct, dicomseg.segments(path, ct))
    if apart := int((back.array != labels.to(torch.uint8)).sum()):
        raise Refused(path, f"{apart} voxels that read back differently", "none", "Please report this.")
