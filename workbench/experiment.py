"""The experiment folder: settings, what each stage left, and whether it still holds.

One subfolder a stage, each with a manifest (settings, hashes of the inputs and outputs, version). Whatever is written is written
whole or not at all, and one process at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import workbench
from workbench import boundary, candidates, cascade, cohort, consistency, forest, liver, selection, tumor
from workbench.files import read_json, write_atomic
from workbench.fit import FitSettings
from workbench.folders import STAGES
from workbench.network import NetworkSettings
from workbench.slabs import SlabSettings
from workbench.volume import Refused, Spacing, shape_at

NEEDS = {
    "cohort": (),
    "liver": ("cohort",),
    "tumor": ("cohort", "liver"),
    "consistency": ("cohort", "tumor"),
    "candidates": ("cohort", "liver", "tumor", "consistency"),
    "radiomics": ("cohort", "liver", "candidates"),
    "selection": ("cohort", "candidates", "radiomics"),
    "forest": ("cohort", "candidates", "radiomics", "selection"),
    "boundary": ("cohort", "liver", "tumor", "candidates", "forest"),
    "metrics": ("liver", "tumor", "forest", "boundary"),
}
Progress = Callable[[str, int, int, dict], None]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, stage by stage."""

    preset: str = "demo"
    pixel_mm: float | None = 2.5  # rule: the work grid's pixel; None keeps the scan's own
    slice_mm: float | None = 3.5  # rule: thinner slices are averaged up to this, thicker ones stay
    folds: int = 3
    seed: int = 0
    liver: liver.LiverSettings = field(default_factory=liver.LiverSettings)
    tumor: tumor.TumorSettings = field(default_factory=tumor.TumorSettings)
    consistency: consistency.ConsistencySettings = field(default_factory=consistency.ConsistencySettings)
    candidates: candidates.CandidateSettings = field(default_factory=candidates.CandidateSettings)
    selection: selection.SelectionSettings = field(default_factory=selection.SelectionSettings)
    forest: forest.ForestSettings = field(default_factory=forest.ForestSettings)
    boundary: boundary.BoundarySettings = field(default_factory=boundary.BoundarySettings)

    def work_grid(self, shape: tuple[int, int, int], spacing_mm: Spacing) -> tuple[tuple[int, int, int], Spacing]:
        """Shape and spacing of the work grid over the same field of view."""
        thin = self.slice_mm is not None and spacing_mm[0] < self.slice_mm
        z, y, x = shape_at(shape, spacing_mm, (self.slice_mm if thin else None, self.pixel_mm, self.pixel_mm))
        extent = [n * s for n, s in zip(shape, spacing_mm)]
        return (z, y, x), (extent[0] / z, extent[1] / y, extent[2] / x)


def demo() -> Settings:
    """Every stage in its true form, small enough for minutes on two cores."""
    return Settings(
        folds=2,
        liver=liver.LiverSettings(cascade=_steps(liver.LiverSettings().cascade, 200)),
        tumor=tumor.TumorSettings(cascade=_steps(tumor.TumorSettings().cascade, 900)),
    )


def _steps(settings: cascade.CascadeSettings, steps: int) -> cascade.CascadeSettings:
    return replace(settings, fit=replace(settings.fit, steps=steps))


def paper() -> Settings:
    """Full size: the scan's own resolution, five folds, for a GPU."""
    net = NetworkSettings(width=32, growth=24, layers=(3, 4, 6, 8, 8), stem_stride=1)
    train = FitSettings(steps=40_000, batch=24, rate=1e-3, check_every=500, save_every_s=300)

    def finer(slabs: SlabSettings, crop: int) -> SlabSettings:
        return replace(
            slabs, crop=(crop, crop), blob_pixels=(3.0, 30.0), blob_slices=(0.15, 0.8), elastic=4.0, thick=0.3
        )

    return Settings(
        preset="paper",
        pixel_mm=None,
        slice_mm=None,
        folds=5,
        liver=liver.LiverSettings(
            pixel_mm=1.5,
            cascade=cascade.CascadeSettings(net, finer(liver.LiverSettings().cascade.slabs, 256), train),
        ),
        tumor=tumor.TumorSettings(
            cascade=cascade.CascadeSettings(
                replace(net, slices=5, extra=1),
                finer(tumor.TumorSettings().cascade.slabs, 320),
                train,
            )
        ),
        boundary=boundary.PAPER,
    )


PRESETS = {"demo": demo, "paper": paper}


def from_dict(kind: Any, values: dict) -> Any:
    """A settings dataclass from the nested dictionary that `asdict` and JSON made."""
    made = {}
    for name in kind.__dataclass_fields__.keys() & values.keys():
        default = getattr(kind(), name)
        nested = hasattr(default, "__dataclass_fields__")
        made[name] = from_dict(type(default), values[name]) if nested else _tuples(values[name])
    return kind(**made)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


