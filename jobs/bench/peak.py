"""The peak memory of a function, for benches on a CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

_EVERY_SECONDS = 0.002
_PAGE = os.sysconf("SC_PAGE_SIZE")


def peak_memory(run: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory of this process grows while a function runs, at most.

    Memory that the allocator keeps from before is returned first. A peak shorter than 2 ms may be missed.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_EVERY_SECONDS):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
