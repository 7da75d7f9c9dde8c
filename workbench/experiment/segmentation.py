"""The method on one volume: the nets look, the stages after them decide, the ledger remembers.

What `pipeline` trains on a cohort is put to use here; `whatif` decides anew from the same maps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from workbench.data.files import read_table
from workbench.data.readers import gates
from workbench.experiment import (
    Experiment,
    Progress,
    Settings,
    table,
)
from workbench.masks import bounding_box, components, true_at
from workbench.nets import cascade
from workbench.stages import boundary, candidates, consistency, domain, forest, ledger, liver, radiomics, tumor
from workbench.volume import Refused, Spacing, Volume, resample, resample_labels, resample_part

SMALL = 200  # rule: voxels of the work grid; a ball of as many loses less than 3 % of its volume


@dataclass(frozen=True)
class Deciders:
    """What decides after the nets: an experiment's settings, forest and boundary net (None where that stage has not run)."""

    settings: Settings
    forest: forest.Forest
    boundary: boundary.BoundaryModel | None
    device: torch.device
    folder: Path

    @classmethod
    def of(cls, made: Experiment, operating_point: str = "") -> Deciders:
        """Those of an experiment; the forest at one of its operating points, by default at the one it was trained for."""
        trees = forest.load(made.path("forest"))
        there = (made.path("boundary") / "stage.json").is_file()
        return cls(
            made.settings,
            trees.at(operating_point) if operating_point else trees,
            boundary.load(made.path("boundary"), made.settings.boundary, made.device) if there else None,
            made.device,
            made.folder,
        )


@dataclass(frozen=True)
class Models(Deciders):
    """Everything that `segment` needs of a trained experiment."""

    liver: list
    tumor: list
    phantoms: int = 0  # that the nets have learnt from, where nothing else was there
    scans: pd.DataFrame | None = None  # that they have learnt from, measured (`domain`)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "auto", operating_point: str = "") -> Models:
        """Those of an experiment, as `Deciders.of` has them."""
        made = Experiment(folder, str(device)).checked()
        for stage in table.names(model=True):
            made.need(stage)
        s, seen = made.settings, made.path("liver") / domain.DOMAIN
        return cls(
            **vars(Deciders.of(made, operating_point)),
            liver=cascade.load(made.path("liver"), s.liver.cascade, made.device, range(s.folds)),
            tumor=cascade.load(made.path("tumor"), s.tumor.cascade, made.device, range(s.folds)),
            phantoms=made.phantoms_alone(),
            scans=read_table(seen, "phantom", dtype={"case": str, "patient": str}) if seen.is_file() else None,
        )


@dataclass
class Result:
    """What the method says of one volume, on the volume's own grid."""

    volume: Volume
    status: str
    liver_probability: Tensor
    tumor_probability: Tensor
    ledger: Tensor
    liver: Tensor
    candidates: Tensor  # int16, numbered as in the table
    lesions: pd.DataFrame
    threshold: float  # of the forest
    timings: dict[str, float]
    settings: Settings
    device: str
    warnings: list[str] = field(default_factory=list)
    maps: Maps | None = None  # on the work grid, for decisions anew
    pieces: Tensor | None = None  # the candidates there, numbered as in `lesions`
    change_ml: dict[str, float] = field(
        default_factory=dict
    )  # by the boundary stage; by its smoothing, on the work grid
    models: Models | None = None
    scan: dict = field(default_factory=dict)  # what the scan is like (`domain.measure`)
    liver_given: Path | None = None  # the file of the mask that took the place of the liver net's

    @property
    def labels(self) -> Tensor:
        return self.labels_after("boundary")

    def labels_after(self, stage: str) -> Tensor:
        """Labels uint8 [z y x] (1 liver, 2 tumor) as they stood after a stage of the ablation, read from the ledger."""
        out = self.liver.to(torch.uint8)
        out[ledger.tumor_after(self.ledger, stage)] = 2
        return out


