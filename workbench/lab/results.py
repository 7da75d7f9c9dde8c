"""The result folder of one case: what `workbench segment` leaves, on the input's own grid."""

from __future__ import annotations

import glob
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import workbench
from workbench.data import readers
from workbench.data.cohort import SEEN, is_phantom, voxel_hash
from workbench.data.files import read_json, remove, sweep, write_json, write_table
from workbench.data.readers import nifti
from workbench.experiment import PACKED, reading, table, verdicts, versions
from workbench.experiment.reading import state as _state
from workbench.experiment.segmentation import Models, Result, segment
from workbench.lab import cards, figures, report
from workbench.stages import ledger
from workbench.stages.metrics import json_safe
from workbench.volume import Refused, Spacing, Volume

OWN = re.compile(  # all that the workbench writes there; what a reader said (`verdicts`) is the reader's
    r"(labels|liver_probability|tumor_probability|ledger|candidates)\.nii\.gz|lesions\.csv|(result|cards)\.json"
    r"|(preview|layers)\.png|report\.html|cards(/candidate-\d+\.png)?|(cards/)?\..+\.\d+\.part"
)


def keep(result: Result, folder: str | Path, source: str | Path | None = None) -> Path:
    """Write a result, whole or not at all: it is made beside its place and moved there when complete.

    A former result makes room; what else lies in its folder (verdicts, a user's own files) stays there. A folder that holds no result is
    refused and left alone.
    """
    folder = Path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder  # the link stays one
    free(folder)
    source = source or (result.volume.source.path if result.volume.source else None)
    voxels = voxel_hash(result.volume.array.numpy())
    of_this_ct(folder, voxels, source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, glob.escape(folder.name))
    making = _making(folder)
    former = making.with_suffix(".old")
    remove(making)
    making.mkdir()
    try:
        _fill(result, making, folder, source, voxels)
        for entry in (*folder.glob("*"), *folder.glob("cards/*")):
            if not OWN.fullmatch(name := entry.relative_to(folder).as_posix()):
                _carry(entry, making / name)
        (making / "report.html").write_text(report.case_report(making), encoding="utf-8")  # says what readers said
        if folder.exists():
            os.replace(folder, former)
        os.replace(making, folder)
        remove(former)
    except OSError as error:
        error.filename = str(folder)  # not the place where it was made
        raise
    finally:
        if former.exists() and not folder.exists():  # interrupted between the two moves
            os.replace(former, folder)
        remove(making)
    return folder


