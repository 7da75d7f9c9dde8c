"""Candidate lesions: the connected pieces of the refined mask inside the liver.

States: candidate lesions are taken from the refined maps.
Chooses: 26-connected components of the mask inside the liver, widened by `liver_margin_mm` since tumors bulge; smaller than
`minimum_ml` is dropped and counted. A candidate is a true one when it shares at least `overlap` of its own voxels with the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from workbench.masks import bounding_box, components
from workbench.volume import Spacing


@dataclass(frozen=True)
class CandidateSettings:
    """Which pieces are candidates, and which candidates are true lesions."""

    minimum_ml: float = 0.03
    liver_margin_mm: float = 5.0
    overlap: float = 0.1  # a choice, not measured: share inside the reference that makes a candidate a true lesion


class Candidates(NamedTuple):
    """What `find` found."""

    labels: Tensor  # int16 [z y x], 0 outside, 1.. in the order of the table
    table: pd.DataFrame  # a row a candidate, with COLUMNS
    dropped: int  # how many pieces were too small


def near(mask: Tensor, spacing_mm: Spacing, margin_mm: float) -> Tensor:
    """The mask and all within `margin_mm` of it."""
    if margin_mm <= 0 or not bool(mask.any()):
        return mask
    wide, box = mask.clone(), bounding_box(mask, spacing_mm, margin_mm)
    away = ndimage.distance_transform_edt(~mask[box].cpu().numpy(), sampling=spacing_mm)
    wide[box] = torch.from_numpy(away <= margin_mm).to(mask.device)
    return wide


def find(
    mask: Tensor,
    probability: Tensor,
    liver: Tensor,
    spacing_mm: Spacing,
    settings: CandidateSettings = CandidateSettings(),
    wide: Tensor | None = None,
) -> Candidates:
    """Candidates of a refined mask [z y x], largest first. `wide`: the liver and its margin (`near`), where known already."""
    voxel_ml = math.prod(spacing_mm) / 1000
    inside = mask & (near(liver, spacing_mm, settings.liver_margin_mm) if wide is None else wide)
    box = bounding_box(inside, spacing_mm, 0) or (slice(0, 0),) * 3
    pieces, count = components(inside[box])
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    kept = [i + 1 for i in np.argsort(-sizes, kind="stable") if sizes[i] * voxel_ml >= settings.minimum_ml]
    renumber = np.zeros(count + 1, np.int16)
    renumber[kept] = np.arange(1, len(kept) + 1)
    labels = np.zeros(mask.shape, np.int16)
    labels[box] = own = renumber[pieces]
    found = ndimage.find_objects(own) if kept else []
    places = ([slice(b.start + o.start, b.start + o.stop) for b, o in zip(box, of)] for of in found)
    rows = [_row(number, labels, probability, spacing_mm, tuple(place)) for number, place in enumerate(places, 1)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    labels = torch.from_numpy(labels).to(mask.device)
    return Candidates(labels, table, count - len(kept))


def without(
    found: Candidates, excluded: Tensor, reference: Tensor, settings: CandidateSettings = CandidateSettings()
) -> Candidates:
    """The candidates less those that lie in an `excluded` region (at least `overlap` of them) and are no true lesion of the `reference`, both
    bool [z y x]; numbered again. The column `number` keeps the number that each had before."""
    found = found._replace(table=found.table.assign(number=found.table.candidate))
    if not len(found.table) or not bool(excluded.any()):
        return found
    true = match(found.labels, reference.int(), settings)[0]
    gone = match(found.labels, excluded.int(), settings)[0] & ~true
    renumber = torch.from_numpy(np.concatenate([[0], np.where(gone, 0, np.cumsum(~gone))]).astype(np.int16))
    table = found.table[~gone].reset_index(drop=True)
    labels = renumber.to(found.labels.device)[found.labels.long()]
    return Candidates(labels, table.assign(candidate=range(1, len(table) + 1)), found.dropped)


def shared_ml(labels: Tensor, reference: Tensor, spacing_mm: Spacing) -> np.ndarray:
    """What each candidate 1..n shares with the reference (bool), both [z y x], in ml."""
    count = int(labels.max()) if labels.numel() else 0
    voxels = torch.bincount(labels[reference].long(), minlength=count + 1)[1:]
    return voxels.cpu().numpy() * math.prod(spacing_mm) / 1000


OWN = ("own_depth", "own_mean_probability", "own_peak_probability")  # a candidate's own features, outside the 728


def own_features(labels: Tensor, probability: Tensor, liver: Tensor, spacing_mm: Spacing) -> pd.DataFrame:
    """`OWN` of each candidate 1..n: mean depth below the liver's surface in mm (0 outside it), mean and peak of the tumor probability.

    labels int, probability and liver [z y x]. Empirical (docs/log.md, 2026-11-30): they carry over to patients, and add nothing to the 728 there.
    """
    count, box = int(labels.max()) if labels.numel() else 0, bounding_box(liver, spacing_mm, 3 * max(spacing_mm))
    depth = torch.zeros(labels.shape)
    if box is not None:
        depth[box] = torch.from_numpy(
            ndimage.distance_transform_edt(liver[box].bool().cpu().numpy(), spacing_mm)
        ).float()
    on = (labels > 0).cpu()
    number, at, p = labels.cpu()[on].long().numpy() - 1, depth[on].numpy(), probability.cpu()[on].float().numpy()
    voxels, peak = np.maximum(np.bincount(number, minlength=count), 1), np.zeros(count)
    np.maximum.at(peak, number, p)
    mean_depth, mean_p = (np.bincount(number, v, minlength=count) / voxels for v in (at, p))
    return pd.DataFrame(dict(zip(OWN, (mean_depth, mean_p, peak)))).assign(candidate=range(1, count + 1))


COLUMNS = [
    "candidate",
    "volume_ml",
    "long_axis_mm",
    "z_mm",
    "y_mm",
    "x_mm",
    "mean_probability",
    "max_probability",
    "touches_border",
]


def _row(number: int, labels: np.ndarray, probability: Tensor, spacing_mm: Spacing, box: tuple[slice, ...]) -> dict:
    on = labels[box] == number
    p = probability[box].cpu().numpy()[on]
    at = np.argwhere(on)
    centre = (at.mean(0) + [b.start for b in box]) * spacing_mm
    edge = any(b.start == 0 or b.stop == n for b, n in zip(box, labels.shape))
    return dict(
        zip(
            COLUMNS,
            [
                number,
                on.sum() * math.prod(spacing_mm) / 1000,
                long_axis_mm(at, spacing_mm),
                *centre,
                float(p.mean()),
                float(p.max()),
                edge,
            ],
        )
    )


def long_axis_mm(voxels: np.ndarray, spacing_mm: Spacing) -> float:
    """Longest axial diameter (RECIST) of voxel indices [n, 3] (z y x): the greatest distance within one slice, voxel width included."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    longest = 0.0
    for z in np.unique(voxels[:, 0]):
        points = voxels[voxels[:, 0] == z][:, 1:] * np.asarray(spacing_mm[1:])
        if len(points) > 50:
            try:
                points = points[ConvexHull(points).vertices]
            except QhullError:  # all on one line: its ends are among the extremes of either axis
                points = points[[*np.argmin(points, 0), *np.argmax(points, 0)]]
        if len(points) > 1:
            longest = max(longest, float(pdist(points).max()))
    return longest + float(np.mean(spacing_mm[1:]))


def match(
    labels: Tensor, reference: Tensor, settings: CandidateSettings = CandidateSettings()
) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate 1..n: is it a true one, bool [n], and which reference lesion it shares most voxels with, int [n], 0 for none.

    labels: candidates, reference: lesions numbered 1.., both [z y x] on background 0.
    """
    count, lesions = (int(a.max()) if a.numel() else 0 for a in (labels, reference))
    pairs = labels.long().flatten() * (lesions + 1) + reference.long().flatten()
    shared = torch.bincount(pairs, minlength=(count + 1) * (lesions + 1)).view(count + 1, lesions + 1)[1:].cpu().numpy()
    inside = shared[:, 1:].sum(1)
    most = shared[:, 1:].argmax(1) + 1 if lesions else inside
    return (inside >= settings.overlap * shared.sum(1)) & (inside > 0), np.where(inside > 0, most, 0)
