"""What a stage takes of the machine, sampled beside it: processor and memory of this process, and the GPU's memory."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from workbench.data.files import write_atomic

STATM = Path("/proc/self/statm")
COLUMNS = ("seconds", "cpu_percent", "memory_mb", "gpu_memory_mb")  # 100 % is one core; MB are 10^6 bytes


@contextmanager
def watched(path: Path, device: torch.device, every_s: float = 2.0, most: int = 400) -> Iterator[None]:
    """Sample while the block runs and write the table (CSV, COLUMNS) when it ends, however it ends.

    After `most` samples every second one is dropped and the interval doubles: hours take no more room than minutes.
    """
    ended, rows = threading.Event(), []
    began, used = time.monotonic(), time.process_time()
    last = began

    def sample() -> None:
        nonlocal last, used
        now, total = time.monotonic(), time.process_time()
        busy = (total - used) / max(now - last, 1e-9)
        rows.append((round(now - began, 2), round(100 * busy, 1), _memory_mb(), _gpu_memory_mb(device)))
        last, used = now, total

    def watch() -> None:
        interval = every_s
        while not ended.wait(interval):
            sample()
            if len(rows) >= most:
                del rows[::2]
                interval *= 2

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        sample()
        lines = [",".join(map(str, row)) for row in [COLUMNS, *rows]]
        write_atomic(path, ("\n".join(lines) + "\n").encode())


def _memory_mb() -> float:
    """Resident memory of this process; where no /proc tells it, the most that there was."""
    if not STATM.is_file():
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)  # bytes on macOS
    pages = int(STATM.read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _gpu_memory_mb(device: torch.device) -> float:
    return round(torch.cuda.memory_reserved(device) / 1e6, 1) if device.type == "cuda" else 0.0
