"""The Medical Segmentation Decathlon's Task03_Liver: `dataset.json` pairs `imagesTr` with `labelsTr`.

It is LiTS's training set under other names. dataset.json also says what the values of the labels are called; where they are not LiTS's, the
labels are written anew.
"""

from __future__ import annotations

from pathlib import Path

from workbench.data import readers
from workbench.data.files import read_json
from workbench.data.readers import gates, scans
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "Task03_Liver with dataset.json, imagesTr and labelsTr"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each training pair of dataset.json, and one without labels for each test image."""
    root = folder(root, LAYOUT)
    about = read_json(root / "dataset.json", "training", "labels")
    try:
        values, _ = scans.coding({name: int(value) for value, name in about["labels"].items()}, root / "dataset.json")
        pairs = [(one["image"], one["label"]) for one in about["training"]]
        alone = [one if isinstance(one, str) else one["image"] for one in about.get("test", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(root / "dataset.json", f"lists in another form ({error})", LAYOUT) from None
    found = []
    for image, label in [*pairs, *((image, None) for image in alone)]:
        ct = scans.contained(root, image, root / "dataset.json")
        labels = () if label is None else (scans.contained(root, label, root / "dataset.json"),)
        plain = labels[0] if labels and scans.is_plain(values) else None
        found.append(Scan(gates.stem(ct), gates.stem(ct), ct, ct, labels, plain, values=values))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is; labels as they are, or in LiTS's coding."""
    return read_coded(scan)


def read_coded(scan: Scan) -> Reading:
    """A scan whose labels are one label map, of LiTS's coding (`scan.labels`) or of another (`scan.values`)."""
    ct = readers.read(scan.ct)
    if scan.labels is not None:
        return ct, readers.read_labels(scan.labels, like=ct), "CT and labels used where they are"
    (path,) = scan.sources
    told = ", ".join(f"{value} to {meant}" for value, meant in scan.values)
    return ct, scans.recoded(path, ct, scan.values), f"labels written in LiTS's coding ({told})"


def folder(root: str | Path, layout: str) -> Path:
    """The one folder with a dataset.json: the root or one just below it."""
    root = Path(root)
    gates.existing(root)
    if (root / "dataset.json").is_file():
        return root
    below = sorted(p.parent for p in root.glob("*/dataset.json"))
    if len(below) != 1:
        what = ", ".join(p.name for p in below) or "no dataset.json"
        raise Refused(root, what, layout, "Give the folder of one data set.")
    return below[0]
