"""Real CT, each patient held out: what phantoms, healthy tissue with synthetic lesions, and other patients' labels give, stage by stage.

    python benchmarks/real_ct.py [--quick] [--json FILE] [--work FOLDER] [--seeds 0 1 2] [--variants abcd] [--minutes N] [--phantoms N]

Variants: a, trained on phantoms only; b, its forest learned from other patients' scans without their tumors, and from synthetic lesions in
them (`workbench adapt`); c, the tumor net was tuned on them too; d, as b, with the other patients' tumor labels in place of synthetic lesions in their scans. e, as b, the forest may choose the
candidates' own features (depth, probability). Nothing is learned from the patient that is measured: the nets of a, b, d and e saw phantoms, those of c
are of the other fold, and selection, forest and operating points leave the patient out. In a, b, c and e a tumor label serves to leave its region out.
Scans cut to the liver's box get the reference liver; whole scans the liver net's own and, beside it, the reference.

A training is a seed of nets, implants and folds; all learn from the same phantoms. Each (variant, seed, patient) leaves a JSON in the work folder, and a rerun resumes. Lesions
are 26-connected and found when a voxel is shared; a false positive shares none; diameters are of the ball of the same volume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench import experiment
from workbench.data import cohort
from workbench.data.files import write_json, write_table
from workbench.data.readers import nifti
from workbench.data.threads import in_processes
from workbench.experiment import Experiment, Settings, pipeline, segmentation
from workbench.experiment.segmentation import Maps, Memory, Models
from workbench.experiment.table import before
from workbench.masks import numbered
from workbench.run import adapt
from workbench.stages import candidates, forest, metrics
from workbench.stages.ledger import ABLATION
from workbench.volume import Refused, Spacing

REALDATA = Path(__file__).resolve().parents[2] / "shared/realdata"
VARIANTS = {
    "a": "phantoms only",
    "b": "+ healthy tissue and implants in the forest",
    "c": "+ in the tumor net",
    "d": "b, with the other patients' labels in place of synthetic lesions in them",
    "e": "b + the candidates' own features",
}
PHANTOMS, TUNE = 160, 400  # phantoms of a training; steps of the tumor net in c
OVER_MM = (5.0, 10.0)
POINT = "dice"  # the operating point that the stages are shown at


def settings(seed: int, tumor_steps: int = 3000, liver_steps: int = 800) -> Settings:
    """The preset clinical as these trainings had it: two folds, three copies, the liver net on 3 mm and less augmented (docs/log.md, 2026-11-30)."""
    base = experiment.clinical()

    def stage(of, steps: int, **slabs):
        fit = replace(of.cascade.fit, steps=steps, seed=seed)
        return replace(of, cascade=replace(of.cascade, fit=fit, slabs=replace(of.cascade.slabs, **slabs)))

    weaker = {"shift_hu": 20.0, "contrast": 0.15, "noise_hu": 12.0}
    return replace(
        base,
        preset="demo",
        seed=seed,
        folds=2,
        implants=replace(base.implants, copies=3),
        liver=stage(replace(base.liver, pixel_mm=3.0), liver_steps, crop=(96, 96), blob_pixels=(2.0, 24.0), **weaker),
        tumor=stage(base.tumor, tumor_steps),
        forest=experiment.demo().forest,
    )


def manifest(data: Path, work: Path, labelled: bool) -> Path:
    """The labelled scans and those without tumors in `data`; `labelled`: tumor labels are learned from, else their regions are left out."""
    of, livers = (pd.read_csv(data / name, dtype=str, keep_default_na=False) for name in ("cohort.csv", "livers.csv"))
    livers = livers[(livers.tumors == "none") & ~livers.case.isin(of.case)].rename(columns={"liver": "labels"})
    table = pd.concat([of, livers.assign(field_of_view="whole")])
    ill = ~table.tumors.isin(("0", "none"))
    table["tumor_labels"] = np.where(ill, "complete" if labelled else "exclude", "none")
    for column in ("ct", "labels"):
        table[column] = [os.path.relpath(data / name, work) for name in table[column]]
    path = work / f"manifest-{'labelled' if labelled else 'left-out'}.csv"
    write_table(path, table[[*cohort.COLUMNS, "field_of_view", "tumor_labels"]])
    return path


def train(work: Path, data: Path, variant: str, seed: int, phantoms: int, base: Settings) -> Experiment:
    """The experiment of a variant, trained as far as its boundary stage; finished stages stay."""
    if variant == "a":
        made = Experiment.create(
            work / f"a-{seed}", cohort.write_phantoms(work / "phantoms", phantoms, 1, "fine", 0), base, "cpu"
        )
        return _run(made)
    table, steps = manifest(data, work, variant == "d"), TUNE if variant == "c" else 0
    own = adapt.settings_for

    def leaving_one_out(source: Settings, *rest) -> Settings:
        s, patients = own(source, *rest), len({c.patient for c in cohort.read_manifest(table)})
        return replace(s, seed=seed, selection=replace(s.selection, folds=patients, own_features=variant == "e"))

    folder = work / f"{variant}-{seed}"
    if variant == "e" and not folder.exists():  # the first stages are those of b
        for stage in before("selection"):
            shutil.copytree(work / f"b-{seed}" / stage, folder / stage, copy_function=os.link)
    adapt.settings_for = leaving_one_out
    try:
        return _run(adapt.begin(work / f"a-{seed}", table, folder, "cpu", None, steps, POINT))
    finally:
        adapt.settings_for = own


def _run(made: Experiment) -> Experiment:
    for stage in before("metrics"):
        pipeline.run(made, stage)
    return made


# ---------------------------------------------------------------- one held-out patient


def judges(made: Experiment) -> dict[str, forest.Forest]:
    """For each patient the forest of the others. Its operating points are of the others' scores by forests without this patient too, on the features
    that were chosen without it."""
    rows, s = pipeline.forest_rows(made), made.settings.forest
    table, cases, judged = rows.table, made.cases("train"), {}
    for patient in sorted(set(rows.patients)):
        on, held = rows.patients != patient, set(rows.fold[rows.patients == patient])
        if held & set(rows.fold[on]):
            raise Refused(made.folder, f"a fold of several patients, {patient} among them", "one patient a fold")
        names = rows.chosen(np.flatnonzero(on))
        x, truth, patients = rows.features[on][names].reset_index(drop=True), rows.truth[on], rows.patients[on]
        others = cases[cases.patient != patient].set_index("case")
        scores = forest.out_of_fold(x, truth, patients, names, s, rows.fold[on]).scores
        points = forest.operating_points(
            scores,
            truth,
            rows.lesions[on],
            s.recall,
            table[on][["case", "volume_ml", "shared_ml"]],
            others.tumor_ml,
            others.patient,
            set(others.index[others.copy_of.notna()]),
            s.false_a_scan,
        )
        fitted = forest.fit(x, truth, forest.settled(x, truth, patients, s)[0])
        judged[patient] = replace(fitted, points=points, largest_ml=float(table.volume_ml[on].max())).at(POINT)
    return judged


def measure(case: cohort.Case, maps: Maps, models: Models, keep: Path | None, reference_liver: bool) -> dict:
    """What each stage says of a held-out scan at `POINT`, on its own grid, and the last stage at the other points; its candidates with score and truth."""
    ct, truth = case.read()
    liver, tumor = truth.array >= 1, (truth.array == 2).numpy()
    memory, stages, points = Memory(), {}, {}
    for name in [POINT, *(p for p in models.forest.points if p != POINT)]:
        decided = segmentation.decide(maps, replace(models, forest=models.forest.at(name)), memory=memory)
        masks = segmentation.on_own_grid(decided, ct.shape)
        if name == POINT:
            stages = {stage: compared(tumor, mask.numpy(), ct.spacing_mm) for stage, mask in zip(ABLATION, masks)}
            first = decided
            if keep is not None:
                nifti.write(ct.with_array(liver.to(torch.uint8) + masks[-1].to(torch.uint8)), keep)
        points[name] = compared(tumor, masks[-1].numpy(), ct.spacing_mm)
    shape = tuple(maps.p.shape)
    on_work = segmentation.resample(torch.from_numpy(tumor), shape) >= 0.5
    true, _ = candidates.match(first.pieces, numbered(on_work))
    inside = segmentation.resample(maps.liver, ct.shape) >= 0.5
    shared = candidates.shared_ml(first.pieces, on_work, maps.spacing_mm)
    names = [n for n in models.forest.names if n in first.lesions]
    seen = first.lesions[["candidate", "volume_ml", "forest_score", *names]].assign(true=true, shared_ml=shared)
    return {
        "case": case.case,
        "patient": case.patient,
        "liver": "reference" if reference_liver or case.field_of_view != "whole" else "own",
        "liver_dice": None if reference_liver or case.field_of_view != "whole" else pipeline.dice(inside, liver),
        "tumor_inside": float((tumor & inside.numpy()).sum() / tumor.sum()) if tumor.any() else None,
        "tumor_ml": float(tumor.sum()) * ct.voxel_ml,
        "stages": stages,
        "points": points,
        "candidates": seen.to_dict("records"),
    }


def compared(tumor: np.ndarray, found: np.ndarray, spacing_mm: Spacing) -> dict:
    """Whole-mask measures, each lesion's overlap, and the diameters of what touches none."""
    matched = metrics.match_lesions(tumor, found, spacing_mm, neighbours=26)
    whole = metrics.compare(tumor, found, spacing_mm)
    return {name: whole[name] for name in ("dice", "assd_mm", "surface_dice")} | {
        "lesions": [{k: r[k] for k in ("diameter_mm", "iou")} for r in matched["lesions"]],
        "false_mm": [r["diameter_mm"] for r in matched["false_positives"] if not r["touches_lesion"]],
    }


