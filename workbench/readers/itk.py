"""NRRD, MHA and MHD in, through SimpleITK.

The text header is read here first and the length of the data is compared with it, because ITK's own answer to a
short file depends on the format and the encoding. ITK's world is LPS; affines leave here in RAS as NIfTI's do.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from workbench.readers import gates
from workbench.volume import Refused, Volume

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
HEADER_BYTES = 1 << 16
BYTES = {
    "char": 1, "signed char": 1, "unsigned char": 1, "int8": 1, "int8_t": 1, "uint8": 1, "uint8_t": 1, "uchar": 1,
    "short": 2, "short int": 2, "signed short": 2, "int16": 2, "int16_t": 2, "unsigned short": 2, "ushort": 2,
    "uint16": 2, "uint16_t": 2, "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "unsigned int": 4, "uint": 4,
    "uint32": 4, "uint32_t": 4, "float": 4, "double": 8, "long long": 8, "int64": 8, "int64_t": 8, "longlong": 8,
    "unsigned long long": 8, "uint64": 8, "uint64_t": 8, "ulonglong": 8,
    "met_char": 1, "met_uchar": 1, "met_short": 2, "met_ushort": 2, "met_int": 4, "met_uint": 4, "met_long": 4,
    "met_ulong": 4, "met_float": 4, "met_double": 8, "met_long_long": 8, "met_ulong_long": 8,
}  # fmt: skip
# MetaImage's fields of one number an axis, or one a pair of axes: ITK reads beyond the end of shorter ones
VECTORS = dict.fromkeys(("transformmatrix", "rotation", "orientation"), 2) | dict.fromkeys(
    ("offset", "position", "origin", "centerofrotation", "elementspacing", "elementsize", "dimsize"), 1
)


def list_cases(path: str | Path) -> list[Path]:
    """The NRRD, MHA and MHD files at or below a path, label maps left out."""
    path = Path(path)
    if path.is_file():
        return [path] if path.name.lower().endswith(SUFFIXES) else []
    words = ("label", "mask", "seg", "liver", "tumor", "tumour", "lesion", "vessel")
    files = (p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
    return sorted((p for p in files if not p.name.lower().startswith(words)), key=gates.natural)


def read(path: str | Path, *, fill_nonfinite: float | None = None) -> Volume:
    """A CT as canonical `[z y x]` HU."""
    array, affine = voxels(path)
    return gates.ct(array, affine, path, fill_nonfinite, eight_bit=array.dtype == np.uint8)


def read_labels(path: str | Path, *, allowed: Collection[int] | None = None) -> Volume:
    """A label map as canonical `[z y x]` uint8, int32 where a value is above 255."""
    array, affine = voxels(path)
    return gates.labels(array, affine, path, allowed)


def voxels(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """File voxels `[i j k]` and their affine -> RAS mm."""
    path = Path(path)
    gates.existing(path)
    _judge(path)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(os.fspath(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refused(path, f"a file that ITK cannot read ({reason})", "a valid image") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Refused(path, f"{image.GetNumberOfComponentsPerPixel()} values a voxel", "one")
    shape = gates.three_axes(image.GetSize(), path)
    array = sitk.GetArrayFromImage(image).reshape(shape[::-1]).transpose(2, 1, 0)
    n = image.GetDimension()
    lps = np.eye(4)
    lps[:3, :3] = (np.reshape(image.GetDirection(), (n, n)) * np.array(image.GetSpacing()))[:3, :3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return array, np.diag([-1.0, -1, 1, 1]) @ lps


def _judge(path: Path) -> None:
    """Refuse by the text header: impossible sizes, no orientation, fewer bytes than the sizes need."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    fields, start = (_nrrd_fields if nrrd else _meta_fields)(head, path)
    sizes = fields.get("sizes" if nrrd else "dimsize", "").split()
    if not sizes or not all(s.isdigit() for s in sizes):
        raise Refused(path, f"sizes {' '.join(sizes) or 'missing'}", "three lengths in the header")
    said = fields.get("dimension" if nrrd else "ndims", "none")
    if said != str(len(sizes)):  # ITK takes it at its word, and falls over it
        raise Refused(
            path, f"{said} dimensions for the sizes {' '.join(sizes)}", str(len(sizes)), "The header is damaged."
        )
    for name, power in () if nrrd else VECTORS.items():
        told = fields.get(name, "")
        if name in fields and (len(told.split()) != len(sizes) ** power or not all(map(_is_number, told.split()))):
            raise Refused(path, f"{name} {told[:60]!r}", f"{len(sizes) ** power} numbers", "The header is damaged.")
    shape = tuple(int(s) for s in sizes)
    gates.size(shape, path)
    gates.three_axes(shape, path)
    if nrrd and "space directions" not in fields:
        raise Refused(path, "no space directions in the NRRD header, so left and right are unknown", "space directions",
                      "Write it again with its geometry, from the original DICOM.")  # fmt: skip
    if not nrrd and "transformmatrix" not in fields and "rotation" not in fields and "orientation" not in fields:
        gates.warn(path, "no TransformMatrix in the header; the axes are taken as left, back, head (LPS)")
    kind = fields.get("type" if nrrd else "elementtype", "").lower()
    channels = "1" if nrrd else fields.get("elementnumberofchannels", "1")
    if channels not in ("1", "2", "3", "4"):
        raise Refused(path, f"{channels} values a voxel", "one")
    if kind not in BYTES:
        raise Refused(path, f"voxels of type {kind or 'missing'}", "integers or real numbers")
    need = math.prod(shape) * BYTES[kind] * int(channels)
    data = path
    name = fields.get("data file" if nrrd else "elementdatafile", "")
    if not nrrd and not name:
        raise Refused(path, "an empty ElementDataFile", "LOCAL or a file's name", "The header is damaged.")
    if name and name.upper() != "LOCAL":
        if len(name.split()) > 1 or name.upper().startswith("LIST") or "%" in name:
            return  # one file a slice: ITK counts these itself
        data, start = _beside(path, name), 0
    zipped = fields.get("encoding") in ("gzip", "gz") or fields.get("compresseddata", "").lower() == "true"
    if fields.get("encoding", "raw") not in ("raw", "gzip", "gz"):
        return  # bzip2 and text fail aloud in ITK
    have = _unpacked(data, start, need) if zipped else data.stat().st_size - start
    if have < need:
        raise Refused(path, f"{have:,} bytes of voxels", f"{need:,} for the {' x '.join(sizes)} voxels of the header",
                      "The file is truncated or its header is wrong.")  # fmt: skip


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _nrrd_fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    if not head.startswith(b"NRRD"):
        raise Refused(path, f"a file that starts with {head[:4]!r}", "NRRD", "Is this another format under this name?")
    ends = ((head.find(b"\n\n"), 2), (head.find(b"\r\n\r\n"), 4), (len(head), 0))
    end, skip = min((at, n) for at, n in ends if at >= 0)
    lines = (line.split(":", 1) for line in head[:end].decode("latin-1").splitlines()[1:] if not line.startswith("#"))
    return {line[0].strip().lower(): line[1].strip() for line in lines if len(line) == 2}, end + skip


