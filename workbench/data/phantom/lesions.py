"""Lesions and their look-alikes, planned: shape, contrast, rim, core and edge of each.

Look-alikes are painted with contrasts like those of lesions and never touch one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.data.phantom.anatomy import Body
from workbench.data.phantom.shapes import Capsule, Draw, Ellipsoid, Point, Smooth, capsules, join, rotation
from workbench.data.phantom.vessels import Map
from workbench.volume import three

KINDS = ("metastasis", "rim-enhancing", "hypervascular", "cyst", "infiltrative")


@dataclass
class Lesion:
    """A tumor as it is planned, before it is painted."""

    kind: str
    shape: Ellipsoid
    reach_mm: float  # radius of the ball of the planned volume
    outline: Smooth
    lobes_mm: float
    contrast_hu: float
    rim_hu: float
    rim_mm: float
    soft_mm: float  # 0: as sharp as the scanner
    core_hu: float
    at_vessel: bool
    buds: tuple[Ellipsoid, ...] = ()
    mottle_hu: float = 2.5

    def bounds(self):
        return tuple(c - 1.75 * self.reach_mm - 4 for c in self.shape.centre), tuple(
            c + 1.75 * self.reach_mm + 4 for c in self.shape.centre
        )

    def sdf(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """[z y x] on the product of three axes (mm)."""
        shape = (len(z), len(y), len(x))
        p = three(a.expand(shape) for a in (z[:, None, None], y[None, :, None], x[None, None, :]))
        sdf = self.shape.sdf(p)
        for bud in self.buds:
            sdf = join(sdf, bud.sdf(p), 0.35 * self.reach_mm)
        if self.lobes_mm:
            sdf = sdf + self.lobes_mm * self.outline.at(z, y, x)[0]
        return sdf

    def hu(self, distance: Tensor, base: float, mottle: Tensor) -> Tensor:
        """HU of its tissue in a liver of `base` HU: core, rim and mottle."""
        level = base + self.contrast_hu + self.mottle_hu * mottle
        if self.core_hu:
            level = level + self.core_hu * (-(distance + 0.35 * self.reach_mm) / (0.3 * self.reach_mm)).clamp(0, 1)
        if self.rim_mm:
            ring = (1 - ((distance + self.rim_mm) / self.rim_mm).abs()).clamp(0, 1)
            level = level + ring * (self.rim_hu - self.contrast_hu)
        return level

    def cover(self, distance: Tensor, width: float, mottle: Tensor) -> Tensor:
        """How much of each voxel is seen as lesion, where `width` mm is what the scanner makes of a sharp edge."""
        if self.soft_mm > 2:
            return torch.sigmoid(-distance / (0.5 * self.soft_mm) + 0.5 * mottle)
        return (0.5 - distance / math.hypot(width, self.soft_mm)).clamp(0, 1)


def _gap(point, tubes: list[Capsule]) -> float:
    """mm from a point to the nearest vessel wall."""
    if not tubes:
        return 99.0
    a, b = np.array([t.start for t in tubes]), np.array([t.end for t in tubes])
    axis = b - a
    t = (((point - a) * axis).sum(1) / np.maximum((axis**2).sum(1), 1e-6)).clip(0, 1)
    r = np.array([t_.radius for t_ in tubes]) * (1 - t) + np.array([t_.radius_end for t_ in tubes]) * t
    return float((np.linalg.norm(point - a - t[:, None] * axis, axis=1) - r).min())


def plan_lesions(d: Draw, body: Body, survey: Map, veins: list[Capsule]) -> list[Lesion]:
    """Up to eight tumors inside the liver, clear of one another, most of one kind."""
    count = d.pick(range(9), (0.09, 0.17, 0.18, 0.16, 0.13, 0.10, 0.08, 0.05, 0.04))
    main = d.pick(KINDS, (0.46, 0.22, 0.12, 0.08, 0.12))
    base = d.uniform(0.75, 1.3)
    big = [v for v in veins if v.radius > 1.8]
    lesions: list[Lesion] = []
    for _ in range(count):
        kind = main if d.chance(0.65) else d.pick(KINDS, (0.42, 0.20, 0.12, 0.14, 0.12))
        size = d.uniform(0, 1)
        if size < 0.14:
            diameter = d.uniform(4.7, 8)
        elif size < 0.9:
            diameter = 8 * 5 ** d.uniform(0, 1)
        else:
            diameter = d.uniform(36, 53)
        if kind == "infiltrative":
            diameter = max(diameter, 16.0)
        r = diameter / 2
        for _ in range(12):
            where = d.uniform(0, 1)
            beside = False
            if where < 0.25:
                point = survey.point(d, -0.95 * r, -0.35 * r - 0.5)
            elif where < 0.45 and big:
                vein = big[d.integer(0, len(big) - 1)]
                side = np.cross(np.array(vein.end) - vein.start, d.direction())
                side /= max(np.linalg.norm(side), 1e-6)
                point = (np.array(vein.start) + vein.end) / 2 + side * (vein.radius + 0.85 * r)
                point = point if survey(point) < -0.5 * r else None
                beside = True
            else:
                point = survey.point(d, -99, -min(r + 3, 0.8 * -survey.deepest))
            if point is None:
                continue
            if all(np.linalg.norm(point - o.shape.centre) > 1.35 * (r + o.reach_mm) + 5 for o in lesions):
                break
        else:
            continue
        lesions.append(
            _lesion(d, body, kind, three(float(v) for v in point), r, base, beside or _gap(point, big) < r + 2)
        )
    return lesions


def form(d: Draw, kind: str, centre: Point, r: float) -> tuple[Ellipsoid, Smooth, float]:
    """An ellipsoid of the volume of a ball of radius `r`, the field that makes it lobed, and by how many mm."""
    stretch = np.exp([d.normal(0, 0.13) for _ in range(3)])
    stretch /= stretch.prod() ** (1 / 3)
    if kind == "cyst":
        stretch = stretch**0.4
    turn = rotation(d.uniform(0, 180), d.uniform(-60, 60), d.uniform(0, 180))
    shape = Ellipsoid(centre, three(float(r * s) for s in stretch), turn)
    reach = 1.75 * r + 4
    cell = max(3.0, 0.75 * r)
    outline = d.smooth(cell, three(c - reach - cell for c in centre), three(c + reach + cell for c in centre))
    lobes = {"cyst": 0.03, "infiltrative": 0.16}.get(kind, d.uniform(0.04, 0.13)) * r
    return shape, outline, lobes


def budding(d: Draw, shape: Ellipsoid, r: float) -> tuple[Ellipsoid, tuple[Ellipsoid, ...]]:
    """The same, a little smaller, with a second lobe at its side."""
    away = d.direction()
    bud = Ellipsoid(three(float(c + 0.75 * r * a) for c, a in zip(shape.centre, away)), (0.55 * r,) * 3)
    return Ellipsoid(shape.centre, three(0.92 * v for v in shape.radii), shape.turn), (bud,)


def _lesion(d: Draw, body: Body, kind: str, centre: Point, r: float, base: float, at_vessel: bool) -> Lesion:
    arterial = body.phase == "arterial"
    shape, outline, lobes = form(d, kind, centre, r)
    rim_hu = rim_mm = soft = core = 0.0
    if kind == "metastasis":
        contrast = -d.uniform(30, 60) * (0.75 if arterial else 1) * base
        soft = d.uniform(0.3, 1.4)
        core = -d.uniform(0, 14)
    elif kind == "rim-enhancing":
        contrast = -d.uniform(40, 70) * base
        rim_hu, rim_mm = d.uniform(8, 45) if arterial else d.uniform(2, 24), min(d.uniform(1.0, 2.5), 0.22 * r)
        soft = d.uniform(0.2, 0.8)
        core = -d.uniform(4, 20)
    elif kind == "hypervascular":
        contrast = d.uniform(24, 65) if arterial else -d.uniform(20, 40) * base
        rim_hu, rim_mm = (0.0, 0.0) if arterial else (d.uniform(0, 16), min(d.uniform(1.0, 2.0), 0.22 * r))
        soft = d.uniform(0.2, 0.9)
        core = -d.uniform(0, 25) if r > 12 else 0.0
    elif kind == "cyst":
        contrast = d.uniform(2, 20) - body.hu["liver"]
    else:
        contrast = -d.uniform(34, 58) * base
        soft = d.uniform(3.0, 5.5)
    contrast = max(contrast, 0.0 - body.hu["liver"])
    buds = ()
    if kind in ("metastasis", "rim-enhancing", "infiltrative") and r > 7 and d.chance(0.45):
        shape, buds = budding(d, shape, r)
    return Lesion(kind, shape, r, outline, lobes, contrast, rim_hu, rim_mm, soft, core, at_vessel, buds)


@dataclass
class Decoy:
    """A look-alike: a region of the liver with another HU and no tumor."""

    kind: str
    hu: float
    shapes: tuple  # ellipsoids (focal fat, fissure, notch), capsules (vessel loop)
    cone: tuple | None = None  # apex, axis, half angle: perfusion wedges
    edge_mm: float = 1.5
    band: tuple | None = None  # origin (y, x), angle, width, z, half height: beam hardening


def _clear(point, reach: float, lesions: list[Lesion]) -> bool:
    return all(np.linalg.norm(np.asarray(point) - o.shape.centre) > reach + 1.4 * o.reach_mm + 4 for o in lesions)


def plan_decoys(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """What looks like a tumor and is none, clear of the lesions."""
    found: list[Decoy] = []
    for kind in (_focal_fat, _perfusion, _vessel_loop, _beam_hardening, _shallow):
        found += kind(d, body, survey, lesions)
    return found


def _focal_fat(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """Wedges of fat beside the fissure and the gallbladder."""
    found = []
    front = -0.40 * body.half_front
    for anchor, p in (
        ((6.0, front, body.fissure_x - 10), 0.40),
        ((6.0, front, body.fissure_x + 12), 0.25),
        ((-16.0, front + 8, -38.0), 0.30),
    ):
        if not d.chance(p):
            continue
        r = d.uniform(7, 17)
        for _ in range(8):
            centre = np.array(anchor) + np.array([d.normal(0, 12), d.normal(0, 12), d.normal(0, 8)])
            if -12 < survey(centre) < -1 and _clear(centre, 1.4 * r, lesions):
                turn = rotation(d.uniform(0, 90), d.uniform(-20, 20), 0)
                wedge = Ellipsoid(tuple(centre), (1.1 * r, 0.95 * r, 0.5 * r), turn)
                found.append(
                    Decoy(
                        "focal fat",
                        -d.uniform(22, 48) * (0.6 if body.fatty else 1),
                        (wedge,),
                        edge_mm=d.uniform(1.5, 4),
                    )
                )
                break
    return found


def _perfusion(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """Cones of other perfusion below the capsule."""
    found = []
    for _ in range(d.pick((0, 1, 2, 3), (0.35, 0.35, 0.2, 0.1))):
        for _ in range(8):
            surface = survey.point(d, -4, 0)
            inner = survey.point(d, -60, -10)
            if surface is None or inner is None:
                break
            axis = surface - inner
            length = float(np.linalg.norm(axis))
            if 18 < length < 55 and all(
                _clear(inner + t * axis, 0.55 * t * length, lesions) for t in (0, 0.25, 0.5, 0.75, 1.0)
            ):
                hu = (
                    d.uniform(12, 38)
                    if body.phase == "arterial"
                    else (-d.uniform(9, 24) if d.chance(0.6) else d.uniform(8, 22))
                )
                found.append(
                    Decoy(
                        "perfusion",
                        hu,
                        (),
                        cone=(inner, axis / length, length, math.radians(d.uniform(14, 30))),
                        edge_mm=d.uniform(1.5, 4),
                    )
                )
                break
    return found


def _vessel_loop(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """A vessel that curls up."""
    found = []
    if d.chance(0.3):
        for _ in range(8):
            centre = survey.point(d, -99, -12)
            if centre is None or not _clear(centre, 12, lesions):
                continue
            r, turn, tube = (
                d.uniform(4, 7),
                rotation(d.uniform(0, 90), d.uniform(-40, 40), d.uniform(0, 90)),
                d.uniform(1.6, 3.0),
            )
            ring = [
                centre + r * (math.cos(a) * turn[1] + math.sin(a) * turn[2]) + 2.4 * a * turn[0] * r / 6
                for a in np.linspace(0, 5.4, 8)
            ]
            found.append(
                Decoy(
                    "vessel loop",
                    body.hu["portal"] - body.hu["liver"] + d.uniform(0, 20),
                    tuple(capsules([tuple(q) for q in ring], [tube] * 8)),
                )
            )
            break
    return found


def _beam_hardening(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """Dark bands from the spine or from the arm."""
    found = []
    for _ in range(d.pick((0, 1, 2), (0.4, 0.4, 0.2))):
        angle = d.uniform(180, 255)  # degrees from +x towards +y: from the spine to the right and forwards
        if d.chance(0.5):
            origin = (body.spine_y, 0.0)
        else:
            origin = (d.uniform(-0.5, 0.8) * body.half_back, -body.half_width)
            angle = d.uniform(-25, 25)
        found.append(
            Decoy(
                "beam hardening",
                -d.uniform(14, 30),
                (),
                band=(origin, math.radians(angle), d.uniform(4, 8), d.uniform(-40, 60), d.uniform(5, 11)),
            )
        )
    return found


def _shallow(d: Draw, body: Body, survey: Map, lesions: list[Lesion]) -> list[Decoy]:
    """Sharp look-alikes at the capsule: plates of fat in fissures, and notches of the diaphragm's slips and of partial volume.

    In patients half of what a net marks wrongly lies within 8 mm of the capsule, with sharp edges (*empirical*, docs/log.md, 2026-11-30).
    """
    found = []
    kinds = ["fissure"] * d.pick((0, 1, 2), (0.3, 0.45, 0.25)) + ["notch"] * d.pick(
        range(5), (0.2, 0.3, 0.25, 0.15, 0.1)
    )
    for kind in kinds:
        for _ in range(8):
            at = survey.point(d, -4, 0)
            if at is None:
                break
            if kind == "fissure":
                inward, deep, wide, thin = d.uniform(0.3, 0.7), d.uniform(8, 20), d.uniform(6, 14), d.uniform(1.2, 3)
            else:
                inward, deep, wide, thin = d.uniform(0.2, 0.6), d.uniform(3, 6), d.uniform(3, 9), d.uniform(2.5, 7)
            uphill = np.array([survey(at + step) - survey(at - step) for step in np.eye(3) * survey.step])
            if not 1 < np.linalg.norm(uphill) < 50:
                continue  # the survey's edge
            down = -uphill / np.linalg.norm(uphill)
            centre = at + inward * deep * down
            if not _clear(centre, max(deep, wide), lesions):
                continue
            side = np.cross(down, d.direction())
            side /= max(np.linalg.norm(side), 1e-6)
            plate = Ellipsoid(
                three(float(c) for c in centre), (deep, wide, thin), np.stack([down, side, np.cross(down, side)])
            )
            hu = -d.uniform(35, 110) if kind == "fissure" else -d.uniform(25, 60) * (0.7 if body.fatty else 1)
            found.append(Decoy(kind, hu, (plate,), edge_mm=d.uniform(0.3, 1.2)))
            break
    return found
