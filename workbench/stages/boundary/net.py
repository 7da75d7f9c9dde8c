"""The patch net, patch by patch and dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage
from torch import Tensor, nn

from workbench.stages.boundary.settings import DEMO, BoundarySettings, Size
from workbench.volume import Box

CHANNELS = 4  # CT, tumor probability, signed distance to the mask, contrast relative to the lesion's own
EPSILON = 1e-5  # fixed: of the batch norms, torch's own
MIDDLE = 8  # features of the unpooled middle of a patch


class PatchNet(nn.Module):
    """Patches `[n 4 pz py px]` -> logits `[n]`; `dense` gives every voxel of a larger block at once."""

    def __init__(self, settings: BoundarySettings = DEMO):
        super().__init__()
        self.settings = settings
        widths = (CHANNELS, *settings.widths)
        self.conv = nn.ModuleList(
            nn.Conv3d(a, b, k, bias=False) for a, b, k in zip(widths, widths[1:], settings.kernels)
        )
        self.norm = nn.ModuleList(
            nn.BatchNorm3d(b, EPSILON) for b in (*settings.widths, *settings.dense_widths, MIDDLE)
        )
        a, b = settings.dense_widths
        self.fc6 = nn.Conv3d(widths[-1], a, settings.fc6_kernel(), bias=False)
        self.middle = nn.Conv3d(CHANNELS, MIDDLE, 3, bias=False)
        self.fc7 = nn.Conv3d(a + MIDDLE, b, 1, bias=False)
        self.fc8 = nn.Conv3d(b, 1, 1)
        self.trust = nn.Parameter(torch.ones(()))  # in the cascade's own log odds
        for layer in (*self.conv, self.fc6, self.fc7, self.middle):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert self.fc8.bias is not None  # Conv3d has one unless told otherwise
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
        odds = self.known((self._inner(x)[:, 1:2] + 1) / 2)
        *layers, fc6, fc7, unpooled = self._layers()
        step = (1, 1, 1)  # voxels between neighbours that a kernel sees
        middle = F.relu(unpooled(self._inner(x, 1), step))
        for i, layer in enumerate(layers):
            x = F.relu(layer(x, step), inplace=True)
            if i < 2:
                size, stride = self.settings.pools()[i]
                x = F.max_pool3d(x, size, 1, dilation=step) if dense else F.max_pool3d(x, size, stride)
                if dense:
                    step = (step[0] * stride[0], step[1] * stride[1], step[2] * stride[2])
        x = torch.cat([F.relu(fc6(x, step)), middle], 1)
        x = F.relu(fc7(self._drop(x, seeds, 0), step), inplace=True)
        return self.fc8(self._drop(x, seeds, 1)) + odds

    def known(self, tumor_probability: Tensor) -> Tensor:
        """What the cascade's probability counts for in the logits: its log odds, no surer than 20 to 1, as far as they are trusted."""
        return self.trust * torch.logit(tumor_probability, eps=0.05)

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
        scale = weight * torch.rsqrt(variance + EPSILON)
        each = [*self.settings.widths, *self.settings.dense_widths, MIDDLE]
        return [
            partial(_convolved, weight=conv.weight * one[:, None, None, None, None], bias=shift)
            for conv, one, shift in zip(convolutions, scale.split(each), (bias - mean * scale).split(each))
        ]


def _convolved(x: Tensor, step: Size, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, weight, bias, dilation=step)


def _normed(x: Tensor, step: Size, weight: Tensor, norm: nn.Module) -> Tensor:
    return norm(F.conv3d(x, weight, dilation=step))


def block_at(
    array: Shaped[Tensor, "*c z y x"], start: Sequence[int], size: Sequence[int]
) -> Shaped[Tensor, "*c bz by bx"]:
    """Voxels `[... size]` from `start` on, the border's repeated beyond it."""
    for axis, (a, n) in enumerate(zip(start, size)):
        axis -= 3
        at = torch.arange(a, a + n, device=array.device).clamp(0, array.shape[axis] - 1)
        array = array.index_select(axis, at)
    return array


def patches_at(
    channels: Float[Tensor, "c z y x"], at: Int[Tensor, "n 3"], patch: Size
) -> Float[Tensor, "n c pz py px"]:
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
        logits[tile] = net.dense(block_at(channels, start, size)[None])[0]
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
