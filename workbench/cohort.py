"""The cohort: which case belongs to which patient, who is held out, who is in which fold.

A manifest is a CSV with the columns case, patient, ct and labels; paths are relative to it. A column split (train or test) holds patients
out, without it all train. A column field_of_view marks what was cut to the liver's box (docs/decisions/0009). A patient never stands on
both sides of a split nor in two folds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import workbench
from workbench import phantom
from workbench.files import write_atomic
from workbench.volume import Refused, Volume

COLUMNS = ("case", "patient", "ct", "labels")
OPTIONAL = {
    "split": ("train", "test"),
    "field_of_view": ("whole", "liver box"),
}  # the first is taken where it is not said
MINIMUM_PATIENTS = 3


@dataclass(frozen=True)
class Case:
    case: str
    patient: str
    ct: Path
    labels: Path
    split: str = "train"
    field_of_view: str = "whole"

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
    try:
        with open(path, newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise Refused(
                    path, f"columns {reader.fieldnames}", f"{', '.join(COLUMNS)}", f"Add {', '.join(missing)}."
                )
            rows = [_whole(row, f"{path}, line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(path, f"no CSV text ({error})", "a cohort manifest (CSV)") from error
    said = [[r.get(name, known[0]) for name, known in OPTIONAL.items()] for r in rows]
    cases = [
        Case(r["case"], r["patient"], path.parent / r["ct"], path.parent / r["labels"], *o) for r, o in zip(rows, said)
    ]
    names = [c.case for c in cases]
    if len(set(names)) < len(names):
        raise Refused(path, f"case {next(n for n in names if names.count(n) > 1)} more than once", "each case once")
    for c in cases:
        for name, known in OPTIONAL.items():
            if getattr(c, name) not in known:
                raise Refused(f"{path}, case {c.case}", f"{name} {getattr(c, name)!r}", " or ".join(known))
        for file in (c.ct, c.labels):
            if not os.path.exists(file):
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


def _whole(row: dict, line: str) -> dict:
    """A row of the manifest with a value for each column; a case's name is to be a file's name, in the folder where it belongs."""
    lacking = [column for column in COLUMNS if not row.get(column)]
    if lacking or None in row or None in row.values():
        found = f"no {', '.join(lacking)}" if lacking else "another number of fields than columns"
        raise Refused(line, found, "a value for each column")
    case = row["case"]
    if case.startswith(".") or re.search(r"[/\\\x00-\x1f]", case) or len(case.encode()) > 100:
        raise Refused(line, f"the case {case[:100]!r}", "a name that a file can have", "Use letters, digits, - and _.")
    if "\0" in "".join(map(str, row.values())):
        raise Refused(line, "a zero byte", "text")
    return row


def folds(cases: list[Case], tumor_ml: dict[str, float], count: int) -> dict[str, int]:
    """Fold of each training case: patients grouped, whole fields of view and then tumor load spread evenly (snake order)."""
    patients: dict[str, float] = {}
    for c in cases:
        patients[c.patient] = patients.get(c.patient, 0.0) + tumor_ml[c.case]
    whole = {c.patient for c in cases if c.field_of_view == "whole"}
    if len(patients) < max(count, MINIMUM_PATIENTS):
        raise Refused(
            "the cohort",
            f"{len(patients)} training patients",
            f"at least {max(count, MINIMUM_PATIENTS)}, one for each fold",
            "Add patients or use fewer folds.",
        )
    order = sorted(patients, key=lambda p: (p not in whole, -patients[p], p))
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
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Generate `cases` phantoms below `out` and their manifest; the last third is held out by default.

    Cases that are there already, of the same seed, preset and version, are kept. On a CPU the cores share the cases.
    """
    out = Path(out)
    if cases < 1:
        raise Refused("the number of phantom cases", str(cases), "1 or more")
    if preset not in phantom.PRESETS:
        raise Refused("--preset", preset, " or ".join(phantom.PRESETS))
    held_out = cases // 3 if held_out is None else held_out
    jobs = [(out / f"phantom-{s:04d}", s, preset, device) for s in range(seed, seed + cases)]
    workers = min(cases, _cores()) if device == "cpu" else 1
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) if workers > 1 else nullcontext() as pool:
        for i, name in enumerate((pool.map if pool else map)(_write_phantom, jobs)):
            if progress is not None:
                progress(name, i + 1, cases)
    rows = [
        [f.name, f.name, f"{f.name}/ct.nii.gz", f"{f.name}/labels.nii.gz", "test" if i >= cases - held_out else "train"]
        for i, (f, *_) in enumerate(jobs)
    ]
    text = io.StringIO()
    pd.DataFrame(rows, columns=[*COLUMNS, "split"]).to_csv(text, index=False)
    write_atomic(out / "manifest.csv", text.getvalue().encode())
    return out / "manifest.csv"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write_phantom(job: tuple[Path, int, str, str]) -> str:
    from workbench.readers import nifti

    folder, seed, preset, device = job
    about = {"seed": seed, "preset": preset, "version": workbench.__version__, "device": torch.device(device).type}
    mark = folder / "phantom.json"
    if mark.is_file() and json.loads(mark.read_text()) == about:
        return folder.name
    made = phantom.generate(seed, preset, device)
    folder.mkdir(parents=True, exist_ok=True)
    nifti.write(made.ct, folder / "ct.nii.gz")
    nifti.write(made.labels, folder / "labels.nii.gz")
    write_atomic(folder / "lookalikes.csv", made.lookalikes.to_csv(index=False).encode())
    write_atomic(folder / "lesions.csv", made.lesions.to_csv(index=False).encode())
    write_atomic(mark, json.dumps(about).encode())  # last: without it the case is made again
    return folder.name
