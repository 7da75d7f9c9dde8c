"""Commands that make results and show, correct, trace or export them."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from workbench.run.commands.shared import Device, warnings_told, writable, writable_file


def segment(
    inputs: list[Path],
    out: Annotated[Path, typer.Option("-o", help="Where the results go, a folder a case.")],
    models: Annotated[
        str, typer.Option(help="A trained experiment, or the name of a model that comes with the workbench.")
    ] = "clinical",
    liver: Annotated[
        Path | None, typer.Option(help="A liver mask on the CT's grid, of one input; in place of the liver net's.")
    ] = None,
    device: Device = "auto",
    operating_point: Annotated[
        str, typer.Option(help="recall, dice, f1 or fp: the forest's threshold; by default the one it was trained for.")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the one input: its case, in place of the file's name.")] = "",
    workers: Annotated[int, typer.Option(help="Processes that share the inputs; 0: as many as pay.")] = 0,
    keep_done: Annotated[
        bool, typer.Option("--keep-done", help="Leave results alone that these models made of the same files.")
    ] = False,
) -> None:
    """Segment CTs (NIfTI, NRRD/MHA, DICOM folder): labels, maps, ledger, lesions, report, on the input's own grid."""
    from workbench.data import cohort, readers
    from workbench.data.threads import at_once, in_processes
    from workbench.experiment import models as known
    from workbench.experiment import pick_device, segmentation
    from workbench.lab import results
    from workbench.volume import Refused

    if workers < 0:
        raise Refused("--workers", str(workers), "0 or more")
    if name and len(inputs) > 1:
        raise Refused("--name", f"{len(inputs)} inputs", "one input")
    if name and not cohort.fits("case", name):
        raise Refused("--name", repr(name[:100]), cohort.SCHEMA["case"][1])
    if liver is not None and len(inputs) > 1:
        raise Refused("--liver", f"{len(inputs)} inputs", "one input")
    place = known.find(models)
    if liver:
        readers.gates.existing(liver)
    writable(out)
    names = _each_its_own([name or readers.case_name(path) for path in inputs])
    if not workers:  # each one starts for some seconds
        workers = at_once(pick_device(device)) if len(inputs) > 2 else 1
    jobs, refused = [(path, out / case) for path, case in zip(inputs, names)], 0
    if keep_done:
        there = [job for job in jobs if results.holds(*job, place, operating_point, liver)]
        jobs = [job for job in jobs if job not in there]
        print(f"{len(there)} of {len(inputs)} results are there already", flush=True)
    make = partial(segmentation.Models.load, place, device, operating_point)
    for said, line, error in in_processes(make, partial(results.from_file, liver=liver, began=_began), jobs, workers):
        for told in said:
            print(f"warning: {told}", file=sys.stderr)
        if error:  # the others are segmented all the same
            print(f"error: {error}", file=sys.stderr)
            refused += 1
        else:
            print(line, flush=True)
    if refused:
        raise typer.Exit(2)


def _began(case: str, stage: str) -> None:
    print(f"  {case}  {stage}", file=sys.stderr, flush=True)


def _each_its_own(names: list[str]) -> list[str]:
    """The names, those that stood before with a number that makes them new."""
    taken, out = set(names), []
    for at, name in enumerate(names):
        if name in names[:at]:
            name = next(new for n in count(at) if (new := f"{name}-{n}") not in taken)
            taken.add(name)
        out.append(name)
    return out


def view(
    result: Annotated[Path, typer.Argument(help="A result, a folder of results or an experiment.")],
) -> None:
    """Open results in napari; without a display, write the same layers as a contact sheet."""
    from workbench.lab import qa

    qa.view(result)


def correct(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    labels: Annotated[Path, typer.Argument(help="0, 1 liver, 2 tumor, on the result's grid.")],
    who: Annotated[str, typer.Option(help="Who drew them; by default the user.")] = "",
) -> None:
    """Keep labels that were corrected elsewhere (3D Slicer, ITK-SNAP) beside a result, as the panel of `view` does."""
    from workbench.data import readers
    from workbench.experiment import reading, verdicts

    with warnings_told():
        own = readers.read_labels(reading.result(result).file("labels"))
        drawn = readers.read_labels(labels, like=own)
        kept = verdicts.correct(result, drawn.array.numpy(), who)
    print(kept)


