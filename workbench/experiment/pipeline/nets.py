"""The cohort on its work grid, and the cascade's two nets trained by folds: each training case has its maps from a net that never saw it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.data import cohort, phantom, readers
from workbench.data.files import read_table, write_array, write_table
from workbench.data.threads import side_by_side
from workbench.experiment import Experiment, Progress, Settings, corrections
from workbench.masks import components
from workbench.nets import cascade, distributed, slabs
from workbench.nets.fit import copy_tensors
from workbench.stages import domain, liver, tumor
from workbench.stages.domain import DOMAIN
from workbench.volume import Refused, Spacing, Volume, resample, resample_labels


def run_cohort(experiment: Experiment, folder: Path) -> dict:
    """All cases on the work grid, their table and the folds of the training cases."""
    settings, rows = experiment.settings, []
    cases = cohort.read_manifest(experiment.manifest)
    tumor_ml, hashes, tables, said = {}, [], [], experiment.corrections
    for i, case in enumerate(cases):
        ct, labels = case.read()
        voxels = case.identify(ct)
        hashes.append((case, voxels))
        corrected = case.case in said and bool(said[case.case].labels_sha256) and may_train(case)
        if corrected:
            labels = readers.read_labels(corrections.labels_file(experiment.path("corrections"), case.case), like=ct)
        shape, spacing = settings.work_grid(ct.shape, ct.spacing_mm)
        hu = resample(ct.array, shape).round().clamp(-1024, 3071).to(torch.int16)
        if case.labels is None and not corrected:
            on_work = _liver_found(experiment, case, hu, spacing)
            labels = labels.with_array(resample_labels(on_work, ct.shape))
        else:
            on_work = (resample(labels.array >= 1, shape) >= 0.5).to(torch.uint8)
            on_work[resample(labels.array == 2, shape) >= 0.5] = 3 if case.tumor_labels == "exclude" else 2
        write_array(folder / "hu" / f"{case.case}.npy", hu)
        write_array(folder / "labels" / f"{case.case}.npy", on_work)
        row = _row(case, ct, labels, spacing, on_work)
        row |= {"liver_found": case.labels is None and not corrected, "corrected": corrected, "voxel_hash": voxels}
        rows.append(row)
        tumor_ml[case.case] = row["tumor_ml"]
        if case.split == "train" and case.tumor_labels != "complete":
            for copy, drawn in _implanted(experiment, folder, case, (hu, on_work, spacing)):
                rows.append({**rows[-1], "voxel_hash": "", **copy})
                tables.append(drawn.assign(case=copy["case"], split=case.split))
        table = case.ct.parent / "lesions.csv"
        if table.is_file():
            tables.append(pd.read_csv(table).assign(case=case.case, split=case.split))
        experiment.progress("cohort", i + 1, len(cases), {})
    table = pd.DataFrame(rows)
    if table.case.duplicated().any():
        name = table.case[table.case.duplicated()].iloc[0]
        raise Refused(experiment.manifest, f"a case {name}, the name of an implanted copy", "another name for it")
    tumor_ml |= table.groupby(table.copy_of.where(table.copy_of != "", table.case)).tumor_ml.sum().to_dict()
    of = _folds(experiment.settings, [c for c in cases if c.split == "train"], set(table.case[table.phantom]), tumor_ml)
    table.insert(3, "fold", [of.get(r.copy_of or r.case, -1) for r in table.itertuples()])
    cohort.each_scan_once(experiment.manifest, hashes)
    _enough(experiment, table[table.split == "train"])
    write_table(folder / "cases.csv", table)
    if tables:
        write_table(folder / "lesions.csv", pd.concat(tables))
    return {
        "patients": table.patient.nunique(),
        "held_out_patients": table[table.split == "test"].patient.nunique(),
        "tumors": int(table.tumors.sum()),
    }


def _row(case: cohort.Case, ct: Volume, labels: Volume, spacing: Spacing, on_work: Tensor) -> dict:
    """A case's row of cases.csv; tumors that are only left out are not counted."""
    known = case.tumor_labels != "exclude"
    return {
        "case": case.case,
        "patient": case.patient,
        "split": case.split,
        "field_of_view": case.field_of_view,
        "tumor_labels": case.tumor_labels,
        "copy_of": "",
        "liver_found": False,
        "corrected": False,
        "phantom": cohort.is_phantom(case.ct),
        "slices": ct.shape[0],
        **{f"spacing_{axis}_mm": mm for axis, mm in zip("zyx", ct.spacing_mm)},
        **{f"work_{axis}_mm": mm for axis, mm in zip("zyx", spacing)},
        "liver_ml": float((labels.array >= 1).sum()) * labels.voxel_ml,
        "tumors": components(labels.array == 2)[1] * known,
        "tumors_on_work_grid": components(on_work == 2)[1],
        "tumor_ml": float((labels.array == 2).sum()) * labels.voxel_ml * known,
    }


