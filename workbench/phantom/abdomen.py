"""Phantom: a synthetic contrast-enhanced abdominal CT with known liver, lesions and look-alikes.

States (the paper): nothing; it uses clinical scans.
Chooses: anatomy is a set of signed distance functions (mm, negative inside) of ellipsoids, tapering capsules and a few
implicit surfaces of the body wall, in patient coordinates (z head, y back, x left) that a smooth random warp bends. Each
is painted by its occupancy `clamp(1/2 - sdf / width)` on sub-slices that are then averaged (partial volume in and
across the plane), blurred in the plane (reconstruction kernel) and covered with band-pass noise that is stronger in the
body's centre. HU follow the contrast phase of the case. Lesions come with their true volume; look-alikes are painted with
contrasts like those of lesions and never touch one.

Randomness: the plan of a case (anatomy, phase, lesions) comes from one CPU generator, the same on every device; the
quantum noise from one generator on the device. The same seed gives the same bits on the same kind of device.
HU figures are *empirical*: next to the real scans named in docs/log.md (2026-11-25).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.volume import Refused, Spacing, Volume, canonical_affine

ORGANS = (
    "outside",
    "skin",
    "fat",
    "muscle",
    "bone",
    "lung",
    "heart",
    "liver",
    "gallbladder",
    "spleen",
    "kidney",
    "stomach",
    "bowel",
    "pancreas",
    "aorta",
    "vena cava",
    "portal vein",
    "cartilage",
    "table",
)
_ORGAN = {name: code for code, name in enumerate(ORGANS)}

Point = tuple[float, float, float]  # (z, y, x) in mm
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Preset:
    """Grid of a scan. Lengths in mm, ranges are drawn from uniformly."""

    matrix: int
    pixel_mm: tuple[float, float]
    slice_mm: tuple[float, float]
    slices: tuple[int, int]
    sub_slice_mm: float  # thickness over which partial volume in z is averaged
    noise_hu: tuple[float, float]  # sd in the liver


PRESETS = {
    "demo": Preset(128, (2.3, 3.0), (3.5, 5.0), (44, 60), 2.6, (4.0, 11.0)),
    "fine": Preset(240, (1.25, 1.6), (2.5, 5.0), (44, 90), 2.6, (6.0, 15.0)),
    "full": Preset(512, (0.6, 0.9), (1.0, 5.0), (44, 300), 1.7, (12.0, 28.0)),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic case. `instances` numbers the lesions as `lesions.lesion` does, `decoys` the look-alikes as their rows + 1."""

    ct: Volume
    labels: Volume
    lesions: pd.DataFrame
    lookalikes: pd.DataFrame
    organs: Tensor
    instances: Tensor
    decoys: Tensor
    phase: str
    name: str


# ---------------------------------------------------------------------------------------------------- randomness


