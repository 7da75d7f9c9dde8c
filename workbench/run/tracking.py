"""MLflow, fed from the experiment folder. The only module that imports mlflow.

Chooses: the experiment folder is the record and MLflow a view of it. `sync` reads the folder and adds what the store
does not have yet: one parent run per folder, one child run per finished stage, one run per fold below it. A stage is
known by the hash of its stage.json: a second sync adds nothing, nor does one of a copied folder, and a stage that was run again gets a new run. A store
that is dead, locked or missing is reported, never raised: the work goes on and the next sync catches up.

A stage's model becomes a version of the registered model `workbench-STAGE`. The alias `champion` goes to the first version and
follows its experiment when that is trained again; from one experiment to another only a person moves it, since
measures on different patients do not compare. `workbench.run.lineage` leads from a result back to the runs that made its models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from workbench.data.files import CHECKOUT, flat_text, held, read_json
from workbench.experiment import reading, table
from workbench.run import served
from workbench.volume import Refused

EXPERIMENT = "liver-workbench"
CHAMPION = "champion"
SYSTEM = {  # what MLflow calls the columns of system.csv
    "cpu_percent": "system/process_cpu_percentage",
    "memory_mb": "system/process_memory_usage_megabytes",
    "gpu_memory_mb": "system/gpu_memory_usage_megabytes",
}
LOCK_SECONDS = 3.0  # empirical: a sync of a demo holds the store for less
TURN_SECONDS = 60.0  # rule: a few whole syncs, one after the other


@dataclass(frozen=True)
class SyncReport:
    """What a sync did: what it added, how many stages were there already, and why it could not go on (or empty)."""

    added: tuple[str, ...] = ()
    unchanged: int = 0
    reason: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        if self.reason:
            return f"MLflow: not reached ({self.reason}); the folder keeps the record and the next sync catches up"
        return f"MLflow: {len(self.added)} added, {self.unchanged} stages unchanged ({self.seconds:.1f} s)"


def default_store() -> Path:
    """mlruns/ of the repository (an editable install), or of the current directory."""
    return (CHECKOUT if (CHECKOUT / "notebooks").is_dir() else Path.cwd()) / "mlruns"


def uri(store: str | Path) -> str:
    return f"sqlite:///{(Path(store).resolve() / 'mlflow.db').as_posix()}"


def folder_key(folder: str | Path) -> str:
    """What the store knows a folder by: its place, hashed, since filters cannot quote every path."""
    return hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]


def _reachable(store: Path) -> str:
    """Empty when the store can be written now, else why not. MLflow itself would try again for many minutes."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not os.access(store, os.W_OK):
            return f"{store} cannot be written"
        with contextlib.closing(sqlite3.connect(store / "mlflow.db", timeout=LOCK_SECONDS)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        return f"{store / 'mlflow.db'}: {error}"
    return ""


@contextlib.contextmanager
def _alone(store: Path) -> Iterator[None]:
    """One sync at a time: two at once would each begin the run of a folder. The lock dies with its holder."""
    deadline = time.monotonic() + TURN_SECONDS
    with contextlib.ExitStack() as turn:
        while True:
            try:
                turn.enter_context(held(store, name=".sync.lock"))
                break
            except Refused:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another sync holds the store for more than {TURN_SECONDS:g} s") from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither telemetry nor the migration's log on the screen, and no advice to keep an example of a patient as input."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    names = ("alembic", "alembic.runtime.migration", "mlflow", "mlflow.store.db.utils")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*An input example was not provided", UserWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _name(text: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]


def _now() -> int:
    return int(time.time() * 1000)


def _milliseconds(iso: str | None) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp() * 1000)
    except (TypeError, ValueError):
        return _now()


