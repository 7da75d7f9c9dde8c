"""Three-slice consistency along the body axis.

States: a simple three-slice rule along the cranio-caudal axis that restores thin and tiny lesions and suppresses isolated noise.
Chooses: with probability p and m = p >= threshold, a voxel whose two z-neighbours are both in m is set where p >= low; a voxel of m
with neither z-neighbour in m is cleared unless p >= keep, so a real one-slice lesion survives when the net is sure of it. The outermost slice
is repeated beyond the ends. One pass, pure. On slices thicker than `restore_only_above_mm` nothing is cleared: there the net often
sees a true lesion in one slice only (docs/decisions/0004).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.volume import Refused

# rule: a field of view of ten slices or more, divided into whole slices of about a stated thickness, misses it by at most 5 %
ROUNDING = 1.05


@dataclass(frozen=True)
class ConsistencySettings:
    threshold: float = (
        0.3  # empirical: sensitive, since the forest takes false positives away (docs/log.md, 2026-11-25)
    )
    low: float = 0.1  # empirical, same entry
    keep: float = 0.8
    # the work grid's slices are about as thick as asked, to within ROUNDING
    restore_only_above_mm: float = 3.0  # empirical, same entry: in thicker slices a 10 mm lesion often shows in one

    def __post_init__(self):
        if not 0 <= self.low <= self.threshold <= self.keep <= 1:
            found = f"low {self.low}, threshold {self.threshold}, keep {self.keep}"
            raise Refused("consistency", found, "them in rising order in [0, 1]")

    def clears(self, slice_mm: float) -> bool:
        """Whether slices of this thickness are thin enough for clearing."""
        return slice_mm <= self.restore_only_above_mm * ROUNDING


class Refined(NamedTuple):
    mask: Tensor
    restored: Tensor
    suppressed: Tensor


def refine(
    probability: Float[Tensor, "z y x"], slice_mm: float, settings: ConsistencySettings = ConsistencySettings()
) -> Refined:
    """Refined mask, what was added and what was removed, all bool [z y x]."""
    mask: Bool[Tensor, "z y x"] = probability >= settings.threshold
    below = torch.cat([mask[:1], mask[:-1]])
    above = torch.cat([mask[1:], mask[-1:]])
    restored = ~mask & below & above & (probability >= settings.low)
    suppressed = mask & ~below & ~above & (probability < settings.keep)
    if not settings.clears(slice_mm):
        suppressed = torch.zeros_like(suppressed)
    return Refined((mask | restored) & ~suppressed, restored, suppressed)
