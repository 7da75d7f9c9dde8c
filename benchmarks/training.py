"""Steps of training a second, the workbench's way and with one choice at a time undone, in the same run.

    python benchmarks/training.py [--quick] [--json FILE] [--device cpu|cuda] [--preset paper|demo] [--seconds 4]
                                  [--sides workbench compiled ...]

The work: the tumor net of a preset on slabs drawn from eight made-up scans of 96 x 384 x 384 (demo: 24 x 96 x 96), batch, crop, augmentation and
loss as in `workbench train`. The peer is the ordinary loop on the same net and slabs: crops cut and augmented with NumPy and SciPy by a
DataLoader's workers (one a core, at most 16), float32, contiguous, copied to the device without waiting. It does less: flip, scale, rotation,
noise and shift of the intensity, and neither made-up lesions nor elastic or slice-thickness changes. Sides: ours; ours drawing from files; in
float32; contiguous; compiled where --sides asks for it (its first step is given apart). Each runs for some seconds after five steps. JSON: the work, the
device, steps and slabs a second of each side, seconds of drawing alone a step, the ratio to the peer. --quick takes one second a side and the demo's net.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import ndimage

from workbench import experiment
from workbench.nets import slabs
from workbench.nets.cascade import CascadeSettings
from workbench.nets.losses import deep_supervision
from workbench.nets.network import SlabNet

SHAPES = {"paper": (96, 384, 384), "demo": (24, 96, 96)}
CASES = 8
SIDES = ("workbench", "from files, drawn ahead", "float32", "contiguous", "ordinary loop")


def scan(seed: int, shape: tuple[int, int, int]) -> slabs.BankCase:
    """Noise, a ball of liver, a ball of tumor in it."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    r = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    liver, tumor = r < 0.8, np.sqrt((z[:, None, None] - 0.2) ** 2 + y[:, None] ** 2 + x**2) < 0.2
    hu = (liver * 110 - tumor * 50 + rng.normal(0, 15, shape)).astype(np.float32)
    return slabs.BankCase(
        torch.from_numpy(hu), torch.from_numpy(tumor.astype(np.uint8)), torch.from_numpy(liver.astype(np.float16))
    )


