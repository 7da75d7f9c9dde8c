"""Inside the liver: its distance on a coarse grid, the volume that was planned, and its vessels as branching capsules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.data.phantom.anatomy import Body
from workbench.data.phantom.shapes import Capsule, Draw


@dataclass
class Map:
    """The liver's distance on a coarse grid, for the plan: nearest lookup and random points."""

    sdf: np.ndarray
    low: np.ndarray
    step: float

    def __call__(self, point) -> float:
        at = np.rint((np.asarray(point) - self.low) / self.step).astype(int)
        if (at < 0).any() or (at >= self.sdf.shape).any():
            return 99.0
        return float(self.sdf[tuple(at)])

    def point(self, d: Draw, low: float, high: float):
        """A random point whose distance lies in [low, high], or None."""
        at = np.argwhere((self.sdf >= low) & (self.sdf <= high))
        if not len(at):
            return None
        chosen = at[d.integer(0, len(at) - 1)] + np.array([d.uniform(-0.5, 0.5) for _ in range(3)])
        return self.low + chosen * self.step

    @property
    def deepest(self) -> float:
        return float(self.sdf.min())


def _survey(body: Body, step: float = 5.0) -> Map:
    low, high = body.liver_bounds
    axes = [torch.arange(a, b, step) for a, b in zip(low, high)]
    g = body.grid(*axes)
    wall = body.wall_at(g)
    sdf = body.liver(g, (slice(None),) * 3, wall, body.diaphragm(g, wall))
    return Map(sdf.numpy(), np.array(low), step)


def fit_volume(body: Body) -> Map:
    """Scale the liver until its volume is the planned one (three coarse looks)."""
    for _ in range(4):
        survey = _survey(body, 7.0)
        ml = float((0.5 - torch.from_numpy(survey.sdf) / 7.0).clamp(0, 1).sum()) * 7.0**3 / 1000
        body.scale *= (body.volume_ml / max(ml, 100.0)) ** 0.42
    return _survey(body)


def _tree(d: Draw, survey: Map, start, direction, radius: float, smallest: float, spread: float) -> list[Capsule]:
    """Tapering branches of branches that stay inside the liver; Murray's law gives the daughters' radii."""
    segments: list[Capsule] = []
    stack = [(np.asarray(start, float), np.asarray(direction, float) / np.linalg.norm(direction), radius)]
    while stack and len(segments) < 90:
        p, going, r = stack.pop(0)
        length = d.uniform(2.8, 4.4) * r + 8
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for _ in range(5):
            way = going + spread * 0.45 * d.direction()
            way /= np.linalg.norm(way)
            end = p + length * way
            depth = survey(end)
            if best is None or depth < best[0]:
                best = (depth, end, way)
            if depth < -7:
                break
        if best is None or best[0] > -3.5:
            continue
        _, end, way = best
        share = d.uniform(0.25, 0.5)
        r_big, r_small = r * (1 - share) ** (1 / 2.7), r * share ** (1 / 2.7)
        segments.append(Capsule(tuple(p), tuple(end), r, r_big))
        side = np.cross(way, d.direction())
        side /= max(np.linalg.norm(side), 1e-6)
        if r_big > smallest:
            stack.append((end, way + spread * 0.35 * side, r_big))
        if r_small > smallest:
            stack.append((end, way - spread * side, r_small))
    return segments


def grow_vessels(d: Draw, body: Body, survey: Map) -> tuple[list[Capsule], list[Capsule]]:
    """Portal and hepatic veins in the bent coordinates' plan (the warp moves both by the same field)."""
    hz, hy, hx = hilum = body.unbend(body.hilum)
    w = body.half_width
    right = (hz + 12, hy + 4, hx - 26)
    left = (hz + 22, hy - 18, hx + 22)
    left_tip = (hz + 24, -0.40 * body.half_front, body.fissure_x + 2)
    portal = [Capsule(hilum, right, 6.4, 5.4), Capsule(hilum, left, 5.4, 4.4), Capsule(left, left_tip, 4.4, 4.0)]
    portal += _tree(d, survey, right, (0.35, -0.75, -0.7), 4.6, 0.9, 0.75)
    portal += _tree(d, survey, right, (-0.45, 0.45, -0.9), 4.4, 0.9, 0.75)
    portal += _tree(d, survey, left_tip, (0.1, -0.3, 1.0), 3.2, 0.9, 0.7)
    portal += _tree(d, survey, left_tip, (-0.2, -0.5, -0.8), 2.6, 0.9, 0.7)
    mouth = np.array(body.unbend((body.dome_z - 20, body.cava[-2].end[1] - 14, body.cava[-2].end[2] - 12)))
    hepatic = []
    for goal, r in (
        ((-10, 18, -0.72 * w), 5.2),
        ((8, -0.50 * body.half_front, -0.34 * w), 4.8),
        ((30, -0.42 * body.half_front, 0.24 * w), 4.0),
    ):
        way = np.array(goal) - mouth
        hepatic += _tree(d, survey, mouth, way, r * d.uniform(0.85, 1.15), 0.95, 0.5)
    return portal, hepatic
