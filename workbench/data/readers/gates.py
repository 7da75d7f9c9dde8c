"""The gates that every reader passes its voxels through, and the turn to canonical axes.

A file that would give a wrong answer is refused here; one that may be right is read with a warning. Values are HU as
the file says: padding below -1024 (-2000 or -3024 outside a scanner's circle) is kept, since a result must be
comparable with its input voxel by voxel; the stages' HU windows cut it off.
"""

from __future__ import annotations

import errno
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch

from workbench.volume import Refused, Source, Volume, readable

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
MIN_SLICES = 3  # fixed: the 2.5D net and the three-slice rule both look at a slice and its two neighbours
MAX_AXIS = 8192  # rule: four times the finest CT matrix; a longer axis is a broken header
MAX_VOXELS = 2**31  # rule: 2048 slices of 1024 x 1024
SPACING_MM = (0.05, 50.0)  # rule: beyond these a length in another unit was taken for mm
FIELD_MM = (2500.0, 1200.0, 1200.0)  # rule: a standing person along z, more than any gantry across it
MIN_JUDGED = 10_000  # rule: voxels from which a histogram says where air and tissue lie
NORMALISED = 20.0  # rule: HU that a scan's noise alone covers
SKEW = 1e-3  # rule: cosine between two axes; half a mm over a 500 mm field of view

GENERIC = {"ct", "image", "images", "img", "volume", "scan", "series", "dicom", "dicom_anon", "patient_dicom"} | {
    "labels", "label", "mask", "segmentation", "seg"
}  # fmt: skip

OBLIQUE_DEGREES = (
    30.0  # empirical (docs/log.md, 2026-11-30): tumor Dice .60 falls to .32 beyond 45, where axes are exchanged
)


class WorkbenchWarning(UserWarning):
    """Something in an input that may be right but should be looked at."""


_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def warn(subject: object, text: str) -> None:
    """To whom listens by `heard`, else by Python's warnings."""
    line, listening = readable(f"{subject}: {text}"), _HEARD.get()
    if listening is None:
        warnings.warn(line, WorkbenchWarning, stacklevel=3)
    else:
        listening.append(line)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What the readers warn of meanwhile, in this thread alone (`warnings.catch_warnings` speaks for the whole process)."""
    lines: list[str] = []
    token = _HEARD.set(lines)
    try:
        yield lines
    finally:
        _HEARD.reset(token)


def said(error: Exception, path: object) -> str:
    """One line for an input that is refused, or that the system does not let us read: the others go on. A full or read-only disk ends all."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise error
        place = error.filename or path
        why = (error.strerror or str(error)).lower()
        return str(Refused(place, why, "a file that can be read", "Check its permissions and the disk, or fetch it again."))
    return str(error)


def stem(path: Path) -> str:
    """File name without its image suffix; a folder's whole name."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def one_form(name: str) -> str:
    """A name in one Unicode form (NFC), however a file system keeps it."""
    return unicodedata.normalize("NFC", name)


def case_name(path: str | Path) -> str:
    """What a case is called: its file or folder, or the folder above when that says nothing. Never a header's text."""
    path = Path(path).absolute()
    while stem(path).lower() in GENERIC and path.parent.name:
        path = path.parent
    return one_form(stem(path))


def existing(path: Path) -> None:
    """Refuse what is not there, not readable or without a byte in it."""
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise Refused(path, error.strerror.lower(), "a file or folder that can be read") from error
    if not there:
        raise Refused(path, "no such file or folder", "an existing NIfTI, NRRD, MHA or MHD file or a DICOM folder")
    if path.is_file() and path.stat().st_size == 0:
        raise Refused(path, "a file of 0 bytes", "an image", "The copy or download failed; fetch it again.")


