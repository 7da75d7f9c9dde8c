"""The method in order on a cohort: every stage trained, its held-out cases measured.

Each stage leaves a folder in the experiment; one whose manifest still holds is
not run again. Later stages learn from out-of-fold maps only.
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from workbench import (
    boundary,
    candidates,
    cascade,
    cohort,
    consistency,
    corrections,
    forest,
    liver,
    metrics,
    processes,
    radiomics,
    readers,
    selection,
    slabs,
    tumor,
)
from workbench.experiment import (
    NEEDS,
    STAGES,
    Experiment,
    Progress,
    held,
    sha256,
    versions,
    write_array,
    write_json,
    write_table,
)
from workbench.files import read_json, sweep
from workbench.ledger import ABLATION
from workbench.radiomics import perturb
from workbench.segmentation import DECIDING, Memory, Models, Result, decide, on_own_grid, segment
from workbench.threads import at_once, in_processes, side_by_side
from workbench.volume import Refused, Volume, components, numbered, resample
from workbench.watch import watched

KILLED = "killed.json"  # in a stage that was interrupted, until it is gone on with


def run(experiment: Experiment, stage: str, keep: Callable[[Result, Path], object] | None = None) -> Path:
    """Run one stage, unless what it left still holds. `keep`, a function of a module, writes the result
    folders of the held-out cases (stage metrics), which processes share on a CPU."""
    if stage not in STAGES:
        raise Refused("stage", stage, ", ".join(STAGES))
    for need in NEEDS[stage]:
        experiment.need(need)
    folder = experiment.path(stage)
    if processes.agree(experiment.finished(stage)):
        return folder
    if processes.rank() > 0:  # the first process does all else, and the others wait for it
        processes.wait()
        if stage in TRAIN:
            TRAIN[stage](experiment, folder)
        processes.wait()
        return folder
    with held(experiment.folder):
        began = time.monotonic()
        identity = _begin(experiment, stage)
        processes.wait()
        try:
            with watched(folder / "system.csv", experiment.device):
                figures = RUN[stage](experiment, folder, **({"keep": keep} if stage == "metrics" else {}))
        except KeyboardInterrupt:
            write_json(folder / KILLED, {"stage": stage, "at": datetime.now(UTC).isoformat(timespec="seconds")})
            raise
        write_json(folder / "metrics.json", {k: v for k, v in figures.items() if v is not None and math.isfinite(v)})
        outputs = {
            str(p.relative_to(folder)): sha256(p)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("stage.json", "started.json", "system.csv") and p.suffix != ".lock"
        }
        write_json(
            folder / "stage.json",
            identity
            | {
                "outputs": outputs,
                "seconds": round(time.monotonic() - began, 1),
                "device": str(experiment.device),
                "versions": versions(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
    processes.wait()
    return folder


def _begin(experiment: Experiment, stage: str) -> dict:
    """Make a stage's folder ready and say what it is made from; what other settings or inputs left there goes."""
    folder, identity = experiment.path(stage), experiment._identity(stage)
    mark = folder / "started.json"
    if mark.is_file() and read_json(mark) != identity:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *folder.glob("*/")):
        sweep(place)
    for name in ("stage.json", KILLED):
        (folder / name).unlink(missing_ok=True)
    write_json(mark, identity)
    return identity


def train_fold(experiment: Experiment, stage: str, fold: int) -> Path:
    """Train one fold's net of a cascade stage and nothing else, beside other processes that train the other folds.

    The stage itself, run afterwards, finds the nets there.
    """
    if stage not in FOLDS or not 0 <= fold < experiment.settings.folds:
        raise Refused(
            "stage and fold",
            f"{stage}, fold {fold}",
            f"{' or '.join(FOLDS)}, fold 0 to {experiment.settings.folds - 1}",
        )
    for need in NEEDS[stage]:
        experiment.need(need)
    folder = experiment.path(stage)
    if not experiment.finished(stage):
        with held(experiment.folder, shared=True):
            with one_at_a_time(experiment.folder):
                if not _begun(experiment, stage):
                    _begin(experiment, stage)
            with held(folder, name=f".fold{fold}.lock"):
                FOLDS[stage](experiment, folder, fold)
    return folder


