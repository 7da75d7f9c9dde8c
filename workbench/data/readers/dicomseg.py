"""DICOM series with segmentation objects (DICOM-SEG): which segment is liver and which tumor, placed on the CT voxel by voxel.

A segment means what its SNOMED CT code says (`SegmentedPropertyType`, in the older SRT form too), its label or the code's words (`meanings`);
where code and label contradict each other the object is refused. A tumor whose anatomic region is another organ is none. Frames are placed by
their own positions and cosines, whatever the order in which they are stored, and must lie on the CT's grid; BINARY, LABELMAP and, from one half
up, FRACTIONAL objects are read. Series are matched by the UIDs that the object refers to. Series of one PatientID or of one study are of one
patient. The IDs are not kept: a patient is called after the first case.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.data.readers import dicom, gates, meanings, scans, slices, walk
from workbench.data.readers.meanings import BENIGN, LIVER, OTHER, TUMOR, WITHIN
from workbench.data.readers.scans import Reading, Scan, Structure
from workbench.volume import Refused, Volume

LAYOUT = "DICOM files of CT series, and of segmentations that refer to them"
STORAGE = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
)  # fixed: segmentation, label map segmentation
PLACE_MM = 0.01  # rule: positions, cosines and spacing are decimal strings of up to 16 characters
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
    found, series, segmentations = [], defaultdict(list), defaultdict(list)
    files, damaged = _headers(root)
    for f in files:
        if f.refers_to is None:
            series[f.series].append(f)
    folders = {uid: _folder(held) for uid, held in series.items()}
    for f in files:
        if f.refers_to is not None:
            meant = set(f.refers_to) & set(series) or {uid for uid, held in series.items() if held[0].study == f.study}
            if len(meant) == 1:
                segmentations[meant.pop()].append(f.path)
            else:
                damaged[f.path] = str(Refused(f.path, f"a segmentation that fits {len(meant)} CT series below {root}", "one",
                                              "Give a folder that holds the CT it refers to."))  # fmt: skip
    names = _names(root, folders, {uid: held[0].number for uid, held in series.items()})
    order = sorted(series, key=lambda uid: gates.natural(Path(names[uid])))
    patients = _patients({uid: series[uid] for uid in order})
    for uid in order:
        alone = sum(folders[other].is_relative_to(folders[uid]) for other in folders) == 1
        ct = folders[uid] if alone else None
        sources = tuple(segmentations[uid])
        found.append(Scan(names[uid], names[patients[uid]], folders[uid], ct, sources, series="" if alone else uid))
    for path, why in damaged.items():  # one that lies in a series is refused with it
        if not any(path.is_relative_to(folder) for folder in folders.values()) or "fits" in why:
            found.append(Scan(path.relative_to(root).as_posix().replace("/", "-"), "", path, None, fault=why))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is, or one series of several, and the segments of liver and tumor, joined."""
    ct = dicom.read(scan.place, series=scan.series or None)
    structures = [one for path in scan.sources for one in segments(path, ct)]
    livers = [s for s in structures if s.meant == LIVER]
    if not livers:
        raise Refused(scan.sources[0], f"segments {', '.join(s.name for s in structures) or 'of nothing'}", "one of the liver",
                      "`workbench import --labels` prints what is known; or use `workbench import csv`.")  # fmt: skip
    if unnamed := [s.name for s in structures if s.meant == WITHIN and meanings.unnamed(s.name)]:
        raise Refused(scan.sources[0], f"segments without a code or a name: {', '.join(unnamed)}", "a name that says what each is",
                      "Name them and write the object again, or use `workbench import csv`.")  # fmt: skip
    meanings.whole([s.portion for s in livers], [s.name for s in livers], scan.sources[0], "Add the parts that are missing.")
    labels, done = scans.joined(ct, structures)
    told = ", ".join(s.name for s in structures if s.meant in (LIVER, TUMOR))
    moved = "" if scan.ct else "CT written: its folder holds other series"
    return ct, labels, scans.said(moved, f"labels written from the segments {told}", done)


def segments(path: Path, ct: Volume) -> list[Structure]:
    """Each segment of an object, on the CT's grid."""
    whole, frames = _whole(path)
    try:
        described = [(int(s.SegmentNumber), str(s.get("SegmentLabel", "?")), *_meaning(s, path)) for s in whole.SegmentSequence]
        kind = str(whole.SegmentationType)
        placed: dict[int, list[np.ndarray]] = {number: [] for number, *_ in described}
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
                placed[number].append(_voxels(on, place, across, down, ct, path))
    except Refused:
        raise
    except slices.DAMAGE as error:
        raise Refused(path, f"a damaged segmentation ({slices.first_line(error)})", "a DICOM segmentation",
                      "Fetch it again.") from None  # fmt: skip
    none = np.zeros(0, int)
    return [Structure(meant, label, np.unique(np.concatenate([*placed[number], none])), portion) for number, label, meant, portion in described]


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
    except (InvalidDicomError, BytesLengthException, *slices.DAMAGE) as error:
        raise Refused(path, f"a damaged segmentation ({slices.first_line(error)})", "a DICOM segmentation",
                      "Fetch it again.") from None  # fmt: skip
    return whole, frames


