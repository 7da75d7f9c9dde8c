"""Stage 2: the tumor's probability map.

States: the second network of the cascade gives a tumor probability map.
Chooses: it sees the liver's box with a margin at the full in-plane resolution of the work grid, and the liver probability of stage
1 as one more channel. Slabs are drawn so that each lesion counts the same, however small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workbench import slabs
from workbench.cascade import CascadeSettings
from workbench.network import NetworkSettings
from workbench.volume import Box, Spacing, bounding_box, numbered


@dataclass(frozen=True)
class TumorSettings:
    margin_mm: float = 15.0
    cascade: CascadeSettings = field(
        default_factory=lambda: CascadeSettings(
            NetworkSettings(extra=1), slabs.SlabSettings(window_hu=(-60.0, 220.0), flip=True, foreground=0.5)
        )
    )


def box(liver: Tensor, spacing_mm: Spacing, settings: TumorSettings) -> Box | None:
    return bounding_box(liver, spacing_mm, settings.margin_mm)


def bank_case(hu: Tensor, labels: Tensor, liver_probability: Tensor, at: Box) -> slabs.BankCase:
    """One case for training; `liver_probability` is out of fold, `at` the box of the liver found in it."""
    tumor = labels[at] == 2
    return slabs.BankCase(hu[at].round(), tumor, liver_probability[at], numbered(tumor))


def probability(
    nets: Sequence[nn.Module],
    hu: Tensor,
    liver_probability: Tensor,
    at: Box | None,
    settings: TumorSettings,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Tumor probability [z y x] on the grid of `hu`; zero outside the liver's box."""
    out = torch.zeros(hu.shape)
    if at is not None:
        window = settings.cascade.slabs.window_hu
        out[at] = slabs.predict(nets, hu[at].float(), liver_probability[at], window, device)
    return out
