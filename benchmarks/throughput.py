"""A cohort segmented by processes that share the cases, against one case after the other, in the same run.

    python benchmarks/throughput.py [MODELS [INPUT...]] [--quick] [--json FILE] [--device cpu|cuda] [--threads 2] [-o FOLDER]

Both sides are `workbench segment` with --workers; the peer is --workers 1, all of whose steps wait for one another. The start of each command counts.
Idle: on a CPU the share of the cores' time in which none of the command's processes ran; on a GPU also, from NVML, the share of looks, twenty a
second, that find no kernel running since the last. JSON: the work, the device, seconds a case and idle shares of each side, the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from workbench.data import cohort
from workbench.data.threads import at_once
from workbench.experiment import Experiment


def run(inputs: list[Path], models: Path, out: Path, workers: int, device: str) -> dict[str, float]:
    """Seconds a case and idle shares of one side."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["segment", *inputs, "--models", models, "-o", out, "--device", device, "--workers", workers]
    before, looks, began = resource.getrusage(resource.RUSAGE_CHILDREN), [], time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "workbench", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if device == "cuda":
                looks.append(torch.cuda.utilization())
    wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"`workbench segment` ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cores = len(os.sched_getaffinity(0))
    found = {
        "s_per_case": wall / len(inputs),
        "busy_s_per_case": busy / len(inputs),
        "cores_idle": 1 - busy / wall / cores,
    }
    return found | ({"gpu_idle": sum(n == 0 for n in looks) / len(looks)} if looks else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="?", default=Path("experiments/demo"))
    parser.add_argument("inputs", type=Path, nargs="*", help="by default the experiment's held-out CTs")
    parser.add_argument("--quick", action="store_true", help="three CTs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", dest="out", type=Path, default=Path("experiments/throughput"))
    asked = parser.parse_args()
    if not (asked.models / "experiment.json").is_file():
        print(f"no trained experiment at {asked.models}: nothing is measured (`workbench demo` makes one)")
        return 0
    torch.set_num_threads(asked.threads)
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    held_out = [c.ct for c in cohort.read_manifest(Experiment(asked.models, "cpu").manifest) if c.split == "test"]
    asked.inputs = (asked.inputs or held_out)[: 3 if asked.quick else None]
    workers = at_once(torch.device(asked.device))
    sides = {
        name: run(asked.inputs, asked.models, asked.out / name.replace(" ", "-"), many, asked.device)
        for name, many in (("one after the other", 1), ("shared", workers))
    }
    out = {
        "benchmark": "throughput",
        "work": f"{len(asked.inputs)} CTs",
        "device": torch.cuda.get_device_name()
        if asked.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": asked.threads,
        "workers": workers,
        "sides": sides,
        "ratio": sides["one after the other"]["s_per_case"] / sides["shared"]["s_per_case"],
    }
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n")
    return int(out["ratio"] < 1)


if __name__ == "__main__":
    raise SystemExit(main())
