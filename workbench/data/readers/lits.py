"""LiTS as it is handed out: `volume-N.nii` and `segmentation-N.nii`, in one folder or in batches below it.

Its labels are what the workbench uses. A patient may have several scans, which the files do not tell.

Volumes 28 to 47 are the 20 patients of 3D-IRCADb-01, and their headers are identities: orientation and voxel size were lost. Their voxels lie as
those of the other volumes do, the first axis to the left, the second to the back, the third to the head (LPS). The voxel size is that of the
patient of 3D-IRCADb-01 with as many slices; where two have as many, the patient in the order of the numbers. Such a volume is written anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.data import readers
from workbench.data.readers import gates, nifti, scans, walk
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused

LAYOUT = "volume-N.nii and segmentation-N.nii, N a number"
LOST = range(28, 49)  # fixed: LiTS's numbers of 3D-IRCADb-01
# fixed: slices, mm in the slice and between slices of the 20 patients; those with three decimals were measured in its files; the others are those
# that IRCAD states, with its two decimals (up to 1 % off), and were not checked against files
IRCADB = (
    (129, 0.57, 1.6), (172, 0.782, 1.6), (200, 0.62, 1.25), (91, 0.742, 2.0), (139, 0.782, 1.6), (135, 0.782, 1.6), (151, 0.78, 1.6),
    (124, 0.561, 1.6), (111, 0.873, 2.0), (122, 0.736, 1.6), (132, 0.72, 1.6), (260, 0.68, 1.0), (122, 0.67, 1.6), (113, 0.72, 1.6),
    (125, 0.78, 1.6), (155, 0.698, 1.6), (119, 0.743, 1.6), (74, 0.74, 2.5), (124, 0.70, 4.0), (225, 0.81, 2.0),
)  # fmt: skip


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
    found = []
    for n, path in volumes:
        lost = int(n) in LOST and n in labels and _lost(path)
        ct, own = (None, None) if lost else (path, labels.get(n))
        found.append(Scan(f"lits-{n}", f"lits-{n}", path, ct, (labels[n],) if n in labels else (), own))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT and labels as they are; of a volume without orientation, with what is known of it."""
    (labels,) = scan.sources
    if scan.ct is not None:
        ct = readers.read(scan.ct)
        return ct, readers.read_labels(labels, like=ct), "CT and labels used where they are"
    spacing_mm = _spacing(scan.place)
    known = {"orientation": "LPS", "spacing_mm": spacing_mm}
    ct = readers.read(scan.place, **known)
    done = "CT and labels written with the orientation LPS and the voxel size of 3D-IRCADb-01, "
    return ct, readers.read_labels(labels, like=ct, **known), done + " x ".join(f"{mm:g}" for mm in spacing_mm) + " mm"


def _lost(path: Path) -> bool:
    """Whether a file says nothing of its orientation; one that cannot be read is told of when it is read."""
    try:
        _, affine = nifti.grid(path)
    except Refused:
        return False
    return affine is None or gates.unplaced(affine)


def _spacing(path: Path) -> tuple[float, float, float]:
    shape, _ = nifti.grid(path)
    number = int(_parts(path)[1])
    alike = {n: (mm, mm, apart) for n, (slices, mm, apart) in enumerate(IRCADB, 28) if (512, 512, slices) == shape}
    meant = alike if len(alike) < 2 else {n: mm for n, mm in alike.items() if n in (number, number - 1)}
    if len(meant) != 1:
        raise Refused(path, f"no orientation and voxel size for {' x '.join(map(str, shape))} voxels", "those of a patient of 3D-IRCADb-01",
                      "It was cropped or resampled. Say its voxel size and where its axes lead, and those of its segmentation: workbench convert "
                      "FILE -o NEW.nii.gz --orientation LPS --spacing X,Y,Z; convert --labels for the segmentation.")  # fmt: skip
    return next(iter(meant.values()))


def _parts(path: Path) -> tuple[str, str]:
    match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    return (match[1].lower(), str(int(match[2]))) if match else ("", "")
