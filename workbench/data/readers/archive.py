"""A zip archive for a while as a folder: nothing of it lands outside, nothing of it is a link, and it has a size.

Python's own extraction drops `..` from a name in silence and writes the file somewhere else; here such an archive is refused.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from workbench.data.readers import walk
from workbench.volume import Refused

MAX_BYTES = 8 << 30  # rule: twenty times a patient of 3D-IRCADb-01 with all masks
MAX_FILES = 200_000  # rule: a hundred masks of 2000 slices


def is_zip(path: Path) -> bool:
    """Whether a path is a file called .zip."""
    return path.is_file() and path.suffix.lower() == ".zip"


def there(path: Path) -> Path | None:
    """The folder `path`, or else the archive `path.zip` beside its place, in any case of letters; None when neither is there."""
    path, zipped = walk.named(path.parent, path.name), walk.named(path.parent, f"{path.name}.zip")
    return path if path.is_dir() else zipped if zipped.is_file() else None


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A folder as it is; an archive unpacked for the while, at the one folder in it if that is all it holds."""
    if path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="workbench-") as place:
        unpack(path, Path(place))
        inside = [p for p in Path(place).iterdir() if p.name != "__MACOSX" and not p.name.startswith(".")]
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else Path(place)


def unpack(path: Path, place: Path) -> None:
    """Unpack into an empty folder; refused when a member would leave it, is a link or encrypted, or when all is too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _safe(path, member)
            size = sum(member.file_size for member in members)
            if size > MAX_BYTES or len(members) > MAX_FILES:
                raise Refused(path, f"{len(members)} files of {size / 2**30:.1f} GiB", f"at most {MAX_FILES} of "
                              f"{MAX_BYTES >> 30} GiB", "Unpack it by hand, if you know what it is.")  # fmt: skip
            for member in members:
                target = place / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, open(target, "xb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Refused(path, f"a damaged archive ({error})", "a whole zip file", "Fetch it again.") from None
    except FileExistsError as error:
        raise Refused(path, f"{Path(error.filename).relative_to(place)} twice", "each file once") from None


def _safe(path: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0]:
        raise Refused(path, f"a member {member.filename!r}", "names that stay inside", "Do not use this archive.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Refused(path, f"a link {member.filename!r}", "files and folders", "Do not use this archive.")
    if member.flag_bits & 1:
        raise Refused(path, f"{member.filename!r} encrypted", "an open archive", "Unpack it with its password first.")
