"""Boundary relabelling: a compact 3D patch net decides each voxel of a narrow band around every lesion's surface.

States (the paper): a compact 3D patch-based CNN derived from AlexNet, in a narrow band around the tumor boundary,
relabels voxels and smooths the contour.
Chooses: everything below.

Band: voxels whose centre lies within `band_mm` of the mask's surface, which is made of voxel faces. The distance is
Euclidean, anisotropic and exact: the nearest point of the nearest voxel on the other side, not that voxel's centre.

Net: one logit, tumor or not, for the centre voxel of a patch on a fixed grid in mm. Against AlexNet (Krizhevsky 2012):

| AlexNet                | here (demo / paper, z y x)                    | why                                         |
|------------------------|-----------------------------------------------|---------------------------------------------|
| input 3x224x224        | 4x9x21x21 / 4x13x29x29: CT, tumor probability,| what the cascade saw and where it drew; the |
|                        | signed distance to the mask, contrast relative| patch is 36x53x53 / 20x23x23 mm             |
|                        | to the lesion's own                           |                                             |
| conv1 11x11, stride 4  | conv1 3x5x5, stride 1                         | an edge must be placed to the voxel         |
| response normalisation | batch norm after conv1 to fc7                 | fixed at inference, so dense == patch; fc   |
|                        |                                               | layers without it died with some seeds      |
| pool1 3x3, stride 2    | pool1 1x3x3, stride 2 in the plane            | kept, overlapping; slices are thick enough  |
| conv2 5x5              | conv2 3x3x3                                   | smaller patch                               |
| pool2 3x3, stride 2    | pool2 1x2x2, stride 1 / 2 in the plane        | the stride that the patch affords           |
| conv3, 4, 5 3x3        | 3x3x3, 1x3x3 / 3x3x3, 1x1x1 / 3x1x1           | kept: three in a row without a pool         |
| pool5 3x3, stride 2    | none                                          | one place is left in the plane              |
| padding                | none                                          | it would mark a patch's edge: dense != patch|
| fc6, fc7 4096, dropout | fc6 over all that is left, fc7, dropout       | kept, as convolutions, smaller              |
|                        | fc7 also reads 3x3x3 around the middle        | pools forget to the voxel where an edge is  |
| fc8 1000, softmax      | fc8 1 added to the cascade's log odds, sigmoid| two classes; it starts from what is known   |
| ReLU                   | ReLU                                          | kept                                        |

Dense evaluation: a layer of stride s means that the layers after it see every s-th place. Evaluated at every voxel, the
pools run at stride 1 and every later kernel is dilated by the strides before it (a trous; Giusti 2013, Sermanet 2013).
Each voxel then gets exactly the sums that its own patch would give, once instead of once a patch. Beyond the
volume's border a patch sees the border's voxels repeated; dense tiles read the same ones. Tiles of bounded size cover
the bands of the lesions only, each with the margin its patches need.

Training: on tiles of the same dense net with the loss masked to the band, which is training on patches, cheaper.
Tiles are centred on band voxels; every lesion is as likely as another and every tile weighs the same, so a large one
does not drown the small ones. Only candidates that overlap the reference are learnt from: bands of false ones taught the
net to shrink everything (docs/log.md, 2026-11-25). The target is the share of tumor in the grid voxel.

After the net: p in the band (blended with the cascade's probability if `blend` > 0), the mask itself outside; a
Gaussian of `smooth_mm`; times twice P(lesion) of the piece, which the forest says, where that is below even odds, since the
net knows lesions only and would draw a false candidate as large as a lesion; threshold, in the band only. It is half the
Dice that a lesion can have, as Dice asks for (Lipton 2014). Tumor is added only within `liver_margin_mm` of the liver. No
lesion vanishes (one that would is left as it was), none is born (an added piece that hangs on no old voxel is dropped)
and none merge (added voxels that would join two are dropped); what happened to each is a row of `lesions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import Tensor, nn

from workbench.files import DAMAGED, from_dict
from workbench.fit import FitSettings, fill, fit, load_tensors
from workbench.volume import Box, Refused, Spacing, bounding_box

FORMAT = 3  # of the saved model
CHANNELS = 4  # CT, tumor probability, signed distance to the mask, contrast relative to the lesion's own
CORE_MM, AROUND_MM, LEAST_HU = 1.5, (4.0, 12.0), 8.0  # choices: where a lesion and its surroundings are read
CONTRAST_MM = AROUND_MM[1] + 1  # how far distances are known for that
MIDDLE = 8  # features of the unpooled middle of a patch

Size = tuple[int, int, int]


@dataclass(frozen=True)
class BoundarySettings:
    """The band, the grid of the patches, the net, its training and what follows it. Lengths in mm."""

    band_mm: float = 6.0  # a choice; not measured yet
    grid_mm: Spacing = (4.0, 2.5, 2.5)
    patch: Size = (9, 21, 21)
    widths: tuple[int, int, int, int, int] = (8, 16, 24, 24, 24)
    kernels: tuple[Size, Size, Size, Size, Size] = ((3, 5, 5), (3, 3, 3), (3, 3, 3), (1, 3, 3), (1, 1, 1))
    pool2_stride: int = 1
    dense_widths: tuple[int, int] = (32, 32)  # fc6, fc7
    dropout: float = 0.1
    window_hu: tuple[float, float] = (-60.0, 220.0)
    steps: int = 640  # empirical (docs/log.md, 2026-11-26): 160 gain half as much
    batch: int = 6
    tile: Size = (8, 20, 20)  # voxels of a training tile that carry a loss
    rate: float = 8e-3
    weight_decay: float = 1e-2
    ema: float = 0.0  # as in FitSettings
    noise_hu: float = 8.0
    shift_hu: float = 15.0
    validation_share: float = 0.15  # of the patients; for the curve only
    threshold: float = 0.4  # rule: half a lesion's expected Dice
    blend: float = 0.0  # weight of the cascade's probability beside the net's
    smooth_mm: float = 1.0
    liver_margin_mm: float = 3.0

    def __post_init__(self):
        if self.band_mm <= 0 or min(self.grid_mm) <= 0:
            raise Refused("boundary settings", f"band {self.band_mm} mm, grid {self.grid_mm} mm", "positive lengths")
        if not 0 < self.threshold < 1 or not 0 <= self.blend <= 1:
            raise Refused(
                "boundary settings", f"threshold {self.threshold}, blend {self.blend}", "both between 0 and 1"
            )
        if any(n % 2 == 0 for n in self.patch):
            raise Refused(
                "boundary settings", f"patch {self.patch}", "odd numbers of voxels, so that there is a centre"
            )
        self.fc6_kernel()

    def pools(self) -> tuple[tuple[Size, Size], tuple[Size, Size]]:
        """(kernel, stride) of pool1 and pool2."""
        return ((1, 3, 3), (1, 2, 2)), ((1, 2, 2), (1, self.pool2_stride, self.pool2_stride))

    def fc6_kernel(self) -> Size:
        """What is left of the patch after conv5."""
        left = list(self.patch)
        for i, kernel in enumerate(self.kernels):
            left = [n - k + 1 for n, k in zip(left, kernel)]
            if i < 2:
                size, stride = self.pools()[i]
                if any((n - k) % s for n, k, s in zip(left, size, stride)):
                    raise Refused(
                        "boundary settings",
                        f"patch {self.patch}",
                        "one that the pools divide evenly",
                        "Change the patch by 2 in the plane.",
                    )
                left = [(n - k) // s + 1 for n, k, s in zip(left, size, stride)]
        if min(left) < 1:
            raise Refused("boundary settings", f"patch {self.patch}", f"one larger than the kernels {self.kernels}")
        return tuple(left)


DEMO = BoundarySettings()
PAPER = BoundarySettings(
    band_mm=5.0,
    grid_mm=(1.5, 0.8, 0.8),
    patch=(13, 29, 29),
    widths=(32, 64, 96, 96, 96),
    kernels=((3, 5, 5), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 1, 1)),
    pool2_stride=2,
    dense_widths=(256, 128),
    dropout=0.5,
    steps=6000,
    batch=16,
    tile=(12, 32, 32),
    rate=2e-3,
    smooth_mm=1.0,
)


class Case(NamedTuple):
    """One patient's scan for training, `[z y x]` on one grid: `mask` predicted (out of fold), `truth` the reference."""

    image: Tensor  # HU
    tumor_probability: Tensor
    mask: Tensor
    truth: Tensor
    spacing_mm: Spacing
    patient: str
    liver: Tensor | None = None