def bytes_of(path: Path, count: int = -1) -> bytes:
    """The first bytes of a file, all by default; one that may not be read is refused by its name."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise Refused(path, (error.strerror or "an error").lower(), "a file that can be read",
                      "Fetch it again, or change its permissions.") from error  # fmt: skip


def size(shape: tuple[int, ...], subject: object) -> None:
    """Refuse a shape before memory is asked for."""
    if min(shape, default=0) < 1 or max(shape) > MAX_AXIS or math.prod(shape) > MAX_VOXELS:
        raise Refused(
            subject,
            f"a header that claims {' x '.join(map(str, shape))} voxels",
            f"1 to {MAX_AXIS} along each axis and at most {MAX_VOXELS:,} in all",
            "The header is damaged.",
        )


def three_axes(shape: tuple[int, ...], subject: object) -> tuple[int, int, int]:
    """The three spatial lengths; a fourth axis of length one is dropped with a warning."""
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        warn(subject, f"a {len(shape)}D image of shape {shape}: axes of length 1 were dropped")
        shape = shape[:3]
    if len(shape) > 3:
        raise Refused(subject, f"a {len(shape)}D image of shape {shape}", "one 3D volume",
                      "Write the volume you want (one phase, one time point) to a file of its own.")  # fmt: skip
    if len(shape) < 3:
        raise Refused(subject, f"a {len(shape)}D image of shape {shape}", f"3D, at least {MIN_SLICES} slices")
    return tuple(int(n) for n in shape)


def affine(matrix: np.ndarray, subject: object) -> None:
    """Refuse an affine that cannot place voxels on a rectangular grid. Oblique axes are fine."""
    columns = np.asarray(matrix, float)[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.isfinite(matrix).all():
        raise Refused(subject, "an affine with NaN or infinite entries", "finite numbers",
                      "Set the affine from the original DICOM.")  # fmt: skip
    if (spacing == 0).any() or abs(np.linalg.det(columns / np.where(spacing == 0, 1, spacing))) < 1e-6:
        raise Refused(subject, f"a singular affine (column lengths {_numbers(spacing)} mm)", "three independent axes",
                      "Set the affine from the original DICOM.")  # fmt: skip
    unit = columns / spacing
    skew = np.abs(unit.T @ unit - np.eye(3)).max()
    if skew > SKEW:
        angle = 90 - math.degrees(math.asin(min(1, skew)))
        raise Refused(subject, f"a sheared affine (two axes {angle:.2f} degrees apart)", "axes at right angles",
                      "Gantry tilt does this: resample onto a rectangular grid first.")  # fmt: skip
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        raise Refused(subject, f"voxels of {_numbers(spacing)} mm", f"{SPACING_MM[0]} to {SPACING_MM[1]:g} mm",
                      "The lengths may be in another unit.")  # fmt: skip


def placed(matrix: np.ndarray, path: Path, orientation: str | None, spacing_mm: tuple[float, ...] | None) -> np.ndarray:
    """The affine of a file, or the one that the user says: where the file's axes run, as `LPS`, and mm along each of them."""
    if orientation is None and spacing_mm is None:
        return matrix
    columns = np.array(matrix, float)[:3, :3]
    if spacing_mm is None and unplaced(matrix) or orientation is None:
        raise Refused(path, f"only the {'orientation' if spacing_mm is None else 'spacing'}", "the orientation and the spacing",
                      "Say both, as --orientation LPS --spacing 0.7,0.7,5.")  # fmt: skip
    axes = ["LR", "PA", "SI"]
    letters = orientation.upper()
    found = [[k for k, pair in enumerate(axes) if letter in pair] for letter in letters]
    if sorted(found) != [[0], [1], [2]]:
        raise Refused(path, f"the orientation {orientation[:20]!r}", "three letters, of R or L, A or P and S or I",
                      "They say where the file's first, second and third axis lead: LPS is to the left, the back and the head.")  # fmt: skip
    lengths = np.linalg.norm(columns, axis=0) if spacing_mm is None else np.array(spacing_mm, float)
    if lengths.shape != (3,) or not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise Refused(path, f"the spacing {_numbers(lengths)}", "three lengths above 0, in mm, along the file's axes")
    out = np.eye(4)
    out[:3, :3] = 0
    for axis, (letter, (world,)) in enumerate(zip(letters, found)):
        out[world, axis] = lengths[axis] * (1 if letter in "RAS" else -1)
    return out


def unplaced(matrix: np.ndarray) -> bool:
    """Whether an affine is what libraries write when nobody has told them any: 1 mm along each axis, no turn, the origin at 0."""
    return any(np.array_equal(matrix, np.diag(d)) for d in ((1.0, 1, 1, 1), (-1.0, -1, 1, 1)))