def _begun(experiment: Experiment, stage: str) -> bool:
    """Whether somebody is at this stage already, with these settings and inputs."""
    folder = experiment.path(stage)
    mark = folder / "started.json"
    begun = mark.is_file() and read_json(mark) == experiment._identity(stage)
    return begun and not (folder / "stage.json").is_file()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """For a moment: the next one waits."""
    with open(folder / ".begin.lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def train(experiment: Experiment, stages: str = "all", keep: Callable[[Result, Path], object] | None = None) -> None:
    """All stages in order, or one. Of all, the last is left out when no case is held out."""
    wanted = STAGES if stages == "all" else (stages,)
    if stages == "all" and not any(c.split == "test" for c in cohort.read_manifest(experiment.manifest)):
        print(f"{experiment.manifest.name} holds no case out: all train, and the stage metrics has nothing to measure")
        wanted = wanted[: wanted.index("metrics")]
    for stage in wanted:
        fresh = (
            not experiment.finished(stage)
            if all((experiment.path(n) / "stage.json").is_file() for n in NEEDS[stage])
            else True
        )
        if fresh and processes.rank() == 0:
            print(f"{stage}", flush=True)
        run(experiment, stage, keep)


# ---------------------------------------------------------------- the stages, on a cohort


def _run_cohort(experiment: Experiment, folder: Path) -> dict:
    settings, rows = experiment.settings, []
    cases = cohort.read_manifest(experiment.manifest)
    tumor_ml, hashes, tables, said = {}, [], [], experiment.corrections
    for i, case in enumerate(cases):
        ct, labels = case.read()
        hashes.append((case, case.identify(ct)))
        corrected = case.case in said and bool(said[case.case].labels_sha256) and _may_train(case)
        if corrected:
            labels = readers.read_labels(corrections.labels_file(experiment.path("corrections"), case.case), like=ct)
        shape, spacing = settings.work_grid(ct.shape, ct.spacing_mm)
        on_work = (resample(labels.array >= 1, shape) >= 0.5).to(torch.uint8)
        on_work[resample(labels.array == 2, shape) >= 0.5] = 2
        write_array(
            folder / "hu" / f"{case.case}.npy", resample(ct.array, shape).round().clamp(-1024, 3071).to(torch.int16)
        )
        write_array(folder / "labels" / f"{case.case}.npy", on_work)
        tumor_ml[case.case] = float((labels.array == 2).sum()) * labels.voxel_ml
        lesions = components(labels.array == 2)[1]
        rows.append(
            {
                "case": case.case,
                "patient": case.patient,
                "split": case.split,
                "field_of_view": case.field_of_view,
                "corrected": corrected,
                "slices": ct.shape[0],
                "spacing_z_mm": ct.spacing_mm[0],
                "spacing_y_mm": ct.spacing_mm[1],
                "spacing_x_mm": ct.spacing_mm[2],
                "work_z_mm": spacing[0],
                "work_y_mm": spacing[1],
                "work_x_mm": spacing[2],
                "liver_ml": float((labels.array >= 1).sum()) * labels.voxel_ml,
                "tumors": lesions,
                "tumor_ml": tumor_ml[case.case],
                "voxel_hash": hashes[-1][1],
            }
        )
        table = case.ct.parent / "lesions.csv"
        if table.is_file():
            tables.append(pd.read_csv(table).assign(case=case.case, split=case.split))
        experiment.progress("cohort", i + 1, len(cases), {})
    of = cohort.folds([c for c in cases if c.split == "train"], tumor_ml, settings.folds)
    table = pd.DataFrame(rows)
    table.insert(3, "fold", [of.get(c, -1) for c in table.case])
    cohort.each_scan_once(experiment.manifest, hashes)
    write_table(folder / "cases.csv", table)
    if tables:
        write_table(folder / "lesions.csv", pd.concat(tables))
    return {
        "patients": table.patient.nunique(),
        "held_out_patients": table[table.split == "test"].patient.nunique(),
        "tumors": int(table.tumors.sum()),
    }


def _may_train(case: cohort.Case) -> bool:
    """True, or refused: the last look before something said of a case enters training."""
    if case.split != "train":
        raise Refused(case.case, "corrections of a held-out case", "corrections of training cases only")
    return True


def _fold_maps(
    experiment: Experiment, folder: Path, settings: cascade.CascadeSettings, predict: Callable[[list, str], Tensor]
) -> None:
    """Maps of all cases: a training case by the net that never saw it, a held-out case by the mean of all."""
    nets = cascade.load(folder, settings, experiment.device, range(experiment.settings.folds))
    table = experiment.cases()
    for i, row in enumerate(table.itertuples()):
        path = folder / "maps" / f"{row.case}.npy"
        if not path.is_file():
            chosen = [nets[int(row.fold)]] if row.fold >= 0 else nets
            write_array(path, predict(chosen, row.case).to(torch.float16))
        experiment.progress(f"{folder.name} maps", i + 1, len(table), {})


def _train_folds(
    experiment: Experiment,
    folder: Path,
    settings: cascade.CascadeSettings,
    bank: Callable[[str], Any],
    only: int | None = None,
) -> None:
    """The net of each fold, or of one, trained on the other folds' patients; finished folds stay, and on a CPU the others share the cores."""
    table, count = experiment.cases("train"), experiment.settings.folds
    missing = [n for n in range(count) if only in (None, n) and not (folder / f"fold{n}.json").is_file()]
    start = experiment.start / folder.name if experiment.start else None
    banks, used, scratch = {}, 0, folder / "slices" / (str(processes.rank()) if only is None else f"fold{only}")
    for case in table.case if missing else ():
        made = bank(case)
        used += made.bytes if made is not None else 0
        spare = made is None or used <= slabs.room(experiment.device)
        banks[case] = made if spare else made.in_files(scratch / case)

    def train(fold: int, show: Progress) -> None:
        aside = _set_aside(table[table.fold != fold], settings.fit.inner, experiment.settings.seed + fold)
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

    if processes.count() > 1:  # they train one net at a time, together
        for fold in missing:
            train(fold, tell)
    else:
        side_by_side(train, missing, tell, experiment.device)
    shutil.rmtree(scratch, ignore_errors=True)
    if processes.rank() > 0 or only is not None:
        return
    curves = [
        pd.DataFrame(json.loads((folder / f"fold{n}.json").read_text())["curve"]).assign(fold=n) for n in range(count)
    ]
    write_table(folder / "curves.csv", pd.concat(curves))


def _set_aside(training: pd.DataFrame, share: float, seed: int) -> set[str]:
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


def _train_liver(experiment: Experiment, folder: Path, only: int | None = None) -> None:
    s, cut = experiment.settings.liver, _cut(experiment)

    def bank(case: str):
        hu, labels, spacing = experiment.work(case)
        return None if case in cut else liver.bank_case(hu, labels, spacing, s)

    _train_folds(experiment, folder, s.cascade, bank, only)


def _run_liver(experiment: Experiment, folder: Path) -> dict:
    s, cut = experiment.settings.liver, _cut(experiment)

    def predict(nets: list, case: str) -> Tensor:
        hu, labels, spacing = experiment.work(case)
        return (labels >= 1).float() if case in cut else liver.probability(nets, hu, spacing, s, experiment.device)

    _train_liver(experiment, folder)
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
                "dice": math.nan if row.case in cut else dice(found, labels >= 1),
            }
        )
    write_table(folder / "cases.csv", pd.DataFrame(rows))
    return _by_split(pd.DataFrame(rows), "dice")


