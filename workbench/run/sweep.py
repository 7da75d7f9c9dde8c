"""A sweep: many trials of other stage settings on one experiment's training patients. The only module that imports Optuna.

Chooses: the score is a Dice of patients that the trial's models have not learnt from, each training patient's where its fold is
held out. The experiment's held-out patients are not there: `base` is the experiment without them, by hard links, and each trial takes
from it the stages before the first one that it changes. The first trial has the experiment's own settings. The folder is the
record: `sweep.json` says what is swept, `study.db` is Optuna's, and each trial that has ended leaves its `trial.json`. The same
command goes on after any end, a trial that was killed too.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.data import cohort
from workbench.data.files import flat, from_dict, held, read_json, sha256, write_atomic, write_json, write_table
from workbench.data.threads import guarded
from workbench.experiment import Experiment, Settings, pipeline
from workbench.experiment.table import STAGES, before, names
from workbench.run import tracking
from workbench.run.scoring import score
from workbench.volume import Refused

WORDS = "int:LOW:HIGH, float:LOW:HIGH, log:LOW:HIGH or one:A,B,..."
Tell = Callable[[str], None]


# ---------------------------------------------------------------- what is swept


@dataclass(frozen=True)
class Over:
    """One setting and the values that it may take: a range (int, float, log), or one of `choices`, each as JSON."""

    name: str
    kind: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Over:
        """From NAME=KIND:..., as on the command line."""
        name, _, rest = text.partition("=")
        kind, _, values = rest.partition(":")
        try:
            if kind == "one":
                given = json.loads(values) if values.startswith("[") else [_value(v) for v in values.split(",")]
                return cls(name, kind, choices=tuple(dict.fromkeys(json.dumps(v) for v in given)))
            low, high = map({"int": int, "float": float, "log": float}[kind], values.split(":"))
        except (KeyError, ValueError):
            raise Refused(f"--over {name}", rest or "no values", WORDS) from None
        if not (low < high and math.isfinite(low) and math.isfinite(high)) or (kind == "log" and low <= 0):
            raise Refused(f"--over {name}", rest, "a lower and a higher end" + ", both above 0" * (kind == "log"))
        return cls(name, kind, low, high)

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]

    @property
    def ends(self) -> list[Any]:
        """The ends of the range, or all choices."""
        return [json.loads(c) for c in self.choices] if self.kind == "one" else [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether a value is among them."""
        if self.kind == "one":
            return value in self.ends
        return isinstance(value, int | float) and self.low <= value <= self.high

    def told(self, value: Any) -> Any:
        """A value as Optuna keeps it."""
        return json.dumps(value) if self.kind == "one" else value

    def distribution(self) -> Any:
        from optuna import distributions

        if self.kind == "one":
            return distributions.CategoricalDistribution(self.choices)
        if self.kind == "int":
            return distributions.IntDistribution(int(self.low), int(self.high))
        return distributions.FloatDistribution(self.low, self.high, log=self.kind == "log")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values under dotted names; refused where a name, a kind or a value does not fit."""
    nested = json.loads(json.dumps(asdict(settings)))
    for name, value in values.items():
        above = name.split(".")
        place = reduce(lambda held, key: held[key], above[:-1], nested)
        place[above[-1]] = value
    return from_dict(Settings, nested, ", ".join(f"{k} {v}" for k, v in values.items()), fix="")


def checked(settings: Settings, over: Sequence[Over]) -> None:
    """Refuse names that are no setting, that would change what is measured, or that cannot take a value of their range."""
    known = [
        name for name in flat(json.loads(json.dumps(asdict(settings)))) if "." in name and not name.endswith(".seed")
    ]
    if not over:
        raise Refused("workbench sweep", "nothing to sweep over", f"--over NAME={WORDS.split(',')[0]}, once or more")
    for n, one in enumerate(over):
        if one.name not in known:
            near = difflib.get_close_matches(one.name, known, 3)
            raise Refused(
                "--over",
                one.name,
                "a setting of a stage, by its dotted name, no seed",
                f"Is it {' or '.join(near)}?" if near else "experiment.json of an experiment has them all.",
            )
        if one.name in [other.name for other in over[:n]]:
            raise Refused("--over", f"{one.name} twice", "each setting once")
        for value in one.ends:
            changed(settings, {one.name: value})


# ---------------------------------------------------------------- the experiment without its held-out patients


def take(source: Experiment, made: Experiment, stages: Iterable[str], without: Sequence[str] = ()) -> None:
    """What finished stages of one experiment left becomes another's, by hard links; files and rows of the cases `without` stay behind."""
    for stage in stages:
        if made.finished(stage):
            continue
        if not source.finished(stage):
            raise Refused(
                source.folder,
                f"the stage {stage} has not run, or does not hold any more",
                "it finished",
                f"`workbench train all --cohort {source.manifest} -o {source.folder}` finishes it.",
            )
        about, folder = read_json(source.path(stage) / "stage.json", outputs=dict), made.path(stage)
        outputs = {}
        for name, digest in about["outputs"].items():
            origin, place = source.path(stage) / name, folder / name
            if origin.stem in without or name == "metrics.json":  # its figures are of all cases
                continue
            table = (
                pd.read_csv(origin, dtype=str, keep_default_na=False) if without and origin.suffix == ".csv" else None
            )
            if table is not None and "case" in table:
                write_table(place, table[~table.case.isin(without)])
                digest = sha256(place)
            else:
                _link(origin, place)
            outputs[name] = digest
        write_json(folder / "stage.json", {**about, **made.identity(stage), "outputs": outputs})


