"""The boundary group: 21 descriptors of a lesion's margin.

The paper STATES a boundary group and not what is in it. We CHOOSE margin descriptors of the literature (the catalogue
has formula and source of each). How they are measured:

- The surface is the set of faces between region and background. Normals and the sub-voxel place of the surface along
  them come from the region blurred by a Gaussian: beside a plane its value is Phi(-d / sigma), so d = -sigma
  Phi^-1(value). A face counts with its area projected on the normal, so that the stairs of voxels do not count twice.
- HU is read along each normal from 4 mm inside to 4 mm outside. A reading counts inside only within the region, and
  outside only beyond it, in the volume, and in the liver when that is known: fat beyond the capsule is no margin.
- The sigmoid is fitted to the mean profile of each of 26 sectors of normals, not to single rays: CT noise is as large
  as the contrast. The fit is linear in offset and contrast; centre and width are searched on a grid that is refined
  around its best point, which is deterministic and has no start to choose.
- Everything of all lesions at once; samples in float32 (HU to 1e-4), moments in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.masks import true_at
from workbench.stages.radiomics.ragged import (
    REACH_MM,
    Boxes,
    blur,
    counted,
    ends,
    linear,
    mean,
    nearest,
    quantiles,
    total,
)

NAMES = (
    "contrast_median", "contrast_iqr", "blur_median", "blur_iqr", "fit_r2", "inner_mean", "margin_mean", "outer_mean",
    "contrast_to_noise", "rim", "margin_sd", "gradient_mean", "gradient_sd", "gradient_entropy", "radial_gradient",
    "contrast_asymmetry", "radial_spread", "roughness", "hull_fill", "fractal_dimension", "liver_contact",
)  # fmt: skip

# empirical choices, all in mm or HU
STEP_MM = 0.5  # along a profile
SHELL_MM = 1.0  # half the width of the margin shell; inner and outer shell lie beyond it
SMOOTH_MM = 1.0  # blur that defines normals; one voxel where that is more
ROUGH_MM = 2.5  # blur that defines the smooth surface; one voxel where that is more
BLUR_MM = (0.2, 2.5)  # range of W: wider ones are not seen in 8 mm
CENTRE_MM = 2.0  # range of t0
GRADIENT_BIN = 5.0  # HU/mm
CONTACT_MM = 1.5
FACES = 1500  # most faces a lesion that carry a profile; larger lesions are thinned evenly
_SECTORS = torch.tensor([v for v in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(v)])
_HULL = [v for v in itertools.product(range(-2, 3), repeat=3) if v > (0, 0, 0) and math.gcd(*v) == 1]


def describe(boxes: Boxes, names: Collection[str] = NAMES) -> Float[Tensor, "l 21"]:
    """Values in the order of `NAMES`, float64; NaN where the catalogue's note says so, and for the parts of the work of
    which nothing was asked for."""
    l, spacing = boxes.count, boxes.hu.new_tensor(boxes.spacing_mm, dtype=torch.float32)
    faces = Faces.of(boxes, spacing)
    nothing = torch.full((l,), torch.nan, dtype=torch.float64, device=boxes.hu.device)
    out = dict.fromkeys(NAMES, nothing)

    t = torch.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM, device=boxes.hu.device)
    ahead = faces.outward / spacing  # voxels a mm
    place = faces.at + ahead * faces.offset[:, None]  # the surface itself, in voxels
    along = place[:, None] + ahead[:, None] * t[:, None]
    hu, valid = _read(boxes, faces.lesion, along, t)
    weight = torch.where(valid, faces.weight[:, None], 0.0)
    out |= _sigmoid(hu, weight, faces, t, l)
    out |= _shells(hu, weight, faces, t, l)
    out |= _form(faces, place, spacing, l)
    if any("gradient" in name for name in names):
        out |= _gradients(boxes, faces, place, spacing)
    if "hull_fill" in names:
        out["hull_fill"] = _hull_fill(boxes)
    if "fractal_dimension" in names:
        out["fractal_dimension"] = _fractal(boxes)
    if "liver_contact" in names and boxes.liver is not None:
        beyond = nearest(boxes, faces.lesion, place + ahead * CONTACT_MM)
        free = ~(boxes.liver | boxes.region).flatten()[beyond]
        out["liver_contact"] = mean(free.double(), faces.weight, faces.lesion, l)
    return torch.stack([out[name].double() for name in NAMES], 1)


@dataclass(frozen=True)
class Faces:
    """Faces between region and background, the elements of the surface.

    `at` their place in voxels, `outward` unit normals in mm, `weight` their share of the surface in mm², `offset` along
    the normal from the face to the surface in mm, `rough` the same to the smooth surface, `centre` the lesions' centroids
    in voxels.
    """

    lesion: Int[Tensor, " f"]
    at: Float[Tensor, "f 3"]
    outward: Float[Tensor, "f 3"]
    weight: Float[Tensor, " f"]
    offset: Float[Tensor, " f"]
    rough: Float[Tensor, " f"]
    centre: Float[Tensor, "l 3"]

    @classmethod
    def of(cls, boxes: Boxes, spacing: Float[Tensor, " 3"]) -> Faces:
        inner = boxes.inner(2)
        cut = boxes.region[inner]
        soft, softer = (blur(cut.float(), boxes.spacing_mm, mm) for mm in (SMOOTH_MM, ROUGH_MM))
        slope = torch.stack(torch.gradient(soft, dim=(1, 2, 3)), -1) / spacing  # [l z y x 3], 1/mm
        _, z, y, x = cut.shape
        edges = torch.zeros((3, *cut.shape), dtype=torch.bool, device=cut.device)
        for axis, n in enumerate((z - 1, y - 1, x - 1), 1):
            torch.ne(cut.narrow(axis, 0, n), cut.narrow(axis, 1, n), out=edges[axis - 1].narrow(axis, 0, n))
        found = true_at(edges.flatten())
        found = found[_thinned(found % cut.numel() // (z * y * x), boxes.count)]
        axis, a = found // cut.numel(), found % cut.numel()  # between a voxel and the next one along the axis
        b = a + torch.tensor([y * x, x, 1], device=cut.device)[axis]
        across = axis[:, None] == torch.arange(3, device=cut.device)
        lesion, first = a // (z * y * x), torch.tensor([s.start for s in inner[1:]], device=cut.device)
        at = (torch.stack([a // (y * x) % z, a // x % y, a % x], 1) + first).float() + 0.5 * across
        inside, soft, softer, slope = cut.flatten(), soft.flatten(), softer.flatten(), slope.view(-1, 3)
        steep = (soft[a] - soft[b]) / spacing[axis]
        normal = torch.where(across, steep[:, None], -(slope[a] + slope[b]) / 2)
        normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-12)
        # thin parts can turn the smoothed normal against the face; such a face keeps a little weight
        upright = (normal.gather(1, axis[:, None])[:, 0] * torch.where(inside[a], 1.0, -1.0)).clamp_min(0.05)
        weight = (spacing.prod() / spacing)[axis] * upright
        offset, rough = (
            _depth((v[a] + v[b]) / 2, normal, spacing, mm) for v, mm in ((soft, SMOOTH_MM), (softer, ROUGH_MM))
        )
        extent = 0.5 * (normal.abs() * spacing).sum(1)  # half a voxel along the normal
        offset = torch.maximum(torch.minimum(offset, extent), -extent)
        voxels = boxes.voxels
        centre = (total(voxels.zyx.T, voxels.lesion, boxes.count) / voxels.count).T.float()
        return cls(lesion, at, normal, weight, offset, rough, centre)


def _thinned(lesion: Tensor, lesions: int) -> Tensor:
    """Positions of at most `FACES` faces a lesion, evenly spread; all of them for most lesions."""
    count = counted(lesion, lesions)
    order = lesion.argsort(stable=True)
    first = count.cumsum(0) - count
    rank = torch.arange(lesion.numel(), device=lesion.device) - first[lesion[order]]
    stride = (count + FACES - 1).div(FACES, rounding_mode="floor").clamp_min(1)
    return order[rank % stride[lesion[order]] == 0]


def _depth(value: Tensor, normal: Tensor, spacing: Tensor, blur_mm: float) -> Tensor:
    """Distance inside a plane's edge (mm) at which its step has this value when blurred, along an axis by a voxel or more."""
    sigma = (normal * spacing.clamp_min(blur_mm)).norm(dim=1)
    return sigma * torch.special.ndtri(value.double().clamp(0.01, 0.99)).float()


