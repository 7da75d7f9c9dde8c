"""The slices of a DICOM folder: which files are slices, and what each header says."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from workbench.data.readers import gates, walk
from workbench.volume import Refused, Volume

if TYPE_CHECKING:
    from pydicom import Dataset


HIDDEN = ("PatientID", "PatientBirthDate", "PatientSex")  # compared, never told
# what the slices of one volume agree in; what a list of several always tells comes first
ONE = (
    "Modality", "SeriesNumber", "Rows", "Columns", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", *HIDDEN,
    "SOPClassUID", "ImageType", "RescaleType", "TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase",
    "PatientPosition", "ConvolutionKernel", "KVP", "SeriesDescription",
)  # fmt: skip
TIMES = ("AcquisitionTime", "ContentTime")
TAGS = [
    *ONE, *TIMES, "AcquisitionNumber", "SOPInstanceUID", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "GantryDetectorTilt", "SliceThickness", "SpacingBetweenSlices", "TransferSyntaxUID",
]  # fmt: skip
GREY = "MONOCHROME2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", ENHANCED_CT, "1.2.840.10008.5.1.4.1.1.2.2")
# what pydicom raises on damaged files; it has no type of its own for most of it
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError,
          struct.error)  # fmt: skip


def dataset(path: Path, **how: Any) -> Dataset:
    """A DICOM file as pydicom reads it, also without preamble and file meta information; its transfer syntax is told in either case."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    held = pydicom.dcmread(path, force=_bare(gates.bytes_of(path, 132)), **how)
    if not held.file_meta.get("TransferSyntaxUID"):
        implicit, little = held.original_encoding
        held.file_meta = held.file_meta or FileMetaDataset()
        held.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return held


def is_dicom(path: Path) -> bool:
    first = gates.bytes_of(path, 132)
    return first[128:] == b"DICM" or path.suffix.lower() == ".dcm" or _bare(first)


def _bare(first: bytes) -> bool:
    """Whether a file begins as a data set without preamble: with an element of group 2 or 8, as older archives wrote them."""
    if first[128:] == b"DICM" or len(first) < 132:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack(f"{order}HH", first[:4])
        if group in (2, 8) and element <= 0x18:
            explicit = first[4:6] in (b"UL", b"CS", b"UI", b"DA", b"TM", b"OB", b"SH", b"LO")
            return explicit or struct.unpack(f"{order}I", first[4:8])[0] <= 256
    return False


def _form(path: Path) -> str:
    """What files of one series have in common in their names, whatever they count."""
    return re.sub(r"\d+", "0", path.name.lower())


@dataclass(frozen=True)
class Slice:
    """What one file's header says, as plain values; None where it says nothing."""

    file: Path
    sop: str
    modality: str
    rows: int
    columns: int
    told: dict[str, str]  # of ONE and what tells of acquisitions
    between_mm: tuple[float, ...]  # what the header says of the distance of slices
    one_frame: bool
    colours: str
    spacing_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    tilt: float
    syntax: str

    @property
    def scout(self) -> bool:
        return "LOCALIZER" in self.told["ImageType"].upper()


def _slice(file: Path, header) -> Slice:
    """The record of a header; every value is converted here, where a damaged one can be named."""

    def numbers(tag: str, count: int) -> tuple[float, ...] | None:
        value = header.get(tag)
        if not value:
            return None
        found = tuple(float(v) for v in value)
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(f"{tag} {value}")
        return found

    def words(tag: str) -> str:
        value = header.get(tag)
        text = (
            ""
            if value is None
            else "\\".join(map(str, value))
            if isinstance(value, Sequence) and not isinstance(value, str)
            else str(value)
        )
        text = f"{value:g}" if isinstance(value, float) else text.strip("\\ \0")
        return hashlib.sha256(text.encode()).hexdigest() if text and tag in HIDDEN else text

    told = {tag: words(tag) for tag in (*ONE, *TIMES, "AcquisitionNumber")}
    grey = int(header.get("SamplesPerPixel") or 1) == 1
    return Slice(
        file=file,
        sop=str(header.get("SOPInstanceUID") or ""),
        modality=told["Modality"] or "?",
        rows=int(header.Rows),
        columns=int(header.Columns),
        told=told,
        between_mm=tuple(float(header[t].value) for t in ("SpacingBetweenSlices", "SliceThickness") if header.get(t)),
        one_frame=int(header.get("NumberOfFrames") or 1) == 1 and header.get("SOPClassUID") != ENHANCED_CT,
        colours=str(header.get("PhotometricInterpretation", GREY)) if grey else "colour",
        spacing_mm=numbers("PixelSpacing", 2),
        orientation=numbers("ImageOrientationPatient", 6),
        position_mm=numbers("ImagePositionPatient", 3),
        tilt=float(header.get("GantryDetectorTilt") or 0),
        syntax=str(header.file_meta.get("TransferSyntaxUID", "")),
    )


def headers_of(folder: Path) -> list[Slice]:
    """Header of every DICOM image below a folder. DICOMDIR, objects without pixels and other files are passed over, but not
    what was a slice: an empty file, a CT's header without its end, what is named like the slices and is no DICOM."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    found, others = [], []
    for file in sorted(walk.files(folder)):
        if file.name.upper() == "DICOMDIR":
            continue
        if not is_dicom(file):
            others.append(file)
            continue
        gates.existing(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are no valid DICOM; what matters is checked here
                header = dataset(file, stop_before_pixels=True, specific_tags=TAGS)
                if "Rows" in header and "Columns" in header:
                    found.append(_slice(file, header))
                elif _cut_short(header):
                    raise ValueError("a header without Rows and Columns, as of a truncated file")
        except (InvalidDicomError, BytesLengthException, *DAMAGE) as error:
            raise Refused(file, f"damaged DICOM ({first_line(error)})", "a DICOM image",
                          "Fetch the series again.") from None  # fmt: skip
    if not found:
        raise Refused(folder, "no DICOM image in the folder", "a folder with the slices of one CT series",
                      "Give the folder that holds them, or a NIfTI file.")  # fmt: skip
    forms, suffixes = {_form(s.file) for s in found}, {s.file.suffix.lower() for s in found}
    for file in others:
        empty = file.stat().st_size == 0 and file.suffix and file.suffix.lower() in suffixes
        if empty or _form(file) in forms:
            gates.existing(file)
            raise Refused(file, "no DICOM, under a name like those of the slices", "a slice",
                          "Fetch it again, or move it away if it is none.")  # fmt: skip
    return found


def _cut_short(header) -> bool:
    """Whether a header without the size of an image is of a CT image, or ends before it says of what: a UID may be cut too."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
    return any(ct.startswith(kind) for ct in CT_IMAGES) and "CT".startswith(header.get("Modality") or "")


def first_line(error: Exception) -> str:
    """What an exception says, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
