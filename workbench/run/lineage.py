"""From a result back to the MLflow runs and model versions that made it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from workbench.experiment import reading
from workbench.run import tracking
from workbench.volume import Refused


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


def of(result: str | Path, store: str | Path | None = None) -> tuple[list[Origin], str]:
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
    place = Path(store) if store else tracking.default_store()
    if not (place / "mlflow.db").is_file():
        return origins, f"{place} holds no mlflow.db"
    if reason := tracking._reachable(place):
        return origins, reason
    with tracking._quiet():
        return _origins(tracking._Store(place), origins, tracking.folder_key(folder.path / made["experiment"])), ""


def _origins(store: tracking._Store, origins: list[Origin], key: str) -> list[Origin]:
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
