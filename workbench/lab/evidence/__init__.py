"""The evidence page: each stage's claim, its number with its interval, and whether the data support it, from an experiment's files.

Ours; the paper has none. The claims and what makes a verdict are in `claims`; nothing on the page is typed by hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.data.files import read_json, write_atomic
from workbench.experiment import Experiment
from workbench.lab import contours, figures, report, review, words
from workbench.lab.evidence import claims
from workbench.lab.evidence.claims import between, paired
from workbench.stages import forest, metrics
from workbench.stages.boundary import BoundarySettings
from workbench.stages.ledger import ABLATION
from workbench.stages.selection import STEPS
from workbench.volume import Refused

REAL_METRICS = ("tumor_dice", "tumor_assd_mm", "tumor_surface_dice", "recall_5", "recall_10", "precision_5", "false_5")
LOOKED_AT = {  # presets whose held-out patients had a part in a choice, and which
    "demo": "A look at these held-out patients started a change of the boundary stage (decision 0013): its rows on them are hints, "
    "those on fresh phantoms are the test."
}


def page(
    experiment: str | Path, out: str | Path, real_ct: str | Path | None = None, fresh: str | Path | None = None
) -> Path:
    """Write the page and its figures (pictures/evidence_*.png beside it). `real_ct` and `fresh`: what `benchmarks/real_ct.py --json`
    and `benchmarks/blurred_edges.py --json` wrote."""
    made, out = Experiment(experiment, "cpu"), Path(out)
    for stage in ("selection", "forest", "boundary", "metrics"):
        made.need(stage)
    if "resamples" not in read_json(made.path("selection") / "metrics.json"):
        fix = "Remove the folders selection, forest and metrics in it, and run `workbench train all` again."
        raise Refused(made.folder, "a selection of an earlier version, without resamples", "one of this version", fix)
    real = None if real_ct is None else read_json(Path(real_ct), "summary")
    edges = None if fresh is None else read_json(Path(fresh), "lesions", "patients", "cut_mm", "more_mm", "redrawn")
    text, pictures = write(made, real, edges)
    for name, picture in pictures.items():
        (out.parent / "pictures").mkdir(parents=True, exist_ok=True)
        figures.save(picture, out.parent / "pictures" / f"evidence_{name}.png", dpi=80)
    write_atomic(out, text.encode())
    return out


def write(made: Experiment, real_ct: dict | None = None, fresh: dict | None = None) -> tuple[str, dict[str, Figure]]:
    """The page as Markdown, and its figures by name."""
    edges, last = contours.edges(made), made.table("metrics", "cases.csv")
    cut_mm, patients = float(edges.blur_mm.median()), last.patient.nunique()
    ablation, left_out, steps = (
        made.table("metrics", f"{name}.csv") for name in ("ablation", "leave_one_out", "comparisons")
    )
    shown, whole = report.ablation_metrics(ablation), report.variants(ablation, left_out)
    scores = made.table("forest", "scores.csv", dtype=review.AS_TEXT)
    train, held = (scores[scores.split == split] for split in ("train", "test"))
    chances, model = forest.calibration(train.score, train.is_lesion), forest.load(made.path("forest"))
    weights = made.table("forest", "importance.csv").nlargest(20, "drop")
    counts, filters = review.filters_held_out(made)
    lesions, learned = len(review.lesions(made, "test")), train.patient.nunique()
    pictures = {
        "ablation": figures.ablation(whole, last, shown),
        "calibration": figures.calibration(*chances, learned, "the forest's scores, out of fold"),
        "froc": figures.froc(held, lesions, patients, model.cut, "held out, on the work grid"),
        "importance": figures.importance(weights, learned, title="what the forests look at"),
        "edges": figures.edge_gain(edges, cut_mm),
    }
    claimed = [
        *claims.cascade(made, steps),
        *claims.selection(made),
        *claims.of_forest(made, steps, last, train, held, chances, filters),
        *claims.boundary(steps, edges, cut_mm),
        *(claims.fresh(fresh) if fresh else []),
        *claims.smoothing(made),
        *claims.together(last, left_out),
        *(claims.real(real_ct) if real_ct else []),
    ]
    parts = [
        "# Evidence",
        _about(made, patients, len(edges)),
        "## What is claimed, and what the data say",
        _table(pd.DataFrame(claimed).drop(columns="p")),
        LOOKED_AT.get(made.settings.preset, ""),
        claims.many(claimed),
        "## The ablation",
        "After each stage, and with all stages but one; the mean, its interval, and n where it is not all patients.",
        _table(_short(whole, shown, patients)),
        _picture("ablation", "each metric after each stage, and without one stage"),
        "Each stage against the one before it, and what a stage changes when all others are there (pairs):",
        _table(_changes(steps, left_out, shown)),
        "Held-out lesions by diameter, found at all (IoU above 0) and well (above 0.5):",
        _table(review.by_size(made).reset_index(names=["after", "diameter"])),
        _missed(review.missed(made), lesions),
        "## Selection",
        _table(_steps(made)),
        "Every one of the 728 has its row in `selection/table.csv`: the step at which it left, and why. Those kept:",
        _table(_kept(made)),
        _alike(made),
        "## The forest beside other filters",
        "Out of fold, selection and leaf size (of boosting's trees too) chosen inside each fold, the threshold of each at the same recall. *gain*: what the selected ones "
        "have more, in pairs. Intervals are over patients drawn again, the threshold chosen anew for each draw, since it hangs on the few lesions that score lowest.",
        _table(_baselines(made)),
        "Held out, each fitted on all training candidates, at its own out-of-fold threshold:",
        _table(counts.reset_index().round({"auc": 3})),
        _picture("importance", "permutation importance on patients left out"),
        _picture("calibration", "reliability of the scores"),
        _picture("froc", "lesions found against false positives"),
        "## The contour",
        _table(edges_table(edges, cut_mm)),
        _picture("edges", "what the boundary stage did to each lesion"),
    ]
    for name, part, held_by in (("fresh", _fresh, fresh), ("real_ct", _real, real_ct)):
        if held_by is not None:
            more, pictures[name] = part(held_by)
            parts += more
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _about(made: Experiment, patients: int, lesions: int) -> str:
    """What was measured, on whom, and what the verdicts mean."""
    about = read_json(made.path("metrics") / "stage.json")
    return (
        f"Made by `make evidence` from one experiment's files, never typed: preset {made.about['preset']}, version {(about.get('versions') or {}).get('workbench') or about.get('version')}, seed "
        f"{made.settings.seed}, device {about['device']}, finished {about['finished'][:10]}. {made.cases('train').patient.nunique()} patients "
        f"to learn from, **{patients} held out** ({lesions} lesions). Intervals are 95 %: over patients drawn again for means and changes, "
        "Wilson's for shares. All of it is **given this training**: nets that were trained again, with the same seed on another processor, changed 9 of 43 verdicts. *Supported*: the interval leaves 0 (or the stated level) out on the claimed side and, for a change, p is at most .05; "
        "*contradicted*: the same on the other side; *not shown*: neither; *too few patients*: no p of .05 was possible; *holds*: a check of the program, which its own rule "
        "ensures. Phantoms, unless the row says otherwise: none of this is evidence for patients. How fast all this is, and which aims of speed are not reached: "
        "[benchmarks](benchmarks.md)."
    )


def _fresh(held: dict) -> tuple[list[str], Figure]:
    """The part on fresh phantoms, and its figure."""
    lesions, patients = pd.DataFrame(held["lesions"]), pd.DataFrame(held["patients"])
    cuts = held["cut_mm"], held["more_mm"]
    return [
        f"The same on {lesions.patient.nunique()} fresh phantoms with lesions, which no stage and no choice of a cut has seen (`benchmarks/blurred_edges.py`):",
        _table(edges_table(lesions, *cuts)),
        "*After* comes to the scan's grid by the net's probability, *before* as a mask ([0014](decisions/0014-masks-are-carried-alike.md)): part of the difference "
        "is that; `redrawn`, below, is carried as *after* is, so it is the fairer peer. All tumor of these patients at once, false candidates and all:",
        _table(whole_table(patients)),
        f"A contour need not cost a net: the same pieces drawn where the cascade's own map reaches {held['redrawn']:g}, a level chosen on other "
        "phantoms (`redrawn`), whole patients and lesions:",
        _table(whole_table(patients, "redrawn")),
        _table(edges_table(lesions, *cuts, peer="redrawn")),
        _picture("fresh", "the boundary stage on fresh phantoms"),
    ], figures.edge_gain(lesions, held["cut_mm"], "fresh phantoms")


# --- tables ------------------------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""

    def cell(value: object) -> str:
        if isinstance(value, float | np.floating):
            return "" if math.isnan(value) else str(int(value)) if float(value).is_integer() else f"{value:.3g}"
        return str(value).replace("|", "/")

    lines = ["| " + " | ".join(str(c).replace("_", " ") for c in frame.columns) + " |", "|" + "---|" * frame.shape[1]]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in frame.itertuples(index=False)])


def _picture(name: str, said: str) -> str:
    return f"![{said}](pictures/evidence_{name}.png)"


def _short(table: pd.DataFrame, shown: list[str], patients: int) -> pd.DataFrame:
    """Stage by metric: mean and interval in a cell, n where it is not all patients."""

    def cell(row: pd.Series) -> str:
        if not math.isfinite(row["mean"]):
            return "undefined"
        n = "" if int(row["n"]) == patients else f" ({int(row['n'])})"
        return f"{row['mean']:.3f} {words.ends(row['low'], row['high'], '.3f')}{n}"

    return words.by_stage(table, shown, cell).rename(columns={"stage": "after"})


def _changes(steps: pd.DataFrame, left_out: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    """Paired changes by stage and by stage left out, one row each, a column a metric."""
    steps = steps.assign(stage=steps["from"] + " → " + steps["to"])
    both = pd.concat([steps, left_out.assign(stage="all but " + left_out["without"] + " → all")])
    return words.by_stage(both, shown, words.tested).rename(columns={"stage": "step"})


def _missed(table: pd.DataFrame, lesions: int) -> str:
    """Where the held-out lesions that were not found were lost, in words."""
    at, back = table.lost_at.value_counts(), table.appears_at.notna()
    lost = ", ".join(f"{n} by {stage}" for stage, n in at.items()) or "none"
    return (
        f"Held-out lesions, of the {lesions} that there are on the work grid, that no kept candidate touches: {len(table)} ({lost}). In {int((table.peak < 0.05).sum())} of them the tumor's "
        f"probability is nowhere over .05; {int(back.sum())} would be touched by a candidate at a lower threshold of the cascade."
    )


def _steps(made: Experiment) -> pd.DataFrame:
    """How many descriptors of each group left at each step."""
    table = made.table("selection", "table.csv")
    counts = pd.crosstab(table.group, table.step).reindex(columns=list(STEPS), fill_value=0)
    counts.loc["all"] = counts.sum()
    return counts.assign(descriptors=counts.sum(axis=1)).reset_index()


def _kept(made: Experiment) -> pd.DataFrame:
    """The kept descriptors with both ICCs and the number of folds whose own selection holds them."""
    table = made.table("selection", "table.csv")
    chosen = json.loads((made.path("selection") / "selected.json").read_text())
    folds = pd.Series([name for fold, names in chosen.items() if fold != "all" for name in names]).value_counts()
    kept = words.with_intervals(table[table.kept].sort_values("rank"), ".2f")
    return pd.DataFrame(
        {
            "rank": kept["rank"].astype(int),
            "name": kept.name,
            "group": kept.group,
            "ICC(2,1)": kept.icc21,
            "ICC(1,1)": kept.icc11,
            "folds": [f"{folds.get(name, 0)} of {len(chosen) - 1}" for name in kept.name],
        }
    )


def _alike(made: Experiment) -> str:
    """How alike the choices are that folds and resamples of the patients make, in words."""
    held = read_json(made.path("selection") / "metrics.json")
    folds, between_folds = made.table("selection", "folds.csv").fold.nunique(), held.get("nogueira_folds", math.nan)
    again = "resamples: undefined"
    if "nogueira" in held:
        again = f"{held.get('resamples', 0):.0f} resamples of the patients: {held['nogueira']:.2f}"
    return (
        f"Nogueira's index between {again}, where each choice has some five in eight patients; between the {folds} folds, any two of which share most of their "
        f"patients: {between_folds:.2f}."
    )  # fmt: skip


def _baselines(made: Experiment) -> pd.DataFrame:
    named = {"features": "features", "columns": "columns", "auc": "AUC", "recall": "recall", "threshold": "threshold",
             "removed_share": "false positives removed", "auc_gain": "gain in AUC", "removed_gain": "gain in the share removed"}  # fmt: skip
    return words.with_intervals(made.table("forest", "baselines.csv"), ".3f")[list(named)].rename(columns=named)


def edges_table(edges: pd.DataFrame, *cuts_mm: float, peer: str = "before") -> pd.DataFrame:
    """Lesions found before (or in a `peer`) and after the boundary stage, by the blur of their reference's edge: all, those sharper
    than the first cut, and those as blurred as each cut or more."""
    rows = []
    parts = [("all", edges), (f"below {cuts_mm[0]:.3g} mm", edges[edges.blur_mm < cuts_mm[0]])]
    parts += [(f"{cut:.3g} mm or more", edges[edges.blur_mm >= cut]) for cut in cuts_mm]
    for blur, part in parts:
        row = {"blur of the edge": blur, "lesions": len(part)}
        for metric in ("assd_mm", "surface_dice", "dice"):
            found = paired(part, metric, peer=peer)
            before, after = part[[f"{metric}_{peer}", f"{metric}_after"]].astype(float).dropna().mean()
            row["found in both"] = found["n"]
            row[metric] = f"{before:.3f} to {after:.3f}: {words.tested(found)}"
        found = paired(part, "assd_mm", metrics.paired_median, peer)
        row["assd_mm, median patient"] = f"{words.tested(found)} ({found['n']})"
        rows.append(row)
    return pd.DataFrame(rows)


def whole_table(patients: pd.DataFrame, peer: str = "before") -> pd.DataFrame:
    """The whole tumor of phantoms that have some, before (or in a `peer`) and after the boundary stage: a row a measure."""
    rows, ill = [], patients[patients.tumor.astype(bool)]
    for metric in ("dice", "assd_mm", "surface_dice"):
        found = paired(ill, metric, peer=peer)
        before, after = ill[[f"{metric}_{peer}", f"{metric}_after"]].astype(float).dropna().mean()
        row = {"measure": metric, "patients": found["n"], peer: f"{before:.3f}", "after": f"{after:.3f}"}
        change = f"{found['difference']:+.3f} {words.ends(found['low'], found['high'])}"
        rows.append(row | {"change": change, "p": f"{found['p']:.2g}"})
    return pd.DataFrame(rows)


# --- real CT -----------------------------------------------------------------------------------------------------


def _real(held: dict) -> tuple[list[str], Figure]:
    """The part on real CT: a table a variant, means over all patients in whom a metric is defined, and the figure."""
    table, trainings = claims.real_table(held)
    people, ill = table.patient.nunique(), table[table.lesions_5 > 0].patient.nunique()
    shown = [m for m in REAL_METRICS if m in table]
    table = table.astype(dict.fromkeys(shown, float))
    parts = [
        "## Real CT, one patient held out at a time",
        "Scans that are cut to the liver's box (LiTS) are given the reference liver; whole scans (3D-IRCADb, CHAOS) have the liver net's own. "
        + (
            f"Each patient's value is the mean over {trainings} trainings (nets, implants and folds drawn again, from the same phantoms); intervals and tests hold the patients only."
            if trainings > 1
            else "One training was measured: intervals and tests hold the patients only, given this training. Another training moves a mean Dice by .04 to .08."
        ),
        f"{people} patients, {ill} of them with tumors; means over those in whom a metric is defined (n where it is not {ill}; a healthy one has false positives, and precision 0 with "
        f"them), false positives a scan, lesions over 5 and 10 mm (what the variants learn from: [benchmarks](benchmarks.md)). The paired test of {ill} patients cannot give a p below "
        f"{2 / 2**ill:.2g}, so of what only they have no step is more than a hint here, whatever its interval says; and decision 0015 of the boundary stage began with a look at them.",
        ""
        if held.get("boundary_threshold") == BoundarySettings().threshold
        else "Measured before decisions 0013 and 0014, with an earlier boundary stage and another way of carrying masks to the scan's grid; the log tells "
        "what the present rule makes of the same nets.",
    ]
    stages = []
    for variant, part in table.groupby("variant"):
        means = pd.DataFrame(
            {"stage": stage, "metric": m, **dict(zip(("mean", "low", "high"), metrics.bootstrap(own[m], groups=own.patient))),
             "n": int(own[m].notna().sum())}
            for stage, own in part.groupby("stage", sort=False)
            for m in shown
        )  # fmt: skip
        name = held.get("settings", {}).get("variants", {}).get(variant, "")
        parts += [f"Variant {variant}: {name}", _table(_short(means, shown, ill)), _real_steps(part, shown)]
        means = means[means.stage.isin(ABLATION)]
        stages.append(means.assign(stage=f"{variant}: " + means.stage))
    if table.variant.nunique() > 1:
        mean = table.groupby(["stage", "patient"], sort=False)[shown].mean().reset_index()
        parts += ["Each patient's mean over the variants:", _real_steps(mean, shown)]
    parts.append(_picture("real_ct", "real CT: each metric after each stage"))
    title = f"real CT, {people} patients, {ill} of them with tumors"
    return parts, figures.ablation(pd.concat(stages), None, shown, 2, title=title)


def _real_steps(part: pd.DataFrame, shown: list[str]) -> str:
    """Each stage against the one before it on real CT, in pairs."""
    whole = [(ABLATION[0], ABLATION[-1])]
    whole += [(stage, ABLATION[-1]) for stage in dict.fromkeys(part.stage) if str(stage).startswith("all but")]
    steps = [*((a, b, f"{a} → {b}") for a, b in zip(ABLATION, ABLATION[1:])), *((a, b, f"{a} → all") for a, b in whole)]
    cells = lambda a, b: {m: words.tested(between(part, a, b, m, "patient")) for m in shown}
    return _table(pd.DataFrame([{"step": step} | cells(a, b) for a, b, step in steps]))