def _folds(
    settings: Settings, training: list[cohort.Case], made: set[str], tumor_ml: dict[str, float]
) -> dict[str, int]:
    """The fold of each training case: patients and phantoms (`made`) each spread evenly; too few of a kind go with the others."""
    apart = [[c for c in training if (c.case in made) is of_phantoms] for of_phantoms in (False, True)]
    enough = min(len({c.patient for c in part}) for part in apart) >= max(settings.folds, cohort.MINIMUM_PATIENTS)
    of: dict[str, int] = {}
    for some in apart if enough else [training]:
        of |= cohort.folds(some, tumor_ml, settings.folds)
    return of


def _liver_found(experiment: Experiment, case: cohort.Case, hu: Tensor, spacing_mm: Spacing) -> Tensor:
    """The liver of a scan without labels, uint8 [z y x] on the work grid, by the nets that the experiment begins with."""
    if experiment.start is None:
        raise Refused(
            f"case {case.case}",
            "no labels",
            "a mask of the liver, or --start EXPERIMENT, whose nets find it",
            "Fill in the manifest's column labels.",
        )
    s = experiment.settings.liver
    nets = cascade.load(experiment.start / "liver", s.cascade, experiment.device)
    found = liver.mask(liver.probability(nets, hu, spacing_mm, s, experiment.device), spacing_mm, s)
    if not bool(found.any()):
        raise Refused(
            f"case {case.case}", "no liver", "one to draw lesions into", "Give a mask of it in the column labels."
        )
    return found.to(torch.uint8)


def _implanted(
    experiment: Experiment, folder: Path, case: cohort.Case, scan: tuple[Tensor, Tensor, Spacing]
) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Copies of a scan with synthetic lesions, written to `folder`: what differs in each one's row, and its table of lesions."""
    (hu, labels, spacing), s = scan, experiment.settings.implants
    first = int(hashlib.sha256(f"{case.case} {experiment.settings.seed}".encode()).hexdigest()[:6], 16)
    for n in range(1, s.copies + 1):
        try:
            made = phantom.implant(hu, labels.clamp(max=2), spacing, first + n, s.count, s.kinds)
        except Refused as error:
            raise Refused(
                f"case {case.case}", f"no place for synthetic lesions ({error})", "a whole liver",
                "Leave the case out, choose smaller lesions (implants.kinds), or set implants.copies to 0.",
            ) from error  # fmt: skip
        out = torch.where(labels == 3, labels, made.labels)
        name = f"{case.case}-implants-{n}"
        write_array(folder / "hu" / f"{name}.npy", made.hu)
        write_array(folder / "labels" / f"{name}.npy", out)
        count = components(out == 2)[1]
        yield (
            {
                "case": name,
                "copy_of": case.case,
                "tumors": count,
                "tumors_on_work_grid": count,
                "tumor_ml": float((out == 2).sum()) * math.prod(spacing) / 1000,
            },
            made.lesions,
        )


def _enough(experiment: Experiment, training: pd.DataFrame) -> None:
    """Refuse, before anything is trained, a cohort that selection or forest would refuse in the end: too few patients, or fewer lesions than
    they ask candidates of each class for (a lesion may be more than one, which is not counted on).

    Selection leaves out a fold of the patients at a time: `min_patients` must be left beside the largest.
    """
    patients, lesions = training.patient.nunique(), int(training.tumors_on_work_grid.sum())
    need, least = asked(experiment.settings)
    if patients < need or lesions < least:
        raise Refused(
            experiment.manifest,
            f"{patients} training patients with {lesions} lesions",
            f"at least {need} with {least}, for the stages selection and forest",
            "Add patients, or lower selection.min_patients, selection.min_class and forest.min_class with --settings.",
        )


def asked(s: Settings) -> tuple[int, int]:
    """Patients and lesions that selection and forest ask for."""
    left = lambda n: n - math.ceil(n / min(s.selection.folds, n))
    need = next(n for n in itertools.count(1) if left(n) >= s.selection.min_patients)
    return need, max(s.selection.min_class, s.forest.min_class)


