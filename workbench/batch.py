"""Notebooks without a browser: run one by number or name, keep what it produced, skip it when nothing changed.

The only module that imports papermill. Chooses: unknown parameters are refused before anything runs (papermill warns
and runs the defaults); the kernel is always this interpreter, whatever kernels a user has installed; an executed
notebook lies in EXPERIMENT/notebooks/ beside a small JSON file that says from what it was made (source, parameters,
version, and the stages that were finished when it ended). While all of these still hold it is not run again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.files import write_atomic
from workbench.folders import stage_hashes
from workbench.volume import Refused


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended: `status` is done, unchanged or failed; `error` is empty unless it failed."""

    notebook: str
    output: Path
    status: str
    seconds: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status != "failed"


def folder() -> Path:
    """The notebooks of this checkout (an editable install), or those beside the current directory."""
    import workbench

    places = [Path(p).parent / "notebooks" for p in workbench.__path__] + [Path.cwd() / "notebooks"]
    for place in places:
        if place.is_dir():
            return place
    raise Refused(
        "notebooks",
        "none in " + " or ".join(map(str, places)),
        "the repository's notebooks folder",
        "Run from the repository, or install it with `pip install -e .`.",
    )


def notebooks(where: str | Path | None = None) -> list[Path]:
    """The notebooks in order: numbered ones first, then the others by name."""
    paths = [p for p in Path(where or folder()).glob("*.ipynb") if not p.name.startswith(".")]
    return sorted(paths, key=lambda p: (not p.stem[:2].isdigit(), p.stem))


def find(which: str | int | Path, where: str | Path | None = None) -> Path:
    """A notebook by number (`2`, `02`), by name (`liver`, `02_liver`) or by path."""
    text = str(which)
    if text.endswith(".ipynb") and Path(text).is_file():
        return Path(text)
    known = notebooks(where)
    for path in known:
        number, _, name = path.stem.partition("_")
        if text in (path.stem, path.name, name) or (text.isdigit() and number.isdigit() and int(text) == int(number)):
            return path
    raise Refused(text, "no such notebook", "one of " + ", ".join(p.stem for p in known))


def _read(path: Path):
    import nbformat

    try:
        read = nbformat.read(path, as_version=4)
        nbformat.validate(read)
        return read
    except OSError:
        raise
    except Exception as error:  # nbformat has no one type for a file that is no notebook
        line = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise Refused(path, f"no notebook ({line})", "a Jupyter notebook", "Restore it from the repository.") from error


def parameters(notebook: str | Path) -> dict[str, object]:
    """Names and defaults of the cell tagged `parameters`; a default that is not a literal comes back as its source."""
    cells = [c for c in _read(Path(notebook)).cells if "parameters" in c.metadata.get("tags", [])]
    found: dict[str, object] = {}
    try:
        statements: list = ast.parse(cells[0].source if cells else "").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise Refused(
            notebook, f"a cell of parameters that is no Python ({line})", "name = value, line by line"
        ) from error
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
    if isinstance(default, bool):
        word = value.strip().lower()
        if word in ("true", "yes", "1", "on"):
            return True
        if word in ("false", "no", "0", "off"):
            return False
        raise Refused(f"{subject}: parameter {name}", repr(value), "true or false")
    try:
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if default is None:
            return value
        raise Refused(
            f"{subject}: parameter {name}", repr(value), f"{type(default).__name__}, like {default!r}"
        ) from None
    if default is not None and type(literal) is not type(default):
        raise Refused(f"{subject}: parameter {name}", repr(value), f"{type(default).__name__}, like {default!r}")
    return literal


def checked(notebook: str | Path, given: dict[str, object]) -> dict[str, object]:
    """Parameters of the right type; refused, with the known names, when the notebook does not have one."""
    known = parameters(notebook)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise Refused(
            Path(notebook).name,
            "unknown parameter " + ", ".join(unknown),
            "one of " + ", ".join(known) if known else "no parameter at all",
        )
    return {name: _typed(name, value, known[name], Path(notebook).name) for name, value in given.items()}


