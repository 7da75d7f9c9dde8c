"""Damaged input by the thousand: `python fuzz.py KIND --count N --seed S` tries N mutations and prints what came of them as JSON.

Every input follows from (kind, seed, number). It may be read or `Refused`; any other exception has escaped, and so has one that takes
longer than `LIMIT_S` or more than `SPARE_BYTES` of memory beyond what the sound input needs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pandas as pd
import pydicom
import tiny
import torch
from test_faults import AFFINE, ct, series

from workbench import experiment
from workbench.data import cohort, files, readers
from workbench.data.readers import slices
from workbench.experiment import reading
from workbench.nets import cascade, fit
from workbench.nets.network import SlabNet
from workbench.run import batch
from workbench.run.commands.notebooks import _parameters
from workbench.stages import boundary, forest
from workbench.volume import Refused

LIMIT_S = 10.0  # the sound inputs take milliseconds
SPARE_BYTES = 1 << 30
NAMED = ("Doe", "Jane", "4711")  # the patient in the headers of `test_faults.series`


class Hung(BaseException):
    """An input that took too long."""


# -- mutations --------------------------------------------------------------------------------------------------------

WORDS = ["", " ", "0", "-1", "1e400", "nan", "inf", "30000", "99999999999999999999", "ö", "x", "\0", "../../x", "/etc", "a" * 300, "1;2", "%s"]  # fmt: skip
JUNK = [None, True, False, 0, -1, 7, 1.5, 1e308, float("nan"), 2**70, [], {}, [[]], {"a": 1}, [None], *WORDS]
NUMBERS = [0, 1, 2, 7, 255, 0x7F, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x7F800000]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four faults: flipped, overwritten, cut, doubled, inserted, or a number of ill repute."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 4, 16, 200))
        what = rng.randrange(7)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at : at + n] = rng.randbytes(n)
        elif what == 2:
            out[at : at + n] = rng.choice((b"\0", b"\xff")) * n
        elif what == 3:
            del out[at : at + n]
        elif what == 4:
            out[at:at] = out[at : at + n]
        elif what == 5:
            out[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS))
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def places(value: object) -> list[tuple]:
    """(container, key) of everything in a nested JSON value."""
    found, todo = [], [value]
    while todo:
        held = todo.pop()
        for key in list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ():
            found.append((held, key))
            todo.append(held[key])
    return found


def damaged_json(rng: random.Random, value: object) -> str:
    """JSON with one to three values lost, renamed or of another kind; now and then damaged as text."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        if not (known := places(value)):
            break
        depth = rng.random() < 0.5  # half of the faults are near the top, where all is read
        held, key = rng.choice(known[:12] if depth else known)
        what = rng.randrange(4)
        if what == 0:
            del held[key]
        elif what == 1 and isinstance(held, dict):
            held[rng.choice(WORDS)] = held.pop(key)
        else:
            held[key] = rng.choice(JUNK)
    text = json.dumps(value)
    return damaged(rng, text.encode()).decode("utf-8", "replace") if rng.random() < 0.1 else text


