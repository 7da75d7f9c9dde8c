from dataclasses import replace

import pytest
import torch
from torch import nn

from workbench.masks import numbered
from workbench.nets import slabs
from workbench.nets.network import NetworkSettings
from workbench.nets.slabs import BankCase, SlabBank, SlabSettings

STILL = SlabSettings(window_hu=(-1000.0, 1000.0), crop=(8, 12), scale=0, rotate_degrees=0, shift=0, shift_hu=0,
                     contrast=0, noise_hu=0, blur=0)  # fmt: skip


def case(z=4, h=8, w=12, level=0, lesion=None):
    hu = torch.arange(z)[:, None, None].expand(z, h, w) * 100 + level
    target = torch.zeros(z, h, w)
    if lesion is not None:
        target[lesion, 2:4, 3:6] = 1
    return BankCase(hu, target, None, (target > 0).int())


class Echo(nn.Module):
    """Logit = HU of the slice `which` of the slab, so that one sees which slice went in."""

    def __init__(self, which=1, slices=3):
        super().__init__()
        self.settings, self.which = NetworkSettings(slices=slices, layers=(1, 1)), which

    def forward(self, x):
        return x[:, self.which : self.which + 1] * 10


def test_predict_centre_and_neighbours():
    hu = torch.tensor([-100.0, 0.0, 100.0, 200.0])[:, None, None].expand(4, 5, 7)
    window = (-1000.0, 1000.0)
    at = lambda which: torch.logit(slabs.predict([Echo(which)], hu, None, window, "cpu", batch=3))[:, 2, 2] * 100
    assert at(1).round().tolist() == pytest.approx([-100, 0, 100, 200], abs=6)
    assert at(0).round().tolist() == pytest.approx([-100, -100, 0, 100], abs=6)  # the outermost slice is repeated
    assert at(2).round().tolist() == pytest.approx([0, 100, 200, 200], abs=6)


def test_predict_keeps_an_odd_grid_and_averages_nets():
    hu = torch.zeros(3, 5, 7)
    p = slabs.predict([Echo(0), Echo(1)], hu, None, (-1.0, 1.0), "cpu")
    assert p.shape == (3, 5, 7) and torch.allclose(p, torch.tensor(0.5))


class Says(Echo):
    """One logit everywhere, or ten times the prior."""

    def __init__(self, logit=None):
        super().__init__()
        self.logit = logit

    def forward(self, x):
        return x[:, -1:] * 10 if self.logit is None else torch.full_like(x[:, :1], self.logit)


def test_predict_takes_the_mean_logit_and_lets_no_net_be_surer_than_nine():
    p = slabs.predict([Says(50.0), Says(-1.0)], torch.zeros(2, 4, 4), None, (-1.0, 1.0), "cpu")
    assert torch.allclose(p, torch.tensor((9.0 - 1.0) / 2).sigmoid(), atol=1e-3)


def test_predict_gives_each_slice_its_own_prior():
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])[:, None, None].expand(5, 4, 4)
    p = slabs.predict([Says()], torch.zeros(5, 4, 4), prior, (-1.0, 1.0), "cpu", batch=2)
    assert torch.allclose(torch.logit(p), 10 * prior, atol=0.05)


def test_predict_takes_fewer_large_slices_at_once(monkeypatch):
    net, seen = Echo(0), []
    net.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    hu = torch.rand(7, 8, 8)
    whole = slabs.predict([net], hu, None, (-1.0, 1.0), "cpu")
    monkeypatch.setitem(slabs.AT_ONCE, "cpu", 130)
    assert torch.equal(slabs.predict([net], hu, None, (-1.0, 1.0), "cpu"), whole) and seen == [7, 2, 2, 2, 1]
    monkeypatch.setitem(slabs.AT_ONCE, "cpu", 10)  # a slice is never cut
    assert torch.equal(slabs.predict([net], hu, None, (-1.0, 1.0), "cpu"), whole)


def test_a_batch_follows_from_seed_and_step_alone():
    bank = SlabBank([case(), case(level=50, lesion=2)], "cpu")
    moving = SlabSettings(crop=(8, 12), flip=True)
    a, b, c = (bank.draw(moving, 3, 6, 1, step) for step in (5, 5, 6))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])


