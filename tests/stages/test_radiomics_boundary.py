"""The boundary group on spheres whose margin is known in closed form."""

import itertools
import math

import pytest
import torch
from test_radiomics import blobs

from workbench.stages import radiomics
from workbench.stages.radiomics import boundary


def sphere(radius=10.0, width=1.0, contrast=40.0, bumps=0.0, noise=0.0, centre=(0.2, 0.3, -0.4)):
    """HU rises as a sigmoid of this width (mm) across the surface of a sphere, which may carry bumps."""
    spacing = (1.5, 1.0, 1.0)
    size = [int(2 * (radius + 8) / s) + 1 for s in spacing]
    axes = [(torch.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(size, spacing, centre)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")).double()
    r = place.square().sum(0).sqrt()
    around, up = torch.atan2(place[1], place[2]), torch.asin((place[0] / r.clamp_min(1e-9)).clamp(-1, 1))
    hu = 60 + contrast * torch.sigmoid((r - radius) / width)
    hu = hu + noise * torch.randn(r.shape, generator=torch.Generator().manual_seed(0))
    inside = r < radius * (1 + bumps * torch.sin(6 * around) * torch.cos(6 * up))
    return hu.float(), inside.long(), spacing


def described(hu, inside, spacing, liver=None):
    row = radiomics.describe(hu, inside, spacing, liver).iloc[0]
    return {name: row[f"boundary_{name}"] for name in boundary.NAMES}


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_blur_and_contrast_are_those_of_the_sphere(width):
    values = described(*sphere(width=width))
    assert values["contrast_median"] == pytest.approx(40, rel=0.02) and values["contrast_iqr"] < 2
    assert values["blur_median"] == pytest.approx(width, abs=0.12)  # voxels of 1 mm blur a little themselves
    assert values["fit_r2"] > 0.99 and values["radial_gradient"] > 0.99 and values["liver_contact"] != 0
    sharpest = 40 / (4 * width)  # slope of the sigmoid at its middle
    assert 0.6 * sharpest < values["gradient_mean"] <= 1.02 * sharpest
    shell = 60 + 40 / 3 * width * (math.log1p(math.exp(-1 / width)) - math.log1p(math.exp(-4 / width)))
    assert values["inner_mean"] == pytest.approx(shell, abs=1.5)
    assert values["outer_mean"] == pytest.approx(160 - shell, abs=1.5)
    assert abs(values["rim"]) < 1.5 and values["contrast_to_noise"] > 4


def test_dark_and_bright_lesions_differ_in_sign():
    dark, bright = described(*sphere()), described(*sphere(contrast=-40.0))
    for name in ("contrast_median", "contrast_to_noise", "radial_gradient"):
        assert dark[name] == pytest.approx(-bright[name], rel=1e-3) and dark[name] > 0
    for name in ("blur_median", "gradient_mean", "roughness", "hull_fill"):
        assert dark[name] == pytest.approx(bright[name], rel=1e-3)


def test_roughness_orders_surfaces():
    smooth, some, more = (described(*sphere(bumps=b)) for b in (0.0, 0.06, 0.12))
    assert smooth["roughness"] < some["roughness"] < more["roughness"]
    assert 0.02 > smooth["radial_spread"] < some["radial_spread"] < more["radial_spread"]  # of a ball in mm: none
    assert smooth["hull_fill"] > 0.95 > some["hull_fill"] > more["hull_fill"]


@pytest.mark.parametrize("seed", range(4))
def test_the_hull_is_that_of_98_half_spaces_voxel_by_voxel(seed):
    image, labels, spacing = blobs(seed, "f4")
    values = (
        radiomics.describe(image, labels, spacing, names=["boundary_hull_fill"]).set_index("label").boundary_hull_fill
    )
    at = torch.stack(torch.meshgrid(*(torch.arange(n) for n in labels.shape), indexing="ij"), -1).double()
    ways = torch.tensor([w for w in itertools.product(range(-2, 3), repeat=3) if any(w) and math.gcd(*w) == 1])
    height = (at * torch.tensor(spacing)) @ ways.double().T
    for label, found in values.items():
        own = labels == label
        inside = (height <= height[own].amax(0) + 1e-3).all(-1)  # of the whole grid: the half-spaces bound it
        assert len(ways) == 98 and found == pytest.approx(int(own.sum()) / int(inside.sum()), rel=1e-12)


def test_place_and_direction_of_the_lesion_do_not_matter():
    here, there = described(*sphere()), described(*sphere(centre=(-0.5, 0.1, 0.7)))
    hu, inside, spacing = sphere(bumps=0.06)
    turned = described(hu.transpose(1, 2).flip(1), inside.transpose(1, 2).flip(1), spacing)
    original = described(hu, inside, spacing)
    for name, tolerance in dict(contrast_median=0.02, blur_median=0.1, gradient_mean=0.05, inner_mean=0.01).items():
        assert here[name] == pytest.approx(there[name], rel=tolerance)
    for name in boundary.NAMES:
        if name not in ("liver_contact", "fractal_dimension"):  # boxes are counted from one corner
            assert turned[name] == pytest.approx(original[name], rel=0.02, abs=0.05), name


def test_asymmetry_is_the_sd_over_octants():
    """A sharp ball of 60 HU, beside which it is 80 HU in four octants and 100 HU in the other four: contrasts of 20 and 40, sd 10."""
    hu, inside, spacing = sphere(radius=12.0, centre=(0.0, 0.0, 0.0))
    hu[..., : hu.shape[2] // 2], hu[..., hu.shape[2] // 2 :] = 80.0, 100.0
    hu[inside > 0] = 60.0
    values = described(hu, inside, spacing)
    assert values["contrast_asymmetry"] == pytest.approx(10, abs=0.3)
    # variances of 0 inside and of 100 outside: the noise is the root of their mean
    assert values["contrast_to_noise"] == pytest.approx(30 / 50**0.5, rel=0.05)


def test_two_gradients_as_frequent_are_one_bit():
    """HU rises by 2 a mm on the left and by 12 a mm on the right; the lesion is a box on either side."""
    x = torch.arange(80) - 39.5
    hu = torch.where(x < 0, 2 * x, 12 * x).expand(24, 24, 80).contiguous()
    inside = torch.zeros(hu.shape, dtype=torch.int64)
    inside[8:16, 8:16, 10:30] = inside[8:16, 8:16, 50:70] = 1
    values = described(hu, inside, (1.0, 1.0, 1.0))
    assert values["gradient_entropy"] == pytest.approx(1, abs=1e-3)
    assert (values["gradient_mean"], values["gradient_sd"]) == pytest.approx((7, 5), abs=1e-2)


def test_noise_leaves_the_fit_standing():
    values = described(*sphere(noise=15.0))
    assert values["contrast_median"] == pytest.approx(40, rel=0.1)
    assert values["blur_median"] == pytest.approx(1, rel=0.4)
    assert values["contrast_iqr"] > described(*sphere())["contrast_iqr"]


def test_flat_image_has_no_width():
    values = described(*sphere(contrast=0.0))
    for name in ("blur_median", "fit_r2", "contrast_to_noise", "radial_gradient"):
        assert math.isnan(values[name])
    assert values["contrast_median"] == 0 and values["gradient_mean"] == 0


def test_liver_limits_what_counts_as_outside():
    hu, inside, spacing = sphere()
    liver = torch.zeros_like(inside)
    liver[:, :, : inside.shape[2] // 2] = 1
    beyond = hu.clone()
    beyond[(liver == 0) & (inside == 0)] = -1000.0  # fat and air beyond the capsule
    values = described(beyond, inside, spacing, liver)
    assert values["liver_contact"] == pytest.approx(0.5, abs=0.06)
    assert values["outer_mean"] == pytest.approx(described(hu, inside, spacing)["outer_mean"], abs=12)
    assert described(hu, inside, spacing, torch.ones_like(inside))["liver_contact"] == 0


def test_faces_count_by_their_area_and_contact_by_its_mm():
    """A cube of 16 mm in slices of 4 mm: two thirds of its surface are its sides, beyond which it is 100 HU and the liver ends 1 mm on.

    Above and below it is 0 HU, and the liver goes on for 4 mm.
    """
    spacing, inside = (4.0, 1.0, 1.0), torch.zeros((16, 48, 48), dtype=torch.int64)
    inside[6:10, 16:32, 16:32] = 1
    hu = torch.zeros(inside.shape)
    hu[6:10] = 100.0
    hu[inside > 0] = 50.0
    liver = torch.zeros_like(inside)
    liver[5:11, 15:33, 15:33] = 1
    assert described(hu, inside, spacing)["outer_mean"] == pytest.approx(200 / 3, abs=6)
    assert described(hu, inside, spacing, liver)["liver_contact"] == pytest.approx(2 / 3, abs=0.1)  # edges are rounded


def test_fit_finds_the_sigmoid():
    t = torch.arange(-4, 4.01, 0.5, dtype=torch.float64)
    true = [(30.0, 0.4, 0.3), (-50.0, 1.7, -1.1), (10.0, 0.8, 0.0)]
    profile = torch.stack([90 + s * torch.sigmoid((t - t0) / w) for s, w, t0 in true])
    contrast, width, r2 = boundary.fit(profile, torch.ones_like(profile), t)
    for k, (s, w, _) in enumerate(true):
        assert float(contrast[k]) == pytest.approx(s, rel=0.02) and float(width[k]) == pytest.approx(w, rel=0.03)
    assert float(r2.min()) > 0.999
