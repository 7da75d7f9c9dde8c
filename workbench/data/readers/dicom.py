"""A folder of DICOM slices in: one CT series, its geometry taken from the positions of its slices.

Common readers sort by name or number and trust that spacing is even. Here every slice's position is compared with its
neighbours', so that a missing or doubled slice, a tilted gantry or a second series is seen. Cases are named by their folder; of the patient
only ID, birth date and sex are compared, as digests.

One rule says what makes slices one volume: they agree in all attributes of `ONE`, and where they come from several acquisitions, these are
the parts of one scan (a table that moves on between rotations) and not its phases.
"""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from workbench.data.readers import gates, walk
from workbench.data.readers.pixels import decodable, hu_of, voxels_of
from workbench.data.readers.slices import GREY, HIDDEN, ONE, Slice, TIMES, headers_of, is_dicom
from workbench.volume import Refused, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

GAP = 0.05  # rule: share of the slice distance that positions may be off; scanners round to 0.001 mm
PLACE_MM = 0.01  # rule: a mask's image and its slice say the same position in their own decimals
GRID = 0.05  # rule: share of a pixel that a slice's corners may lie off the others' grid through its header's rounding
TILT_MM = 0.05  # rule: sideways shift per slice; half a degree over 5 mm slices
ROTATION_MM = 40.0  # rule: what the detector of a common scanner covers in one rotation
PAUSE_S = 20.0  # rule: less lies between two slices of one scan, more between two phases of contrast
ROUNDED_MM = (1.0, 0.1)  # rule: what anonymizers and exports round positions to
ALL = "all"  # in place of a series or a phase: take them for one
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
HU_TYPES = ("", "HU", "US", "HU_MOD")  # fixed: US is what is not specified
# words of ImageType beyond its first two values, and what such images are
NO_PLAIN_CT = (
    (r"IODINE|MATERIAL|WATER|CALCIUM|FAT_|Z_?EFF|RHO|ELECTRON|DENSITY|PERFUSION|PARAM|_MAP|SUBTRACT", "a map of a material or of another quantity"),
    (r"VNC|VIRTUAL|VUE|UNENHANCED|NON_?CONTRAST", "a virtual non-contrast image"),
    (r"MIN_?IP|MAX_?IP|(?<![A-Z])MIP|MPVR|PROJECTION|AVERAGE|THICK_?MIP|VOLUME_?REND|VRT|SSD", "a projection through several slices"),
    (r"MONO|KEV|OPTIMUM_?CONTRAST|NONLINEAR", "a virtual image of one energy"),
    (r"OVERLAY|FUSED|FUSION|COLOU?R|SCREEN|BONE_?REMOV", "a picture drawn from a CT"),
)  # fmt: skip
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
BESIDE = {"SEG", "RTDOSE", "OT"}  # rule: made from a CT, or of a screen; any other image may be the one meant
MAX_TOLD = 4  # rule: faults named in one line


def list_cases(path: str | Path) -> list[Path]:
    """The folders at or below a path that hold DICOM files."""
    path = Path(path)
    if not path.is_dir():
        return []
    return sorted({p.parent for p in walk.files(path) if is_dicom(p)}, key=gates.natural)


def read(
    path: str | Path,
    *,
    fill_nonfinite: float | None = None,
    series: str | None = None,
    phase: str | None = None,
    rescale: tuple[float, ...] | None = None,
    as_stored: bool = False,
) -> Volume:
    """The CT series of a folder as canonical `[z y x]` HU.

    `series` is a SeriesInstanceUID where there are several, and `phase` an attribute that tells the wanted slices from the others, as
    `AcquisitionNumber=2`; "all" takes what these tell apart for one. `rescale`: slope and intercept in place of the header's.
    """
    path = Path(path)
    order, affine = _stack(path, series, phase)
    if series != ALL:
        _each_its_own(order, path)
    if not as_stored and order[0].told["RescaleType"].upper() not in HU_TYPES:
        raise Refused(path, f"a RescaleType of {order[0].told['RescaleType']!r}", "HU",
                      "These are values of another kind than CT numbers: give the CT series itself.")  # fmt: skip
    if rescale is not None and (len(rescale) != 2 or not np.isfinite(rescale).all() or rescale[0] == 0):
        raise Refused(path, f"a rescale of {rescale}", "a slope other than 0 and an intercept")
    return gates.ct(hu_of(order, path, rescale), affine, path, fill_nonfinite, as_stored=as_stored)


