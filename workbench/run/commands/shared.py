"""What the commands share: options, the places that they write to, and what they tell on the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def writable(folder: Path) -> None:
    """Say at the start, not at the end, that a folder cannot be written: by trying, since root is asked for no permission."""
    from workbench.volume import Refused

    place = folder.absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    why = "" if place.is_dir() else "a file" if place.exists() else f"a link to {place.readlink()}, which is not there"
    if not why and not place.stat().st_mode & 0o222:
        why = "read-only"
    if not why:
        try:
            with TemporaryDirectory(prefix=".workbench-", dir=place):
                pass
        except OSError as error:
            why = f"not writable ({error.strerror})"
    if why:
        raise Refused(folder, f"{place} is {why}", "a folder that can be written", "Choose another with -o.")


def writable_file(out: Path, *inputs: Path | None) -> None:
    """The same for a file to be written, which is none of the inputs."""
    from workbench.volume import Refused

    if out.is_dir():
        raise Refused(out, "a folder", "a file to write", "Name the file with -o.")
    if out.exists() and not out.is_file():
        raise Refused(out, "a device or pipe", "a file to write", "Name the file with -o.")
    if out.is_file() and any(path is not None and path.exists() and path.samefile(out) for path in inputs):
        raise Refused(
            out, "one of the inputs", "another file to write", "Name it with -o; an input is never overwritten."
        )
    meant = Path(os.path.realpath(out))
    if meant.is_symlink() or out.is_symlink() and not meant.parent.is_dir():  # a link to itself, or into no folder
        raise Refused(
            out, f"a link to {out.readlink()}, which is not there", "a file to write", "Name another with -o."
        )
    writable(meant.parent)


def beside(out: Path, suffix: str, begins: str) -> Path:
    """A second file that goes with one to be written: its name with another suffix, or with that one more where a file that is not ours has it."""
    from workbench.volume import Refused

    ours = lambda path: not path.is_file() or path.read_bytes().startswith(begins.encode())
    path, other = out.with_suffix(suffix), out.with_name(out.name + suffix)
    if path == out or not ours(path):
        path = other
    writable_file(path)
    if not ours(path):
        raise Refused(path, "a file of another kind", f"a free place beside {out.name}", "Choose another name with -o.")
    return path


@contextmanager
def warnings_told() -> Iterator[None]:
    """The readers' warnings, a line each on stderr."""
    from workbench.data.readers import gates

    with gates.heard() as lines:
        yield
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def progress(what: str, done: int, total: int) -> None:
    print(f"  {what}  {done}{f'/{total}' if total else ''}", file=sys.stderr, flush=True)
