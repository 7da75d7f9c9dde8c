"""A file whole or not at all: the one way in which the workbench writes, how it reads its own JSON and tables back, and who holds a folder."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from workbench.volume import Refused

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that is the one at `path` at the end, or nothing: it lies beside it until it is flushed to disk.

    What the system refuses (no room, read-only) is told of `path`. A link stays one: what it points to is written.
    """
    path = path.resolve() if path.is_symlink() else path
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:  # else its words say it all
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or none of it. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as f:
        f.write(data)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what processes that are no more left half-written for `name` in a folder; what they had only moved away comes back."""
    for part in [*folder.glob(f".{name}.*.old"), *folder.glob(f".{name}.*.part")]:
        own, writer, kind = part.name[1:].rsplit(".", 2)
        own_pid = writer == str(os.getpid())  # of a former process: here nothing is moved away now
        if not writer.isdigit() or (kind != "old" if own_pid else Path("/proc", writer).exists()):
            continue
        # moved away, and nothing in its place yet
        if kind == "old" and part.with_suffix(".part").exists() and not (folder / own).exists():
            os.replace(part, folder / own)
        elif part.is_dir() and not part.is_symlink():
            remove(part)
        else:
            part.unlink()


def remove(tree: Path) -> None:
    """A folder with all that is in it, as far as it may be removed; write-protected folders are no obstacle."""
    for place, _, _ in os.walk(tree):
        with suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(tree, ignore_errors=True)


def read_json(path: Path, *keys: str, **kinds: Any) -> dict:
    """An object that was written as JSON and has these keys, those of `kinds` with a value of that kind; all else is refused.

    A kind that takes None may be absent.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(path, f"no JSON ({error})", "what the workbench wrote there", DAMAGED) from error
    wanted = [*keys, *(key for key, kind in kinds.items() if not _fits(None, kind))]
    lacking = [key for key in wanted if not isinstance(held, dict) or key not in held]
    if lacking or not isinstance(held, dict):
        what = f"no {', '.join(lacking)}" if lacking else "no object"
        raise Refused(path, what, "what the workbench wrote there", DAMAGED)
    for key, kind in kinds.items():
        _require(held.get(key), kind, key, path)
    return held


def read_table(path: Path, *columns: str, **options: Any) -> pd.DataFrame:
    """A CSV that the workbench wrote and that has these columns; anything else is refused."""
    try:
        table = pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise Refused(path, f"no table ({error})", "what the workbench wrote there", DAMAGED) from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise Refused(path, f"no column {', '.join(lacking)}", "what the workbench wrote there", DAMAGED)
    return table


def from_dict(
    kind: Any, values: dict, where: object = "settings", base: Any = None, fix: str | None = None, above: str = ""
) -> Any:
    """A settings dataclass from the nested dictionary that `asdict` and JSON made. What it does not name is as in `base`, else at its default.

    A value of another kind is refused by its path, which begins with `above`, and `fix`: else the file is called damaged.
    """
    _require(values, dict, above.rstrip(".") or kind.__name__, where, fix)
    made = {}
    for name, hint in get_type_hints(kind).items():
        if name in values and hasattr(hint, "__dataclass_fields__"):
            made[name] = from_dict(hint, values[name], where, getattr(base, name, None), fix, f"{above}{name}.")
        elif name in values:
            _require(values[name], hint, f"{above}{name}", where, fix)
            made[name] = tuples(values[name])
    return kind(**made) if base is None else replace(base, **made)


def flat(values: dict, above: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, {"a.b": value}, the names after `above`; lists and tuples stay whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def flat_text(values: dict, above: str = "") -> dict[str, int | float | str]:
    """The same to be read: what is neither a number nor text as JSON has it."""
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in flat(values, above).items()}


def tuples(value: Any) -> Any:
    """The same with a tuple for every list."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def _require(value: Any, kind: Any, name: str, where: object, fix: str | None = None) -> None:
    if not _fits(value, kind):
        raise Refused(where, f"{name} {json.dumps(value)[:80]}", _words(kind), DAMAGED if fix is None else fix)


def _words(kind: Any) -> str:
    """What a value of a kind is in JSON."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inside))
    if origin is tuple:
        length = "" if inside[-1] is Ellipsis else f" of {len(inside)}"
        return f"a list{length}, each {_words(inside[0])}"
    return WORDS.get(kind, str(kind))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of a kind; a list stands for a tuple, an int for a float."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        inside = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return len(value) == len(inside) and all(map(_fits, value, inside))
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind) and not (kind is str and "\0" in value)


WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
CHECKOUT = Path(__file__).parents[2]  # with notebooks/ and workflow/, where the package is installed in place
DAMAGED = "The file is damaged: restore it, or remove it and run this again."


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Refused(path, reason, "a file that the experiment rests on", "Put it back, or start anew.") from error


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, table.to_csv(index=False).encode())


def write_array(path: Path, array: Tensor) -> None:
    data = io.BytesIO()
    np.save(data, array.cpu().numpy(), allow_pickle=False)
    write_atomic(path, data.getvalue())


@contextmanager
def held(folder: Path, shared: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold a folder alone, or with others who share it; who comes in vain is told who has it."""
    lock = folder / name
    with open(lock, "a+") as f:
        try:
            fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            f.seek(0)
            raise Refused(
                folder,
                f"in use by {f.read().strip() or 'another process'}",
                "an experiment that nobody else writes to",
                "Wait for it or choose another folder.",
            ) from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        try:
            yield
        finally:
            f.truncate(0)
