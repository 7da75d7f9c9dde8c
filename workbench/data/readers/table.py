"""Any folder through a CSV: `case` and `ct`, and where the labels are.

`labels` is a label map; `liver` and `tumor` then are the values in it that mean them (several with ; between; 1 and 2 where neither is said). Without
`labels`, `liver` and `tumor` are masks: files whose voxels above 0 are it. `patient`, `split` and `field_of_view` are taken over. Paths are
relative to the CSV.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from workbench.data import readers
from workbench.data.readers import gates, itk, meanings, scans
from workbench.data.readers.msd import read_coded
from workbench.data.readers.scans import LIVER, TUMOR, Reading, Scan
from workbench.volume import Refused

LAYOUT = "a CSV with the columns case, ct, and labels or liver and tumor"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each row of the CSV."""
    root = Path(root)
    gates.existing(root)
    if not root.is_file():
        raise Refused(root, "a folder", LAYOUT, "Give the CSV file.")
    try:
        with open(root, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(root, f"no CSV text ({error})", LAYOUT) from None
    return scans.unique((_scan(root, row, number) for number, row in enumerate(rows, 2)), root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is; labels as they are, in LiTS's coding, or joined from masks."""
    if not scan.masks:
        return read_coded(scan, all_named=False)
    ct = readers.read(scan.ct)
    structures = []
    for path, meant in scan.masks:
        mask = readers.read_labels(path, like=ct, allowed=None).array.numpy()
        named = itk.segment_names(path)
        values = [value for value, name in named.items() if meanings.meaning(name) == meant] if len(named) > 1 else []
        structures.append(scans.Structure(meant, path.name, np.flatnonzero(np.isin(mask, values) if values else mask > 0)))
    labels, done = scans.joined(ct, structures)
    return ct, labels, scans.said(f"labels written from {scans.count(len(scan.masks), 'mask')}", done)


def _scan(path: Path, row: dict[str, str], number: int) -> Scan:
    """The scan of one row; refused when it does not say what it must."""
    subject = f"{path}, row {number}"
    if None in row or None in row.values():
        raise Refused(subject, "more or fewer cells than columns", f"{len([k for k in row if k is not None])}")
    row = {name: value.strip() for name, value in row.items()}
    if not row.get("case") or not row.get("ct"):
        raise Refused(subject, f"the columns {', '.join(row)} without a case or a ct", LAYOUT)
    at = path.parent
    told = {name: row[name] for name in ("split", "field_of_view", "tumor_labels") if row.get(name)}
    ct = scans.beside(at, row["ct"])
    about = {"case": row["case"], "patient": row.get("patient") or row["case"], "place": ct, **told}
    meant = {LIVER: _several(row.get("liver", "")), TUMOR: _several(row.get("tumor", ""))}
    if not row.get("labels"):
        masks = tuple((scans.beside(at, name), label) for label, names in meant.items() for name in names)
        return Scan(**about, ct=ct, sources=tuple(name for name, _ in masks), masks=masks)
    labels = scans.beside(at, row["labels"])
    numbers = [v for names in meant.values() for v in names]
    if not all(v.isdigit() and len(v) < 6 for v in numbers):
        raise Refused(subject, f"liver and tumor {' '.join(numbers)}", "their values in labels, as 127 and 255")
    names = {LIVER: "liver", TUMOR: "tumor"}
    values = tuple((int(v), label, names[label]) for label in meant for v in meant[label]) or ((1, LIVER, "liver"), (2, TUMOR, "tumor"))
    plain = labels if scans.is_plain(values) else None
    return Scan(**about, ct=ct, sources=(labels,), labels=plain, values=values)


def _several(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(";") if part.strip()]
