"""A card for each candidate lesion: what was seen, how the forest voted, what it knows that is alike, what would have changed it.

Ours; the paper has none. Everything follows from a case's maps and the experiment that the models come from: the trees' votes,
the strongest features (Saabas 2014), the training candidates in the same leaves (Breiman's proximity), where each feature
stands among the training candidates, and the nearest changes that turn the verdict (counterfactuals: Wachter 2017), each alone:
the forest's threshold, one feature within the range of the training candidates, the cascade's threshold, the three-slice rule.
Several changes at once are not searched.

A higher threshold only takes away, so when a candidate is gone is found in its own box. A lower one also joins and adds: that is
looked at in steps of `STEP`, and the most probable new pieces are described and judged like any candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from workbench.data.files import write_json
from workbench.experiment import segmentation
from workbench.experiment.segmentation import Deciders, Maps, Result
from workbench.lab import figures
from workbench.masks import bounding_box
from workbench.stages import candidates, consistency, forest, radiomics
from workbench.stages.forest import explain
from workbench.stages.metrics import json_safe
from workbench.volume import Box, Spacing, Volume

NEAREST = 3  # training lesions, and look-alikes, that a card names
STEP = 0.05  # of the cascade's threshold, downwards
FINE = 0.01  # and upwards
APPEARING = 5  # new pieces at lower thresholds that are judged
Lower = Sequence[tuple[float, candidates.Candidates]]  # a threshold of the cascade and its candidates
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DRAWN = 24  # cards of a case that are drawn; all are in the JSON


@dataclass(frozen=True)
class Known:
    """The candidates that a forest learned from, row by row: `table` with case, patient, candidate, is_lesion, volume_ml and score
    (by a forest that never saw the patient), the `features` that the forest reads (the median where one is missing), and the `leaves` in which they end."""

    table: pd.DataFrame
    features: pd.DataFrame
    leaves: Tensor  # [candidate tree]

    @classmethod
    def of(cls, models: Deciders, but: str = "") -> Known | None:
        """Those of the models' experiment, without the patient of the case `but`; None where only the models are there."""
        files = [models.folder / name for name in ("forest/scores.csv", "radiomics/features.csv", "forest/forest.json")]
        if not all(path.is_file() for path in files):
            return None
        known = _known(models.folder, tuple(path.stat().st_mtime_ns for path in files))
        table = known.table
        other = np.flatnonzero(~table.patient.isin(table.patient[table.case == but]))
        if len(other) == len(table):
            return known
        table, features = (part.iloc[other].reset_index(drop=True) for part in (table, known.features))
        return cls(table, features, known.leaves[torch.from_numpy(other)])

    @cached_property
    def ordered(self) -> np.ndarray:
        """The values of each feature in ascending order, `[feature candidate]`."""
        return np.sort(self.features.to_numpy().T)

    @cached_property
    def spread(self) -> dict[str, list[list[float]]]:
        """Of lesions and of look_alikes: `QUANTILES` of each feature, in percentiles of all candidates."""
        true, columns = self.table.is_lesion.to_numpy(), self.features.to_numpy().T
        return {
            what: [
                [_percentile(order, v) for v in np.quantile(column[on], QUANTILES)]
                for order, column in zip(self.ordered, columns)
            ]
            for what, on in (("lesions", true), ("look_alikes", ~true))
        }


@lru_cache(maxsize=1)  # the next case of the same experiment asks for them again
def _known(folder: Path, _stamps: tuple[int, ...]) -> Known:
    """The training candidates of an experiment, whose files were written at these times."""
    model = forest.load(folder / "forest")
    names = list(model.names)
    table = pd.read_csv(folder / "forest" / "scores.csv", dtype={"case": str, "patient": str})
    table = table[table.split == "train"]
    described = folder / "radiomics" / "features.csv"
    features = pd.read_csv(described, dtype={"case": str}, usecols=["case", "candidate", *names])
    joined = table[["case", "candidate"]].merge(features, how="left", validate="one_to_one")
    columns = ["case", "patient", "candidate", "is_lesion", "volume_ml", "score"]
    filled = pd.DataFrame(model.table(joined), columns=names)
    return Known(table[columns].reset_index(drop=True), filled, explain.leaves(model, joined))