class _Store:
    """The few things that a sync asks of MLflow."""

    def __init__(self, store: Path):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri(store))
        found = self.client.get_experiment_by_name(EXPERIMENT)
        place = (store.resolve() / "artifacts").as_uri()
        self.experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT, place)

    def runs(self, key: str) -> list:
        """All runs of an experiment folder, the oldest first."""
        from mlflow.utils import get_results_from_paginated_fn

        where, order = f"tags.`workbench.key` = '{key}'", ["attributes.start_time ASC"]
        page = lambda most, token: self.client.search_runs([self.experiment], where, 1, most, order, token)
        return list(get_results_from_paginated_fn(page, 1000))

    def parent(self, folder: Path, tags: dict[str, str]) -> tuple[list, Any, str]:
        """All runs of a folder, that of the folder itself as it was (None if it begins here), and its id."""
        runs = self.runs(folder_key(folder))
        known = next((r for r in runs if "mlflow.parentRunId" not in r.data.tags), None)
        return runs, known, known.info.run_id if known else self.start(folder.resolve().name, tags, None, _now())

    def run_of(self, stage_sha256: str, but: str) -> Any:
        """A whole run of this stage that another folder than the one of the key `but` has, or None."""
        found = self.client.search_runs(
            [self.experiment],
            filter_string=f"tags.`workbench.stage_sha256` = '{stage_sha256}'",
            order_by=["attributes.start_time ASC"],
        )
        return next((run for run in found if run.data.tags.get("workbench.key") != but), None)

    def start(self, name: str, tags: dict[str, str], parent: str | None, at: int) -> str:
        tags = {**tags, "mlflow.source.name": "workbench", "mlflow.source.type": "LOCAL"}
        if parent:
            tags["mlflow.parentRunId"] = parent
        return self.client.create_run(self.experiment, start_time=at, tags=tags, run_name=name).info.run_id

    def log(self, run: str, parameters: dict | None = None, metrics: list | None = None) -> None:
        from mlflow.entities import Param

        entries = [Param(_name(k), str(v)[:6000]) for k, v in (parameters or {}).items()]
        for at in range(0, len(entries), 100):  # as many as MLflow takes
            self.client.log_batch(run, params=entries[at : at + 100])
        for at in range(0, len(metrics or ()), 1000):
            self.client.log_batch(run, metrics=metrics[at : at + 1000])

    def dataset(self, run: str, data: Any, context: str) -> None:
        from mlflow.entities import DatasetInput, InputTag

        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def model(
        self, stage: reading.StageFolder, run: str, settings: dict, data: Any, tags: dict[str, str], at: int
    ) -> str:
        """Keep a stage's model with its signature, as an output of its run and a version of `workbench-STAGE`; its id."""
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.models import Model

        made = self.client.create_logged_model(
            self.experiment,
            name=stage.name,
            source_run_id=run,
            tags=tags,
            params={_name(k): str(v)[:500] for k, v in flat_text(stage.info.get("settings", {})).items()},
            model_type=f"workbench {stage.name}",
        )
        versions = stage.info.get("versions", {})
        with TemporaryDirectory() as place:
            files, model = Path(place) / "files", Path(place) / "model"
            served.gather(stage, settings, files)
            mlflow.pyfunc.save_model(
                model,
                loader_module="workbench",
                data_path=str(files),
                signature=_signature(stage.name, files),
                pip_requirements=[f"liver-workbench=={stage.info.get('version', '')}"]
                + [f"{name}=={version}" for name, version in versions.items() if name != "python"],
                mlflow_model=Model(artifact_path=made.artifact_location, run_id=run, model_id=made.model_id),
            )
            self.client.log_model_artifacts(made.model_id, str(model))
        self.client.finalize_logged_model(made.model_id, "READY")
        self.client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
        on = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        measured = _finite(stage.metrics()).items()
        self.client.log_batch(run, [Metric(_name(k), v, at, 0, model_id=made.model_id, **on) for k, v in measured])
        self._register(f"workbench-{stage.name}", made, run, tags)
        return made.model_id

    def _register(self, name: str, made, run: str, tags: dict[str, str]) -> None:
        known = self.client.search_registered_models(f"name = '{name}'")
        if not known:
            stage = name.removeprefix("workbench-")
            words = f"Stage {stage} of the workbench. Research use only: not a medical device."
            self.client.create_registered_model(name, description=words)
        new = self.client.create_model_version(name, made.artifact_location, run, tags=tags, model_id=made.model_id)
        # the model's own page shows its versions by this
        link = json.dumps([{"name": name, "version": int(new.version)}])
        self.client.set_logged_model_tags(made.model_id, {"mlflow.modelVersions": link})
        held = known[0].aliases.get(CHAMPION) if known else None
        if held is None or self.client.get_model_version(name, held).tags.get("workbench.key") == tags["workbench.key"]:
            self.client.set_registered_model_alias(name, CHAMPION, new.version)


