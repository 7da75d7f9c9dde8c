"""The house: what a clone must hold before any stage runs. Notebooks, lock, environments, docstrings, trust."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "workbench").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ORDER = [
    "00_pipeline",
    "01_cohort",
    "02_liver",
    "03_tumor",
    "04_consistency",
    "05_candidates",
    "06_radiomics",
    "07_selection",
    "08_forest",
    "09_boundary",
    "10_metrics",
    "11_adapt",
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def files() -> list[Path]:
    """Every text file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = {".py", ".ipynb", ".md", ".toml", ".yml", ".yaml", ".cff", ".lock", ".smk", ".html", ".json", ".csv", ""}
    return [
        ROOT / line for line in listed.stdout.splitlines() if Path(line).suffix in kinds and (ROOT / line).is_file()
    ]


# -- notebooks --------------------------------------------------------------------------------------------------------


def test_the_notebooks_are_there_in_order():
    assert [n for n in ORDER if n not in {p.stem for p in NOTEBOOKS}] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_thin_and_clean(path):
    cells = json.loads(path.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code), (
        "outputs are not committed: nbstripout"
    )
    assert sum("parameters" in c["metadata"].get("tags", ()) for c in code) == 1, "one cell is tagged `parameters`"
    for c in code:
        source = "".join(c["source"])
        assert len(source.splitlines()) <= 12, f"a cell is a sentence; more belongs in the library:\n{source}"
        assert not re.search(r"^\s*def ", source, re.M), f"functions belong in the library:\n{source}"
    assert cells[0]["cell_type"] == "markdown"
    assert "?" in "".join(cells[0]["source"]), "a notebook opens with its question"


# -- trust ------------------------------------------------------------------------------------------------------------

FORBIDDEN = {  # written in pieces, so that this file does not find itself
    "loads a pickle": r"\bpickle\.(load|Unpickler)|\bjoblib" + r"\.load|\bcloudpickle\.load",
    "lets torch load a pickle": r"weights_only\s*=\s*" + "False",
    "lets NumPy load a pickle": r"allow_pickle\s*=\s*" + "True",
    "names a place on one machine": r"(?<![\w./~>-])/(home|root|Users|work|mnt)/" + r"\w|\b[C-Z]:\\\\?Users",
}


@pytest.mark.parametrize("fault", FORBIDDEN)
def test_no_file_does(fault):
    found = [
        f"{name_of(p)}: {line.strip()[:100]}"
        for p in files()
        for line in p.read_text(encoding="utf-8", errors="replace").splitlines()
        if re.search(FORBIDDEN[fault], line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "fault, line",
    [
        ("loads a pickle", "model = pickle" + ".load(f)"),
        ("lets torch load a pickle", "torch.load(f, weights_only=" + "False)"),
        ("lets NumPy load a pickle", "np.load(f, allow_pickle = " + "True)"),
        ("names a place on one machine", "open('/ho" + "me/ann/ct.nii.gz')"),
    ],
)
def test_the_search_would_find(fault, line):
    assert re.search(FORBIDDEN[fault], line)


# -- environments -----------------------------------------------------------------------------------------------------


@cache
def lock() -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}


def pinned(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "==", f"{requirement} is no pin"
    return Version(pin.version)


def wanted() -> list[Requirement]:
    extras = {k: v for k, v in PROJECT["project"]["optional-dependencies"].items() if k != "cluster"}  # decision 0011
    return [
        Requirement(r) for r in [*PROJECT["project"]["dependencies"], *(r for extra in extras.values() for r in extra)]
    ]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda r: r.name)
def test_the_lock_covers_what_is_wanted(requirement):
    assert canonicalize_name(requirement.name) in lock()
    assert requirement.specifier.contains(pinned(lock()[canonicalize_name(requirement.name)]))


def test_the_lock_begins_with_torch_and_holds_pins_only():
    assert next(iter(lock())) == "torch"
    assert all(pinned(r) and r.url is None for r in lock().values())


