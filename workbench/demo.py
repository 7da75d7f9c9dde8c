"""`make demo`: the whole method on the phantom cohort, notebook by notebook, tracked, with a report at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from workbench import batch, cohort, experiment, report, tracking
from workbench.files import write_atomic
from workbench.volume import Refused

CASES, HELD_OUT, SEED = 180, 20, 1  # patients in all, of them never trained on, first seed
PHANTOMS = {"paper": "full"}  # the phantoms' preset where it has another name


def begin(folder: str | Path, preset: str = "", manifest: str = "", device: str = "auto") -> experiment.Experiment:
    """Open the experiment in `folder`, or make it: of `preset` (demo), on the cohort of `manifest` or on phantoms made for it.

    Refused when one is there that was made with another preset or from another manifest.
    """
    folder = Path(folder)
    held = folder / "experiment.json"
    if held.is_file():
        made = experiment.Experiment(folder, device)
        if preset and preset != made.settings.preset:
            raise Refused(folder, f"an experiment of preset {made.settings.preset}", f"one of {preset}",
                          "Leave the preset out, or choose another folder with -o.")  # fmt: skip
        if manifest and Path(manifest).resolve() != made.manifest:
            raise Refused(folder, f"an experiment on {made.manifest}", f"one on {manifest}",
                          "Leave the manifest out, or choose another folder with -o.")  # fmt: skip
        if made.manifest.is_file():  # else a killed run left no phantoms yet
            return made
    preset = preset or "demo"
    if preset not in experiment.PRESETS:
        raise Refused("preset", preset, " or ".join(experiment.PRESETS))
    phantoms = PHANTOMS.get(preset, preset)
    cases = manifest or cohort.write_phantoms(folder / "phantoms", CASES, SEED, phantoms, HELD_OUT, progress=_show)
    return experiment.Experiment.create(folder, cases, experiment.PRESETS[preset](), device)


def run(folder: Path, device: str = "auto") -> int:
    """Make or go on with a demo experiment; exit status 0 when every notebook ran."""
    began = time.monotonic()
    begin(folder, "demo", device=device)
    outcomes = batch.run_all(folder, {"device": device}, stop=True)
    if not (last := outcomes[-1]).ok:
        print(f"error: {last.error}\nThe notebook with the error: {last.output}", file=sys.stderr)
        return 1
    print(tracking.sync(folder))
    page = folder / "report.html"
    if any(o.status != "unchanged" for o in outcomes) or not page.is_file():
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
