"""One self-contained HTML file per case or experiment: pictures inline, no script, no link, readable offline.

Chooses: everything comes from the result or experiment folder, so a report can be made again at any time, and every
word from a file is escaped. Tables keep their n and their intervals.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from workbench.data.files import flat_text, read_json, write_atomic
from workbench.experiment import reading, verdicts
from workbench.experiment.table import STAGES
from workbench.lab import figures, words
from workbench.lab.words import with_intervals
from workbench.stages import forest, radiomics
from workbench.volume import Refused

# What the ablation's table and figure show of all that the stage `metrics` measures
ABLATION_METRICS = (
    "tumor_dice",
    "tumor_assd_mm",
    "tumor_surface_dice",
    "recall_iou0",
    "recall_over_10mm",
    "precision_iou0",
    "false_positives",
)
SHOWN = 12  # held-out cases on the page of an experiment
PLACE = ("z_mm", "y_mm", "x_mm", "r_mm", "a_mm", "s_mm")  # from the first voxel; of the scanner
PERMUTED = (
    "p: of a permutation test that flips the signs of the patients' differences, not corrected for the number of tests"
)
NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."
NOT_RUN = "The stage `metrics` has not run."
SCAN = {
    "phase": "contrast phase, estimated",
    "liver_hu": "liver, median HU",
    "aorta_hu": "aorta, HU",
    "spleen_hu": "spleen, HU",
    "noise_hu": "noise in the liver, HU",
    "slice_mm": "slices, mm apart",
    "pixel_mm": "pixels, mm",
    "width_mm": "width of the body, mm",
    "liver_ml": "liver, ml",
    "metal_ml": "metal beside the liver, ml",
    "cut_cm2": "liver on the outermost slice, cm2",
}


# --- the parts of a page, as page.html takes them ----------------------------------------------------------------


def _cell(value: object) -> dict:
    if isinstance(value, dict) and "colour" in value:
        return dict(value)
    if isinstance(value, (bool, np.bool_)):
        return {"text": "yes" if value else "no"}
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isnan(number):
            return {"text": ""}
        return {"text": str(int(number)) if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"}
    if isinstance(value, (int, np.integer)):
        return {"text": str(value)}
    return {"text": "" if value is None or value is pd.NaT else str(value), "word": True}


def _table(frame: pd.DataFrame, name: str = "", fold: bool = False) -> dict:
    """Rows of cells; a column that holds words is set to the left as a whole."""
    rows = [[_cell(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    words = [any(row[n].get("word") and row[n]["text"] for row in rows) for n in range(frame.shape[1])]
    for row in rows:
        for cell, word in zip(row, words):
            cell["word"] = word
    columns = [{"text": str(c).replace("_", " "), "word": w} for c, w in zip(frame.columns, words)]
    return {"name": name, "columns": columns, "rows": rows, "fold": fold}


def _rows(rows: Iterable[tuple], *columns: str, name: str = "", fold: bool = False) -> dict:
    return _table(pd.DataFrame(list(rows), columns=list(columns), dtype=object), name, fold)


def _image(data: bytes | Figure, name: str, fold: bool = False) -> dict:
    data = figures.png(data) if isinstance(data, Figure) else data
    return {"name": name, "data": base64.b64encode(data).decode(), "fold": fold}


def _preview(result: Path, name: str, fold: bool = False) -> dict:
    file = result / "preview.png"
    return _image(file.read_bytes() if file.exists() else figures.preview_of(result), name, fold)


def _section(
    title: str,
    tables: Iterable[dict] = (),
    images: Iterable[dict] = (),
    words: str = "",
    missing: str = "Nothing here.",
) -> dict:
    shown = [t for t in tables if t["rows"]]
    return {"title": title, "words": words, "tables": shown, "images": list(images), "missing": missing}


def _page(title: str, facts: list[str], sections: list[dict], warnings: list[str]) -> str:
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(text)
    return page.render(title=title, facts=" · ".join(facts), sections=sections, warnings=warnings, notice=NOTICE)


def _settings(settings: dict) -> list[dict]:
    """What stands at the top, then a folded table for each part."""
    top = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    parts = {k: v for k, v in settings.items() if isinstance(v, dict)}
    return [_rows(flat_text(top).items(), "setting", "value")] + [
        _rows(flat_text(part, f"{name}.").items(), "setting", "value", name=f"Settings of {name}", fold=True)
        for name, part in parts.items()
    ]


# --- a case ------------------------------------------------------------------------------------------------------


def case_report(folder: str | Path) -> str:
    """The HTML of a result folder."""
    case = reading.result(folder)
    info, warnings = case.info, list(case.info.get("warnings", []))
    try:
        said = verdicts.read(case.path).words(verdicts.fingerprint(case.path))
    except Refused as refused:  # the page has all the rest
        said = ""
        warnings.append(str(refused))
    made = info.get("models") or {"experiment": "", "stages": {}}
    models = [(stage, sha, made["experiment"]) for stage, sha in made["stages"].items()]
    scan = [(SCAN[k], v) for k, v in info.get("scan", {}).items() if k in SCAN and v is not None]
    parts = {"workbench": info.get("version"), **info.get("versions", {})}
    sections = [
        _section("Picture", images=[_preview(case.path, "CT with liver and tumor, tumor probability, and the ledger")]),
        _lesions(case, said),
        _cards(case),
        _section("Ledger", _ledger(case), words="Which stage decided each voxel.", missing="No ledger in this folder."),
        _section(
            "Models",
            [_rows(models, "stage", "sha256 of its stage.json", "experiment")],
            words="The trained stages that decided here; `workbench lineage` leads to their runs in MLflow.",
            missing="result.json does not name its models.",
        ),
        _section(
            "Scan",
            [_rows(scan, "measure", "value")],
            words="What the scan is like, measured on the work grid. A warning says where it is unlike those that the model learned from.",
            missing="result.json does not say.",
        ),
        _section("Timings", [_rows(info.get("timings", {}).items(), "stage", "seconds")]),
        _section("Versions", [_rows(parts.items(), "part", "version")]),
        _section("Settings", _settings(info.get("config", {}))),
    ]
    return _page(f"Case {case.case}", _facts(info), sections, warnings)


def _facts(info: dict) -> list[str]:
    """The line below a case's name."""
    facts = [f"status: {info.get('status', 'unknown')}"]
    if name := (info.get("models") or {}).get("name"):
        facts.append(f"model: {name}")
    facts += [f"workbench {info.get('version', '?')}", f"device: {info.get('device', '?')}"]
    if info.get("liver_given"):
        facts.append(f"liver given: {info['liver_given']}")
    for part in ("liver", "tumor"):
        if info.get(f"{part}_ml") is not None:
            facts.append(f"{part}: {info[f'{part}_ml']:.4g} ml")
    if change := info.get("change_ml"):
        facts.append(
            f"contour: {change['boundary']:+.2f} ml, on the work grid by its smoothing alone {change['smoothing']:+.2f} ml"
        )
    return facts


