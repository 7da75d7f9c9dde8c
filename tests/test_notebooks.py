"""The notebooks, run: each alone on a finished experiment, with its figure and an answer that has numbers; refused without its stages."""

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import tiny

from workbench import batch, demo, review
from workbench.volume import Refused, components

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


def test_the_words_of_numbers():
    assert review.mean([1.0, 1.0], ["a", "b"]) == "1.000 [1.000, 1.000]"
    assert review.mean([math.nan], ["a"]) == "undefined"
    assert review.share(0, 4) == "0 of 4 (0% [0%, 49%])" and review.share(0, 0) == "none of 0"
    assert review.change([0.0, 1.0], [0.5, 1.5], ["a", "b"], "+.1f") == "+0.5 [+0.5, +0.5], p = 0.5, n = 2"
    assert review.change([math.nan], [1.0], ["a"]) == "undefined (n = 0)"


def test_candidates_find_their_lesions(trained):
    table, lesions = review.homes(trained)
    assert len(lesions) == trained.cases().tumors.sum()
    assert (table[table.is_lesion].lesion > 0).all()
    found = table[table.lesion > 0].groupby("case").lesion.nunique()
    assert lesions[lesions.touched].groupby("case").size().ge(found).all() and lesions.touched.sum() >= found.sum()
    row = table[table.is_lesion].iloc[0]
    reference = components(trained.work(row.case)[1] == 2)[0]
    own = trained.array("candidates", "labels", row.case).numpy() == row.candidate
    assert np.bincount(reference[own & (reference > 0)]).argmax() == row.lesion
    scored = review.froc_table(table, "test", "mean_probability")
    assert set(scored.split) == {"test"} and scored.score.equals(scored.mean_probability)


def test_nearest_is_rejected_first():
    rows = [
        ("a", True, 1, True, 0.51),
        ("a", True, 1, False, 0.2),
        ("b", True, 1, False, 0.3),
        ("c", True, 1, False, 0.4),
    ]
    rows.append(("d", False, 0, True, 0.6))
    scores = pd.DataFrame(rows, columns=["case", "is_lesion", "lesion", "kept", "score"])
    assert review.nearest(scores, True, 0.5).case == "c"
    assert review.nearest(scores, False, 0.5).case == "d"
    assert review.verdicts(scores).startswith("removes 0 of 1 (") and "loses 2 of 3 (" in review.verdicts(scores)
    with pytest.raises(Refused, match="no candidate"):
        review.nearest(scores[scores.is_lesion], False, 0.5)


def test_the_case_that_is_shown(trained):
    assert review.shown(trained) in set(trained.cases("test").case)
    assert review.shown(trained, "toy-00") == "toy-00"
    with pytest.raises(Refused, match="expected one of toy-08, toy-09"):
        review.shown(trained, "toy-00", "test")


def test_attention_is_a_share_of_the_slice(trained):
    case = review.shown(trained)
    seen, gates = review.attention(trained, case, 7)
    assert seen.ndim == 2 and all(0 <= float(g.min()) <= float(g.max()) <= 1 for g in gates)
    assert [g.shape[0] for g in gates] == sorted((g.shape[0] for g in gates), reverse=True)


def test_what_a_perturbation_moves(trained):
    spread = review.perturbation_spread(trained)
    assert spread.shape == (10, 5) and (spread >= 0).all(axis=None)
    assert spread.loc["noise", "shape"] == 0, "noise moves no contour"


@pytest.mark.timeout(600)
def test_the_page_of_a_case_is_made_for_each_case_that_is_named(trained, tmp_path):
    folder = copied(trained, tmp_path / "experiment")
    names = sorted(p.name for p in (folder / "results").iterdir())[:2]
    outcomes = batch.run_each("case", folder, {}, "case", names, progress=False)
    assert [o.error for o in outcomes if o.status != "done"] == []
    for name, outcome in zip(names, outcomes):
        assert outcome.output.name == f"case-{name}.ipynb"
        cells = nbformat.read(outcome.output, as_version=4).cells
        answer = "".join(said(output) for output in cells[-1].outputs)
        assert answer.startswith(f"**{name}**") and "Research use only" in answer
        assert f"<strong>{name}</strong>" in outcome.output.with_suffix(".html").read_text()
    again = batch.run("case", folder, {"case": names[0]}, outcomes[0].output, progress=False)
    assert again.status == "unchanged"
    held = folder / "results" / names[0] / "result.json"
    held.write_text(held.read_text() + " ")
    assert not batch.unchanged(outcomes[0].output.with_suffix(".json"), {}, folder)
    with pytest.raises(Refused, match=f"no result of nobody.*{names[0]}"):
        review.found(folder, "nobody")


def test_notebook_01_starts_an_experiment_or_goes_on_with_the_one_that_is_there(
    trained, toy_cohort, tmp_path, monkeypatch
):
    monkeypatch.setitem(demo.experiment.PRESETS, "tiny", tiny.settings)
    made = demo.begin(tmp_path / "new", "tiny", str(toy_cohort), "cpu")
    assert made.manifest == toy_cohort and not made.finished("cohort")
    assert demo.begin(tmp_path / "new", device="cpu").settings == tiny.settings()
    with pytest.raises(Refused, match="one of paper"):
        demo.begin(tmp_path / "new", "paper", device="cpu")
    with pytest.raises(Refused, match="other.csv"):
        demo.begin(tmp_path / "new", "", str(tmp_path / "other.csv"), "cpu")
    with pytest.raises(Refused, match="preset.*huge.*demo or paper or tiny"):
        demo.begin(tmp_path / "none", "huge", device="cpu")
    assert not (tmp_path / "none").exists()
