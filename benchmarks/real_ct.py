"""Real CT, one patient held out at a time: what phantoms, made-up lesions and other patients' scans give, stage by stage.

    python benchmarks/real_ct.py [--quick] [--json FILE] [--work FOLDER] [--minutes N] [--cohort CSV] [--variants abcd] [--measure-again]

Variants: a phantoms only; b + made-up lesions in the other patients' livers, whose own tumors are painted over; c + the other
patients' scans as they are; d both, made-up lesions beside the real ones. All begin with the nets of a, which saw no real patient,
and train on as whole experiments of two folds, so forest and boundary learn from out-of-fold maps as ever. Scans cut to the liver's box get
the reference liver (nothing is left there for the liver net to do), whole ones the liver net's own.
Each (variant, patient) leaves a JSON in the work folder; a rerun goes on, `--measure-again` only measures what is trained. Lesions are 26-connected, found when a voxel is shared; a
false positive shares none; diameters are of the ball of the same volume. JSON: settings, every lesion, the summary, from which
`workbench evidence` draws its part on real CT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from workbench import candidates, cohort, experiment, metrics, phantom, pipeline, segmentation
from workbench.boundary import BoundarySettings
from workbench.experiment import STAGES, Experiment, Settings
from workbench.files import write_json
from workbench.ledger import ABLATION
from workbench.readers import nifti
from workbench.volume import Refused, Spacing, Volume, canonical_affine, resample

COHORT = Path(__file__).resolve().parents[2] / "shared/realdata/cohort.csv"
VARIANTS = {
    "a": "phantoms only",
    "b": "+ made-up lesions in real livers",
    "c": "+ real tumors",
    "d": "+ both",
}
PHANTOMS, FRESH, COPIES = 80, 24, 2  # to begin with; beside the real ones; made-up copies of a scan
KINDS = (
    "tiny", "tiny", "metastasis", "metastasis", "metastasis", "rim-enhancing", "cyst", "hypervascular", "infiltrative", "necrotic",
)  # fmt: skip  # a choice: mostly small and darker than the liver, as most metastases are
OVER_MM = (5.0, 10.0)


def settings(steps: tuple[int, int], rate: float) -> Settings:
    """The demo's stages on a finer grid; steps of the liver and of the tumor nets."""
    demo = experiment.demo()

    def stage(of, count: int, **slabs):
        fit = replace(of.cascade.fit, steps=count, rate=rate, batch=16)
        return replace(of, cascade=replace(of.cascade, fit=fit, slabs=replace(of.cascade.slabs, **slabs)))

    finer = {"crop": (128, 128), "blob_pixels": (2.0, 14.0), "blob_slices": (0.25, 0.6)}
    return replace(
        demo,
        pixel_mm=1.5,
        slice_mm=3.0,
        liver=stage(demo.liver, steps[0]),
        tumor=stage(demo.tumor, steps[1], **finer),
        boundary=replace(demo.boundary, grid_mm=(3.0, 1.5, 1.5)),  # as fine as what it corrects
    )


def begin(quick: bool) -> Settings:
    return settings((40, 60) if quick else (300, 1000), 3e-3)


def go_on(quick: bool) -> Settings:
    s = settings((10, 20) if quick else (60, 240), 1e-3)
    return replace(s, boundary=replace(s.boundary, rate=1e-3))


# ---------------------------------------------------------------- scans to learn from, on the work grid


def on_work_grid(case: cohort.Case, s: Settings) -> tuple[Tensor, Tensor, Spacing]:
    """HU, labels and spacing of a scan on the work grid, as the stage cohort makes them."""
    ct, labels = case.read()
    shape, spacing = s.work_grid(ct.shape, ct.spacing_mm)
    out = (resample(labels.array >= 1, shape) >= 0.5).to(torch.uint8)
    out[resample(labels.array == 2, shape) >= 0.5] = 2
    return resample(ct.array, shape).round().clamp(-1024, 3071), out, spacing


