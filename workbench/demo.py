"""`make demo`: the whole method on the phantom cohort, notebook by notebook, tracked, with a report at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from workbench import batch, cohort, experiment, report, tracking
from workbench.files import write_atomic

CASES, HELD_OUT, SEED = 180, 20, 1  # patients in all, of them never trained on, first seed


def run(folder: Path, device: str = "auto") -> int:
    """Make or go on with a demo experiment; exit status 0 when every notebook ran."""
    began = time.monotonic()
    manifest = cohort.write_phantoms(folder / "phantoms", CASES, SEED, "demo", HELD_OUT, progress=_show)
    experiment.Experiment.create(folder, manifest, experiment.demo(), device)
    numbered = [p for p in batch.notebooks() if p.stem[:2].isdigit()]
    ordered = [p for p in numbered if not p.stem.startswith("00")] + [p for p in numbered if p.stem.startswith("00")]
    changed = False
    for notebook in ordered:
        outcome = batch.run(notebook, folder, {"device": device} if "device" in batch.parameters(notebook) else {})
        changed |= outcome.status != "unchanged"
        if not outcome.ok:
            print(f"error: {outcome.error}\nThe notebook with the error: {outcome.output}", file=sys.stderr)
            return 1
    print(tracking.sync(folder))
    page = folder / "report.html"
    if changed or not page.is_file():
        write_atomic(page, report.experiment_report(folder).encode())
    print(ablation(folder))
    print(f"{time.monotonic() - began:.0f} s\nreport: {page}")
    return 0


def ablation(folder: Path) -> str:
    """The table of the ablation: mean with its interval over the held-out patients."""
    import pandas as pd

    table = pd.read_csv(folder / "metrics" / "ablation.csv")
    n = pd.read_csv(folder / "metrics" / "cases.csv").patient.nunique()
    table["value"] = [
        f"{r.mean_:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in table.rename(columns={"mean": "mean_"}).itertuples()
    ]
    wide = table.pivot(index="stage", columns="metric", values="value").reindex(table.stage.unique())
    shown = [c for c in report.ABLATION_METRICS if c in wide]
    return f"\nAblation on {n} held-out patients, mean [95 % interval]\n{wide[shown].to_string()}\n"


def _show(name: str, done: int, total: int) -> None:
    if done == total or done % 5 == 0:
        print(f"  phantom cohort  {done}/{total}", file=sys.stderr, flush=True)