def digest(variant: str, seed: int, phantoms: int, base: Settings) -> str:
    """What a piece rests on; a piece of other settings is measured again."""
    rests = [variant, seed, phantoms, TUNE, POINT, asdict(base)]
    return hashlib.sha256(json.dumps(rests).encode()).hexdigest()[:16]


class Ready:
    """What a process measures with: the maps' experiment, its models, and for each patient the forest that decides."""

    def __init__(self, made: Path, maps: Path, variant: str):
        torch.set_num_threads(1)
        self.maps, self.models = Experiment(maps, "cpu"), Models.load(made, "cpu")
        self.judges = {} if variant == "a" else judges(Experiment(made, "cpu"))


def patient_measured(
    variant: str, seed: int, work: Path, rests: str, ready: Ready, job: tuple[str, list[cohort.Case]]
) -> str:
    """Measure a patient's scans; leaves `work/VARIANT-SEED-PATIENT.json`."""
    (patient, cases), began, scans = job, time.monotonic(), []
    place = work / "predictions"
    place.mkdir(exist_ok=True)
    models = ready.models
    if variant == "a":
        points = models.forest.points
        models = replace(models, forest=models.forest.at(POINT if POINT in points else "recall"))
    else:
        models = replace(models, forest=ready.judges[patient])
    for case in cases:
        maps = Maps.of(ready.maps, case.case)
        scans.append(measure(case, maps, models, place / f"{variant}-{seed}-{case.case}.nii.gz", False))
        ct, truth = case.read()
        if case.field_of_view == "whole" and bool((truth.array == 2).any()) and variant != "c":
            nets = Models.load(ready.maps.start, "cpu")  # as they are, with the reference liver
            maps = segmentation.look(ct, nets, liver_given=truth.array >= 1)
            scans.append(measure(case, maps, models, None, True))
    about = {"variant": variant, "seed": seed, "patient": patient, "rests": rests, "scans": scans}
    seconds = round(time.monotonic() - began)
    write_json(work / f"{variant}-{seed}-{patient}.json", metrics.json_safe(about | {"seconds": seconds}))
    return f"{variant} {seed} {patient}: {seconds} s"