def painted_over(hu: Tensor, labels: Tensor, spacing: Spacing, seed: int) -> tuple[Tensor, Tensor]:
    """A liver without its tumors: their voxels, and those 3 mm around, get the healthy liver's level and its noise."""
    if not bool((labels == 2).any()):
        return hu, labels
    near = candidates.near(labels == 2, spacing, 3.0) & (labels >= 1)
    healthy = (labels == 1) & ~near
    fine = hu - torch.from_numpy(ndimage.gaussian_filter(hu.numpy(), (0, 2, 2)))
    sd = 1.4826 * float(fine[healthy].abs().median())
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(hu.shape), (0, 0.6, 0.6))
    out = hu.clone()
    out[near] = (hu[healthy].median() + sd * torch.from_numpy(noise / noise.std()).float())[near]
    return out.round(), labels.clamp(max=1)


def keep_scan(folder: Path, hu: Tensor, labels: Tensor, spacing: Spacing) -> None:
    """CT and labels as NIfTI; the labels last, without which the scan is made again."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = canonical_affine(spacing)
    nifti.write(Volume(hu.round().to(torch.int16), spacing, affine, folder.name), folder / "ct.nii.gz")
    nifti.write(Volume(labels.to(torch.uint8), spacing, affine, folder.name), folder / "labels.nii.gz")


def prepare(case: cohort.Case, variant: str, work: Path, s: Settings, copies: int) -> list[Path]:
    """Folders of what a variant learns from a scan of another patient."""
    seeds = [int(hashlib.sha256(case.case.encode()).hexdigest()[:6], 16) + n for n in range(copies)]
    made = {work / "scans" / f"{variant}-{case.case}-{n}": seed for n, seed in enumerate(seeds)}
    folders: dict[Path, int | None] = {work / "scans" / case.case: None} if variant in "cd" else {}
    folders |= made if variant in "bd" else {}
    missing = [f for f in folders if not (f / "labels.nii.gz").is_file()]
    if missing:
        hu, labels, spacing = on_work_grid(case, s)
        for folder in missing:
            seed, image, truth = folders[folder], hu, labels
            if seed is not None and variant == "b":
                image, truth = painted_over(hu, labels, spacing, seed)
            if seed is not None:
                implanted = phantom.implant(image.float(), truth, spacing, seed, (3, 8), KINDS)
                image, truth = implanted.hu, implanted.labels
            keep_scan(folder, image, truth, spacing)
    return list(folders)


def manifest_without(patient: str, variant: str, cases: list[cohort.Case], work: Path, s: Settings) -> Path:
    """Manifest of what a variant learns from when a patient is held out: fresh phantoms and the other patients' scans."""
    rows = [(c.case, c.patient, c.ct, c.labels, "whole") for c in cohort.read_manifest(work / "fresh" / "manifest.csv")]
    for c in cases:
        if c.patient != patient:
            folders = prepare(c, variant, work, s, COPIES)
            rows += [(f.name, c.patient, f / "ct.nii.gz", f / "labels.nii.gz", c.field_of_view) for f in folders]
    path = work / f"{variant}-{patient}" / "manifest.csv"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows, columns=[*cohort.COLUMNS, "field_of_view"]).to_csv(path, index=False)
    return path


# ---------------------------------------------------------------- one held-out patient


def measure(case: cohort.Case, models: segmentation.Models, keep: Path) -> dict:
    """What each stage says of a held-out scan, on its own grid."""
    ct, truth = case.read()
    liver, tumor = truth.array >= 1, (truth.array == 2).numpy()
    cut = case.field_of_view != "whole"
    result = segmentation.segment(replace(ct, name=case.case), models, liver_given=liver if cut else None)
    found = {stage: (result.labels_after(stage) == 2).numpy() for stage in ABLATION}
    for stage in segmentation.DECIDING:
        decided = segmentation.decide(result.maps, models, skip=(stage,))
        found[f"all but {stage}"] = segmentation.on_own_grid(decided, ct.shape)[-1].numpy()
    stages = {stage: compared(tumor, mask, ct.spacing_mm) for stage, mask in found.items()}
    both = int((result.liver & liver).sum())
    nifti.write(ct.with_array(result.labels), keep)
    return {
        "case": case.case,
        "patient": case.patient,
        "liver_dice": None if cut else 2 * both / int(result.liver.sum() + liver.sum()),
        "stages": stages,
    }