def _agree(level: Tensor, mask: Tensor) -> Tensor:
    """A level field whose sign says the mask: where it disagrees it is mirrored at zero."""
    wrong = true_at(((level >= 0) != mask).flatten())  # a few
    out, values = level.clone(), level.flatten()[wrong]
    out.view(-1)[wrong] = -values - 1e-4 * (values >= 0)
    return out


class Memory:
    """Of one scan and one experiment: the candidates of a mask and their descriptors, given again while they are asked of the same mask.
    Without it all is worked out anew."""

    def __init__(self) -> None:
        self._found: tuple[Tensor, candidates.Candidates] | None = None
        self._wide: Tensor | None = None
        self._described: tuple[Tensor, pd.DataFrame] | None = None

    def find(self, mask: Tensor, maps: Maps, settings: candidates.CandidateSettings) -> candidates.Candidates:
        """`candidates.find`."""
        if self._wide is None:
            self._wide = candidates.near(maps.liver, maps.spacing_mm, settings.liver_margin_mm)
        if self._found is None or not torch.equal(self._found[0], mask):
            found = candidates.find(mask, maps.p, maps.liver, maps.spacing_mm, settings, self._wide)
            self._found = mask, found
        return self._found[1]

    def describe(self, pieces: Tensor, maps: Maps, models: Deciders) -> pd.DataFrame:
        """`radiomics.steady`, the table with what the forest asks."""
        if self._described is None or not torch.equal(self._described[0], pieces):
            self._described = pieces, describe(pieces, maps, models)
        return self._described[1]


def describe(pieces: Tensor, maps: Maps, models: Deciders) -> pd.DataFrame:
    """What the forest asks of numbered pieces `[z y x]`: some of the 728 descriptors, and of the candidates' own features."""
    names = models.forest.names
    image, labels, inside = (t.to(models.device) for t in (maps.hu, pieces.long(), maps.liver))
    table, _ = radiomics.steady(
        image,
        labels,
        maps.spacing_mm,
        inside,
        [n for n in names if n not in candidates.OWN] or radiomics.NAMES[:1],
        models.settings.radiomics,
    )
    if set(names) & set(candidates.OWN):
        own = candidates.own_features(pieces, maps.p, maps.liver, maps.spacing_mm).set_index("candidate")
        table = table.join(own, on="label")
    return table[list(names)]


@dataclass(frozen=True)
class Maps:
    """What the nets say of one volume, on the work grid: HU, probability and mask of the liver, the tumor's probability."""

    hu: Tensor
    p_liver: Tensor
    liver: Tensor
    p: Tensor
    spacing_mm: Spacing

    @classmethod
    def of(cls, made: Experiment, case: str) -> Maps:
        """Those that the stages liver and tumor of an experiment left for a case."""
        hu, _, spacing = made.work(case)
        p_liver, inside = made.array("liver", "maps", case).float(), made.array("liver", "masks", case).bool()
        return cls(hu.float(), p_liver, inside, made.array("tumor", "maps", case).float(), spacing)

    def to(self, device: torch.device) -> Maps:
        """The same on a device."""
        hu, p_liver, inside, p = (v.to(device) for v in (self.hu, self.p_liver, self.liver, self.p))
        return Maps(hu, p_liver, inside, p, self.spacing_mm)


@dataclass(frozen=True)
class Decided:
    """What the stages after the nets made of the maps, on the work grid `[z y x]`: the mask after each stage of the ablation, a field
    whose sign is the last one (`contour`), the table of lesions, and the candidates, numbered as there. `smoothing_ml`: what the
    boundary stage's smoothing alone changes of the tumor's volume."""

    masks: list[Tensor]
    contour: Tensor
    lesions: pd.DataFrame
    pieces: Tensor
    smoothing_ml: float


DECIDING = ("consistency", "forest", "boundary")  # stages that can be left out