def _train_tumor(experiment: Experiment, folder: Path, only: int | None = None) -> None:
    s = experiment.settings.tumor

    def bank(case: str):
        hu, labels, spacing = experiment.work(case)
        p = experiment.array("liver", "maps", case).float()
        at = tumor.box(experiment.array("liver", "masks", case), spacing, s)
        return None if at is None else tumor.bank_case(hu, labels, p, at)

    _train_folds(experiment, folder, s.cascade, bank, only)


def _run_tumor(experiment: Experiment, folder: Path) -> dict:
    s = experiment.settings.tumor

    def predict(nets: list, case: str) -> Tensor:
        hu, _, spacing = experiment.work(case)
        p = experiment.array("liver", "maps", case).float()
        at = tumor.box(experiment.array("liver", "masks", case), spacing, s)
        return tumor.probability(nets, hu, p, at, s, experiment.device)

    _train_tumor(experiment, folder)
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
    return _by_split(pd.DataFrame(rows), "dice")


def _run_consistency(experiment: Experiment, folder: Path) -> dict:
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


def _run_candidates(experiment: Experiment, folder: Path) -> dict:
    tables, dropped, said = [], 0, experiment.corrections
    s = experiment.settings.candidates
    for row in experiment.cases().itertuples():
        _, labels, spacing = experiment.work(row.case)
        p = experiment.array("tumor", "maps", row.case).float()
        inside = experiment.array("liver", "masks", row.case)
        found = candidates.find(experiment.array("consistency", "masks", row.case), p, inside, spacing, s)
        write_array(folder / "labels" / f"{row.case}.npy", found.labels)
        hits, lesion = candidates.match(found.labels, numbered(labels == 2), s)
        false = np.zeros(len(hits), bool)
        if row.case in said and said[row.case].rejected and _may_train(row):
            z, y, x = labels.shape
            where = corrections.rejected(experiment.path("corrections"), row.case, (z, y, x))
            false = corrections.falsified(found.labels, labels == 2, where, s.overlap)
        table = found.table.copy()
        table.insert(1, "is_lesion", hits & ~false)
        table.insert(2, "lesion", np.where(false, 0, lesion))
        table.insert(3, "rejected", false)
        for n, name in enumerate(("case", "patient", "split", "fold")):
            table.insert(n, name, getattr(row, name))
        tables.append(table)
        dropped += found.dropped_count
    table = pd.concat([t for t in tables if len(t)]) if any(map(len, tables)) else tables[0]
    write_table(folder / "candidates.csv", table)
    counts = {
        f"{split}_{what}": int((table[table.split == split].is_lesion == hit).sum())
        for split in ("train", "test")
        for what, hit in (("true", True), ("false", False))
    }
    return {**counts, "dropped": dropped, "rejected": int(table.rejected.sum())}


