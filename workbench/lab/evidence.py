"""The evidence page: each stage's claim, its number with its interval, and whether the data support it, from an experiment's files.

Ours; the paper has none. A claim of a change is *supported* when its 95 % interval over patients (pairs, patients drawn again)
leaves 0 out on the claimed side and the paired test agrees (p at most 0.05), *contradicted* when both speak for the other side, *not
shown* else; on so few patients that the test cannot give such a p, nothing is said. A claim of a level is supported when the whole interval reaches it. What is claimed stands here in code before anything is measured; nothing on the page is
typed by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.data.files import read_json, write_atomic
from workbench.experiment import Experiment, reading
from workbench.lab import figures, report, review
from workbench.stages import forest, metrics
from workbench.stages.boundary import BoundarySettings
from workbench.stages.ledger import ABLATION
from workbench.stages.selection import STEPS
from workbench.volume import Refused

BETTER = {  # which way is better, for what the claims are about
    "tumor_dice": 1,
    "tumor_assd_mm": -1,
    "tumor_surface_dice": 1,
    "recall_iou0": 1,
    "recall_over_10mm": 1,
    "recall_iou50": 1,
    "precision_iou0": 1,
    "false_positives": -1,
    "recall_5": 1,
    "recall_10": 1,
    "precision_5": 1,
    "false_5": -1,
}
REAL_METRICS = ("tumor_dice", "tumor_assd_mm", "tumor_surface_dice", "recall_5", "recall_10", "precision_5", "false_5")
EXCELLENT = 0.75  # fixed: from where Nogueira, Sechidis & Brown (2018) call a selection's stability excellent
LOOKED_AT = {  # presets whose held-out patients had a part in a choice, and which
    "demo": "A look at these held-out patients started a change of the boundary stage (decision 0013): its rows on them are hints, "
    "those on fresh phantoms are the test.",
}
BUILT_SO = "holds, as it was chosen so"  # a check of the program, no finding
LEVEL = 0.05
TOO_FEW = "too few patients"  # sign flips of so few pairs never reach the level
PEERS = {  # what stands beside the selected descriptors, in words
    "size": "size alone",
    "shape": "shape alone",
    "shape and boundary": "all of shape and boundary, unselected",
    "all": "all 728",
    "boosting": "they do in boosting",
}
EDGE = (("tumor_assd_mm", "smaller surface distance (mm)"), ("tumor_surface_dice", "higher surface Dice at 1 mm"))
NO_LOSS = 0.01  # a choice: a share that a stage which only takes away may cost and still count as costing nothing


class Claim(NamedTuple):
    """A row of the page: what is claimed of a stage, what was measured, the verdict, and the test's p where there is one."""

    stage: str
    claim: str
    measured: str
    verdict: str
    p: float = math.nan


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
    edges = review.edges(made)
    cut_mm = float(edges.blur_mm.median())
    about, last = read_json(made.path("metrics") / "stage.json"), made.table("metrics", "cases.csv")
    ablation, left_out = (made.table("metrics", f"{name}.csv") for name in ("ablation", "leave_one_out"))
    shown, whole = report.ablation_metrics(ablation), report.variants(ablation, left_out)
    steps, scores = made.table("metrics", "comparisons.csv"), made.table("forest", "scores.csv", dtype=review.AS_TEXT)
    train, held = (scores[scores.split == split] for split in ("train", "test"))
    chances, model = forest.calibration(train.score, train.is_lesion), forest.load(made.path("forest"))
    weights = made.table("forest", "importance.csv").nlargest(20, "drop")
    patients, lesions, beside = last.patient.nunique(), len(edges), review.filters_held_out(made)
    pictures = {
        "ablation": figures.ablation(whole, last, shown),
        "calibration": figures.calibration(*chances, train.patient.nunique(), "the forest's scores, out of fold"),
        "froc": figures.froc(
            held, len(review.lesions(made, "test")), patients, model.threshold.threshold, "held out, on the work grid"
        ),
        "importance": figures.importance(weights, train.patient.nunique(), title="what the forests look at"),
        "edges": figures.edge_gain(edges, cut_mm),
    }
    claims = [
        *_cascade(made, steps),
        *_selection(made),
        *_forest(made, steps, last, train, held, chances, beside[1]),
        *_boundary(steps, edges, cut_mm),
        *(_fresh(fresh) if fresh else []),
        *_smoothing(made),
        *_together(last, left_out),
        *(_real_steps_claimed(real_ct) if real_ct else []),
    ]
    parts = [
        "# Evidence",
        f"Made by `make evidence` from one experiment's files, never typed: preset {made.about['preset']}, version {(about.get('versions') or {}).get('workbench') or about.get('version')}, seed "
        f"{made.settings.seed}, device {about['device']}, finished {about['finished'][:10]}. {made.cases('train').patient.nunique()} patients "
        f"to learn from, **{patients} held out** ({lesions} lesions). Intervals are 95 %: over patients drawn again for means and changes, "
        "Wilson's for shares. All of it is **given this training**: nets that were trained again, with the same seed on another processor, changed 9 of 43 verdicts. *Supported*: the interval leaves 0 (or the stated level) out on the claimed side and, for a change, p is at most .05; "
        "*contradicted*: the same on the other side; *not shown*: neither; *too few patients*: no p of .05 was possible; *holds*: a check of the program, which its own rule "
        "ensures. Phantoms, unless the row says otherwise: none of this is evidence for patients. How fast all this is, and which aims of speed are not reached: "
        "[benchmarks](benchmarks.md).",
        "## What is claimed, and what the data say",
        _table(pd.DataFrame(claims).drop(columns="p")),
        LOOKED_AT.get(made.settings.preset, ""),
        _many(claims),
        "## The ablation",
        "After each stage, and with all stages but one; the mean, its interval, and n where it is not all patients.",
        _table(_short(whole, shown, patients)),
        _picture("ablation", "each metric after each stage, and without one stage"),
        "Each stage against the one before it, and what a stage changes when all others are there (pairs):",
        _table(_changes(steps, left_out, shown)),
        "Held-out lesions by diameter, found at all (IoU above 0) and well (above 0.5):",
        _table(review.by_size(made).reset_index(names=["after", "diameter"])),
        _missed(review.missed(made), len(review.lesions(made, "test"))),
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
        _table(beside[0].reset_index().round({"auc": 3})),
        _picture("importance", "permutation importance on patients left out"),
        _picture("calibration", "reliability of the scores"),
        _picture("froc", "lesions found against false positives"),
        "## The contour",
        _table(edges_table(edges, cut_mm)),
        _picture("edges", "what the boundary stage did to each lesion"),
    ]
    if fresh is not None:
        lesions = pd.DataFrame(fresh["lesions"])
        pictures["fresh"] = figures.edge_gain(lesions, fresh["cut_mm"], "fresh phantoms")
        parts += [
            f"The same on {lesions.patient.nunique()} fresh phantoms with lesions, which no stage and no choice of a cut has seen (`benchmarks/blurred_edges.py`):",
            _table(edges_table(lesions, fresh["cut_mm"], fresh["more_mm"])),
            "*After* comes to the scan's grid by the net's probability, *before* as a mask ([0014](decisions/0014-masks-are-carried-alike.md)): part of the difference "
            "is that; `redrawn`, below, is carried as *after* is, so it is the fairer peer. All tumor of these patients at once, false candidates and all:",
            _table(whole_table(pd.DataFrame(fresh["patients"]))),
            f"A contour need not cost a net: the same pieces drawn where the cascade's own map reaches {fresh['redrawn']:g}, a level chosen on other "
            "phantoms (`redrawn`), whole patients and lesions:",
            _table(whole_table(pd.DataFrame(fresh["patients"]), "redrawn")),
            _table(edges_table(lesions, fresh["cut_mm"], fresh["more_mm"], peer="redrawn")),
            _picture("fresh", "the boundary stage on fresh phantoms"),
        ]
    if real_ct is not None:
        words, pictures["real_ct"] = _real(real_ct)
        parts += words
    return "\n\n".join(part for part in parts if part) + "\n", pictures


