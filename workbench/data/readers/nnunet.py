"""nnU-Net's raw layout, v2 as `workbench export nnunet` writes it and v1: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, dataset.json.

What stands in `imagesTs` was held out and stays so, where there is a `labelsTs` for it. `cases.csv`, which our own export leaves beside
dataset.json, gives cases and patients their names back.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from workbench.data.readers import gates, scans, walk
from workbench.data.readers.msd import coded, described, folder, names, read_coded
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "DatasetNNN_Name (v1: TaskNNN_Name) with dataset.json, imagesTr and labelsTr"
SIDES = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
V1_ENDING = ".nii.gz"  # fixed: v1 has no other


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each image of channel 0."""
    root = folder(root, LAYOUT)
    about, path = described(root, LAYOUT, "labels")
    ending = str(about.get("file_ending", V1_ENDING)).lower()
    if ending not in gates.SUFFIXES:
        raise Refused(path, f"files that end in {ending}", f"one of {', '.join(gates.SUFFIXES)}")
    values = scans.coding(names(about, path), path)
    known = _names(walk.named(root, "cases.csv"))
    found, plain = [], 0
    for split, (images, masks) in SIDES.items():
        labels = {name.lower(): file for name, file in _files(walk.named(root, masks), ending)}
        for stem, image in _files(walk.named(root, images), ending):
            match = re.fullmatch(r"(.+)_(\d{4})", stem)
            if not match:
                plain += 1
                continue
            name, channel = match.groups()
            if channel != "0000":
                raise Refused(root, f"a channel {image.name}", "one channel, CT", "Give the CT's channel alone.")
            case, patient = known.get(name, (name, name))
            label = labels.get(name.lower())
            found.append(coded(case, patient, image, (label,) if label else (), values, split))
    if plain and not found:
        raise Refused(root, f"{plain} images without a channel number (_0000)", LAYOUT, "Is this of kind msd? Or rename them to CASE_0000.")
    if isinstance(about.get("dataset"), dict) and not found:
        raise Refused(path, "a list `dataset` of images elsewhere", LAYOUT, "Use `workbench import csv` with the same paths.")
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is; labels as they are, or in LiTS's coding."""
    return read_coded(scan)


def _files(folder: Path, ending: str) -> list[tuple[str, Path]]:
    """(name without the ending, path) of the images in a folder."""
    if not folder.is_dir():
        return []
    return [(p.name[: -len(ending)], p) for p in walk.below(folder).files if p.parent == folder and p.name.lower().endswith(ending)]


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
