"""NIfTI in and out.

The header is judged before a voxel is read: SimpleITK fills truncated files with zeros, reads beyond short ones,
turns NaN into 0 and prefers the form that nibabel does not. Files are unpacked to their end, so that a gzip
checksum that does not hold is seen too. Results are written on the grid of the file they came from, with its own form
fields, so that the affine is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from isal import igzip, isal_zlib

from workbench.data.files import whole
from workbench.data.readers import gates, walk
from workbench.volume import Refused, Volume

SUFFIXES = (".nii.gz", ".nii")
FORM_TOLERANCE_MM = 0.1  # rule: rounding of quaternions stays below 0.001 mm; a flip or a shift is whole voxels
FORM_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def list_cases(path: str | Path) -> list[Path]:
    """The CT files at or below a path, label maps left out."""
    path = Path(path)
    if path.is_file():
        return [path] if path.name.lower().endswith(SUFFIXES) else []
    files = (p for p in walk.files(path) if p.name.lower().endswith(SUFFIXES))
    return sorted((p for p in files if not _is_label(p)), key=gates.natural)


def read(
    path: str | Path,
    *,
    fill_nonfinite: float | None = None,
    form: str | None = None,
    orientation: str | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    as_stored: bool = False,
) -> Volume:
    """A CT as canonical `[z y x]` HU. `form` ("sform", "qform", "pixdim") or `orientation` and `spacing_mm` settle what the header
    leaves open."""
    array, affine, dtype = voxels(path, form, orientation, spacing_mm)
    return gates.ct(array, affine, path, fill_nonfinite, dtype.itemsize == 1, as_stored)


def read_labels(
    path: str | Path,
    *,
    allowed: Collection[int] | None = None,
    orientation: str | None = None,
    spacing_mm: tuple[float, ...] | None = None,
) -> Volume:
    """A label map as canonical `[z y x]` uint8, int32 where a value is above 255."""
    array, affine, _ = voxels(path, None, orientation, spacing_mm)
    return gates.labels(_unscaled(array, path), affine, path, allowed)


def grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Shape and affine -> RAS mm of a file's header alone; no affine where it says none."""
    path = Path(path)
    gates.existing(path)
    header = _header(path)
    shape = gates.three_axes(_shape(header, path), path)
    return shape, None if _formless(header) else _affine(header, shape, path, None)


