"""The Medical Segmentation Decathlon's Task03_Liver: `dataset.json` pairs `imagesTr` with `labelsTr`.

It is LiTS's training set under other names. dataset.json also says what the values of the labels are called; where they are not LiTS's, the
labels are written in LiTS's coding.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from workbench.data import readers
from workbench.data.readers import gates, scans, walk
from workbench.data.readers.meanings import TUMOR
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "Task03_Liver with dataset.json, imagesTr and labelsTr"
LIST = "dataset.json"
NO_CT = r"mri?\d*|magnetic.*|t1.*|t2.*|flair|dwi|adc|dixon|pet|pt|suv|us|ultrasound|sonography|x-?ray|cr|dx"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each training pair of dataset.json, and one without labels for each test image."""
    root = folder(root, LAYOUT)
    about, path = described(root, LAYOUT, "training", "labels")
    try:
        pairs = [(one["image"], one["label"]) for one in about["training"]]
        alone = [one if isinstance(one, str) else one["image"] for one in about.get("test", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(path, f"lists in another form ({error})", LAYOUT) from None
    values = scans.coding(names(about, path), path)
    found = []
    for image, label in [*pairs, *((image, None) for image in alone)]:
        ct = scans.contained(root, image, path)
        labels = () if label is None else (scans.contained(root, label, path),)
        found.append(coded(gates.stem(ct), gates.stem(ct), ct, labels, values))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is; labels as they are, or in LiTS's coding."""
    return read_coded(scan)


def coded(case: str, patient: str, ct: Path, labels: tuple[Path, ...], values: tuple, split: str = "train") -> Scan:
    """A case whose labels are one label map of a known coding. A coding without tumors leaves open whether there are any: `none` is known."""
    plain = labels[0] if labels and scans.is_plain(values) else None
    known = "complete" if any(meant == TUMOR for _, meant, _ in values) else "none"
    return Scan(case, patient, ct, ct, labels, plain, split, tumor_labels=known, values=values)


def read_coded(scan: Scan, all_named: bool = True) -> Reading:
    """A scan whose labels are one label map, of LiTS's coding (`scan.labels`) or of another (`scan.values`)."""
    ct = readers.read(scan.ct)
    if scan.labels is not None:
        return ct, readers.read_labels(scan.labels, like=ct), "CT and labels used where they are"
    (path,) = scan.sources
    told = ", ".join(f"{value} to {meant}" for value, meant, _ in scan.values if meant in (scans.LIVER, TUMOR))
    labels, done = scans.recoded(path, ct, scan.values, all_named)
    return ct, labels, scans.said(f"labels written in LiTS's coding ({told})", done)


def folder(root: str | Path, layout: str) -> Path:
    """The one folder with a dataset.json: the root or one just below it."""
    root = Path(root)
    gates.existing(root)
    if walk.named(root, LIST).is_file():
        return root
    below = [p for p in sorted(root.iterdir()) if p.is_dir() and walk.named(p, LIST).is_file()] if root.is_dir() else []
    if len(below) != 1:
        what = ", ".join(p.name for p in below) or f"no {LIST}"
        raise Refused(root, what, layout, "Give the folder of one data set.")
    return below[0]


def described(root: Path, layout: str, *keys: str) -> tuple[dict, Path]:
    """What the dataset.json of a data set says, and its path; refused without these keys, and where it says that the images are no CT."""
    path = walk.named(root, LIST)
    try:
        about = json.loads(path.read_bytes())  # UTF-8 with and without a byte order mark, UTF-16
    except (ValueError, RecursionError) as error:
        raise Refused(path, f"no JSON ({error})", f"the {LIST} of a data set", "Fetch it again.") from None
    lacking = [key for key in keys if not isinstance(about, dict) or key not in about]
    if lacking:
        raise Refused(path, f"no {' and no '.join(lacking)}", layout, "Is this data set of another kind?")
    for key in ("modality", "channel_names"):
        told = about.get(key, ())
        channels = [told] if isinstance(told, str) else list(told.values() if isinstance(told, dict) else told)
        for channel in map(str, channels):
            if any(re.fullmatch(NO_CT, word) for word in re.split(r"[^a-z0-9-]+", channel.lower()) if word):
                raise Refused(path, f"{key} {channel!r}", "CT", "Other images than CT are not for this program.")
    return about, path


def names(about: dict, path: Path) -> dict[str, int | list[int]]:
    """{name: value or values} of dataset.json's labels: `{"liver": 1}` as in nnU-Net v2, or `{"1": "liver"}` as in v1 and the decathlon."""
    labels = about["labels"]
    if not isinstance(labels, dict):
        raise Refused(path, f"labels {labels!r}", "a name for each value")
    if not all(isinstance(name, str) for name in labels.values()):
        return labels
    held: dict[str, list[int]] = {}
    try:
        for value, name in labels.items():
            held.setdefault(name, []).append(int(value))
    except ValueError:
        raise Refused(path, f"labels {labels!r}", "a name for each value") from None
    return held