class _Draw:
    """Every random number of a case's plan, from one generator."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def normal(self, mean: float, sd: float) -> float:
        """Cut at two sd: no impossible patients."""
        return mean + sd * max(-2.0, min(2.0, float(torch.randn((), generator=self.generator))))

    def chance(self, p: float) -> bool:
        return self.uniform(0, 1) < p

    def pick(self, names, weights):
        return names[int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.generator))]

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def direction(self) -> np.ndarray:
        v = torch.randn(3, generator=self.generator).double().numpy()
        return v / np.linalg.norm(v)

    def smooth(self, cell_mm: float, low: Point, high: Point, channels: int = 1) -> _Smooth:
        shape = [max(4, math.ceil((b - a) / cell_mm) + 4) for a, b in zip(low, high)]
        return _Smooth(torch.randn(channels, *shape, generator=self.generator), low, cell_mm)


@dataclass
class _Smooth:
    """A smooth random field of about unit sd: white noise on a lattice under cubic B-splines."""

    lattice: Tensor  # [c z y x]
    low: Point
    cell_mm: float

    def _weights(self, at: Tensor, axis: int) -> Tensor:
        u = (at - self.low[axis]) / self.cell_mm + 1
        n = self.lattice.shape[axis + 1]
        t = (u[:, None].clamp(0, n - 1) - torch.arange(n, device=at.device)).abs()
        return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp_min(0) ** 3 / 6) * 1.45

    def at(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """[c z y x] on the product of three axes (mm)."""
        field = torch.tensordot(self._weights(z, 0), self.lattice.to(x.device), dims=([1], [1])).transpose(0, 1)
        return (self._weights(y, 1) @ field) @ self._weights(x, 2).T


# ---------------------------------------------------------------------------------------------------- signed distances


@dataclass(frozen=True)
class _Ellipsoid:
    centre: Point
    radii: Point
    turn: np.ndarray | None = None  # rows: the axes of `radii` in (z, y, x)

    @property
    def bounds(self) -> tuple[Point, Point]:
        turn = np.eye(3) if self.turn is None else self.turn
        reach = np.sqrt(((np.array(self.radii)[:, None] * turn) ** 2).sum(0))
        return tuple(np.array(self.centre) - reach), tuple(np.array(self.centre) + reach)

    def sdf(self, p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        d = [a - c for a, c in zip(p, self.centre)]
        if self.turn is not None:
            d = [d[0] * float(r[0]) + d[1] * float(r[1]) + d[2] * float(r[2]) for r in self.turn]
        s = [a / r for a, r in zip(d, self.radii)]
        k0 = (s[0] ** 2 + s[1] ** 2 + s[2] ** 2).sqrt()
        k1 = ((s[0] / self.radii[0]) ** 2 + (s[1] / self.radii[1]) ** 2 + (s[2] / self.radii[2]) ** 2).sqrt()
        return k0 * (k0 - 1) / k1.clamp_min(1e-6)


@dataclass(frozen=True)
class _Capsule:
    """A tapering tube from `start` to `end`."""

    start: Point
    end: Point
    radius: float
    radius_end: float
    generation: int = 0

    @property
    def bounds(self) -> tuple[Point, Point]:
        r = max(self.radius, self.radius_end)
        return (
            tuple(min(a, b) - r for a, b in zip(self.start, self.end)),
            tuple(max(a, b) + r for a, b in zip(self.start, self.end)),
        )

    def sdf(self, p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        axis = [b - a for a, b in zip(self.start, self.end)]
        length2 = max(sum(a * a for a in axis), 1e-6)
        d = [a - c for a, c in zip(p, self.start)]
        t = ((d[0] * axis[0] + d[1] * axis[1] + d[2] * axis[2]) / length2).clamp(0, 1)
        off = [a - t * b for a, b in zip(d, axis)]
        return (off[0] ** 2 + off[1] ** 2 + off[2] ** 2).sqrt() - (self.radius + (self.radius_end - self.radius) * t)


def _path(points: list[Point], radii: list[float]) -> list[_Capsule]:
    return [_Capsule(a, b, r, s) for a, b, r, s in zip(points, points[1:], radii, radii[1:])]


def _turn(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotation by degrees about z (in the axial plane), y and x; rows are the turned axes in (z, y, x)."""
    a, b, c = (math.radians(v) for v in (roll, pitch, yaw))
    about_z = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, -math.sin(b)], [0, 1, 0], [math.sin(b), 0, math.cos(b)]])
    about_x = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _join(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Smooth union of two distances over k mm."""
    h = (k - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - h * h * (0.25 / k)


def _cut(a: Tensor, b: Tensor, k: float) -> Tensor:
    """a without b, smoothly."""
    return -_join(-a, b, k)


# ---------------------------------------------------------------------------------------------------- the body, planned


@dataclass
class _Grid:
    """Where something is evaluated: three axes in mm, the bent coordinates of soft organs, and the body wall's planes."""

    z: Tensor
    y: Tensor
    x: Tensor
    bent: tuple[Tensor, Tensor, Tensor]
    wall: Tensor  # [1 y x] distance from the inner wall at z = 0, mm
    theta: Tensor  # [1 y x] angle from the back, 0..pi

    @property
    def plain(self):
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def box(self, bounds: tuple[Point, Point], pad_mm: float) -> Box | None:
        box = []
        for axis, low, high in zip((self.z, self.y, self.x), *bounds):
            step = float(axis[1] - axis[0]) if len(axis) > 1 else 1.0
            first = float(axis[0])
            a = max(0, math.ceil((low - pad_mm - first) / step))
            b = min(len(axis), math.floor((high + pad_mm - first) / step) + 1)
            if a >= b:
                return None
            box.append(slice(a, b))
        return tuple(box)

    def bent_in(self, box: Box):
        return tuple(a[box] for a in self.bent)


_BEND_PAD_MM = 22.0  # the warp's reach


class _Body:
    """The plan of a case: every shape and every HU. Lengths in mm, points (z, y, x), z = 0 at the porta hepatis."""

    def __init__(self, draw: _Draw):
        d = draw
        self.frame = d.normal(1.0, 0.045)  # skeleton's size
        self.half_width = 124 * self.frame * d.normal(1.0, 0.03)
        self.belly = d.uniform(0, 1) ** 1.5
        self.fat_mm = 7 + 26 * d.uniform(0, 1) ** 1.6
        self.half_front = self.half_width * d.normal(0.70, 0.045) + 24 * self.belly
        self.half_back = self.half_width * d.normal(0.645, 0.02)
        self.power = d.uniform(2.25, 2.7)
        self.muscle_mm = d.uniform(11, 16)
        self.fat_back = d.uniform(0.9, 1.5)
        self.scan_low, self.scan_high = (-190.0, -190.0, -230.0), (210.0, 190.0, 230.0)
        self.warp = [d.smooth(70, self.scan_low, self.scan_high, 3), d.smooth(30, self.scan_low, self.scan_high, 3)]
        self.warp_mm = (d.uniform(4, 7), d.uniform(1.0, 1.9))
        self.sway = d.smooth(60, self.scan_low, (210.0, -189.0, -229.0))
        self._phase(d)
        self._skeleton(d)
        self._liver(d)
        self._organs(d)

    # -- contrast phase
    def _phase(self, d: _Draw):
        self.phase = d.pick(("portal", "arterial", "late"), (0.70, 0.17, 0.13))
        hu = {"fat": d.normal(-104, 5), "muscle": d.normal(58, 6), "bowel": d.uniform(45, 85)}
        if self.phase == "portal":
            liver = d.normal(112, 11)
            hu |= dict(
                aorta=d.uniform(135, 180),
                cava=d.uniform(115, 160),
                portal=liver + d.uniform(35, 65),
                hepatic=liver + d.uniform(25, 55),
                spleen=d.uniform(108, 138),
                cortex=d.uniform(165, 210),
                medulla=d.uniform(140, 185),
                pelvis=20.0,
            )
            if d.chance(0.15):  # early portal: the hepatic veins have not filled yet
                hu["hepatic"] = liver - d.uniform(8, 25)
        elif self.phase == "arterial":
            liver = d.normal(90, 4)
            hu |= dict(
                aorta=d.uniform(240, 350),
                cava=d.uniform(60, 105),
                portal=liver + d.uniform(8, 50),
                hepatic=liver - d.uniform(14, 34),
                spleen=d.uniform(110, 145),
                cortex=d.uniform(170, 230),
                medulla=d.uniform(70, 110),
                pelvis=15.0,
            )
        else:
            liver = d.normal(99, 6)
            hu |= dict(
                aorta=d.uniform(105, 130),
                cava=d.uniform(102, 128),
                portal=liver + d.uniform(10, 24),
                hepatic=liver + d.uniform(10, 24),
                spleen=d.uniform(92, 112),
                cortex=d.uniform(140, 170),
                medulla=d.uniform(140, 175),
                pelvis=d.uniform(250, 700),
            )
        self.fatty = d.chance(0.18)
        if self.fatty:
            drop = d.uniform(12, 26)
            drop = max(0.0, min(drop, liver - 83))  # spared: the yardstick's lowest mean is 75 HU with the edges
            liver -= drop
            hu["portal"] -= 0.5 * drop
            hu["hepatic"] -= 0.5 * drop
        self.hu = hu | {"liver": liver}

    # -- bones
    def _skeleton(self, d: _Draw):
        f = self.frame
        self.spine_y = self.half_back * 0.68
        self.vertebra = (15.5 * f, 21.0 * f * d.normal(1, 0.04))  # half depth, half width
        self.vertebra_pitch = 34 * f
        self.vertebra_phase = d.uniform(0, self.vertebra_pitch)
        self.canal_y = self.spine_y + self.vertebra[0] + 8
        self.marrow_hu = d.uniform(140, 240)
        self.rib_pitch = 30 * f
        self.rib_drop = d.uniform(150, 195)  # from back to front
        self.rib_base = d.uniform(0, 30)  # the lowest rib's head

    # -- liver
    def _liver(self, d: _Draw):
        w, f = self.half_width, self.frame
        self.dome_z = d.uniform(74, 96)
        self.dome_left = d.uniform(8, 22)  # how much lower the left dome is
        self.dome_x = -0.5 * w + d.normal(0, 5)
        self.dome_y = d.normal(-8, 6)
        self.curve_mm = d.uniform(42, 56)
        self.volume_ml = min(2150.0, max(1020.0, d.normal(1520, 300) * (0.85 + 0.15 * f)))
        s = (self.volume_ml / 1500) ** (1 / 3)
        self.scale = 1.0
        long = d.uniform(0.92, 1.14)  # a Riedel-like long lobe, or a short broad one
        self.right = _Ellipsoid(
            (self.dome_z + 9 - 92 * s * long, -6 + d.normal(0, 4), -0.50 * w),
            (92 * s * long, 84 * s, 70 * s / math.sqrt(long)),
            _turn(d.normal(-10, 6), d.normal(-16, 5), d.normal(0, 6)),
        )
        left = d.uniform(0.75, 1.3)
        self.left = _Ellipsoid(
            (34 + d.normal(0, 6), -0.50 * self.half_front + d.normal(0, 4), 10 * left),
            (36 * s, 33 * s, 72 * s * left),
            _turn(d.normal(14, 6), d.normal(14, 6), 0),
        )
        self.tip = _Ellipsoid(
            (-62 * long + d.normal(0, 6), -4 + d.normal(0, 8), -0.70 * w),
            (52 * s * long, 44 * s, 28 * s),
            _turn(0, d.normal(-12, 5), 0),
        )
        self.caudate = _Ellipsoid((22 + d.normal(0, 4), 14 + d.normal(0, 3), -10), (26, 13, 17 + d.normal(0, 2)))
        self.cap = _Ellipsoid(
            (self.dome_z - 14, self.dome_y - 2, self.dome_x - 2), (40, 62 * f, 54 * f)
        )  # what fills the dome, whatever the size
        self.join_mm = d.uniform(14, 26)
        self.hilum = (d.normal(-4, 5), d.normal(-2, 4), d.normal(-22, 4))  # porta hepatis
        self.fissure_x = d.normal(-4, 5)
        self.fissure_mm = d.uniform(1.5, 4.0)
        self.fissure_depth = d.uniform(0.35, 0.75) * self.half_front
        self.roughness = d.smooth(24, self.scan_low, self.scan_high)
        self.roughness_mm = d.uniform(0.8, 2.0)
        self.liver_texture = d.smooth(9, self.scan_low, self.scan_high)
        self.liver_texture_hu = d.uniform(1.5, 4.0)
        self.liver_drift = d.smooth(80, self.scan_low, self.scan_high)

    # -- other organs
    def _organs(self, d: _Draw):
        w, f = self.half_width, self.frame
        hz, hy, hx = self.hilum
        front = self.spine_y - self.vertebra[0]
        self.aorta = _path(
            [
                (220, front - 4, 14),
                (90, front - 9, 10),
                (0, front - 12, 4 + d.normal(0, 3)),
                (-90, front - 13, 2),
                (-200, front - 10, 0),
            ],
            [r * d.uniform(0.85, 1.25) for r in (12.5, 12, 11, 9.5, 8)],
        )
        iv = d.uniform(0.85, 1.25)
        self.cava = _path(
            [
                (-200, front - 6, -18),
                (-70, front - 8, -22),
                (-10, front - 14, -25),
                (45, front - 22, -24),
                (self.dome_z - 12, front - 34, -19),
                (self.dome_z + 14, front - 42, -14),
            ],
            [8.5 * iv, 9.5 * iv, 10 * iv, 11 * iv, 12 * iv, 13.5 * iv],
        )
        # Gallbladder in its fossa under the right lobe.
        self.has_gallbladder = d.chance(0.88)
        gz, gy, gx = -36 + d.normal(0, 7), -0.40 * self.half_front + d.normal(0, 6), -30 + d.normal(0, 6)
        gr = d.uniform(9, 17)
        fundus = (gz - d.uniform(18, 34), gy - d.uniform(14, 30), gx - d.uniform(4, 18))
        self.gallbladder = (
            _path([(gz + 16, gy + 14, gx + 6), (gz, gy, gx), fundus], [3.5, gr * 0.8, gr])
            if self.has_gallbladder
            else []
        )
        # Spleen.
        sp = d.uniform(0.8, 1.2)
        self.spleen = _Ellipsoid(
            (22 + d.normal(0, 10), 0.34 * self.half_back + d.normal(0, 5), 0.70 * w),
            (54 * sp, 54 * sp, 34 * sp),
            _turn(d.normal(-32, 8), d.normal(10, 8), d.normal(0, 8)),
        )
        self.spleen_hilum = _Ellipsoid(
            (24 + d.normal(0, 8), 0.05 * self.half_back, 0.40 * w), (44, 36, 24), _turn(-30, 0, 0)
        )
        # Kidneys.
        self.kidneys = []
        for side, z in ((-1, -52), (1, -36)):
            k = d.uniform(0.88, 1.12)
            centre = (z + d.normal(0, 9), 0.50 * self.half_back + d.normal(0, 4), side * (0.47 * w + d.normal(0, 4)))
            turn = _turn(side * d.normal(38, 8), side * d.normal(14, 5), d.normal(-8, 5))
            body = _Ellipsoid(centre, (55 * k, 29 * k, 25 * k), turn)
            medial = np.array(centre) + np.array([0, -10, -side * 17]) * k
            self.kidneys.append((body, _Ellipsoid(tuple(medial), (25 * k, 12 * k, 15 * k), turn)))
        # Stomach: fundus, body, antrum.
        st = d.uniform(0.78, 1.15)
        left_dome = self.dome_z - self.dome_left
        self.stomach = _path(
            [
                (left_dome - 26 + d.normal(0, 4), 10 + d.normal(0, 6), 0.46 * w),
                (32, -8 + d.normal(0, 6), 0.55 * w),
                (4 + d.normal(0, 8), -0.38 * self.half_front, 0.45 * w),
                (-22 + d.normal(0, 6), -0.46 * self.half_front, 0.2 * w),
                (-22, -0.36 * self.half_front, -8),
            ],
            [30 + 8 * st, 34 * st, 27 * st, 20 * st, 13],
        )
        self.stomach_level = d.normal(-22, 14)
        self.stomach_hu = d.pick((d.uniform(5, 35), d.uniform(180, 340), d.uniform(40, 70)), (0.66, 0.17, 0.17))
        self.oesophagus = _path([(220, front - 18, 6), (80, front - 22, 10), (60, 10, 24)], [8, 8, 9])
        # Colon with haustra, and small bowel as a chain of loops.
        cz = d.normal(-92, 10)
        fb = self.half_front
        self.colon = [
            _path(
                [
                    (-190, 12, -0.76 * w),
                    (cz - 26, 6, -0.74 * w),
                    (cz - 4, -10, -0.62 * w),
                    (cz - 22 + d.normal(0, 10), -0.62 * fb, -0.35 * w),
                    (cz - 24 + d.normal(0, 12), -0.70 * fb, 0.1 * w),
                    (cz + 18 + d.normal(0, 10), -0.55 * fb, 0.55 * w),
                ],
                [23, 22, 19, 17, 17, 17],
            ),
            _path(
                [
                    (cz + 18, -0.55 * fb, 0.55 * w),
                    (26 + d.normal(0, 14), -0.22 * fb, 0.80 * w),
                    (cz + 20, 22, 0.80 * w),
                    (-190, 24, 0.80 * w),
                ],
                [17, 18, 15, 14],
            ),
        ]
        self.loops = []
        for _ in range(11):
            p = np.array(
                [d.uniform(-175, -40), d.uniform(-0.62 * fb, 0.1 * self.half_back), d.uniform(-0.25 * w, 0.66 * w)]
            )
            radius, going = d.uniform(8.5, 14), d.direction()
            points = [tuple(p)]
            for _ in range(d.integer(4, 7)):
                going = going + 0.8 * d.direction()
                going[0] *= 0.6
                going /= np.linalg.norm(going)
                p = np.clip(p + 22 * going, (-185, -0.72 * fb, -0.4 * w), (-28, 0.2 * self.half_back, 0.74 * w))
                points.append(tuple(p))
            self.loops.append(
                (
                    _path(points, [radius * d.uniform(0.8, 1.15) for _ in points]),
                    d.uniform(10, 60) if d.chance(0.8) else d.uniform(150, 320),
                    d.chance(0.4),
                )
            )
        # Pancreas and the portal trunk behind its neck, renal and mesenteric vessels.
        self.pancreas = _path(
            [(-44, 4, -24), (-22, -10, -14), (-10, -16, 12), (4, -6, 44), (18, 12, 0.56 * w)], [14, 12, 9, 9, 8]
        )
        self.portal_trunk = _path([(-70, -18, 6), (-34, -12, -4), (hz - 4, hy, hx)], [6, 6.5, 7]) + _path(
            [(-34, -12, -4), (-16, -4, 26), (8, 18, 0.55 * w)], [5.5, 5, 4]
        )
        self.renal = [
            c
            for (body, sinus), ax in zip(self.kidneys, (-20, 6))
            for c in _path(
                [(sinus.centre[0] + 4, front - 12, ax), (sinus.centre[0], sinus.centre[1], sinus.centre[2])], [4.2, 3.6]
            )
        ]
        self.mesenteric = _path(
            [(2, front - 12, 4), (-24, front - 34, 4), (-90, front - 48, 6), (-190, front - 50, 10)],
            [3.6, 3.4, 3.2, 2.6],
        )
        self.celiac = (
            _path([(14, front - 10, 5), (18, front - 32, 2)], [3.4, 3.0])
            + _path([(18, front - 32, 2), (6, 4, -18)], [2.6, 2.2])
            + _path([(18, front - 32, 2), (20, 20, 0.5 * w)], [2.8, 2.2])
        )
        self.heart = _Ellipsoid(
            (self.dome_z + d.uniform(14, 30), -0.36 * self.half_front, 0.16 * w),
            (42, 52, 56 * f),
            _turn(d.normal(25, 6), 16, 0),
        )
        self.heart_wall = d.uniform(9, 13)
        self.mottle = d.smooth(7, self.scan_low, self.scan_high)
        self.tubules = d.smooth(17, self.scan_low, self.scan_high, 2)

    # -- surfaces
    def grid(self, z: Tensor, y: Tensor, x: Tensor) -> _Grid:
        bent = [axis.expand(len(z), len(y), len(x)) for axis in (z[:, None, None], y[None, :, None], x[None, None, :])]
        coarse, fine = (w.at(z, y, x) for w in self.warp)
        bent = [a + c * self.warp_mm[0] + b * self.warp_mm[1] for a, c, b in zip(bent, coarse, fine)]
        yy, xx = y[None, :, None], x[None, None, :]
        depth = torch.where(yy < 0, self.half_front, self.half_back)
        q = ((xx.abs() / self.half_width) ** self.power + (yy.abs() / depth) ** self.power) ** (1 / self.power)
        radius = (xx**2 + yy**2).sqrt()
        return _Grid(z, y, x, tuple(bent), radius * (1 - 1 / q.clamp_min(1e-3)), torch.atan2(xx.abs(), yy))

    def unbend(self, point: Point) -> Point:
        """The plain point that the warp brings to `point`."""
        p = np.array(point, float)
        for _ in range(4):
            axes = [torch.tensor([v], dtype=torch.float32) for v in p]
            moved = sum(w.at(*axes)[:, 0, 0, 0] * mm for w, mm in zip(self.warp, self.warp_mm))
            p = np.array(point) - moved.double().numpy()
        return tuple(float(v) for v in p)

    def wall_at(self, g: _Grid) -> Tensor:
        """[z y x] distance from the inner wall of the trunk."""
        waist = self.sway.at(g.z, g.y[:1] * 0 - 190, g.x[:1] * 0 - 230)[0] * 2.5
        return g.wall + waist

    def diaphragm(self, g: _Grid, wall: Tensor) -> Tensor:
        """[z y x] height of a voxel over the diaphragm, mm (positive: chest)."""
        zz, yy, xx = g.bent[0], g.plain[1], g.plain[2]
        a, b = 0.62 * self.half_width, 0.95 * self.half_front
        right = self.curve_mm * (((xx - self.dome_x) / a) ** 2 + ((yy - self.dome_y) / b) ** 2)
        left = self.dome_left + self.curve_mm * (((xx + self.dome_x) / a) ** 2 + ((yy - self.dome_y) / b) ** 2)
        lateral = 0.5 + 0.5 * torch.cos(0.92 * g.theta)  # deep behind and beside, shallow in front
        recess = (8 + 48 * lateral) * torch.exp(wall.clamp(max=0) / 10)
        return zz - (self.dome_z - _join(right, left, 22.0)) + recess

    def liver(self, g: _Grid, box: Box, wall: Tensor, chest: Tensor) -> Tensor:
        """Signed distance of the liver in a box; vessels inside count as liver, gallbladder and vena cava do not."""
        p = g.bent_in(box)
        hinge = (self.dome_z - 5, -10.0, -0.75 * self.half_width)  # the liver hangs from the dome
        q = tuple((a - h) / self.scale + h for a, h in zip(p, hinge))
        sdf = _join(self.right.sdf(q), self.tip.sdf(q), self.join_mm + 8)
        sdf = _join(sdf, self.left.sdf(q), self.join_mm)
        sdf = _join(sdf, self.caudate.sdf(q), 8.0) * self.scale
        sdf = _join(sdf, self.cap.sdf(p), 16.0)
        sdf = sdf + self.roughness.at(g.z[box[0]], g.y[box[1]], g.x[box[2]])[0] * self.roughness_mm
        z, y, x = p
        # Fissure of the round ligament: a thin fatty cleft from in front and below.
        bend = self.roughness.at(g.z[box[0]], g.y[box[1]] * 0.5, g.x[box[2]])[0]
        cleft = torch.maximum(
            (x - self.fissure_x - 0.25 * (y + 60) - 3 * bend).abs()
            - self.fissure_mm * (0.4 - (y + 40) / 50 - z / 60).clamp(0.1, 1.6),
            torch.maximum(y + self.half_front - self.fissure_depth, z - 26),
        )
        sdf = _cut(sdf, cleft, 5.0)
        sdf = _cut(sdf, _Ellipsoid(self.hilum, (12, 11, 17)).sdf(p), 8.0)
        for body, _ in self.kidneys[:1]:
            sdf = _cut(sdf, _Ellipsoid(body.centre, tuple(r + 7 for r in body.radii), body.turn).sdf(p), 10.0)
        zz, yy, xx = g.plain
        spine = (
            (xx[..., box[2]] / (self.vertebra[1] + 12)) ** 2
            + ((yy[:, box[1]] - self.spine_y) / (self.vertebra[0] + 14)) ** 2
        ).sqrt()
        sdf = _cut(sdf, (spine - 1) * 26, 8.0)
        for tube in self.cava[1:] + self.aorta:
            sdf = _cut(sdf, tube.sdf(p) - 0.6, 3.0)
        for tube in self.gallbladder:
            sdf = _cut(sdf, tube.sdf(p) - 1.5, 3.0)
        sdf = _cut(sdf, -(wall[box] + 3.0), 6.0)
        return _cut(sdf, -(chest[box] * 0.72 + 2.0), 5.0)

    @property
    def liver_bounds(self):
        s = self.scale
        return (-135 * s, -self.half_front - 6, -self.half_width - 6), (
            self.dome_z + 18,
            self.half_back,
            0.9 * self.half_width,
        )


# ---------------------------------------------------------------------------------------------------- inside the liver


@dataclass
class _Map:
    """The liver's distance on a coarse grid, for the plan: nearest lookup and random points."""

    sdf: np.ndarray
    low: np.ndarray
    step: float

    def __call__(self, point) -> float:
        at = np.rint((np.asarray(point) - self.low) / self.step).astype(int)
        if (at < 0).any() or (at >= self.sdf.shape).any():
            return 99.0
        return float(self.sdf[tuple(at)])

    def point(self, d: _Draw, low: float, high: float):
        """A random point whose distance lies in [low, high], or None."""
        at = np.argwhere((self.sdf >= low) & (self.sdf <= high))
        if not len(at):
            return None
        chosen = at[d.integer(0, len(at) - 1)] + np.array([d.uniform(-0.5, 0.5) for _ in range(3)])
        return self.low + chosen * self.step

    @property
    def deepest(self) -> float:
        return float(self.sdf.min())


def _survey(body: _Body, step: float = 5.0) -> _Map:
    low, high = body.liver_bounds
    axes = [torch.arange(a, b, step) for a, b in zip(low, high)]
    g = body.grid(*axes)
    wall = body.wall_at(g)
    sdf = body.liver(g, (slice(None),) * 3, wall, body.diaphragm(g, wall))
    return _Map(sdf.numpy(), np.array(low), step)


def _fit_volume(body: _Body) -> _Map:
    """Scale the liver until its volume is the planned one (three coarse looks)."""
    for _ in range(4):
        survey = _survey(body, 7.0)
        ml = float((0.5 - torch.from_numpy(survey.sdf) / 7.0).clamp(0, 1).sum()) * 7.0**3 / 1000
        body.scale *= (body.volume_ml / max(ml, 100.0)) ** 0.42
    return _survey(body)


def _tree(
    d: _Draw, survey: _Map, start, direction, radius: float, smallest: float, spread: float, generation: int = 0
) -> list[_Capsule]:
    """Recursive tapering branches that stay inside the liver; Murray's law gives the daughters' radii."""
    segments = []
    stack = [(np.asarray(start, float), np.asarray(direction, float) / np.linalg.norm(direction), radius, generation)]
    while stack and len(segments) < 90:
        p, going, r, level = stack.pop(0)
        length = d.uniform(2.8, 4.4) * r + 8
        best = None
        for _ in range(5):
            way = going + spread * 0.45 * d.direction()
            way /= np.linalg.norm(way)
            end = p + length * way
            depth = survey(end)
            if best is None or depth < best[0]:
                best = (depth, end, way)
            if depth < -7:
                break
        if best[0] > -3.5:
            continue
        _, end, way = best
        share = d.uniform(0.25, 0.5)
        r_big, r_small = r * (1 - share) ** (1 / 2.7), r * share ** (1 / 2.7)
        segments.append(_Capsule(tuple(p), tuple(end), r, r_big, level))
        side = np.cross(way, d.direction())
        side /= max(np.linalg.norm(side), 1e-6)
        if r_big > smallest:
            stack.append((end, way + spread * 0.35 * side, r_big, level + 1))
        if r_small > smallest:
            stack.append((end, way - spread * side, r_small, level + 1))
    return segments


def _vessels(d: _Draw, body: _Body, survey: _Map) -> tuple[list[_Capsule], list[_Capsule]]:
    """Portal and hepatic veins in the bent coordinates' plan (the warp moves both by the same field)."""
    hz, hy, hx = hilum = body.unbend(body.hilum)
    w = body.half_width
    right = (hz + 12, hy + 4, hx - 26)
    left = (hz + 22, hy - 18, hx + 22)
    left_tip = (hz + 24, -0.40 * body.half_front, body.fissure_x + 2)
    portal = [_Capsule(hilum, right, 6.4, 5.4), _Capsule(hilum, left, 5.4, 4.4), _Capsule(left, left_tip, 4.4, 4.0)]
    portal += _tree(d, survey, right, (0.35, -0.75, -0.7), 4.6, 0.9, 0.75, 1)
    portal += _tree(d, survey, right, (-0.45, 0.45, -0.9), 4.4, 0.9, 0.75, 1)
    portal += _tree(d, survey, left_tip, (0.1, -0.3, 1.0), 3.2, 0.9, 0.7, 1)
    portal += _tree(d, survey, left_tip, (-0.2, -0.5, -0.8), 2.6, 0.9, 0.7, 1)
    mouth = np.array(body.unbend((body.dome_z - 20, body.cava[-2].end[1] - 14, body.cava[-2].end[2] - 12)))
    hepatic = []
    for goal, r in (
        ((-10, 18, -0.72 * w), 5.2),
        ((8, -0.50 * body.half_front, -0.34 * w), 4.8),
        ((30, -0.42 * body.half_front, 0.24 * w), 4.0),
    ):
        way = np.array(goal) - mouth
        hepatic += _tree(d, survey, mouth, way, r * d.uniform(0.85, 1.15), 0.95, 0.5, 0)
    return portal, hepatic


# ---------------------------------------------------------------------------------------------------- lesions and look-alikes

KINDS = ("metastasis", "rim-enhancing", "hypervascular", "cyst", "infiltrative")


@dataclass
class _Lesion:
    kind: str
    shape: _Ellipsoid
    reach_mm: float  # radius of the ball of the planned volume
    outline: _Smooth
    lobes_mm: float
    contrast_hu: float
    rim_hu: float
    rim_mm: float
    soft_mm: float  # 0: as sharp as the scanner
    core_hu: float
    at_vessel: bool
    buds: tuple[_Ellipsoid, ...] = ()
    mottle_hu: float = 2.5

    def bounds(self):
        return tuple(c - 1.75 * self.reach_mm - 4 for c in self.shape.centre), tuple(
            c + 1.75 * self.reach_mm + 4 for c in self.shape.centre
        )

    def sdf(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """[z y x] on the product of three axes (mm)."""
        shape = (len(z), len(y), len(x))
        p = tuple(a.expand(shape) for a in (z[:, None, None], y[None, :, None], x[None, None, :]))
        sdf = self.shape.sdf(p)
        for bud in self.buds:
            sdf = _join(sdf, bud.sdf(p), 0.35 * self.reach_mm)
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


def _gap(point, tubes: list[_Capsule]) -> float:
    """mm from a point to the nearest vessel wall."""
    if not tubes:
        return 99.0
    a, b = np.array([t.start for t in tubes]), np.array([t.end for t in tubes])
    axis = b - a
    t = (((point - a) * axis).sum(1) / np.maximum((axis**2).sum(1), 1e-6)).clip(0, 1)
    r = np.array([t_.radius for t_ in tubes]) * (1 - t) + np.array([t_.radius_end for t_ in tubes]) * t
    return float((np.linalg.norm(point - a - t[:, None] * axis, axis=1) - r).min())


def _lesions(d: _Draw, body: _Body, survey: _Map, veins: list[_Capsule]) -> list[_Lesion]:
    count = d.pick(range(9), (0.09, 0.17, 0.18, 0.16, 0.13, 0.10, 0.08, 0.05, 0.04))
    main = d.pick(KINDS, (0.46, 0.22, 0.12, 0.08, 0.12))
    base = d.uniform(0.75, 1.3)
    big = [v for v in veins if v.radius > 1.8]
    lesions: list[_Lesion] = []
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
            _lesion(d, body, kind, tuple(float(v) for v in point), r, base, beside or _gap(point, big) < r + 2)
        )
    return lesions


def _form(d: _Draw, kind: str, centre: Point, r: float) -> tuple[_Ellipsoid, _Smooth, float]:
    """An ellipsoid of the volume of a ball of radius `r`, the field that makes it lobed, and by how many mm."""
    stretch = np.exp([d.normal(0, 0.13) for _ in range(3)])
    stretch /= stretch.prod() ** (1 / 3)
    if kind == "cyst":
        stretch = stretch**0.4
    turn = _turn(d.uniform(0, 180), d.uniform(-60, 60), d.uniform(0, 180))
    shape = _Ellipsoid(centre, tuple(float(r * s) for s in stretch), turn)
    reach = 1.75 * r + 4
    cell = max(3.0, 0.75 * r)
    outline = d.smooth(cell, tuple(c - reach - cell for c in centre), tuple(c + reach + cell for c in centre))
    lobes = {"cyst": 0.03, "infiltrative": 0.16}.get(kind, d.uniform(0.04, 0.13)) * r
    return shape, outline, lobes


def _budding(d: _Draw, shape: _Ellipsoid, r: float) -> tuple[_Ellipsoid, tuple[_Ellipsoid, ...]]:
    """The same, a little smaller, with a second lobe at its side."""
    away = d.direction()
    bud = _Ellipsoid(tuple(float(c + 0.75 * r * a) for c, a in zip(shape.centre, away)), (0.55 * r,) * 3)
    return _Ellipsoid(shape.centre, tuple(0.92 * v for v in shape.radii), shape.turn), (bud,)


def _lesion(d: _Draw, body: _Body, kind: str, centre: Point, r: float, base: float, at_vessel: bool) -> _Lesion:
    arterial = body.phase == "arterial"
    shape, outline, lobes = _form(d, kind, centre, r)
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
        shape, buds = _budding(d, shape, r)
    return _Lesion(kind, shape, r, outline, lobes, contrast, rim_hu, rim_mm, soft, core, at_vessel, buds)


@dataclass
class _Decoy:
    """A look-alike: a region of the liver with another HU and no tumor."""

    kind: str
    hu: float
    shapes: tuple  # ellipsoids (focal fat), capsules (vessel loop)
    cone: tuple | None = None  # apex, axis, half angle: perfusion wedges
    edge_mm: float = 1.5
    band: tuple | None = None  # origin (y, x), angle, width, z, half height: beam hardening


def _clear(point, reach: float, lesions: list[_Lesion]) -> bool:
    return all(np.linalg.norm(np.asarray(point) - o.shape.centre) > reach + 1.4 * o.reach_mm + 4 for o in lesions)


def _decoys(d: _Draw, body: _Body, survey: _Map, lesions: list[_Lesion]) -> list[_Decoy]:
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
                turn = _turn(d.uniform(0, 90), d.uniform(-20, 20), 0)
                wedge = _Ellipsoid(tuple(centre), (1.1 * r, 0.95 * r, 0.5 * r), turn)
                found.append(
                    _Decoy(
                        "focal fat",
                        -d.uniform(22, 48) * (0.6 if body.fatty else 1),
                        (wedge,),
                        edge_mm=d.uniform(1.5, 4),
                    )
                )
                break
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
                    _Decoy(
                        "perfusion",
                        hu,
                        (),
                        cone=(inner, axis / length, length, math.radians(d.uniform(14, 30))),
                        edge_mm=d.uniform(1.5, 4),
                    )
                )
                break
    if d.chance(0.3):
        for _ in range(8):
            centre = survey.point(d, -99, -12)
            if centre is None or not _clear(centre, 12, lesions):
                continue
            r, turn, tube = (
                d.uniform(4, 7),
                _turn(d.uniform(0, 90), d.uniform(-40, 40), d.uniform(0, 90)),
                d.uniform(1.6, 3.0),
            )
            ring = [
                centre + r * (math.cos(a) * turn[1] + math.sin(a) * turn[2]) + 2.4 * a * turn[0] * r / 6
                for a in np.linspace(0, 5.4, 8)
            ]
            found.append(
                _Decoy(
                    "vessel loop",
                    body.hu["portal"] - body.hu["liver"] + d.uniform(0, 20),
                    tuple(_path([tuple(q) for q in ring], [tube] * 8)),
                )
            )
            break
    for _ in range(d.pick((0, 1, 2), (0.4, 0.4, 0.2))):
        angle = d.uniform(180, 255)  # degrees from +x towards +y: from the spine to the right and forwards
        if d.chance(0.5):
            origin = (body.spine_y, 0.0)
        else:
            origin = (d.uniform(-0.5, 0.8) * body.half_back, -body.half_width)
            angle = d.uniform(-25, 25)
        found.append(
            _Decoy(
                "beam hardening",
                -d.uniform(14, 30),
                (),
                band=(origin, math.radians(angle), d.uniform(4, 8), d.uniform(-40, 60), d.uniform(5, 11)),
            )
        )
    return found


