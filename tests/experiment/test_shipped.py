"""The model that comes with the workbench: what is in it, that it works at once, and when it says that it does not know."""

import json

import pandas as pd
import pytest
import torch

from workbench.data import phantom, readers
from workbench.data.readers import nifti
from workbench.experiment import Experiment, models, pipeline, segmentation
from workbench.stages import domain
from workbench.volume import Volume, canonical_affine, resample


@pytest.fixture(scope="module")
def clinical():
    return segmentation.Models.load(models.find(models.DEFAULT), "cpu")


def test_it_is_small_whole_and_says_what_it_is():
    (about,) = models.listed()
    assert about["name"] == models.DEFAULT and about["bytes"] < 20e6
    folder = models.find(models.DEFAULT)
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {".json", ".csv", ".safetensors"}
    assert set(about["operating_points"]) == {"recall", "dice", "f1", "fp"} and len(about["measured_on"]) >= 3
    assert "CC BY 4.0" in about["licence"] and "10.7937/TCIA.5FNA-0924" in about["attribution"]


def test_it_has_learned_from_nobody_who_is_a_test():
    """3D-IRCADb, LiTS and CHAOS are the test; only licensed scans and phantoms were learned from."""
    patients = Experiment(models.find(models.DEFAULT), "cpu").patients_learned_from()
    licensed = {p for p in patients if not p.startswith("phantom-")}
    assert {p.rsplit("-", 1)[0] for p in licensed} == {"hcc-tace", "crlm-ct", "totalseg"} and len(licensed) == 10


def test_it_segments_without_any_setting(call, tmp_path):
    made = phantom.generate(7, "demo")
    nifti.write(made.ct, tmp_path / "ct.nii.gz")
    status, out, err = call(
        "segment", tmp_path / "ct.nii.gz", "-o", tmp_path / "results", "--name", "p7", "--device", "cpu"
    )
    assert status == 0, err
    labels = readers.read_labels(tmp_path / "results" / "p7" / "labels.nii.gz")
    assert pipeline.dice(labels.array > 0, made.labels.array > 0) > 0.9
    info = json.loads((tmp_path / "results" / "p7" / "result.json").read_text())
    assert info["models"]["name"].startswith("clinical ") and info["scan"]["phase"]
    cards = json.loads((tmp_path / "results" / "p7" / "cards.json").read_text())
    assert cards["training"]["lesions"] > 20


def seen(scan: Volume, liver: torch.Tensor, clinical, whole: bool = True) -> list[str]:
    shape, spacing = clinical.settings.work_grid(scan.shape, scan.spacing_mm)
    hu, mask = resample(scan.array, shape).clamp(-1024, 3071).round(), resample(liver, shape) >= 0.5
    return domain.doubts(domain.measure(hu, mask, spacing, scan.spacing_mm), clinical.scans, whole)


@pytest.mark.realdata
def test_no_warning_on_the_scans_that_it_should_handle_and_one_for_a_liver_full_of_fat(realdata, clinical):
    table = pd.read_csv(realdata / "livers.csv", dtype=str)
    doubts = {}
    for row in table.itertuples():
        ct = readers.read(realdata / row.ct)
        doubts[row.case] = seen(
            ct, readers.read_labels(realdata / row.liver, like=ct, allowed=None).array > 0, clinical
        )
    assert {case for case, lines in doubts.items() if lines} <= {"ircadb01-16"}  # 26 HU


@pytest.mark.realdata
def test_what_is_unlike_is_said(realdata, clinical):
    """A portal scan made unlike: 8 mm slices, cut, with metal, of a stout and a slight patient, noisy; and one without contrast."""
    ct = readers.read(realdata / "ircadb01-17/ct.nii.gz")
    liver = readers.read_labels(realdata / "ircadb01-17/liver.nii.gz", like=ct).array > 0
    assert seen(ct, liver, clinical) == []
    z, y, x = ct.spacing_mm

    def said(array, mask, spacing=ct.spacing_mm) -> str:
        return " ".join(seen(Volume(array, spacing, canonical_affine(spacing)), mask, clinical))

    thick = (round(len(liver) * z / 8), *ct.shape[1:])
    assert "mm apart" in said(
        resample(ct.array, thick), resample(liver, thick) >= 0.5, (z * len(liver) / thick[0], y, x)
    )
    middle = int(liver.flatten(1).any(1).nonzero().float().median())
    assert "cut by the scan's end" in said(ct.array[:middle], liver[:middle])
    metal = ct.array.clone()
    metal[middle - 4 : middle + 4, 250:262, 250:262] = 3071
    assert "metal beside the liver" in said(metal, liver)
    assert "mm wide" in said(ct.array, liver, (z, 1.6 * y, 1.6 * x))
    assert "mm wide" in said(ct.array, liver, (z, 0.6 * y, 0.6 * x))
    noise = torch.randn(ct.shape, generator=torch.Generator().manual_seed(0))
    assert "noise in the liver" in said(ct.array + 120 * noise, liver)
    plain = readers.read(realdata / "totalseg-example/example_ct.nii.gz")
    mask = readers.read_labels(realdata / "totalseg-example/example_ct_liver.nii.gz", like=plain).array > 0
    assert "without contrast" in " ".join(seen(plain, mask, clinical))
