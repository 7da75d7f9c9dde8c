"""What is learnt from the candidates of the training patients: features, forest, boundary net."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from workbench.data.files import read_json, write_json, write_table
from workbench.data.threads import in_processes
from workbench.experiment import Experiment
from workbench.experiment.pipeline.lesions import learned_from, tables
from workbench.nets.fit import copy_tensors
from workbench.stages import boundary, forest, radiomics, selection
from workbench.volume import Refused


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
    table, features = tables(experiment)
    repeats = np.load(experiment.path("radiomics") / "repeats.npy", allow_pickle=False)
    own = list(features.columns[repeats.shape[2] :])  # not perturbed: each repeat is the value itself
    kinds = [p["kind"] for p in json.loads((experiment.path("radiomics") / "perturbations.json").read_text())]
    train, s = table.split == "train", experiment.settings
    table, features = table[train].reset_index(drop=True), features[train].reset_index(drop=True)
    folds = min(s.selection.folds, table.patient.nunique())
    fold = forest.grouped_folds(table.is_lesion, table.patient, folds, s.seed)  # the maps are out of fold already
    row_of = {key: row for row, key in enumerate(zip(table.case, table.candidate))}
    again = experiment.table("radiomics", "repeats.csv", dtype={"case": str})
    again = np.array([row_of.get(key, -1) for key in zip(again.case, again.candidate)])
    repeats, again = repeats[:, again >= 0], again[again >= 0]  # those of phantoms that are not learned from go
    if own:
        same = features[own].to_numpy()[again]
        repeats = np.concatenate([repeats, np.broadcast_to(same, (len(repeats), *same.shape))], 2)
    return _Given(table, features, repeats, again, kinds, fold, s.selection)


def _selected(given: _Given, use: np.ndarray) -> selection.Selection:
    """The features chosen on some of the rows, bool."""
    within, rows = selection.repeats_within(given.repeats, given.again, np.flatnonzero(use))
    x, y, patients = given.features[use], given.table.is_lesion[use].to_numpy(), given.table.patient[use].to_numpy()
    return selection.select(x, y, patients, within, given.kinds, given.settings, repeat_rows=rows)


def _again(given: _Given, task: tuple[np.ndarray, bool]) -> selection.Selection | None:
    """`_selected`, or None for a resample of which too little is left to choose from."""
    use, resample = task
    try:
        return _selected(given, use)
    except Refused:
        if resample:
            return None
        raise


def run_selection(experiment: Experiment, folder: Path) -> dict:
    """The descriptors chosen on all training patients, without each fold of them, and on resamples."""
    make = partial(_given, experiment.folder, str(experiment.device))
    given = make()
    folds = range(int(given.fold.max()) + 1)
    drawn = selection.resamples(given.table.is_lesion, given.table.patient, given.settings)
    everything = np.ones(len(given.fold), bool)
    tasks = [*((given.fold != n, False) for n in folds), *((use, True) for use in drawn), (everything, False)]
    names: list[list[str]] = []  # empty where a resample has too few
    # processes, for liblinear draws from one generator that threads would share
    for chosen in in_processes(make, _again, tasks, torch.get_num_threads()):
        names.append([] if chosen is None else list(chosen.names))
        experiment.progress("selection", len(names), len(tasks), {})
    assert chosen is not None  # the last one, of all
    groups = radiomics.CATALOGUE.set_index("name").group
    write_table(folder / "table.csv", chosen.table.assign(group=chosen.table.name.map(groups).fillna("candidate")))
    write_json(folder / "selected.json", {str(n): names[n] for n in folds} | {"all": names[-1]})
    again = [n for n in names[len(folds) : -1] if n]
    write_json(folder / "resamples.json", again)
    write_table(folder / "folds.csv", given.table[["case", "patient", "candidate"]].assign(fold=given.fold))
    index = selection.nogueira(again, given.features.shape[1]) if len(again) > 1 else (math.nan,) * 3
    return {
        "kept": len(names[-1]),
        **{f"nogueira{k}": v for k, v in zip(("", "_low", "_high"), index)},
        "resamples": len(again),
        "nogueira_folds": selection.nogueira(names[: len(folds)], given.features.shape[1]).value,
        "stable": int((~chosen.table.step.isin(["undefined", "unstable"])).sum()),
    }


SIZE = ("shape_mesh_volume", "shape_maximum_diameter")  # what a filter by size alone may look at


def simpler() -> dict[str, list[str]]:
    """What simpler filters look at, by name: descriptors that nobody has selected."""
    group = radiomics.CATALOGUE.set_index("name").group
    named = {"shape": ["shape"], "shape and boundary": ["shape", "boundary"]}
    return {"size": list(SIZE)} | {name: list(group.index[group.isin(of)]) for name, of in named.items()}


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
    table, features = tables(experiment)
    names = read_json(experiment.path("selection") / "selected.json")
    train = (table.split == "train").to_numpy()
    folds = experiment.table("selection", "folds.csv", dtype={"case": str, "patient": str})
    if list(zip(folds.case, folds.candidate)) != list(zip(table.case[train], table.candidate[train])):
        raise Refused(
            experiment.path("selection") / "folds.csv",
            "other candidates than those that are learned from now",
            "the same",
            "Remove the folders selection, forest and boundary, and train again.",
        )
    fold = folds.fold.to_numpy()

    def chosen(rows: np.ndarray) -> list[str]:
        """What selection kept when it saw the other folds only."""
        absent = set(fold) - set(fold[rows])
        return names[str(absent.pop())]

    own, x = table[train].reset_index(drop=True), features[train].reset_index(drop=True)
    return ForestRows(own, x, own.is_lesion.to_numpy(), own.patient.to_numpy(), fold, _lesions(own), chosen)


def _lesions(table: pd.DataFrame) -> np.ndarray:
    """Names the lesion of each candidate: several may be pieces of one."""
    return (table.case + "/" + table.lesion.astype(str)).to_numpy()


def run_forest(experiment: Experiment, folder: Path) -> dict:
    """The forest and its threshold, with the scores of all candidates: out of fold in training, else by the forest itself."""
    table, features = tables(experiment)
    names = json.loads((experiment.path("selection") / "selected.json").read_text())
    s, train = experiment.settings.forest, (table.split == "train").to_numpy()
    (_, x, y, patients, fold, _, chosen), scores = forest_rows(experiment), np.full(len(table), np.nan)
    lesions = _lesions(table)
    oof = forest.out_of_fold(x, y, patients, chosen, s, fold)
    scores[train] = oof.scores
    own_rows, own_cases = table[train], learned_from(experiment).set_index("case")
    points = forest.operating_points(
        oof.scores,
        y,
        lesions[train],
        s.recall,
        None if "shared_ml" not in table else own_rows[["case", "volume_ml", "shared_ml"]],  # 0.1.0 did not keep it
        own_cases.tumor_ml,
        own_cases.patient,
        set(own_cases.index[own_cases.copy_of.notna()]) if "copy_of" in own_cases else (),
        s.false_a_scan,
    )
    cut = points[point := s.operating_point if s.operating_point in points else "recall"]
    own, tried = forest.settled(x[names["all"]], y, patients, s)
    largest = float(table.volume_ml[train].max())
    model = replace(forest.fit(x[names["all"]], y, own), largest_ml=largest, points=points).at(point)
    write_table(folder / "settings.csv", tried.assign(chosen=tried.min_leaf == own.min_leaf))
    if (~train).any():
        scores[~train] = model.score(features[~train])
    forest.save(model, folder)
    kept = model.keeps(scores, table.volume_ml)
    columns = ["case", "patient", "split", "fold", "candidate", "is_lesion", "lesion", "volume_ml", "long_axis_mm"]
    write_table(folder / "scores.csv", table[columns].assign(score=scores, kept=kept))
    beside = forest.baselines(x, y, patients, simpler(), chosen, s, fold, lesions=lesions[train], known=oof)
    write_table(folder / "baselines.csv", beside)
    write_table(folder / "importance.csv", forest.importance(oof, x, y, patients))
    y, ends = table.is_lesion.to_numpy(), beside.set_index("features").loc["selected"]
    out = {
        "min_leaf": own.min_leaf,
        "threshold": cut.threshold,
        **{f"threshold_{end}": ends[f"threshold_{end}"] if point == "recall" else math.nan for end in ("low", "high")},
        "recall": cut.recall,
        "recall_low": cut.recall_low,
        "recall_high": cut.recall_high,
        **{f"{name}_point_{k}": getattr(p, k) for name, p in points.items() for k in ("threshold", "recall")},
    }
    for split, on in (("train", train), ("test", (table.split == "test").to_numpy())):
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


def train_boundary(experiment: Experiment, folder: Path) -> boundary.BoundaryModel:
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


def run_boundary(experiment: Experiment, folder: Path) -> dict:
    """The boundary net, from what the forest keeps of the training cases."""
    if "boundary" in experiment.taken:
        assert experiment.start is not None
        copy_tensors(experiment.start / "boundary" / "model", folder / "model")
        model = boundary.load(folder, experiment.settings.boundary)
    else:
        model = train_boundary(experiment, folder)
    write_table(folder / "curves.csv", model.curves)
    return {"skipped": model.skipped, **{k: float(v) for k, v in model.curves.iloc[-1].items()}}