# ---------------------------------------------------------------------------------------------------- painting


@dataclass
class _Slab:
    """Some sub-slices being painted."""

    grid: _Grid
    hu: Tensor
    organ: Tensor
    width: float  # mm over which a surface is spread
    mottle: Tensor

    def paint(
        self, box: Box | None, sdf: Tensor, hu, organ: str | None = None, width: float | None = None, share: float = 1.0
    ) -> Tensor | None:
        if box is None:
            return None
        occupancy = (0.5 - sdf / (width or self.width)).clamp_(0, 1)
        if share != 1.0:
            occupancy = occupancy * share
        view = self.hu[box]
        view.add_(occupancy * (hu - view))
        if organ is not None:
            self.organ[box].masked_fill_(occupancy > 0.5, _ORGAN[organ])
        return occupancy

    def shape(self, shape, hu, organ: str | None = None, grow: float = 0.0) -> None:
        """Paint an ellipsoid or a capsule of the soft organs."""
        box = self.grid.box(shape.bounds, _BEND_PAD_MM + max(grow, 0))
        if box is not None:
            self.paint(box, shape.sdf(self.grid.bent_in(box)) - grow, hu, organ)


def _paint_wall(slab: _Slab, body: _Body, wall: Tensor) -> None:
    g, hu = slab.grid, body.hu
    z, y, x = g.plain
    theta = g.theta
    back, front = torch.exp(-((theta / 0.58) ** 2)), torch.exp(-(((math.pi - theta) / 0.5) ** 2))
    muscle = body.muscle_mm * (1 - 0.3 * front) + 22 * body.frame * back
    fat = body.fat_mm * (0.72 + 0.35 * body.fat_back * torch.exp(-(((theta - 0.8) / 0.7) ** 2)) + 0.25 * front)
    furrow = 7 * torch.exp(-((x / 9) ** 2)) * (y > 0)
    outer = wall - (muscle + fat - furrow)
    everything = (slice(None),) * 3
    table = (
        y - (body.half_back + body.muscle_mm + 22 * body.frame + 1.1 * body.fat_mm + 16) + 0.0011 * x**2
    ).abs() - 1.2
    slab.paint(everything, table.expand_as(slab.hu), -110.0, "table")
    slab.paint(everything, outer, 5.0, "skin")
    slab.paint(everything, outer + 2.2, hu["fat"] + 5 * slab.mottle, "fat")
    sheet = wall - muscle
    slab.paint(everything, sheet + 1.5 * slab.mottle, hu["muscle"] + 6 * slab.mottle, "muscle")
    # Fat planes between the muscles, thin, so that they come out grey.
    plane = (sheet + 0.5 * muscle + 0.8 * slab.mottle).abs() - 0.5
    slab.paint(everything, torch.maximum(plane, 0.6 - theta.expand_as(plane)), hu["fat"], share=0.5)
    midline = torch.maximum(x.abs() - 1.2, torch.maximum(y - 0 * x, sheet))
    slab.paint(everything, midline, hu["fat"], share=0.6)
    slab.paint(everything, wall + 1.5, hu["fat"] + 7 * slab.mottle, "fat")


