"""What the boundary stage does to lesions whose edge is blurred, on fresh phantoms that no stage and no choice has seen.

    python benchmarks/blurred_edges.py [--quick] [--json FILE] [--models EXPERIMENT] [--cases N]

The peer is the mask before the stage, on the same lesions. `CUT_MM` and `MORE_MM` were fixed on the demo's held-out patients: the median
blur of their edges, and from where on its picture seemed to show a gain; so these phantoms (seeds from `SEED`) are the test of both.
JSON: every lesion. `workbench evidence --edges FILE` takes it in.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

from workbench import evidence, metrics, phantom, review, segmentation
from workbench.experiment import write_json

SEED = 50_001  # far from those of the demo (1 to 180) and of the other benchmarks
CUT_MM, MORE_MM = 1.05, 1.5


def measure(models: segmentation.Models, seeds: range) -> pd.DataFrame:
    """The lesions of fresh phantoms, each a patient; with `review.lesion_edges`' columns."""
    tables = []
    for seed in seeds:
        made = phantom.generate(seed, "demo")
        ledger = segmentation.segment(made.ct, models).ledger
        tables.append(review.lesion_edges(made.ct, made.labels, ledger).assign(patient=f"phantom-{seed}"))
        print(f"  {len(tables)}/{len(seeds)}", flush=True)
    return pd.concat(tables, ignore_index=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three phantoms")
    parser.add_argument("--json", type=Path, help="write the lesions here")
    parser.add_argument("--models", type=Path, default=Path("experiments/demo"), help="a trained experiment")
    parser.add_argument("--cases", type=int, default=60, help="how many phantoms")
    asked = parser.parse_args()
    if not (asked.models / "boundary" / "stage.json").is_file():
        print(f"no trained experiment at {asked.models}: nothing is measured")
        return 0
    began, count = time.monotonic(), 3 if asked.quick else asked.cases
    table = measure(segmentation.Models.load(asked.models, "cpu"), range(SEED, SEED + count))
    cuts = {"cut_mm": CUT_MM, "more_mm": MORE_MM}
    print(evidence.edges_table(table, CUT_MM, MORE_MM).to_string(index=False))
    print(f"{count} phantoms, {time.monotonic() - began:.0f} s")
    if asked.json:
        write_json(asked.json, metrics.json_safe(cuts | {"lesions": table.to_dict("records")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