@contextmanager
def _untimed(stage: str) -> Iterator[None]:
    yield


def decide(
    maps: Maps,
    models: Deciders,
    own_mm: Spacing | None = None,
    skip: Collection[str] = (),
    timed: Callable[[str], AbstractContextManager] = _untimed,
    memory: Memory | None = None,
) -> Decided:
    """Everything after the nets: consistency, candidates, forest, boundary. `skip` leaves stages of `DECIDING` out.

    Places in the table are on a grid of `own_mm` (by default the work grid). `memory`: of this scan, from one decision to the next.
    """
    s, p, memory = models.settings, maps.p, memory or Memory()
    if set(skip) - set(DECIDING):
        raise Refused("stages to leave out", ", ".join(skip), "some of " + ", ".join(DECIDING))
    with timed("consistency"):
        mask = p >= s.consistency.threshold
        masks = [mask]
        if "consistency" not in skip:
            mask = consistency.refine(p, maps.spacing_mm[0], s.consistency).mask
        masks.append(mask)
    with timed("candidates"):
        pieces = memory.find(mask, maps, s.candidates)
        masks.append(pieces.labels > 0)
    with timed("forest"):
        lesions = _judge(pieces, maps, own_mm or maps.spacing_mm, models, memory)
        if "forest" in skip:
            lesions = lesions.assign(kept=True)
        own = lesions[lesions.kept]
        likely = forest.chances(own.forest_score, own.volume_ml, models.forest.largest_ml)
        chance = boundary.chances(pieces.labels, own.candidate, likely)
        masks.append(chance > 0)
    contour, smoothing_ml = masks[-1].float() - 0.5, 0.0
    with timed("boundary"):
        if "boundary" not in skip and bool(masks[-1].any()):
            assert models.boundary is not None
            edge = boundary.relabel(
                models.boundary,
                maps.hu,
                p,
                chance if "forest" not in skip else chance > 0,
                maps.liver,
                maps.spacing_mm,
                s.boundary,
            )
            contour = _agree(torch.where(edge.band, edge.probability - s.boundary.threshold, contour), edge.mask)
            smoothing_ml = edge.smoothing_change_ml
    return Decided([*masks, contour >= 0], contour, lesions, pieces.labels, smoothing_ml)


def on_own_grid(decided: Decided, shape: tuple[int, int, int]) -> list[Tensor]:
    """The mask after each stage on a volume's own grid, bool `[z y x]` each.

    All but the last are carried as masks, half of a voxel being the edge, so that none gains by how it is carried (decision 0014); of
    the last the boundary net knows the edge more finely.
    """
    levels = (*(mask.float() - 0.5 for mask in decided.masks[:-1]), decided.contour)
    masks = [_carried(level, shape) for level in levels]
    for n in (2, 3):  # candidates and forest only take away; rounding must not say otherwise
        masks[n] &= masks[n - 1]
    return masks


