"""A trained model on real CT that it has never seen: liver, tumors, false positives, each patient and each stage.

    python benchmarks/model_on_patients.py [--models clinical] [--json experiments/clinical.json] [--data FOLDER] [--livers] [--write]

Whole scans get the liver net's own liver and, beside it, the reference; scans cut to the liver's box get the reference. The operating point is the
model's own; the others are beside it. Nothing is learned or chosen here. `--livers`: the liver stage alone.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path

import pandas as pd
import real_ct
import torch

from workbench.data import cohort, readers
from workbench.data.files import write_json
from workbench.data.threads import in_processes
from workbench.experiment import models, pipeline, segmentation
from workbench.experiment.segmentation import Models
from workbench.stages import domain, metrics
from workbench.volume import Refused

ROOT = Path(__file__).resolve().parents[1]


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
            f"liver Dice {real_ct.interval(livers.dice, 1)} of {livers.patient.nunique()} patients",
            found.to_string(index=False) if len(found) else "",
            f"tumor Dice a patient at {point}\n{last.round(3).to_string()}",
            f"false positives over 5 mm in tumor-free livers\n{false.round(2).to_string()}",
        ]
    )


MARKS = "<!-- model on patients -->", "<!-- end of model on patients -->"
LITS = {  # of systems trained on LiTS, as they are published (Bilic et al. 2023; Isensee et al. 2021, LiTS's 70 test scans)
    "liver Dice": ".96 to .97",
    "tumor Dice": ".67 to .76",
}


def figures_of(found: dict) -> list[tuple[str, str, str]]:
    """What was measured, with the number of patients: (measure, value [interval], of whom)."""
    livers, point = pd.DataFrame(found["livers"]), found["point"]
    own, reference = (real_ct.summary(found["pieces"], liver) for liver in ("own", "reference"))
    last = own[(own.within == "points") & (own.stage == point)]
    ill, healthy = last[last.lesions_5 > 0], last[last.lesions_5 == 0]
    given = reference[(reference.within == "points") & (reference.stage == point) & (reference.lesions_5 > 0)]
    inside = livers.tumor_inside.astype(float).dropna()
    return [
        ("liver Dice", real_ct.interval(livers.dice), f"{livers.patient.nunique()} patients, whole scans"),
        ("share of the tumor inside the found liver", f"{inside.mean():.3f}", f"{len(inside)} patient"),
        ("tumor Dice", real_ct.interval(ill.tumor_dice, 1), f"{len(ill)} patients, own liver on whole scans"),
        ("tumor Dice, reference liver", real_ct.interval(given.tumor_dice, 1), f"{len(given)} patients"),
        (
            "recall, lesions over 5 mm",
            real_ct.interval(ill.recall_5, 1),
            f"{len(ill)} patients, {int(ill.lesions_5.sum())} lesions",
        ),
        ("false positives over 5 mm a scan", real_ct.interval(ill.false_5), f"{len(ill)} patients"),
        ("the same in tumor-free livers", f"{healthy.false_5.mean():.2f}", f"{len(healthy)} patients"),
    ]


def write(found: dict, folder: Path) -> None:
    """The figures into README, model card and evidence, between two marks, and into the model's model.json."""
    rows, model = figures_of(found), found["model"]
    if model["files"] != models.about(folder)["files"]:
        raise Refused(folder, "another model than the one that was measured", "the same files", "Measure it again.")
    lines = [
        MARKS[0],
        f"| {model['name']} {model['version']}, operating point `{found['point']}` | on patients that it has never seen [95 %] | of | trained on LiTS, as published |",
        "|---|---|---|---|",
        *[f"| {name} | {value} | {whom} | {LITS.get(name, '')} |" for name, value, whom in rows],
        "",
        "3D-IRCADb, LiTS and CHAOS: none of them was learned from. One training: intervals hold the patients only, and another training moves a mean Dice by .04 to .08. "
        "The operating point was settled after the points had been seen on these patients. `benchmarks/model_on_patients.py --write` makes this table.",
        MARKS[1],
    ]
    for name in ("README.md", "docs/model_card.md", "docs/evidence.md"):
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if MARKS[0] not in text:
            text += f"\n## The model that comes along, on patients\n\n{MARKS[0]}\n{MARKS[1]}\n"
        before, rest = text.split(MARKS[0])
        path.write_text(before + "\n".join(lines) + rest.split(MARKS[1])[1], encoding="utf-8")
    said = [f"{name} {value} ({whom})" for name, value, whom in rows]
    about = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", about | {"measured_on": said})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=models.DEFAULT)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=real_ct.REALDATA)
    parser.add_argument("--work", type=Path, default=Path("experiments/model_on_patients"))
    parser.add_argument("--livers", action="store_true", help="the liver stage alone")
    parser.add_argument("--quick", action="store_true", help="the liver stage of two scans")
    parser.add_argument("--write", action="store_true", help="into README, model card, evidence page and model.json")
    parser.add_argument("--measured", type=Path, help="what --json left, in place of measuring")
    asked = parser.parse_args()
    if asked.measured:
        write(json.loads(asked.measured.read_text()), models.find(asked.models))
        return 0
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
    said = {"model": models.about(folder), "livers": livers.to_dict("records"), "pieces": pieces, "point": point}
    found = metrics.json_safe(said)
    if asked.json:
        write_json(asked.json, found)
    if asked.write:
        write(found, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