def compared(tumor: np.ndarray, found: np.ndarray, spacing_mm: Spacing) -> dict:
    """Whole-mask measures, each lesion's overlap, and the diameters of what touches none."""
    matched = metrics.match_lesions(tumor, found, spacing_mm, neighbours=26)
    whole = metrics.compare(tumor, found, spacing_mm)
    return {name: whole[name] for name in ("dice", "assd_mm", "surface_dice")} | {
        "lesions": [{k: r[k] for k in ("diameter_mm", "iou")} for r in matched["lesions"]],
        "false_mm": [r["diameter_mm"] for r in matched["false_positives"] if not r["touches_lesion"]],
    }


def piece(variant: str, patient: str, manifest: Path, work: Path, quick: bool, again: bool = False) -> str:
    """Train a variant without a patient and measure the patient's scans; leaves `work/VARIANT-PATIENT.json`. `again`: measure only."""
    torch.set_num_threads(1)
    began, s = time.monotonic(), go_on(quick)
    cases = cohort.read_manifest(manifest)
    held = [c for c in cases if c.patient == patient]
    folder = work / "begin" if variant == "a" else work / f"{variant}-{patient}"
    if variant != "a" and not again:
        learns_from = manifest_without(patient, variant, cases, work, s)
        made = Experiment.create(folder, learns_from, s, "cpu", start=work / "begin")
        for stage in STAGES[:-1]:
            pipeline.run(made, stage)
    models, asked = segmentation.Models.load(folder, "cpu"), begin(quick) if variant == "a" else s
    if models.settings != asked:
        raise Refused(
            folder, "trained with other settings", "those of this benchmark", "Begin in another --work folder."
        )
    (work / "predictions").mkdir(exist_ok=True)
    scans = [measure(c, models, work / "predictions" / f"{variant}-{c.case}.nii.gz") for c in held]
    write_json(
        work / f"{variant}-{patient}.json",
        metrics.json_safe(
            {"variant": variant, "patient": patient, "scans": scans, "seconds": round(time.monotonic() - began)}
        ),
    )
    if variant != "a" and not again:
        for arrays in ("hu", "labels", "maps", "masks"):
            for stage in STAGES:
                shutil.rmtree(folder / stage / arrays, ignore_errors=True)
    return f"{variant} {patient}: {time.monotonic() - began:.0f} s"


# ---------------------------------------------------------------- the summary


