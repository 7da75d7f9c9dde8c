"""Notebooks by number or name, checked parameters, resume, and the error that is kept."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from workbench import batch
from workbench.volume import Refused

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
    outcome = batch.run(source, experiment, {"n": "41"}, timeout=60, progress=lines.append)
    assert outcome.status == "failed" and not outcome.ok
    assert "03_tumor, cell 4" in outcome.error and outcome.error.endswith("ValueError: no mask: a"), outcome.error
    kept = nbformat.read(experiment / "notebooks" / "03_tumor.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert printed.strip() == f"42 {experiment.resolve()} {sys.executable}"
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert [line.split("cell ")[1].split()[0] for line in lines if " s  " in line] == ["1/4", "2/4", "3/4", "4/4"]
    record = json.loads((experiment / "notebooks" / "03_tumor.json").read_text())
    assert record["status"] == "failed" and record["stages_before"].keys() == {"liver"}
    beside = {p.suffix: p for p in (experiment / "notebooks").iterdir()}
    assert sorted(beside) == [".html", ".ipynb", ".json", ".log"]
    log = beside[".log"].read_text()
    assert f"42 {experiment.resolve()}" in log and "03_tumor  cell 2/4" in log and "no mask: a" in log
    page = beside[".html"].read_text()
    assert "What is two?" in page and f"42 {experiment.resolve()}" in page and "no mask: a" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page), "the page asks the network"

    record["status"] = "done"  # as if it had gone well: nothing changed, so nothing runs
    (experiment / "notebooks" / "03_tumor.json").write_text(json.dumps(record))
    again = batch.run(source, experiment, {"n": 41}, progress=False)
    assert again.status == "unchanged" and again.ok


def test_a_parameter_given_several_times_is_a_batch(books, tmp_path, monkeypatch):
    ran = []

    def run(notebook, experiment, parameters, output, **_):
        ran.append((notebook.stem, dict(parameters), output.name))
        return batch.Outcome(notebook.stem, output, "failed" if parameters["name"] == "b" else "done")

    monkeypatch.setattr(batch, "run", run)
    with pytest.raises(Refused, match="an integer|int, like 1"):
        batch.run_each("case", tmp_path, {}, "n", ["1", "two"])
    assert not ran
    outcomes = batch.run_each("case", tmp_path, {"n": "3"}, "name", ["a", "b", "../c"])
    assert ran == [
        ("case", {"n": "3", "name": v}, f"case-{f}.ipynb") for v, f in zip(("a", "b", "../c"), ("a", "b", ".._c"))
    ]
    assert [o.ok for o in outcomes] == [True, False, True]


def test_the_notebook_that_needs_all_stages_comes_last(books, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "run", lambda path, *_, **__: batch.Outcome(path.stem, path, "done"))
    assert [o.notebook for o in batch.run_all(tmp_path)] == ["02_liver", "10_metrics", "00_pipeline"]