def _paint_ribs(slab: _Slab, body: _Body, wall: Tensor) -> None:
    g = slab.grid
    zz = g.z[:, None, None]
    level = (zz + body.rib_drop * g.theta / math.pi - body.rib_base) / body.rib_pitch
    number = level.round()
    end = (0.40 + 0.13 * number).clamp(max=0.80) * math.pi
    off_z = (level - number) * body.rib_pitch * 0.93
    cross = (((wall - 5.0) / 4.2) ** 2 + (off_z / 6.2) ** 2).sqrt() * 5.2 - 5.2
    start = (0.30 - g.theta) * 90
    rib = torch.maximum(torch.maximum(cross, (g.theta - end) * 90), torch.maximum(start, -number * 20 - 5))
    everything = (slice(None),) * 3
    cartilage = torch.maximum(
        torch.maximum(cross, (end - g.theta) * 90), torch.maximum((g.theta - 0.95 * math.pi) * 90, (2.5 - number) * 20)
    )
    slab.paint(everything, cartilage, 105.0, "cartilage")
    slab.paint(everything, rib, 520.0, "bone")
    slab.paint(everything, rib + 2.0, 220.0 + 30 * slab.mottle)


def _paint_spine(slab: _Slab, body: _Body) -> None:
    g = slab.grid
    depth, half = body.vertebra
    box = g.box(((-1e3, body.spine_y - depth - 12, -48), (1e3, body.canal_y + 48, 48)), 4)
    z, y, x = g.z[box[0]][:, None, None], g.y[box[1]][None, :, None], g.x[box[2]][None, None, :]
    mottle = slab.mottle[box]
    pitch = body.vertebra_pitch
    off = (z - body.vertebra_phase + pitch / 2) % pitch - pitch / 2  # 0 in the middle of a vertebra
    radial = (((y - body.spine_y) / depth) ** 2 + (x / half) ** 2).sqrt()
    column = (radial - 1) * (0.5 * (depth + half)) + 1.5 * torch.cos(off * (2 * math.pi / pitch))
    disc = off.abs() - (pitch / 2 - 4.0)  # positive inside the disc
    canal = (((y - body.canal_y) / 8.5) ** 2 + (x / 11) ** 2).sqrt() * 9 - 9
    arch = torch.maximum((canal - 3.5).abs() - 3.0, off.abs() - 0.36 * pitch)
    spinous = torch.maximum((x.abs() - 3.0), (y - (body.canal_y + 24) - 0.2 * off).abs() - 15)
    spinous = torch.maximum(spinous, (off + 0.35 * (y - body.canal_y)).abs() - 9)
    wings = torch.maximum(((y - body.canal_y + 2 - 0.15 * x.abs()) ** 2 + (off - 2) ** 2).sqrt() - 4.2, x.abs() - 37)
    facets = ((x.abs() - 15) ** 2 + (y - body.canal_y - 9) ** 2 + (0.55 * off.abs() - 7) ** 2).sqrt() - 6.5
    slab.paint(box, _join(_join(arch, facets, 3), _join(spinous, wings, 2), 4), 460 + 40 * mottle, "bone")
    slab.paint(box, _join(arch, spinous, 4) + 2.2, body.marrow_hu + 60.0)
    slab.paint(box, torch.maximum(column, disc), 430 + 40 * mottle, "bone")
    slab.paint(box, torch.maximum(column, disc) + 2.4, body.marrow_hu + 25 * mottle, "bone")
    slab.paint(box, torch.maximum(column, -disc), 85.0, "cartilage")
    slab.paint(box, canal + 0.0 * z, body.hu["fat"] * 0.2, "muscle")
    slab.paint(box, canal + 3 + 0.0 * z, 32.0, "muscle")


