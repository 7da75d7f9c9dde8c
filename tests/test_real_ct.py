"""The benchmark on real CT: nothing of the held-out patient is learned from, and the figures are those of the lesions."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from workbench import cohort
from workbench.volume import Refused


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "real_ct.py"
    spec = importlib.util.spec_from_file_location("real_ct_benchmark", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A work folder with two fresh toys, and three other toys of two patients as the real ones."""
    work = tmp_path_factory.mktemp("work")
    tiny.cohort(work / "fresh", 2, 0)
    path = tiny.cohort(work / "real", 5, 0)
    table = pd.read_csv(path).tail(3).drop(columns="split")
    table["patient"], table["field_of_view"] = ["a", "a", "b"], ["whole", "liver box", "whole"]
    table.to_csv(path, index=False)
    return work, cohort.read_manifest(path)


@pytest.mark.parametrize(("variant", "a_scan"), [("b", 2), ("c", 1), ("d", 3)])
def test_nothing_of_the_held_out_patient_is_learned_from(benchmark, scans, variant, a_scan):
    work, cases = scans
    for held, scans_left in (("a", 1), ("b", 2)):
        path = benchmark.manifest_without(held, variant, cases, work, tiny.settings())
        read = cohort.read_manifest(path)
        assert {c.patient for c in read} & {"a", "b"} == {"a", "b"} - {held}
        names = [c.case for c in cases if c.patient == held]
        assert not [c for c in read if any(name in str(c.ct) for name in names)]
        assert len(read) == 2 + scans_left * a_scan
        assert {c.split for c in read} == {"train"}


def test_made_up_lesions_come_on_top_and_real_ones_are_painted_over(benchmark, scans):
    work, cases = scans
    made = {v: [cohort.Case(f.name, "", f / "ct.nii.gz", f / "labels.nii.gz").read()
                for f in benchmark.prepare(cases[2], v, work, tiny.settings(), 2)] for v in "bcd"}  # fmt: skip
    real = made["c"][0][1].array == 2
    for ct, labels in made["d"][1:]:
        assert bool((labels.array == 2)[real].all()) and int((labels.array == 2).sum()) > int(real.sum())
        assert torch.equal(ct.array[real], made["c"][0][0].array[real])
    for ct, labels in made["b"]:
        free = real & (labels.array == 1)
        assert bool(free.any()) and abs(float(ct.array[free].float().median()) - 110) < 6  # it was 50
    assert not torch.equal(made["b"][0][0].array, made["b"][1][0].array)


def test_what_was_trained_with_other_settings_is_not_measured_again(benchmark, scans, trained, tmp_path):
    (tmp_path / "begin").symlink_to(trained.folder)
    with pytest.raises(Refused, match="other settings.*those of this benchmark"):
        benchmark.piece("a", "a", scans[0] / "real" / "manifest.csv", tmp_path, True, again=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begin"]


def test_painting_over_leaves_the_rest_of_the_scan(benchmark):
    ct, labels = tiny.patient(3)
    hu, clean = benchmark.painted_over(ct.array.float(), labels.array, ct.spacing_mm, 0)
    far = ~benchmark.candidates.near(labels.array == 2, ct.spacing_mm, 3.0)
    assert int(clean.max()) == 1 and torch.equal(clean >= 1, labels.array >= 1)
    assert torch.equal(hu[far | (labels.array == 0)], ct.array.float()[far | (labels.array == 0)])


def test_what_is_compared_by_hand(benchmark):
    """Two lesions of 2 x 2 x 2 voxels of 6 mm, one found whole; a third piece touches none."""
    tumor, found = (torch.zeros(6, 12, 12, dtype=torch.bool).numpy() for _ in range(2))
    tumor[1:3, 1:3, 1:3] = tumor[1:3, 8:10, 1:3] = True
    found[1:3, 1:3, 1:3] = found[4, 5, 8:10] = True
    row = benchmark.compared(tumor, found, (6.0, 6.0, 6.0))
    assert row["dice"] == pytest.approx(2 * 8 / (16 + 10)) and [r["iou"] for r in row["lesions"]] == [1.0, 0.0]
    assert row["false_mm"] == pytest.approx([(6 * 0.432 * 1000 / torch.pi) ** (1 / 3)])
    assert row["surface_dice"] == pytest.approx((8 + 8) / (16 + 10)) and row["assd_mm"] > 6


def test_the_figures_of_a_patient(benchmark):
    lesions = [{"diameter_mm": mm, "iou": iou} for mm, iou in ((4, 0.0), (6, 0.5), (8, 0.0), (20, 1.0))]
    scan = {
        "liver_dice": None,
        "stages": {"forest": {"dice": 0.5, "lesions": lesions, "false_mm": [4.0, 7.0, 30.0], "assd_mm": 2.0}},
    }
    other = {
        "liver_dice": 0.9,
        "stages": {"forest": {"dice": 0.7, "lesions": lesions[-1:], "false_mm": [], "assd_mm": None}},
    }
    row = benchmark.of_patient([scan, other], "forest")
    assert row["tumor_dice"] == pytest.approx(0.6) and row["liver_dice"] == 0.9 and row["tumor_assd_mm"] == 2.0
    assert row["dice_of_found"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert (row["lesions_5"], row["found_5"], row["recall_10"]) == (4, 3, 1.0)
    assert row["false_5"] == 1.0 and row["false_10"] == 0.5 and row["precision_5"] == pytest.approx(3 / 5)
