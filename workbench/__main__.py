"""The command line. Everything heavy is imported where it is used, so `--help` answers at once."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Liver tumor segmentation in CT, stage by stage. Research use only: not a medical device.",
)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"workbench {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has: device, precision, versions, display, missing system packages."""
    from workbench import doctor as d

    found = d.examine()
    print(json.dumps(found, indent=1) if as_json else d.words(found))


@app.command()
def phantom(
    out: Path,
    cases: Annotated[int, typer.Option(help="How many cases.")] = 12,
    seed: int = 0,
    preset: Annotated[str, typer.Option(help="demo or full")] = "demo",
    device: Device = "auto",
) -> None:
    """Generate a cohort of phantom CTs with known truth; the last third is held out."""
    from workbench import cohort
    from workbench import experiment as folder

    _writable(out)
    manifest = cohort.write_phantoms(out, cases, seed, preset, device=str(folder.pick_device(device)), progress=_count)
    print(manifest)


@app.command()
def check(paths: list[Path]) -> None:
    """Look at images before use: a verdict for each, exit status 1 when one is refused."""
    from workbench import readers

    verdicts = [readers.check(p) for p in paths]
    for v in verdicts:
        print(f"{'ok     ' if v.ok else 'REFUSED'} {v.path}  {v.message}")
        for line in v.warnings:
            print(f"        warning: {line}")
    raise typer.Exit(0 if all(v.ok for v in verdicts) else 1)


@app.command()
def demo(
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")] = Path("experiments/demo"),
    device: Device = "auto",
) -> None:
    """The whole method on the phantom cohort, notebook by notebook; ends with a report."""
    from workbench import demo as d

    _writable(experiment)
    raise typer.Exit(d.run(experiment, device))


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="all, or one stage")],
    cohort: Annotated[Path, typer.Option(help="Manifest (CSV).")],
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")],
    preset: str = "demo",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an experiment that is there.")] = False,
    device: Device = "auto",
) -> None:
    """Train one stage or all; finished stages are kept, an interrupted one goes on."""
    from workbench import experiment as folder
    from workbench import pipeline, results, tracking
    from workbench.volume import Refused

    if preset not in folder.PRESETS:
        raise Refused("--preset", preset, " or ".join(folder.PRESETS))
    if stage != "all" and stage not in folder.STAGES:
        raise Refused("stage", stage, "all, " + ", ".join(folder.STAGES))
    if resume and not (experiment / "experiment.json").is_file():
        raise Refused(
            f"--resume {experiment}",
            "no experiment there",
            "one that was started before",
            "Leave --resume out to start it.",
        )
    _writable(experiment)
    made = folder.Experiment.create(experiment, cohort, folder.PRESETS[preset](), device)
    pipeline.train(made, stage, results.keep)
    print(tracking.sync(experiment))


@app.command()
def segment(
    inputs: list[Path],
    models: Annotated[Path, typer.Option(help="A trained experiment.")],
    out: Annotated[Path, typer.Option("-o", help="Where the results go, a folder a case.")],
    device: Device = "auto",
) -> None:
    """Segment CTs (NIfTI, NRRD/MHA, DICOM folder): labels, maps, ledger, lesions, report, on the input's own grid."""
    from workbench import pipeline, readers, results
    from workbench.volume import Refused

    for path in inputs:  # all are there before the first is worked on
        if not path.exists():
            raise Refused(path, "no such file or folder", "NIfTI, NRRD/MHA or a DICOM folder")

    loaded = pipeline.Models.load(models, device)
    names: dict[str, Path] = {}
    for path in inputs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            volume = readers.read(path)
        said = [str(w.message) for w in caught if issubclass(w.category, readers.WorkbenchWarning)]
        _writable(out)
        for line in said:
            print(f"warning: {line}", file=sys.stderr)
        name = volume.name if volume.name not in names else f"{volume.name}-{len(names)}"
        names[name] = path
        result = pipeline.segment(volume, loaded, _tell(name))
        result.warnings += said
        folder = results.keep(result, out / name, path)
        print(
            f"{name}: {result.status}, {int(result.lesions.kept.sum())} of {len(result.lesions)} candidates kept, "
            f"{sum(result.timings.values()):.1f} s -> {folder}"
        )


