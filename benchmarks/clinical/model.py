"""The model that comes with the workbench: `make model`. Trains the preset `clinical` on phantoms and on the CTs of scans.csv, and packs it.

    python benchmarks/clinical/model.py [--experiment experiments/clinical] [--phantoms 120] [--out workbench/experiment/shipped/clinical]

The CTs are to lie in data/licensed (data/README.md says where they come from); their liver masks are here. Every step resumes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pandas as pd

from workbench import experiment
from workbench.data import cohort
from workbench.data.files import write_table
from workbench.experiment import Experiment, models, pipeline
from workbench.experiment.table import before
from workbench.run import adapt

HERE = Path(__file__).resolve().parent
PHANTOM_SEED = 50_000


def manifest(folder: Path, phantoms: int) -> Path:
    """The licensed scans and the phantoms, all to learn from."""
    made = cohort.write_phantoms(folder / "phantoms", phantoms, PHANTOM_SEED, "fine", 0)
    rows = []
    for path, known in ((HERE / "scans.csv", None), (made, "complete")):
        table = pd.read_csv(path, dtype=str)
        table["tumor_labels"] = table.tumor_labels if known is None else known
        for column in ("ct", "labels"):
            table[column] = [os.path.relpath(path.parent / name, folder) for name in table[column]]
        rows.append(table)
    out = folder / "manifest.csv"
    write_table(out, pd.concat(rows)[["case", "patient", "ct", "labels", "split", "tumor_labels"]])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", type=Path, default=Path("experiments/clinical"))
    parser.add_argument("--phantoms", type=int, default=120)
    parser.add_argument("--out", type=Path, default=models.HOME / "clinical")
    args = parser.parse_args()
    folder = args.experiment
    folder.mkdir(parents=True, exist_ok=True)
    table = manifest(folder, args.phantoms)
    about = json.loads((HERE / "about.json").read_text())
    models.described(about, HERE / "about.json")
    made = Experiment.create(folder, table, experiment.clinical(), "auto")
    for stage in (*before("candidates"), "candidates"):
        pipeline.run(made, stage)
    if names := json.loads((HERE / "exclude.json").read_text()):
        print(*adapt.exclude(made, names), sep="\n")
    adapt.run(made, retrain="candidates" if names else None)
    print(adapt.words(made))
    print(models.pack(folder, args.out, about))


if __name__ == "__main__":
    main()
