"""Dense evaluation of the boundary net against patch by patch, on the band of one 30 mm lesion, in the same run.

    python benchmarks/boundary.py [--quick] [--json FILE] [--device cpu|cuda] [--threads 2]

Both sides give one logit for each band voxel on the net's grid, from the same weights and the same channels. The peer
is the ordinary way to run a patch classifier: cut the patches (one gather a batch), run them in batches of 128 or 512,
whichever is faster, with strides and pools as trained. Sides take turns after a warm-up; each figure is a median.
--quick takes fewer repeats, and in the paper preset every 64th patch, scaled up. JSON: the work, the device, each
side's seconds, the ratio, the largest difference. Exit status 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from workbench.stages import boundary

PRESETS = {"demo": boundary.DEMO, "paper": boundary.PAPER}
LARGEST_DIFFERENCE = 1e-4
LEAST_RATIO = 20.0


def lesion_channels(settings: boundary.BoundarySettings, device: str) -> tuple[Tensor, Tensor]:
    """Channels `[4 z y x]` and band of a sphere of 30 mm in a noisy liver, on the net's grid."""
    reach_mm = 15 + settings.band_mm + 2
    shape = [int(2 * (reach_mm + g * (p // 2)) / g) + 1 for g, p in zip(settings.grid_mm, settings.patch)]
    axes = [(torch.arange(n) - n // 2) * g for n, g in zip(shape, settings.grid_mm)]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    generator = torch.Generator().manual_seed(0)
    ct = torch.sigmoid((radius - 15) / 2) * 0.4 + 0.1 * torch.randn(radius.shape, generator=generator)
    distance = boundary.signed_distance(radius <= 15, settings.grid_mm, settings.band_mm) / settings.band_mm
    contrast = 1 - ct * 5  # 1 inside, -1 outside, noise
    channels = torch.stack([ct, torch.tanh((15 - radius) / 3), distance, contrast])
    return channels.to(device), boundary.band(radius <= 15, settings.grid_mm, settings.band_mm).to(device)


def random_net(settings: boundary.BoundarySettings, device: str) -> boundary.PatchNet:
    """Weights do not change the work; these give logits of a trained net's size."""
    torch.manual_seed(0)
    net = boundary.PatchNet(settings)
    torch.nn.init.normal_(net.fc8.weight, std=0.3)
    return net.to(device, memory_format=torch.channels_last_3d).eval()


def timed(work: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    began = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def measure(preset: str, device: str, quick: bool) -> dict:
    settings = PRESETS[preset]
    channels, near = lesion_channels(settings, device)
    net = random_net(settings, device)
    every = 64 if quick and preset == "paper" else 1
    asked = torch.zeros_like(near)
    asked[tuple(near.nonzero()[::every].T)] = True
    share = float(asked.sum() / near.sum())
    dense, patches, apart = [], {128: [], 512: []}, 0.0
    boundary.dense_logits(net, channels, near)  # warm-up of both: kernels are chosen at the first call of a shape
    with torch.inference_mode():
        net(channels.new_zeros(max(patches), *channels.shape[:1], *settings.patch))
    for _ in range(3 if preset == "paper" or quick else 7):
        seconds, at_once = timed(lambda: boundary.dense_logits(net, channels, near), device)
        dense.append(seconds)
        for batch, taken in patches.items():
            seconds, one_by_one = timed(lambda batch=batch: boundary.patch_logits(net, channels, asked, batch), device)
            taken.append(seconds / share)
            apart = max(apart, float((at_once - one_by_one)[asked].abs().max()))
    dense_s = statistics.median(dense)
    batch, patches_s = min(((k, statistics.median(v)) for k, v in patches.items()), key=lambda item: item[1])
    return {
        "work": f"30 mm lesion, band {settings.band_mm} mm, {int(near.sum())} patches of {settings.patch} "
        f"at {settings.grid_mm} mm",
        "preset": preset,
        "patches": int(near.sum()),
        "patches_timed": int(asked.sum()),
        "batch": batch,
        "dense_s": dense_s,
        "patch_by_patch_s": patches_s,
        "ratio": patches_s / dense_s,
        "max_abs_difference": apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [measure(preset, asked.device, asked.quick) for preset in PRESETS]
    for row in rows:
        peer = f"patch by patch {row['patch_by_patch_s']:.3f} s (batches of {row['batch']})"
        ours = f"dense {row['dense_s']:.4f} s: {row['ratio']:.0f} times"
        print(f"{row['preset']}: {row['work']}\n    {peer}, {ours}, largest difference {row['max_abs_difference']:.1e}")
    name = (
        torch.cuda.get_device_name() if asked.device == "cuda" else f"{platform.machine()} CPU, {asked.threads} threads"
    )
    if asked.json:
        asked.json.write_text(
            json.dumps(
                {
                    "benchmark": "boundary",
                    "device": name,
                    "torch": torch.__version__,
                    "quick": asked.quick,
                    "results": rows,
                },
                indent=1,
            )
        )
    held = all(row["ratio"] >= LEAST_RATIO and row["max_abs_difference"] <= LARGEST_DIFFERENCE for row in rows)
    print(
        "holds"
        if held
        else f"FAILS: at least {LEAST_RATIO:.0f} times and at most {LARGEST_DIFFERENCE:.0e} apart are required"
    )
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