def _lesions(case: reading.ResultFolder, said: str) -> dict:
    lesions = case.lesions()
    shown = ["candidate", "kept", "reason", "forest_score", "volume_ml", "long_axis_mm", *PLACE]
    shown = [c for c in shown if c in lesions]
    kept = int(lesions["kept"].astype(bool).sum()) if "kept" in lesions else 0
    features = lesions.drop(columns=[c for c in shown if c != "candidate"])
    return _section(
        "Lesions",
        [_table(lesions[shown]), _table(features, "The features that the forest saw", fold=True)],
        words=f"{kept} kept of {len(lesions)} candidates; forest scores go from 0 to 1 (lesion); places in mm: z, y, x from the "
        "first voxel towards head, back and left, and RAS, which viewers show."
        + (f" Readers: {said}." if said else ""),
        missing="No candidate was found.",
    )


def _cards(case: reading.ResultFolder) -> dict:
    """A card for each candidate, as drawn beside cards.json; those that were not drawn in words."""
    held = case.cards() or {"cards": [], "appearing": []}
    images, words = [], []
    for card in held["cards"]:
        drawn = case.path / "cards" / f"candidate-{card['candidate']:02d}.png"
        said = " ".join(card["words"])
        if drawn.exists():
            images.append(_image(drawn.read_bytes(), f"candidate {card['candidate']}. {said}"))
        else:
            words.append((card["candidate"], said))
    return _section(
        "Cards",
        [
            _rows(words, "candidate", "not drawn"),
            _table(pd.DataFrame(held["appearing"]), "What a lower threshold of the cascade would add", fold=True),
        ],
        images,
        "What was seen, how the trees voted, what was alike in training, and what would have changed it: each change by itself.",
        "No card in this folder.",
    )


