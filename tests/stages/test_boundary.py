"""The boundary stage: a band solved by hand, dense against patch by patch, what relabelling may not do, and its use."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from workbench.nets.fit import FitSettings
from workbench.stages import boundary
from workbench.stages.boundary import (
    DEMO,
    PAPER,
    BoundaryModel,
    BoundarySettings,
    Case,
    PatchNet,
    contour,
    surface,
    training,
)
from workbench.stages.boundary.grid import OnGrid, carry, onto_grid
from workbench.volume import Refused

SPACING = (4.0, 2.5, 2.5)
SMALL = replace(
    DEMO, patch=(5, 13, 13), widths=(4, 8, 8, 8, 8), kernels=((3, 5, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    dense_widths=(16, 8), steps=50, batch=4, tile=(6, 16, 16), rate=1e-2, validation_share=0.0,
)  # fmt: skip


def ball(shape, centre, radius_mm, spacing_mm=SPACING):
    axes = [(torch.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing_mm)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt() <= radius_mm


def untrained(settings=SMALL, seed=0):
    """A net whose every weight, running mean and variance matters."""
    torch.manual_seed(seed)
    net = PatchNet(settings)
    for norm in net.norm:
        torch.nn.init.normal_(norm.running_mean, std=0.3)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
        torch.nn.init.normal_(norm.bias, std=0.3)
    torch.nn.init.normal_(net.fc8.weight, std=0.5)
    return net.eval()


def says(logit, settings=SMALL):
    """A model that gives the same answer everywhere."""
    net = PatchNet(settings).eval()
    torch.nn.init.zeros_(net.fc8.weight)
    torch.nn.init.constant_(net.fc8.bias, logit)
    torch.nn.init.zeros_(net.trust)
    return BoundaryModel(net, settings)


# -- the band ---------------------------------------------------------------------------------------------------------


def test_band_of_one_voxel_by_hand():
    mask = torch.zeros(5, 9, 7, dtype=torch.bool)
    mask[2, 4, 3] = True
    near = boundary.band(mask, (4.0, 2.0, 1.0), 2.0)
    # to the voxel's faces: z neighbours 2 mm, y neighbours 1 mm (the second 3), x neighbours 0.5, 1.5 (2.5)
    along = [near[:, 4, 3].tolist(), near[2, :, 3].tolist(), near[2, 4, :].tolist()]
    assert along[0] == [False, True, True, True, False]
    assert along[1] == [False, False, False, True, True, True, False, False, False]
    assert along[2] == [False, True, True, True, True, True, False]
    assert near[2, 5, 5] and not near[1, 3, 3]  # sqrt(1 + 2.25) = 1.8 mm; sqrt(4 + 1) = 2.2 mm


def test_signed_distance_is_that_to_the_voxel_faces():
    """Against a Euclidean distance transform on the lattice of half voxels, on which every nearest face point lies."""
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.standard_normal((9, 14, 11)), 1.5) > 0.05
    spacing = (3.0, 0.8, 1.1)
    ours = boundary.signed_distance(torch.as_tensor(mask), spacing, 6.0).numpy()
    doubled = np.zeros([2 * n + 1 for n in mask.shape], int)  # centres at odd places
    touched = [np.zeros_like(doubled, dtype=bool) for _ in range(2)]
    for side, voxels in enumerate((~mask, mask)):
        for offset in product((-1, 0, 1), repeat=3):
            at = tuple((2 * axis + 1 + o) for axis, o in zip(np.nonzero(voxels), offset))
            touched[side][at] = True
    surface = touched[0] & touched[1]
    reference = ndimage.distance_transform_edt(~surface, [s / 2 for s in spacing])[1::2, 1::2, 1::2]
    expected = np.clip(np.where(mask, -reference, reference), -6, 6)
    assert np.abs(ours - expected).max() < 1e-5
    near = boundary.band(torch.as_tensor(mask), spacing, 1.7).numpy()
    assert (near == (reference <= 1.7)).all() and 0 < near.sum() < near.size


def test_band_of_nothing_and_of_everything_is_empty():
    for mask in (torch.zeros(3, 4, 5, dtype=torch.bool), torch.ones(3, 4, 5, dtype=torch.bool)):
        assert not boundary.band(mask, SPACING, 10.0).any()


# -- contrast relative to the lesion's own ------------------------------------------------------------------------------


def test_relative_contrast_is_one_in_a_lesion_minus_one_in_its_liver_and_zero_half_way():
    shape = (9, 40, 60)
    dark, bright, faint = (ball(shape, (4, 20, x), 10.0) for x in (10, 30, 50))
    hu = torch.full(shape, 100.0)
    hu[dark], hu[bright], hu[faint] = 40.0, 140.0, 97.0
    hu[4, 20, 15], hu[4, 20, 35] = 70.0, 120.0  # half way, just outside
    hu[4, 20, 16], hu[4, 20, 36] = 300.0, 300.0
    out = boundary.relative_contrast(hu, dark | bright | faint, None, SPACING)
    assert (out[dark] == 1).all() and (out[bright] == 1).all()
    assert out[4, 20, 15] == out[4, 20, 35] == 0
    assert out[4, 20, 16] == -2 and out[4, 20, 36] == 2  # unlike either of both, cut at twice their distance
    assert out[4, 14, 15] == out[4, 27, 25] == -1
    assert (out[:, :, 44:] == 0).all()  # a lesion without contrast tells nothing


def test_relative_contrast_reads_the_liver_only():
    shape = (9, 40, 40)
    lesion = ball(shape, (4, 20, 14), 12.0)
    hu, liver = torch.full(shape, 100.0), torch.ones(shape, dtype=torch.bool)
    liver[:, :, :16] = lesion[:, :, :16]  # most of what surrounds it is no liver
    hu[~liver], hu[lesion] = -100.0, 50.0
    assert boundary.relative_contrast(hu, lesion, liver, SPACING)[4, 20, 30] == -1
    assert boundary.relative_contrast(hu, lesion, None, SPACING)[4, 20, 30] != -1
    liver[:] = False
    assert not boundary.relative_contrast(hu, lesion, liver, SPACING).any()


def test_each_lesion_is_compared_with_its_own_surroundings_by_medians():
    """Two dark lesions across a corner, in tissue of 100 and of 200 HU, a spot of calcium in each: the medians do not feel it."""
    shape = (5, 40, 40)
    y, x = (axis.expand(shape) for axis in (torch.arange(40)[:, None], torch.arange(40)))
    hu = torch.where(y + x < 42, 100.0, 200.0)
    left, right = ball(shape, (2, 12, 12), 9.0), ball(shape, (2, 30, 30), 9.0)
    hu[left | right] = 50.0
    hu[2, 12, 12] = hu[2, 30, 30] = 3000.0
    out = boundary.relative_contrast(hu, left | right, None, SPACING)
    assert out[2, 12, 14] == out[2, 30, 28] == 1
    assert out[2, 12, 22] == out[2, 30, 20] == -1


def test_a_lesion_without_a_core_is_known_by_all_its_voxels():
    hu, lesion = torch.full((5, 20, 20), 100.0), torch.zeros(5, 20, 20, dtype=torch.bool)
    lesion[2, 10, 10:12] = True
    hu[lesion] = 40.0
    out = boundary.relative_contrast(hu, lesion, None, SPACING)
    assert (out[lesion] == 1).all() and (out[~lesion] == -1).all()


def test_the_nearest_lesion_is_so_in_mm():
    mask = torch.zeros(4, 5, 9, dtype=torch.bool)
    mask[0, 2, 0] = mask[3, 2, 8] = True  # from (3, 2, 0) three slices of 5 mm away, and eight voxels of 1 mm
    assert surface.nearest_voxel(mask, (5.0, 1.0, 1.0))[:, 3, 2, 0].tolist() == [3, 2, 8]


# -- dense equals patch by patch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [DEMO, SMALL, replace(PAPER, widths=(8, 16, 16, 16, 16), dense_widths=(16, 16))])
def test_dense_is_patch_by_patch_also_at_the_volumes_border(settings):
    torch.manual_seed(1)
    channels = torch.randn(boundary.CHANNELS, 7, 12, 11)
    net = untrained(settings)
    wanted = torch.ones(7, 12, 11, dtype=torch.bool)
    wanted[1:6, 1:11, 1:10] = torch.rand(5, 10, 9) > 0.8
    one_by_one = boundary.patch_logits(net, channels, wanted)
    for largest in ((32, 64, 64), (3, 5, 4)):
        dense = boundary.dense_logits(net, channels, wanted, largest)
        assert (dense - one_by_one)[wanted].abs().max() < 1e-4
    assert one_by_one[wanted].std() > 0.1


def test_the_net_that_is_trained_is_the_net_that_is_run():
    """Training normalises, evaluation folds the norm into the convolution: equal statistics give equal numbers."""
    net = untrained(replace(SMALL, dropout=0.0))
    block = torch.randn(4, boundary.CHANNELS, 8, 20, 20)
    net.train()
    for norm in net.norm:
        norm.momentum = 1.0
    trained = net.dense(block)
    net.eval()
    ratio = [1 - 1 / n for n in _places(net, block)]  # running variance is the unbiased one
    for norm, r in zip(net.norm, ratio):
        norm.running_var *= r
    assert (net.dense(block) - trained).abs().max() < 1e-4


def _places(net, block):
    """How many values each batch norm averages over."""
    counts = {}
    hooks = [norm.register_forward_hook(lambda m, i, o: counts.update({m: o[:, 0].numel()})) for norm in net.norm]
    with torch.no_grad():
        state = {k: v.clone() for k, v in net.state_dict().items()}
        net.train().dense(block)
        net.eval().load_state_dict(state)
    for hook in hooks:
        hook.remove()
    return [counts[norm] for norm in net.norm]


def test_patches_repeat_the_border():
    channels = torch.arange(24.0).view(1, 2, 3, 4)
    patch = boundary.patches_at(channels, torch.tensor([[0, 0, 3]]), (3, 3, 3))[0, 0]
    assert patch[0].tolist() == patch[1].tolist() == [[2, 3, 3], [2, 3, 3], [6, 7, 7]]
    assert patch[2].tolist() == [[14, 15, 15], [14, 15, 15], [18, 19, 19]]


def test_grid_in_mm_keeps_places():
    """A ramp in mm stays that ramp on a finer and a coarser grid, to 0.1 mm; the same grid changes no bit."""
    spacing, grid = (3.0, 0.7, 1.9), (4.0, 2.5, 1.0)
    shape = (12, 60, 30)
    ramp = sum((torch.arange(n) + 0.5).view([-1 if a == i else 1 for a in range(3)]) * s * w
               for i, (n, s, w) in enumerate(zip(shape, spacing, (1.0, -2.0, 0.5))))  # fmt: skip
    box = (slice(2, 11), slice(5, 55), slice(3, 28))
    onto = (slice(3, 7), slice(4, 13), slice(9, 50))
    carried = carry(ramp[box], box, spacing, onto, grid)
    expected = sum((torch.arange(b.start, b.stop) + 0.5).view([-1 if a == i else 1 for a in range(3)]) * g * w
                   for i, (b, g, w) in enumerate(zip(onto, grid, (1.0, -2.0, 0.5))))  # fmt: skip
    assert (carried - expected).abs().max() < 0.1
    assert torch.equal(carry(ramp[box], box, spacing, box, spacing), ramp[box])


# -- relabelling ------------------------------------------------------------------------------------------------------


def scene(shape=(16, 40, 36)):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 15 + 100
    mask = ball(shape, (7, 15, 14), 16.0)
    return image, mask.float() * 0.8 + 0.1, mask


def test_voxels_outside_the_band_are_never_touched():
    image, probability, _ = scene()
    rng = np.random.default_rng(5)
    for seed in range(6):
        mask = torch.as_tensor(ndimage.gaussian_filter(rng.standard_normal(image.shape), (0.8, 2, 2)) > 0.17)
        settings = replace(SMALL, band_mm=float(rng.uniform(1.5, 6)), smooth_mm=float(rng.uniform(0, 3)))
        liver = mask | (torch.rand(image.shape) > 0.5)
        out = boundary.relabel(
            BoundaryModel(untrained(settings, seed), settings), image, probability, mask, liver, SPACING
        )
        assert torch.equal(out.band, boundary.band(mask, SPACING, settings.band_mm))
        assert torch.equal(out.mask[~out.band], mask[~out.band])
        assert torch.equal(out.probability[~out.band], probability[~out.band])
        assert torch.equal((mask | out.added) & ~out.removed, out.mask) and (out.added | out.removed).any()
        assert not (out.added & mask).any() and not (out.removed & ~mask).any()
        assert out.lesions.added.sum() == out.added.sum() and out.lesions.removed.sum() == out.removed.sum()
        assert out.lesions.voxels_after.sum() == out.mask.sum()


def test_a_net_that_says_no_leaves_the_core_and_restores_what_would_vanish():
    image, probability, mask = scene()
    mask[13, 35, 30:32] = True
    out = boundary.relabel(says(-9.0), image, probability, mask, None, SPACING)
    assert out.lesions.restored.tolist() == [False, True] and out.lesions.voxels_after.tolist()[1] == 2
    core = mask & ~out.band
    core[13, 35, 30:32] = True
    assert torch.equal(out.mask, core)


def test_a_net_that_says_yes_fills_the_band_but_joins_nothing_and_stays_at_the_liver():
    image, probability, _ = scene()
    left, right = ball(image.shape, (7, 12, 14), 10.0), ball(image.shape, (7, 25, 14), 10.0)
    mask = left | right
    plain = replace(SMALL, smooth_mm=0.0)
    out = boundary.relabel(says(9.0, plain), image, probability, mask, None, SPACING)
    labels, n = ndimage.label(out.mask.numpy(), np.ones((3, 3, 3)))
    assert n == 2 and (out.lesions.unmerged > 0).all() and (out.lesions.added > 50).all()
    assert len(np.unique(labels[left.numpy()])) == len(np.unique(labels[right.numpy()])) == 1
    liver = torch.zeros_like(mask)
    liver[:, :, :16] = True
    out = boundary.relabel(says(9.0, plain), image, probability, left, liver, SPACING)
    beyond = out.added.any(0).any(0).nonzero().max()
    assert beyond == 16  # 3 mm beyond the liver: one voxel of 2.5 mm, whose centre is 1.25 mm away
    assert out.mask[left].all()


def test_a_doubtful_piece_is_drawn_smaller_than_a_sure_one():
    """The net says .73 of every voxel of both bands; the forest .5 of one piece and .3 of the other."""
    image, probability, _ = scene()
    left, right = ball(image.shape, (7, 12, 14), 8.0), ball(image.shape, (7, 27, 14), 12.0)
    labels = left.long() + 2 * right.long()
    chance = boundary.chances(labels, [1, 2], [0.5, 0.3])
    assert chance[left].unique().tolist() == pytest.approx([0.5]) and chance[labels == 0].sum() == 0
    assert (boundary.chances(labels, [2], [0.0]) > 0).equal(right)  # a score of 0 is a piece all the same
    plain = replace(SMALL, smooth_mm=0.0, threshold=0.5)
    out = boundary.relabel(says(1.0, plain), image, probability, chance, None, SPACING)
    near = boundary.band(left | right, SPACING, SMALL.band_mm)
    assert out.mask[left].all() and torch.equal(right & out.mask, right & ~near)
    none, many = sorted(out.lesions.added)
    assert none == 0 and many > 50 and not out.lesions.restored.any()
    sure = boundary.relabel(says(1.0, plain), image, probability, left | right, None, SPACING)
    assert torch.equal(
        sure.mask, boundary.relabel(says(1.0, plain), image, probability, (left | right).float(), None, SPACING).mask
    )
    assert (sure.lesions.added > 50).all()
    likely = boundary.relabel(
        says(1.0, plain), image, probability, boundary.chances(labels, [1, 2], [0.9, 0.6]), None, SPACING
    )
    assert torch.equal(likely.probability, sure.probability), (
        "better than even odds make no piece larger than the net says"
    )


def test_an_added_piece_that_hangs_on_nothing_is_dropped():
    old = torch.zeros(5, 9, 9, dtype=torch.bool)
    old[2, 2:4, 2:4] = True
    new = old.clone()
    new[2, 4, 4] = True
    new[2, 7, 7] = True
    out, lesions = contour._one_for_one(old, new, SPACING)
    assert out[2, 4, 4] and not out[2, 7, 7] and lesions.added.tolist() == [1]


def test_what_joins_two_is_parted_where_they_are_equally_near_in_mm():
    """A path from one voxel down three slices of 4 mm and along six voxels of 1 mm to another: the middle is between slices 1 and 2."""
    old = torch.zeros(4, 1, 7, dtype=torch.bool)
    old[0, 0, 0] = old[3, 0, 6] = True
    new = old.clone()
    new[:, 0, 0], new[3, 0, :] = True, True
    out, lesions = contour._one_for_one(old, new, (4.0, 1.0, 1.0))
    new[1:3, 0, 0] = False
    assert torch.equal(out, new) and lesions.unmerged.tolist() == [1, 1] and lesions.added.tolist() == [0, 6]


def test_lesions_that_are_parted_keep_their_own_voxels():
    old = torch.zeros(3, 3, 5, dtype=torch.bool)
    old[1, 1, [0, 1, 3, 4]] = True
    new = old.clone()
    new[1, 1, 2] = True
    out, lesions = contour._one_for_one(old, new, SPACING)
    assert torch.equal(out, old) and lesions.voxels_after.tolist() == [2, 2] and lesions.unmerged.sum() == 1


def test_smoothing_is_stated_in_volume():
    """The net says 0.55 all over the band: all of it becomes tumor, and smoothing takes its outer rim away."""
    image, probability, mask = scene()
    half = replace(SMALL, threshold=0.5)
    sharp = boundary.relabel(says(0.2), image, probability, mask, None, SPACING, replace(half, smooth_mm=0.0))
    smooth = boundary.relabel(says(0.2), image, probability, mask, None, SPACING, replace(half, smooth_mm=4.0))
    assert sharp.smoothing_change_ml == 0.0 and torch.equal(sharp.mask, mask | sharp.band)
    difference = float(smooth.mask.sum() - sharp.mask.sum()) * 0.025
    assert smooth.smoothing_change_ml == pytest.approx(difference, abs=1e-4) and difference < -1


def test_smoothing_spreads_in_mm_and_keeps_the_sum():
    field = torch.zeros(21, 31, 41)
    field[10, 15, 20] = 1.0
    out = contour._gaussian(field, (2.0, 1.0, 0.5), 2.0)
    axes = [(torch.arange(n) - n // 2) * s for n, s in zip(field.shape, (2.0, 1.0, 0.5))]
    for axis, along in enumerate(axes):
        profile = out.sum([a for a in range(3) if a != axis])
        assert float((profile * along**2).sum().sqrt()) == pytest.approx(2.0, rel=0.03)
    assert float(out.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("mask", [torch.zeros(6, 7, 8, dtype=torch.bool), torch.ones(6, 7, 8, dtype=torch.bool)])
def test_no_surface_no_change(mask):
    out = boundary.relabel(says(9.0), torch.zeros(6, 7, 8), torch.rand(6, 7, 8), mask, None, SPACING)
    assert torch.equal(out.mask, mask) and not out.band.any() and not (out.added | out.removed).any()
    assert len(out.lesions) == int(mask.any())


def test_another_spacing_gives_a_result_on_its_own_grid():
    image, probability, _ = scene((40, 70, 64))
    spacing = (1.2, 0.9, 0.9)
    mask = ball(image.shape, (20, 35, 30), 12.0, spacing)
    out = boundary.relabel(BoundaryModel(untrained(), SMALL), image, probability, mask, mask, spacing)
    assert out.mask.shape == image.shape and torch.equal(out.band, boundary.band(mask, spacing, SMALL.band_mm))
    full = boundary.relabel(says(9.0, replace(SMALL, smooth_mm=0.0)), image, probability, mask, None, spacing)
    assert full.mask[full.band].all()  # every band voxel got the net's answer, also where grids do not meet


def test_on_the_nets_own_grid_the_band_has_its_logits():
    image, probability, mask = scene()
    net = untrained()
    torch.nn.init.constant_(net.trust, 0.7)
    given = image, probability, mask, None, SPACING
    out, part = boundary.relabel(BoundaryModel(net, SMALL), *given), onto_grid(*given[:4], SPACING, SMALL, (2, 6, 6))
    logits = boundary.dense_logits(net, part.channels, part.band)
    assert part.band.any() and torch.allclose(
        out.probability[part.native_box][part.band], logits.sigmoid()[part.band], atol=1e-5
    )


def test_a_net_that_corrects_nothing_keeps_the_cascades_detail_on_a_finer_grid():
    """Only the correction goes through the net's grid: what the cascade knows more finely is not lost there."""
    image, _, _ = scene((40, 70, 64))
    spacing = (1.2, 0.9, 0.9)
    fine = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    model = says(0.0)
    torch.nn.init.ones_(model.net.trust)
    out = boundary.relabel(model, image, fine, ball(image.shape, (20, 35, 30), 12.0, spacing), None, spacing)
    assert torch.allclose(out.probability[out.band], fine.clamp(0.05, 0.95)[out.band], atol=1e-6)