# ---------------------------------------------------------------------------------------------- claims


def verdict(low: float, high: float, better: int, level: float = 0.0) -> str:
    """What an interval says of a claim that the figure lies above (`better` 1) or below (-1) a level."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    low, high = (low - level, high - level) if better > 0 else (level - high, level - low)
    return "**supported**" if low > 0 else "**contradicted**" if high < 0 else "not shown"


def _change(stage: str, claim: str, row: pd.Series, metric: str) -> Claim:
    """A claim that a paired change makes a metric better."""
    words = f"{_tested(row)}, n {int(row.n)}"
    said = verdict(row.low, row.high, BETTER[metric])
    if said != "undefined":
        said = TOO_FEW if 2.0 ** (1 - row.n) > LEVEL else said if row.p <= LEVEL else "not shown"
    return Claim(stage, claim, words, said, row.p)


def _between(low: float, high: float) -> str:
    return f"[{low:+.3f}, {high:+.3f}]"


def _tested(row: Mapping | pd.Series) -> str:
    """A paired change with its interval and p."""
    return f"{row['difference']:+.3f} {_between(row['low'], row['high'])}, p {row['p']:.2g}"


def _many(claims: list[Claim]) -> str:
    """How many claims there are, and which of the supported ones many tests leave standing (Holm 1979)."""
    open_to_all = [c for c in claims if c.verdict not in (BUILT_SO, TOO_FEW)]
    tested = sorted((c for c in open_to_all if math.isfinite(c.p)), key=lambda c: c.p)
    standing = 0
    while standing < len(tested) and tested[standing].p <= LEVEL / (len(tested) - standing):
        standing += 1
    lost = [f"{c.stage}: {c.claim}" for c in tested[standing:] if c.verdict == "**supported**"]
    return (
        f"{len(open_to_all)} claims that could have failed, and {sum(c.verdict == TOO_FEW for c in claims)} on too few patients to be tested. {len(tested)} of them have a p; at 5 % each, "
        "about one in twenty would look supported or contradicted by chance alone. By Holm's procedure, which holds all of these together to 5 %, "
        + (
            f"these supported ones would not be: {'; '.join(lost)}."
            if lost
            else "every supported one of them stays supported."
        )
    )


def _step(steps: pd.DataFrame, to: str, metric: str) -> pd.Series:
    return steps[(steps.to == to) & (steps.metric == metric)].iloc[0]


def _cascade(made: Experiment, steps: pd.DataFrame) -> list[Claim]:
    before, after = (
        [lesion["detected_iou0"] for case in read_json(made.path("metrics") / f"{stage}.json", "cases")["cases"] for lesion in case["lesions"]]
        for stage in ("consistency", "candidates")
    )  # fmt: skip
    found, left = sum(before), sum(a and b for a, b in zip(before, after))
    kept = Claim(
        "candidates",
        f"dropping small pieces keeps {1 - NO_LOSS:.0%} of the lesions found",
        review.share(left, found),
        verdict(*forest.wilson(left, found), 1, 1 - NO_LOSS) if found else "undefined",
    )
    rule = [
        _change("consistency", claim, _step(steps, "consistency", metric), metric)
        for claim, metric in (
            ("the three-slice rule raises tumor Dice", "tumor_dice"),
            ("it takes false positives away", "false_positives"),
            ("it restores lesions", "recall_iou0"),
        )
    ]
    return [*rule, kept]


def _selection(made: Experiment) -> list[Claim]:
    held, table = read_json(made.path("selection") / "metrics.json"), made.table("selection", "table.csv")
    index, low, high = (held.get(f"nogueira{end}", math.nan) for end in ("", "_low", "_high"))
    bound, kept = made.settings.selection.icc_bound, table[table.kept]
    steady = kept[["icc21_low", "icc11_low"]].min(axis=1)
    left = table[~table.kept]
    claims = [
        Claim(
            "selection",
            f"every one of {len(table)} descriptors has a step and a reason, {made.settings.selection.keep} stay",
            f"{int((table.reason != '').sum() - table.reason.isna().sum())} reasons, {len(kept)} stay, {len(left)} leave",
            BUILT_SO
            if len(kept) == made.settings.selection.keep and table.reason.notna().all() and table.step.isin(STEPS).all()
            else "**contradicted**",
        ),
        Claim(
            "selection",
            f"those kept repeat themselves: both ICC intervals from {bound} up",
            f"{int((steady >= bound).sum())} of {len(kept)}; lowest end {steady.min():.2f}",
            BUILT_SO if (steady >= bound).all() else "**contradicted**",
        ),
        Claim(
            "selection",
            f"the choice repeats itself between resamples of the patients (Nogueira's index above {EXCELLENT})",
            f"{index:.2f} [{low:.2f}, {high:.2f}], {held['resamples']:.0f} resamples"
            if math.isfinite(index)
            else "undefined",
            verdict(low, high, 1, EXCELLENT),
        ),
    ]
    beside = made.table("forest", "baselines.csv").set_index("features")
    for measure, words in (
        ("auc_gain", "rank better than {} (area under the curve, out of fold)"),
        ("removed_gain", "remove a larger share of the false candidates than {}, at the same recall (out of fold)"),
    ):
        for what, row in beside.iterrows():
            if what != "selected":
                low, high = row[f"{measure}_low"], row[f"{measure}_high"]
                said = f"{row[measure]:+.3f} {_between(low, high)}"
                claim = "the selected descriptors in a forest " + words.format(PEERS.get(str(what), what))
                claims.append(Claim("forest", claim, said, verdict(low, high, 1)))
    return claims


def spiegelhalter(scores: np.ndarray, target: np.ndarray) -> float:
    """z of the Brier score beside what it would be were the scores chances (Spiegelhalter 1986); 1.96 is the 5 % level.

    NaN where neither can move: all scores 0, 1 or one half, and those that are sure right.
    """
    p, y = np.asarray(scores, float), np.asarray(target, float)
    away, spread = float(((y - p) * (1 - 2 * p)).sum()), math.sqrt(((1 - 2 * p) ** 2 * p * (1 - p)).sum())
    return away / spread if spread else math.copysign(math.inf, away) if away else math.nan


def _forest(
    made: Experiment,
    steps: pd.DataFrame,
    cases: pd.DataFrame,
    train: pd.DataFrame,
    held: pd.DataFrame,
    chances: forest.Calibration,
    filters: pd.DataFrame,
) -> list[Claim]:
    found = held[held.is_lesion].groupby(["case", "lesion"]).kept.any()
    recall, kept = made.settings.forest.recall, (int(found.sum()), len(found))
    inside = chances.bins.score.between(chances.bins.low, chances.bins.high)
    claims = []
    for peer in ("size", "shape and boundary"):
        false = filters[~filters.is_lesion].groupby("patient")[[peer, "selected"]].sum()
        row = pd.Series(metrics.paired(false[peer], false["selected"]))
        claim = f"fewer false candidates of new patients stay than with {PEERS[peer]}, at the same recall"
        claims.append(_change("forest", claim, row, "false_positives"))
    ill = _ill(cases)
    after, before = (ill[ill.stage == stage].set_index("case").tumor_dice for stage in ("forest", "candidates"))
    with_tumors = pd.Series(metrics.paired(before, after.reindex(before.index), groups=_of(ill, before.index)))
    new = forest.calibration(held.score, held.is_lesion) if len(held) else None
    return [
        *claims,
        Claim("forest", f"it keeps {recall:.0%} of the found lesions of new patients", review.share(*kept),
              verdict(*forest.wilson(*kept), 1, recall) if kept[1] else "undefined"),
        _change("forest", "fewer false positives a patient", _step(steps, "forest", "false_positives"), "false_positives"),
        _change("forest", "higher tumor Dice", _step(steps, "forest", "tumor_dice"), "tumor_dice"),
        _change("forest", "higher tumor Dice, patients with tumors", with_tumors, "tumor_dice"),
        _chances("its scores are chances (Spiegelhalter's test, out of fold)", train, chances, f"{int(inside.sum())} of {len(inside)} bins hold their score; "),
        *([] if new is None else [_chances("the same, on new patients", held, new)]),
    ]  # fmt: skip


def _chances(claim: str, table: pd.DataFrame, found: forest.Calibration, words: str = "") -> Claim:
    z = spiegelhalter(table.score, table.is_lesion)
    measured = f"z {z:+.1f}; {words}Brier {found.brier:.3f}, calibration error {found.error:.3f}, {len(table)} candidates, taken as independent"
    said = "undefined" if math.isnan(z) else "not contradicted" if abs(z) <= 1.96 else "**contradicted**"
    return Claim("forest", claim, measured, said)


def _ill(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of cases whose reference has tumors."""
    return cases[cases.recall_iou0.notna()]


