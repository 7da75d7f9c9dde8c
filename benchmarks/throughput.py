"""A cohort segmented with reading and writing beside the computing, against one thing after the other, in the same run.

    python benchmarks/throughput.py [MODELS [INPUT...]] [--quick] [--json FILE] [--device cpu|cuda] [--threads 2] [-o FOLDER]

Both sides read each CT, segment it and keep its whole result folder as `workbench segment` does; the peer waits for each step before the next. A first
case, which loads kernels, does not count. Idle: the share of the wall time in which no CT is being segmented; on a GPU also, from NVML, the share of
looks, twenty a second, that find no kernel running since the last. JSON: the work, the device, seconds a case and idle shares of each side.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import threading
import time
from pathlib import Path

import torch

from workbench import cohort, readers, results, segmentation
from workbench.experiment import Experiment
from workbench.threads import overlapped
from workbench.volume import Refused


def run(inputs: list[Path], models: segmentation.Models, out: Path, beside: bool) -> dict[str, float]:
    """Seconds a case and idle shares of one side."""
    shutil.rmtree(out, ignore_errors=True)
    spent, looks, ended = [0.0], [], threading.Event()

    def work(path: Path, volume):
        began = time.perf_counter()
        result = segmentation.segment(volume, models)
        spent[0] += time.perf_counter() - began
        return result

    def keep(path: Path, result: segmentation.Result) -> None:
        results.keep(result, out / path.parent.name / result.volume.name, path)

    def look() -> None:
        while not ended.wait(0.05):
            looks.append(torch.cuda.utilization())

    def fail(error: Refused) -> None:
        raise error

    watcher = threading.Thread(target=look)
    if models.device.type == "cuda":
        watcher.start()
    began = time.perf_counter()
    if beside:
        overlapped(inputs, readers.read, work, keep, Refused, fail, 1 if models.device.type == "cpu" else 3)
    else:
        for path in inputs:
            keep(path, work(path, readers.read(path)))
    wall = time.perf_counter() - began
    ended.set()
    if watcher.is_alive():
        watcher.join()
    found = {
        "s_per_case": wall / len(inputs),
        "idle": 1 - spent[0] / wall,
        "segmenting_s_per_case": spent[0] / len(inputs),
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
    held_out = [c.ct for c in cohort.read_manifest(Experiment(asked.models, "cpu").manifest) if c.split == "test"]
    asked.inputs = (asked.inputs or held_out)[: 3 if asked.quick else None]
    models = segmentation.Models.load(asked.models, asked.device)
    results.keep(segmentation.segment(readers.read(asked.inputs[0]), models), asked.out / "first")
    sides = {
        name: run(asked.inputs, models, asked.out / name.replace(" ", "-"), beside)
        for name, beside in (("one after the other", False), ("beside", True))
    }
    out = {
        "benchmark": "throughput",
        "work": f"{len(asked.inputs)} CTs",
        "device": torch.cuda.get_device_name()
        if asked.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": asked.threads,
        "sides": sides,
        "ratio": sides["one after the other"]["s_per_case"] / sides["beside"]["s_per_case"],
    }
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n")
    return int(out["ratio"] < 1)


if __name__ == "__main__":
    raise SystemExit(main())
