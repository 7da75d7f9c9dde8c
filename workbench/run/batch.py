"""Notebooks without a browser: run one by number or name, on one case or many, keep what it produced, skip what is unchanged.

The only module that imports papermill. Chooses: unknown parameters are refused before anything runs (papermill warns
and runs the defaults), and so is a folder, preset, device or case with which none of this checkout's notebooks could begin; the kernel is always this interpreter, whatever kernels a user has installed; an executed
notebook lies in EXPERIMENT/notebooks/ beside a page to read (HTML, no script, no network), a log, and a small JSON file that
says from what it was made (source, parameters, version, and the stages that were finished when it ended). While all of
these still hold it is not run again. Ctrl-C or SIGTERM ends the kernel and the batch, and keeps what was done.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

import workbench
from workbench.data import cohort
from workbench.data.files import CHECKOUT, sha256, write_atomic
from workbench.experiment import PRESETS, Experiment, pick_device
from workbench.experiment.reading import results_at, stage_hashes
from workbench.experiment.table import STAGES, names
from workbench.run import kernel, pages
from workbench.volume import Refused

CELL_SECONDS = 1800  # a choice: the longest that one cell may take
TRUTH = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)
RESULT = "result"  # the notebook that reads results and asks for no experiment


Tell = Callable[[str], None] | None


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended: `status` is done, unchanged, failed or skipped; `error` says why it failed or was skipped."""

    notebook: str
    output: Path
    status: str
    seconds: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status in ("done", "unchanged")


def folder() -> Path:
    """The notebooks of this checkout (an editable install), or those beside the current directory."""
    places = [CHECKOUT / "notebooks", Path.cwd() / "notebooks"]
    if there := [place for place in places if place.is_dir()]:
        return there[0]
    raise Refused(
        "notebooks",
        "none in " + " or ".join(map(str, places)),
        "the repository's notebooks folder",
        "Run from the repository, or install it with `pip install -e .`.",
    )


def notebooks() -> list[Path]:
    """The notebooks in order: numbered ones first, then the others by name."""
    paths = [p for p in folder().glob("*.ipynb") if not p.name.startswith(".")]
    return sorted(paths, key=lambda p: (not p.stem[:2].isdigit(), p.stem))


def in_order() -> list[Path]:
    """The numbered notebooks as each needs the ones before: 00 uses what all others make, so it comes last."""
    numbered = [p for p in notebooks() if p.stem[:2].isdigit()]
    return sorted(numbered, key=lambda p: (p.stem.startswith("00"), p.stem))


def find(which: str | int | Path) -> Path:
    """A notebook by number (`2`, `02`), by name (`liver`, `02_liver`) or by path."""
    text = str(which)
    if text.endswith(".ipynb") and Path(text).is_file():
        return Path(text)
    known = notebooks()
    for path in known:
        number, _, name = path.stem.partition("_")
        if text in (path.stem, path.name, name) or (text.isdigit() and number.isdigit() and int(text) == int(number)):
            return path
    raise Refused(text, "no such notebook", "one of " + ", ".join(p.stem for p in known))


def parameters(notebook: str | Path) -> dict[str, object]:
    """Names and defaults of the cell tagged `parameters`; a default that is not a literal comes back as its source."""
    cells = [c for c in pages.read(Path(notebook)).cells if "parameters" in c.metadata.get("tags", [])]
    found: dict[str, object] = {}
    try:
        statements: list = ast.parse(cells[0].source if cells else "").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        line = " ".join(str(error).split())
        found_there = f"a cell of parameters that is no Python ({line})"
        raise Refused(notebook, found_there, "name = value, line by line") from error
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and statement.value is not None:
                try:
                    found[target.id] = ast.literal_eval(statement.value)
                except ValueError:
                    found[target.id] = ast.unparse(statement.value)
    return found


