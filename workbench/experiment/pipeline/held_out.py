"""The held-out cases segmented and measured: after each stage, and with each stage left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.data import cohort
from workbench.data.files import write_json, write_table
from workbench.data.threads import at_once, in_processes
from workbench.experiment import Experiment
from workbench.experiment.segmentation import DECIDING, Memory, Models, Result, decide, on_own_grid, segment
from workbench.stages import metrics
from workbench.stages.ledger import ABLATION
from workbench.volume import Refused, Volume


def run_metrics(experiment: Experiment, folder: Path, keep: Callable[[Result, Path], object] | None) -> dict:
    """The held-out cases segmented and measured after each stage, in tables; see `_held_out`."""
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
    assert result.maps is not None
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