# ------------------------------------------------------------------------------------------------ distance and band


def _distance_to(on: Tensor, spacing_mm: Spacing, limit_mm: float) -> Tensor:
    """mm from each voxel's centre to the nearest point of a voxel that is on, for masks `[.. z y x]`; inf beyond `limit_mm`.

    Per axis a voxel k steps away begins (k - 1/2) spacings away, and squares add up: three passes of running minima.
    """
    square = torch.where(on, 0.0, torch.inf).float()
    for axis, s in zip((-3, -2, -1), spacing_mm):
        n = on.shape[axis]
        most = max(0, min(n - 1, math.floor(limit_mm / s + 0.5)))
        around = F.pad(square, [0] * 2 * (-1 - axis) + [most, most], value=math.inf)
        for k in range(1, most + 1):
            either = torch.minimum(around.narrow(axis, most - k, n), around.narrow(axis, most + k, n))
            square = torch.minimum(square, either.add_(((k - 0.5) * s) ** 2))
    distance = square.sqrt()
    return torch.where(distance <= limit_mm, distance, torch.inf)


def signed_distance(mask: Bool[Tensor, "z y x"], spacing_mm: Spacing, limit_mm: float) -> Float[Tensor, "z y x"]:
    """mm from each voxel's centre `[z y x]` to the mask's surface of voxel faces, negative inside, cut at ±`limit_mm`.

    The volume's own border is no surface: a lesion that leaves the scan goes on beyond it.
    """
    outside, inside = _distance_to(torch.stack([mask, ~mask]), spacing_mm, limit_mm)
    return torch.where(mask, -inside, outside).clamp(-limit_mm, limit_mm)


def band(mask: Bool[Tensor, "z y x"], spacing_mm: Spacing, band_mm: float) -> Bool[Tensor, "z y x"]:
    """Voxels whose centre is at most `band_mm` from the mask's surface, on either side. Empty for an empty mask."""
    near = torch.zeros_like(mask)
    box = bounding_box(mask, spacing_mm, band_mm + max(spacing_mm))
    if box is not None:
        part = mask[box]
        near[box] = signed_distance(part, spacing_mm, band_mm + max(spacing_mm)).abs() <= band_mm
    return near


