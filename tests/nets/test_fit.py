import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from workbench.nets import fit
from workbench.nets.fit import FitSettings
from workbench.volume import Refused

SETTINGS = FitSettings(steps=12, batch=4, check_every=4, save_every_s=0.0)


def draw(step):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(4, 3, generator=g)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def train(folder, stop_at=None, settings=SETTINGS, progress=None, between=nn.Identity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), between(8), nn.Tanh(), nn.Linear(8, 1))

    def objective(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    def interrupt(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return draw(step)

    curve = fit.fit(net, interrupt, objective, settings, folder, "net", {"a": 1}, progress=progress)
    return net, curve


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [1, 4, 6, 9, 11])
def test_resume_is_exact(tmp_path, stop_at, ema):
    """Wherever it is cut, also between two rows of the curve, and with averaged weights."""
    train = partial(globals()["train"], settings=replace(SETTINGS, ema=ema))
    whole, curve = train(tmp_path / "whole", between=nn.BatchNorm1d)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop_at=stop_at, between=nn.BatchNorm1d)
    assert (tmp_path / "cut" / "net-resume.json").is_file() and not (tmp_path / "cut" / "net.json").exists()
    again, resumed = train(tmp_path / "cut", between=nn.BatchNorm1d)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert resumed.loss.tolist() == curve.loss.tolist()
    assert not list((tmp_path / "cut").glob("*resume*"))


