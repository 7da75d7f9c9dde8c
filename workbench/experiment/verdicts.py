"""What a reader says of a result: a verdict a candidate, and corrected labels.

Both lie in the folder `verdicts` of the result and outlive it: a result written anew takes them along. `verdicts.json` says
who said what when, and the SHA-256 of the result that was judged, so that verdicts on a former result are told from those
on the one that is there. Corrected labels are a file of their own, named by its hash; they are bound to the CT by its voxel hash, not to the
result, and hold whatever becomes of it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.data import readers
from workbench.data.files import DAMAGED, read_json, sha256, write_json
from workbench.data.readers import nifti
from workbench.experiment import reading
from workbench.volume import Refused, Volume

KINDS = ("accept", "reject", "needs edit")
FOLDER, FILE = "verdicts", "verdicts.json"
FORMAT = 1
JUDGED = (
    "lesions.csv",
    "ledger.nii.gz",
    "labels.nii.gz",
)  # what a reader looks at; each is the same bytes when made again


@dataclass(frozen=True)
class Verdict:
    """One judgement of one candidate. `when` is UTC, ISO 8601."""

    candidate: int
    verdict: str
    note: str
    who: str
    when: str
    result_sha256: str


@dataclass(frozen=True)
class Corrected:
    """Whose labels `file` holds, since when, on which result they were drawn, and of which CT (its voxel hash; 0.1.0 kept none)."""

    file: str
    sha256: str
    who: str
    when: str
    result_sha256: str
    voxel_hash: str = ""


@dataclass(frozen=True)
class Review:
    """All that was said of the results of one case, those on former results among it."""

    verdicts: tuple[Verdict, ...] = ()
    corrected: Corrected | None = None

    def of(self, result_sha256: str) -> dict[int, Verdict]:
        """The verdicts on one result, by candidate."""
        return {v.candidate: v for v in self.verdicts if v.result_sha256 == result_sha256}

    def outdated(self, result_sha256: str) -> str:
        """One line when something was said of another result than this one; else empty."""
        old = [v for v in self.verdicts if v.result_sha256 != result_sha256]
        drawn = self.corrected is not None and self.corrected.result_sha256 != result_sha256
        parts = [f"{len(old)} verdict{'s' * (len(old) > 1)}"] * bool(old) + ["the corrected labels"] * drawn
        if not parts:
            return ""
        last = max([*(v.when for v in old), *([self.corrected.when] if drawn and self.corrected else [])])
        return f"the result has changed since {' and '.join(parts)} (last on {last[:10]})"

    def words(self, result_sha256: str) -> str:
        """All of it in one line; empty when nothing was said."""
        now = self.of(result_sha256).values()
        kinds = [f"{n} {kind}" for kind in KINDS if (n := sum(v.verdict == kind for v in now))]
        parts = [f"{', '.join(kinds)} ({', '.join(sorted({v.who for v in now}))})"] if kinds else []
        parts += [f"labels corrected by {self.corrected.who}"] if self.corrected else []
        return "; ".join([*parts, *([outdated] if (outdated := self.outdated(result_sha256)) else [])])


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of what a result says: its lesions, ledger and labels."""
    digest = hashlib.sha256()
    for name in JUDGED:
        file = Path(folder) / name
        digest.update(f"{name} {sha256(file) if file.is_file() else 'none'}\n".encode())
    return digest.hexdigest()


def read(folder: str | Path) -> Review:
    """What was said of a result; empty when nothing was, refused when the file is damaged."""
    file = Path(folder) / FOLDER / FILE
    if not file.is_file():
        return Review()
    held = read_json(file, "format", "verdicts", "corrected")
    if held["format"] != FORMAT:
        raise Refused(file, f"format {held['format']!r}", f"{FORMAT}", "Another version of the workbench wrote it.")
    if not isinstance(held["verdicts"], list):
        raise Refused(file, "verdicts that are no list", "a list", DAMAGED)
    verdicts = [_record(Verdict, row, f"{file}, verdict {n}") for n, row in enumerate(held["verdicts"], 1)]
    for n, v in enumerate(verdicts, 1):
        if v.verdict not in KINDS:
            raise Refused(f"{file}, verdict {n}", f"the verdict {v.verdict!r}", ", ".join(KINDS), DAMAGED)
    drawn = held["corrected"]
    corrected = None if drawn is None else _record(Corrected, drawn, f"{file}, corrected labels")
    if corrected and Path(corrected.file).name != corrected.file:
        raise Refused(f"{file}, corrected labels", f"the file {corrected.file!r}", "a name without a folder", DAMAGED)
    return Review(tuple(verdicts), corrected)


