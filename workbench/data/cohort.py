"""The cohort: which case belongs to which patient, who is held out, who is in which fold.

A manifest is a CSV with the columns case, patient, ct and labels; paths are relative to it. A column split (train or test) holds patients
out, without it all train. A column field_of_view marks what was cut to the liver's box (docs/decisions/0009). A column tumor_labels says what
label 2 means: `complete`, every tumor; `none`, the scan has no known tumor; `exclude`, regions to leave out of training. `workbench import` adds what it
measured (`MEASURED`). `SCHEMA` says what a cell of each column may be; other columns are left alone. A patient never stands on both sides of
a split nor in two folds, and a scan, whatever it is called, stands in a cohort once. `columns` reads the CSV.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from workbench.data import columns, phantom
from workbench.data.files import write_atomic, write_table
from workbench.data.threads import cores, in_processes
from workbench.volume import Refused, Volume

if TYPE_CHECKING:
    from workbench.data.readers import Verdict

COLUMNS = ("case", "patient", "ct", "labels")
OPTIONAL = {
    "split": ("train", "test"),
    "field_of_view": ("whole", "liver box"),
    "tumor_labels": ("complete", "none", "exclude"),
}  # the first is taken where it is not said
COUNT, LENGTH, AMOUNT = r"[1-9]\d{0,4}", r"\d{1,2}(\.\d{1,8})?", r"\d{1,6}(\.\d{1,8})?"
SEEN = r"(?s:(?!.*[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]))"  # no control character, nothing that is not UTF-8
# what a cell of each column may be, as a pattern and in words; a measured one may be empty
SCHEMA = {
    "case": (SEEN + r"[^\s./\\][^/\\]*(?<!\s)", "a name that a file can have. Use letters, digits, - and _"),
    "patient": (SEEN + r"\S(.*\S)?", "a name without spaces around it"),
    "ct": (SEEN + r".*\S", "a path in UTF-8"),
    "labels": (SEEN + r".*\S", "a path in UTF-8"),
    **{name: ("|".join(known), " or ".join(known)) for name, known in OPTIONAL.items()},
    **{name: (COUNT, "a count of 1 or more") for name in ("slices", "rows", "columns")},
    **{name: (LENGTH, "mm, as 0.75") for name in ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")},
    **{name: (AMOUNT, "ml, as 1500.25") for name in ("liver_ml", "tumor_ml")},
    "voxel_hash": (r"[0-9a-f]{16}", "16 hexadecimal digits"),
}
MEASURED = tuple(name for name in SCHEMA if name not in (*COLUMNS, *OPTIONAL))
HU = (-1024, 3071)  # fixed: the range of 12 bits, which every scanner and most converters keep
NAME_BYTES = 100  # rule: with what results and partial files add, it stays below the 255 of file systems
PHANTOM = "phantom.json"  # beside a phantom's CT
MINIMUM_PATIENTS = 3


@dataclass(frozen=True)
class ImplantSettings:
    """Copies of scans without known tumors into which synthetic lesions are drawn (docs/decisions/0016)."""

    copies: int = 3  # of each such training scan; 0: none
    count: tuple[int, int] = (3, 8)  # lesions in a copy, the least and the most
    kinds: tuple[str, ...] = (
        "tiny", "tiny", "metastasis", "metastasis", "metastasis", "rim-enhancing", "cyst", "hypervascular", "infiltrative", "necrotic",
    )  # fmt: skip  # a choice: mostly small and darker than the liver, as most metastases are

    def __post_init__(self):
        if self.copies < 0 or not 1 <= self.count[0] <= self.count[1]:
            found = f"copies {self.copies}, count {self.count}"
            raise Refused("implants", found, "copies from 0, and the least and the most lesions from 1")
        if unknown := set(self.kinds) - set(phantom.IMPLANTS):
            raise Refused("implants.kinds", ", ".join(sorted(unknown)), "some of " + ", ".join(phantom.IMPLANTS))


@dataclass(frozen=True)
class Case:
    """One row of a manifest, cells as `SCHEMA` has them, paths joined to the manifest's own."""

    case: str
    patient: str
    ct: Path
    labels: (
        Path | None
    )  # None where a cohort is segmented only, and where a net finds the liver of a scan without known tumors
    split: str = "train"
    field_of_view: str = "whole"
    tumor_labels: str = "complete"
    measured: dict[str, str] = field(default_factory=dict, compare=False)  # cells of MEASURED that are filled in

    def read(self) -> tuple[Volume, Volume]:
        """CT and labels, both canonical and on one grid; labels are 0 where the manifest names none. Refused where a scan without known
        tumors has one labelled."""
        from workbench.data import readers
        from workbench.data.readers import tissue

        ct = readers.read(self.ct)
        if self.labels is None:
            return ct, ct.with_array(torch.zeros(ct.shape, dtype=torch.uint8), f"labels of {self.case}")
        labels = readers.read_labels(self.labels, like=ct)
        tissue.hold(ct, labels, f"case {self.case}, {self.labels}")
        if self.tumor_labels == "none" and (voxels := int((labels.array == 2).sum())):
            raise Refused(
                f"case {self.case}, {self.labels}",
                f"{voxels * labels.voxel_ml:.3g} ml of label 2 (tumor)",
                "none of it, since the manifest's tumor_labels says none",
                "Say complete where label 2 is every tumor, or exclude where it marks regions to leave out.",
            )
        return ct, labels

    def identify(self, ct: Volume) -> str:
        """The voxel hash of its CT; refused when the manifest tells of other voxels."""
        found = voxel_hash(ct.array.numpy())
        told = self.measured.get("voxel_hash", found)
        if told != found:
            raise Refused(
                f"case {self.case}, {self.ct}",
                f"voxels of hash {found}",
                f"{told}, as the manifest says",
                "The file has changed since it was imported: import it again.",
            )
        return found

    def __str__(self) -> str:
        return f"{self.case} (patient {self.patient}, {self.split})"


