"""Two thousand damaged inputs: read or refused, nothing else, none that hangs, none that takes the machine's memory."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.volume import Refused

HERE = Path(__file__).resolve().parent
COUNTS = {"nifti": 500, "itk": 300, "dicom": 300, "manifest": 350, "experiment": 250, "checkpoint": 250, "parameters": 250}  # fmt: skip


def campaign(kind: str, count: int, seed: int = 0) -> dict:
    """The counts of one kind, from a process of its own: memory is capped there, and what crashes takes nobody along."""
    asked = [sys.executable, HERE / "fuzz.py", kind, "--count", str(count), "--seed", str(seed)]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    ran = subprocess.run(
        asked,
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, f"{kind}: the process ended with {ran.returncode}\n{ran.stderr[-2000:]}"
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_thousand_damaged_inputs_are_read_or_refused():
    assert set(COUNTS) == set(fuzz.KINDS) and sum(COUNTS.values()) >= 2000
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(campaign, COUNTS, COUNTS.values()))
    print(*({k: v for k, v in f.items() if k != "escaped"} for f in found), sep="\n")
    assert {f["kind"]: f["tried"] for f in found} == COUNTS
    assert [(f["kind"], *e) for f in found for e in f["escaped"]] == []
    for f in found:  # a harness that damages nothing, or everything beyond recognition, would try nothing
        assert f["read"] + f["refused"] == f["tried"] and min(f["read"], f["refused"]) >= f["tried"] // 50, f


def test_what_escapes_is_told(monkeypatch):
    """One that raises, one that hangs, one that asks for memory, one that names the patient."""

    def of_none(folder):
        def one(rng):
            number = next(numbers)
            if number == 1:
                raise KeyError("an accident")
            if number == 2:
                while True:
                    pass
            if number == 3:
                raise MemoryError
            if number == 4:
                raise Refused("a file", "two words", "one")
            if number == 5:
                raise Refused("a file", "the patient Doe^Jane", "no name")

        return one

    numbers = iter(range(6))
    monkeypatch.setitem(fuzz.KINDS, "none", of_none)
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.2)
    capped = []
    monkeypatch.setattr(fuzz.resource, "setrlimit", lambda *a: capped.append(a))  # not for all the tests that follow
    found = fuzz.campaign("none", 6, 0)
    assert [e[:2] for e in found["escaped"][:3]] == [[1, "KeyError"], [2, "Hung"], [3, "MemoryError"]]
    assert [e[0] for e in found["escaped"][3:]] == [5] and "Doe" in found["escaped"][3][2]
    assert (found["tried"], found["read"], found["refused"]) == (6, 1, 2)
    assert len(capped) == 1 and capped[0][1][0] >= fuzz.SPARE_BYTES


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 999))
def test_mutations_follow_from_their_number(data, number):
    one, two = (fuzz.damaged(random.Random(number), data) for _ in range(2))
    assert one == two


def test_most_mutations_change_something():
    sound = bytes(range(200))
    assert sum(fuzz.damaged(random.Random(n), sound) != sound for n in range(200)) > 180
    value = {"a": [1, {"b": 2}], "c": "d"}
    assert sum(fuzz.damaged_json(random.Random(n), value) != json.dumps(value) for n in range(200)) > 150
    assert value == {"a": [1, {"b": 2}], "c": "d"}