def test_slabs_never_cross_cases():
    bank = SlabBank([case(level=-900), case(level=500)], "cpu")
    x, _ = bank.draw(STILL, 3, 64, 0, 0)
    low, high = x.amin((1, 2, 3)) * 1000, x.amax((1, 2, 3)) * 1000
    assert (high - low).max() < 201  # neighbours differ by 100 HU a slice; another case would be 1400 away
    assert (low < -400).any() and (high > 400).any()


def test_wanted_slabs_show_the_lesion():
    bank = SlabBank([case(), case(lesion=1)], "cpu")
    x, y = bank.draw(replace(STILL, foreground=0.5), 3, 10, 0, 0)
    assert y[:5].sum((1, 2, 3)).tolist() == pytest.approx([6] * 5)
    assert (x[:5].mean((2, 3)) * 1000).round().tolist() == [[0, 100, 200]] * 5  # its slice, between both neighbours


def test_each_lesion_weighs_the_same():
    target = torch.zeros(6, 8, 12)
    target[0:4, 1:3, 1:3] = 1  # four slices
    target[5, 5:7, 5:7] = 1  # one slice
    numbers = torch.zeros(6, 8, 12, dtype=torch.int)
    numbers[0:4] = (target[0:4] > 0).int()
    numbers[5] = (target[5] > 0).int() * 2
    bank = SlabBank([BankCase(torch.zeros(6, 8, 12), target, None, numbers)], "cpu")
    assert bank.wanted.tolist() == pytest.approx([0.25] * 4 + [1])
    assert bank.shown.tolist() == [0, 1, 2, 3, 5]


def test_of_two_lesions_in_a_slice_the_one_that_is_drawn_lies_in_the_crop():
    """With one centre for both, a slab drawn for a lesion shows the liver between them (LiTS 4: in half of the draws)."""
    target = torch.zeros(3, 40, 96)
    target[1, 18:22, 4:8], target[1, 18:22, 86:92] = 1, 1
    bank = SlabBank([BankCase(torch.zeros(3, 40, 96), target, None, numbered(target > 0))], "cpu")
    assert bank.shown.tolist() == [1, 1] and bank.wanted.tolist() == [1, 1]
    settings = replace(STILL, foreground=1.0, crop=(24, 24))
    areas = bank.draw(settings, 3, 40, 0, 0)[1].sum((1, 2, 3))
    assert set(areas.round().tolist()) == {16.0, 24.0}, "each shows one whole lesion, and both are drawn"


@pytest.mark.parametrize("how", ["prior_fade", "prior_bite", "prior_drop"])
def test_the_prior_is_made_wrong_as_often_as_is_asked_and_nothing_else_is(how):
    """Image and target are those of a bank whose prior is left alone."""
    prior = torch.ones(5, 40, 40)
    target = torch.zeros(5, 40, 40)
    target[2, 18:22, 18:22] = 1
    bank = SlabBank([BankCase(torch.zeros(5, 40, 40), target, prior, numbered(target > 0))], "cpu")
    plain = replace(STILL, foreground=1.0, crop=(40, 40), shift=0.0)
    x, y = bank.draw(plain, 3, 60, 0, 0)
    worse, same = bank.draw(replace(plain, prior_pixels=5.0, **{how: 0.5}), 3, 60, 0, 0)
    assert torch.equal(worse[:, :3], x[:, :3]) and torch.equal(same, y)
    assert bool((worse[:, 3] <= x[:, 3] + 1e-6).all()) and float(worse[:, 3].min()) >= 0
    changed = (worse[:, 3] < x[:, 3] - 0.02).flatten(1)
    assert 0.3 < float(changed.any(1).float().mean()) < 0.7
    lowered = (x[:, 3] - worse[:, 3]).mean(0)
    if how == "prior_fade":
        assert lowered[20, 20] > 0.15 and lowered[0, 0] < 0.01, "around the lesion, and not far from it"
    if how == "prior_drop":
        assert torch.allclose(lowered, lowered[0, 0].expand(40, 40), atol=1e-5)
    if how == "prior_bite":
        assert 0.02 < float(changed.float().mean()) < 0.3