def test_the_cascade_has_the_share_of_a_say_that_blend_gives_it():
    """The net says .5 of every voxel, the cascade .8 inside and .4 outside."""
    image, _, mask = scene()
    probability = mask.float() * 0.4 + 0.4
    out = boundary.relabel(says(0.0, replace(SMALL, blend=0.25)), image, probability, mask, None, SPACING)
    assert out.probability[out.band & mask].unique().tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.8])
    assert out.probability[out.band & ~mask].unique().tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.4])


def test_grids_that_differ_and_a_wider_band_are_refused():
    image, probability, mask = scene()
    with pytest.raises(Refused, match="tumor_probability"):
        boundary.relabel(says(1.0), image, probability[1:], mask, None, SPACING)
    with pytest.raises(Refused, match="band_mm"):
        boundary.relabel(says(1.0), image, probability, mask, None, SPACING, replace(SMALL, band_mm=9.0))


def test_impossible_settings_are_refused():
    for wrong in ({"patch": (9, 20, 21)}, {"patch": (9, 21, 5)}, {"band_mm": 0.0}, {"threshold": 1.0},
                  {"pool2_stride": 3}):  # fmt: skip
        with pytest.raises(Refused):
            replace(DEMO, **wrong)


# -- training ---------------------------------------------------------------------------------------------------------


