"""The scanner: a plan on the grid of a preset, with partial volume, reconstruction kernel and noise, and its truth.

The plan of a case comes from one CPU generator, the same on every device; the quantum noise from one generator on the
device. The same seed gives the same bits on the same kind of device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.data.phantom.anatomy import Body
from workbench.data.phantom.lesions import Decoy, plan_decoys, plan_lesions
from workbench.data.phantom.painting import ORGAN, Plan, paint_slices
from workbench.data.phantom.shapes import Draw
from workbench.data.phantom.vessels import Map, fit_volume, grow_vessels
from workbench.volume import Refused, Spacing, Volume, canonical_affine


@dataclass(frozen=True)
class Preset:
    """Grid of a scan. Lengths in mm, ranges are drawn from uniformly."""

    matrix: int
    pixel_mm: tuple[float, float]
    slice_mm: tuple[float, float]
    slices: tuple[int, int]
    sub_slice_mm: float  # thickness over which partial volume in z is averaged
    noise_hu: tuple[float, float]  # sd in the liver
    sharpness_mm: tuple[float, float] = (0.55, 0.8)  # sd of the reconstruction kernel
    phases: tuple[float, float, float] = (0.70, 0.17, 0.13)  # shares of portal, arterial, late


FORMAT = 2  # raise it when the same seed and preset give another phantom than before
PRESETS = {
    "demo": Preset(128, (2.3, 3.0), (1.0, 5.0), (44, 280), 2.6, (4.0, 11.0)),
    "other": Preset(  # another scanner than the demo's: noisier, sharper, mostly arterial
        128, (2.3, 3.0), (1.0, 5.0), (44, 280), 2.6, (10.0, 20.0), (0.35, 0.5), (0.2, 0.7, 0.1)
    ),
    "fine": Preset(240, (1.25, 1.6), (2.5, 5.0), (44, 90), 2.6, (6.0, 15.0)),
    "full": Preset(512, (0.6, 0.9), (1.0, 5.0), (44, 300), 1.7, (12.0, 28.0)),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic case. `instances` numbers the lesions as `lesions.lesion` does, `decoys` the look-alikes as their rows + 1."""

    ct: Volume
    labels: Volume
    lesions: pd.DataFrame
    lookalikes: pd.DataFrame
    organs: Tensor
    instances: Tensor
    decoys: Tensor
    phase: str
    name: str