def give(folder: str | Path, candidate: int, verdict: str, note: str = "", who: str = "") -> Review:
    """Judge a candidate of the result as it is now; a former verdict on the same result makes room."""
    if verdict not in KINDS:
        raise Refused("verdict", repr(verdict), ", ".join(KINDS))
    case = reading.result(folder)
    if candidate not in set(case.lesions().candidate):
        raise Refused(case.path, f"no candidate {candidate}", "one of lesions.csv")
    made = Verdict(int(candidate), verdict, note, _who(who), _now(), fingerprint(folder))
    return _put(case, withdrawn(read(folder), candidate, made.result_sha256), made)


def withdraw(folder: str | Path, candidate: int) -> Review:
    """Take the verdict on a candidate of the result back."""
    case = reading.result(folder)
    return _put(case, withdrawn(read(folder), candidate, fingerprint(folder)))


def withdrawn(review: Review, candidate: int, result_sha256: str) -> Review:
    """The review without the verdict on one candidate of one result."""
    left = [v for v in review.verdicts if (v.candidate, v.result_sha256) != (candidate, result_sha256)]
    return replace(review, verdicts=tuple(left))


def correct(folder: str | Path, labels: np.ndarray, who: str = "") -> Path:
    """Keep corrected labels (canonical `[z y x]`; 0, 1 liver, 2 tumor) on the grid of the result's own files."""
    case, place = reading.result(folder), Path(folder) / FOLDER
    labels = np.asarray(labels)
    foreign = sorted(set(np.unique(labels).tolist()) - {0, 1, 2})
    if foreign:
        raise Refused(case.path, f"corrected labels with the values {foreign}", "0, 1 liver, 2 tumor")
    like = readers.read_labels(case.path / "labels.nii.gz")
    volume = like.with_array(torch.from_numpy(labels.astype(np.uint8)), "the corrected labels")
    place.mkdir(exist_ok=True)
    fresh = place / f"labels-new-{os.getpid()}.nii.gz"
    try:
        nifti.write(volume, fresh)
        digest = sha256(fresh)
        file = place / f"labels-{digest[:12]}.nii.gz"
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
    about = Corrected(file.name, digest, _who(who), _now(), fingerprint(folder), case.voxel_hash())
    _put(case, replace(read(folder), corrected=about))
    for former in place.glob("labels-*.nii.gz"):  # only now is none of them named any more
        if former != file:
            former.unlink()
    return file


def corrected(folder: str | Path) -> Volume | None:
    """The corrected labels of a result, canonical; None without them, refused when they are not those that were kept."""
    about = read(folder).corrected
    return None if about is None else readers.read_labels(corrected_file(folder, about))


def corrected_file(folder: str | Path, about: Corrected) -> Path:
    """The file of the corrected labels, once it has proved to be the one that was kept."""
    file = Path(folder) / FOLDER / about.file
    own = reading.result(folder).info.get("voxel_hash")
    if own and about.voxel_hash and own != about.voxel_hash:
        raise Refused(file, f"labels of another CT (voxel hash {about.voxel_hash})", f"those of the result's own ({own})",
                      "They came here from another result: move the folder `verdicts` back there.")  # fmt: skip
    if not file.is_file() or sha256(file) != about.sha256:
        found = "another file than the one that was kept" if file.is_file() else "no such file"
        raise Refused(file, found, f"the labels of {about.who} of {about.when}", "Restore it, or correct them again.")
    return file


def _put(case: reading.ResultFolder, review: Review, *new: Verdict) -> Review:
    order = sorted((*review.verdicts, *new), key=lambda v: (v.when, v.candidate))
    review = replace(review, verdicts=tuple(order))
    held = {"format": FORMAT, "case": case.case, **asdict(review)}
    write_json(case.path / FOLDER / FILE, held)
    return review


def _record(kind: Any, row: object, subject: str) -> Any:
    """A row of the file as a record; refused when a field is missing, foreign or of another type."""
    wanted = {f.name: int if f.name == "candidate" else str for f in fields(kind)}
    free = {"voxel_hash"} & wanted.keys() if isinstance(row, dict) and "voxel_hash" not in row else set()
    wanted = {name: of for name, of in wanted.items() if name not in free}
    if not isinstance(row, dict) or set(row) != set(wanted):
        found = f"the fields {', '.join(map(str, row))}" if isinstance(row, dict) else f"{row!r:.60}"
        raise Refused(subject, found, ", ".join(wanted), DAMAGED)
    for name, of in wanted.items():
        if type(row[name]) is not of:
            raise Refused(subject, f"{name} {row[name]!r:.60}", "a number" if of is int else "a text", DAMAGED)
    return kind(**row)


def _who(name: str) -> str:
    return name.strip() or getpass.getuser()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
