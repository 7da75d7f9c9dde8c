"""One case decided anew from its stored maps: seconds of a changed threshold, of a changed forest score, of a changed band.

    python benchmarks/what_if.py [EXPERIMENT] [--quick] [--json FILE] [--device cpu|cuda] [--threads 2] [--cases 20] [--count]

The work is that of the notebook's sliders (`workbench.experiment.whatif`) on held-out cases of a trained experiment: consistency, candidates, descriptors of all
candidates where they changed, forest, contour, measures after each stage, ledger. The peer is the same decision by `workbench segment`'s own path with the
nets run again. A first call, which loads kernels, does not count. JSON: the work, the device, median and largest seconds of each kind of change,
the ratio to the peer. Exit status 1 when a median is above the aim: 1 s on a CPU, .1 s on a GPU.

`--count` measures no time: on a pretended GPU (`tests/pretend.py`), how many operations of a changed threshold begin there, where each takes some
microseconds to begin whatever its size, and how often the processor then waits for one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.experiment import Experiment, segmentation
from workbench.experiment.whatif import WhatIf
from workbench.volume import Volume, canonical_affine

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import pretend

AIM_S = {"cpu": 1.0, "cuda": 0.1}


def timed(work: Callable, *words: object) -> float:
    began = time.perf_counter()
    work(*words)
    return time.perf_counter() - began


def measure(folder: Path, device: str, count: int) -> dict:
    made = Experiment(folder, device)
    models = segmentation.Models.load(folder, device)
    cases = made.cases("test").case.to_list()[:count]
    seconds: dict[str, list[float]] = {"threshold": [], "forest score": [], "band": [], "segment": []}
    candidates = []
    for n, case in enumerate(cases):
        ask = WhatIf(made, case)
        start = ask.start
        if n == 0:
            ask(start)
            ask(replace(start, threshold=start.threshold - 0.02))
        at = replace(start, threshold=start.threshold * 0.9)
        seconds["threshold"].append(timed(ask, at))
        seconds["forest score"].append(timed(ask, replace(at, score=at.score * 0.8)))
        seconds["band"].append(timed(ask, replace(at, band_mm=at.band_mm * 0.8)))
        candidates.append(len(ask(at).lesions))
        volume = Volume(ask.maps.hu, ask.maps.spacing_mm, canonical_affine(ask.maps.spacing_mm), case)
        if n == 0:
            segmentation.segment(volume, models)
        seconds["segment"].append(timed(segmentation.segment, volume, models))
    return {
        "benchmark": "what_if",
        "work": f"{len(cases)} cases of {' x '.join(map(str, ask.maps.hu.shape))}, {min(candidates)} to {max(candidates)} candidates",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "median_s": {kind: statistics.median(s) for kind, s in seconds.items()},
        "largest_s": {kind: max(s) for kind, s in seconds.items()},
        "ratio": statistics.median(seconds["segment"]) / statistics.median(seconds["threshold"]),
    }


class Count(TorchDispatchMode):
    """How many operations begin a kernel on a pretended GPU: views do not."""

    VIEWS = frozenset(
        "view detach alias slice select expand unsqueeze squeeze t transpose permute unbind _unsafe_view split split_with_sizes "
        "narrow as_strided reshape unfold lift_fresh _local_scalar_dense empty new_empty empty_like".split()
    )

    def __init__(self, gpu: pretend.Pretend) -> None:
        super().__init__()
        self.gpu, self.begun = gpu, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.begun += self.gpu.busy and operation.__name__.split(".")[0] not in self.VIEWS
        return operation(*args, **(kwargs or {}))


def operations(folder: Path, cases: int) -> dict:
    """Operations of a changed threshold, and waits for one."""
    rows = []
    with pretend.gpu() as gpu:
        made = Experiment(folder, "cuda")
        for case in made.cases("test").case.to_list()[:cases]:
            ask = WhatIf(made, case)
            ask(ask.start)
            gpu.waits.clear()
            with Count(gpu) as counted:
                outcome = ask(replace(ask.start, threshold=ask.start.threshold * 0.9))
            rows.append((counted.begun, gpu.waits.total(), len(outcome.lesions)))
    begun, waits, candidates = zip(*rows)
    return {
        "work": f"{len(rows)} cases, {min(candidates)} to {max(candidates)} candidates",
        "operations": {"median": statistics.median(begun), "most": max(begun)},
        "waits": {"median": statistics.median(waits), "most": max(waits)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, nargs="?", default=Path("experiments/demo"))
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cpu", choices=AIM_S)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--count", action="store_true", help="count operations instead of measuring time")
    asked = parser.parse_args()
    if not (asked.experiment / "experiment.json").is_file():
        print(f"no trained experiment at {asked.experiment}: nothing is measured (`workbench demo` makes one)")
        return 0
    torch.set_num_threads(asked.threads)
    cases = 3 if asked.quick else asked.cases
    out = operations(asked.experiment, cases) if asked.count else measure(asked.experiment, asked.device, cases)
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n")
    if asked.count:
        return 0
    slow = [kind for kind in ("threshold", "forest score", "band") if out["median_s"][kind] > AIM_S[asked.device]]
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
