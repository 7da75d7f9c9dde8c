"""Radiomics: the torch engine against PyRadiomics, the same 707 descriptors of the same lesions, in the same run.

    python benchmarks/radiomics.py [--quick] [--json FILE] [--device cpu|cuda] [--threads 2]

The work: lesions of 10 to 40 mm in noise, 0.75 x 0.75 x 1.5 mm. The peer runs lesion by lesion on crops (its fastest
way) in one process; the figure for two processes is that time halved, which favours it. Besides, ten perturbed copies
of each lesion are described; the peer's time for those is its time for one copy times ten, without the perturbing.
Both sides are timed in CPU seconds as well: on a machine that others use, those compare better. --quick takes 8
lesions of 10 to 20 mm. JSON: the work, the device, each side's seconds, the ratio, the largest difference.
Exit status 1 when the values differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

# this folder holds a radiomics.py, this very file, which would be taken for PyRadiomics
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from workbench import radiomics  # noqa: E402
from workbench.radiomics import CATALOGUE, perturb  # noqa: E402

SPACING_MM = (1.5, 0.75, 0.75)
LARGEST_DIFFERENCE = 1e-6


def lesions(count: int, diameters_mm: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A row of spheres, one a slab of the volume, darker than the noise around them."""
    reach = [int(diameters_mm[1] / 2 / s) + 8 for s in SPACING_MM]
    shape = (2 * reach[0] + 1, 2 * reach[1] + 1, (2 * reach[2] + 1) * count)
    draw = torch.Generator().manual_seed(0)
    image = 100 + 20 * torch.randn(shape, generator=draw)
    labels = torch.zeros(shape, dtype=torch.int64)
    axes = [(torch.arange(2 * r + 1) - r) * s for r, s in zip(reach, SPACING_MM)]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    for k, diameter in enumerate(np.linspace(*diameters_mm, count)):
        part = slice(k * (2 * reach[2] + 1), (k + 1) * (2 * reach[2] + 1))
        labels[:, :, part][distance <= diameter / 2] = k + 1
    return image - 30 * (labels > 0), labels


def timed(work: Callable, device: str) -> tuple[float, float, object]:
    """Wall seconds, CPU seconds and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(quick: bool, device: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    count, diameters_mm = (8, (10.0, 20.0)) if quick else (50, (10.0, 40.0))
    image, labels = lesions(count, diameters_mm)
    there = image.to(device), labels.to(device)
    radiomics.describe(image[:, :, :80].to(device), labels[:, :, :80].to(device), SPACING_MM)  # warm-up
    wall, cpu, ours = timed(lambda: radiomics.describe(*there, SPACING_MM), device)
    peer = lambda: radiomics.describe(image, labels, SPACING_MM, engine="pyradiomics")
    peer_wall, peer_cpu, theirs = timed(peer, "cpu")
    many_wall, many_cpu, _ = timed(lambda: perturb.describe_perturbed(*there, SPACING_MM), device)
    names = list(CATALOGUE.dropna(subset=["pyradiomics"])["name"])
    a, b = ours[names].to_numpy(float), theirs[names].to_numpy(float)
    copies = len(perturb.PERTURBATIONS)
    return {
        "benchmark": "radiomics",
        "work": f"{count} lesions of {diameters_mm[0]:g} to {diameters_mm[1]:g} mm, {int((labels > 0).sum())} voxels",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "seconds": {"workbench": wall, "pyradiomics": peer_wall, "pyradiomics, two processes": peer_wall / 2},
        "cpu_seconds": {"workbench": cpu, "pyradiomics": peer_cpu},
        "ratio": peer_wall / wall,
        "cpu_ratio": peer_cpu / cpu,
        "perturbed": {
            "copies": copies,
            "seconds": many_wall,
            "cpu_seconds": many_cpu,
            "ratio": peer_wall * copies / many_wall,
            "cpu_ratio": peer_cpu * copies / many_cpu,
        },
        "largest_relative_difference": float((np.abs(a - b) / np.maximum(np.abs(b), 1e-8)).max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    figures = measure(chosen.quick, chosen.device, chosen.threads)
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.json:
        beside = chosen.json.with_suffix(".part")
        beside.write_text(text + "\n")
        os.replace(beside, chosen.json)
    return int(not figures["largest_relative_difference"] <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    raise SystemExit(main())
