"""NRRD, MHA and MHD in.

The text header is read here first and the length of the data is compared with it, because ITK's own answer to a
short file depends on the format and the encoding. NRRD is then read by SimpleITK, MetaImage here: a damaged header makes
ITK's reader of it write beyond its memory. Both formats lie in LPS; affines leave here in RAS as NIfTI's do.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from workbench.data.readers import gates, meanings, walk
from workbench.volume import Refused, Volume

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
HEADER_BYTES = 1 << 16
BYTES = {
    "char": 1, "signed char": 1, "unsigned char": 1, "int8": 1, "int8_t": 1, "uint8": 1, "uint8_t": 1, "uchar": 1,
    "short": 2, "short int": 2, "signed short": 2, "int16": 2, "int16_t": 2, "unsigned short": 2, "ushort": 2,
    "uint16": 2, "uint16_t": 2, "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "unsigned int": 4, "uint": 4,
    "uint32": 4, "uint32_t": 4, "float": 4, "double": 8, "long long": 8, "int64": 8, "int64_t": 8, "longlong": 8,
    "unsigned long long": 8, "uint64": 8, "uint64_t": 8, "ulonglong": 8,
}  # fmt: skip
META_TYPES = {
    "met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4", "met_long": "i4",
    "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4", "met_double": "f8",
}  # fmt: skip
# MetaImage's other names for the same
SAME = {"position": "offset", "origin": "offset", "rotation": "transformmatrix", "orientation": "transformmatrix",
        "elementbyteordermsb": "binarydatabyteordermsb"}  # fmt: skip
# lengths in mm of what headers call their units, without the s of a plural
UNITS_MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0, "m": 1000.0, "meter": 1000.0,
            "metre": 1000.0, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "nm": 1e-6,
            "in": 25.4, "inch": 25.4, "inche": 25.4}  # fmt: skip
DAMAGED = "The header is damaged."
SLICER = (
    "In 3D Slicer, open the module Segmentations, then Export/import models and labelmaps: export to a Labelmap with the CT as Reference volume, "
    "liver first and tumors after it, and save that as .nii.gz."
)


def list_cases(path: str | Path) -> list[Path]:
    """The NRRD, MHA and MHD files at or below a path, label maps left out."""
    path = Path(path)
    if path.is_file():
        return [path] if path.name.lower().endswith(SUFFIXES) else []
    words = ("label", "mask", "seg", "liver", "tumor", "tumour", "lesion", "vessel")
    files = (p for p in walk.files(path) if p.name.lower().endswith(SUFFIXES))
    return sorted((p for p in files if not p.name.lower().startswith(words)), key=gates.natural)


def read(
    path: str | Path,
    *,
    fill_nonfinite: float | None = None,
    orientation: str | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    as_stored: bool = False,
) -> Volume:
    """A CT as canonical `[z y x]` HU; `orientation` and `spacing_mm` where the header lost its own."""
    array, affine = voxels(path)
    affine = gates.placed(affine, Path(path), orientation, spacing_mm)
    return gates.ct(array, affine, path, fill_nonfinite, array.dtype.itemsize == 1, as_stored)


def read_labels(
    path: str | Path,
    *,
    allowed: Collection[int] | None = None,
    orientation: str | None = None,
    spacing_mm: tuple[float, ...] | None = None,
) -> Volume:
    """A label map as canonical `[z y x]` uint8, int32 where a value is above 255."""
    array, affine = voxels(path)
    affine = gates.placed(affine, Path(path), orientation, spacing_mm)
    if allowed is not None and 2 in allowed and (names := segment_names(Path(path))):
        array = _by_name(array, names, path, abs(float(np.linalg.det(affine[:3, :3]))) / 1000)
    return gates.labels(array, affine, path, allowed)


def segment_names(path: Path) -> dict[int, str]:
    """{value: name} of the segments that 3D Slicer tells of in a .seg.nrrd; empty for any other file."""
    if path.suffix.lower() != ".nrrd":
        return {}
    with open(path, "rb") as file:
        fields, _ = _nrrd_fields(file.read(HEADER_BYTES), path)
    return _segments(fields)


def _segments(fields: dict[str, str]) -> dict[int, str]:
    """By its terminology where that means something, else by its name."""
    found = {}
    for key, number in fields.items():
        if (match := re.fullmatch(r"(segment\d+_)labelvalue", key)) and (number := number.lstrip("=")).isdigit():
            name = fields.get(f"{match[1]}name", "").lstrip("=").strip()
            codes = re.findall(r"SCT\^(\d+)\^", fields.get(f"{match[1]}tags", ""))
            coded = [meanings.CODES[code] for code in codes if code in meanings.CODES]
            found[int(number)] = coded[0] if meanings.unnamed(name) and coded else name
    return found


def _by_name(array: np.ndarray, names: dict[int, str], path: str | Path, voxel_ml: float) -> np.ndarray:
    """Slicer's segments in the coding 1 liver, 2 tumor, by what they are called."""
    from workbench.data.readers import scans

    held, meant = array.ravel(), {value: meanings.meaning(name) for value, name in names.items()}
    unnamed = [name for value, name in names.items() if meanings.unnamed(name) and (held == value).any()]
    if unnamed or not {meanings.LIVER, meanings.TUMOR} & set(meant.values()):
        raise Refused(path, f"segments called {', '.join(unnamed or names.values())}", "names such as liver and tumor",
                      "Rename the segments in 3D Slicer's Segment Editor, and save again.")  # fmt: skip
    structures = [scans.Structure(meant[v], name, np.flatnonzero(held == v)) for v, name in names.items()]
    made, done = scans.composed(structures, array.shape, voxel_ml, apart=True)
    if done:
        gates.warn(path, done)
    return made