def blurred_case(seed, shape=(16, 44, 44)):
    """One lobulated lesion with a blurred edge in a noisy liver; the predicted mask is shifted and too smooth."""
    rng = np.random.default_rng(seed)

    def waves(sigma_mm, size):
        field = ndimage.gaussian_filter(rng.standard_normal(shape), [sigma_mm / s for s in SPACING])
        return field / field.std() * size

    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    axes = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, SPACING)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij"))) - rng.uniform(12, 18) + waves(8, 2.5)
    hu = 105 - 45 / (1 + np.exp(distance / 1.5)) + waves(2, 8)
    wrong = ndimage.gaussian_filter(ndimage.shift(distance, rng.normal(0, 0.6, 3), mode="nearest"), (1, 2, 2)) + waves(
        12, 1.5
    )
    probability = 1 / (1 + np.exp(wrong / 2))
    tensors = [torch.as_tensor(a, dtype=torch.float32) for a in (hu, probability)]
    return Case(*tensors, torch.as_tensor(probability >= 0.5), torch.as_tensor(distance < 0), SPACING, f"p{seed}")


def surface_figures(truth, other):
    """ASSD in mm and surface Dice at 1 mm, from the centres of the voxel faces, weighted by their areas."""
    points, areas = [], []
    for mask in (truth.numpy(), other.numpy()):
        mask = np.pad(mask, 1)
        found = [(np.argwhere(np.diff(mask, axis=a)) + 0.5 * np.eye(3)[a]) * SPACING for a in range(3)]
        points.append(np.concatenate(found))
        areas.append(np.repeat([np.prod(SPACING) / s for s in SPACING], [len(f) for f in found]))
    there, back = cKDTree(points[1]).query(points[0])[0], cKDTree(points[0]).query(points[1])[0]
    distance, area = np.concatenate([there, back]), np.concatenate(areas)
    return (distance * area).sum() / area.sum(), area[distance <= 1].sum() / area.sum()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("boundary")


