"""nnU-Net v2's raw layout, as `workbench export nnunet` writes it: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, dataset.json.

What stands in `imagesTs` was held out and stays so, where there is a `labelsTs` for it. `cases.csv`, which our own export leaves beside
dataset.json, gives cases and patients their names back.
"""

from __future__ import annotations

import csv
from pathlib import Path

from workbench.data.files import read_json
from workbench.data.readers import gates, scans
from workbench.data.readers.msd import folder, read_coded
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "DatasetNNN_Name with dataset.json, imagesTr and labelsTr"
SIDES = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each image of channel 0."""
    root = folder(root, LAYOUT)
    about = read_json(root / "dataset.json", "labels", "file_ending")
    ending, names = str(about["file_ending"]), about["labels"]
    if ending.lower() not in gates.SUFFIXES:
        raise Refused(root / "dataset.json", f"files that end in {ending}", f"one of {', '.join(gates.SUFFIXES)}")
    if not isinstance(names, dict):
        raise Refused(root / "dataset.json", f"labels {names!r}", "a value for each name")
    values, _ = scans.coding({k: v for k, v in names.items() if k != "ignore"}, root / "dataset.json")
    known = _names(root / "cases.csv")
    found = []
    for split, (images, masks) in SIDES.items():
        for path in sorted((root / images).glob(f"*_????{ending}")):
            name, channel = path.name[: -len(ending)].rsplit("_", 1)
            if channel != "0000":
                raise Refused(root, f"a channel {path.name}", "one channel, CT", "Give the CT's channel alone.")
            label = root / masks / f"{name}{ending}"
            sources = (label,) if label.is_file() else ()
            case, patient = known.get(name, (name, name))
            plain = label if sources and scans.is_plain(values) else None
            found.append(Scan(case, patient, path, path, sources, plain, split, values=values))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is; labels as they are, or in LiTS's coding."""
    return read_coded(scan)


def _names(path: Path) -> dict[str, tuple[str, str]]:
    """{nnU-Net's name: (case, patient)} of cases.csv; empty without it."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise Refused(path, f"no CSV text ({error})", "name, case and patient") from None
    if any(not row.get(column) for row in rows for column in ("name", "case", "patient")):
        raise Refused(path, "a row without name, case or patient", "all three", "Remove the file, or complete it.")
    return {row["name"]: (row["case"], row["patient"]) for row in rows}