def _typed(name: str, value: object, default: object, subject: str) -> object:
    """A value from the command line as the type of the notebook's default."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or isinstance(default, str):
        return value
    wanted = "true or false" if isinstance(default, bool) else f"{type(default).__name__}, like {default!r}"
    refused = Refused(f"{subject}: parameter {name}", repr(value), wanted)
    try:
        if isinstance(default, bool):
            return TRUTH[value.strip().lower()]
        if isinstance(default, int | float):
            return type(default)(value)
        literal = ast.literal_eval(value)
    except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):
        if default is None:
            return value
        raise refused from None
    if default is not None and type(literal) is not type(default):
        raise refused
    return literal


def checked(notebook: str | Path, given: Mapping[str, object]) -> dict[str, object]:
    """Parameters of the right type; refused, with the known names, when the notebook does not have one."""
    known = parameters(notebook)
    if unknown := [name for name in given if name not in known]:
        raise Refused(
            Path(notebook).name,
            "unknown parameter " + ", ".join(unknown),
            "one of " + ", ".join(known) if known else "no parameter at all",
        )
    return {name: _typed(name, value, known[name], Path(notebook).name) for name, value in given.items()}


def _source_hash(notebook: Path) -> str:
    """Hash of what the cells say; outputs, counts and ids do not matter."""
    cells = [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in pages.read(notebook).cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def unchanged(sidecar: Path, key: dict, experiment: Path) -> bool:
    """Whether a notebook was last run, without error, from this source, on stages that are all still the same.

    Stages that were finished only afterwards do not count: a later stage changes nothing for an earlier notebook.
    """
    if not sidecar.is_file() or not sidecar.with_suffix(".ipynb").is_file():
        return False
    try:
        was = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        return False
    now = stage_hashes(experiment)
    return (
        was.get("status") == "done"
        and was.get("key") == key
        and all(now.get(stage) == sha for stage, sha in was.get("stages_after", {}).items())
    )


def _execute(manager, *places: str, **arguments) -> None:
    """papermill, away from the main thread: there nbclient takes Ctrl-C for itself, and it becomes one more failed cell."""
    from papermill import execute_notebook

    if threading.current_thread() is not threading.main_thread():
        execute_notebook(*places, kernel_manager_class=manager, **arguments)
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with ThreadPoolExecutor(1) as aside:
            running = aside.submit(execute_notebook, *places, kernel_manager_class=manager, **arguments)
            try:
                running.result()
            except KeyboardInterrupt:
                manager.end()
                raise
    finally:
        signal.signal(signal.SIGTERM, former)


def _engine(tell: Callable[[str], None], stem: str):
    """papermill's own engine, telling of each cell as it ends."""
    from papermill.engines import NBClientEngine

    class Telling(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            total = sum(c.cell_type == "code" for c in nb_man.nb.cells)
            started, done, ended = time.monotonic(), 0, nb_man.cell_complete

            def cell_complete(cell, cell_index=None, **more):
                nonlocal done
                ended(cell, cell_index=cell_index, **more)
                if cell.cell_type == "code":
                    done += 1
                    first = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
                    tell(f"{stem}  cell {done}/{total}  {time.monotonic() - started:6.1f} s  {first[:60]}")

            nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    return Telling


class _Both:
    """What cells print: into the log, and on stderr where somebody watches."""

    def __init__(self, log: TextIO, aloud: bool):
        self.files = [log, sys.stderr] if aloud else [log]

    def write(self, text: str) -> None:
        for file in self.files:
            file.write(text)

    def flush(self) -> None:
        for file in self.files:
            file.flush()


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run(
    notebook: str | int | Path, experiment: str | Path, given: Mapping[str, object] | None = None, progress: Tell = None
) -> Outcome:
    """Run one notebook on an experiment folder and keep the executed copy, whole or partial.

    The parameters `given` may be strings (from a command line); `experiment` is handed on where the notebook knows that name.
    The copy is EXPERIMENT/notebooks/NN_name.ipynb, NN_name-CASE.ipynb for a case that is named. One line per cell, and what the
    cells print, goes to a .log beside it and, with `progress`, to stderr. A cell that fails is reported in the outcome, never raised.
    """
    import nbformat

    source = find(notebook)
    experiment = Path(experiment).resolve()
    case = re.sub(r"[/\\\x00-\x1f]", "_", str((given or {}).get("case") or ""))  # a manifest's names stay as they are
    given = checked(source, given or {})
    if "experiment" in parameters(source) and "experiment" not in given:
        given["experiment"] = str(experiment)
    name = f"{source.stem}-{case}" if case else source.stem
    output = experiment / "notebooks" / f"{name}.ipynb"
    sidecar = output.with_suffix(".json")
    key = {"source_sha256": _source_hash(source), "parameters": given, "version": workbench.__version__}
    shown = experiment / "results" / str(given.get("case") or "") / "result.json"
    if shown.is_file():
        key["result_sha256"] = sha256(shown)
    if unchanged(sidecar, key, experiment):
        if progress:
            progress(f"{name}  unchanged")
        return Outcome(name, output, "unchanged")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(output.parent, str(error), "a folder that can be written") from None
    before = stage_hashes(experiment)
    started = time.monotonic()
    partial = output.with_name(f"{output.stem}.partial.ipynb")  # what a killed run leaves, readable as it is
    with _naming(output), _log(output) as log:

        def say(line: str) -> None:
            print(line, file=log, flush=True)
            if progress:
                progress(line)

        error, interrupted = _ended(source, partial, name, given, say, _Both(log, bool(progress)))
        seconds = time.monotonic() - started
        if partial.exists():
            book = pages.read(partial)
            if pages.lighten(book):
                write_atomic(partial, nbformat.writes(book).encode())
            os.replace(partial, output)
            write_atomic(output.with_suffix(".html"), pages.page(output))
        status = "failed" if error else "done"
        record: dict[str, Any] = {"key": key, "status": status, "error": error, "seconds": round(seconds, 2)}
        record |= {"stages_before": before, "stages_after": stage_hashes(experiment)}
        write_atomic(sidecar, json.dumps(record, indent=1, sort_keys=True).encode())
        say(error or f"{name}  done in {seconds:.1f} s")
    if interrupted:
        raise KeyboardInterrupt
    return Outcome(name, output, status, seconds, error)


def _ended(
    source: Path, partial: Path, name: str, given: dict, say: Callable[[str], None], printed: _Both
) -> tuple[str, bool]:
    """Execute a notebook into `partial`; why it ended before its end (empty where it did not), and whether it was interrupted."""
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    papermill_engines.register("workbench", _engine(say, name))
    try:
        _execute(
            kernel.manager(),
            _braced(source),
            _braced(partial),
            parameters=given,
            engine_name="workbench",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,  # a busy machine: importing the kernel alone may take a minute
            cwd=str(source.resolve().parent),
            execution_timeout=CELL_SECONDS,
            autosave_cell_every=0,
            stdout_file=printed,
            stderr_file=printed,
        )
    except PapermillExecutionError as failure:
        return f"{name}, cell {failure.exec_count}: {failure.ename}: {_plain(str(failure.evalue))}", False
    except (RuntimeError, TimeoutError) as failure:  # a kernel that died or a cell that ran past its time
        return f"{name}: {type(failure).__name__}: {_plain(str(failure)).strip().splitlines()[0]}", False
    except KeyboardInterrupt:
        return f"{name}: interrupted", True
    return "", False


@contextmanager
def _log(output: Path) -> Iterator[TextIO]:
    """The log beside a notebook, empty; refused while another process runs the notebook, which holds it."""
    with open(output.with_suffix(".log"), "a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "Wait for it or choose another folder with -o."
            raise Refused(output, "in use by another process", "a notebook that nobody else runs", fix) from None
        log.truncate(0)
        yield log


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """What the system refuses without a name (no room) is told of the notebook."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else its words say it all
            error.filename = error.filename or str(output)
        raise


def _braced(path: Path) -> str:
    """papermill fills in {name} in paths: braces in a folder's name are doubled to stay as they are."""
    return str(path.resolve()).replace("{", "{{").replace("}", "}}")


def combinations(
    experiment: str | Path, given: Mapping[str, Sequence[str]], notebook: str | int | Path = "all"
) -> list[dict[str, object]]:
    """One set of parameters for each value of the one that was given several times.

    `case` may be `all`: every case of the experiment's cohort or, for the notebook `result`, every result. A case that is not
    among them is refused.
    """
    given = dict(given)
    place = _place(experiment, *given.get("experiment", [])[:1])
    table, of_results = place / "cohort" / "cases.csv", notebook != "all" and find(notebook).stem == RESULT
    if "case" in given and ("all" in given["case"] or table.is_file() or of_results):
        if of_results:
            known = _results(place)
        elif table.is_file():
            known = list(pd.read_csv(table, dtype=str)["case"])
        else:
            raise Refused(
                "-p case all", f"no {table}", "an experiment whose cohort stage has run", "Run notebook 01 first."
            )
        if unknown := [case for case in given["case"] if case not in [*known, "all", ""]]:
            raise Refused("case", ", ".join(unknown), "all, or some of " + ", ".join(known))
        given["case"] = known if "all" in given["case"] else list(dict.fromkeys(given["case"]))
    several = [name for name, values in given.items() if len(values) > 1]
    if len(several) > 1:
        raise Refused("-p " + " and -p ".join(several), "several values each", "one parameter with several values")
    alone: dict[str, object] = {name: values[0] for name, values in given.items() if name not in several}
    return [alone | {name: value} for name in several for value in given[name]] or [alone]


def _place(experiment: str | Path, given: object = None) -> Path:
    """The folder that a notebook works on: the experiment's, or what was given for the notebook's own parameter of that name."""
    return folder().parent / str(given) if given else Path(experiment).resolve()


def _results(place: Path) -> list[str]:
    """The cases that have a result in a folder; refused when none has."""
    if not (there := [path.name for path in results_at(place, "results/*/")]):
        raise Refused(
            place / "results",
            "no result",
            "one of notebook 10 or of `workbench segment CT --models EXPERIMENT -o FOLDER/results`",
        )
    return there


def may_begin(place: Path, preset: str, manifest: str | Path = "") -> None:
    """Refuse a preset with which no experiment can begin at a place."""
    if preset not in PRESETS:
        raise Refused("preset", preset, " or ".join(PRESETS))
    if manifest:
        cohort.read_manifest(folder().parent / manifest)
    elif preset != "demo" and not (place / "experiment.json").is_file():
        raise Refused(f"preset {preset}", "no manifest", "a cohort", "Name its manifest (CSV): -p manifest FILE.")


def _ready(jobs: Sequence[tuple[Path, Mapping[str, object]]], experiment: str | Path) -> None:
    """Refuse, before a kernel starts, what no notebook of this checkout could begin with; what others need is not known."""
    begun = set()
    for source, given in jobs:
        if source.resolve().parent != folder().resolve() or "experiment" not in parameters(source):
            continue
        place = _place(experiment, given.get("experiment"))
        device = str(given.get("device", "auto"))
        if preset := str(given.get("preset", "")):
            pick_device(device)
            may_begin(place, preset, str(given.get("manifest", "")))
            begun.add(place)
        elif source.stem == RESULT:
            _results(place)
        elif place not in begun:
            Experiment(place, device)


def _lacking(source: Path, place: Path) -> list[str]:
    """The stages that a numbered notebook rests on and that are not there; 00 rests on the trained ones."""
    number = source.stem.partition("_")[0]
    last = names()[-1]
    rests = (last, *STAGES, last)  # 11 adapts what is trained
    stage = rests[int(number)] if number.isdigit() and int(number) < len(rests) else "cohort"
    return [need for need in STAGES[stage].needs if not (place / need / "stage.json").is_file()]


def run_each(
    notebook: str | int | Path, experiment: str | Path, sets: Sequence[Mapping[str, object]], **kwargs
) -> list[Outcome]:
    """One notebook with one set of parameters after the other; all are checked before the first runs."""
    source = find(notebook)
    return _one_by_one([(source, dict(given)) for given in sets], experiment, **kwargs)


def run_all(
    experiment: str | Path, given: Mapping[str, object] | None = None, *, stop: bool = False, **kwargs
) -> list[Outcome]:
    """Run the numbered notebooks in order, each with those of the parameters `given` that it knows.

    Refused when no notebook at all knows a parameter. After a failure, only those are skipped that rest on a stage that is now
    not there; all others with `stop`.
    """
    given, known = given or {}, {path: parameters(path) for path in in_order()}
    every = sorted({name for names in known.values() for name in names})
    if unknown := [name for name in given if name not in every]:
        raise Refused("notebooks", "unknown parameter " + ", ".join(unknown), "one of " + ", ".join(every))
    jobs = [(path, {name: v for name, v in given.items() if name in names}) for path, names in known.items()]
    return _one_by_one(jobs, experiment, stop, **kwargs)


def _one_by_one(
    jobs: list[tuple[Path, dict[str, object]]],
    experiment: str | Path,
    stop: bool = False,
    progress: Tell = None,
    **kwargs,
) -> list[Outcome]:
    for path, given in jobs:
        checked(path, given)
    _ready(jobs, experiment)
    tell = progress or (lambda line: None)
    outcomes: list[Outcome] = []
    for n, (path, given) in enumerate(jobs, 1):
        case = f" {given['case']}" if given.get("case") else ""
        tell(f"[{n}/{len(jobs)}] {path.stem}{case}")
        if not all(o.ok for o in outcomes) and (lacking := _lacking(path, _place(experiment, given.get("experiment")))):
            error = f"{path.stem}: the stage {lacking[0]} is not there"
            tell(f"{error}: skipped")
            output = Path(experiment) / "notebooks" / f"{path.stem}.ipynb"
            outcomes.append(Outcome(path.stem, output, "skipped", error=error))
            continue
        outcomes.append(run(path, experiment, given, progress=progress, **kwargs))
        if stop and not outcomes[-1].ok:
            break
    return outcomes
