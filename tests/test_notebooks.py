"""The notebooks, run: each alone on a finished experiment, with its figure and an answer that has numbers; refused without its stages."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from workbench import batch

NUMBERED = [p for p in batch.notebooks() if p.stem[:2].isdigit()]


def copied(trained, to: Path, without: tuple[str, ...] = ()) -> Path:
    """The trained experiment in a place of its own, with the cohort where it was."""
    shutil.copytree(trained.folder, to, ignore=shutil.ignore_patterns(*without))
    about = json.loads((to / "experiment.json").read_text())
    about["manifest"] = str(trained.manifest)
    (to / "experiment.json").write_text(json.dumps(about))
    return to


def said(output: dict) -> str:
    """What a cell's output says as Markdown, or nothing."""
    return "".join(output.get("data", {}).get("text/markdown", ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_notebook_runs_alone_and_answers_its_question(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels at a time
    folder = copied(trained, tmp_path / "experiment")
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/stage.json")}
    assert kept
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda book: batch.run(book, folder, progress=False), NUMBERED))
    assert [o.error for o in outcomes if o.status != "done"] == []
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/stage.json")} == kept, "a finished stage ran again"
    for outcome in outcomes:
        picture = folder / "figures" / f"{outcome.notebook}.png"
        assert picture.is_file() and picture.stat().st_size > 10_000, picture
        cells = nbformat.read(outcome.output, as_version=4).cells
        answer = "".join(said(output) for output in cells[-1].outputs)
        assert re.search(r"\d", answer) and "patient" in answer, f"{outcome.notebook}: no measured answer in {answer!r}"
        assert not re.search(r"\bnan\b", answer, re.I), f"{outcome.notebook}: {answer}"
        images = [o for c in cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
        assert images, f"{outcome.notebook} shows nothing"


def test_a_notebook_says_what_is_missing(trained, tmp_path):
    folder = copied(trained, tmp_path / "experiment", ("liver", "results"))
    outcome = batch.run("03", folder, progress=False)
    assert outcome.status == "failed"
    assert "Refused: " in outcome.error and "the stage liver has not run" in outcome.error
    assert "Run notebook 02" in outcome.error and "\n" not in outcome.error
