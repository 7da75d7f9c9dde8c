"""Public collections become a cohort: `workbench import KIND ROOT -o DATA`.

Every case is read once, whole: what would be refused in training is refused here. `DATA/manifest.csv` names CT and labels where they are; only what
cannot be used so is written: label maps of other forms (`DATA/labels`), CTs that lie in archives or among other series (`DATA/ct`).
`DATA/imported/CASE.json` says what was done for a case, and is written last; a case whose files are those it was made of is not read again. Further
imports into the same folder add to its manifest. What was changed by hand there (patient, split, field of view, columns of one's own) stays.

A manifest is written only if no patient stands on both sides of its split and no scan stands in it twice (`cohort.voxel_hash`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import workbench
from workbench.data import cohort
from workbench.data.files import read_json, write_atomic, write_json
from workbench.data.readers import chaos, dicomseg, gates, ircadb, itk, lits, msd, nifti, nnunet, table, tissue, walk
from workbench.data.readers.scans import Scan
from workbench.volume import Refused, readable

KINDS = {"lits": lits, "msd": msd, "ircadb": ircadb, "nnunet": nnunet, "chaos": chaos, "dicom": dicomseg, "csv": table}
BY_HAND = ("patient", *cohort.OPTIONAL)
COLUMNS = (*cohort.COLUMNS, *cohort.OPTIONAL, *cohort.MEASURED, "kind")


@dataclass(frozen=True)
class Intake:
    """What an import came to."""

    manifest: Path
    cases: int
    refused: int
    unlabelled: int


def take(kind: str, root: str | Path, out: str | Path, tell: Callable[[str], object] = print) -> Intake:
    """Import a collection into the folder `out`; says a line for each case. A case that is refused does not stop the others."""
    if kind not in KINDS:
        raise Refused("the kind of collection", repr(kind), ", ".join(KINDS))
    root, out = Path(root), Path(out)
    unread = walk.below(root).faults
    try:
        listed = KINDS[kind].list_cases(root)
    except Refused as error:
        if not unread:
            raise
        raise unread[0][1] from error  # the reason why nothing is found
    former, changed = _records(out), _changes(out, {scan.case for scan in listed}, tell)
    origin = f"{kind} {_relative(root, out)}"
    refused = unlabelled = 0
    for path, why in unread:
        if not any(path.is_relative_to(place) for scan in listed for place in (scan.place, *scan.sources)):
            refused += 1
            tell(f"REFUSED, {why}")
    for scan in listed:
        if not scan.sources and not scan.fault:
            unlabelled += 1
            tell(f"{scan.case}: left out, it has no labels")
            continue
        try:
            if scan.fault:
                raise Refused.__new__(Refused, scan.fault)
            record = former.get(scan.case)
            if record and record["origin"] != origin:
                raise Refused(f"case {scan.case}", f"one imported from {record['origin']}", "another name for this one",
                              "Import it into a folder of its own.")  # fmt: skip
            inputs = _inputs(scan)
            if record and record["inputs"] == inputs and all((out / name).is_file() for name in record["wrote"]):
                tell(f"{scan.case}: as before; {record['said']}")
                continue
            row = _take(kind, scan, out, origin, inputs, tell)
            if record and record["row"]["voxel_hash"] != row["voxel_hash"] and changed.get(scan.case):
                tell(f"  warning: {scan.case} has another CT than before; {_by_hand(changed[scan.case])} stays")
        except (Refused, OSError) as error:
            refused += 1
            tell(f"{readable(scan.case)}: REFUSED, {gates.said(error, scan.place)}")
            if scan.case in former and former[scan.case]["origin"] == origin:
                _record(out, scan.case).unlink()
                if changed.get(scan.case):
                    tell(f"  warning: {_by_hand(changed[scan.case])} goes with it: say so again when it is back")
    for case, record in former.items():
        if record["origin"] == origin and case not in {scan.case for scan in listed}:
            _record(out, case).unlink()
            also = f", nor is {_by_hand(changed[case])}" if changed.get(case) else ""
            tell(f"{case}: no longer there, and so no longer in the manifest{also}")
    rows = [{**record["row"], **changed.get(case, {})} for case, record in _records(out).items()]
    if not rows:
        raise Refused(root, f"{refused} cases refused and {unlabelled} without labels", "at least one that can be used")
    return Intake(_write(out, rows), len(rows), refused, unlabelled)


def _take(kind: str, scan: Scan, out: Path, origin: str, inputs: str, tell: Callable[[str], object]) -> dict:
    """Read one case, write what must be written, and its record last; its row of the manifest."""
    at = {name: "-" if path is None else _relative(path, out) for name, path in (("ct", scan.ct), ("labels", scan.labels))}
    cohort.conform(scan.place, {"case": scan.case, "patient": scan.patient, **at, "split": scan.split,
                         "field_of_view": scan.field_of_view, "tumor_labels": scan.tumor_labels})  # fmt: skip
    with gates.heard() as doubts:
        ct, labels, said = KINDS[kind].read(scan)
        tissue.hold(ct, labels, f"{scan.case}, {' and '.join(map(str, scan.sources[:2]))}")
    paths, wrote = {"ct": scan.ct, "labels": scan.labels}, []
    for name, volume in (("ct", ct), ("labels", labels)):
        if paths[name] is None:
            wrote.append(f"{name}/{scan.case}.nii.gz")
            paths[name] = out / wrote[-1]
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            nifti.write(volume, paths[name])
    row = {"case": scan.case, "patient": scan.patient, **{name: _relative(path, out) for name, path in paths.items()}}
    row |= {name: getattr(scan, name) for name in cohort.OPTIONAL} | cohort.measure(ct, labels) | {"kind": kind}
    about = {"case": scan.case, "origin": origin, "inputs": inputs, "wrote": wrote, "said": said, "warnings": doubts}
    write_json(_record(out, scan.case), {**about, "version": workbench.__version__, "row": row})
    tell(f"{scan.case}: {' x '.join(map(str, ct.shape[::-1]))} voxels, liver {row['liver_ml']} ml, tumor {row['tumor_ml']} ml "
         f"of it; {said}")  # fmt: skip
    for doubt in doubts:
        tell(f"  warning: {doubt}")
    return row


def _write(out: Path, rows: list[dict[str, str]]) -> Path:
    """The manifest of these rows, checked as one that is read."""
    manifest = out / "manifest.csv"
    cases, rows = [], [{"tumor_labels": "complete", **row} for row in rows]  # 0.1.0 recorded none
    for row in rows:
        cohort.conform(f"{manifest}, case {row['case']}", row)
        cases.append(cohort.Case(row["case"], row["patient"], Path(row["ct"]), Path(row["labels"]), row["split"]))
    cohort.each_patient_on_one_side(manifest, cases)
    cohort.each_scan_once(manifest, ((case, row["voxel_hash"]) for case, row in zip(cases, rows, strict=True)))
    own = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *own], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(manifest, text.getvalue().encode())
    return manifest


def _record(out: Path, case: str) -> Path:
    return out / "imported" / f"{case}.json"


def _records(out: Path) -> dict[str, dict]:
    """What was imported before, by case."""
    paths = sorted((out / "imported").glob("*.json"), key=gates.natural)
    keys = ("case", "origin", "inputs", "wrote", "said", "row")
    return {record["case"]: record for record in (read_json(path, *keys) for path in paths)}


def _changes(out: Path, listed: set[str], tell: Callable[[str], object]) -> dict[str, dict[str, str]]:
    """What was changed by hand in the manifest since it was written: {case: {column: cell}}. A row that was removed by hand is told of; one whose case
    was not imported here, and is none of those `listed` now, is refused, since it would be lost."""
    manifest = out / "manifest.csv"
    if not manifest.is_file():
        return {}
    imported = {case: record["row"] for case, record in _records(out).items()}
    changes = {}
    for number, row in cohort.rows(manifest):
        before = imported.get(row["case"], {})
        if not before and row["case"] not in listed:
            alike = [case for case in sorted({*imported, *listed}) if case.lstrip("0") == row["case"].lstrip("0")]
            fix = f"A spreadsheet may have made it of {alike[0]}: write it so again." if alike else (
                "Keep rows of your own in another manifest, or import them with `workbench import csv`."
            )  # fmt: skip
            found = f"a case {row['case']}, which was not imported"
            raise Refused(f"{manifest}, line {number}", found, "cases of the imports here", fix)
        named = [name for name in row if name in BY_HAND or name not in COLUMNS]
        changes[row["case"]] = {name: row[name] for name in named if row[name] != before.get(name)}
    for case in imported:
        if case not in changes:
            tell(f"{case}: in the manifest again, from which its row was removed")
    return changes


def _by_hand(changed: dict[str, str]) -> str:
    """What was changed by hand of one case, in words."""
    return "what was set by hand (" + ", ".join(f"{name} {cell}" for name, cell in changed.items()) + ")"


def _inputs(scan: Scan) -> str:
    """A digest of what a case is made of: names, sizes and times of its files, and how they are read."""
    digest = hashlib.sha256(repr((workbench.__version__, scan.values, scan.masks, scan.series, scan.patient)).encode())
    known = (scan.tumor_labels,) * (scan.tumor_labels != "complete")  # what 0.1.0 imported is not imported again
    digest.update(repr((scan.split, scan.field_of_view, *known)).encode())
    for place in (scan.place, *scan.sources):
        for file in filter(Path.is_file, itk.parts(place)):
            about = file.stat()
            digest.update(repr((file.relative_to(place.parent).as_posix(), about.st_size, about.st_mtime_ns)).encode())
    return digest.hexdigest()


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
