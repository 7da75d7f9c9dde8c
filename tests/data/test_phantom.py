"""The phantom: same seed same bits, anatomy that is all there, truth that agrees with the voxels."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from workbench.data import phantom
from workbench.data.phantom import painting, scanner
from workbench.volume import Refused, same_grid

SEEDS = (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def cases():
    torch.set_num_threads(1)
    return [phantom.generate(seed) for seed in SEEDS]


def test_same_seed_same_bits(cases):
    again = phantom.generate(SEEDS[1])
    assert torch.equal(again.ct.array, cases[1].ct.array)
    assert torch.equal(again.labels.array, cases[1].labels.array)
    assert again.lesions.equals(cases[1].lesions) and again.lookalikes.equals(cases[1].lookalikes)
    assert again.ct.spacing_mm == cases[1].ct.spacing_mm


def test_the_torch_seed_of_the_caller_is_neither_used_nor_changed(cases):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    again = phantom.generate(SEEDS[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.ct.array, cases[0].ct.array)


def test_different_seeds_are_different_patients(cases):
    livers = [float((c.labels.array > 0).sum()) * c.ct.voxel_ml for c in cases]
    assert np.ptp(livers) > 200
    assert len({c.ct.spacing_mm for c in cases}) == len(cases)
    assert len({round(float(c.ct.array.float().mean()), 3) for c in cases}) == len(cases)


def test_the_noise_is_each_seeds_own(monkeypatch):
    """One body under two seeds: the same labels, and noise that has nothing in common."""
    plan = scanner._plan
    monkeypatch.setattr(scanner, "_plan", lambda seed, *_: plan(5))
    one, other = phantom.generate(5), phantom.generate(6)
    apart = (one.ct.array.float() - other.ct.array.float())[one.labels.array == 1]
    assert torch.equal(one.labels.array, other.labels.array) and float(apart.std()) > 4


def test_grids_are_those_of_the_preset(cases):
    for seed, case in zip(SEEDS, cases):
        scan = phantom.PRESETS["demo"]
        z, y, x = case.ct.shape
        assert (
            scan.slices[0] <= z <= scan.slices[1] and y == x == scan.matrix and z != y
        )  # unequal axes: a transposition would show
        dz, dy, dx = case.ct.spacing_mm
        assert scan.slice_mm[0] <= dz <= scan.slice_mm[1]
        assert scan.pixel_mm[0] <= dy == dx <= scan.pixel_mm[1]
        assert case.ct.array.dtype == torch.int16 and case.labels.array.dtype == case.organs.dtype == torch.uint8
        assert -1024 <= int(case.ct.array.min()) and int(case.ct.array.max()) <= 3071
        assert case.organs.shape == case.instances.shape == case.decoys.shape == case.ct.array.shape
        same_grid(case.ct, case.labels)
        assert case.name == case.ct.name == f"phantom-{seed:04d}"


def test_the_scan_holds_the_whole_liver_with_margins(cases):
    for case in cases:
        liver = case.labels.array > 0
        for axis in range(3):
            on = liver.amax(dim=[a for a in range(3) if a != axis]).nonzero().flatten() * case.ct.spacing_mm[axis]
            assert float(on[0]) > 6 and float(on[-1]) < (case.ct.shape[axis] - 1) * case.ct.spacing_mm[axis] - 6
        assert 1000 <= float(liver.sum()) * case.ct.voxel_ml <= 2200
        from scipy import ndimage

        parts, _ = ndimage.label(liver.numpy())
        assert np.bincount(parts.ravel())[1:].max() > 0.985 * int(liver.sum())  # one organ, not crumbs


def test_every_organ_is_there_where_it_belongs(cases):
    for case in cases:
        code = {name: i for i, name in enumerate(phantom.ORGANS)}
        ml = {name: float((case.organs == code[name]).sum()) * case.ct.voxel_ml for name in phantom.ORGANS}
        assert all(ml[name] > 3 for name in phantom.ORGANS if name != "gallbladder"), ml
        assert 60 < ml["spleen"] < 700 and 150 < ml["kidney"] < 550 and ml["lung"] > 100

        patient = (case.organs != code["outside"]) & (case.organs != code["table"])
        deep, wide = (float(patient.any(0).any(axis).sum()) * case.ct.spacing_mm[2] for axis in (1, 0))
        assert 160 < deep < 330 and 240 < wide < 385 and deep < wide  # an oval, lying on its back
        assert float(patient[:, :, [0, -1]].float().mean()) < 0.05  # air on both sides

        def centre(name, case=case, code=code):
            return (case.organs == code[name]).nonzero().double().mean(0)

        liver = centre("liver")
        assert liver[2] < centre("spleen")[2] and liver[2] < centre("stomach")[2]  # x grows to the patient's left
        assert centre("bone")[1] > liver[1] and centre("aorta")[1] > centre("stomach")[1]  # y grows to the back
        assert centre("lung")[0] > liver[0] > centre("bowel")[0]  # z grows to the head
        mean = {
            n: float(case.ct.array[case.organs == code[n]].float().mean())
            for n in ("fat", "muscle", "bone", "lung", "outside")
        }
        assert (
            mean["outside"] < -930
            and -950 < mean["lung"] < -600
            and -125 < mean["fat"] < -70
            and 25 < mean["muscle"] < 80
            and mean["bone"] > 180
        )


def test_labels_lie_in_the_liver_of_the_organ_map(cases):
    liver = phantom.ORGANS.index("liver")
    for case in cases:
        assert torch.equal(case.organs == liver, case.labels.array > 0)
        assert set(case.labels.array.unique().tolist()) <= {0, 1, 2}


def test_every_listed_lesion_is_in_the_labels_with_its_volume(cases):
    seen = 0
    for case in cases:
        tumor = case.labels.array == 2
        assert sorted(case.lesions.lesion) == sorted(set(case.instances.unique().tolist()) - {0})
        assert torch.equal(case.instances > 0, tumor)
        for row in case.lesions.itertuples():
            mask = case.instances == row.lesion
            voxels = int(mask.sum())
            assert voxels >= 1
            # The half level moves the outline by a fraction of a voxel: tolerance is a quarter of a voxel of its surface.
            surface = 4.84 * row.volume_ml ** (2 / 3) * 100  # mm2 of the ball
            tolerance = 0.25 * surface * max(case.ct.spacing_mm) / 1000 + case.ct.voxel_ml
            assert abs(voxels * case.ct.voxel_ml - row.volume_ml) < tolerance, (case.name, row)
            at = mask.nonzero().double().mean(0) * torch.tensor(case.ct.spacing_mm, dtype=torch.float64)
            assert float((at - torch.tensor([row.z_mm, row.y_mm, row.x_mm])).abs().max()) < 0.75 * max(
                case.ct.spacing_mm
            )
            assert row.kind in phantom.KINDS
            assert math.isclose(
                row.diameter_mm, 2 * (3 * 1000 * row.volume_ml / (4 * math.pi)) ** (1 / 3), rel_tol=1e-6
            )
            seen += 1
    assert seen >= 8


def test_lookalikes_never_touch_a_lesions_label(cases):
    kinds = set()
    for case in cases:
        assert not bool(((case.decoys > 0) & (case.labels.array == 2)).any())
        assert sorted(case.lookalikes.lookalike) == sorted(set(case.decoys.unique().tolist()) - {0})
        for row in case.lookalikes.itertuples():
            mask = case.decoys == row.lookalike
            assert math.isclose(int(mask.sum()) * case.ct.voxel_ml, row.volume_ml, rel_tol=1e-6)
            if (
                row.kind in ("focal fat", "dark vessel", "gallbladder") and row.volume_ml > 2
            ):  # they really look darker than the liver beside
                base = case.ct.array[(case.labels.array == 1) & (case.decoys == 0)].float().median()
                assert float(case.ct.array[mask].float().mean()) < float(base) - 4
        kinds |= set(case.lookalikes.kind)
    assert {"gallbladder", "focal fat", "perfusion", "beam hardening", "dark vessel", "fissure", "notch"} <= kinds


def test_fissures_and_notches_are_dark_and_lie_at_the_capsule(cases):
    """As half of the false candidates in patients do: within 8 mm of the capsule."""
    depths = []
    for case in cases:
        labels = case.labels.array
        liver = np.pad((labels > 0).numpy(), 1)  # the ends of the scan count as outside
        depth = ndimage.distance_transform_edt(liver, sampling=case.ct.spacing_mm)[1:-1, 1:-1, 1:-1]
        plain = case.ct.array[(labels == 1) & (case.decoys == 0)].float().median()
        for row in case.lookalikes[case.lookalikes.kind.isin(["fissure", "notch"])].itertuples():
            mask = (case.decoys == row.lookalike).numpy()
            depths.append(np.median(depth[mask]))
            assert row.volume_ml < 0.3 or case.ct.array[mask].float().mean() < plain - 4
    assert len(depths) >= 8 and np.quantile(depths, 0.9) < 10 and np.mean(np.array(depths) < 8) > 0.7


def test_demo_slices_are_thin_and_thick():
    thick = [phantom.generate(seed).ct.spacing_mm[0] for seed in range(20, 32)]
    assert min(thick) < 2 and max(thick) > 4 and max(thick) <= 5 and min(thick) >= 1


def test_hu_contrast_and_noise_are_those_of_real_scans(cases):
    """Yardstick of the real cases: liver 75 to 141 HU, sd 10 to 38 with vessels and edges; tumors darker by about 25 to 50 HU."""
    contrast = []
    for case in cases:
        hu, labels = case.ct.array.float(), case.labels.array
        plain = hu[(labels == 1) & (case.decoys == 0)]
        assert 74 <= float(plain.mean()) <= 142
        assert 10 <= float(plain.std()) <= 38
        middle = float(plain.median())
        spread = 1.4826 * float((plain - middle).abs().median())
        assert 4 <= spread <= 20  # parenchyma alone: noise and texture
        if bool((labels == 2).any()):
            contrast.append(float(hu[labels == 2].mean()) - middle)
    assert -60 < float(np.mean(contrast)) < -18


def test_noise_is_correlated_in_the_plane_and_stronger_in_the_middle():
    generator = torch.Generator().manual_seed(3)
    noise = scanner._noise((6, 96, 80), (1.0, 0.8, 0.8), 0.5, 2.0, generator, "cpu")
    assert math.isclose(float(noise.std()), 1, abs_tol=1e-3)
    near = float((noise[:, :, 1:] * noise[:, :, :-1]).mean())
    far = float((noise[:, :, 4:] * noise[:, :, :-4]).mean())
    across = float((noise[1:] * noise[:-1]).mean())
    assert 0.2 < near < 0.7 and -0.2 < far < 0.05 and 0.4 < across < 0.8
    # Band pass: the spectrum vanishes towards frequency 0.
    spectrum = torch.fft.fft2(noise).abs().pow(2).mean(0)
    assert float(spectrum[:2, :2].mean()) < 0.25 * float(spectrum[:20, :16].mean())


def test_the_cohort_has_all_kinds_and_some_cases_without_a_lesion():
    plans = [scanner._plan(seed)[0] for seed in range(24)]
    assert {lesion.kind for p in plans for lesion in p.lesions} == set(phantom.KINDS)
    assert any(not p.lesions for p in plans) and max(len(p.lesions) for p in plans) <= 8
    assert {p.body.phase for p in plans} == {"portal", "arterial", "late"}


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(Refused, match="huge"):
        phantom.generate(0, "huge")
    with pytest.raises(Refused, match="-1"):
        phantom.generate(-1)


def test_unequal_planned_grid_paints_the_same_anatomy():
    """Painting fewer rows than columns gives the same values at the same places: no axis is mixed up with another."""
    plan = scanner._plan(2)[0]
    z, y, x = torch.arange(0.0, 12, 4), torch.arange(-60.0, 60, 3), torch.arange(-120.0, 90, 3)
    whole = painting.paint_slices(plan, z, y, x, 3.0)["hu"]
    part = painting.paint_slices(plan, z, y[5:30], x, 3.0)["hu"]
    assert whole.shape == (3, 40, 70)
    assert torch.allclose(whole[:, 5:30], part, atol=0.5)
