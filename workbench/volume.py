"""A CT volume and its geometry: the one type that every stage shares.

Arrays are `[z y x]` in canonical order: z towards the head, y towards the back, x towards the patient's
left (LPS), so an axial slice `array[z]` drawn as it lies looks as radiologists draw it. Only readers and writers know
other orders. Spacing is in mm in the same order. `Source` remembers the file's own grid, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]
T = TypeVar("T")


def three(values: Iterable[T]) -> tuple[T, T, T]:
    """The three values, as a tuple whose type says that they are three."""
    z, y, x = values
    return z, y, x


def readable(text: str) -> str:
    """Text in one line that any screen and file takes: control characters, and bytes that are no UTF-8, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Refused(ValueError):
    """Input that the workbench will not use. One line: what, found, expected, what to do."""

    def __init__(self, subject: object, found: str, expected: str, fix: str = ""):
        line = f"{readable(str(subject))}: found {found}; expected {expected}." + (f" {fix}" if fix else "")
        super().__init__(readable(" ".join(line.split())))

    def __reduce__(self) -> tuple:
        return type(self).__new__, (type(self), *self.args)  # another process gets the line, whole


@dataclass(frozen=True)
class Source:
    """The grid of the file that a volume came from.

    `affine` maps file indices (i, j, k) to RAS mm, exactly as stored. `axes` and `flips` lead from the canonical
    `[z y x]` array to the file's `[i j k]`: `np.flip(np.transpose(array, axes), flips)`.
    """

    path: str
    shape: Shape
    affine: np.ndarray
    axes: Shape
    flips: tuple[int, ...]

    def to_file_order(self, array: np.ndarray) -> np.ndarray:
        return np.flip(np.transpose(array, self.axes), self.flips)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        return np.transpose(np.flip(array, self.flips), np.argsort(self.axes))


@dataclass(frozen=True)
class Volume:
    """Voxels `[z y x]` with spacing in mm and the affine from canonical indices (x, y, z) to RAS mm."""

    array: Tensor
    spacing_mm: Spacing
    affine: np.ndarray
    name: str = "volume"
    source: Source | None = None

    def __post_init__(self):
        if self.array.ndim != 3:
            raise Refused(self.name, f"{self.array.ndim} dimensions", "3 (z y x)")
        if not all(math.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise Refused(self.name, f"spacing {self.spacing_mm} mm", "three positive lengths")

    @property
    def shape(self) -> Shape:
        return three(self.array.shape)

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_mm) / 1000

    def with_array(self, array: Tensor, name: str | None = None) -> Volume:
        """The same grid with other voxels."""
        if tuple(array.shape) != self.shape:
            raise Refused(name or self.name, f"array {tuple(array.shape)}", f"the volume's grid {self.shape}")
        return replace(self, array=array, name=name or self.name)

    def in_file_order(self) -> tuple[Tensor, Spacing]:
        """Voxels [k j i] and spacing in mm as the file holds them, which is how SimpleITK and PyRadiomics see them.

        For what depends on the direction of an axis: even-length wavelets do. The volume's own when it comes from no file.
        """
        if self.source is None:
            return self.array, self.spacing_mm
        array = np.ascontiguousarray(self.source.to_file_order(self.array.cpu().numpy()).transpose(2, 1, 0))
        k, j, i = (self.spacing_mm[axis] for axis in reversed(self.source.axes))
        return torch.from_numpy(array), (k, j, i)

    def to(self, device: torch.device | str) -> Volume:
        return replace(self, array=self.array.to(device))


def canonical_affine(spacing_mm: Spacing) -> np.ndarray:
    """Affine (x, y, z) -> RAS mm of an axis-aligned canonical grid with its origin at 0."""
    z, y, x = spacing_mm
    return np.diag([-x, -y, z, 1.0])


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 1e-3) -> None:
    """Refuse two volumes whose voxels do not lie in the same places."""
    if a.shape != b.shape:
        raise Refused(
            b.name, f"grid {b.shape}", f"{a.shape}, the grid of {a.name}", "Resample one onto the other first."
        )
    corners = np.array(
        [[x, y, z, 1] for x in (0, a.shape[2]) for y in (0, a.shape[1]) for z in (0, a.shape[0])], float
    ).T
    apart = float(np.abs(a.affine @ corners - b.affine @ corners).max())
    if apart > tolerance_mm:
        raise Refused(
            b.name,
            f"voxels {apart:.3g} mm away from those of {a.name}",
            f"at most {tolerance_mm} mm",
            "Resample one onto the other first.",
        )


def shape_at(shape: Sequence[int], spacing_mm: Spacing, target_mm: tuple[float | None, ...]) -> Shape:
    """Grid of the same field of view at about `target_mm`; None keeps an axis as it is."""
    return three(n if t is None else max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm))


def _axis_weights(n_in: int, n_out: int, device: torch.device) -> Tensor:
    """Linear interpolation [out in]; a triangle as wide as the new voxel when shrinking, so nothing aliases."""
    scale = n_in / n_out
    centre = (torch.arange(n_out, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    centre = centre.clamp(0, n_in - 1)
    weight = (1 - (torch.arange(n_in, device=device) - centre[:, None]).abs() / max(scale, 1.0)).clamp_min(0)
    return weight / weight.sum(1, keepdim=True)


Box = tuple[slice, slice, slice]


def resample(array: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring `[z y x]` to another grid of the same field of view, linearly and without aliasing; float32."""
    out = array.float()
    for axis in sorted(range(3), key=lambda a: shape[a] / array.shape[a]):
        n_in, n_out = out.shape[axis], shape[axis]
        if n_in != n_out:
            weight = _axis_weights(n_in, n_out, out.device)
            out = torch.movedim(torch.tensordot(weight, out, dims=([1], [axis])), 0, axis)
    return out.contiguous()


def resample_part(array: Tensor, shape: Sequence[int], part: Box) -> Tensor:
    """`resample(array, shape)[part]`, worked out without the rest."""
    out = array.float()
    for axis in sorted(range(3), key=lambda a: shape[a] / array.shape[a]):
        n_in, n_out = out.shape[axis], shape[axis]
        weight = _axis_weights(n_in, n_out, out.device)[part[axis]] if n_in != n_out else None
        if weight is None:
            out = out.narrow(axis, part[axis].start, part[axis].stop - part[axis].start)
            continue
        used = weight.any(0).nonzero().flatten().tolist()
        first, count = used[0], used[-1] + 1 - used[0]
        near = out.narrow(axis, first, count)
        out = torch.movedim(torch.tensordot(weight[:, first : first + count], near, dims=([1], [axis])), 0, axis)
    return out.contiguous()


def resample_labels(array: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a label map to another grid of the same field of view: the nearest voxel, never a mixture."""
    for axis in (2, 1, 0):  # whole rows and slices are copied last, when there is most
        n_in, n_out = array.shape[axis], shape[axis]
        if n_in != n_out:
            at = ((torch.arange(n_out, device=array.device) + 0.5) * (n_in / n_out)).long().clamp(max=n_in - 1)
            array = array.index_select(axis, at)
    return array.contiguous()
