"""`make demo`: the whole method on the phantom cohort, notebook by notebook, tracked, with a report at the end."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from workbench.data import cohort
from workbench.data.files import write_atomic
from workbench.experiment import PRESETS, Experiment
from workbench.lab import report
from workbench.run import batch, tracking

CASES, HELD_OUT, SEED = 180, 20, 1  # patients in all, of them never trained on, first seed


def run(folder: Path, device: str = "auto") -> int:
    """Make or go on with a demo experiment; exit status 0 when every notebook ran."""
    began = time.monotonic()
    tell = partial(print, file=sys.stderr, flush=True)
    outcomes = batch.run_all(folder, {"preset": "demo", "device": device}, stop=True, progress=tell)
    changed = any(outcome.status != "unchanged" for outcome in outcomes)
    if not outcomes[-1].ok:
        print(f"error: {outcomes[-1].error}\nThe notebook with the error: {outcomes[-1].output}", file=sys.stderr)
        return 1
    print(tracking.sync(folder))
    page = folder / "report.html"
    if changed or not page.is_file():
        write_atomic(page, report.experiment_report(folder).encode())
    print(ablation(folder))
    print(f"{time.monotonic() - began:.0f} s\nreport: {page}")
    return 0


def begin(folder: str | Path, preset: str = "", manifest: str | Path = "", device: str = "auto") -> Experiment:
    """Open an experiment, or begin it with a preset: on the cohort of a manifest or, without one, on the demo's phantoms.

    Refused where there is an experiment with other settings or another cohort.
    """
    folder = Path(folder)
    if not preset:
        return Experiment(folder, device)
    batch.may_begin(folder, preset, manifest)
    if manifest:
        manifest = batch.folder().parent / manifest
    elif (folder / "experiment.json").is_file():
        manifest = Experiment(folder, device).manifest
    else:
        manifest = cohort.write_phantoms(folder / "phantoms", CASES, SEED, "demo", HELD_OUT, progress=_show)
    return Experiment.create(folder, manifest, PRESETS[preset](), device)


OTHER_SEED, OTHERS, OTHERS_HELD_OUT = (
    50_001,
    16,
    8,
)  # another scanner's phantoms: first seed, how many, of them held out


def another_scanner(folder: Path) -> Path:
    """Manifest of phantoms of another scanner than the demo's (preset `other`), to adapt to. Their tumors are left out of training; half of them are held
    out with all tumors labelled."""
    import pandas as pd

    from workbench.data.files import write_table

    manifest = cohort.write_phantoms(folder, OTHERS, OTHER_SEED, "other", OTHERS_HELD_OUT, progress=_show)
    table = pd.read_csv(manifest, dtype=str)
    table["tumor_labels"] = table.split.map({"train": "exclude", "test": "complete"})
    write_table(folder / "adapt.csv", table)
    return folder / "adapt.csv"


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
