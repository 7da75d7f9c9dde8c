"""The command line. Everything heavy is imported where it is used, so `--help` answers at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from workbench import __version__

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Liver tumor segmentation in CT, stage by stage. Research use only: not a medical device.",
)

exports = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Write a cohort or results as other programs read them."
)
app.add_typer(exports, name="export")

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
    from workbench.run import doctor as d

    found = d.examine()
    print(json.dumps(found, indent=1) if as_json else d.words(found))


@app.command()
def phantom(
    out: Path,
    cases: Annotated[int, typer.Option(help="How many cases.")] = 12,
    seed: int = 0,
    preset: Annotated[str, typer.Option(help="demo, other (another scanner than the demo's), fine or full")] = "demo",
    device: Device = "auto",
) -> None:
    """Generate a cohort of phantom CTs with known truth; the last third is held out."""
    from workbench.data import cohort
    from workbench.experiment import pick_device

    _writable(out)
    manifest = cohort.write_phantoms(out, cases, seed, preset, device=str(pick_device(device)), progress=_count)
    print(manifest)


@app.command()
def implant(
    ct: Path,
    labels: Annotated[Path, typer.Argument(help="0, 1 liver, 2 tumor, on the CT's grid.")],
    out: Annotated[Path, typer.Option("-o", help="Folder for ct.nii.gz, labels.nii.gz and lesions.csv.")],
    seed: int = 0,
    count: Annotated[tuple[int, int], typer.Option(help="The least and the most tumors.")] = (1, 4),
    kinds: Annotated[str, typer.Option(help="Some kinds, with commas between them; all by default.")] = "",
    mass_effect: Annotated[bool, typer.Option("--mass-effect", help="Push the liver around each tumor away.")] = False,
) -> None:
    """Draw made-up tumors into the liver of a CT; everything but that liver keeps its HU."""
    from workbench.data import phantom, readers
    from workbench.data.files import write_table
    from workbench.data.readers import nifti
    from workbench.volume import Refused

    _writable(out)
    names = ("ct.nii.gz", "labels.nii.gz", "lesions.csv")
    if held := [name for name in names if (out / name).exists()]:
        raise Refused(out, ", ".join(held), "a free place", "Choose another folder with -o.")
    with _said():
        volume = readers.read(ct)
        mask = readers.read_labels(labels, like=volume)
    chosen = kinds.split(",") if kinds else list(phantom.IMPLANTS)
    made = phantom.implant(volume.array, mask.array, volume.spacing_mm, seed, count, chosen, mass_effect)
    out.mkdir(parents=True, exist_ok=True)
    nifti.write(volume.with_array(made.hu), out / names[0])
    nifti.write(volume.with_array(made.labels), out / names[1])
    write_table(out / names[2], made.lesions)
    print(f"{len(made.lesions)} tumors: {', '.join(made.lesions.kind)} -> {out}")


def _labels(wanted: bool) -> None:
    if wanted:
        from workbench.data.readers import meanings

        print(*meanings.lines(), sep="\n")
        raise typer.Exit()


@app.command("import")
def take(
    kind: Annotated[str, typer.Argument(help="lits, msd, ircadb, nnunet, chaos, dicom or csv")],
    root: Annotated[Path, typer.Argument(help="Where the collection lies; of csv, the CSV.")],
    out: Annotated[Path, typer.Option("-o", help="Folder for the manifest and what must be written.")],
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", callback=_labels, is_eager=True, help="Print what names, codes and numbers of labels mean."
        ),
    ] = False,
) -> None:
    """Read a public collection whole and write its manifest; into the same folder, add to it. Exit status 2 when a case is refused."""
    from workbench.data import intake

    _writable(out)
    done = intake.take(kind, root, out)
    print(f"{done.cases} cases, {done.refused} refused, {done.unlabelled} without labels -> {done.manifest}")
    raise typer.Exit(2 if done.refused else 0)


@app.command()
def check(paths: list[Path]) -> None:
    """Look at images, or at all scans of a manifest (.csv), before use: a verdict for each, exit status 1 when one is refused."""
    from workbench.data import cohort, readers

    good = True
    for path in paths:
        for v in cohort.check(path) if path.suffix.lower() == ".csv" else [readers.check(path)]:
            good &= v.ok
            print(f"{'ok     ' if v.ok else 'REFUSED'} {v.path}  {v.message}")
            for line in v.warnings:
                print(f"        warning: {line}")
    raise typer.Exit(0 if good else 1)


@app.command()
def demo(
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")] = Path("experiments/demo"),
    device: Device = "auto",
) -> None:
    """The whole method on the phantom cohort, notebook by notebook; ends with a report."""
    from workbench.run import demo as d

    _writable(experiment)
    raise typer.Exit(d.run(experiment, device))


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="all, or one stage")],
    cohort: Annotated[Path, typer.Option(help="Manifest (CSV).")],
    experiment: Annotated[Path, typer.Option("-o", help="Experiment folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="demo, clinical or paper; by default what the experiment, or --start, began with, else demo."
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of settings, such as a sweep's best.json: all of them, or some to lay over --preset."
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="An experiment, or the name of a model, whose nets these begin with.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Of liver or tumor, the net of this fold alone.")] = None,
    with_corrections: Annotated[
        list[Path] | None,
        typer.Option(
            help="Results whose verdicts and corrected labels to learn from, or a folder of them; repeatable."
        ),
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(help="A finished stage that no longer holds: train it and what rests on it again, in its place."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an experiment that is there.")] = False,
    device: Device = "auto",
) -> None:
    """Train one stage or all; finished stages are kept, an interrupted one goes on. Also under `accelerate launch`."""
    from workbench.experiment import PRESETS, Experiment, models, pipeline, read_settings
    from workbench.experiment.table import STAGES
    from workbench.lab import results
    from workbench.nets import distributed
    from workbench.run import adapt, tracking
    from workbench.volume import Refused

    if preset is not None and preset not in PRESETS:
        raise Refused("--preset", preset, " or ".join(PRESETS))
    if stage != "all" and stage not in STAGES:
        raise Refused("stage", stage, "all, " + ", ".join(STAGES))
    if resume and not (experiment / "experiment.json").is_file():
        raise Refused(
            f"--resume {experiment}",
            "no experiment there",
            "one that was started before",
            "Leave --resume out to start it.",
        )
    device = _joined(device)
    if fold is not None and distributed.count() > 1:
        raise Refused("--fold", f"{distributed.count()} processes", "one, while others train the other folds")
    if distributed.rank() > 0:
        distributed.wait()  # for the folder
        pipeline.train(Experiment(experiment, device), stage, retrain=retrain)
        return
    _writable(experiment)
    if settings:
        before = None if start is None or preset else adapt.fine_tuning(Experiment(models.find(start), "cpu"))
        wanted = read_settings(settings, preset, before)
    elif preset is None and (experiment / "experiment.json").is_file():
        wanted = Experiment(experiment, "cpu").settings  # goes on as it began
    elif preset is None and start is not None:
        wanted = adapt.fine_tuning(Experiment(models.find(start), "cpu"))
    else:
        wanted = PRESETS[preset or "demo"]()
    new = fold is None and distributed.count() == 1 and not experiment.exists()
    origin = None if start is None else models.find(start)
    made = Experiment.create(
        experiment, cohort, wanted, device, start=origin, with_corrections=with_corrections or (), retrain=retrain
    )
    distributed.wait()
    if with_corrections and not retrain:
        retrain = made.taking_up_corrections()
    with _trained(experiment, new):
        if fold is not None:
            print(pipeline.train_fold(made, stage, fold, retrain))
            return
        pipeline.train(made, stage, results.keep, retrain)
    print(tracking.sync(experiment))


@app.command("models")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The models that come with the workbench: what each learned from, its figures on patients, operating points, licence."""
    from workbench.experiment import models

    print(models.as_json() if as_json else "\n\n".join(map(models.words, models.listed())))


