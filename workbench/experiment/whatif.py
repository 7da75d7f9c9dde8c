"""What if: one case decided anew from its stored maps, with other thresholds, in about a second.

Ours; the paper has none. Everything after the nets runs again exactly as `workbench segment` runs it (`segmentation.decide`):
consistency, candidates, descriptors, verdicts, contour; and the measures, where there is a reference. Candidates of a mask that did not
change, their descriptors, and the measures of a mask seen the last time are not computed again. Works on the experiment's work grid.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import reduce

import pandas as pd
import torch
from torch import Tensor

from workbench.experiment import Experiment, segmentation, table
from workbench.experiment.segmentation import Deciders, Maps
from workbench.masks import bounding_box
from workbench.stages import metrics
from workbench.stages.ledger import ABLATION, write
from workbench.volume import Box


@dataclass(frozen=True)
class Choice:
    """What can be moved. `threshold`, `low`, `keep` of the tumor's probability (consistency), `score` that the forest asks
    for, `band_mm` of the boundary net, at most the one it was trained on."""

    threshold: float
    low: float
    keep: float
    score: float
    band_mm: float


@dataclass(frozen=True)
class Outcome:
    """What a choice gives: the mask after each stage (bool `[z y x]`, by name), lesions, ledger, measures after each stage
    (columns stage, dice, found, missed, false_positives, assd_mm), and the seconds it took."""

    masks: dict[str, Tensor]
    lesions: pd.DataFrame
    ledger: Tensor
    measures: pd.DataFrame
    seconds: float


class WhatIf:
    """One case of an experiment, held out or not, with its maps and models: call it with a `Choice`."""

    def __init__(self, made: Experiment, case: str):
        for stage in table.names(model=True):
            made.need(stage)
        self.truth, self.case, self.maps = made.work(case)[1], case, Maps.of(made, case)
        self._there = self.maps.to(made.device)
        self.models = Deciders.of(made)
        self._memory = segmentation.Memory()
        self._tumor = self.truth == 2
        self._measured: list[tuple[int, Tensor, dict]] = []  # what the last choice gave: voxels, mask, measures

    @property
    def start(self) -> Choice:
        """The experiment's own settings."""
        s = self.models.settings
        c = s.consistency
        return Choice(c.threshold, c.low, c.keep, self.models.forest.cut, s.boundary.band_mm)

    def at(self, point: str) -> Choice:
        """The experiment's own settings, at one of the forest's operating points."""
        return replace(self.start, score=self.models.forest.at(point).cut)

    def __call__(self, choice: Choice | None = None) -> Outcome:
        began = time.monotonic()
        choice = choice or self.start
        s = self.models.settings
        low, keep = min(choice.low, choice.threshold), max(choice.keep, choice.threshold)
        settings = replace(
            s,
            consistency=replace(s.consistency, threshold=choice.threshold, low=low, keep=keep),
            boundary=replace(s.boundary, band_mm=choice.band_mm),
        )
        models = replace(self.models, settings=settings, forest=self.models.forest.deciding_at(choice.score))
        decided = segmentation.decide(self._there, models, memory=self._memory)
        masks = {stage: mask.cpu() for stage, mask in zip(ABLATION, decided.masks)}
        return Outcome(
            masks,
            decided.lesions,
            write(decided.masks, self._there.liver).cpu(),
            self._measures(masks),
            time.monotonic() - began,
        )

    def _measures(self, masks: dict[str, Tensor]) -> pd.DataFrame:
        seen, rows = self._measured, dict[str, dict]()
        self._measured = []
        either = reduce(torch.logical_or, masks.values(), self._tumor)
        where = bounding_box(either, self.maps.spacing_mm, 0) or (slice(0, 1),) * 3
        for stage, mask in masks.items():  # many a stage changes nothing, and many a choice only the last ones
            count = int(mask.count_nonzero())
            known = (row for n, other, row in [*self._measured, *seen] if n == count and torch.equal(other, mask))
            rows[stage] = next(known, {}) or self._measure(mask, where)
            self._measured.append((count, mask, rows[stage]))
        return pd.DataFrame([{"stage": stage} | row for stage, row in rows.items()])

    def _measure(self, mask: Tensor, where: Box) -> dict:
        pair, spacing = (self._tumor[where].numpy(), mask[where].numpy()), self.maps.spacing_mm
        whole = metrics.compare(*pair, spacing)
        counts = metrics.match_lesions(*pair, spacing, measured=False)["detection"]["iou0"]
        return {
            "dice": whole["dice"],
            "found": counts["tp"],
            "missed": counts["fn"],
            "false_positives": counts["fp"],
            "assd_mm": whole["assd_mm"],
        }
