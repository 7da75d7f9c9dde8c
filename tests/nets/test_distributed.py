"""Two processes, launched as a user would, train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import together
import torch

from workbench.nets import distributed
from workbench.nets.fit import load_tensors
from workbench.run.commands.training import _joined
from workbench.volume import Refused

HERE = Path(__file__).parents[1]


def launched(*words):
    """`accelerate launch` with two processes on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *words]
    path = os.pathsep.join(map(str, (HERE.parent, HERE, HERE / "stages")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170)


@pytest.fixture(scope="module")
def both(toy_cohort, tmp_path_factory):
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    ran = launched("--main_process_port", "0", str(HERE / "together.py"), str(toy_cohort), str(two))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "process 0 of 2" in ran.stderr and "process 1 of 2" in ran.stderr
    assert ran.stdout.count("liver fold0  6/6") == 1, "the first one alone speaks"
    together.train(toy_cohort, one)
    return one, two


def test_in_double_precision_two_processes_are_one(both):
    """Gradients, losses, clipping, batch norm and its running statistics, the average: nothing but rounding is left."""
    (a, about), (b, other) = (load_tensors(folder / "exact") for folder in both)
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-10) for k in a)
    losses = [[row["loss"] for row in held["curve"]] for held in (about, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


# In float32 two orders of summation part by 1e-7 at once, and each step of AdamW widens that: merely permuting the rows of a
# batch in one process does the same (docs/decisions/0008). So of this net, the liveliest, the first three steps are compared.


def test_the_boundary_net_drops_the_same(both):
    one, two = (json.loads((folder / "boundary" / "model.json").read_text())["curve"] for folder in both)
    assert [row["loss"] for row in one[:3]] == pytest.approx([row["loss"] for row in two[:3]], abs=1e-5)


def test_a_stage_has_the_same_curves_and_is_written_once(both):
    one, two = (pd.read_csv(folder / "experiment" / "liver" / "curves.csv") for folder in both)
    assert one[["fold", "step"]].equals(two[["fold", "step"]]) and len(one) == 12
    assert one.loss.tolist() == pytest.approx(two.loss.tolist(), abs=1e-5)
    stages = [json.loads((folder / "experiment" / "liver" / "stage.json").read_text()) for folder in both]
    assert len(stages[0]["outputs"]) == len(stages[1]["outputs"])
    assert not (both[1] / "experiment" / "liver" / "slices").exists()


def test_a_batch_of_fewer_rows_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    own, weight = distributed.share((torch.arange(7), list("abcdefg")))
    assert (own[0].tolist(), own[1], weight) == ([1, 4], ["b", "e"], 2 / 7)
    with pytest.raises(Refused, match="2 for 3 processes"):
        distributed.share((torch.zeros(2),))


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert _joined("auto") == "auto"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(Refused, match="--multi_gpu"):
        _joined("auto")


def test_a_missing_accelerate_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(Refused, match="liver-workbench\\[parallel\\]"):
        _joined("cpu")
