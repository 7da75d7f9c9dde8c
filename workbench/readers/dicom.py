"""A folder of DICOM slices in: one CT series, its geometry taken from the positions of its slices.

Common readers sort by name or number and trust that spacing is even. Here every slice's position is compared with its
neighbours', so that a missing or doubled slice, a tilted gantry or a second series is seen. Nothing of the patient is
read: cases are named by their folder.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np

from workbench.readers import gates
from workbench.volume import Refused, Volume

GAP = 0.05  # rule: share of the slice distance that positions may be off; scanners round to 0.001 mm
TILT_MM = 0.05  # rule: sideways shift per slice; half a degree over 5 mm slices
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImageOrientationPatient",
    "ImagePositionPatient", "GantryDetectorTilt", "TransferSyntaxUID",
]  # fmt: skip
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
# what pydicom raises on damaged files; it has no type of its own for most of it
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error)
MAX_TOLD = 4  # rule: faults named in one line


def list_cases(path: str | Path) -> list[Path]:
    """The folders at or below a path that hold DICOM files."""
    path = Path(path)
    if not path.is_dir():
        return []
    return sorted({p.parent for p in _files(path) if _is_dicom(p)}, key=gates.natural)


def read(path: str | Path, *, fill_nonfinite: float | None = None, series: str | None = None) -> Volume:
    """The CT series of a folder as canonical `[z y x]` HU; `series` is a SeriesInstanceUID where there are several."""
    path = Path(path)
    gates.existing(path)
    if path.is_file():
        raise Refused(path, "a single DICOM file", "the folder that holds the whole series", f"Give {path.parent}.")
    slices = _one_series(_headers(path), path, series)
    order, affine = _geometry(slices, path)
    array = _pixels(order, path)
    return gates.ct(array, affine, path, fill_nonfinite)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.read(132)
    return first[128:] == b"DICM" or (path.suffix.lower() == ".dcm" and len(first) > 0)


def _headers(folder: Path) -> list:
    """Header of every DICOM image below a folder; DICOMDIR and other files are passed over."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    found = []
    for file in _files(folder):
        if file.name.upper() == "DICOMDIR" or not _is_dicom(file):
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
        except (InvalidDicomError, *DAMAGE) as error:
            raise Refused(file, f"damaged DICOM ({error})", "a DICOM image", "Fetch the series again.") from None
        if "Rows" in header:
            found.append(header)
    if not found:
        raise Refused(folder, "no DICOM image in the folder", "a folder with the slices of one CT series",
                      "Give the folder that holds them, or a NIfTI file.")  # fmt: skip
    return found


def _one_series(headers: list, folder: Path, series: str | None) -> list:
    """The headers of one CT series; refused with a list when there are several to choose from."""
    groups = defaultdict(list)
    for h in headers:
        grid = (h.get("Rows"), h.get("Columns"), str(h.get("PixelSpacing")), _rounded(h.get("ImageOrientationPatient")))
        groups[(str(h.get("SeriesInstanceUID")), h.get("Modality", "?"), _scout(h)), grid].append(h)
    images = {key: group for key, group in groups.items() if key[0][1] == "CT"}
    if not images:
        kinds = ", ".join(sorted({key[0][1] for key in groups}))
        raise Refused(folder, f"{len(headers)} DICOM images of modality {kinds}", "CT")
    if series is not None:
        images = {key: group for key, group in images.items() if key[0][0] == series}
        if not images:
            raise Refused(folder, f"no CT series {series}", "one of " + _listed(groups))
    if len(images) > 1:
        raise Refused(
            folder,
            f"{len(images)} series or grids: {_listed(images)}",
            "one CT series",
            "Move the one you want to a folder of its own; in Python, readers.read(path, series=UID).",
        )
    (key, group), = images.items()  # fmt: skip
    if key[0][2]:
        raise Refused(folder, f"only a scout view ({len(group)} images)", "the slices of a CT series")
    return group


def _scout(header) -> bool:
    return "LOCALIZER" in [str(v).upper() for v in header.get("ImageType", [])]


