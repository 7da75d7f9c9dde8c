"""Several things at once in processes: the same answers in the same order as one after the other."""

import os
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from workbench.data.threads import cores, in_processes
from workbench.experiment import watch
from workbench.volume import Refused


def made(path) -> int:
    """A mark a process that makes something: `path` gets a line."""
    with open(path, "a") as f:
        f.write(f"{os.getpid()}\n")
    return 10


def work(made: int, item: int) -> tuple[int, int, int]:
    if item < 0:
        raise Refused("item", str(item), "0 or more")
    return made + item, torch.get_num_threads(), os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_item_is_done_in_order_by_processes_that_make_their_part_once(tmp_path, workers):
    out = list(in_processes(partial(made, tmp_path / "made"), work, range(5), workers))
    assert [value for value, _, _ in out] == [10, 11, 12, 13, 14]
    makers = (tmp_path / "made").read_text().split()
    assert len(makers) == len(set(makers)) and {str(process) for _, _, process in out} == set(makers)
    assert (str(os.getpid()) in makers) == (workers == 1)
    assert workers == 1 or all(threads == 1 for _, threads, _ in out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_comes_through(tmp_path, workers):
    with pytest.raises(Refused, match="item: found -1; expected 0 or more"):
        list(in_processes(partial(made, tmp_path / "made"), work, [1, -1, 2], workers))


@pytest.mark.parametrize(("guard", "processes"), [('if __name__ == "__main__":', 2), ("if True:", 1)])
def test_a_script_that_does_its_work_wherever_it_is_imported_does_it_in_one_process(tmp_path, guard, processes):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom workbench.data.threads import in_processes\n"
        "def work(begun, item):\n    (begun / str(os.getpid())).touch()\n    return 2 * item\n"
        f"def place():\n    from pathlib import Path\n    return Path({str(tmp_path / 'begun')!r})\n"
        f"{guard}\n    place().mkdir()\n    print(*in_processes(place, work, range(50), 2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [str(2 * n) for n in range(50)]), done.stderr
    assert len(list((tmp_path / "begun").iterdir())) <= processes
    assert ('`if __name__ == "__main__":`' in done.stderr and str(script) in done.stderr) == (processes == 1)


def slow(begun, item: int) -> None:
    (begun / str(os.getpid())).touch()
    time.sleep(120)


def test_processes_end_with_who_began_them(tmp_path):
    """A SIGKILL leaves no process that works on, or waits, with its memory held."""
    first = get_context("spawn").Process(target=consume, args=(tmp_path,))
    first.start()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    mine = [int(p.name) for p in tmp_path.iterdir()]
    assert all(alive(n) for n in mine)
    first.kill()
    first.join()
    until(lambda: not any(alive(n) for n in mine))


def consume(begun) -> None:
    list(in_processes(partial(Path, begun), slow, [0, 1], 2))


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_cores_and_memory_are_told_where_linux_does_not_tell_them(monkeypatch, tmp_path):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(watch, "STATM", tmp_path / "none")
    assert cores() == os.cpu_count() and watch._memory_mb() > 0