def test_unequal_cases_share_a_canvas():
    bank = SlabBank([case(h=8, w=12), case(h=6, w=10, lesion=0)], "cpu")
    assert bank.hu.shape == (8, 8, 12)
    assert (bank.hu[4, 0] == slabs.AIR).all() and bank.target[4, 3, 4:7].tolist() == [1, 1, 1]


def test_image_and_target_move_together():
    hu = torch.full((3, 16, 20), -500)
    target = torch.zeros(3, 16, 20)
    target[:, 6:11, 7:13] = 1
    hu[target > 0] = 500
    bank = SlabBank([BankCase(hu, target)], "cpu")
    moving = replace(STILL, crop=(16, 20), scale=0.2, rotate_degrees=30, shift=0.1, flip=True)
    x, y = bank.draw(moving, 3, 16, 3, 1)
    assert ((x[:, 1:2] > 0) == (y > 0.5)).float().mean() > 0.995


def test_elastic_deformation_is_smooth_and_moves_image_and_target_together():
    hu = torch.full((3, 24, 32), -500)
    target = torch.zeros(3, 24, 32)
    target[:, 6:18, 8:24] = 1
    hu[target > 0] = 500
    bank = SlabBank([BankCase(hu, target)], "cpu")
    bent = replace(STILL, crop=(24, 32), elastic=2.0, elastic_pixels=8.0)
    x, y = bank.draw(bent, 3, 16, 3, 1)
    assert ((x[:, 1:2] > 0) == (y > 0.5)).float().mean() > 0.995 and torch.allclose(x[:, 0], x[:, 2])
    still = bank.draw(replace(bent, elastic=0.0), 3, 16, 3, 1)[1]
    changed = ((y > 0.5) != (still > 0.5)).float().mean((1, 2, 3))
    assert changed.max() > 0.03 and changed.unique().numel() > 8, "each slab by its own field and its own strength"
    pixels = bank._bent(4000, bent, torch.Generator().manual_seed(0)) * torch.tensor([16.0, 12.0])
    corner = pixels[:, 0, 0]
    assert corner.std(0).tolist() == pytest.approx([2 / 3**0.5] * 2, rel=0.1)  # 2 pixels, times a uniform strength
    assert pixels.diff(dim=1).std() < 0.5 * pixels.std(), "neighbouring pixels go the same way"


def test_thicker_slices_are_means_of_neighbours():
    """Slices at 0, 100, 0, 0 HU: the neighbours of the bright one get up to a third of it, and it keeps the rest."""
    hu = torch.zeros(4, 8, 12)
    hu[1] = 100
    bank = SlabBank([BankCase(hu, torch.zeros_like(hu))], "cpu")
    x = bank.draw(replace(STILL, thick=0.5), 3, 400, 0, 0)[0].mean((2, 3)) * 1000
    centre = x[(x[:, 1] > x[:, 0] + 1) & (x[:, 1] > x[:, 2] + 1)]  # slabs around the bright slice
    assert torch.allclose(centre.sum(1), torch.tensor(100.0), atol=0.1) and torch.allclose(
        centre[:, 0], centre[:, 2], atol=1e-3
    )
    assert 33.3 < centre[:, 1].min() < 45 and 0.35 < (centre[:, 1] > 99.9).float().mean() < 0.65