def stack(path: Path, series: str | None = None) -> tuple[list[Slice], np.ndarray]:
    """The slices of a folder's CT series in order along their normal, and the affine (column, row, slice) -> RAS mm."""
    order, affine = _stack(path, series, None)
    _each_its_own(order, path)
    return order, affine


def _stack(path: Path, series: str | None, phase: str | None) -> tuple[list[Slice], np.ndarray]:
    gates.existing(path)
    if path.is_file():
        raise Refused(path, "a single DICOM file", "the folder that holds the whole series", f"Give {path.parent}.")
    order, affine = _geometry(_one_series(headers_of(path), path, series, phase), path, phase)
    _plain_ct(order[0], path)
    return order, affine


def read_mask(folder: Path, order: list[Slice]) -> np.ndarray:
    """A mask that has an image for each slice of a CT, as bool `[column row slice]` in the CT's `order`.

    The images are matched by their positions; where they tell of none, by the names of their files.
    """
    found = headers_of(folder)
    if len(found) != len(order) or {(s.rows, s.columns) for s in found} != {(order[0].rows, order[0].columns)}:
        raise Refused(folder, f"{len(found)} images of {found[0].columns} x {found[0].rows}",
                      f"{len(order)} of {order[0].columns} x {order[0].rows}, as the CT has")  # fmt: skip
    decodable(found, folder)
    mask = np.empty((len(order), order[0].rows, order[0].columns), bool)
    values: set[int] = set()
    for k, s in enumerate(_matched(found, order, folder)):
        stored, *_ = voxels_of(s, mask=True)
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


def _one_series(slices: list[Slice], folder: Path, series: str | None, phase: str | None) -> list[Slice]:
    """The slices of one CT series, which agree in all of `ONE`; refused with a list when there are several to choose from."""
    kinds = ", ".join(sorted({s.modality for s in slices}))
    images = [s for s in slices if s.modality == "CT"]
    if not images:
        raise Refused(folder, f"{len(slices)} DICOM images of modality {kinds}", "CT")
    chosen = [s for s in images if series in (None, ALL, s.told["SeriesInstanceUID"])]
    if not chosen:
        raise Refused(folder, f"no CT series {series}", f"one of {_listed(_groups(images, ONE))}")
    if series is None and phase is None:
        chosen = [s for s in slices if s.modality not in BESIDE]
    if phase is not None and phase != ALL:
        chosen = _of_phase(chosen, folder, phase)
    tags = tuple(tag for tag in ONE if series != ALL or tag not in UIDS)
    groups = _groups(chosen, tags)
    if len(groups) > 1:
        differ = [tag for n, tag in enumerate(tags) if len({key[n] for key in groups}) > 1]
        uids = [tag for tag in differ if tag in UIDS]
        if len(groups) > MAX_TOLD and len(uids) == len(differ) and len(groups) > len(chosen) // 2:
            raise Refused(folder, f"{len(groups)} values of {', '.join(uids)} in {len(chosen)} images", "one for all slices of a series",
                          f"An anonymizer does this. If they are one series: workbench convert {folder} -o NEW.nii.gz --series {ALL}.")  # fmt: skip
        raise Refused(folder, f"{len(groups)} series or grids: {_listed(groups, differ)}", "one CT series", _choice(groups, differ, folder))  # fmt: skip
    if chosen[0].scout:
        raise Refused(folder, f"only a scout view ({len(chosen)} images)", "the slices of a CT series")
    return chosen


def _groups(slices: list[Slice], tags: Sequence[str]) -> dict[tuple[str, ...], list[Slice]]:
    groups = defaultdict(list)
    for s in slices:
        groups[tuple(s.told[tag] for tag in tags)].append(s)
    return groups


def _of_phase(slices: list[Slice], folder: Path, phase: str) -> list[Slice]:
    """The slices of which an attribute has the wanted value."""
    tag, equals, value = phase.partition("=")
    if not equals or tag not in slices[0].told:
        raise Refused("--phase", phase, f"{ALL} or an attribute and its value, as AcquisitionNumber=2",
                      f"Attributes: {', '.join(slices[0].told)}.")  # fmt: skip
    wanted = hashlib.sha256(value.encode()).hexdigest() if value and tag in HIDDEN else value
    chosen = [s for s in slices if s.told[tag] == wanted]
    if not chosen:
        raise Refused(folder, f"no slice with {phase}", _values(tag, [s.told[tag] for s in slices]))
    return chosen


