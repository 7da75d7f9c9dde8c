"""Maps become candidate lesions, and those their descriptors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.data.files import write_array, write_json, write_table
from workbench.experiment import Experiment, corrections
from workbench.experiment.pipeline.nets import asked, dice, may_train
from workbench.masks import numbered
from workbench.stages import candidates, consistency, radiomics, selection
from workbench.stages.radiomics import fixed, perturb
from workbench.volume import Refused


def run_consistency(experiment: Experiment, folder: Path) -> dict:
    """The three-slice rule on each case's tumor map, and what of its changes was right."""
    rows = []
    for row in experiment.cases().itertuples():
        _, labels, spacing = experiment.work(row.case)
        p = experiment.array("tumor", "maps", row.case).float()
        refined = consistency.refine(p, spacing[0], experiment.settings.consistency)
        write_array(folder / "masks" / f"{row.case}.npy", refined.mask)
        truth = labels == 2
        rows.append(
            {
                "case": row.case,
                "patient": row.patient,
                "split": row.split,
                "restored": int(refined.restored.sum()),
                "restored_right": int((refined.restored & truth).sum()),
                "suppressed": int(refined.suppressed.sum()),
                "suppressed_right": int((refined.suppressed & ~truth).sum()),
                "dice_before": dice(p >= experiment.settings.consistency.threshold, truth),
                "dice_after": dice(refined.mask, truth),
            }
        )
    table = pd.DataFrame(rows)
    write_table(folder / "cases.csv", table)
    test = table[table.split == "test"]
    return {f"test_{k}": float(test[k].sum()) for k in ("restored", "restored_right", "suppressed", "suppressed_right")}


def run_candidates(experiment: Experiment, folder: Path) -> dict:
    """The candidates of each case, and which of them are true lesions."""
    tables, dropped, said = [], 0, experiment.corrections
    s = experiment.settings.candidates
    for row in experiment.cases().itertuples():
        _, labels, spacing = experiment.work(row.case)
        p = experiment.array("tumor", "maps", row.case).float()
        inside = experiment.array("liver", "masks", row.case)
        found = candidates.find(experiment.array("consistency", "masks", row.case), p, inside, spacing, s)
        found = candidates.without(found, _left_out(experiment, row, labels), labels == 2, s)
        write_array(folder / "labels" / f"{row.case}.npy", found.labels)
        hits, lesion = candidates.match(found.labels, numbered(labels == 2), s)
        false = np.zeros(len(hits), bool)
        if row.case in said and said[row.case].rejected and may_train(row):
            z, y, x = labels.shape
            where = corrections.rejected(experiment.path("corrections"), row.case, (z, y, x))
            false = corrections.falsified(found.labels, labels == 2, where, s.overlap)
        table = found.table.assign(shared_ml=candidates.shared_ml(found.labels, labels == 2, spacing))
        table.insert(1, "is_lesion", hits & ~false)
        table.insert(2, "lesion", np.where(false, 0, lesion))
        table.insert(3, "rejected", false)
        for n, name in enumerate(("case", "patient", "split", "fold")):
            table.insert(n, name, getattr(row, name))
        tables.append(table)
        dropped += found.dropped
    table = pd.concat([t for t in tables if len(t)]) if any(map(len, tables)) else tables[0]
    write_table(folder / "candidates.csv", table)
    counts = {
        f"{split}_{what}": int((table[table.split == split].is_lesion == hit).sum())
        for split in ("train", "test")
        for what, hit in (("true", True), ("false", False))
    }
    return {**counts, "dropped": dropped, "rejected": int(table.rejected.sum())}


def _left_out(experiment: Experiment, row: Any, labels: Tensor) -> Tensor:
    """Regions of a case that are neither positive nor negative, bool [z y x]: excluded by its labels, or by hand afterwards."""
    excluded, source = labels == 3, getattr(row, "copy_of", "")
    name = source if isinstance(source, str) and source else row.case
    by_hand = experiment.path("exclusions") / f"{name}.npy"
    return excluded | torch.from_numpy(np.load(by_hand, allow_pickle=False)) if by_hand.is_file() else excluded