def test_batches_from_files_drawn_ahead_are_those_of_the_resident_bank(tmp_path):
    cases = [case(h=8, w=12, lesion=1), case(h=6, w=10, level=50, lesion=0)]
    cases = [replace(c, prior=torch.rand(c.hu.shape)) for c in cases]
    moving = SlabSettings(crop=(8, 12), flip=True, blobs=0.5, blob_is_target=True, elastic=1.0, thick=0.5)
    resident = SlabBank(cases, "cpu")
    mapped = SlabBank([c.in_files(tmp_path / str(n)) for n, c in enumerate(cases)], "cpu", resident=False)
    assert isinstance(mapped.hu, slabs._Canvas) and len(list(tmp_path.glob("*.npy"))) == 8
    draw = slabs.ahead(lambda step: mapped.draw(moving, 3, 6, 1, step))
    for step in (0, 1, 2, 7, 8, 3):  # in order, and after a jump
        one, other = resident.draw(moving, 3, 6, 1, step), draw(step)
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_an_error_while_drawing_ahead_is_told_when_its_batch_is_asked_for():
    def draw(step):
        if step == 1:
            raise ValueError("step 1")
        return (step,)

    taken = slabs.ahead(draw)
    assert taken(0) == (0,)
    with pytest.raises(ValueError, match="step 1"):
        taken(1)


def made_up(is_target, liver_hu=0):
    """64 slabs of a liver of one HU in air, half of them with a lesion of -400 HU."""
    hu = torch.full((5, 24, 32), -900)
    organ = torch.zeros(5, 24, 32)
    organ[:, 5:20, 6:26] = 1
    hu[organ > 0] = liver_hu
    target = torch.zeros_like(organ) if is_target else organ
    bank = SlabBank([BankCase(hu, target, organ if is_target else None)], "cpu")
    settings = replace(
        STILL, crop=(24, 32), blobs=0.5, blob_hu=((-400.0, -400.0),), blob_pixels=(2.0, 4.0), blob_is_target=is_target
    )
    x, y = bank.draw(settings, 3, 64, 0, 0)
    return x[:, :3] * 1000, y, organ[2].bool()


def test_a_made_up_lesion_joins_the_target_where_it_is_drawn():
    x, y, organ = made_up(is_target=True)
    with_one = (x[:, 1] - torch.where(organ, 0.0, -900.0)).abs().flatten(1).amax(1) > 1
    assert 10 < with_one.sum() < 54
    assert not y[~with_one].any() and (y[:, 0] * ~organ).max() < 1e-3
    share = x[:, 1] / -400  # of the lesion in a voxel: the lesion's HU is -400, the liver's 0
    assert torch.allclose(share[:, organ], y[:, 0][:, organ], atol=1e-3)
    assert (y > 0.99).any() and ((y > 0.1) & (y < 0.9)).any()  # a core and a soft edge


def test_a_made_up_lesion_has_its_own_hu_in_a_liver_of_any():
    """What shows through is what differs from the liver, not the liver's own level."""
    x, y, _ = made_up(is_target=True, liver_hu=300)
    assert torch.allclose(x[:, 1][y[:, 0] == 1], torch.tensor(-400.0), atol=1.0)


def test_a_made_up_lesion_has_its_middle_where_no_tumor_is():
    """The left half of the liver is tumor: five columns from the right half nothing is changed."""
    organ, tumor = torch.zeros(2, 3, 24, 40)
    organ[:, 4:20, 4:36], tumor[:, 4:20, 4:20] = 1, 1
    bank = SlabBank([BankCase(torch.zeros(3, 24, 40), tumor, organ)], "cpu")
    settings = replace(STILL, crop=(24, 40), blobs=1.0, blob_hu=((-400.0, -400.0),), blob_pixels=(1.0, 1.5))
    x = bank.draw(replace(settings, blob_is_target=True), 3, 64, 0, 0)[0][:, :3] * 1000
    assert (x[..., :15].abs() < 1e-2).all() and (x[..., 20:] < -100).flatten(1).any(1).all()


def test_a_made_up_lesion_of_the_liver_stays_liver():
    x, y, organ = made_up(is_target=False)
    assert torch.equal(y[:, 0] > 0.5, organ.expand(64, -1, -1))
    assert (x[:, 1][:, organ] < -300).any() and torch.allclose(x[:, 1][:, ~organ], torch.tensor(-900.0), atol=1e-3)


def test_a_made_up_lesion_has_another_extent_in_each_slice():
    x, _, organ = made_up(is_target=True)
    area = (x[:, :, organ] < -200).sum(-1)
    assert ((area[:, 0] != area[:, 1]) | (area[:, 1] != area[:, 2])).any() and (area.sum(1) > 0).sum() > 10