def _dataset(experiment: reading.ExperimentFolder) -> Any:
    """The data of an experiment: its manifest's name and hash, how many patients, cases and tumors; None until the stage cohort has counted."""
    from mlflow.entities import Dataset

    info, patients = experiment.info, experiment.patients()
    if not info.get("manifest_sha256") or patients is None:
        return None
    name, sha = str(info.get("manifest", "cohort")), str(info["manifest_sha256"])
    profile = json.dumps({"patients": patients, **experiment.stages["cohort"].metrics()})
    return Dataset(_name(name), sha[:36], "local", json.dumps({"manifest": name, "sha256": sha}), profile=profile)


def _signature(stage: str, files: Path):
    """What goes in and what comes out, as `served.Served.predict` takes and gives it."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    if stage == "forest":
        taken: list = [ColSpec("double", name) for name in served.columns(files)]
        gives = (-1,)
    else:
        gives, shapes = (-1, -1, -1), {"spacing_mm": (3,)}
        taken = [TensorSpec(np.dtype(k), shapes.get(n, gives), n) for n, k in served.VOLUMES[stage].items()]
    return ModelSignature(Schema(taken), Schema([TensorSpec(np.dtype(served.GIVES[stage]), gives)]))


def _finite(values: dict) -> dict[str, float]:
    """The numbers among values that JSON gave."""
    return {k: float(v) for k, v in values.items() if type(v) in (int, float) and math.isfinite(v)}


def _metrics(points: Iterable[tuple[str, float, int, int]]) -> list:
    """MLflow's metrics of (name, value, time, step)."""
    from mlflow.entities import Metric

    return [Metric(_name(name), float(value), at, int(step)) for name, value, at, step in points]


def _numbers(values: dict, at: int) -> list:
    return _metrics((k, v, at, 0) for k, v in _finite(values).items())


def _system(table: pd.DataFrame, began: int) -> list:
    """Samples of the machine at the time when they were taken; the GPU only where there is one."""
    times = [began + int(1000 * seconds) for seconds in table["seconds"]]
    names = [name for name in SYSTEM if name in table and table[name].any()]
    return _metrics((SYSTEM[name], v, times[n], n) for name in names for n, v in enumerate(table[name]))


def _curves(table: pd.DataFrame, at: int) -> list:
    """Step metrics; a table without a `step` is counted by its rows."""
    steps = table["step"] if "step" in table else range(len(table))
    names = [c for c in table.select_dtypes("number").columns if c not in ("step", "fold")]
    return _metrics((name, v, at, n) for name in names for n, v in zip(steps, table[name]) if math.isfinite(v))


def _sync_stage(
    store: _Store,
    stage: reading.StageFolder,
    parent: str,
    common: dict[str, str],
    experiment: reading.ExperimentFolder,
    models: dict[str, str],
) -> list[str]:
    """One run for a stage, one below it for each fold. The hash is written last: a run cut short is done again.

    `models`: ids of the logged models of the stages before; a new one is added.
    """
    from mlflow.entities import LoggedModelInput

    ended = _milliseconds(stage.info.get("finished"))
    began = ended - int(1000 * float(stage.info.get("seconds") or 0))
    tags = {
        **common,
        "workbench.stage": stage.name,
        "workbench.version": str(stage.info.get("versions", {}).get("workbench") or stage.info.get("version", "")),
        "workbench.device": str(stage.info.get("device", "")),
        **{f"workbench.versions.{k}": v for k, v in stage.info.get("versions", {}).items()},
    }
    run = store.start(stage.name, tags, parent, began)
    inputs = {f"input.{k}": v for k, v in flat_text(stage.info.get("inputs", {})).items()}
    store.log(
        run,
        {**flat_text(stage.info.get("settings") or {}), **inputs},
        _numbers({**stage.metrics(), "seconds": stage.info.get("seconds")}, ended),
    )
    if (data := _dataset(experiment)) is not None:
        store.dataset(run, data, "evaluation" if stage.name == "metrics" else "training")
    if used := [LoggedModelInput(models[name]) for name in stage.info.get("inputs", {}) if name in models]:
        store.client.log_inputs(run, models=used)
    if (system := stage.table("system.csv")) is not None:
        store.log(run, metrics=_system(system, began))
    added = [stage.name]
    curves = stage.table("curves.csv")
    folds: dict[int, list[Path]] = {}
    for path in sorted(stage.path.glob("fold[0-9]*.json")):
        folds.setdefault(int(re.match(r"fold(\d+)", path.name)[1]), []).append(path)
    for fold, files in sorted(folds.items()):
        child = store.start(f"{stage.name} fold {fold}", {**tags, "workbench.fold": str(fold)}, run, began)
        if curves is not None and "fold" in curves:
            store.log(child, metrics=_curves(curves[curves["fold"] == fold], ended))
        for file in files:
            about = json.loads(file.read_text())
            store.log(child, flat_text(about.get("config", {})), _numbers(about, ended))
            store.client.log_artifact(child, str(file))
        store.client.set_terminated(child, "FINISHED", ended)
        added.append(f"{stage.name} fold {fold}")
    if curves is not None and not folds:
        store.log(run, metrics=_curves(curves, ended))
    for file in sorted(p for p in stage.path.iterdir() if p.is_file() and not p.name.startswith((".", "fold"))):
        if file.suffix in (".json", ".csv") and file.stat().st_size < 2_000_000:
            store.client.log_artifact(run, str(file))
    if stage.name in table.names(model=True) and served.weights(stage):
        marks = {
            **common,
            "workbench.stage_sha256": stage.sha256,
            "workbench.preset": str(experiment.info.get("preset")),
        }
        models[stage.name] = store.model(stage, run, experiment.info.get("settings", {}), data, marks, ended)
        store.client.set_tag(run, "workbench.model_id", models[stage.name])
    store.client.set_terminated(run, "FINISHED", ended)
    store.client.set_tag(run, "workbench.stage_sha256", stage.sha256)
    return added


