"""3D-IRCADb-01: a folder a patient with `PATIENT_DICOM` and `MASKS_DICOM`, each a folder or a zip, or the whole patient a zip.

`MASKS_DICOM` has a folder of DICOM images for each structure, whose name says what it means (`meanings`): tumor is the union of what is called
`livertumor`, `livertumors`, `livertumor3`, `livertumor01` or, for patient 7, `tumor`. Tumors of other organs (`leftsurretumor`) are none, and
cysts (`livercyst`, `liverkyst`) are liver. A CT that lies unpacked is used where it is; one in a zip is written as NIfTI.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.data.readers import archive, dicom, gates, meanings, scans, walk
from workbench.data.readers.scans import LIVER, TUMOR, Reading, Scan
from workbench.volume import Refused

LAYOUT = "folders with PATIENT_DICOM and MASKS_DICOM, or archives 3Dircadb1.N.zip"
CT, MASKS = "PATIENT_DICOM", "MASKS_DICOM"


def list_cases(root: str | Path) -> list[Scan]:
    """A scan for each patient at or below the root."""
    root = Path(root)
    gates.existing(root)
    below = walk.below(root)
    zips = [root] if archive.is_zip(root) else [p for p in below.files if re.fullmatch(r"3dircadb1\..*\.zip", p.name.lower())]
    found = []
    for place in below.folders:
        if (there := archive.there(place / CT)) is not None:
            ct = there if there.is_dir() else None
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
            folders = sorted((p for p in masks.iterdir() if p.is_dir() and not p.name.startswith(".")), key=gates.natural)
            meant = meanings.each((p.name for p in folders), masks_place, "Is this a patient of 3D-IRCADb-01?")
            structures, unread = [], []
            for folder in folders:
                try:
                    mask = ct.source.to_canonical(dicom.read_mask(folder, order))
                    structures.append(scans.Structure(meant[folder.name], folder.name, np.flatnonzero(mask)))
                except Refused:
                    if meant[folder.name] in (LIVER, TUMOR):
                        raise
                    unread.append(folder.name)
            labels, done = scans.joined(ct, structures)
    used = ", ".join(s.name for kind in (LIVER, TUMOR) for s in structures if s.meant == kind)
    return (
        ct,
        labels,
        scans.said(
            "" if scan.ct else "CT written from the archive",
            f"labels written from {used}",
            done,
            f"not readable, and not needed: {', '.join(unread)}" if unread else "",
        ),
    )