def read_manifest(path: str | Path, labelled: bool = True, there: bool = True) -> list[Case]:
    """The cases of a manifest; refused when a cell is not what `SCHEMA` says, a file is not `there`, or a case, a scan or a patient
    stands where it must not. Not `labelled`: the column labels may be empty, or missing. It may be empty for a scan without known tumors."""
    path = Path(path)
    if not path.is_file():
        raise Refused(
            path, "no such file", "a cohort manifest (CSV)", "`workbench phantom OUT` writes one for synthetic cases."
        )
    cases, names = [], set()
    for number, row in rows(path, COLUMNS if labelled else COLUMNS[:-1]):
        told = {name: row.get(name, known[0]).lower() for name, known in OPTIONAL.items()}
        without = not row.get("labels") and (
            not labelled or (told["tumor_labels"] == "none" and told["split"] == "train")
        )
        conform(f"{path}, line {number}", {**row, **told}, ("labels",) if without else ())
        ct = columns.located(path.parent, row["ct"])
        labels = None if without else columns.located(path.parent, row["labels"])
        measured = {name: row[name] for name in MEASURED if row.get(name)}
        split, view, known = (told[name] for name in OPTIONAL)
        case = Case(row["case"], row["patient"], ct, labels, split, view, known, measured)
        if case.case in names:
            raise Refused(path, f"case {case.case} more than once", "each case once")
        names.add(case.case)
        if split == "test" and known == "exclude":
            raise Refused(
                f"{path}, line {number}", "tumor_labels exclude of a held-out case", "complete or none, to measure it"
            )
        if labelled and labels is None and view != "whole":
            raise Refused(
                f"{path}, line {number}", f"no labels, and field_of_view {view}",
                "a mask of the liver: no net finds it in a scan that is cut to it",
            )  # fmt: skip
        for file in (ct, labels):
            if there and file and not os.path.exists(file):
                raise Refused(f"{path}, case {case.case}", f"no file {file}", "CT and labels of each case")
        cases.append(case)
    each_patient_on_one_side(path, cases)
    each_scan_once(path, ((case, case.measured.get("voxel_hash", "")) for case in cases))
    return cases