def _paint_mesentery(slab: _Slab, body: _Body, wall: Tensor, chest: Tensor, tubes: Tensor) -> None:
    """Small vessels and strands in the fat of the belly."""
    inside = torch.maximum(wall + 9, chest + 9)
    slab.paint(
        (slice(None),) * 3,
        torch.maximum(tubes - 0.6, inside),
        0.5 * (body.hu["cava"] + body.hu["muscle"]),
        share=0.75,
        width=2.4,
    )


def _paint_chest(slab: _Slab, body: _Body, wall: Tensor, chest: Tensor, tubes: Tensor) -> None:
    g = slab.grid
    x, y = g.x[None, None, :], g.y[None, :, None]
    if float(g.z[-1]) < body.dome_z - 150:
        return
    everything = (slice(None),) * 3
    middle = (((x - 6) / 30) ** 2 + ((y - (body.spine_y - 34)) / 40) ** 2).sqrt() * 33 - 33
    slab.paint(everything, torch.maximum(wall + 0.5, (chest - 1.5).abs() - 1.8), body.hu["muscle"], "muscle")
    lung = torch.maximum(wall + 2.5, 2.2 - chest * 0.8)
    lung = _cut(lung, middle, 8.0)
    slab.paint(everything, lung, -860 + 25 * slab.mottle, "lung")
    slab.paint(everything, torch.maximum(tubes - 0.9, lung + 2), 40.0, width=2.4)
    box = g.box(body.heart.bounds, _BEND_PAD_MM)
    if box is not None:
        sdf = torch.maximum(body.heart.sdf(g.bent_in(box)), 2.0 - chest[box] * 0.8)
        slab.paint(box, sdf - 4, body.hu["fat"])
        slab.paint(box, sdf, 95.0 if body.phase != "arterial" else 120.0, "heart")
        p = g.bent_in(box)
        right = body.heart.centre[2] - 6 - 0.35 * (p[1] - body.heart.centre[1])
        septum = (p[2] - right).abs() - 0.45 * body.heart_wall
        blood = torch.where(p[2] < right, body.hu["portal"] * 0.4 + body.hu["aorta"] * 0.6, body.hu["aorta"] * 1.02)
        slab.paint(box, torch.maximum(sdf + torch.where(p[2] < right, 4.0, body.heart_wall), -septum), blood, "heart")


