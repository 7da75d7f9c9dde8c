"""Stage 2: the tumor's probability map.

States: the second network of the cascade gives a tumor probability map.
Chooses: it sees the liver's box with a margin at the full in-plane resolution of the work grid, HU counted from the liver's own median
(a lesion is what differs from its liver, whatever the contrast phase), and the liver probability of stage 1 as one more
channel. Slabs are drawn so that each lesion counts the same, however small. Made-up lesions are drawn into half of them
(after SynTumor, Hu et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workbench.masks import bounding_box, numbered
from workbench.nets import slabs
from workbench.nets.cascade import CascadeSettings
from workbench.nets.network import NetworkSettings
from workbench.volume import Box, Spacing

WINDOW_HU = (-120.0, 100.0)  # a choice: from cyst to vessel, counted from the liver's median

BLOB_HU = (
    (-80.0, -14.0),
    (-50.0, -14.0),
    (-50.0, -14.0),
    (15.0, 60.0),
)  # a choice: most lesions are darker than the liver


@dataclass(frozen=True)
class TumorSettings:
    """How far the box reaches beyond the liver, and the net."""

    margin_mm: float = 15.0
    cascade: CascadeSettings = field(
        default_factory=lambda: CascadeSettings(
            NetworkSettings(slices=5, extra=1),
            slabs.SlabSettings(
                window_hu=WINDOW_HU,
                shift_hu=8.0,
                flip=True,
                foreground=0.5,
                blobs=0.5,
                blob_hu=BLOB_HU,
                blob_is_target=True,
            ),
        )
    )


def box(liver: Tensor, spacing_mm: Spacing, settings: TumorSettings) -> Box | None:
    """The box of a liver mask [z y x] and its margin; None without a liver."""
    return bounding_box(liver, spacing_mm, settings.margin_mm)


def from_liver(hu: Tensor, liver_probability: Tensor) -> Tensor:
    """HU counted from the median of the liver, [z y x] float32: of voxels of a probability of 1/2, or, where none has it, of half the largest."""
    top = float(liver_probability.max())
    return hu - hu[liver_probability >= (0.5 if top >= 0.5 else top / 2)].float().median()


def bank_case(
    hu: Tensor, labels: Tensor, liver_probability: Tensor, at: Box, ignore: Tensor | None = None
) -> slabs.BankCase:
    """One case for training; `liver_probability` is out of fold, `at` the box of the liver found in it, `ignore` (bool [z], of the box)
    slices for which nothing is learned."""
    tumor = labels[at] == 2
    return slabs.BankCase(
        from_liver(hu[at], liver_probability[at]).round(), tumor, liver_probability[at], numbered(tumor), ignore
    )


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
        out[at] = slabs.predict(nets, from_liver(hu[at], liver_probability[at]), liver_probability[at], window, device)
    return out