def _meaning(segment, path: Path) -> tuple[int, frozenset[int]]:
    """What a segment's description means, and the Couinaud segments of a liver."""
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    code, words, label = _snomed(kind), str(kind.get("CodeMeaning", "")), str(segment.get("SegmentLabel", ""))
    label = "" if meanings.unnamed(label) else label
    told = [text for text in (meanings.CODES.get(code, ""), words, label) if meanings.known(text)]
    kinds = [meanings.meaning(text) for text in told] or [WITHIN]
    if len({LIVER, TUMOR, WITHIN} & set(kinds)) > 1:
        raise Refused(path, f"a segment called {label!r} and coded as {words or '?'}", "the same in both",
                      "Correct the object, or use `workbench import csv`.")  # fmt: skip
    meant = OTHER if OTHER in kinds else BENIGN if BENIGN in kinds else kinds[0]
    region = segment.get("AnatomicRegionSequence")
    if region and meant in (TUMOR, BENIGN):
        places = [meanings.CODES.get(_snomed(one)) or str(one.get("CodeMeaning", "")) for one in region]
        meant = OTHER if all(map(meanings.elsewhere, places)) else meant
    parts = [meanings.portion(text) for text in told if meanings.meaning(text) == LIVER]
    return meant, next((part for part in parts if part != meanings.WHOLE), meanings.WHOLE)


def _snomed(item) -> str:
    """The SNOMED CT code of an item, also of one in the older form (SRT), where the table has it."""
    from pydicom.sr.coding import Code

    scheme = str(item.get("CodingSchemeDesignator", ""))
    held = Code(str(item.get("CodeValue", "")), {"SNM3": "SRT", "99SDM": "SRT"}.get(scheme, scheme), "")
    return next((code for code in meanings.CODES if held == Code(code, "SCT", "")), "")


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


def _voxels(on: np.ndarray, first: np.ndarray, across: np.ndarray, down: np.ndarray, ct: Volume, path: Path) -> np.ndarray:
    """A frame's pixels as indices into the flat `[z y x]` grid of the CT."""
    rows, columns = np.nonzero(on)
    index = first + columns[:, None] * across + rows[:, None] * down
    if ((index < 0) | (index >= ct.source.shape)).any():
        raise Refused(path, "segmented voxels outside the CT", "all inside it", "Give the CT that it was drawn on.")
    for axis in ct.source.flips:
        index[:, axis] = ct.source.shape[axis] - 1 - index[:, axis]
    return np.ravel_multi_index(tuple(index[:, axis] for axis in np.argsort(ct.source.axes)), ct.shape)


def _headers(root: Path) -> tuple[list[_File], dict[Path, str]]:
    """The CT slices and segmentations below a folder, and why others cannot be read."""
    found, damaged = [], {}
    for path in walk.below(root).files:
        try:
            about = _header(path) if path.stat().st_size and slices.is_dicom(path) else None
        except OSError as error:
            damaged[path] = str(Refused(path, f"what cannot be read ({(error.strerror or str(error)).lower()})", "read permission"))
        except Refused as refused:
            damaged[path] = str(refused)
        else:
            found += [about] * (about is not None)
    return found, damaged


def _patients(series: dict[str, list[_File]]) -> dict[str, str]:
    """The first series of the same patient for each: series that share a PatientID or a study are of one."""
    first: dict[tuple[str, str], str] = {}
    patient = {}
    for uid, held in series.items():
        keys = {key for f in held for key in (("patient", f.patient.strip()), ("study", f.study)) if key[1]}
        same = {patient[first[key]] for key in keys if key in first}
        patient[uid] = min(same, key=list(series).index) if same else uid
        patient |= {other: patient[uid] for other, one in patient.items() if one in same}
        first |= {key: first.get(key, uid) for key in keys}
    return patient


def _header(path: Path) -> _File | None:
    """What a DICOM file is; None for what is neither a slice of a CT nor a segmentation."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = slices.dataset(path, stop_before_pixels=True, specific_tags=TAGS)
            refers = None
            if header.get("SOPClassUID") in STORAGE:
                refers = tuple(str(s.SeriesInstanceUID) for s in header.get("ReferencedSeriesSequence", ()))
            elif header.get("Modality") != "CT" or "LOCALIZER" in str(header.get("ImageType", "")).upper():
                return None
            series, number, study, patient = (str(header.get(tag, "")) for tag in TOLD)
            return _File(path, series, number, study, patient, refers)
    except (InvalidDicomError, BytesLengthException, *slices.DAMAGE) as error:
        raise Refused(path, f"damaged DICOM ({slices.first_line(error)})", "a DICOM object", "Fetch it again.") from None


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
