"""Any folder through a CSV: `case` and `ct`, and where the labels are.

`labels` is a label map; `liver` and `tumor` then are the values in it that mean them (several with ; between; 1 and 2 where neither is said). Without
`labels`, `liver` and `tumor` are masks: files whose voxels above 0 are it. `patient`, `split` and `field_of_view` are taken over. Paths are
relative to the CSV.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.data import columns, readers
from workbench.data.readers import gates, itk, meanings, scans
from workbench.data.readers.msd import read_coded
from workbench.data.readers.scans import LIVER, TUMOR, Reading, Scan
from workbench.volume import Refused

TOLD = ("split", "field_of_view", "tumor_labels")
LAYOUT = "a CSV with the columns case, ct, and labels or liver and tumor"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each row of the CSV."""
    root = Path(root)
    gates.existing(root)
    if not root.is_file():
        raise Refused(root, "a folder", LAYOUT, "Give the CSV file.")
    rows = columns.read(root, ("case", "ct"), LAYOUT, ("labels", "liver", "tumor", "patient", *TOLD))
    return scans.unique((_scan(root, row, number) for number, row in rows), root, LAYOUT)


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
    subject = f"{path}, line {number}"
    if not row.get("case") or not row.get("ct"):
        raise Refused(subject, f"the columns {', '.join(row)} without a case or a ct", LAYOUT)
    at = path.parent
    told = {name: row[name].lower() for name in TOLD if row.get(name)}
    about = {
        "case": row["case"],
        "patient": row.get("patient") or row["case"],
        "place": columns.located(at, row["ct"]),
        **told,
    }
    meant = {LIVER: _several(row.get("liver", "")), TUMOR: _several(row.get("tumor", ""))}
    if not row.get("labels"):
        masks = tuple((columns.located(at, name), label) for label, names in meant.items() for name in names)
        return Scan(**about, ct=columns.located(at, row["ct"]), sources=tuple(name for name, _ in masks), masks=masks)
    labels = columns.located(at, row["labels"])
    numbers = [v for names in meant.values() for v in names]
    if not all(v.isdigit() and len(v) < 6 for v in numbers):
        raise Refused(subject, f"liver and tumor {' '.join(numbers)}", "their values in labels, as 127 and 255")
    names = {LIVER: "liver", TUMOR: "tumor"}
    values = tuple((int(v), label, names[label]) for label in meant for v in meant[label]) or ((1, LIVER, "liver"), (2, TUMOR, "tumor"))
    plain = labels if scans.is_plain(values) else None
    return Scan(**about, ct=columns.located(at, row["ct"]), sources=(labels,), labels=plain, values=values)


def _several(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(";") if part.strip()]
