"""What nets/test_distributed.py trains, alone or in one of several processes: `python together.py COHORT OUT`."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import test_boundary
import tiny
import torch
from torch import nn

from workbench.experiment import Experiment, pipeline
from workbench.nets import distributed, fit
from workbench.nets.fit import FitSettings
from workbench.run.commands.training import _joined
from workbench.stages import boundary


def in_float32():
    """bfloat16 rounds too early to compare."""
    return patch.object(fit, "autocast", lambda device: torch.autocast("cpu", enabled=False))


def exact(folder):
    """In float64, with batch norm, and a batch that two processes cannot share evenly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()

    def draw(step):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return x, x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)

    def objective(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    fit.fit(net, draw, objective, FitSettings(steps=6, check_every=3, ema=0.5), folder, "exact", {})


def contour(folder):
    settings = replace(test_boundary.SMALL, steps=6, batch=3, dropout=0.3)
    with in_float32():
        boundary.train([test_boundary.blurred_case(s) for s in range(2)], settings, 1, folder=folder)


def stages(cohort, folder):
    """Cohort and liver of the toy patients, six steps a fold, in float32."""
    s = tiny.settings()
    cascade = replace(s.liver.cascade, fit=replace(s.liver.cascade.fit, steps=6, check_every=1))
    made = partial(Experiment.create, folder, cohort, replace(s, liver=replace(s.liver, cascade=cascade)), "cpu")
    if distributed.rank() == 0:
        made()
    distributed.wait()
    with in_float32():
        for stage in ("cohort", "liver"):
            pipeline.run(made(), stage)


def train(cohort: Path, out: Path) -> None:
    exact(out)
    contour(out / "boundary")
    stages(cohort, out / "experiment")


if __name__ == "__main__":
    _joined("cpu")
    print(f"process {distributed.rank()} of {distributed.count()}", file=sys.stderr)
    train(Path(sys.argv[1]), Path(sys.argv[2]))
