"""What both cascade stages share: one network class, two configurations, trained fold by fold.

States: a two-stage cascade. Chooses: patient-grouped folds; the net of a fold never sees that fold's patients, so the
maps that later stages learn from are out of fold. The held-out patients show how far it is and choose nothing; where
the best checkpoint is wanted, training patients that are set aside choose it. New patients get the mean of all fold models' logits, which stays as sharp as
one model's map, the kind that later stages have learned from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, cast

import pandas as pd
import torch
from torch import nn

from workbench.nets import fit, slabs
from workbench.nets.losses import deep_supervision
from workbench.nets.network import NetworkSettings, SlabNet
from workbench.volume import Refused

_DRAWING = Lock()  # first weights come from torch's one generator, and folds may train in threads


@dataclass(frozen=True)
class CascadeSettings:
    """One stage of the cascade: its net, how slabs are drawn, how long it trains."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    slabs: slabs.SlabSettings = field(default_factory=slabs.SlabSettings)
    fit: fit.FitSettings = field(default_factory=fit.FitSettings)


def train_fold(
    training: Sequence[slabs.BankCase],
    held_out: Sequence[slabs.BankCase],
    settings: CascadeSettings,
    folder: Path,
    fold: int,
    device: torch.device | str,
    progress=None,
    choosing: Sequence[slabs.BankCase] = (),
    start: Path | None = None,
) -> pd.DataFrame:
    """Train one fold's net on `training`. Saves `folder/fold<n>`.

    Its curve shows the Dice of slabs and of a few whole volumes of `held_out`. Of `choosing`, where there is one, the Dice of
    whole volumes decides which weights are kept; else the last ones are. It begins with the same fold's net in the folder
    `start`, if one is given, else with random weights.
    """
    seed = settings.fit.seed + 101 * fold
    if start is None:
        with _DRAWING:
            torch.manual_seed(seed)
            net = _channels_last(SlabNet(settings.network), device)
    else:
        net = load_fold(start, settings, fold, device)
    resident = sum(c.bytes for c in training) <= slabs.room(device)
    bank = slabs.SlabBank(training, device, resident)

    def draw(step: int) -> tuple:
        return bank.draw(settings.slabs, settings.network.slices, settings.fit.batch, seed, step)

    still = replace(
        settings.slabs,
        scale=0.0,
        rotate_degrees=0.0,
        flip=False,
        elastic=0.0,
        thick=0.0,
        shift_hu=0.0,
        contrast=0.0,
        noise_hu=0.0,
        blur=0.0,
        blobs=0.0,
        prior_fade=0.0,
        prior_bite=0.0,
        prior_drop=0.0,
    )
    check = (
        slabs.SlabBank(held_out, device, resident).draw(still, settings.network.slices, 64, seed, 0)
        if held_out
        else None
    )

    shown = held_out[:: max(1, len(held_out) // max(1, settings.fit.volumes))][: settings.fit.volumes]

    def validate(net: nn.Module, whole: bool) -> dict:
        row = {}
        if check is not None:
            with torch.inference_mode(), slabs.autocast(device):
                on = net(check[0]) > 0
            truth = check[1] > 0.5
            row["dice"] = float(2 * (on & truth).sum() / (on.sum() + truth.sum()).clamp_min(1))
        for name, cases in (("volume_dice", shown), ("inner_dice", choosing)):
            if whole and cases:
                row[name] = _volume_dice(net, cases, settings, device)
        return row

    return fit.fit(
        net,
        draw if resident else slabs.ahead(draw),
        lambda net, batch: deep_supervision(net(batch[0]), batch[1]),
        settings.fit,
        folder,
        f"fold{fold}",
        {"network": asdict(settings.network), "slabs": asdict(settings.slabs), "fold": fold},
        validate,
        device,
        progress,
        "inner_dice" if choosing else None,
        {"network": asdict(NetworkSettings()), "slabs": asdict(slabs.SlabSettings())},
    )


def _volume_dice(
    net: nn.Module, cases: Sequence[slabs.BankCase], settings: CascadeSettings, device: torch.device | str
) -> float:
    """Dice of whole volumes on the stage's grid at a probability of one half, the mean over cases; 1 where both are empty."""
    dice = []
    for case in cases:
        on = slabs.predict([net], case.hu, case.prior, settings.slabs.window_hu, device) >= 0.5
        truth = case.target.cpu() > 0.5
        total = int(on.sum() + truth.sum())
        dice.append(2 * int((on & truth).sum()) / total if total else 1.0)
    return sum(dice) / len(dice)


def load(
    folder: Path, settings: CascadeSettings, device: torch.device | str, folds: Sequence[int] | None = None
) -> list[SlabNet]:
    """The nets of the given folds (all by default), in evaluation mode; refused when trained with other settings."""
    numbers = (
        folds
        if folds is not None
        else sorted(int(p.stem[4:]) for p in folder.glob("fold*.json") if p.stem[4:].isdigit())
    )
    if not numbers:
        raise Refused(folder, "no trained net", "fold0.json and its weights", "Train this stage first.")
    return [load_fold(folder, settings, n, device) for n in numbers]


def load_fold(folder: Path, settings: CascadeSettings, fold: int, device: torch.device | str) -> SlabNet:
    tensors, about = fit.load_tensors(folder / f"fold{fold}")
    stored = (about.get("config") or {}).get("network")
    wanted = json.loads(json.dumps(asdict(settings.network)))
    if stored != wanted:
        known = stored if isinstance(stored, dict) else {}
        differs = {k: (known.get(k), v) for k, v in wanted.items() if known.get(k) != v}
        raise Refused(
            folder / f"fold{fold}",
            f"a net of another configuration, (stored, asked for) {differs}",
            "the same",
            "Train this stage again.",
        )
    net = SlabNet(settings.network)
    fit.fill(net, tensors, folder / f"fold{fold}")
    return _channels_last(net, device).eval()


def _channels_last(net: SlabNet, device: torch.device | str) -> SlabNet:
    """On the device, in the order of memory that convolutions are fastest in."""
    return cast(
        SlabNet, cast(Any, net).to(device, memory_format=torch.channels_last)
    )  # torch's stub of Module.to lacks it