def of(result: Result) -> dict:
    """The cards of a result; see `make`."""
    volume = result.volume
    return make(result.maps, result.pieces, result.lesions, result.models, volume.name, volume.spacing_mm)


def make(
    maps: Maps, pieces: Tensor, lesions: pd.DataFrame, models: Deciders, case: str = "", own_mm: Spacing | None = None
) -> dict:
    """Plain values, for JSON: threshold (of the forest) and cascade_threshold, `training` (lesions, look_alikes), `cards`,
    one a candidate of `pieces` `[z y x]` and row of `lesions` (`beyond_ml`: the largest that the forest learnt from, where this one is larger), and `appearing`: pieces that a lower threshold would add, with their
    places on a grid of `own_mm` (by default the work grid)."""
    known, atlas, threshold = Known.of(models, case), Atlas(maps, models), models.forest.cut
    lower, largest, found = atlas.lower(), models.forest.largest_ml, []
    for row in range(len(lesions)):
        one = lesions.iloc[[row]]
        number = int(one.candidate.iloc[0])
        card = {"candidate": number, "kept": bool(one.kept.iloc[0])} | _judged(models.forest, one, known)
        # as `candidates` has it, to the last digit
        volume_ml = int((pieces == number).sum()) * math.prod(maps.spacing_mm) / 1000
        card |= {"map": atlas.what_would(pieces, number, lower), "beyond_ml": largest if volume_ml > largest else None}
        found.append(card | {"words": words(card, threshold, atlas.threshold)})
    true = None if known is None else known.table.is_lesion
    return {
        "case": case,
        "threshold": threshold,
        "cascade_threshold": atlas.threshold,
        "training": None if true is None else {"lesions": int(true.sum()), "look_alikes": int((~true).sum())},
        "cards": found,
        "appearing": _appearing(maps, atlas, lower, pieces, models, own_mm or maps.spacing_mm),
    }


# ---------------------------------------------------------------------------------------------- the forest's side


def _judged(model: forest.Forest, one: pd.DataFrame, known: Known | None) -> dict:
    """Score, votes, features, way and nearest training candidates of one row of lesions."""
    says, why, way = explain.votes(model, one), explain.pushes(model, one), explain.way(model, one)
    shares = np.histogram(says, np.linspace(0, 1, 11))[0].tolist()
    card = {
        "score": float(one.forest_score.iloc[0]),
        "margin": float(one.forest_score.iloc[0] - model.cut),
        "votes": {"trees": len(says), "for": int((says > 0.5).sum()), "shares": shares},
        "prior": why.attrs["prior"],
        "way": {"tree": way.attrs["tree"], "splits": way.to_dict("records")},
    }
    features = why.drop(columns="median").set_index("name")
    features["group"] = radiomics.CATALOGUE.set_index("name").group.reindex(features.index).fillna("candidate")
    if known is not None:
        features = features.join(_placed(model, one, known))
        card["nearest"] = _nearest(model, one, known)
    return card | {"features": features.reset_index().to_dict("records")}


