"""What a stage takes of the machine: sampled while it works, kept when it fails, and no longer for hours than for minutes."""

import time

import pandas as pd
import pytest
import torch

from workbench.experiment.watch import COLUMNS, watched

CPU = torch.device("cpu")


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_work_and_memory_show(tmp_path):
    with watched(tmp_path / "system.csv", CPU, every_s=0.05):
        busy(0.5)
        block = torch.ones(40_000_000)  # 160 MB
        time.sleep(0.5)
        del block
    table = pd.read_csv(tmp_path / "system.csv")
    assert tuple(table) == COLUMNS and table.seconds.is_monotonic_increasing and len(table) > 5
    assert table.cpu_percent[table.seconds < 0.4].mean() > 3 * table.cpu_percent[table.seconds > 0.75].mean()
    assert table.memory_mb.max() - table.memory_mb.min() > 120 and (table.gpu_memory_mb == 0).all()


def test_a_block_that_fails_is_kept_and_a_long_one_thinned(tmp_path):
    with pytest.raises(OSError, match="full"), watched(tmp_path / "system.csv", CPU, every_s=0.01, most=8):
        time.sleep(1)
        raise OSError("full")
    table = pd.read_csv(tmp_path / "system.csv")
    assert 3 < len(table) <= 9
    assert table.seconds.iloc[-1] >= 1 and table.seconds.diff().iloc[-2] > 0.015, "the interval grows"
