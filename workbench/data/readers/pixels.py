"""The voxels of DICOM slices, as HU."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from workbench.data.readers import gates, walk
from workbench.data.readers.slices import DAMAGE, Slice, dataset, first_line
from workbench.volume import Refused, Volume

if TYPE_CHECKING:
    from pydicom import Dataset


BITS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
AIR, MOST_HU = -1024, 3071  # fixed: the range of CT numbers in 12 bits


def hu_of(slices: list[Slice], folder: Path, rescale: tuple[float, ...] | None = None) -> np.ndarray:
    """HU `[column row slice]`; slope and intercept are each slice's own. Padding that would be brighter than air becomes air."""
    decodable(slices, folder)
    hu = np.empty((len(slices), slices[0].rows, slices[0].columns), np.int16)
    bare = untold = 0
    for k, s in enumerate(slices):
        stored, whole, padding = voxels_of(s)
        if not (padding is None and whole.PixelRepresentation == 0 and whole.BitsStored == 16):
            pass
        elif (high := stored >= 0xF000).any() and not ((stored >= 0x8000) & ~high).any():
            if len(np.unique(stored[high])) > 1:
                raise Refused(s.file, f"PixelRepresentation 0 (no signs) with {high.mean():.1%} of the pixels from {stored[high].min()} to "
                              f"{stored[high].max()}, as negative numbers look", "PixelRepresentation 1 for negative values",
                              "Correct the header, or fetch the original series.")  # fmt: skip
            padding, untold = high, untold + 1
        if rescale is None:
            value, told = _rescaled(stored, whole, s.file)
            bare += not told
        else:
            value = stored.astype(np.float64) * rescale[0] + rescale[1]
        if padding is not None:
            value[_outside(padding, value)] = AIR
        if hu.dtype == np.int16 and gates.smallest(value).dtype != np.int16:
            hu = hu.astype(np.float32)  # one slice with fractions makes the volume float32
        hu[k] = value
    if bare:
        gates.warn(
            folder, f"{bare} of {len(slices)} slices have no RescaleIntercept: their stored values are taken for HU"
        )
    if untold:
        gates.warn(
            folder, f"{untold} of {len(slices)} slices have padding that no PixelPaddingValue tells of: taken for air"
        )
    return hu.transpose(2, 1, 0)


def _rescaled(stored: np.ndarray, whole, file: Path) -> tuple[np.ndarray, bool]:
    """HU of stored values by the header's slope and intercept or its Modality LUT, and whether it told of them."""
    fix = "Say what is right: workbench convert FOLDER -o NEW.nii.gz --rescale 1,-1024 (slope, intercept)."
    if whole.get("ModalityLUTSequence") and "RescaleSlope" not in whole:
        (item,) = whole.ModalityLUTSequence
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item.LUTData
        lut = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.array(data).astype(np.uint16)
        if len(lut) < (count or 65536) or bits not in (8, *range(10, 17)):
            raise Refused(
                file, f"a Modality LUT of {len(lut)} values and {bits} bits", f"{count or 65536} of up to 16 bits", fix
            )
        if first > 32767 and whole.PixelRepresentation == 1:
            first -= 65536
        entry = np.clip(stored.astype(np.int64) - first, 0, (count or 65536) - 1)
        return lut.view(np.int16)[entry].astype(np.float64), True  # negative HU are written as the twin of 16 bits
    numbers = []
    for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        value = whole.get(tag, default)
        try:
            number = np.nan if value is None or value == "" else float(value)
        except (ValueError, TypeError):
            number = np.nan
        if not np.isfinite(number) or tag == "RescaleSlope" and number == 0:
            shown = "an empty" if value in (None, "") else f"{str(value)[:40]} as"
            raise Refused(file, f"{shown} {tag}", "a slope other than 0 and an intercept", fix)
        numbers.append(number)
    return stored.astype(np.float64) * numbers[0] + numbers[1], "RescaleIntercept" in whole


