"""Training of the patch net on the bands of predicted lesions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from workbench.data.files import DAMAGED, from_dict
from workbench.nets.fit import FitSettings, fill, fit, load_tensors
from workbench.stages.boundary.grid import OnGrid, carry, onto_grid
from workbench.stages.boundary.net import PatchNet, block_at, dense_logits
from workbench.stages.boundary.settings import DEMO, BoundarySettings, Case
from workbench.volume import Refused

FORMAT = 3  # of the saved model


@dataclass(frozen=True)
class BoundaryModel:
    """A trained net with its settings; `curves`: step, loss, seconds, and on held-out patients the share of band voxels
    that the mask (`mask_error`) and the net (`net_error`) have wrong. `skipped`: cases without a band."""

    net: PatchNet
    settings: BoundarySettings
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    skipped: int = 0


def load(folder: Path, settings: BoundarySettings | None = None, device: torch.device | str = "cpu") -> BoundaryModel:
    """The model in `folder`. Refused when damaged, or when trained with other settings than those given.

    Settings that a stored model does not name yet are at their defaults.
    """
    path = Path(folder) / "model"
    tensors, about = load_tensors(path)
    curve = about.get("curve", about.get("curves"))  # format 2 had all on one level
    about = about.get("config") or about
    if about.get("format") not in (2, FORMAT):
        raise Refused(path, f"format {about.get('format')}", f"format {FORMAT}", "Train the boundary stage again.")
    stated: Any = about.get("settings")
    stored = from_dict(BoundarySettings, stated, path)
    unknown = set(stated) - {f.name for f in fields(BoundarySettings)}
    if unknown:
        raise Refused(path, f"settings {sorted(unknown)}", "those of this version", "Train the boundary stage again.")
    if settings is not None and settings != stored:
        asked, own = asdict(settings), asdict(stored)
        other = [f"{n} {own[n]} instead of {asked[n]}" for n in sorted(own) if own[n] != asked[n]]
        raise Refused(
            folder, "; ".join(other), "the settings asked for", "Train again, or use the model's own settings."
        )
    net = PatchNet(stored)
    fill(net, tensors, path)
    try:
        curve = pd.DataFrame(curve)
    except ValueError as error:
        raise Refused(path, f"a curve that is no table ({error})", "rows of figures", DAMAGED) from error
    return BoundaryModel(net.to(device).eval(), stored, curve, int(about.get("skipped") or 0))


LEARNT_FOR = (
    "grid_mm",
    "patch",
    "widths",
    "kernels",
    "pool2_stride",
    "dense_widths",
    "window_hu",
)  # what weights depend on


def _weights_of(folder: Path, settings: BoundarySettings) -> dict[str, Tensor]:
    """A trained net's weights to begin with; refused when they were learnt for another net, grid or window."""
    model = load(folder)
    other = [n for n in LEARNT_FOR if getattr(model.settings, n) != getattr(settings, n)]
    if other:
        raise Refused(
            folder,
            "; ".join(f"{n} {getattr(model.settings, n)} instead of {getattr(settings, n)}" for n in other),
            "a net of the same shape, grid and window to begin with",
        )
    return model.net.state_dict()


class _Bank(NamedTuple):
    """Cases on the grid, ready to cut tiles from. `lesions`: (case, band voxels `[n 3]`) a lesion."""

    parts: list[OnGrid]
    truths: list[Tensor]
    lesions: list[tuple[int, Tensor]]


