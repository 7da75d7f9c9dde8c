"""A folder of DICOM slices in: one CT series, its geometry taken from the positions of its slices.

Common readers sort by name or number and trust that spacing is even. Here every slice's position is compared with its
neighbours', so that a missing or doubled slice, a tilted gantry or a second series is seen. Nothing of the patient is
read: cases are named by their folder.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.data.readers import gates, walk
from workbench.volume import Refused, Volume

GAP = 0.05  # rule: share of the slice distance that positions may be off; scanners round to 0.001 mm
PLACE_MM = 0.01  # rule: a mask's image and its slice say the same position in their own decimals
GRID = 0.05  # rule: share of a pixel that a slice's corners may lie off the others' grid through its header's rounding
TILT_MM = 0.05  # rule: sideways shift per slice; half a degree over 5 mm slices
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImageOrientationPatient",
    "ImagePositionPatient", "GantryDetectorTilt", "TransferSyntaxUID",
]  # fmt: skip
GREY = "MONOCHROME2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", ENHANCED_CT, "1.2.840.10008.5.1.4.1.1.2.2")
# what pydicom raises on damaged files; it has no type of its own for most of it
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError,
          struct.error)  # fmt: skip
BESIDE = {"SEG", "RTDOSE", "OT"}  # rule: made from a CT, or of a screen; any other image may be the one meant
MAX_TOLD = 4  # rule: faults named in one line


def list_cases(path: str | Path) -> list[Path]:
    """The folders at or below a path that hold DICOM files."""
    path = Path(path)
    if not path.is_dir():
        return []
    return sorted({p.parent for p in _files(path) if _is_dicom(p)}, key=gates.natural)


def read(
    path: str | Path, *, fill_nonfinite: float | None = None, series: str | None = None, as_stored: bool = False
) -> Volume:
    """The CT series of a folder as canonical `[z y x]` HU; `series` is a SeriesInstanceUID where there are several."""
    path = Path(path)
    order, affine = stack(path, series)
    return gates.ct(_pixels(order, path), affine, path, fill_nonfinite, as_stored=as_stored)


def stack(path: Path, series: str | None = None) -> tuple[list[Slice], np.ndarray]:
    """The slices of a folder's CT series in order along their normal, and the affine (column, row, slice) -> RAS mm."""
    gates.existing(path)
    if path.is_file():
        raise Refused(path, "a single DICOM file", "the folder that holds the whole series", f"Give {path.parent}.")
    return _geometry(_one_series(_headers(path), path, series), path)


def read_mask(folder: Path, order: list[Slice]) -> np.ndarray:
    """A mask that has an image for each slice of a CT, as bool `[column row slice]` in the CT's `order`.

    The images are matched by their positions; where they tell of none, by the names of their files.
    """
    found = _headers(folder)
    if len(found) != len(order) or {(s.rows, s.columns) for s in found} != {(order[0].rows, order[0].columns)}:
        raise Refused(folder, f"{len(found)} images of {found[0].columns} x {found[0].rows}",
                      f"{len(order)} of {order[0].columns} x {order[0].rows}, as the CT has")  # fmt: skip
    _decoders(found, folder)
    mask = np.empty((len(order), order[0].rows, order[0].columns), bool)
    values: set[int] = set()
    for k, s in enumerate(_matched(found, order, folder)):
        stored, *_ = _stored(s)
        values.update(np.unique(stored).tolist())
        mask[k] = stored > 0
    if len(values - {0}) > 1 or min(values) < 0:
        raise Refused(folder, f"values {', '.join(map(str, sorted(values)[:8]))}", "0 and one other")
    return mask.transpose(2, 1, 0)