def _read(boxes: Boxes, lesion: Tensor, along: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """HU `[f t]` on the profiles and which readings count."""
    near = nearest(boxes, lesion, along)
    region = boxes.region.flatten()[near]
    valid = boxes.seen.flatten()[near]
    valid &= torch.where(t < 0, region | (t > -SHELL_MM), ~region | (t < SHELL_MM))
    if boxes.liver is not None:
        valid &= (t <= 0) | region | boxes.liver.flatten()[near]
    return linear(boxes, boxes.hu, lesion, along), valid


def _sigmoid(hu: Tensor, weight: Tensor, faces: Faces, t: Tensor, l: int) -> dict[str, Tensor]:
    sectors = _SECTORS.to(hu.device)
    sector = (faces.outward @ (sectors / sectors.norm(dim=1, keepdim=True)).T).argmax(1)
    s, steps = len(sectors), len(t)
    group = faces.lesion * s + sector
    key = (group[:, None] * steps + torch.arange(steps, device=hu.device)).flatten()
    sums = total(torch.stack([hu.double() * weight, weight.double()]).flatten(1), key, l * s * steps)
    value, mass = sums.view(2, l * s, steps)
    whole = total(faces.weight, group, l * s)
    valid = mass > 0.25 * whole[:, None]  # a step that few of the sector's rays reach is no mean of the sector
    used = ((valid & (t <= -STEP_MM)).sum(1) >= 2) & ((valid & (t >= STEP_MM)).sum(1) >= 2) & (valid.sum(1) >= 5)
    row = used.nonzero().flatten()
    profile = torch.where(valid, value / mass.clamp_min(1e-12), 0.0)[row]
    contrast, blur, r2 = fit(profile, valid[row].double(), t.double())
    lesion = row // s
    both = quantiles(torch.cat([contrast, blur]), torch.cat([lesion, lesion + l]), 2 * l, (0.25, 0.5, 0.75))
    (c25, c50, c75), (b25, b50, b75) = both[:l].T, both[l:].T
    r2 = mean(r2.nan_to_num(0.0), (~r2.isnan()).double(), lesion, l)
    return dict(contrast_median=c50, contrast_iqr=c75 - c25, blur_median=b50, blur_iqr=b75 - b25, fit_r2=r2)


def fit(
    profile: Float[Tensor, "p t"], valid: Float[Tensor, "p t"], t: Float[Tensor, " t"]
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """S, W and R² of a + S / (1 + exp(-(t - t0) / W)) by least squares for each profile, by weights.

    A flat profile has S = 0 and no W. Search on 17 centres by 14 widths, then four times on a
    finer 5 by 5 grid around the best.
    """
    p = profile.shape[0]
    n = valid.sum(1)
    centred = (profile - (profile * valid).sum(1, keepdim=True) / n[:, None]) * valid  # also kills rounding of large HU
    spread = (centred**2).sum(1)
    t0 = torch.linspace(-CENTRE_MM, CENTRE_MM, 17, dtype=t.dtype, device=t.device)
    w = torch.exp(torch.linspace(math.log(BLUR_MM[0]), math.log(BLUR_MM[1]), 14, dtype=t.dtype, device=t.device))
    g = torch.sigmoid((t - t0[:, None, None]) / w[None, :, None]).view(-1, t.numel())  # [k t]
    explained, slope = _explained(centred @ g.T, valid @ g.T, valid @ (g**2).T, n)
    best = explained.argmax(1)
    t0, w = t0[best // w.numel()], w[best % w.numel()]
    step_t, step_w = 2 * CENTRE_MM / 16, math.log(BLUR_MM[1] / BLUR_MM[0]) / 13
    fine = torch.linspace(-1, 1, 5, dtype=t.dtype, device=t.device)
    for _ in range(4):
        some_t = (t0[:, None] + step_t * fine).clamp(-CENTRE_MM, CENTRE_MM)[:, :, None].expand(p, 5, 5).reshape(p, 25)
        some_w = (w[:, None] * torch.exp(step_w * fine)).clamp(*BLUR_MM)[:, None, :].expand(p, 5, 5).reshape(p, 25)
        g = torch.sigmoid((t - some_t[..., None]) / some_w[..., None])  # [p 25 t]
        explained, slope = _explained(
            (g * centred[:, None]).sum(2), (g * valid[:, None]).sum(2), (g**2 * valid[:, None]).sum(2), n
        )
        best = explained.argmax(1, keepdim=True)
        t0, w = some_t.gather(1, best)[:, 0], some_w.gather(1, best)[:, 0]
        step_t, step_w = step_t / 2.5, step_w / 2.5
    contrast = slope.gather(1, best)[:, 0]
    r2 = explained.gather(1, best)[:, 0] / spread
    flat = spread <= 1e-6 * n  # a thousandth of a HU
    return torch.where(flat, 0.0, contrast), torch.where(flat, torch.nan, w), torch.where(flat, torch.nan, r2)


def _explained(cross: Tensor, sums: Tensor, squares: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Explained sum of squares and slope of each template `[p k]`, from its sums against a centred profile."""
    variance = (squares - sums**2 / n[:, None]).clamp_min(1e-12)
    return cross**2 / variance, cross / variance


def _shells(hu: Tensor, weight: Tensor, faces: Faces, t: Tensor, l: int) -> dict[str, Tensor]:
    centre = hu.double().mean()  # variances from sums lose nothing that way
    value = hu.double() - centre
    octants = 8
    away = faces.at >= faces.centre[faces.lesion]
    group = faces.lesion * octants + (away * away.new_tensor([4, 2, 1], dtype=torch.int64)).sum(1)
    share = weight.double()
    powers = (share, share * value, share * value**2)
    middle, reach = t.numel() // 2, int(SHELL_MM / STEP_MM)
    shells = slice(middle - reach + 1), slice(middle - reach, middle + reach + 1), slice(middle + reach, None)
    parts = torch.stack([power[:, shell].sum(1) for power in powers for shell in shells])
    sums = total(parts, group, l * octants).view(3, 3, l, octants)  # power, shell
    whole = sums.sum(3)
    inner, rim, outer = first = whole[1] / whole[0]
    inner_var, rim_var, outer_var = (whole[2] / whole[0] - first**2).clamp_min(0)
    inner_by, _, outer_by = sums[1] / sums[0]
    noise = ((inner_var + outer_var) / 2).sqrt()
    contrast = outer_by - inner_by
    known = ~contrast.isnan()
    there = known.sum(1)
    contrast = torch.where(known, contrast, 0.0)
    average = contrast.sum(1) / there
    spread = (torch.where(known, contrast - average[:, None], 0.0) ** 2).sum(1) / there
    return dict(
        inner_mean=inner + centre,
        margin_mean=rim + centre,
        outer_mean=outer + centre,
        contrast_to_noise=torch.where(noise > 1e-3, (outer - inner) / noise, torch.nan),
        rim=rim - (inner + outer) / 2,
        margin_sd=rim_var.sqrt(),
        contrast_asymmetry=torch.where(there >= 2, spread.sqrt(), torch.nan),
    )


def _gradients(boxes: Boxes, faces: Faces, place: Tensor, spacing: Tensor) -> dict[str, Tensor]:
    l = boxes.count
    ends = torch.cat([torch.eye(3), -torch.eye(3)]).to(place)
    value = linear(boxes, boxes.hu, faces.lesion, place[:, None] + ends).double()
    gradient = (value[:, :3] - value[:, 3:]) / (2 * spacing)
    inside = boxes.seen.flatten()[nearest(boxes, faces.lesion, place[:, None] + ends)].all(1)
    weight = torch.where(inside, faces.weight, 0.0).double()
    length = gradient.norm(dim=1)
    average = mean(length, weight, faces.lesion, l)
    sd = mean((length - average[faces.lesion]) ** 2, weight, faces.lesion, l).clamp_min(0).sqrt()
    bins = (length / GRADIENT_BIN).floor().long().clamp(0, 999)
    share = total(weight, faces.lesion * 1000 + bins, l * 1000).view(l, 1000)
    share = share / share.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1) / math.log(2)
    radius = (place - faces.centre[faces.lesion]) * spacing
    radius = radius / radius.norm(dim=1, keepdim=True).clamp_min(1e-9)
    along = total((gradient * radius).sum(1) * weight, faces.lesion, l)
    whole = total(length * weight, faces.lesion, l)
    steep = whole > 1e-3 * total(weight, faces.lesion, l)
    radial = torch.where(steep, along / whole, torch.nan)
    return dict(gradient_mean=average, gradient_sd=sd, gradient_entropy=entropy, radial_gradient=radial)


def _form(faces: Faces, place: Tensor, spacing: Tensor, l: int) -> dict[str, Tensor]:
    distance = ((place - faces.centre[faces.lesion]) * spacing).norm(dim=1)
    both = torch.stack([distance.double(), (faces.rough - faces.offset).double()])
    average = mean(both, faces.weight, faces.lesion, l)
    spread = mean((both - average[:, faces.lesion]) ** 2, faces.weight, faces.lesion, l).clamp_min(0).sqrt()
    return dict(radial_spread=spread[0] / average[0], roughness=spread[1])


def _hull_fill(boxes: Boxes) -> Tensor:
    """Voxels of each region / voxels of the box inside its polytope, whose 98 half-spaces touch the region."""
    voxels, l = boxes.voxels, boxes.count
    depth, rows, columns = boxes.inner(0)[1:]
    zyx, lesion = voxels.edge  # a half-space touches a region at its edge
    hull = torch.tensor(_HULL, dtype=torch.float64, device=zyx.device)
    slope = hull * torch.tensor(boxes.spacing_mm, dtype=torch.float64, device=zyx.device)  # mm a voxel
    low, high = ends((zyx.double() @ slope.T).T, lesion, l)
    low, high = low.T - 1e-3, high.T + 1e-3
    # along x each pair of half-spaces leaves one interval, so the box itself is never filled
    z, y = (torch.arange(s.start, s.stop, dtype=torch.float64, device=zyx.device) for s in (depth, rows))
    at = slope[:, 0, None, None] * z[:, None] + slope[:, 1, None, None] * y  # [k z y]
    a, b, step = low[..., None, None] - at, high[..., None, None] - at, slope[:, 2, None, None]
    level = step == 0
    one, other = a / torch.where(level, 1, step), b / torch.where(level, 1, step)
    nowhere = torch.where((a <= 0) & (b >= 0), -torch.inf, torch.inf)
    first = torch.where(level, nowhere, torch.minimum(one, other)).amax(1).ceil().clamp_min(columns.start)
    last = torch.where(level, torch.inf, torch.maximum(one, other)).amin(1).floor().clamp_max(columns.stop - 1)
    return voxels.count / (last - first + 1).clamp_min(0).sum((1, 2))


def _fractal(boxes: Boxes) -> Tensor:
    """Box counting of the surface voxels; sizes up to half the lesion's longest side."""
    voxels, l = boxes.voxels, boxes.count
    zyx, lesion = voxels.edge
    low, high = ends(zyx.T, lesion, l)
    longest = (high - low + 1).amax(0)
    at = zyx - low.T[lesion]
    logs, used = [], []
    for size in (1, 2, 4, 8):
        cell = at.div(size, rounding_mode="floor")
        key = ((lesion * 1024 + cell[:, 0]) * 1024 + cell[:, 1]) * 1024 + cell[:, 2]
        boxes_held = counted(torch.unique(key) // 1024**3, l)
        logs.append(boxes_held.double().clamp_min(1).log2())
        used.append((longest >= 2 * size).double())
    y, w = torch.stack(logs, 1), torch.stack(used, 1)
    x = -torch.arange(4, dtype=torch.float64, device=y.device).expand_as(y)
    mx, my = (w * x).sum(1) / w.sum(1), (w * y).sum(1) / w.sum(1)
    slope = (w * (x - mx[:, None]) * (y - my[:, None])).sum(1) / (w * (x - mx[:, None]) ** 2).sum(1)
    return torch.where(longest >= 4, slope, torch.nan)
