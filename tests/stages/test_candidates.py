import numpy as np
import pytest
import torch

from workbench.stages import candidates
from workbench.stages.candidates import CandidateSettings

SPACING = (4.0, 2.0, 1.0)  # 0.008 ml a voxel
ALL = CandidateSettings(minimum_ml=0.0, liver_margin_mm=0.0)


def scene():
    mask, liver = torch.zeros(6, 10, 14, dtype=torch.bool), torch.ones(6, 10, 14, dtype=torch.bool)
    mask[1:3, 2:4, 2:5] = True  # 12 voxels
    mask[4, 8, 10] = True  # 1 voxel
    return mask, liver


def test_pieces_are_numbered_largest_first_with_their_measures():
    mask, liver = scene()
    found = candidates.find(mask, mask.float() * 0.7, liver, SPACING, ALL)
    assert found.table.candidate.tolist() == [1, 2]
    assert found.table.volume_ml.tolist() == pytest.approx([12 * 0.008, 0.008])
    assert found.table.loc[0, ["z_mm", "y_mm", "x_mm"]].tolist() == pytest.approx([6.0, 5.0, 3.0])
    assert found.table.mean_probability.tolist() == pytest.approx([0.7, 0.7])
    assert found.table.touches_border.tolist() == [False, False]
    assert (found.labels == 1).sum() == 12 and (found.labels == 2).sum() == 1


def test_a_piece_is_told_by_its_own_voxels_and_touches_either_end_of_an_axis():
    """An angle of three voxels in a box of four, and a single voxel in the last column."""
    mask, liver = torch.zeros(6, 10, 14, dtype=torch.bool), torch.ones(6, 10, 14, dtype=torch.bool)
    probability = torch.full(mask.shape, 0.9)
    for place, p in (((2, 3, 4), 0.3), ((2, 3, 5), 0.5), ((2, 4, 4), 0.7), ((4, 8, 13), 0.6)):
        mask[place], probability[place] = True, p
    table = candidates.find(mask, probability, liver, SPACING, ALL).table
    assert table.mean_probability.tolist() == pytest.approx([0.5, 0.6])
    assert table.max_probability.tolist() == pytest.approx([0.7, 0.6])
    assert table.touches_border.tolist() == [False, True]


def test_corners_join():
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert len(candidates.find(mask, mask.float(), torch.ones_like(mask), SPACING, ALL).table) == 1


def test_small_and_outside_are_dropped_and_counted():
    mask, liver = scene()
    found = candidates.find(mask, mask.float(), liver, SPACING, CandidateSettings(minimum_ml=0.01, liver_margin_mm=0))
    assert found.dropped == 1 and int((mask & (found.labels == 0)).sum()) == 1 and len(found.table) == 1
    just = CandidateSettings(minimum_ml=0.008, liver_margin_mm=0)
    assert len(candidates.find(mask, mask.float(), liver, SPACING, just).table) == 2, "it has the least volume"
    liver[:, :6] = False
    found = candidates.find(mask, mask.float(), liver, SPACING, ALL)
    assert len(found.table) == 1 and int((mask & (found.labels == 0)).sum()) == 12


def test_a_bulge_within_the_margin_stays():
    mask, liver = scene()
    liver[:, :, :6] = False  # the big piece ends 1 mm before the liver starts
    inside = candidates.find(mask, mask.float(), liver, SPACING, CandidateSettings(minimum_ml=0, liver_margin_mm=4.0))
    assert int((inside.labels > 0).sum()) == 13
    outside = candidates.find(mask, mask.float(), liver, SPACING, CandidateSettings(minimum_ml=0, liver_margin_mm=0.5))
    assert int((outside.labels > 0).sum()) == 1


def test_nothing_found_is_an_empty_table():
    empty = torch.zeros(3, 4, 5, dtype=torch.bool)
    found = candidates.find(empty, empty.float(), ~empty, SPACING)
    assert len(found.table) == 0 and list(found.table.columns) == candidates.COLUMNS
    assert [a.tolist() for a in candidates.match(found.labels, empty)] == [[], []]


def test_match_needs_its_share_and_names_the_lesion():
    mask, liver = scene()
    found = candidates.find(mask, mask.float(), liver, SPACING, ALL)
    truth = torch.zeros(mask.shape, dtype=torch.int32)
    truth[1, 2, 2] = 3  # 1 of 12 voxels
    for overlap, is_lesion in ((0.05, [True, False]), (0.1, [False, False])):
        hits, lesion = candidates.match(found.labels, truth, CandidateSettings(overlap=overlap))
        assert hits.tolist() == is_lesion and lesion.tolist() == [3, 0]
    truth[1, 2:4, 2:4] = 3
    for share, is_lesion in ((4 / 12, True), (0.4, False)):  # of all its voxels, not of the others
        assert candidates.match(found.labels, truth, CandidateSettings(overlap=share))[0][0] == is_lesion
    hits, lesion = candidates.match(found.labels, torch.zeros_like(truth), CandidateSettings(overlap=0.0))
    assert hits.tolist() == [False, False] and lesion.tolist() == [0, 0]


def test_match_names_the_lesion_that_is_shared_most():
    labels, truth = torch.zeros(2, 1, 3, 8, dtype=torch.int32)
    labels[0, 0, :6], labels[0, 2, 5:] = 1, 2
    truth[0, 0, :2], truth[0, 0, 2:6], truth[0, 2, 7] = 1, 2, 1
    hits, lesion = candidates.match(labels, truth)
    assert hits.tolist() == [True, True] and lesion.tolist() == [2, 1]


def test_long_axis_lies_in_one_slice():
    line = np.array([[0, 0, 0], [0, 0, 9], [5, 0, 0]])
    assert candidates.long_axis_mm(line, (4.0, 2.0, 1.0)) == pytest.approx(9 + 1.5)
    assert candidates.long_axis_mm(np.array([[0, 0, 0]]), (4.0, 2.0, 1.0)) == pytest.approx(1.5)
    straight = np.array([[0, 0, x] for x in range(80)])
    assert candidates.long_axis_mm(straight, (4.0, 2.0, 1.0)) == pytest.approx(79 + 1.5)
