"""What is claimed of each stage, and what the data say to it.

A claim of a change is *supported* when its 95 % interval over patients (pairs, patients drawn again) leaves 0 out on the claimed side
and the paired test agrees (p at most 0.05), *contradicted* when both speak for the other side, *not shown* else; on so few patients that
the test cannot give such a p, nothing is said. A claim of a level is supported when the whole interval reaches it. What is claimed stands
here in code before anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from workbench.data.files import read_json
from workbench.experiment import Experiment, reading
from workbench.lab.words import ends, share, tested
from workbench.stages import forest, metrics
from workbench.stages.ledger import ABLATION
from workbench.stages.selection import STEPS

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
EXCELLENT = 0.75  # fixed: from where Nogueira, Sechidis & Brown (2018) call a selection's stability excellent
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


def verdict(low: float, high: float, better: int, level: float = 0.0) -> str:
    """What an interval says of a claim that the figure lies above (`better` 1) or below (-1) a level."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    low, high = (low - level, high - level) if better > 0 else (level - high, level - low)
    return "**supported**" if low > 0 else "**contradicted**" if high < 0 else "not shown"


def change(stage: str, claim: str, found: Mapping | pd.Series, metric: str) -> Claim:
    """A claim that a paired change makes a metric better."""
    said = verdict(found["low"], found["high"], BETTER[metric])
    if said != "undefined":
        said = TOO_FEW if 2.0 ** (1 - found["n"]) > LEVEL else said if found["p"] <= LEVEL else "not shown"
    return Claim(stage, claim, f"{tested(found)}, n {int(found['n'])}", said, found["p"])


def paired(edges: pd.DataFrame, metric: str, test: Callable[..., dict] = metrics.paired, peer: str = "before") -> dict:
    """What the boundary stage did to lesions or patients: columns patient, and the metric with _before (or a `peer`) and _after."""
    before, after = (edges[f"{metric}_{when}"].astype(float) for when in (peer, "after"))
    return test(before, after, groups=edges.patient.to_numpy())


def between(table: pd.DataFrame, a: str, b: str, metric: str, pairs: str = "case") -> dict:
    """From stage a to stage b, in pairs of one case, or of one patient where a patient has one row a stage."""
    before, after = (table[table.stage == stage].set_index(pairs) for stage in (a, b))
    values = before[metric].astype(float), after[metric].astype(float).reindex(before.index)
    return metrics.paired(*values, groups=before.patient.to_numpy() if pairs == "case" else None)


def many(claims: list[Claim]) -> str:
    """How many claims there are, and which of the supported ones many tests leave standing (Holm 1979)."""
    open_to_all = [c for c in claims if c.verdict not in (BUILT_SO, TOO_FEW)]
    by_p = sorted((c for c in open_to_all if math.isfinite(c.p)), key=lambda c: c.p)
    standing = 0
    while standing < len(by_p) and by_p[standing].p <= LEVEL / (len(by_p) - standing):
        standing += 1
    lost = [f"{c.stage}: {c.claim}" for c in by_p[standing:] if c.verdict == "**supported**"]
    told = (
        f"these supported ones would not be: {'; '.join(lost)}."
        if lost
        else "every supported one of them stays supported."
    )
    return (
        f"{len(open_to_all)} claims that could have failed, and {sum(c.verdict == TOO_FEW for c in claims)} on too few patients to be tested. {len(by_p)} of them have a p; at 5 % each, "
        f"about one in twenty would look supported or contradicted by chance alone. By Holm's procedure, which holds all of these together to 5 %, {told}"
    )


def _step(steps: pd.DataFrame, to: str, metric: str) -> pd.Series:
    return steps[(steps.to == to) & (steps.metric == metric)].iloc[0]


def _kept(stage: str, claim: str, hits: int, n: int, level: float) -> Claim:
    """A claim that a share reaches a level."""
    return Claim(stage, claim, share(hits, n), verdict(*forest.wilson(hits, n), 1, level) if n else "undefined")


