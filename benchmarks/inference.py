"""The cascade on one large CT: seconds and peak memory of both nets, all folds, at full size.

    python benchmarks/inference.py [--quick] [--json FILE] [--device cpu|cuda] [--threads 2] [--preset paper]
                                   [--slices 600] [--folds 5]

A CT of 512 x 512 pixels of 0.8 mm and slices of 1 mm in noise, with a liver of 220 x 170 x 200 mm: the liver net reads all of
it, the tumor net the liver's box, as `workbench segment` does it. The weights are drawn, not trained: neither time nor
memory depends on them. The work runs in a process of its own, whose peak is read at the end. --quick takes 40 slices and
one fold. JSON: the work, the device, seconds of each net, peak memory in GiB. Exit status 1 above 10 GiB of memory, or 8
of the GPU's.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from workbench import experiment
from workbench.nets.network import SlabNet
from workbench.stages import liver, tumor

SPACING_MM = (1.0, 0.8, 0.8)
LIVER_MM = (200.0, 170.0, 220.0)
MOST_GIB = {"cpu": 10.0, "cuda": 8.0}


def measure(preset: str, slices: int, folds: int, device: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    settings = experiment.PRESETS[preset]()
    torch.manual_seed(0)
    hu = torch.empty((slices, 512, 512), dtype=torch.int16).random_(-150, 250)

    def nets(stage):
        made = [SlabNet(stage.cascade.network) for _ in range(folds)]
        return [net.to(device, memory_format=torch.channels_last).eval() for net in made]

    begin = time.perf_counter()
    p = liver.probability(nets(settings.liver), hu, SPACING_MM, settings.liver, device)
    between = time.perf_counter()
    z, y, x = ((torch.arange(n) - n / 2) * s for n, s in zip(hu.shape, SPACING_MM))
    a, b, c = (d / 2 for d in LIVER_MM)
    found = ((z / a) ** 2)[:, None, None] + ((y / b) ** 2)[:, None] + (x / c) ** 2 < 1
    at = tumor.box(found, SPACING_MM, settings.tumor)
    p = torch.where(found, 0.9, p * 0.1)
    again = time.perf_counter()
    tumor.probability(nets(settings.tumor), hu, p, at, settings.tumor, device)
    end = time.perf_counter()
    return {
        "benchmark": "inference",
        "work": f"{slices} x 512 x 512, box of the liver {' x '.join(str(s.stop - s.start) for s in at)}, {folds} folds",
        "preset": preset,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": threads,
        "seconds": {"liver": between - begin, "tumor": end - again},
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu", choices=MOST_GIB)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="paper", choices=experiment.PRESETS)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.slices, args.folds = 40, 1
    if args.inside:
        print(json.dumps(measure(args.preset, args.slices, args.folds, args.device, args.threads)))
        return 0
    words = {k: v for k, v in vars(args).items() if k in ("preset", "slices", "folds", "device", "threads")}
    command = [sys.executable, __file__, "--inside", *(str(w) for k, v in words.items() for w in (f"--{k}", v))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    out = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(out, indent=1))
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n")
    return int((out["peak_gpu_gib"] or out["peak_gib"]) > MOST_GIB[args.device])


if __name__ == "__main__":
    sys.exit(main())