def _paint_retroperitoneum(slab: _Slab, body: _Body) -> None:
    g, hu = slab.grid, body.hu
    z, y, x = g.plain
    if float(g.z[0]) < 20:
        box = g.box(((-1e3, body.spine_y - 45, -85), (20, body.spine_y + 45, 85)), 0)
        z, y, x = g.z[box[0]][:, None, None], g.y[box[1]][None, :, None], g.x[box[2]][None, None, :]
        r = (8 + (10 - z) * 0.16).clamp(2, 27)
        psoas = ((x.abs() - body.vertebra[1] - 0.55 * r) ** 2 + (y - body.spine_y - 2) ** 2).sqrt() - r
        slab.paint(box, psoas + slab.mottle[box], hu["muscle"], "muscle")
        lumborum = (((x.abs() - 56) / 20) ** 2 + ((y - body.spine_y - 16 + 0.12 * x.abs()) / 9) ** 2).sqrt() * 11 - 11
        slab.paint(box, torch.maximum(lumborum, z + 25), hu["muscle"], "muscle")
    if float(g.z[-1]) > -45:
        front = body.spine_y - body.vertebra[0]
        box = g.box(((-45, front - 30, -40), (1e3, front + 20, 40)), 0)
        z, y, x = g.z[box[0]][:, None, None], g.y[box[1]][None, :, None], g.x[box[2]][None, None, :]
        crus = (((x.abs() - 17) / 4.5) ** 2 + ((y - front + 4) / 14) ** 2).sqrt() * 5.5 - 5.5
        slab.paint(box, torch.maximum(crus, -45 - z), hu["muscle"], "muscle")
    for kidney, sinus in body.kidneys:
        box = g.box(kidney.bounds, _BEND_PAD_MM)
        if box is None:
            continue
        p = g.bent_in(box)
        sdf = kidney.sdf(p) + 1.2 * slab.mottle[box]
        hollow = sinus.sdf(p)
        sdf = _cut(sdf, hollow + 2, 4.0)
        slab.paint(box, sdf, hu["cortex"] + 4 * slab.mottle[box], "kidney")
        pyramids = torch.maximum(sdf + 6.0, 0.9 - 2.2 * (slab.mottle[box] + 0.6))
        slab.paint(box, pyramids, hu["medulla"])
        slab.paint(box, torch.maximum(hollow, kidney.sdf(p) + 4), hu["fat"])
        slab.paint(box, hollow + 5.5, hu["pelvis"])
    for tube in body.aorta:
        slab.shape(tube, hu["aorta"], "aorta")
    for tube in body.renal + body.mesenteric + body.celiac:
        slab.shape(tube, 0.93 * hu["aorta"] if body.phase == "arterial" else 0.5 * (hu["aorta"] + hu["cava"]), "aorta")


def _paint_gut(slab: _Slab, body: _Body, wall: Tensor, chest: Tensor) -> None:
    g, hu = slab.grid, body.hu
    y = g.y[None, :, None]

    def tubes(path, wall_mm: float, wall_hu: float, organ: str, fill, ripple: float):
        seen = []
        for tube in path:
            box = g.box(tube.bounds, _BEND_PAD_MM + 3)
            if box is None:
                continue
            sdf = tube.sdf(g.bent_in(box)) + ripple * slab.mottle[box]
            sdf = torch.maximum(sdf, torch.maximum(wall[box] + 3, 3 + chest[box] * 0.8))
            slab.paint(box, sdf, wall_hu, organ)
            seen.append((box, sdf))
        for box, sdf in seen:
            slab.paint(box, sdf + wall_mm, fill(box))

    def level(box, at: float, content: float, gas: float = -960.0, lumps: float = 8.0):
        liquid = (0.5 + (y[:, box[1]] - at) / slab.width).clamp(0, 1)
        return gas + liquid * (content + lumps * slab.mottle[box] - gas)

    for path, content, gassy in body.loops:
        top = min(min(t.start[1], t.end[1]) for t in path) + (4 if gassy else -40)
        tubes(
            path,
            2.6,
            hu["bowel"] + (25 if body.phase == "arterial" else 10),
            "bowel",
            lambda box, top=top, content=content: level(box, top, content),
            1.5,
        )
    for path in body.colon:

        def stool(box):
            lumps = slab.mottle[box]
            return (
                torch.where(lumps > 0.55, -880.0, torch.where(lumps > 0.0, -60 + 60 * lumps, 35.0))
                if body.belly < 0.75
                else level(box, -20.0, 40.0)
            )

        tubes(path, 2.8, hu["bowel"], "bowel", stool, 3.2)
    for tube in body.pancreas:
        box = g.box(tube.bounds, _BEND_PAD_MM + 3)
        if box is not None:
            slab.paint(
                box,
                tube.sdf(g.bent_in(box)) + 2.6 * slab.mottle[box],
                hu["liver"] * 0.75 + 22 + 4 * slab.mottle[box],
                "pancreas",
            )
    tubes(body.oesophagus, 3.5, hu["muscle"], "stomach", lambda box: 30.0, 0.0)
    tubes(
        body.stomach,
        4.0,
        hu["bowel"] + 20,
        "stomach",
        lambda box: level(box, body.stomach_level, body.stomach_hu, lumps=14.0),
        1.2,
    )
    box = g.box(body.spleen.bounds, _BEND_PAD_MM + 3)
    if box is not None:
        p = g.bent_in(box)
        sdf = _cut(body.spleen.sdf(p), body.spleen_hilum.sdf(p), 12.0)
        sdf = torch.maximum(sdf, torch.maximum(wall[box] + 4, 3 + chest[box] * 0.8))
        zebra = 26.0 if body.phase == "arterial" else 2.5
        slab.paint(box, sdf, hu["spleen"] + zebra * torch.sin(1.6 * slab.mottle[box] + 0.10 * sdf), "spleen")


def _tube_field(slab: _Slab, tubes: list[_Capsule], box: Box, like: Tensor) -> Tensor:
    """Occupancy of all tubes in a box of the plain grid."""
    g = slab.grid
    sub = _Grid(g.z[box[0]], g.y[box[1]], g.x[box[2]], g.bent, g.wall, g.theta)
    field = torch.zeros_like(like)
    for tube in tubes:
        inner = sub.box(tube.bounds, slab.width)
        if inner is None:
            continue
        p = (sub.z[inner[0], None, None], sub.y[None, inner[1], None], sub.x[None, None, inner[2]])
        view = field[inner]
        torch.maximum(view, (0.5 - tube.sdf(p) / slab.width).clamp_(0, 1), out=view)
    return field


@dataclass
class _Plan:
    body: _Body
    portal: list[_Capsule]
    hepatic: list[_Capsule]
    lesions: list[_Lesion]
    decoys: list[_Decoy]
    vein_decoy: int  # row + 1 of the dark hepatic veins among the look-alikes, 0 when they are bright
    bladder_decoy: int


