"""What the phantom is drawn with: one source of randomness, smooth fields, signed distances, and where they are evaluated.

Distances are in mm, negative inside; points are (z, y, x) in mm. Every random number comes from one CPU generator, the same
on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.volume import Box, three

Point = tuple[float, float, float]  # (z, y, x) in mm


class Draw:
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

    def smooth(self, cell_mm: float, low: Point, high: Point, channels: int = 1) -> Smooth:
        shape = [max(4, math.ceil((b - a) / cell_mm) + 4) for a, b in zip(low, high)]
        return Smooth(torch.randn(channels, *shape, generator=self.generator), low, cell_mm)


@dataclass
class Smooth:
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


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, `centre` and `radii` in mm (z, y, x)."""

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
class Capsule:
    """A tapering tube from `start` to `end`."""

    start: Point
    end: Point
    radius: float
    radius_end: float

    @property
    def bounds(self) -> tuple[Point, Point]:
        r = max(self.radius, self.radius_end)
        return (
            three(min(a, b) - r for a, b in zip(self.start, self.end)),
            three(max(a, b) + r for a, b in zip(self.start, self.end)),
        )

    def sdf(self, p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        axis = [b - a for a, b in zip(self.start, self.end)]
        length2 = max(sum(a * a for a in axis), 1e-6)
        d = [a - c for a, c in zip(p, self.start)]
        t = ((d[0] * axis[0] + d[1] * axis[1] + d[2] * axis[2]) / length2).clamp(0, 1)
        off = [a - t * b for a, b in zip(d, axis)]
        return (off[0] ** 2 + off[1] ** 2 + off[2] ** 2).sqrt() - (self.radius + (self.radius_end - self.radius) * t)


def capsules(points: list[Point], radii: list[float]) -> list[Capsule]:
    """A tube through points (mm), its radius given at each."""
    return [Capsule(a, b, r, s) for a, b, r, s in zip(points, points[1:], radii, radii[1:])]


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotation by degrees about z (in the axial plane), y and x; rows are the turned axes in (z, y, x)."""
    a, b, c = (math.radians(v) for v in (roll, pitch, yaw))
    about_z = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, -math.sin(b)], [0, 1, 0], [math.sin(b), 0, math.cos(b)]])
    about_x = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def join(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Smooth union of two distances over k mm."""
    h = (k - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - h * h * (0.25 / k)


def cut(a: Tensor, b: Tensor, k: float) -> Tensor:
    """a without b, smoothly."""
    return -join(-a, b, k)


@dataclass
class Grid:
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
        return three(box)

    def bent_in(self, box: Box):
        return tuple(a[box] for a in self.bent)


BEND_PAD_MM = 22.0  # the warp's reach
