"""Measures against independent implementations: MONAI, DeepMind's surface-distance and SciPy, on random and made masks."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from workbench.stages import metrics

SPACING = (2.5, 0.7, 0.9)


def noise(seed, share=0.4, sigma=1.6, shape=(14, 20, 22)):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return field > np.quantile(field, 1 - share)


def ball(radius_mm, centre_mm, shape=(30, 90, 80)):
    at = [(np.arange(n) * s - c) ** 2 for n, s, c in zip(shape, SPACING, centre_mm)]
    return at[0][:, None, None] + at[1][:, None] + at[2] < radius_mm**2


def pairs():
    """Random masks that touch the border, of one voxel, nested, apart, joined; balls of 20 mm."""
    for seed in range(6):
        yield f"random {seed}", noise(seed), noise(seed + 50, share=0.2 + 0.1 * seed)
    one = np.zeros((9, 9, 9), bool)
    one[4, 4, 4] = True
    yield "one voxel and its neighbour", one, np.roll(one, 1, 2)
    yield "nested", ball(20, (37, 30, 35)), ball(12, (37, 30, 35))
    yield "apart", ball(8, (20, 12, 12)), ball(8, (50, 48, 55))
    yield "shifted", ball(20, (37, 30, 35)), ball(20, (39, 32, 36))


PAIRS = list(pairs())


@pytest.mark.parametrize("truth, found", [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_equals_monai(truth, found, monkeypatch):
    """MONAI calls a voxel surface that has background behind a face, LiTS also one behind an edge: by MONAI's rule here."""
    monai = pytest.importorskip("monai.metrics")
    monkeypatch.setattr(metrics, "FACES_AND_EDGES", ndimage.generate_binary_structure(3, 1))
    t, p = (torch.from_numpy(m)[None, None].float() for m in (truth, found))
    options = {"include_background": True, "spacing": SPACING}
    ours = metrics.compare(truth, found, SPACING, tolerance_mm=1.3)
    assert ours["dice"] == pytest.approx(float(monai.compute_dice(p, t)), abs=1e-6)
    assert ours["voe"] == pytest.approx(1 - float(monai.compute_iou(p, t)), abs=1e-6)
    assd = monai.compute_average_surface_distance(p, t, symmetric=True, **options)
    assert ours["assd_mm"] == pytest.approx(float(assd), rel=1e-5)
    assert ours["msd_mm"] == pytest.approx(float(monai.compute_hausdorff_distance(p, t, **options)), rel=1e-5)
    share = monai.compute_surface_dice(p, t, class_thresholds=[1.3], **options)
    assert ours["surface_dice"] == pytest.approx(float(share), abs=1e-5)


@pytest.mark.parametrize("truth, found", [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_equals_scipys_distance_transform(truth, found):
    def surface(mask):
        return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 2))

    a, b = surface(truth), surface(found)
    apart = [ndimage.distance_transform_edt(~other, SPACING)[own] for own, other in ((a, b), (b, a))]
    apart = np.concatenate(apart)
    ours = metrics.surface_distances(truth, found, SPACING, tolerance_mm=1.3)
    assert ours["assd_mm"] == pytest.approx(apart.mean(), rel=1e-9)
    assert ours["rmsd_mm"] == pytest.approx(math.sqrt((apart**2).mean()), rel=1e-9)
    assert ours["msd_mm"] == pytest.approx(apart.max(), rel=1e-9)
    assert ours["surface_dice"] == pytest.approx((apart <= 1.3).mean(), rel=1e-9)


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 2, 1), (2.5, 0, 3), (5, 4, 0)])
@pytest.mark.parametrize("radius_mm", [12, 20, 25])
def test_is_near_surface_distance_on_smooth_shapes(radius_mm, shift):
    """It weighs surface elements between voxels by their area, where LiTS counts surface voxels: near, not equal."""
    sd = pytest.importorskip("surface_distance")
    truth, found = ball(25, (37, 30, 35)), ball(radius_mm, tuple(c + s for c, s in zip((37, 30, 35), shift)))
    theirs = sd.compute_surface_distances(truth, found, SPACING)
    tolerance = (
        float(np.median(np.concatenate([theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]]))) * 1.05 or 1.0
    )
    ours = metrics.surface_distances(
        truth, found, SPACING, tolerance_mm=tolerance
    )  # where surface Dice is about a half
    areas = [theirs["surfel_areas_gt"], theirs["surfel_areas_pred"]]
    lengths = [theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]]
    assd = sum((d * a).sum() for d, a in zip(lengths, areas)) / sum(a.sum() for a in areas)
    assert ours["assd_mm"] == pytest.approx(assd, rel=0.12, abs=0.1)
    assert ours["msd_mm"] == pytest.approx(sd.compute_robust_hausdorff(theirs, 100), rel=0.1, abs=0.5)
    assert ours["surface_dice"] == pytest.approx(sd.compute_surface_dice_at_tolerance(theirs, tolerance), abs=0.06)
    assert metrics.compare(truth, found, SPACING)["dice"] == pytest.approx(sd.compute_dice_coefficient(truth, found))
