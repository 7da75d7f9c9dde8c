"""Commands on scans and cohorts: make, import, check, describe and score them."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench import __version__
from workbench.run.commands.shared import Device, beside, progress, warnings_told, writable, writable_file

if TYPE_CHECKING:
    from torch import Tensor


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

    writable(out)
    manifest = cohort.write_phantoms(out, cases, seed, preset, device=str(pick_device(device)), progress=progress)
    print(manifest)


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

    writable(out)
    names = ("ct.nii.gz", "labels.nii.gz", "lesions.csv")
    if held := [name for name in names if (out / name).exists()]:
        raise Refused(out, ", ".join(held), "a free place", "Choose another folder with -o.")
    with warnings_told():
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

    writable(out)
    done = intake.take(kind, root, out)
    print(f"{done.cases} cases, {done.refused} refused, {done.unlabelled} without labels -> {done.manifest}")
    raise typer.Exit(2 if done.refused else 0)


def convert(
    source: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MHA, MHD or a DICOM folder.")],
    out: Annotated[Path, typer.Option("-o", help="NIfTI file to write.")],
    series: Annotated[str | None, typer.Option(help="DICOM: UID of the series; all: take several for one.")] = None,
    phase: Annotated[
        str | None,
        typer.Option(help="DICOM: which slices, as AcquisitionNumber=2; all: take several acquisitions for one."),
    ] = None,
    rescale: Annotated[str, typer.Option(help="DICOM: slope and intercept in place of the header's, as 1,-1024.")] = "",
    orientation: Annotated[
        str | None,
        typer.Option(
            help="Where the file's first, second and third axis lead: LPS is left, back (posterior), head (superior)."
        ),
    ] = None,
    spacing: Annotated[str, typer.Option(help="mm along the file's axes, as 0.7,0.7,5.")] = "",
    form: Annotated[str | None, typer.Option(help="NIfTI: which affine is right, sform or qform.")] = None,
    fill: Annotated[float | None, typer.Option(help="HU in place of NaN and infinity, as -1024.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="It is a label map.")] = False,
) -> None:
    """Write a CT as NIfTI, and settle what its headers leave open: the series or phase, the orientation, the scale."""
    from workbench.data import readers
    from workbench.data.readers import nifti
    from workbench.volume import Refused

    writable_file(out, source)
    where: dict[str, Any] = {"orientation": orientation, "spacing_mm": _lengths("--spacing", spacing, 3)}
    of_ct: dict[str, Any] = {
        "series": series,
        "phase": phase,
        "rescale": _lengths("--rescale", rescale, 2),
        "form": form,
    }
    of_ct["fill_nonfinite"] = fill
    if labels and any(value is not None for value in of_ct.values()):
        raise Refused("--labels", "an option of CTs beside it", "--orientation and --spacing at most")
    with warnings_told():
        volume = (
            readers.read_labels(source, allowed=None, **where) if labels else readers.read(source, **where, **of_ct)
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(volume, out)
    print(out)


def _lengths(option: str, text: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an option, with commas between them; None without any."""
    from workbench.volume import Refused

    try:
        numbers = tuple(float(n) for n in text.split(",")) if text else None
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != count:
        raise Refused(option, repr(text[:60]), f"{count} numbers with commas between them")
    return numbers


def check(paths: list[Path]) -> None:
    """Look at images, or at all scans of a manifest (.csv), before use: a verdict for each, exit status 1 when one is refused."""
    from workbench.data import cohort, readers
    from workbench.volume import readable

    good = True
    for path in paths:
        for v in cohort.check(path) if path.suffix.lower() == ".csv" else [readers.check(path)]:
            good &= v.ok
            print(f"{'ok     ' if v.ok else 'REFUSED'} {readable(v.path)}  {v.message}")
            for line in v.warnings:
                print(f"        warning: {line}")
    raise typer.Exit(0 if good else 1)


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
    from workbench.masks import numbered
    from workbench.stages import radiomics as r
    from workbench.volume import Refused

    writable_file(out, image, mask)
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
    origin = beside(out, ".json", '{\n "radiomics": ')
    on = pick_device(device)
    with warnings_told():
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
    table = r.describe(hu.to(on), labels.to(on), spacing_mm, engine=engine, progress=progress)
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


def _origin(path: Path, array: Tensor, folder: Path) -> dict[str, str]:
    """An input by its place, the SHA-256 of its file (of a folder: of the names and hashes of its files) and of its voxels as read."""
    from workbench.data.files import sha256

    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    names = "".join(f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
    return {
        "path": os.path.relpath(path, folder),
        "sha256": hashlib.sha256(names.encode()).hexdigest() if path.is_dir() else sha256(path),
        "voxels_sha256": hashlib.sha256(array.contiguous().numpy().tobytes()).hexdigest(),
    }


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
    from workbench.volume import Refused

    with warnings_told():
        pairs = readers.pair_labels(truth, prediction, common)
    writable_file(out, *(path for _, *both in pairs for path in both))
    table = beside(out, ".csv", "structure,measure,over,")
    cases, refused = [], 0
    for name, a, b in pairs:
        try:
            with warnings_told():
                reference = readers.read_labels(a, allowed={0, 1, 2})
                found = readers.read_labels(b, like=reference, allowed={0, 1, 2})
        except (Refused, OSError) as error:  # the others are scored all the same
            print(f"error: case {name}: {readers.gates.said(error, a)}", file=sys.stderr)
            refused += 1
            continue
        cases.append(metrics.evaluate_case(reference.array.numpy(), found.array.numpy(), reference.spacing_mm, name))
        progress(name, len(cases), 0)
    if not cases:
        raise typer.Exit(2)
    write_json(out, metrics.summarise(cases))
    means = metrics.breakdown(cases)
    write_table(table, means)
    means.over = "over " + means.over
    print(means.to_string(index=False, na_rep="-", float_format="{:.3f}".format))
    print(f"{out.name}: `tumor` has Dice over cases, VOE, RVD and distances over detected lesions (the rows `lesion`)")
    print(f"{len(cases)} cases{f', {refused} refused' * bool(refused)} -> {out}, this table -> {table}")
    raise typer.Exit(2 if refused else 0)


def nnunet(
    manifest: Path,
    out: Annotated[Path, typer.Option("-o", help="Where the dataset goes: nnUNet_raw.")],
    dataset: Annotated[int, typer.Option(help="nnU-Net's number of the dataset.")] = 501,
    name: Annotated[str, typer.Option(help="And its name.")] = "Liver",
    folds: Annotated[int, typer.Option(help="Folds in splits_final.json, by patient.")] = 5,
) -> None:
    """A cohort in nnU-Net v2's raw layout: the same patients held out, folds by patient, names in cases.csv."""
    from workbench.data.export import nnunet as layout

    writable(out)
    with warnings_told():
        print(layout.export(manifest, out, dataset, name, folds, progress))