def _changed(store: _Store, parent: str, have: dict[str, str], wanted: list[tuple[Path, str]]) -> list[str]:
    """Keep those files, each under a folder of the run, whose size or time changed."""
    added = []
    for path, under in wanted:
        tag = f"mlflow.workbench.file.{_name(f'{under}/{path.name}')}"  # mlflow.*: its pages do not show these
        state = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        if have.get(tag) != state:
            store.client.log_artifact(parent, str(path), under or None)
            store.client.set_tag(parent, tag, state)
            added.append(path.name)
    return added


def _marks(folder: Path) -> dict[str, str]:
    """The tags by which all runs of a folder are known."""
    return {"workbench.key": folder_key(folder), "workbench.folder": str(folder.resolve())}


def _sync(folder: Path, place: Path) -> SyncReport:
    store = _Store(place)
    experiment = reading.experiment(folder)
    info, patients = experiment.info, experiment.patients()
    common = {**_marks(folder), "workbench.dataset_sha256": str(info.get("manifest_sha256", ""))}
    key = common["workbench.key"]
    elsewhere = {n: run for n, s in experiment.stages.items() if (run := store.run_of(s.sha256, key))}
    if experiment.stages and elsewhere.keys() == experiment.stages.keys() and not store.runs(key):
        return SyncReport((), len(elsewhere))  # a copy, or an experiment that was moved: nothing in it is new
    existing, before, parent = store.parent(folder, {**common, "workbench.version": str(info.get("version", ""))})
    have, added = (before.data.tags, []) if before else ({}, [folder.resolve().name])
    own = {k: v for k, v in info.items() if k not in ("settings", "manifest_rows")}
    told = {_name(k): str(v)[:6000] for k, v in {**flat_text(own), **flat_text(info.get("settings") or {})}.items()}
    if "workbench.settings" not in have:  # also after a sync that was cut short here
        store.log(parent, told)
        store.client.set_tag(parent, "workbench.settings", "logged")
    else:  # a parameter stays as it was logged: what was changed since stands in a tag
        for name, value in told.items():
            if value != have.get(f"changed.{name}", before.data.params.get(name, value)):
                store.client.set_tag(parent, f"changed.{name}", value)
    if (data := _dataset(experiment)) and have.get("workbench.patients") != str(patients):
        store.dataset(parent, data, "training")
        store.client.set_tag(parent, "workbench.patients", str(patients))

    stages = [r for r in existing if "workbench.stage" in r.data.tags and "workbench.fold" not in r.data.tags]
    known = {(r.data.tags["workbench.stage"], r.data.tags.get("workbench.stage_sha256")) for r in stages}
    tags = [r.data.tags for r in [*elsewhere.values(), *stages] if "workbench.model_id" in r.data.tags]
    models, unchanged = {t["workbench.stage"]: t["workbench.model_id"] for t in tags}, 0
    of_stages = {**common, "workbench.patients": str(patients or "")}
    for stage in experiment.stages.values():
        if (stage.name, stage.sha256) in known or stage.name in elsewhere:
            unchanged += 1
            continue
        for old in stages:
            if old.data.tags["workbench.stage"] == stage.name:
                store.client.set_tag(old.info.run_id, "workbench.superseded", "true")
                if old.info.status == "RUNNING":  # a sync that was cut short
                    store.client.set_terminated(old.info.run_id, "KILLED")
        added += _sync_stage(store, stage, parent, of_stages, experiment, models)
        at = _milliseconds(stage.info.get("finished"))
        store.log(parent, metrics=_numbers({f"{stage.name}.{k}": v for k, v in stage.metrics().items()}, at))
    files = [(p, "figures") for p in sorted(folder.glob("figures/*.png"))]
    files += [(p, "notebooks") for kind in ("ipynb", "html") for p in sorted(folder.glob(f"notebooks/*.{kind}"))]
    files += [(p, "") for p in (folder / "report.html", folder / "experiment.json") if p.exists()]
    added += _changed(store, parent, have, files)
    status = "KILLED" if any(folder.glob("*/killed.json")) else "FINISHED"
    if added or before.info.status != status:
        store.client.set_terminated(parent, status, _now())
    return SyncReport(tuple(added), unchanged)


