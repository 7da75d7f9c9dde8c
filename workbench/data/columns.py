"""The CSV tables that users write, read in one place: separators, byte order marks, Unicode forms, and columns that are nearly ours.

Commas, semicolons or tabs separate the cells, whatever a spreadsheet puts there. Spaces around a cell are no part of it, and names are
brought to one Unicode form (NFC). A column whose name differs from ours in case, spaces or marks alone is read as ours, and a warning says so. A
column that looks like ours otherwise (`set` for split) is refused with the right name, unless ours is there too.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

from workbench.data.readers import gates
from workbench.volume import Refused

SEPARATORS = ",;\t|"
ALIKE = 0.8  # rule: share of letters in common from which a column is taken for a slip (tumour_labels, lables)
VALUES = {  # of a column under another name, by which it is known
    "split": r"(train|test|val|dev|eval|heldout|holdout)\w*|tr|ts|te|trn|tst",
    "field_of_view": r"whole|liverbox",
    "tumor_labels": r"complete|none|exclude",
}
SWITCH = {"0", "1", "true", "false", "yes", "no", "y", "n", "x"}
OTHERS = {  # other words for our columns
    "case": "caseid id name scanid studyid uid",
    "patient": "patientid pid subject subjectid patientname",
    "ct": "image images img scan volume ctpath ctfile imagepath",
    "labels": "labelpath labelspath mask masks segmentation seg annotation groundtruth gt",
    "split": "set subset partition datasplit train test istrain istest heldout holdout traintest testset",
    "tumor_labels": "tumorslabelled lesionlabels",
    "tumor": "tumour tumours",
}


def read(
    path: Path, needed: Sequence[str], expected: str, optional: Sequence[str] = (), measured: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """(line, cells) of each row of a CSV that has at least the columns `needed`; others keep their names. `expected` says what the file should be.

    A near miss of the `optional` ones is refused, of the `measured` ones left alone: nothing hangs on those.
    """
    known = [*needed, *optional, *measured]
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        lines = _cells(text, known)
    except (UnicodeDecodeError, csv.Error) as error:
        fix = "Look for a quotation mark that is not closed." if isinstance(error, csv.Error) else "Save it as CSV in UTF-8."
        raise Refused(path, f"no CSV text ({error})", expected, fix) from None
    if not lines:
        raise Refused(path, "no row", "at least one case")
    names = _names(path, lines[0][1], known)
    if missing := [name for name in needed if name not in names]:
        nearly = [f"Rename {own} to {name}." for name in missing for own in names if _nearly(own, name)]
        fix = " ".join(nearly) or f"Add {', '.join(missing)}."
        raise Refused(path, f"the columns {', '.join(filter(None, names))}", ", ".join(needed), fix)
    rows = []
    for number, cells in lines[1:]:
        if not any(cells):
            continue
        if len(cells) != len(names):
            fix = "Put text with commas into quotation marks." if len(cells) > len(names) else ""
            lacking = [name for name in needed if name in names[len(cells) :]]
            found = f"no {', '.join(lacking)}" if lacking else "another number of fields than columns"
            raise Refused(f"{path}, line {number}", found, "a value for each column", fix)
        if any(cell for name, cell in zip(names, cells) if not name):
            raise Refused(f"{path}, line {number}", "a cell below a column without a name", "a name for each column")
        rows.append((number, {name: cell for name, cell in zip(names, cells) if name}))
    if not rows:
        raise Refused(path, "no row", "at least one case")
    _refuse_near_misses(path, [row for _, row in rows], [*needed, *optional])
    return rows


def located(folder: Path, name: str) -> Path:
    """`folder / name`; where nothing is there, what has this name in another Unicode form, or with the separators of Windows."""
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        place = folder
        for part in Path(written).parts:
            former, place = place, place / part
            if not place.exists() and former.is_dir():
                alike = [entry for entry in former.iterdir() if plain(entry.name) == plain(part)]
                place = alike[0] if len(alike) == 1 else place
        if place.exists():
            return place
    return folder / name


def plain(text: str) -> str:
    """Text in one Unicode form (NFC), without marks that nobody sees and without spaces around it."""
    seen = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return seen.strip()


def folded(name: str) -> str:
    """What two spellings of one name have in common: no case, no accents' forms, no spaces or punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", plain(name)).casefold())


def _cells(text: str, known: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(line, cells) of the lines that are not blank, by the separator that gives the most columns of ours."""
    marks, skip, ours = SEPARATORS, 0, {folded(name) for name in known}
    if told := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # a spreadsheet's own line
        marks, skip, text = told[1], 1, text[told.end() :]
    found, errors = [], []
    for mark in marks:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)
        try:
            lines = [(reader.line_num + skip, [plain(cell) for cell in line]) for line in reader if line]
        except csv.Error as error:
            errors.append(error)
            continue
        found.append((len(ours & {folded(name) for name in lines[0][1]}) if lines else 0, lines))
    if not found:
        raise errors[0]
    return max(found, key=lambda one: one[0])[1]


def _names(path: Path, header: list[str], known: Sequence[str]) -> list[str]:
    """The columns' names, ours where they differ in case and the like alone; refused where one stands twice."""
    ours = {folded(name): name for name in known}
    names = [name if name in known else ours.get(folded(name), name) for name in header]
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            written = [own for own, read in zip(header, names) if read == name]
            raise Refused(path, f"the column {name} {count} times ({', '.join(written)})", "each column once",
                          "Remove or rename the others.")  # fmt: skip
    for own, name in zip(header, names):
        if own != name:
            gates.warn(path, f"its column {own!r} is read as {name}")
    return names


def _refuse_near_misses(path: Path, rows: list[dict[str, str]], near: Sequence[str]) -> None:
    """Refuse a column that looks like one of ours that is not there: it would be passed over, and held-out cases would train."""
    for own in rows[0]:
        cells = {folded(row[own]) for row in rows} - {""}
        right = [name for name in near if name not in rows[0] and own not in near and _meant(own, cells, name)]
        if right:
            fix = f"Rename it to {right[0]}, or to something unlike it if it is a column of your own."
            raise Refused(path, f"a column {own!r}, which nothing reads", f"the name {right[0]}", fix)


def _meant(own: str, cells: set[str], name: str) -> bool:
    """Whether a column with these cells is one of ours under another name."""
    if cells and name in VALUES and all(re.fullmatch(VALUES[name], cell) for cell in cells):
        return name != "tumor_labels" or cells != {"none"}
    if name == "split" and folded(own) in OTHERS["split"].split():
        return bool(cells) and cells <= SWITCH
    return _nearly(own, name)


def _nearly(own: str, name: str) -> bool:
    """Whether a column's name is another word for one of ours, or a slip of the hand."""
    one, other = folded(own), folded(name)
    return one in OTHERS.get(name, "").split() or bool(one) and SequenceMatcher(None, one, other).ratio() >= ALIKE
