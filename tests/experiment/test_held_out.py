"""What is told of held-out cases: over patients, in the direction of the stages, in mm, and nothing of a liver that was given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.experiment.pipeline import held_out
from workbench.experiment.segmentation import DECIDING
from workbench.stages import metrics
from workbench.stages.ledger import ABLATION
from workbench.volume import Volume


def labels(*tumor, shape=(2, 20, 40)):
    """A volume of liver with boxes of tumor."""
    out = torch.ones(shape, dtype=torch.uint8)
    for box in tumor:
        out[box] = 2
    return out


BOX = np.s_[:, 2:6, 2:6]


def report(found: bool) -> dict:
    return metrics.evaluate_case(labels(BOX), labels(BOX) if found else labels(), (3.0, 1.0, 1.0))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The tables of ten cases of six patients, five of them of the first. The forest finds what no stage before it found, in that
    patient's; what comes after leaves it so. Without the forest nothing is found, without another stage it is."""
    cases = [SimpleNamespace(case=f"case-{n}", patient="abcdef"[max(0, n - 4)], split="test") for n in range(10)]
    training = SimpleNamespace(case="other", patient="g", split="train")

    def given(make, work, chosen, workers):
        assert chosen == cases, "the held-out ones and no other"
        for case in chosen:
            one = case.patient == "a"
            stages = [report(one and stage in ("forest", "boundary")) for stage in ABLATION]
            yield stages, [report(one and stage != "forest") for stage in DECIDING]

    monkeypatch.setattr(held_out.cohort, "read_manifest", lambda _: [training, *cases])
    monkeypatch.setattr(held_out, "in_processes", given)
    made = SimpleNamespace(manifest=None, folder=tmp_path, device=torch.device("cpu"), progress=lambda *_: None)
    held_out.run_metrics(made, tmp_path, None)
    return lambda name, *index: pd.read_csv(tmp_path / f"{name}.csv").set_index(list(index)).sort_index()


def test_intervals_are_over_patients(measured):
    """Six patients, one with five scans: the errors of their sums are 1.5 and five times -.3, so Student's interval is 2.5706 * .3 to both sides."""
    half = 2.5705818 * 0.3
    row = measured("ablation", "stage", "metric").loc[("forest", "tumor_dice")]
    assert tuple(row[["mean", "low", "high", "n"]]) == pytest.approx((0.5, 0.5 - half, 0.5 + half, 10))
    change = measured("comparisons", "from", "to", "metric").loc[("candidates", "forest", "tumor_dice")]
    assert tuple(change[["difference", "high", "n"]]) == pytest.approx((0.5, 0.5 + half, 10))
    assert change.p == 1.0, "one patient's sign says nothing, however many scans it has"
    row = measured("leave_one_out", "without", "metric").loc[("forest", "tumor_dice")]
    assert tuple(row[["mean", "difference", "high"]]) == pytest.approx((0, 0.5, 0.5 + half)) and row.p == 1.0


def test_changes_run_from_without_to_with(measured):
    steps = measured("comparisons", "from", "to", "metric").difference
    assert steps[("candidates", "forest", "recall_iou0")] == 0.5
    assert steps[("forest", "boundary", "recall_iou0")] == steps[("cascade", "consistency", "recall_iou0")] == 0
    without = measured("leave_one_out", "without", "metric").difference
    assert without[("forest", "recall_iou0")] == 0.5 and without[("boundary", "recall_iou0")] == 0


def test_what_the_ablation_follows_by_hand():
    """Two lesions, of 17 mm and of 7 mm; of the large one 60 % is found, of the small one 40 %; beside them a false piece."""
    truth = labels(np.s_[:, 0:20, 0:20], np.s_[:, 0:5, 30:35])
    prediction = labels(np.s_[:, 0:20, 0:12], np.s_[:, 0:5, 30:32], np.s_[:, 18:19, 38:39])
    case = metrics.evaluate_case(truth, prediction, (3.0, 1.0, 1.0))
    assert [round(lesion["diameter_mm"]) for lesion in case["lesions"]] == [17, 7]
    flat = held_out._flat(case)
    assert (flat["recall_iou0"], flat["recall_iou50"], flat["recall_over_10mm"]) == (1.0, 0.5, 1.0)
    assert (flat["precision_iou0"], flat["precision_iou50"], flat["false_positives"]) == (2 / 3, 1 / 3, 1.0)
    missed = held_out._flat(metrics.evaluate_case(truth, labels(np.s_[:, 0:5, 30:32]), (3.0, 1.0, 1.0)))
    assert (missed["recall_iou0"], missed["recall_over_10mm"]) == (0.5, 0.0)
    small = held_out._flat(metrics.evaluate_case(labels(BOX), labels(), (1.0, 1.0, 1.0)))
    assert np.isnan(small["recall_over_10mm"]), "no lesion of that size"


def test_distances_are_in_mm_along_their_own_axis_and_a_liver_that_was_given_is_not_measured():
    truth, prediction = (SimpleNamespace(array=labels(np.s_[z, 3, 3])) for z in (0, 1))
    ct = SimpleNamespace(spacing_mm=(5.0, 0.7, 0.9))
    for view, dice in (("whole", 1.0), ("liver box", None)):
        case = SimpleNamespace(case="a", field_of_view=view)
        found = held_out._measured(case, ct, truth, prediction.array)
        assert found["tumor"]["assd_mm"] == 5.0
        assert np.isnan(found["liver"]["dice"]) if dice is None else found["liver"]["dice"] == dice


@pytest.mark.parametrize("view", ["whole", "liver box"])
def test_the_reference_liver_is_given_where_the_scan_is_cut_to_it_and_nowhere_else(view, monkeypatch, tmp_path):
    seen = {}

    def segment(volume, models, **given):
        seen.update(given, name=volume.name)
        raise InterruptedError

    monkeypatch.setattr(held_out, "segment", segment)
    ct = Volume(torch.zeros(2, 20, 40), (5.0, 0.7, 0.9), np.eye(4))
    truth = labels(BOX)
    truth[0] = 0
    case = SimpleNamespace(case="a", field_of_view=view, read=lambda: (ct, SimpleNamespace(array=truth)))
    with pytest.raises(InterruptedError):
        held_out._held_out(None, tmp_path, None, case)
    assert seen["name"] == "a"
    assert seen["liver_given"] is None if view == "whole" else torch.equal(seen["liver_given"], truth >= 1)
