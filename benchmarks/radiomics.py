"""Radiomics: the torch engine against PyRadiomics and fastrad, the same lesions, in the same run.

    python benchmarks/radiomics.py [--quick] [--json FILE] [--plot FILE.png] [--device cpu|cuda] [--threads 2]

The work: 50 lesions of 10 to 40 mm in noise, 0.75 x 0.75 x 1.5 mm, 707 standard descriptors. PyRadiomics runs lesion by lesion on crops, its fastest way, in as many worker processes
as the engine has threads; the workers are started and have imported it before the clock runs. Then one chain of
perturbations 30 times on 20 of the lesions: PyRadiomics describes the same 600 perturbed regions. fastrad, where
installed, is timed on what it covers, the original image's 107 descriptors, and so is the engine beside it. At last 500 lesions in one case: seconds
and memory. --plot also measures 1 to 500 lesions and 5 to 80 mm and draws both. --quick takes 8 lesions of 10 to 20 mm
and leaves the rest out. JSON: the work, the device, each side's seconds, the ratios, the largest difference. Exit
status 1 when the values differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# this folder holds a radiomics.py, this very file, which would be taken for PyRadiomics
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from workbench.stages import radiomics  # noqa: E402
from workbench.stages.radiomics import CATALOGUE, perturb, ragged, reference  # noqa: E402

SPACING_MM = (1.5, 0.75, 0.75)
LARGEST_DIFFERENCE = 1e-6
STANDARD = radiomics.named("intensity", "texture", "shape", "wavelet")  # the 707 that PyRadiomics has too
ORIGINAL = radiomics.named("intensity", "texture", "shape")
CHAIN = perturb.Perturbation("chain", "random", noise=1.0, shift=(0.25, 0.25, 0.25), turn_deg=3.0, contour_mm=0.4)


def lesions(diameters_mm: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Spheres side by side in rows of 25, darker than the noise around them."""
    reach = [int(max(diameters_mm) / 2 / s) + 8 for s in SPACING_MM]
    cell = [2 * r + 1 for r in reach]
    columns = min(25, len(diameters_mm))
    shape = (cell[0], cell[1] * -(-len(diameters_mm) // columns), cell[2] * columns)
    image = 100 + 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(shape, dtype=torch.int32)
    axes = [(torch.arange(n) - r) * s for n, r, s in zip(cell, reach, SPACING_MM)]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    for k, diameter in enumerate(diameters_mm):
        y, x = cell[1] * (k // columns), cell[2] * (k % columns)
        labels[:, y : y + cell[1], x : x + cell[2]][distance <= diameter / 2] = k + 1
    return image - 30 * (labels > 0), labels


def timed(work: Callable, device: str = "cpu") -> tuple[float, object]:
    """Wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


# ---------------------------------------------------------------------------------------------- PyRadiomics


def _begin() -> None:
    torch.set_num_threads(1)
    one = np.zeros((9, 9, 9), np.int64)
    one[3:6, 3:6, 3:6] = 1
    reference.describe(np.random.default_rng(0).normal(size=one.shape) * 50, one, (1.0, 1.0, 1.0), [1])


def _peer(job: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return reference.describe(*job, SPACING_MM, [1])[0]


def pyradiomics(jobs: list[tuple[np.ndarray, np.ndarray]], workers: int) -> tuple[float, np.ndarray]:
    """Seconds and values of (image, mask) crops in worker processes, the largest first so that none is left with it."""
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i][1].sum())
    with ProcessPoolExecutor(workers, initializer=_begin) as pool:
        list(pool.map(_peer, [jobs[order[-1]]] * workers * 2))  # all workers are there
        seconds, values = timed(lambda: list(pool.map(_peer, [jobs[i] for i in order])))
    return seconds, np.concatenate(values)[np.argsort(order)]


def crops(image: torch.Tensor, labels: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    hu, mask = image.numpy(), labels.numpy()
    margin, found = reference.MARGIN, ragged.find(labels)
    out = []
    for label, low, high in zip(found.labels.tolist(), found.low.tolist(), found.high.tolist()):
        # even starts and sizes: cropping changes nothing in the periodic wavelet
        box = tuple(slice(max(0, a - margin) // 2 * 2, b + margin + 1) for a, b in zip(low, high))
        out.append((hu[box], (mask[box] == label).astype(np.int64)))
    return out


# ---------------------------------------------------------------------------------------------- fastrad


def fastrad(jobs: list[tuple[np.ndarray, np.ndarray]], device: str) -> float | None:
    """Seconds of fastrad's descriptors of the original image, one crop after the other; None where it is not installed."""
    if importlib.util.find_spec("fastrad") is None:
        return None
    from fastrad import FeatureExtractor, FeatureSettings, Mask, MedicalImage

    kinds = ["firstorder", "shape", "glcm", "glrlm", "glszm", "gldm", "ngtdm"]
    extractor = FeatureExtractor(FeatureSettings(feature_classes=kinds, bin_width=25.0, device=device))

    def one(job: tuple[np.ndarray, np.ndarray]) -> dict:
        image, mask = (torch.from_numpy(np.ascontiguousarray(a)).float() for a in job)
        return extractor.extract(MedicalImage(image, spacing=SPACING_MM), Mask(mask, spacing=SPACING_MM))

    one(jobs[0])
    return timed(lambda: [one(job) for job in jobs])[0]


# ---------------------------------------------------------------------------------------------- the measurements


def ratio(peer: float | None, ours: float) -> float | None:
    return None if peer is None else peer / ours


def measure(quick: bool, device: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    diameters = np.linspace(10, 20, 8) if quick else np.linspace(10, 40, 50)
    image, labels = lesions(diameters)
    there = image.to(device), labels.to(device)
    jobs = crops(image, labels)
    small = torch.where(labels <= 2, labels, 0).to(device)
    radiomics.describe(there[0], small, SPACING_MM)  # warm-up
    seconds, ours = timed(lambda: radiomics.describe(*there, SPACING_MM, names=STANDARD), device)
    peer, theirs = pyradiomics(jobs, threads)
    standard = CATALOGUE["pyradiomics"].notna().to_numpy()
    a, b = ours[list(CATALOGUE["name"][standard])].to_numpy(float), theirs[:, standard]
    out = {
        "benchmark": "radiomics",
        "work": f"{len(diameters)} lesions of {min(diameters):g} to {max(diameters):g} mm, {int((labels > 0).sum())} voxels, 707 descriptors",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "seconds": {"workbench": seconds, f"pyradiomics, {threads} processes": peer},
        "ratio": ratio(peer, seconds),
        "largest_relative_difference": float((np.abs(a - b) / np.maximum(np.abs(b), 1e-8)).max()),
    }
    if quick:
        return out
    whole, _ = timed(lambda: radiomics.describe(*there, SPACING_MM), device)
    out["seconds"]["workbench, all 728"] = whole
    pyfast = fastrad(jobs, device)
    original, _ = timed(lambda: radiomics.describe(*there, SPACING_MM, names=ORIGINAL), device)
    out["original_image"] = {"seconds": {"workbench": original, "fastrad": pyfast}, "ratio": ratio(pyfast, original)}
    out["perturbed"] = perturbed(image, labels, device, threads)
    out["lesions_500"] = own_process("--many", "500", device, threads)
    return out


def perturbed(image: torch.Tensor, labels: torch.Tensor, device: str, threads: int) -> dict:
    """One chain 30 times on 20 lesions: both sides describe 600 perturbed regions; the perturbing is in our time only."""
    some = torch.where(labels % 5 < 2, labels, 0)
    changes = [CHAIN] * 30
    there = image.to(device), some.to(device)

    def describe() -> np.ndarray:
        return perturb.describe_perturbed(*there, SPACING_MM, perturbations=changes, names=STANDARD)

    seconds, _ = timed(describe, device)
    found = ragged.find(some)
    jobs = []
    more = (4, 8, 8)
    for i, extent in enumerate((found.high - found.low + 1).tolist()):
        boxes = ragged.crop(image, some, None, SPACING_MM, found, [i], extent, more)
        sd = perturb.noise_hu(image)
        for k in range(len(changes)):
            start = [m + a for m, a in zip(ragged.margins(SPACING_MM), more)]
            draw = perturb.Draw.of(found.some([i]), start, (0, k), SPACING_MM)
            copy = perturb.perturb(boxes, [CHAIN], sd, [draw])
            jobs.append((copy.hu[0].numpy(), copy.region[0].numpy().astype(np.int64)))
    peer, _ = pyradiomics(jobs, threads)
    return {
        "work": f"{len(jobs)} perturbed regions",
        "seconds": {"workbench": seconds, "pyradiomics": peer},
        "ratio": peer / seconds,
    }


def own_process(what: str, size: str, device: str, threads: int, engine: str = "torch") -> dict:
    """Seconds and peak memory in GiB of one piece of work, in a process of its own."""
    command = [sys.executable, __file__, what, size, "--device", device, "--threads", str(threads), "--engine", engine]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_gib() -> float:
    """The most memory this process ever held (its own: getrusage counts the process that started it too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def alone(many: int | None, diameter: float | None, device: str, threads: int, engine: str) -> dict:
    torch.set_num_threads(threads)
    image, labels = lesions(np.linspace(10, 40, many) if many else np.array([diameter]))
    there = (image.to(device), labels.to(device)) if engine == "torch" else (image, labels)
    before = peak_gib()
    seconds, _ = timed(lambda: radiomics.describe(*there, SPACING_MM, engine=engine), device)
    out = {"seconds": seconds, "peak_gib": peak_gib(), "before_gib": before, "voxels": int((labels > 0).sum())}
    if device == "cuda":
        out["gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return out


COUNTS, DIAMETERS_MM = (1, 5, 20, 100, 500), (5, 10, 20, 40, 80)


def scaling(device: str, threads: int) -> dict:
    """Seconds and memory by number of lesions and by their size, both engines, each piece in a process of its own."""
    out: dict = {}
    for engine in radiomics.ENGINES:
        own = device if engine == "torch" else "cpu"
        counts = COUNTS if engine == "torch" else COUNTS[:4]  # PyRadiomics would take minutes for the last
        out[engine] = {
            "lesions": {n: own_process("--many", str(n), own, threads, engine) for n in counts},
            "diameter_mm": {d: own_process("--diameter", str(d), own, threads, engine) for d in DIAMETERS_MM},
        }
    return out


def draw(measured: dict, plot: Path) -> None:
    """A figure of what `scaling` measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(8, 6), layout="constrained")
    columns = {
        "lesions": ("lesions of 10 to 40 mm in one case", COUNTS),
        "diameter_mm": ("diameter of one lesion (mm)", DIAMETERS_MM),
    }
    for column, (what, (title, ticks)) in enumerate(columns.items()):
        for row, (key, unit) in enumerate({"seconds": "seconds", "peak_gib": "peak memory (GiB)"}.items()):
            panel = axes[row, column]
            for engine, colour in zip(radiomics.ENGINES, ("#0072B2", "#D55E00")):
                rows = measured[engine][what]
                label = "workbench" if engine == "torch" else "PyRadiomics, one process"
                panel.plot([float(n) for n in rows], [r[key] for r in rows.values()], "o-", color=colour, label=label)
            panel.set(xlabel=title, ylabel=unit, xscale="log", yscale="log" if key == "seconds" else "linear")
            panel.set_xticks(ticks, labels=ticks)
            panel.minorticks_off()
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
            if key != "seconds":
                panel.set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.savefig(plot, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    for hidden, kind in (("--many", int), ("--diameter", float), ("--engine", str)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.many or chosen.diameter:
        print(json.dumps(alone(chosen.many, chosen.diameter, chosen.device, chosen.threads, chosen.engine or "torch")))
        return 0
    figures = measure(chosen.quick, chosen.device, chosen.threads)
    if chosen.plot:
        figures["scaling"] = scaling(chosen.device, chosen.threads)
        draw(figures["scaling"], chosen.plot)
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.json:
        beside = chosen.json.with_suffix(".part")
        beside.write_text(text + "\n")
        os.replace(beside, chosen.json)
    return int(not figures["largest_relative_difference"] <= LARGEST_DIFFERENCE)


if __name__ == "__main__":
    raise SystemExit(main())