def _said_by_hand(source: Experiment, made: Experiment) -> None:
    """Copy what readers corrected and what was left out of training."""
    for name in ("corrections", "exclusions"):
        if source.path(name).is_dir() and not made.path(name).is_dir():
            shutil.copytree(source.path(name), made.path(name))


def _link(origin: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(origin, place)
    except OSError:  # another file system
        shutil.copyfile(origin, place)


def _without_held_out(experiment: Experiment, folder: Path, stages: Sequence[str]) -> Experiment:
    """The experiment of the training patients alone, in `folder`/base."""
    cases = cohort.read_manifest(experiment.manifest)
    columns = [*cohort.COLUMNS, *cohort.OPTIONAL]
    table = pd.DataFrame([[getattr(c, name) for name in columns] for c in cases if c.split == "train"], columns=columns)
    for name in ("ct", "labels"):
        table[name] = [str(path.resolve()) if path else "" for path in table[name]]
    if not (folder / "manifest.csv").is_file():
        write_table(folder / "manifest.csv", table)
    wanted, on, start, taken = experiment.settings, str(experiment.device), experiment.start, experiment.taken
    base = Experiment.create(folder / "base", folder / "manifest.csv", wanted, on, start=start, take=taken)
    _said_by_hand(experiment, base)
    take(experiment, base, stages, [c.case for c in cases if c.split != "train"])
    return base


# ---------------------------------------------------------------- many trials


@dataclass(frozen=True)
class Plan:
    """A sweep as its folder keeps it: of which experiment, over what, scored after which stage."""

    folder: Path
    over: tuple[Over, ...]
    first: str
    after: str
    seed: int
    startup: int

    @classmethod
    def read(cls, folder: Path) -> Plan:
        about = read_json(folder / "sweep.json", over=list, first=str, after=str, seed=int, startup=int)
        return cls(
            folder, tuple(map(Over.parse, about["over"])), *(about[k] for k in ("first", "after", "seed", "startup"))
        )

    def study(self, worker: int = 0) -> Any:
        """Optuna's study, made where there is none. Its sampler draws otherwise in each worker, and after each new start."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        url = f"sqlite:///{self.folder.resolve() / 'study.db'}"
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(self.startup, n_warmup_steps=10),
        )
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + 1000 * worker + len(study.trials))
        return study

    def trial(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"


def prepare(
    experiment: str | Path,
    folder: str | Path,
    over: Sequence[str],
    after: str = "",
    seed: int = 0,
    startup: int = 5,
    device: str = "auto",
) -> Plan:
    """Make the folder of a sweep ready, or open it; refused when it holds another sweep."""
    _optuna()
    source, folder = Experiment(experiment, device), Path(folder)
    swept = tuple(map(Over.parse, over))
    checked(source.settings, swept)
    places = sorted(names().index(one.stage) for one in swept)
    first, last = names()[places[0]], names()[places[-1]]
    after = after or next(stage for stage in names(scored=True) if names().index(stage) >= places[-1])
    if after not in names(scored=True) or names().index(after) < places[-1]:
        late = [stage for stage in names(scored=True) if names().index(stage) >= places[-1]]
        raise Refused("--after", after, f"{' or '.join(late)}, since {last} is swept")
    stages = names()[: places[0]]
    about = {
        "experiment": os.path.relpath(source.folder, folder),
        "over": list(over),
        "first": first,
        "after": after,
        "seed": seed,
        "startup": startup,
        "manifest_sha256": source.manifest_sha256,
        "settings": json.loads(json.dumps(asdict(source.settings))),
        "stages": {stage: sha256(source.path(stage) / "stage.json") for stage in stages if source.finished(stage)},
    }
    file = folder / "sweep.json"
    if file.is_file() and (stored := read_json(file)) != about:
        differs = [key for key in about if stored.get(key) != about[key]]
        raise Refused(
            folder,
            f"a sweep with other {', '.join(differs)}",
            "the same, to go on with it",
            "Choose another folder with -o.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        if not file.is_file():
            shutil.rmtree(folder / "base", ignore_errors=True)  # what was begun and not ended
        _without_held_out(source, folder, stages)
        write_json(file, about)
    return Plan.read(folder)


def run(
    plan: Plan, trials: int, workers: int = 1, device: str = "auto", store: Path | None = None, tell: Tell | None = None
) -> pd.DataFrame:
    """Go on until so many trials have ended, in so many processes; give the table of them. MLflow is brought up to it.

    `tell` is given a line a trial; with several processes it is pickled.
    """
    with held(plan.folder):
        with held(plan.folder, name=".work.lock"):  # refused while a worker that outlived its sweep is at something
            pass
        study = plan.study()
        _take_up(study, plan)
        if workers == 1 or not guarded():
            _work(plan.folder, 0, trials, device, tell)
        else:
            _side_by_side(plan, trials, workers, device, store, tell)
        table = finish(plan)
    report = tracking.sync_sweep(plan.folder, store)
    if tell:
        tell(str(report))
    return table


def _take_up(study: Any, plan: Plan) -> None:
    """What a killed sweep was at is waiting again, with its folder; an untouched study begins with the experiment's own settings."""
    from optuna.trial import TrialState

    names = {one.name for one in plan.over}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if set(trial.params) == names:
            study.enqueue_trial(trial.params, {"folder": trial.user_attrs.get("folder", trial.number)})
    own = flat(read_json(plan.folder / "sweep.json")["settings"])
    if not study.trials and all(one.holds(own[one.name]) for one in plan.over):
        study.enqueue_trial({one.name: one.told(own[one.name]) for one in plan.over})


def _side_by_side(plan: Plan, trials: int, workers: int, device: str, store: Path | None, tell: Tell | None) -> None:
    begin = get_context("spawn").Process
    given = (trials, device, tell, workers, os.getpid())
    people = [begin(target=_worker, args=(plan.folder, n, *given)) for n in range(workers)]
    for one in people:
        one.start()
    seen = 0
    try:
        while any(one.is_alive() for one in people):
            people[0].join(0.5)
            time.sleep(0.5)
            ended = len(list(plan.folder.glob("trials/*/trial.json")))
            if ended > seen:
                seen = ended
                tracking.sync_sweep(plan.folder, store)
    finally:
        for one in people:
            one.terminate() if one.is_alive() else None
            one.join()
    if wrong := [one.exitcode for one in people if one.exitcode]:
        raise RuntimeError(f"a worker of the sweep ended with status {wrong[0]}; the same command goes on")


def _worker(folder: Path, n: int, trials: int, device: str, tell: Tell | None, workers: int, parent: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        _work(folder, n, trials, device, tell, parent)
    except KeyboardInterrupt:
        os._exit(0)


def _work(folder: Path, worker: int, trials: int, device: str, tell: Tell | None, parent: int | None = None) -> None:
    """One trial after the other until enough have begun, or until who started this is gone."""
    from optuna.trial import TrialState

    plan = Plan.read(folder)
    study, space = plan.study(worker), {one.name: one.distribution() for one in plan.over}
    with held(folder, shared=True, name=".work.lock"):
        while parent is None or os.getppid() == parent:
            with pipeline.one_at_a_time(folder):
                counted = sum(t.state != TrialState.FAIL or "reason" in t.user_attrs for t in study.get_trials(False))
                waiting = len(study.get_trials(False, states=(TrialState.WAITING,)))
                if counted - waiting >= trials:
                    return
                trial = study.ask(space)
            line = _one(plan, study, trial, device)
            if tell:
                tell(line)


def _one(plan: Plan, study: Any, trial: Any, device: str) -> str:
    """One trial, told to Optuna and kept in its folder; a line of how it ended. What the method refuses with these settings is a failed trial."""
    from optuna.exceptions import TrialPruned
    from optuna.trial import TrialState

    number = trial.user_attrs.get("folder", trial.number)
    folder, began = plan.trial(number), time.time()
    curve: list[tuple[int, float]] = []
    values = {
        one.name: json.loads(trial.params[one.name]) if one.kind == "one" else trial.params[one.name]
        for one in plan.over
    }

    def report(share: float, figure: float) -> None:
        step = round(100 * share)
        if not math.isfinite(figure) or (curve and step <= curve[-1][0]):
            return
        curve.append((step, figure))
        trial.report(figure, step)
        if trial.should_prune():
            raise TrialPruned

    dice, state, reason = pd.Series(dtype=float), TrialState.COMPLETE, ""
    try:
        base = Experiment(plan.folder / "base", device)
        made = Experiment.create(
            folder,
            base.manifest,
            changed(base.settings, values),
            device,
            progress=lambda *_: None,
            start=base.start,
            take=[stage for stage in base.taken if stage != plan.first],
        )
        _said_by_hand(base, made)
        take(base, made, before(plan.first))
        dice = score(made, plan.first, plan.after, report)
    except TrialPruned:
        state = TrialState.PRUNED
    except Refused as error:
        state, reason = TrialState.FAIL, str(error)
        trial.set_user_attr("reason", reason)
    found = float(dice.mean()) if len(dice) else None
    about = {"trial": number, "state": state.name.lower(), "score": found, "values": values, "reason": reason}
    about |= {"dice": dice.to_dict(), "curve": curve, "began": began, "ended": time.time()}
    write_json(folder / "trial.json", about)
    study.tell(trial, found if state == TrialState.COMPLETE else None, state)
    for stage in STAGES:
        shutil.rmtree(folder / stage, ignore_errors=True)
    figures = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return f"trial {number}: {state.name.lower()} {'' if found is None else f'{found:.4f}'} {reason} ({figures})"


# ---------------------------------------------------------------- what came out


def trials_of(folder: Path) -> list[dict]:
    """What each trial that has ended left, in order."""
    return [
        read_json(file, "values", state=str, score=float | None) for file in sorted(folder.glob("trials/*/trial.json"))
    ]


def finish(plan: Plan) -> pd.DataFrame:
    """Write trials.csv, best.json (a settings file for `workbench train --settings`) and sweep.png; give the table."""
    from workbench.lab import figures

    kept = trials_of(plan.folder)
    rows = [
        {k: t[k] for k in ("trial", "state", "score")}
        | {k: v if isinstance(v, int | float) else json.dumps(v) for k, v in t["values"].items()}
        | {"seconds": round(t["ended"] - t["began"], 1), "reason": t["reason"]}
        for t in kept
    ]
    table = pd.DataFrame(rows)
    write_table(plan.folder / "trials.csv", table)
    done = [t for t in kept if t["state"] == "complete"]
    if done:
        best = max(done, key=lambda t: t["score"])
        base = Experiment(plan.folder / "base", "cpu")
        write_json(plan.folder / "best.json", asdict(changed(base.settings, best["values"])))
        picture = figures.sweep(table, importance(plan), base.cases().patient.nunique(), f"Dice after {plan.after}")
        write_atomic(plan.folder / "sweep.png", figures.png(picture))
    return table


def importance(plan: Plan) -> dict[str, float]:
    """How much of the score's variation each setting explains (fANOVA of Hutter 2014), of four completed trials or more; else nothing."""
    import optuna

    study = plan.study()
    done = study.get_trials(False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < 4 or len({t.value for t in done}) < 2:
        return {}
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {k: float(v) for k, v in found.items()}


def _optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise Refused("workbench sweep", "no Optuna", "it installed", "pip install 'liver-workbench[sweep]'") from None