def relative_contrast(
    image: Float[Tensor, "z y x"],
    mask: Bool[Tensor, "z y x"],
    liver: Bool[Tensor, "z y x"] | None,
    spacing_mm: Spacing,
    distance: Float[Tensor, "z y x"] | None = None,
    nearest: Int[np.ndarray, "3 z y x"] | None = None,
) -> Float[Tensor, "z y x"]:
    """How like the nearest lesion, 1, or like the tissue around it, -1, each voxel's HU is; cut at twice that.

    Zero is the middle between the medians of the lesion's inside and of the liver around it (Chan & Vese 2001), where a
    blurred edge runs. Zero everywhere near a lesion that has no contrast, or no liver around it. `distance` (cut at `CONTRAST_MM` or
    beyond) and `nearest` of the mask, where known already.
    """
    hu, inside = image.float().cpu().numpy(), mask.cpu().numpy()
    lesions, n = ndimage.label(inside, np.ones((3, 3, 3)))
    out = np.zeros(hu.shape, np.float32)
    if n:
        distance = signed_distance(mask, spacing_mm, CONTRAST_MM) if distance is None else distance
        distance = distance.cpu().numpy()
        owner = lesions[tuple(_nearest(mask, spacing_mm) if nearest is None else nearest)]
        tissue = (distance > AROUND_MM[0]) & (distance < AROUND_MM[1])
        if liver is not None:
            tissue &= liver.cpu().numpy()
        for k, box in enumerate(ndimage.find_objects(owner), 1):
            own, values, deep = owner[box] == k, hu[box], distance[box] < -CORE_MM
            around, core = values[own & tissue[box]], values[own & deep]
            if len(core) < 4:
                core = values[lesions[box] == k]
            if len(around) < 10:
                continue
            high, low = np.median(core), np.median(around)
            if abs(high - low) >= LEAST_HU:
                out[box][own] = np.clip((values[own] - low) / (high - low) * 2 - 1, -2, 2)
    return torch.as_tensor(out, device=image.device)


def _nearest(mask: Tensor, spacing_mm: Spacing) -> Int[np.ndarray, "3 z y x"]:
    """Everywhere the indices of the nearest voxel of the mask."""
    return ndimage.distance_transform_edt(~mask.cpu().numpy(), spacing_mm, return_distances=False, return_indices=True)


# ------------------------------------------------------------------------------------------------ the net


