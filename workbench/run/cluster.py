"""Cohorts through Snakemake: one case or one fold a job, on this machine or on a cluster. Nothing here imports Snakemake.

Chooses: workflow/Snakefile holds the rules, and the files that they leave are the state, so the same command goes on after any
end. A case that fails stops nothing but itself; the summary says which failed, and why.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.data import cohort
from workbench.data.files import CHECKOUT, held, read_json, write_json, write_table
from workbench.experiment import PRESETS, Experiment, table
from workbench.experiment.models import find
from workbench.stages import metrics
from workbench.volume import Refused

CONFIG = "config.json"


@dataclass(frozen=True)
class Summary:
    """How a cohort stands: a row a case (status done, failed or open; reason), and the measures of those that are done."""

    cases: pd.DataFrame
    measures: dict

    def count(self, status: str) -> int:
        return int((self.cases.status == status).sum())


def run(
    manifest: str | Path,
    out: str | Path,
    models: str | Path | None = None,
    preset: str = "demo",
    device: str = "cpu",
    cores: int | None = None,
    profile: str = "local",
    extra: tuple[str, ...] = (),
) -> Summary:
    """Segment a cohort's cases with trained models and evaluate those that have labels; without models, train on its train split first and
    take its test split.

    `profile`: local, slurm or a folder with a Snakemake profile; `extra` goes to Snakemake as it is.
    """
    manifest, out = Path(manifest).resolve(), Path(out).resolve()
    cases = cohort.read_manifest(manifest, labelled=models is None)
    if models is None and not any(c.split == "test" for c in cases):
        raise Refused(manifest, "no models and no held-out case", "--models, or cases with split test")
    about = {
        "manifest": manifest,
        "out": out,
        "workbench": f"{shlex.quote(sys.executable)} -m workbench",
        "device": device,
        "stages": table.names(keeps=False),
        "by_fold": table.names(by_fold=True),
    }
    if models is None:
        about |= {"preset": preset, "folds": PRESETS[preset]().folds}
    else:
        made = Experiment(find(models), "cpu")
        for stage in table.names(model=True):
            made.need(stage)
        about["models"] = made.folder.resolve()
    _carried(manifest, cases, out, about.get("models", ""))
    rules, given = _workflow(), Path(profile)
    place = given if given.is_dir() else rules.parent / "profiles" / profile
    if not (place / "config.yaml").is_file():
        raise Refused("--profile", profile, "local, slurm or a folder that holds a Snakemake profile's config.yaml")
    command = [_snakemake(), "--snakefile", rules, "--directory", out, "--workflow-profile", place]
    command += ["--cores", str(cores)] if cores else ["--cores", "all"] if profile == "local" else []
    command += ["--configfile", out / CONFIG, *extra]
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        write_json(out / CONFIG, about)  # a file: on the command line Snakemake reads a path as YAML
        if any((out / ".snakemake" / "locks").glob("*")):  # left by a run that was killed: nobody else is here
            subprocess.run([str(word) for word in (*command, "--unlock")], check=True, capture_output=True)
        subprocess.run([str(word) for word in command])  # its status says no more than the summary does
        found = summary(cases, out, everyone=models is not None)
        write_table(out / "summary.csv", found.cases)
        write_json(out / "summary.json", found.measures)
    return found


def _carried(manifest: Path, cases: list[cohort.Case], *places: object) -> None:
    """Refuse names that Snakemake takes for its own {wildcards}, or that the jobs' commands would take for an option or for all cases."""
    braced = [str(place) for place in places if set(str(place)) & set("{}")]
    odd = [c.case for c in cases if set(c.case) & set("{}") or c.case.startswith("-") or c.case == "all"]
    if braced or odd:
        raise Refused(
            braced[0] if braced else manifest,
            "braces in its name" if braced else f"case {odd[0]!r}",
            "names without { and }" + ", which neither begin with - nor are the word all" * bool(odd),
            "Rename it.",
        )


def summary(cases: list[cohort.Case], out: Path, everyone: bool = True) -> Summary:
    """What lies in `out` of these cases, or of the held-out ones among them."""
    rows, measured = [], []
    for case in cases:
        if not everyone and case.split != "test":
            continue
        row = {"case": case.case, "patient": case.patient, "status": "open", "reason": ""}
        file = out / "evaluation" / f"{case.case}.json"
        if file.is_file():
            (of_case,) = read_json(file, "cases")["cases"]
            measured.append(of_case)
            row |= {"status": "done", "tumor_dice": of_case["tumor"]["dice"], "liver_dice": of_case["liver"]["dice"]}
        elif case.labels is None and (out / "segmented" / case.case).is_file():
            row |= {"status": "done", "reason": "no labels to evaluate by"}
        elif reason := _why(out / "logs", case.case):
            row |= {"status": "failed", "reason": reason}
        rows.append(row)
    done = metrics.summarise(measured) if measured else {"cases": []}
    return Summary(pd.DataFrame(rows), done)


def _why(logs: Path, case: str) -> str:
    """The last word of the step of a case that went furthest, when it is a complaint."""
    for step in ("evaluate", "segment", "check"):  # a notebook that failed takes nothing from the case
        log = logs / step / f"{case}.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        told = [line for line in lines if line.startswith(("error:", "REFUSED"))]
        if lines:
            return f"{step}: {(told or lines)[-1]}"
    return ""


def _workflow() -> Path:
    """workflow/Snakefile of this checkout (an editable install)."""
    file = CHECKOUT / "workflow" / "Snakefile"
    if file.is_file():
        return file
    raise Refused("workflow/Snakefile", "none", "the repository's workflow folder", "Install with `pip install -e .`.")


def _snakemake() -> str:
    """Snakemake's command: beside this Python, else on the path."""
    beside = Path(sys.executable).parent / "snakemake"
    found = str(beside) if beside.is_file() else shutil.which("snakemake")
    if found is None:
        raise Refused(
            "workbench cohort",
            "no snakemake",
            "it on the path",
            "`pip install snakemake snakemake-executor-plugin-slurm` in an environment of its own, its bin last on the path.",
        )
    return found
