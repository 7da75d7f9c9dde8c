"""What readers said of results, as training takes it up: corrected labels and rejected candidates of the training cases.

An experiment keeps a copy of its own, so that results made anew change nothing behind its back. A result belongs to the case of
the manifest whose CT it was made from: the voxels decide, not the name. Held-out cases are measured, so nothing that was said
of them enters, neither labels nor verdicts; a line says so.

Corrected labels stand in place of the reference in every stage. A rejected candidate counts as a false positive for the
forest and for nothing else: out-of-fold candidates lie where it lies (`falsified`); the reference itself changes
by corrected labels only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.data import readers
from workbench.data.cohort import Case, voxel_hash
from workbench.data.files import read_json, sha256, write_json
from workbench.data.readers import nifti
from workbench.experiment import reading, verdicts
from workbench.volume import Refused, resample_labels

FILE = "corrections.json"
ENTER = {"cohort": "labels_sha256", "candidates": "rejected_sha256"}  # the stages that take them up, and what of them


@dataclass(frozen=True)
class Correction:
    """What is kept of one case: hashes of the two files beside, empty where there is none, and who said it."""

    labels_sha256: str = ""
    rejected_sha256: str = ""
    rejected: tuple[int, ...] = ()
    who: tuple[str, ...] = ()
    result: str = ""


def gather(sources: Sequence[str | Path], cases: Sequence[Case], into: str | Path) -> list[str]:
    """Copy what was said of the training cases `into` a folder, in place of what lay there; a line for each result.

    `sources` are result folders, or folders of them. Refused when nothing of it can be used, and when two results of one
    case were corrected.
    """
    into, lines = Path(into), []
    kept: dict[str, Correction] = {}
    making = into.with_name(f".{into.name}.part")
    settle(into)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        of_file = {case.ct.resolve(): case for case in cases}
        of_voxels = {case.measured["voxel_hash"]: case for case in cases if "voxel_hash" in case.measured}
        for folder in _reviewed(sources):
            result = reading.result(folder)
            voxels, path = result.voxel_hash(), (folder / str(result.info.get("input"))).resolve()
            case = of_voxels.get(voxels) or of_file.get(path)
            if case is None:
                lines.append(f"{folder}: left out, its CT is none of the cohort's")
            elif not voxels or voxels != _voxels(case):
                found = (
                    "the CT it was made from was changed" if voxels else "it cannot be told which CT it was made from"
                )
                lines.append(f"{folder}: left out, {found} (case {case.case}): segment it again")
            elif case.split != "train":
                lines.append(f"{folder}: left out, case {case.case} is held out and nothing said of it may train")
            elif case.case in kept:
                raise Refused(folder, f"another review of case {case.case}, beside {kept[case.case].result}", "one",
                              "Name the one to use.")  # fmt: skip
            else:
                correction, words = _take(folder, case.case, voxels, making)
                lines.append(f"{folder}: {words}")
                if correction is not None:
                    kept[case.case] = correction
        if not kept:
            more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
            found = "; ".join([*lines[:3], *more]) or "no verdict and no corrected labels"
            raise Refused("--with-corrections", found, "what a reader said of training cases of this cohort",
                          "`workbench segment` their CTs, and judge the results in `workbench view`.")  # fmt: skip
        write_json(making / FILE, {name: asdict(kept[name]) for name in sorted(kept)})
        if into.exists():
            into.rename(_former(into))
        making.rename(into)
    finally:
        settle(into)
        shutil.rmtree(making, ignore_errors=True)
    return lines


def _former(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.old")


def settle(into: Path) -> None:
    """After an end between: what was moved away comes back where nothing took its place, and goes where something did."""
    former = _former(into)
    if former.exists() and not into.exists():
        former.rename(into)
    shutil.rmtree(former, ignore_errors=True)


def read(folder: str | Path) -> dict[str, Correction]:
    """The corrections that an experiment keeps, by case."""
    file = Path(folder) / FILE
    held = read_json(file) if file.is_file() else {}
    return {
        c: Correction(**{**row, "rejected": tuple(row["rejected"]), "who": tuple(row["who"])})
        for c, row in held.items()
    }


def identity(kept: dict[str, Correction], stage: str) -> str:
    """A hash of all that one of the stages `ENTER` takes up; empty when that is nothing."""
    taken = {case: sha for case, said in sorted(kept.items()) if (sha := getattr(said, ENTER[stage]))}
    return hashlib.sha256(json.dumps(taken).encode()).hexdigest() if taken else ""


def labels_file(folder: str | Path, case: str) -> Path:
    return Path(folder) / f"{case}.labels.nii.gz"


def rejected_file(folder: str | Path, case: str) -> Path:
    return Path(folder) / f"{case}.rejected.nii.gz"


def rejected(folder: str | Path, case: str, shape: tuple[int, int, int]) -> Tensor:
    """Where a case's rejected candidates lie, bool [z y x] on a grid of `shape` over the same field of view."""
    return resample_labels(readers.read_labels(rejected_file(folder, case), allowed=None).array, shape) > 0


