"""3D-IRCADb-01: a folder a patient with `PATIENT_DICOM` and `MASKS_DICOM`, each a folder or a zip, or the whole patient a zip.

`MASKS_DICOM` has a folder of DICOM images for each structure. The liver is `liver`; tumor is the union of what is called `livertumor`,
`livertumors`, `livertumor3`, `livertumor01` or, for patient 7, `tumor`. Tumors of other organs (`leftsurretumor`) and cysts
(`livercyst`, `liverkyst`) are none. A CT that lies unpacked is used where it is; one in a zip is written as NIfTI.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.data.readers import archive, dicom, gates, scans
from workbench.data.readers.scans import LIVER, TUMOR, Reading, Scan
from workbench.volume import Refused

LAYOUT = "folders with PATIENT_DICOM and MASKS_DICOM, or archives 3Dircadb1.N.zip"
CT, MASKS = "PATIENT_DICOM", "MASKS_DICOM"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each patient at or below the root."""
    root = Path(root)
    gates.existing(root)
    zips = [root] if archive.is_zip(root) else sorted(root.rglob("3Dircadb1.*.zip"))
    folders = [] if root.is_file() else [root, *sorted(p for p in root.rglob("*") if p.is_dir())]
    found = []
    for place in folders:
        if archive.there(place / CT) is not None:
            ct = place / CT if (place / CT).is_dir() else None
            masks = archive.there(place / MASKS)
            name = gates.case_name(place)
            found.append(Scan(name, name, place, ct, (masks,) if masks else ()))
    for place in zips:
        if place.stem not in {scan.case for scan in found}:
            found.append(Scan(place.stem, place.stem, place, None, (place,)))
    return scans.unique(found, root, LAYOUT)


def read(scan: Scan) -> Reading:
    """CT and the masks of liver and liver tumors, joined."""
    with archive.opened(scan.place) as patient:
        ct_place, masks_place = archive.there(patient / CT), archive.there(patient / MASKS)
        if ct_place is None or masks_place is None:
            raise Refused(scan.place, f"no {CT if ct_place is None else MASKS}", LAYOUT)
        with archive.opened(ct_place) as series, archive.opened(masks_place) as masks:
            ct = replace(dicom.read(series), name=scan.case)
            order, _ = dicom.stack(series)
            held: dict[int, list[Path]] = {LIVER: [], TUMOR: [], 0: []}
            for folder in sorted((p for p in masks.iterdir() if p.is_dir()), key=gates.natural):
                held[scans.meaning(folder.name)].append(folder)
            if not held[LIVER]:
                raise Refused(
                    masks_place, f"masks {', '.join(p.name for p in held[0]) or 'of nothing'}", "one of the liver"
                )
            liver, tumor = (_union(held[meant], order) for meant in (LIVER, TUMOR))
            canonical = (None if mask is None else ct.source.to_canonical(mask) for mask in (liver, tumor))
            labels, outside = scans.joined(ct, *canonical)
    cysts = [p.name for p in held[0] if re.search(r"[ck]yst", p.name.lower())]
    names = ", ".join(p.name for p in (*held[LIVER], *held[TUMOR]))
    return (
        ct,
        labels,
        scans.said(
            "" if scan.ct else "CT written from the archive",
            f"labels written from {names}",
            f"{', '.join(cysts)} left as liver" if cysts else "",
            outside,
        ),
    )


def _union(folders: list[Path], order: list[dicom.Slice]) -> np.ndarray | None:
    masks = [dicom.read_mask(folder, order) for folder in folders]
    return np.logical_or.reduce(masks) if masks else None