def _carry(entry: Path, to: Path) -> None:
    """The same at another place: a folder made anew, its files linked where the file system can, links as they are."""

    def file(source: str | os.DirEntry, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, to, symlinks=True, copy_function=file)
    else:
        file(str(entry), str(to))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A place for a result that no other process writes to meanwhile; refused where one does. Nothing of the claim stays."""
    folder = folder.resolve() if folder.is_symlink() else folder
    new = [place for place in (folder.parent, *folder.parent.parents) if not place.exists()]
    if not new:
        sweep(folder.parent, glob.escape(folder.name))
        for other in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
            who = other.name.split(".")[-2]
            fix = "Wait for it or choose another folder with -o."
            raise Refused(folder, f"in use by process {who}", "a result that nobody else writes", fix)
    making = _making(folder)
    making.mkdir(parents=True)
    try:
        yield
    finally:
        remove(making)
        for place in new:
            with suppress(OSError):  # not empty: something was written
                place.rmdir()


def _from(folder: Path, path: str | Path) -> str:
    """The way from a folder to a path."""
    return os.path.relpath(Path(path).resolve(), folder.resolve())


def _making(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.part")


def from_file(
    models: Models,
    job: tuple[Path, Path],
    liver: Path | None = None,
    began: Callable[[str, str], None] = lambda case, stage: None,
) -> tuple[list[str], str, str]:
    """Segment one CT (a path) into a folder: what is to be warned of, and the line that says how it went or why it was refused.

    The case is named as the folder. `liver`: a mask on the CT's grid, every value but 0, in place of the liver net's. `began` hears of
    each stage.
    """
    path, folder = job
    tell = lambda stage, *_: began(folder.name, stage)
    with readers.gates.heard() as said:
        try:
            if not re.match(SEEN, folder.name):
                raise Refused(path, "a name with control characters or bytes that are no UTF-8", "a name that all files and pages take",
                              "Rename it, or name the case with --name.")  # fmt: skip
            volume = readers.read(path)
            given = None if liver is None else _given(liver, volume)
            free(folder)
            of_this_ct(folder, voxel_hash(volume.array.numpy()), path)
            with claimed(folder):
                result = segment(replace(volume, name=folder.name), models, tell, given)
                result.liver_given = liver
                if models.phantoms and not is_phantom(path):
                    result.warnings.append(
                        f"the nets have learned from {models.phantoms} phantoms and no patient: expect little of them on a patient's scan"
                    )
                doubts = [f"{folder.name}: {line}" for line in result.warnings]
                result.warnings += said
                keep(result, folder, path)
        except (Refused, OSError) as error:
            return said, "", readers.gates.said(error, path)
    line = (
        f"{folder.name}: {result.status}, {int(result.lesions.kept.sum())} of {len(result.lesions)} candidates kept, "
        f"{sum(result.timings.values()):.1f} s -> {folder}"
    )
    return [*doubts, *said], line, ""


def _given(liver: Path, volume: Volume) -> Tensor:
    """A liver mask for a CT, bool [z y x]; refused when it is empty."""
    mask = readers.read_labels(liver, like=volume, allowed=None).array > 0
    if not bool(mask.any()):
        raise Refused(liver, "no voxel of a liver", "a mask of the liver on the CT's grid")
    return mask


def lesion_table(places: list[Path], refused: list[str]) -> pd.DataFrame:
    """The candidates of several results, a row each, with the case first, the result's status second, and what a reader said of them. A line for
    each result that is damaged goes to `refused`."""
    tables = []
    for place in places:
        try:
            tables.append(_lesions(place))
        except (Refused, OSError) as error:
            refused.append(readers.gates.said(error, place))
    return pd.concat([t for t in tables if len(t)] or tables, ignore_index=True) if tables else pd.DataFrame()


def _lesions(place: Path) -> pd.DataFrame:
    """The candidates of one result."""
    held, review, now = reading.result(place), verdicts.read(place), verdicts.fingerprint(place)
    table = held.lesions()
    if "r_mm" not in table and (grid := held.volume("labels")):  # an earlier version made it
        table = _in_the_world(table, *grid[1:])
    table.insert(0, "case", held.case)
    table.insert(1, "status", str(held.info.get("status", "")))
    said = [review.of(now).get(candidate) for candidate in table.candidate]
    for at, (name, of) in enumerate((("verdict", "verdict"), ("reader", "who"), ("note", "note")), 3):
        table.insert(at, name, [getattr(verdict, of, "") for verdict in said])
    if outdated := review.outdated(now):
        readers.gates.warn(place, outdated)
    return table


def _in_the_world(lesions: pd.DataFrame, spacing_mm: Spacing, affine: np.ndarray) -> pd.DataFrame:
    """The same with each place also where viewers have it: r_mm, a_mm, s_mm, towards the right, the front and the head.

    `affine` leads from canonical indices (x, y, z) to RAS mm.
    """
    indices = lesions[["x_mm", "y_mm", "z_mm"]].to_numpy(float) / spacing_mm[::-1]
    places = pd.DataFrame(indices @ affine[:3, :3].T + affine[:3, 3], lesions.index, ["r_mm", "a_mm", "s_mm"])
    at = lesions.columns.get_loc("x_mm") + 1
    return pd.concat([lesions.iloc[:, :at], places, lesions.iloc[:, at:]], axis=1)


def holds(path: Path, folder: Path, models: Path, operating_point: str = "", liver: Path | None = None) -> bool:
    """Whether the models of an experiment, at an operating point, and this version made the result in a folder of the CT at `path`, with this
    liver mask if one is given, as all are now."""
    if not (folder / "result.json").is_file():
        return False
    try:
        info = reading.result(folder).info
    except Refused:  # damaged: it is made anew
        return False
    trees = read_json(models / "forest" / "forest.json", threshold=dict)
    cut = (trees.get("points") or {}).get(operating_point) or trees["threshold"]
    if info.get("forest_threshold") != cut["threshold"]:
        return False
    same = info.get("input") is not None and (folder / info["input"]).resolve() == path.resolve()
    if info.get("liver_given_state") != (None if liver is None else _state(liver)):
        return False
    made_by = (info.get("models") or {}).get("stages") == _models(models, folder)["stages"]
    return same and made_by and info.get("input_state") == _state(path) and info.get("version") == workbench.__version__


def of_this_ct(folder: Path, voxels: str, source: str | Path | None) -> None:
    """Refuse a place that holds the result of another CT than the one of this voxel hash: a name does not say whose result it is."""
    try:
        former = reading.result(folder)
    except Refused:  # none, or a damaged one
        return
    was, now = former.voxel_hash(), None if source is None else Path(source).resolve()
    path = (folder / str(former.info.get("input"))).resolve()
    if was != voxels and (was or path != now):
        raise Refused(
            folder, f"a result of another CT ({path}, voxel hash {was or 'unknown'})", f"one of {source} ({voxels}), or none",
            "Give this one a name of its own (--name) or another folder (-o). If the scan was replaced on purpose, move the former result away.",
        )  # fmt: skip


def free(folder: Path) -> None:
    """Refuse a place that holds something else than a former result or an empty folder."""
    if not folder.exists() or (folder / "result.json").is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        fix = "Choose another folder with -o."
        raise Refused(folder, "something that is no result", "a free place or a former result", fix)


def _models(experiment: Path, folder: Path) -> dict:
    """Which models made a result: their experiment, and the hash of the stage.json of each stage."""
    hashes = reading.stage_hashes(experiment)
    packed = read_json(experiment / PACKED) if (experiment / PACKED).is_file() else {}
    named = {"name": f"{packed['name']} {packed['version']}"} if packed else {}
    return named | {
        "experiment": _from(folder, experiment),
        "stages": {stage: hashes[stage] for stage in table.names(model=True) if stage in hashes},
    }


def _points(result: Result) -> dict:
    """The forest's operating points by name (their thresholds), which of them was used, and the largest candidate that it learned from."""
    if result.models is None:
        return {}
    of = result.models.forest
    points = {name: point.threshold for name, point in of.points.items()}
    return {
        "operating_point": of.point,
        "operating_points": points,
        "largest_ml": of.largest_ml if math.isfinite(of.largest_ml) else None,
    }