def parts(path: Path) -> list[Path]:
    """What an input consists of: all in a folder; else its file and, where an image's voxels lie apart, theirs beside it."""
    if path.is_dir():
        return walk.below(path).files
    if path.suffix.lower() not in SUFFIXES:
        return [path]
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
        if path.suffix.lower() in (".nrrd", ".nhdr"):
            name = _nrrd_fields(head, path)[0].get("datafile", "LOCAL")
        else:
            name = _meta_fields(head, path)[0]["elementdatafile"]
        return list(dict.fromkeys((path, path.parent / _data(path, name, 0)[0].name)))
    except (Refused, OSError):  # what cannot be read is known by its own file
        return [path]


def voxels(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """File voxels `[i j k]` and their affine -> RAS mm."""
    path = Path(path)
    gates.existing(path)
    head = gates.bytes_of(path, HEADER_BYTES)
    array, lps = (_nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else _meta)(path, head)
    return array.reshape(array.shape[:3], order="F"), np.diag([-1.0, -1, 1, 1]) @ lps


def _nrrd(path: Path, head: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of an NRRD and their affine -> LPS mm, by SimpleITK once its header is found sound."""
    fields, start = _nrrd_fields(head, path)
    if _segments(fields) and fields.get("dimension") == "4":
        raise Refused(path, "a 3D Slicer segmentation with several layers, since its segments overlap", "one layer", SLICER)
    shape = _shape(fields.get("sizes", ""), fields.get("dimension", "none"), path)
    if "spacedirections" not in fields:
        raise Refused(path, "no space directions in the NRRD header, so left and right are unknown", "space directions",
                      "Write it again with its geometry, from the original DICOM.")  # fmt: skip
    encoding, need = fields.get("encoding", "raw"), math.prod(shape) * _of_kind(BYTES, fields.get("type", ""), path)
    data, start = _data(path, fields.get("datafile", "LOCAL"), start)
    if encoding in ("bzip2", "bz2"):
        raise Refused(
            path, "voxels packed by bzip2", "raw or gzip", "Write it again so, as `unu save -f nrrd -e gzip` does."
        )
    if encoding in ("raw", "gzip", "gz"):  # text fails aloud in ITK
        _enough(path, data, start, need, shape, encoding != "raw")
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(os.fspath(path), imageIO="NrrdImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refused(path, f"a file that ITK cannot read ({reason})", "a valid image", "Write it again.") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Refused(path, f"{image.GetNumberOfComponentsPerPixel()} values a voxel", "one")
    n = image.GetDimension()
    turn = np.reshape(image.GetDirection(), (n, n)) * np.array(image.GetSpacing())
    mm = _mm(fields.get("spaceunits", ""), path)
    return sitk.GetArrayFromImage(image).T, _affine(mm * turn, mm * np.array(image.GetOrigin()))


def _meta(path: Path, head: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a MetaImage and their affine -> LPS mm."""
    fields, start = _meta_fields(head, path)
    shape = _shape(fields.get("dimsize", ""), fields.get("ndims", "none"), path)
    if fields.get("elementnumberofchannels", "1") != "1":
        raise Refused(path, f"{fields['elementnumberofchannels'][:20]} values a voxel", "one")
    if not _true(fields.get("binarydata", "true")) or fields.get("headersize", "0") != "0":
        raise Refused(path, "voxels as text or after a header of their own", "plain binary voxels", "Write it again.")
    if "transformmatrix" not in fields:
        gates.warn(path, "no TransformMatrix in the header; the axes are taken as left, back, head (LPS)")
    n = len(shape)
    turn = _numbers(path, fields, "transformmatrix", np.eye(n).ravel()).reshape(n, n).T
    spacing = _numbers(path, fields, "elementspacing", _numbers(path, fields, "elementsize", np.ones(n)))
    origin = _numbers(path, fields, "offset", np.zeros(n))
    mm = _mm(fields.get("distanceunits", ""), path)

    kind = np.dtype(_of_kind(META_TYPES, fields.get("elementtype", ""), path))
    kind = kind.newbyteorder(">" if _true(fields.get("binarydatabyteordermsb", "false")) else "<")
    need, zipped = math.prod(shape) * kind.itemsize, _true(fields.get("compresseddata", "false"))
    data, start = _data(path, fields["elementdatafile"], start)
    _enough(path, data, start, need, shape, zipped)
    with open(data, "rb") as file:
        file.seek(start)
        held = zlib.decompressobj(47).decompress(file.read(), need) if zipped else file.read(need)
    array = np.frombuffer(held, kind).reshape(shape, order="F").astype(kind.newbyteorder("="))
    return array, _affine(mm * turn * spacing, mm * origin)


def _mm(told: str, path: Path) -> float:
    """How many mm the unit of a header's lengths is, which is one for all axes of space."""
    names = re.findall(r'"([^"]*)"', told) if '"' in told else told.split()
    lengths = {name.strip().lower().rstrip("s") for name in names[:3]} - {"", "?", "???"} or {"mm"}
    if len(lengths) != 1 or not lengths <= UNITS_MM.keys():
        raise Refused(path, f"lengths in {told[:60]}", "mm", "Write it again in mm.")
    return UNITS_MM[lengths.pop()]


def _affine(columns: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Of three or more axes, the first three."""
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = columns[:3, :3], origin[:3]
    return lps


def _shape(told: str, dimensions: str, path: Path) -> tuple[int, ...]:
    sizes = told.split()
    if not sizes or not all(s.isdecimal() and len(s) < 10 for s in sizes):
        raise Refused(path, f"sizes {told[:60] or 'missing'}", "three lengths in the header")
    if dimensions != str(len(sizes)):
        raise Refused(path, f"{dimensions[:20]} dimensions for the sizes {told[:60]}", str(len(sizes)), DAMAGED)
    shape = tuple(int(s) for s in sizes)
    gates.size(shape, path)
    gates.three_axes(shape, path)
    return shape


def _of_kind(kinds: dict, kind: str, path: Path):
    if kind.lower() not in kinds:
        raise Refused(path, f"voxels of type {kind[:60] or 'missing'}", "integers or real numbers")
    return kinds[kind.lower()]


def _numbers(path: Path, fields: dict[str, str], name: str, default: np.ndarray) -> np.ndarray:
    """A field of as many finite numbers as the default has."""
    if name not in fields:
        return default
    try:
        told = np.array(fields[name].split(), float)
    except ValueError:
        told = np.array([])
    if len(told) != len(default) or not np.isfinite(told).all():
        raise Refused(path, f"{name} {fields[name][:60]!r}", f"{len(default)} numbers", DAMAGED)
    return told


def _true(word: str) -> bool:
    return word[:1] in ("T", "t", "1")


def _nrrd_fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields by their names without spaces, as both spellings of a name are valid, and where the data begin."""
    if not head.startswith(b"NRRD"):
        raise Refused(path, f"a file that starts with {head[:4]!r}", "NRRD", "Is this another format under this name?")
    ends = ((head.find(b"\n\n"), 2), (head.find(b"\r\n\r\n"), 4), (len(head), 0))
    end, skip = min((at, n) for at, n in ends if at >= 0)
    if end == HEADER_BYTES:
        raise Refused(path, f"a header of more than {HEADER_BYTES:,} bytes", "less", DAMAGED)
    lines = (line.split(":", 1) for line in head[:end].decode("latin-1").splitlines()[1:] if not line.startswith("#"))
    return {"".join(line[0].split()).lower(): line[1].strip() for line in lines if len(line) == 2}, end + skip


def _meta_fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    fields, start = {}, 0
    for line in head.split(b"\n"):
        start += len(line) + 1
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        key = SAME.get(key.strip().lower(), key.strip().lower())
        if key in fields:
            raise Refused(path, f"{key[:60]} told twice", "once", DAMAGED)
        fields[key] = value.strip()
        if key == "elementdatafile":
            return fields, start
    raise Refused(path, "no MetaImage header", "lines up to ElementDataFile", "Is this another format under this name?")


def _data(path: Path, name: str, start: int) -> tuple[Path, int]:
    """The file of the voxels and where they begin in it.

    Several files are refused: their names are patterns that ITK hands to `sprintf`.
    """
    if not name:
        raise Refused(path, "an empty ElementDataFile", "LOCAL or a file's name", DAMAGED)
    if name.upper() == "LOCAL":
        return path, start
    if name.startswith("LIST") or "%" in name:
        raise Refused(path, f"voxels in several files ({name[:40]})", "in one", "Write it again as one file.")
    return _beside(path, name), 0


def _enough(path: Path, data: Path, start: int, need: int, shape: tuple[int, ...], zipped: bool) -> None:
    have = _unpacked(data, start, need) if zipped else data.stat().st_size - start
    if have < need:
        sizes = " x ".join(map(str, shape))
        raise Refused(path, f"{have:,} bytes of voxels", f"{need:,} for the {sizes} voxels of the header",
                      "The file is truncated or its header is wrong.")  # fmt: skip


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