def _source_hash(notebook: Path) -> str:
    """Hash of what the cells say; outputs, counts and ids do not matter."""
    cells = [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in _read(notebook).cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _version() -> str:
    import workbench

    return getattr(workbench, "__version__", "0")


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


def _kernel_manager():
    """A kernel manager that starts ipykernel in this interpreter and looks up no installed kernel."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self):
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )

    return ThisInterpreter


def _engine(tell: Callable[[str], None] | None, stem: str):
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
                    if tell:
                        tell(f"{stem}  cell {done}/{total}  {time.monotonic() - started:6.1f} s  {first[:60]}")

            nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    return Telling


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run(
    notebook: str | int | Path,
    experiment: str | Path,
    parameters: dict[str, object] | None = None,
    output: str | Path | None = None,
    timeout: int | None = 1800,
    progress: bool | Callable[[str], None] = True,
    force: bool = False,
) -> Outcome:
    """Run one notebook on an experiment folder and keep the executed copy, whole or partial.

    `parameters` may be strings (from a command line); `experiment` is handed on where the notebook knows that name.
    `output` is EXPERIMENT/notebooks/NN_name.ipynb unless given; beside it lie the same as HTML, which needs no network, and a
    log of what the cells printed. `timeout` is in seconds per cell. With `progress` one line per cell, and what the cells print,
    goes to stderr. A cell that fails is reported in the outcome, never raised.
    """
    from papermill import execute_notebook
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    source = find(notebook)
    experiment = Path(experiment).resolve()
    known = globals()["parameters"](source)
    given = checked(source, dict(parameters or {}))
    if "experiment" in known and "experiment" not in given:
        given["experiment"] = str(experiment)
    output = Path(output).resolve() if output else experiment / "notebooks" / source.name
    sidecar = output.with_suffix(".json")
    key = {"source_sha256": _source_hash(source), "parameters": given, "version": _version()}
    shown = experiment / "results" / str(given.get("case", "")) / "result.json"
    if shown.is_file():
        key["result_sha256"] = hashlib.sha256(shown.read_bytes()).hexdigest()
    tell = _to_stderr if progress is True else progress or None
    if not force and unchanged(sidecar, key, experiment):
        if tell:
            tell(f"{source.stem}  unchanged")
        return Outcome(source.stem, output, "unchanged")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(output.parent, str(error), "a folder that can be written") from None
    before = stage_hashes(experiment)
    started = time.monotonic()
    partial = output.with_name(f"{output.stem}.partial.ipynb")  # what a killed run leaves, readable as it is
    log = _Log(output.with_suffix(".log"), tell)
    papermill_engines.register("workbench", _engine(log.tell, source.stem))
    status, error = "done", ""
    try:
        execute_notebook(
            _braced(source),
            _braced(partial),
            parameters=given,
            engine_name="workbench",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,  # a busy machine: importing the kernel alone may take a minute
            cwd=str(source.resolve().parent),
            execution_timeout=timeout,
            kernel_manager_class=_kernel_manager(),
            autosave_cell_every=0,
            stdout_file=log,
            stderr_file=log,
        )
    except PapermillExecutionError as failure:
        status = "failed"
        error = f"{source.stem}, cell {failure.exec_count}: {failure.ename}: {_plain(str(failure.evalue))}"
    except (RuntimeError, TimeoutError) as failure:  # a kernel that died or a cell that ran past its time
        status = "failed"
        error = f"{source.stem}: {type(failure).__name__}: {_plain(str(failure)).strip().splitlines()[0]}"
    if partial.exists():
        os.replace(partial, output)
        write_atomic(output.with_suffix(".html"), html(output).encode())
    seconds = time.monotonic() - started
    record = {
        "key": key,
        "status": status,
        "error": error,
        "seconds": round(seconds, 2),
        "stages_before": before,
        "stages_after": stage_hashes(experiment),
    }
    write_atomic(sidecar, json.dumps(record, indent=1, sort_keys=True).encode())
    log.tell(error or f"{source.stem}  done in {seconds:.1f} s")
    log.close()
    return Outcome(source.stem, output, status, seconds, error)


class _Log:
    """What a run says and what its cells print, in a file and, where `tell` is given, on stderr."""

    def __init__(self, path: Path, tell: Callable[[str], None] | None):
        self.file, self.also = open(path, "w", encoding="utf-8"), tell

    def tell(self, line: str) -> None:
        self.file.write(line + "\n")
        self.file.flush()
        if self.also:
            self.also(line)

    def write(self, text: str) -> None:
        self.file.write(text)
        if self.also:
            sys.stderr.write(text)

    def flush(self) -> None:
        self.file.flush()
        if self.also:
            sys.stderr.flush()

    def close(self) -> None:
        self.file.close()


def html(notebook: str | Path) -> str:
    """An executed notebook as one HTML page that needs no network: pictures stay, widgets are left to the notebook."""
    from nbconvert import HTMLExporter

    held = _read(Path(notebook))
    held.metadata.pop("widgets", None)
    for cell in held.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jupyter_widgets_base_url="", mermaid_js_url="")
    return exporter.from_notebook_node(held)[0]


def run_each(
    notebook: str | int | Path, experiment: str | Path, parameters: dict[str, object], name: str, values: list, **kwargs
) -> list[Outcome]:
    """Run one notebook once for each value of a parameter; the copies are called NAME-VALUE. One failure stops no other."""
    source, outcomes = find(notebook), []
    for value in values:
        checked(source, {**parameters, name: value})
    for value in values:
        plain = re.sub(r"[^\w.-]+", "_", str(value))
        output = Path(experiment) / "notebooks" / f"{source.stem}-{plain}.ipynb"
        outcomes.append(run(source, experiment, {**parameters, name: value}, output, **kwargs))
    return outcomes


def _braced(path: Path) -> str:
    """papermill fills in {name} in paths: braces in a folder's name are doubled to stay as they are."""
    return str(path.resolve()).replace("{", "{{").replace("}", "}}")


def run_all(
    experiment: str | Path,
    parameters: dict[str, object] | None = None,
    only: list[str | int] | None = None,
    stop: bool = False,
    **kwargs,
) -> list[Outcome]:
    """Run the numbered notebooks in order, 00 at last since it needs what the others train (or `only` some), each with those
    parameters that it knows.

    Refused when no notebook at all knows a parameter. One failure does not keep the others from running unless `stop`.
    """
    numbered = sorted((p for p in notebooks() if p.stem[:2].isdigit()), key=lambda p: (p.stem.startswith("00"), p.stem))
    chosen = [find(w) for w in only] if only else numbered
    known = {path: globals()["parameters"](path) for path in chosen}
    every = sorted({name for names in known.values() for name in names})
    unknown = [name for name in parameters or {} if name not in every]
    if unknown:
        raise Refused("notebooks", "unknown parameter " + ", ".join(unknown), "one of " + ", ".join(every))
    outcomes = []
    for path in chosen:
        mine = {name: value for name, value in (parameters or {}).items() if name in known[path]}
        outcomes.append(run(path, experiment, mine, **kwargs))
        if stop and not outcomes[-1].ok:
            break
    return outcomes