class PatchNet(nn.Module):
    """Patches `[n 4 pz py px]` -> logits `[n]`; `dense` gives every voxel of a larger block at once."""

    def __init__(self, settings: BoundarySettings = DEMO):
        super().__init__()
        self.settings = settings
        widths = (CHANNELS, *settings.widths)
        self.conv = nn.ModuleList(
            nn.Conv3d(a, b, k, bias=False) for a, b, k in zip(widths, widths[1:], settings.kernels)
        )
        self.norm = nn.ModuleList(nn.BatchNorm3d(b) for b in (*settings.widths, *settings.dense_widths, MIDDLE))
        a, b = settings.dense_widths
        self.fc6 = nn.Conv3d(widths[-1], a, settings.fc6_kernel(), bias=False)
        self.middle = nn.Conv3d(CHANNELS, MIDDLE, 3, bias=False)
        self.fc7 = nn.Conv3d(a + MIDDLE, b, 1, bias=False)
        self.fc8 = nn.Conv3d(b, 1, 1)
        self.trust = nn.Parameter(torch.ones(()))  # in the cascade's own log odds
        for layer in (*self.conv, self.fc6, self.fc7, self.middle):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc8.bias)

    def forward(self, patches: Float[Tensor, "n c pz py px"]) -> Float[Tensor, " n"]:
        return self._through(patches.contiguous(memory_format=torch.channels_last_3d), dense=False).flatten()

    def dense(
        self, block: Float[Tensor, "b c zp yp xp"], seeds: Sequence[int] | None = None
    ) -> Float[Tensor, "b z y x"]:
        """`[b 4 z+pz-1 y+py-1 x+px-1]` -> logits `[b z y x]`: what `forward` gives for the patch around each voxel.

        `seeds`: one a block, of what is dropped in training; without them nothing is.
        """
        return self._through(block.contiguous(memory_format=torch.channels_last_3d), dense=True, seeds=seeds)[:, 0]

    def _through(self, x: Tensor, dense: bool, seeds: Sequence[int] | None = None) -> Tensor:
        odds = torch.logit((self._inner(x)[:, 1:2] + 1) / 2, eps=0.05)  # the cascade's, no surer than 20 to 1
        *layers, fc6, fc7, unpooled = self._layers()
        step = (1, 1, 1)  # voxels between neighbours that a kernel sees
        middle = F.relu(unpooled(self._inner(x, 1), step))
        for i, layer in enumerate(layers):
            x = F.relu(layer(x, step), inplace=True)
            if i < 2:
                size, stride = self.settings.pools()[i]
                x = F.max_pool3d(x, size, 1, dilation=step) if dense else F.max_pool3d(x, size, stride)
                step = tuple(a * b for a, b in zip(step, stride)) if dense else step
        x = torch.cat([F.relu(fc6(x, step)), middle], 1)
        x = F.relu(fc7(self._drop(x, seeds, 0), step), inplace=True)
        return self.fc8(self._drop(x, seeds, 1)) + self.trust * odds

    def _drop(self, x: Tensor, seeds: Sequence[int] | None, layer: int) -> Tensor:
        """Dropout whose mask follows from each block's own seed: a resumed run drops the same."""
        share = self.settings.dropout
        if not self.training or seeds is None or share == 0:
            return x
        generators = [torch.Generator(x.device).manual_seed(2 * int(seed) + layer) for seed in seeds]
        chance = torch.stack([torch.rand(x.shape[1:], generator=g, device=x.device) for g in generators])
        return x * (chance >= share) / (1 - share)

    def _inner(self, x: Tensor, beyond: int = 0) -> Tensor:
        """The voxels that are decided and `beyond` around them: the block without its patches' margins."""
        cut = [p // 2 - beyond for p in self.settings.patch]
        return x[:, :, cut[0] : x.shape[2] - cut[0], cut[1] : x.shape[3] - cut[1], cut[2] : x.shape[4] - cut[2]]

    def _layers(self) -> list[Callable[[Tensor, Size], Tensor]]:
        """Convolution and batch norm of each layer, in the order of `norm`, as functions of a tensor and the step between the
        voxels that a kernel sees; one convolution at inference, where the norm is a fixed scale and shift."""
        convolutions = [*self.conv, self.fc6, self.fc7, self.middle]
        if self.training:
            return [partial(_normed, weight=conv.weight, norm=norm) for conv, norm in zip(convolutions, self.norm)]
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (torch.cat([getattr(norm, name) for norm in self.norm]) for name in names)
        scale = weight * torch.rsqrt(variance + self.norm[0].eps)
        each = [len(norm.weight) for norm in self.norm]
        return [
            partial(_convolved, weight=conv.weight * one[:, None, None, None, None], bias=shift)
            for conv, one, shift in zip(convolutions, scale.split(each), (bias - mean * scale).split(each))
        ]


def _convolved(x: Tensor, step: Size, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, weight, bias, dilation=step)


def _normed(x: Tensor, step: Size, weight: Tensor, norm: nn.BatchNorm3d) -> Tensor:
    return norm(F.conv3d(x, weight, dilation=step))


# ------------------------------------------------------------------------------------------------ the grid in mm


def _weights(n_in: int, start_in: int, n_out: int, start_out: int, scale: float, device: torch.device) -> Tensor:
    """Linear interpolation [out in] between two grids with one outer corner; `scale` is out / in spacing.

    A triangle as wide as the new voxel when shrinking. `start_*`: where the part at hand begins on its grid.
    """
    centre = (torch.arange(start_out, start_out + n_out, dtype=torch.float64) + 0.5) * scale - 0.5 - start_in
    centre = centre.clamp(0, n_in - 1)
    weight = (1 - (torch.arange(n_in) - centre[:, None]).abs() / max(scale, 1.0)).clamp_min(0)
    return (weight / weight.sum(1, keepdim=True)).float().to(device)  # small: many steps on a GPU would take longer


def _carry(array: Tensor, box_in: Box, spacing_in: Spacing, box_out: Box, spacing_out: Spacing) -> Tensor:
    """The part `array` `[.. z y x]` (voxels `box_in` of one grid) at the voxels `box_out` of another grid in mm; float32."""
    out = array.float()
    for axis in (-3, -2, -1):
        a, b = box_in[axis], box_out[axis]
        scale = spacing_out[axis] / spacing_in[axis]
        if scale == 1 and (a.start, a.stop) == (b.start, b.stop):
            continue
        weight = _weights(a.stop - a.start, a.start, b.stop - b.start, b.start, scale, out.device)
        out = torch.movedim(torch.tensordot(weight, out, dims=([1], [axis])), 0, axis)
    return out.contiguous()


class _OnGrid(NamedTuple):
    """A part of a scan on the net's grid: channels `[4 z y x]`, which voxels belong to a band, and where it lies."""

    channels: Tensor
    band: Tensor
    drawn: Tensor  # the mask
    native_box: Box
    grid_box: Box
    distance: Tensor  # native, signed, mm
    nearest: Int[np.ndarray, "3 z y x"]  # voxel of the mask, native


def _onto_grid(
    image: Tensor,
    tumor_probability: Tensor,
    mask: Tensor,
    liver: Tensor | None,
    spacing_mm: Spacing,
    settings: BoundarySettings,
    reach: Size,
) -> _OnGrid | None:
    """Channels around the mask, `reach` grid voxels beyond its band where the volume has them; None without a band."""
    grid = settings.grid_mm
    full = tuple(max(1, round(n * s / g)) for n, s, g in zip(mask.shape, spacing_mm, grid))
    margin = settings.band_mm + max((r + 2) * g for r, g in zip(reach, grid))
    native = bounding_box(mask, spacing_mm, margin)
    if native is None:
        return None
    far = signed_distance(mask[native], spacing_mm, max(CONTRAST_MM, 1.01 * settings.band_mm))
    distance = far.clamp(-1.01 * settings.band_mm, 1.01 * settings.band_mm)
    near = distance.abs() <= settings.band_mm
    if not bool(near.any()):
        return None
    box = tuple(
        slice(min(max(0, math.floor(b.start * s / g)), n - 1), max(1, min(n, math.ceil(b.stop * s / g))))
        for b, s, g, n in zip(native, spacing_mm, grid, full)
    )
    low, high = settings.window_hu
    nearest = _nearest(mask[native], spacing_mm)
    around = None if liver is None else liver[native]
    contrast = relative_contrast(image[native], mask[native], around, spacing_mm, far, nearest)
    parts = (image[native], tumor_probability[native], distance, contrast, mask[native], near)
    hu, p, away, contrast, drawn, near = _carry(torch.stack([v.float() for v in parts]), native, spacing_mm, box, grid)
    channels = torch.stack(
        [
            (hu.clamp(low, high) - low) / (high - low) * 2 - 1,
            p * 2 - 1,
            (away / settings.band_mm).clamp(-1, 1),
            contrast,
        ]
    )
    return _OnGrid(channels, near > 0, drawn >= 0.5, native, box, distance, nearest)


def _block(array: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Voxels `[... size]` from `start` on, the border's repeated beyond it."""
    for axis, (a, n) in enumerate(zip(start, size)):
        axis -= 3
        at = torch.arange(a, a + n, device=array.device).clamp(0, array.shape[axis] - 1)
        array = array.index_select(axis, at)
    return array


def patches_at(channels: Tensor, at: Tensor, patch: Size) -> Tensor:
    """The patch around each voxel `at` `[n 3]` of `channels` `[c z y x]`, border voxels repeated: `[n c pz py px]`."""
    index = []
    for axis, p in enumerate(patch):
        offsets = torch.arange(p, device=at.device) - p // 2
        shape = [len(at), 1, 1, 1]
        shape[axis + 1] = p
        index.append((at[:, axis, None] + offsets).clamp(0, channels.shape[axis + 1] - 1).view(shape))
    return channels[:, index[0], index[1], index[2]].movedim(0, 1)


def _tiles(wanted: Tensor, largest: Size) -> Iterator[Box]:
    """Boxes no larger than `largest` that cover the wanted voxels, one or more for each connected piece."""
    pieces = ndimage.find_objects(ndimage.label(wanted.cpu().numpy(), np.ones((3, 3, 3)))[0])
    for piece in pieces:
        cuts = []
        for s, most in zip(piece, largest):
            n = math.ceil((s.stop - s.start) / most)
            edges = [s.start + round(i * (s.stop - s.start) / n) for i in range(n + 1)]
            cuts.append([slice(a, b) for a, b in zip(edges, edges[1:])])
        for z in cuts[0]:
            for y in cuts[1]:
                for x in cuts[2]:
                    if bool(wanted[z, y, x].any()):
                        yield z, y, x


@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # dense and patch by patch agree to 1e-4
def dense_logits(
    net: PatchNet, channels: Float[Tensor, "c z y x"], wanted: Bool[Tensor, "z y x"], largest: Size = (32, 64, 64)
) -> Float[Tensor, "z y x"]:
    """Logits `[z y x]` at the wanted voxels (and others of their tiles), 0 elsewhere. Memory is that of one tile."""
    patch = net.settings.patch
    logits = torch.zeros(wanted.shape, device=channels.device)
    for tile in _tiles(wanted, largest):
        start = [s.start - p // 2 for s, p in zip(tile, patch)]
        size = [s.stop - s.start + p - 1 for s, p in zip(tile, patch)]
        logits[tile] = net.dense(_block(channels, start, size)[None])[0]
    return logits


@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # dense and patch by patch agree to 1e-4
def patch_logits(
    net: PatchNet, channels: Float[Tensor, "c z y x"], wanted: Bool[Tensor, "z y x"], batch: int = 128
) -> Float[Tensor, "z y x"]:
    """The same, one patch a wanted voxel: the definition that `dense_logits` is tested against."""
    logits = torch.zeros(wanted.shape, device=channels.device)
    for at in wanted.nonzero().split(batch):
        logits[tuple(at.T)] = net(patches_at(channels, at, net.settings.patch))
    return logits


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class BoundaryModel:
    """A trained net with its settings; `curves`: step, loss, seconds, and on held-out patients the share of band voxels
    that the mask (`mask_error`) and the net (`net_error`) have wrong. `skipped`: cases without a band."""

    net: PatchNet
    settings: BoundarySettings
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    skipped: int = 0


def load(folder: Path, settings: BoundarySettings | None = None, device: torch.device | str = "cpu") -> BoundaryModel:
    """The model in `folder`. Refused when damaged, or when trained with other settings than those given.

    Settings that a stored model does not name yet are at their defaults.
    """
    path = Path(folder) / "model"
    tensors, about = load_tensors(path)
    curve = about.get("curve", about.get("curves"))  # format 2 had all on one level
    about = about.get("config") or about
    if about.get("format") not in (2, FORMAT):
        raise Refused(path, f"format {about.get('format')}", f"format {FORMAT}", "Train the boundary stage again.")
    stored = from_dict(BoundarySettings, about.get("settings"), path)
    unknown = set(about["settings"]) - {f.name for f in fields(BoundarySettings)}
    if unknown:
        raise Refused(path, f"settings {sorted(unknown)}", "those of this version", "Train the boundary stage again.")
    if settings is not None and settings != stored:
        asked, own = asdict(settings), asdict(stored)
        other = [f"{n} {own[n]} instead of {asked[n]}" for n in sorted(own) if own[n] != asked[n]]
        raise Refused(
            folder, "; ".join(other), "the settings asked for", "Train again, or use the model's own settings."
        )
    net = PatchNet(stored)
    fill(net, tensors, path)
    try:
        curve = pd.DataFrame(curve)
    except ValueError as error:
        raise Refused(path, f"a curve that is no table ({error})", "rows of figures", DAMAGED) from error
    return BoundaryModel(net.to(device).eval(), stored, curve, int(about.get("skipped") or 0))


LEARNT_FOR = (
    "grid_mm",
    "patch",
    "widths",
    "kernels",
    "pool2_stride",
    "dense_widths",
    "window_hu",
)  # what weights depend on


def _weights_of(folder: Path, settings: BoundarySettings) -> dict[str, Tensor]:
    """A trained net's weights to begin with; refused when they were learnt for another net, grid or window."""
    model = load(folder)
    other = [n for n in LEARNT_FOR if getattr(model.settings, n) != getattr(settings, n)]
    if other:
        raise Refused(
            folder,
            "; ".join(f"{n} {getattr(model.settings, n)} instead of {getattr(settings, n)}" for n in other),
            "a net of the same shape, grid and window to begin with",
        )
    return model.net.state_dict()


class _Bank(NamedTuple):
    """Cases on the grid, ready to cut tiles from. `lesions`: (case, band voxels `[n 3]`) a lesion."""

    parts: list[_OnGrid]
    truths: list[Tensor]
    lesions: list[tuple[int, Tensor]]


def _bank(cases: Sequence[Case], settings: BoundarySettings, device: torch.device | str) -> tuple[_Bank, int]:
    """The cases that have a band, and how many have none."""
    bank, skipped = _Bank([], [], []), 0
    reach = tuple(p // 2 + t // 2 for p, t in zip(settings.patch, settings.tile))
    for case in cases:
        shapes = {tuple(torch.as_tensor(a).shape) for a in case[:4]}
        if len(shapes) != 1:
            raise Refused(
                case.patient, f"arrays of shapes {sorted(shapes)}", "one grid for image, probability, mask and truth"
            )
        image, probability, mask, truth = (torch.as_tensor(a).to(device) for a in case[:4])
        liver = None if case.liver is None else torch.as_tensor(case.liver).to(device).bool()
        mask = _touching(mask.bool(), truth > 0)
        part = _onto_grid(image, probability, mask, liver, case.spacing_mm, settings, reach)
        if part is None:
            skipped += 1
            continue
        bank.parts.append(part._replace(nearest=np.empty((3, 0, 0, 0), np.int32)))  # not needed here, and large
        bank.truths.append(
            _carry(truth[part.native_box] > 0, part.native_box, case.spacing_mm, part.grid_box, settings.grid_mm)
        )
        pieces, n = ndimage.label(part.band.cpu().numpy(), np.ones((3, 3, 3)))
        for k in range(1, n + 1):
            bank.lesions.append((len(bank.parts) - 1, torch.as_tensor(np.argwhere(pieces == k))))
    return bank, skipped


def _touching(mask: Tensor, truth: Tensor) -> Tensor:
    """The pieces of `mask` that overlap the truth: a false candidate has no boundary to learn from."""
    pieces = ndimage.label(mask.cpu().numpy(), np.ones((3, 3, 3)))[0]
    hit = np.unique(pieces[(mask & truth).cpu().numpy()])
    return torch.as_tensor(np.isin(pieces, hit), device=mask.device) & mask


def _draw(bank: _Bank, settings: BoundarySettings, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The batch of one step, from (seed, step) alone: blocks `[b 4 ...]`, targets and loss weights `[b z y x]`, and a
    seed a block for dropout."""
    rng = np.random.default_rng([seed, step])
    patch, tile = settings.patch, settings.tile
    low, high = settings.window_hu
    blocks, targets, weights = [], [], []
    for _ in range(settings.batch):
        index, voxels = bank.lesions[rng.integers(len(bank.lesions))]
        centre = voxels[rng.integers(len(voxels))]
        start = [int(c) - t // 2 for c, t in zip(centre, tile)]
        part, truth = bank.parts[index], bank.truths[index]
        block = _block(
            part.channels, [a - p // 2 for a, p in zip(start, patch)], [t + p - 1 for t, p in zip(tile, patch)]
        )
        target, weight = _block(truth, start, tile), _block(part.band, start, tile).float()
        for axis, (a, t, n) in enumerate(zip(start, tile, truth.shape)):  # repeated border voxels carry no loss
            at = torch.arange(a, a + t, device=weight.device)
            weight = weight * ((at >= 0) & (at < n)).float().view([-1 if i == axis else 1 for i in range(3)])
        turned = [axis - 3 for axis in range(3) if rng.random() < 0.5]
        block, target, weight = (torch.flip(a, turned) if turned else a for a in (block, target, weight))
        noise = torch.as_tensor(rng.standard_normal(block.shape[1:], np.float32), device=block.device)
        hu = block[0] + 2 / (high - low) * (
            rng.uniform(-1, 1) * settings.shift_hu + rng.random() * settings.noise_hu * noise
        )
        blocks.append(torch.cat([hu.clamp(-1, 1)[None], block[1:]]))
        targets.append(target)
        weights.append(weight)
    seeds = rng.integers(2**62, size=settings.batch).tolist()
    return torch.stack(blocks), torch.stack(targets), torch.stack(weights), seeds


def _objective(net: PatchNet, batch: tuple[Tensor, Tensor, Tensor, list[int]]) -> Tensor:
    """Cross entropy over the band, the mean over tiles: a large lesion's tile holds more of the band than a small one's."""
    block, target, weight, seeds = batch
    loss = F.binary_cross_entropy_with_logits(net.dense(block, seeds).float(), target, reduction="none")
    return ((loss * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)).mean()


def _errors(net: PatchNet, bank: _Bank) -> dict[str, float]:
    """Share of the band's voxels that the mask and the net have wrong, averaged over cases."""
    rows = []
    for part, truth in zip(bank.parts, bank.truths):
        on = truth[part.band] >= 0.5
        drawn = part.drawn[part.band]
        said = dense_logits(net, part.channels, part.band)[part.band] >= 0
        rows.append([float((drawn != on).float().mean()), float((said != on).float().mean())])
    mask_error, net_error = np.mean(rows, axis=0)
    return {"mask_error": float(mask_error), "net_error": float(net_error)}


def train(
    cases: Sequence[Case],
    settings: BoundarySettings = DEMO,
    seed: int = 0,
    progress: Callable[[str, int, int, dict], None] | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    start: Path | None = None,
) -> BoundaryModel:
    """Train on the bands of predicted lesions. A share of the patients is held out, for the curve only.

    It begins with the net in the folder `start`, if one is given, else with random weights. Saves `folder/model`, and goes on from
    its checkpoint where there is one. Refused when no case has a band.
    """
    cases = [case if isinstance(case, Case) else Case(**case) for case in cases]
    patients = sorted({case.patient for case in cases})
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[i] for i in order[: int(settings.validation_share * len(patients))]}
    training, skipped = _bank([c for c in cases if c.patient not in held_out], settings, device)
    checking, none = _bank([c for c in cases if c.patient in held_out], settings, device)
    if not training.lesions:
        raise Refused(
            "boundary training",
            f"{len(cases)} cases without a predicted lesion",
            "at least one lesion to learn from",
            "Train the tumor stage longer, or lower its threshold.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PatchNet(settings)
    if start is not None:
        net.load_state_dict(_weights_of(start, settings))
    net.to(device, memory_format=torch.channels_last_3d)
    curves = fit(
        net,
        lambda step: _draw(training, settings, seed, step),
        _objective,
        FitSettings(
            steps=settings.steps,
            batch=settings.batch,
            rate=settings.rate,
            weight_decay=settings.weight_decay,
            check_every=max(1, settings.steps // 8),
            seed=seed,
            ema=settings.ema,
        ),
        folder,
        "model",
        {"format": FORMAT, "settings": asdict(settings), "skipped": skipped + none},
        (lambda net, _: _errors(net, checking)) if checking.parts else None,
        device,
        progress,
    )
    return BoundaryModel(net, settings, curves, skipped + none)


# ------------------------------------------------------------------------------------------------ relabelling


@dataclass(frozen=True)
class Relabelled:
    """What the band became, all `[z y x]` on the input's grid. `lesions`: one row a lesion of the mask."""

    mask: Tensor  # bool
    probability: Tensor  # the net's (and the blend's) in the band, less for a doubtful piece; the cascade's elsewhere
    added: Tensor
    removed: Tensor
    band: Tensor
    smoothing_change_ml: float  # of the contour's smoothing alone
    lesions: pd.DataFrame  # lesion, voxels_before, added, removed, voxels_after, parts, restored, unmerged


def _gaussian(field: Tensor, spacing_mm: Spacing, sigma_mm: float) -> Tensor:
    """Separable Gaussian in mm, the border's voxels repeated."""
    out = field[None, None]
    for axis, s in enumerate(spacing_mm):
        radius = math.ceil(3 * sigma_mm / s)
        if radius == 0 or sigma_mm == 0:
            continue
        at = torch.arange(-radius, radius + 1, device=field.device) * s
        kernel = torch.exp(-0.5 * (at / sigma_mm) ** 2)
        shape = [1] * 5
        shape[axis + 2] = -1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, pad, mode="replicate"), (kernel / kernel.sum()).view(shape))
    return out[0, 0]


def _one_for_one(old: Tensor, new: Tensor, spacing_mm: Spacing) -> tuple[Tensor, pd.DataFrame]:
    """`new`, changed so that each lesion of `old` is there, alone, and nothing else is; and a row for each lesion."""
    everywhere, out = np.ones((3, 3, 3)), new.clone()
    box = bounding_box(old | new, spacing_mm, 0) or (slice(0, 1),) * 3
    before, n = ndimage.label(old[box].cpu().numpy(), everywhere)
    after = new[box].cpu().numpy().copy()
    was = before > 0
    restored = np.setdiff1d(np.arange(1, n + 1), before[after])
    if len(restored):
        after |= np.isin(before, restored)
    unmerged = np.zeros(n + 1, int)
    pieces = ndimage.label(after, everywhere)[0]
    for k, part in enumerate(ndimage.find_objects(pieces), 1):
        piece = pieces[part] == k
        names = np.unique(before[part][piece & was[part]])
        if len(names) < 2:
            continue
        part = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in part)
        piece = pieces[part] == k
        seeds = np.where(np.isin(before[part], names), before[part], 0)
        nearest = ndimage.distance_transform_edt(seeds == 0, spacing_mm, return_distances=False, return_indices=True)
        owner = np.where(piece, seeds[tuple(nearest)], 0)
        most = ndimage.maximum_filter(owner, 3, mode="constant")
        least = ndimage.minimum_filter(np.where(piece, owner, n + 1), 3, mode="constant", cval=n + 1)
        bridge = piece & (most != least) & ~was[part]
        after[part] &= ~bridge
        unmerged += np.bincount(owner[bridge], minlength=n + 1)
    if unmerged.any():
        pieces = ndimage.label(after, everywhere)[0]
    m = int(pieces.max())
    rooted = np.zeros(m + 1, bool)
    rooted[pieces[was & after]] = True
    after &= rooted[pieces]
    home = np.zeros(m + 1, int)  # the old lesion of each new piece
    home[pieces[was & after]] = before[was & after]
    kept = np.bincount(before[was & after], minlength=n + 1)
    size = np.bincount(before[was], minlength=n + 1)
    added = np.bincount(home[pieces[after & ~was]], minlength=n + 1)
    parts = np.bincount(np.array(home[1:][rooted[1:]], int), minlength=n + 1)
    index = np.arange(1, n + 1)
    out[box] = torch.as_tensor(after, device=old.device)
    return out, pd.DataFrame(
        {
            "lesion": index,
            "voxels_before": size[1:],
            "added": added[1:],
            "removed": (size - kept)[1:],
            "voxels_after": (kept + added)[1:],
            "parts": parts[1:],
            "restored": np.isin(index, restored),
            "unmerged": unmerged[1:],
        }
    )


def relabel(
    model: BoundaryModel,
    image: Tensor,
    tumor_probability: Tensor,
    mask: Tensor,
    liver: Tensor | None,
    spacing_mm: Spacing,
    settings: BoundarySettings | None = None,
) -> Relabelled:
    """Decide the band of `mask` anew; outside the band nothing changes.

    image in HU; mask bool, or P(lesion) of the piece in each of its voxels and 0 elsewhere (`chances`); liver None sets no limit; all
    on one grid of `spacing_mm`. `settings` may differ from the model's in threshold, blend, smooth_mm and liver_margin_mm, and in a
    narrower band_mm.
    """
    own = model.settings
    settings = settings or own
    device = next(model.net.parameters()).device
    arrays = {"image": image, "tumor_probability": tumor_probability, "mask": mask} | (
        {} if liver is None else {"liver": liver}
    )
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(image.shape):
            raise Refused(
                name,
                f"grid {tuple(array.shape)}",
                f"{tuple(image.shape)}, the image's",
                "Resample one onto the other first.",
            )
    if settings.band_mm > own.band_mm:
        raise Refused("band_mm", f"{settings.band_mm}", f"at most {own.band_mm}, the band the net was trained on")
    image, tumor_probability, mask = (torch.as_tensor(a).to(device) for a in (image, tumor_probability, mask))
    chance, mask = mask, mask > 0
    nothing = torch.zeros_like(mask)
    probability = tumor_probability.float().clone()
    liver = None if liver is None else torch.as_tensor(liver).to(device).bool()
    part = _onto_grid(image, probability, mask, liver, spacing_mm, own, tuple(p // 2 for p in own.patch))
    if part is None:
        lesions = _one_for_one(mask, mask, spacing_mm)[1]
        return Relabelled(mask.clone(), probability, nothing, nothing.clone(), nothing.clone(), 0.0, lesions)
    box = part.native_box
    near = part.distance.abs() <= settings.band_mm
    logits = _carry(dense_logits(model.net, part.channels, part.band), part.grid_box, own.grid_mm, box, spacing_mm)
    drawn = mask[box]
    p = torch.where(near, logits.sigmoid() * (1 - settings.blend) + probability[box] * settings.blend, drawn.float())
    lesion = 1.0
    if chance.is_floating_point():
        at = tuple(torch.as_tensor(a, device=device, dtype=torch.long) for a in part.nearest)
        lesion = (2 * chance[box][at]).clamp_max(1)
    allowed = drawn if liver is None else drawn | _near_liver(liver[box], spacing_mm, settings.liver_margin_mm)
    sharp = torch.where(near, p * lesion >= settings.threshold, drawn)
    smooth = torch.where(near, _gaussian(p, spacing_mm, settings.smooth_mm) * lesion >= settings.threshold, drawn)
    if liver is not None:
        sharp, smooth = sharp & allowed, smooth & allowed
    decided, lesions = _one_for_one(drawn, smooth, spacing_mm)
    final, whole_band = mask.clone(), nothing.clone()
    final[box] = decided
    whole_band[box] = near
    probability[box] = torch.where(near, p * lesion, probability[box])
    voxel_ml = math.prod(spacing_mm) / 1000
    return Relabelled(
        final,
        probability,
        final & ~mask,
        mask & ~final,
        whole_band,
        float(smooth.sum() - sharp.sum()) * voxel_ml,
        lesions,
    )


def chances(labels: Tensor, numbers: ArrayLike, scores: ArrayLike) -> Float[Tensor, "z y x"]:
    """P(lesion) in the voxels of some numbered pieces `[z y x]`, never 0 there; 0 elsewhere."""
    of = torch.zeros(int(labels.max()) + 1)
    of[torch.tensor(np.asarray(numbers, np.int64))] = torch.tensor(np.asarray(scores, np.float32)).clamp_min(1e-6)
    return of.to(labels.device)[labels.long()]


def _near_liver(liver: Tensor, spacing_mm: Spacing, margin_mm: float) -> Tensor:
    return liver | _distance_to(liver, spacing_mm, margin_mm).isfinite()
