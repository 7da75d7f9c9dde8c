"""The networks, their learning curves, and the cohort that they learn from."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench.lab.figures.style import (
    BLACK,
    BLUE,
    FALSE_COLOUR,
    FOLD_COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SPLIT_COLOURS,
    TRUE_COLOUR,
    VERDICT_COLOURS,
    VERMILLION,
    YELLOW,
    Picture,
    as_array,
    limits,
    patients_of,
    say,
    units_of,
)
from workbench.stages import metrics


def attention(image, maps, pixel_mm: float, title: str = "") -> Figure:
    """What each gate lets through of one slice: `image` HU `[y x]`, `maps` a list of `[h w]` in 0..1, finest first."""
    image, maps = as_array(image), [as_array(m) for m in maps]
    figure = Picture(3.4 * (1 + len(maps)), 3.8)
    first, *others = figure.subplots(1, 1 + len(maps))
    low, high = limits("liver")
    extent = (-pixel_mm / 2, (image.shape[1] - 0.5) * pixel_mm, (image.shape[0] - 0.5) * pixel_mm, -pixel_mm / 2)
    first.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent)
    first.set_title("CT", fontsize=9)
    for number, (ax, gate) in enumerate(zip(others, maps), 1):
        drawn = ax.imshow(gate, cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        ax.set_title(f"gate {number}: {gate.shape[0]} x {gate.shape[1]}, mean {gate.mean():.2f}", fontsize=9)
    for ax in (first, *others):
        ax.set_xlabel("mm, to the patient's left", fontsize=8)
        ax.tick_params(labelsize=7)
    first.set_ylabel("mm, to the back", fontsize=8)
    if others:
        figure.colorbar(drawn, ax=others, label="let through (share)", shrink=0.7)
    figure.suptitle(title or "attention gates", fontsize=11)
    return figure


def architecture(layout, slices: int, extra: int, stride: int = 1) -> Figure:
    """The 2.5D network as `SlabNet.layout` describes it: encoder down the left, gates in the middle, decoder up the right;
    `stride` of the stem, which a last step up takes back."""
    depth = len(layout)
    figure = Picture(10.5, 1.05 * depth + 1.0)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.set_xlim(-0.3, 10.3)
    ax.set_ylim(-depth + 0.5, 1.0)

    def box(x, y, text, colour):
        ax.text(
            x, y, text, ha="center", va="center", fontsize=8.5, linespacing=1.35,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": (*to_rgb(colour), 0.25), "edgecolor": colour},
        )  # fmt: skip

    def arrow(start, end, colour=BLACK, style="-"):
        ax.annotate(
            "",
            end,
            start,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linestyle": style, "shrinkA": 3, "shrinkB": 3},
        )

    inputs = f"slab: {slices} slices" + (f" + {extra} map" if extra else "")
    ax.text(1.5, 0.85, inputs, ha="center", fontsize=9)
    ax.text(8.6, 0.85, "logits of the middle slice", ha="center", fontsize=9)
    arrow((1.5, 0.8), (1.5, 0.25))
    arrow((8.6, 0.25), (8.6, 0.8))
    if stride > 1:
        ax.text(
            1.4,
            0.5,
            f"{layout[0]['pixels'][0] * stride} pixels, stride {stride}",
            ha="right",
            fontsize=7.5,
            color="#555555",
        )
        ax.text(8.72, 0.5, f"sub-pixel x{stride}", fontsize=7.5, color="#555555")
    for level, row in enumerate(layout):
        h, w = row["pixels"]
        ax.text(-0.3, -level, f"{h} x {w}", fontsize=8.5, va="center", color="#555555")
        last = "raised" not in row
        words = f"{row['layers']} dense layers\n{row['encoded']} channels"
        box(5.2 if last else 1.5, -level, words, SKY)
        if last:
            arrow((1.5, -level + 0.75), (4.4, -level + 0.08))
            arrow((6.0, -level + 0.08), (8.5, -level + 0.75))
            continue
        box(5.2, -level, "attention gate", GREEN)
        box(8.6, -level, f"sub-pixel x2: {row['raised']}\nmerged: {row['decoded']} channels", ORANGE)
        arrow((2.25, -level), (4.5, -level))
        arrow((5.9, -level), (7.6, -level))
        arrow((7.7, -level + 0.2), (5.9, -level + 0.12), GREEN, ":")  # the decoder at its own scale
        if level + 2 < depth:
            arrow((1.5, -level - 0.25), (1.5, -level - 0.75))
            arrow((8.6, -level - 0.75), (8.6, -level - 0.25))
            arrow((7.8, -level - 0.72), (5.7, -level - 0.18), GREEN, ":")  # and the coarser one
        ax.text(
            1.4,
            -level - 0.5,
            f"{row['passed']} channels, pooled",
            fontsize=7.5,
            color="#555555",
            va="center",
            ha="right",
        )
        ax.text(8.72, -level + 0.48 if level else 0.48, "logits too" if level else "", fontsize=7.5, color=VERMILLION)
    figure.suptitle("the network of both cascade stages", fontsize=11)
    return figure


def curves(table: pd.DataFrame, title: str = "") -> Figure:
    """Loss and Dice (of slabs, of whole volumes) against the training step, one line a fold (columns as in curves.csv)."""
    names = [c for c in ("loss", "dice", "volume_dice", "inner_dice", "net_error") if c in table]
    figure = Picture(5 * len(names), 3.8)
    folds = list(table.groupby("fold")) if "fold" in table else [("", table)]
    for ax, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
        for n, (fold, rows) in enumerate(folds):
            rows = rows.dropna(subset=[name])
            ax.plot(
                rows["step"],
                rows[name],
                color=FOLD_COLOURS[n % len(FOLD_COLOURS)],
                ls=("-", "--", ":", "-.")[n % 4],
                label=f"fold {fold}" if "fold" in table else None,
                lw=1.4,
                marker="." if len(rows) < len(table) / len(folds) else None,
            )
        ax.set_xlabel("step")
        ax.set_ylabel(
            {
                "dice": "Dice of slabs (1)",
                "volume_dice": "Dice of whole volumes (1)",
                "inner_dice": "Dice of whole volumes, choosing (1)",
                "loss": "loss (1)",
                "net_error": "band wrong (share)",
            }[name]
        )
        if name.endswith("dice"):
            ax.set_ylim(0, 1)
        if name == "net_error" and "mask_error" in table:
            ax.axhline(table["mask_error"].iloc[-1], color=BLACK, ls="--", lw=1, label="the mask before")
            ax.lines[0].set_label("the net")
            ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
        if "fold" in table:
            ax.legend(fontsize=8)
    figure.suptitle(f"{title or 'learning curves'} ({len(folds)} {'folds' if 'fold' in table else 'run'})", fontsize=11)
    return figure


def cohort(cases: pd.DataFrame) -> Figure:
    """Liver and tumor volume, voxel spacing and tumors per case, train against test (columns of cohort/cases.csv)."""
    figure = Picture(11, 7.4)
    volumes, spacing, numbers, names = figure.subplots(2, 2).flat
    looks = {"train": (SPLIT_COLOURS["train"], "o"), "test": (SPLIT_COLOURS["test"], "s")}
    for split, rows in cases.groupby("split"):
        colour, marker = looks.get(split, (GREY, "^"))
        volumes.scatter(
            rows["liver_ml"],
            rows["tumor_ml"].clip(lower=0.01),
            c=colour,
            marker=marker,
            label=f"{split} ({len(rows)})",
            s=28,
        )
        spacing.scatter(rows["spacing_x_mm"], rows["spacing_z_mm"], c=colour, marker=marker, label=split, s=28)
    volumes.set(xlabel="liver (ml)", ylabel="tumor (ml; none drawn at 0.01)", yscale="log")
    volumes.legend(fontsize=8, title="cases")
    spacing.set(xlabel="pixel spacing (mm)", ylabel="slice spacing (mm)")
    spacing.legend(fontsize=8)
    top = int(cases["tumors"].max()) if len(cases) else 0
    numbers.hist(
        [rows["tumors"] for _, rows in cases.groupby("split")],
        bins=np.arange(-0.5, top + 1.5),
        stacked=True,
        color=[looks.get(s, (GREY, ""))[0] for s, _ in cases.groupby("split")],
    )
    numbers.set(xlabel="tumors per case", ylabel="cases")
    shown = cases.head(14)
    names.set_axis_off()
    columns = [
        c
        for c in ("case", "split", "fold", "slices", "spacing_z_mm", "spacing_x_mm", "liver_ml", "tumors", "tumor_ml")
        if c in cases
    ]
    text = [
        [(f"{v:.3g}" if abs(v) < 100 else f"{v:.0f}") if isinstance(v, float) else str(v) for v in row]
        for row in shown[columns].itertuples(index=False)
    ]
    if text:
        table = names.table(text, colLabels=[c.replace("_", "\n", 1) for c in columns], loc="center", cellLoc="center")
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)
        table.auto_set_column_width(list(range(len(columns))))
        for (row, _), cell in table.get_celld().items():
            cell.set_height(0.11 if row == 0 else 0.058)
            cell.set_linewidth(0.3)
    names.set_title(f"first {len(shown)} of {len(cases)} cases", fontsize=9)
    figure.suptitle(f"cohort ({patients_of(cases)}, {len(cases)} cases)", fontsize=11)
    return figure


def lesions(table: pd.DataFrame, by: str, title: str = "", what: str = "lesions") -> Figure:
    """Number of lesions (or `what` the rows are) of each kind, and their `volume_ml` on a log scale."""
    figure = Picture(10, 4)
    left, right = figure.subplots(1, 2)
    groups = list(table.groupby(table[by].astype(str)))
    colours = [(BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)[n % 8] for n in range(len(groups))]
    colours = [(VERDICT_COLOURS | SPLIT_COLOURS).get(kind, colour) for (kind, _), colour in zip(groups, colours)]
    left.barh([kind for kind, _ in groups], [len(rows) for _, rows in groups], color=colours)
    left.set(xlabel=what, ylabel=by)
    values = [rows["volume_ml"].to_numpy(float) for _, rows in groups]
    every = np.concatenate(values) if values else np.zeros(0)
    if (every > 0).any():
        bins = np.geomspace(every[every > 0].min() * 0.9, every.max() * 1.1, 16)
        right.hist(values, bins=bins, stacked=True, color=colours, label=[kind for kind, _ in groups])
        right.set_xscale("log")
        right.legend(fontsize=7)
    else:
        say(right, "no lesion has a size")
    right.set(xlabel="volume (ml)", ylabel=what)
    who = f"{patients_of(table)}, " if "patient" in table else ""
    figure.suptitle(f"{title or what} ({who}{len(table)} {what})", fontsize=11)
    return figure


def per_case(table: pd.DataFrame, metric: str, title: str = "") -> Figure:
    """One dot a case, and the mean with its 95 % interval over patients, for each split."""
    figure = Picture(6.4, 4.2)
    ax = figure.subplots()
    groups = list(table.groupby("split"))
    looks = {"train": (SPLIT_COLOURS["train"], "o"), "test": (SPLIT_COLOURS["test"], "s")}
    for at, (name, rows) in enumerate(groups):
        values = rows[metric].to_numpy(float)
        colour, marker = looks.get(name, (FOLD_COLOURS[at % len(FOLD_COLOURS)], "o"))
        ax.scatter(at + np.linspace(-0.25, 0.25, len(values)), values, c=colour, marker=marker, s=22, alpha=0.75)
        mean, low, high = metrics.bootstrap(values, groups=rows["patient"].to_numpy() if "patient" in rows else None)
        ax.plot([at - 0.32, at + 0.32], [mean, mean], color=BLACK, lw=2)
        ax.fill_between([at - 0.32, at + 0.32], low, high, color=BLACK, alpha=0.15)
    ax.set_xticks(range(len(groups)), [f"{k}\n{patients_of(rows)}" for k, rows in groups])
    ax.set(xlim=(-0.6, len(groups) - 0.4), ylabel=units_of(metric))
    ax.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{title or units_of(metric)} ({patients_of(table)}; bar: mean, shade: 95 % interval)", fontsize=10)
    return figure


def right_and_wrong(table: pd.DataFrame, unit: str = "voxels", patients: int | None = None, title: str = "") -> Figure:
    """What was right and what was wrong of each thing done: index = what, columns right and wrong (counts)."""
    figure = Picture(8, 1.5 + 0.5 * max(2, len(table)))
    ax = figure.subplots()
    rows = table[::-1]
    at = np.arange(len(rows))
    ax.barh(at, rows["right"], color=TRUE_COLOUR, label="right")
    ax.barh(at, rows["wrong"], left=rows["right"], color=FALSE_COLOUR, hatch="//", edgecolor="white", label="wrong")
    for y, row in zip(at, rows.itertuples()):
        total = row.right + row.wrong
        said = f"{row.right / total:.0%} of {total:g} right" if total else "none"
        ax.text(total, y, f" {said}", va="center", fontsize=8)
    ax.set_yticks(at, rows.index)
    ax.set(xlabel=unit)
    ax.margins(x=0.3)
    ax.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above the bars, so that it hides none
    who = f" ({patients} patients)" if patients is not None else ""
    figure.suptitle(f"{title or 'right and wrong'}{who}", fontsize=11)
    return figure
