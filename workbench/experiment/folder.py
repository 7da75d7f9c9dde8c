"""The experiment folder: settings, what each stage left, and whether it still holds.

One subfolder a stage, each with a manifest (settings, hashes of the inputs and outputs, version). Whatever is written is written
whole or not at all, and one process at a time holds the folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import workbench
from workbench.data import cohort
from workbench.data.files import flat, from_dict, held, read_json, read_table, sha256, write_json
from workbench.experiment import corrections
from workbench.experiment.settings import Settings, preset_of
from workbench.experiment.table import STAGES, nets, resting_on
from workbench.volume import Refused, Spacing

PACKED = "model.json"  # in the folder of a packed model, which has no scans
Progress = Callable[[str, int, int, dict], None]


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
        self.about = read_json(about, settings=dict, manifest=str, start=str | None, manifest_rows=dict | None)
        self.settings: Settings = from_dict(Settings, self.about["settings"], about)
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
        with_corrections: Sequence[str | Path] = (),
        take: Sequence[str] = (),
        retrain: str | None = None,
    ) -> Experiment:
        """Make or open the folder; refused when it already holds another cohort, or other settings on which a finished stage, or a net in it, rests.

        Other settings of stages that are still to come are recorded in place of what was. Of the cohort counts what is read of its rows.
        The nets begin with those of the experiment `start`, if one is given; it must have learnt from none of the patients here. Those of the
        stages `take` (some of those that train a net) are used as they are.
        Stages that are `retrain` or rest on it are to be trained again: their settings, and for the cohort its rows, may be other ones.
        What readers said of the results `with_corrections` is kept in the folder, in place of what was kept there; without any, that holds.
        """
        folder, manifest = Path(folder), Path(manifest)
        cases = cohort.read_manifest(manifest)
        about = _about(folder, manifest, cases, settings, None if start is None else cls(start, "cpu"), take)
        if (folder / "experiment.json").is_file():
            _go_on(folder, about, settings, retrain)
        else:
            write_json(folder / "experiment.json", about)
        made = cls(folder, device, progress)
        if with_corrections:
            with held(folder):
                lines = corrections.gather(with_corrections, cases, made.path("corrections"))
            print(*lines, sep="\n", flush=True)
        elif not made.path("corrections").exists():
            with held(folder):
                corrections.settle(made.path("corrections"))
        return made

    @property
    def manifest(self) -> Path:
        return (self.folder / self.about["manifest"]).resolve()

    @property
    def manifest_sha256(self) -> str:
        """The hash that the manifest was recorded with while what is read of it is the same, else that of the file."""
        now, rows = sha256(self.manifest), self.about.get("manifest_rows")
        if now == self.about.get("manifest_sha256") or rows is None:
            return now
        found = cohort.digests(self.manifest, cohort.read_manifest(self.manifest))
        return now if _other_rows(rows, found) else self.about.get("manifest_sha256", now)

    @property
    def start(self) -> Path | None:
        """The experiment whose nets those of this one begin with."""
        return (self.folder / self.about["start"]).resolve() if self.about.get("start") else None

    @property
    def taken(self) -> tuple[str, ...]:
        """The stages whose nets are those of `start` as they are."""
        return tuple(self.about.get("taken") or ())

    def of_nets(self) -> Experiment:
        """The experiment that trained the nets: this one, or the first before it where all nets were taken as they are."""
        made = self
        while made.start and set(nets()) <= set(made.taken) and (made.start / "experiment.json").is_file():
            made = Experiment(made.start, "cpu")
        return made

    def phantoms_alone(self) -> int:
        """How many phantoms the nets have learned from, where they have learned from nothing else; else 0."""
        if "phantoms" in self.about:  # of a packed model
            return int(self.about["phantoms"])
        cases = self.of_nets().cases("train")
        return len(cases) if "phantom" in cases and cases.phantom.all() else 0

    def patients_learned_from(self) -> set[str]:
        """The patients that its nets have seen: those of its training cases, unless all nets are another's, and those of the experiments with whose nets it
        began."""
        own = set() if set(nets()) <= set(self.taken) else set(self.cases("train").patient)
        before = self.about.get("patients_before")
        if before is None and self.start:  # written by 0.1.0, which looked one experiment back
            before = list(Experiment(self.start, "cpu").cases("train").patient)
        return own | set(before or ())

    @property
    def corrections(self) -> dict[str, corrections.Correction]:
        """What readers said of the training cases, by case."""
        return corrections.read(self.path("corrections"))

    def taking_up_corrections(self) -> str | None:
        """The first finished stage that takes up what readers said and was made with something else of it, if any."""
        for stage in corrections.ENTER:
            done = self.path(stage) / "stage.json"
            if done.is_file() and self.differences(stage, read_json(done)) == "other inputs (corrections)":
                return stage
        return None

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def cases(self, split: str | None = None) -> pd.DataFrame:
        """The cohort's table: case, patient, split, fold and its sizes."""
        table = self.table("cohort", "cases.csv", "split", "fold", dtype={"case": str, "patient": str, "copy_of": str})
        return table if split is None else table[table.split == split].reset_index(drop=True)

    def table(self, stage: str, name: str, *columns: str, **options) -> pd.DataFrame:
        self.need(stage)
        return read_table(self.path(stage) / name, *columns, **options)

    def array(self, stage: str, kind: str, case: str) -> Tensor:
        """An array [z y x] on the work grid that a stage left for a case."""
        return torch.from_numpy(np.load(self.path(stage) / kind / f"{case}.npy", allow_pickle=False))

    def work(self, case: str) -> tuple[Tensor, Tensor, Spacing]:
        """HU int16, labels uint8 (1 liver, 2 tumor, 3 liver that training ignores) and spacing of a case on the work grid."""
        row = self.cases().set_index("case").loc[case]
        spacing = (float(row.work_z_mm), float(row.work_y_mm), float(row.work_x_mm))
        return self.array("cohort", "hu", case), self.array("cohort", "labels", case), spacing

    def finished(self, stage: str) -> bool:
        """Whether a stage has run with these settings, its format and the inputs that are there now, and its files are there.

        The cohort is known by its manifest: scans changed under an unchanged manifest are not noticed.
        """
        held = self.path(stage) / "stage.json"
        if not held.is_file() or not all((self.path(need) / "stage.json").is_file() for need in STAGES[stage].needs):
            return False
        stored = read_json(held, outputs=dict)
        return self.holds(stage, stored) and all((self.path(stage) / name).is_file() for name in stored["outputs"])

    def holds(self, stage: str, stored: dict) -> bool:
        """Whether a stage's record (stage.json or started.json) names the settings, format and inputs of now."""
        return not self.differences(stage, stored)

    def differences(self, stage: str, stored: dict) -> str:
        """What a stage's record (stage.json or started.json) names otherwise than it is now, in words; empty where it holds."""
        apart, now = [], self.identity(stage)
        for key, value in now.items():
            was = stored.get(key, 1 if key == "format" else None)
            if was == value:
                continue
            if key == "settings" and isinstance(was, dict):
                changed = _changed(was, value) | {k: (v, None) for k, v in flat(was).items() if k not in flat(value)}
                apart.append(f"settings {_differences(changed)}")
            elif key == "inputs" and isinstance(was, dict):
                others = [name for name in {**was, **value} if was.get(name) != value.get(name)]
                apart.append(f"other inputs ({', '.join(others)})")
            else:
                apart.append(f"{key} {was} instead of {value}")
        return ", ".join(apart)

    def checked(self) -> Experiment:
        """The experiment itself; refused where its settings are not those that its finished stages were made with: someone edited them."""
        about, known = self.folder / "experiment.json", flat(asdict(self.settings))
        unknown = [k for k in flat(self.about["settings"]) if k not in known]
        fix = "Put them back as they were; other settings need an experiment of their own."
        if unknown:
            found = f"settings that this version does not know ({_first_few(unknown, ', ')})"
            raise Refused(about, found, "those with which it was trained", fix)
        for stage in STAGES:
            record = self.path(stage) / "stage.json"
            if not record.is_file():
                continue
            was, now = flat(read_json(record).get("settings") or {}), flat(self._settings_of(stage))
            apart = {k: (was.get(k), now.get(k)) for k in {**was, **now} if was.get(k) != now.get(k)}
            if was and apart and hasattr(self.settings, stage) and stage not in self.about["settings"]:
                raise Refused(about, f"no settings of {stage}", f"those with which its stage {stage} was made", fix)
            if was and apart:
                words = [f"{k} {other} instead of {one}" for k, (one, other) in apart.items()]
                raise Refused(
                    about, _first_few(words, "; "), f"the settings with which its stage {stage} was made", fix
                )
        return self

    def _settings_of(self, stage: str) -> dict:
        """The settings of a stage as experiment.json has them."""
        stored = self.about["settings"]
        return stored.get(stage) or {
            k: stored.get(k, getattr(self.settings, k)) for k in ("pixel_mm", "slice_mm", "folds", "seed")
        } | ({"implants": stored["implants"]} if "implants" in stored else {})  # 0.1.0 knew none

    def identity(self, stage: str) -> dict:
        """What a stage is made from: its settings, format and inputs."""
        own = self._settings_of(stage)
        inputs: dict[str, object] = {need: sha256(self.path(need) / "stage.json") for need in STAGES[stage].needs}
        if self.start and stage in nets():
            inputs["start"] = self._start_sha256(stage)
        if stage == "cohort" and self.about.get("liver_by_start"):
            inputs = {"manifest": self.manifest_sha256, "start": self._start_sha256("liver")}
        if stage in self.taken:
            inputs["taken"] = True
        inputs = inputs or {"manifest": self.manifest_sha256}
        if stage == "candidates" and (left_out := sorted(self.path("exclusions").glob("*.npy"))):
            inputs["exclusions"] = {file.stem: sha256(file) for file in left_out}
        if stage in corrections.ENTER and (said := corrections.identity(self.corrections, stage)):
            inputs["corrections"] = said
        return {
            "stage": stage,
            "format": STAGES[stage].format,
            "settings": own,
            "inputs": inputs,
        }

    def _start_sha256(self, stage: str) -> str:
        known = self.about.get("start_stages") or {}
        assert self.start is not None
        return known.get(stage) or sha256(self.start / stage / "stage.json")

    def need(self, stage: str) -> None:
        """Refuse where a stage has not run, naming the first that has not on the way to it: each rests on all before."""
        if (self.path(stage) / "stage.json").is_file():
            return
        last = list(STAGES).index(stage) + 1
        first, lacks = next((n, s) for n, s in enumerate(STAGES, 1) if not (self.path(s) / "stage.json").is_file())
        found = f"the stage {lacks} has not run"
        fix = f"Run notebook {first:02d} or `workbench train {lacks}` first."
        if first < last:
            found += f", on which {stage} rests"
            fix = f"Run notebooks {first:02d} to {last:02d}, or `workbench train all`, first."
        if self.taken:
            fix = "Run the same `workbench adapt` command again."
        raise Refused(self.folder, found, "it finished", fix)


