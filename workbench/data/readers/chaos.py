"""CHAOS, its CT part: a folder a donor with `DICOM_anon` and, for training, `Ground` with a PNG of the liver for each slice.

The PNGs are numbered from the head in some folders and from the feet in others, and the names of the slices follow more than one scheme. So the
order is found from the data: in the right one the mask lies on soft tissue, in the wrong one also on air and bone.

Rule: the share of the mask on soft tissue (`tissue`) is taken for both orders along the slices' normal. An order
is taken when its share is at least 0.9 and the other's at least 0.05 less; anything else is refused. On seven scans with a known order the right one
has 0.931 to 0.998, the wrong one 0.653 to 0.903 and at least 0.096 less (docs/log.md, 2026-11-26). The rows and columns of a PNG are those of its
DICOM image; flipped or exchanged, the share falls below 0.9 too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.data import readers
from workbench.data.readers import gates, scans, tissue, walk
from workbench.data.readers.scans import Reading, Scan
from workbench.volume import Refused, Volume

LAYOUT = "folders with DICOM_anon and Ground"
CT, MASKS = "DICOM_anon", "Ground"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each folder of a donor at or below the root; those of the test set have no labels."""
    root = Path(root)
    gates.existing(root)
    found = []
    for ct in (p for p in walk.below(root).folders if p.name.lower() == CT.lower()):
        place = ct.parent
        if "mr" in (part.lower() for part in place.relative_to(root).parts):
            continue
        name = gates.case_name(ct)
        name = f"chaos-ct-{name}" if name.isdigit() else name
        ground = walk.named(place, MASKS)
        found.append(Scan(name, name, place, ct, (ground,) if ground.is_dir() else (), tumor_labels="none"))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT as it is, and its liver from the PNGs in the order that the CT shows."""
    ct = readers.read(scan.ct)
    (ground,) = scan.sources
    mask, order = in_order(_masks(ground, ct), ct, ground)
    labels, _ = scans.joined(ct, [scans.Structure(scans.LIVER, MASKS, np.flatnonzero(mask))])
    return ct, labels, f"labels written from {ct.shape[0]} PNGs, {order}"


def in_order(mask: np.ndarray, ct: Volume, subject: object) -> tuple[np.ndarray, str]:
    """A mask [slice row column] in the order of its files as a mask [z y x], and in words which order the CT shows."""
    ways = {
        name: ct.source.to_canonical(turned.transpose(2, 1, 0))
        for name, turned in (("the first the lowest", mask), ("the first the topmost", mask[::-1]))
    }
    if ct.source.affine[2, 2] < 0:  # slices run along their normal, which here points to the feet
        ways = dict(zip(ways, reversed(ways.values())))
    hu = ct.array.numpy()
    soft = tissue.soft(hu)
    if not mask.any():
        raise Refused(subject, "empty masks", "a liver")
    share = {name: float(soft[way].mean()) for name, way in ways.items()}
    best, other = sorted(share, key=share.get, reverse=True)
    if share[best] < tissue.LEAST_SHARE or share[best] - share[other] < tissue.LEAST_GAP:
        raise Refused(
            subject,
            " and ".join(f"with {name} {share[name]:.3f} of the mask on soft tissue" for name in ways),
            f"{tissue.LEAST_SHARE} or more in one order and {tissue.LEAST_GAP} less in the other",
            "The order of these masks cannot be told: bring them to the CT's grid, and use `workbench import csv`.",
        )
    return ways[best], f"{best} ({share[best]:.3f} of it on soft tissue, otherwise {share[other]:.3f})"


def _masks(folder: Path, ct: Volume) -> np.ndarray:
    """The PNGs of a folder as bool [slice row column], in the order of their numbers."""
    import SimpleITK as sitk

    columns, rows, slices = ct.source.shape
    files = sorted((p for p in walk.files(folder) if p.suffix.lower() == ".png"), key=gates.natural)
    if len(files) != slices:
        raise Refused(folder, f"{len(files)} PNG files", f"{slices}, one for each slice of the CT")
    mask = np.empty((slices, rows, columns), bool)
    values: set[int] = set()
    for k, file in enumerate(files):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
            if reader.GetSize() != (columns, rows) or reader.GetNumberOfComponents() != 1:
                raise Refused(file, f"{' x '.join(map(str, reader.GetSize()))} pixels of {reader.GetNumberOfComponents()} "
                              "values", f"{columns} x {rows} of one, as the CT's slices have")  # fmt: skip
            picture = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise Refused(file, f"a file that cannot be read ({reason})", "a PNG", "Fetch it again.") from None
        values.update(np.unique(picture).tolist())
        mask[k] = picture > 0
    if len(values - {0}) > 1:
        raise Refused(folder, f"values {', '.join(map(str, sorted(values)[:8]))}", "0 and one other: the liver alone")
    return mask
