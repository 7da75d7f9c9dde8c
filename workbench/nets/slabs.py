"""Volumes to slabs and back: the bank that training draws from, augmentation on the device, inference slice by slice.

States: 2.5D, short stacks of neighbouring axial slices.
Chooses: all slices of the cohort lie in one int16 tensor on the device, so a batch is one gather and one resampling
(crop, shift, scale, rotation, flip and elastic deformation together). A cohort that would take more than a share of the free
memory stays in memory-mapped files, and a thread draws the next batch while one is learnt from. Every batch is a function of (seed, step) alone: a resumed run draws
what an uninterrupted one would have drawn. At the ends of a volume the outermost slice is repeated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.volume import Refused

AIR = -1024
AT_ONCE = {"cpu": 500_000, "cuda": 1_500_000}  # rule: pixels in one batch; the paper preset takes about 4 kB for each
SHARE = 0.5  # a choice: of the free memory, for slices
SURE = 9.0  # a choice: no net's say in the mean is stronger than odds of 8000 to 1


@dataclass(frozen=True)
class SlabSettings:
    """How slabs are cut, normalised and augmented. Lengths in pixels of the stage's grid, intensities in HU."""

    window_hu: tuple[float, float] = (-150.0, 250.0)  # a choice: soft tissue of a portal venous CT
    crop: tuple[int, int] = (96, 96)
    foreground: float = 0.5  # share of slabs that show the target
    scale: float = 0.15
    rotate_degrees: float = 12.0
    shift: float = 0.08
    flip: bool = False
    elastic: float = 0.0  # largest sd of a smooth random displacement, in pixels of the crop; 0: none
    elastic_pixels: float = 32.0  # between the points that are displaced; cubic in between
    thick: float = 0.0  # share of slabs averaged with their neighbours, as thicker slices are
    shift_hu: float = 20.0
    contrast: float = 0.15
    noise_hu: float = 12.0
    blur: float = 0.3  # share of slabs that are smoothed
    blobs: float = 0.0  # share of slabs with one made-up lesion
    blob_hu: tuple[tuple[float, float], ...] = ((-10.0, 170.0),)  # one of these ranges, then uniform in it
    blob_pixels: tuple[float, float] = (2.0, 10.0)  # radii
    blob_slices: tuple[float, float] = (0.45, 0.8)  # a pixel's width in slices: the demo's work grid
    blob_is_target: bool = False  # True: it lies in the prior and joins the target; False: it lies in the target
    # three ways in which the prior is made wrong, as a liver net is on patients: shares of the slabs
    prior_fade: float = 0.0  # lowered around the target
    prior_bite: float = 0.0  # a round hole in it
    prior_drop: float = 0.0  # lowered everywhere
    prior_pixels: float = 8.0  # how far the fading reaches, and half the largest radius of a hole


def normalise(hu: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """HU of a window (lowest, highest) as -1 to 1, float32; what lies outside is cut off."""
    low, high = window_hu
    return (hu.float().clamp(low, high) - low) * (2 / (high - low)) - 1


@dataclass(frozen=True)
class BankCase:
    """What one case gives to the bank: HU, target in {0, 1}, prior in [0, 1] or None, all [z y x]; lesion numbers or None; slices that are
    never a slab's centre, bool [z], or None."""

    hu: Tensor
    target: Tensor
    prior: Tensor | None = None
    lesions: Tensor | None = None
    ignore: Tensor | None = None

    def compact(self) -> BankCase:
        """The same in as few bytes as the bank holds it: int16, uint8, float16."""
        prior = None if self.prior is None else self.prior.to(torch.float16)
        return BankCase(self.hu.to(torch.int16), self.target.to(torch.uint8), prior, self.lesions, self.ignore)

    def in_files(self, path: Path) -> BankCase:
        """The same, in memory-mapped files that begin with `path`; lesion numbers stay in memory for as long as a bank is made."""
        held = {k: getattr(self.compact(), k) for k in ("hu", "target", "prior", "lesions")}
        for name, array in held.items():
            if array is not None:
                file = path.with_name(f"{path.name}.{name}.npy")
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, array.cpu().numpy(), allow_pickle=False)
                # copy on write: torch has no read-only tensors
                held[name] = torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        return BankCase(**held, ignore=self.ignore)

    @property
    def bytes(self) -> int:
        """Of its slices in a bank."""
        return self.hu.numel() * (3 if self.prior is None else 5)