def blur_weights(n: int, sigma_px: float, device: torch.device) -> Tensor:
    """A Gaussian mean along an axis of n pixels as a matrix `[n n]`; each row adds up to 1."""
    at = torch.arange(n, device=device, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((at[:, None] - at) / sigma_px) ** 2)
    return weight / weight.sum(1, keepdim=True)


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur in the plane of `[z y x]`, as two matrix products (faster than a convolution of one channel)."""
    down, across = (blur_weights(n, sigma_px, image.device) for n in image.shape[1:])
    return (down @ image) @ across.T


def _noise(shape, spacing: Spacing, kernel_mm: float, overlap_mm: float, generator: torch.Generator, device) -> Tensor:
    """[z y x] of unit sd: band-pass in the plane (a ramp filter's spectrum under a soft kernel), alike in neighbouring slices.

    Coarse pixels average over much of the band, which leaves less of the dip at low frequencies (*empirical*: real scans
    at 0.7 to 0.9 mm and the same at 2.6 mm, docs/log.md).
    """
    white = torch.randn(shape, generator=generator, device=device)
    fine, coarse = max(0.58, kernel_mm / spacing[1]), max(1.5, 1.9 / spacing[1])
    dip = min(0.85, max(0.45, 0.85 - 0.25 * (spacing[1] - 0.9)))
    for a in range(0, shape[0], 32):
        part = white[a : a + 32]
        white[a : a + 32] = _blur(part, fine) - dip * _blur(part, coarse)
    alike = math.exp(-spacing[0] / overlap_mm)
    for k in range(1, shape[0]):
        white[k].mul_(math.sqrt(1 - alike**2)).add_(white[k - 1], alpha=alike)
    return white / white.std()


def _plan(seed: int, phases: tuple[float, float, float] = Preset.phases) -> tuple[Plan, Map, Draw]:
    d = Draw(seed)
    body = Body(d, phases)
    survey = fit_volume(body)
    portal, hepatic = grow_vessels(d, body, survey)
    lesions = plan_lesions(d, body, survey, portal + hepatic)
    decoys = plan_decoys(d, body, survey, lesions)
    vein = bladder = 0
    if body.hu["hepatic"] < body.hu["liver"] - 6:
        decoys.append(Decoy("dark vessel", body.hu["hepatic"] - body.hu["liver"], ()))
        vein = len(decoys)
    if body.gallbladder:
        decoys.append(Decoy("gallbladder", 9 - body.hu["liver"], ()))
        bladder = len(decoys)
    return Plan(body, portal, hepatic, lesions, decoys, vein, bladder), survey, d


def generate(seed: int, preset: str = "demo", device: torch.device | str = "cpu") -> Phantom:
    """The case of a seed: CT (HU, int16), labels (1 liver, 2 tumor), the truth about its lesions and look-alikes.

    The same seed, preset and kind of device give the same bits. Raises Refused for an unknown preset or a negative seed.
    """
    if preset not in PRESETS:
        raise Refused("phantom preset", repr(preset), "one of " + ", ".join(PRESETS))
    if seed < 0:
        raise Refused("phantom seed", str(seed), "a whole number from 0")
    scan, name = PRESETS[preset], f"phantom-{seed:04d}"
    plan, survey, d = _plan(seed, scan.phases)
    body = plan.body
    z, y, x, spacing = _axes(scan, body, survey, d)
    shape = (len(z), len(y), len(x))
    noise_hu = scan.noise_hu[0] * (scan.noise_hu[1] / scan.noise_hu[0]) ** d.uniform(0, 1)
    sharpness = d.uniform(*scan.sharpness_mm)
    kernel_mm = d.uniform(0.42, 0.62)  # noise grain
    overlap_mm = d.uniform(0.9, 2.6)  # how far slices share their noise
    y, x = y.to(device), x.to(device)

    subs = max(1, round(spacing[0] / scan.sub_slice_mm))
    step = max(1, 400_000 // (subs * shape[1] * shape[2]))
    hu = torch.empty(shape, device=device)
    organs, instances, decoys = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(3))
    liver, tumor = (torch.empty(shape, device=device) for _ in range(2))
    for a in range(0, shape[0], step):
        b = min(a + step, shape[0])
        offsets = ((torch.arange(subs) + 0.5) / subs - 0.5) * spacing[0]
        fine = (z[a:b, None] + offsets).flatten().to(device)
        parts = paint_slices(plan, fine, y, x, math.hypot(spacing[1], spacing[0] / subs) / math.sqrt(2))
        n = (b - a, subs, *shape[1:])
        hu[a:b], liver[a:b], tumor[a:b] = (parts[k].view(n).mean(1) for k in ("hu", "liver", "tumor"))
        organs[a:b], instances[a:b], decoys[a:b] = (
            parts[k].view(n)[:, subs // 2] if k == "organ" else parts[k].view(n).amax(1)
            for k in ("organ", "instance", "decoy")
        )
    for a in range(0, shape[0], 32):
        hu[a : a + 32] = _blur(hu[a : a + 32], max(0.3, sharpness / spacing[1]))

    labels, lesions = _truth(plan, liver, tumor, instances, hu, (z, y, x), spacing)
    del liver, tumor
    decoys[(labels == 2) | ((labels == 0) & (organs != ORGAN["gallbladder"]))] = 0
    instances[labels != 2] = 0
    organs[(organs == ORGAN["liver"]) & (labels == 0)] = ORGAN["fat"]
    organs[labels > 0] = ORGAN["liver"]
    lookalikes = _lookalike_table(plan, decoys, spacing)

    noise = _noise(shape, spacing, kernel_mm, overlap_mm, torch.Generator(device).manual_seed(seed + 1_000_003), device)
    distance = (x[None, :] / body.half_width) ** 2 + (y[:, None] / body.half_front) ** 2
    noise *= noise_hu * (0.80 + 0.34 * torch.exp(-1.2 * distance)).clamp_min(0.5)
    hu += noise
    ct = hu.round_().clamp_(-1024, 3071).to(torch.int16)
    affine = canonical_affine(spacing)
    return Phantom(
        Volume(ct, spacing, affine, name),
        Volume(labels, spacing, affine, name),
        lesions,
        lookalikes,
        organs,
        instances,
        decoys,
        body.phase,
        name,
    )


def _axes(scan: Preset, body: Body, survey: Map, d: Draw) -> tuple[Tensor, Tensor, Tensor, Spacing]:
    """Voxel centres in mm along z, y, x and the spacing: a field of view that holds the patient and the whole liver."""
    muscle, back = body.muscle_mm, body.muscle_mm + 22 * body.frame
    width = 2 * (body.half_width + muscle + body.fat_mm * 1.1)
    pixel = min(max(width * d.uniform(1.04, 1.16) / scan.matrix, scan.pixel_mm[0]), scan.pixel_mm[1])
    thick = d.uniform(*scan.slice_mm)
    inside = np.argwhere((survey.sdf < 0).any(axis=(1, 2)))[:, 0] * survey.step + survey.low[0]
    low, high = inside[0] - d.uniform(22, 46), inside[-1] + d.uniform(14, 32)
    count = min(max(math.ceil((high - low) / thick), scan.slices[0]), scan.slices[1])
    middle = (low + high) / 2
    z = middle + (torch.arange(count) - (count - 1) / 2) * thick
    across = (torch.arange(scan.matrix) - (scan.matrix - 1) / 2) * pixel
    centre_y = (body.half_back + back + 1.1 * body.fat_mm - body.half_front - muscle - body.fat_mm) / 2
    return z.float(), (across + centre_y).float(), across.float() + d.uniform(-6, 6), (thick, pixel, pixel)


def _truth(
    plan: Plan, liver: Tensor, tumor: Tensor, instances: Tensor, hu: Tensor, axes, spacing
) -> tuple[Tensor, pd.DataFrame]:
    """Label map by the half level of the occupancies, and the lesions' true figures. A lesion thinner than that keeps its fullest voxel."""
    labels = (liver >= 0.5).to(torch.uint8)
    rows = []
    voxel_ml = math.prod(spacing) / 1000
    for number, lesion in enumerate(plan.lesions, 1):
        where = (instances == number).nonzero(as_tuple=True)
        share = tumor[where]
        if not len(share) or float(share.max()) < 0.05:
            continue
        volume = float(share.double().sum()) * voxel_ml
        chosen = (share >= 0.5) if bool((share >= 0.5).any()) else share == share.max()
        at = tuple(w[chosen] for w in where)
        labels[at] = 2
        centre = [
            float((axes[k].to(share.device)[where[k]] * share).sum() / share.sum()) - float(axes[k][0])
            for k in range(3)
        ]
        rows.append(
            {
                "lesion": number,
                "kind": lesion.kind,
                "volume_ml": volume,
                "diameter_mm": (6000 * volume / math.pi) ** (1 / 3),
                "z_mm": centre[0],
                "y_mm": centre[1],
                "x_mm": centre[2],
                "contrast_hu": float(hu[at].mean()) - plan.body.hu["liver"],
                "at_capsule": bool(_near_edge(liver, at, spacing)),
                "at_vessel": lesion.at_vessel,
            }
        )
    columns = [
        "lesion",
        "kind",
        "volume_ml",
        "diameter_mm",
        "z_mm",
        "y_mm",
        "x_mm",
        "contrast_hu",
        "at_capsule",
        "at_vessel",
    ]
    return labels, pd.DataFrame(rows, columns=columns)


def _near_edge(liver: Tensor, at, spacing, reach_mm: float = 3.5) -> bool:
    """Whether a voxel outside the liver lies within a few mm of a lesion's voxels."""
    for axis in range(3):
        steps = max(1, round(reach_mm / spacing[axis]))
        for sign in (-steps, steps):
            moved = list(at)
            moved[axis] = (moved[axis] + sign).clamp(0, liver.shape[axis] - 1)
            if bool((liver[tuple(moved)] < 0.5).any()):
                return True
    return False


def _lookalike_table(plan: Plan, decoys: Tensor, spacing) -> pd.DataFrame:
    rows = []
    for number, decoy in enumerate(plan.decoys, 1):
        where = (decoys == number).nonzero()
        if len(where):
            centre = [float(where[:, k].double().mean()) * spacing[k] for k in range(3)]
            rows.append(
                {
                    "lookalike": number,
                    "kind": decoy.kind,
                    "volume_ml": len(where) * math.prod(spacing) / 1000,
                    "z_mm": centre[0],
                    "y_mm": centre[1],
                    "x_mm": centre[2],
                    "contrast_hu": decoy.hu,
                }
            )
    return pd.DataFrame(rows, columns=["lookalike", "kind", "volume_ml", "z_mm", "y_mm", "x_mm", "contrast_hu"])