# ---------------------------------------------------------------- how many patients it takes


def seeds_with_features(held: list[dict]) -> list[int]:
    """The seeds of variant b whose pieces hold the candidates' descriptors."""
    return sorted(
        {
            p["seed"]
            for p in held
            if p["variant"] == "b" and any(len(c) > 5 for s in p["scans"] for c in s["candidates"])
        }
    )


def patients_needed(
    work: Path, held: list[dict], seed: int, counts: tuple[int, ...] = (1, 2, 3, 5, 7), draws: int = 3
) -> pd.DataFrame:
    """Forests of variant b that learned from fewer other patients: AUC on the candidates of held-out patients, and mean tumor Dice of the tumor
    patients on the work grid, candidates kept from a score of one half on.

    The descriptors of a patient's forest are those that were chosen on all other patients, so what few patients lose in selection is not in it.
    """
    rows = pipeline.forest_rows(Experiment(work / f"b-{seed}", "cpu"))
    pieces_of = {p["patient"]: p for p in held if (p["variant"], p["seed"]) == ("b", seed)}
    found, rng = [], np.random.default_rng(seed)
    for count in counts:
        for draw in range(draws if count < len(set(rows.patients)) - 1 else 1):
            seen, dice = [], []
            for patient, piece in pieces_of.items():
                others = sorted(set(rows.patients) - {patient})
                chosen = rng.choice(others, min(count, len(others)), replace=False)
                names = rows.chosen(np.flatnonzero(rows.patients != patient))
                on = np.isin(rows.patients, chosen)
                if len(set(rows.truth[on])) < 2:  # a scan in which the nets mark nothing false teaches nothing
                    continue
                settings = forest.ForestSettings(min_leaf=2, min_candidates=2, min_class=1)
                trained = forest.fit(rows.features[on][names], rows.truth[on], settings)
                for scan in with_liver(piece):
                    table = pd.DataFrame(scan["candidates"], columns=["volume_ml", "true", "shared_ml", *names])
                    table = table.assign(score=trained.score(table))
                    seen.append(table[["score", "true"]])
                    if scan["tumor_ml"]:
                        kept = table[table.score >= 0.5]
                        both = float(kept.volume_ml.sum()) + scan["tumor_ml"]
                        dice.append({"patient": patient, "dice": 2 * float(kept.shared_ml.sum()) / both})
            together = pd.concat([t for t in seen if len(t)])
            area = forest.auc(together.score.to_numpy(float), together.true.to_numpy(bool))
            mean = float(pd.DataFrame(dice).groupby("patient").dice.mean().mean())
            found.append({"seed": seed, "patients": count, "draw": draw, "auc": area, "tumor_dice": mean})
    return pd.DataFrame(found)