def _decoy_effect(decoy: _Decoy, slab: _Slab, box: Box) -> tuple[Tensor, Tensor] | None:
    """HU change [box] and where it counts as the look-alike."""
    g = slab.grid
    p = (g.z[box[0], None, None], g.y[None, box[1], None], g.x[None, None, box[2]])
    mottle = slab.mottle[box]
    if decoy.cone is not None:
        apex, axis, length, half = decoy.cone
        rel = [a - float(c) for a, c in zip(p, apex)]
        along = rel[0] * float(axis[0]) + rel[1] * float(axis[1]) + rel[2] * float(axis[2])
        off = (rel[0] ** 2 + rel[1] ** 2 + rel[2] ** 2 - along**2).clamp_min(0).sqrt()
        sdf = (off - along.clamp_min(0) * math.tan(half)) * math.cos(half) + mottle
        sdf = torch.maximum(sdf, along - length - 12)
    else:
        sdf = None
        for shape in decoy.shapes:
            if g.box(shape.bounds, 8) is None:
                continue
            one = shape.sdf(p) + (1.2 * mottle if decoy.kind == "focal fat" else 0.0)
            sdf = one if sdf is None else torch.minimum(sdf, one)
        if sdf is None:
            return None
    occupancy = (0.5 - sdf / max(decoy.edge_mm, slab.width)).clamp(0, 1)
    return decoy.hu * occupancy, occupancy > 0.5


