"""The benchmark on real CT: nothing of the held-out patient is learned from, and the figures are those of the lesions."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from workbench.data import cohort, files
from workbench.data.readers import nifti


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "real_ct.py"
    spec = importlib.util.spec_from_file_location("real_ct_benchmark", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder like the real one: three toys with tumors, of two patients, one of them cut; two without, of which one is in both tables."""
    place = tmp_path_factory.mktemp("real")
    table = pd.read_csv(tiny.cohort(place, 5, 0))
    for name in table.case[3:]:
        ct, labels = tiny.patient(int(name[-2:]))
        ct.array[labels.array == 2] = 110
        nifti.write(ct, place / name / "ct.nii.gz")
        nifti.write(labels.with_array(labels.array.clamp(max=1)), place / name / "labels.nii.gz")
    ill = table[:4].assign(patient=list("aabc"), field_of_view=["whole", "liver box", "whole", "whole"])
    ill.assign(tumors=["2", "1", "5", "0"]).drop(columns="split").to_csv(place / "cohort.csv", index=False)
    livers = table[2:].assign(patient=list("bcd"), tumors=["present, not labelled", "none", "none"])
    livers.rename(columns={"labels": "liver"}).drop(columns="split").to_csv(place / "livers.csv", index=False)
    return place


@pytest.fixture(scope="module")
def measured(benchmark, data, trained, tmp_path_factory):
    """Variant b on them, from the toy experiment; the work folder."""
    work = tmp_path_factory.mktemp("work")
    tiny.copied(trained, work / "a-0")
    with pytest.MonkeyPatch.context() as patch:
        few = cohort.ImplantSettings(copies=2, count=(2, 4), kinds=("metastasis",))
        own = benchmark.adapt.settings_for
        patch.setattr(benchmark.adapt, "settings_for", lambda s, *rest: own(replace(s, implants=few), *rest))
        made = benchmark.train(work, data, "b", 0, 0, tiny.settings())
    cases = cohort.read_manifest(benchmark.manifest(data, work, True))
    ready = benchmark.Ready(made.folder, made.folder, "b")
    benchmark.patient_measured("b", 0, work, "digest", ready, ("a", [c for c in cases if c.patient == "a"]))
    return work, made


def test_labels_of_tumors_are_learned_from_only_where_it_is_said(benchmark, data, tmp_path):
    for labelled, ill in ((True, "complete"), (False, "exclude")):
        cases = cohort.read_manifest(benchmark.manifest(data, tmp_path, labelled))
        assert [c.tumor_labels for c in cases] == [ill] * 3 + ["none"] * 2
        assert [c.patient for c in cases] == list("aabcd") and all(c.ct.is_file() for c in cases)
        assert [c.field_of_view for c in cases] == ["whole", "liver box", "whole", "whole", "whole"]


def test_nothing_of_the_held_out_patient_is_in_its_forest(benchmark, measured, monkeypatch):
    """Features, trees and operating points: each patient is a fold, and other scores of the patient change nothing."""
    _, made = measured
    rows = benchmark.pipeline.forest_rows(made)
    assert len(set(rows.fold)) == len(set(rows.patients)) == 4
    judged = benchmark.judges(made)
    chosen = files.read_json(made.path("selection") / "selected.json")
    for patient in "abcd":
        (fold,) = set(rows.fold[rows.patients == patient])
        assert list(judged[patient].names) == chosen[str(fold)]
    own = benchmark.pipeline.forest_rows

    def spoiled(made):
        found = own(made)
        on = found.patients == "a"
        return found._replace(
            truth=np.where(on, ~found.truth, found.truth),
            features=pd.DataFrame(np.where(on[:, None], 7.0, found.features), columns=found.features.columns),
        )

    monkeypatch.setattr(benchmark.pipeline, "forest_rows", spoiled)
    again = benchmark.judges(made)["a"]
    assert again.points == judged["a"].points and again.largest_ml == judged["a"].largest_ml
    probe = rows.features[:5]
    assert np.array_equal(again.score(probe), judged["a"].score(probe))


def test_whole_scans_are_measured_with_both_livers_and_cut_ones_with_the_reference(benchmark, measured):
    work, _ = measured
    (piece,) = benchmark.pieces(work)
    assert benchmark.measured(work / "b-0-a.json", "digest") and not benchmark.measured(work / "b-0-a.json", "other")
    s = tiny.settings()
    assert benchmark.digest("b", 0, 160, s) != benchmark.digest("b", 0, 160, replace(s, pixel_mm=2.0))
    assert [(s["case"], s["liver"]) for s in piece["scans"]] == [
        ("toy-00", "own"),
        ("toy-00", "reference"),
        ("toy-01", "reference"),
    ]
    own, given, cut = piece["scans"]
    assert own["liver_dice"] > 0.8 and given["liver_dice"] is None and cut["liver_dice"] is None
    assert set(own["points"]) == {"recall", "dice", "f1", "fp"} and own["points"]["dice"] == own["stages"]["boundary"]
    table = pd.concat([benchmark.summary([piece]), benchmark.summary([piece], "reference")])
    last = table[(table.stage == "boundary")].set_index("liver").tumor_dice
    for liver, scan in (("own", own), ("reference", given)):
        both = [scan["stages"]["boundary"]["dice"], cut["stages"]["boundary"]["dice"]]
        assert last[liver] == pytest.approx(np.mean(both))
    (row,) = benchmark.areas([piece]).to_dict("records")
    assert row["candidates"] == len(own["candidates"]) + len(cut["candidates"])
    assert "Tumor Dice a patient" in benchmark.words(table)


def test_fewer_patients_can_be_learned_from(benchmark, measured):
    work, made = measured
    held = benchmark.pieces(work)
    assert benchmark.seeds_with_features(held) == [0]
    table = benchmark.patients_needed(work, held, 0, (1, 3), 2)
    assert (
        table.patients.tolist() == [1, 1, 3] and table.auc.between(0, 1).all() and table.tumor_dice.between(0, 1).all()
    )


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