def _values(tag: str, told: Sequence[str]) -> str:
    """An attribute with its values; how many where they are not to be told."""
    values = sorted(set(told), key=lambda v: gates.natural(Path(v)))
    if tag in HIDDEN:
        return f"{tag} with {len(values)} values, not shown"
    return f"{tag} {_told([value[:80] or 'none' for value in values], ' and ')}"


def _choice(groups: dict, differ: list[str], folder: Path) -> str:
    """How to say which of several is meant."""
    command, own = f"workbench convert {folder} -o NEW.nii.gz", "move the one you want to a folder of its own"
    if "SeriesInstanceUID" in differ:
        return f"Choose one: {command} --series UID, or {own}."
    (tag, *_) = [tag for tag in differ if tag not in HIDDEN] or [""]
    if not tag:
        return f"{own.capitalize()}."
    value = next(iter(groups.values()))[0].told[tag]
    return f"Choose one: {command} --phase '{tag}={value}', or {own}."


def _listed(groups: dict, differ: Sequence[str] = ()) -> str:
    always, lines = ["Modality", "SeriesNumber", "Rows", "Columns", "SeriesInstanceUID"], []
    if "SeriesInstanceUID" in differ:
        always += UIDS
    for group in groups.values():
        s, n = group[0], len(group)
        what = "scout" if s.scout else s.modality
        images = f"{n} image{'s' * (n > 1)} of {s.columns} x {s.rows}"
        uid = s.told["SeriesInstanceUID"]
        number = s.told["SeriesNumber"] or "without number"
        more = "".join(
            f", {tag} {s.told[tag][:80] or 'none'}" for tag in differ if tag not in always and tag not in HIDDEN
        )
        lines.append(f"[{what} series {number}, {images}, {f'UID {uid}' if uid else 'no UID'}{more}]")
    hidden = [_values(tag, [group[0].told[tag] for group in groups.values()]) for tag in differ if tag in HIDDEN]
    return _told(sorted(lines), ", ") + "".join(f"; {words}" for words in hidden)


def _each_its_own(slices: list[Slice], folder: Path) -> None:
    """Refuse slices that share an SOPInstanceUID: nothing that refers to one of them could say which."""
    uids = {s.sop for s in slices}
    if len(uids) < len(slices) and uids != {""}:
        raise Refused(folder, f"{len(uids)} SOPInstanceUID for {len(slices)} slices", "one for each slice",
                      "Their headers were damaged or are copies: fetch the original series. If their positions are right: workbench convert "
                      f"{folder} -o NEW.nii.gz --series {ALL}.")  # fmt: skip


def _plain_ct(s: Slice, folder: Path) -> None:
    """Warn of a series that is made of a CT and may be none."""
    kind = s.told["ImageType"].upper().replace(" ", "_").split("\\")
    shown = s.told["ImageType"][:100]
    if s.told["RescaleType"].upper() not in HU_TYPES[:3]:
        gates.warn(folder, f"RescaleType {s.told['RescaleType']}: its values may be no CT numbers (HU)")
    for pattern, what in NO_PLAIN_CT:
        if any(re.search(pattern, word) for word in kind[2:]):
            gates.warn(folder, f"ImageType {shown}: {what}, no plain CT; the models know plain CT in HU")
            return
    if "DERIVED" in kind[:2] or "SECONDARY" in kind[:2] or s.told["SOPClassUID"].startswith(SECONDARY_CAPTURE):
        gates.warn(
            folder, f"ImageType {shown}: computed from other images; its HU and its slices may not be the scanner's"
        )


def _geometry(slices: list[Slice], folder: Path, phase: str | None) -> tuple[list[Slice], np.ndarray]:
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
    if phase != ALL:
        _one_scan(slices, position @ normal, folder)
    position = _unrounded(slices, position, folder)
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


