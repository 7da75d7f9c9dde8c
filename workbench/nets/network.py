"""The 2.5D network of both cascade stages: an odd stack of axial slices in, the centre slice's logits out.

    slab [b s h w] -> stem -> dense -> pool -> dense -> pool -> ... -> bottom
                                |               |                       |
                              gate <--------- gate <------------- sub-pixel up
                                |               |
    logits [b 1 h w] <- head <- merge <- up <- merge <- up ...      each scale also gives logits (deep supervision)

States: attention-enhanced cascaded U-Net on short stacks of axial slices, dense encoder, sub-pixel decoder, multi-scale gates.
Chooses: widths and depths below. With `stem_stride` 2 the net works at half the resolution and a last sub-pixel
step brings the logits back: four times cheaper, which is what makes the demo's few minutes on two cores possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.nets.blocks import AttentionGate, DenseBlock, SubPixelUp, conv
from workbench.volume import Refused


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of one network. `layers` gives the dense layers of each scale, finest first."""

    slices: int = 3
    extra: int = 0  # further input channels of the centre slice, such as the liver probability
    width: int = 16
    growth: int = 12
    layers: tuple[int, ...] = (2, 3, 4, 4)
    stem_stride: int = 2

    def __post_init__(self):
        if self.slices < 1 or self.slices % 2 == 0:
            raise Refused("slices", str(self.slices), "an odd number, since the centre slice is predicted")
        if self.stem_stride not in (1, 2):
            raise Refused("stem_stride", str(self.stem_stride), "1 or 2")

    @property
    def multiple(self) -> int:
        """In-plane sizes must be a multiple of this."""
        return self.stem_stride * 2 ** (len(self.layers) - 1)


class SlabNet(nn.Module):
    """[b slices+extra h w] -> logits [b 1 h w]; in training a list of logits, finest first."""

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = settings
        self.stem = conv(settings.slices + settings.extra, settings.width, 3, settings.stem_stride)
        channels, self.encode, self.shrink, skips = settings.width, nn.ModuleList(), nn.ModuleList(), []
        for layers in settings.layers:
            block = DenseBlock(channels, settings.growth, layers)
            self.encode.append(block)
            skips.append(block.channels_out)
            channels = block.channels_out // 2 + settings.width // 2
            self.shrink.append(conv(block.channels_out, channels, 1))
        del self.shrink[-1]
        decoded = skips[-1]
        self.up, self.gate, self.merge, self.head = (nn.ModuleList() for _ in range(4))
        for level, skip in reversed(list(enumerate(skips[:-1]))):
            width = settings.width + settings.growth * level
            self.up.append(SubPixelUp(decoded, width))
            self.gate.append(AttentionGate(skip, width, decoded, max(8, width // 2)))
            self.merge.append(conv(skip + width, width))
            self.head.append(nn.Conv2d(width, 1, 1))
            decoded = width
        self.last = SubPixelUp(decoded, 1, activate=False) if settings.stem_stride == 2 else nn.Conv2d(decoded, 1, 1)
        for head in self.head:
            assert isinstance(head.bias, Tensor)
            nn.init.constant_(head.bias, -2.0)  # lesions are rare: start low

    def layout(self, h: int, w: int) -> list[dict]:
        """The scales for an input of h x w pixels, finest first: pixels, dense layers, and channels of each part.

        `encoded` what the dense block gives (the skip), `passed` what goes down from it, `raised` and `decoded` on the way
        up; the coarsest scale has none of the last three.
        """
        rows = []
        ups: list[Any] = [*zip(self.up, self.merge)][::-1]
        shrinks: list[Any] = [*self.shrink]
        parts: list[Any] = [*self.encode]  # torch gives Modules back as `Tensor | Module`
        for level, encode in enumerate(parts):
            shrink = 2**level * self.settings.stem_stride
            row = {"pixels": (h // shrink, w // shrink), "layers": len(encode.layers), "encoded": encode.channels_out}
            if level < len(self.shrink):
                up, merge = ups[level]
                row |= {
                    "passed": next(iter(shrinks[level].children())).out_channels,
                    "raised": up.expand.out_channels // 4,
                    "decoded": next(merge.children()).out_channels,
                }
            rows.append(row)
        return rows

    def forward(self, x: Tensor, attention: bool = False):
        skips, x = [], self.stem(x)
        for level, encode in enumerate(self.encode):
            x = encode(x)
            skips.append(x)
            if level < len(self.shrink):
                x = F.avg_pool2d(self.shrink[level](x), 2)
        logits, maps = [], []
        for up, gate, merge, head, skip in zip(self.up, self.gate, self.merge, self.head, reversed(skips[:-1])):
            raised = up(x)
            gated, weight = gate(skip, raised, x)
            x = merge(torch.cat([gated, raised], 1))
            logits.append(head(x))
            maps.append(weight)
        logits.append(self.last(x))
        if attention:
            return logits[-1], maps[::-1]
        return logits[::-1] if self.training else logits[-1]
