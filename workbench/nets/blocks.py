"""Blocks of the 2.5D network: dense encoder, sub-pixel decoder, multi-scale attention gates.

States: a densely connected encoder, sub-pixel convolution decoders and multi-scale attention gates.
Chooses: batch normalisation and ReLU after each 3x3 convolution; average pooling in the transitions (Huang et al. 2017);
ICNR initialisation (Aitken et al. 2017), so that the shuffled pixels start equal and no checkerboard appears; additive gates
(Oktay et al. 2018) that listen to the decoder at the skip's own scale and at the next coarser one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels_in: int, channels_out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU, the same height and width at stride 1."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class DenseBlock(nn.Module):
    """Each layer sees all that came before it in the block: [b c h w] -> [b c + layers * growth h w]."""

    def __init__(self, channels: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(conv(channels + i * growth, growth) for i in range(layers))
        self.channels_out = channels + layers * growth

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class SubPixelUp(nn.Module):
    """Twice the resolution by convolution and pixel shuffle: [b c h w] -> [b out 2h 2w]."""

    def __init__(self, channels_in: int, channels_out: int, activate: bool = True):
        super().__init__()
        self.expand = nn.Conv2d(channels_in, 4 * channels_out, 3, padding=1)
        self.activate = nn.ReLU(inplace=True) if activate else nn.Identity()
        with torch.no_grad():  # ICNR: the four sub-pixels of a channel start with one and the same kernel
            kernel = torch.empty(channels_out, channels_in, 3, 3)
            nn.init.kaiming_normal_(kernel)
            self.expand.weight.copy_(kernel.repeat_interleave(4, 0))
            assert self.expand.bias is not None
            self.expand.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(F.pixel_shuffle(self.expand(x), 2))  # [b 4c h w] -> [b c 2h 2w]


class AttentionGate(nn.Module):
    """Weighs a skip by what the decoder knows at its own scale and at the coarser one; returns (gated skip, map [b 1 h w])."""

    def __init__(self, skip: int, gate: int, coarse: int, width: int):
        super().__init__()
        self.skip = nn.Conv2d(skip, width, 1)
        self.gate = nn.Conv2d(gate, width, 1)
        self.coarse = nn.Conv2d(coarse, width, 1)
        self.weigh = nn.Conv2d(width, 1, 1)
        assert self.weigh.bias is not None
        nn.init.constant_(self.weigh.bias, 1.0)  # gates start mostly open

    def forward(self, skip: Tensor, gate: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        far = F.interpolate(self.coarse(coarse), size=skip.shape[-2:], mode="nearest")
        attention = torch.sigmoid(self.weigh(F.relu(self.skip(skip) + self.gate(gate) + far)))
        return skip * attention, attention