@pytest.fixture(scope="module")
def trained(folder):
    return boundary.train(
        [blurred_case(s) for s in range(8)],
        replace(SMALL, validation_share=0.25, validation_from=8),
        seed=4,
        folder=folder,
    )


def test_training_brings_the_contour_closer_on_unseen_lesions(trained):
    before, after = [], []
    for seed in range(100, 108):
        case = blurred_case(seed)
        out = boundary.relabel(trained, case.image, case.tumor_probability, case.mask, None, SPACING)
        before.append(surface_figures(case.truth, case.mask))
        after.append(surface_figures(case.truth, out.mask))
    (assd_before, dice_before), (assd_after, dice_after) = np.mean(before, 0), np.mean(after, 0)
    assert assd_after < 0.9 * assd_before and dice_after > dice_before


def test_the_curve_shows_held_out_patients(trained):
    assert list(trained.curves.columns) == ["step", "loss", "seconds", "mask_error", "net_error"]
    assert trained.curves.step.iloc[-1] == SMALL.steps
    assert trained.curves.loss.iloc[-1] < 0.8 * trained.curves.loss.iloc[0]
    assert trained.curves.net_error.iloc[-1] < trained.curves.mask_error.iloc[-1]


def test_the_same_seed_gives_the_same_model():
    cases, settings = [blurred_case(0)], replace(SMALL, steps=3)
    first, second, other = (boundary.train(cases, settings, seed).net.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["conv.0.weight"], other["conv.0.weight"])


