"""The two folders that the workbench writes, read back: a case's result and an experiment.

The outer ring (report, napari, tracking, widgets) reads these folders and nothing else, so it needs neither the models
nor the pipeline. Arrays come back canonical `[z y x]` (z to the head, y to the back, x to the patient's left).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data import cohort, readers
from workbench.data.files import read_json, read_table
from workbench.data.readers import gates, itk, nifti
from workbench.experiment.table import STAGES
from workbench.volume import Refused


def canonical(image: Any) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """A nibabel image as `[z y x]` LPS (a view where it can be), its spacing_mm, its affine (x, y, z) -> RAS mm."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turn = io_orientation(image.affine)
    array, ras = apply_orientation(_voxels(image), turn), image.affine @ inv_ornt_aff(turn, image.shape)
    array = array.transpose(2, 1, 0)[:, ::-1, ::-1]
    z, y, x = array.shape
    i, j, k = (float(s) for s in np.linalg.norm(ras[:3, :3], axis=0))
    return array, (k, j, i), ras @ np.array([[-1, 0, 0, x - 1], [0, -1, 0, y - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _voxels(image: Any) -> np.ndarray:
    """As the file holds them, mapped where it is plain and unscaled; whole numbers with a whole intercept stay whole, others are float32."""
    path, proxy = str(image.get_filename()), image.dataobj
    if not path.endswith(".gz") and (proxy.slope, proxy.inter) == (1, 0):
        return np.asanyarray(proxy)
    array, _, stored = nifti.voxels(path)  # gzip in large steps, in less time than through a file object
    return array if array.dtype == stored else gates.smallest(array)


@dataclass(frozen=True)
class ResultFolder:
    """What `workbench segment` wrote for one case."""

    path: Path
    info: dict

    @property
    def case(self) -> str:
        return str(self.info.get("case", self.path.name))

    def file(self, name: str) -> Path:
        return self.path / f"{name}.nii.gz"

    def volume(self, name: str) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray] | None:
        """A volume by its file's name (`labels`, `ledger` ...): array, spacing_mm, affine; None if not there."""
        import nibabel

        file = self.file(name)
        return canonical(nibabel.load(file)) if file.exists() else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape `[z y x]` of a volume, from its header alone; None if not there."""
        import nibabel
        from nibabel.orientations import io_orientation

        if not self.file(name).exists():
            return None
        image: Any = nibabel.load(self.file(name))
        to = io_orientation(image.affine)[:, 0].astype(int)  # axis of the file -> x, y, z
        return tuple(int(image.shape[i]) for i in np.argsort(to)[::-1])

    def lesions(self) -> pd.DataFrame:
        """lesions.csv; empty when the case has none."""
        file = self.path / "lesions.csv"
        try:
            return pd.read_csv(file, keep_default_na=True)
        except (FileNotFoundError, pd.errors.EmptyDataError):
            return pd.DataFrame(
                columns=[
                    "candidate",
                    "kept",
                    "reason",
                    "forest_score",
                    "volume_ml",
                    "long_axis_mm",
                    "z_mm",
                    "y_mm",
                    "x_mm",
                ]
            )

    def cards(self) -> dict | None:
        """cards.json (see `cards.make`), or None where there is none."""
        file = self.path / "cards.json"
        return read_json(file, "cards", "appearing") if file.exists() else None

    def ct_file(self) -> tuple[Path | None, str]:
        """Where the CT that was segmented lies and "", or None and why it cannot be shown."""
        source = self.info.get("input")
        if not source:
            return None, "result.json names no input"
        path = self.path / source  # an absolute one stays as it is
        return (path, "") if path.exists() else (None, f"{path} is no longer there")

    def voxel_hash(self) -> str:
        """The voxel hash of the CT that was segmented. Of a result of 0.1.0, which did not keep it, that of its input; empty where that is gone or was
        changed."""
        if told := self.info.get("voxel_hash"):
            return str(told)
        path, _ = self.ct_file()
        if path is None or self.info.get("input_state", state(path)) != state(path):
            return ""
        with gates.heard():
            try:
                return cohort.voxel_hash(readers.read(path).array.numpy())
            except (Refused, OSError):
                return ""

    def ct(self) -> tuple[np.ndarray | None, str]:
        """The CT `[z y x]` that was segmented and "", or None and why it cannot be shown."""
        path, why = self.ct_file()
        if path is None:
            return None, why
        if path.name.endswith((".nii", ".nii.gz")):
            import nibabel

            array = canonical(nibabel.load(path))[0]
        else:
            array = readers.read(path).array.cpu().numpy()
        own = self.shape("labels")
        if own is not None and own != array.shape:
            return None, f"{path} has the grid {array.shape}, the result {own}"
        return array, ""


def result(path: str | Path) -> ResultFolder:
    """Open a result folder; refused when it holds no result.json."""
    path = Path(path)
    file = path / "result.json"
    if not file.is_file():
        raise Refused(path, "no result.json", "a result folder of `workbench segment`")
    return ResultFolder(path, read_json(file))


def state(path: Path) -> str:
    """A digest of the names, sizes and times of the files that an input consists of."""
    path = path.resolve()
    told = sorted(
        (str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns)
        for p in itk.parts(path)
        if p.is_file()
    )
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def results_at(path: str | Path, *places: str) -> list[Path]:
    """The whole results at places (globs that end in /) below a folder; what a killed process left half-made has a name with a dot."""
    found = {p.parent for place in places for p in Path(path).glob(f"{place}result.json")}
    return sorted(p for p in found if not p.name.startswith("."))


@dataclass(frozen=True)
class StageFolder:
    """One finished stage of an experiment; `sha256` of its stage.json stands for all that it holds."""

    name: str
    path: Path
    info: dict
    sha256: str

    def metrics(self) -> dict[str, float]:
        file = self.path / "metrics.json"
        return read_json(file) if file.exists() else {}

    def table(self, name: str) -> pd.DataFrame | None:
        file = self.path / name
        return read_table(file) if file.exists() else None


@dataclass(frozen=True)
class ExperimentFolder:
    """What `workbench train` left so far."""

    path: Path
    info: dict
    stages: dict[str, StageFolder]

    def table(self, stage: str, name: str) -> pd.DataFrame | None:
        """A CSV of a stage, or None when the stage has not run."""
        return self.stages[stage].table(name) if stage in self.stages else None

    def results(self) -> list[Path]:
        return results_at(self.path, "results/*/")

    def patients(self) -> int | None:
        cases = self.table("cohort", "cases.csv")
        return None if cases is None or "patient" not in cases else int(cases["patient"].nunique())


def stage_hashes(path: str | Path) -> dict[str, str]:
    """{stage: sha256 of its stage.json} for every finished stage."""
    return {p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(path).glob("*/stage.json"))}


def experiment(path: str | Path) -> ExperimentFolder:
    """Open an experiment folder; refused when it holds neither experiment.json nor a finished stage."""
    path = Path(path)
    file = path / "experiment.json"
    stages = {}
    for name, sha in stage_hashes(path).items():
        stages[name] = StageFolder(name, path / name, read_json(path / name / "stage.json"), sha)
    if not file.is_file() and not stages:
        raise Refused(path, "no experiment.json", "an experiment folder of `workbench train` or `workbench demo`")
    order = {name: n for n, name in enumerate(STAGES)}
    stages = dict(sorted(stages.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
    return ExperimentFolder(path, read_json(file) if file.is_file() else {}, stages)
