"""A fold of the cascade: killed and resumed, whole volumes on the curve, and who chooses the best checkpoint."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.experiment.pipeline import nets
from workbench.nets import cascade, slabs
from workbench.nets.cascade import CascadeSettings
from workbench.nets.fit import FitSettings, load_tensors
from workbench.nets.network import NetworkSettings
from workbench.nets.slabs import BankCase, SlabSettings
from workbench.volume import Refused

SETTINGS = CascadeSettings(
    NetworkSettings(width=8, growth=4, layers=(1, 1)),
    SlabSettings(crop=(16, 16)),
    FitSettings(steps=7, batch=4, check_every=3, save_every_s=0.0, ema=0.9, rate=1e-2),
)


def patient(seed, shape=(5, 16, 20)):
    """A bright square organ in noise."""
    g = torch.Generator().manual_seed(seed)
    target = torch.zeros(shape)
    target[1:4, 4:12, 5:14] = 1
    return BankCase((target * 120 + 20 * torch.randn(shape, generator=g)).round(), target)


CASES = [patient(s) for s in range(3)]
run = partial(cascade.train_fold, CASES, [patient(9)], SETTINGS, fold=0, device="cpu")


def test_a_killed_fold_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """Killed at a random step: weights, their average and the curve are those of a whole run, bit for bit."""
    whole = run(folder=tmp_path / "whole")
    draw, at = slabs.SlabBank.draw, int(np.random.default_rng().integers(1, SETTINGS.fit.steps))

    def killed(bank, settings, slices, batch, seed, step):
        if step == at:
            raise KeyboardInterrupt
        return draw(bank, settings, slices, batch, seed, step)

    monkeypatch.setattr(slabs.SlabBank, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "cut")
    held = load_tensors(tmp_path / "cut" / "fold0-resume")
    assert held[1]["step"] == at and any(k.startswith("ema.") for k in held[0])
    monkeypatch.setattr(slabs.SlabBank, "draw", draw)
    again = run(folder=tmp_path / "cut")
    one, other = (load_tensors(tmp_path / name / "fold0")[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one), f"killed at step {at}"
    assert again.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_the_curve_holds_whole_volumes_where_they_were_predicted(tmp_path):
    curve = run(folder=tmp_path)
    assert list(curve.columns) == ["step", "loss", "seconds", "dice", "volume_dice"]
    assert curve.volume_dice.notna().tolist() == [False, True, True]
    (net,) = cascade.load(tmp_path, SETTINGS, "cpu")
    case = patient(9)
    on = slabs.predict([net], case.hu, None, SETTINGS.slabs.window_hu, "cpu") >= 0.5
    by_hand = 2 * (on & (case.target > 0)).sum() / (on.sum() + case.target.sum())
    assert curve.volume_dice.iloc[-1] == pytest.approx(float(by_hand), abs=1e-6), "of the net that is kept"


def test_the_held_out_patients_choose_nothing(tmp_path):
    """Other held-out patients give another curve and the same weights, with and without patients who choose."""
    settings = replace(SETTINGS, fit=replace(SETTINGS.fit, inner=0.3, volume_checks=3))
    for choosing in ((), (CASES[2],)):
        states = []
        for n, held_out in enumerate(([patient(9)], [])):
            folder = tmp_path / f"{len(choosing)}{n}"
            curve = cascade.train_fold(CASES[:2], held_out, settings, folder, 0, "cpu", None, choosing)
            assert ("inner_dice" in curve) == bool(choosing) and ("volume_dice" in curve) == bool(held_out)
            tensors, about = load_tensors(folder / "fold0")
            if choosing:
                assert about["step"] == curve.step[curve.inner_dice.idxmax()]
            states.append(tensors)
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_the_dice_of_whole_volumes_is_the_mean_over_cases_and_one_where_there_is_nothing(monkeypatch):
    """Of a case with half of its 8 voxels found, one with nothing to find where nothing is said, and one where something is."""
    full, empty = (
        BankCase(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)),
        BankCase(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)),
    )
    half = torch.tensor([[[0.5] * 4, [0.49] * 4]])
    said = iter([half, torch.zeros(1, 2, 4), half])
    monkeypatch.setattr(slabs, "predict", lambda *_: next(said))
    found = cascade._volume_dice(None, [full, empty, empty], SETTINGS, "cpu")
    assert found == pytest.approx((2 * 4 / 12 + 1 + 0) / 3)


def test_patients_are_set_aside_whole():
    table = pd.DataFrame({"case": list("abcdef"), "patient": ["p", "p", "q", "r", "s", "t"]})
    aside = nets.set_aside(table, 0.4, 1)
    assert len(aside) == 2 and aside < set(table.patient) and aside == nets.set_aside(table, 0.4, 1)
    assert nets.set_aside(table, 0.0, 1) == set() and len(nets.set_aside(table, 0.01, 1)) == 1
    with pytest.raises(Refused, match="at least two"):
        nets.set_aside(table[:2], 0.5, 1)


def test_a_cohort_that_does_not_fit_is_learnt_from_all_the_same(tmp_path, monkeypatch):
    run(folder=tmp_path / "resident")
    monkeypatch.setattr(slabs, "room", lambda device: 0)
    real, made = slabs.SlabBank.__init__, []
    monkeypatch.setattr(slabs.SlabBank, "__init__", lambda self, *a: made.append(a[2]) or real(self, *a))
    run(folder=tmp_path / "mapped")
    one, other = (load_tensors(tmp_path / name / "fold0")[0] for name in ("resident", "mapped"))
    assert made == [False, False] and all(torch.equal(one[k], other[k]) for k in one)