def _ledger(case: reading.ResultFolder) -> list[dict]:
    if (volume := case.volume("ledger")) is None:
        return []
    codes, spacing_mm, _ = volume
    counts = np.sum([np.bincount(part.ravel(), minlength=256) for part in codes], 0)
    meanings = figures.meanings_of(case.info.get("ledger_codes"))
    rows = [
        ({"colour": figures.LEDGER_COLOURS.get(code, figures.GREY)}, code, meanings.get(code, "unknown"), int(n),
         n * math.prod(spacing_mm) / 1000)
        for code, n in enumerate(counts)
        if code > 0 and n
    ]  # fmt: skip
    return [_rows(rows, "colour", "code", "meaning", "voxels", "ml")]


# --- an experiment -----------------------------------------------------------------------------------------------


def ablation_metrics(ablation: pd.DataFrame) -> list[str]:
    """Those of ABLATION_METRICS that were measured."""
    return [m for m in ABLATION_METRICS if m in set(ablation["metric"])]


def variants(ablation: pd.DataFrame, left_out: pd.DataFrame | None) -> pd.DataFrame:
    """The ablation with, below its stages, the method without one of them: "all but forest" and the like."""
    if left_out is None:
        return ablation
    without = left_out.drop(columns=["low", "high"]).rename(columns={"mean_low": "low", "mean_high": "high"})
    without = without.assign(stage="all but " + without["without"])
    return pd.concat([ablation, without[list(ablation.columns)]], ignore_index=True)


def ablation_table(ablation: pd.DataFrame, metrics: list[str] | None = None) -> pd.DataFrame:
    """Stage by metric, in words: mean, 95 % interval and n in one cell, in the order of the file."""

    def cell(row: pd.Series) -> str:
        if not np.isfinite(row["mean"]):
            return f"undefined (n = {int(row['n'])})"
        return f"{row['mean']:z.3f} {words.ends(row['low'], row['high'], 'z.3f')}, n = {int(row['n'])}"

    metrics = metrics or list(dict.fromkeys(ablation["metric"]))
    return words.by_stage(ablation, metrics, cell).rename(columns=figures.units_of)


def _shown_and_all(table: pd.DataFrame, metrics: list[str]) -> list[dict]:
    """The rows of some metrics, one metric after the other, and everything folded away."""
    some = table[table["metric"].isin(metrics)]
    some = some.sort_values("metric", key=lambda names: names.map(metrics.index), kind="stable")
    some, table = (of.assign(metric=of["metric"].map(figures.units_of)) for of in (some, table))
    every = [_table(table, "Everything measured", fold=True)] if len(some) < len(table) else []
    return [_table(some[["metric", *(c for c in table if c != "metric")]]), *every]


def _measured(experiment: reading.ExperimentFolder) -> list[dict]:
    """What the tables of the stages say."""
    ablation, cases, comparisons, left_out = (
        experiment.table("metrics", f"{name}.csv") for name in ("ablation", "cases", "comparisons", "leave_one_out")
    )
    cohort, baselines = experiment.table("cohort", "cases.csv"), experiment.table("forest", "baselines.csv")
    shown: list[str] = []
    parts = _section("Ablation", missing=NOT_RUN)
    if ablation is not None and len(ablation):
        shown, whole = ablation_metrics(ablation), variants(ablation, left_out)
        parts = _section(
            "Ablation",
            [_table(ablation_table(whole, shown)), _table(ablation_table(whole), "Everything measured", fold=True)],
            [_image(figures.ablation(whole, cases, shown), "ablation")],
            "Held-out patients: mean, 95 % interval over patients, and n, after each stage, and with all stages but one. VOE is 1 - intersection / union, RVD the "
            "relative difference of volumes, ASSD the mean distance of surfaces, surface Dice the share of them within 1 mm; recall and precision of lesions at "
            "an overlap (IoU) above 0 and above 0.5, false positives a patient at above 0.",
        )
    sections = [parts]
    for title, table, said in (
        ("Paired comparisons", comparisons, "Each stage against the one before it, on the same held-out patients; low, high: 95 % interval"),
        ("Leaving one stage out", left_out, "Held-out patients: the mean without a stage, and what the stage changes when the others are there (pairs)"),
    ):  # fmt: skip
        there = table is not None
        rows, said = (_shown_and_all(table, shown), f"{said}; {PERMUTED}.") if there else ([], "")
        sections.append(_section(title, rows, words=said, missing=NOT_RUN))
    return [
        *sections,
        _section(
            "Cohort",
            [] if cohort is None else [_table(cohort, "All cases", fold=True)],
            [_image(figures.cohort(cohort), "cohort")] if cohort is not None and len(cohort) else [],
            missing="The stage `cohort` has not run.",
        ),
        _section(
            "The forest beside simpler filters",
            [] if baselines is None else [_table(with_intervals(baselines))],
            words="Out of fold, each filter at its own threshold for the same recall; gain: what the selected descriptors have over it, in pairs. "
            "Intervals: 95 %, over patients.",
            missing="The stage `forest` has not run.",
        ),
    ]


