"""Work on several things at once, in threads or processes that share the cores of a CPU.

Small operations cannot fill all cores from one thread; torch lets go of the interpreter's lock while it computes. What
draws pictures and walks through tables does not, so that goes to processes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import torch

from workbench.volume import Refused

Item = TypeVar("Item")
Made = TypeVar("Made")
Out = TypeVar("Out")
Tell = Callable[..., None]


def side_by_side(work: Callable[[Item, Tell], None], items: Sequence[Item], tell: Tell, device: torch.device) -> None:
    """work(item, tell) for each item: on a CPU in as many threads as torch may use, else one after the other.

    What an item tells is told from the calling thread. An interrupt, or an error in one, stops the others where they
    next tell something.
    """
    cores = torch.get_num_threads()
    workers = min(len(items), cores) if device.type == "cpu" else 1
    if workers < 2:
        for item in items:
            work(item, tell)
        return
    news: SimpleQueue[tuple | Future] = SimpleQueue()
    stop = Event()

    def one(item: Item) -> None:
        torch.set_num_threads(cores // workers)

        def pass_on(*row: Any) -> None:
            if stop.is_set():
                raise InterruptedError("another one stopped")
            news.put(row)

        work(item, pass_on)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pool.submit(one, item).add_done_callback(news.put)
            left = len(items)
            while left:
                new = news.get()
                if isinstance(new, Future):
                    new.result()
                    left -= 1
                else:
                    tell(*new)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)


AT_ONCE = 4  # a choice: a whole scan takes about 3.4 GB (the log, 2026-11-23)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(device: torch.device) -> int:
    """How many processes share a cohort's cases: on a CPU one a core; a GPU waits for what each does beside it, up to half the cores."""
    most = torch.get_num_threads() if device.type == "cpu" else cores() // 2
    return max(1, min(most, AT_ONCE))


def guarded() -> bool:
    """Whether this program can start processes: each imports the script that was started, and one that does its work without
    `if __name__ == "__main__":` would do all of it again there. A warning where it cannot."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if not script.is_file() or script.name == "__main__.py" or "__main__" in script.read_text(errors="replace"):
        return True
    words = '%s runs in one process. To use several, put what it does under `if __name__ == "__main__":`.'
    logging.getLogger(__name__).warning(words, script)
    return False


def in_processes(
    make: Callable[[], Made], work: Callable[[Made, Item], Out], items: Sequence[Item], workers: int
) -> Iterator[Out]:
    """work(made, item) of each item, in order, in processes of one thread each, which call make() once; with one worker, or where no process can be
    started (`guarded`), here.

    All that goes in and out is pickled, so functions are those of a module. The processes end with this one, killed or not.
    """
    workers = min(len(items), workers)
    if workers < 2 or not guarded():
        made = make()
        yield from (work(made, item) for item in items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin) as pool:
        try:
            yield from pool.map(partial(_there, make, work), items)
        except BrokenProcessPool as error:
            fix = "Try again with fewer at once (--workers 1)."
            raise Refused(
                "a process", "its end in the midst of a case, as when memory is short", "its result", fix
            ) from error


_MADE: dict[str, Any] = {}  # of a process of `in_processes`: a pool gives its functions no other place that lasts from one item to the next


def _begin() -> None:
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # who was killed could not tell it to end, and it would wait for work with its memory held


def _there(make: Callable[[], Made], work: Callable[[Made, Item], Out], item: Item) -> Out:
    if "made" not in _MADE:
        _MADE["made"] = make()
    return work(_MADE["made"], item)