def _bank(cases: Sequence[Case], settings: BoundarySettings, device: torch.device | str) -> tuple[_Bank, int]:
    """The cases that have a band, and how many have none."""
    bank, skipped = _Bank([], [], []), 0
    z, y, x = (r + t // 2 for r, t in zip(settings.reach, settings.tile))
    for case in cases:
        shapes = {tuple(torch.as_tensor(a).shape) for a in case[:4]}
        if len(shapes) != 1:
            raise Refused(
                case.patient, f"arrays of shapes {sorted(shapes)}", "one grid for image, probability, mask and truth"
            )
        image, probability, mask, truth = (torch.as_tensor(a).to(device) for a in case[:4])
        liver = None if case.liver is None else torch.as_tensor(case.liver).to(device).bool()
        mask = _touching(mask.bool(), truth > 0)
        part = onto_grid(image, probability, mask, liver, case.spacing_mm, settings, (z, y, x))
        if part is None:
            skipped += 1
            continue
        bank.parts.append(part._replace(nearest=np.empty((3, 0, 0, 0), np.int32)))  # not needed here, and large
        bank.truths.append(
            carry(truth[part.native_box] > 0, part.native_box, case.spacing_mm, part.grid_box, settings.grid_mm)
        )
        pieces, n = ndimage.label(part.band.cpu().numpy(), np.ones((3, 3, 3)))
        for k in range(1, n + 1):
            bank.lesions.append((len(bank.parts) - 1, torch.as_tensor(np.argwhere(pieces == k))))
    return bank, skipped


def _touching(mask: Tensor, truth: Tensor) -> Tensor:
    """The pieces of `mask` that overlap the truth: a false candidate has no boundary to learn from."""
    pieces = ndimage.label(mask.cpu().numpy(), np.ones((3, 3, 3)))[0]
    hit = np.unique(pieces[(mask & truth).cpu().numpy()])
    return torch.as_tensor(np.isin(pieces, hit), device=mask.device) & mask


def _draw(bank: _Bank, settings: BoundarySettings, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The batch of one step, from (seed, step) alone: blocks `[b 4 ...]`, targets and loss weights `[b z y x]`, and a
    seed a block for dropout."""
    rng = np.random.default_rng([seed, step])
    patch, tile = settings.patch, settings.tile
    low, high = settings.window_hu
    blocks, targets, weights = [], [], []
    for _ in range(settings.batch):
        index, voxels = bank.lesions[rng.integers(len(bank.lesions))]
        centre = voxels[rng.integers(len(voxels))]
        start = [int(c) - t // 2 for c, t in zip(centre, tile)]
        part, truth = bank.parts[index], bank.truths[index]
        block = block_at(
            part.channels, [a - p // 2 for a, p in zip(start, patch)], [t + p - 1 for t, p in zip(tile, patch)]
        )
        target, weight = block_at(truth, start, tile), block_at(part.band, start, tile).float()
        for axis, (a, t, n) in enumerate(zip(start, tile, truth.shape)):  # repeated border voxels carry no loss
            at = torch.arange(a, a + t, device=weight.device)
            weight = weight * ((at >= 0) & (at < n)).float().view([-1 if i == axis else 1 for i in range(3)])
        turned = [axis - 3 for axis in range(3) if rng.random() < 0.5]
        block, target, weight = (torch.flip(a, turned) if turned else a for a in (block, target, weight))
        noise = torch.as_tensor(rng.standard_normal(block.shape[1:], np.float32), device=block.device)
        hu = block[0] + 2 / (high - low) * (
            rng.uniform(-1, 1) * settings.shift_hu + rng.random() * settings.noise_hu * noise
        )
        blocks.append(torch.cat([hu.clamp(-1, 1)[None], block[1:]]))
        targets.append(target)
        weights.append(weight)
    seeds = rng.integers(2**62, size=settings.batch).tolist()
    return torch.stack(blocks), torch.stack(targets), torch.stack(weights), seeds


def _objective(net: Any, batch: tuple[Tensor, Tensor, Tensor, list[int]]) -> Tensor:
    """Cross entropy over the band, the mean over tiles, for a PatchNet, which `fit` takes as any Module.

    A large lesion's tile holds more of the band than a small one's."""
    block, target, weight, seeds = batch
    loss = F.binary_cross_entropy_with_logits(net.dense(block, seeds).float(), target, reduction="none")
    return ((loss * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)).mean()


def _errors(net: PatchNet, bank: _Bank) -> dict[str, float]:
    """Share of the band's voxels that the mask and the net have wrong, averaged over cases."""
    rows = []
    for part, truth in zip(bank.parts, bank.truths):
        on = truth[part.band] >= 0.5
        drawn = part.drawn[part.band]
        said = dense_logits(net, part.channels, part.band)[part.band] >= 0
        rows.append([float((drawn != on).float().mean()), float((said != on).float().mean())])
    mask_error, net_error = np.mean(rows, axis=0)
    return {"mask_error": float(mask_error), "net_error": float(net_error)}


def train(
    cases: Sequence[Case],
    settings: BoundarySettings = DEMO,
    seed: int = 0,
    progress: Callable[[str, int, int, dict], None] | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    start: Path | None = None,
) -> BoundaryModel:
    """Train on the bands of predicted lesions. Of many patients a share is held out, for the curve only.

    It begins with the net in the folder `start`, if one is given, else with random weights. Saves `folder/model`, and goes on from
    its checkpoint where there is one. Refused when no case has a band.
    """
    cases = [case if isinstance(case, Case) else Case(**case) for case in cases]
    patients = sorted({case.patient for case in cases})
    order = np.random.default_rng(seed).permutation(len(patients))
    enough = len(patients) >= settings.validation_from
    held_out = {patients[i] for i in order[: int(settings.validation_share * len(patients) * enough)]}
    training, skipped = _bank([c for c in cases if c.patient not in held_out], settings, device)
    checking, none = _bank([c for c in cases if c.patient in held_out], settings, device)
    if not training.lesions:
        raise Refused(
            "boundary training",
            f"{len(cases)} cases without a predicted lesion",
            "at least one lesion to learn from",
            "Train the tumor stage longer, or lower its threshold.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PatchNet(settings)
    if start is not None:
        net.load_state_dict(_weights_of(start, settings))
    net.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
    curves = fit(
        net,
        lambda step: _draw(training, settings, seed, step),
        _objective,
        FitSettings(
            steps=settings.steps,
            batch=settings.batch,
            rate=settings.rate,
            weight_decay=settings.weight_decay,
            check_every=max(1, settings.steps // 8),
            seed=seed,
            ema=settings.ema,
        ),
        folder,
        "model",
        {"format": FORMAT, "settings": asdict(settings), "skipped": skipped + none},
        (lambda *_: _errors(net, checking)) if checking.parts else None,
        device,
        progress,
        defaults={"settings": asdict(BoundarySettings())},
    )
    return BoundaryModel(net, settings, curves, skipped + none)