def _paint_liver(slab: _Slab, plan: _Plan, wall: Tensor, chest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Liver, vessels, lesions, look-alikes; returns occupancies [z y x] of liver and lesions, lesion and look-alike numbers."""
    g, body = slab.grid, plan.body
    liver_share = torch.zeros_like(slab.hu)
    lesion_share = torch.zeros_like(slab.hu)
    instance, decoy_map = torch.zeros_like(slab.organ), torch.zeros_like(slab.organ)
    box = g.box(body.liver_bounds, 14)
    result = liver_share, lesion_share, instance, decoy_map
    for tube in body.portal_trunk:
        slab.shape(tube, body.hu["portal"], "portal vein")
    for index, tube in enumerate(body.cava):
        above = index >= 2
        slab.shape(
            tube,
            body.hu["cava"] if not above else 0.5 * (body.hu["cava"] + max(body.hu["hepatic"], body.hu["cava"])),
            "vena cava",
        )
    if box is None:
        return result
    bladder = None
    for tube in body.gallbladder:
        inner = g.box(tube.bounds, _BEND_PAD_MM)
        if inner is not None:
            sdf = tube.sdf(g.bent_in(inner))
            slab.paint(inner, sdf - 1.2, 55.0)
            slab.paint(inner, sdf, 9.0 + 3 * slab.mottle[inner], "gallbladder")
            bladder = True
    sdf = body.liver(g, box, wall, chest)
    if float(sdf.min()) > 20:
        return result
    share = (0.5 - sdf / slab.width).clamp(0, 1)
    liver_share[box] = share
    base = body.hu["liver"]
    tissue = base + body.liver_texture_hu * body.liver_texture.at(g.z[box[0]], g.y[box[1]], g.x[box[2]])[0]
    tissue += 2.5 * body.liver_drift.at(g.z[box[0]], g.y[box[1]], g.x[box[2]])[0]
    # How far the nearest lesion is: look-alikes fade before they touch one.
    clear = torch.full_like(sdf, 30.0)
    seen = []
    for number, lesion in enumerate(plan.lesions, 1):
        at = g.box(lesion.bounds(), 6)
        if at is None or not all(a.start < b.stop and b.start < a.stop for a, b in zip(at, box)):
            continue
        at = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(at, box))
        local = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(at, box))
        distance = torch.maximum(lesion.sdf(g.z[at[0]], g.y[at[1]], g.x[at[2]]), sdf[local])
        seen.append((number, lesion, at, local, distance))
        clear[local] = torch.minimum(clear[local], distance)
    fade = (clear / 5 - 0.4).clamp(0, 1)
    inside = (sdf < 0) & (clear > 2.0)
    marks = decoy_map[box]
    for row, decoy in enumerate(plan.decoys, 1):
        if decoy.kind in ("focal fat", "perfusion") and (effect := _decoy_effect(decoy, slab, box)) is not None:
            tissue += effect[0] * fade
            marks.masked_fill_(effect[1] & inside & (fade > 0.5), row)
    for name, tubes in (("hepatic", plan.hepatic), ("portal", plan.portal)):
        field = _tube_field(slab, tubes, box, tissue) * fade.clamp_min(0.15 if name == "portal" else 0.0)
        tissue += field * (body.hu[name] - tissue)
        if name == "hepatic" and plan.vein_decoy:
            marks.masked_fill_((field > 0.5) & inside, plan.vein_decoy)
    for row, decoy in enumerate(plan.decoys, 1):
        if decoy.kind == "vessel loop" and (effect := _decoy_effect(decoy, slab, box)) is not None:
            tissue += (effect[0] / decoy.hu) * fade * (base + decoy.hu - tissue)
            marks.masked_fill_(effect[1] & inside & (fade > 0.5), row)
    for number, lesion, at, local, distance in seen:
        _paint_lesion(slab, lesion, number, at, local, distance, tissue, base, lesion_share, instance)
    view = slab.hu[box]
    view.add_(share * (tissue - view))
    slab.organ[box].masked_fill_(share > 0.5, _ORGAN["liver"])
    if bladder and plan.bladder_decoy:
        marks.masked_fill_((slab.organ[box] == _ORGAN["gallbladder"]) & (sdf < 8), plan.bladder_decoy)
    for row, decoy in enumerate(plan.decoys, 1):
        if decoy.band is None:
            continue
        (y0, x0), angle, width, z0, half = decoy.band
        z, y, x = g.plain
        along = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
        off = -(x - x0) * math.sin(angle) + (y - y0) * math.cos(angle)
        plane = torch.exp(-((off / width) ** 2)) * (along > 0) - 0.5 * torch.exp(
            -(((off - 2 * width) / width) ** 2)
        ) * (along > 0)
        delta = decoy.hu * plane * torch.exp(-(((z - z0) / half) ** 2))
        if float(delta.abs().max()) < 1:
            continue
        delta = torch.where(slab.organ == _ORGAN["outside"], 0.0, delta)
        delta[box] *= fade
        slab.hu += delta
        marks.masked_fill_((delta[box] < 0.5 * decoy.hu) & inside & (marks == 0), row)
    return result


def _paint_lesion(slab, lesion, number, at, local, distance, tissue, base, lesion_share, instance) -> None:
    mottle = slab.mottle[at]
    view = tissue[local]
    view.add_(lesion.cover(distance, slab.width, mottle) * (lesion.hu(distance, base, mottle) - view))
    share = (0.5 - distance / slab.width).clamp(0, 1)
    more = share > lesion_share[at]
    lesion_share[at] = torch.maximum(lesion_share[at], share)
    instance[at].masked_fill_(more, number)


# ---------------------------------------------------------------------------------------------------- the scanner


def _blur_weights(n: int, sigma_px: float, device: torch.device) -> Tensor:
    at = torch.arange(n, device=device, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((at[:, None] - at) / sigma_px) ** 2)
    return weight / weight.sum(1, keepdim=True)


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur in the plane of `[z y x]`, as two matrix products (faster than a convolution of one channel)."""
    down, across = (_blur_weights(n, sigma_px, image.device) for n in image.shape[1:])
    return (down @ image) @ across.T


def _noise(shape, spacing: Spacing, kernel_mm: float, overlap_mm: float, generator: torch.Generator, device) -> Tensor:
    """[z y x] of unit sd: band-pass in the plane (a ramp filter's spectrum under a soft kernel), alike in neighbouring slices.

    Coarse pixels average over much of the band, which leaves less of the dip at low frequencies (*empirical*: real scans
    at 0.7 to 0.9 mm and the same at 2.6 mm, docs/log.md).
    """
    white = torch.randn(shape, generator=generator, device=device)
    fine, coarse = max(0.58, kernel_mm / spacing[1]), max(1.5, 1.9 / spacing[1])
    dip = min(0.85, max(0.45, 0.85 - 0.25 * (spacing[1] - 0.9)))
    for a in range(0, shape[0], 32):
        part = white[a : a + 32]
        white[a : a + 32] = _blur(part, fine) - dip * _blur(part, coarse)
    alike = math.exp(-spacing[0] / overlap_mm)
    for k in range(1, shape[0]):
        white[k].mul_(math.sqrt(1 - alike**2)).add_(white[k - 1], alpha=alike)
    return white / white.std()


def _plan(seed: int) -> tuple[_Plan, _Map, _Draw]:
    d = _Draw(seed)
    body = _Body(d)
    survey = _fit_volume(body)
    portal, hepatic = _vessels(d, body, survey)
    lesions = _lesions(d, body, survey, portal + hepatic)
    decoys = _decoys(d, body, survey, lesions)
    vein = bladder = 0
    if body.hu["hepatic"] < body.hu["liver"] - 6:
        decoys.append(_Decoy("dark vessel", body.hu["hepatic"] - body.hu["liver"], ()))
        vein = len(decoys)
    if body.gallbladder:
        decoys.append(_Decoy("gallbladder", 9 - body.hu["liver"], ()))
        bladder = len(decoys)
    return _Plan(body, portal, hepatic, lesions, decoys, vein, bladder), survey, d


def generate(seed: int, preset: str = "demo", device: torch.device | str = "cpu") -> Phantom:
    """The case of a seed: CT (HU, int16), labels (1 liver, 2 tumor), the truth about its lesions and look-alikes.

    The same seed, preset and kind of device give the same bits. Raises Refused for an unknown preset or a negative seed.
    """
    if preset not in PRESETS:
        raise Refused("phantom preset", repr(preset), "one of " + ", ".join(PRESETS))
    if seed < 0:
        raise Refused("phantom seed", str(seed), "a whole number from 0")
    scan, name = PRESETS[preset], f"phantom-{seed:04d}"
    plan, survey, d = _plan(seed)
    body = plan.body
    z, y, x, spacing = _axes(scan, body, survey, d)
    shape = (len(z), len(y), len(x))
    noise_hu = scan.noise_hu[0] * (scan.noise_hu[1] / scan.noise_hu[0]) ** d.uniform(0, 1)
    sharpness = d.uniform(0.55, 0.8)  # sd of the reconstruction kernel, mm
    kernel_mm = d.uniform(0.42, 0.62)  # noise grain
    overlap_mm = d.uniform(0.9, 2.6)  # how far slices share their noise
    y, x = y.to(device), x.to(device)

    subs = max(1, round(spacing[0] / scan.sub_slice_mm))
    step = max(1, 400_000 // (subs * shape[1] * shape[2]))
    hu = torch.empty(shape, device=device)
    organs, instances, decoys = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(3))
    liver, tumor = (torch.empty(shape, device=device) for _ in range(2))
    for a in range(0, shape[0], step):
        b = min(a + step, shape[0])
        offsets = ((torch.arange(subs) + 0.5) / subs - 0.5) * spacing[0]
        fine = (z[a:b, None] + offsets).flatten().to(device)
        parts = _paint_slices(plan, fine, y, x, math.hypot(spacing[1], spacing[0] / subs) / math.sqrt(2))
        n = (b - a, subs, *shape[1:])
        hu[a:b], liver[a:b], tumor[a:b] = (parts[k].view(n).mean(1) for k in ("hu", "liver", "tumor"))
        organs[a:b], instances[a:b], decoys[a:b] = (
            parts[k].view(n)[:, subs // 2] if k == "organ" else parts[k].view(n).amax(1)
            for k in ("organ", "instance", "decoy")
        )
    for a in range(0, shape[0], 32):
        hu[a : a + 32] = _blur(hu[a : a + 32], max(0.3, sharpness / spacing[1]))

    labels, lesions = _truth(plan, liver, tumor, instances, hu, (z, y, x), spacing)
    del liver, tumor
    decoys[(labels == 2) | ((labels == 0) & (organs != _ORGAN["gallbladder"]))] = 0
    instances[labels != 2] = 0
    organs[(organs == _ORGAN["liver"]) & (labels == 0)] = _ORGAN["fat"]
    organs[labels > 0] = _ORGAN["liver"]
    lookalikes = _lookalike_table(plan, decoys, (z, y, x), spacing)

    noise = _noise(shape, spacing, kernel_mm, overlap_mm, torch.Generator(device).manual_seed(seed + 1_000_003), device)
    distance = (x[None, :] / body.half_width) ** 2 + (y[:, None] / body.half_front) ** 2
    noise *= noise_hu * (0.80 + 0.34 * torch.exp(-1.2 * distance)).clamp_min(0.5)
    hu += noise
    ct = hu.round_().clamp_(-1024, 3071).to(torch.int16)
    affine = canonical_affine(spacing)
    return Phantom(
        Volume(ct, spacing, affine, name),
        Volume(labels, spacing, affine, name),
        lesions,
        lookalikes,
        organs,
        instances,
        decoys,
        body.phase,
        name,
    )


def _axes(scan: Preset, body: _Body, survey: _Map, d: _Draw) -> tuple[Tensor, Tensor, Tensor, Spacing]:
    """Voxel centres in mm along z, y, x and the spacing: a field of view that holds the patient and the whole liver."""
    muscle, back = body.muscle_mm, body.muscle_mm + 22 * body.frame
    width = 2 * (body.half_width + muscle + body.fat_mm * 1.1)
    pixel = min(max(width * d.uniform(1.04, 1.16) / scan.matrix, scan.pixel_mm[0]), scan.pixel_mm[1])
    thick = d.uniform(*scan.slice_mm)
    inside = np.argwhere((survey.sdf < 0).any(axis=(1, 2)))[:, 0] * survey.step + survey.low[0]
    low, high = inside[0] - d.uniform(22, 46), inside[-1] + d.uniform(14, 32)
    count = min(max(math.ceil((high - low) / thick), scan.slices[0]), scan.slices[1])
    middle = (low + high) / 2
    z = middle + (torch.arange(count) - (count - 1) / 2) * thick
    across = (torch.arange(scan.matrix) - (scan.matrix - 1) / 2) * pixel
    centre_y = (body.half_back + back + 1.1 * body.fat_mm - body.half_front - muscle - body.fat_mm) / 2
    return z.float(), (across + centre_y).float(), across.float() + d.uniform(-6, 6), (thick, pixel, pixel)


def _paint_slices(plan: _Plan, z: Tensor, y: Tensor, x: Tensor, width: float) -> dict[str, Tensor]:
    body = plan.body
    g = body.grid(z, y, x)
    shape = (len(z), len(y), len(x))
    slab = _Slab(
        g,
        torch.full(shape, -1000.0, device=z.device),
        torch.zeros(shape, dtype=torch.uint8, device=z.device),
        width,
        body.mottle.at(z, y, x)[0],
    )
    wall = body.wall_at(g)
    chest = body.diaphragm(g, wall)
    _paint_wall(slab, body, wall)
    _paint_ribs(slab, body, wall)
    n = body.tubules.at(z, y, x)
    tubes = ((n[0] ** 2 + n[1] ** 2).sqrt() - 0.15) * 12  # thin winding tubes where two smooth fields vanish
    _paint_mesentery(slab, body, wall, chest, tubes)
    _paint_chest(slab, body, wall, chest, tubes)
    _paint_retroperitoneum(slab, body)
    _paint_gut(slab, body, wall, chest)
    _paint_spine(slab, body)
    liver, tumor, instance, decoy = _paint_liver(slab, plan, wall, chest)
    return {"hu": slab.hu, "organ": slab.organ, "liver": liver, "tumor": tumor, "instance": instance, "decoy": decoy}


def _truth(
    plan: _Plan, liver: Tensor, tumor: Tensor, instances: Tensor, hu: Tensor, axes, spacing
) -> tuple[Tensor, pd.DataFrame]:
    """Label map by the half level of the occupancies, and the lesions' true figures. A lesion thinner than that keeps its fullest voxel."""
    labels = (liver >= 0.5).to(torch.uint8)
    rows = []
    voxel_ml = math.prod(spacing) / 1000
    for number, lesion in enumerate(plan.lesions, 1):
        where = (instances == number).nonzero(as_tuple=True)
        share = tumor[where]
        if not len(share) or float(share.max()) < 0.05:
            continue
        volume = float(share.double().sum()) * voxel_ml
        chosen = (share >= 0.5) if bool((share >= 0.5).any()) else share == share.max()
        at = tuple(w[chosen] for w in where)
        labels[at] = 2
        centre = [
            float((axes[k].to(share.device)[where[k]] * share).sum() / share.sum()) - float(axes[k][0])
            for k in range(3)
        ]
        rows.append(
            {
                "lesion": number,
                "kind": lesion.kind,
                "volume_ml": volume,
                "diameter_mm": (6000 * volume / math.pi) ** (1 / 3),
                "z_mm": centre[0],
                "y_mm": centre[1],
                "x_mm": centre[2],
                "contrast_hu": float(hu[at].mean()) - plan.body.hu["liver"],
                "at_capsule": bool(_near_edge(liver, at, spacing)),
                "at_vessel": lesion.at_vessel,
            }
        )
    columns = [
        "lesion",
        "kind",
        "volume_ml",
        "diameter_mm",
        "z_mm",
        "y_mm",
        "x_mm",
        "contrast_hu",
        "at_capsule",
        "at_vessel",
    ]
    return labels, pd.DataFrame(rows, columns=columns)


def _near_edge(liver: Tensor, at, spacing, reach_mm: float = 3.5) -> bool:
    """Whether a voxel outside the liver lies within a few mm of a lesion's voxels."""
    for axis in range(3):
        steps = max(1, round(reach_mm / spacing[axis]))
        for sign in (-steps, steps):
            moved = list(at)
            moved[axis] = (moved[axis] + sign).clamp(0, liver.shape[axis] - 1)
            if bool((liver[tuple(moved)] < 0.5).any()):
                return True
    return False


def _lookalike_table(plan: _Plan, decoys: Tensor, axes, spacing) -> pd.DataFrame:
    rows = []
    for number, decoy in enumerate(plan.decoys, 1):
        where = (decoys == number).nonzero()
        if len(where):
            centre = [float(where[:, k].double().mean()) * spacing[k] for k in range(3)]
            rows.append(
                {
                    "lookalike": number,
                    "kind": decoy.kind,
                    "volume_ml": len(where) * math.prod(spacing) / 1000,
                    "z_mm": centre[0],
                    "y_mm": centre[1],
                    "x_mm": centre[2],
                    "contrast_hu": decoy.hu,
                }
            )
    return pd.DataFrame(rows, columns=["lookalike", "kind", "volume_ml", "z_mm", "y_mm", "x_mm", "contrast_hu"])
