"""Painting a plan on slices: each surface by its occupancy `clamp(1/2 - sdf / width)`, organ after organ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.data.phantom.anatomy import Body
from workbench.data.phantom.lesions import Decoy, Lesion
from workbench.data.phantom.shapes import BEND_PAD_MM, Capsule, Grid, cut, join
from workbench.volume import Box

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
ORGAN = {name: code for code, name in enumerate(ORGANS)}


@dataclass
class _Slab:
    """Some sub-slices being painted."""

    grid: Grid
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
            self.organ[box].masked_fill_(occupancy > 0.5, ORGAN[organ])
        return occupancy

    def shape(self, shape, hu, organ: str | None = None) -> None:
        """Paint an ellipsoid or a capsule of the soft organs."""
        box = self.grid.box(shape.bounds, BEND_PAD_MM)
        if box is not None:
            self.paint(box, shape.sdf(self.grid.bent_in(box)), hu, organ)


def _paint_wall(slab: _Slab, body: Body, wall: Tensor) -> None:
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


def _paint_ribs(slab: _Slab, body: Body, wall: Tensor) -> None:
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


def _paint_spine(slab: _Slab, body: Body) -> None:
    g = slab.grid
    depth, half = body.vertebra
    box = g.box(((-1e3, body.spine_y - depth - 12, -48), (1e3, body.canal_y + 48, 48)), 4)
    assert box is not None  # it spans the trunk
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
    slab.paint(box, join(join(arch, facets, 3), join(spinous, wings, 2), 4), 460 + 40 * mottle, "bone")
    slab.paint(box, join(arch, spinous, 4) + 2.2, body.marrow_hu + 60.0)
    slab.paint(box, torch.maximum(column, disc), 430 + 40 * mottle, "bone")
    slab.paint(box, torch.maximum(column, disc) + 2.4, body.marrow_hu + 25 * mottle, "bone")
    slab.paint(box, torch.maximum(column, -disc), 85.0, "cartilage")
    slab.paint(box, canal + 0.0 * z, body.hu["fat"] * 0.2, "muscle")
    slab.paint(box, canal + 3 + 0.0 * z, 32.0, "muscle")


def _paint_mesentery(slab: _Slab, body: Body, wall: Tensor, chest: Tensor, tubes: Tensor) -> None:
    """Small vessels and strands in the fat of the belly."""
    inside = torch.maximum(wall + 9, chest + 9)
    slab.paint(
        (slice(None),) * 3,
        torch.maximum(tubes - 0.6, inside),
        0.5 * (body.hu["cava"] + body.hu["muscle"]),
        share=0.75,
        width=2.4,
    )


def _paint_chest(slab: _Slab, body: Body, wall: Tensor, chest: Tensor, tubes: Tensor) -> None:
    g = slab.grid
    x, y = g.x[None, None, :], g.y[None, :, None]
    if float(g.z[-1]) < body.dome_z - 150:
        return
    everything = (slice(None),) * 3
    middle = (((x - 6) / 30) ** 2 + ((y - (body.spine_y - 34)) / 40) ** 2).sqrt() * 33 - 33
    slab.paint(everything, torch.maximum(wall + 0.5, (chest - 1.5).abs() - 1.8), body.hu["muscle"], "muscle")
    lung = torch.maximum(wall + 2.5, 2.2 - chest * 0.8)
    lung = cut(lung, middle, 8.0)
    slab.paint(everything, lung, -860 + 25 * slab.mottle, "lung")
    slab.paint(everything, torch.maximum(tubes - 0.9, lung + 2), 40.0, width=2.4)
    box = g.box(body.heart.bounds, BEND_PAD_MM)
    if box is not None:
        sdf = torch.maximum(body.heart.sdf(g.bent_in(box)), 2.0 - chest[box] * 0.8)
        slab.paint(box, sdf - 4, body.hu["fat"])
        slab.paint(box, sdf, 95.0 if body.phase != "arterial" else 120.0, "heart")
        p = g.bent_in(box)
        right = body.heart.centre[2] - 6 - 0.35 * (p[1] - body.heart.centre[1])
        septum = (p[2] - right).abs() - 0.45 * body.heart_wall
        blood = torch.where(p[2] < right, body.hu["portal"] * 0.4 + body.hu["aorta"] * 0.6, body.hu["aorta"] * 1.02)
        slab.paint(box, torch.maximum(sdf + torch.where(p[2] < right, 4.0, body.heart_wall), -septum), blood, "heart")


def _paint_retroperitoneum(slab: _Slab, body: Body) -> None:
    g, hu = slab.grid, body.hu
    z, y, x = g.plain
    if float(g.z[0]) < 20:
        box = g.box(((-1e3, body.spine_y - 45, -85), (20, body.spine_y + 45, 85)), 0)
        assert box is not None  # it spans the trunk
        z, y, x = g.z[box[0]][:, None, None], g.y[box[1]][None, :, None], g.x[box[2]][None, None, :]
        r = (8 + (10 - z) * 0.16).clamp(2, 27)
        psoas = ((x.abs() - body.vertebra[1] - 0.55 * r) ** 2 + (y - body.spine_y - 2) ** 2).sqrt() - r
        slab.paint(box, psoas + slab.mottle[box], hu["muscle"], "muscle")
        lumborum = (((x.abs() - 56) / 20) ** 2 + ((y - body.spine_y - 16 + 0.12 * x.abs()) / 9) ** 2).sqrt() * 11 - 11
        slab.paint(box, torch.maximum(lumborum, z + 25), hu["muscle"], "muscle")
    if float(g.z[-1]) > -45:
        front = body.spine_y - body.vertebra[0]
        box = g.box(((-45, front - 30, -40), (1e3, front + 20, 40)), 0)
        assert box is not None  # it spans the trunk
        z, y, x = g.z[box[0]][:, None, None], g.y[box[1]][None, :, None], g.x[box[2]][None, None, :]
        crus = (((x.abs() - 17) / 4.5) ** 2 + ((y - front + 4) / 14) ** 2).sqrt() * 5.5 - 5.5
        slab.paint(box, torch.maximum(crus, -45 - z), hu["muscle"], "muscle")
    for kidney, sinus in body.kidneys:
        box = g.box(kidney.bounds, BEND_PAD_MM)
        if box is None:
            continue
        p = g.bent_in(box)
        sdf = kidney.sdf(p) + 1.2 * slab.mottle[box]
        hollow = sinus.sdf(p)
        sdf = cut(sdf, hollow + 2, 4.0)
        slab.paint(box, sdf, hu["cortex"] + 4 * slab.mottle[box], "kidney")
        pyramids = torch.maximum(sdf + 6.0, 0.9 - 2.2 * (slab.mottle[box] + 0.6))
        slab.paint(box, pyramids, hu["medulla"])
        slab.paint(box, torch.maximum(hollow, kidney.sdf(p) + 4), hu["fat"])
        slab.paint(box, hollow + 5.5, hu["pelvis"])
    for tube in body.aorta:
        slab.shape(tube, hu["aorta"], "aorta")
    for tube in body.renal + body.mesenteric + body.celiac:
        slab.shape(tube, 0.93 * hu["aorta"] if body.phase == "arterial" else 0.5 * (hu["aorta"] + hu["cava"]), "aorta")


def _paint_gut(slab: _Slab, body: Body, wall: Tensor, chest: Tensor) -> None:
    g, hu = slab.grid, body.hu
    y = g.y[None, :, None]

    def tubes(path, wall_mm: float, wall_hu: float, organ: str, fill, ripple: float):
        seen = []
        for tube in path:
            box = g.box(tube.bounds, BEND_PAD_MM + 3)
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
        box = g.box(tube.bounds, BEND_PAD_MM + 3)
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
    box = g.box(body.spleen.bounds, BEND_PAD_MM + 3)
    if box is not None:
        p = g.bent_in(box)
        sdf = cut(body.spleen.sdf(p), body.spleen_hilum.sdf(p), 12.0)
        sdf = torch.maximum(sdf, torch.maximum(wall[box] + 4, 3 + chest[box] * 0.8))
        zebra = 26.0 if body.phase == "arterial" else 2.5
        slab.paint(box, sdf, hu["spleen"] + zebra * torch.sin(1.6 * slab.mottle[box] + 0.10 * sdf), "spleen")


def _tube_field(slab: _Slab, tubes: list[Capsule], box: Box, like: Tensor) -> Tensor:
    """Occupancy of all tubes in a box of the plain grid."""
    g = slab.grid
    sub = Grid(g.z[box[0]], g.y[box[1]], g.x[box[2]], g.bent, g.wall, g.theta)
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
class Plan:
    """All that is painted into one phantom."""

    body: Body
    portal: list[Capsule]
    hepatic: list[Capsule]
    lesions: list[Lesion]
    decoys: list[Decoy]
    vein_decoy: int  # row + 1 of the dark hepatic veins among the look-alikes, 0 when they are bright
    bladder_decoy: int


def _decoy_effect(decoy: Decoy, slab: _Slab, box: Box) -> tuple[Tensor, Tensor] | None:
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


def _paint_trunks(slab: _Slab, body: Body) -> None:
    """Portal trunk and vena cava."""
    for tube in body.portal_trunk:
        slab.shape(tube, body.hu["portal"], "portal vein")
    for index, tube in enumerate(body.cava):
        above = index >= 2
        slab.shape(
            tube,
            body.hu["cava"] if not above else 0.5 * (body.hu["cava"] + max(body.hu["hepatic"], body.hu["cava"])),
            "vena cava",
        )


def _paint_bladder(slab: _Slab, body: Body) -> bool:
    """The gallbladder and its wall; whether the slab shows it."""
    seen = False
    for tube in body.gallbladder:
        inner = slab.grid.box(tube.bounds, BEND_PAD_MM)
        if inner is not None:
            sdf = tube.sdf(slab.grid.bent_in(inner))
            slab.paint(inner, sdf - 1.2, 55.0)
            slab.paint(inner, sdf, 9.0 + 3 * slab.mottle[inner], "gallbladder")
            seen = True
    return seen


def _paint_liver(slab: _Slab, plan: Plan, wall: Tensor, chest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Liver, vessels, lesions, look-alikes; returns occupancies [z y x] of liver and lesions, lesion and look-alike numbers."""
    g, body = slab.grid, plan.body
    liver_share = torch.zeros_like(slab.hu)
    lesion_share = torch.zeros_like(slab.hu)
    instance, decoy_map = torch.zeros_like(slab.organ), torch.zeros_like(slab.organ)
    box = g.box(body.liver_bounds, 14)
    result = liver_share, lesion_share, instance, decoy_map
    _paint_trunks(slab, body)
    if box is None:
        return result
    bladder = _paint_bladder(slab, body)
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
        if (
            decoy.kind in ("focal fat", "perfusion", "fissure", "notch")
            and (effect := _decoy_effect(decoy, slab, box)) is not None
        ):
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
    slab.organ[box].masked_fill_(share > 0.5, ORGAN["liver"])
    if bladder and plan.bladder_decoy:
        marks.masked_fill_((slab.organ[box] == ORGAN["gallbladder"]) & (sdf < 8), plan.bladder_decoy)
    _paint_bands(slab, plan, box, fade, inside, marks)
    return result