def _of(table: pd.DataFrame, names: pd.Index) -> list[str]:
    """The patients of cases."""
    return table.drop_duplicates("case").set_index("case").patient.reindex(names).to_list()


def _boundary(steps: pd.DataFrame, edges: pd.DataFrame, cut_mm: float) -> list[Claim]:
    whole = (*EDGE, ("tumor_dice", "higher tumor Dice"), ("recall_iou50", "more lesions found well (IoU above 0.5)"))
    claims = [_change("boundary", f"{words}, a patient", _step(steps, "boundary", m), m) for m, words in whole]
    part = edges[edges.blur_mm >= cut_mm]
    for metric, words in EDGE:
        row = pd.Series(_paired(part, metric.removeprefix("tumor_")))
        claims.append(
            _change("boundary", f"{words}, lesions whose edge is blurred ({cut_mm:.3g} mm or more)", row, metric)
        )
    return claims


def _fresh(held: dict) -> list[Claim]:
    """The claims on blurred edges again, on lesions that none of this was chosen on."""
    table, patients = pd.DataFrame(held["lesions"]), pd.DataFrame(held["patients"])
    ill, claims = patients[patients.tumor.astype(bool)], []
    for metric, words in (("tumor_dice", "higher tumor Dice"), *EDGE):
        row = pd.Series(_paired(ill, metric.removeprefix("tumor_")))
        claims.append(_change("boundary", f"{words}, a patient, fresh phantoms", row, metric))
    for cut in (held["cut_mm"], held["more_mm"]):
        for metric, words in EDGE:
            part, where = table[table.blur_mm >= cut], f"edges blurred by {cut:.3g} mm or more, fresh phantoms"
            row = pd.Series(_paired(part, metric.removeprefix("tumor_")))
            claims.append(_change("boundary", f"{words}, {where}", row, metric))
            if metric == "tumor_assd_mm":  # its mean can hang on one lesion
                row = pd.Series(_paired(part, "assd_mm", metrics.paired_median))
                claims.append(
                    _change("boundary", f"{words} in the median patient (signed ranks), {where}", row, metric)
                )
    sharp = table[table.blur_mm < held["cut_mm"]]
    for metric, words in EDGE:
        row = pd.Series(_paired(sharp, metric.removeprefix("tumor_")))
        claims.append(
            _change("boundary", f"{words}, edges sharper than {held['cut_mm']:.3g} mm, fresh phantoms", row, metric)
        )
    own = f"than the cascade's own contour at {held['redrawn']:g}"
    blurred = table[table.blur_mm >= held["cut_mm"]], f"edges blurred by {held['cut_mm']:.3g} mm or more"
    for metric, words, part, where in (
        ("tumor_dice", "higher tumor Dice", ill, "a patient"),
        *((*named, *blurred) for named in EDGE),
    ):
        row = pd.Series(_paired(part, metric.removeprefix("tumor_"), peer="redrawn"))
        claims.append(_change("boundary", f"{words} {own}, {where}, fresh phantoms", row, metric))
    return claims