def candidate_table(experiment: Experiment) -> pd.DataFrame:
    return experiment.table("candidates", "candidates.csv", dtype={"case": str, "patient": str})


def run_radiomics(experiment: Experiment, folder: Path) -> dict:
    """The descriptors of all candidates, and those of the training candidates under each perturbation."""
    table, on, s = candidate_table(experiment), experiment.device, experiment.settings.radiomics
    if not (table.split == "train").any():
        raise Refused(
            experiment.folder,
            "no candidate in any training patient",
            "some, to describe and to learn from",
            "Train the tumor stage longer, or on more patients.",
        )
    rows, repeats, which, seconds = [], [], [], time.monotonic()
    cases = list(dict.fromkeys(table.case))
    train = set(table.case[table.split == "train"])
    for i, case in enumerate(cases):
        hu, _, spacing = experiment.work(case)
        scan = (hu, experiment.array("candidates", "labels", case).long(), experiment.array("liver", "masks", case))
        image, labels, inside = (part.to(on) for part in scan)
        described, values = radiomics.steady(image, labels, spacing, inside, settings=s, resolution=s.resolution)
        own = candidates.own_features(labels, experiment.array("tumor", "maps", case).float(), inside, spacing)
        described = described.rename(columns={"label": "candidate"}).assign(case=case).merge(own, how="left")
        rows.append(described)
        if case in train:
            repeats.append(values)
            which.append(described[["case", "candidate"]])
        experiment.progress("radiomics", i + 1, len(cases), {})
    features = pd.concat(rows)
    write_table(folder / "features.csv", features[["case", "candidate", *radiomics.NAMES, *candidates.OWN, "reason"]])
    write_table(folder / "repeats.csv", pd.concat(which))
    write_array(folder / "repeats.npy", torch.from_numpy(np.concatenate(repeats, 1)))
    kinds = [("none", selection.UNPERTURBED), *((p.name, p.kind) for p in perturb.PERTURBATIONS)]
    kinds += [fixed.RESOLUTION] * s.resolution
    write_json(folder / "perturbations.json", [{"name": name, "kind": kind} for name, kind in kinds])
    return {
        "candidates": len(features),
        "perturbations": len(kinds) - 1,
        "described": len(features) * len(kinds),
        "undefined_share": float(features[list(radiomics.NAMES)].isna().mean().mean()),
        "seconds": time.monotonic() - seconds,
    }


def tables(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates and their features, row by row the same lesions: the 728 descriptors, and the candidates' own where the settings ask.

    The split of a phantom that is not learned from, since patients are there, is `phantom`.
    """
    names = [*radiomics.NAMES, *candidates.OWN * experiment.settings.selection.own_features]
    table = candidate_table(experiment)
    features = experiment.table("radiomics", "features.csv", dtype={"case": str})
    joined = table[["case", "candidate"]].merge(features, on=["case", "candidate"], how="left", validate="one_to_one")
    if missing := [name for name in names if name not in joined]:
        raise Refused(
            experiment.path("radiomics") / "features.csv",
            f"no column {missing[0]}, made by an earlier version",
            "the candidates' own features",
            "Remove the folders radiomics, selection, forest and boundary, and train again.",
        )
    table = table.reset_index(drop=True)
    if experiment.settings.selection.patients_first:
        aside = (table.split == "train") & ~table.case.isin(learned_from(experiment).case)
        table.loc[aside, "split"] = "phantom"
    return table, joined[names]


def learned_from(experiment: Experiment) -> pd.DataFrame:
    """The training cases that selection and forest learn from: phantoms only where there are too few patients (`selection.patients_first`)."""
    cases = experiment.cases("train")
    s, real = experiment.settings, ~cases.get("phantom", pd.Series(False, cases.index))
    if not s.selection.patients_first or real.all():
        return cases
    need, least = asked(s)
    own, lesions = cases[real], cases.tumors_on_work_grid[real].sum()
    enough = own.patient.nunique() >= need and lesions >= max(least, s.selection.min_lesions)
    return own.reset_index(drop=True) if enough else cases