def test_training_can_begin_with_a_trained_net(trained, folder):
    still = replace(SMALL, steps=1, rate=0.0)
    begun = boundary.train([blurred_case(0)], still, seed=9, start=folder).net
    assert all(torch.equal(p, q) for p, q in zip(begun.parameters(), trained.net.parameters(), strict=True))
    with pytest.raises(Refused, match=r"window_hu \(-60.0, 220.0\) instead of \(0, 1\)"):
        boundary.train([blurred_case(0)], replace(still, window_hu=(0, 1)), start=folder)


def test_a_held_out_patient_is_not_learnt_from():
    """Two scans of a patient go the same way, and what is held out for the curve changes no weight."""
    settings = replace(SMALL, steps=2, validation_share=0.5, validation_from=2)
    cases = [blurred_case(0), blurred_case(1), blurred_case(1)._replace(image=blurred_case(2).image)]
    weights = boundary.train(cases, settings, seed=0).net.state_dict()
    held = "p0" if np.random.default_rng(0).permutation(2)[0] == 0 else "p1"
    spoiled = [c._replace(truth=~c.truth) if c.patient == held else c for c in cases]
    again = boundary.train(spoiled, settings, seed=0).net.state_dict()
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_of_few_patients_none_is_set_aside(monkeypatch):
    """One of seven took part in nothing but a curve."""
    seen = []
    own = boundary.training._bank
    monkeypatch.setattr(
        boundary.training, "_bank", lambda cases, *rest: (seen.append(len(cases)), own(cases, *rest))[1]
    )
    cases = [blurred_case(0)._replace(patient=f"p{n}") for n in range(20)]
    for count, split in ((7, [7, 0]), (20, [17, 3])):
        boundary.train(cases[:count], replace(SMALL, steps=1, validation_share=0.15), seed=0)
        assert seen[-2:] == split