def _smoothing(made: Experiment) -> list[Claim]:
    """How much the smoothing alone changes the tumor's volume, from the results of the held-out cases."""
    held = [reading.result(made.folder / "results" / case).info for case in made.cases("test").case]
    shares = [
        abs(h["change_ml"]["smoothing"]) / h["tumor_ml"] for h in held if h.get("change_ml") and h["tumor_ml"] > 0
    ]
    mean, low, high = metrics.bootstrap([100 * share for share in shares])
    measured = f"{mean:.2f} % [{low:.2f}, {high:.2f}], {len(shares)} cases" if shares else "undefined"
    claim = f"smoothing alone changes the tumor's volume by less than {100 * NO_LOSS:.0f} %"
    return [Claim("boundary", claim, measured, verdict(low, high, -1, 100 * NO_LOSS))]


def _paired(edges: pd.DataFrame, metric: str, test: Callable[..., dict] = metrics.paired, peer: str = "before") -> dict:
    before, after = (edges[f"{metric}_{when}"].astype(float) for when in (peer, "after"))
    return test(before, after, groups=edges.patient.to_numpy())


def _together(cases: pd.DataFrame, left_out: pd.DataFrame) -> list[Claim]:
    claims = []
    for metric, words, whose, part in (
        ("tumor_dice", "higher tumor Dice", "", cases),
        ("tumor_dice", "higher tumor Dice", ", patients with tumors", _ill(cases)),
        ("false_positives", "fewer false positives", "", cases),
        ("recall_iou0", "more lesions found", "", cases),
    ):
        first, last = (part[part.stage == stage].reset_index(drop=True) for stage in (ABLATION[0], ABLATION[-1]))
        row = pd.Series(metrics.paired(first[metric], last[metric], groups=first.patient.to_numpy()))
        claims.append(_change("all", f"{words} than by the cascade alone{whose}", row, metric))
    for row in left_out[left_out.metric == "tumor_dice"].itertuples():
        claims.append(
            _change("all", f"higher tumor Dice than without {row.without}", pd.Series(row._asdict()), "tumor_dice")
        )
    return claims