def report(
    result: Annotated[Path, typer.Argument(help="A result folder or an experiment.")],
    out: Annotated[Path, typer.Option("-o", help="HTML to write.")],
) -> None:
    """One HTML file, images included, of a result or of an experiment."""
    from workbench.lab import report as r

    writable_file(out)
    print(r.write(result, out))


def evidence(
    experiment: Annotated[Path, typer.Argument(help="A trained experiment with results of its held-out cases.")],
    out: Annotated[Path, typer.Option("-o", help="Page to write; its figures go to pictures/ beside it.")],
    real_ct: Annotated[Path | None, typer.Option(help="What benchmarks/real_ct.py --json wrote.")] = None,
    edges: Annotated[Path | None, typer.Option(help="What benchmarks/blurred_edges.py --json wrote.")] = None,
) -> None:
    """Each stage's claim, its number with interval, and whether the data support it: a Markdown page."""
    from workbench.lab import evidence as e

    writable_file(out)
    print(e.page(experiment, out, real_ct, edges))


def lineage(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    store: Annotated[Path | None, typer.Option(help="MLflow's folder; mlruns/ by default.")] = None,
) -> None:
    """Which trained stages made a result, and the MLflow runs and model versions that they are."""
    from workbench.run import lineage as trace

    origins, reason = trace.of(result, store)
    for o in origins:
        known = f"run {o.run}  {o.finished}  {o.model}" if o.run else "not in the store"
        print(f"{o.stage:9}  stage.json {o.sha256[:12]}" + ("" if reason else f"  {known}").rstrip())
    if reason:
        print(f"MLflow: not reached ({reason})", file=sys.stderr)


def dicomseg(
    result: Annotated[Path, typer.Argument(help="A result folder, or a label map: 1 liver, 2 tumor.")],
    source: Annotated[Path, typer.Option(help="The DICOM folder of the CT.")],
    out: Annotated[Path, typer.Option("-o", help="DICOM file to write.")],
    series: Annotated[str | None, typer.Option(help="UID of the CT series, where the folder holds several.")] = None,
) -> None:
    """Liver and tumors as a DICOM segmentation of the CT's own slices. The file names the patient, as its source does."""
    from workbench.data.export import dicomseg as segmentation

    writable_file(out)
    with warnings_told():
        print(segmentation.export(result, source, out, series))


def lesions(
    results: Annotated[list[Path], typer.Argument(help="Result folders, folders of them, or experiments.")],
    out: Annotated[Path, typer.Option("-o", help="CSV or JSON to write.")],
) -> None:
    """The lesions of one or more results in one table, a row a candidate: CSV, or JSON where FILE ends in .json."""
    from workbench.data.files import write_json, write_table
    from workbench.lab.qa import worklist
    from workbench.lab.results import lesion_table
    from workbench.volume import Refused

    writable_file(out)
    if out.suffix not in (".csv", ".json"):
        raise Refused(out, f"the suffix {out.suffix or 'of none'}", ".csv or .json")
    places = [p for path in results for p in ([path] if (path / "result.json").is_file() else worklist.cases(path))]
    places = list({p.resolve(): p for p in reversed(places)}.values())[::-1]  # each once
    refused: list[str] = []
    with warnings_told():
        table = lesion_table(places, refused)
    for line in refused:  # the others are written all the same
        print(f"error: {line}", file=sys.stderr)
    if refused and len(refused) == len(places):
        raise typer.Exit(2)
    if out.suffix == ".csv":
        write_table(out, table)
    else:
        write_json(out, json.loads(table.to_json(orient="records")))
    print(f"{len(table)} candidates of {len(places) - len(refused)} results -> {out}")
    raise typer.Exit(2 if refused else 0)