def _outside(padding: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The padded pixels that have to be set to air: brighter than it, and where they could be tissue only those that reach the border."""
    bright = padding & (value > AIR)
    if not bright.any() or value[bright].min() > MOST_HU:
        return bright
    pieces, count = ndimage.label(bright)
    edge = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    return bright & np.isin(pieces, edge[edge > 0])


def voxels_of(s: Slice, mask: bool = False) -> tuple[np.ndarray, Dataset, np.ndarray | None]:
    """Stored values [row column] of one image, its data set, and which of its pixels its header calls padding."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = dataset(s.file)
            if mask:
                stored = whole.pixel_array
            else:
                allocated, bits, high, signed = (int(whole[tag].value) for tag in BITS)
                if not 1 <= bits <= allocated or high != bits - 1 or signed not in (0, 1):
                    raise Refused(s.file, ", ".join(f"{tag} {whole[tag].value}" for tag in BITS),
                                  f"BitsStored up to BitsAllocated, HighBit one less than it ({bits - 1}), PixelRepresentation 0 or 1",
                                  "Such a header does not tell the values: fetch the original series, or correct it.")  # fmt: skip
                stored = whole.pixel_array
                limits = [whole.get(tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
                pad = [int(v) for v in limits if v not in (None, "")] if limits[0] not in (None, "") else []
    except Refused:
        raise
    except (InvalidDicomError, BytesLengthException, *DAMAGE) as error:
        raise Refused(s.file, f"pixels that cannot be read ({first_line(error)})", "a whole slice",
                      "The file is truncated or damaged; fetch it again.") from None  # fmt: skip
    if stored.shape != (s.rows, s.columns):
        raise Refused(s.file, f"pixels of shape {stored.shape}", f"{(s.rows, s.columns)} as its header says")
    if mask:
        return stored, whole, None
    if bits < allocated and not whole.file_meta.TransferSyntaxUID.is_compressed:
        order = "<" if whole.file_meta.TransferSyntaxUID.is_little_endian else ">"
        words = np.frombuffer(whole.PixelData, f"{order}{'i' if signed else 'u'}{allocated // 8}", stored.size).reshape(stored.shape)
        stored = words.astype(np.int64)  # pydicom's are without the unused bits
    twins = [_twin(v, allocated, signed) for v in pad]
    padding = (stored >= min(twins)) & (stored <= max(twins)) if twins else None
    if bits < allocated and not whole.file_meta.TransferSyntaxUID.is_compressed:
        stored = _used_bits(stored, whole, bits, signed, padding, s.file)
    return stored, whole, padding


def _twin(value: int, bits: int, signed: int) -> int:
    """The number that the same bits are with or without a sign."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _used_bits(stored: np.ndarray, whole, bits: int, signed: int, padding: np.ndarray | None, file: Path) -> np.ndarray:
    """Values without the bits above the highest, which may hold an overlay or the sign; refused where they hold more of the values."""
    kept = stored & ((1 << bits) - 1)
    negative = (kept >> (bits - 1)) & 1 if signed else np.zeros_like(kept)
    value = kept - (negative << bits)
    overlay = any(
        (0x6000 + 2 * n, 0x0102) in whole and int(whole[0x6000 + 2 * n, 0x0102].value or 0) >= bits for n in range(16)
    )
    odd = stored != value
    if padding is not None:
        odd &= ~padding
        value = np.where(padding, stored, value)
    if odd.any() and not overlay:
        lacking = odd & (stored == kept)  # the sign was not written into the bits above
        if (odd & ~lacking).any() or (~odd & (negative == 1) & (stored < 0)).any():
            at = stored[odd].flat[0]
            raise Refused(file, f"{int(odd.sum())} pixels that BitsStored {bits} and PixelRepresentation {signed} cannot hold, as {at}",
                          f"values of {bits} bits", "The header does not fit the pixels: fetch the original series, or correct it.")  # fmt: skip
    return value


def decodable(slices: list[Slice], folder: Path) -> None:
    """Name the package when the slices are compressed in a way that nothing installed can undo."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for uid in {UID(s.syntax) for s in slices}:
        if not uid.is_transfer_syntax or not uid.is_compressed or uid.is_deflated:
            continue
        try:
            decoder = get_decoder(uid)
        except NotImplementedError:
            raise Refused(folder, f"slices compressed as {uid.name}", "a syntax that pydicom knows",
                          "Decompress them with dcmdjpeg or gdcmconv --raw.") from None  # fmt: skip
        if not decoder.is_available:
            wanted = "; or ".join(text.split(" - requires ", 1)[-1] for text in decoder.missing_dependencies)
            raise Refused(folder, f"slices compressed as {uid.name}", "a decoder for it", f"Install {wanted}.")