def _sync_sweep(folder: Path, place: Path) -> SyncReport:
    store = _Store(place)
    about = read_json(folder / "sweep.json", over=list, experiment=str)
    trials = [read_json(file, "values") for file in sorted(folder.glob("trials/*/trial.json"))]
    common = {**_marks(folder), "workbench.sweep": "true"}
    existing, before, parent = store.parent(folder, common)
    have, added = (before.data.tags, []) if before else ({}, [folder.resolve().name])
    if "workbench.settings" not in have:
        told = {k: about[k] for k in ("experiment", "first", "after", "seed", "manifest_sha256")}
        ranges = {f"over.{name}": values for name, _, values in (text.partition("=") for text in about["over"])}
        store.log(parent, {**told, **ranges})
        store.client.set_tag(parent, "workbench.settings", "logged")
    known = {r.data.tags.get("workbench.trial") for r in existing if "workbench.whole" in r.data.tags}
    best = -math.inf
    for trial in trials:
        number, began, ended = str(trial["trial"]), int(1000 * trial["began"]), int(1000 * trial["ended"])
        best = max(best, trial["score"] if trial["score"] is not None else best)
        if number in known:
            continue
        for old in existing:
            if old.data.tags.get("workbench.trial") == number:  # a sync that was cut short
                store.client.delete_run(old.info.run_id)
        tags = {**common, "workbench.trial": number, "workbench.state": trial["state"]}
        run = store.start(f"trial {number}", tags, parent, began)
        told = _metrics(("told", figure, ended, step) for step, figure in trial["curve"])
        store.log(run, flat_text(trial["values"]), [*told, *_numbers({"score": trial["score"]}, ended)])
        status = {"complete": "FINISHED", "pruned": "KILLED"}.get(trial["state"], "FAILED")
        store.client.set_terminated(run, status, ended)
        store.client.set_tag(run, "workbench.whole", "true")
        store.log(parent, metrics=_numbers({"best": best}, ended))
        added.append(f"trial {number}")
    files = (folder / name for name in ("sweep.json", "trials.csv", "best.json", "sweep.png"))
    added += _changed(store, parent, have, [(file, "") for file in files if file.is_file()])
    if added:
        store.client.set_terminated(parent, "FINISHED", _now())
    return SyncReport(tuple(added), len(known))


def sync(experiment: str | Path, store: str | Path | None = None) -> SyncReport:
    """Bring the store up to what the experiment folder holds. A store that cannot be reached is reported, never raised.

    `store` is the mlruns folder: mlflow.db and artifacts/ lie in it.
    """
    reading.experiment(experiment)  # no such folder: the caller's mistake
    return _kept_going(_sync, Path(experiment), store)


def sync_sweep(sweep: str | Path, store: str | Path | None = None) -> SyncReport:
    """The same for the folder of a sweep: one parent run, and one run below it for each trial that has ended."""
    return _kept_going(_sync_sweep, Path(sweep), store)


def _kept_going(work: Callable[[Path, Path], SyncReport], folder: Path, store: str | Path | None) -> SyncReport:
    started = time.monotonic()
    place = Path(store) if store else default_store()
    report = SyncReport(reason=_reachable(place))
    if report.ok:
        try:
            with _quiet(), _alone(place):
                report = work(folder, place)
        except Exception as error:  # whatever the store does, the work that it would only have recorded goes on
            report = SyncReport(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return replace(report, seconds=time.monotonic() - started)
