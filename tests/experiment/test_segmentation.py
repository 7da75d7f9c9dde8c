"""From the work grid to the volume's own: by hand along x, each new voxel half as wide."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.experiment import segmentation
from workbench.experiment.segmentation import Decided
from workbench.masks import components


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


@pytest.mark.parametrize("fine", [(30, 60, 60), (8, 33, 47), (12, 24, 24)])
def test_small_pieces_keep_their_volume_on_another_grid(fine):
    """A voxel, a pair, a rod and a ball: interpolation alone leaves a third, half and nine tenths of them."""
    shape = (12, 24, 24)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2, 3, 3] = mask[2, 12, 3:5] = mask[3:9, 20, 20] = True
    at = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    mask |= ((at - torch.tensor([7, 10, 12]).view(3, 1, 1, 1)) ** 2).sum(0) < 6
    ratio = math.prod(fine) / math.prod(shape)
    carried = segmentation._carried(mask.float() - 0.5, fine)
    number, count = components(carried)
    assert count == 4
    want = sorted(round(int(n) * ratio) or 1 for n in np.bincount(components(mask)[0].ravel())[1:])
    assert sorted(np.bincount(number.ravel())[1:].tolist()) == want
    assert fine != shape or torch.equal(carried, mask)


def test_two_pieces_side_by_side_stay_two():
    mask = torch.zeros(6, 12, 12, dtype=torch.bool)
    mask[3, 5, 3:5] = mask[3, 5, 6:8] = True
    assert components(segmentation._carried(mask.float() - 0.5, (18, 36, 36)))[1] == 2


def test_a_large_piece_is_interpolated_as_ever():
    at = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (16, 24, 24)), indexing="ij"))
    mask = ((at - 10) ** 2).sum(0) < 36
    assert int(mask.sum()) > segmentation.SMALL
    level = mask.float() - 0.5
    assert torch.equal(segmentation._carried(level, (32, 48, 48)), segmentation.resample(level, (32, 48, 48)) >= 0)
