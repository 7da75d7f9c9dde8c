import pytest
import torch

from workbench.stages import ledger


def every_history():
    """One voxel for each history that can happen: candidates and forest only take away."""
    rows = [h for h in torch.cartesian_prod(*[torch.tensor([False, True])] * 5) if h[2] <= h[1] and h[3] <= h[2]]
    return torch.stack(rows, 1).reshape(5, len(rows), 1, 1)


def test_every_stage_can_be_read_back():
    masks = every_history()
    made = ledger.write(list(masks), torch.ones(masks.shape[1:], dtype=torch.bool))
    assert masks.shape[1] == 16 and len(made.unique()) == 16
    for mask, stage in zip(masks, ledger.ABLATION):
        assert torch.equal(ledger.tumor_after(made, stage), mask)


def test_liver_is_told_from_background():
    none = [torch.zeros(2, 1, 1, dtype=torch.bool)] * 5
    liver = torch.tensor([True, False]).reshape(2, 1, 1)
    assert ledger.write(none, liver).flatten().tolist() == [1, 0]


def test_a_history_that_cannot_be_is_an_error():
    masks = [torch.zeros(1, 1, 1, dtype=torch.bool) for _ in range(5)]
    masks[3] = ~masks[3]  # the forest never adds
    with pytest.raises(AssertionError, match="takes away"):
        ledger.write(masks, masks[0])


def test_codes_are_told_and_fit_a_byte():
    assert set(ledger.CODES) == {0, 1, *ledger.HISTORY} and max(ledger.CODES) < 255
    assert len(set(ledger.CODES.values())) == len(ledger.CODES)
