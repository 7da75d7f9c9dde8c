"""Implants: what they change and what they leave alone, and that they have the grain of their liver."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from workbench.data import phantom, readers
from workbench.data.phantom import implants
from workbench.volume import Refused

LIVER_HU, NOISE_HU = 105.0, 14.0


def made(shape, spacing_mm, kernel=(0.25, 0.5, 0.25), tube=True, seed=0):
    """An ellipsoid of liver in fat with a bright tube of 7 mm along x, under noise that is alike in the plane; HU, labels, tube."""
    z, y, x = (((torch.arange(n) + 0.5) / n * 2 - 1) for n in shape)
    inside = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 0.95**2
    mm = [a * n * s / 2 for a, n, s in zip((z, y), shape, spacing_mm)]
    vessel = ((mm[0][:, None] ** 2 + mm[1] ** 2).sqrt() < 3.5)[:, :, None].expand(shape) & inside & tube
    weights = torch.tensor(kernel)
    weights = (weights[:, None] * weights / weights.square().sum())[None, None]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    noise = NOISE_HU * F.conv2d(F.pad(noise[:, None], (1, 1, 1, 1), "circular"), weights)[:, 0]
    hu = torch.where(vessel, LIVER_HU + 60, torch.where(inside, LIVER_HU, -100.0)) + noise
    return hu, inside.to(torch.uint8), vessel


SPACING = (1.5, 0.8, 0.9)  # unequal: a transposition would show
SHAPE = (70, 130, 150)


@pytest.fixture(scope="module")
def liver():
    return made(SHAPE, SPACING)


def pieces(result):
    return ndimage.label((result.labels == 2).numpy(), np.ones((3, 3, 3)))


def test_the_same_seed_draws_the_same_and_touches_nothing_of_the_caller(liver):
    hu, labels, _ = liver
    kept = hu.clone(), labels.clone()
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one = phantom.implant(hu, labels, SPACING, 4, (2, 4))
    torch.randn(3)
    two = phantom.implant(hu, labels, SPACING, 4, (2, 4))
    other = phantom.implant(hu, labels, SPACING, 5, (2, 4))
    assert torch.equal(one.hu, two.hu) and torch.equal(one.labels, two.labels) and one.lesions.equals(two.lesions)
    assert not torch.equal(one.labels, other.labels)
    assert torch.equal(hu, kept[0]) and torch.equal(labels, kept[1])
    torch.random.set_rng_state(state)
    phantom.implant(hu, labels, SPACING, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("mass_effect", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_only_liver_changes_and_the_labels_say_where(liver, seed, mass_effect):
    hu, labels, _ = liver
    labels = labels.clone()
    labels[30:38, 40:52, 30:45] = 2  # a tumor that is there already
    hu = (hu - 40 * (labels == 2)).double() + 0.1  # not exact in 32 bits
    new = phantom.implant(hu, labels, SPACING, seed, (2, 5), mass_effect=mass_effect)
    changed = (new.hu != hu) | (new.labels != labels)
    assert bool((labels[changed] == 1).all())
    assert torch.equal(new.labels == 0, labels == 0) and bool((new.labels[labels == 2] == 2).all())
    drawn = (new.labels == 2) & (labels == 1)
    assert bool((new.hu != hu)[drawn].float().mean() > 0.999)
    if not mass_effect:  # what changes is a tumor or its soft edge: infiltrative ones reach some mm further
        near = ndimage.distance_transform_edt(~drawn.numpy(), sampling=SPACING)
        assert near[changed.numpy()].max() < 15
    assert new.hu.dtype == hu.dtype and new.labels.dtype == labels.dtype
    assert new.hu.min() >= hu.min() and new.hu.max() <= hu.max()
    assert 1 <= len(new.lesions) <= 5 and list(new.lesions.lesion) == list(range(1, len(new.lesions) + 1))


def test_tumors_keep_clear_of_one_another(liver):
    hu, labels, _ = liver
    for seed in range(4):
        new = phantom.implant(hu, labels, SPACING, seed, (8, 8), kinds=("tiny", "cyst"))
        at, r = new.lesions[["z_mm", "y_mm", "x_mm"]].to_numpy(), new.lesions.diameter_mm.to_numpy() / 2
        apart = np.linalg.norm(at[:, None] - at, axis=-1) - r[:, None] - r
        assert len(at) > 2 and apart[~np.eye(len(at), dtype=bool)].min() > 0 and pieces(new)[1] == len(at)


def test_a_row_says_where_its_tumor_lies_and_how_large_it_is(liver):
    hu, labels, _ = liver
    labels = F.pad(labels, (7, 0, 5, 0, 3, 0))  # the liver begins somewhere else than the volume
    hu = F.pad(hu, (7, 0, 5, 0, 3, 0), value=-100)
    for seed in range(3):
        new = phantom.implant(hu, labels, SPACING, seed, (3, 3), kinds=("metastasis", "cyst"))
        found, count = pieces(new)
        assert count == len(new.lesions) == 3
        for row in new.lesions.itertuples():
            where = [round(mm / s) for mm, s in zip((row.z_mm, row.y_mm, row.x_mm), SPACING)]
            mask = found == found[tuple(where)]
            assert found[tuple(where)] > 0
            assert np.allclose(np.argwhere(mask).mean(0) * SPACING, (row.z_mm, row.y_mm, row.x_mm), atol=0.6)
            assert math.isclose(mask.sum() * math.prod(SPACING) / 1000, row.volume_ml, rel_tol=0.1)
            assert row.contrast_hu == pytest.approx(float(new.hu[torch.from_numpy(mask)].mean()) - LIVER_HU, abs=1.5)


def lag_1(values, mask, axis):
    """Correlation of neighbours along an axis, both within the mask."""
    n = values.shape[axis] - 1
    a, b = values.narrow(axis, 0, n), values.narrow(axis, 1, n)
    both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
    return float(torch.corrcoef(torch.stack([a[both], b[both]]))[0, 1])


@pytest.mark.parametrize("kernel", [(0.0, 1.0, 0.0), (0.25, 0.5, 0.25), (-0.3, 1.0, -0.3)])
def test_the_noise_inside_is_that_of_the_liver(kernel):
    """A cyst is flat, so what varies in it is noise. Bounds: sd within 8 %, correlation of neighbours within .06."""
    hu, labels, _ = made(SHAPE, SPACING, kernel, tube=False)
    for seed in range(3):
        new = phantom.implant(hu, labels, SPACING, seed, (2, 2), kinds=("cyst",))
        core = torch.from_numpy(ndimage.binary_erosion((new.labels == 2).numpy(), iterations=3))
        host = torch.from_numpy(ndimage.binary_erosion((new.labels == 1).numpy(), iterations=4))
        if int(core.sum()) < 1500:
            continue
        middle = new.hu - LIVER_HU - (new.hu[core].mean() - LIVER_HU) * core
        assert math.isclose(float(new.hu[core].std()), float(hu[host].std()), rel_tol=0.08)
        for axis in range(3):
            assert lag_1(middle, core, axis) == pytest.approx(lag_1(hu, host, axis), abs=0.06), axis
        old = torch.corrcoef(torch.stack([new.hu[core], hu[core]]))[0, 1]
        assert abs(float(old)) < 0.1  # drawn anew, not what was there
        return
    pytest.fail("no cyst was large enough to measure")


def test_vessels_keep_their_voxels(liver):
    hu, labels, vessel = liver
    inner = torch.from_numpy(ndimage.binary_erosion(vessel.numpy()))
    for seed in range(6):
        new = phantom.implant(hu, labels, SPACING, seed, (4, 4))
        assert float((new.labels == 2)[vessel].float().mean()) < 0.02
        assert torch.equal(new.hu[inner], hu[inner])


@pytest.mark.parametrize("kind", phantom.IMPLANTS)
def test_kinds_have_the_contrast_that_they_say(liver, kind):
    hu, labels, _ = liver
    new = phantom.implant(hu, labels, SPACING, 1, (2, 2), kinds=(kind,))
    assert set(new.lesions.kind) == {kind}
    contrast = new.lesions.contrast_hu
    assert (contrast > 8).all() if kind == "hypervascular" else (contrast < -8).all()
    low, high = phantom.IMPLANTS[kind].diameter_mm
    assert (new.lesions.diameter_mm < 1.35 * high).all() and (new.lesions.diameter_mm > 0.6 * low).all()
    if kind == "necrotic":
        mask = (new.labels == 2).numpy()
        depth = ndimage.distance_transform_edt(mask, sampling=SPACING)
        at = [torch.from_numpy(a) for a in (depth > 0.8 * depth.max(), (depth > 3) & (depth < 0.3 * depth.max()))]
        assert float(new.hu[at[0]].mean()) < float(new.hu[at[1]].mean()) - 8
    if kind == "cyst":
        core = torch.from_numpy(ndimage.binary_erosion((new.labels == 2).numpy(), iterations=2))
        assert 0 < float(new.hu[core].mean()) < 20


def test_thick_slices_have_partial_volume():
    """At the ends of a ball in slices of 5 mm the contrast is the share of the slice that the ball fills."""
    spacing = (5.0, 0.8, 0.8)
    hu, labels, _ = made((20, 130, 130), spacing, tube=False)
    hu = torch.where(labels == 1, LIVER_HU, -100.0) + 0.02 * hu  # nearly without noise
    partial = 0
    for seed in (1, 2, 6, 7):
        new = phantom.implant(hu, labels, spacing, seed, (1, 1), kinds=("cyst",))
        (row,) = new.lesions.itertuples()
        y, x, r = round(row.y_mm / 0.8), round(row.x_mm / 0.8), row.diameter_mm / 2
        depth = (hu - new.hu)[:, y - 1 : y + 2, x - 1 : x + 2].mean((1, 2))
        at = 5.0 * torch.arange(20)
        filled = ((row.z_mm + r - at).clamp(max=2.5) + (at - row.z_mm + r).clamp(max=2.5)).clamp(0, 5) / 5
        some = (filled > 0.1) & (filled < 0.9)
        partial += int(some.sum())
        assert torch.allclose((depth / depth.max())[some], filled[some], atol=0.12)
    assert partial >= 5


def test_mass_effect_moves_a_vessel_away():
    hu, labels, vessel = made((80, 130, 150), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))
    hu = torch.where(labels == 1, LIVER_HU, -100.0) + 60 * vessel + 0.05 * (hu - LIVER_HU - 60 * vessel) * labels
    moved = 0
    for seed in range(6):
        still, pushed = (
            phantom.implant(hu, labels, (1, 1, 1), seed, (1, 1), kinds=("cyst",), mass_effect=m) for m in (False, True)
        )
        moved += bool((pushed.hu - still.hu)[(labels == 1) & (pushed.labels == 1)].abs().max() > 20)
    assert moved


def test_integers_clipped_values_and_crops(liver):
    hu, labels, _ = liver
    whole = hu.round().to(torch.int16).clamp(-160, 115)  # clipped within the liver's own noise
    labels = labels.clone()
    labels[20:30, 60:70, 60:63] = 0  # a hole in the mask
    crop = (slice(10, 60), slice(30, 130), slice(20, 120))
    new = phantom.implant(whole[crop], labels[crop], SPACING, 2, (3, 3))
    assert new.hu.dtype == torch.int16 and int(new.hu.max()) <= 115
    assert len(new.lesions) == 3
    assert bool((labels[crop][new.hu != whole[crop]] == 1).all())
    real = phantom.implant(whole[crop].float(), labels[crop], SPACING, 2, (3, 3))
    assert torch.equal(real.hu.round().to(torch.int16), new.hu)


def test_a_liver_that_fills_the_whole_field(liver):
    hu, _, _ = liver
    crop = (slice(25, 45), slice(40, 90), slice(50, 100))
    full = torch.ones([s.stop - s.start for s in crop], dtype=torch.uint8)
    assert len(phantom.implant(hu[crop], full, SPACING, 0, (1, 1), kinds=("tiny",)).lesions) == 1
    nowhere = np.zeros((3, 4, 5), bool)
    assert implants._distance(nowhere, (2.0, 2.0, 2.0)).min() > 500  # where no edge is seen, it is far


def test_what_cannot_be_done_is_refused(liver):
    hu, labels, _ = liver
    with pytest.raises(Refused, match="no voxel of liver"):
        phantom.implant(hu, torch.zeros_like(labels), SPACING, 0)
    with pytest.raises(Refused, match="plain tissue"):
        phantom.implant(hu, F.pad(torch.ones(2, 3, 3, dtype=torch.uint8), (0, 147, 0, 127, 0, 68)), SPACING, 0)
    crowded = torch.where(labels == 1, 2, 0).to(torch.uint8)
    crowded[30:36, 60:70, 60:80] = 1
    with pytest.raises(Refused, match="no room"):
        phantom.implant(hu, crowded, SPACING, 0, kinds=("necrotic",))
    with pytest.raises(Refused, match="unheard"):
        phantom.implant(hu, labels, SPACING, 0, kinds=("unheard",))
    with pytest.raises(Refused, match="one grid"):
        phantom.implant(hu, labels[1:], SPACING, 0)
    with pytest.raises(Refused, match="uint8"):
        phantom.implant(hu, labels * 3, SPACING, 0)
    with pytest.raises(Refused, match="numbers"):
        phantom.implant(torch.where(labels == 1, torch.nan, hu), labels, SPACING, 0)
    with pytest.raises(Refused, match="count"):
        phantom.implant(hu, labels, SPACING, 0, (3, 1))
    with pytest.raises(Refused, match="seed"):
        phantom.implant(hu, labels, SPACING, -1)
    with pytest.raises(Refused, match="lengths"):
        phantom.implant(hu, labels, (1.0, 0.0, 1.0), 0)


def test_in_real_livers(realdata):
    """Noise and place in every real liver with labels: sd within 20 % of the liver's, neighbours' correlation within .12."""
    measured = 0
    for row in pd.read_csv(realdata / "cohort.csv").itertuples():
        if not row.ct.endswith(".nii.gz"):
            continue
        ct = readers.read(realdata / row.ct)
        labels = readers.read_labels(realdata / row.labels, like=ct).array
        middle = labels.shape[0] // 2
        part = slice(max(0, middle - 25), middle + 25)
        hu, labels = ct.array[part].float(), labels[part]
        new = phantom.implant(hu, labels, ct.spacing_mm, 1, (2, 2), kinds=("cyst",))
        changed = new.hu != hu
        assert bool((labels[changed] == 1).all()), row.case
        core = torch.from_numpy(
            ndimage.binary_erosion(((new.labels == 2) & (labels == 1)).numpy(), np.ones((1, 3, 3)), iterations=4)
        )
        plain = ndimage.binary_erosion((labels == 1).numpy(), np.ones((1, 3, 3)), iterations=6)
        trend = ndimage.gaussian_filter(hu.numpy(), (0, 4, 4))
        rest = hu - torch.from_numpy(trend)
        host = torch.from_numpy(plain) & (rest.abs() < 3 * rest[torch.from_numpy(plain)].std())
        if int(core.sum()) < 800:
            continue
        measured += 1
        inside = new.hu - new.hu[core].mean()
        assert math.isclose(float(inside[core].std()), float(rest[host].std()), rel_tol=0.2), row.case
        assert lag_1(inside, core, 2) == pytest.approx(lag_1(rest, host, 2), abs=0.12), row.case
    assert measured >= 3
