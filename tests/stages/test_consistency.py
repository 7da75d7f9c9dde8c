from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.lab import review
from workbench.stages import consistency
from workbench.stages.consistency import ConsistencySettings

HALF = ConsistencySettings(threshold=0.5, low=0.25, keep=0.8, restore_only_above_mm=6.0)


def refine(p, slice_mm):
    return consistency.refine(p, slice_mm, HALF)


def column(*p):
    return torch.tensor(p)[:, None, None].expand(len(p), 2, 3).clone()


def first(mask):
    return mask[:, 0, 0].int().tolist()


def test_a_gap_between_two_is_restored():
    out = refine(column(0.9, 0.3, 0.9), 2.5)
    assert first(out.mask) == [1, 1, 1] and first(out.restored) == [0, 1, 0]


def test_a_gap_that_the_net_denies_stays():
    assert first(refine(column(0.9, 0.2, 0.9), 2.5).mask) == [1, 0, 1]


def test_isolated_noise_goes_and_a_sure_slice_stays():
    out = refine(column(0.0, 0.6, 0.0, 0.0, 0.85, 0.0), 2.5)
    assert first(out.mask) == [0, 0, 0, 0, 1, 0] and first(out.suppressed) == [0, 1, 0, 0, 0, 0]


def test_ends_are_repeated():
    assert first(refine(column(0.6, 0.0, 0.0, 0.6), 2.5).mask) == [1, 0, 0, 1]


def test_one_pass_only():
    assert first(refine(column(0.9, 0.3, 0.3, 0.9), 2.5).mask) == [0 + 1, 0, 0, 1]


def test_thick_slices_are_never_cleared():
    assert first(refine(column(0.0, 0.6, 0.0), 8.0).mask) == [0, 1, 0]


def test_what_reaches_a_threshold_has_it():
    exact = ConsistencySettings(threshold=0.5, low=0.25, keep=0.75, restore_only_above_mm=6.0)
    assert first(consistency.refine(column(0.5, 0.25, 0.5), 6.0, exact).mask) == [1, 1, 1]
    out = consistency.refine(column(0.0, 0.75, 0.0, 0.5, 0.0), 6.0, exact)
    assert first(out.mask) == [0, 1, 0, 0, 0] and first(out.suppressed) == [
        0,
        0,
        0,
        1,
        0,
    ]  # slices of 6 mm are not over 6 mm


@pytest.mark.parametrize("p", [torch.zeros(4, 3, 2), torch.ones(4, 3, 2), torch.full((1, 3, 2), 0.6)])
def test_nothing_to_do(p):
    out = refine(p, 2.5)
    assert torch.equal(out.mask, p >= 0.5) and not out.restored.any() and not out.suppressed.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_it_says_is_what_it_did(seed):
    p = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(seed))
    out = refine(p, 2.5)
    assert torch.equal(out.mask, ((p >= 0.5) | out.restored) & ~out.suppressed)
    assert not (out.restored & (p >= 0.5)).any() and not (out.suppressed & (p < 0.5)).any()
    assert torch.equal(refine(p[:, :, 2:3], 2.5).mask, out.mask[:, :, 2:3])  # along z only


def test_thresholds_must_rise():
    with pytest.raises(ValueError, match="rising"):
        ConsistencySettings(low=0.7)


def test_the_work_grid_s_rounding_does_not_toggle_the_rule():
    """Slices asked to be 3 mm come as 2.98 or 3.02, as the field of view divides; the rule clears on both."""
    p = torch.zeros(5, 3, 3)
    p[2, 1, 1] = 0.5
    cleared = [int(consistency.refine(p, mm).suppressed.sum()) for mm in (2.98, 3.0, 3.02, 3.1, 3.5)]
    assert cleared == [1, 1, 1, 1, 0]


def test_the_review_counts_thin_and_thick_slices_apart():
    settings = ConsistencySettings()
    tables = {
        "consistency": pd.DataFrame(
            {
                "case": ["a", "b", "c"],
                "split": ["test", "test", "train"],
                "restored": [4, 3, 0],
                "restored_right": [3, 0, 0],
            }
            | {"suppressed": [2, 0, 5], "suppressed_right": [2, 0, 1]}
        ),
        "cohort": pd.DataFrame({"case": ["a", "b", "c"], "work_z_mm": [3.02, 5.0, 3.0]}),
    }
    made = SimpleNamespace(
        table=lambda stage, *_, **__: tables[stage],
        cases=lambda: tables["cohort"],
        settings=SimpleNamespace(consistency=settings),
    )
    table = review.consistency(made)
    assert table.slices.tolist() == ["thin", "thick", "thin"] and table.changed.tolist() == [6, 3, 5]
    assert review.changes(table).T.to_dict("list") == {
        "restored, thick, held out": [0, 3],
        "restored, thin, held out": [3, 1],
        "suppressed, thin, held out": [2, 0],
        "suppressed, thin, out of fold": [1, 4],
    }
    held = table[table.split == "test"].assign(patient=["a", "b"], dice_before=[0.5, 0.6], dice_after=[0.55, 0.6])
    said = review.three_slices(held).splitlines()
    assert said[0].startswith("- **thin slices** (3.0 to 3.0 mm, 1 held-out patients): 3 of 4") and "2 of 2" in said[0]
    assert said[1].startswith("- **thick slices** (5.0 to 5.0 mm") and "no voxel is suppressed" in said[1]
