"""Everything that comes in: a CT from NIfTI, NRRD, MHA, MHD or a DICOM folder, label maps, pairs to evaluate.

Each reader module has the same two functions, `list_cases(path)` and `read(path)`. What they return is canonical
(`workbench.volume`) and remembers the file's own grid. The modules of public collections (`scans` names them) have the same
two, of a case with its labels. Bad input raises `Refused`, doubtful input warns with
`WorkbenchWarning`. The libraries behind the readers are imported when they are needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.data.readers import gates
from workbench.data.readers.gates import WorkbenchWarning, case_name
from workbench.volume import Refused, Volume, same_grid

__all__ = ["Verdict", "WorkbenchWarning", "case_name", "check", "list_cases", "pair_labels", "read", "read_labels"]

ROUNDED = 0.05  # rule: share of a voxel that headers of one grid may be apart, as `dicom.GRID`; more is another grid
OTHER_GRID = "Resample one onto the other first; if their voxels agree and only the headers differ, copy the CT's header to the labels."
FORMATS = "NIfTI (.nii, .nii.gz), NRRD, MHA, MHD or a DICOM folder"


@dataclass(frozen=True)
class Verdict:
    """What `check` says of one input."""

    path: str
    ok: bool
    message: str
    warnings: tuple[str, ...] = ()


def read(
    path: str | Path,
    *,
    fill_nonfinite: float | None = None,
    form: str | None = None,
    series: str | None = None,
    as_stored: bool = False,
) -> Volume:
    """A CT in HU, canonical `[z y x]`, int16 where its values are whole and fit, else float32.

    What a file leaves open can be settled on purpose: `fill_nonfinite` in place of NaN, the NIfTI `form` to trust
    (sform, qform or pixdim), the UID of one DICOM `series`. `as_stored`, for descriptors: real numbers keep the type that they have in the
    file, and what cannot be HU is warned of, not refused.
    """
    from workbench.data.readers import dicom, nifti

    path = Path(path)
    reader = _reader(path)
    for value, name, of in ((form, "form", nifti), (series, "series", dicom)):
        if value is not None and reader is not of:
            raise Refused(path, f"{name}={value}", f"no {name}, which only {of.__name__.split('.')[-1]} input has")
    choice = {"form": form} if form is not None else {"series": series} if series is not None else {}
    return reader.read(path, fill_nonfinite=fill_nonfinite, as_stored=as_stored, **choice)


def read_labels(
    path: str | Path,
    like: Volume | None = None,
    *,
    allowed: Collection[int] | None = (0, 1, 2),
    allow_empty: bool = True,
) -> Volume:
    """A label map, canonical `[z y x]`, uint8 (int32 where a value is above 255).

    `allowed` None takes any regions numbered from 0. With `like`, it must lie on that volume's grid.
    """
    from workbench.data.readers import itk

    path = Path(path)
    reader = _reader(path)
    if path.is_dir():
        raise Refused(path, "a folder", "a label map as NIfTI, NRRD, MHA or MHD")
    volume = reader.read_labels(path, allowed=allowed)
    if like is not None:
        try:
            same_grid(like, volume, ROUNDED * min(like.spacing_mm))
        except Refused as refused:
            fix = itk.SLICER if path.name.lower().endswith(".seg.nrrd") else OTHER_GRID
            raise Refused(path, *_grids(like, volume, refused), fix) from None
        volume = replace(volume, affine=like.affine, spacing_mm=like.spacing_mm)  # as far as headers are rounded
    if not allow_empty and not bool(volume.array.any()):
        raise Refused(path, "an empty mask", "at least one voxel above 0")
    return volume


def check(path: str | Path) -> Verdict:
    """Read one CT and say whether it can be used, and what to look at."""
    with gates.heard() as told:
        try:
            volume = read(path)
        except Refused as refused:
            return Verdict(str(path), False, str(refused), tuple(told))
    z, y, x = volume.shape
    sz, sy, sx = volume.spacing_mm
    low, high = (volume.array.min().item(), volume.array.max().item())
    text = f"{x} x {y} x {z} voxels of {sx:.4g} x {sy:.4g} x {sz:.4g} mm, {low:g} to {high:g} HU"
    return Verdict(str(path), True, text, tuple(told))


def list_cases(path: str | Path) -> list[Path]:
    """Every CT at or below a path, of any format: files, and folders of DICOM slices."""
    from workbench.data.readers import dicom, itk, nifti

    path = Path(path)
    if not path.exists():
        gates.existing(path)
    found = [case for reader in (nifti, itk, dicom) for case in reader.list_cases(path)]
    return sorted(set(found), key=gates.natural) if found or path.is_dir() else [path]


def pair_labels(truth: str | Path, prediction: str | Path, common: bool = False) -> list[tuple[str, Path, Path]]:
    """(name, truth file, prediction file) of two label files or two folders, matched by case name.

    In a folder a case is a file, or a folder that holds one `labels*` file. LiTS's `segmentation-12` and `volume-12`
    are both case 12. A case without its partner is refused or, with `common`, left out with a warning that counts them.
    """
    truth, prediction = Path(truth), Path(prediction)
    one, other = _label_files(truth), _label_files(prediction)
    if _single(truth) and _single(prediction):
        (file,), (twin,) = one.values(), other.values()
        return [(case_name(prediction), file, twin)]
    if set(one) != set(other):
        one, other = (_plain(files) for files in (one, other))
    lonely = sorted(set(one) - set(other), key=_key), sorted(set(other) - set(one), key=_key)
    both, pair = set(one) & set(other), f"{truth} and {prediction}"
    if any(lonely) and common and both:
        gates.warn(
            pair,
            f"{len(both)} cases in both; left out: {len(lonely[0])} truth without prediction, "
            f"{len(lonely[1])} prediction without truth",
        )
    elif any(lonely):
        raise Refused(
            pair,
            f"{len(lonely[0])} truth without prediction ({', '.join(lonely[0]) or 'none'}), "
            f"{len(lonely[1])} prediction without truth ({', '.join(lonely[1]) or 'none'})",
            "a case name that is on both sides" if common else "the same case names on both sides",
            "Rename these." if common else "Rename or remove these, or score only what both have: --common.",
        )
    return [(name, one[name], other[name]) for name in sorted(both, key=_key)]


def _reader(path: Path):
    """The module that reads a path, chosen by what it is called."""
    from workbench.data.readers import dicom, itk, nifti

    gates.existing(path)
    name = path.name.lower()
    if path.is_dir():
        return dicom
    if not os.access(path, os.R_OK):
        raise Refused(path, "a file that may not be read", "read permission")
    for reader in (nifti, itk):
        if name.endswith(reader.SUFFIXES):
            return reader
    with open(path, "rb") as file:
        if file.read(132)[128:] == b"DICM":
            return dicom
    raise Refused(path, f"a file named {path.suffix or 'without suffix'}", FORMATS)


def _grids(like: Volume, labels: Volume, refused: Refused) -> tuple[str, str]:
    """Both grids in numbers, x y z, for the one line that says why they do not fit."""

    def told(volume: Volume) -> str:
        size, mm = volume.shape[::-1], volume.spacing_mm[::-1]
        return f"{' x '.join(map(str, size))} voxels of {' x '.join(f'{s:.4g}' for s in mm)} mm"

    if like.shape != labels.shape:
        return told(labels), f"{told(like)}, the grid of {like.name}"
    return str(refused).split("found ", 1)[1].split("; expected", 1)[0], f"the grid of {like.name} ({told(like)})"


def _is_label_file(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(gates.SUFFIXES) and not path.name.startswith(".")


def _case_labels(folder: Path) -> list[Path]:
    """The label map of one case's folder: `labels.nii.gz`, else every file whose name begins so."""
    files = [p for p in sorted(folder.iterdir()) if _is_label_file(p)]
    exact = [p for p in files if gates.stem(p).lower() == "labels"]
    return exact or [p for p in files if re.match(r"(labels?|segmentation)\b", gates.stem(p).lower())]


