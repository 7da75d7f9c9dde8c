"""Several things at once in processes: the same answers in the same order as one after the other."""

import os
from functools import partial

import pytest
import torch

from workbench.threads import in_processes
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
