"""What lies below a folder: links are followed, each folder is entered once, and what cannot be read is named.

`Path.rglob` enters no linked folder and passes over one that may not be read, without a word.
Hidden files and folders (a name that begins with a dot, such as macOS's `._volume-1.nii`) are no part of a collection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from workbench.volume import Refused


@dataclass(frozen=True)
class Below:
    """The files and folders at or below a path, in the order of their names, and a refusal for each that cannot be read."""

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    faults: list[tuple[Path, Refused]] = field(default_factory=list)


def below(root: Path) -> Below:
    """All of it. A folder that several links lead to is entered once, by its own path where that is below the root."""
    if not root.is_dir():
        return Below([root])
    found, entered, waiting = Below(), set(), [root]

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        words = f"what cannot be read ({(error.strerror or str(error)).lower()})"
        found.faults.append((path, Refused(path, words, "read permission", "Allow it, or move it away.")))

    def locked(error: OSError) -> None:
        unreadable(error)
        found.folders.append(Path(error.filename))

    while waiting:
        for place, folders, names in os.walk(waiting.pop(0), onerror=locked):
            about = os.stat(place)
            if (about.st_dev, about.st_ino) in entered:
                folders.clear()
                continue
            entered.add((about.st_dev, about.st_ino))
            found.folders.append(Path(place))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [Path(place, name) for name in folders if os.path.islink(Path(place, name))]
            for path in (Path(place, name) for name in names if not name.startswith(".")):
                try:
                    if path.is_file():
                        found.files.append(path)
                    elif path.is_symlink() and not path.exists():
                        lost = Refused(path, f"a link to {os.readlink(path)}, which is not there", "a file",
                                       "Fetch the file, or remove the link.")  # fmt: skip
                        found.faults.append((path, lost))
                except OSError as error:
                    unreadable(error)
    found.files.sort()
    found.folders.sort()
    return found


def files(root: Path) -> list[Path]:
    """The files at or below a path; refused where something there cannot be read."""
    found = below(root)
    for _, fault in found.faults:
        raise fault
    return found.files


def named(folder: Path, name: str) -> Path:
    """What a folder holds under a name, whatever its upper and lower case; the path of that very name where nothing is."""
    exact = folder / name
    if exact.exists() or not folder.is_dir() or not os.access(folder, os.R_OK):
        return exact
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()), exact)