def falsified(labels: Tensor, reference: Tensor, where: Tensor, overlap: float) -> np.ndarray:
    """For each candidate 1..n, bool [n]: at least `overlap` of it lies in rejected voxels, and more than in the rest of the reference.

    `labels` int, `reference` and `where` bool, all [z y x].
    """
    numbers, count = labels.long(), int(labels.max()) if labels.numel() else 0

    def voxels(on: Tensor) -> np.ndarray:
        return torch.bincount(numbers[on], minlength=count + 1)[1:].cpu().numpy()

    inside = voxels(where)
    return (inside > 0) & (inside >= overlap * voxels(numbers > 0)) & (inside > voxels(reference & ~where))


def _reviewed(sources: Sequence[str | Path]) -> Iterator[Path]:
    """The result folders at or below the sources of which something was said."""
    seen = set()
    for source in map(Path, sources):
        found = reading.results_at(source, "", "*/", "results/*/")
        if not found:
            raise Refused(source, "no result", "a result folder, or a folder of them")
        for folder in found:
            if (folder / verdicts.FOLDER / verdicts.FILE).is_file() and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _voxels(case: Case) -> str:
    """The voxel hash of a case's CT, as the manifest says or as the file has it."""
    if "voxel_hash" in case.measured:
        return case.measured["voxel_hash"]
    with readers.gates.heard():
        return voxel_hash(readers.read(case.ct).array.numpy())


def _take(folder: Path, case: str, voxels: str, into: Path) -> tuple[Correction | None, str]:
    """Copy the corrected labels and the rejected candidates of one result; what was taken, and the words for it."""
    review, now = verdicts.read(folder), verdicts.fingerprint(folder)
    said, words = review.of(now), []
    if outdated := review.outdated(now):
        words.append(f"{outdated}, and only labels hold on")
    labels_sha256 = rejected_sha256 = ""
    who = set()
    drawn = review.corrected
    if drawn and not drawn.voxel_hash and drawn.result_sha256 != now:
        words.append(
            "its corrected labels left out, since 0.1.0 did not keep of which CT they are: `workbench correct` keeps them again"
        )
    elif drawn and drawn.voxel_hash not in ("", voxels):
        words.append("its corrected labels left out, which are of another CT")
    elif drawn is not None:
        shutil.copyfile(verdicts.corrected_file(folder, drawn), labels_file(into, case))
        labels_sha256 = sha256(labels_file(into, case))
        who.add(drawn.who)
        words.append("corrected labels")
    numbers = tuple(sorted(c for c, v in said.items() if v.verdict == "reject"))
    if numbers:
        file = folder / "candidates.nii.gz"
        if not file.is_file():
            raise Refused(folder, "rejected candidates and no candidates.nii.gz", "the voxels of each candidate",
                          "An earlier version made this result: segment the CT again and judge anew.")  # fmt: skip
        volume = readers.read_labels(file, allowed=None)
        on = torch.isin(volume.array.long(), torch.tensor(numbers))
        nifti.write(volume.with_array(on), rejected_file(into, case))
        rejected_sha256 = sha256(rejected_file(into, case))
        who |= {said[c].who for c in numbers}
        words.append(f"{len(numbers)} rejected {'candidate' if len(numbers) == 1 else 'candidates'}")
    if not labels_sha256 and not numbers:
        return None, "; ".join([*words, "nothing rejected and nothing corrected"])
    return Correction(labels_sha256, rejected_sha256, numbers, tuple(sorted(who)), str(folder)), "; ".join(words)
