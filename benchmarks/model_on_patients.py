"""A trained model on real CT that it has never seen: liver, tumors, false positives, each patient and each stage.

    python benchmarks/model_on_patients.py [--models clinical] [--json experiments/clinical.json] [--data FOLDER] [--livers]

Whole scans get the liver net's own liver and, beside it, the reference; scans cut to the liver's box get the reference. The operating point is the
model's own; the others are beside it. Nothing is learned or chosen here. `--livers`: the liver stage alone.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import pandas as pd
import real_ct
import torch

from workbench import cohort, domain, metrics, models, pipeline, readers, segmentation
from workbench.files import write_json
from workbench.segmentation import Models
from workbench.threads import in_processes


def cases(data: Path, work: Path) -> list[cohort.Case]:
    """The labelled scans, and those without tumors."""
    return cohort.read_manifest(real_ct.manifest(data, work, True))


def liver_of(data: Path, ready: Models, row: dict) -> dict:
    """The liver stage on one whole scan: Dice, share of the labelled tumor inside, what the scan is like, warnings."""
    ct = readers.read(data / row["ct"])
    truth = readers.read_labels(data / row["liver"], like=ct, allowed=None).array > 0
    shape, spacing = ready.settings.work_grid(ct.shape, ct.spacing_mm)
    hu = segmentation.resample(ct.array, shape).clamp(-1024, 3071).round()
    p = segmentation.liver.probability(ready.liver, hu, spacing, ready.settings.liver)
    found = segmentation.liver.mask(p, spacing, ready.settings.liver)
    inside = segmentation.resample(found, ct.shape) >= 0.5
    scan = domain.measure(hu, found, spacing, ct.spacing_mm)
    tumor = data / row["ct"].replace("ct.nii.gz", "labels-liver1-tumour2.nii.gz")
    share = math.nan
    if tumor.is_file():
        mask = readers.read_labels(tumor, like=ct).array == 2
        share = float((mask & inside).sum() / mask.sum())
    return {
        "case": row["case"],
        "patient": row["patient"],
        "dice": pipeline.dice(inside, truth),
        "recall": float((inside & truth).sum() / truth.sum()),
        "precision": float((inside & truth).sum() / inside.sum()),
        "tumor_inside": share,
        "doubts": domain.doubts(scan, ready.scans) if ready.scans is not None else [],
    }


def scan_of(keep: str, ready: Models, case: cohort.Case) -> list[dict]:
    """`real_ct.measure` of a scan, with the own liver, and with the reference where the scan is whole and has tumors."""
    ct, truth = case.read()
    whole, rows = case.field_of_view == "whole", []
    for given in [False, True] if whole and bool((truth.array == 2).any()) else [not whole]:
        maps = segmentation.look(ct, ready, liver_given=truth.array >= 1 if given else None)
        file = Path(keep) / f"{case.case}.nii.gz" if keep and not (whole and given) else None
        rows.append(real_ct.measure(case, maps, ready, file, given))
    return rows


def load(folder: Path) -> Models:
    torch.set_num_threads(1)
    return Models.load(folder, "cpu")


def words(pieces: list[dict], livers: pd.DataFrame, point: str) -> str:
    table = pd.concat([real_ct.summary(pieces, liver) for liver in ("own", "reference")])
    ill, healthy = table[table.lesions_5 > 0], table[(table.lesions_5 == 0) & (table.liver == "own")]
    rows = []
    for (liver, within, stage), of in ill.groupby(["liver", "within", "stage"], sort=False):
        shown = {m: real_ct.interval(of[m]) for m in ("tumor_dice", "recall_5", "false_5")}
        rows.append({"liver": liver, within: stage, "patients": len(of), **shown})
    last = ill[(ill.within == "points") & (ill.stage == point)].pivot_table(
        index="liver", columns="patient", values="tumor_dice"
    )
    false = healthy[healthy.within == "points"].groupby("stage").false_5.mean()
    found = pd.DataFrame(rows)
    return "\n\n".join(
        [
            livers.drop(columns="doubts").round(3).to_string(index=False),
            f"liver Dice {real_ct.interval(livers.dice)} of {livers.patient.nunique()} patients",
            found.to_string(index=False) if len(found) else "",
            f"tumor Dice a patient at {point}\n{last.round(3).to_string()}",
            f"false positives over 5 mm in tumor-free livers\n{false.round(2).to_string()}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=models.DEFAULT)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=real_ct.REALDATA)
    parser.add_argument("--work", type=Path, default=Path("experiments/model_on_patients"))
    parser.add_argument("--livers", action="store_true", help="the liver stage alone")
    parser.add_argument("--quick", action="store_true", help="the liver stage of two scans")
    asked = parser.parse_args()
    if not (asked.data / "cohort.csv").is_file():
        print(f"no real CT at {asked.data}: nothing is measured")
        return 0
    asked.work.mkdir(parents=True, exist_ok=True)
    folder = models.find(asked.models)
    make, point = partial(load, folder), Models.load(folder, "cpu").forest.point
    rows = pd.read_csv(asked.data / "livers.csv", dtype=str, keep_default_na=False).to_dict("records")
    rows, asked.livers = (rows[:2], True) if asked.quick else (rows, asked.livers)
    livers = pd.DataFrame(list(in_processes(make, partial(liver_of, asked.data), rows, 2)))
    pieces = []
    if not asked.livers:
        todo = cases(asked.data, asked.work)
        for found in in_processes(make, partial(scan_of, str(asked.work)), todo, 2):
            about = {"variant": "m", "seed": 0, "patient": found[0]["patient"]}
            same = next((p for p in pieces if p["patient"] == about["patient"]), None)
            if same:
                same["scans"] += found
            else:
                pieces.append(about | {"scans": found})
            print(found[0]["case"], [r["points"][point]["dice"] for r in found], flush=True)
    print(words(pieces, livers, point) if pieces else livers.drop(columns="doubts").round(3).to_string())
    for row in livers.itertuples():
        print(*[f"{row.case}: {line}" for line in row.doubts], sep="\n", end="\n" * bool(row.doubts))
    if asked.json:
        said = {"model": models.about(folder), "livers": livers.to_dict("records"), "pieces": pieces, "point": point}
        write_json(asked.json, metrics.json_safe(said))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