def digests(manifest: str | Path, cases: Iterable[Case]) -> dict[str, str]:
    """A digest of what is read of each row, by case in their order: columns of one's own and other ways to write a path take no part."""
    place, found = Path(manifest).parent, {}
    for c in cases:
        files = [os.path.relpath(file, place) if file else None for file in (c.ct, c.labels)]
        told = [c.tumor_labels] * (c.tumor_labels != OPTIONAL["tumor_labels"][0])  # a digest of 0.1.0 holds on
        read = json.dumps([c.patient, *files, c.split, c.field_of_view, c.measured, *told])
        found[c.case] = hashlib.sha256(read.encode()).hexdigest()[:16]
    return found


def rows(path: Path, needed: Sequence[str] = COLUMNS) -> list[tuple[int, dict[str, str]]]:
    """(line, cells) of each row of a CSV that has at least the columns `needed`, as text; `labels` may be empty where `tumor_labels` is none."""
    optional = [name for name in (*COLUMNS, *OPTIONAL) if name not in needed]
    listed = columns.read(path, needed, "a cohort manifest (CSV)", optional, MEASURED)
    for number, row in listed:
        free = ("labels",) if row.get("tumor_labels") == "none" else ()
        if lacking := [column for column in needed if not row[column] and column not in free]:
            raise Refused(f"{path}, line {number}", f"no {', '.join(lacking)}", "a value for each column")
        for name in ("liver", "tumor"):
            if re.fullmatch(r"\d{1,3}([;+]\d{1,3})*|.*\.(nii|nii\.gz|nrrd|mha|mhd)", row.get(name, "")):
                raise Refused(
                    f"{path}, line {number}", f"{row[name]!r} in a column {name}, which a manifest does not have",
                    "labels with 1 liver and 2 tumor", "`workbench import csv` reads other values and masks; rename a column of your own.",
                )  # fmt: skip
    return listed


def conform(subject: object, row: dict[str, str], empty: Sequence[str] = ()) -> None:
    """Refuse a cell that is not what `SCHEMA` says; measured ones and those named may be `empty`."""
    for name, (_, words) in SCHEMA.items():
        value = row.get(name, "")
        if not fits(name, value) and not (value == "" and name in (*MEASURED, *empty)):
            raise Refused(subject, f"{'the ' * (name == 'case')}{name} {value[:100]!r}", words)


def fits(column: str, value: str) -> bool:
    """Whether a cell of a column is what `SCHEMA` says; the name of a case is no longer than a file's can be."""
    return bool(re.fullmatch(SCHEMA[column][0], value)) and (column != "case" or len(value.encode()) <= NAME_BYTES)


def each_patient_on_one_side(subject: object, cases: Iterable[Case]) -> None:
    """Refuse a patient who is in train and in test, also where the name is written in two ways (`P01`, `p1`)."""
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(_one_way(case.patient), case)
        if other.split != case.split and other.patient != case.patient:
            raise Refused(
                subject,
                f"patient {other.patient} in {other.split} and patient {case.patient} in {case.split}",
                "names that differ in more than case, spaces, marks and zeros",
                "Write one patient in one way, with the same split in each row; give two patients other names.",
            )
        if other.split != case.split:
            raise Refused(
                subject,
                f"patient {case.patient} in train and in test: {other.case} ({other.split}), {case.case} ({case.split})",
                "each patient on one side",
                "Give all scans of a patient the same split.",
            )


