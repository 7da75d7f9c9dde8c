"""Models by name: those that come with the workbench, and how one is packed from an experiment.

A model is an experiment without its scans: settings, nets, forest, and what a card says of the training candidates. Its model.json says
what it learned from, what was measured, its licence, and the hash of each file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from workbench.data.files import read_json, sha256, write_json, write_table
from workbench.experiment import PACKED, Experiment
from workbench.experiment.pipeline.nets import measured
from workbench.experiment.table import before, nets
from workbench.stages import forest
from workbench.stages.domain import DOMAIN
from workbench.volume import Refused

HOME = Path(__file__).parent / "shipped"
DEFAULT = "clinical"
# what `about` must say, as text; `measured_on` is a list of lines
SAYS = ("version", "trained_on", "measured_on", "licence", "attribution", "intended_use")


def names() -> list[str]:
    """The models that come with the workbench."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{PACKED}"))


def find(which: str | Path, near: str | Path = "") -> Path:
    """The folder of a model or an experiment: one below `near`, or one that comes with the workbench, by its name.

    A folder goes before a name. The files of a model are compared with their hashes. Raises Refused.
    """
    folder = Path(near) / which
    if not (folder / "experiment.json").is_file():
        if str(which) not in names():
            raise Refused(
                which,
                "no experiment.json, and no model of this name",
                f"an experiment folder or {', '.join(names()) or 'no name: none is here'}",
                "`workbench models` lists the models; `workbench train` or `workbench adapt` make an experiment.",
            )
        folder = HOME / str(which)
    if (folder / PACKED).is_file():
        _whole(folder)
    return folder


def about(folder: str | Path) -> dict:
    """What a model's model.json says, with its `operating_points`; empty for an experiment."""
    folder = Path(folder)
    if not (folder / PACKED).is_file():
        return {}
    said = read_json(folder / PACKED, files=dict, name=str, version=str)
    points = forest.load(folder / "forest").points
    return said | {"operating_points": {name: point._asdict() for name, point in points.items()}}


def listed() -> Iterator[dict]:
    """`about` of each model that comes with the workbench."""
    for name in names():
        yield about(find(HOME / name))


def is_model(folder: str | Path) -> bool:
    """Whether a folder holds a packed model, which has no scans to train on."""
    return (Path(folder) / PACKED).is_file()


def pack(source: str | Path, out: str | Path, says: dict) -> Path:
    """Write the model of a trained experiment to the folder `out`, which is named after it. `says`: see SAYS."""
    made, out = Experiment(source, "cpu"), Path(out)
    for stage in before("metrics"):
        made.need(stage)
    described(says)
    if out.exists() and not is_model(out):
        raise Refused(out, "something that is no model", "a free place or an earlier model", "Choose another folder.")
    if not (made.path("liver") / DOMAIN).is_file():  # trained by an earlier version
        write_table(made.path("liver") / DOMAIN, measured(made))
    making = out.with_name(f".{out.name}.{os.getpid()}.part")
    making.mkdir(parents=True)
    try:
        about = made.about | {"manifest": "cohort/cases.csv", "start": None}
        about["patients_before"] = sorted(made.patients_learned_from())
        about["phantoms"] = made.phantoms_alone()
        gone = ("manifest_rows", "taken", "liver_by_start", "start_stages")
        write_json(making / "experiment.json", {k: v for k, v in about.items() if k not in gone})
        for stage in before("metrics"):
            _pack_stage(made, stage, making / stage)
        files = {str(path.relative_to(making)): sha256(path) for path in sorted(making.rglob("*")) if path.is_file()}
        said = {"name": out.name, "made": datetime.now(UTC).date().isoformat()} | says
        write_json(making / PACKED, said | {"bytes": _size(making), "files": files})
        if out.exists():
            shutil.rmtree(out)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return out


def described(says: dict, where: str | Path = "the description of a model") -> None:
    """Refuse a description that lacks something or has a value of another kind."""
    kinds = {key: list if key == "measured_on" else str for key in SAYS}
    wrong = [k for k, kind in kinds.items() if not isinstance(says.get(k), kind) or not says[k]]
    wrong += [k for k in says if k not in kinds]
    if not wrong and not all(isinstance(line, str) for line in says["measured_on"]):
        wrong = ["measured_on"]
    if wrong:
        raise Refused(where, f"no fitting {', '.join(wrong)}", f"{', '.join(SAYS)}: text, measured_on a list of lines")


def _pack_stage(made: Experiment, stage: str, to: Path) -> None:
    """What `segment`, `adapt`, training and cards ask of a stage."""
    source, kept = made.path(stage), ["stage.json"]
    if stage in nets():
        heads = [p for p in source.glob("*.json") if p.with_suffix("").name.startswith(("fold", "model"))]
        kept += [p.name for p in heads] + [read_json(p, file=str)["file"] for p in heads]
        kept += [p.name for p in source.glob(DOMAIN)]
    to.mkdir()
    for name in kept:
        shutil.copyfile(source / name, to / name)
    if stage == "cohort":
        write_table(to / "cases.csv", made.cases())
    if stage == "forest":
        forest.pack(source, to)
        table = made.table(stage, "scores.csv", dtype={"case": str, "patient": str})
        write_table(to / "scores.csv", table[table.split == "train"])
    if stage == "radiomics":
        names = list(forest.load(made.path("forest")).names)
        table = pd.read_csv(source / "features.csv", dtype={"case": str})
        here = ["case", "candidate", *[name for name in names if name in table]]
        train = set(made.cases("train").case)
        write_table(to / "features.csv", table.loc[table.case.isin(train), here])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _whole(folder: Path) -> None:
    """Refuse a model of which a file is missing or is not as it was packed."""
    files = read_json(folder / PACKED, files=dict)["files"]
    wrong = [n for n, digest in files.items() if not (folder / n).is_file() or sha256(folder / n) != digest]
    if wrong:
        raise Refused(
            folder / wrong[0],
            "a file that is missing or was changed",
            f"that of {folder.name} as it was packed",
            "Install the workbench again, or restore the folder.",
        )


def words(model: dict) -> str:
    """`about` in words."""
    points = ", ".join(f"{name} {point['threshold']:.2f}" for name, point in model["operating_points"].items())
    lines = [
        f"{model['name']} {model['version']} ({model['bytes'] / 1e6:.1f} MB, made {model['made']})",
        f"  trained on: {model['trained_on']}",
        *[f"  measured on: {line}" for line in model["measured_on"]],
        f"  operating points: {points}",
        f"  intended use: {model['intended_use']}",
        f"  licence: {model['licence']}",
        f"  attribution: {model['attribution']}",
    ]
    return "\n".join(lines)


def as_json() -> str:
    """All models, for programs."""
    return json.dumps([{k: v for k, v in model.items() if k != "files"} for model in listed()], indent=1)
