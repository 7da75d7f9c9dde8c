"""What the comparison with nnU-Net measures by; nnU-Net itself is in no test."""

import importlib.util
import json
import math
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from workbench import experiment
from workbench.stages import metrics
from workbench.volume import Refused


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "against_nnunet.py"
    spec = importlib.util.spec_from_file_location("against_nnunet_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOLDER = "b = bytearray(200 << 20); import time; time.sleep(1.2)"
PARENT = f"import subprocess, sys; ps = [subprocess.Popen([sys.executable, '-c', {HOLDER!r}]) for _ in '12']; [p.wait() for p in ps]"


def test_memory_is_that_of_all_processes_together(benchmark, tmp_path):
    used = benchmark.spent([sys.executable, "-c", PARENT], tmp_path / "log.txt")
    assert 400 / 1024 < used["peak_gib"] < 520 / 1024 and 1.2 < used["seconds"] < 20


def test_a_command_that_fails_is_refused_with_its_last_line(benchmark, tmp_path):
    with pytest.raises(Refused, match=r"exit status 3 \(no such case\).*log\.txt"):
        benchmark.spent([sys.executable, "-c", "print('no such case'); raise SystemExit(3)"], tmp_path / "log.txt")


def test_a_finished_part_is_not_done_again(benchmark, tmp_path):
    assert benchmark.part(tmp_path, "a", lambda: {"seconds": 2.0, "rate": math.nan}) == {"seconds": 2.0, "rate": None}
    assert benchmark.part(tmp_path, "a", lambda: pytest.fail("done again"))["seconds"] == 2.0
    with pytest.raises(Refused):
        benchmark.part(tmp_path, "b", lambda: benchmark.spent([sys.executable, "-c", "1/0"], tmp_path / "log.txt"))
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["a.json"]


def test_ten_minutes_are_the_demo_and_one_is_a_tenth_of_its_steps(benchmark):
    assert benchmark.settings(10) == experiment.demo()
    tenth, demo = benchmark.settings(1), experiment.demo()
    assert tenth.tumor.cascade.fit.steps == 90 and tenth.liver.cascade.fit.steps == 20
    assert tenth.boundary.steps == round(demo.boundary.steps / 10) and tenth.forest == demo.forest


def spots(*corners):
    """A liver of 1 mm voxels with cubic lesions of 5 voxels at the corners given."""
    array = np.ones((40, 40, 40), np.uint8)
    for z, y, x in corners:
        array[z : z + 5, y : y + 5, x : x + 5] = 2
    return array


def test_lesions_are_counted_by_size_and_dice_by_patient(benchmark):
    a, b, c = (2, 2, 2), (20, 20, 20), (30, 5, 30)
    pairs = [(spots(a, b), spots(a, c)), (spots(a), spots(a))]
    cases = [metrics.evaluate_case(t, p, (1, 1, 1)) | {"patient": i} for i, (t, p) in enumerate(pairs)]
    found = benchmark.summary(cases)
    expected = {"tp": 2, "fp": 1, "fn": 1, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    assert found["lesions_iou0"] == found["lesions_iou50"] == found["lesions_iou50_below 10 mm"] == expected
    assert math.isnan(found["lesions_iou50_above 20 mm"]["f1"])
    half = 12.706205 * 0.25  # Student's, two patients
    assert found["tumor_dice"] == pytest.approx((0.75, 0.75 - half, 0.75 + half)) and found["liver_dice"][0] == 1


def figures(trained, difference, quick=False):
    gap = dict(zip(("difference", "low", "high"), difference, strict=True))
    peer = {"train": {"seconds": trained}, "workbench_minus_this": {"tumor_dice": gap}}
    return {"budget_s": 600.0, "quick": quick, "sides": {"workbench": {}, "nnU-Net 2d": peer}}


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (figures(600.5, (-0.1, -0.2, 0.05)), []),
        (figures(600.5, (-0.1, -0.2, -0.05)), ["nnU-Net 2d has the higher tumor Dice"]),
        (figures(600.5, (-0.1, -0.2, -0.05), quick=True), []),
        (figures(500.0, (0.1, 0.05, 0.2)), ["nnU-Net 2d trained for 500 s of 600"]),
    ],
)
def test_what_fails(benchmark, measured, says):
    assert benchmark.failures(measured) == says


def test_the_trainer_stops_by_the_clock_and_its_rate_follows_it(benchmark, tmp_path, monkeypatch):
    """On a stand-in for nnU-Net's trainer that has the same hooks and whose steps take 20 ms."""
    at = []

    class Trainer:
        def __init__(self, plans, configuration, fold, dataset_json, device):
            self.num_epochs, self.batch_size, self.output_folder, self.ended = 1000, 4, str(tmp_path), 0
            self.configuration_manager = types.SimpleNamespace(patch_size=(np.int64(8), np.int64(9)))
            self.lr_scheduler = types.SimpleNamespace(step=at.append)

        def train_step(self, batch):
            time.sleep(0.02)

        def run_training(self):
            for batch in range(self.num_iterations_per_epoch):
                self.train_step(batch)

        def on_train_end(self):
            self.ended += 1

    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"]
    for name in [*names, "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"].nnUNetTrainer = Trainer
    monkeypatch.setenv("WORKBENCH_SECONDS", "0.5")
    space: dict = {}
    exec(compile(benchmark.TRAINER, "budget.py", "exec"), space)
    trainer = space["BudgetTrainer"]({}, "2d", "all", {})
    trainer.run_training()
    about = json.loads((tmp_path / "trained.json").read_text())
    assert trainer.ended == 1 and 0.5 <= about["seconds"] < 2 and about["batch"] == 4 and about["patch"] == [8, 9]
    assert about["steps"] == len(at) > 3 and at[0] == 0 and at == sorted(at) and 500 < at[-1] < 1000