def best_of(folder, scores, **changes):
    """A run whose `score` at each row of the curve is given; the weights at each row."""
    torch.manual_seed(0)
    net, at = nn.Linear(3, 1), []
    settings = replace(SETTINGS, volume_checks=9, inner=0.1, **changes)

    def validate(net, whole):
        at.append({k: v.clone() for k, v in net.state_dict().items()})
        return {"score": scores[len(at) - 1]} if whole else {}

    def objective(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    fit.fit(net, draw, objective, settings, folder, "net", {}, validate, best="score")
    return net, at


def test_the_best_is_kept_and_the_last_beside_it(tmp_path):
    net, at = best_of(tmp_path, [0.3, 0.9, 0.9])
    kept, last = (fit.load_tensors(tmp_path / name) for name in ("net", "net-last"))
    assert torch.equal(kept[0]["weight"], at[1]["weight"]) and torch.equal(net.weight, at[1]["weight"])
    assert torch.equal(last[0]["weight"], at[2]["weight"]) and not torch.equal(at[1]["weight"], at[2]["weight"])
    assert (kept[1]["step"], last[1]["step"]) == (8, 12)


def test_without_a_choice_the_last_is_kept(tmp_path):
    train(tmp_path)
    assert fit.load_tensors(tmp_path / "net")[1]["step"] == 12 and not (tmp_path / "net-last.json").exists()


def test_the_average_is_that_of_the_weights(tmp_path):
    """By hand: decay (1 + step) / (10 + step) until it reaches `ema`, at the ninth of twelve."""
    weights = []

    def objective(net, batch):
        weights.append(net.weight.detach().clone())
        return (net(batch[0]) - batch[1]).square().mean()

    def run(folder, ema, seen=()):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        settings = replace(SETTINGS, ema=ema)
        validate = lambda net, _: seen.append(net.weight.detach().clone()) or {}
        fit.fit(net, draw, objective, settings, folder, "net", {}, validate if seen is not None else None)
        return net.weight.detach()

    last, checked = run(tmp_path / "raw", 0.0, []), []
    raw, averaged = [*weights[1:], last], run(tmp_path / "ema", 0.5, checked)
    expected = weights[0]
    for step, weight in enumerate(raw):
        expected = expected.lerp(weight, 1 - min(0.5, (1 + step) / (10 + step)))
    assert torch.allclose(averaged, expected, atol=1e-7) and not torch.allclose(averaged, last, atol=1e-5)
    assert torch.equal(checked[-1], averaged) and torch.equal(weights[-1], weights[11]), (
        "what is trained is not averaged"
    )


def test_whole_volumes_are_asked_for_evenly_and_at_the_end():
    at = lambda **k: [s for s in (3, 6, 9, 10) if FitSettings(steps=10, check_every=3, **k).whole_at(s)]
    assert at(volume_checks=2) == [6, 10] and at(volume_checks=1) == [10]
    assert at(volume_checks=99) == [3, 6, 9, 10] and at(volume_checks=0) == []


def test_impossible_settings_are_refused():
    for wrong in ({"ema": 1.0}, {"inner": -0.1}, {"inner": 0.1, "volume_checks": 0}):
        with pytest.raises(Refused, match="ema and inner from 0"):
            FitSettings(**wrong)


def test_progress_goes_by_the_clock_and_the_curve_by_steps(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(fit, "TELL_S", 0.0)
    _, often = train(tmp_path / "often", progress=lambda *a: told.append(a))
    assert [t[1] for t in told] == list(range(13)) and all(t[0] == "net" and t[2] == 12 for t in told)
    between = [row for _, done, _, row in told if done % 4]
    assert all(set(row) == {"loss", "steps_per_s", "left_s"} and row["left_s"] > 0 for row in between)
    assert [row for _, done, _, row in told if done % 4 == 0 and done] == often.to_dict("records")
    monkeypatch.setattr(fit, "TELL_S", 1e9)
    told.clear()
    _, seldom = train(tmp_path / "seldom", progress=lambda *a: told.append(a))
    assert [t[1] for t in told] == [0, 4, 8, 12] and seldom.loss.tolist() == often.loss.tolist()


def test_a_batch_too_large_for_the_device_is_refused_and_the_way_so_far_kept(tmp_path):
    """The batch is the settings' to make smaller: silently another one would be another training."""

    def tight(step):
        if step == 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return draw(step)

    net, objective = nn.Linear(3, 1), lambda net, batch: (net(batch[0]) - batch[1]).square().mean()
    with pytest.raises(
        Refused, match="training net, step 7: found no memory left on the device for a batch of 4; .*--settings"
    ):
        fit.fit(net, tight, objective, replace(SETTINGS, save_every_s=0), tmp_path, "net", {})
    assert json.loads((tmp_path / "net-resume.json").read_text())["step"] == 7


def test_the_net_is_still_while_it_is_judged_and_learns_on_as_before():
    net, modes = nn.Linear(3, 1), []

    def objective(net, batch):
        modes.append(net.training)
        return (net(batch[0]) - batch[1]).square().mean()

    fit.fit(net, draw, objective, SETTINGS, None, "net", {}, lambda net, _: modes.append(net.training) or {})
    assert modes == ([True] * 4 + [False]) * 3 and not net.training


def test_a_steep_step_is_cut_and_weights_decay():
    """No gradient comes out longer than `clip`; where there is none, a weight loses rate * weight_decay of itself a step."""
    net = nn.Linear(3, 1)
    fit.fit(net, draw, lambda net, batch: 1000 * net(batch[0]).sum(), replace(SETTINGS, clip=0.5), None, "net", {})
    assert float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()) == pytest.approx(0.5, rel=1e-4)
    net, decaying = nn.Linear(3, 1), replace(SETTINGS, rate=0.1, weight_decay=0.5)
    left = math.prod(1 - 0.5 * fit.rate_at(step, decaying) for step in range(decaying.steps))
    before = net.weight.detach().clone()
    fit.fit(net, draw, lambda net, batch: 0 * net(batch[0]).sum(), decaying, None, "net", {})
    assert left < 0.8
    torch.testing.assert_close(net.weight.detach(), left * before)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, curve = train(None)
    assert len(curve) == 3 and list(tmp_path.iterdir()) == []


def test_loss_falls(tmp_path):
    _, curve = train(tmp_path, settings=FitSettings(steps=200, check_every=20, rate=1e-2))
    assert curve.loss.iloc[-1] < 0.3 * curve.loss.iloc[0]


def test_a_flipped_bit_is_found(tmp_path):
    fit.save_tensors(tmp_path / "m", {"w": torch.ones(100)}, {"config": {}})
    held = next(tmp_path.glob("*.safetensors"))
    data = bytearray(held.read_bytes())
    data[-7] ^= 1
    held.write_bytes(data)
    with pytest.raises(Refused, match="checksum"):
        fit.load_tensors(tmp_path / "m")


def test_the_former_checkpoint_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    fit.save_tensors(tmp_path / "m", {"w": torch.ones(3)}, {"n": 1})
    real = fit.write_atomic

    def fails(path, data):
        if path.suffix == ".json":
            raise OSError("disk full")
        real(path, data)

    monkeypatch.setattr(fit, "write_atomic", fails)
    with pytest.raises(OSError):
        fit.save_tensors(tmp_path / "m", {"w": torch.zeros(3)}, {"n": 2})
    tensors, about = fit.load_tensors(tmp_path / "m")
    assert about["n"] == 1 and tensors["w"].tolist() == [1, 1, 1]
    monkeypatch.undo()
    fit.save_tensors(tmp_path / "m", {"w": torch.zeros(3)}, {"n": 2})
    assert fit.load_tensors(tmp_path / "m")[1]["n"] == 2 and len(list(tmp_path.iterdir())) == 2, "the former is gone"


def test_a_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(Refused, match="Train this stage first"):
        fit.load_tensors(tmp_path / "none")


def test_a_loss_that_is_not_finite_stops(tmp_path):
    net = nn.Linear(3, 1)
    with pytest.raises(Refused, match="finite"):
        fit.fit(net, draw, lambda net, b: net(b[0]).mean() * float("nan"), SETTINGS, tmp_path, "net", {})


def test_a_checkpoint_of_other_settings_is_not_taken_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at=9)
    other = FitSettings(steps=12, batch=4, check_every=4, save_every_s=0.0, rate=1e-4)
    fresh, _ = train(tmp_path / "fresh", settings=other)
    late, _ = train(tmp_path, settings=other)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), late.state_dict().values()))
    assert json.loads((tmp_path / "net.json").read_text())["step"] == 12


def test_rate_rises_and_falls_to_zero():
    rates = [fit.rate_at(s, FitSettings(steps=100, rate=1.0, warmup=0.1)) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.001


def test_a_checkpoint_of_an_earlier_version_is_taken_up(tmp_path, capsys):
    """Settings that it does not know yet are at their defaults; where today's differ from those, it begins again and says so."""
    whole, _ = train(tmp_path / "whole")
    for late, said in ((SETTINGS, False), (replace(SETTINGS, weight_decay=0.02), True)):
        cut = tmp_path / f"cut{said}"
        with pytest.raises(KeyboardInterrupt):
            train(cut, stop_at=9, settings=late)
        file = cut / "net-resume.json"
        about = json.loads(file.read_text())
        del about["config"]["fit"]["compile"], about["config"]["fit"]["weight_decay"]
        file.write_text(json.dumps(about))
        seen = []
        again, _ = train(cut, settings=late, progress=lambda name, step, *_, seen=seen: seen.append(step))
        assert seen[0] == (0 if said else 9)
        assert ("a checkpoint of other settings" in capsys.readouterr().out) == said
        same = all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
        assert same != said
