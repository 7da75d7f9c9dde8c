"""Perturbations: each does what its name says, and the same seed does the same."""

import numpy as np
import pytest
import torch

from workbench.stages import radiomics
from workbench.stages.radiomics import NAMES, perturb
from workbench.stages.radiomics.perturb import Perturbation
from workbench.volume import Refused

VOLUME, MEAN = NAMES.index("shape_voxel_volume"), NAMES.index("intensity_mean")
SD = NAMES.index("intensity_variance")
SPACING = (2.0, 1.0, 1.2)


def two_lesions():
    axes = [torch.arange(n) * s for n, s in zip((18, 40, 42), SPACING)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    labels = torch.zeros(place.shape[:3], dtype=torch.int64)
    labels[(place - torch.tensor([14.0, 14, 14])).norm(dim=-1) < 6] = 3
    labels[(place - torch.tensor([20.0, 28, 36])).norm(dim=-1) < 4] = 8
    image = 60 + 5 * torch.randn(labels.shape, generator=torch.Generator().manual_seed(1)) - 30 * (labels > 0)
    return image, labels


def described(*changes, seed=0):
    image, labels = two_lesions()
    return perturb.describe_perturbed(image, labels, SPACING, perturbations=changes, seed=seed)[0]


def test_no_change_is_no_change():
    image, labels = two_lesions()
    plain = radiomics.describe(image, labels, SPACING)[list(NAMES)].to_numpy(float)
    np.testing.assert_allclose(described(Perturbation("none", "systematic"))[0], plain, rtol=1e-6, atol=1e-9)


def test_each_does_what_its_name_says():
    none, grow, shrink, noise, shift, turn, contour = described(
        Perturbation("none", "systematic"), Perturbation("grow", "systematic", volume=0.2),
        Perturbation("shrink", "systematic", volume=-0.2), Perturbation("noise", "random", noise=2.0),
        Perturbation("shift", "systematic", shift=(0.0, 1.0, 0.0)), Perturbation("turn", "systematic", turn_deg=30.0),
        Perturbation("contour", "random", contour_mm=0.5),
    )  # fmt: skip
    np.testing.assert_allclose(grow[:, VOLUME] / none[:, VOLUME], 1.2, atol=0.01)
    np.testing.assert_allclose(shrink[:, VOLUME] / none[:, VOLUME], 0.8, atol=0.01)
    assert (grow[:, MEAN] > none[:, MEAN] + 1).all(), "the liver around is brighter"
    assert np.array_equal(noise[:, VOLUME], none[:, VOLUME])
    np.testing.assert_allclose(noise[:, SD] - none[:, SD], (2 * 5) ** 2, rtol=0.35)
    np.testing.assert_allclose(shift[:, MEAN], none[:, MEAN], atol=1e-3)  # a whole voxel: the same voxels
    np.testing.assert_allclose(turn[:, VOLUME] / none[:, VOLUME], 1, atol=0.05)
    assert (contour[:, VOLUME] != none[:, VOLUME]).any()
    np.testing.assert_allclose(contour[:, VOLUME] / none[:, VOLUME], 1, atol=0.35)


def test_a_quarter_of_a_voxel_along_each_axis_reads_the_image_a_quarter_further_there():
    """HU rises by 10, 4 and 7 a voxel along z, y and x; the box keeps its voxels, since three quarters of each are its own."""
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (18, 30, 32)), indexing="ij")
    labels = torch.zeros(z.shape, dtype=torch.int64)
    labels[7:11, 12:18, 13:19] = 1
    shifts = ((0.0, 0.0, 0.0), (0.25, 0.0, 0.0), (0.0, 0.25, 0.0), (0.0, 0.0, 0.25))
    changes = [Perturbation(str(n), "systematic", shift=shift) for n, shift in enumerate(shifts)]
    values, _ = perturb.describe_perturbed(10 * z + 4 * y + 7 * x, labels, SPACING, perturbations=changes)
    assert len(set(values[:, 0, VOLUME])) == 1
    np.testing.assert_allclose(values[1:, 0, MEAN] - values[0, 0, MEAN], [2.5, 1.0, 1.75], atol=1e-3)


def test_seeds():
    chain = perturb.PERTURBATIONS[3]
    first, again, other = described(chain, seed=1), described(chain, seed=1), described(chain, seed=2)
    assert np.array_equal(first, again, equal_nan=True) and not np.array_equal(first, other, equal_nan=True)


def test_a_contour_is_drawn_anew_each_time():
    first, second = described(*perturb.PERTURBATIONS[1:3])
    assert (first[:, VOLUME] != second[:, VOLUME]).any() or (first[:, MEAN] != second[:, MEAN]).any()