class Experiment:
    """A folder in which every stage leaves what the next ones need."""

    def __init__(self, folder: str | Path, device: str = "auto", progress: Progress | None = None):
        self.folder = Path(folder)
        about = self.folder / "experiment.json"
        if not about.is_file():
            raise Refused(
                self.folder,
                "no experiment.json",
                "an experiment folder",
                "`workbench train all --cohort MANIFEST -o FOLDER` or `workbench demo` makes one.",
            )
        self.about = read_json(about, "settings", "manifest")
        self.settings: Settings = from_dict(Settings, self.about["settings"])
        self.device = pick_device(device)
        self.progress = progress or print_progress()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        manifest: str | Path,
        settings: Settings,
        device: str = "auto",
        progress: Progress | None = None,
        start: str | Path | None = None,
    ) -> Experiment:
        """Make or open the folder; refused when it already holds other settings or another cohort.

        The nets of the cascade begin with those of the experiment `start`, if one is given.
        """
        folder, manifest = Path(folder), Path(manifest)
        cohort.read_manifest(manifest)
        about = {
            "preset": settings.preset,
            "settings": json.loads(json.dumps(asdict(settings))),
            "manifest": os.path.relpath(manifest, folder),
            "manifest_sha256": sha256(manifest),
            "version": workbench.__version__,
            "seed": settings.seed,
            "start": None if start is None else os.path.relpath(cls(start, "cpu").folder, folder),
        }
        held = folder / "experiment.json"
        if held.is_file():
            stored = read_json(held)
            kept = from_dict(Settings, stored.get("settings", {}))  # what it does not name yet is at its default
            differs = ["settings"] * (kept != settings)
            differs += [k for k in ("manifest_sha256", "start") if stored.get(k) != about[k]]
            if differs:
                raise Refused(
                    folder,
                    f"an experiment with other {' and '.join(differs)}",
                    "the same, to go on with it",
                    "Choose another folder with -o, or remove this one.",
                )
        else:
            write_json(held, about)
        return cls(folder, device, progress)

    @property
    def manifest(self) -> Path:
        return (self.folder / self.about["manifest"]).resolve()

    @property
    def start(self) -> Path | None:
        """The experiment whose nets those of this one begin with."""
        return (self.folder / self.about["start"]).resolve() if self.about.get("start") else None

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def cases(self, split: str | None = None) -> pd.DataFrame:
        """The cohort's table: case, patient, split, fold and its sizes."""
        table = self.table("cohort", "cases.csv", dtype={"case": str, "patient": str})
        return table if split is None else table[table.split == split].reset_index(drop=True)

    def table(self, stage: str, name: str, **options) -> pd.DataFrame:
        self.need(stage)
        return pd.read_csv(self.path(stage) / name, **options)

    def array(self, stage: str, kind: str, case: str) -> Tensor:
        """An array [z y x] on the work grid that a stage left for a case."""
        return torch.from_numpy(np.load(self.path(stage) / kind / f"{case}.npy", allow_pickle=False))

    def work(self, case: str) -> tuple[Tensor, Tensor, Spacing]:
        """HU int16, labels uint8 and spacing of a case on the work grid."""
        row = self.cases().set_index("case").loc[case]
        spacing = (float(row.work_z_mm), float(row.work_y_mm), float(row.work_x_mm))
        return self.array("cohort", "hu", case), self.array("cohort", "labels", case), spacing

    def finished(self, stage: str) -> bool:
        """Whether a stage has run with these settings, this version and the inputs that are there now, and its files are there.

        The cohort is known by its manifest: scans changed under an unchanged manifest are not noticed.
        """
        held = self.path(stage) / "stage.json"
        if not held.is_file() or not all((self.path(need) / "stage.json").is_file() for need in NEEDS[stage]):
            return False
        stored = read_json(held)
        return all(stored.get(k) == v for k, v in self._identity(stage).items()) and all(
            (self.path(stage) / name).is_file() for name in stored.get("outputs", ())
        )

    def _identity(self, stage: str) -> dict:
        own = self.about["settings"].get(stage) or {
            k: self.about["settings"][k] for k in ("pixel_mm", "slice_mm", "folds", "seed")
        }
        inputs = {need: sha256(self.path(need) / "stage.json") for need in NEEDS[stage]}
        if self.start and stage in ("liver", "tumor"):
            inputs["start"] = sha256(self.start / stage / "stage.json")
        return {
            "stage": stage,
            "version": workbench.__version__,
            "settings": own,
            "inputs": inputs or {"manifest": sha256(self.manifest)},
        }

    def need(self, stage: str) -> None:
        if not (self.path(stage) / "stage.json").is_file():
            number = STAGES.index(stage) + 1
            raise Refused(
                self.folder,
                f"the stage {stage} has not run",
                "it finished",
                f"Run notebook {number:02d} or `workbench train {stage}` first.",
            )


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise Refused("--device", name, "auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Refused("--device", name, "a device that is there", "No CUDA device was found: use --device cpu.")
    return torch.device(name)


def print_progress(every_s: float = 4.0) -> Progress:
    """One line at most every few seconds, and one at the end of each piece of work."""
    last = [0.0]

    def show(what: str, done: int, total: int, row: dict) -> None:
        if done >= total or time.monotonic() - last[0] > every_s:
            last[0] = time.monotonic()
            extra = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, int | float) and k != "step")
            print(f"  {what}  {done}/{total}  {extra}".rstrip(), flush=True)

    return show


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What numbers depend on beside the workbench itself: Python and the libraries that compute."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"python": platform.python_version(), **found}


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, table.to_csv(index=False).encode())


def write_array(path: Path, array: Tensor) -> None:
    held = io.BytesIO()
    np.save(held, array.cpu().numpy(), allow_pickle=False)
    write_atomic(path, held.getvalue())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold an experiment alone; the second comer is told who has it."""
    lock = folder / ".lock"
    with open(lock, "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            f.seek(0)
            raise Refused(
                folder,
                f"in use by {f.read().strip() or 'another process'}",
                "an experiment that nobody else writes to",
                "Wait for it or choose another folder.",
            ) from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        try:
            yield
        finally:
            f.truncate(0)