def _listed(groups: dict) -> str:
    lines = []
    for ((uid, modality, scout), grid), group in groups.items():
        number = group[0].get("SeriesNumber")
        what = "scout" if scout else modality
        lines.append(f"[{what} series {number}, {len(group)} images of {grid[1]} x {grid[0]}, UID {uid}]")
    return ", ".join(sorted(lines))


def _rounded(orientation) -> tuple:
    return () if orientation is None else tuple(round(float(v), 3) for v in orientation)


def _geometry(slices: list, folder: Path) -> tuple[list, np.ndarray]:
    """Slices in order along their normal and the affine (column, row, slice) -> RAS mm."""
    for h in slices:
        missing = [t for t in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient") if not h.get(t)]
        if missing:
            raise Refused(_name(h), f"no {' and '.join(missing)}", "a slice that says where it lies")
        if int(h.get("NumberOfFrames") or 1) > 1 or h.SOPClassUID == ENHANCED_CT:
            raise Refused(_name(h), "a multi-frame image", "one file a slice", "Convert it to NIfTI with dcm2niix.")
        colours = h.get("PhotometricInterpretation", "MONOCHROME2")
        if int(h.get("SamplesPerPixel") or 1) != 1 or colours != "MONOCHROME2":
            raise Refused(_name(h), f"a {colours} picture", "MONOCHROME2 CT numbers")
    if len(slices) < gates.MIN_SLICES:
        raise Refused(folder, f"{len(slices)} slice(s)", f"at least {gates.MIN_SLICES}", "Give the whole series.")
    gates.size((int(slices[0].Columns), int(slices[0].Rows), len(slices)), folder)

    across, down = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(across, down)
    position = np.array([h.ImagePositionPatient for h in slices], float)
    if not np.isfinite(position).all() or not np.isfinite(normal).all() or np.linalg.norm(normal) < 1e-6:
        raise Refused(folder, "positions or orientations that are no numbers", "finite ones")
    height = position @ (normal / np.linalg.norm(normal))
    order = np.argsort(height, kind="stable")
    slices, position, height = [slices[i] for i in order], position[order], height[order]
    _evenness(slices, height, folder)
    step = (position[-1] - position[0]) / (len(slices) - 1)
    _straightness(slices, position, step, normal / np.linalg.norm(normal), folder)

    row_mm, column_mm = (float(v) for v in slices[0].PixelSpacing)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = across * column_mm, down * row_mm, step, position[0]
    return slices, np.diag([-1.0, -1, 1, 1]) @ lps


def _evenness(slices: list, height: np.ndarray, folder: Path) -> None:
    """Refuse equal, doubled, missing or uneven slice positions."""
    gap = np.diff(height)
    step = float(np.median(gap))
    if height[-1] - height[0] < 1e-3:
        raise Refused(folder, f"all {len(slices)} slices at one position ({height[0]:g} mm)", "one position a slice",
                      "The positions were lost; fetch the original series.")  # fmt: skip
    double = np.flatnonzero(gap < 1e-3)
    if double.size:
        pairs = [f"{_name(slices[i]).name} = {_name(slices[i + 1]).name} at {height[i]:g} mm" for i in double]
        raise Refused(folder, f"{double.size} doubled slice position(s): {_told(pairs)}", "one slice a position",
                      "Remove the copies, or separate the phases or reconstructions.")  # fmt: skip
    off = np.flatnonzero(np.abs(gap - step) > max(GAP * step, 1e-3))
    if off.size:
        names = [f"{_name(h).name} ({at:g})" for h, at in zip(slices, height)]
        gaps = _told([f"{gap[i]:g} mm between {names[i]} and {names[i + 1]}" for i in off])
        whole = np.round(gap[off] / step)
        lost = int((whole - 1).sum()) if (np.abs(gap[off] / step - whole) < GAP).all() and (whole > 1).all() else 0
        what = f"{lost} missing slice(s)" if lost else "uneven slice distances"
        raise Refused(folder, f"{what}: {gaps}", f"{step:g} mm between all slices",
                      "Fetch the whole series." if lost else "Resample it onto even slices first.")  # fmt: skip


def _straightness(slices: list, position: np.ndarray, step: np.ndarray, normal: np.ndarray, folder: Path) -> None:
    """Refuse a stack whose slices move sideways: a tilted gantry, or a table that moved."""
    sideways = step - normal * (step @ normal)
    shift = float(np.linalg.norm(sideways))
    if shift > TILT_MM:
        degrees = float(np.degrees(np.arctan2(shift, abs(step @ normal))))
        raise Refused(folder, f"a gantry tilt of {degrees:.1f} degrees (each slice {shift:.3g} mm aside of the last)",
                      "slices straight above each other",
                      "Undo the tilt first, as dcm2niix does for CT, and give the NIfTI.")  # fmt: skip
    line = position[0] + np.arange(len(slices))[:, None] * step
    off = np.linalg.norm(position - line, axis=1)
    if off.max() > max(GAP * np.linalg.norm(step), 1e-3):
        worst = int(off.argmax())
        raise Refused(folder, f"{_name(slices[worst]).name} {off[worst]:.3g} mm beside the line of the slices",
                      "slices on one line")  # fmt: skip
    tilt = slices[0].get("GantryDetectorTilt")
    if tilt and abs(float(tilt)) > 0.5 and abs(normal[2]) > 0.9999:
        gates.warn(folder, f"the header tells of a gantry tilt of {float(tilt):g} degrees, the positions of none")


def _pixels(slices: list, folder: Path) -> np.ndarray:
    """HU `[column row slice]`; slope and intercept are each slice's own."""
    import pydicom

    _decoders(slices, folder)
    shape = (len(slices), int(slices[0].Rows), int(slices[0].Columns))
    hu = np.empty(shape, np.int16)
    for k, header in enumerate(slices):
        try:
            whole = pydicom.dcmread(header.filename)
            stored = whole.pixel_array
        except DAMAGE as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Refused(_name(header), f"pixels that cannot be read ({reason})", "a whole slice",
                          "The file is truncated or damaged; fetch it again.") from None  # fmt: skip
        if stored.shape != shape[1:]:
            raise Refused(_name(header), f"pixels of shape {stored.shape}", f"{shape[1:]} as its header says")
        slope, intercept = float(whole.get("RescaleSlope", 1)), float(whole.get("RescaleIntercept", 0))
        value = stored.astype(np.float64) * slope + intercept
        if hu.dtype == np.int16:
            small = gates.smallest(value)
            if small.dtype != np.int16:  # one slice with fractions makes the volume float32
                hu = hu.astype(np.float32)
        hu[k] = value
    return hu.transpose(2, 1, 0)


def _decoders(slices: list, folder: Path) -> None:
    """Name the package when the slices are compressed in a way that nothing installed can undo."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for syntax in {h.file_meta.get("TransferSyntaxUID") for h in slices if getattr(h, "file_meta", None)} - {None}:
        uid = UID(syntax)
        if not uid.is_transfer_syntax or not uid.is_compressed or uid.is_deflated:
            continue
        try:
            decoder = get_decoder(uid)
        except NotImplementedError:
            raise Refused(folder, f"slices compressed as {uid.name}", "a syntax that pydicom knows",
                          "Decompress them with dcmdjpeg or gdcmconv --raw.") from None  # fmt: skip
        if not decoder.is_available:
            wanted = "; or ".join(text.split(" - requires ", 1)[-1] for text in decoder.missing_dependencies)
            raise Refused(folder, f"slices compressed as {uid.name}", "a decoder for it", f"Install {wanted}.")


def _told(faults: list[str]) -> str:
    more = f" and {len(faults) - MAX_TOLD} more" if len(faults) > MAX_TOLD else ""
    return "; ".join(faults[:MAX_TOLD]) + more


def _name(header) -> Path:
    return Path(os.fspath(header.filename))