def mean_of(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else math.nan


def of_patient(scans: list[dict], stage: str) -> dict:
    """The measures of one patient after a stage: Dice a scan, lesions of all the patient's scans together."""
    after = [scan["stages"][stage] for scan in scans]
    lesions, false = [r for a in after for r in a["lesions"]], [mm for a in after for mm in a["false_mm"]]
    hit = [2 * r["iou"] / (1 + r["iou"]) for r in lesions if r["iou"] > 0]
    livers = [scan["liver_dice"] for scan in scans if scan["liver_dice"] is not None]
    row = {
        "tumor_dice": float(np.mean([a["dice"] for a in after])) if lesions else math.nan,
        **{
            f"tumor_{m}": mean_of([a.get(m) for a in after]) if lesions else math.nan
            for m in ("assd_mm", "surface_dice")
        },
        "dice_of_found": float(np.mean(hit)) if hit else math.nan,
        "liver_dice": float(np.mean(livers)) if livers else math.nan,
    }
    for least in OVER_MM:
        large = [r["iou"] > 0 for r in lesions if r["diameter_mm"] > least]
        wrong = sum(mm > least for mm in false)
        row |= {
            f"lesions_{least:.0f}": len(large),
            f"found_{least:.0f}": sum(large),
            f"recall_{least:.0f}": float(np.mean(large)) if large else math.nan,
            f"false_{least:.0f}": wrong / len(scans),
            f"precision_{least:.0f}": sum(large) / (sum(large) + wrong) if sum(large) + wrong else math.nan,
        }
    return row


def summary(work: Path) -> pd.DataFrame:
    """A row a variant, stage and patient, from the pieces that are there."""
    rows = []
    for file in sorted(work.glob("?-*.json")):
        held = json.loads(file.read_text())
        rows += [
            {k: held[k] for k in ("variant", "patient")} | {"stage": s} | of_patient(held["scans"], s)
            for s in held["scans"][0]["stages"]
        ]
    return pd.DataFrame(rows)


def words(table: pd.DataFrame) -> str:
    """Each patient after the last stage, then the mean over the tumor patients after each stage."""
    shown = ["tumor_dice", "dice_of_found", "recall_5", "recall_10", "precision_5", "false_5", "false_10", "liver_dice"]
    last = table[table.stage == ABLATION[-1]]
    ill = table[table.lesions_5 > 0]
    means = ill.groupby(["variant", "stage"], sort=False)[shown].mean()
    means.insert(0, "patients", ill.groupby(["variant", "stage"], sort=False).size())
    return (
        f"{last.drop(columns='stage').to_string(index=False, float_format='%.3f')}\n\n"
        f"Mean over patients with tumors\n{means.to_string(float_format='%.3f')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a toy of it: one patient, variants a and c, few steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", type=Path, default=Path("experiments/real_ct"), help="where the pieces lie")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no new piece after these")
    parser.add_argument("--cohort", type=Path, default=COHORT, help="manifest of the real scans")
    parser.add_argument("--variants", default="acdb", help="which, in this order")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--measure-again", action="store_true", help="train nothing: measure again what is trained and measured"
    )
    asked = parser.parse_args()
    began, work, quick = time.monotonic(), asked.work.absolute(), asked.quick
    if not asked.cohort.is_file():
        print(f"no real CT at {asked.cohort}: nothing is measured")
        return 0
    patients = list(dict.fromkeys(c.patient for c in cohort.read_manifest(asked.cohort)))
    variants = asked.variants
    if quick:
        work, patients, variants = work / "quick", patients[1:2], "ac"
    again = asked.measure_again
    if not again:
        n, fresh = (16, 8) if quick else (PHANTOMS, FRESH)
        first = cohort.write_phantoms(work / "phantoms", n, 1, "fine", 0)
        cohort.write_phantoms(work / "fresh", fresh, 1001, "fine", 0)
        base = Experiment.create(work / "begin", first, begin(quick), "cpu")
        for stage in STAGES[:-1]:
            pipeline.run(base, stage)
    left = [(v, p) for v in variants for p in patients if (work / f"{v}-{p}.json").is_file() == again]
    with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
        running = []
        while left or running:
            while left and len(running) < asked.workers and (time.monotonic() - began) / 60 < asked.minutes:
                running.append(pool.submit(piece, *left.pop(0), asked.cohort.absolute(), work, quick, again))
            if not running:
                break
            done = next((f for f in running if f.done()), None)
            if done is None:
                time.sleep(1)
                continue
            running.remove(done)
            print(done.result(), flush=True)
    table = summary(work)
    print(words(table))
    if left and not again:
        print(f"{len(left)} pieces are left: the same command goes on")
    if asked.json:
        pieces = [json.loads(f.read_text()) for f in sorted(work.glob("?-*.json"))]
        about = {"begin": asdict(begin(quick)), "go_on": asdict(go_on(quick)), "variants": VARIANTS}
        held = {
            "settings": about,
            "pieces": pieces,
            "summary": table.to_dict("records"),
            "boundary_threshold": BoundarySettings().threshold,
        }
        write_json(asked.json, metrics.json_safe(held))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