def voxels(
    path: str | Path,
    form: str | None = None,
    orientation: str | None = None,
    spacing_mm: tuple[float, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """File voxels `[i j k]` with scale and intercept applied, affine -> RAS mm, and the dtype on disk."""
    path = Path(path)
    gates.existing(path)
    header = _header(path)
    shape = gates.three_axes(_shape(header, path), path)
    said = orientation is not None or spacing_mm is not None
    affine = gates.placed(
        np.eye(4) if said and _formless(header) else _affine(header, shape, path, form), path, orientation, spacing_mm
    )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refused(path, f"voxels of type {dtype}", "one integer or real number a voxel")
    if np.isinf(header["scl_slope"]):  # NaN is what nibabel writes for none
        raise Refused(path, f"a scale (scl_slope) of {header['scl_slope']}", "a finite slope", "The header is damaged.")
    start = int(header["vox_offset"]) if np.isfinite(header["vox_offset"]) else -1
    need = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if start < header.sizeof_hdr or start > 2**30:
        raise Refused(path, f"voxels that start at byte {header['vox_offset']}", f"{header.sizeof_hdr} or later",
                      "The header is damaged.")  # fmt: skip
    data = _payload(path, need, slice_bytes=shape[0] * shape[1] * dtype.itemsize, shape=shape)
    array = np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape, order="F")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return _scaled(array, header, path), affine, dtype.newbyteorder("=")


def write(volume: Volume, path: str | Path) -> None:
    """Write on the grid of `volume.source`, or on the canonical grid without one; whole or not at all.

    bool becomes uint8 and other reals float32; uint8, int16, int32 and float32 stay.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise Refused(path, f"the suffix {path.suffix or 'of none'}", " or ".join(SUFFIXES))
    array = _storable(volume.array)
    source = volume.source
    array = array.transpose(2, 1, 0) if source is None else source.to_file_order(array)
    header = _header_for(volume)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, 0, header.single_vox_offset
    with (
        whole(path) as raw,
        igzip.IGzipFile("", "wb", 1, raw, mtime=0) if path.suffix == ".gz" else _kept(raw) as file,
    ):
        file.write(header.binaryblock + bytes(4))
        for k in range(array.shape[2]):  # a slice at a time: no second copy of the volume
            file.write(array[:, :, k].tobytes(order="F"))


def _is_label(path: Path) -> bool:
    words = ("label", "mask", "seg", "liver", "tumor", "tumour", "lesion", "vessel", "ledger", "candidate")
    return gates.stem(path).lower().startswith(words)


def _header(path: Path):
    """The header, checked by nibabel; or what is wrong with the file's beginning."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    first = gates.bytes_of(path, 1 << 16)
    zipped = first[:2] == b"\x1f\x8b"
    if path.name.lower().endswith(".gz") and not zipped:
        if _looks_nifti(first):
            raise Refused(path, "a plain NIfTI file named .gz", "gzip data", "Rename it to .nii, or gzip it.")
        raise Refused(path, f"a file that starts with {first[:4]!r}, not gzip", "a gzipped NIfTI file")
    if zipped and not path.name.lower().endswith(".gz"):
        raise Refused(path, "gzip data in a file not named .gz", "a plain NIfTI file", "Rename it to .nii.gz.")
    if zipped:
        try:
            first = isal_zlib.decompressobj(31).decompress(first, 1 << 12)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub has an instance there
            raise Refused(path, f"damaged gzip data ({error})", "a gzipped NIfTI file", "Fetch it again.") from None
    if not _looks_nifti(first):
        raise Refused(path, f"a header that starts with {first[:4]!r}, not that of NIfTI", "348 or 540 first",
                      "Is this another format under a NIfTI name?")  # fmt: skip
    two = 540 in (int.from_bytes(first[:4], "little"), int.from_bytes(first[:4], "big"))
    kind = nibabel.Nifti2Header if two else nibabel.Nifti1Header
    if len(first) < kind.sizeof_hdr:
        raise Refused(path, f"{len(first)} bytes", f"a header of {kind.sizeof_hdr}", "The file is truncated.")
    magic = first[344:348] if not two else first[4:8]
    if magic in (b"ni1\0", b"ni2\0"):
        raise Refused(path, "the header of a .hdr/.img pair", "header and voxels in one .nii file",
                      "Convert the pair: nibabel.save(nibabel.load('x.hdr'), 'x.nii.gz').")  # fmt: skip
    if magic not in (b"n+1\0", b"n+2\0"):
        raise Refused(
            path,
            f"the magic {magic.rstrip(bytes(1)).decode('latin-1')!r}",
            "n+1 or n+2, the mark of NIfTI",
            "The header is damaged.",
        )
    logger = nibabel.imageglobals.logger
    before, logger.disabled = logger.disabled, True  # it tells of every small fault; the grave ones raise
    try:
        return kind(
            first[: kind.sizeof_hdr]
        )  # extensions, whatever their length, lie before the voxels and say nothing of them
    except (HeaderDataError, WrapStructError, ValueError, KeyError, OverflowError) as error:
        raise Refused(path, f"a damaged header ({error})", "a valid NIfTI header") from None
    finally:
        logger.disabled = before


def _looks_nifti(first: bytes) -> bool:
    return int.from_bytes(first[:4], "little") in (348, 540) or int.from_bytes(first[:4], "big") in (348, 540)


def _shape(header, path: Path) -> tuple[int, ...]:
    ndim = int(header["dim"][0])
    if not 1 <= ndim <= 7:
        raise Refused(path, f"a header that claims {ndim} dimensions", "3", "The header is damaged.")
    shape = tuple(int(n) for n in header["dim"][1 : ndim + 1])
    gates.size(shape, path)
    return shape


def _affine(header, shape: tuple[int, int, int], path: Path, form: str | None) -> np.ndarray:
    """The one affine that the header means; refused when its two forms contradict each other or none is set."""
    if form not in (None, "sform", "qform", "pixdim"):
        raise Refused(path, f"form {form!r}", "sform, qform or pixdim")
    units = int(header["xyzt_units"]) & 7
    if units not in (0, 2):
        name = {1: "metres", 3: "micrometres"}.get(units, f"code {units}")
        raise Refused(path, f"lengths in {name}", "mm", "Rewrite the header in mm (xyzt_units).")
    has_s, has_q = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    sform = header.get_sform() if has_s else None
    try:
        qform = header.get_qform() if has_q else None
    except Exception as error:  # nibabel has no type of its own for a quaternion that is none
        if form != "sform":
            raise Refused(path, f"a qform that is no rotation ({error})", "a valid qform",
                          "Set qform_code to 0 if the sform is right.") from None  # fmt: skip
        qform = None
    if form == "pixdim":
        return header.get_base_affine()
    if form is not None:
        chosen = sform if form == "sform" else qform
        if chosen is None:
            raise Refused(path, f"no {form}", f"a {form} in the header")
        return chosen
    if sform is None and qform is None:
        fix = (
            "Set it from the original DICOM, or say it: workbench convert FILE -o NEW.nii.gz --orientation LPS --spacing X,Y,Z "
            "(where the file's axes lead, mm along each)."
        )
        raise Refused(path, "neither sform nor qform set, so left and right are unknown", "one of them", fix)
    if sform is None or qform is None:
        return qform if sform is None else sform
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], float).T
    apart = np.linalg.norm((sform @ corners - qform @ corners)[:3], axis=0).max()
    if not apart <= FORM_TOLERANCE_MM:
        from nibabel import aff2axcodes

        s, q = ("".join(c or "?" for c in aff2axcodes(a)) if np.isfinite(a).all() else "?" for a in (sform, qform))
        raise Refused(path, f"an sform ({s}) and a qform ({q}) that put the same voxel up to {apart:.4g} mm apart",
                      f"at most {FORM_TOLERANCE_MM} mm",
                      "Programs disagree on where left is: set the wrong one's code to 0.")  # fmt: skip
    return sform


