"""Small result and experiment folders with the layout that the workbench writes, for the tests of the outer ring.

The picture is a liver ellipsoid with three blobs on unequal axes, off centre, so that a flip or a transposition shows.
"""

import base64
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

PREVIEW = base64.b64decode(  # one grey pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
SHAPE, SPACING = (14, 40, 52), (5.0, 2.0, 1.5)
NAMES = (
    [f"original_glcm_{i}" for i in range(8)] + [f"shape_{i}" for i in range(6)] + [f"wavelet_HHL_{i}" for i in range(6)]
)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """ct, labels, liver and tumor probability, ledger, candidates: canonical `[z y x]` on SHAPE."""
    z, y, x = np.meshgrid(*[np.arange(n, dtype=float) for n in SHAPE], indexing="ij")

    def blob(cz, cy, cx, rz, ry, rx):
        return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1

    body, liver = blob(7, 20, 26, 30, 19, 25), blob(7, 18, 18, 6, 13, 14)
    kept, rejected, dropped = blob(7, 15, 13, 2.2, 4, 5), blob(5, 25, 22, 1.2, 3, 3), blob(9, 12, 24, 0.6, 1, 1)
    tumor_edge = blob(7, 15, 13, 2.5, 5, 6) & ~kept
    rng = np.random.default_rng(seed)
    ct = np.where(body, 40.0, -1000.0) + liver * 60 - kept * 55 + body * rng.normal(0, 12, SHAPE)
    ledger = np.zeros(SHAPE, np.uint8)
    ledger[liver] = 1
    ledger[kept] = 2
    ledger[kept & (z == 7) & (y < 13)] = 3
    ledger[liver & (z == 3) & (np.abs(y - 18) < 2) & (np.abs(x - 18) < 2)] = 4
    ledger[dropped], ledger[rejected] = 5, 6
    ledger[tumor_edge & (x < 13)] = 7
    ledger[kept & (x > 16)] = 8
    ledger[kept & (z == 9) & (y == 15)] = 24
    tumor = np.isin(ledger, (2, 3, 7, 23))
    labels = np.where(tumor, 2, liver).astype(np.uint8)
    candidates = np.zeros(SHAPE, np.int16)
    candidates[kept], candidates[rejected], candidates[dropped] = 1, 2, 3
    p = np.clip(np.where(kept | rejected, 0.85, 0.02) + rng.normal(0, 0.05, SHAPE), 0, 1).astype(np.float32)
    return {
        "ct": ct.astype(np.int16),
        "labels": labels,
        "ledger": ledger,
        "tumor_probability": p,
        "liver_probability": np.where(liver, 0.95, 0.03).astype(np.float32),
        "candidates": candidates,
    }


def write_nifti(path: Path, canonical: np.ndarray, oblique: bool = False) -> None:
    """Store `[z y x]` LPS as RAS `[i j k]`, the axes of which run the other way."""
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = (-30.0, -55.0, 120.0)
    if oblique:
        a = np.radians(12)
        affine = (
            np.array([[1, 0, 0, 0], [0, np.cos(a), -np.sin(a), 0], [0, np.sin(a), np.cos(a), 0], [0, 0, 0, 1]]) @ affine
        )
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(canonical[:, ::-1, ::-1].transpose(2, 1, 0)), affine), path)