def _about(
    folder: Path,
    manifest: Path,
    cases: list[cohort.Case],
    settings: Settings,
    start: Experiment | None,
    take: Sequence[str],
) -> dict:
    """What experiment.json says; refused where the nets of `start` have learned from a patient of the cohort."""
    before = set() if start is None else start.patients_learned_from()
    if start is not None and (seen := before & {case.patient for case in cases}):
        raise Refused(
            start.folder,
            f"nets that learnt from {len(seen)} patients of {manifest} ({min(seen)} among them)",
            "nets that never saw them",
            "Begin with another experiment; else maps of these patients are not out of fold.",
        )
    about = {
        "preset": preset_of(settings),
        "settings": json.loads(json.dumps(asdict(settings))),
        "manifest": os.path.relpath(manifest, folder),
        "manifest_sha256": sha256(manifest),
        "manifest_rows": cohort.digests(manifest, cases),
        "version": workbench.__version__,
        "seed": settings.seed,
        "start": None if start is None else os.path.relpath(start.folder, folder),
    }
    if start is not None:
        about["patients_before"] = sorted(before)  # kept here, so that it is known also where that experiment is gone
        if (start.folder / PACKED).is_file():  # another version of the workbench may have another of this name
            about["start_stages"] = {stage: sha256(start.folder / stage / "stage.json") for stage in nets()}
        if any(case.labels is None for case in cases):
            about["liver_by_start"] = True
    return about | ({"taken": sorted(take)} if take else {})