def _single(path: Path) -> bool:
    return path.is_file() or len(_label_files(path)) == 1 and bool(_case_labels(path))


def _label_files(path: Path) -> dict[str, Path]:
    """{case: label file} of a file, a case's folder, or a folder of either."""
    gates.existing(path)
    if path.is_file():
        return {case_name(path): path}
    own = _case_labels(path)
    if any(gates.stem(p).lower() == "labels" for p in own):
        return {path.absolute().name: own[0]}
    files = own or [p for p in sorted(path.iterdir()) if _is_label_file(p)]
    found = {gates.stem(p): p for p in files}
    if len(found) < len(files):
        raise Refused(path, "one case in two formats", "one label file a case", "Remove one of the two.")
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        inside = _case_labels(folder)
        if len(inside) > 1:
            raise Refused(folder, f"{len(inside)} label files ({', '.join(p.name for p in inside)})", "one",
                          "Keep one, or name it labels.nii.gz.")  # fmt: skip
        if inside:
            found[folder.name] = inside[0]
    if not found:
        raise Refused(path, "no label file", "label files, or case folders that hold labels.nii.gz")
    return found


def _plain(files: dict[str, Path]) -> dict[str, Path]:
    """Names without the words that LiTS and others put around the case."""
    around = r"^(segmentation|volume|labels?)[-_]|[-_](segmentation|labels?|seg|0000)$"
    plain = {re.sub(around, "", name): path for name, path in files.items()}
    return plain if len(plain) == len(files) else files


def _key(name: str) -> list:
    return gates.natural(Path(name))