def _meta_fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    fields, start = {}, 0
    for line in head.split(b"\n"):
        start += len(line) + 1
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return fields, start
    raise Refused(path, "no MetaImage header", "lines up to ElementDataFile", "Is this another format under this name?")


def _beside(path: Path, name: str) -> Path:
    """The detached data file: in the header's own folder and nowhere else."""
    data = path.parent / name.replace("\0", "")
    if data.resolve().parent != path.resolve().parent:
        raise Refused(path, f"voxels in {name}", "a data file in the same folder", "Move the two files together.")
    if not os.path.isfile(data):
        raise Refused(path, f"no file {name}", "the data file that the header names", "Copy it beside the header.")
    return data


def _unpacked(path: Path, start: int, need: int) -> int:
    """Bytes that deflated data unpack to, up to what is needed; its checksum is looked at."""
    count, unpack = 0, zlib.decompressobj(47)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            while (chunk := file.read(1 << 20)) and not unpack.eof and count <= need:
                while chunk and count <= need:
                    count += len(unpack.decompress(chunk, 1 << 22))
                    chunk = unpack.unconsumed_tail
    except zlib.error as error:
        raise Refused(path, f"damaged compressed data ({error})", "a whole file", "Fetch it again.") from None
    return count if unpack.eof else min(count, need - 1)
