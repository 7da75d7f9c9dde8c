"""The cohort: which case belongs to which patient, who is held out, who is in which fold.

A manifest is a CSV with the columns case, patient, ct, labels and split (train or test); paths are relative to it. A patient never stands
on both sides of a split nor in two folds.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from workbench import phantom
from workbench.fit import write_atomic
from workbench.volume import Refused, Volume

COLUMNS = ("case", "patient", "ct", "labels", "split")
MINIMUM_PATIENTS = 3


@dataclass(frozen=True)
class Case:
    case: str
    patient: str
    ct: Path
    labels: Path
    split: str

    def read(self) -> tuple[Volume, Volume]:
        """CT and labels, both canonical and on one grid."""
        from workbench import readers

        ct = readers.read(self.ct)
        return ct, readers.read_labels(self.labels, like=ct)


def read_manifest(path: str | Path) -> list[Case]:
    """The cases of a manifest, refused when it is incomplete, repeats a case or lets a patient leak across the split."""
    path = Path(path)
    if not path.is_file():
        raise Refused(
            path, "no such file", "a cohort manifest (CSV)", "`workbench phantom OUT` writes one for synthetic cases."
        )
    with open(path, newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise Refused(path, f"columns {reader.fieldnames}", f"{', '.join(COLUMNS)}", f"Add {', '.join(missing)}.")
        rows = list(reader)
    cases = [Case(r["case"], r["patient"], path.parent / r["ct"], path.parent / r["labels"], r["split"]) for r in rows]
    names = [c.case for c in cases]
    if len(set(names)) < len(names):
        raise Refused(path, f"case {next(n for n in names if names.count(n) > 1)} more than once", "each case once")
    for c in cases:
        if c.split not in ("train", "test"):
            raise Refused(f"{path}, case {c.case}", f"split {c.split!r}", "train or test")
        for file in (c.ct, c.labels):
            if not file.exists():
                raise Refused(f"{path}, case {c.case}", f"no file {file}", "CT and labels of each case")
    both = {c.patient for c in cases if c.split == "train"} & {c.patient for c in cases if c.split == "test"}
    if both:
        raise Refused(
            path,
            f"patient {sorted(both)[0]} in train and in test",
            "each patient on one side",
            "Give all scans of a patient the same split.",
        )
    return cases


def folds(cases: list[Case], tumor_ml: dict[str, float], count: int) -> dict[str, int]:
    """Fold of each training case: patients grouped, tumor load spread evenly (snake order)."""
    patients: dict[str, float] = {}
    for c in cases:
        patients[c.patient] = patients.get(c.patient, 0.0) + tumor_ml[c.case]
    if len(patients) < max(count, MINIMUM_PATIENTS):
        raise Refused(
            "the cohort",
            f"{len(patients)} training patients",
            f"at least {max(count, MINIMUM_PATIENTS)}, one for each fold",
            "Add patients or use fewer folds.",
        )
    order = sorted(patients, key=lambda p: (-patients[p], p))
    snake = [*range(count), *reversed(range(count))]
    of = {p: snake[i % len(snake)] for i, p in enumerate(order)}
    return {c.case: of[c.patient] for c in cases}


def voxel_hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def write_phantoms(
    out: str | Path,
    cases: int,
    seed: int,
    preset: str = "demo",
    held_out: int | None = None,
    device: str = "cpu",
    progress=None,
) -> Path:
    """Generate `cases` phantoms below `out` and their manifest; a third is held out by default. Finished cases are kept."""
    from workbench.readers import nifti

    out = Path(out)
    if cases < 1:
        raise Refused("the number of phantom cases", str(cases), "1 or more")
    held_out = cases // 3 if held_out is None else held_out
    rows = []
    for i in range(cases):
        name = f"phantom-{seed + i:04d}"
        folder = out / name
        if not (folder / "lesions.csv").is_file():
            made = phantom.generate(seed + i, preset, device)
            folder.mkdir(parents=True, exist_ok=True)
            nifti.write(made.ct, folder / "ct.nii.gz")
            nifti.write(made.labels, folder / "labels.nii.gz")
            write_atomic(folder / "lookalikes.csv", made.lookalikes.to_csv(index=False).encode())
            write_atomic(folder / "lesions.csv", made.lesions.to_csv(index=False).encode())
        rows.append(
            [name, name, f"{name}/ct.nii.gz", f"{name}/labels.nii.gz", "test" if i >= cases - held_out else "train"]
        )
        if progress is not None:
            progress(name, i + 1, cases)
    text = io.StringIO()
    pd.DataFrame(rows, columns=COLUMNS).to_csv(text, index=False)
    write_atomic(out / "manifest.csv", text.getvalue().encode())
    return out / "manifest.csv"