# ---------------------------------------------------------------- the summary


def mean_of(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else math.nan


def of_patient(scans: list[dict], stage: str, within: str = "stages") -> dict:
    """The measures of one patient after a stage (or, `within` points, at an operating point): Dice a scan, lesions of all the patient's scans together."""
    after = [scan[within][stage] for scan in scans]
    lesions, false = [r for a in after for r in a["lesions"]], [mm for a in after for mm in a["false_mm"]]
    hit = [2 * r["iou"] / (1 + r["iou"]) for r in lesions if r["iou"] > 0]
    row = {
        "tumor_dice": float(np.mean([a["dice"] for a in after])) if lesions else math.nan,
        **{
            f"tumor_{m}": mean_of([a.get(m) for a in after]) if lesions else math.nan
            for m in ("assd_mm", "surface_dice")
        },
        "dice_of_found": float(np.mean(hit)) if hit else math.nan,
        "liver_dice": mean_of([scan["liver_dice"] for scan in scans]),
        "tumor_inside": mean_of([scan.get("tumor_inside") for scan in scans]),
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


def measured(file: Path, rests: str) -> bool:
    return file.is_file() and json.loads(file.read_text()).get("rests") == rests


def pieces(work: Path) -> list[dict]:
    return [json.loads(f.read_text()) for f in sorted(work.glob("?-*-*.json"))]


def with_liver(piece: dict, liver: str = "own") -> list[dict]:
    """A piece's scans, whole ones with the liver net's `own` liver or with the `reference`; cut ones have the reference always."""
    whole = {s["case"] for s in piece["scans"] if s["liver"] == "own"}
    return [s for s in piece["scans"] if s["case"] not in whole or s["liver"] == liver]


def summary(held: list[dict], liver: str = "own") -> pd.DataFrame:
    """A row a variant, seed, stage (and operating point) and patient; whole scans with the liver net's `own` liver or the `reference`."""
    rows = []
    for piece in held:
        scans = with_liver(piece, liver)
        about = {k: piece[k] for k in ("variant", "seed", "patient")} | {"liver": liver}
        for within in ("stages", "points") if scans else ():
            rows += [about | {"within": within, "stage": s} | of_patient(scans, s, within) for s in scans[0][within]]
    return pd.DataFrame(rows)


def areas(held: list[dict]) -> pd.DataFrame:
    """AUC of the forest on the candidates of patients who were held out, and what it keeps at each operating point, a row a variant and seed."""
    rows = []
    for (variant, seed), of in pd.DataFrame(
        [{"variant": p["variant"], "seed": p["seed"], "piece": p} for p in held]
    ).groupby(["variant", "seed"]):
        seen = pd.DataFrame([c for p in of.piece for s in with_liver(p) for c in s["candidates"]])
        if len(seen):
            rows.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "candidates": len(seen),
                    "true": int(seen.true.sum()),
                    "auc": forest.auc(seen.forest_score.to_numpy(), seen.true.to_numpy()),
                }
            )
    return pd.DataFrame(rows)


