"""Work on several things at once, in threads or processes that share the cores of a CPU.

Small operations cannot fill all cores from one thread; torch lets go of the interpreter's lock while it computes. What
draws pictures and walks through tables does not, so that goes to processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")
Out = TypeVar("Out")
Failure = TypeVar("Failure", bound=Exception)
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


def overlapped(
    items: Sequence[Item],
    before: Callable[[Item], Any],
    work: Callable[[Item, Any], Any],
    after: Callable[[Item, Any], None],
    expected: type[Failure],
    failed: Callable[[Failure], None],
    writers: int = 1,
) -> None:
    """after(item, work(item, before(item))) for each item in order, `work` in the calling thread.

    Beside it one thread runs the next item's `before`, and `writers` threads the `after` of the last ones, so that a device
    computes while files are read and written; no more than `writers` + 2 items are held. An error of the `expected` kind is told
    to `failed`, and the next item goes on; another one ends the run once what has begun is through.
    """
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(writers) as writing:
        coming: Future | None = None
        going: deque[Future] = deque()

        def settle(most: int) -> None:
            while len(going) > most:
                try:
                    going.popleft().result()
                except expected as error:
                    failed(error)

        for n, item in enumerate(items):
            now = coming or reading.submit(before, item)
            coming = reading.submit(before, items[n + 1]) if n + 1 < len(items) else None
            try:
                done = work(item, now.result())
            except expected as error:
                settle(0)
                failed(error)
                continue
            settle(writers - 1)
            going.append(writing.submit(after, item, done))
            del now, done  # they hold what was read and made
        settle(0)


def in_processes(
    make: Callable[[], Made], work: Callable[[Made, Item], Out], items: Sequence[Item], workers: int
) -> Iterator[Out]:
    """work(made, item) of each item, in order, in processes of one thread each, which call make() once; with one worker, here.

    All that goes in and out is pickled, so functions are those of a module.
    """
    workers = min(len(items), workers)
    if workers < 2:
        made = make()
        yield from (work(made, item) for item in items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(_there, make, work), items)


_MADE: dict[str, Any] = {}  # of a process of `in_processes`


def _there(make: Callable[[], Made], work: Callable[[Made, Item], Out], item: Item) -> Out:
    if "made" not in _MADE:
        _MADE["made"] = make()
    return work(_MADE["made"], item)
