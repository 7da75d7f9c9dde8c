"""A case where its collection keeps it, and what all collections share: label words, other codings, tumor on liver.

Each collection's module (`lits`, `msd`, `ircadb`, `nnunet`, `chaos`, `dicomseg`, `table`) has the same two functions: `list_cases(root)` gives
a `Scan` for each case, whether it has labels or not; `read(scan)` gives its CT, its labels in LiTS's coding (0, 1 liver, 2 tumor) on
the CT's grid, and in words what was done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workbench.data.readers import gates
from workbench.volume import Refused, Volume

LIVER, TUMOR = 1, 2
LIVER_WORDS = r"(whole )?liver( mask| organ| parenchyma| structure)?"
TUMOR_WORDS = r"((liver|hepatic|hepatocellular) ?)?(tumou?r|cancer|lesion|mass|neoplasm|metastas[ie]s|carcinoma|hcc)(e?s)?( ?\d+)?"


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
    values: tuple[tuple[int, int], ...] = ()  # (value in the source, LIVER or TUMOR), where its labels are one map
    masks: tuple[tuple[Path, int], ...] = ()  # (mask, LIVER or TUMOR), where they are files of their own
    series: str = ""  # UID of the CT series, where a folder holds several


Reading = tuple[Volume, Volume, str]


def meaning(words: str) -> int:
    """LIVER, TUMOR or 0 for what a segment, folder or label is called: `Liver`, `liver_tumor 2`, `livertumors`, but not `portal vein`."""
    plain = re.sub(r"[\s_-]+", " ", words.strip().lower())
    if re.fullmatch(LIVER_WORDS, plain):
        return LIVER
    return TUMOR if re.fullmatch(TUMOR_WORDS, plain) else 0


def coding(names: Mapping[str, int | list[int]], subject: object) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """((value, LIVER or TUMOR), ...) from what the values of a label map are called, and the names that mean neither.

    A name may stand for several values (nnU-Net's regions): what is tumor by any name is tumor.
    """
    values: dict[int, int] = {}
    others = []
    for name, held in names.items():
        meant = meaning(name)
        listed: list[int] = list(held) if isinstance(held, list | tuple) else [held]
        if not all(isinstance(v, int) and 0 <= v <= 65535 for v in listed):
            raise Refused(subject, f"label {name!r} with the value {held!r}", "whole numbers from 0")
        if not meant and listed != [0]:
            others.append(name)
        for value in listed:
            if meant:
                values[value] = max(meant, values.get(value, 0))
    if LIVER not in values.values() and TUMOR not in values.values():
        raise Refused(subject, f"labels called {', '.join(names) or 'nothing'}", "one called liver or tumor",
                      "Use `workbench import csv`, which is told the values.")  # fmt: skip
    return tuple(sorted(values.items())), others


def is_plain(values: Iterable[tuple[int, int]]) -> bool:
    """Whether a coding is LiTS's own, the whole of it: where only one of the two is named, the other's value may be anything."""
    return sorted(values) == [(LIVER, LIVER), (TUMOR, TUMOR)]


def recoded(path: Path, ct: Volume, values: Iterable[tuple[int, int]]) -> Volume:
    """A label map of another coding in LiTS's, on the grid of its CT; values that mean neither liver nor tumor become 0."""
    from workbench.data import readers

    held = readers.read_labels(path, like=ct, allowed=None)
    made = torch.zeros(held.shape, dtype=torch.uint8)
    for value, meant in values:
        made[held.array == value] = meant
    return ct.with_array(made, "labels")


def joined(ct: Volume, liver: np.ndarray | None, tumor: np.ndarray | None) -> tuple[Volume, str]:
    """Labels from two masks [z y x]: tumor lies on liver. In words, the ml of tumor outside the liver, where there is any."""
    made = torch.zeros(ct.shape, dtype=torch.uint8)
    if liver is not None:
        made[torch.from_numpy(np.ascontiguousarray(liver))] = LIVER
    said = ""
    if tumor is not None:
        at = torch.from_numpy(np.ascontiguousarray(tumor))
        outside = float((at & (made == 0)).sum()) * ct.voxel_ml
        made[at] = TUMOR
        said = f"{outside:.2f} ml of tumor outside the liver's mask" if outside and liver is not None else ""
    return ct.with_array(made, "labels"), said


def contained(root: Path, name: str, subject: object) -> Path:
    """A file that a list inside a collection names: below the collection and nowhere else."""
    path = root / name if isinstance(name, str) and "\0" not in name else root.parent
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
