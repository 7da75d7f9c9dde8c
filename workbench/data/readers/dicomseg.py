"""DICOM series with segmentation objects (DICOM-SEG): which segment is liver and which tumor, placed on the CT voxel by voxel.

A segment means what its SNOMED CT code says (`SegmentedPropertyType`, in the older SRT form too), else what its label or the code's words say;
where the two contradict each other the object is refused. A tumor whose anatomic region is another organ is none. Frames are placed by their own
positions and cosines, whatever the order in which they are stored, and must lie on the CT's grid; BINARY, LABELMAP and, from one half up,
FRACTIONAL objects are read. Series are matched by the UIDs that the object refers to. Patients are grouped by their IDs, which are not kept:
a patient is called after the first case.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.data.readers import dicom, gates, scans
from workbench.data.readers.scans import LIVER, TUMOR, Reading, Scan
from workbench.volume import Refused, Volume

LAYOUT = "DICOM files of CT series, and of segmentations that refer to them"
STORAGE = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
)  # fixed: segmentation, label map segmentation
PLACE_MM = 0.01  # rule: positions, cosines and spacing are decimal strings of up to 16 characters
LIVER_CODES = ("10200004",)  # fixed: SNOMED CT, liver
TUMOR_CODES = (  # fixed: SNOMED CT
    "108369006",  # neoplasm
    "372087000",  # primary
    "86049000",  # primary malignant
    "14799000",  # secondary
    "128462008",  # metastasis
    "4147007",  # mass
    "52988006",  # lesion
    "25370001",  # hepatocellular carcinoma
)
TOLD = ("SeriesInstanceUID", "SeriesNumber", "StudyInstanceUID", "PatientID")
TAGS = ["SOPClassUID", "Modality", "ImageType", "ReferencedSeriesSequence", *TOLD]


@dataclass(frozen=True)
class _File:
    path: Path
    series: str
    number: str
    study: str
    patient: str
    refers_to: tuple[str, ...] | None  # of a segmentation: CT series; None of a CT


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each CT series at or below the root, with the segmentations that refer to it."""
    root = Path(root)
    gates.existing(root)
    files = [f for f in map(_header, dicom.files(root)) if f is not None]
    series: dict[str, list[_File]] = defaultdict(list)
    for f in files:
        if f.refers_to is None:
            series[f.series].append(f)
    segmentations: dict[str, list[Path]] = defaultdict(list)
    for f in files:
        if f.refers_to is not None:
            meant = set(f.refers_to) & set(series) or {uid for uid, held in series.items() if held[0].study == f.study}
            if len(meant) != 1:
                raise Refused(f.path, f"a segmentation that fits {len(meant)} CT series below {root}", "one",
                              "Give a folder that holds the CT it refers to.")  # fmt: skip
            segmentations[meant.pop()].append(f.path)
    folders = {uid: _folder(held) for uid, held in series.items()}
    names = _names(root, folders, {uid: held[0].number for uid, held in series.items()})
    patients: dict[str, str] = {}
    found = []
    for uid in sorted(series, key=lambda uid: gates.natural(Path(names[uid]))):
        person = series[uid][0].patient
        patient = patients.setdefault(person, names[uid]) if person else names[uid]
        alone = sum(folders[other].is_relative_to(folders[uid]) for other in folders) == 1
        ct = folders[uid] if alone else None
        found.append(
            Scan(names[uid], patient, folders[uid], ct, tuple(segmentations[uid]), series="" if alone else uid)
        )
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is, or one series of several, and the segments of liver and tumor, joined."""
    ct = dicom.read(scan.place, series=scan.series or None)
    masks: dict[int, np.ndarray | None] = {LIVER: None, TUMOR: None}
    told, others = [], []
    for path in scan.sources:
        for meant, label, mask in segments(path, ct):
            if not meant:
                others.append(label)
                continue
            told.append(label)
            masks[meant] = mask if masks[meant] is None else masks[meant] | mask
    if not told:
        raise Refused(
            scan.sources[0], f"segments {', '.join(others) or 'of nothing'}", "one of the liver or of a tumor"
        )
    labels, outside = scans.joined(ct, masks[LIVER], masks[TUMOR])
    return (
        ct,
        labels,
        scans.said(
            "" if scan.ct else "CT written: its folder holds other series",
            f"labels written from the segments {', '.join(told)}",
            f"passed over: {', '.join(others)}" if others else "",
            outside,
        ),
    )


def segments(path: Path, ct: Volume) -> list[tuple[int, str, np.ndarray]]:
    """(LIVER, TUMOR or 0, what it is called, mask [z y x] on the CT's grid) of each segment of an object."""
    whole, frames = _whole(path)
    try:
        described = [
            (int(s.SegmentNumber), _meaning(s, path), str(s.get("SegmentLabel", "?"))) for s in whole.SegmentSequence
        ]
        kind = str(whole.SegmentationType)
        placed = {number: np.zeros(ct.source.shape, bool) for number, meant, _ in described if meant}
        for k, frame in enumerate(frames):
            place, across, down = _placed(whole, k, frame.shape, ct, path)
            if kind == "LABELMAP":
                numbers = set(np.unique(frame).tolist()) & set(placed)
            else:
                numbers = {int(_group(whole, k, "SegmentIdentificationSequence").ReferencedSegmentNumber)} & set(placed)
            for number in numbers:
                if kind == "LABELMAP":
                    on = frame == number
                else:
                    on = frame > 0 if kind == "BINARY" else frame >= float(whole.MaximumFractionalValue) / 2
                _put(placed[number], on, place, across, down, path)
    except Refused:
        raise
    except dicom.DAMAGE as error:
        raise Refused(path, f"a damaged segmentation ({dicom.first_line(error)})", "a DICOM segmentation",
                      "Fetch it again.") from None  # fmt: skip
    return [
        (meant, label, ct.source.to_canonical(placed[number]) if meant else np.zeros(0))
        for number, meant, label in described
    ]


def _whole(path: Path) -> tuple:
    """The data set of a segmentation and its frames [frame row column]."""
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = pydicom.dcmread(path)
            if whole.SOPClassUID not in STORAGE:
                raise Refused(path, f"a DICOM object of class {whole.SOPClassUID.name}", "a segmentation")
            count, rows, columns = int(whole.NumberOfFrames), int(whole.Rows), int(whole.Columns)
            gates.size((columns, rows, count), path)
            frames = whole.pixel_array.reshape(count, rows, columns)
    except Refused:
        raise
    except (InvalidDicomError, BytesLengthException, *dicom.DAMAGE) as error:
        raise Refused(path, f"a damaged segmentation ({dicom.first_line(error)})", "a DICOM segmentation",
                      "Fetch it again.") from None  # fmt: skip
    return whole, frames


def _meaning(segment, path: Path) -> int:
    """LIVER, TUMOR or 0 of a segment's description."""
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    by_code = LIVER if _coded(kind, LIVER_CODES) else TUMOR if _coded(kind, TUMOR_CODES) else 0
    label = str(segment.get("SegmentLabel", ""))
    by_words = scans.meaning(label) or scans.meaning(str(kind.get("CodeMeaning", "")))
    if by_code and scans.meaning(label) and by_code != scans.meaning(label):
        raise Refused(path, f"a segment called {label!r} and coded as {kind.get('CodeMeaning', '?')}", "the same in both",
                      "Correct the object, or use `workbench import csv`.")  # fmt: skip
    region = segment.get("AnatomicRegionSequence")
    if region and (by_code or by_words) == TUMOR:
        if not _coded(region[0], LIVER_CODES) and scans.meaning(str(region[0].get("CodeMeaning", ""))) != LIVER:
            return 0
    return by_code or by_words


def _coded(item, codes: tuple[str, ...]) -> bool:
    """Whether a code is one of these of SNOMED CT, in its own form or in the older one (SRT)."""
    from pydicom.sr.coding import Code

    held = Code(str(item.get("CodeValue", "")), str(item.get("CodingSchemeDesignator", "")), "")
    return any(held == Code(code, "SCT", "") for code in codes)


def _group(whole, frame: int, name: str):
    """A functional group of a frame: its own, or the one that all share."""
    own = whole.PerFrameFunctionalGroupsSequence[frame].get(name)
    (item,) = own or whole.SharedFunctionalGroupsSequence[0].get(name)
    return item


def _placed(whole, frame: int, shape: tuple[int, int], ct: Volume, path: Path) -> tuple:
    """Index (column, row, slice) in the CT of a frame's first pixel, and the steps to the next column and the next row."""
    position = np.array([float(v) for v in _group(whole, frame, "PlanePositionSequence").ImagePositionPatient])
    cosines = [float(v) for v in _group(whole, frame, "PlaneOrientationSequence").ImageOrientationPatient]
    row_mm, column_mm = (float(v) for v in _group(whole, frame, "PixelMeasuresSequence").PixelSpacing)
    to_mm = np.diag([-1.0, -1, 1, 1]) @ ct.source.affine  # indices to LPS
    to_index = np.linalg.inv(to_mm)
    steps = [
        to_index[:3, :3] @ (np.array(cosines[:3]) * column_mm),
        to_index[:3, :3] @ (np.array(cosines[3:]) * row_mm),
    ]
    first = (to_index @ [*position, 1])[:3]
    whole_first, (across, down) = np.rint(first), np.rint(steps)
    far = (shape[1] - 1, shape[0] - 1)
    off = [
        first + c * steps[0] + r * steps[1] - (whole_first + c * across + r * down)
        for c in (0, far[0])
        for r in (0, far[1])
    ]
    worst = float(np.linalg.norm(np.array(off) @ to_mm[:3, :3].T, axis=1).max())
    if not worst <= PLACE_MM or abs(np.abs(across).sum() - 1) + abs(np.abs(down).sum() - 1) > 0:
        raise Refused(path, f"frame {frame + 1} with pixels {worst:.3g} mm beside those of {ct.name}",
                      f"at most {PLACE_MM} mm", "Resample it onto the CT first.")  # fmt: skip
    return whole_first.astype(int), across.astype(int), down.astype(int)


def _put(mask: np.ndarray, on: np.ndarray, first: np.ndarray, across: np.ndarray, down: np.ndarray, path: Path) -> None:
    """Set the voxels [column row slice] of a frame's pixels."""
    rows, columns = np.nonzero(on)
    index = first + columns[:, None] * across + rows[:, None] * down
    if ((index < 0) | (index >= mask.shape)).any():
        raise Refused(path, "segmented voxels outside the CT", "all inside it", "Give the CT that it was drawn on.")
    mask[tuple(index.T)] = True


def _header(path: Path) -> _File | None:
    """What a DICOM file is; None for what is neither a slice of a CT nor a segmentation."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dicom.dataset(path, stop_before_pixels=True, specific_tags=TAGS)
            refers = None
            if header.get("SOPClassUID") in STORAGE:
                refers = tuple(str(s.SeriesInstanceUID) for s in header.get("ReferencedSeriesSequence", ()))
            elif header.get("Modality") != "CT" or "LOCALIZER" in str(header.get("ImageType", "")).upper():
                return None
            series, number, study, patient = (str(header.get(tag, "")) for tag in TOLD)
            return _File(path, series, number, study, patient, refers)
    except (InvalidDicomError, BytesLengthException, *dicom.DAMAGE) as error:
        raise Refused(path, f"damaged DICOM ({dicom.first_line(error)})", "a DICOM object", "Fetch it again.") from None


def _folder(files: list[_File]) -> Path:
    """The deepest folder that holds all files of a series."""
    folder = files[0].path.parent
    while not all(f.path.is_relative_to(folder) for f in files):
        folder = folder.parent
    return folder


def _names(root: Path, folders: dict[str, Path], numbers: dict[str, str]) -> dict[str, str]:
    """A name for each series: its folder below the root, as short as it is unique, with the series' number where folders are shared."""
    parts = {}
    for uid, folder in folders.items():
        below = [part for part in folder.relative_to(root).parts if part.lower() not in gates.GENERIC]
        parts[uid] = below or [gates.case_name(folder)]
    firsts = [held[0] for held in parts.values()]
    whole = ["-".join(held) for held in parts.values()]
    names = {}
    for (uid, held), joined in zip(parts.items(), whole):
        name = held[0] if firsts.count(held[0]) == 1 else joined
        names[uid] = name if whole.count(joined) == 1 else f"{name}-{numbers[uid]}"
    return names
