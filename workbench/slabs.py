"""Volumes to slabs and back: the bank that training draws from, augmentation on the device, inference slice by slice.

States: 2.5D, short stacks of neighbouring axial slices.
Chooses: all slices of the cohort lie in one int16 tensor on the device, so a batch is one gather and one resampling
(crop, shift, scale, rotation and flip together). Every batch is a function of (seed, step) alone: a resumed run draws
what an uninterrupted one would have drawn. At the ends of a volume the outermost slice is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AIR = -1024
AT_ONCE = {"cpu": 500_000, "cuda": 4_000_000}  # rule: pixels in one batch; the paper preset takes about 4 kB for each
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
    shift_hu: float = 20.0
    contrast: float = 0.15
    noise_hu: float = 12.0
    blur: float = 0.3  # share of slabs that are smoothed
    blobs: float = 0.0  # share of slabs with one made-up lesion
    blob_hu: tuple[tuple[float, float], ...] = ((-10.0, 170.0),)  # one of these ranges, then uniform in it
    blob_pixels: tuple[float, float] = (2.0, 10.0)  # radii
    blob_slices: tuple[float, float] = (0.45, 0.8)  # a pixel's width in slices: the demo's work grid
    blob_is_target: bool = False  # True: it lies in the prior and joins the target; False: it lies in the target


def normalise(hu: Tensor, window_hu: tuple[float, float]) -> Tensor:
    low, high = window_hu
    return (hu.float().clamp(low, high) - low) * (2 / (high - low)) - 1


@dataclass(frozen=True)
class BankCase:
    """What one case gives to the bank: HU, target in {0, 1}, prior in [0, 1] or None, all [z y x]; lesion numbers or None."""

    hu: Tensor
    target: Tensor
    prior: Tensor | None = None
    lesions: Tensor | None = None


class SlabBank:
    """The slices of many cases, [n h w] on the device, each centred on one common canvas."""

    def __init__(self, cases: Sequence[BankCase], device: torch.device | str, valid: Sequence[Tensor] | None = None):
        h = max(c.hu.shape[1] for c in cases)
        w = max(c.hu.shape[2] for c in cases)
        self.hu = _canvas([c.hu.to(torch.int16) for c in cases], h, w, AIR).to(device)
        self.target = _canvas([c.target.to(torch.uint8) for c in cases], h, w, 0).to(device)
        priors = [c.prior for c in cases if c.prior is not None]
        self.prior = _canvas([p.to(torch.float16) for p in priors], h, w, 0).to(device) if priors else None
        low, bounds = 0, []
        for c in cases:
            n = c.hu.shape[0]
            bounds += [(low, low + n - 1)] * n
            low += n
        self.bounds = torch.tensor(bounds, device=device)
        area = self.target.flatten(1).sum(1)
        self.plain = torch.ones_like(area, dtype=torch.float32)
        self.wanted = self._lesion_weights(cases, area).to(device)
        rows = (torch.arange(h, device=device) + 0.5) / h * 2 - 1
        columns = (torch.arange(w, device=device) + 0.5) / w * 2 - 1
        mass = self.target.float().sum((1, 2)).clamp_min(1)
        self.centre = torch.stack(
            [(self.target.float().sum(1) @ columns) / mass, (self.target.float().sum(2) @ rows) / mass], 1
        )

    def _lesion_weights(self, cases: Sequence[BankCase], area: Tensor) -> Tensor:
        """Each lesion weighs the same, however many slices it fills; without lesion numbers each slice does."""
        if all(c.lesions is None for c in cases):
            return (area > 0).float().cpu()
        weights = []
        for c in cases:
            weight = torch.zeros(c.hu.shape[0])
            for number in c.lesions.unique()[1:] if c.lesions is not None else ():
                on = (c.lesions == number).flatten(1).any(1).float().cpu()
                weight += on / on.sum()
            weights.append(weight)
        return torch.cat(weights)

    def draw(self, settings: SlabSettings, slices: int, batch: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step`: inputs [b slices(+1) h w], target [b 1 h w]."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        n_wanted = round(batch * settings.foreground) if float(self.wanted.sum()) > 0 else 0
        pick = [torch.multinomial(self.wanted.cpu(), n_wanted, True, generator=generator)] if n_wanted else []
        pick.append(torch.multinomial(self.plain.cpu(), batch - n_wanted, True, generator=generator))
        index = torch.cat(pick).to(self.hu.device)
        random = torch.rand(batch, 8, generator=generator).to(self.hu.device) * 2 - 1
        grid = self._grid(index, random, settings, n_wanted)
        x = normalise(self._slabs(self.hu, index, slices), settings.window_hu)
        y = self.target[index][:, None].float()
        inside = torch.cat([x, y] + ([self.prior[index][:, None].float()] if self.prior is not None else []), 1)
        inside = F.grid_sample(inside + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
        x, y, prior = (
            inside[:, :slices],
            inside[:, slices : slices + 1].clamp(0, 1),
            inside[:, slices + 1 :].clamp(0, 1),
        )
        if settings.blobs:
            x, y = self._with_blobs(x, y, prior, settings, generator)
        x = self._intensity(x, random, settings, generator)
        return torch.cat([x, prior], 1).contiguous(memory_format=torch.channels_last), y

    def _slabs(self, stack: Tensor, index: Tensor, slices: int) -> Tensor:
        offset = torch.arange(slices, device=index.device) - slices // 2
        low, high = self.bounds[index].unbind(1)
        return stack[torch.maximum(torch.minimum(index[:, None] + offset, high[:, None]), low[:, None])]

    def _grid(self, index: Tensor, random: Tensor, settings: SlabSettings, n_wanted: int) -> Tensor:
        """Where each pixel of the crop is taken from, in the canvas's normalised coordinates."""
        (h, w), (ch, cw) = self.hu.shape[1:], settings.crop
        angle = random[:, 0] * math.radians(settings.rotate_degrees)
        zoom = 1 + random[:, 1] * settings.scale
        mirror = torch.where((random[:, 2] > 0) & settings.flip, -1.0, 1.0)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        room_x, room_y = max(0.0, 1 - cw / w), max(0.0, 1 - ch / h)
        centre = torch.stack([random[:, 3] * (room_x + settings.shift), random[:, 4] * (room_y + settings.shift)], 1)
        # slabs drawn for their lesion keep it inside the crop
        reach = torch.tensor([0.6 * cw / w, 0.6 * ch / h], device=index.device)
        wanted = torch.arange(len(index), device=index.device)[:, None] < n_wanted
        near = torch.minimum(torch.maximum(centre, self.centre[index] - reach), self.centre[index] + reach)
        centre = torch.where(wanted, near, centre)
        theta = torch.stack(
            [
                torch.stack([cos * mirror * cw / w, -sin * ch / w, centre[:, 0]], 1),
                torch.stack([sin * mirror * cw / h, cos * ch / h, centre[:, 1]], 1),
            ],
            1,
        )
        return F.affine_grid(theta, [len(index), 1, ch, cw], align_corners=False)

    @staticmethod
    def _with_blobs(
        x: Tensor, y: Tensor, prior: Tensor, settings: SlabSettings, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A lobed ellipsoid of one HU drawn into some slabs; what was there shows through (after SynTumor, Hu et al. 2023)."""
        b, slices, h, w = x.shape
        u = torch.rand(b, 17, generator=generator).to(x.device)
        host = ((prior > 0.5) & (y < 0.5) if settings.blob_is_target else y).float()
        at = torch.multinomial(host.flatten(1).cpu() + 1e-6, 1, generator=generator)[:, 0].to(x.device)
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
    def _intensity(x: Tensor, random: Tensor, settings: SlabSettings, generator: torch.Generator) -> Tensor:
        per_hu = 2 / (settings.window_hu[1] - settings.window_hu[0])
        b = len(x)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where((random[:, 5] * 0.5 + 0.5 < settings.blur).view(b, 1, 1, 1), (x + blurred) / 2, x)
        x = x * (1 + random[:, 6] * settings.contrast).view(b, 1, 1, 1) + (
            random[:, 7] * settings.shift_hu * per_hu
        ).view(b, 1, 1, 1)
        level = torch.rand(b, 1, 1, 1, generator=generator) * settings.noise_hu * per_hu
        noise = torch.randn(x.shape, generator=generator) * level
        return (x + noise.to(x.device)).clamp(-1, 1)


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
    settings = nets[0].settings
    pad_h, pad_w = -h % settings.multiple, -w % settings.multiple
    offset = torch.arange(settings.slices) - settings.slices // 2
    out = torch.zeros(z, h, w)
    low = 0
    while low < z:
        centre = torch.arange(low, min(z, low + batch))
        x = normalise(hu[(centre[:, None] + offset).clamp(0, z - 1)].to(device), window_hu)
        x = F.pad(x, (0, pad_w, 0, pad_h), value=-1)
        if prior is not None:
            x = torch.cat([x, F.pad(prior[centre][:, None].to(device).float(), (0, pad_w, 0, pad_h))], 1)
        x = x.contiguous(memory_format=torch.channels_last)
        try:
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
