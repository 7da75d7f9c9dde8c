"""Losses of the three networks: Dice + cross entropy, with deep supervision.

Chooses: soft Dice of each slab, so that a lesion of twenty pixels weighs as much as one of two thousand, plus binary cross
entropy; `SMOOTH` pixels keep a slab without lesion from being all or nothing. Coarser scales weigh half of the next
finer one, against the area-averaged target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 10.0  # empirical: pixels; the log, 2026-11-23


def dice_loss(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """1 - soft Dice, the mean over the slabs [b 1 h w]."""
    p, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    return (1 - (2 * (p * target).sum(1) + smooth) / (p.sum(1) + target.sum(1) + smooth)).mean()


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss plus mean binary cross entropy of slabs [b 1 h w], the target in [0, 1]."""
    logits, target = logits.float(), target.float()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean() + dice_loss(logits, target)


def deep_supervision(outputs: list[Tensor], target: Tensor) -> Tensor:
    """Sum over scales, finest first, each half the weight of the one before; target [b 1 h w] in [0, 1]."""
    total, share = target.new_zeros(()), 1.0
    for logits in outputs:
        size = (logits.shape[-2], logits.shape[-1])
        at = target if size == target.shape[-2:] else F.adaptive_avg_pool2d(target, size)
        total = total + share * dice_cross_entropy(logits, at)
        share /= 2
    return total