def _one_way(name: str) -> str:
    """A name as far as people and spreadsheets keep it: `P_01`, `p 01` and `P-1` are one."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    return re.sub(r"(?<!\d)0+(?=\d)", "", words) if len(re.findall(r"\d+", words)) == 1 else words


def each_scan_once(subject: object, hashes: Iterable[tuple[Case, str]]) -> None:
    """Refuse one scan under two names, told by its voxel hash: it would be learned from and held out, or stand in two folds."""
    seen: dict[str, Case] = {}
    for case, voxels in hashes:
        other = seen.setdefault(voxels, case) if voxels else case
        if other is not case:
            raise Refused(
                subject,
                f"the same voxels in cases {other} and {case}",
                "each scan once",
                "Remove one of the two: MSD Task03 is LiTS under other names, and 3D-IRCADb-01 is inside both.",
            )


def folds(cases: list[Case], tumor_ml: dict[str, float], count: int) -> dict[str, int]:
    """Fold of each training case: patients grouped, whole fields of view and then tumor load spread evenly (snake order)."""
    if count < 2:
        raise Refused("folds", str(count), "at least 2")
    patients: dict[str, float] = {}
    spelled: dict[str, str] = {}  # a patient written in two ways (`P01`, `p1`) is in one fold
    name = lambda c: spelled.setdefault(_one_way(c.patient), c.patient)
    for c in cases:
        patients[name(c)] = patients.get(name(c), 0.0) + tumor_ml[c.case]
    whole = {name(c) for c in cases if c.field_of_view == "whole"}
    if len(patients) < (least := max(count, MINIMUM_PATIENTS)):
        many = count > MINIMUM_PATIENTS
        raise Refused(
            "the cohort",
            f"{len(patients)} training patients",
            f"at least {least}{', one for each fold' * many}",
            f"Add patients{' or use fewer folds' * many}.",
        )
    order = sorted(patients, key=lambda p: (p not in whole, -patients[p], p))
    snake = [*range(count), *reversed(range(count))]
    of = {p: snake[i % len(snake)] for i, p in enumerate(order)}
    return {c.case: of[name(c)] for c in cases}


def voxel_hash(array: np.ndarray) -> str:
    """Names a scan by its voxels [any order of axes]: equal for every flip, order of axes and dtype, however it was saved.

    HU are rounded and cut to the range of 12 bits, since converters treat padding outside the scanner's circle (-2000, -3024) each in their
    own way. Of the 48 orientations the profiles (HU summed over each slice, axis by axis) choose one: axes by length, then by
    profile, each running so that the profile comes before its reverse. SHA-256 of shape and voxels there, 64 bits of it. Where profiles tie,
    as in a symmetric image, the least hash counts. So equal hashes mean equal voxels; two of 10,000 different scans
    meet with a chance of 3e-12. A crop, a resampled or a windowed copy has another hash.
    """
    hu = np.empty(array.shape, "<i2")
    for i, part in enumerate(array):
        hu[i] = np.rint(part.astype(np.float64)).clip(*HU)
    ways = []  # for each axis its rank, and the directions that its profile leaves open
    for axis in range(hu.ndim):
        profile = hu.sum(tuple(a for a in range(hu.ndim) if a != axis), dtype=np.int64).tolist()
        back = profile[::-1]
        ways.append(
            ((len(profile), min(profile, back)), [s for s, p in ((1, profile), (-1, back)) if p <= min(profile, back)])
        )
    best = sorted(rank for rank, _ in ways)
    hashes = []
    for order in itertools.permutations(range(hu.ndim)):
        if [ways[axis][0] for axis in order] != best:
            continue
        for signs in itertools.product(*(ways[axis][1] for axis in order)):
            turned = hu.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            digest = hashlib.sha256(repr(turned.shape).encode())
            for part in turned:
                digest.update(part.tobytes())
            hashes.append(digest.hexdigest()[:16])
    return min(hashes)


def measure(ct: Volume, labels: Volume) -> dict[str, str]:
    """The cells of `MEASURED` for one case; tumor is part of the liver's volume, as everywhere."""
    spacing = {f"spacing_{axis}_mm": f"{mm:.6f}".rstrip("0").rstrip(".") for axis, mm in zip("zyx", ct.spacing_mm)}
    ml = {
        name: f"{int((labels.array >= least).sum()) * labels.voxel_ml:.4f}"
        for name, least in (("liver_ml", 1), ("tumor_ml", 2))
    }
    grid = dict(zip(("slices", "rows", "columns"), map(str, ct.shape)))
    return {**grid, **spacing, **ml, "voxel_hash": voxel_hash(ct.array.numpy())}