def test_a_false_candidate_is_not_learnt_from():
    settings, case = replace(SMALL, steps=2), blurred_case(0)
    beside = ball(case.mask.shape, (2, 4, 4), 5.0)
    assert not (beside & (case.mask | case.truth)).any()
    weights = boundary.train([case], settings, seed=0).net.state_dict()
    again = boundary.train([case._replace(mask=case.mask | beside)], settings, seed=0).net.state_dict()
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert boundary.train([case, case._replace(mask=beside, patient="b")], settings).skipped == 1


def still_bank(*shapes):
    """A volume a shape, all of it band of one lesion; the second channel is the target, `[c z y x]` of noise else."""
    rng, bank = np.random.default_rng(7), training._Bank([], [], [])
    for number, shape in enumerate(shapes):
        truth = torch.as_tensor(rng.random(shape), dtype=torch.float32)
        channels = torch.stack([torch.full(shape, 0.1 * number), truth, truth, truth])
        box = tuple(slice(0, n) for n in shape)
        whole = torch.ones(shape, dtype=torch.bool)
        bank.parts.append(OnGrid(channels, whole, whole, box, box, truth, np.empty((3, 0, 0, 0), np.int32)))
        bank.truths.append(truth)
        bank.lesions.append((number, whole.nonzero()))
    return bank


