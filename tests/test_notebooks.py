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

from workbench.experiment import PRESETS
from workbench.lab import review
from workbench.masks import components
from workbench.run import batch, demo, pages
from workbench.volume import Refused

NUMBERED = [p for p in batch.notebooks() if p.stem[:2].isdigit()]


def copied(trained, to: Path, without: tuple[str, ...] = ()) -> Path:
    """The trained experiment in a place of its own, with the cohort where it was."""
    shutil.copytree(trained.folder, to, ignore=shutil.ignore_patterns(*without))
    about = json.loads((to / "experiment.json").read_text())
    about["manifest"] = str(trained.manifest)
    (to / "experiment.json").write_text(json.dumps(about))
    return to


def parameters_of(book: Path, healthy: Path) -> dict:
    """Notebook 11 needs scans like those that the toy nets know."""
    return {"manifest": str(healthy), "copies": 2} if book.stem.startswith("11") else {}


def said(output: dict) -> str:
    """What a cell's output says as Markdown, or nothing."""
    return "".join(output.get("data", {}).get("text/markdown", ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_notebook_runs_alone_and_answers_its_question(trained, healthy, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels at a time
    folder = copied(trained, tmp_path / "experiment")
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/stage.json")}
    assert kept
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(
            pool.map(
                lambda book: batch.run(book, folder, parameters_of(book, healthy), progress=None),
                NUMBERED,
            )
        )
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
        if outcome.notebook[:2] in ("00", "02", "03", "09"):  # as a widget, and as a picture for whoever has no browser
            assert [o for o in images if pages.WIDGET in o["data"]], f"{outcome.notebook} has no slices to walk through"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_of_a_case_held_out_or_not(trained, tmp_path):
    folder = copied(trained, tmp_path / "experiment")
    held, seen = (trained.cases(split).case.iloc[0] for split in ("test", "train"))
    outcomes = batch.run_each("case", folder, [{"case": held}, {"case": seen}], progress=None)
    assert [o.error for o in outcomes] == ["", ""]
    for case, outcome, side in zip((held, seen), outcomes, ("test", "train")):
        cells = nbformat.read(outcome.output, as_version=4).cells
        answer = "".join(said(output) for output in cells[-1].outputs)
        assert f"**{case}** (one {side} patient" in answer and re.search(r"tumor Dice \d\.\d{3}", answer)
        assert outcome.output.with_suffix(".html").stat().st_size > 100_000


def test_an_experiment_is_begun_with_a_preset_or_opened(trained, toy_cohort, tmp_path):
    made = demo.begin(tmp_path / "x", "demo", toy_cohort, "cpu")
    assert made.settings == PRESETS["demo"]() and made.manifest == toy_cohort.resolve()
    again = demo.begin(tmp_path / "x", "demo", device="cpu")
    assert again.manifest == made.manifest, "it keeps its cohort"
    assert demo.begin(tmp_path / "x", device="cpu").about == made.about
    assert demo.begin(tmp_path / "x", "paper", device="cpu").about["preset"] == "paper", "no stage rests on the other"
    with pytest.raises(Refused, match="no manifest"):
        demo.begin(tmp_path / "y", "paper", device="cpu")
    with pytest.raises(Refused, match="demo or paper"):
        demo.begin(tmp_path / "y", "demmo", device="cpu")
    with pytest.raises(Refused, match="no experiment.json"):
        demo.begin(tmp_path / "y", device="cpu")
    assert not (tmp_path / "y").exists()


def test_a_notebook_says_what_is_missing(trained, tmp_path):
    folder = copied(trained, tmp_path / "experiment", ("liver", "results"))
    outcome = batch.run("03", folder, progress=None)
    assert outcome.status == "failed"
    assert "Refused: " in outcome.error and "the stage liver has not run" in outcome.error
    assert "Run notebook 02" in outcome.error and "\n" not in outcome.error


def test_the_words_of_numbers():
    assert review.mean([1.0], ["a"]) == "1.000 (one patient)"
    assert review.change([0.0], [0.5], ["a"], "+.1f") == "+0.5, one patient and so no interval"
    assert review.mean([1.0, 1.0], ["a", "b"]) == "1.000 [1.000, 1.000]"
    assert review.mean([math.nan], ["a"]) == "undefined"
    assert review.share(0, 4) == "0 of 4 (0% [0%, 49%])" and review.share(0, 0) == "none of 0"
    assert review.change([0.0, 1.0], [0.5, 1.5], ["a", "b"], "+.1f") == "+0.5 [+0.5, +0.5], p = 0.5, n = 2"
    assert review.change([math.nan], [1.0], ["a"]) == "undefined (n = 0)"
    assert review.mean([-1e-9, -1e-9], ["a", "b"]) == "0.000 [0.000, 0.000]"
    below = review.change([0.0, 0.0], [-1e-9, -1e-9], ["a", "b"])
    assert below.startswith("-0.000 [-0.000, -0.000]"), "on which side of no change it lies is what an end says"
    tests = review.rounded(pd.DataFrame({"low": [0.12345] * 4, "p": [1e-4, 0.001, 0.25, math.nan]}))
    assert list(tests.p) == ["<0.001", "0.001", "0.250", "nan"] and list(tests.low) == [0.123] * 4


def test_a_table_of_words_is_whole_and_its_headers_stand_above_them():
    html = review.in_full(pd.DataFrame({"x": [1.234], "formula": ["a + " * 40 + "b"]})).to_html()
    assert "a + " * 40 + "b" in html and "1.23<" in html
    assert re.search(r"th \{\s*text-align: left", html)


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
    assert review.standing(trained, review.shown(trained)) == "held out"
    assert "too good" in review.standing(trained, "toy-00")
    assert review.maps_of(trained, review.shown(trained)).startswith("held out, mean")
    assert review.maps_of(trained, "toy-00") == "in training, out of fold"
    for book in ("02_liver", "03_tumor", "05_candidates"):
        (path,) = (p for p in NUMBERED if p.stem == book)
        cells = nbformat.read(path, as_version=4).cells
        at = next(
            n
            for n, cell in enumerate(cells)
            if "case = review.shown" in cell.source or "case, threshold = " in cell.source
        )
        assert any("review.maps_of(made, case)" in cell.source for cell in cells[at : at + 2]), book
        assert not any(
            w in cells[at - 1].source for w in ("One held-out", "A held-out patient's probability", "no fold")
        ), book
    with pytest.raises(Refused, match="expected one of toy-08, toy-09"):
        review.shown(trained, "toy-00", "test")


def test_the_candidate_that_is_described(trained):
    features = trained.table("radiomics", "features.csv", dtype=review.AS_TEXT)[["case", "candidate"]]
    case, number = features.iloc[-1]
    assert review.described(trained, features, case, number) == case
    last = features.candidate.max()
    assert review.described(trained, features, "", last) in set(features[features.candidate == last].case)
    one = features[features.case == case]
    with pytest.raises(Refused, match=f"no 99 in {case}.* 1 to {one.candidate.max()}"):
        review.described(trained, features, case, 99)
    with pytest.raises(Refused, match="a case that has a candidate"):
        review.described(trained, features[features.case != case], case)
    with pytest.raises(Refused, match="nobody"):
        review.described(trained, features, "nobody")


def test_the_liver_that_is_drawn_is_the_one_that_was_found(trained):
    case = review.shown(trained)
    inside, tumor = trained.array("liver", "masks", case), trained.work(case)[1] == 2
    drawn = review.labelled(trained, case, tumor)
    assert (drawn == 2).equal(tumor) and (drawn > 0).equal(inside.bool() | tumor)


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
def test_the_page_of_a_result_needs_no_experiment(trained, tmp_path):
    shutil.copytree(trained.folder / "results", tmp_path / "some" / "results")
    names = sorted(p.name for p in (tmp_path / "some" / "results").iterdir())[:2]
    outcome = batch.run("result", tmp_path / "some", {"case": names[1]}, progress=None)
    assert outcome.status == "done", outcome.error
    assert outcome.output.name == f"result-{names[1]}.ipynb"
    cells = nbformat.read(outcome.output, as_version=4).cells
    answer = "".join(said(output) for output in cells[-1].outputs)
    assert answer.startswith(f"**{names[1]}**") and "Research use only" in answer
    assert f"<strong>{names[1]}</strong>" in outcome.output.with_suffix(".html").read_text()
    assert batch.run("result", tmp_path / "some", {"case": names[1]}, progress=None).status == "unchanged"
    held = tmp_path / "some" / "results" / names[1] / "result.json"
    held.write_text(held.read_text() + " ")
    assert batch.run("result", tmp_path / "some", {"case": names[1]}, progress=None).status == "done"
    with pytest.raises(Refused, match=f"no result of nobody.*{names[0]}"):
        review.found(tmp_path / "some", "nobody")
    shutil.move(tmp_path / "some" / "results", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / names[0], tmp_path / "some" / "results" / f".{names[0]}.4194305.part")
    with pytest.raises(Refused, match="found no result;"):  # a half one is none
        review.found(tmp_path / "some")
