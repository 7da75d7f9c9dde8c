"""The liver out of its map, and what the tumor's net is shown of it: by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.nets import slabs
from workbench.stages import liver, tumor
from workbench.stages.liver import LiverSettings
from workbench.stages.tumor import TumorSettings

SPACING = (5.0, 2.0, 1.0)  # 0.01 ml a voxel
SMALL = LiverSettings(minimum_ml=0.1)


def found(mask, settings=SMALL):
    return liver.mask(mask.float() * 0.5, SPACING, settings)


def test_the_largest_piece_is_the_liver_and_corners_join():
    p = torch.zeros(4, 9, 12, dtype=torch.bool)
    p[0, 0, :8] = True  # the first piece, of 8 voxels
    big = torch.zeros_like(p)
    big[1:3, 4:7, 2:4] = True
    big[3, 7, 4:6] = True  # it hangs on by a corner: 14 voxels
    assert torch.equal(found(p | big), big)


def test_holes_are_filled_slice_by_slice():
    """A vessel that leaves through the first and the last slice is no hole of the body, but one of each slice."""
    p = torch.zeros(3, 6, 7, dtype=torch.bool)
    p[:, 1:5, 1:6] = True
    whole = p.clone()
    p[:, 2, 3] = False
    p[1, 4, 5] = False  # open to the outside
    whole[1, 4, 5] = False
    assert torch.equal(found(p), whole)


def test_what_is_smaller_than_any_liver_is_none():
    p = torch.zeros(3, 6, 7, dtype=torch.bool)
    p[1, 2, :5], p[2, 2, :5] = True, True  # 10 voxels
    assert torch.equal(found(p), p) and not found(p, replace(SMALL, minimum_ml=0.101)).any()
    assert not found(p & False).any()
    assert not liver.mask(p.float() * 0.49, SPACING, SMALL).any()


def test_a_liver_is_doubted_for_its_volume_and_for_its_share_of_the_scan():
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[:6] = True
    assert liver.doubts(mask, (10.0, 20.0, 30.0)) == []  # 3,600 ml, 60 %
    assert "4,200 ml" in liver.doubts(mask, (10.0, 20.0, 35.0))[0]
    mask[6, 0, 0] = True
    assert liver.doubts(mask, (1.0, 1.0, 1.0))


def test_the_liver_net_learns_that_tumors_are_liver_and_where_each_lies():
    labels = torch.zeros(2, 4, 8, dtype=torch.uint8)
    labels[:, :, :6], labels[0, 1:3, 0:2], labels[1, 0, 4] = 1, 2, 2
    case = liver.bank_case(torch.full((2, 4, 8), 40.4), labels, (5.0, 3.0, 3.0), LiverSettings(pixel_mm=3.0))
    assert torch.equal(case.target, labels >= 1) and torch.equal(case.lesions > 0, labels == 2)
    assert case.lesions.unique().tolist() == [0, 1, 2] and case.hu.unique().tolist() == [40.0]


def test_the_tumor_net_counts_hu_from_the_median_of_the_liver_alone(monkeypatch):
    """In the liver 90, 100, 100 and 400 HU, beside it air; what is outside the box is never asked and is no tumor."""
    hu, p = torch.full((1, 3, 5), -1000.0), torch.zeros(1, 3, 5)
    hu[0, 1, :4], p[0, 1, :4] = torch.tensor([90.0, 100.0, 100.0, 400.0]), torch.tensor([0.5, 0.6, 0.9, 1.0])
    counted = tumor.from_liver(hu, p)
    assert counted[0, 1].tolist() == [-10.0, 0.0, 0.0, 300.0, -1100.0]
    at, given = (slice(0, 1), slice(1, 2), slice(0, 5)), []
    monkeypatch.setattr(slabs, "predict", lambda nets, *rest: given.append(rest) or torch.full((1, 1, 5), 0.7))
    out = tumor.probability([], hu, p, at, TumorSettings())
    assert out.tolist() == pytest.approx(np.array([[[0.0] * 5, [0.7] * 5, [0.0] * 5]]))
    assert torch.equal(given[0][0], counted[at]) and torch.equal(given[0][1], p[at])
    assert not tumor.probability([], hu, p, None, TumorSettings()).any()


def test_a_liver_that_no_voxel_is_sure_of_has_a_median_too():
    """With `liver.threshold` below 1/2 one can be found; from half the largest probability on its voxels count."""
    hu, p = torch.tensor([[[10.0, 20, 30, 90]]]), torch.tensor([[[0.4, 0.2, 0.3, 0.1]]])
    assert torch.equal(tumor.from_liver(hu, p), hu - 20)
