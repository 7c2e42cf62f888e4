"""Reuse the memory of batches that nothing refers to any more.

New memory costs a page fault every 4 KiB, a large part of the time that a latent in the page cache takes to read
(2.2 MB on two cores: 0.94 ms into new memory, 0.45 ms into used memory).
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import defaultdict, deque

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 256 << 20
"""Most unused memory that a process keeps."""

_free: defaultdict[int, deque[npt.NDArray[np.uint8]]] = defaultdict(deque)
"""Unused memory by size. Threads share it and a finalizer may run at any line, so each step is one atomic call."""

os.register_at_fork(after_in_child=_free.clear)


def take(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [num_bytes] of any content. Its memory is reused when the array and all its views are gone."""
    try:
        memory = _free[num_bytes].pop()
    except IndexError:
        memory = np.empty(num_bytes, np.uint8)
    lent = memory[:]
    weakref.finalize(lent, _give_back, memory).atexit = False
    return lent


def kept_bytes() -> int:
    """Return how much unused memory this process keeps."""
    return sum(size * len(memories) for size, memories in list(_free.items()))


def _give_back(memory: npt.NDArray[np.uint8]) -> None:
    _free[len(memory)].append(memory)
    for memories in list(_free.values()):
        with contextlib.suppress(IndexError):  # another thread took the last one
            while memories and kept_bytes() > KEPT_BYTES:
                memories.popleft()