def may_train(case: cohort.Case) -> bool:
    """True, or refused: the last look before something said of a case enters training."""
    if case.split != "train":
        raise Refused(case.case, "corrections of a held-out case", "corrections of training cases only")
    return True


def _fold_maps(
    experiment: Experiment, folder: Path, settings: cascade.CascadeSettings, predict: Callable[[list, str], Tensor]
) -> None:
    """Maps of all cases: a training case by the net that never saw it, a held-out case by the mean of all, which also serves for a
    training case where the nets are those of another experiment as they are."""
    nets = cascade.load(folder, settings, experiment.device, range(experiment.settings.folds))
    table, taken = experiment.cases(), folder.name in experiment.taken  # none of them saw a patient of this cohort
    for i, row in enumerate(table.itertuples()):
        path = folder / "maps" / f"{row.case}.npy"
        if not path.is_file():
            chosen = [nets[int(row.fold)]] if row.fold >= 0 and not taken else nets
            write_array(path, predict(chosen, row.case).to(torch.float16))
        experiment.progress(f"{folder.name} maps", i + 1, len(table), {})


def train_folds(
    experiment: Experiment,
    folder: Path,
    settings: cascade.CascadeSettings,
    bank: Callable[[str], Any],
    only: int | None = None,
) -> None:
    """The net of each fold, or of one, trained on the other folds' patients; finished folds stay, and on a CPU the others share the cores."""
    table, count = experiment.cases("train"), experiment.settings.folds
    missing = [n for n in range(count) if only in (None, n) and not (folder / f"fold{n}.json").is_file()]
    if folder.name in experiment.taken:
        assert experiment.start is not None
        for fold in missing:
            copy_tensors(experiment.start / folder.name / f"fold{fold}", folder / f"fold{fold}")
        missing = []
    start = experiment.start / folder.name if experiment.start else None
    banks, used, scratch = {}, 0, folder / "slices" / (str(distributed.rank()) if only is None else f"fold{only}")
    for case in table.case if missing else ():
        made = bank(case)
        used += made.bytes if made is not None else 0
        spare = made is None or used <= slabs.room(experiment.device)
        banks[case] = made if spare else made.in_files(scratch / case)

    def train(fold: int, show: Progress) -> None:
        aside = set_aside(table[table.fold != fold], settings.fit.inner, experiment.settings.seed + fold)
        sides: dict[str, list] = {"held out": [], "choosing": [], "training": []}
        for r in table.itertuples():
            if banks[r.case] is not None:
                side = "held out" if r.fold == fold else "choosing" if r.patient in aside else "training"
                sides[side].append(banks[r.case])
        if not sides["training"]:
            raise Refused(
                experiment.manifest,
                f"nothing for the {folder.name} net of fold {fold} to learn from",
                "patients in each fold whose liver, for its net in a whole field of view, is there",
                "Add such patients or use fewer folds.",
            )
        cascade.train_fold(
            sides["training"],
            sides["held out"],
            settings,
            folder,
            fold,
            experiment.device,
            show,
            sides["choosing"],
            start,
        )

    def tell(name: str, done: int, total: int, row: dict) -> None:
        experiment.progress(f"{folder.name} {name}", done, total, row)

    if distributed.count() > 1:  # they train one net at a time, together
        for fold in missing:
            train(fold, tell)
    else:
        side_by_side(train, missing, tell, experiment.device)
    shutil.rmtree(scratch, ignore_errors=True)
    if distributed.rank() > 0 or only is not None:
        return
    curves = [
        pd.DataFrame(json.loads((folder / f"fold{n}.json").read_text())["curve"]).assign(fold=n) for n in range(count)
    ]
    write_table(folder / "curves.csv", pd.concat(curves))


def set_aside(training: pd.DataFrame, share: float, seed: int) -> set[str]:
    """A share of the training patients, at least one of them, that takes no part in the training; none for 0."""
    patients = sorted(training.patient.unique())
    count = max(1, round(share * len(patients))) if share > 0 else 0
    if count and len(patients) - count < 1:
        raise Refused("inner", f"{len(patients)} training patients", "at least two", "Use more patients, or inner 0.")
    return {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}


def _cut(experiment: Experiment) -> set[str]:
    """Cases that show no more than the liver's box: their reference takes the liver net's place."""
    table = experiment.cases()
    return set(table.case[table.field_of_view != "whole"])


