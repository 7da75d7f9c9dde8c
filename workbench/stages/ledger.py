"""The ledger: which stage decided the label of each voxel.

Ours; the paper has none. A code stands for a voxel's whole history through the stages, so the tumor mask after any stage can be read
from the ledger alone, and the cascade's mask with the ledger applied to it is the final one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ABLATION = ("cascade", "consistency", "candidates", "forest", "boundary")
# ledger code -> (meaning, tumor after cascade, consistency, candidates, forest, boundary). These 15, and never tumor, are all that can
# happen: candidates and forest only take away.
HISTORY = {
    2: ("tumor by the cascade", (1, 1, 1, 1, 1)),
    3: ("restored by consistency", (0, 1, 1, 1, 1)),
    4: ("suppressed by consistency", (1, 0, 0, 0, 0)),
    5: ("dropped: too small or outside the liver", (1, 1, 0, 0, 0)),
    6: ("rejected by the forest", (1, 1, 1, 0, 0)),
    7: ("added at the boundary", (0, 0, 0, 0, 1)),
    8: ("removed at the boundary", (1, 1, 1, 1, 0)),
    21: ("restored, then dropped", (0, 1, 0, 0, 0)),
    22: ("restored, then rejected", (0, 1, 1, 0, 0)),
    23: ("suppressed, then added back at the boundary", (1, 0, 0, 0, 1)),
    24: ("restored, then removed at the boundary", (0, 1, 1, 1, 0)),
    39: ("dropped, then added back at the boundary", (1, 1, 0, 0, 1)),
    55: ("rejected, then added back at the boundary", (1, 1, 1, 0, 1)),
    71: ("restored, dropped, then added back at the boundary", (0, 1, 0, 0, 1)),
    87: ("restored, rejected, then added back at the boundary", (0, 1, 1, 0, 1)),
}
CODES = {0: "background", 1: "liver, never tumor"} | {code: meaning for code, (meaning, _) in HISTORY.items()}


def tumor_after(ledger: Tensor, stage: str) -> Tensor:
    """The tumor mask after a stage of the ablation, bool, from the ledger alone."""
    column = ABLATION.index(stage)
    on = torch.zeros(256, dtype=torch.bool)
    on[[code for code, (_, history) in HISTORY.items() if history[column]]] = True
    return _looked_up(on, ledger)


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """table[codes] of small codes; on the CPU slice by slice, since an index is int64, eight times the codes."""
    if codes.is_cuda:
        return table.to(codes.device)[codes.int()]
    out = torch.empty(codes.shape, dtype=table.dtype)
    for given, found in zip(codes.numpy(), out.numpy()):
        np.take(table.numpy(), given, out=found, mode="clip")
    return out


def write(masks: list[Tensor], liver_mask: Tensor) -> Tensor:
    """The ledger uint8 from the masks after each stage of the ablation, [z y x] each, on their device."""
    code_of = torch.full((32,), 255, dtype=torch.uint8)
    code_of[0] = 0
    for code, (_, history) in HISTORY.items():
        code_of[sum(bit << n for n, bit in enumerate(history))] = code
    pattern = torch.zeros(masks[0].shape, dtype=torch.uint8, device=masks[0].device)
    for n, mask in enumerate(masks):
        pattern |= mask.to(torch.uint8) << n
    ledger = _looked_up(code_of, pattern)
    if bool((ledger == 255).any()):
        raise AssertionError("a voxel came back as tumor in a stage that only takes away")
    ledger[(ledger == 0) & liver_mask] = 1
    return ledger