def check(path: str | Path) -> Iterator[Verdict]:
    """Read every scan of a manifest and say whether it holds: files, grids, labels, what was measured, no scan twice."""
    from workbench.data.readers import Verdict, gates

    with gates.heard() as said:
        try:
            cases = read_manifest(path, there=False)
        except (Refused, OSError) as error:
            yield Verdict(str(path), False, gates.said(error, path), tuple(said))
            return
    hashes = []
    for case in cases:
        with gates.heard() as doubts:
            try:
                found = measure(*case.read())
                for name, told in case.measured.items():
                    if told != found[name] and (name == "voxel_hash" or abs(float(told) - float(found[name])) > 1e-3):
                        raise Refused(
                            f"case {case.case}",
                            f"{name} {found[name]}",
                            f"{told}, as the manifest says",
                            "A file has changed since it was imported: import it again.",
                        )
                ok, message = True, f"liver {found['liver_ml']} ml, tumor {found['tumor_ml']} ml of it, {case.split}"
                hashes.append((case, found["voxel_hash"]))
            except (Refused, OSError) as error:
                ok, message = False, gates.said(error, case.ct)
        yield Verdict(f"{path}, case {case.case}", ok, message, tuple(doubts))
    patients = len({case.patient for case, _ in hashes})
    try:
        each_scan_once(path, hashes)
        read = f"{len(hashes)} of {len(cases)} cases read, of {patients} patients, each scan once"
        yield Verdict(str(path), len(hashes) == len(cases), read, tuple(said))
    except Refused as refused:
        yield Verdict(str(path), False, str(refused))


def write_phantoms(
    out: str | Path,
    cases: int,
    seed: int,
    preset: str = "demo",
    held_out: int | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Generate `cases` phantoms below `out` and their manifest; the last third is held out by default.

    Cases that are there already, of the same seed, preset and format, are kept. On a CPU the cores share the cases.
    """
    out = Path(out)
    if cases < 1:
        raise Refused("the number of phantom cases", str(cases), "1 or more")
    if preset not in phantom.PRESETS:
        raise Refused("--preset", preset, " or ".join(phantom.PRESETS))
    held_out = cases // 3 if held_out is None else held_out
    jobs = [(out / f"phantom-{s:04d}", s, preset, device) for s in range(seed, seed + cases)]
    for i, name in enumerate(in_processes(_nothing, _write_phantom, jobs, cores() if device == "cpu" else 1)):
        if progress is not None:
            progress(name, i + 1, cases)
    rows = [
        [f.name, f.name, f"{f.name}/ct.nii.gz", f"{f.name}/labels.nii.gz", "test" if i >= cases - held_out else "train"]
        for i, (f, *_) in enumerate(jobs)
    ]
    write_table(out / "manifest.csv", pd.DataFrame(rows, columns=[*COLUMNS, "split"]))
    return out / "manifest.csv"


def is_phantom(ct: Path) -> bool:
    """Whether a CT file is one that `workbench phantom` made."""
    return (ct.parent / PHANTOM).is_file()


def _nothing() -> None:
    pass


def _write_phantom(_: None, job: tuple[Path, int, str, str]) -> str:
    from workbench.data.readers import nifti

    folder, seed, preset, device = job
    about = {"seed": seed, "preset": preset, "format": phantom.FORMAT, "device": torch.device(device).type}
    mark = folder / PHANTOM
    if mark.is_file() and json.loads(mark.read_text()) == about:
        return folder.name
    made = phantom.generate(seed, preset, device)
    folder.mkdir(parents=True, exist_ok=True)
    nifti.write(made.ct, folder / "ct.nii.gz")
    nifti.write(made.labels, folder / "labels.nii.gz")
    write_table(folder / "lookalikes.csv", made.lookalikes)
    write_table(folder / "lesions.csv", made.lesions)
    write_atomic(mark, json.dumps(about).encode())  # last: without it the case is made again
    return folder.name