def _go_on(folder: Path, about: dict, settings: Settings, retrain: str | None) -> None:
    """Bring experiment.json to what is asked for now; refused where a finished stage rests on what was, unless it is trained again."""
    file, again = folder / "experiment.json", resting_on(retrain)
    stored = read_json(file)
    kept = from_dict(Settings, stored.get("settings", {}), file)  # what it does not name yet is at its default
    changed = _changed(asdict(kept), asdict(settings))
    resting = [s for s in _reached(changed) if _made(folder / s) and s not in again]
    differs, fix = ["start"] * (stored.get("start") != about["start"]), ""
    known, now = stored.get("start_stages"), about.get("start_stages")
    if known and now and known != now and not all((folder / stage / "stage.json").is_file() for stage in nets()):
        differs.append("start (another version of the model)")
    differs += ["nets taken as they are"] * (stored.get("taken") != about.get("taken"))
    other = stored.get("manifest_sha256") != about["manifest_sha256"]
    rows = _other_rows(stored.get("manifest_rows"), about["manifest_rows"]) if other else ""
    if rows and "cohort" not in again:
        differs.append(f"rows in its manifest ({rows})")
        fix = "cohort"
    if resting:
        done = (folder / resting[0] / "stage.json").is_file()
        what = f"its finished stage {resting[0]}" if done else f"what its stage {resting[0]} has learnt so far"
        differs.append(f"settings ({_differences(changed)}), on which {what} rests")
        fix = fix or resting[0]
    if differs:
        raise Refused(
            folder,
            f"an experiment with other {' and '.join(differs)}",
            "the same, to go on with it",
            "Choose another folder with -o" + (f", or train it again with --retrain {fix}." if fix else "."),
        )
    if rows:
        stored |= {k: about[k] for k in ("manifest", "manifest_sha256", "manifest_rows")}
    if changed:  # the others stay as they are written: stages are known by them
        own = {name.split(".")[0] for name in changed}
        stored |= {"preset": about["preset"], "seed": about["seed"]}
        stored["settings"] = stored.get("settings", {}) | {k: v for k, v in about["settings"].items() if k in own}
        print(f"other settings from here on: {_differences({k: v[::-1] for k, v in changed.items()})}", flush=True)
    if rows or changed:
        with held(folder):
            write_json(file, stored)