def damaged_table(rng: random.Random, text: str) -> str:
    """CSV with fields changed, rows and columns lost or doubled."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        what, at = rng.randrange(5), rng.randrange(max(1, len(row)))
        if what == 0 and row:
            row[at] = rng.choice(WORDS)
        elif what == 1 and row:
            del row[at]
        elif what == 2:
            row.insert(at, rng.choice(WORDS))
        elif what == 3:
            rows.append(list(row))
        elif row:
            row[at] = rng.choice(['"', "\r", '"x\n', "'"]) + row[at]
    return "\n".join(map(",".join, rows)) + "\n"


# -- kinds: each gets a folder of its own and gives a function (rng) that writes one damaged input and reads it ------------

Try = Callable[[random.Random], object]


def of_nifti(folder: Path) -> Try:
    image = nibabel.Nifti1Image(ct(), None)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    raw = image.to_bytes()
    labels = nibabel.Nifti1Image((ct() > 60).astype(np.uint8), AFFINE).to_bytes()
    fields = [(at, nibabel.Nifti1Header.template_dtype.fields[name][0]) for name, (_, at) in
              nibabel.Nifti1Header.template_dtype.fields.items()]  # fmt: skip

    def one(rng: random.Random) -> object:
        mask = rng.random() < 0.3
        data = bytearray(labels if mask else raw)
        zipped = rng.random() < 0.5
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 2)):
                at, kind = rng.choice(fields)
                at += rng.randrange(max(1, kind.itemsize // 4)) * min(4, kind.itemsize)
                data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
        elif rng.random() < 0.7:
            data = damaged(rng, data)
        data = gzip.compress(data, 1) if zipped else bytes(data)
        path = folder / ("ct.nii.gz" if zipped and rng.random() < 0.98 else "ct.nii")
        path.write_bytes(damaged(rng, data) if rng.random() < 0.2 else data)
        return readers.read_labels(path) if mask else readers.read(path)

    return one


def of_itk(folder: Path) -> Try:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(ct().transpose(2, 1, 0))
    image.SetSpacing((2, 2, 5))
    sound = {}
    for name, packed in (("ct.nrrd", False), ("zip.nrrd", True), ("ct.mha", False), ("zip.mha", True), ("ct.mhd", False)):  # fmt: skip
        sitk.WriteImage(image, folder / name, packed)
        sound[name] = (folder / name).read_bytes()

    def one(rng: random.Random) -> object:
        name = rng.choice(list(sound))
        data = sound[name]
        if rng.random() < 0.6:  # a word of the header
            end = data.find(b"\n\n") if "nrrd" in name else data.find(b"ElementDataFile")
            head = data[: end if end > 0 else len(data)].split(b" ")
            for _ in range(rng.randint(1, 2)):
                head[rng.randrange(len(head))] = rng.choice(WORDS).encode()
            data = b" ".join(head) + data[end if end > 0 else len(data) :]
        else:
            data = damaged(rng, data)
        (folder / name).write_bytes(data)
        return readers.read(folder / name)

    return one


def of_dicom(folder: Path) -> Try:
    series(folder / "scan", 4)
    files = sorted((folder / "scan").iterdir())
    sound = {file: file.read_bytes() for file in files}
    values = [b"0.9\\0.7", b"1\\0\\0\\0\\1\\0", b"-10\\-20\\1", b"-1024", b"ORIGINAL\\PRIMARY\\AXIAL", b"MONOCHROME2", b"CT",
              b"1.2.840.10008.1.2.1", b"1.2.826.0.1.3680043.8.498.1", struct.pack("<HHH", 2, 7, 2)]  # fmt: skip
    tags = [struct.pack("<HH", t.group, t.element) for t in map(pydicom.tag.Tag, slices.TAGS)]

    def one(rng: random.Random) -> object:
        for file in files:
            file.write_bytes(sound[file])
        word = rng.choice(WORDS).encode()
        for file in rng.sample(files, rng.choice((1, 1, 1, 4))):
            data, old = sound[file], rng.choice(values)
            what = rng.random()
            if what < 0.4:  # a value, of the same length
                data = data.replace(old, word[: len(old)].ljust(len(old)))
            elif what < 0.6 and (at := data.find(rng.choice(tags), 132)) > 0:  # a tag, its kind or its length
                at += rng.choice((0, 2, 4, 6))
                data = (
                    data[:at] + rng.choice((b"SQ", b"UN", b"OB", b"US", b"\xff\xff", b"\0\0", b"FD")) + data[at + 2 :]
                )
            else:
                data = damaged(rng, data)
            file.write_bytes(data)
        return readers.read(folder / "scan")

    return one


def of_manifest(folder: Path) -> Try:
    (folder / "ct.nii.gz").touch()
    rows = [
        [
            f"c{n}",
            f"p{n}",
            "ct.nii.gz",
            "ct.nii.gz",
            "test" if n > 2 else "train",
            "whole",
            "none" if n == 1 else "complete",
        ]
        for n in range(5)
    ]
    sound = pd.DataFrame(rows, columns=[*cohort.COLUMNS, *cohort.OPTIONAL]).to_csv(index=False)

    def one(rng: random.Random) -> object:
        text = damaged_table(rng, sound).encode()
        (folder / "m.csv").write_bytes(damaged(rng, text) if rng.random() < 0.3 else text)
        return cohort.read_manifest(folder / "m.csv")

    return one


def of_experiment(folder: Path) -> Try:
    place = _experiment(folder)
    files = [place / "experiment.json", *(place / stage / "stage.json" for stage in reading.STAGES)]
    sound = {file: file.read_text() for file in files}
    table = (place / "cohort" / "cases.csv").read_text()

    def one(rng: random.Random) -> object:
        for file in files:
            file.write_text(sound[file])
        (place / "cohort" / "cases.csv").write_text(damaged_table(rng, table) if rng.random() < 0.1 else table)
        for file in rng.sample(files, 1) if rng.random() < 0.5 else files[:1]:
            file.write_text(damaged_json(rng, json.loads(sound[file])))
        made = experiment.Experiment(place, "cpu")
        done = [made.finished(stage) for stage in reading.STAGES]
        return made.manifest, made.start, made.cases("train"), done, reading.experiment(place).patients()

    return one


def of_checkpoint(folder: Path) -> Try:
    place = _experiment(folder)
    s = tiny.settings()
    loaders = {
        place / "liver" / "fold0": lambda: cascade.load(place / "liver", s.liver.cascade, "cpu", [0]),
        place / "boundary" / "model": lambda: boundary.load(place / "boundary", s.boundary),
        place / "forest" / "forest": lambda: forest.load(place / "forest"),
    }
    sound = {}
    for path in loaders:
        weights = next(path.parent.glob(f"{path.name}*.safetensors"))
        sound[path] = path.with_suffix(".json").read_text(), weights, weights.read_bytes()

    def one(rng: random.Random) -> object:
        path = rng.choice(list(loaders))
        text, weights, data = sound[path]
        about = json.loads(text)
        if rng.random() < 0.5:
            text = damaged_json(rng, about)
        else:
            head = int.from_bytes(data[:8], "little") + 8
            if rng.random() < 0.6:  # the description of the tensors, of a length that fits
                header = damaged_json(rng, json.loads(data[8:head])).encode()
                data = len(header).to_bytes(8, "little") + header + data[head:]
            else:
                data = damaged(rng, data)
            if rng.random() < 0.8:  # a stranger states the checksum that fits
                checksum = hashlib.sha256(data).hexdigest()
                about["sha256"] = {weights.name: checksum} if isinstance(about["sha256"], dict) else checksum
            text = json.dumps(about)
        path.with_suffix(".json").write_text(text)
        weights.write_bytes(data)
        try:
            return loaders[path]()
        finally:
            path.with_suffix(".json").write_text(sound[path][0])
            weights.write_bytes(sound[path][2])

    return one


def of_parameters(folder: Path) -> Try:
    cells = [nbformat.v4.new_markdown_cell("What?"), nbformat.v4.new_code_cell(
        "n = 1\nrate = 0.5\nquick = False\nname = 'a'\nlist_ = []\nmaybe = None", metadata={"tags": ["parameters"]})]  # fmt: skip
    sound = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    names = ["n", "rate", "quick", "name", "list_", "maybe"]
    codes = ["n = ", "n = (1", "n: int = 1", "n, m = 1, 2", "n = m = 1", "n += 1", "import os", "n = [" * 300, "n = {1: [2]}", "def f():", "\0"]  # fmt: skip

    def one(rng: random.Random) -> object:
        book = sound
        if rng.random() < 0.3:
            book = json.loads(json.dumps(sound))
            book["cells"][1]["source"] = rng.choice(codes)
        elif rng.random() < 0.6:
            book = None
        (folder / "b.ipynb").write_text(damaged_json(rng, sound) if book is None else json.dumps(book), "utf-8")
        values = [*WORDS, "1", "2.5", "true", "[1, 2]", "[" * 300, "{}", "None", "9" * 5000, "1_0"]
        words = [w for _ in range(rng.randint(0, 3)) for w in ("-p", rng.choice(names), rng.choice(values))]
        if rng.random() < 0.2 and words:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        return batch.checked(folder / "b.ipynb", _parameters(words))

    return one


KINDS = {
    "nifti": of_nifti,
    "itk": of_itk,
    "dicom": of_dicom,
    "manifest": of_manifest,
    "experiment": of_experiment,
    "checkpoint": of_checkpoint,
    "parameters": of_parameters,
}


def _experiment(folder: Path) -> Path:
    """An experiment of untrained nets in which every stage counts as finished."""
    manifest = folder / "manifest.csv"
    (folder / "x.nii.gz").touch()
    rows = [[f"c{n}", f"p{n}", "x.nii.gz", "x.nii.gz", "train"] for n in range(4)]
    pd.DataFrame(rows, columns=[*cohort.COLUMNS, "split"]).to_csv(manifest, index=False)
    s = tiny.settings()
    made = experiment.Experiment.create(folder / "e", manifest, s, "cpu")
    net = SlabNet(s.liver.cascade.network)
    about = {"config": {"network": asdict(s.liver.cascade.network)}, "curve": [], "step": 1}
    fit.save_tensors(made.path("liver") / "fold0", net.state_dict(), about)
    config = {"format": boundary.training.FORMAT, "settings": asdict(s.boundary), "skipped": 0}
    weights = boundary.PatchNet(s.boundary).state_dict()
    fit.save_tensors(made.path("boundary") / "model", weights, {"config": config, "curve": []})
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "c"])
    small = replace(s.forest, trees=3)
    model = forest.fit(table, table.a.to_numpy() > 0, small)
    forest.save(
        model.with_threshold(forest.threshold_for_recall(model.score(table), table.a > 0, 0.9)), made.path("forest")
    )
    cases = pd.DataFrame({"case": [r[0] for r in rows], "patient": [r[1] for r in rows], "split": "train", "fold": 0})
    for stage in reading.STAGES:
        files.write_table(made.path(stage) / "cases.csv", cases)
        identity = made.identity(stage)
        files.write_json(made.path(stage) / "stage.json", identity | {"outputs": {"cases.csv": "0"}, "seconds": 1})
    return made.folder


# -- the campaign -----------------------------------------------------------------------------------------------------


def _late(*_: object) -> None:
    raise Hung(f"more than {LIMIT_S:g} s")


def campaign(kind: str, count: int, seed: int, first: int = 0) -> dict:
    """Counts of one kind, and what escaped: number, exception, where."""
    found = {"kind": kind, "tried": 0, "read": 0, "refused": 0, "escaped": []}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as made:
        one = KINDS[kind](Path(made))
        for number in range(first, first + count):
            if number == first + 5:  # libraries are loaded by now
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES,) * 2)
            found["tried"] += 1
            signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
            try:
                one(random.Random(f"{kind} {seed} {number}"))
                found["read"] += 1
            except Refused as refused:
                found["refused"] += 1
                said = str(refused)
                names = NAMED if kind == "dicom" else NAMED[:2]  # a hash elsewhere may hold 4711 by chance
                if "\n" in said or "found " not in said or any(name in said for name in names):
                    found["escaped"].append([number, "Refused, not in one line or by a name", said[:300]])
            except (Exception, Hung) as error:
                at = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-6:]]
                found["escaped"].append([number, type(error).__name__, str(error)[:200], " ".join(at)])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input, to see one again")
    asked = parser.parse_args()
    print(json.dumps(campaign(asked.kind, asked.count, asked.seed, asked.first)), flush=True)
    sys.stdout.flush()