def room(device: torch.device | str) -> int:
    """Bytes that slices may take: a share of what is free on the device and on the machine."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if torch.device(device).type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return int(SHARE * free)


class _Canvas:
    """Slices of cases as `_canvas` would join them, [n h w], each read from its case when it is asked for."""

    def __init__(self, stacks: Sequence[Tensor], h: int, w: int, fill: float):
        self.fill, self.shape = fill, (sum(map(len, stacks)), h, w)
        self.place = [(stack, z) for stack in stacks for z in range(len(stack))]

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = [
            _canvas([stack[z : z + 1]], *self.shape[1:], self.fill)
            for stack, z in map(self.place.__getitem__, index.flatten().tolist())
        ]
        return torch.cat(rows).view(*index.shape, *self.shape[1:])


class SlabBank:
    """The slices of many cases, [n h w], each centred on one common canvas; on the device, or with `resident` False where
    the cases have them, which gives the same batches."""

    def __init__(self, cases: Sequence[BankCase], device: torch.device | str, resident: bool = True):
        cases = [c.compact() for c in cases]
        h = max(c.hu.shape[1] for c in cases)
        w = max(c.hu.shape[2] for c in cases)
        self.device = torch.device(device)

        def held(stacks: list[Tensor], fill: float) -> Tensor | _Canvas:
            return _canvas(stacks, h, w, fill).to(device) if resident else _Canvas(stacks, h, w, fill)

        self.hu, self.target = held([c.hu for c in cases], AIR), held([c.target for c in cases], 0)
        priors = [c.prior for c in cases if c.prior is not None]
        self.prior = held(priors, 0) if priors else None
        low, bounds = 0, []
        for c in cases:
            n = c.hu.shape[0]
            bounds += [(low, low + n - 1)] * n
            low += n
        self.bounds = torch.tensor(bounds, device=device)
        self.plain = torch.cat(
            [torch.ones(len(c.hu)) if c.ignore is None else (~c.ignore).float().cpu() for c in cases]
        )
        if not bool(self.plain.any()):
            raise Refused(
                "slices to learn from", "all of them left out", "some without an excluded region", "Add scans."
            )
        self.shown, self.wanted, self.centre = self._sections(cases, h, w)
        self.wanted = self.wanted * self.plain[self.shown]

    def _sections(self, cases: Sequence[BankCase], h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        """What slabs are drawn to show: the slice of each section, its weight, and its centre `[section 2]` on the canvas (`_spread`).

        A section is one lesion in one slice, and each lesion weighs the same, however many slices it fills. Without lesion numbers the
        target in a slice is a section, and each weighs the same.
        """
        numbered, first, found = any(c.lesions is not None for c in cases), 0, []
        for c in cases:
            if not numbered:
                parts = [c.target > 0]
            else:
                parts = [] if c.lesions is None else [c.lesions == number for number in c.lesions.unique()[1:]]
            for part in parts:
                area, centre = _spread(part, h, w)
                on = area.nonzero().flatten()
                weight = torch.full((len(on),), 1 / len(on) if numbered and len(on) else 1.0)
                found.append((first + on.cpu(), weight, centre[on].cpu()))
            first += len(c.hu)
        if not found:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0, 2)
        slices, weights, centres = (torch.cat(part) for part in zip(*found))
        return slices, weights, centres

    def draw(self, settings: SlabSettings, slices: int, batch: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step`: inputs [b slices(+1) h w], target [b 1 h w].

        On a GPU what is random in each pixel is drawn there, so its batches are other ones than a CPU's.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pixels = generator
        if self.device.type != "cpu":
            pixels = torch.Generator(self.device).manual_seed(seed * 1_000_003 + step)
        n_wanted = round(batch * settings.foreground) if float(self.wanted.sum()) > 0 else 0
        pick, target = [], torch.zeros(0, 2)
        if n_wanted:
            section = torch.multinomial(self.wanted, n_wanted, True, generator=generator)
            pick, target = [self.shown[section]], self.centre[section]
        if n_wanted < batch:
            pick.append(torch.multinomial(self.plain, batch - n_wanted, True, generator=generator))
        index = torch.cat(pick).to(self.device)
        random = torch.rand(batch, 8, generator=generator).to(self.device) * 2 - 1
        grid = self._grid(random, settings, target.to(self.device))
        if settings.elastic:
            grid = grid + self._bent(batch, settings, generator)
        hu = self._slabs(index, slices + 2 * (settings.thick > 0)).float()
        if settings.thick:
            hu = self._thicker(hu, settings, generator)
        x = normalise(hu, settings.window_hu)
        y = self.target[index].to(self.device)[:, None].float()
        prior = [] if self.prior is None else [self.prior[index].to(self.device)[:, None].float()]
        inside = torch.cat([x, y, *prior], 1)
        inside = F.grid_sample(inside + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
        x, y, prior = (
            inside[:, :slices],
            inside[:, slices : slices + 1].clamp(0, 1),
            inside[:, slices + 1 :].clamp(0, 1),
        )
        if settings.blobs:
            x, y = self._with_blobs(x, y, prior, settings, generator, pixels)
        x = self._intensity(x, random, settings, generator, pixels)
        if prior.numel() and max(settings.prior_fade, settings.prior_bite, settings.prior_drop) > 0:
            prior = _worse(prior, y, settings, generator, pixels)
        return torch.cat([x, prior], 1).contiguous(memory_format=torch.channels_last), y

    def _slabs(self, index: Tensor, slices: int) -> Tensor:
        offset = torch.arange(slices, device=index.device) - slices // 2
        low, high = self.bounds[index].unbind(1)
        at = torch.maximum(torch.minimum(index[:, None] + offset, high[:, None]), low[:, None])
        return self.hu[at].to(self.device)

    @staticmethod
    def _thicker(hu: Tensor, settings: SlabSettings, generator: torch.Generator) -> Tensor:
        """HU [b slices+2 h w] -> [b slices h w]: in some slabs each slice becomes a mean with its two neighbours, which weigh
        up to as much as itself. The target stays that of the middle."""
        u = torch.rand(len(hu), 2, generator=generator).to(hu.device)
        beside = (torch.where(u[:, 0] < settings.thick, u[:, 1], 0.0) / 3).view(-1, 1, 1, 1)
        return hu[:, 1:-1] * (1 - 2 * beside) + (hu[:, :-2] + hu[:, 2:]) * beside

    def _bent(self, batch: int, settings: SlabSettings, generator: torch.Generator) -> Tensor:
        """Smooth random displacements [b ch cw 2], in the canvas's normalised coordinates (Simard et al. 2003)."""
        size = torch.tensor(settings.crop)
        points = (size / settings.elastic_pixels).ceil().int() + 3
        pixels = torch.randn(batch, 2, *points.tolist(), generator=generator) * settings.elastic
        pixels = (pixels * torch.rand(batch, 1, 1, 1, generator=generator)).to(self.device)
        h, w = self.hu.shape[1:]
        smooth = F.interpolate(pixels, settings.crop, mode="bicubic", align_corners=True)
        return smooth.movedim(1, 3) * torch.tensor([2 / w, 2 / h], device=self.device)

    def _grid(self, random: Tensor, settings: SlabSettings, target: Tensor) -> Tensor:
        """Where each pixel of the crop is taken from, in the canvas's normalised coordinates. The first slabs show `target [n 2]`."""
        (h, w), (ch, cw) = self.hu.shape[1:], settings.crop
        angle = random[:, 0] * math.radians(settings.rotate_degrees)
        zoom = 1 + random[:, 1] * settings.scale
        mirror = torch.where((random[:, 2] > 0) & settings.flip, -1.0, 1.0)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        room_x, room_y = max(0.0, 1 - cw / w), max(0.0, 1 - ch / h)
        centre = torch.stack([random[:, 3] * (room_x + settings.shift), random[:, 4] * (room_y + settings.shift)], 1)
        # slabs drawn for their lesion keep it inside the crop
        reach, n = torch.tensor([0.6 * cw / w, 0.6 * ch / h], device=target.device), len(target)
        near = torch.minimum(torch.maximum(centre[:n], target - reach), target + reach)
        centre = torch.cat([near, centre[n:]])
        theta = torch.stack(
            [
                torch.stack([cos * mirror * cw / w, -sin * ch / w, centre[:, 0]], 1),
                torch.stack([sin * mirror * cw / h, cos * ch / h, centre[:, 1]], 1),
            ],
            1,
        )
        return F.affine_grid(theta, [len(random), 1, ch, cw], align_corners=False)

    @staticmethod
    def _with_blobs(
        x: Tensor,
        y: Tensor,
        prior: Tensor,
        settings: SlabSettings,
        generator: torch.Generator,
        pixels: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """A lobed ellipsoid of one HU drawn into some slabs; what was there shows through (after SynTumor, Hu et al. 2023)."""
        b, slices, h, w = x.shape
        u = torch.rand(b, 17, generator=generator).to(x.device)
        host = ((prior > 0.5) & (y < 0.5) if settings.blob_is_target else y).float()
        at = torch.multinomial(host.flatten(1) + 1e-6, 1, generator=pixels)[:, 0]
        low, high = settings.blob_pixels
        radius = low * (high / low) ** u[:, 0]
        along, across = radius * (0.75 + 0.5 * u[:, 1]), radius * (0.75 + 0.5 * u[:, 2])
        thin, thick = settings.blob_slices
        up = radius * (thin + (thick - thin) * u[:, 3])  # radius in slices
        level = torch.arange(slices, device=x.device) - slices // 2 + ((2 * u[:, 4] - 1) * (up + 0.5))[:, None]
        dy = torch.arange(h, device=x.device) - (at // w)[:, None]
        dx = torch.arange(w, device=x.device) - (at % w)[:, None]
        cos, sin = (f(math.pi * u[:, 5])[:, None, None] for f in (torch.cos, torch.sin))
        p = (cos * dx[:, None, :] + sin * dy[:, :, None]) / along[:, None, None]
        q = (cos * dy[:, :, None] - sin * dx[:, None, :]) / across[:, None, None]
        angle, lobes = torch.atan2(q, p), torch.ones_like(p)
        for k in (2, 3, 4):
            wave = torch.cos(k * angle + 2 * math.pi * u[:, 4 + k, None, None])
            lobes = lobes + 0.12 * u[:, 7 + k, None, None] * wave
        away = ((p * p + q * q)[:, None] + ((level / up[:, None]) ** 2)[:, :, None, None]).sqrt() / lobes[:, None]
        edge = 0.8 * 4 ** u[:, 12].view(b, 1, 1, 1)  # pixels over which it fades
        drawn = (0.5 - (away - 1) * radius.view(b, 1, 1, 1) / edge).clamp(0, 1)
        drawn = drawn * (u[:, 13] < settings.blobs).view(b, 1, 1, 1) * (prior if settings.blob_is_target else y)
        ranges = torch.tensor(settings.blob_hu, device=x.device)[(u[:, 14] * len(settings.blob_hu)).long()]
        hu = normalise(ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * u[:, 15], settings.window_hu)
        around = (x[:, slices // 2, None] * host).sum((1, 2, 3)) / host.sum((1, 2, 3)).clamp_min(1)
        through = 0.8 * u[:, 16].view(b, 1, 1, 1)  # how much of what was there is still seen
        new = hu.view(b, 1, 1, 1) + through * (x - around.view(b, 1, 1, 1))
        middle = drawn[:, slices // 2 : slices // 2 + 1]
        return x + drawn * (new - x), torch.maximum(y, middle) if settings.blob_is_target else y

    @staticmethod
    def _intensity(
        x: Tensor, random: Tensor, settings: SlabSettings, generator: torch.Generator, pixels: torch.Generator
    ) -> Tensor:
        per_hu = 2 / (settings.window_hu[1] - settings.window_hu[0])
        b = len(x)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where((random[:, 5] * 0.5 + 0.5 < settings.blur).view(b, 1, 1, 1), (x + blurred) / 2, x)
        x = x * (1 + random[:, 6] * settings.contrast).view(b, 1, 1, 1) + (
            random[:, 7] * settings.shift_hu * per_hu
        ).view(b, 1, 1, 1)
        level = torch.rand(b, 1, 1, 1, generator=generator).to(x.device) * settings.noise_hu * per_hu
        noise = torch.randn(x.shape, generator=pixels, device=x.device) * level
        return (x + noise).clamp(-1, 1)


def _worse(
    prior: Tensor, target: Tensor, settings: SlabSettings, generator: torch.Generator, pixels: torch.Generator
) -> Tensor:
    """The prior `[b 1 h w]` as a net that errs gives it: lowered around the target, with a round hole in it, or lowered everywhere.

    Empirical (docs/log.md, 2026-11-30): a tumor net that has seen liver maps without fault alone overlooks what the liver net left out.
    """
    b, _, h, w = prior.shape
    u = torch.rand(b, 6, generator=generator).to(prior.device).view(b, 6, 1, 1, 1)
    reach = max(1, round(settings.prior_pixels))
    size = 2 * reach + 1
    near = F.max_pool2d(F.max_pool2d(target, (size, 1), 1, (reach, 0)), (1, size), 1, (0, reach))
    near = F.avg_pool2d(near, size, 1, reach)
    out = prior * torch.where(u[:, 0] < settings.prior_fade, 1 - near * u[:, 1], 1.0)
    at = torch.multinomial(prior.flatten(1) + 1e-6, 1, generator=pixels)
    y, x = torch.arange(h, device=prior.device).view(1, h, 1), torch.arange(w, device=prior.device).view(1, 1, w)
    away = ((y - (at // w).view(b, 1, 1)) ** 2 + (x - (at % w).view(b, 1, 1)) ** 2).sqrt()[:, None]
    radius = 2 * settings.prior_pixels * (0.25 + 0.75 * u[:, 3])
    hole = torch.sigmoid((away - radius) / 1.5)
    out = out * torch.where(u[:, 2] < settings.prior_bite, hole, 1.0)
    return out * torch.where(u[:, 4] < settings.prior_drop, 0.5 * u[:, 5], 1.0)


def _spread(target: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Of each slice of a case: the target's area in pixels, and its centre (x, y) in the normalised coordinates of a canvas."""
    on = _canvas([target], h, w, 0).float()
    rows, columns = (((torch.arange(n) + 0.5) / n * 2 - 1).to(on.device) for n in (h, w))
    area = on.sum((1, 2))
    return area, torch.stack([on.sum(1) @ columns, on.sum(2) @ rows], 1) / area.clamp_min(1)[:, None]


def ahead(draw: Callable[[int], tuple]) -> Callable[[int], tuple]:
    """The same batches, each drawn by a thread while the one before is learnt from."""
    drawn: dict[int, Future] = {}
    pool = ThreadPoolExecutor(1)

    def taken(step: int) -> tuple:
        batch = drawn.pop(step) if step in drawn else pool.submit(draw, step)
        drawn[step + 1] = pool.submit(draw, step + 1)
        return batch.result()

    return taken


def _canvas(stacks: list[Tensor], h: int, w: int, fill: float) -> Tensor:
    """Stacks [z y x] of unequal size, centred on one canvas and joined: [n h w]."""
    out = []
    for s in stacks:
        top, left = (h - s.shape[1]) // 2, (w - s.shape[2]) // 2
        out.append(F.pad(s, (left, w - s.shape[2] - left, top, h - s.shape[1] - top), value=fill))
    return torch.cat(out)


def predict(
    nets: Sequence[nn.Module],
    hu: Tensor,
    prior: Tensor | None,
    window_hu: tuple[float, float],
    device: torch.device | str,
    batch: int = 32,
) -> Tensor:
    """Foreground probability of the fold models' mean logit, [z y x] float32 on the CPU.

    hu and prior: [z y x]. At most `batch` slices at once, fewer if they are large (`AT_ONCE`). A device that runs out of
    memory gets half the batch, and says so.
    """
    z, h, w = hu.shape
    batch = max(1, min(batch, AT_ONCE[torch.device(device).type] // (h * w)))
    settings: Any = nets[0].settings  # NetworkSettings
    pad_h, pad_w = -h % settings.multiple, -w % settings.multiple
    offset = torch.arange(settings.slices) - settings.slices // 2
    out = torch.zeros(z, h, w)
    low = 0
    while low < z:
        centre = torch.arange(low, min(z, low + batch))
        try:
            x = normalise(hu[(centre[:, None] + offset).clamp(0, z - 1)].to(device), window_hu)
            x = F.pad(x, (0, pad_w, 0, pad_h), value=-1)
            if prior is not None:
                x = torch.cat([x, F.pad(prior[centre][:, None].to(device).float(), (0, pad_w, 0, pad_h))], 1)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), autocast(device):
                p = torch.sigmoid(torch.stack([net(x).float().clamp(-SURE, SURE) for net in nets]).mean(0))
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            print(f"the device is out of memory: going on with {batch} slices at a time")
            continue
        out[centre] = p[:, 0, :h, :w].cpu()
        low += len(centre)
    return out


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 autocast where the device computes in it natively, float32 elsewhere."""
    kind = torch.device(device).type
    native = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=bool(native))
