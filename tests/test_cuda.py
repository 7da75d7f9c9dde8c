"""What a GPU does beside a CPU: the same decisions, training that learns and goes on, memory that runs out.

Without one a pretended GPU (`pretend`) shows that nothing is left on the wrong side; what only a GPU can show is skipped.
"""

from contextlib import nullcontext
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pretend
import pytest
import tiny
import torch
from test_boundary import SMALL, untrained
from test_cascade import CASES, SETTINGS, patient
from test_notebooks import NUMBERED
from torch import Tensor

from workbench import experiment
from workbench.experiment import pipeline, segmentation
from workbench.experiment.whatif import WhatIf
from workbench.lab import results
from workbench.nets import cascade, slabs
from workbench.nets.fit import load_tensors
from workbench.nets.network import SlabNet
from workbench.stages import boundary, radiomics
from workbench.stages.radiomics import engine, ragged
from workbench.volume import Refused

THERE = torch.cuda.is_available()
only_a_gpu = pytest.mark.skipif(not THERE, reason="no GPU")


@pytest.fixture(scope="module", autouse=True)
def a_gpu():
    with nullcontext() if THERE else pretend.gpu():
        yield


def test_what_lies_on_the_wrong_side_is_refused():
    """So does a GPU, and so the pretended one: else what follows would show nothing without one."""
    here, there = torch.arange(6.0).reshape(2, 3), torch.arange(6.0, device="cuda").reshape(2, 3)
    net = torch.nn.Linear(3, 2).to("cuda")
    for of_both in (
        lambda: here + there,
        lambda: torch.cat([there[0], here[0]]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: torch.where(there > 1, here, there),
        lambda: torch.equal(here, there),
        lambda: here[there.argmax(0)],
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: there.view(-1).add_(here.view(-1)),
        lambda: here.sum().add_(there.sum()),
        lambda: net(here),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="device"):
            of_both()
    for read in (Tensor.numpy, np.asarray, lambda t: np.asarray(t[0].clone())):
        with pytest.raises(TypeError, match="numpy"):
            read(there)
    one = there[torch.tensor([1])] * here.sum() + net(there).mean()  # indices, single numbers may be of the other side
    assert one.is_cuda and one.device.type == "cuda" and torch.zeros_like(one, device="cpu").device.type == "cpu"
    assert all(p.is_cuda for p in net.parameters()) and all(t.is_cuda for t in net.state_dict().values())
    assert all(p.detach().numpy().size for p in net.cpu().parameters())
    copied = torch.as_tensor(here, device="cuda").add_(1)
    assert copied.is_cuda and not here.is_cuda and here[0, 0] == 0 and copied.cpu().numpy()[0, 0] == 1


def on_gpu(folder, settings=SETTINGS, training=CASES):
    return cascade.train_fold(training, [patient(9)], settings, folder, 0, "cuda")


def dice(one, other):
    return 2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum()))


def test_a_batch_follows_from_seed_and_step_alone():
    bank = slabs.SlabBank(CASES, "cuda")
    s = replace(SETTINGS.slabs, elastic=1.0, thick=0.5, noise_hu=20.0)
    one, again, other = (bank.draw(s, 3, 8, 4, step) for step in (5, 5, 6))
    assert all(t.is_cuda for t in one)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1]) and not torch.equal(one[0], other[0])
    files = slabs.SlabBank(CASES, "cuda", resident=False).draw(s, 3, 8, 4, 5)
    assert torch.equal(one[0], files[0]) and torch.equal(one[1], files[1])


