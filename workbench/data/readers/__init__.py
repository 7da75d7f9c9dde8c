"""Everything that comes in: a CT from NIfTI, NRRD, MHA, MHD or a DICOM folder, label maps, pairs to evaluate.

Each reader module has the same two functions, `list_cases(path)` and `read(path)`. What they return is canonical
(`workbench.volume`) and remembers the file's own grid. The modules of public collections (`scans` names them) have the same
two, of a case with its labels. Bad input raises `Refused`, doubtful input warns with
`WorkbenchWarning`. The libraries behind the readers are imported when they are needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.data.readers import gates
from workbench.data.readers.gates import WorkbenchWarning, case_name
from workbench.volume import Refused, Volume, same_grid

__all__ = ["Verdict", "WorkbenchWarning", "case_name", "check", "list_cases", "pair_labels", "read", "read_labels"]

AROUND = r"^(test-)?(segmentation|volume|labels?)[-_]|[-_](segmentation|labels?|seg|pred|prediction)$"
NO_CASE = r"(reader|rater|observer|annotator|expert|fold|model|run|version|epoch|v)[-_ ]?\d+"  # numbers of something else
NO_CASES = ("verdicts", "cards")  # folders in a result
BESIDE_LABELS = (  # what may lie in a case's folder beside its labels.nii.gz
    r"(ct|image|img|volume|scan|liver|tumou?r|liver_mask|tumou?r_mask|mask|ledger|candidates|lesions|(liver|tumor)_probability|labels[-_].*)(_0000)?"
)
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


def read(path: str | Path, *, fill_nonfinite: float | None = None, as_stored: bool = False, **choice) -> Volume:
    """A CT in HU, canonical `[z y x]`, int16 where its values are whole and fit, else float32.

    What a file leaves open can be settled on purpose: `fill_nonfinite` in place of NaN; of a file, `orientation` ("LPS": where its axes lead)
    and `spacing_mm` along its axes, or the NIfTI `form` to trust (sform, qform or pixdim); of a DICOM folder, the UID of one `series`, a
    `phase` ("AcquisitionNumber=2") and `rescale` (slope, intercept). `as_stored`, for descriptors: real numbers keep the type that they have
    in the file, and what cannot be HU is warned of, not refused.
    """
    path = Path(path)
    return _reader(path, choice).read(path, fill_nonfinite=fill_nonfinite, as_stored=as_stored, **_said(choice))


def read_labels(
    path: str | Path,
    like: Volume | None = None,
    *,
    allowed: Collection[int] | None = (0, 1, 2),
    allow_empty: bool = True,
    **choice,
) -> Volume:
    """A label map, canonical `[z y x]`, uint8 (int32 where a value is above 255).

    `allowed` None takes any regions numbered from 0. With `like`, it must lie on that volume's grid. `orientation` and `spacing_mm` as in `read`.
    """
    from workbench.data.readers import itk

    path = Path(path)
    if path.is_dir():
        raise Refused(path, "a folder", "a label map as NIfTI, NRRD, MHA or MHD")
    volume = _reader(path, choice).read_labels(path, allowed=allowed, **_said(choice))
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
        except (Refused, OSError) as error:
            return Verdict(str(path), False, gates.said(error, path), tuple(told))
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
    are both case 12. Two files whose case numbers differ are no pair. A case without its partner is refused or, with `common`, left out with a
    warning that names it.
    """
    truth, prediction = Path(truth), Path(prediction)
    one, other = _label_files(truth), _label_files(prediction)
    if _single(truth) and _single(prediction):
        (file,), (twin,) = one.values(), other.values()
        names = case_name(file), case_name(twin)
        if _numbers_differ(*names):
            raise Refused(f"{truth} and {prediction}", f"the cases {' and '.join(names)}", "one case",
                          "Give both files the same name if they are of one case.")  # fmt: skip
        return [(case_name(prediction), file, twin)]
    if set(one) != set(other):
        one, other = (_plain(files) for files in (one, other))
    lonely = sorted(set(one) - set(other), key=_key), sorted(set(other) - set(one), key=_key)
    both, pair = set(one) & set(other), f"{truth} and {prediction}"
    if any(lonely) and common and both:
        gates.warn(
            pair,
            f"{len(both)} cases in both; left out: {len(lonely[0])} truth without prediction ({', '.join(lonely[0]) or 'none'}), "
            f"{len(lonely[1])} prediction without truth ({', '.join(lonely[1]) or 'none'})",
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


CHOICES = {
    "dicom": ("series", "phase", "rescale"),
    "nifti": ("form", "orientation", "spacing_mm"),
    "itk": ("orientation", "spacing_mm"),
}


def _said(choice: dict) -> dict:
    return {name: value for name, value in choice.items() if value is not None}


def _reader(path: Path, choice: dict):
    """The module that reads a path, chosen by what it is called; refused when it knows nothing of a choice."""
    reader = _module(path)
    name = reader.__name__.split(".")[-1]
    for key, value in _said(choice).items():
        if key not in CHOICES[name]:
            of = " and ".join(kind for kind, known in CHOICES.items() if key in known)
            raise Refused(path, f"{key}={value}", f"no {key}, which only {of or 'no'} input has")
    return reader


def _module(path: Path):
    from workbench.data.readers import dicom, itk, nifti

    gates.existing(path)
    name = path.name.lower()
    if path.is_dir():
        return dicom
    for reader in (nifti, itk):
        if name.endswith(reader.SUFFIXES):
            return reader
    if gates.bytes_of(path, 132)[128:] == b"DICM":
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


def _numbers_differ(one: str, other: str) -> bool:
    """Whether two names are alike but for a case number (segmentation-3, volume-7); numbers of readers, versions and the like are none."""
    found = [re.sub(NO_CASE, "", _bare(name)) for name in (one, other)]
    numbers = [[int(n) for n in re.findall(r"\d+", name)] for name in found]
    words = [re.sub(r"\d+", "", name).strip("-_. ") for name in found]
    alike = words[0] == words[1] or not all(words)
    return alike and bool(numbers[0] and numbers[1]) and numbers[0][-1:] != numbers[1][-1:]


def _label_files(path: Path) -> dict[str, Path]:
    """{case: label file} of a file, a case's folder, or a folder of either. What is no case there is named."""
    gates.existing(path)
    if path.is_file():
        return {gates.one_form(case_name(path)): path}
    files = [p for p in sorted(path.iterdir()) if _is_label_file(p)]
    folders = {p: _case_labels(p) for p in sorted(path.iterdir()) if p.is_dir() and p.name not in NO_CASES}
    cases = [folder for folder, inside in folders.items() if inside]
    own = next((p for p in files if gates.stem(p).lower() == "labels"), None)
    if own:
        others = [p for p in files if p != own and not re.fullmatch(BESIDE_LABELS, gates.stem(p).lower())]
        kinds = [re.sub(r"\d+", "#", gates.stem(p).lower()) for p in others]
        if cases or any(re.match("seg", kind) or kinds.count(kind) > 1 for kind in kinds):
            beside = [*others, *cases]
            raise Refused(
                own, f"a label file of one case beside {len(beside)} others ({', '.join(p.name for p in beside[:5])})",
                "a folder of one case, or of several that are told apart by their names",
                "Move it away, or name it after its case.",
            )  # fmt: skip
        if others:
            gates.warn(path, f"labels.nii.gz is its case; passed over: {', '.join(p.name for p in others)}")
        return {gates.one_form(path.absolute().name): own}
    labelled = {_bare(gates.stem(p)) for p in files if not _is_image(p)}
    named = [p for p in files if re.match(r"(test-)?(labels?|segmentation)", gates.stem(p).lower())]
    images = [p for p in files if _is_image(p) and (named or _bare(gates.stem(p)) in labelled)]
    bare = [p.name for p in images if _bare(gates.stem(p)) not in labelled and len(named) > 1]
    if bare:
        gates.warn(path, f"no labels beside {', '.join(bare)}: passed over")
    files = [p for p in files if p not in images]  # CTs
    found = {gates.one_form(gates.stem(p)): p for p in files}
    if len(found) < len(files):
        raise Refused(path, "one case in two formats", "one label file a case", "Remove one of the two.")
    for folder, inside in folders.items():
        if len(inside) > 1:
            raise Refused(folder, f"{len(inside)} label files ({', '.join(p.name for p in inside)})", "one",
                          "Keep one, or name it labels.nii.gz.")  # fmt: skip
        name = gates.one_form(folder.name)
        if inside and name in found:
            raise Refused(path, f"case {name} as {found[name].name} and as {inside[0]}", "each case once", "Remove one.")
        if inside:
            found[name] = inside[0]
        elif any(map(_is_label_file, folder.iterdir())):
            gates.warn(folder, "no file named labels in it: it is passed over")
    if not found:
        raise Refused(path, "no label file", "label files, or case folders that hold labels.nii.gz")
    return found


def _is_image(path: Path) -> bool:
    """Whether a file's name is that of a CT: volume-3, ct, case_0000."""
    return bool(re.search(r"^(volume|ct|image|img|scan)([-_]|$)|[-_](ct|image|img|0000)$", gates.stem(path).lower()))


def _bare(name: str) -> str:
    """A name without the words that LiTS and others put around the case, in small letters."""
    name = gates.one_form(name).lower()
    while (less := re.sub(AROUND, "", name)) not in (name, ""):
        name = less
    return name


def _plain(files: dict[str, Path]) -> dict[str, Path]:
    """Files by their bare names. nnU-Net's channel is none of the case where all have it."""
    channel = len(files) > 1 and all(name.endswith("_0000") for name in files)
    plain = {_bare(name.removesuffix("_0000") if channel else name): path for name, path in files.items()}
    return plain if len(plain) == len(files) else files


def _key(name: str) -> list:
    return gates.natural(Path(name))
