"""Numbers in words: each with its 95 % interval and its n.

A share has Wilson's interval, a mean one from patients drawn again, a change one over pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from workbench.stages import forest, metrics


def ends(low: float, high: float, form: str = "+.3f") -> str:
    """An interval: `[-0.002, +0.021]`."""
    return f"[{low:{form}}, {high:{form}}]"


def mean(values: Sequence[float], patients: Sequence, form: str = ".3f") -> str:
    """A mean with its interval over patients: `0.953 [0.940, 0.966]`; says so when nothing is defined."""
    form = form.replace(".", "z.")  # 0.000, not -0.000
    middle, low, high = metrics.bootstrap(values, groups=patients)
    if math.isnan(middle):
        return "undefined"
    return f"{middle:{form}} " + ("(one patient)" if math.isnan(low) else ends(low, high, form))


def share(hits: int, n: int) -> str:
    """A share with Wilson's interval: `12 of 14 (86% [60%, 96%])`."""
    if n == 0:
        return "none of 0"
    return f"{int(hits)} of {int(n)} ({hits / n:.0%} {ends(*forest.wilson(int(hits), int(n)), '.0%')})"


def change(before: Sequence[float], after: Sequence[float], patients: Sequence, form: str = "+.3f") -> str:
    """A paired change with its interval, p and n: `+0.010 [-0.002, +0.021], p = 0.2, n = 12`."""
    found = metrics.paired(before, after, groups=patients)
    if found["n"] == 0:
        return "undefined (n = 0)"
    if found["n"] == 1 or math.isnan(found["low"]):
        return f"{found['difference']:{form}}, one patient and so no interval"
    interval = ends(found["low"], found["high"], form)
    return f"{found['difference']:{form}} {interval}, p = {found['p']:.2g}, n = {found['n']}"


def tested(found: Mapping | pd.Series) -> str:
    """A paired change (`metrics.paired`) with its interval and p, for a cell: `+0.010 [-0.002, +0.021], p 0.2`."""
    return f"{found['difference']:+.3f} {ends(found['low'], found['high'])}, p {found['p']:.2g}"


def rounded(tests: pd.DataFrame) -> pd.DataFrame:
    """A table of tests to three digits; a `p` below them is `<0.001`, not 0."""
    return tests.round(3).assign(p=["<0.001" if p < 0.001 else f"{p:.3f}" for p in tests.p])


def in_full(table: pd.DataFrame) -> Styler:
    """A table of words for a notebook: none cut short, headers above what they name, numbers to two digits."""
    left = {"text-align": "left"}
    heads = [{"selector": "th", "props": list(left.items())}]
    return table.style.format(precision=2).set_properties(**left).set_table_styles(heads)


def with_intervals(table: pd.DataFrame, form: str = "z.3f") -> pd.DataFrame:
    """Each column that has its ends beside it, `x`, `x_low` and `x_high`, as one: `0.906 [0.884, 0.928]`."""
    shown = {}
    for name in map(str, table.columns):
        if {f"{name}_low", f"{name}_high"} <= set(table):
            own = "+.3f" if name.endswith("gain") else form
            rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"])
            shown[name] = [f"{x:{own}} {ends(low, high, own)}" if math.isfinite(x) else "" for x, low, high in rows]
        elif name.removesuffix("_low").removesuffix("_high") not in shown:
            shown[name] = table[name].tolist()
    return pd.DataFrame(shown, dtype=object)


def by_stage(table: pd.DataFrame, metrics: Sequence[str], cell: Callable[[pd.Series], str]) -> pd.DataFrame:
    """Stage by metric, a cell for each row of an ablation, in the order of the file."""
    cells = table.assign(cell=[cell(row) for _, row in table.iterrows()])
    wide = cells.pivot(index="stage", columns="metric", values="cell").reindex(table.stage.unique(), columns=metrics)
    return wide.fillna("").rename_axis(columns=None).reset_index()
