"""One case decided anew: with the experiment's own settings as segment decides it, and moved by each choice."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.experiment import segmentation
from workbench.experiment.whatif import WhatIf
from workbench.lab import review, widgets
from workbench.stages import metrics, radiomics
from workbench.stages.ledger import ABLATION, tumor_after
from workbench.volume import Refused


@pytest.fixture(scope="module")
def case(trained):
    """The held-out case with most candidates."""
    counts = trained.table("candidates", "candidates.csv", dtype=review.AS_TEXT).groupby("case").size()
    return counts.reindex(trained.cases("test").case).fillna(0).idxmax()


@pytest.fixture(scope="module")
def what_if(trained, case):
    return WhatIf(trained, case)


def test_its_own_settings_give_what_segment_gives(trained, models, case, what_if):
    volume, _ = review.original(trained, case)
    result = segmentation.segment(volume, models)
    outcome = what_if()
    columns = ["candidate", "kept", "volume_ml"]
    pd.testing.assert_frame_equal(outcome.lesions[columns], result.lesions[columns], check_exact=False, rtol=0.02)
    # maps are stored as float16, so a voxel on a threshold may differ
    decided = segmentation.decide(result.maps, models)
    for mine, theirs in zip(outcome.masks.values(), decided.masks):
        assert metrics.compare(theirs.numpy(), mine.numpy(), what_if.maps.spacing_mm)["dice"] > 0.99


def test_ledger_and_measures_tell_of_the_masks(what_if):
    outcome = what_if()
    for stage in ABLATION:
        assert torch.equal(tumor_after(outcome.ledger, stage), outcome.masks[stage])
    truth = (what_if.truth == 2).numpy()
    what_if(replace(what_if.start, score=1.01))  # nothing is kept, and what was measured comes back
    for rows in (outcome.measures, what_if().measures):
        for row in rows.itertuples():
            mask = outcome.masks[row.stage].numpy()
            labels = [np.where(m, 2, what_if.maps.liver.numpy()) for m in (truth, mask)]
            found = metrics.evaluate_case(*labels, what_if.maps.spacing_mm)
            counts = found["detection"]["iou0"]
            assert row.dice == found["tumor"]["dice"] and row.assd_mm == pytest.approx(found["tumor"]["assd_mm"])
            assert (row.found, row.missed, row.false_positives) == tuple(counts[k] for k in ("tp", "fn", "fp"))


def test_a_mask_of_the_same_size_is_not_taken_for_another(what_if):
    """A voxel of a tumor and a voxel of none, in turn."""
    hit, miss = torch.zeros(2, *what_if.truth.shape, dtype=torch.bool)
    hit[tuple((what_if.truth == 2).nonzero()[0])] = miss[tuple((what_if.truth != 2).nonzero()[0])] = True
    rows = what_if._measures(dict(zip(ABLATION, (hit, miss, hit, miss, hit))))
    assert (rows.dice > 0).tolist() == [True, False, True, False, True]
    assert rows.false_positives.tolist() == [0, 1, 0, 1, 0]


def test_each_choice_moves_its_own_stage(what_if):
    own, start = what_if(), what_if.start
    sensitive = what_if(replace(start, threshold=0.05, low=0.05))
    assert (sensitive.masks["cascade"] >= own.masks["cascade"]).all()
    assert sensitive.masks["cascade"].sum() > own.masks["cascade"].sum()
    lower = what_if(replace(start, threshold=start.low / 2))  # what restores asks no more than what sets
    assert (lower.masks["cascade"] >= own.masks["cascade"]).all()
    strict = what_if(replace(start, score=1.01))
    assert not strict.lesions.kept.any() and not strict.masks["boundary"].any()
    assert torch.equal(strict.masks["candidates"], own.masks["candidates"])
    every = what_if(replace(start, score=0.0))
    assert every.lesions.kept.all() and torch.equal(every.masks["forest"], every.masks["candidates"])
    narrow = what_if(replace(start, score=0.0, band_mm=start.band_mm / 8))  # no voxel's centre is as near
    assert torch.equal(narrow.masks["forest"], every.masks["forest"])
    moved = [int((o.masks["boundary"] ^ o.masks["forest"]).sum()) for o in (every, narrow)]
    assert moved[0] > moved[1]
    with pytest.raises(Refused, match="band_mm"):
        what_if(replace(start, score=0.0, band_mm=2 * start.band_mm))


def test_what_did_not_change_is_not_described_again(trained, case, monkeypatch):
    fresh, calls = WhatIf(trained, case), []
    steady = radiomics.steady
    monkeypatch.setattr(radiomics, "steady", lambda *given: calls.append(1) or steady(*given))
    fresh()
    fresh(replace(fresh.start, score=0.2))
    assert len(calls) == 1
    fresh(replace(fresh.start, threshold=0.02, low=0.02))
    assert len(calls) == 2


def test_a_stage_can_be_left_out(models, what_if):
    maps = what_if.maps
    for stage, before in (("forest", "candidates"), ("boundary", "forest")):
        masks = dict(zip(ABLATION, segmentation.decide(maps, models, skip=(stage,)).masks))
        assert torch.equal(masks[stage], masks[before])
    masks = dict(zip(ABLATION, segmentation.decide(maps, models, skip=("consistency",)).masks))
    assert torch.equal(masks["consistency"], masks["cascade"])
    with pytest.raises(Refused, match="liver"):
        segmentation.decide(maps, models, skip=("liver",))


def test_leaving_out_is_measured_beside_the_whole(trained):
    table = trained.table("metrics", "leave_one_out.csv").set_index(["without", "metric"])
    cases = trained.table("metrics", "cases.csv")
    assert set(table.index.get_level_values(0)) == set(segmentation.DECIDING)
    before = cases[cases.stage == "forest"].tumor_dice.mean()  # the boundary is last: without it is what was before it
    assert table.loc[("boundary", "tumor_dice"), "mean"] == pytest.approx(before, abs=1e-6)
    after = cases[cases.stage == "boundary"].tumor_dice.mean()
    assert table.loc[("boundary", "tumor_dice"), "difference"] == pytest.approx(after - before, abs=1e-6)


def test_the_panel_shows_what_its_headless_twin_draws(what_if):
    panel = widgets.what_if(what_if, "toy")
    start = panel.picture.value
    assert bytes(start).startswith(b"\x89PNG") and {
        "threshold",
        "low",
        "keep",
        "score",
        "point",
        "band_mm",
        "at",
    } == set(panel.controls)
    panel.controls["threshold"].value = 0.9
    assert panel.picture.value != start
    words = " ".join(cell.get_text().get_text() for cell in panel.figure().axes[2].tables[0].get_celld().values())
    moved = what_if(replace(what_if.start, threshold=0.9)).measures
    assert all(f"{dice:.3f}" in words for dice in moved.dice) and "boundary" in words
    assert moved.dice.iloc[0] != what_if().measures.dice.iloc[0]


def test_an_operating_point_sets_the_score(what_if):
    points = what_if.models.forest.points
    assert set(points) == {"recall", "dice", "f1", "fp"}
    for name, point in points.items():
        assert what_if.at(name) == replace(what_if.start, score=point.threshold)
    panel = widgets.what_if(what_if)
    assert panel.controls["point"].value == "recall"
    panel.controls["point"].value = "f1"
    assert panel.controls["score"].value == pytest.approx(points["f1"].threshold, abs=0.005)
    kept = what_if(what_if.at("f1")).lesions.kept
    assert kept.tolist() == (what_if(what_if.at("f1")).lesions.forest_score >= points["f1"].threshold).tolist()
    panel.controls["score"].value = 0.985
    assert panel.controls["point"].value == widgets.OWN_SCORE
    with pytest.raises(Refused, match="the operating point: found best"):
        what_if.at("best")