def test_a_tile_has_its_target_where_its_image_is_and_each_voxel_of_the_volume_once():
    """Also turned round; the border's voxels that are repeated beyond it carry no loss."""
    still = replace(SMALL, noise_hu=0.0, shift_hu=0.0, batch=16)
    blocks, targets, weights, _ = training._draw(still_bank((3, 8, 8)), still, 0, 0)
    z, y, x = (p // 2 for p in still.patch)
    assert torch.equal(blocks[:, 1, z : z + 6, y : y + 16, x : x + 16], targets)
    assert weights.sum((1, 2, 3)).tolist() == [3 * 8 * 8] * 16


def test_a_large_lesion_is_drawn_no_more_often_than_a_small_one():
    still = replace(SMALL, noise_hu=0.0, shift_hu=0.0, batch=200)
    blocks, *_ = training._draw(still_bank((8, 20, 20), (2, 2, 2)), still, 0, 0)
    assert 70 < int((blocks[:, 0].flatten(1).amax(1) == 0).sum()) < 130


def test_every_tile_weighs_the_same_however_much_of_the_band_it_holds():
    """Logits of 0 in a tile of 12 band voxels, of 2 in one of 2, on a target of 0: the mean of log 2 and log(1 + e^2)."""
    logits, weight = torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4)
    logits[1], weight[0, 0], weight[1, 0, 0, :2] = 2.0, 1.0, 1.0
    net = SimpleNamespace(dense=lambda block, seeds: logits)
    loss = training._objective(net, (None, torch.zeros_like(logits), weight, [0, 1]))
    assert float(loss) == pytest.approx((np.log(2) + np.log(1 + np.exp(2))) / 2)


def test_cases_without_a_band_are_counted_and_none_at_all_is_refused():
    empty = blurred_case(0)._replace(mask=torch.zeros(16, 44, 44, dtype=torch.bool))
    model = boundary.train([empty, blurred_case(1)], replace(SMALL, steps=1))
    assert model.skipped == 1
    with pytest.raises(Refused, match="without a predicted lesion"):
        boundary.train([empty], SMALL)
    with pytest.raises(Refused, match="one grid"):
        boundary.train([empty._replace(truth=empty.truth[1:])], SMALL)