def _made(stage: Path) -> bool:
    """Whether a stage is finished, or holds nets or checkpoints that other settings would throw away."""
    return (stage / "stage.json").is_file() or any(stage.glob("*.safetensors"))


def _changed(stored: dict, asked: dict) -> dict[str, tuple]:
    """(stored, asked) of the values that are not alike, by their path."""
    one, other = flat(stored), flat(asked)
    return {k: (one.get(k), v) for k, v in other.items() if one.get(k) != v}


def _differences(changed: dict[str, tuple]) -> str:
    """The first few of them in words."""
    apart = [f"{k} {one} instead of {other}" for k, (one, other) in changed.items()]
    return _first_few(apart, "; ")


def _first_few(words: list[str], between: str) -> str:
    return between.join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


def _reached(changed: dict[str, tuple]) -> list[str]:
    """The stages whose settings these are, and those that need them."""
    parts = {name.split(".")[0] for name in changed} - {"preset"}
    reached = {part if part in STAGES else "cohort" for part in parts}
    if "consistency.threshold" in changed:
        reached.add("tumor")  # measured there
    for stage in STAGES:
        reached |= {stage} if reached & set(STAGES[stage].needs) else set()
    return [stage for stage in STAGES if stage in reached]


def _other_rows(stored: dict | None, asked: dict) -> str:
    """Which rows of a manifest are not as they were recorded, in words; empty where all are."""
    if stored is None:
        return "it was recorded by the file's hash alone"
    apart = [case for case in {**stored, **asked} if stored.get(case) != asked.get(case)]
    if not apart:
        return "" if list(stored) == list(asked) else "in another order"
    return _first_few(apart, ", ")


def pick_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda or cuda:N; refused where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise Refused("--device", name, "auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Refused("--device", name, "a device that is there", "No CUDA device was found: use --device cpu.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refused("--device", name, f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def print_progress(every_s: float = 4.0) -> Progress:
    """One line at most every few seconds, and one at the end of each piece of work."""
    last = [0.0]

    def show(what: str, done: int, total: int, row: dict) -> None:
        if done >= total or time.monotonic() - last[0] > every_s:
            last[0] = time.monotonic()
            extra = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, int | float) and k != "step")
            print(f"  {what}  {done}/{total}  {extra}".rstrip(), flush=True)

    return show


def versions() -> dict[str, str]:
    """What numbers depend on beside the workbench itself: Python and the libraries that compute."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"python": platform.python_version(), **found}
