"""From the work grid to the volume's own: by hand along x, each new voxel half as wide."""

import pandas as pd
import torch

from workbench import segmentation
from workbench.segmentation import Decided


def row(*values):
    return torch.tensor(values)[None, None].expand(2, 3, -1).clone()


def test_a_level_is_mirrored_where_its_sign_is_not_the_masks():
    level, mask = row(-0.25, 0.5, 0.25, -0.5, 0.0), row(True, True, False, False, False)
    out = segmentation._agree(level, mask)
    assert torch.equal(out >= 0, mask) and out[..., :2].flatten().unique().tolist() == [0.25, 0.5]
    assert torch.allclose(out[0, 0, 2:], torch.tensor([-0.25, -0.5, 0.0]), atol=2e-4)
    assert torch.equal(level, row(-0.25, 0.5, 0.25, -0.5, 0.0)), "what was given stays"


def test_masks_are_carried_by_halves_of_a_voxel_and_the_last_by_its_own_edge():
    mask = row(True, False)
    decided = Decided([mask] * 5, row(0.5, -0.1), pd.DataFrame(), mask.short(), 0.0)
    *before, last = segmentation.on_own_grid(decided, (2, 3, 4))
    assert all(torch.equal(one, row(True, True, False, False)) for one in before) and len(before) == 4
    assert torch.equal(last, row(True, True, True, False))  # 0.5, 0.35, 0.05, -0.1


def test_a_mask_that_reaches_beyond_a_candidate_has_its_number():
    numbers = torch.zeros(2, 3, 6, dtype=torch.int16)
    numbers[..., 0], numbers[..., 5] = 1, 2
    mask = torch.ones(2, 3, 12, dtype=torch.bool)
    mask[..., 2] = False
    assert torch.equal(segmentation._numbers_on(numbers, mask), row(*[1, 1, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]).short())