def _candidate_table(experiment: Experiment) -> pd.DataFrame:
    return experiment.table("candidates", "candidates.csv", dtype={"case": str, "patient": str})


def _run_radiomics(experiment: Experiment, folder: Path) -> dict:
    table, on = _candidate_table(experiment), experiment.device
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
        described, values = radiomics.steady(image, labels, spacing, inside)
        described = described.rename(columns={"label": "candidate"}).assign(case=case)
        rows.append(described)
        if case in train:
            repeats.append(values)
            which.append(described[["case", "candidate"]])
        experiment.progress("radiomics", i + 1, len(cases), {})
    features = pd.concat(rows)
    write_table(folder / "features.csv", features[["case", "candidate", *radiomics.NAMES, "reason"]])
    write_table(folder / "repeats.csv", pd.concat(which))
    write_array(folder / "repeats.npy", torch.from_numpy(np.concatenate(repeats, 1)))
    kinds = [("none", selection.UNPERTURBED), *((p.name, p.kind) for p in perturb.PERTURBATIONS)]
    write_json(folder / "perturbations.json", [{"name": name, "kind": kind} for name, kind in kinds])
    return {
        "candidates": len(features),
        "perturbations": len(perturb.PERTURBATIONS),
        "described": len(features) * (1 + len(perturb.PERTURBATIONS)),
        "undefined_share": float(features[list(radiomics.NAMES)].isna().mean().mean()),
        "seconds": time.monotonic() - seconds,
    }


