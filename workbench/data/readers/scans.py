"""A case where its collection keeps it, and what all collections share: other codings, and structures that become one label map.

Each collection's module (`lits`, `msd`, `ircadb`, `nnunet`, `chaos`, `dicomseg`, `table`) has the same two functions: `list_cases(root)` gives
a `Scan` for each case, whether it has labels or not; `read(scan)` gives its CT, its labels in LiTS's coding (0, 1 liver, 2 tumor) on
the CT's grid, and in words what was done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from workbench.data import columns
from workbench.data.readers import gates, meanings
from workbench.data.readers.meanings import LIVER, TUMOR
from workbench.masks import TOUCHING
from workbench.volume import Refused, Volume

RANK = (TUMOR, LIVER, meanings.BENIGN, meanings.WITHIN, meanings.OTHER)  # of several names of a value, the first counts
IGNORED = "ignore"  # nnU-Net's name for what nobody labelled
CSV_FIX = "`workbench import --labels` prints the names that are known. Rename the label, or use `workbench import csv`, which is told the values."

@dataclass(frozen=True)
class Scan:
    """A case that is not read yet.

    `place` holds all of it. `ct` is what a manifest can name, `labels` too where they are in LiTS's coding already; None is what has to be
    written first. `sources` are the files or folders that the labels are made of; without any, the case has no labels.
    """

    case: str
    patient: str
    place: Path
    ct: Path | None
    sources: tuple[Path, ...] = ()
    labels: Path | None = None
    split: str = "train"
    field_of_view: str = "whole"
    tumor_labels: str = "complete"
    values: tuple[tuple[int, int, str], ...] = ()  # (value in the source, what it means, its name), where its labels are one map
    masks: tuple[tuple[Path, int], ...] = ()  # (mask, LIVER or TUMOR), where they are files of their own
    series: str = ""  # UID of the CT series, where a folder holds several
    fault: str = ""  # why it is refused before it is read


class Structure(NamedTuple):
    """A label, segment or mask: what it means (`meanings`), its name, its voxels as indices into the flat `[z y x]` grid of the CT, and of
    a liver the Couinaud segments in it."""

    meant: int
    name: str
    voxels: np.ndarray
    portion: frozenset[int] = meanings.WHOLE


Reading = tuple[Volume, Volume, str]


def coding(names: Mapping[str, int | list[int]], subject: object) -> tuple[tuple[int, int, str], ...]:
    """((value, what it means, its name), ...) from what the values of a label map are called.

    A name may stand for several values (nnU-Net's regions): what is tumor by any name is tumor, and else what is liver by any name is liver.
    """
    values: dict[int, tuple[int, str]] = {}
    named = {name: list(held) if isinstance(held, list | tuple) else [held] for name, held in names.items()}
    for name, held in named.items():
        if not all(type(v) is int and 0 <= v <= 65535 for v in held):
            raise Refused(subject, f"label {name!r} with the value {names[name]!r}", "whole numbers from 0")
    own = {name: held for name, held in named.items() if any(held)}
    kinds = meanings.each((name for name in own if name != IGNORED), subject, CSV_FIX)
    for name, held in own.items():
        meant = kinds.get(name, meanings.OTHER)
        for value in held:
            if value and (value not in values or RANK.index(meant) < RANK.index(values[value][0])):
                values[value] = meant, name
    return tuple((value, *values[value]) for value in sorted(values))


def is_plain(values: Iterable[tuple[int, int, str]]) -> bool:
    """Whether a coding is LiTS's own, the whole of it: where only one of the two is named, the other's value may be anything."""
    return sorted((value, meant) for value, meant, _ in values) == [(1, LIVER), (2, TUMOR)]


def recoded(path: Path, ct: Volume, values: Iterable[tuple[int, int, str]], all_named: bool = True) -> tuple[Volume, str]:
    """A label map of another coding in LiTS's, on the grid of its CT, and in words what was done. Not `all_named`: values may have no name."""
    from workbench.data import readers

    held = readers.read_labels(path, like=ct, allowed=None).array.numpy().ravel()
    coded = {value: (meant, name) for value, meant, name in values}
    structures = []
    for value in np.unique(held).tolist():
        meant, name = coded.get(value, (meanings.OTHER, f"value {value}"))
        if not value:
            continue
        if all_named and (value not in coded or name == IGNORED):
            ml = float((held == value).sum()) * ct.voxel_ml
            raise Refused(path, f"{ml:.2f} ml of the value {value}, " + ("which no label is called" if value not in coded else name),
                          "only labels with a meaning", CSV_FIX)  # fmt: skip
        structures.append(Structure(meant, name, np.flatnonzero(held == value)))
    return joined(ct, structures, apart=True)


def joined(ct: Volume, structures: Iterable[Structure], apart: bool = False) -> tuple[Volume, str]:
    """Labels on the CT's grid from structures, and in words what was joined and dropped; see `composed`."""
    made, done = composed(structures, ct.shape, ct.voxel_ml, apart)
    return ct.with_array(torch.from_numpy(made), "labels"), done


def composed(structures: Iterable[Structure], shape: tuple[int, ...], voxel_ml: float, apart: bool = False) -> tuple[np.ndarray, str]:
    """One label map from structures, by the rules of `meanings.SAID`: tumor lies on liver, and what else lies in the liver belongs to it.

    In words, what was joined to the liver, what was dropped, and how much tumor lies outside the liver, in ml. `apart`: no two structures
    share a voxel, as in a label map.
    """
    structures = list(structures)
    made = np.zeros(math.prod(shape), np.uint8)
    labels = made.reshape(shape)
    kinds = {kind: [s for s in structures if s.meant == kind] for kind in meanings.SAID}
    for s in kinds[LIVER]:
        made[s.voxels] = LIVER
    outside = 0
    for s in kinds[TUMOR]:
        outside += int((made[s.voxels] == 0).sum()) * bool(kinds[LIVER]) * (not apart)
        made[s.voxels] = TUMOR
    others = (s for s in structures if s.meant not in (LIVER, TUMOR) and s.name.lower() != "background")
    free = [(s, s.voxels[made[s.voxels] == 0]) for s in others]
    for kind, belongs in ((meanings.BENIGN, _touching), (meanings.WITHIN, _surrounded)):
        if there := [voxels for s, voxels in free if s.meant == kind]:
            voxels = np.unique(np.concatenate(there))
            made[voxels[belongs(labels, voxels)]] = LIVER
    inside = [(s.name, int((made[voxels] > 0).sum()), len(voxels)) for s, voxels in free]
    told = {
        "joined to the liver": [(name, taken) for name, taken, _ in inside],
        "dropped": [(name, count - taken) for name, taken, count in inside],
    }
    words = {what: ", ".join(f"{name} ({n * voxel_ml:.2f} ml)" for name, n in held if n) for what, held in told.items()}
    return labels, said(
        *(f"{what}: {text}" for what, text in words.items() if text),
        f"{outside * voxel_ml:.2f} ml of tumor outside the liver's mask" if outside else "",
    )


def _touching(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Whether the connected piece of a structure that each of its voxels is in touches a label."""
    if not voxels.size:
        return np.zeros(0, bool)
    at = np.unravel_index(voxels, labels.shape)
    box = tuple(slice(max(0, int(i.min()) - 1), int(i.max()) + 2) for i in at)
    here = tuple(i - part.start for i, part in zip(at, box, strict=True))
    mask = np.zeros(labels[box].shape, bool)
    mask[here] = True
    pieces, count = ndimage.label(mask, TOUCHING)
    near = np.zeros(count + 1, bool)
    near[pieces[ndimage.binary_dilation(labels[box] > 0, TOUCHING)]] = True
    return near[pieces[here]]


def _surrounded(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Whether there is a label on both sides of each voxel along two of the three axes."""
    ways = np.zeros(voxels.shape, np.int8)
    at = np.unravel_index(voxels, labels.shape)
    for axis in range(3):
        on = labels > 0
        first, last = on.argmax(axis), on.shape[axis] - 1 - np.flip(on, axis).argmax(axis)
        line = tuple(i for k, i in enumerate(at) if k != axis)
        ways += np.asarray(on.any(axis))[line] & (first[line] < at[axis]) & (at[axis] < last[line])
    return ways >= 2


def contained(root: Path, name: str, subject: object) -> Path:
    """A file that a list inside a collection names: below the collection and nowhere else."""
    path = columns.located(root, name) if isinstance(name, str) and "\0" not in name else root.parent
    if not path.resolve().is_relative_to(root.resolve()):
        raise Refused(subject, f"a file {name!r}", f"files below {root}", "Move them there.")
    return path


def unique(found: Iterable[Scan], root: Path, layout: str) -> list[Scan]:
    """The cases in the order of their names; refused when there is none, or one twice."""
    listed = sorted(found, key=lambda scan: gates.natural(Path(scan.case)))
    if not listed:
        raise Refused(root, "no case", layout, "Give the folder that holds them.")
    for one, other in zip(listed, listed[1:], strict=False):
        if one.case == other.case:
            raise Refused(root, f"case {one.case} at {one.place} and at {other.place}", "each case once",
                          "Remove one of the two.")  # fmt: skip
    return listed


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def said(*parts: str) -> str:
    """What was done, in one line."""
    return "; ".join(part for part in parts if part)
