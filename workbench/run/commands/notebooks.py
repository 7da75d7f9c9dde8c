"""Commands that run notebooks and whole cohorts, and the one that says what this machine has."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from workbench.run.commands.shared import Device, writable


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has: device, precision, versions, display, missing system packages."""
    from workbench.run import doctor as d

    found = d.examine()
    print(json.dumps(found, indent=1) if as_json else d.words(found))


def demo(
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")] = Path("experiments/demo"),
    device: Device = "auto",
) -> None:
    """The whole method on the phantom cohort, notebook by notebook; ends with a report."""
    from workbench.run import demo as d

    writable(experiment)
    raise typer.Exit(d.run(experiment, device))


def run(
    context: typer.Context,
    notebook: Annotated[str, typer.Argument(help="Number, name or all.")],
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")] = Path("experiments/demo"),
) -> None:
    """Run a notebook headless: NN|NAME|all [-p name value]... [-o EXPERIMENT]. Unknown parameters are refused.

    -p preset demo begins an experiment where there is none. One parameter may be given several times: -p case A -p case B,
    or -p case all. Exit status: 0 all ran, 1 a notebook failed, 2 refused, 130 interrupted.
    """
    from workbench.run import batch, tracking
    from workbench.volume import Refused

    given, tell = _parameters(context.args), partial(print, file=sys.stderr, flush=True)
    sets = batch.combinations(experiment, given, notebook)
    if notebook == "all":
        if len(sets) > 1:
            raise Refused("run all", f"{len(sets)} sets of parameters", "one", "Name one notebook for several cases.")
        writable(experiment)
        outcomes = batch.run_all(experiment, sets[0], progress=tell)
    else:
        for one in sets:
            batch.checked(batch.find(notebook), one)
        writable(experiment)
        outcomes = batch.run_each(notebook, experiment, sets, progress=tell)
    for o in outcomes:
        print(f"{o.notebook}: {o.status} {o.error}".rstrip() + f"  {o.output}")
    count = [
        f"{n} {s}" for s in ("done", "unchanged", "failed", "skipped") if (n := sum(o.status == s for o in outcomes))
    ]
    print(f"{len(outcomes)} notebooks: {', '.join(count)}")
    if (experiment / "experiment.json").is_file():
        print(tracking.sync(experiment), file=sys.stderr)
    raise typer.Exit(0 if all(o.ok for o in outcomes) else 1)


def _parameters(words: list[str]) -> dict[str, list[str]]:
    from workbench.volume import Refused

    given: dict[str, list[str]] = {}
    while words:
        if words[0] != "-p" or len(words) < 3:
            raise Refused("run", " ".join(words), "-p name value, as often as needed")
        given.setdefault(words[1], []).append(words[2])
        words = words[3:]
    return given


def cohort(
    context: typer.Context,
    manifest: Path,
    out: Annotated[Path, typer.Option("-o", help="Where checks, results, evaluation and logs go.")],
    models: Annotated[
        str | None,
        typer.Option(
            help="A trained experiment, or the name of a model; without one, nets are trained on the manifest's train split."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="demo, clinical or paper, for nets that are trained.")] = "demo",
    device: Device = "auto",
    cores: Annotated[int | None, typer.Option(help="Jobs at once on this machine; all cores by default.")] = None,
    profile: Annotated[str, typer.Option(help="local, slurm or a folder with a Snakemake profile.")] = "local",
) -> None:
    """A whole cohort through Snakemake, one case or fold a job; run again it goes on. Other options go to Snakemake."""
    from workbench.experiment import PRESETS, pick_device
    from workbench.run import cluster
    from workbench.volume import Refused

    if preset not in PRESETS:
        raise Refused("--preset", preset, " or ".join(PRESETS))
    writable(out)
    on = device if device != "auto" else pick_device(device).type
    found = cluster.run(manifest, out, models, preset, on, cores, profile, tuple(context.args))
    for row in found.cases[found.cases.status == "failed"].itertuples():
        print(f"{row.case}: {row.reason}", file=sys.stderr)
    done = found.count("done")
    print(f"{done} of {len(found.cases)} cases done, {found.count('failed')} failed -> {out / 'summary.csv'}")
    raise typer.Exit(0 if done == len(found.cases) else 1)
