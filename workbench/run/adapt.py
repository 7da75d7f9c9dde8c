"""Adapt a trained experiment to a scanner, with scans that have no known tumors.

Ours; the paper has none. Synthetic lesions are drawn into copies of the scans (positives), and what the nets mark elsewhere is false
(negatives). Selection, forest and operating points are trained on these candidates, patient-grouped and out of fold; the nets are
those of the experiment as they are, or the tumor net is tuned for a stated number of steps. The result is an experiment of its own,
whose `start` names where it came from. No tumor label is needed; labelled scans may be among the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from workbench.data import cohort
from workbench.data.files import held, read_json, read_table, write_array, write_json, write_table
from workbench.experiment import Experiment, Progress, Settings, pipeline, table
from workbench.experiment.segmentation import Models, Result, segment
from workbench.lab import figures, review
from workbench.stages import domain, forest, metrics
from workbench.volume import Refused

MINIMUM_PATIENTS = 3  # rule: one is left out, and selection needs two
SUSPECT_MM = 5.0  # a choice: smaller regions are not shown to anybody
SHOWN = 20  # a choice: of the suspects, those with the highest scores
DEFAULT_POINT = "dice"  # empirical (docs/decisions/0017): on patients the same Dice as at `recall`, with a quarter of its false positives
SLOWER = 0.3  # a choice: learning rate of a net that is tuned, as a share of its own
SHORTER = 4  # a choice: nets that begin with trained ones take so many times fewer steps


def settings_for(source: Settings, copies: int | None, tumor_steps: int, operating_point: str) -> Settings:
    """The experiment's settings for few patients: what selection and forest ask for is lowered to what three can give."""
    s = source
    if copies is not None:
        s = replace(s, implants=replace(s.implants, copies=copies))
    s = replace(s, forest=replace(s.forest, operating_point=operating_point or DEFAULT_POINT))
    if tumor_steps:
        fit = s.tumor.cascade.fit
        fit = replace(fit, steps=tumor_steps, rate=SLOWER * fit.rate)
        s = replace(s, tumor=replace(s.tumor, cascade=replace(s.tumor.cascade, fit=fit)))
    return replace(s, selection=replace(s.selection, min_patients=2))