# --- stage by stage ----------------------------------------------------------------------------------------------


def cascade(made: Experiment, steps: pd.DataFrame) -> list[Claim]:
    before, after = (
        [lesion["detected_iou0"] for case in read_json(made.path("metrics") / f"{stage}.json", "cases")["cases"] for lesion in case["lesions"]]
        for stage in ("consistency", "candidates")
    )  # fmt: skip
    left = sum(a and b for a, b in zip(before, after))
    kept = f"dropping small pieces keeps {1 - NO_LOSS:.0%} of the lesions found"
    rule = (
        ("the three-slice rule raises tumor Dice", "tumor_dice"),
        ("it takes false positives away", "false_positives"),
        ("it restores lesions", "recall_iou0"),
    )
    return [
        *(change("consistency", claim, _step(steps, "consistency", metric), metric) for claim, metric in rule),
        _kept("candidates", kept, left, sum(before), 1 - NO_LOSS),
    ]


def selection(made: Experiment) -> list[Claim]:
    held, table = read_json(made.path("selection") / "metrics.json"), made.table("selection", "table.csv")
    index, low, high = (held.get(f"nogueira{end}", math.nan) for end in ("", "_low", "_high"))
    bound, keep, kept = made.settings.selection.icc_bound, made.settings.selection.keep, table[table.kept]
    steady = kept[["icc21_low", "icc11_low"]].min(axis=1)
    reasons = int((table.reason != "").sum() - table.reason.isna().sum())
    built = len(kept) == keep and table.reason.notna().all() and table.step.isin(STEPS).all()
    repeats = (
        f"{index:.2f} {ends(low, high, '.2f')}, {held['resamples']:.0f} resamples"
        if math.isfinite(index)
        else "undefined"
    )
    claims = [
        Claim(
            "selection",
            f"every one of {len(table)} descriptors has a step and a reason, {keep} stay",
            f"{reasons} reasons, {len(kept)} stay, {len(table) - len(kept)} leave",
            BUILT_SO if built else "**contradicted**",
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
            repeats,
            verdict(low, high, 1, EXCELLENT),
        ),
    ]
    beside = made.table("forest", "baselines.csv").set_index("features").drop(index="selected", errors="ignore")
    for gain, words in (
        ("auc_gain", "rank better than {} (area under the curve, out of fold)"),
        ("removed_gain", "remove a larger share of the false candidates than {}, at the same recall (out of fold)"),
    ):
        for peer, row in beside.iterrows():
            low, high = row[f"{gain}_low"], row[f"{gain}_high"]
            claim = "the selected descriptors in a forest " + words.format(PEERS.get(str(peer), peer))
            claims.append(Claim("forest", claim, f"{row[gain]:+.3f} {ends(low, high)}", verdict(low, high, 1)))
    return claims


def spiegelhalter(scores: ArrayLike, target: ArrayLike) -> float:
    """z of the Brier score beside what it would be were the scores chances (Spiegelhalter 1986); 1.96 is the 5 % level.

    NaN where neither can move: all scores 0, 1 or one half, and those that are sure right.
    """
    p, y = np.asarray(scores, float), np.asarray(target, float)
    away, spread = float(((y - p) * (1 - 2 * p)).sum()), math.sqrt(((1 - 2 * p) ** 2 * p * (1 - p)).sum())
    return away / spread if spread else math.copysign(math.inf, away) if away else math.nan


def chances(claim: str, table: pd.DataFrame, found: forest.Calibration, words: str = "") -> Claim:
    """A claim that the forest's scores are chances."""
    z = spiegelhalter(table.score, table.is_lesion)
    measured = f"z {z:+.1f}; {words}Brier {found.brier:.3f}, calibration error {found.error:.3f}, {len(table)} candidates, taken as independent"
    said = "undefined" if math.isnan(z) else "not contradicted" if abs(z) <= 1.96 else "**contradicted**"
    return Claim("forest", claim, measured, said)