def train_liver(experiment: Experiment, folder: Path, only: int | None = None) -> None:
    s, cut = experiment.settings.liver, _cut(experiment)

    def bank(case: str):
        hu, labels, spacing = experiment.work(case)
        return None if case in cut else liver.bank_case(hu, labels, spacing, s)

    train_folds(experiment, folder, s.cascade, bank, only)


def run_liver(experiment: Experiment, folder: Path) -> dict:
    """The liver's nets, and map and mask of each case."""
    s, cut = experiment.settings.liver, _cut(experiment)

    def predict(nets: list, case: str) -> Tensor:
        hu, labels, spacing = experiment.work(case)
        return (labels >= 1).float() if case in cut else liver.probability(nets, hu, spacing, s, experiment.device)

    train_liver(experiment, folder)
    _fold_maps(experiment, folder, s.cascade, predict)
    rows = []
    for row in experiment.cases().itertuples():
        _, labels, spacing = experiment.work(row.case)
        found = liver.mask(experiment.array("liver", "maps", row.case).float(), spacing, s)
        write_array(folder / "masks" / f"{row.case}.npy", found)
        rows.append(
            {
                "case": row.case,
                "patient": row.patient,
                "split": row.split,
                "fold": row.fold,
                "dice": math.nan if row.case in cut or getattr(row, "liver_found", False) else dice(found, labels >= 1),
            }
        )
    write_table(folder / "cases.csv", pd.DataFrame(rows))
    write_table(folder / DOMAIN, measured(experiment))
    return by_split(pd.DataFrame(rows), "dice")


def measured(experiment: Experiment) -> pd.DataFrame:
    """What the training scans are like (`domain.measure`), with those of the experiment that this one began with."""
    before = experiment.start / "liver" / DOMAIN if experiment.start else None
    tables = [read_table(before, dtype={"case": str, "patient": str})] if before and before.is_file() else []
    cases = experiment.cases("train")
    scans = cases[cases.copy_of.isna()] if "copy_of" in cases else cases
    rows = []
    for row in scans.itertuples():
        hu, labels, spacing = experiment.work(row.case)
        own = (row.spacing_z_mm, row.spacing_y_mm, row.spacing_x_mm)
        about = {"case": row.case, "patient": row.patient, "phantom": bool(getattr(row, "phantom", False))}
        rows.append(about | domain.measure(hu, labels >= 1, spacing, own))
    return pd.concat([*tables, pd.DataFrame(rows)], ignore_index=True)


def train_tumor(experiment: Experiment, folder: Path, only: int | None = None) -> None:
    s = experiment.settings.tumor

    def bank(case: str):
        hu, labels, spacing = experiment.work(case)
        p = experiment.array("liver", "maps", case).float()
        at = tumor.box(experiment.array("liver", "masks", case), spacing, s)
        return None if at is None else tumor.bank_case(hu, labels, p, at, ignore=(labels[at] == 3).flatten(1).any(1))

    train_folds(experiment, folder, s.cascade, bank, only)


def run_tumor(experiment: Experiment, folder: Path) -> dict:
    """The tumor's nets, and the map of each case."""
    s = experiment.settings.tumor

    def predict(nets: list, case: str) -> Tensor:
        hu, _, spacing = experiment.work(case)
        p = experiment.array("liver", "maps", case).float()
        at = tumor.box(experiment.array("liver", "masks", case), spacing, s)
        return tumor.probability(nets, hu, p, at, s, experiment.device)

    train_tumor(experiment, folder)
    _fold_maps(experiment, folder, s.cascade, predict)
    threshold, rows = experiment.settings.consistency.threshold, []
    for row in experiment.cases().itertuples():
        labels = experiment.work(row.case)[1]
        found = experiment.array("tumor", "maps", row.case).float() >= threshold
        rows.append(
            {
                "case": row.case,
                "patient": row.patient,
                "split": row.split,
                "fold": row.fold,
                "dice": dice(found, labels == 2),
            }
        )
    write_table(folder / "cases.csv", pd.DataFrame(rows))
    return by_split(pd.DataFrame(rows), "dice")


def dice(a: Tensor, b: Tensor) -> float:
    """Dice of two bool masks of one shape; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def by_split(table: pd.DataFrame, column: str) -> dict:
    """The mean of a column for each split, as `train_dice` and the like."""
    return {f"{split}_{column}": float(part[column].mean()) for split, part in table.groupby("split")}