def _tables(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates and their features, row by row the same lesions."""
    table = _candidate_table(experiment)
    features = experiment.table("radiomics", "features.csv", dtype={"case": str})
    joined = table[["case", "candidate"]].merge(features, on=["case", "candidate"], how="left", validate="one_to_one")
    return table.reset_index(drop=True), joined[list(radiomics.NAMES)]


class _Given(NamedTuple):
    """What selection learns from: training candidates, their features, the values under each perturbation with the row of each, kinds of
    the perturbations, and folds."""

    table: pd.DataFrame
    features: pd.DataFrame
    repeats: np.ndarray
    again: np.ndarray
    kinds: list[str]
    fold: np.ndarray
    settings: selection.SelectionSettings


def _given(folder: Path, device: str) -> _Given:
    experiment = Experiment(folder, device)
    table, features = _tables(experiment)
    repeats = np.load(experiment.path("radiomics") / "repeats.npy", allow_pickle=False)
    kinds = [p["kind"] for p in json.loads((experiment.path("radiomics") / "perturbations.json").read_text())]
    train, s = table.split == "train", experiment.settings
    table, features = table[train].reset_index(drop=True), features[train].reset_index(drop=True)
    folds = min(s.selection.folds, table.patient.nunique())
    fold = forest.grouped_folds(table.is_lesion, table.patient, folds, s.seed)  # the maps are out of fold already
    row_of = {key: row for row, key in enumerate(zip(table.case, table.candidate))}
    again = experiment.table("radiomics", "repeats.csv", dtype={"case": str})
    again = np.array([row_of[key] for key in zip(again.case, again.candidate)])
    return _Given(table, features, repeats, again, kinds, fold, s.selection)


def _selected(given: _Given, without: int | None) -> selection.Selection:
    """The features chosen without the patients of a fold, or on all."""
    use = np.ones(len(given.fold), bool) if without is None else given.fold != without
    within, rows = selection.repeats_within(given.repeats, given.again, np.flatnonzero(use))
    x, y, patients = given.features[use], given.table.is_lesion[use].to_numpy(), given.table.patient[use].to_numpy()
    return selection.select(x, y, patients, within, given.kinds, given.settings, repeat_rows=rows)


def _run_selection(experiment: Experiment, folder: Path) -> dict:
    make = partial(_given, experiment.folder, str(experiment.device))
    given = make()
    folds = [*range(int(given.fold.max()) + 1), None]
    names = {}
    # processes, for liblinear draws from one generator that threads would share
    for n, chosen in zip(folds, in_processes(make, _selected, folds, torch.get_num_threads())):
        names["all" if n is None else str(n)] = list(chosen.names)
        experiment.progress("selection", len(names), len(folds), {})
    groups = radiomics.CATALOGUE.set_index("name").group
    write_table(folder / "table.csv", chosen.table.assign(group=chosen.table.name.map(groups)))
    write_json(folder / "selected.json", names)
    write_table(folder / "folds.csv", given.table[["case", "patient", "candidate"]].assign(fold=given.fold))
    index = selection.nogueira([names[str(n)] for n in folds[:-1]], len(radiomics.NAMES))
    return {
        "kept": len(names["all"]),
        **{f"nogueira{k}": v for k, v in zip(("", "_low", "_high"), index)},
        "stable": int((~chosen.table.step.isin(["undefined", "unstable"])).sum()),
    }


SIZE = ("shape_mesh_volume", "shape_maximum_diameter")  # what a filter by size alone may look at


class ForestRows(NamedTuple):
    """The candidates of the training cases, row by row, and what selection kept for the forest that leaves a fold out."""

    table: pd.DataFrame
    features: pd.DataFrame
    truth: np.ndarray
    patients: np.ndarray
    fold: np.ndarray
    lesions: np.ndarray
    chosen: forest.Choose


def forest_rows(experiment: Experiment) -> ForestRows:
    """What the forest learns from."""
    table, features = _tables(experiment)
    names = read_json(experiment.path("selection") / "selected.json")
    train = (table.split == "train").to_numpy()
    fold = experiment.table("selection", "folds.csv", dtype={"case": str, "patient": str}).fold.to_numpy()

    def chosen(rows: np.ndarray) -> list[str]:
        """What selection kept when it saw the other folds only."""
        absent = set(fold) - set(fold[rows])
        return names[str(absent.pop())]

    own, x = table[train].reset_index(drop=True), features[train].reset_index(drop=True)
    return ForestRows(own, x, own.is_lesion.to_numpy(), own.patient.to_numpy(), fold, _lesions(own), chosen)


def _lesions(table: pd.DataFrame) -> np.ndarray:
    """Names the lesion of each candidate: several may be pieces of one."""
    return (table.case + "/" + table.lesion.astype(str)).to_numpy()


def _run_forest(experiment: Experiment, folder: Path) -> dict:
    table, features = _tables(experiment)
    names = json.loads((experiment.path("selection") / "selected.json").read_text())
    s, train = experiment.settings.forest, (table.split == "train").to_numpy()
    (_, x, y, patients, fold, _, chosen), scores = forest_rows(experiment), np.full(len(table), np.nan)
    lesions = _lesions(table)
    oof = forest.out_of_fold(x, y, patients, chosen, s, fold)
    scores[train] = oof.scores
    cut = forest.threshold_for_recall(oof.scores, y, s.recall, lesions[train])
    own, tried = forest.settled(x[names["all"]], y, patients, s)
    largest = float(table.volume_ml[train].max())
    model = replace(forest.fit(x[names["all"]], y, own).with_threshold(cut), largest_ml=largest)
    write_table(folder / "settings.csv", tried.assign(chosen=tried.min_leaf == own.min_leaf))
    if (~train).any():
        scores[~train] = model.score(features[~train])
    forest.save(model, folder)
    kept = scores >= cut.threshold
    columns = ["case", "patient", "split", "fold", "candidate", "is_lesion", "lesion", "volume_ml", "long_axis_mm"]
    write_table(folder / "scores.csv", table[columns].assign(score=scores, kept=kept))
    groups = radiomics.CATALOGUE.set_index("name").group
    shape = list(groups.index[groups == "shape"])
    beside = forest.baselines(x, y, patients, list(SIZE), shape, chosen, s, fold, lesions=lesions[train], known=oof)
    write_table(folder / "baselines.csv", beside)
    write_table(folder / "importance.csv", forest.importance(oof, x, y, patients))
    y = table.is_lesion.to_numpy()
    out = {
        "min_leaf": own.min_leaf,
        "threshold": cut.threshold,
        "recall": cut.recall,
        "recall_low": cut.recall_low,
        "recall_high": cut.recall_high,
    }
    for split, on in (("train", train), ("test", ~train)):
        out |= {
            f"{split}_false": int((~y & on).sum()),
            f"{split}_false_removed": int((~y & ~kept & on).sum()),
            f"{split}_lesions": len(set(lesions[y & on])),
            f"{split}_lesions_lost": len(set(lesions[y & on]) - set(lesions[y & kept & on])),
        }
    return out


def candidates_chance(experiment: Experiment, case: str, numbers: ArrayLike, scores: ArrayLike) -> Tensor:
    """Some candidates of a case: P(lesion) in their voxels, 0 elsewhere, [z y x]."""
    return boundary.chances(experiment.array("candidates", "labels", case), numbers, scores)


def boundary_case(experiment: Experiment, row: Any, kept: Tensor) -> boundary.Case:
    """What the boundary net is given of a case of the cohort's table, `kept` being what the forest left, bool [z y x]."""
    hu, labels, spacing = experiment.work(row.case)
    return boundary.Case(
        hu.float(),
        experiment.array("tumor", "maps", row.case).float(),
        kept,
        labels == 2,
        spacing,
        row.patient,
        experiment.array("liver", "masks", row.case),
    )


def _train_boundary(experiment: Experiment, folder: Path) -> boundary.BoundaryModel:
    s, examples = experiment.settings.boundary, []
    scores = experiment.table("forest", "scores.csv", dtype={"case": str})
    for row in experiment.cases("train").itertuples():
        own = scores[(scores.case == row.case) & scores.kept]
        kept = candidates_chance(experiment, row.case, own.candidate, own.score) > 0
        examples.append(boundary_case(experiment, row, kept))

    def show(_: str, *rest) -> None:
        experiment.progress("boundary", *rest)

    start = experiment.start / "boundary" if experiment.start else None
    return boundary.train(examples, s, experiment.settings.seed, show, experiment.device, folder, start)


def _run_boundary(experiment: Experiment, folder: Path) -> dict:
    model = _train_boundary(experiment, folder)
    write_table(folder / "curves.csv", model.curves)
    return {"skipped": model.skipped, **{k: float(v) for k, v in model.curves.iloc[-1].items()}}


def _run_metrics(experiment: Experiment, folder: Path, keep: Callable[[Result, Path], object] | None) -> dict:
    chosen = [c for c in cohort.read_manifest(experiment.manifest) if c.split == "test"]
    if not chosen:
        raise Refused(experiment.manifest, "no held-out case", "at least one with split test")
    rows: list[dict] = []
    without: list[dict] = []
    reports: dict[str, list[dict]] = {stage: [] for stage in ABLATION}
    make = partial(Models.load, experiment.folder, str(experiment.device))
    workers = at_once(experiment.device)
    found = in_processes(make, partial(_held_out, keep, experiment.folder / "results"), chosen, workers)
    for i, (case, (stages, left_out)) in enumerate(zip(chosen, found)):
        about = {"case": case.case, "patient": case.patient}
        for stage, report in zip(ABLATION, stages):
            reports[stage].append(report)
            rows.append({"stage": stage, **about, **_flat(report)})
        for stage, report in zip(DECIDING, left_out):
            without.append({"without": stage, **about, **_flat(report)})
        experiment.progress("held-out cases", i + 1, len(chosen), {})
    table = pd.DataFrame(rows)
    write_table(folder / "cases.csv", table)
    summary = [
        {
            "stage": stage,
            "metric": m,
            **dict(
                zip(("mean", "low", "high"), metrics.bootstrap(part[m].to_numpy(float), groups=part.patient.to_numpy()))
            ),
            "n": int(part[m].notna().sum()),
        }
        for stage, part in table.groupby("stage", sort=False)
        for m in table.columns[3:]
    ]
    write_table(folder / "ablation.csv", pd.DataFrame(summary))
    steps = [
        {
            "from": a,
            "to": b,
            "metric": m,
            **metrics.paired(
                table[table.stage == a][m].to_numpy(float),
                table[table.stage == b][m].to_numpy(float),
                groups=table[table.stage == a].patient.to_numpy(),
            ),
        }
        for a, b in zip(ABLATION, ABLATION[1:])
        for m in table.columns[3:]
    ]
    write_table(folder / "comparisons.csv", pd.DataFrame(steps))
    left_out = pd.DataFrame(without)
    write_table(folder / "leave_one_out.csv", _leave_one_out(table[table.stage == ABLATION[-1]], left_out))
    for stage in ABLATION:
        write_json(folder / f"{stage}.json", metrics.summarise(reports[stage]))
    return {f"{row['stage']}_{row['metric']}": row["mean"] for row in summary}


def _held_out(
    keep: Callable[[Result, Path], object] | None, results: Path, models: Models, case: cohort.Case
) -> tuple[list[dict], list[dict]]:
    """Segment a held-out case and keep it below `results`: its measures after each stage, and with each one left out."""
    ct, truth = case.read()
    given = truth.array >= 1 if case.field_of_view != "whole" else None
    memory = Memory()
    result = segment(replace(ct, name=case.case), models, liver_given=given, memory=memory)
    stages = [_measured(case, ct, truth, result.labels_after(stage)) for stage in ABLATION]
    left_out = []
    for stage in DECIDING:
        labels = result.liver.to(torch.uint8)
        decided = decide(result.maps, models, skip=(stage,), memory=memory)
        labels[on_own_grid(decided, ct.shape)[-1]] = 2
        left_out.append(_measured(case, ct, truth, labels))
    if keep is not None:
        keep(result, results / case.case)
    return stages, left_out


def _measured(case: cohort.Case, ct: Volume, truth: Volume, labels: Tensor) -> dict:
    found = metrics.evaluate_case(truth.array, labels, ct.spacing_mm, case.case)
    if case.field_of_view != "whole":  # the reference beside itself says nothing
        found["liver"] = dict.fromkeys(found["liver"], math.nan)
    return found


def _leave_one_out(whole: pd.DataFrame, without: pd.DataFrame) -> pd.DataFrame:
    """What leaving one stage out changes: for each stage and metric the mean without it, and the paired change from
    without to with it."""
    rows = []
    for stage, part in without.groupby("without", sort=False):
        for m in part.columns[3:]:
            values = part[m].to_numpy(float)
            mean, low, high = metrics.bootstrap(values, groups=part.patient.to_numpy())
            change = metrics.paired(values, whole[m].to_numpy(float), groups=part.patient.to_numpy())
            found = {"mean_low": low, "mean_high": high, **change}
            rows.append({"without": stage, "metric": m, "mean": mean, **found})
    return pd.DataFrame(rows)


TRAIN: dict[str, Callable[[Experiment, Path], object]] = {  # what all processes of a run do together
    "liver": _train_liver,
    "tumor": _train_tumor,
    "boundary": _train_boundary,
}
FOLDS: dict[str, Callable[[Experiment, Path, int], None]] = {
    "liver": _train_liver,
    "tumor": _train_tumor,
}  # a net a fold
RUN: dict[str, Callable[..., dict]] = {
    "cohort": _run_cohort,
    "liver": _run_liver,
    "tumor": _run_tumor,
    "consistency": _run_consistency,
    "candidates": _run_candidates,
    "radiomics": _run_radiomics,
    "selection": _run_selection,
    "forest": _run_forest,
    "boundary": _run_boundary,
    "metrics": _run_metrics,
}


def _flat(measured: dict) -> dict[str, float]:
    """What the ablation follows, from the measures of one case; NaN where a case has nothing to measure."""
    large = [lesion["detected_iou0"] for lesion in measured["lesions"] if lesion["diameter_mm"] > 10]
    any_overlap, half = measured["detection"]["iou0"], measured["detection"]["iou50"]
    return {
        "liver_dice": measured["liver"]["dice"],
        **{f"tumor_{k}": measured["tumor"][k] for k in ("dice", "voe", "rvd", "assd_mm", "surface_dice")},
        "recall_iou0": any_overlap["recall"],
        "precision_iou0": any_overlap["precision"],
        "recall_iou50": half["recall"],
        "precision_iou50": half["precision"],
        "recall_over_10mm": float(np.mean(large)) if large else math.nan,
        "false_positives": float(any_overlap["fp"]),
    }


def dice(a: Tensor, b: Tensor) -> float:
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def _by_split(table: pd.DataFrame, column: str) -> dict:
    return {f"{split}_{column}": float(part[column].mean()) for split, part in table.groupby("split")}