def _formless(header) -> bool:
    return int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0


def _payload(path: Path, need: int, slice_bytes: int, shape: tuple[int, ...]) -> bytearray:
    """The whole unpacked file; refused when it holds fewer bytes than the header claims, or a slice more."""
    grid = " x ".join(map(str, shape))
    on_disk = path.stat().st_size
    if not path.name.lower().endswith(".gz"):
        if on_disk < need:
            raise Refused(path, f"{on_disk:,} bytes", f"{need:,} for the {grid} voxels of the header",
                          "The file is truncated or its header is wrong.")  # fmt: skip
        if on_disk >= need + slice_bytes:
            raise Refused(path, f"{on_disk:,} bytes", f"{need:,} for the {grid} voxels of the header",
                          "The header leaves slices out.")  # fmt: skip
        return bytearray(path.read_bytes())
    if on_disk * 1040 < need:  # deflate packs at most 1032 to 1
        raise Refused(path, f"{on_disk:,} bytes of gzip", f"data for the {grid} voxels of the header ({need:,} bytes)",
                      "The file is truncated or its header is wrong.")  # fmt: skip
    out, gz, limit = bytearray(), isal_zlib.decompressobj(31), need + slice_bytes
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                while chunk and len(out) < limit:
                    out += gz.decompress(chunk, limit - len(out))
                    if gz.eof:
                        chunk = gz.unused_data.lstrip(b"\0")  # padding after a member is allowed
                        gz = isal_zlib.decompressobj(31) if chunk else gz
                    else:
                        chunk = gz.unconsumed_tail
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub has an instance there
        raise Refused(path, f"damaged gzip data ({error})", "a whole file", "Fetch it again.") from None
    if len(out) >= limit:
        raise Refused(path, f"data beyond {need:,} bytes", f"{need:,} for the {grid} voxels of the header",
                      "The header leaves slices out.")  # fmt: skip
    if len(out) >= need and not gz.eof:
        raise Refused(path, "gzip data without its end and checksum", "a whole file",
                      "The file is truncated; fetch it again.")  # fmt: skip
    if len(out) < need:
        raise Refused(path, f"gzip data that ends after {len(out):,} bytes",
                      f"{need:,} for the {grid} voxels of the header",
                      "The file is truncated or its header is wrong; fetch it again.")  # fmt: skip
    return out