def _one_scan(slices: list[Slice], height: np.ndarray, folder: Path) -> None:
    """Refuse slices of several acquisitions, unless these are the rotations of one scan, one above the other."""
    own = f"move one to a folder of its own; if they are one scan: --phase {ALL}."
    told = [s.told["AcquisitionNumber"] for s in slices]
    numbers = list(dict.fromkeys(told))
    runs = 1 + sum(a != b for a, b in zip(told, told[1:]))
    if 1 < len(numbers) and not len(numbers) == runs == len(slices):
        spans = [np.ptp(height[[t == n for t in told]]) for n in numbers]
        if runs > len(numbers) or len(numbers) == 2 or max(spans) > ROTATION_MM:
            how = "mixed" if runs > len(numbers) else "one above the other"
            raise Refused(folder, f"{len(numbers)} acquisitions in one series, {how}: {_values('AcquisitionNumber', told)}",
                          "the slices of one scan, not of several phases",
                          f"Choose one: workbench convert {folder} -o NEW.nii.gz --phase AcquisitionNumber={numbers[0]}, or {own}")  # fmt: skip
        gates.warn(folder, f"{len(numbers)} acquisitions one above the other, taken for the rotations of one scan")
    for tag in TIMES:
        seconds = [_seconds(s.told[tag]) for s in slices]
        if None in seconds:
            continue
        apart = np.diff(seconds)
        if (apart > PAUSE_S).any() and (apart < -PAUSE_S).any():
            k = int(np.abs(apart).argmax())
            early, late = (slices[i].told[tag] for i in sorted((k, k + 1), key=lambda i: seconds[i]))
            raise Refused(folder, f"slices of several times mixed, as neighbours with {tag} {early} and {late}",
                          "the slices of one scan, not of several phases",
                          f"Choose one: workbench convert {folder} -o NEW.nii.gz --phase {tag}={early}, or {own}")  # fmt: skip
        return


def _seconds(time: str) -> float | None:
    """Seconds since midnight of a DICOM time."""
    match = re.fullmatch(r"(\d\d)(\d\d)?(\d\d(?:\.\d*)?)?", time.replace(":", ""))
    return 3600 * int(match[1]) + 60 * int(match[2] or 0) + float(match[3] or 0) if match else None


def _unrounded(slices: list[Slice], position: np.ndarray, folder: Path) -> np.ndarray:
    """Positions on the even line that explains them where they were rounded to 0.1 mm or whole mm; else as they are.

    Rounding makes at least three gaps other than the most common one and keeps each position within half a unit of the line. Whole gaps in
    between that the header gives for the slice distance are missing slices.
    """
    gap = np.linalg.norm(np.diff(position, axis=0), axis=1)
    step = np.median(gap)
    if (np.abs(gap - step) <= max(GAP * step, 1e-3)).all() or gap.min() < 1e-3:
        return position
    sizes, counts = np.unique(gap.round(3), return_counts=True)
    multiples = np.abs(gap / gap.min() - np.rint(gap / gap.min())).max() < 1e-3
    lost = multiples and any(abs(mm - gap.min()) < 0.02 * mm for s in slices for mm in s.between_mm)
    if lost or len(gap) - counts.max() < 3:
        return position
    for unit in ROUNDED_MM:
        lines = [_even(axis, unit) for axis in position.T]
        if all(line is not None for line in lines):
            even = np.stack(lines, 1)
            mm = float(np.linalg.norm(even[1] - even[0]))
            gates.warn(folder, f"positions rounded to {unit:g} mm ({' and '.join(f'{n:g}' for n in sizes[:MAX_TOLD])} mm between slices), "
                       f"taken for an even distance of {mm:.4g} mm")  # fmt: skip
            return even
    return position


def _even(along: np.ndarray, unit: float) -> np.ndarray | None:
    """The even steps of which these coordinates are the rounded ones, with as few decimals as any that are; None where there are none."""
    k = np.arange(len(along))
    if np.ptp(along) < 1e-6:
        return along
    if np.abs(along / unit - np.rint(along / unit)).max() > 1e-4:
        return None
    near = np.polyfit(k, along, 1)[0]
    steps = [round(near, decimals) for decimals in range(5)] + [near]
    left = [(along - k * step) for step in steps]
    fits = [(step, off) for step, off in zip(steps, left) if np.ptp(off) <= 1.001 * unit]
    return None if not fits else fits[0][0] * k + (fits[0][1].max() + fits[0][1].min()) / 2


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


def _told(faults: list[str], between: str = "; ") -> str:
    more = f" and {len(faults) - MAX_TOLD} more" if len(faults) > MAX_TOLD else ""
    return between.join(faults[:MAX_TOLD]) + more