# ---------------------------------------------------------------------------------------------- tables


def _table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""

    def cell(value: object) -> str:
        if isinstance(value, float | np.floating):
            return "" if math.isnan(value) else str(int(value)) if float(value).is_integer() else f"{value:.3g}"
        return str(value).replace("|", "/")

    lines = ["| " + " | ".join(str(c).replace("_", " ") for c in frame.columns) + " |", "|" + "---|" * frame.shape[1]]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in frame.itertuples(index=False)])


def _picture(name: str, words: str) -> str:
    return f"![{words}](pictures/evidence_{name}.png)"


def _short(table: pd.DataFrame, shown: list[str], patients: int) -> pd.DataFrame:
    """Stage by metric: mean and interval in a cell, n where it is not all patients."""

    def cell(row) -> str:
        if not math.isfinite(row["mean"]):
            return "undefined"
        n = "" if int(row["n"]) == patients else f" ({int(row['n'])})"
        return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{n}"

    cells = {(row["stage"], row["metric"]): cell(row) for _, row in table.iterrows()}
    stages = list(dict.fromkeys(table.stage))
    rows = [[stage, *(cells.get((stage, m), "") for m in shown)] for stage in stages]
    return pd.DataFrame(rows, columns=["after", *shown])


def _changes(steps: pd.DataFrame, left_out: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    """Paired changes by stage and by stage left out, one row each, a column a metric."""
    steps = steps.assign(row=steps["from"] + " → " + steps["to"])
    both = pd.concat([steps, left_out.assign(row="all but " + left_out["without"] + " → all")])
    both["cell"] = [_tested(row) for _, row in both.iterrows()]
    wide = both[both.metric.isin(shown)].pivot(index="row", columns="metric", values="cell")
    return wide.loc[list(dict.fromkeys(both.row)), shown].reset_index(names="step")


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
    kept = table[table.kept].sort_values("rank")
    rows = {"rank": kept["rank"].astype(int), "name": kept.name, "group": kept.group}
    for kind, words in (("icc21", "ICC(2,1)"), ("icc11", "ICC(1,1)")):
        ends = zip(kept[kind], kept[f"{kind}_low"], kept[f"{kind}_high"])
        rows[words] = [f"{a:.2f} [{b:.2f}, {c:.2f}]" for a, b, c in ends]
    return pd.DataFrame(rows | {"folds": [f"{folds.get(n, 0)} of {len(chosen) - 1}" for n in kept.name]})


def _alike(made: Experiment) -> str:
    """How alike the choices are that folds and resamples of the patients make, in words."""
    held, folds = (
        read_json(made.path("selection") / "metrics.json"),
        made.table("selection", "folds.csv").fold.nunique(),
    )
    between = held.get("nogueira_folds", math.nan)
    again = (
        f"{held.get('resamples', 0):.0f} resamples of the patients: {held['nogueira']:.2f}"
        if "nogueira" in held
        else "resamples: undefined"
    )
    return (
        f"Nogueira's index between {again}, where each choice has some five in eight patients; between the {folds} folds, any two of which share most of their "
        f"patients: {between:.2f}."
    )  # fmt: skip


def _baselines(made: Experiment) -> pd.DataFrame:
    table = made.table("forest", "baselines.csv")
    rows = {"features": table.features, "columns": table["columns"]}
    columns = {"auc": "AUC", "recall": "recall", "threshold": "threshold", "removed_share": "false positives removed"}
    for name, words in columns.items():
        rows[words] = [f"{r[name]:.3f} [{r[f'{name}_low']:.3f}, {r[f'{name}_high']:.3f}]" for _, r in table.iterrows()]
    for name, words in (("auc_gain", "gain in AUC"), ("removed_gain", "gain in the share removed")):
        rows[words] = [f"{r[name]:+.3f} {_between(r[f'{name}_low'], r[f'{name}_high'])}" for _, r in table.iterrows()]
    return pd.DataFrame(rows)


def edges_table(edges: pd.DataFrame, *cuts_mm: float, peer: str = "before") -> pd.DataFrame:
    """Lesions found before (or in a `peer`) and after the boundary stage, by the blur of their reference's edge: all, those sharper
    than the first cut, and those as blurred as each cut or more."""
    rows = []
    parts = [("all", edges), (f"below {cuts_mm[0]:.3g} mm", edges[edges.blur_mm < cuts_mm[0]])]
    parts += [(f"{cut:.3g} mm or more", edges[edges.blur_mm >= cut]) for cut in cuts_mm]
    for words, part in parts:
        row = {"blur of the edge": words, "lesions": len(part)}
        for metric in ("assd_mm", "surface_dice", "dice"):
            found = _paired(part, metric, peer=peer)
            both = part[[f"{metric}_{peer}", f"{metric}_after"]].astype(float).dropna().mean()
            row["found in both"] = found["n"]
            row[metric] = f"{both.iloc[0]:.3f} to {both.iloc[1]:.3f}: {_tested(found)}"
        found = _paired(part, "assd_mm", metrics.paired_median, peer)
        row["assd_mm, median patient"] = f"{_tested(found)} ({found['n']})"
        rows.append(row)
    return pd.DataFrame(rows)


def whole_table(patients: pd.DataFrame, peer: str = "before") -> pd.DataFrame:
    """The whole tumor of phantoms that have some, before (or in a `peer`) and after the boundary stage: a row a measure."""
    rows, ill = [], patients[patients.tumor.astype(bool)]
    for metric in ("dice", "assd_mm", "surface_dice"):
        found = _paired(ill, metric, peer=peer)
        before, after = ill[[f"{metric}_{peer}", f"{metric}_after"]].astype(float).dropna().mean()
        rows.append(
            {
                "measure": metric,
                "patients": found["n"],
                peer: f"{before:.3f}",
                "after": f"{after:.3f}",
                "change": f"{found['difference']:+.3f} {_between(found['low'], found['high'])}",
                "p": f"{found['p']:.2g}",
            }
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------- real CT


def _real(held: dict) -> tuple[list[str], Figure]:
    """The part on real CT: a table a variant, means over all patients in whom a metric is defined, and the figure."""
    table, trainings = _real_table(held)
    people, ill = table.patient.nunique(), table[table.lesions_5 > 0].patient.nunique()
    shown = [m for m in REAL_METRICS if m in table]
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
        rows = [
            {"stage": stage, "metric": m, **dict(zip(("mean", "low", "high"), metrics.bootstrap(own[m].astype(float), groups=own.patient))),
             "n": int(own[m].notna().sum())}
            for stage, own in part.groupby("stage", sort=False)
            for m in shown
        ]  # fmt: skip
        name = held.get("settings", {}).get("variants", {}).get(variant, "")
        parts += [
            f"Variant {variant}: {name}",
            _table(_short(pd.DataFrame(rows), shown, ill)),
            _real_steps(part, shown),
        ]
        stages += [row | {"stage": f"{variant}: {row['stage']}"} for row in rows if row["stage"] in ABLATION]
    if table.variant.nunique() > 1:
        numbers = table.astype(dict.fromkeys(shown, float))
        mean = numbers.groupby(["stage", "patient"], sort=False)[shown].mean().reset_index()
        parts += ["Each patient's mean over the variants:", _real_steps(mean, shown)]
    parts.append(_picture("real_ct", "real CT: each metric after each stage"))
    title = f"real CT, {people} patients, {ill} of them with tumors"
    return parts, figures.ablation(pd.DataFrame(stages), None, shown, 2, title=title)


def _real_table(held: dict) -> tuple[pd.DataFrame, int]:
    """A row a variant, stage and patient, the mean over trainings, with the liver net's own liver on whole scans; and how many trainings there are."""
    table = pd.DataFrame(held["summary"])
    if "seed" not in table:
        return table, 1
    table = table[(table.within == "stages") & (table.liver == "own")]
    numbers = [c for c in table if c not in ("variant", "seed", "patient", "liver", "within", "stage")]
    table = table.astype(dict.fromkeys(numbers, float))
    return table.groupby(["variant", "stage", "patient"], sort=False)[
        numbers
    ].mean().reset_index(), table.seed.nunique()


def _real_steps_claimed(held: dict) -> list[Claim]:
    """What the stages do on real CT, in each variant."""
    (table, _), claims = _real_table(held), []
    for variant, part in table.groupby("variant"):
        for stage, a, b, metric, words in (
            ("forest", "candidates", "forest", "false_5", "fewer false positives over 5 mm"),
            ("boundary", "forest", "boundary", "tumor_dice", "higher tumor Dice"),
            *(("boundary", "forest", "boundary", *named) for named in EDGE),
            ("all", ABLATION[0], ABLATION[-1], "tumor_dice", "higher tumor Dice than by the cascade alone"),
            ("all", ABLATION[0], ABLATION[-1], "false_5", "fewer false positives over 5 mm than by the cascade alone"),
        ):
            if metric in part:
                row = pd.Series(_real_change(part, a, b, metric))
                claims.append(_change(stage, f"{words}, a patient, **real CT**, variant {variant}", row, metric))
    return claims


def _real_change(part: pd.DataFrame, a: str, b: str, metric: str) -> dict:
    """From stage a to stage b, in pairs of one patient."""
    before, after = (part[part.stage == stage].set_index("patient")[metric].astype(float) for stage in (a, b))
    return metrics.paired(before, after.reindex(before.index))


def _real_steps(part: pd.DataFrame, shown: list[str]) -> str:
    """Each stage against the one before it on real CT, in pairs."""

    pairs = [*zip(ABLATION, ABLATION[1:]), (ABLATION[0], ABLATION[-1])]
    pairs += [(stage, ABLATION[-1]) for stage in dict.fromkeys(part.stage) if str(stage).startswith("all but")]
    rows = []
    for a, b in pairs:
        cells = {m: _tested(_real_change(part, a, b, m)) for m in shown}
        whole = a.startswith("all but") or a == ABLATION[0] and b == ABLATION[-1]
        rows.append({"step": f"{a} → {'all' if whole else b}"} | cells)
    return _table(pd.DataFrame(rows))