def of_forest(
    made: Experiment,
    steps: pd.DataFrame,
    cases: pd.DataFrame,
    train: pd.DataFrame,
    held: pd.DataFrame,
    calibrated: forest.Calibration,
    filters: pd.DataFrame,
) -> list[Claim]:
    found, recall = held[held.is_lesion].groupby(["case", "lesion"]).kept.any(), made.settings.forest.recall
    inside = calibrated.bins.score.between(calibrated.bins.low, calibrated.bins.high)
    bins = f"{int(inside.sum())} of {len(inside)} bins hold their score; "
    claims = []
    for peer in ("size", "shape and boundary"):
        false = filters[~filters.is_lesion].groupby("patient")[[peer, "selected"]].sum()
        claim = f"fewer false candidates of new patients stay than with {PEERS[peer]}, at the same recall"
        claims.append(change("forest", claim, metrics.paired(false[peer], false["selected"]), "false_positives"))
    with_tumors = between(ill(cases), "candidates", "forest", "tumor_dice")
    return [
        *claims,
        _kept("forest", f"it keeps {recall:.0%} of the found lesions of new patients", int(found.sum()), len(found), recall),
        change("forest", "fewer false positives a patient", _step(steps, "forest", "false_positives"), "false_positives"),
        change("forest", "higher tumor Dice", _step(steps, "forest", "tumor_dice"), "tumor_dice"),
        change("forest", "higher tumor Dice, patients with tumors", with_tumors, "tumor_dice"),
        chances("its scores are chances (Spiegelhalter's test, out of fold)", train, calibrated, bins),
        *([chances("the same, on new patients", held, forest.calibration(held.score, held.is_lesion))] if len(held) else []),
    ]  # fmt: skip


