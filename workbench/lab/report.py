"""One self-contained HTML file per case or experiment: pictures inline, no script, no link, readable offline.

Chooses: everything comes from the result or experiment folder, so a report can be made again at any time, and every
word from a file is escaped. Tables keep their n and their intervals.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment

from workbench.data.files import flat_text, read_json, write_atomic
from workbench.experiment import reading, verdicts
from workbench.experiment.table import STAGES
from workbench.lab import figures
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
DATA = ("data", "")
PLACE = ("z_mm", "y_mm", "x_mm", "r_mm", "a_mm", "s_mm")  # from the first voxel; of the scanner
PARTS = ("part", "version")
PERMUTED = (
    "p: of a permutation test that flips the signs of the patients' differences, not corrected for the number of tests"
)
NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1100px; margin: 2em auto; padding: 0 1em }
 h1 { margin-bottom: .2em } h2 { margin-top: 1.8em; border-bottom: 1px solid #ccc; padding-bottom: .2em }
 .notice { background: #fff6dd; border-left: 5px solid #E69F00; padding: .5em 1em; font-weight: 600 }
 .warning { background: #fbe9df; border-left: 5px solid #D55E00; padding: .3em 1em; margin: .4em 0 }
 .facts { color: #444 } .missing { color: #777; font-style: italic }
 .wide { overflow-x: auto } table { border-collapse: collapse; margin: .6em 0; font-size: 13px }
 th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right; vertical-align: top }
 th, td { white-space: nowrap }
 th { background: #f4f4f4 } th:first-child, td:first-child, .word { text-align: left } .word { white-space: normal }
 figure { margin: 1em 0 } img { max-width: 100%; height: auto } figcaption { color: #555; font-size: 13px }
 .patch { display: inline-block; width: 1.1em; height: 1.1em; border: 1px solid #666; vertical-align: -0.15em }
 summary { cursor: pointer; font-weight: 600 } nav { font-size: 13px } nav a { margin-right: 1em; white-space: nowrap } footer { margin-top: 3em; color: #555; font-size: 13px }
 @media print { .wide { overflow: visible } table { font-size: 11px } th, td { white-space: normal; padding: .2em .3em }
  td.word, details th, details td { overflow-wrap: anywhere } figure, tr { break-inside: avoid } h2 { break-after: avoid } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="facts">{{ facts }}</p>
<p class="notice">{{ notice }}</p>
{% for line in warnings %}<p class="warning">{{ line }}</p>{% endfor %}
{% if not warnings %}<p class="facts">No warnings.</p>{% endif %}
<nav>{% for section in sections %}<a href="#{{ loop.index }}">{{ section.title }}</a> {% endfor %}</nav>
{% for section in sections %}<section>
<h2 id="{{ loop.index }}">{{ section.title }}</h2>
{% if section.words %}<p>{{ section.words }}</p>{% endif %}
{% for table in section.tables %}{% if table.fold %}<details><summary>{{ table.name }}</summary>
{% elif table.name %}<p><b>{{ table.name }}</b></p>{% endif %}
<div class="wide"><table><thead><tr>{% for c in table.columns %}<th{% if c.word %} class="word"{% endif %}>{{ c.text }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row %}
{% if cell.colour %}<td><span class="patch" style="background: {{ cell.colour }}"></span></td>
{% else %}<td{% if cell.word %} class="word"{% endif %}>{{ cell.text }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if table.fold %}</details>{% endif %}
{% endfor %}
{% for image in section.images %}{% if image.fold %}<details><summary>{{ image.name }}</summary>{% endif %}
<figure><img alt="{{ image.name }}" src="data:image/png;base64,{{ image.data }}">
<figcaption>{{ image.name }}</figcaption></figure>{% if image.fold %}</details>{% endif %}
{% endfor %}
{% if not section.tables and not section.images %}<p class="missing">{{ section.missing }}</p>{% endif %}
</section>{% endfor %}
<footer>{{ notice }}</footer>
</body></html>
"""


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


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Each column that has its ends beside it, `x`, `x_low` and `x_high`, as one: `0.906 [0.884, 0.928]`."""
    shown = {}
    for name in [str(c) for c in table.columns]:
        if {f"{name}_low", f"{name}_high"} <= set(table):
            form = "+.3f" if name.endswith("gain") else "z.3f"
            ends = zip(table[name], table[f"{name}_low"], table[f"{name}_high"])
            shown[name] = [
                f"{x:{form}} [{low:{form}}, {high:{form}}]" if math.isfinite(x) else "" for x, low, high in ends
            ]
        elif name.removesuffix("_low").removesuffix("_high") not in shown:
            shown[name] = table[name].tolist()
    return pd.DataFrame(shown, dtype=object)


def _pairs(values: dict, columns: tuple[str, str], name: str = "", fold: bool = False) -> dict:
    return _table(pd.DataFrame(list(values.items()), columns=list(columns), dtype=object), name, fold)


def _image(data: bytes, name: str, fold: bool = False) -> dict:
    return {"name": name, "data": base64.b64encode(data).decode(), "fold": fold}


def _section(title: str, tables=(), images=(), words: str = "", missing: str = "Nothing here.") -> dict:
    return {
        "title": title,
        "words": words,
        "tables": [t for t in tables if t["rows"]],
        "images": list(images),
        "missing": missing,
    }


def _page(title: str, facts: str, sections: list[dict], warnings=()) -> str:
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    return template.render(title=title, facts=facts, sections=sections, warnings=list(warnings), notice=NOTICE)


def _settings(settings: dict) -> list[dict]:
    """What stands at the top, then a folded table for each part."""
    top = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    parts = {k: v for k, v in settings.items() if isinstance(v, dict)}
    return [_pairs(flat_text(top), ("setting", "value"))] + [
        _pairs(flat_text(part, f"{name}."), ("setting", "value"), f"Settings of {name}", fold=True)
        for name, part in parts.items()
    ]


def _models(info: dict) -> dict:
    """Which models made a result: experiment, and for each stage the hash of its stage.json."""
    made = info.get("models") or {"experiment": "", "stages": {}}
    rows = [(stage, sha, made["experiment"]) for stage, sha in made["stages"].items()]
    return _table(pd.DataFrame(rows, columns=["stage", "sha256 of its stage.json", "experiment"], dtype=object))


def _ledger_table(case: reading.ResultFolder) -> dict:
    volume = case.volume("ledger")
    if volume is None:
        return _table(pd.DataFrame())
    codes, spacing_mm, _ = volume
    meanings = {**figures.LEDGER_MEANINGS, **{int(k): v for k, v in case.info.get("ledger_codes", {}).items()}}
    counts = np.sum([np.bincount(part.ravel(), minlength=256) for part in codes], 0)
    rows = [
        (
            {"colour": figures.LEDGER_COLOURS.get(int(v), figures.GREY)},
            int(v),
            meanings.get(int(v), "unknown"),
            int(n),
            n * math.prod(spacing_mm) / 1000,
        )
        for v, n in enumerate(counts)
        if v > 0 and n
    ]
    return _table(pd.DataFrame(rows, columns=["colour", "code", "meaning", "voxels", "ml"], dtype=object))


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


def case_report(folder: str | Path) -> str:
    """The HTML of a result folder."""
    case = reading.result(folder)
    info, lesions = case.info, case.lesions()
    shown = [
        c for c in ("candidate", "kept", "reason", "forest_score", "volume_ml", "long_axis_mm", *PLACE) if c in lesions
    ]
    preview = case.path / "preview.png"
    data = preview.read_bytes() if preview.exists() else figures.png(figures.preview_of(case.path))
    kept = int(lesions["kept"].astype(bool).sum()) if "kept" in lesions else 0
    facts = [
        f"status: {info.get('status', 'unknown')}",
        f"workbench {info.get('version', '?')}",
        f"device: {info.get('device', '?')}",
    ]
    if name := (info.get("models") or {}).get("name"):
        facts.insert(1, f"model: {name}")
    if info.get("liver_given"):
        facts.append(f"liver given: {info['liver_given']}")
    facts += [
        f"{name.replace('_ml', '')}: {info[name]:.4g} ml"
        for name in ("liver_ml", "tumor_ml")
        if info.get(name) is not None
    ]
    if change := info.get("change_ml"):
        facts.append(
            f"contour: {change['boundary']:+.2f} ml, on the work grid by its smoothing alone {change['smoothing']:+.2f} ml"
        )
    warnings = list(info.get("warnings", []))
    try:
        said = verdicts.read(case.path).words(verdicts.fingerprint(case.path))
    except Refused as refused:  # the page has all the rest
        said, warnings = "", [*warnings, str(refused)]
    features = lesions.drop(columns=[c for c in shown if c != "candidate"])
    return _page(
        f"Case {case.case}",
        " · ".join(facts),
        [
            _section("Picture", images=[_image(data, "CT with liver and tumor, tumor probability, and the ledger")]),
            _section(
                "Lesions",
                [_table(lesions[shown]), _table(features, "The features that the forest saw", fold=True)],
                words=f"{kept} kept of {len(lesions)} candidates; forest scores go from 0 to 1 (lesion); places in mm: z, y, x from the "
                "first voxel towards head, back and left, and RAS, which viewers show."
                + (f" Readers: {said}." if said else ""),
                missing="No candidate was found.",
            ),
            _cards(case),
            _section(
                "Ledger",
                [_ledger_table(case)],
                words="Which stage decided each voxel.",
                missing="No ledger in this folder.",
            ),
            _section(
                "Models",
                [_models(info)],
                words="The trained stages that decided here; `workbench lineage` leads to their runs in MLflow.",
                missing="result.json does not name its models.",
            ),
            _section(
                "Scan",
                [
                    _pairs(
                        {SCAN[k]: v for k, v in info.get("scan", {}).items() if k in SCAN and v is not None},
                        ("measure", "value"),
                    )
                ],
                words="What the scan is like, measured on the work grid. A warning says where it is unlike those that the model learned from.",
                missing="result.json does not say.",
            ),
            _section("Timings", [_pairs(info.get("timings", {}), ("stage", "seconds"))]),
            _section("Versions", [_pairs({"workbench": info.get("version"), **info.get("versions", {})}, PARTS)]),
            _section("Settings", _settings(info.get("config", {}))),
        ],
        warnings,
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
            _table(pd.DataFrame(words, columns=["candidate", "not drawn"], dtype=object)),
            _table(pd.DataFrame(held["appearing"]), "What a lower threshold of the cascade would add", fold=True),
        ],
        images,
        "What was seen, how the trees voted, what was alike in training, and what would have changed it: each change by itself.",
        "No card in this folder.",
    )


def _shown_and_all(table: pd.DataFrame | None, metrics: list[str]) -> list[dict]:
    """The rows of some metrics, one metric after the other, and everything folded away."""
    if table is None:
        return []
    some = table[table["metric"].isin(metrics)]
    some = some.sort_values("metric", key=lambda names: names.map(metrics.index), kind="stable")
    some, table = (of.assign(metric=of["metric"].map(figures.units_of)) for of in (some, table))
    every = [_table(table, "Everything measured", fold=True)] if len(some) < len(table) else []
    return [_table(some[["metric", *(c for c in table if c != "metric")]]), *every]


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

    def cell(row) -> str:
        if not np.isfinite(row["mean"]):
            return f"undefined (n = {int(row['n'])})"
        return f"{row['mean']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}], n = {int(row['n'])}"

    stages, metrics = list(dict.fromkeys(ablation["stage"])), metrics or list(dict.fromkeys(ablation["metric"]))
    found = {(row["stage"], row["metric"]): cell(row) for _, row in ablation.iterrows()}
    return pd.DataFrame(
        [[stage, *(found.get((stage, metric), "") for metric in metrics)] for stage in stages],
        columns=["stage", *map(figures.units_of, metrics)],
    )


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


def _learnt_from(experiment: reading.ExperimentFolder) -> int | None:
    """How many training patients have a candidate, from which selection and forest learn."""
    scores = experiment.table("forest", "scores.csv")
    if scores is None:
        return experiment.patients()
    return int(scores[scores.split == "train"].patient.nunique())


def _drawn(experiment: reading.ExperimentFolder) -> list[dict]:
    """The standing figures, drawn from the tables that there are."""
    table = experiment.table
    patients, images = _learnt_from(experiment), []

    def add(figure, name):
        images.append(_image(figures.png(figure), name))

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
    if (scores := table("forest", "scores.csv")) is not None and scores["is_lesion"].nunique() == 2:
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


def experiment_report(folder: str | Path) -> str:
    """The HTML of an experiment folder; says which stages have not run."""
    experiment = reading.experiment(folder)
    info, stages = experiment.info, experiment.stages
    missing = [s for s in STAGES if s not in stages]
    patients = experiment.patients()
    ablation, cases = experiment.table("metrics", "ablation.csv"), experiment.table("metrics", "cases.csv")
    comparisons, cohort = experiment.table("metrics", "comparisons.csv"), experiment.table("cohort", "cases.csv")
    facts = [
        f"preset: {info.get('preset', '?')}",
        f"workbench {info.get('version', '?')}",
        "device: " + (", ".join(sorted({str(s.info.get("device", "?")) for s in stages.values()})) or "none yet"),
        f"seed: {info.get('seed', '?')}",
        f"patients: {patients if patients is not None else '?'}",
        f"stages finished: {len(stages)} of {len(STAGES)}",
    ]
    notebooks = []
    for file in sorted((experiment.path / "notebooks").glob("*.json")):
        was = json.loads(file.read_text(encoding="utf-8"))
        if _mistyped(was):
            continue
        status = was.get("status", "?") + ", before its stages had run" * _outdated(file.stem, was, stages)
        notebooks.append((file.stem, status, was.get("seconds", math.nan), was.get("error", "")))
    warnings = [f"Not run yet: {', '.join(missing)}."] if missing else []
    warnings += [f"Notebook {name} failed: {error}" for name, status, _, error in notebooks if status == "failed"]
    for path in experiment.results():
        warnings += [f"Case {path.name}: {line}" for line in reading.result(path).info.get("warnings", [])]
    seconds = {name: float(stage.info.get("seconds", math.nan)) for name, stage in stages.items()}
    ran = [
        {
            "stage": name,
            "finished": stage.info.get("finished", ""),
            "seconds": seconds[name],
            "device": stage.info.get("device", ""),
            "workbench": stage.info.get("version", ""),
            **stage.info.get("versions", {}),
            "stage.json": stage.sha256[:12],
        }
        for name, stage in stages.items()
    ]
    metrics = [
        (name, key.replace("_", " "), value) for name, stage in stages.items() for key, value in stage.metrics().items()
    ]
    saved = [
        _image(p.read_bytes(), p.stem.replace("_", " "), fold=True)
        for p in sorted((experiment.path / "figures").glob("*.png"))
    ]
    ledger = [
        ({"colour": colour}, code, figures.LEDGER_MEANINGS[code]) for code, colour in figures.LEDGER_COLOURS.items()
    ]
    baselines = experiment.table("forest", "baselines.csv")
    left_out = experiment.table("metrics", "leave_one_out.csv")
    results = experiment.results()
    previews = [
        _image(
            (p / "preview.png").read_bytes() if (p / "preview.png").exists() else figures.png(figures.preview_of(p)),
            f"held out: {p.name}",
            fold=True,
        )
        for p in results[:SHOWN]
    ]
    has_ablation = ablation is not None and len(ablation) > 0
    shown = ablation_metrics(ablation) if has_ablation else []
    whole = variants(ablation, left_out) if has_ablation else None
    every = _table(ablation_table(whole), "Everything measured", fold=True) if has_ablation else None
    sections = [
        _section(
            "Ablation",
            [_table(ablation_table(whole, shown)), every] if has_ablation else [],
            [_image(figures.png(figures.ablation(whole, cases, shown)), "ablation")] if has_ablation else [],
            "Held-out patients: mean, 95 % interval over patients, and n, after each stage, and with all stages but one. VOE is 1 - intersection / union, RVD the "
            "relative difference of volumes, ASSD the mean distance of surfaces, surface Dice the share of them within 1 mm; recall and precision of lesions at "
            "an overlap (IoU) above 0 and above 0.5, false positives a patient at above 0."
            if has_ablation
            else "",
            "The stage `metrics` has not run.",
        ),
        _section(
            "Paired comparisons",
            _shown_and_all(comparisons, shown),
            words=f"Each stage against the one before it, on the same held-out patients; low, high: 95 % interval; {PERMUTED}."
            if comparisons is not None
            else "",
            missing="The stage `metrics` has not run.",
        ),
        _section(
            "Leaving one stage out",
            _shown_and_all(left_out, shown),
            words=f"Held-out patients: the mean without a stage, and what the stage changes when the others are there (pairs); {PERMUTED}."
            if left_out is not None
            else "",
            missing="The stage `metrics` has not run.",
        ),
        _section(
            "Cohort",
            [_table(cohort, "All cases", fold=True)] if cohort is not None else [],
            [_image(figures.png(figures.cohort(cohort)), "cohort")] if cohort is not None and len(cohort) else [],
            missing="The stage `cohort` has not run.",
        ),
        _section(
            "The forest beside simpler filters",
            [_table(with_intervals(baselines))] if baselines is not None else [],
            words="Out of fold, each filter at its own threshold for the same recall; gain: what the selected descriptors have over it, in pairs. "
            "Intervals: 95 %, over patients.",
            missing="The stage `forest` has not run.",
        ),
        _section("Figures", images=_drawn(experiment), missing="No figure yet."),
        _section("Figures of the notebooks", images=saved, missing="No figure yet."),
        _section(
            "Held-out cases",
            images=previews,
            words=f"{len(previews)} of {len(results)}; each has a page of its own, results/CASE/report.html.",
            missing="No result yet.",
        ),
        _section("Ledger colours", [_table(pd.DataFrame(ledger, columns=["colour", "code", "meaning"], dtype=object))]),
        _section(
            "Metrics of each stage",
            [_table(pd.DataFrame(metrics, columns=["stage", "metric", "value"], dtype=object), "All", fold=True)],
        ),
        _section(
            "Stages, times and versions",
            [_table(pd.DataFrame(ran))],
            [_image(figures.png(figures.timings(seconds)), "timings")] if seconds else [],
            words=f"{sum(seconds.values()):.4g} s in all." if seconds else "",
        ),
        _section(
            "Notebooks",
            [_table(pd.DataFrame(notebooks, columns=["notebook", "status", "seconds", "error"], dtype=object))],
            missing="No notebook was run on this folder.",
        ),
        _section(
            "Settings and data",
            [
                *_settings(info.get("settings", {})),
                _pairs({"manifest": info.get("manifest", "?"), "sha256": info.get("manifest_sha256", "?")}, DATA),
            ],
        ),
    ]
    return _page(f"Experiment {experiment.path.resolve().name}", " · ".join(facts), sections, warnings)


def write(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a result or experiment folder, whole or not at all; beside the folder's files unless told."""
    folder = Path(folder)
    if (folder / "result.json").is_file():
        html = case_report(folder)
    elif (folder / "experiment.json").is_file() or reading.stage_hashes(folder):
        html = experiment_report(folder)
    elif held := len(reading.results_at(folder, "*/")):
        found, fix = (
            f"a folder of {held} result{'s' * (held > 1)}",
            "Each has its page, report.html; name one to write it anew.",
        )
        raise Refused(folder, found, "one result folder, or an experiment", fix)
    else:
        raise Refused(folder, "neither result.json nor experiment.json", "a result or experiment folder")
    path = Path(path) if path else folder / "report.html"
    try:
        write_atomic(path, html.encode())
    except OSError as error:
        raise Refused(path, error.strerror or str(error), "a file that can be written") from None
    return path
