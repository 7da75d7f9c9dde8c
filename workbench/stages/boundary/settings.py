"""The boundary stage's settings, and what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from workbench.volume import Refused, Spacing

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
    validation_from: int = 20  # a choice: of fewer patients none is held out, all are learned from
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

    @property
    def reach(self) -> Size:
        """Voxels from a patch's middle to its border."""
        z, y, x = self.patch
        return z // 2, y // 2, x // 2

    def pools(self) -> tuple[tuple[Size, Size], tuple[Size, Size]]:
        """(kernel, stride) of pool1 and pool2."""
        return ((1, 3, 3), (1, 2, 2)), ((1, 2, 2), (1, self.pool2_stride, self.pool2_stride))

    def fc6_kernel(self) -> Size:
        """What is left of the patch after conv5."""
        z, y, x = self.patch
        for i, kernel in enumerate(self.kernels):
            z, y, x = (n - k + 1 for n, k in zip((z, y, x), kernel))
            if i < 2:
                size, stride = self.pools()[i]
                if any((n - k) % s for n, k, s in zip((z, y, x), size, stride)):
                    raise Refused(
                        "boundary settings",
                        f"patch {self.patch}",
                        "one that the pools divide evenly",
                        "Change the patch by 2 in the plane.",
                    )
                z, y, x = ((n - k) // s + 1 for n, k, s in zip((z, y, x), size, stride))
        if min(z, y, x) < 1:
            raise Refused("boundary settings", f"patch {self.patch}", f"one larger than the kernels {self.kernels}")
        return z, y, x


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