@app.command()
def pack(
    experiment: Path,
    out: Annotated[Path, typer.Option("-o", help="Folder of the model; its name is the model's.")],
    about: Annotated[
        Path, typer.Option(help="JSON: version, trained_on, measured_on, licence, attribution, intended_use.")
    ],
) -> None:
    """Pack a trained experiment as a model without its scans, with a hash of each file."""
    from workbench.data.files import read_json
    from workbench.experiment import models

    models.described(says := read_json(about), about)
    print(models.pack(experiment, out, says))


@app.command()
def adapt(
    models: Annotated[str, typer.Argument(help="A trained experiment, or the name of a model.")],
    cohort: Annotated[Path, typer.Option(help="Manifest (CSV) with a column tumor_labels: none, exclude or complete.")],
    out: Annotated[Path, typer.Option("-o", help="Folder of the adapted experiment.")],
    copies: Annotated[int | None, typer.Option(help="Copies of each scan with synthetic lesions.")] = None,
    tumor_steps: Annotated[int, typer.Option(help="Steps for which the tumor net is tuned; 0: not at all.")] = 0,
    operating_point: Annotated[
        str, typer.Option(help="recall, dice, f1 or fp: what sets the forest's threshold.")
    ] = "dice",
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="CASE/NUMBER of adapt/suspects.csv: leave this region out of training; repeatable."),
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(help="A finished stage that no longer holds: train it and what rests on it again, in its place."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Adapt an experiment to your scanner with scans that have no known tumors. The same command resumes."""
    from workbench.experiment import models as known
    from workbench.lab import results
    from workbench.run import adapt as a
    from workbench.run import tracking

    _writable(out)
    new = not out.exists()
    made = a.begin(known.find(models), cohort, out, device, copies, tumor_steps, operating_point, retrain=retrain)
    if exclude:
        print(*a.exclude(made, exclude), sep="\n", flush=True)
    with _trained(out, new):
        a.run(made, results.keep, retrain or ("candidates" if exclude else None))
    for line in a.phases(made):
        print(f"warning: {line}", file=sys.stderr)
    print(a.words(made))
    print(tracking.sync(out))


@app.command()
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
    for path in [*inputs, *([liver] if liver else [])]:  # all are there before the first is worked on
        readers.gates.existing(path)
    _writable(out)
    names = _each_its_own([name or readers.case_name(path) for path in inputs])
    if not workers:  # each one starts for some seconds
        workers = at_once(pick_device(device)) if len(inputs) > 2 else 1
    jobs, refused = [(path, out / case) for path, case in zip(inputs, names)], 0
    if keep_done:
        there = [job for job in jobs if results.holds(*job, place, operating_point, liver)]
        jobs = [job for job in jobs if job not in there]
        print(f"{len(there)} of {len(inputs)} results are there already", flush=True)
    make = partial(segmentation.Models.load, place, device, operating_point)
    for said, line, error in in_processes(make, partial(results.from_file, liver=liver), jobs, workers):
        for told in said:
            print(f"warning: {told}", file=sys.stderr)
        if error:  # the others are segmented all the same
            print(f"error: {error}", file=sys.stderr)
            refused += 1
        else:
            print(line, flush=True)
    if refused:
        raise typer.Exit(2)


@app.command()
def radiomics(
    image: Annotated[Path | None, typer.Argument()] = None,
    mask: Annotated[Path | None, typer.Argument()] = None,
    out: Annotated[
        Path, typer.Option("-o", help="CSV to write; what it was made from, and how, goes to a JSON beside it.")
    ] = Path("radiomics.csv"),
    catalogue: Annotated[
        bool,
        typer.Option(
            "--catalogue", help="Write the 728 rows of the catalogue instead; as a page where FILE ends in .md."
        ),
    ] = False,
    engine: Annotated[str, typer.Option(help="torch or pyradiomics")] = "torch",
    device: Device = "auto",
) -> None:
    """728 descriptors of each region of a mask, a row each: of each value, or, of a mask with one value only, of each piece."""
    from workbench.data import readers
    from workbench.data.files import sha256, write_atomic, write_json, write_table
    from workbench.experiment import pick_device, versions
    from workbench.stages import radiomics as r
    from workbench.volume import Refused, numbered

    _file(out, image, mask)
    if catalogue:
        if out.suffix == ".md":
            write_atomic(out, r.catalogue.page().encode())
        else:
            write_table(out, r.CATALOGUE)
        return
    if image is None or mask is None:
        raise Refused("radiomics", "no image and mask", "IMAGE MASK, or --catalogue")
    if engine not in ("torch", "pyradiomics"):
        raise Refused("--engine", engine, "torch or pyradiomics")
    origin = _beside(out, ".json", '{\n "radiomics": ')
    on = pick_device(device)
    with _said():
        volume = readers.read(image, as_stored=True)
        regions = readers.read_labels(mask, like=volume, allowed=None)
    hu, spacing_mm = volume.in_file_order()  # as PyRadiomics sees it: wavelets depend on the axes' direction
    labels = volume.with_array(regions.array).in_file_order()[0].long()  # the image's axes, whatever the mask's are
    values = labels[labels > 0].unique()
    if len(values) == 0:
        raise Refused(mask, "an empty mask", "at least one region on background 0", "Draw a region first.")
    if len(values) == 1 and int((pieces := numbered(labels > 0)).max()) > 1:
        print(
            f"{mask}: one value, {int(values[0])}, in {int(pieces.max())} pieces: each is a row, numbered from 1",
            file=sys.stderr,
        )
        labels = pieces.long()
    table = r.describe(hu.to(on), labels.to(on), spacing_mm, engine=engine, progress=_count)
    write_table(out, table)
    about = {
        "radiomics": __version__,
        "versions": versions() | ({} if engine == "torch" else {engine: version(engine)}),
        "engine": engine,
        "device": str(on),
        "settings": {"bin_width_hu": r.BIN_WIDTH, "resampling": None},  # on the image's own grid
        "spacing_zyx_mm": volume.spacing_mm,
        "image": _origin(image, hu, out.parent),
        "mask": _origin(mask, regions.array, out.parent),
        "table": {"path": out.name, "sha256": sha256(out)},
    }
    write_json(origin, about)
    print(f"{len(table)} regions, {len(r.NAMES)} descriptors -> {out}; from what and how -> {origin}")


@app.command()
def evaluate(
    truth: Path,
    prediction: Path,
    out: Annotated[Path, typer.Option("-o", help="JSON to write; the table that is printed goes to a CSV beside it.")],
    common: Annotated[
        bool, typer.Option("--common", help="Score the cases that both have, and say how many are left out.")
    ] = False,
) -> None:
    """LiTS's metrics of labels (1 liver, 2 tumor): two files, or two folders matched by name.

    -o scores.json writes scores.csv too: each mean with what it is a mean of, also by size of lesion.
    """
    from workbench.data import readers
    from workbench.data.files import write_json, write_table
    from workbench.stages import metrics

    with _said():
        pairs = readers.pair_labels(truth, prediction, common)
    _file(out, *(path for _, *both in pairs for path in both))
    table = _beside(out, ".csv", "structure,measure,over,")
    cases = []
    for name, a, b in pairs:
        with _said():
            reference = readers.read_labels(a, allowed={0, 1, 2})
            found = readers.read_labels(b, like=reference, allowed={0, 1, 2})
        cases.append(metrics.evaluate_case(reference.array.numpy(), found.array.numpy(), reference.spacing_mm, name))
        _count(name, len(cases), 0)
    write_json(out, metrics.summarise(cases))
    means = metrics.breakdown(cases)
    write_table(table, means)
    means.over = "over " + means.over
    print(means.to_string(index=False, na_rep="-", float_format="{:.3f}".format))
    print(f"{out.name}: `tumor` has Dice over cases, VOE, RVD and distances over detected lesions (the rows `lesion`)")
    print(f"{len(cases)} cases -> {out}, this table -> {table}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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

    given = _parameters(context.args)
    sets = batch.combinations(experiment, given, notebook)
    if notebook == "all":
        if len(sets) > 1:
            raise Refused("run all", f"{len(sets)} sets of parameters", "one", "Name one notebook for several cases.")
        _writable(experiment)
        outcomes = batch.run_all(experiment, sets[0])
    else:
        for one in sets:
            batch.checked(batch.find(notebook), one)
        _writable(experiment)
        outcomes = batch.run_each(notebook, experiment, sets)
    for o in outcomes:
        print(f"{o.notebook}: {o.status} {o.error}".rstrip() + f"  {o.output}")
    count = [
        f"{n} {s}" for s in ("done", "unchanged", "failed", "skipped") if (n := sum(o.status == s for o in outcomes))
    ]
    print(f"{len(outcomes)} notebooks: {', '.join(count)}")
    if (experiment / "experiment.json").is_file():
        print(tracking.sync(experiment), file=sys.stderr)
    raise typer.Exit(0 if all(o.ok for o in outcomes) else 1)


@app.command()
def view(
    result: Annotated[Path, typer.Argument(help="A result, a folder of results or an experiment.")],
) -> None:
    """Open results in napari; without a display, write the same layers as a contact sheet."""
    from workbench.lab import qa

    qa.view(result)


@app.command()
def correct(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    labels: Annotated[Path, typer.Argument(help="0, 1 liver, 2 tumor, on the result's grid.")],
    who: Annotated[str, typer.Option(help="Who drew them; by default the user.")] = "",
) -> None:
    """Keep labels that were corrected elsewhere (3D Slicer, ITK-SNAP) beside a result, as the panel of `view` does."""
    from workbench.data import readers
    from workbench.experiment import reading, verdicts

    with _said():
        own = readers.read_labels(reading.result(result).file("labels"))
        drawn = readers.read_labels(labels, like=own)
        kept = verdicts.correct(result, drawn.array.numpy(), who)
    print(kept)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A result folder or an experiment.")],
    out: Annotated[Path, typer.Option("-o", help="HTML to write.")],
) -> None:
    """One HTML file, images included, of a result or of an experiment."""
    from workbench.lab import report as r

    _file(out)
    print(r.write(result, out))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
    _writable(out)
    on = device if device != "auto" else pick_device(device).type
    found = cluster.run(manifest, out, models, preset, on, cores, profile, tuple(context.args))
    for row in found.cases[found.cases.status == "failed"].itertuples():
        print(f"{row.case}: {row.reason}", file=sys.stderr)
    done = found.count("done")
    print(f"{done} of {len(found.cases)} cases done, {found.count('failed')} failed -> {out / 'summary.csv'}")
    raise typer.Exit(0 if done == len(found.cases) else 1)


@app.command()
def sweep(
    experiment: Annotated[
        Path, typer.Argument(help="A trained experiment; the stages before the swept ones are taken from it.")
    ],
    out: Annotated[Path, typer.Option("-o", help="Folder of the sweep.")],
    over: Annotated[
        list[str],
        typer.Option(
            help="A setting and its range, repeatable: forest.max_features=float:0.05:0.5, boundary.band_mm=float:2:8, "
            "tumor.cascade.fit.rate=log:1e-4:1e-2, forest.criterion=one:gini,log_loss"
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="How many in all; with more, the same command goes on.")] = 30,
    workers: Annotated[int, typer.Option(min=1, help="Processes that take trials at once.")] = 1,
    after: Annotated[
        str, typer.Option(help="The stage whose Dice is the score: liver, tumor, consistency, forest or boundary.")
    ] = "",
    startup: Annotated[int, typer.Option(min=0, help="Trials that end before one is cut short.")] = 5,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Try other settings of some stages on the training patients, scored out of fold; no held-out patient takes part."""
    from workbench.run import sweep as s

    _writable(out)
    plan = s.prepare(experiment, out, over, after, seed, startup, device)
    table = s.run(plan, trials, workers, device)
    count = [f"{n} {state}" for state in ("complete", "pruned", "fail") if (n := int((table.state == state).sum()))]
    print(f"{len(table)} trials: {', '.join(count)} -> {out / 'trials.csv'}")
    done = table[table.state == "complete"]
    if done.empty:
        raise typer.Exit(1)
    best = done.loc[done.score.idxmax()]
    print(f"best: trial {best.trial}, Dice {best.score:.4f} after {plan.after}; its settings: {out / 'best.json'}")


@app.command()
def evidence(
    experiment: Annotated[Path, typer.Argument(help="A trained experiment with results of its held-out cases.")],
    out: Annotated[Path, typer.Option("-o", help="Page to write; its figures go to pictures/ beside it.")],
    real_ct: Annotated[Path | None, typer.Option(help="What benchmarks/real_ct.py --json wrote.")] = None,
    edges: Annotated[Path | None, typer.Option(help="What benchmarks/blurred_edges.py --json wrote.")] = None,
) -> None:
    """Each stage's claim, its number with interval, and whether the data support it: a Markdown page."""
    from workbench.lab import evidence as e

    _file(out)
    print(e.page(experiment, out, real_ct, edges))


@app.command()
def lineage(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    store: Annotated[Path | None, typer.Option(help="MLflow's folder; mlruns/ by default.")] = None,
) -> None:
    """Which trained stages made a result, and the MLflow runs and model versions that they are."""
    from workbench.run import tracking

    origins, reason = tracking.lineage(result, store)
    for o in origins:
        known = f"run {o.run}  {o.finished}  {o.model}" if o.run else "not in the store"
        print(f"{o.stage:9}  stage.json {o.sha256[:12]}" + ("" if reason else f"  {known}").rstrip())
    if reason:
        print(f"MLflow: not reached ({reason})", file=sys.stderr)


@exports.command()
def nnunet(
    manifest: Path,
    out: Annotated[Path, typer.Option("-o", help="Where the dataset goes: nnUNet_raw.")],
    dataset: Annotated[int, typer.Option(help="nnU-Net's number of the dataset.")] = 501,
    name: Annotated[str, typer.Option(help="And its name.")] = "Liver",
    folds: Annotated[int, typer.Option(help="Folds in splits_final.json, by patient.")] = 5,
) -> None:
    """A cohort in nnU-Net v2's raw layout: the same patients held out, folds by patient, names in cases.csv."""
    from workbench.data.export import nnunet as layout

    _writable(out)
    with _said():
        print(layout.export(manifest, out, dataset, name, folds, _count))


@exports.command()
def dicomseg(
    result: Annotated[Path, typer.Argument(help="A result folder, or a label map: 1 liver, 2 tumor.")],
    source: Annotated[Path, typer.Option(help="The DICOM folder of the CT.")],
    out: Annotated[Path, typer.Option("-o", help="DICOM file to write.")],
    series: Annotated[str | None, typer.Option(help="UID of the CT series, where the folder holds several.")] = None,
) -> None:
    """Liver and tumors as a DICOM segmentation of the CT's own slices. The file names the patient, as its source does."""
    from workbench.data.export import dicomseg as segmentation

    _file(out)
    with _said():
        print(segmentation.export(result, source, out, series))


@exports.command()
def lesions(
    results: Annotated[list[Path], typer.Argument(help="Result folders, folders of them, or experiments.")],
    out: Annotated[Path, typer.Option("-o", help="CSV or JSON to write.")],
) -> None:
    """The lesions of one or more results in one table, a row a candidate: CSV, or JSON where FILE ends in .json."""
    from workbench.data.files import write_json, write_table
    from workbench.lab.qa import worklist
    from workbench.lab.results import lesion_table
    from workbench.volume import Refused

    _file(out)
    if out.suffix not in (".csv", ".json"):
        raise Refused(out, f"the suffix {out.suffix or 'of none'}", ".csv or .json")
    places = [p for path in results for p in ([path] if (path / "result.json").is_file() else worklist.cases(path))]
    places = list({p.resolve(): p for p in reversed(places)}.values())[::-1]  # each once
    with _said():
        table = lesion_table(places)
    if out.suffix == ".csv":
        write_table(out, table)
    else:
        write_json(out, json.loads(table.to_json(orient="records")))
    print(f"{len(table)} candidates of {len(places)} results -> {out}")


@contextmanager
def _trained(experiment: Path, new: bool) -> Iterator[None]:
    """Around training: a new experiment that is refused before any stage has finished is removed, so that the mended command can begin; a run
    that is interrupted is on record."""
    from workbench.data.files import held
    from workbench.experiment.table import STAGES
    from workbench.run import tracking
    from workbench.volume import Refused

    try:
        yield
    except Refused:
        if new and not any((experiment / s / "stage.json").is_file() for s in STAGES):
            with suppress(Refused), held(experiment):  # nobody else has begun there
                shutil.rmtree(experiment)
        raise
    except KeyboardInterrupt:
        print(tracking.sync(experiment), file=sys.stderr)
        raise


def _joined(device: str) -> str:
    """The device of this process, once it has met the others that a launcher started with it; alone, the one asked for."""
    from workbench.experiment import pick_device
    from workbench.volume import Refused

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
            raise Refused(
                "accelerate launch",
                "one process where several were asked for",
                "all of them (without GPUs Accelerate starts them only when told so)",
                "Add --multi_gpu to accelerate launch, also on a CPU.",
            )
        return device
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise Refused(
            "several processes", "no accelerate", "it installed", "pip install 'liver-workbench[parallel]'"
        ) from None
    cpu = pick_device(device).type == "cpu"
    return str(PartialState(cpu=cpu, timeout=timedelta(days=7)).device)  # others wait while the first one evaluates


def _parameters(words: list[str]) -> dict[str, list[str]]:
    from workbench.volume import Refused

    given: dict[str, list[str]] = {}
    while words:
        if words[0] != "-p" or len(words) < 3:
            raise Refused("run", " ".join(words), "-p name value, as often as needed")
        given.setdefault(words[1], []).append(words[2])
        words = words[3:]
    return given


@contextmanager
def _said() -> Iterator[list[str]]:
    """The readers' warnings, a line each on stderr, and in the list."""
    from workbench.data.readers import gates

    with gates.heard() as lines:
        yield lines
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _writable(folder: Path) -> None:
    """Say at the start, not at the end, that a folder cannot be written: by trying, since root is asked for no permission."""
    from workbench.volume import Refused

    place = folder.absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    why = "" if place.is_dir() else "a file" if place.exists() else f"a link to {place.readlink()}, which is not there"
    if not why and not place.stat().st_mode & 0o222:
        why = "read-only"
    if not why:
        try:
            with TemporaryDirectory(prefix=".workbench-", dir=place):
                pass
        except OSError as error:
            why = f"not writable ({error.strerror})"
    if why:
        raise Refused(folder, f"{place} is {why}", "a folder that can be written", "Choose another with -o.")


def _file(out: Path, *inputs: Path | None) -> None:
    """The same for a file to be written, which is none of the inputs."""
    from workbench.volume import Refused

    if out.is_dir():
        raise Refused(out, "a folder", "a file to write", "Name the file with -o.")
    if out.exists() and not out.is_file():
        raise Refused(out, "a device or pipe", "a file to write", "Name the file with -o.")
    if out.is_file() and any(path is not None and path.exists() and path.samefile(out) for path in inputs):
        raise Refused(
            out, "one of the inputs", "another file to write", "Name it with -o; an input is never overwritten."
        )
    meant = Path(os.path.realpath(out))
    if meant.is_symlink() or out.is_symlink() and not meant.parent.is_dir():  # a link to itself, or into no folder
        raise Refused(
            out, f"a link to {out.readlink()}, which is not there", "a file to write", "Name another with -o."
        )
    _writable(meant.parent)


def _beside(out: Path, suffix: str, begins: str) -> Path:
    """A second file that goes with one to be written: its name with another suffix, or with that one more where a file that is not ours has it."""
    from workbench.volume import Refused

    ours = lambda path: not path.is_file() or path.read_bytes().startswith(begins.encode())
    path, other = out.with_suffix(suffix), out.with_name(out.name + suffix)
    if path == out or not ours(path):
        path = other
    _file(path)
    if not ours(path):
        raise Refused(path, "a file of another kind", f"a free place beside {out.name}", "Choose another name with -o.")
    return path


def _origin(path: Path, array: Tensor, beside: Path) -> dict[str, str]:
    """An input by its place, the SHA-256 of its file (of a folder: of the names and hashes of its files) and of its voxels as read."""
    from workbench.data.files import sha256

    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    names = "".join(f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
    return {
        "path": os.path.relpath(path, beside),
        "sha256": hashlib.sha256(names.encode()).hexdigest() if path.is_dir() else sha256(path),
        "voxels_sha256": hashlib.sha256(array.contiguous().numpy().tobytes()).hexdigest(),
    }


def _each_its_own(names: list[str]) -> list[str]:
    """The names, those that stood before with a number that makes them new."""
    taken, out = set(names), []
    for at, name in enumerate(names):
        if name in names[:at]:
            name = next(new for n in count(at) if (new := f"{name}-{n}") not in taken)
            taken.add(name)
        out.append(name)
    return out


def _count(what: str, done: int, total: int) -> None:
    print(f"  {what}  {done}{f'/{total}' if total else ''}", file=sys.stderr, flush=True)


def main() -> None:
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app()
    except SystemExit:
        if not stopped:
            raise
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(128 + stopped[0])
    except ValueError as error:
        from workbench.volume import Refused  # here, so that --help need not load torch

        if not isinstance(error, Refused):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
