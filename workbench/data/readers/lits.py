"""LiTS as it is handed out: `volume-N.nii` and `segmentation-N.nii`, in one folder or in batches below it.

Its labels are what the workbench uses. A patient may have several scans, which the files do not tell.
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.data import readers
from workbench.data.readers import gates, scans, walk
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "volume-N.nii and segmentation-N.nii, N a number"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each `volume-N`; those of the test set have no labels."""
    root = Path(root)
    gates.existing(root)
    labels: dict[str, Path] = {}
    volumes = []
    for path in walk.below(root).files:
        part, number = _parts(path)
        if part == "volume":
            volumes.append((number, path))
        elif part == "segmentation":
            if number in labels:
                raise Refused(
                    root, f"{labels[number]} and {path}", "one segmentation a volume", "Remove one of the two."
                )
            labels[number] = path
    found = [
        Scan(f"lits-{n}", f"lits-{n}", path, path, (labels[n],) if n in labels else (), labels.get(n))
        for n, path in volumes
    ]
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT and labels as they are."""
    ct = readers.read(scan.ct)
    return ct, readers.read_labels(scan.labels, like=ct), "CT and labels used where they are"


def _parts(path: Path) -> tuple[str, str]:
    match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    return (match[1].lower(), str(int(match[2]))) if match else ("", "")