def _paint_bands(slab: _Slab, plan: Plan, box: Box, fade: Tensor, inside: Tensor, marks: Tensor) -> None:
    """Beam hardening, across the whole slab; in the liver it fades before it touches a lesion."""
    g = slab.grid
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
        delta = torch.where(slab.organ == ORGAN["outside"], 0.0, delta)
        delta[box] *= fade
        slab.hu += delta
        marks.masked_fill_((delta[box] < 0.5 * decoy.hu) & inside & (marks == 0), row)


def _paint_lesion(slab, lesion, number, at, local, distance, tissue, base, lesion_share, instance) -> None:
    mottle = slab.mottle[at]
    view = tissue[local]
    view.add_(lesion.cover(distance, slab.width, mottle) * (lesion.hu(distance, base, mottle) - view))
    share = (0.5 - distance / slab.width).clamp(0, 1)
    more = share > lesion_share[at]
    lesion_share[at] = torch.maximum(lesion_share[at], share)
    instance[at].masked_fill_(more, number)


def paint_slices(plan: Plan, z: Tensor, y: Tensor, x: Tensor, width: float) -> dict[str, Tensor]:
    """Slices `[z y x]` of a phantom at places in mm, edges `width` mm wide: HU, organ, shares of liver and tumor, numbers of lesion and look-alike."""
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