def _matched(found: list[Slice], order: list[Slice], folder: Path) -> list[Slice]:
    """The images of a mask in the order of the CT's slices."""
    told = [s.position_mm for s in found]
    if None not in told and len(set(told)) > 1:
        apart = np.linalg.norm(np.array([s.position_mm for s in order])[:, None] - np.array(told)[None], axis=-1)
        nearest = apart.argmin(1)
        if apart.min(1).max() > PLACE_MM or len(set(nearest.tolist())) < len(order):
            k = int(apart.min(1).argmax())
            raise Refused(
                folder, f"no image within {PLACE_MM} mm of {order[k].file.name}", "one for each slice of the CT"
            )
        return [found[k] for k in nearest]
    names = {s.file.name: s for s in found}
    if names.keys() != {s.file.name for s in order}:
        raise Refused(folder, "images that tell neither their positions nor, by their names, their slices",
                      "one of the two")  # fmt: skip
    return [names[s.file.name] for s in order]


def _files(folder: Path) -> list[Path]:
    return walk.files(folder)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.read(132)
    return first[128:] == b"DICM" or path.suffix.lower() == ".dcm"


def _form(path: Path) -> str:
    """What files of one series have in common in their names, whatever they count."""
    return re.sub(r"\d+", "0", path.name.lower())


@dataclass(frozen=True)
class Slice:
    """What one file's header says, as plain values; None where it says nothing."""

    file: Path
    series: str
    number: str
    modality: str
    scout: bool
    rows: int
    columns: int
    one_frame: bool
    colours: str
    spacing_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    tilt: float
    syntax: str


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

    grey = int(header.get("SamplesPerPixel") or 1) == 1
    return Slice(
        file=file,
        series=str(header.get("SeriesInstanceUID")),
        number=str(header.get("SeriesNumber")),
        modality=str(header.get("Modality") or "?"),
        scout="LOCALIZER" in str(header.get("ImageType", "")).upper(),
        rows=int(header.Rows),
        columns=int(header.Columns),
        one_frame=int(header.get("NumberOfFrames") or 1) == 1 and header.get("SOPClassUID") != ENHANCED_CT,
        colours=str(header.get("PhotometricInterpretation", GREY)) if grey else "colour",
        spacing_mm=numbers("PixelSpacing", 2),
        orientation=numbers("ImageOrientationPatient", 6),
        position_mm=numbers("ImagePositionPatient", 3),
        tilt=float(header.get("GantryDetectorTilt") or 0),
        syntax=str(header.file_meta.get("TransferSyntaxUID", "")),
    )


