"""What a scan is like: organs beside the spine, contrast phase, and warnings for what a model has not seen."""

import math

import pandas as pd
import pytest
import torch

from workbench import experiment
from workbench.data import phantom, readers
from workbench.stages import domain
from workbench.volume import resample

SCAN = {
    "liver_hu": 110.0, "noise_hu": 8.0, "slice_mm": 2.5, "pixel_mm": 0.8, "width_mm": 350.0, "liver_ml": 1500.0,
    "phase": "portal venous", "aorta_hu": 160.0, "spleen_hu": 120.0, "metal_ml": 0.0, "cut_cm2": 0.0,
}  # fmt: skip


def table(*scans: dict, phantoms: bool = False) -> pd.DataFrame:
    rows = [{"case": f"c{n}", "patient": f"p{n}", "phantom": phantoms} | SCAN | scan for n, scan in enumerate(scans)]
    return pd.DataFrame(rows)


LIKE = table({"liver_hu": 90}, {}, {"liver_hu": 140, "slice_mm": 5.0})


def test_a_scan_like_those_that_were_learned_from_has_no_warning():
    assert domain.doubts(SCAN, LIKE) == []
    near = SCAN | {"liver_hu": 72.0, "slice_mm": 5.5, "phase": "", "aorta_hu": math.nan}
    assert domain.doubts(near, LIKE) == []


@pytest.mark.parametrize(
    "unlike, said",
    [
        ({"liver_hu": 28.0}, "the liver's median is 28 HU; the model learned from 90 to 140 HU (3 patients)"),
        ({"slice_mm": 8.0}, "slices are 8.0 mm apart; the model learned from 2.5 to 5 mm"),
        ({"noise_hu": 40.0}, "noise in the liver is 40 HU"),
        ({"width_mm": 520.0}, "the body is 520 mm wide"),
        ({"width_mm": 240.0}, "the body is 240 mm wide"),
        ({"liver_ml": 400.0}, "the liver has 400 ml"),
        ({"phase": "arterial", "aorta_hu": 310.0}, "the scan seems arterial (aorta 310, liver 110 HU); the model learned from 3 portal venous"),
        ({"phase": "without contrast", "aorta_hu": 45.0}, "the scan seems without contrast"),
        ({"metal_ml": 2.0}, "metal beside the liver (2.0 ml)"),
        ({"cut_cm2": 80.0}, "the liver is cut by the scan's end (80 cm2 there)"),
    ],
)  # fmt: skip
def test_each_way_of_being_unlike_has_one_warning(unlike, said):
    (line,) = domain.doubts(SCAN | unlike, LIKE)
    assert line.startswith(said)


def test_a_scan_cut_to_the_liver_is_not_said_to_be_cut():
    assert domain.doubts(SCAN | {"cut_cm2": 80.0}, LIKE, whole=False) == []


def test_patients_count_before_phantoms():
    phantoms = table({"liver_hu": 20}, {}, {}, {}, phantoms=True).assign(patient=["a", "b", "c", "d"])
    assert len(domain.doubts(SCAN | {"liver_hu": 25.0}, pd.concat([LIKE, phantoms]))) == 1
    assert domain.doubts(SCAN | {"liver_hu": 25.0}, pd.concat([LIKE[:2], phantoms])) == []


def test_organs_of_phantoms_have_the_hu_that_were_painted():
    """Aorta within 12 % on portal phantoms, and the phase of portal and arterial ones."""
    right = []
    for seed in range(60, 70):
        made = phantom.generate(seed)
        found = domain.organs(made.ct.array, made.labels.array > 0, made.ct.spacing_mm)
        painted = float(made.ct.array[made.organs == phantom.ORGANS.index("aorta")].float().median())
        if made.phase == "portal":
            assert found.aorta == pytest.approx(painted, rel=0.12)
        if made.phase in ("portal", "arterial"):
            right.append(found.phase == {"portal": "portal venous", "arterial": "arterial"}[made.phase])
    assert len(right) >= 8 and sum(right) >= len(right) - 1


def test_without_a_liver_or_a_spine_nothing_is_made_up():
    hu = torch.full((12, 60, 60), -1000, dtype=torch.int16)
    none = torch.zeros(hu.shape, dtype=torch.bool)
    found = domain.organs(hu, none, (3.0, 3.0, 3.0))
    assert math.isnan(found.aorta) and found.phase == ""
    hu[:, 20:40, 20:40], none[:, 25:35, 25:35] = 100, True
    assert domain.organs(hu, none, (3.0, 3.0, 3.0)).phase == ""
    measured = domain.measure(hu, none, (3.0, 3.0, 3.0), (3.0, 3.0, 3.0))
    assert measured["liver_hu"] == 100 and measured["noise_hu"] == 0 and measured["width_mm"] == 60
    assert measured["cut_cm2"] == pytest.approx(9.0) and measured["liver_ml"] == pytest.approx(12 * 100 * 0.027)


def test_noise_is_that_of_the_voxels_and_not_of_slow_changes():
    draw = torch.Generator().manual_seed(1)
    ramp = torch.linspace(60, 140, 80).expand(20, 80, 80)
    hu = ramp + 12 * torch.randn(20, 80, 80, generator=draw)
    assert domain._noise(hu, torch.ones(hu.shape, dtype=torch.bool)) == pytest.approx(12, rel=0.05)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "ct, labels, phase",
    [
        ("ircadb01-17/ct.nii.gz", "ircadb01-17/liver.nii.gz", "portal venous"),
        ("ircadb01-08/ct.nii.gz", "ircadb01-08/liver.nii.gz", "portal venous"),
        ("chaos-ct-03/DICOM_anon", "chaos-ct-03/liver.nii.gz", "portal venous"),
        ("totalseg-example/example_ct.nii.gz", "totalseg-example/example_ct_liver.nii.gz", "without contrast"),
    ],
)
def test_the_phase_of_patients(realdata, ct, labels, phase):
    volume = readers.read(realdata / ct)
    mask = readers.read_labels(realdata / labels, like=volume).array > 0
    shape, spacing = experiment.clinical().work_grid(volume.shape, volume.spacing_mm)
    found = domain.organs(resample(volume.array, shape), resample(mask, shape) >= 0.5, spacing)
    assert found.phase == phase
