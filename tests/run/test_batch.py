"""Notebooks by number or name, checked parameters, resume, and the error that is kept."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.run import batch, pages
from workbench.volume import Refused

ROOT = Path(__file__).resolve().parents[2]
FIRST = "experiment = ''\nn = 1\nrate = 0.5\nquick = False\nname = 'a'\nlist_ = []\nmaybe = None"


def notebook(path: Path, *code: str, first: str = FIRST):
    cells = [
        nbformat.v4.new_markdown_cell("What is two?"),
        nbformat.v4.new_code_cell(first, metadata={"tags": ["parameters"]}),
    ]
    book = nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(c) for c in code])
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def books(tmp_path, monkeypatch):
    where = tmp_path / "notebooks"
    for stem in ("10_metrics", "02_liver", "case", "00_pipeline"):
        notebook(where / f"{stem}.ipynb", "1 + 1")
    monkeypatch.setattr(batch, "folder", lambda: where)
    return where


def finished(experiment: Path, stage: str, seconds: float = 1.0):
    (experiment / stage).mkdir(parents=True, exist_ok=True)
    (experiment / stage / "stage.json").write_text(json.dumps({"stage": stage, "seconds": seconds}))


def test_order_and_lookup(books):
    assert [p.stem for p in batch.notebooks()] == ["00_pipeline", "02_liver", "10_metrics", "case"]
    for which in (2, "2", "02", "liver", "02_liver", "02_liver.ipynb", books / "02_liver.ipynb"):
        assert batch.find(which).stem == "02_liver"
    with pytest.raises(Refused, match="00_pipeline, 02_liver, 10_metrics, case"):
        batch.find("03")


def test_the_notebook_that_needs_all_others_comes_last(books):
    assert [p.stem for p in batch.in_order()] == ["02_liver", "10_metrics", "00_pipeline"]


def test_several_values_are_several_runs(tmp_path):
    sets = batch.combinations(tmp_path, {"n": ["1"], "rate": ["0.5", "0.7"]})
    assert sets == [{"n": "1", "rate": "0.5"}, {"n": "1", "rate": "0.7"}]
    assert batch.combinations(tmp_path, {}) == [{}] and batch.combinations(tmp_path, {"n": ["1"]}) == [{"n": "1"}]
    with pytest.raises(Refused, match="one parameter with several values"):
        batch.combinations(tmp_path, {"n": ["1", "2"], "rate": ["1", "2"]})
    assert batch.combinations(tmp_path, {"case": ["b"]}) == [{"case": "b"}], "no cohort yet: the notebook will say so"
    with pytest.raises(Refused, match="no .*cases.csv"):
        batch.combinations(tmp_path, {"case": ["all"]})
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "cases.csv").write_text("case,patient\n007,x\n010,y\n")
    assert batch.combinations(tmp_path, {"case": ["all"], "n": ["1"]}) == [
        {"n": "1", "case": "007"},
        {"n": "1", "case": "010"},
    ]
    assert batch.combinations(tmp_path, {"case": ["010", "010"]}) == [{"case": "010"}], "each case once"
    assert batch.combinations(tmp_path, {"case": [""]}) == [{"case": ""}], "empty: the notebook chooses"
    with pytest.raises(Refused, match="case.* d.*all, or some of 007, 010"):
        batch.combinations(tmp_path, {"case": ["010", "d"]})


def test_each_case_keeps_its_own_page_and_one_bad_value_stops_all(tmp_path, monkeypatch):
    source = notebook(tmp_path / "books" / "case.ipynb", first="experiment = ''\ncase = ''\nn = 1")
    ran = []
    monkeypatch.setattr(
        batch, "_execute", lambda kernel, source, partial, **more: ran.append(more["parameters"]["case"])
    )
    with pytest.raises(Refused, match="parameter n"):
        batch.run_each(source, tmp_path / "exp", [{"case": "a"}, {"case": "b", "n": "x"}], progress=None)
    assert ran == []
    lines: list[str] = []
    outcomes = batch.run_each(source, tmp_path / "exp", [{"case": "a/1"}, {"case": "b c's"}], progress=lines.append)
    assert [o.output.name for o in outcomes] == ["case-a_1.ipynb", "case-b c's.ipynb"] and ran == ["a/1", "b c's"]
    assert [line for line in lines if line.startswith("[")] == ["[1/2] case a/1", "[2/2] case b c's"]


def test_a_page_asks_nothing_of_the_network_and_runs_no_script(tmp_path):
    book = nbformat.read(notebook(tmp_path / "n.ipynb", "x"), as_version=4)
    view = nbformat.v4.new_output("display_data", {pages.WIDGET: {"model_id": "1"}, "text/plain": "Live(children=...)"})
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    book.cells[-1].outputs = [view, picture]
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"1": {}}, "version_major": 2}}
    nbformat.write(book, tmp_path / "n.ipynb")
    html = pages.page(tmp_path / "n.ipynb").decode()
    assert "Live(" not in html and "data:image/png;base64,iVBORw0KGgo=" in html and "What is two?" in html
    assert "<script" not in html and "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="?(?:https?:)?//[^"\s]*', html)


def test_a_page_has_the_picture_of_a_widget_and_a_copy_carries_no_widget_with_a_program_of_its_own(tmp_path):
    book = nbformat.read(notebook(tmp_path / "n.ipynb", "x", "y", "z"), as_version=4)
    shown = [{pages.WIDGET: {"model_id": m}, "image/png": p} for m, p in (("a", "iVBORw0KGgo="), ("b", "aVBORw0KGgo="))]
    shown.append({pages.WIDGET: {"model_id": "c"}})  # without a picture it stays as it is
    for cell, data in zip(book.cells[-3:], shown):
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
    state = {
        "a": {"state": {"children": ["IPY_MODEL_a1", "IPY_MODEL_both"]}},
        "a1": {"state": {"_esm": "program", "volumes": ["IPY_MODEL_a2"]}},
        "a2": {"state": {"data": "voxels"}},
        "both": {"state": {}},
        "b": {"state": {"children": ["IPY_MODEL_both"]}},
        "c": {"state": {"_esm": "program"}},
    }
    book.metadata["widgets"] = {pages.STATE: {"state": state, "version_major": 2, "version_minor": 0}}
    nbformat.write(book, tmp_path / "n.ipynb")
    html = pages.page(tmp_path / "n.ipynb").decode()
    assert "data:image/png;base64,iVBORw0KGgo=" in html and "data:image/png;base64,aVBORw0KGgo=" in html
    assert pages.lighten(book) and not pages.lighten(book)
    assert set(book.metadata["widgets"][pages.STATE]["state"]) == {"both", "b", "c"}
    first, second, third = (cell.outputs[0].data for cell in book.cells[-3:])
    assert set(first) == {"image/png"} and pages.WIDGET in second and pages.WIDGET in third


@pytest.mark.timeout(120)
def test_a_signal_ends_the_kernel_and_the_batch_and_keeps_what_was_done(tmp_path):
    source = notebook(
        tmp_path / "slow.ipynb", "import os\nprint('kernel', os.getpid(), flush=True)", "import time\ntime.sleep(300)"
    )
    program = (
        "import sys\nfrom workbench.run import batch\n"
        f"batch.run_each({str(source)!r}, {str(tmp_path / 'exp')!r}, [{{'n': 1}}, {{'n': 2}}])"
    )
    log = tmp_path / "exp" / "notebooks" / "slow.log"
    batch_run = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        until = time.monotonic() + 90
        while not (log.is_file() and "cell 3/4" in log.read_text()):
            assert time.monotonic() < until and batch_run.poll() is None
            time.sleep(0.1)
        kernel = int(re.search(r"kernel (\d+)", log.read_text())[1])
        batch_run.send_signal(signal.SIGTERM)
        _, said = batch_run.communicate(timeout=20)
    finally:
        batch_run.kill()
    assert "KeyboardInterrupt" in said and "[2/2]" not in said
    assert not Path(f"/proc/{kernel}").exists(), "the kernel goes on alone"
    kept = nbformat.read(log.with_suffix(".ipynb"), as_version=4)
    assert any("kernel" in o.get("text", "") for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert json.loads(log.with_suffix(".json").read_text())["error"] == "slow: interrupted"


def test_parameters_are_read_and_typed(books):
    book = books / "02_liver.ipynb"
    assert batch.parameters(book) == {
        "experiment": "",
        "n": 1,
        "rate": 0.5,
        "quick": False,
        "name": "a",
        "list_": [],
        "maybe": None,
    }
    given = {"n": "3", "rate": "2", "quick": "true", "name": "7", "list_": "[1, 2]", "maybe": "none such"}
    typed = batch.checked(book, given)
    assert typed == {"n": 3, "rate": 2.0, "quick": True, "name": "7", "list_": [1, 2], "maybe": "none such"}
    assert isinstance(typed["rate"], float) and isinstance(typed["n"], int)
    for name, value in (("n", "three"), ("n", "1.5"), ("rate", "fast"), ("quick", "maybe"), ("list_", "3")):
        with pytest.raises(Refused, match=name):
            batch.checked(book, {name: value})


def test_unknown_parameter_is_refused_before_anything_runs(books, tmp_path):
    with pytest.raises(Refused, match="unknown parameter threshhold.*experiment, n, rate"):
        batch.run("liver", tmp_path / "exp", {"threshhold": 0.5})
    assert not (tmp_path / "exp").exists()
    with pytest.raises(Refused, match="unknown parameter nowhere"):
        batch.run_all(tmp_path / "exp", {"nowhere": 1})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("all",), "no experiment.json"),
        (("04",), "no experiment.json"),
        (("01", "-p", "preset", "toy"), "demo or paper"),
        (("01", "-p", "preset", "paper"), "no manifest"),
        (("01", "-p", "preset", "demo", "-p", "manifest", "none.csv"), "no such file"),
        (("all", "-p", "preset", "demo", "-p", "device", "gpu"), "auto, cpu, cuda"),
        (("result",), "no result"),
    ],
)
def test_what_no_notebook_could_begin_with_is_refused_before_a_kernel_and_leaves_nothing(call, tmp_path, words, says):
    status, _, err = call("run", *words, "-o", tmp_path / "a" / "e")
    assert status == 2 and says in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_a_device_or_case_that_is_not_there_is_refused_on_an_experiment_that_is(call, trained):
    held = trained.cases("train").case.iloc[0]  # has no result
    for words in (("04", "-p", "device", "gpu"), ("case", "-p", "case", "nope"), ("result", "-p", "case", held)):
        status, _, err = call("run", *words, "-o", trained.folder)
        assert status == 2 and len(err.splitlines()) == 1, err
    assert not (trained.folder / "notebooks").exists()
    every = batch.combinations(trained.folder, {"case": ["all"]}, "result")
    assert [one["case"] for one in every] == sorted(trained.cases("test").case), "those that have a result"


def test_a_preset_begins_an_experiment_for_the_notebooks_after_the_first(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(batch, "run", lambda path, *_, **__: ran.append(path) or batch.Outcome(path.stem, path, "done"))
    assert len(batch.run_all(tmp_path / "e", {"preset": "demo"}, progress=None)) == len(ran) == 12


def test_after_a_failure_only_what_rests_on_a_missing_stage_is_skipped(trained, tmp_path, monkeypatch):
    shutil.copytree(trained.folder, tmp_path / "e", ignore=shutil.ignore_patterns("tumor", "forest"))
    ran = []

    def run(path, *_, **__):
        ran.append(path.stem[:2])
        return batch.Outcome(path.stem, path, "failed" if ran[-1] == "03" else "done")

    monkeypatch.setattr(batch, "run", run)
    outcomes = batch.run_all(tmp_path / "e", progress=None)
    assert ran == ["01", "02", "03", "06", "07", "08"], "04, 05 need tumor; 09, 10, 11 and 00 tumor and forest"
    skipped = {o.notebook[:2]: o.error for o in outcomes if o.status == "skipped"}
    assert list(skipped) == ["04", "05", "09", "10", "11", "00"] and not any(o.ok for o in outcomes if o.error)
    assert skipped["04"] == "04_consistency: the stage tumor is not there"


def test_unchanged_looks_at_source_parameters_version_and_the_stages_it_saw(tmp_path):
    experiment, sidecar = tmp_path, tmp_path / "notebooks" / "02_liver.json"
    finished(experiment, "liver")
    key = {"source_sha256": "a", "parameters": {"n": 1}, "version": "1"}
    sidecar.parent.mkdir()
    record = {"key": key, "status": "done", "stages_after": batch.stage_hashes(experiment)}
    sidecar.write_text(json.dumps(record))
    assert not batch.unchanged(sidecar, key, experiment), "the executed notebook itself is missing"
    sidecar.with_suffix(".ipynb").touch()
    assert batch.unchanged(sidecar, key, experiment)
    finished(experiment, "tumor")
    assert batch.unchanged(sidecar, key, experiment), "a later stage changes nothing for an earlier notebook"
    for name, other in (("source_sha256", "b"), ("parameters", {"n": 2}), ("version", "2")):
        assert not batch.unchanged(sidecar, {**key, name: other}, experiment), name
    sidecar.write_text(json.dumps({**record, "status": "failed"}))
    assert not batch.unchanged(sidecar, key, experiment)
    sidecar.write_text(json.dumps(record))
    finished(experiment, "liver", seconds=2)
    assert not batch.unchanged(sidecar, key, experiment), "the stage was run again"


def test_source_hash_ignores_outputs_but_not_words(books):
    before = batch._source_hash(books / "02_liver.ipynb")
    book = nbformat.read(books / "02_liver.ipynb", as_version=4)
    book.cells[-1].execution_count = 7
    nbformat.write(book, books / "02_liver.ipynb")
    assert batch._source_hash(books / "02_liver.ipynb") == before
    book.cells[-1].source = "1 + 2"
    nbformat.write(book, books / "02_liver.ipynb")
    assert batch._source_hash(books / "02_liver.ipynb") != before


def test_run_keeps_the_result_skips_the_second_time_and_shows_the_error(tmp_path, monkeypatch):
    """One kernel start: the cell fails on purpose after the parameters were used.."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    where = tmp_path / "with {braces} and ö"
    source = notebook(
        where / "03_tumor.ipynb",
        "import sys\nprint(n + 1, experiment, sys.executable)",
        "raise ValueError('no mask: ' + name)",
    )
    experiment = where / "exp"
    finished(experiment, "liver")
    lines: list[str] = []
    outcome = batch.run(source, experiment, {"n": "41"}, progress=lines.append)
    assert outcome.status == "failed" and not outcome.ok
    assert "03_tumor, cell 4" in outcome.error and outcome.error.endswith("ValueError: no mask: a"), outcome.error
    kept = nbformat.read(experiment / "notebooks" / "03_tumor.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert printed.strip() == f"42 {experiment.resolve()} {sys.executable}"
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert [line.split("cell ")[1].split()[0] for line in lines if " s  " in line] == ["1/4", "2/4", "3/4", "4/4"]
    record = json.loads((experiment / "notebooks" / "03_tumor.json").read_text())
    assert record["status"] == "failed" and record["stages_before"].keys() == {"liver"}
    kinds = ["html", "ipynb", "json", "log"]
    assert sorted(p.name for p in (experiment / "notebooks").iterdir()) == [f"03_tumor.{kind}" for kind in kinds]
    log = (experiment / "notebooks" / "03_tumor.log").read_text()
    assert f"42 {experiment.resolve()}" in log and "cell 3/4" in log and "ValueError: no mask: a" in log
    html = (experiment / "notebooks" / "03_tumor.html").read_text()
    assert "no mask: a" in html and "What is two?" in html

    record["status"] = "done"  # as if it had gone well: nothing changed, so nothing runs
    (experiment / "notebooks" / "03_tumor.json").write_text(json.dumps(record))
    again = batch.run(source, experiment, {"n": 41}, progress=None)
    assert again.status == "unchanged" and again.ok


def test_a_notebook_that_another_process_runs_is_left_to_it(tmp_path):
    source, experiment = notebook(tmp_path / "03_tumor.ipynb", "print(n)"), tmp_path / "exp"
    finished(experiment, "liver")
    log = experiment / "notebooks" / "03_tumor.log"
    log.parent.mkdir()
    with open(log, "a") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        print("theirs", file=theirs, flush=True)
        with pytest.raises(Refused, match="03_tumor.ipynb: found in use by another process"):
            batch.run(source, experiment, progress=None)
    assert log.read_text() == "theirs\n" and [p.name for p in log.parent.iterdir()] == [log.name]