def _headers(folder: Path) -> list[Slice]:
    """Header of every DICOM image below a folder. DICOMDIR, objects without pixels and other files are passed over, but not
    what was a slice: an empty file, a CT's header without its end, what is named like the slices and is no DICOM."""
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    found, others = [], []
    for file in _files(folder):
        if file.name.upper() == "DICOMDIR":
            continue
        if not _is_dicom(file):
            others.append(file)
            continue
        gates.existing(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are no valid DICOM; what matters is checked here
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
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


def _one_series(slices: list[Slice], folder: Path, series: str | None) -> list[Slice]:
    """The slices of one CT series; refused with a list when there are several series of images to choose from."""
    groups = defaultdict(list)
    for s in slices:
        groups[s.series, s.scout, s.modality, s.rows, s.columns].append(s)
    images = {key: group for key, group in groups.items() if group[0].modality == "CT"}
    if not images:
        kinds = ", ".join(sorted({s.modality for s in slices}))
        raise Refused(folder, f"{len(slices)} DICOM images of modality {kinds}", "CT")
    if series is not None:
        listed = _listed(images)
        images = {key: group for key, group in images.items() if group[0].series == series}
        if not images:
            raise Refused(folder, f"no CT series {series}", f"one of {listed}")
    else:
        images = {key: group for key, group in groups.items() if group[0].modality not in BESIDE}
    if len(images) > 1:
        by_uid = "; in Python, readers.read(path, series=UID)" if len({uid for uid, *_ in images}) > 1 else ""
        raise Refused(
            folder,
            f"{len(images)} series or grids: {_listed(images)}",
            "one CT series",
            f"Move the one you want to a folder of its own{by_uid}.",
        )
    (group,) = images.values()
    if group[0].scout:
        raise Refused(folder, f"only a scout view ({len(group)} images)", "the slices of a CT series")
    return group


def _listed(groups: dict) -> str:
    lines = []
    for group in groups.values():
        s, n = group[0], len(group)
        what = "scout" if s.scout else s.modality
        images = f"{n} image{'s' * (n > 1)} of {s.columns} x {s.rows}"
        lines.append(f"[{what} series {s.number}, {images}, UID {s.series}]")
    return ", ".join(sorted(lines))


def _geometry(slices: list[Slice], folder: Path) -> tuple[list[Slice], np.ndarray]:
    """Slices in order along their normal and the affine (column, row, slice) -> RAS mm."""
    for s in slices:
        if not s.one_frame:
            raise Refused(s.file, "a multi-frame image", "one file a slice", "Convert it to NIfTI with dcm2niix.")
        if s.colours != GREY:
            raise Refused(s.file, f"a {s.colours} picture", f"{GREY} CT numbers")
        told = {
            "PixelSpacing": s.spacing_mm,
            "ImageOrientationPatient": s.orientation,
            "ImagePositionPatient": s.position_mm,
        }
        missing = [tag for tag, value in told.items() if value is None]
        if missing:
            raise Refused(s.file, f"no {' and '.join(missing)}", "a slice that says where it lies")
        if min(s.spacing_mm) <= 0:
            raise Refused(s.file, f"a PixelSpacing of {_plain(s.spacing_mm)} mm", "two lengths above 0",
                          "The header is damaged.")  # fmt: skip
    if len(slices) < gates.MIN_SLICES:
        raise Refused(folder, f"{len(slices)} slice(s)", f"at least {gates.MIN_SLICES}", "Give the whole series.")
    gates.size((slices[0].columns, slices[0].rows, len(slices)), folder)

    across, down, row_mm, column_mm = _one_grid(slices, folder)
    normal = np.cross(across, down)
    length = np.linalg.norm(normal)
    if abs(length - 1) > 1e-2:
        raise Refused(folder, f"row and column directions {across.tolist()} and {down.tolist()}",
                      "two unit vectors at right angles", "The orientation is damaged.")  # fmt: skip
    normal = normal / length
    position = np.array([s.position_mm for s in slices])
    order = np.argsort(position @ normal, kind="stable")
    slices, position = [slices[i] for i in order], position[order]
    _evenness(slices, position @ normal, folder)
    step = (position[-1] - position[0]) / (len(slices) - 1)
    _straightness(slices, position, step, normal, folder)

    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = across * column_mm, down * row_mm, step, position[0]
    return slices, np.diag([-1.0, -1, 1, 1]) @ lps


def _one_grid(slices: list[Slice], folder: Path) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Row and column directions and spacing that the slices have in common, the medians; refused where one has its own."""
    turns, spacing = np.reshape([s.orientation for s in slices], (-1, 2, 3)), np.array([s.spacing_mm for s in slices])
    turn, (row_mm, column_mm) = np.median(turns, axis=0), np.median(spacing, axis=0)
    apart = turns * spacing[:, ::-1, None] - turn * [[column_mm], [row_mm]]
    corners = np.array([(1, 0), (0, 1), (1, 1)]) * (slices[0].columns - 1, slices[0].rows - 1)
    off = np.linalg.norm(corners @ apart, axis=2).max(1) / min(row_mm, column_mm)
    if (off > GRID).any():
        s = slices[int(off.argmax())]
        raise Refused(folder, f"{(off > GRID).sum()} of {len(slices)} slices on another grid, by up to {off.max():.3g} pixels at a corner, as "
                      f"{s.file.name} (PixelSpacing {_plain(s.spacing_mm)}, ImageOrientationPatient {_plain(s.orientation)})",
                      f"PixelSpacing {_plain((row_mm, column_mm))} and ImageOrientationPatient {_plain(turn.ravel())}, within {GRID} pixels",
                      "Move the slices of one grid to a folder of their own, or resample them onto one.")  # fmt: skip
    return *turn, row_mm, column_mm


def _plain(numbers) -> str:
    """Numbers as a header has them."""
    return "\\".join(f"{n:.7g}" for n in numbers)


def _evenness(slices: list[Slice], height: np.ndarray, folder: Path) -> None:
    """Refuse equal, doubled, missing or uneven slice positions."""
    gap = np.diff(height)
    step = float(np.median(gap))
    if height[-1] - height[0] < 1e-3:
        raise Refused(folder, f"all {len(slices)} slices at one position ({height[0]:g} mm)", "one position a slice",
                      "The positions were lost; fetch the original series.")  # fmt: skip
    double = np.flatnonzero(gap < 1e-3)
    if double.size:
        pairs = [f"{slices[i].file.name} = {slices[i + 1].file.name} at {height[i]:g} mm" for i in double]
        raise Refused(folder, f"{double.size} doubled slice position(s): {_told(pairs)}", "one slice a position",
                      "Remove the copies, or separate the phases or reconstructions.")  # fmt: skip
    off = np.flatnonzero(np.abs(gap - step) > max(GAP * step, 1e-3))
    if off.size:
        names = [f"{s.file.name} ({at:g})" for s, at in zip(slices, height)]
        gaps = _told([f"{gap[i]:g} mm between {names[i]} and {names[i + 1]}" for i in off])
        whole = np.round(gap[off] / step)
        lost = int((whole - 1).sum()) if (np.abs(gap[off] / step - whole) < GAP).all() and (whole > 1).all() else 0
        what = f"{lost} missing slice(s)" if lost else "uneven slice distances"
        raise Refused(folder, f"{what}: {gaps}", f"{step:g} mm between all slices",
                      "Fetch the whole series." if lost else "Resample it onto even slices first.")  # fmt: skip


def _straightness(
    slices: list[Slice], position: np.ndarray, step: np.ndarray, normal: np.ndarray, folder: Path
) -> None:
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
        raise Refused(folder, f"{slices[worst].file.name} {off[worst]:.3g} mm beside the line of the slices",
                      "slices on one line")  # fmt: skip
    tilt = slices[0].tilt
    if abs(tilt) > 0.5 and abs(normal[2]) > 0.9999:
        gates.warn(folder, f"the header tells of a gantry tilt of {tilt:g} degrees, the positions of none")


def _pixels(slices: list[Slice], folder: Path) -> np.ndarray:
    """HU `[column row slice]`; slope and intercept are each slice's own."""
    _decoders(slices, folder)
    hu = np.empty((len(slices), slices[0].rows, slices[0].columns), np.int16)
    bare = 0
    for k, s in enumerate(slices):
        stored, slope, intercept, told = _stored(s)
        bare += not told
        value = stored.astype(np.float64) * slope + intercept
        if hu.dtype == np.int16 and gates.smallest(value).dtype != np.int16:
            hu = hu.astype(np.float32)  # one slice with fractions makes the volume float32
        hu[k] = value
    if bare:
        gates.warn(
            folder, f"{bare} of {len(slices)} slices have no RescaleIntercept: their stored values are taken for HU"
        )
    return hu.transpose(2, 1, 0)


def _stored(s: Slice) -> tuple[np.ndarray, float, float, bool]:
    """Stored values [row column] of one image, its slope and intercept, and whether the header told the latter."""
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = pydicom.dcmread(s.file)
            stored = whole.pixel_array
            slope, intercept = float(whole.get("RescaleSlope", 1)), float(whole.get("RescaleIntercept", 0))
    except (InvalidDicomError, BytesLengthException, *DAMAGE) as error:
        raise Refused(s.file, f"pixels that cannot be read ({first_line(error)})", "a whole slice",
                      "The file is truncated or damaged; fetch it again.") from None  # fmt: skip
    if stored.shape != (s.rows, s.columns):
        raise Refused(s.file, f"pixels of shape {stored.shape}", f"{(s.rows, s.columns)} as its header says")
    return stored, slope, intercept, "RescaleIntercept" in whole


def _decoders(slices: list[Slice], folder: Path) -> None:
    """Name the package when the slices are compressed in a way that nothing installed can undo."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for uid in {UID(s.syntax) for s in slices}:
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


def first_line(error: Exception) -> str:
    """What an exception says, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]


def _told(faults: list[str]) -> str:
    more = f" and {len(faults) - MAX_TOLD} more" if len(faults) > MAX_TOLD else ""
    return "; ".join(faults[:MAX_TOLD]) + more