def _fill(result: Result, making: Path, folder: Path, source: str | Path | None, voxels: str) -> None:
    volume, labels = result.volume, result.labels
    arrays = {
        name: getattr(result, name) for name in ("liver_probability", "tumor_probability", "ledger", "candidates")
    }
    for name, array in {"labels": labels, **arrays}.items():
        nifti.write(volume.with_array(array, name), making / f"{name}.nii.gz")
    write_table(making / "lesions.csv", _in_the_world(result.lesions, volume.spacing_mm, volume.affine))
    present = torch.bincount(result.ledger.flatten()).nonzero().flatten().tolist()
    write_json(
        making / "result.json",
        {
            "status": result.status,
            "case": volume.name,
            "input": None if source is None else _from(folder, source),
            "voxel_hash": voxels,
            "liver_given": None if result.liver_given is None else _from(folder, result.liver_given),
            "liver_given_state": None if result.liver_given is None else _state(result.liver_given),
            "input_state": None if source is None or not Path(source).exists() else _state(Path(source)),
            "version": workbench.__version__,
            "versions": versions(),
            "models": None if result.models is None else _models(result.models.folder, folder),
            "device": result.device,
            "config": asdict(result.settings),
            "timings": result.timings,
            "ledger_codes": {str(code): meaning for code, meaning in ledger.CODES.items()},
            "ledger_present": present,
            "ledger_tumor": {
                stage: sorted(c for c, (_, history) in ledger.HISTORY.items() if history[n])
                for n, stage in enumerate(ledger.ABLATION)
            },
            "liver_ml": float((labels > 0).sum()) * volume.voxel_ml,
            "tumor_ml": float((labels == 2).sum()) * volume.voxel_ml,
            "scan": json_safe(result.scan),
            "change_ml": result.change_ml,
            "lesions": int(result.lesions.kept.sum()),
            "candidates": len(result.lesions),
            "forest_threshold": result.threshold,
            **_points(result),
            "shape_zyx": list(volume.shape),
            "spacing_mm_zyx": list(volume.spacing_mm),
            "warnings": result.warnings,
        },
    )
    shown = volume.array, labels, result.tumor_probability, result.ledger, volume.spacing_mm
    figures.save(figures.preview(*shown, title=volume.name), making / "preview.png")
    cards.write(result, making)