def fine_tuning(origin: Experiment) -> Settings:
    """The settings with which `train --start` goes on: the same nets and grid; liver and tumor net take a quarter of the steps at a slower rate, if the
    origin did not begin with trained nets itself; selection as for few patients."""
    source = origin.settings
    tuned = origin.start is not None

    def slower(of):
        fit = of.cascade.fit
        fit = replace(fit, steps=max(1, fit.steps // SHORTER), rate=SLOWER * fit.rate)
        return replace(of, cascade=replace(of.cascade, fit=fit))

    source = replace(source, selection=replace(source.selection, min_patients=2))
    return source if tuned else replace(source, liver=slower(source.liver), tumor=slower(source.tumor))


def begin(
    source: str | Path,
    manifest: str | Path,
    folder: str | Path,
    device: str = "auto",
    copies: int | None = None,
    tumor_steps: int = 0,
    operating_point: str = "",
    progress: Progress | None = None,
    retrain: str | None = None,
) -> Experiment:
    """Make or open the adapted experiment in `folder`; nothing is trained yet.

    source: a trained experiment. manifest: a cohort with a column `tumor_labels`. copies: implanted copies of each scan.
    tumor_steps: for which the tumor net is tuned; 0 takes it as it is. Refused: fewer than three training patients, none of them without known
    tumors, patients that the nets have learned from.
    """
    origin = Experiment(source, "cpu")
    for stage in table.nets():
        origin.need(stage)
    if operating_point and operating_point not in forest.PURPOSES:
        raise Refused("--operating-point", operating_point, ", ".join(forest.PURPOSES))
    if (copies is not None and copies < 1) or tumor_steps < 0:
        raise Refused("adapt", f"copies {copies}, tumor steps {tumor_steps}", "copies from 1, and steps from 0")
    cases = [c for c in cohort.read_manifest(manifest) if c.split == "train"]
    patients = {c.patient for c in cases}
    if len(patients) < (least := max(MINIMUM_PATIENTS, origin.settings.folds)):
        raise Refused(
            manifest, f"{len(patients)} training patients", f"at least {least}", "Add scans of other patients."
        )
    if all(c.tumor_labels == "complete" for c in cases):
        raise Refused(
            manifest,
            "no scan whose tumor_labels is none or exclude",
            "scans without known tumors, into which lesions can be drawn",
            "Add the column tumor_labels, or use `workbench train` for labelled scans.",
        )
    take = [stage for stage in table.nets() if stage != "tumor" or not tumor_steps]
    wanted = settings_for(origin.settings, copies, tumor_steps, operating_point)
    return Experiment.create(
        folder, manifest, wanted, device, progress, start=origin.folder, take=take, retrain=retrain
    )


def run(made: Experiment, keep: Callable[[Result, Path], object] | None = None, retrain: str | None = None) -> None:
    """Run what is left to do, up to the boundary stage, and the measures where scans are held out; then draw what should be looked at.

    After `exclude`, `retrain` is "candidates": the stages from there on rest on what is left out.
    """
    pipeline.train(made, keep=keep, retrain=retrain)
    place = made.path("adapt")
    write_table(place / "suspects.csv", table := suspects(made))
    figures.save(livers(made), place / "livers.png")
    for old in place.glob("suspect-*.png"):
        old.unlink()
    for row in table.itertuples():
        figures.save(suspect(made, row), place / f"suspect-{row.case}-{row.number}.png")


def scans(made: Experiment) -> pd.DataFrame:
    """The training scans that the forest learns from, without their implanted copies."""
    table = pipeline.learned_from(made)
    return table[table.copy_of.isna()].reset_index(drop=True)


def suspects(made: Experiment) -> pd.DataFrame:
    """Regions of scans without known tumors that the forest takes for a lesion out of fold, the highest score first.

    Columns case, number (its name for `exclude`), candidate, score, volume_ml, diameter_mm, z_mm, y_mm, x_mm. They are false positives, or tumors that nobody knew of.
    """
    table, found = (
        made.table("forest", "scores.csv", dtype={"case": str}),
        made.table("candidates", "candidates.csv", dtype={"case": str}),
    )
    healthy = scans(made)
    table = table[table.kept & ~table.is_lesion & table.case.isin(healthy.case[healthy.tumor_labels != "complete"])]
    table = table.assign(diameter_mm=(6000 / np.pi * table.volume_ml) ** (1 / 3))
    places = found[["case", "candidate", "number", "z_mm", "y_mm", "x_mm"]]
    table = table[table.diameter_mm >= SUSPECT_MM].merge(places, on=["case", "candidate"])
    columns = ["case", "number", "candidate", "score", "volume_ml", "diameter_mm", "z_mm", "y_mm", "x_mm"]
    return table.sort_values("score", ascending=False, kind="stable")[columns].head(SHOWN).reset_index(drop=True)


def exclude(made: Experiment, names: Sequence[str]) -> list[str]:
    """Leave regions out of training, each named CASE/NUMBER as in `suspects`; a line for each. The stages from candidates on run again. A region that is left
    out already stays so: its name means the same region for ever."""
    record = made.path("exclusions") / "exclusions.json"
    known = read_json(record) if record.is_file() else {}
    lines = [f"{name}: is left out of training already" for name in names if name in known]
    if new := [name for name in names if name not in known]:
        made.need("candidates")
        table, cases = made.table("candidates", "candidates.csv", dtype={"case": str}), set(scans(made).case)
        with held(made.folder):
            for name in new:
                case, _, number = name.rpartition("/")
                row = table[(table.case == case) & (table.number.astype(str) == number)]
                if case not in cases or not len(row) or bool(row.is_lesion.iloc[0]):
                    raise Refused("--exclude", name, "CASE/NUMBER of a false candidate, as in adapt/suspects.csv")
                where = made.array("candidates", "labels", case) == int(row.candidate.iloc[0])
                file, ml = made.path("exclusions") / f"{case}.npy", float(row.volume_ml.iloc[0])
                before = torch.from_numpy(np.load(file, allow_pickle=False)) if file.is_file() else False
                write_array(file, where | before)
                known[name] = round(ml, 3)
                write_json(record, known)
                lines.append(f"{name}: {ml:.3g} ml are left out of training")
    return lines


def phases(made: Experiment) -> list[str]:
    """A line for each scan, and each way in which it is unlike those that the nets have learned from (`domain`): another contrast phase, perhaps."""
    seen = Experiment(made.start, "cpu").of_nets().path("liver") / domain.DOMAIN
    if not seen.is_file():  # 0.1.0 did not measure them
        return []
    known, own = (
        read_table(seen, "phantom", dtype={"case": str}),
        made.table("liver", domain.DOMAIN, dtype={"case": str}),
    )
    own = own[own.case.isin(scans(made).case)]
    return [f"{row['case']}: {line}" for row in own.to_dict("records") for line in domain.doubts(row, known, False)]


def livers(made: Experiment) -> Figure:
    """The middle of each scan with the liver into which lesions are drawn, for a check by eye."""

    def shown(case: str) -> tuple[str, Tensor, Tensor, tuple[float, float, float]]:
        hu, labels, spacing = made.work(case)
        return case, hu, (labels > 0).to(torch.uint8), spacing

    names = scans(made).case
    return figures.case_montage(map(shown, names), f"the liver of {len(names)} scans")


def suspect(made: Experiment, row: Any) -> Figure:
    """One row of `suspects`: its slice with the contour of the region."""
    hu, labels, spacing = made.work(row.case)
    region = made.array("candidates", "labels", row.case) == row.candidate
    marked = torch.where(region, 2, (labels > 0).to(torch.int16)).to(torch.uint8)
    title, box = f"{row.case}/{row.number}, score {row.score:.2f}", figures.box_around(region, spacing, 60)
    return figures.slice_view(hu, spacing, figures.slice_with_most(region), marked, box=box, title=title)


def before_and_after(made: Experiment) -> pd.DataFrame:
    """The held-out cases by the experiment that was adapted (`before`) and by the adapted one (`after`): columns stage, case, patient, tumor_dice, lesions,
    found, false_positives. Empty where no case is held out."""
    held_out = [c for c in cohort.read_manifest(made.manifest) if c.split == "test"]
    rows = []
    for stage, folder in (("before", made.start), ("after", made.folder)) if held_out else ():
        models = Models.load(folder, made.device)
        for case in held_out:
            ct, truth = case.read()
            given = truth.array >= 1 if case.field_of_view != "whole" else None
            labels = segment(ct, models, liver_given=given).labels
            seen = metrics.evaluate_case(truth.array, labels, ct.spacing_mm, case.case)
            counts = seen["detection"]["iou0"]
            rows.append(
                {
                    "stage": stage,
                    "case": case.case,
                    "patient": case.patient,
                    "tumor_dice": seen["tumor"]["dice"],
                    "lesions": counts["tp"] + counts["fn"],
                    "found": counts["tp"],
                    "false_positives": float(counts["fp"]),
                }
            )
    return pd.DataFrame(rows, columns=["stage", "case", "patient", "tumor_dice", "lesions", "found", "false_positives"])


def summary(made: Experiment) -> dict[str, float]:
    """What the forest does out of fold at its threshold: scans, patients, copies, lesions, and for each scan the false candidates before and after."""
    scores = made.table("forest", "scores.csv", dtype={"case": str, "patient": str})
    table, real = pipeline.learned_from(made), scans(made)
    own = scores[scores.split == "train"]
    false = own[~own.is_lesion & own.case.isin(real.case)]
    true = own[own.is_lesion].assign(name=own.case + "/" + own.lesion.astype(str))
    return {
        "scans": len(real),
        "patients": real.patient.nunique(),
        "copies": len(table) - len(real),
        "lesions": int(table.tumors_on_work_grid[table.copy_of.notna()].sum()),
        "candidates_true": true.name.nunique(),
        "kept_true": true[true.kept].name.nunique(),
        "false_before": len(false) / max(1, len(real)),
        "false_after": int(false.kept.sum()) / max(1, len(real)),
        "auc": forest.auc(own.score.to_numpy(), own.is_lesion.to_numpy()),
    }


def words(made: Experiment) -> str:
    """`summary` and `suspects` in words."""
    found, table = summary(made), suspects(made)
    cut = forest.load(made.path("forest"))
    lines = [
        f"{found['scans']} scans of {found['patients']} patients, {found['copies']} copies with {found['lesions']} synthetic lesions",
        f"Out of fold the forest keeps {found['kept_true']} of {found['candidates_true']} lesions that the cascade marks; false positives fall "
        f"from {found['false_before']:.1f} to {found['false_after']:.1f} a scan (AUC {found['auc']:.3f}).",
        "Operating points: "
        + ", ".join(f"{name} {p.threshold:.3f} (recall {p.recall:.2f})" for name, p in cut.points.items())
        + f"; in use: {made.settings.forest.operating_point}.",
        f"Livers for a check: {made.path('adapt') / 'livers.png'}",
    ]
    if len(table):
        lines.append(
            f"{len(table)} regions look like tumors in scans without known ones. If one is a tumor, run again with --exclude CASE/NUMBER:"
        )
        lines += [
            f"  {r.case}/{r.number}: {r.diameter_mm:.0f} mm, {r.volume_ml:.2f} ml, score {r.score:.2f}, "
            f"at z {r.z_mm:.0f} y {r.y_mm:.0f} x {r.x_mm:.0f} mm, {made.path('adapt') / f'suspect-{r.case}-{r.number}.png'}"
            for r in table.itertuples()
        ]
    return "\n".join(lines)


def answer(made: Experiment, compared: pd.DataFrame) -> str:
    """The measured answer of notebook 11: out of fold, and on held-out patients where there are some (`before_and_after`)."""
    found = summary(made)
    text = (
        f"On **{found['patients']} training patients** the forest keeps {found['kept_true']} of {found['candidates_true']} lesions that the "
        f"cascade marks and brings the false positives from {found['false_before']:.1f} to {found['false_after']:.1f} a scan, out of fold."
    )
    if not len(compared):
        return text + " No patient is held out, so nothing is known of real lesions yet."
    before, after = (compared[compared.stage == stage].reset_index(drop=True) for stage in ("before", "after"))
    dice, false = (
        review.change(before[m], after[m], before.patient, "+.2f") for m in ("tumor_dice", "false_positives")
    )
    return text + (
        f" On **{before.patient.nunique()} held-out patients** tumor Dice goes from {before.tumor_dice.mean():.3f} to {after.tumor_dice.mean():.3f} "
        f"({dice}), false positives from {before.false_positives.mean():.1f} to {after.false_positives.mean():.1f} a scan ({false}); "
        f"{int(before.found.sum())} of {int(before.lesions.sum())} lesions are found before, {int(after.found.sum())} after. Intervals are 95 %, over patients."
    )
