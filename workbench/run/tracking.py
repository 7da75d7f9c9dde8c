"""MLflow, fed from the experiment folder. The only module that imports mlflow.

Chooses: the experiment folder is the record and MLflow a view of it. `sync` reads the folder and adds what the store
does not have yet: one parent run per folder, one child run per finished stage, one run per fold below it. A stage is
known by the hash of its stage.json: a second sync adds nothing, nor does one of a copied folder, and a stage that was run again gets a new run. A store
that is dead, locked or missing is reported, never raised: the work goes on and the next sync catches up.

A stage's model becomes a version of the registered model `workbench-STAGE`. The alias `champion` goes to the first version and
follows its experiment when that is trained again; from one experiment to another only a person moves it, since
measures on different patients do not compare. `lineage` leads from a result back to the runs that made its models.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from workbench.data.files import CHECKOUT, flat_text, read_json
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
    with open(store / ".sync.lock", "a") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
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


def _milliseconds(iso: str | None) -> int:
    try:
        return int(datetime.fromisoformat(iso).timestamp() * 1000)
    except (TypeError, ValueError):
        return int(time.time() * 1000)


class _Store:
    """The few things that a sync asks of MLflow."""

    def __init__(self, store: Path):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri(store))
        found = self.client.get_experiment_by_name(EXPERIMENT)
        self.experiment = (
            found.experiment_id
            if found
            else self.client.create_experiment(EXPERIMENT, artifact_location=(store.resolve() / "artifacts").as_uri())
        )

    def runs(self, key: str) -> list:
        """All runs of an experiment folder, the oldest first."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                filter_string=f"tags.`workbench.key` = '{key}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += list(page)
            token = page.token
            if not token:
                return found

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
        metrics = metrics or []
        for at in range(0, len(entries), 100):
            self.client.log_batch(run, params=entries[at : at + 100])
        for at in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[at : at + 1000])

    def end(self, run: str, at: int, status: str = "FINISHED") -> None:
        self.client.set_terminated(run, status, at)

    def dataset(self, run: str, cohort: Cohort, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=_name(cohort.name),
            digest=cohort.sha256[:36],
            source_type="local",
            source=json.dumps({"manifest": cohort.name, "sha256": cohort.sha256}),
            profile=json.dumps(cohort.profile),
        )
        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def uses(self, run: str, models: list[str]) -> None:
        """Link a run to the logged models that it worked with."""
        from mlflow.entities import LoggedModelInput

        if models:
            self.client.log_inputs(run, models=[LoggedModelInput(model) for model in models])

    def model(
        self,
        stage: reading.StageFolder,
        run: str,
        settings: dict,
        cohort: Cohort | None,
        tags: dict[str, str],
        at: int,
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
        on = {"dataset_name": _name(cohort.name), "dataset_digest": cohort.sha256[:36]} if cohort else {}
        measured = _finite(stage.metrics()).items()
        self.client.log_batch(run, [Metric(_name(k), v, at, 0, model_id=made.model_id, **on) for k, v in measured])
        self._register(f"workbench-{stage.name}", made, run, tags)
        return made.model_id

    def _register(self, name: str, made, run: str, tags: dict[str, str]) -> None:
        known = self.client.search_registered_models(f"name = '{name}'")
        if not known:
            words = (
                f"Stage {name.removeprefix('workbench-')} of the workbench. Research use only: not a medical device."
            )
            self.client.create_registered_model(name, description=words)
        new = self.client.create_model_version(name, made.artifact_location, run, tags=tags, model_id=made.model_id)
        # the model's own page shows its versions by this
        link = json.dumps([{"name": name, "version": int(new.version)}])
        self.client.set_logged_model_tags(made.model_id, {"mlflow.modelVersions": link})
        held = known[0].aliases.get(CHAMPION) if known else None
        if held is None or self.client.get_model_version(name, held).tags.get("workbench.key") == tags["workbench.key"]:
            self.client.set_registered_model_alias(name, CHAMPION, new.version)


@dataclass(frozen=True)
class Cohort:
    """The data of an experiment: its manifest's name and hash, and how many patients, cases and tumors it has."""

    name: str
    sha256: str
    profile: dict

    @classmethod
    def of(cls, experiment: reading.ExperimentFolder) -> Cohort | None:
        """None until the stage cohort has counted."""
        info, patients = experiment.info, experiment.patients()
        if not info.get("manifest_sha256") or patients is None:
            return None
        return cls(
            str(info.get("manifest", "cohort")),
            str(info["manifest_sha256"]),
            {"patients": patients, **experiment.stages["cohort"].metrics()},
        )


def _signature(stage: str, files: Path):
    """What goes in and what comes out, as `served.Served.predict` takes and gives it."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    if stage == "forest":
        return ModelSignature(
            Schema([ColSpec("double", name) for name in served.columns(files)]),
            Schema([TensorSpec(np.dtype(served.GIVES[stage]), (-1,))]),
        )
    shapes = {"spacing_mm": (3,)}
    taken = served.VOLUMES[stage].items()
    return ModelSignature(
        Schema([TensorSpec(np.dtype(kind), shapes.get(name, (-1, -1, -1)), name) for name, kind in taken]),
        Schema([TensorSpec(np.dtype(served.GIVES[stage]), (-1, -1, -1))]),
    )


def _finite(values: dict) -> dict[str, float]:
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    }


def _numbers(values: dict, at: int) -> list:
    from mlflow.entities import Metric

    return [Metric(_name(k), v, at, 0) for k, v in _finite(values).items()]


def _system(table: pd.DataFrame, began: int) -> list:
    """Samples of the machine at the time when they were taken; the GPU only where there is one."""
    from mlflow.entities import Metric

    return [
        Metric(SYSTEM[name], float(value), began + int(1000 * seconds), step)
        for name in SYSTEM
        if name in table and table[name].any()
        for step, (seconds, value) in enumerate(zip(table["seconds"], table[name]))
    ]


def _curves(table: pd.DataFrame, at: int) -> list:
    """Step metrics; a table without a `step` is counted by its rows."""
    from mlflow.entities import Metric

    steps = table["step"].astype(int) if "step" in table else pd.Series(range(len(table)), index=table.index)
    names = [c for c in table.select_dtypes("number").columns if c not in ("step", "fold")]
    return [
        Metric(_name(name), float(value), at, int(step))
        for name in names
        for step, value in zip(steps, table[name])
        if math.isfinite(value)
    ]


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
        {**flat_text(stage.info.get("settings", {})), **inputs} if stage.info.get("settings") else inputs,
        _numbers({**stage.metrics(), "seconds": stage.info.get("seconds")}, ended),
    )
    if (cohort := Cohort.of(experiment)) is not None:
        store.dataset(run, cohort, "evaluation" if stage.name == "metrics" else "training")
    store.uses(run, [models[name] for name in stage.info.get("inputs", {}) if name in models])
    if (system := stage.table("system.csv")) is not None:
        store.log(run, metrics=_system(system, began))
    added = [stage.name]
    curves = stage.table("curves.csv")
    folds: dict[int, list[Path]] = {}
    for path in sorted(stage.path.glob("fold*.json")):
        if match := re.match(r"fold(\d+)\.", path.name):
            folds.setdefault(int(match[1]), []).append(path)
    for fold, files in sorted(folds.items()):
        child = store.start(f"{stage.name} fold {fold}", {**tags, "workbench.fold": str(fold)}, run, began)
        if curves is not None and "fold" in curves:
            store.log(child, metrics=_curves(curves[curves["fold"] == fold], ended))
        for file in files:
            about = json.loads(file.read_text())
            store.log(child, flat_text(about.get("config", {})), _numbers(about, ended))
            store.client.log_artifact(child, str(file))
        store.end(child, ended)
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
        models[stage.name] = store.model(stage, run, experiment.info.get("settings", {}), cohort, marks, ended)
        store.client.set_tag(run, "workbench.model_id", models[stage.name])
    store.end(run, ended)
    store.client.set_tag(run, "workbench.stage_sha256", stage.sha256)
    return added


def _sync_files(store: _Store, parent: str, have: dict[str, str], experiment: Path) -> list[str]:
    """Figures, executed notebooks and the report of the parent run."""
    wanted = [(p, "figures") for p in sorted(experiment.glob("figures/*.png"))]
    wanted += [(p, "notebooks") for kind in ("ipynb", "html") for p in sorted(experiment.glob(f"notebooks/*.{kind}"))]
    wanted += [(p, "") for p in (experiment / "report.html", experiment / "experiment.json") if p.exists()]
    return _changed(store, parent, have, wanted)


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


def _sync(folder: Path, place: Path) -> SyncReport:
    store = _Store(place)
    experiment = reading.experiment(folder)
    name = str(folder.resolve())
    existing = store.runs(folder_key(folder))
    parents = [r for r in existing if "mlflow.parentRunId" not in r.data.tags]
    info, patients = experiment.info, experiment.patients()
    digest = str(info.get("manifest_sha256", ""))
    common = {"workbench.key": folder_key(folder), "workbench.folder": name, "workbench.dataset_sha256": digest}
    elsewhere = {
        n: run for n, s in experiment.stages.items() if (run := store.run_of(s.sha256, common["workbench.key"]))
    }
    if not parents and experiment.stages and elsewhere.keys() == experiment.stages.keys():
        return SyncReport((), len(elsewhere))  # a copy, or an experiment that was moved: nothing in it is new
    added: list[str] = []
    if parents:
        parent, have = parents[0].info.run_id, parents[0].data.tags
    else:
        tags = {**common, "workbench.version": str(info.get("version", ""))}
        parent, have = store.start(folder.resolve().name, tags, None, int(time.time() * 1000)), {}
        added.append(folder.resolve().name)
    own = {k: v for k, v in info.items() if k not in ("settings", "manifest_rows")}
    told = {_name(k): str(v)[:6000] for k, v in {**flat_text(own), **flat_text(info.get("settings") or {})}.items()}
    if "workbench.settings" not in have:  # also after a sync that was cut short here
        store.log(parent, told)
        store.client.set_tag(parent, "workbench.settings", "logged")
    elif parents:  # a parameter stays as it was logged: what was changed since stands in a tag
        for name, value in told.items():
            if value != have.get(f"changed.{name}", parents[0].data.params.get(name, value)):
                store.client.set_tag(parent, f"changed.{name}", value)
    if (cohort := Cohort.of(experiment)) and have.get("workbench.patients") != str(patients):
        store.dataset(parent, cohort, "training")
        store.client.set_tag(parent, "workbench.patients", str(patients))

    stages = [r for r in existing if "workbench.stage" in r.data.tags and "workbench.fold" not in r.data.tags]
    known = {(r.data.tags["workbench.stage"], r.data.tags.get("workbench.stage_sha256")) for r in stages}
    models = {
        t["workbench.stage"]: t["workbench.model_id"]
        for r in [*elsewhere.values(), *stages]
        if "workbench.model_id" in (t := r.data.tags)
    }
    unchanged = 0
    for stage in experiment.stages.values():
        if (stage.name, stage.sha256) in known or stage.name in elsewhere:
            unchanged += 1
            continue
        for old in stages:
            if old.data.tags["workbench.stage"] == stage.name:
                store.client.set_tag(old.info.run_id, "workbench.superseded", "true")
                if old.info.status == "RUNNING":  # a sync that was cut short
                    store.client.set_terminated(old.info.run_id, "KILLED")
        added += _sync_stage(
            store, stage, parent, {**common, "workbench.patients": str(patients or "")}, experiment, models
        )
        at = _milliseconds(stage.info.get("finished"))
        store.log(parent, metrics=_numbers({f"{stage.name}.{k}": v for k, v in stage.metrics().items()}, at))
    added += _sync_files(store, parent, have, folder)
    status = "KILLED" if any(folder.glob("*/killed.json")) else "FINISHED"
    if added or parents[0].info.status != status:
        store.end(parent, int(time.time() * 1000), status)
    return SyncReport(tuple(added), unchanged)


def _sync_sweep(folder: Path, place: Path) -> SyncReport:
    from mlflow.entities import Metric

    store, key = _Store(place), folder_key(folder)
    about = read_json(folder / "sweep.json", over=list, experiment=str)
    trials = [read_json(file, "values") for file in sorted(folder.glob("trials/*/trial.json"))]
    existing = store.runs(key)
    parents = [r for r in existing if "mlflow.parentRunId" not in r.data.tags]
    common = {"workbench.key": key, "workbench.folder": str(folder.resolve()), "workbench.run.sweep": "true"}
    added: list[str] = []
    if parents:
        parent, have = parents[0].info.run_id, parents[0].data.tags
    else:
        parent, have = store.start(folder.resolve().name, common, None, int(time.time() * 1000)), {}
        added.append(folder.resolve().name)
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
        told = [Metric("told", float(figure), ended, int(step)) for step, figure in trial["curve"]]
        store.log(run, flat_text(trial["values"]), [*told, *_numbers({"score": trial["score"]}, ended)])
        store.end(run, ended, {"complete": "FINISHED", "pruned": "KILLED"}.get(trial["state"], "FAILED"))
        store.client.set_tag(run, "workbench.whole", "true")
        store.log(parent, metrics=_numbers({"best": best}, ended))
        added.append(f"trial {number}")
    files = [
        (p, "") for p in (folder / n for n in ("sweep.json", "trials.csv", "best.json", "sweep.png")) if p.is_file()
    ]
    added += _changed(store, parent, have, files)
    if added:
        store.end(parent, int(time.time() * 1000))
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
    if reason := _reachable(place):
        return SyncReport(reason=reason, seconds=time.monotonic() - started)
    try:
        with _quiet(), _alone(place):
            report = work(folder, place)
    except Exception as error:  # whatever the store does, the work that it would only have recorded goes on
        line = " ".join(str(error).split())[:300]
        return SyncReport(reason=f"{type(error).__name__}: {line}", seconds=time.monotonic() - started)
    return SyncReport(report.added, report.unchanged, seconds=time.monotonic() - started)


@dataclass(frozen=True)
class Origin:
    """Where one stage's model of a result comes from: the hash of its stage.json, and what the store knows of it.

    `run` and `model` are empty where the store does not know the hash.
    """

    stage: str
    sha256: str
    run: str = ""
    finished: str = ""
    model: str = ""


def lineage(result: str | Path, store: str | Path | None = None) -> tuple[list[Origin], str]:
    """The runs that made the models of a result, and why the store could not be asked (or empty).

    A hash that several folders share (a copied experiment) leads to the run of the experiment that the result names.
    """
    folder = reading.result(result)
    made = folder.info.get("models")
    if not made:
        raise Refused(
            folder.path, "no models named in result.json", "a result that names them", "Segment the scan again."
        )
    origins = [Origin(stage, sha) for stage, sha in made["stages"].items()]
    place = Path(store) if store else default_store()
    if not (place / "mlflow.db").is_file():
        return origins, f"{place} holds no mlflow.db"
    if reason := _reachable(place):
        return origins, reason
    with _quiet():
        return _origins(_Store(place), origins, folder_key(folder.path / made["experiment"])), ""


def _origins(store: _Store, origins: list[Origin], key: str) -> list[Origin]:
    found = []
    for origin in origins:
        runs = store.client.search_runs(
            [store.experiment], filter_string=f"tags.`workbench.stage_sha256` = '{origin.sha256}'"
        )
        runs = sorted(runs, key=lambda r: r.data.tags.get("workbench.key") != key)
        if not runs:
            found.append(origin)
            continue
        run, name = runs[0], f"workbench-{origin.stage}"
        of = store.client.search_model_versions(f"name = '{name}'")  # without their aliases
        versions = [store.client.get_model_version(name, v.version) for v in of if v.run_id == run.info.run_id]
        words = [f"{name} {v.version}" + "".join(f" @{a}" for a in v.aliases) for v in versions]
        at = datetime.fromtimestamp(run.info.end_time / 1000).isoformat(" ", "minutes")
        found.append(Origin(origin.stage, origin.sha256, run.info.run_id, at, ", ".join(words)))
    return found
