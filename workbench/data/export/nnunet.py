"""A cohort in the raw layout of nnU-Net v2, so that it can be held against nnU-Net on the same patients.

States (nnU-Net 2.8, its documentation of the dataset format): a folder `DatasetNNN_Name` with imagesTr, labelsTr, imagesTs and
dataset.json; `CASE_0000.nii.gz` is a case's channel 0, which is normalised as CT because dataset.json calls it "CT";
a splits_final.json beside the preprocessed data takes the place of five random folds.

Chooses: cases are called `Name_0001` and so on in the order of their names, and cases.csv leads back; labelsTs, which nnU-Net does not
read, beside imagesTs; the folds of `cohort.folds`, since nnU-Net's own part cases and not patients. HU and grid are those of the CT's
file, bit for bit; labels lie on the grid of their CT however they were stored.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from workbench.data import cohort
from workbench.data.files import write_json, write_table
from workbench.data.readers import nifti
from workbench.volume import Refused

LABELS = {"background": 0, "liver": 1, "tumor": 2}
SIDES = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
ENDING = ".nii.gz"


def export(
    manifest: str | Path,
    folder: str | Path,
    number: int = 501,
    name: str = "Liver",
    folds: int = 5,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write `folder/DatasetNNN_Name` (folder is nnUNet_raw) from a cohort manifest, whole or not at all; gives its path.

    Beside nnU-Net's own files: cases.csv (name, case, patient, split, fold; -1 when held out) and splits_final.json, which belongs into
    nnUNet_preprocessed/DatasetNNN_Name before training.
    """
    folder = Path(folder)
    if not 1 <= number <= 999:
        raise Refused("--dataset", str(number), "1 to 999, nnU-Net's number of a dataset")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
        raise Refused("--name", repr(name), "letters and digits, a letter first")
    if there := sorted(folder.glob(f"Dataset{number:03d}_*")):
        raise Refused(there[0], "a dataset of this number", "a free one", "Choose another with --dataset or -o.")
    cases = sorted(cohort.read_manifest(manifest), key=lambda c: c.case)
    training = [c for c in cases if c.split == "train"]
    if not training:
        raise Refused(manifest, "no training case", "at least one with split train")
    cohort.folds(training, {c.case: 0.0 for c in training}, folds)  # too few patients: said before a scan is read
    place = folder / f"Dataset{number:03d}_{name}"
    making = place.with_name(f".{place.name}.{os.getpid()}.part")
    names = {c.case: f"{name}_{n:04d}" for n, c in enumerate(cases, 1)}
    try:
        tumor_ml, hashes = {}, []
        for n, case in enumerate(cases, 1):
            tumor_ml[case.case], voxels = _write_case(case, making, names[case.case])
            hashes.append((case, voxels))
            if progress is not None:
                progress(case.case, n, len(cases))
        cohort.each_scan_once(manifest, hashes)
        fold = cohort.folds(training, tumor_ml, folds)
        rows = [(names[c.case], c.case, c.patient, c.split, fold.get(c.case, -1)) for c in cases]
        write_table(making / "cases.csv", pd.DataFrame(rows, columns=["name", "case", "patient", "split", "fold"]))
        write_json(making / "splits_final.json", splits({names[c]: f for c, f in fold.items()}))
        about = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": len(training), "file_ending": ENDING}
        write_json(making / "dataset.json", {"name": name, **about})
        os.replace(making, place)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return place


def splits(fold: dict[str, int]) -> list[dict[str, list[str]]]:
    """nnU-Net's list of folds, each with the names that are trained on and those that are left out, from the fold of each name."""
    return [
        {"train": sorted(n for n in fold if fold[n] != out), "val": sorted(n for n in fold if fold[n] == out)}
        for out in sorted(set(fold.values()))
    ]


def _write_case(case: cohort.Case, place: Path, name: str) -> tuple[float, str]:
    """CT and labels of one case; gives its tumor in ml and its voxel hash."""
    images, masks = (place / part for part in SIDES[case.split])
    if case.labels is None or case.tumor_labels == "exclude":
        found = "no labels" if case.labels is None else "tumor_labels exclude"
        raise Refused(
            f"case {case.case}", found, "all of its liver and tumors labelled: nnU-Net ignores no region",
            "Leave it out of the manifest, or label it.",
        )  # fmt: skip
    ct, labels = case.read()
    for part in (images, masks):
        part.mkdir(parents=True, exist_ok=True)
    nifti.write(ct, images / f"{name}_0000{ENDING}")
    nifti.write(ct.with_array(labels.array), masks / f"{name}{ENDING}")
    return float((labels.array == 2).sum()) * labels.voxel_ml, case.identify(ct)