# -- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_model_answers_the_same(trained, folder):
    again = boundary.load(folder, trained.settings)
    channels, wanted = torch.randn(boundary.CHANNELS, 6, 15, 14), torch.ones(6, 15, 14, dtype=torch.bool)
    assert torch.equal(*(boundary.dense_logits(m.net, channels, wanted) for m in (trained, again)))
    assert again.settings == trained.settings and again.curves.step.tolist() == trained.curves.step.tolist()
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors"]


def test_a_damaged_or_different_model_is_refused(tmp_path):
    with pytest.raises(Refused, match="no such model"):
        boundary.load(tmp_path)
    boundary.train([blurred_case(0)], replace(SMALL, steps=1), folder=tmp_path)
    with pytest.raises(Refused, match=r"band_mm 6\.0 instead of 4\.0"):
        boundary.load(tmp_path, replace(SMALL, steps=1, band_mm=4.0))
    path = next(tmp_path.glob("*.safetensors"))
    data, about = path.read_bytes(), json.loads((tmp_path / "model.json").read_text())
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(Refused, match="checksum"):
        boundary.load(tmp_path)
    path.write_bytes(data)
    about["config"]["format"] = 0
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(Refused, match="format 0"):
        boundary.load(tmp_path)


def test_a_model_of_the_former_format_is_read(trained, folder, tmp_path):
    """Format 2: settings and curves on one level, weights in a file without a digest in its name, fewer settings."""
    about = json.loads((folder / "model.json").read_text())
    settings = {k: v for k, v in about["config"]["settings"].items() if k != "ema"}
    former = {"format": 2, "settings": settings, "skipped": 0, "curves": about["curve"], "sha256": about["sha256"]}
    (tmp_path / "model.json").write_text(json.dumps(former))
    (tmp_path / "model.safetensors").write_bytes((folder / about["file"]).read_bytes())
    again = boundary.load(tmp_path, trained.settings)
    assert torch.equal(again.net.fc8.weight, trained.net.fc8.weight) and len(again.curves) == len(trained.curves)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """Killed at a random step, with a checkpoint after each; dropout and batches follow from (seed, step)."""
    cases, settings = [blurred_case(s) for s in range(3)], replace(SMALL, steps=9, dropout=0.3)
    monkeypatch.setattr(training, "FitSettings", partial(FitSettings, save_every_s=0.0))
    whole = boundary.train(cases, settings, seed=3, folder=tmp_path / "whole")
    draw, at = training._draw, int(np.random.default_rng().integers(1, settings.steps))

    def killed(bank, settings, seed, step):
        if step == at:
            raise KeyboardInterrupt
        return draw(bank, settings, seed, step)

    monkeypatch.setattr(training, "_draw", killed)
    with pytest.raises(KeyboardInterrupt):
        boundary.train(cases, settings, seed=3, folder=tmp_path / "cut")
    seen = []
    monkeypatch.setattr(training, "_draw", lambda *a: seen.append(a[3]) or draw(*a))
    again = boundary.train(cases, settings, seed=3, folder=tmp_path / "cut")
    assert seen == list(range(at, settings.steps)), f"killed at step {at}"
    state = whole.net.state_dict()
    assert all(torch.equal(state[k], v) for k, v in again.net.state_dict().items()), f"killed at step {at}"
    assert again.curves.loss.tolist() == whole.curves.loss.tolist()


def test_each_tile_drops_by_its_own_seed():
    net = untrained(replace(SMALL, dropout=0.5)).train()
    x = torch.ones(3, 4, 2, 5, 5)
    a, b = net._drop(x, [7, 8, 9], 0), net._drop(x[1:], [8, 9], 0)
    assert torch.equal(a[1:], b) and not torch.equal(a[0], a[1]) and not torch.equal(a, net._drop(x, [7, 8, 9], 1))
    assert a.unique().tolist() == [0, 2] and 0.3 < (a > 0).float().mean() < 0.7
    assert torch.equal(net.eval()._drop(x, [7, 8, 9], 0), x)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_equal_work(monkeypatch):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "boundary.py"
    spec = importlib.util.spec_from_file_location("boundary_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setitem(benchmark.PRESETS, "demo", SMALL)
    row = benchmark.measure("demo", "cpu", quick=True)
    assert row["patches"] == row["patches_timed"] > 500 and row["max_abs_difference"] < 1e-4
    assert row["ratio"] == pytest.approx(row["patch_by_patch_s"] / row["dense_s"])


def test_presets_are_sound():
    assert DEMO == BoundarySettings() and DEMO.fc6_kernel()[1:] == PAPER.fc6_kernel()[1:] == (1, 1)