def test_what_is_installed_is_what_is_locked():
    installed = {canonicalize_name(d.metadata["Name"]): Version(d.version) for d in importlib.metadata.distributions()}
    apart = [
        f"{name} {installed[name]}, locked {pinned(r)}"
        for name, r in lock().items()
        if name in installed and Version(installed[name].public) != pinned(r)
    ]
    assert apart == []


def test_nothing_is_installed_that_the_lock_does_not_know():
    """Walks from what is wanted through every dependency that applies here."""
    seen, todo = set(), [(r, "") for r in wanted()]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted_extra in ["", *requirement.extras]:
            if (name, wanted_extra) in seen:
                continue
            seen.add((name, wanted_extra))
            try:
                below = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                assert name == "pyradiomics", f"{name} is wanted and not installed"
                continue
            todo += [(Requirement(b), wanted_extra) for b in below]
    unknown = {name for name, _ in seen} - set(lock())
    # what comes with a GPU's torch is torch's own affair
    assert {n for n in unknown if not n.startswith(("nvidia-", "cuda-")) and n != "triton"} == set()


def test_conda_users_get_the_same():
    text = (ROOT / "environment.yml").read_text()
    (pip,) = (d["pip"] for d in yaml.safe_load(text)["dependencies"] if isinstance(d, dict))
    assert pip[0] == "--constraint requirements.lock"
    listed = {canonicalize_name(r.name): r for r in map(Requirement, pip[1:])}
    assert [str(r) for name, r in listed.items() if pinned(r) != pinned(lock()[name])] == []
    absent = {canonicalize_name(r.name) for r in wanted()} - set(listed)
    assert absent == {"pyradiomics"}, "PyRadiomics is built after the rest"
    assert f"pip install --no-build-isolation pyradiomics=={pinned(lock()['pyradiomics'])}" in text


def test_one_version_everywhere():
    import workbench

    version = PROJECT["project"]["version"]
    assert workbench.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


# -- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path):
    assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 20


DRAWS = {
    "figures",
    "widgets",
    "qa",
    "report",
    "tracking",
    "batch",
    "demo",
    "doctor",
    "__main__",
}  # take what they are given


@pytest.mark.parametrize("path", [p for p in MODULES if not DRAWS & {p.stem, p.parent.name}], ids=name_of)
def test_public_functions_say_what_goes_in_and_what_comes_out(path):
    bare = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare += [
                f"{node.name}({a.arg})" for a in arguments if a.annotation is None and not _has_simple_default(node, a)
            ]
            bare += [f"{node.name} ->"] if node.returns is None else []
    assert bare == []


def _has_simple_default(node: ast.FunctionDef, argument: ast.arg) -> bool:
    """`device="cpu"`, `progress=None`: the default says enough."""
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = dict(zip(reversed(positional), reversed(node.args.defaults), strict=False))
    defaults |= dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    return isinstance(defaults.get(argument), ast.Constant)


def test_the_top_of_the_library_is_its_rooms():
    here = {p.name for p in (ROOT / "workbench").iterdir() if p.name != "__pycache__"}
    rooms = {"data", "nets", "stages", "experiment", "lab", "run"}
    assert here == rooms | {"__init__.py", "__main__.py", "volume.py", "masks.py"}
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    assert set(contracts[0]["layers"]) == rooms | {"__main__", "volume", "masks"}


HEAVY = {
    "torch",
    "mlflow",
    "napari",
    "monai",
    "matplotlib",
    "papermill",
    "ipywidgets",
    "sklearn",
    "skimage",
    "SimpleITK",
}


@pytest.mark.parametrize(
    "command",
    [["-c", "import workbench"], ["-m", "workbench", "--help"], ["-m", "workbench", "--version"]],
    ids=" ".join,
)
def test_starting_pulls_in_nothing_heavy(command):
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    imported = {line.split("|")[-1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}
    assert "workbench" in imported
    assert imported & HEAVY == set()


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for p in ROOT.rglob("*.md")
        if not {".venv", "experiments", "data", "mlruns"} & set(p.relative_to(ROOT).parts[:-1])
    ),
    ids=name_of,
)
def test_links_lead_somewhere(path):
    links = [
        link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if not re.match(r"\w+:|#", link)
    ]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