def _scaled(array: np.ndarray, header, path: Path) -> np.ndarray:
    """Slope and intercept of the header, worked out in float64; float32 of all but float64, as ITK gives it. A whole intercept alone keeps
    whole numbers."""
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise Refused(path, f"a damaged scale ({error})", "a finite slope and intercept") from None
    if slope is None or (slope == 1 and inter == 0):
        return array
    if slope == 1 and float(inter).is_integer() and array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        return array.astype(np.int32) + int(np.clip(inter, -(2**30), 2**30))
    out = np.empty(
        array.shape, np.float64 if array.dtype.itemsize == 8 and array.dtype.kind == "f" else np.float32, order="F"
    )
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by the gates
        for k in range(array.shape[-1]):
            out[..., k] = array[..., k] * np.float64(slope) + np.float64(inter)
    return out


def _unscaled(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Label values that were stored through a scale, as whole numbers again: no value is further off than half of the scale's step."""
    if array.dtype.kind != "f" or not np.isfinite(array).all() or not (off := float(np.abs(array - np.rint(array)).max())):
        return array
    slope = _header(Path(path)).get_slope_inter()[0]
    if slope in (None, 1):
        return array
    if off > 0.51 * abs(slope) or abs(slope) > 0.1:
        raise Refused(path, f"label values up to {off:.3g} from whole numbers, stored with a scale (scl_slope {slope:.3g})", "whole numbers",
                      "Save them as integers without a scale: nibabel.Nifti1Image(array.astype('uint8'), affine).")  # fmt: skip
    gates.warn(path, f"label values up to {off:.3g} from whole numbers, since they are stored with a scale (scl_slope {slope:.3g}), were rounded")
    return np.rint(array)


def _storable(array: torch.Tensor) -> np.ndarray:
    array = array.detach().cpu()
    if array.dtype is torch.bool:
        array = array.to(torch.uint8)
    elif array.dtype is torch.int64:
        array = array.to(torch.int32)
    elif array.is_floating_point():
        array = array.to(torch.float32)
    return array.numpy()


def _header_for(volume: Volume):
    """A header whose affine is the source's bit for bit: its own form fields, else an sform, else a qform."""
    import nibabel

    affine = volume.affine if volume.source is None else volume.source.affine
    original = None if volume.source is None else _original(volume.source.path)
    if original is not None:
        header = type(original)()
        for field in FORM_FIELDS:
            header[field] = original[field]
        header["pixdim"][:4] = original["pixdim"][:4]
        if np.array_equal(header.get_best_affine(), affine):
            return header
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_sform(affine, 1)
    if not np.array_equal(header.get_best_affine(), affine):
        header.set_sform(None, 0)
        header.set_qform(affine, 1)
        if np.array_equal(header.get_best_affine(), affine):
            return header
        header.set_sform(affine, 1)  # a grid in float64, as DICOM's: the nearest in float32
    header.set_qform(affine, 1)
    return header


def _original(path: str | None):
    """Header of the NIfTI file that the volume was read from, while it is still there."""
    if path is None or not str(path).lower().endswith(SUFFIXES) or not Path(path).is_file():
        return None
    try:
        return _header(Path(path))
    except Refused:
        return None


def _kept(file):
    """A context that leaves its file open, as GzipFile does."""
    from contextlib import nullcontext

    return nullcontext(file)