def cut(plane: np.ndarray, turn: np.ndarray, place: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """A crop of a plane, turned and scaled."""
    return ndimage.affine_transform(plane, turn, place, crop, order=1)


class Ordinary(torch.utils.data.IterableDataset):
    """Slabs as a DataLoader's worker makes them on a CPU."""

    def __init__(self, cases: list[slabs.BankCase], settings: CascadeSettings):
        self.cases = [(c.hu.numpy(), c.target.numpy(), c.prior.float().numpy()) for c in cases]
        self.s, self.slices = settings.slabs, settings.network.slices

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng(worker.id if worker else 0)
        low, high = self.s.window_hu
        while True:
            hu, target, prior = self.cases[rng.integers(len(self.cases))]
            half = self.slices // 2
            z = (
                int(rng.choice(np.flatnonzero(target.any((1, 2)))))
                if rng.random() < 0.5
                else int(rng.integers(len(hu)))
            )
            at = np.clip(np.arange(z - half, z + half + 1), 0, len(hu) - 1)
            angle = np.deg2rad(rng.uniform(-1, 1) * self.s.rotate_degrees)
            zoom = 1 + rng.uniform(-1, 1) * self.s.scale
            turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            place = np.array(hu.shape[1:]) / 2 - turn @ (np.array(self.s.crop) / 2)
            x = np.stack([cut(hu[n], turn, place, self.s.crop) for n in at])
            x = np.clip((x - low) / (high - low) * 2 - 1, -1, 1) + rng.uniform(-1, 1) * self.s.shift_hu * 2 / (
                high - low
            )
            x += rng.standard_normal(x.shape, np.float32) * (rng.random() * self.s.noise_hu * 2 / (high - low))
            y, p = (cut(m, turn, place, self.s.crop) for m in (target[z].astype(np.float32), prior[z]))
            whole = np.concatenate([x, p[None], y[None]]).astype(np.float32)
            whole = whole[..., ::-1].copy() if rng.random() < 0.5 else whole
            yield torch.from_numpy(whole[:-1]), torch.from_numpy(whole[-1:])


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def steps_per_s(
    settings: CascadeSettings,
    draw: Callable[[int], tuple],
    device: str,
    seconds: float,
    exact: bool = False,
    contiguous: bool = False,
    compiled: bool = False,
) -> dict[str, float]:
    """Training steps as `fit.fit` takes them, for some seconds after five that do not count."""
    torch.manual_seed(0)
    net = SlabNet(settings.network).to(device)
    net = net if contiguous else net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=device == "cuda" or None)
    run = torch.compile(net) if compiled else net
    net.train()

    def step(n: int) -> None:
        x, y = draw(n)
        with nullcontext() if exact else slabs.autocast(device):
            loss = deep_supervision(run(x.contiguous() if contiguous else x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    began = time.perf_counter()
    step(0)
    wait(device)
    first = time.perf_counter() - began
    for n in range(1, 5):
        step(n)
    wait(device)
    began, n = time.perf_counter(), 0
    while n < 2 or time.perf_counter() - began < seconds:
        step(5 + n)
        n += 1
        wait(device)  # a step's kernels are queued faster than they run
    pace = n / (time.perf_counter() - began)
    return {"steps_per_s": pace, "slabs_per_s": pace * settings.fit.batch, "first_step_s": first}


def measure(preset: str, device: str, seconds: float, asked_for: list[str], folder: Path) -> dict:
    settings = experiment.PRESETS[preset]().tumor.cascade
    settings = replace(settings, slabs=replace(settings.slabs, flip=True))
    cases = [scan(n, SHAPES[preset]) for n in range(CASES)]
    batch, slices = settings.fit.batch, settings.network.slices
    bank = slabs.SlabBank(cases, device)
    ours = lambda n: bank.draw(settings.slabs, slices, batch, 0, n)
    files = slabs.SlabBank([c.in_files(folder / f"{n}") for n, c in enumerate(cases)], device, resident=False)
    ahead = slabs.ahead(lambda n: files.draw(settings.slabs, slices, batch, 0, n))
    workers = min(16, len(os.sched_getaffinity(0)))
    loader = iter(
        torch.utils.data.DataLoader(
            Ordinary(cases, settings), batch, num_workers=workers, pin_memory=device == "cuda", persistent_workers=True
        )
    )
    ordinary = lambda n: tuple(t.to(device, non_blocking=True) for t in next(loader))
    began, drawn = time.perf_counter(), 0
    ours(0)
    wait(device)
    began = time.perf_counter()
    while drawn < 2 or time.perf_counter() - began < seconds / 4:
        ours(drawn)
        drawn += 1
    wait(device)
    drawing = (time.perf_counter() - began) / drawn
    kinds: dict[str, Callable[[], dict]] = {
        "workbench": lambda: steps_per_s(settings, ours, device, seconds),
        "from files, drawn ahead": lambda: steps_per_s(settings, ahead, device, seconds),
        "float32": lambda: steps_per_s(settings, ours, device, seconds, exact=True),
        "contiguous": lambda: steps_per_s(settings, ours, device, seconds, contiguous=True),
        "ordinary loop": lambda: steps_per_s(settings, ordinary, device, seconds, exact=True, contiguous=True),
        "compiled": lambda: steps_per_s(settings, ours, device, seconds, compiled=True),
    }
    sides = {name: kinds[name]() for name in asked_for}
    pace = {side: held["steps_per_s"] for side, held in sides.items()}
    return {
        "benchmark": "training",
        "work": f"tumor net, preset {preset}, batch {batch} of {slices} x {' x '.join(map(str, settings.slabs.crop))}",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "drawing_s_per_step": drawing,
        "sides": sides,
        "ratio": {side: pace["workbench"] / value for side, value in pace.items() if "workbench" in pace},
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--preset", default="paper", choices=SHAPES)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=[*SIDES, "compiled"])
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    if asked.quick:
        asked.preset, asked.seconds = "demo", 1.0
    with TemporaryDirectory() as folder:
        out = measure(asked.preset, asked.device, asked.seconds, asked.sides, Path(folder))
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n")
    return int(out["ratio"].get("ordinary loop", 1) < 1)


if __name__ == "__main__":
    raise SystemExit(main())