def test_a_contour_moves_as_far_as_is_said():
    """A hundredth of a mm moves no voxel, a mm and a half moves some of each lesion's."""
    none, still, far = (described(Perturbation("c", "random", contour_mm=mm))[0, :, MEAN] for mm in (0.0, 0.01, 1.5))
    np.testing.assert_allclose(still, none, rtol=1e-9)
    assert (np.abs(far - none) > 0.1).all()


def test_tiny_lesions_survive_every_default():
    image, labels = two_lesions()
    labels = torch.zeros_like(labels)
    labels[9, 20, 20], labels[0, 0, 0:3] = 1, 2
    values, _ = perturb.describe_perturbed(image, labels, SPACING)
    assert values.shape == (len(perturb.PERTURBATIONS), 2, 728)
    assert np.isfinite(values[:, :, MEAN]).all() and (values[:, :, VOLUME] > 0).all()


def test_default_list_has_both_kinds_and_unique_names():
    names = [p.name for p in perturb.PERTURBATIONS]
    assert len(set(names)) == len(names) == 10
    assert {p.kind for p in perturb.PERTURBATIONS} == {"systematic", "random"}
    with pytest.raises(Refused):
        Perturbation("x", "sometimes")


def test_noise_is_measured():
    draw = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 90, 40)[:, None] + torch.linspace(0, 30, 40)
    image = smooth.expand(30, 40, 40) + 12 * torch.randn((30, 40, 40), generator=draw)
    assert perturb.noise_hu(image) == pytest.approx(12, rel=0.05)
    assert perturb.noise_hu(image[:4]) == 0, "too thin to tell"
    louder, liver = image.clone(), torch.zeros(image.shape, dtype=torch.bool)
    louder[:, :, 26:] += 60 * torch.randn((30, 40, 14), generator=draw)
    liver[:, :, 4:18] = True  # clear of it
    assert perturb.noise_hu(louder, liver) == pytest.approx(12, rel=0.05) and perturb.noise_hu(louder) > 14


def test_a_steady_descriptor_is_the_mean_over_the_lesion_and_its_copies():
    image, labels = two_lesions()
    table, values = radiomics.steady(image, labels, SPACING)
    plain = radiomics.describe(image, labels, SPACING)
    assert values.shape == (1 + len(perturb.PERTURBATIONS), len(plain), 728)
    of_voxels = [n for n, name in enumerate(NAMES) if not name.startswith("boundary_")]
    own = plain[list(NAMES)].to_numpy()
    np.testing.assert_allclose(values[0][:, of_voxels], own[:, of_voxels], rtol=1e-12)
    np.testing.assert_allclose(
        values[0], own, rtol=1e-5, atol=1e-9
    )  # the box is larger: profiles are read at other float32
    assert (table.reason == plain.reason).all()
    assert np.allclose(table.intensity_mean, values[:, :, NAMES.index("intensity_mean")].mean(0))
    assert not np.allclose(table.intensity_mean, plain.intensity_mean, rtol=1e-9)
    own = plain[list(NAMES)].isna().to_numpy()
    assert own.any() and np.array_equal(table[list(NAMES)].isna().to_numpy(), own)  # liver contact, without a liver


def test_a_lesions_copies_do_not_depend_on_its_neighbours():
    """The same numbers whether a lesion is described alone or in a batch with a larger one, whose box is larger."""
    image, labels = two_lesions()
    together, _ = radiomics.steady(image, labels, SPACING)
    alone, _ = radiomics.steady(image, torch.where(labels == 8, labels, 0), SPACING)
    names = [name for name in NAMES if name != "boundary_liver_contact"]
    a, b = together[names].to_numpy()[1], alone[names].to_numpy()[0]
    assert np.mean(np.abs(a - b) > 1e-3 * np.abs(b) + 1e-6) < 0.02, "but for a voxel on a bin's edge"


def test_a_contour_drawn_anew_stays_within_the_volume():
    labels = torch.ones((6, 10, 12), dtype=torch.int64)  # it fills the volume
    image = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    changes = [Perturbation("contour", "random", contour_mm=2.0)]
    values, _ = perturb.describe_perturbed(image, labels, SPACING, perturbations=changes)
    assert values[0, 0, VOLUME] <= labels.numel() * 2.0 * 1.0 * 1.2


def test_growing_stays_within_the_volume():
    region = torch.ones((1, 3, 8, 8), dtype=torch.bool)
    padded = torch.nn.functional.pad(region, (6,) * 6)
    grown = perturb._resized(padded, padded, (1.0, 1.0, 1.0), torch.full((1, 1, 1, 1), 0.15))
    assert torch.equal(grown, padded)