def result(folder: Path, case: str = "case 1", oblique: bool = False, with_ct: bool = True, status: str = "ok") -> Path:
    folder.mkdir(parents=True)
    a = arrays()
    if status == "no liver":
        a.update(
            {
                name: np.zeros_like(a[name])
                for name in ("labels", "ledger", "tumor_probability", "liver_probability", "candidates")
            }
        )
    for name in ("labels", "liver_probability", "tumor_probability", "ledger", "candidates"):
        write_nifti(folder / f"{name}.nii.gz", a[name], oblique)
    source = folder.parent / f"{case} ct.nii.gz"
    if with_ct:
        write_nifti(source, a["ct"], oblique)
    rows = [
        {
            "candidate": 1,
            "kept": True,
            "reason": "",
            "forest_score": 0.93,
            "volume_ml": 2.9,
            "long_axis_mm": 21.0,
            "z_mm": 35.0,
            "y_mm": 30.0,
            "x_mm": 19.5,
        },
        {
            "candidate": 2,
            "kept": False,
            "reason": "forest score <below> threshold & more",
            "forest_score": 0.11,
            "volume_ml": 0.5,
            "long_axis_mm": 12.0,
            "z_mm": 25.0,
            "y_mm": 50.0,
            "x_mm": 33.0,
        },
        {
            "candidate": 3,
            "kept": False,
            "reason": "too small",
            "forest_score": np.nan,
            "volume_ml": 0.02,
            "long_axis_mm": 3.0,
            "z_mm": 45.0,
            "y_mm": 24.0,
            "x_mm": 36.0,
        },
    ]
    lesions = pd.DataFrame(rows if status == "ok" else [], columns=list(rows[0]))
    for n, name in enumerate(NAMES):
        lesions[name] = np.arange(len(lesions)) + n / 7
    lesions.to_csv(folder / "lesions.csv", index=False)
    info = {
        "status": status,
        "case": case,
        "input": str(source),
        "version": "0.1",
        "versions": {"python": "3.11", "torch": "2"},
        "device": "cpu",
        "config": {"consistency": {"t": 0.5}},
        "timings": {"liver": 1.5, "tumor": 2.25, "radiomics": 0.5},
        "ledger_codes": {"0": "background", "1": "liver (cascade)", "2": "tumor (cascade, unchanged)"},
        "liver_ml": 80.1,
        "tumor_ml": 3.2,
        "lesions": 1,
        "warnings": ["spacing <suspect>"],
        "scan": {"phase": "portal venous", "liver_hu": 104.25, "aorta_hu": None, "new": 1},
    }
    (folder / "result.json").write_text(json.dumps(info))
    (folder / "preview.png").write_bytes(PREVIEW)
    return folder


def _stage(experiment: Path, name: str, metrics: dict, settings: dict, seconds: float = 3.0) -> Path:
    folder = experiment / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    stage = {
        "stage": name,
        "version": "0.1",
        "settings": settings,
        "inputs": {"cohort": "0" * 64},
        "seconds": seconds,
        "device": "cpu",
        "outputs": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.*")},
        "finished": "2025-01-01T00:00:00",
    }
    (folder / "stage.json").write_text(json.dumps(stage))
    return folder


def tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables of an experiment of 12 patients, 4 of them held out."""
    rng = np.random.default_rng(seed)
    who = [f"p{n:02d}" for n in range(12)]
    cohort = pd.DataFrame(
        {
            "case": [f"c{n:02d}" for n in range(12)],
            "patient": who,
            "split": ["train"] * 8 + ["test"] * 4,
            "fold": [0, 1] * 4 + [-1] * 4,
            "slices": 50,
            "spacing_z_mm": rng.choice([3.5, 4.0, 5.0], 12),
            "spacing_y_mm": 2.5,
            "spacing_x_mm": rng.uniform(2.3, 3, 12),
            "liver_ml": rng.uniform(900, 1800, 12),
            "tumors": rng.integers(0, 7, 12),
            "tumor_ml": rng.uniform(0, 90, 12),
        }
    )
    cohort["tumors_on_work_grid"] = cohort["tumors"]
    curves = pd.DataFrame(
        [
            {"fold": f, "step": s, "loss": np.exp(-s / 60) + 0.05 * f, "dice": 1 - np.exp(-s / 80), "seconds": s / 10}
            for f in (0, 1)
            for s in range(10, 200, 10)
        ]
    )
    truth = rng.random(80) < 0.4
    scores = pd.DataFrame(
        {
            "case": rng.choice(cohort["case"], 80),
            "candidate": range(80),
            "is_lesion": truth,
            "lesion": np.where(truth, np.arange(80) // 2 + 1, 0),
            "score": np.clip(np.where(truth, 0.7, 0.3) + rng.normal(0, 0.18, 80), 0, 1),
        }
    )
    scores["patient"], scores["split"] = scores["case"].str.replace("c", "p"), "train"
    scores["kept"] = scores["score"] >= 0.4
    group = ["texture"] * 8 + ["shape"] * 6 + ["wavelet"] * 6
    icc = rng.uniform(0.4, 0.98, 20)
    table = pd.DataFrame(
        {
            "name": NAMES,
            "group": group,
            **{kind: icc for kind in ("icc21", "icc11")},
            **{f"{kind}_low": icc - 0.12 for kind in ("icc21", "icc11")},
            **{f"{kind}_high": np.minimum(icc + 0.06, 1) for kind in ("icc21", "icc11")},
            "cluster": np.arange(20) // 4,
            "rank": range(20),
            "kept": np.arange(20) % 4 == 0,
            "step": ["kept", "unstable", "redundant", "less relevant"] * 5,
        }
    )
    stages, metrics = (
        ["cascade", "consistency", "forest", "boundary"],
        ["tumor_dice", "tumor_assd_mm", "tumor_surface_dice", "false_positives"],
    )
    cases = pd.DataFrame(
        [
            {
                "stage": s,
                "case": f"c{n:02d}",
                "patient": f"p{n:02d}",
                "tumor_dice": 0.6 + 0.03 * k + 0.02 * n,
                "tumor_assd_mm": 5 - k + 0.1 * n,
                "tumor_surface_dice": 0.5 + 0.04 * k + 0.01 * n,
                "false_positives": max(0, 4 - 2 * k + n % 3),
            }
            for k, s in enumerate(stages)
            for n in range(8, 12)
        ]
    )
    ablation = pd.DataFrame(
        [
            {"stage": s, "metric": m, "mean": v.mean(), "low": v.min(), "high": v.max(), "n": len(v)}
            for s in stages
            for m in metrics
            for v in [cases.loc[cases["stage"] == s, m]]
        ]
    )
    comparisons = pd.DataFrame(
        [
            {
                "from": a,
                "to": b,
                "metric": "tumor_dice",
                "difference": 0.03,
                "low": 0.01,
                "high": 0.05,
                "p": 0.04,
                "n": 4,
            }
            for a, b in zip(stages, stages[1:])
        ]
    )
    return {
        "cohort": cohort,
        "curves": curves,
        "scores": scores,
        "selection": table,
        "cases": cases,
        "ablation": ablation,
        "comparisons": comparisons,
    }


def experiment(folder: Path, results: bool = True) -> Path:
    folder.mkdir(parents=True)
    t = tables()
    (folder / "experiment.json").write_text(
        json.dumps(
            {
                "preset": "demo",
                "settings": {"liver": {"steps": 100}, "selection": {"icc_bound": 0.75}, "forest": {"trees": 200}},
                "manifest": "cohort/manifest.csv",
                "manifest_sha256": "ab" * 32,
                "version": "0.1",
                "seed": 1,
                "device": "cpu",
            }
        )
    )
    for name in ("cohort", "liver", "tumor", "forest", "boundary", "selection", "metrics"):
        (folder / name).mkdir()
    t["cohort"].to_csv(folder / "cohort" / "cases.csv", index=False)
    _stage(folder, "cohort", {"cases": 12, "patients": 12}, {"folds": 2})
    for name in ("liver", "tumor"):
        t["curves"].to_csv(folder / name / "curves.csv", index=False)
        for fold in (0, 1):
            (folder / name / f"fold{fold}.safetensors").write_bytes(b"weights" * 9)
            (folder / name / f"fold{fold}.json").write_text(json.dumps({"fold": fold, "dice": 0.9 + fold / 100}))
        _stage(
            folder,
            name,
            {"dice": 0.95, "fold0_dice": 0.94, "nothing": float("nan")},
            {"steps": 100, "net": {"width": 8}},
        )
    t["selection"].to_csv(folder / "selection" / "table.csv", index=False)
    (folder / "selection" / "selected.json").write_text(json.dumps(NAMES))
    _stage(folder, "selection", {"kept": 20, "nogueira": 0.7}, {"icc_bound": 0.75})
    t["scores"].to_csv(folder / "forest" / "scores.csv", index=False)
    (folder / "forest" / "forest.json").write_text(
        json.dumps({"threshold": {"threshold": 0.4, "recall": 0.98}, "names": NAMES})
    )
    pd.DataFrame({"name": NAMES[::4], "drop": 0.1, "low": 0.0, "high": 0.2}).to_csv(
        folder / "forest" / "importance.csv", index=False
    )
    pd.DataFrame({"filter": ["forest", "size alone"], "removed": [0.61, 0.402], "n": [53, 53]}).to_csv(
        folder / "forest" / "baselines.csv", index=False
    )
    _stage(folder, "forest", {"recall": 0.98, "false_positives_removed": 0.6}, {"trees": 200})
    t["curves"].drop(columns="fold").head(12).to_csv(folder / "boundary" / "curves.csv", index=False)
    _stage(folder, "boundary", {"assd_gain_mm": 0.4}, {"band_mm": 4.0})
    for name in ("ablation", "cases", "comparisons"):
        t[name].to_csv(folder / "metrics" / f"{name}.csv", index=False)
    _stage(folder, "metrics", {"tumor_dice": 0.71}, {})
    (folder / "figures").mkdir()
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "02_liver.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    if results:
        result(folder / "results" / "c08", "c08")
    return folder