def _carried(level: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The mask of a level field `[z y x]` (inside from 0 on) on another grid of the same field of view, bool.

    Interpolation rounds small pieces off: of one voxel a quarter is left, of pieces below 5 mm half of the volume. So each piece up to
    `SMALL` voxels keeps at least its volume: of the voxels around it, those of the highest level.
    """
    if tuple(level.shape) == tuple(shape):
        return level >= 0
    out, ratio = torch.zeros(shape, dtype=torch.bool, device=level.device), math.prod(shape) / level.numel()
    steps = [n / m for n, m in zip(shape, level.shape)]
    held = bounding_box(level >= 0, (1, 1, 1), 2)
    if held is None:
        return out
    z, y, x = (slice(math.floor(s.start * f), min(n, math.ceil(s.stop * f))) for s, f, n in zip(held, steps, shape))
    part = (z, y, x)
    fine = resample_part(level, shape, part)
    out[part] = fine >= 0
    pieces, count = components(level >= 0)
    voxels = np.bincount(pieces.ravel(), minlength=count + 1)
    for number, place in enumerate(ndimage.find_objects(pieces), 1):
        if place is None or voxels[number] > SMALL:
            continue
        coarse = tuple(slice(max(0, s.start - 1), min(m, s.stop + 1)) for s, m in zip(place, level.shape))
        at = tuple(
            slice(math.floor(s.start * f), min(n, math.ceil(s.stop * f))) for s, f, n in zip(coarse, steps, shape)
        )
        size = tuple(s.stop - s.start for s in at)
        # voxels nearer to another piece are not this one's
        mine = torch.from_numpy(pieces[coarse] == number).to(level.device)
        other = torch.from_numpy((pieces[coarse] > 0) & (pieces[coarse] != number)).to(level.device)
        near, far = (resample_labels(F.max_pool3d(m[None].float(), 3, 1, 1)[0] > 0, size) for m in (mine, other))
        free = near & ~(far & ~resample_labels(mine, size))
        drawn = int((free & out[at]).sum())  # more than its volume where its edge is known more finely
        least = int(ratio >= 1)  # on a coarser grid less than half a voxel is none
        wanted = min(max(least, round(int(voxels[number]) * ratio), drawn), int(free.sum()))
        here = tuple(slice(a.start - p.start, a.stop - p.start) for a, p in zip(at, part))
        value = torch.where(free, fine[here], -math.inf)
        chosen = value.flatten().topk(wanted).indices
        kept = torch.zeros(value.numel(), dtype=torch.bool, device=level.device)
        kept[chosen] = True
        out[at] = torch.where(free, kept.view(size), out[at])
    return out


def _numbers_on(candidates: Tensor, mask: Tensor) -> Tensor:
    """The candidates' numbers int16 on another grid, where `mask` is what became of them there.

    The mask may reach a voxel or two of the work grid beyond them, so they grow before the nearest number is taken.
    """
    grown = candidates.float()[None]
    for _ in range(2):
        grown = torch.where(grown > 0, grown, F.max_pool3d(grown, 3, 1, 1))
    z, y, x = mask.shape
    return resample_labels(grown[0].to(torch.int16), (z, y, x)) * mask


def look(
    volume: Volume,
    models: Models,
    timed: Callable[[str], AbstractContextManager] = _untimed,
    liver_given: Tensor | None = None,
) -> Maps:
    """The nets on one CT. `liver_given`: see `segment`."""
    s = models.settings
    if volume.shape[0] < gates.MIN_SLICES:
        raise Refused(
            volume.name,
            f"{volume.shape[0]} slices",
            f"at least {gates.MIN_SLICES}, since the nets look at neighbouring slices",
        )
    with timed("grid"):
        shape, spacing = s.work_grid(volume.shape, volume.spacing_mm)
        hu = resample(volume.array, shape).clamp(-1024, 3071).round()
    with timed("liver"):
        if liver_given is None:
            p_liver = liver.probability(models.liver, hu, spacing, s.liver, models.device)
        else:
            p_liver = liver.filled(resample(liver_given, shape) >= 0.5).float()
        found = liver.mask(p_liver, spacing, s.liver) if liver_given is None else p_liver >= 0.5
    with timed("tumor"):
        p = tumor.probability(models.tumor, hu, p_liver, tumor.box(found, spacing, s.tumor), s.tumor, models.device)
    return Maps(hu, p_liver, found, p, spacing)


def segment(
    volume: Volume,
    models: Models,
    progress: Progress | None = None,
    liver_given: Tensor | None = None,
    memory: Memory | None = None,
) -> Result:
    """All stages on one CT. Nets and decisions work on the settings' work grid; masks and maps come back on the volume's own.

    `liver_given`: bool [z y x] that takes the place of the liver net's map: a reader's mask, another program's, or the reference of a
    scan cut to the liver's box. Its holes are filled slice by slice. `memory` as in `decide`.
    """
    s, show = models.settings, progress or (lambda *_: None)
    timings: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        show(stage, len(timings), 9, {})
        began = time.monotonic()
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            found = f"no memory left on {models.device} in {stage}"
            raise Refused(
                volume.name, found, "room for its voxels", "Use --device cpu, or fewer processes at once (--workers)."
            ) from error
        timings[stage] = round(time.monotonic() - began, 3)

    maps = look(volume, models, timed, liver_given)
    decided = decide(maps, models, volume.spacing_mm, (), timed, memory)
    with timed("own grid"):
        masks = on_own_grid(decided, volume.shape)
        if liver_given is None:
            liver_mask = resample(_agree(maps.p_liver - s.liver.threshold, maps.liver), volume.shape) >= 0
        else:
            liver_mask = liver.filled(liver_given)
        history = ledger.write(masks, liver_mask)
    doubts = liver.doubts(liver_mask, volume.spacing_mm) if liver_given is None else []
    with timed("scan"):
        scan = domain.measure(maps.hu, maps.liver, maps.spacing_mm, volume.spacing_mm)
        if models.scans is not None and bool(maps.liver.any()):
            doubts += domain.doubts(scan, models.scans, liver_given is None)
    numbers = _numbers_on(decided.pieces, masks[2])
    kept = decided.lesions[decided.lesions.kept]
    lost = kept[~np.isin(kept.candidate, numbers.unique().numpy())]
    doubts += [
        f"candidate {n} ({ml:.2g} ml) is kept, but too small for a voxel of this grid: no mask shows it"
        for n, ml in zip(lost.candidate, lost.volume_ml)
    ]
    status = "no liver" if not bool(maps.liver.any()) else "ok" if bool(masks[-1].any()) else "no tumor"
    return Result(
        volume,
        status,
        resample(maps.p_liver, volume.shape).clamp(0, 1),
        resample(maps.p, volume.shape).clamp(0, 1),
        history,
        liver_mask,
        numbers,
        decided.lesions,
        models.forest.cut,
        timings,
        s,
        str(models.device),
        doubts,
        maps=maps,
        pieces=decided.pieces,
        change_ml={
            "boundary": float(masks[4].sum() - masks[3].sum()) * volume.voxel_ml,
            "smoothing": decided.smoothing_ml,
        },
        models=models,
        scan=scan,
    )


def _judge(
    pieces: candidates.Candidates, maps: Maps, own_mm: Spacing, models: Deciders, memory: Memory
) -> pd.DataFrame:
    """The lesion table: each candidate with its place on a grid of `own_mm`, verdict, reason and deciding features."""
    columns = ["candidate", "kept", "reason", "forest_score", *candidates.COLUMNS[1:], *models.forest.names]
    if not len(pieces.table):
        return pd.DataFrame(columns=columns).astype({"kept": bool, "candidate": int})
    described = memory.describe(pieces.labels, maps, models)
    score = models.forest.score(described)
    threshold = models.forest.cut
    table, largest = pieces.table.reset_index(drop=True), models.forest.largest_ml
    kept = models.forest.keeps(score, table.volume_ml)
    reason = [
        f"score {a:.3f} {'reaches' if a >= threshold else 'is below'} the threshold {threshold:.3f}" for a in score
    ]
    beyond = f"; larger than all that the forest learned from ({largest:.3g} ml), so it is kept whatever its score"
    reason = [r + beyond * (v > largest) for r, v in zip(reason, table.volume_ml)]
    table = table.assign(kept=kept, reason=reason, forest_score=score)
    # places from the volume's first voxel on: the work grid's first voxel has another centre
    table[["z_mm", "y_mm", "x_mm"]] += (np.array(maps.spacing_mm) - np.array(own_mm)) / 2
    return pd.concat([table, described.reset_index(drop=True)], axis=1)[columns]