def _drawn(experiment: reading.ExperimentFolder) -> list[dict]:
    """The standing figures, drawn from the tables that there are."""
    table, images = experiment.table, []
    scores = table("forest", "scores.csv")  # selection and forest learn from training patients who have a candidate
    patients = experiment.patients() if scores is None else int(scores[scores.split == "train"].patient.nunique())

    def add(figure: Figure, name: str) -> None:
        images.append(_image(figure, name))

    for stage in ("liver", "tumor", "boundary"):
        if (curves := table(stage, "curves.csv")) is not None and len(curves):
            add(figures.curves(curves, f"{stage}: learning curves"), f"{stage}: learning curves")
    if (kept := table("selection", "table.csv")) is not None:
        bound = experiment.info["settings"]["selection"]["icc_bound"]
        add(figures.icc_forest(kept[kept["kept"]], bound, patients, "stability of the kept features"), "stability")
        add(figures.survival(kept, patients), "selection, step by step")
    if (weights := table("forest", "importance.csv")) is not None and len(weights):
        groups = radiomics.CATALOGUE.set_index("name").group.to_dict()
        add(figures.importance(weights, patients, groups), "importance of the features, on patients left out")
    if scores is not None and scores["is_lesion"].nunique() == 2:
        threshold = read_json(experiment.path / "forest" / "forest.json")["threshold"]["threshold"]
        for split, rows in scores[scores.split.isin(["train", "test"])].groupby("split"):
            if rows["is_lesion"].nunique() == 2:
                add(figures.tradeoff(rows, threshold, f"forest as a filter, {split}"), f"forest, {split} patients")
                bins = forest.calibration(rows["score"], rows["is_lesion"])
                name = f"reliability of the scores, {split} patients"
                add(figures.calibration(*bins, rows["patient"].nunique(), name), name)
        held, cohort = scores[scores["split"] == "test"], table("cohort", "cases.csv")
        if len(held) and cohort is not None:
            of = cohort[cohort["split"] == "test"]
            lesions = int(of["tumors_on_work_grid"].sum())  # where candidates are matched
            found = figures.froc(held, lesions, of["patient"].nunique(), threshold, "FROC, held out")
            add(found, "lesions found against false positives, held-out patients")
    if (cases := table("metrics", "cases.csv")) is not None:
        change = ["tumor_assd_mm", "tumor_surface_dice", "tumor_dice"]
        picture = figures.paired(cases, "forest", "boundary", change, "boundary relabelling")
        add(picture, "boundary relabelling, patient by patient")
    return images


def _outdated(notebook: str, was: dict, stages: Collection[str]) -> bool:
    """Whether a notebook failed while one of its stages, up to its own number, was not there, and all are there now."""
    number = notebook[:2]
    needed = set(list(STAGES)[: int(number)] if number.isdigit() and int(number) else STAGES)
    lacked = needed - set(was.get("stages_after", needed))
    return was.get("status") == "failed" and bool(lacked) and needed <= set(stages)


def _mistyped(was: dict) -> bool:
    """Whether a notebook only refused what it was given, a case that there is not: that says nothing of the experiment."""
    given = was.get("key", {}).get("parameters", {})
    return was.get("status") == "failed" and any(f": Refused: {name}: found " in was.get("error", "") for name in given)


def _notebooks(experiment: reading.ExperimentFolder) -> list[tuple]:
    """Name, status, seconds and error of each notebook that was run."""
    rows = []
    for file in sorted((experiment.path / "notebooks").glob("*.json")):
        was = json.loads(file.read_text(encoding="utf-8"))
        if not _mistyped(was):
            status = was.get("status", "?") + ", before its stages had run" * _outdated(
                file.stem, was, experiment.stages
            )
            rows.append((file.stem, status, was.get("seconds", math.nan), was.get("error", "")))
    return rows