def interval(values: pd.Series, most: float = math.inf) -> str:
    """Mean with its 95 % interval over patients (`metrics.bootstrap`), cut at 0 and at the `most` that the measure can be."""
    mean, low, high = metrics.bootstrap(values.to_numpy(float))
    return f"{mean:.3f} [{max(low, 0):.3f}, {min(high, most):.3f}]"


def words(table: pd.DataFrame) -> str:
    """Means over the tumor patients after each stage and at each operating point, with the interval over patients; a patient's value is the mean
    over trainings."""
    shown = ["tumor_dice", "recall_5", "precision_5", "false_5", "liver_dice"]
    ill = table[table.lesions_5 > 0]
    keys = ["variant", "liver", "within", "stage"]
    each = ill.groupby([*keys, "patient"], sort=False)[shown].mean().reset_index()
    rows = [
        {**dict(zip(keys, key)), "patients": len(of), **{m: interval(of[m]) for m in shown}}
        for key, of in each.groupby(keys, sort=False)
    ]
    healthy = table[(table.lesions_5 == 0) & (table.within == "points") & (table.liver == "own")]
    false = healthy.groupby(["variant", "stage"], sort=False)[["false_5"]].mean() if len(healthy) else pd.DataFrame()
    last = ill[(ill.within == "stages") & (ill.stage == ABLATION[-1])]
    by = last.pivot_table(index=["variant", "liver", "seed"], columns="patient", values="tumor_dice")
    return (
        f"{pd.DataFrame(rows).to_string(index=False)}\n\nFalse positives over 5 mm in tumor-free livers\n{false.to_string(float_format='%.2f')}"
        f"\n\nTumor Dice a patient after the last stage\n{by.assign(mean=by.mean(axis=1)).to_string(float_format='%.3f')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a toy of it: 12 phantoms, few steps, variants a and b")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", type=Path, default=Path("experiments/real_ct"), help="where the pieces lie")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no new training after these")
    parser.add_argument("--data", type=Path, default=REALDATA, help="folder with cohort.csv and livers.csv")
    parser.add_argument("--variants", default="abced", help="which, in this order; b to e begin with a")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--phantoms", type=int, default=PHANTOMS)
    asked = parser.parse_args()
    began, work = time.monotonic(), asked.work.absolute()
    if not (asked.data / "cohort.csv").is_file():
        print(f"no real CT at {asked.data}: nothing is measured")
        return 0
    base, phantoms, variants, seeds = settings, asked.phantoms, asked.variants, asked.seeds
    if asked.quick:
        work, phantoms, variants, seeds = work / "quick", 12, "ab", [0]
        base = partial(settings, tumor_steps=80, liver_steps=80)
    work.mkdir(parents=True, exist_ok=True)
    everybody: dict[str, list[cohort.Case]] = {}
    for case in cohort.read_manifest(manifest(asked.data, work, True)):
        everybody.setdefault(case.patient, []).append(case)
    for seed in seeds:
        for variant in variants:
            if (time.monotonic() - began) / 60 > asked.minutes:
                continue
            rests = digest(variant, seed, phantoms, base(seed))
            left = [job for job in everybody.items() if not measured(work / f"{variant}-{seed}-{job[0]}.json", rests)]
            if not left:
                continue
            made = train(work, asked.data, variant, seed, phantoms, base(seed))
            if variant == "a":  # its nets' maps of the patients are those of b
                train(work, asked.data, "b", seed, phantoms, base(seed))
            maps = work / f"{'b' if variant == 'a' else variant}-{seed}"
            ready = partial(Ready, made.folder, maps, variant)
            for line in in_processes(ready, partial(patient_measured, variant, seed, work, rests), left, 2):
                print(line, flush=True)
    held = pieces(work)
    table = pd.concat([summary(held), summary(held, "reference")])
    print(words(table), areas(held).to_string(index=False), sep="\n\n")
    few = pd.concat([pd.DataFrame(), *(patients_needed(work, held, seed) for seed in seeds_with_features(held))])
    if len(few):
        print(few.groupby(["seed", "patients"])[["auc", "tumor_dice"]].mean().to_string(float_format="%.3f"))
    if asked.json:
        about = {"settings": asdict(base(0)), "tune": TUNE, "variants": VARIANTS, "phantoms": phantoms}
        found = {
            "settings": about,
            "boundary_threshold": base(0).boundary.threshold,
            "pieces": held,
            "summary": table.to_dict("records"),
            "areas": areas(held).to_dict("records"),
            "patients_needed": few.to_dict("records"),
        }
        write_json(asked.json, metrics.json_safe(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