def _placed(model: forest.Forest, one: pd.DataFrame, known: Known) -> pd.DataFrame:
    """Where each feature stands among the training candidates, in percentiles of all of them, and where it alone would turn
    the verdict: percentile, turns_at, turns_percentile, and quantiles of lesions and look_alikes in percentiles."""
    rows = {}
    for n, found in enumerate(explain.alone(model, one, known.features).itertuples()):
        order = known.ordered[n]
        rows[found.name] = {
            "percentile": _percentile(order, found.value),
            "turns_at": found.turns_at,
            "turns_percentile": _percentile(order, found.turns_at),
            "turned_score": found.score,
        } | {what: quantiles[n] for what, quantiles in known.spread.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _percentile(ordered: np.ndarray, value: float) -> float:
    """Share of the sorted values below, ties half, in %; NaN for NaN."""
    if math.isnan(value):
        return math.nan
    below, upto = (np.searchsorted(ordered, value, side) for side in ("left", "right"))
    return float(below + upto) / 2 / len(ordered) * 100


def _nearest(model: forest.Forest, one: pd.DataFrame, known: Known) -> list[dict]:
    """The training lesions and look-alikes most alike to a candidate."""
    alike = (explain.leaves(model, one) == known.leaves).double().mean(1).numpy()
    table = known.table.assign(alike=alike).sort_values("alike", ascending=False, kind="stable")
    return table.groupby("is_lesion").head(NEAREST).to_dict("records")


# ---------------------------------------------------------------------------------------------- the maps' side


class Atlas:
    """The maps around the liver, decided at other thresholds of the cascade."""

    def __init__(self, maps: Maps, models: Deciders):
        s = models.settings
        self.threshold, self.rule, self.spacing = s.consistency.threshold, s.consistency, maps.spacing_mm
        wide = candidates.near(maps.liver, maps.spacing_mm, s.candidates.liver_margin_mm)
        self.box: Box = bounding_box(wide, maps.spacing_mm, max(maps.spacing_mm)) or (slice(0, 1),) * 3
        self.p, self.liver = maps.p[self.box], wide[self.box]
        self.settings = replace(s.candidates, liver_margin_mm=0.0)  # it is in `liver` already
        self.bare = self.pieces(self.threshold, rule=False).labels > 0

    def pieces(self, threshold: float, rule: bool = True, box: Box = (slice(None),) * 3) -> candidates.Candidates:
        """The candidates at a threshold, in a box of the liver's."""
        low, keep = min(self.rule.low, threshold), max(self.rule.keep, threshold)
        t, p = replace(self.rule, threshold=threshold, low=low, keep=keep), self.p[box]
        mask = consistency.refine(p, self.spacing[0], t).mask if rule else p >= threshold
        return candidates.find(mask, p, self.liver[box], self.spacing, self.settings)

    def lower(self) -> Lower:
        """Thresholds below the own one, falling, each with its candidates `[z y x]` in the box."""
        steps = np.arange(1, math.ceil(self.threshold / STEP))
        levels = [round(math.ceil(self.threshold / STEP - 1e-9) * STEP - n * STEP, 10) for n in steps]
        return [(level, self.pieces(level)) for level in levels if level > 0]

    def what_would(self, pieces: Tensor, number: int, lower: Lower) -> dict:
        """peak, median: probability in a candidate; gone_from: the threshold of the cascade, to `FINE`, from which it is no
        candidate; joins_at, joins: the first lower one at which it is one piece with another; without_rule: it would be there."""
        own = pieces[self.box] == number
        box = bounding_box(own, self.spacing, max(self.spacing))
        inner = own[box]
        first, last = round(self.threshold / FINE), round(1 / FINE) + 1  # there at the first, gone at the last
        while last - first > 1:
            middle = (first + last) // 2
            there = bool((self.pieces(middle * FINE, box=box).labels[inner] > 0).any())
            first, last = (middle, last) if there else (first, middle)
        joins_at, joins = math.nan, []
        for level, found in lower:
            grown = torch.isin(found.labels, found.labels[own].unique()) & (found.labels > 0)
            if joins := sorted(set(pieces[self.box][grown].unique().tolist()) - {0, number}):
                joins_at = level
                break
        return {
            "peak": float(self.p[own].max()),
            "median": float(self.p[own].median()),
            "gone_from": round(last * FINE, 10) if last * FINE <= 1 else math.nan,
            "joins_at": joins_at,
            "joins": joins,
            "without_rule": bool(self.bare[own].any()),
        }


def _appearing(maps: Maps, atlas: Atlas, lower: Lower, pieces: Tensor, models: Deciders, own_mm: Spacing) -> list[dict]:
    """Pieces that a lower threshold of the cascade adds where no candidate is, the most probable ones, each at the highest
    threshold at which it is there: at, place in mm, volume_ml, peak, score, kept (by the forest)."""
    taken, rows = pieces[atlas.box] > 0, []
    for level, found in lower:
        touching = set(found.labels[taken].unique().tolist())
        new = found.table[~found.table.candidate.isin(touching)].assign(at=level)
        rows += [(row, found.labels == int(row.candidate)) for row in new.itertuples()]
        taken = taken | (found.labels > 0)
    rows = sorted(rows, key=lambda r: -r[0].max_probability)[:APPEARING]
    out = []
    for row, piece in rows:
        labels = torch.zeros(maps.hu.shape, dtype=torch.long)
        labels[atlas.box] = piece.long()
        score = float(models.forest.score(segmentation.describe(labels, maps, models))[0])
        start = [s.start * mm + (mm - own) / 2 for s, mm, own in zip(atlas.box, maps.spacing_mm, own_mm)]
        z, y, x = (a + b for a, b in zip((row.z_mm, row.y_mm, row.x_mm), start))
        out.append(
            {"at": row.at, "z_mm": z, "y_mm": y, "x_mm": x, "volume_ml": row.volume_ml, "peak": row.max_probability}
            | {"score": score, "kept": bool(models.forest.keeps(score, row.volume_ml))}
        )
    return out


# ---------------------------------------------------------------------------------------------- in words and pictures


def words(card: dict, threshold: float, cascade_threshold: float) -> list[str]:
    """What a card says, a sentence each."""
    votes, at = card["votes"], card["map"]
    side, other = ("above", "rejected") if card["margin"] >= 0 else ("below", "kept")
    lines = [
        f"{'Kept' if card['kept'] else 'Rejected'}: score {card['score']:.3f}, {abs(card['margin']):.3f} {side} the threshold of {threshold:.3f}.",
        f"{votes['for']} of {votes['trees']} trees call it a lesion.",
    ]
    if card["beyond_ml"] is not None:
        lines.append(
            f"It is larger than all that the forest learned from ({card['beyond_ml']:.3g} ml), so it is kept whatever its score."
        )
    if "nearest" in card:
        turning = [f for f in card["features"] if not math.isnan(f["turns_at"])]
        turning.sort(key=lambda f: abs(f["turns_percentile"] - f["percentile"]))
        nearest = "; ".join(f"{f['name']} at {f['turns_at']:.4g} instead of {f['value']:.4g}" for f in turning[:2])
        lines.append(
            f"{len(turning)} of {len(card['features'])} features would alone make it {other}, the nearest: {nearest}."
            if turning
            else f"No feature alone makes it {other}, anywhere in the training range."
        )
    gone, seen = at["gone_from"], f"probability {_short(at['median'])}, {_short(at['peak'])} at most"
    lines.append(
        f"The cascade would not mark it at a threshold of {gone:.2f} or more (set: {cascade_threshold:.2f}; {seen})."
        if gone < 1
        else f"The cascade marks it at every threshold{f' up to {1 - FINE:.2f}' * (gone == 1)} (set: {cascade_threshold:.2f}; {seen})."
    )
    if at["joins"]:
        lines.append(f"At {at['joins_at']:.2f} it is one piece with candidate {', '.join(map(str, at['joins']))}.")
    lines.append(
        "Without the three-slice rule it " + ("is there too." if at["without_rule"] else "would not be there.")
    )
    return lines


def _short(probability: float) -> str:
    """Two digits, and as many more as tell it from 1."""
    digits = next(n for n in range(2, 20) if probability >= 1 or float(f"{probability:.{n}f}") < 1)
    return f"{probability:.{digits}f}"


def draw(
    cards: dict,
    number: int,
    maps: Maps,
    pieces: Tensor,
    after: Tensor,
    ct: Volume | None = None,
    truth: Tensor | None = None,
) -> Figure:
    """The picture of one card. `after` and `truth`: tumor in the end and in the reference, bool `[z y x]` on the grid of `ct`, or
    on the work grid without one."""
    own = (maps.hu, maps.spacing_mm) if ct is None else (ct.array, ct.spacing_mm)
    card = next(c for c in cards["cards"] if c["candidate"] == number)
    return figures.lesion_card(card, cards, *own, after, maps.p, pieces == number, maps.spacing_mm, truth)


def write(result: Result, folder: Path) -> None:
    """cards.json and cards/candidate-NN.png of a result; of many candidates those are drawn whose verdict is nearest to turn, after
    the kept ones."""
    cards = of(result)
    write_json(folder / "cards.json", json_safe(cards))
    order = sorted(cards["cards"], key=lambda c: (not c["kept"], abs(c["margin"])))[:DRAWN]
    (folder / "cards").mkdir()
    tumor = result.labels == 2
    for card in order:
        picture = draw(cards, card["candidate"], result.maps, result.pieces, tumor, result.volume)
        figures.save(picture, folder / "cards" / f"candidate-{card['candidate']:02d}.png", dpi=90)