def _history(experiment: reading.ExperimentFolder, notebooks: list[tuple]) -> list[dict]:
    """What ran, when, on what, and with which settings."""
    info, stages = experiment.info, experiment.stages
    seconds = {name: float(stage.info.get("seconds", math.nan)) for name, stage in stages.items()}
    ran = [
        {"stage": name, "finished": stage.info.get("finished", ""), "seconds": seconds[name], "device": stage.info.get("device", ""),
         "workbench": stage.info.get("version", ""), **stage.info.get("versions", {}), "stage.json": stage.sha256[:12]}
        for name, stage in stages.items()
    ]  # fmt: skip
    metrics = [(name, key.replace("_", " "), v) for name, stage in stages.items() for key, v in stage.metrics().items()]
    data = [("manifest", info.get("manifest", "?")), ("sha256", info.get("manifest_sha256", "?"))]
    return [
        _section("Metrics of each stage", [_rows(metrics, "stage", "metric", "value", name="All", fold=True)]),
        _section(
            "Stages, times and versions",
            [_table(pd.DataFrame(ran))],
            [_image(figures.timings(seconds), "timings")] if seconds else [],
            words=f"{sum(seconds.values()):.4g} s in all." if seconds else "",
        ),
        _section(
            "Notebooks",
            [_rows(notebooks, "notebook", "status", "seconds", "error")],
            missing="No notebook was run on this folder.",
        ),
        _section("Settings and data", [*_settings(info.get("settings", {})), _rows(data, "data", "")]),
    ]


def experiment_report(folder: str | Path) -> str:
    """The HTML of an experiment folder; says which stages have not run."""
    experiment = reading.experiment(folder)
    info, stages, results = experiment.info, experiment.stages, experiment.results()
    patients, notebooks = experiment.patients(), _notebooks(experiment)
    facts = [
        f"preset: {info.get('preset', '?')}",
        f"workbench {info.get('version', '?')}",
        "device: " + (", ".join(sorted({str(s.info.get("device", "?")) for s in stages.values()})) or "none yet"),
        f"seed: {info.get('seed', '?')}",
        f"patients: {patients if patients is not None else '?'}",
        f"stages finished: {len(stages)} of {len(STAGES)}",
    ]
    missing = [s for s in STAGES if s not in stages]
    warnings = [f"Not run yet: {', '.join(missing)}."] if missing else []
    warnings += [f"Notebook {name} failed: {error}" for name, status, _, error in notebooks if status == "failed"]
    for path in results:
        warnings += [f"Case {path.name}: {line}" for line in reading.result(path).info.get("warnings", [])]
    saved = sorted((experiment.path / "figures").glob("*.png"))
    previews = [_preview(path, f"held out: {path.name}", fold=True) for path in results[:SHOWN]]
    ledger = [
        ({"colour": colour}, code, figures.LEDGER_MEANINGS[code]) for code, colour in figures.LEDGER_COLOURS.items()
    ]
    sections = [
        *_measured(experiment),
        _section("Figures", images=_drawn(experiment), missing="No figure yet."),
        _section(
            "Figures of the notebooks",
            images=[_image(path.read_bytes(), path.stem.replace("_", " "), fold=True) for path in saved],
            missing="No figure yet.",
        ),
        _section(
            "Held-out cases",
            images=previews,
            words=f"{len(previews)} of {len(results)}; each has a page of its own, results/CASE/report.html.",
            missing="No result yet.",
        ),
        _section("Ledger colours", [_rows(ledger, "colour", "code", "meaning")]),
        *_history(experiment, notebooks),
    ]
    return _page(f"Experiment {experiment.path.resolve().name}", facts, sections, warnings)


def write(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a result or experiment folder, whole or not at all; beside the folder's files unless told."""
    folder = Path(folder)
    if (folder / "result.json").is_file():
        html = case_report(folder)
    elif (folder / "experiment.json").is_file() or reading.stage_hashes(folder):
        html = experiment_report(folder)
    elif held := len(reading.results_at(folder, "*/")):
        fix = "Each has its page, report.html; name one to write it anew."
        raise Refused(
            folder, f"a folder of {held} result{'s' * (held > 1)}", "one result folder, or an experiment", fix
        )
    else:
        raise Refused(folder, "neither result.json nor experiment.json", "a result or experiment folder")
    path = Path(path) if path else folder / "report.html"
    try:
        write_atomic(path, html.encode())
    except OSError as error:
        raise Refused(path, error.strerror or str(error), "a file that can be written") from None
    return path