def test_training_learns_and_a_killed_one_goes_on(tmp_path, monkeypatch):
    longer = replace(SETTINGS, fit=replace(SETTINGS.fit, steps=60, check_every=20, ema=0.0))
    whole = on_gpu(tmp_path / "whole", longer)
    assert whole.dice.iloc[-1] > 0.8
    draw = slabs.SlabBank.draw

    def killed(bank, settings, slices, batch, seed, step):
        if step == 31:
            raise KeyboardInterrupt
        return draw(bank, settings, slices, batch, seed, step)

    monkeypatch.setattr(slabs.SlabBank, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        on_gpu(tmp_path / "cut", longer)
    assert load_tensors(tmp_path / "cut" / "fold0-resume")[1]["step"] == 31
    monkeypatch.setattr(slabs.SlabBank, "draw", draw)
    again = on_gpu(tmp_path / "cut", longer)
    assert list(again.step) == list(whole.step) and again.dice.iloc[-1] > 0.8


def test_a_cohort_larger_than_the_device_is_learnt_from_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(slabs, "room", lambda device: 0)
    curve = on_gpu(tmp_path, replace(SETTINGS, fit=replace(SETTINGS.fit, steps=60, check_every=20)))
    assert curve.dice.iloc[-1] > 0.8


@only_a_gpu
def test_compiled_training_gives_a_net_like_any_other(tmp_path):
    s = replace(SETTINGS, fit=replace(SETTINGS.fit, steps=40, check_every=20, compile=True))
    curve = on_gpu(tmp_path, s)
    assert curve.loss.iloc[-1] < curve.loss.iloc[0]
    cascade.load(tmp_path, s, "cpu")


def test_the_map_is_the_cpus():
    """bfloat16 on both sides, or on one: two decimals of a probability."""
    torch.manual_seed(0)
    net = SlabNet(SETTINGS.network).eval()
    hu = CASES[0].hu
    here = slabs.predict([net], hu, None, (-100.0, 300.0), "cpu")
    there = slabs.predict([net.to("cuda", memory_format=torch.channels_last)], hu, None, (-100.0, 300.0), "cuda")
    assert there.device.type == "cpu" and (here - there).abs().max() < 0.02


@only_a_gpu
def test_a_device_that_runs_out_of_memory_gets_half_the_batch(capsys):
    """All but a little of the device is taken; the same map comes out, in smaller batches."""
    torch.manual_seed(0)
    net = SlabNet(SETTINGS.network).eval().to("cuda", memory_format=torch.channels_last)
    hu = torch.randn(64, 256, 256, generator=torch.Generator().manual_seed(0)) * 50
    whole = slabs.predict([net], hu, None, (-100.0, 300.0), "cuda", 64)
    assert "out of memory" not in capsys.readouterr().out
    torch.cuda.reset_peak_memory_stats()
    slabs.predict([net], hu, None, (-100.0, 300.0), "cuda", 64)
    needed, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * needed / total)
    try:
        small = slabs.predict([net], hu, None, (-100.0, 300.0), "cuda", 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: going on with" in capsys.readouterr().out
    assert (small - whole).abs().max() < 0.02


def test_the_boundary_net_densely_is_the_cpus_patch_by_patch():
    torch.manual_seed(1)
    channels = torch.randn(boundary.CHANNELS, 7, 12, 11)
    wanted = torch.rand(7, 12, 11) > 0.5
    net = untrained(SMALL)
    one_by_one = boundary.patch_logits(net, channels, wanted)
    net = net.to("cuda", memory_format=torch.channels_last_3d)
    dense = boundary.dense_logits(net, channels.cuda(), wanted.cuda()).cpu()
    assert (dense - one_by_one)[wanted].abs().max() < 1e-4


def test_descriptors_for_which_the_device_has_no_room_are_the_cpus(monkeypatch, capsys):
    torch.manual_seed(0)
    hu, labels, spacing = torch.randn(14, 20, 22) * 20, torch.zeros(14, 20, 22, dtype=torch.int64), (4.0, 2.0, 1.5)
    labels[4:8, 5:9, 4:9], labels[5:9, 12:16, 13:18] = 1, 2
    there, describe = (hu.cuda(), labels.cuda(), spacing), engine.describe

    def full(boxes, *words, **named):
        if boxes.hu.is_cuda:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return describe(boxes, *words, **named)

    monkeypatch.setattr(engine, "describe", full)
    for work in (radiomics.describe, lambda *given: radiomics.steady(*given)[0]):
        pd.testing.assert_frame_equal(work(*there), work(hu, labels, spacing), check_exact=not THERE)
        assert "out of memory: going on with some descriptors on the CPU" in capsys.readouterr().out


def test_a_batch_of_descriptors_is_as_large_as_the_device_has_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 20)
    for free, voxels in ((8 << 20, (10 << 20) // 2000), (80 << 30, 8_000_000)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 << 30))
        assert ragged.batch_voxels(torch.device("cuda", 0)) == voxels


@pytest.fixture(scope="module")
def trained_there(toy_cohort, tmp_path_factory):
    made = experiment.Experiment.create(tmp_path_factory.mktemp("cuda"), toy_cohort, tiny.settings(), "cuda")
    pipeline.train(made, "all", results.keep)
    return made


def test_every_stage_on_the_device_and_its_models_on_a_cpu(trained_there):
    ct, truth = tiny.patient(50)
    there = segmentation.segment(ct, segmentation.Models.load(trained_there.folder, "cuda"))
    here = segmentation.segment(ct, segmentation.Models.load(trained_there.folder, "cpu"))
    assert dice(there.liver, truth.array >= 1) > 0.9
    assert dice(there.labels == 2, truth.array == 2) > 0.3
    assert dice(there.liver, here.liver) > 0.99 and dice(there.labels == 2, here.labels == 2) > 0.97
    assert len(there.lesions) == len(here.lesions) > 0


def test_what_if_on_the_device_is_what_the_experiment_found(trained_there):
    case = trained_there.cases("test").case.iloc[0]
    there = WhatIf(trained_there, case)()
    here = WhatIf(experiment.Experiment(trained_there.folder, "cpu"), case)()
    for stage, mask in there.masks.items():
        assert dice(mask.cpu(), here.masks[stage].cpu()) > 0.97 or not bool(here.masks[stage].any()), stage


@pytest.mark.slow
@pytest.mark.parametrize("book", NUMBERED, ids=lambda book: book.stem)
def test_a_notebooks_cells_on_the_device(trained_there, healthy, book):
    """In this process: a kernel would not see a pretended GPU."""
    names = {}
    for cell in nbformat.read(book, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", ()):
            names |= {"experiment": str(trained_there.folder), "device": "cuda"}
            if book.stem.startswith("11"):
                names |= {"manifest": str(healthy)}
    plt.close("all")
    assert names["made"].device.type == "cuda"


def test_a_gpu_that_is_not_there_is_refused():
    count = torch.cuda.device_count()
    assert experiment.pick_device(f"cuda:{count - 1}").index == count - 1
    with pytest.raises(Refused, match=f"cuda:{count}; expected cuda:0"):
        experiment.pick_device(f"cuda:{count}")
