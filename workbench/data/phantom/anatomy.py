"""The plan of a body: every organ's shape and every HU of a case, before anything is painted.

HU follow the contrast phase of the case; a smooth random warp bends the soft organs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workbench.data.phantom.shapes import Draw, Ellipsoid, Grid, Point, capsules, cut, join, rotation
from workbench.volume import Box, three


class Body:
    """The plan of a case: every shape and every HU. Lengths in mm, points (z, y, x), z = 0 at the porta hepatis."""

    def __init__(self, draw: Draw, phases: tuple[float, float, float] = (0.70, 0.17, 0.13)):
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
        self._phase(d, phases)
        self._skeleton(d)
        self._liver(d)
        self._organs(d)

    # -- contrast phase
    def _phase(self, d: Draw, phases: tuple[float, float, float]):
        self.phase = d.pick(("portal", "arterial", "late"), phases)
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
    def _skeleton(self, d: Draw):
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
    def _liver(self, d: Draw):
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
        self.right = Ellipsoid(
            (self.dome_z + 9 - 92 * s * long, -6 + d.normal(0, 4), -0.50 * w),
            (92 * s * long, 84 * s, 70 * s / math.sqrt(long)),
            rotation(d.normal(-10, 6), d.normal(-16, 5), d.normal(0, 6)),
        )
        left = d.uniform(0.75, 1.3)
        self.left = Ellipsoid(
            (34 + d.normal(0, 6), -0.50 * self.half_front + d.normal(0, 4), 10 * left),
            (36 * s, 33 * s, 72 * s * left),
            rotation(d.normal(14, 6), d.normal(14, 6), 0),
        )
        self.tip = Ellipsoid(
            (-62 * long + d.normal(0, 6), -4 + d.normal(0, 8), -0.70 * w),
            (52 * s * long, 44 * s, 28 * s),
            rotation(0, d.normal(-12, 5), 0),
        )
        self.caudate = Ellipsoid((22 + d.normal(0, 4), 14 + d.normal(0, 3), -10), (26, 13, 17 + d.normal(0, 2)))
        # what fills the dome, whatever the size
        self.cap = Ellipsoid((self.dome_z - 14, self.dome_y - 2, self.dome_x - 2), (40, 62 * f, 54 * f))
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
    def _organs(self, d: Draw):
        self._great_vessels(d)
        self._solid_organs(d)
        self._stomach(d)
        self._bowel(d)
        self._small_vessels(d)
        self._heart(d)

    @property
    def _front(self) -> float:
        """The front of the spine."""
        return self.spine_y - self.vertebra[0]

    def _great_vessels(self, d: Draw):
        front = self._front
        self.aorta = capsules(
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
        self.cava = capsules(
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

    def _solid_organs(self, d: Draw):
        """Gallbladder in its fossa under the right lobe, spleen, kidneys."""
        w = self.half_width
        self.has_gallbladder = d.chance(0.88)
        gz, gy, gx = -36 + d.normal(0, 7), -0.40 * self.half_front + d.normal(0, 6), -30 + d.normal(0, 6)
        gr = d.uniform(9, 17)
        fundus = (gz - d.uniform(18, 34), gy - d.uniform(14, 30), gx - d.uniform(4, 18))
        self.gallbladder = (
            capsules([(gz + 16, gy + 14, gx + 6), (gz, gy, gx), fundus], [3.5, gr * 0.8, gr])
            if self.has_gallbladder
            else []
        )
        sp = d.uniform(0.8, 1.2)
        self.spleen = Ellipsoid(
            (22 + d.normal(0, 10), 0.34 * self.half_back + d.normal(0, 5), 0.70 * w),
            (54 * sp, 54 * sp, 34 * sp),
            rotation(d.normal(-32, 8), d.normal(10, 8), d.normal(0, 8)),
        )
        self.spleen_hilum = Ellipsoid(
            (24 + d.normal(0, 8), 0.05 * self.half_back, 0.40 * w), (44, 36, 24), rotation(-30, 0, 0)
        )
        self.kidneys = []
        for side, z in ((-1, -52), (1, -36)):
            k = d.uniform(0.88, 1.12)
            centre = (z + d.normal(0, 9), 0.50 * self.half_back + d.normal(0, 4), side * (0.47 * w + d.normal(0, 4)))
            turn = rotation(side * d.normal(38, 8), side * d.normal(14, 5), d.normal(-8, 5))
            body = Ellipsoid(centre, (55 * k, 29 * k, 25 * k), turn)
            medial = np.array(centre) + np.array([0, -10, -side * 17]) * k
            self.kidneys.append((body, Ellipsoid(tuple(medial), (25 * k, 12 * k, 15 * k), turn)))

    def _stomach(self, d: Draw):
        """Fundus, body, antrum, and the oesophagus."""
        w, front = self.half_width, self._front
        st = d.uniform(0.78, 1.15)
        left_dome = self.dome_z - self.dome_left
        self.stomach = capsules(
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
        self.oesophagus = capsules([(220, front - 18, 6), (80, front - 22, 10), (60, 10, 24)], [8, 8, 9])

    def _bowel(self, d: Draw):
        """Colon with haustra, and small bowel as a chain of loops."""
        w = self.half_width
        cz = d.normal(-92, 10)
        fb = self.half_front
        self.colon = [
            capsules(
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
            capsules(
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
                    capsules(points, [radius * d.uniform(0.8, 1.15) for _ in points]),
                    d.uniform(10, 60) if d.chance(0.8) else d.uniform(150, 320),
                    d.chance(0.4),
                )
            )

    def _small_vessels(self, d: Draw):
        """Pancreas and the portal trunk behind its neck, renal and mesenteric vessels."""
        w, front = self.half_width, self._front
        hz, hy, hx = self.hilum
        self.pancreas = capsules(
            [(-44, 4, -24), (-22, -10, -14), (-10, -16, 12), (4, -6, 44), (18, 12, 0.56 * w)], [14, 12, 9, 9, 8]
        )
        self.portal_trunk = capsules([(-70, -18, 6), (-34, -12, -4), (hz - 4, hy, hx)], [6, 6.5, 7]) + capsules(
            [(-34, -12, -4), (-16, -4, 26), (8, 18, 0.55 * w)], [5.5, 5, 4]
        )
        self.renal = [
            c
            for (body, sinus), ax in zip(self.kidneys, (-20, 6))
            for c in capsules(
                [(sinus.centre[0] + 4, front - 12, ax), (sinus.centre[0], sinus.centre[1], sinus.centre[2])], [4.2, 3.6]
            )
        ]
        self.mesenteric = capsules(
            [(2, front - 12, 4), (-24, front - 34, 4), (-90, front - 48, 6), (-190, front - 50, 10)],
            [3.6, 3.4, 3.2, 2.6],
        )
        self.celiac = (
            capsules([(14, front - 10, 5), (18, front - 32, 2)], [3.4, 3.0])
            + capsules([(18, front - 32, 2), (6, 4, -18)], [2.6, 2.2])
            + capsules([(18, front - 32, 2), (20, 20, 0.5 * w)], [2.8, 2.2])
        )

    def _heart(self, d: Draw):
        w, f = self.half_width, self.frame
        self.heart = Ellipsoid(
            (self.dome_z + d.uniform(14, 30), -0.36 * self.half_front, 0.16 * w),
            (42, 52, 56 * f),
            rotation(d.normal(25, 6), 16, 0),
        )
        self.heart_wall = d.uniform(9, 13)
        self.mottle = d.smooth(7, self.scan_low, self.scan_high)
        self.tubules = d.smooth(17, self.scan_low, self.scan_high, 2)

    # -- surfaces
    def grid(self, z: Tensor, y: Tensor, x: Tensor) -> Grid:
        bent = [axis.expand(len(z), len(y), len(x)) for axis in (z[:, None, None], y[None, :, None], x[None, None, :])]
        coarse, fine = (w.at(z, y, x) for w in self.warp)
        bent = [a + c * self.warp_mm[0] + b * self.warp_mm[1] for a, c, b in zip(bent, coarse, fine)]
        yy, xx = y[None, :, None], x[None, None, :]
        depth = torch.where(yy < 0, self.half_front, self.half_back)
        q = ((xx.abs() / self.half_width) ** self.power + (yy.abs() / depth) ** self.power) ** (1 / self.power)
        radius = (xx**2 + yy**2).sqrt()
        return Grid(z, y, x, tuple(bent), radius * (1 - 1 / q.clamp_min(1e-3)), torch.atan2(xx.abs(), yy))

    def unbend(self, point: Point) -> Point:
        """The plain point that the warp brings to `point`."""
        p = np.array(point, float)
        for _ in range(4):
            axes = [torch.tensor([v], dtype=torch.float32) for v in p]
            moved = torch.stack([w.at(*axes)[:, 0, 0, 0] * mm for w, mm in zip(self.warp, self.warp_mm)]).sum(0)
            p = np.array(point) - moved.double().numpy()
        return three(float(v) for v in p)

    def wall_at(self, g: Grid) -> Tensor:
        """[z y x] distance from the inner wall of the trunk."""
        waist = self.sway.at(g.z, g.y[:1] * 0 - 190, g.x[:1] * 0 - 230)[0] * 2.5
        return g.wall + waist

    def diaphragm(self, g: Grid, wall: Tensor) -> Tensor:
        """[z y x] height of a voxel over the diaphragm, mm (positive: chest)."""
        zz, yy, xx = g.bent[0], g.plain[1], g.plain[2]
        a, b = 0.62 * self.half_width, 0.95 * self.half_front
        right = self.curve_mm * (((xx - self.dome_x) / a) ** 2 + ((yy - self.dome_y) / b) ** 2)
        left = self.dome_left + self.curve_mm * (((xx + self.dome_x) / a) ** 2 + ((yy - self.dome_y) / b) ** 2)
        lateral = 0.5 + 0.5 * torch.cos(0.92 * g.theta)  # deep behind and beside, shallow in front
        recess = (8 + 48 * lateral) * torch.exp(wall.clamp(max=0) / 10)
        return zz - (self.dome_z - join(right, left, 22.0)) + recess

    def liver(self, g: Grid, box: Box, wall: Tensor, chest: Tensor) -> Tensor:
        """Signed distance of the liver in a box; vessels inside count as liver, gallbladder and vena cava do not."""
        p = g.bent_in(box)
        hinge = (self.dome_z - 5, -10.0, -0.75 * self.half_width)  # the liver hangs from the dome
        q = tuple((a - h) / self.scale + h for a, h in zip(p, hinge))
        sdf = join(self.right.sdf(q), self.tip.sdf(q), self.join_mm + 8)
        sdf = join(sdf, self.left.sdf(q), self.join_mm)
        sdf = join(sdf, self.caudate.sdf(q), 8.0) * self.scale
        sdf = join(sdf, self.cap.sdf(p), 16.0)
        sdf = sdf + self.roughness.at(g.z[box[0]], g.y[box[1]], g.x[box[2]])[0] * self.roughness_mm
        z, y, x = p
        # Fissure of the round ligament: a thin fatty cleft from in front and below.
        bend = self.roughness.at(g.z[box[0]], g.y[box[1]] * 0.5, g.x[box[2]])[0]
        cleft = torch.maximum(
            (x - self.fissure_x - 0.25 * (y + 60) - 3 * bend).abs()
            - self.fissure_mm * (0.4 - (y + 40) / 50 - z / 60).clamp(0.1, 1.6),
            torch.maximum(y + self.half_front - self.fissure_depth, z - 26),
        )
        sdf = cut(sdf, cleft, 5.0)
        sdf = cut(sdf, Ellipsoid(self.hilum, (12, 11, 17)).sdf(p), 8.0)
        for body, _ in self.kidneys[:1]:
            sdf = cut(sdf, Ellipsoid(body.centre, three(r + 7 for r in body.radii), body.turn).sdf(p), 10.0)
        zz, yy, xx = g.plain
        spine = (
            (xx[..., box[2]] / (self.vertebra[1] + 12)) ** 2
            + ((yy[:, box[1]] - self.spine_y) / (self.vertebra[0] + 14)) ** 2
        ).sqrt()
        sdf = cut(sdf, (spine - 1) * 26, 8.0)
        for tube in self.cava[1:] + self.aorta:
            sdf = cut(sdf, tube.sdf(p) - 0.6, 3.0)
        for tube in self.gallbladder:
            sdf = cut(sdf, tube.sdf(p) - 1.5, 3.0)
        sdf = cut(sdf, -(wall[box] + 3.0), 6.0)
        return cut(sdf, -(chest[box] * 0.72 + 2.0), 5.0)

    @property
    def liver_bounds(self):
        s = self.scale
        return (-135 * s, -self.half_front - 6, -self.half_width - 6), (
            self.dome_z + 18,
            self.half_back,
            0.9 * self.half_width,
        )
