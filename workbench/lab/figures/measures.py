"""Measures of the result, stage by stage."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.lab.figures.style import BLACK, BLUE, FAINT, GREY, Picture, patients_of, say, stage_colour, units_of


def ablation(
    table: pd.DataFrame,
    cases: pd.DataFrame | None = None,
    metrics: list[str] | None = None,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """Each metric after each stage: mean and 95 % interval over patients, and one thin line a patient where given.

    `table`: stage, metric, mean, low, high, n in stage order, then the method without one stage ("all but ...", hollow);
    `cases`: stage, case, patient and a column per metric.
    """
    stages = list(dict.fromkeys(table["stage"]))
    metrics = [m for m in (metrics or dict.fromkeys(table["metric"])) if (table["metric"] == m).any()]
    columns = max(1, min(columns, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    figure = Picture(max(4.2, 0.27 * len(stages)) * columns, 3.2 * rows + 0.6)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    if not metrics:
        say(axes[0], "no metric in the table")
    for ax, metric in zip(axes, metrics):
        part = table[table["metric"] == metric].drop_duplicates("stage").set_index("stage").reindex(stages)
        if cases is not None and metric in cases:
            wide = cases.groupby(["patient", "stage"])[metric].mean().unstack().reindex(columns=stages)
            ax.plot(range(len(stages)), wide.to_numpy(float).T, color=GREY, lw=0.7, alpha=0.6)
        for at, (stage, row) in enumerate(part.iterrows()):
            if np.isfinite(row["mean"]):
                if np.isfinite([row["low"], row["high"]]).all():
                    ax.plot([at, at], [row["low"], row["high"]], color=stage_colour(stage), lw=3, alpha=0.8)
                fill = "white" if "all but" in str(stage) else stage_colour(stage)
                ax.plot(at, row["mean"], "o", color=fill, mec=BLACK, ms=7)
        ax.set_xticks(range(len(stages)), stages, fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
        n = part["n"].dropna()
        counts = [int(n) for n in (n.min(), n.max()) if np.isfinite(n)]
        ax.set_ylabel(units_of(metric), fontsize=9)
        ax.set_title("n = " + " to ".join(map(str, dict.fromkeys(counts))) if counts else "", fontsize=9)
        ax.grid(alpha=0.3, axis="y")
    for ax in axes[len(metrics) :]:
        ax.set_axis_off()
    n = int(table["n"].max()) if len(table) else 0
    who = patients_of(cases) if cases is not None and "patient" in cases else f"n up to {n}"
    figure.suptitle(
        f"{title or 'ablation'} ({who}; mean and 95 % interval{', thin: each patient' if cases is not None else ''})",
        fontsize=11,
    )
    return figure


def paired(cases: pd.DataFrame, before: str, after: str, metrics: list[str], title: str = "") -> Figure:
    """Metrics of two stages per patient, joined by lines: what a stage did (columns stage, patient, metrics)."""
    figure = Picture(3.4 * len(metrics), 4)
    patients = 0
    for ax, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics):
        a = cases[cases["stage"] == before].groupby("patient")[metric].mean()
        b = cases[cases["stage"] == after].groupby("patient")[metric].mean()
        both = pd.concat([a, b], axis=1, keys=["a", "b"]).dropna()
        patients = max(patients, len(both))
        for row in both.itertuples():
            ax.plot([0, 1], [row.a, row.b], color=GREY, lw=0.8)
        ax.plot(np.zeros(len(both)), both["a"], "o", color=stage_colour(before))
        ax.plot(np.ones(len(both)), both["b"], "s", color=stage_colour(after))
        if len(both):
            ax.plot([0, 1], [both["a"].mean(), both["b"].mean()], color=BLACK, lw=2)
        ax.set_xticks([0, 1], [before, after])
        ax.set_xlim(-0.4, 1.4)
        ax.set_ylabel(units_of(metric))
        ax.set_title(
            f"mean change {(both['b'] - both['a']).mean():+.3g} (n = {len(both)})"
            if len(both)
            else "no patient has both",
            fontsize=9,
        )
        ax.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{title or f'{before} → {after}'} ({patients} patients)", fontsize=11)
    return figure


def edge_gain(table: pd.DataFrame, cut_mm: float, title: str = "") -> Figure:
    """What the boundary stage did to each lesion against the blur of its edge: columns blur_mm, assd_mm and surface_dice with
    _before and _after, patient. `cut_mm`: from where an edge counts as blurred."""
    figure = Picture(9.6, 4)
    both = table.dropna(subset=["blur_mm", "assd_mm_before", "assd_mm_after"])
    many = len(both) > 300
    look = {"color": stage_colour("boundary"), "ms": 2.5 if many else 4, "alpha": 0.35 if many else 1, "mew": 0}
    for ax, metric in zip(figure.subplots(1, 2), ("assd_mm", "surface_dice")):
        change = both[f"{metric}_after"] - both[f"{metric}_before"]
        ax.plot(both.blur_mm, change, "o", **look)
        if many:
            middle = pd.DataFrame({"blur": both.blur_mm, "change": change}).groupby(pd.qcut(both.blur_mm, 12)).median()
            ax.plot(middle.blur, middle.change, "-o", color=BLACK, lw=1.4, ms=3, label="median of a twelfth of them")
            ax.legend(fontsize=8, loc="upper right")
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.axvline(cut_mm, color=GREY, ls="--", lw=1)
        ax.set(xlabel="blur of the reference's edge (mm)", ylabel=f"change of {units_of(metric)}")
        if metric == "assd_mm" and change.abs().max() > 5:  # one lesion can go wrong by more than all others together
            ax.set_yscale("symlog", linthresh=2)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.set_ylabel(f"{ax.get_ylabel()}; logarithmic beyond 2")
        ax.grid(alpha=0.3)
    figure.suptitle(f"{title or 'boundary relabelling'} ({patients_of(both)}, {len(both)} lesions)", fontsize=11)
    return figure


def timings(seconds: dict[str, float]) -> Figure:
    """How long each stage took, in seconds."""
    figure = Picture(7, 1.2 + 0.35 * max(2, len(seconds)))
    ax = figure.subplots()
    names = list(seconds)[::-1]
    ax.barh(names, [seconds[n] for n in names], color=[stage_colour(n) for n in names])
    for at, name in enumerate(names):
        ax.text(
            seconds[name],
            at,
            f" {seconds[name]:.2g} s" if seconds[name] < 10 else f" {seconds[name]:.0f} s",
            va="center",
            fontsize=8,
        )
    ax.set_xlabel("seconds")
    ax.margins(x=0.15)
    figure.suptitle(f"timings ({sum(seconds.values()):.1f} s in all)", fontsize=11)
    return figure


def sweep(trials: pd.DataFrame, importance: dict[str, float], patients: int, title: str = "") -> Figure:
    """Score of each completed trial (`trial`, `state`, `score`) and the best so far; beside it what each setting explains of it."""
    figure = Picture(9 if importance else 5.5, 3.8)
    ax, *rest = np.atleast_1d(figure.subplots(1, 2 if importance else 1, width_ratios=(3, 2) if importance else None))
    done = trials[trials.state == "complete"]
    ax.plot(done.trial, done.score, "o", color=BLUE, ms=5, label="trial")
    ax.step(done.trial, done.score.cummax(), where="post", color=BLACK, lw=1.2, label="best so far")
    for number in trials.trial[trials.state == "pruned"]:
        ax.axvline(number, color=GREY, alpha=FAINT, lw=1, zorder=0)
    ax.set_xlabel("trial (lines: cut short)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("Dice out of fold (1)")
    ax.legend(frameon=False)
    for beside in rest:
        names = list(importance)[::-1]
        beside.barh(names, [importance[name] for name in names], color=GREY)
        beside.set_xlabel("share of the variation explained (1)")
    figure.suptitle(f"{title or f'{len(done)} completed trials'} ({patients} patients)", fontsize=11)
    return figure