def finite(array: np.ndarray, subject: object, fill: float | None) -> np.ndarray:
    """Refuse NaN and infinity, or put `fill` there when asked to."""
    if array.dtype.kind != "f":
        return array
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if not count:
        return array
    where = ", ".join(str(int(i)) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    if fill is None:
        fix = "Repair the file, or fill them, as outside a scanner's circle: workbench convert FILE -o NEW.nii.gz --fill -1024."
        raise Refused(
            subject, f"{count} of {array.size} voxels NaN or infinite, the first at ({where})", "finite HU", fix
        )
    warn(subject, f"{count} voxels that were NaN or infinite, the first at ({where}), became {fill:g}")
    return np.where(bad, np.asarray(fill, array.dtype), array)


def smallest(array: np.ndarray, as_stored: bool = False) -> np.ndarray:
    """int16 where every value is whole and fits, else float32; `as_stored`: real numbers stay what they are, and so does a whole one
    that does not fit, as float64."""
    if array.dtype == np.int16 or as_stored and array.dtype.kind == "f":
        return array
    low, high = array.min(), array.max()
    fits = low >= -32768 and high <= 32767
    if fits and (array.dtype.kind in "iub" or np.array_equal(array, np.rint(array))):
        return array.astype(np.int16)
    return array.astype(np.float64 if as_stored else np.float32)


def hounsfield(array: np.ndarray, subject: object, eight_bit: bool = False) -> None:
    """Refuse values that are clearly not HU; warn of those that may not be.

    Scans cut to an organ's box and clipped to a window (-160..240), phantoms and soft tissue alone all pass.
    """
    low, high = float(array.min()), float(array.max())
    seen = f"values from {low:g} to {high:g}"
    if max(abs(low), abs(high)) > 1e6:
        raise Refused(subject, seen, "HU, -1024 to a few thousand", "The scale in the header is damaged.")
    if low == high:
        warn(subject, f"every voxel is {low:g} HU")
        return
    if low >= 0 and high <= 2:
        raise Refused(subject, seen, "HU", "This looks like a mask or a picture scaled to 0..1; give the CT itself.")
    some = array.ravel(order="K")[:: max(1, array.size // 1_000_000)]  # a view, whatever the order
    if high - low <= NORMALISED and not np.array_equal(some, np.rint(some)):
        raise Refused(subject, f"{seen}, not whole", "HU",
                      "They look normalised (-1..1, or by mean and deviation); give the CT itself.")  # fmt: skip
    signed = eight_bit and -128 <= low < 0 and high <= 127
    if signed or low >= 0 and high <= 255 and (eight_bit or (low == 0 and high == 255)):
        raise Refused(subject, f"{seen}, as in an 8-bit picture", "HU",
                      "Undo the windowing: HU = lower + grey * (upper - lower) / 255.")  # fmt: skip
    if high > 900:
        body = some[some > -200]  # without padding; bone has more voxels from 200 to 900 HU than above
        between, near = (((body > a) & (body < b)).mean() for a, b in ((200, 900), (900, 1300)))
        if near > 0.2 and near > 3 * between:
            raise Refused(subject, f"{seen} with soft tissue near 1060, an offset of 1024", "HU, with water at 0",
                          "Subtract 1024 (set the intercept, scl_inter, to -1024).")  # fmt: skip
    if low >= 0:
        warn(subject, f"{seen}: no voxel below 0 HU, so neither fat nor air; are these HU?")
    elif high < -200:
        warn(subject, f"{seen}: no soft tissue in it")
    elif high > 32767 or low < -32768:
        warn(subject, f"{seen}: beyond any CT number")
    elif low == -128 and high == 127:
        warn(subject, f"{seen}, as in an 8-bit picture; are these HU?")
    elif array.size >= MIN_JUDGED and (odd := _misplaced(some)):
        warn(subject, f"{seen}, {odd}; are these HU? Look at the scale (slope and intercept) of the file")


def _misplaced(some: np.ndarray) -> str:
    """What lies where HU put nothing of it: air near -1000, fat and soft tissue from -150 to 250. "" when nothing does.

    Padding, one value below air, is left out. Rules: soft tissue and fat are most of a body, and the air around it, when in view, has
    one narrow peak.
    """
    low = some.min()
    rest = some[some != low]
    dark = (rest < -1100).sum() / some.size
    if dark > 0.05:
        return f"{dark:.0%} of the voxels are darker than air (-1000)"
    body = rest if low > -400 else some[some > -400]  # a window's lower end holds the air
    body = body[body < some.max()] if (body == some.max()).mean() > 0.01 else body
    soft = ((body >= -150) & (body <= 250)).sum()
    if soft < 0.03 * some.size:
        return "hardly any of it where fat and soft tissue are (-150 to 250)"
    if soft < 0.6 * body.size:
        return f"only {soft / body.size:.0%} of what is no air is where fat and soft tissue are (-150 to 250)"
    count, edges = np.histogram(some[some < -400], 40, (-1200, -400))
    if count.max() > 0.2 * some.size and edges[count.argmax()] > -850:
        return f"with air near {edges[count.argmax()] + 10:.0f} and not -1000"
    return ""


def _alignment(matrix: np.ndarray) -> np.ndarray:
    """Of each axis of an affine from canonical indices (x, y, z), the cosine of its angle to the body's axis that it is taken for."""
    columns = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return np.abs(np.diag(columns))


def turn(matrix: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """`axes` and `flips` of `Source` for an affine (i, j, k) -> RAS mm: nearest axes, no voxel is changed."""
    from nibabel.orientations import io_orientation

    ras = io_orientation(matrix)
    axes = tuple(2 - int(r) for r, _ in ras)
    # LPS wants x and y against RAS, z along it
    flips = tuple(i for i, (r, sign) in enumerate(ras) if sign == (-1 if r == 2 else 1))
    return axes, flips


def canonical(array: np.ndarray, matrix: np.ndarray, path: str | Path) -> Volume:
    """File voxels `[i j k]` with their affine -> RAS mm as a `Volume` in canonical LPS `[z y x]`."""
    axes, flips = turn(matrix)
    source = Source(str(path), tuple(array.shape), np.array(matrix, float), axes, flips)
    index = np.zeros((4, 4))
    index[3, 3] = 1
    for i, axis in enumerate(axes):
        index[i, 2 - axis] = -1 if i in flips else 1
        index[i, 3] = array.shape[i] - 1 if i in flips else 0
    lps = source.affine @ index
    turned_by = math.degrees(math.acos(min(1.0, float(_alignment(lps).min()))))
    if turned_by > OBLIQUE_DEGREES:
        warn(
            path,
            f"its axes lie up to {turned_by:.0f} degrees off the body's, so what are taken for axial slices are oblique ones, and beyond 45 degrees "
            "another plane. The models know axial slices: resample it to the body's axes first",
        )
    # float32 headers: 0.743 comes back as 0.74299997
    spacing = tuple(round(float(s), 6) for s in np.linalg.norm(lps[:3, :3], axis=0)[::-1])
    turned = torch.from_numpy(np.ascontiguousarray(source.to_canonical(array)))
    return Volume(turned, spacing, lps, case_name(path), source)


def ct(
    array: np.ndarray,
    matrix: np.ndarray,
    path: str | Path,
    fill_nonfinite: float | None,
    eight_bit: bool = False,
    as_stored: bool = False,
) -> Volume:
    """The gates of a CT in one row: affine, slices, finite values, HU; then canonical. `as_stored` as in `readers.read`."""
    affine(matrix, path)
    if unplaced(matrix):
        lost = "an identity header (1 mm voxels, no turn, the origin at 0), as when orientation and spacing were lost"
        if not as_stored:
            raise Refused(path, lost, "a header that says where left is and how large a voxel",
                          "Say so: workbench convert FILE -o NEW.nii.gz --orientation LPS --spacing X,Y,Z (where the file's axes lead, mm "
                          "along each). Of LiTS, whose volumes 28 to 47 are such, workbench import lits repairs them.")  # fmt: skip
        warn(path, lost)
    array = smallest(finite(array, path, fill_nonfinite), as_stored)
    axes, _ = turn(matrix)
    if array.shape[axes.index(0)] < MIN_SLICES or min(array.shape) < 2:
        raise Refused(path, f"{array.shape[axes.index(0)]} slice(s) in a grid of {' x '.join(map(str, array.shape))}",
                      f"at least {MIN_SLICES} slices", "Give the whole scan, not one image of it.")  # fmt: skip
    try:
        hounsfield(array, path, eight_bit)
    except Refused as refused:
        if not as_stored:
            raise
        warn(path, str(refused).removeprefix(f"{path}: "))
    volume = canonical(array, matrix, path)
    field = [n * s for n, s in zip(volume.shape, volume.spacing_mm)]
    if any(length > most for length, most in zip(field, FIELD_MM)):
        raise Refused(path, f"a field of view of {_numbers(np.array(field))} mm (z y x)", f"at most {_numbers(np.array(FIELD_MM))}",
                      "The voxel size may be in another unit.")  # fmt: skip
    if volume.spacing_mm == (1.0, 1.0, 1.0):
        warn(path, "spacing is exactly 1 x 1 x 1 mm, which often means that it was lost; sizes in mm may be wrong")
    return volume


def labels(array: np.ndarray, matrix: np.ndarray, path: str | Path, allowed: Collection[int] | None) -> Volume:
    """The gates of a label map: finite whole numbers out of an allowed set, never negative; then canonical.

    Tumor (2) that touches no liver (1) is told of with its volume.
    """
    affine(matrix, path)
    if unplaced(matrix):
        warn(
            path,
            "an identity header, as when orientation and spacing were lost: volumes and lengths in mm may be wrong",
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise Refused(path, "label values that are NaN or infinite", "integers: 0 background, 1 liver, 2 tumor")
        part = array[array != np.rint(array)]
        if part.size:
            raise Refused(path, f"label values that are not whole numbers, as {part.flat[0]!s}",
                          "integers: 0 background, 1 liver, 2 tumor",
                          "Resample label maps with nearest neighbour, and threshold probabilities first.")  # fmt: skip
    found = sorted(int(v) for v in np.unique(array))
    foreign = [v for v in found if v < 0 or v > 2**31 - 1 or (allowed is not None and v not in allowed)]
    if foreign:
        expected = "values of 0 and above" if allowed is None else "only " + ", ".join(map(str, sorted(allowed)))
        raise Refused(path, f"label values {_short(found)}", expected, _mapping(found, allowed))
    if found == [0, 1, 2] and allowed is not None:
        pieces, ml = _apart(array, abs(float(np.linalg.det(np.asarray(matrix, float)[:3, :3]))) / 1000)
        if pieces:
            warn(path, f"{pieces} piece(s) of tumor, {ml:.3g} ml in all, touch no liver")
    return canonical(array.astype(np.uint8 if found[-1] <= 255 else np.int32), matrix, path)


def _apart(array: np.ndarray, voxel_ml: float) -> tuple[int, float]:
    """How many 26-connected pieces of label 2 have no neighbour of label 1, and their volume."""
    from scipy import ndimage

    (box,) = ndimage.find_objects((array == 2).astype(np.uint8))
    box = tuple(slice(max(0, b.start - 1), b.stop + 1) for b in box)
    pieces, count = ndimage.label(array[box] == 2, np.ones((3, 3, 3)))
    near = ndimage.binary_dilation(array[box] == 1, np.ones((3, 3, 3)))
    alone = np.setdiff1d(np.arange(1, count + 1), pieces[near])
    return len(alone), float(np.isin(pieces, alone).sum()) * voxel_ml


def _mapping(found: list[int], allowed: Collection[int] | None) -> str:
    """The re-labelling that the values suggest."""
    if allowed is None:
        return "Renumber the regions from 1."
    if found == [0, 255]:
        return "It looks like an 8-bit mask: map 255 to 1 (liver) or 2 (tumor)."
    if len(found) == 3 and found[0] == 0 and found[1] in (127, 128) and found[2] == 255:
        return f"It looks like an 8-bit mask: map {found[1]} to 1 (liver) and 255 to 2 (tumor)."
    return "Map the liver to 1, tumors to 2 and everything else to 0."


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def _short(values: list[int], most: int = 12) -> str:
    text = ", ".join(map(str, values[:most]))
    return text if len(values) <= most else f"{text} and {len(values) - most} more"


def natural(path: Path) -> list:
    """Sort key that puts case 2 before case 10."""
    return [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", str(path))]