@app.command()
def radiomics(
    image: Annotated[Path | None, typer.Argument()] = None,
    mask: Annotated[Path | None, typer.Argument()] = None,
    out: Annotated[Path, typer.Option("-o", help="CSV to write.")] = Path("radiomics.csv"),
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="Write the 728 rows of the catalogue instead.")
    ] = False,
    engine: Annotated[str, typer.Option(help="torch or pyradiomics")] = "torch",
    device: Device = "auto",
) -> None:
    """728 descriptors of each region of a mask, a row each."""
    from workbench import experiment as folder
    from workbench import radiomics as r
    from workbench import readers
    from workbench.volume import Refused, numbered

    _writable(out.parent)
    if catalogue:
        folder.write_table(out, r.CATALOGUE)
        return
    if image is None or mask is None:
        raise Refused("radiomics", "no image and mask", "IMAGE MASK, or --catalogue")
    if engine not in ("torch", "pyradiomics"):
        raise Refused("--engine", engine, "torch or pyradiomics")
    on = folder.pick_device(device)
    volume = readers.read(image)
    regions = readers.read_labels(mask, like=volume, allowed=None)
    hu, spacing_mm = volume.in_file_order()  # as PyRadiomics sees it: wavelets depend on the axes' direction
    labels = regions.in_file_order()[0].long()
    values = labels[labels > 0].unique()
    if len(values) == 0:
        raise Refused(mask, "an empty mask", "at least one region on background 0", "Draw a region first.")
    if len(values) == 1:
        labels = numbered(labels > 0).long()
    table = r.describe(hu.to(on), labels.to(on), spacing_mm, engine=engine, progress=_count)
    folder.write_table(out, table)
    print(f"{len(table)} regions, {len(r.NAMES)} descriptors -> {out}")


@app.command()
def evaluate(truth: Path, prediction: Path, out: Annotated[Path, typer.Option("-o", help="JSON to write.")]) -> None:
    """LiTS's metrics of labels (1 liver, 2 tumor): two files, or two folders matched by name."""
    from workbench import experiment as folder
    from workbench import metrics, readers

    _writable(out.parent)
    cases = []
    for name, a, b in readers.pair_labels(truth, prediction):
        reference = readers.read_labels(a, allowed={0, 1, 2})
        found = readers.read_labels(b, like=reference, allowed={0, 1, 2})
        cases.append(
            {"case": name, **metrics.evaluate_case(reference.array.numpy(), found.array.numpy(), reference.spacing_mm)}
        )
        _count(name, len(cases), 0)
    folder.write_json(out, metrics.summarise(cases))
    print(f"{len(cases)} cases -> {out}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    notebook: Annotated[str, typer.Argument(help="Number, name or all.")],
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")] = Path("experiments/demo"),
) -> None:
    """Run a notebook headless: NN|NAME|all [-p name value]... [-o EXPERIMENT]. Unknown parameters are refused."""
    from workbench import batch

    given = _parameters(context.args)
    if notebook == "all":
        outcomes = batch.run_all(experiment, given)
    else:
        batch.checked(batch.find(notebook), given)
        _writable(experiment)
        outcomes = [batch.run(notebook, experiment, given)]
    for o in outcomes:
        print(f"{o.notebook}: {o.status} {o.error}".rstrip() + f"  {o.output}")
    raise typer.Exit(0 if all(o.ok for o in outcomes) else 1)


@app.command()
def view(result: Annotated[Path, typer.Argument(help="A result folder.")]) -> None:
    """Open a result in napari; without a display, write the same layers as a contact sheet."""
    from workbench import qa

    qa.view(result)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A result folder or an experiment.")],
    out: Annotated[Path, typer.Option("-o", help="HTML to write.")],
) -> None:
    """One HTML file, images included, of a result or of an experiment."""
    from workbench import report as r
    from workbench.files import write_atomic

    _writable(out.parent)
    html = r.case_report(result) if (result / "result.json").is_file() else r.experiment_report(result)
    write_atomic(out, html.encode())
    print(out)


def _parameters(words: list[str]) -> dict[str, object]:
    from workbench.volume import Refused

    given: dict[str, object] = {}
    while words:
        if words[0] != "-p" or len(words) < 3:
            raise Refused("run", " ".join(words), "-p name value, as often as needed")
        given[words[1]] = words[2]
        words = words[3:]
    return given


def _writable(folder: Path) -> None:
    """Say at the start, not at the end, that a folder cannot be written."""
    from workbench.volume import Refused

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise Refused(
            folder,
            f"{place} is {'read-only' if place.is_dir() else 'a file'}",
            "a folder that can be written",
            "Choose another with -o.",
        )


def _tell(name: str) -> Callable[[str, int, int, dict], None]:
    return lambda stage, *_: print(f"  {name}  {stage}", file=sys.stderr, flush=True)


def _count(what: str, done: int, total: int) -> None:
    print(f"  {what}  {done}{f'/{total}' if total else ''}", file=sys.stderr, flush=True)


def main() -> None:
    try:
        app()
    except ValueError as error:
        from workbench.volume import Refused  # here, so that --help need not load torch

        if not isinstance(error, Refused):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