def ill(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of cases whose reference has tumors."""
    return cases[cases.recall_iou0.notna()]


def _edge(
    metric: str, claim: str, part: pd.DataFrame, test: Callable[..., dict] = metrics.paired, peer: str = "before"
) -> Claim:
    """A claim on contours before and after the boundary stage, as `paired` compares them."""
    return change("boundary", claim, paired(part, metric.removeprefix("tumor_"), test, peer), metric)


def boundary(steps: pd.DataFrame, edges: pd.DataFrame, cut_mm: float) -> list[Claim]:
    whole = (*EDGE, ("tumor_dice", "higher tumor Dice"), ("recall_iou50", "more lesions found well (IoU above 0.5)"))
    blurred, where = edges[edges.blur_mm >= cut_mm], f"lesions whose edge is blurred ({cut_mm:.3g} mm or more)"
    return [
        *(change("boundary", f"{words}, a patient", _step(steps, "boundary", m), m) for m, words in whole),
        *(_edge(metric, f"{words}, {where}", blurred) for metric, words in EDGE),
    ]


def fresh(held: dict) -> list[Claim]:
    """The claims on blurred edges again, on lesions that none of this was chosen on."""
    table, patients = pd.DataFrame(held["lesions"]), pd.DataFrame(held["patients"])
    cut, with_tumors = held["cut_mm"], patients[patients.tumor.astype(bool)]
    whole = (("tumor_dice", "higher tumor Dice"), *EDGE)
    claims = [_edge(metric, f"{words}, a patient, fresh phantoms", with_tumors) for metric, words in whole]
    for at in (cut, held["more_mm"]):
        part, where = table[table.blur_mm >= at], f"edges blurred by {at:.3g} mm or more, fresh phantoms"
        for metric, words in EDGE:
            claims.append(_edge(metric, f"{words}, {where}", part))
            if metric == "tumor_assd_mm":  # its mean can hang on one lesion
                claim = f"{words} in the median patient (signed ranks), {where}"
                claims.append(_edge(metric, claim, part, test=metrics.paired_median))
    sharp = table[table.blur_mm < cut]
    claims += [
        _edge(metric, f"{words}, edges sharper than {cut:.3g} mm, fresh phantoms", sharp) for metric, words in EDGE
    ]
    blurred, own = table[table.blur_mm >= cut], f"than the cascade's own contour at {held['redrawn']:g}"
    for metric, words, part, where in (
        (*whole[0], with_tumors, "a patient"),
        *((*named, blurred, f"edges blurred by {cut:.3g} mm or more") for named in EDGE),
    ):
        claims.append(_edge(metric, f"{words} {own}, {where}, fresh phantoms", part, peer="redrawn"))
    return claims


def smoothing(made: Experiment) -> list[Claim]:
    """How much the smoothing alone changes the tumor's volume, from the results of the held-out cases."""
    held = [reading.result(made.folder / "results" / case).info for case in made.cases("test").case]
    held = [h for h in held if h.get("change_ml") and h["tumor_ml"] > 0]
    mean, low, high = metrics.bootstrap([100 * (abs(h["change_ml"]["smoothing"]) / h["tumor_ml"]) for h in held])
    measured = f"{mean:.2f} % {ends(low, high, '.2f')}, {len(held)} cases" if held else "undefined"
    claim = f"smoothing alone changes the tumor's volume by less than {100 * NO_LOSS:.0f} %"
    return [Claim("boundary", claim, measured, verdict(low, high, -1, 100 * NO_LOSS))]


def together(cases: pd.DataFrame, left_out: pd.DataFrame) -> list[Claim]:
    claims = [
        change(
            "all", f"{words} than by the cascade alone{whose}", between(part, ABLATION[0], ABLATION[-1], metric), metric
        )
        for metric, words, whose, part in (
            ("tumor_dice", "higher tumor Dice", "", cases),
            ("tumor_dice", "higher tumor Dice", ", patients with tumors", ill(cases)),
            ("false_positives", "fewer false positives", "", cases),
            ("recall_iou0", "more lesions found", "", cases),
        )
    ]
    for _, row in left_out[left_out.metric == "tumor_dice"].iterrows():
        claims.append(change("all", f"higher tumor Dice than without {row.without}", row, "tumor_dice"))
    return claims


# --- real CT -----------------------------------------------------------------------------------------------------


def real_table(held: dict) -> tuple[pd.DataFrame, int]:
    """A row a variant, stage and patient, the mean over trainings, with the liver net's own liver on whole scans; and how many trainings there are."""
    table = pd.DataFrame(held["summary"])
    if "seed" not in table:
        return table, 1
    table = table[(table.within == "stages") & (table.liver == "own")]
    numbers = [c for c in table if c not in ("variant", "seed", "patient", "liver", "within", "stage")]
    table = table.astype(dict.fromkeys(numbers, float))
    means = table.groupby(["variant", "stage", "patient"], sort=False)[numbers].mean().reset_index()
    return means, table.seed.nunique()


def real(held: dict) -> list[Claim]:
    """What the stages do on real CT, in each variant."""
    return [
        change(
            stage, f"{words}, a patient, **real CT**, variant {variant}", between(part, a, b, metric, "patient"), metric
        )
        for variant, part in real_table(held)[0].groupby("variant")
        for stage, a, b, metric, words in (
            ("forest", "candidates", "forest", "false_5", "fewer false positives over 5 mm"),
            ("boundary", "forest", "boundary", "tumor_dice", "higher tumor Dice"),
            *(("boundary", "forest", "boundary", *named) for named in EDGE),
            ("all", ABLATION[0], ABLATION[-1], "tumor_dice", "higher tumor Dice than by the cascade alone"),
            ("all", ABLATION[0], ABLATION[-1], "false_5", "fewer false positives over 5 mm than by the cascade alone"),
        )
        if metric in part
    ]
