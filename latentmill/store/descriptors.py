"""Open local files below the limit of the process: what was opened for later use is closed when others lack it.

The process shares one set of open files, however many outputs it reads: a quarter of what `ulimit -n` allows.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MOST_FILES = 1024
"""Most files that a process keeps open, if the limit is high."""


class Descriptor:
    """An open local file. It is closed when the set and the last reader have dropped it."""

    def __init__(self, path: Path) -> None:
        self.number = opening(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if hasattr(self, "number"):
            close(self.number)


_kept: OrderedDict[tuple[int, str], Descriptor] = OrderedDict()
"""The open files of this process by owner and path, the most recently used last."""
_lock = threading.RLock()  # a finalizer may run at any line


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that is not here may have held it


os.register_at_fork(after_in_child=_after_fork)


def kept_open(owner: int, path: Path) -> Descriptor:
    """Return an open file. It stays open for later calls of the same owner, as long as there is room."""
    key = (owner, str(path))
    with _lock:
        if (file := _kept.get(key)) is not None:
            _kept.move_to_end(key)
            return file
    file = Descriptor(path)
    with _lock:
        file = _kept.setdefault(key, file)
        while len(_kept) > most_kept():
            _kept.popitem(last=False)
    return file


def forget(owner: int) -> None:
    """Drop the open files of an owner."""
    with _lock:
        for key in [key for key in _kept if key[0] == owner]:
            del _kept[key]


def most_kept() -> int:
    """Return how many files the process keeps open: a quarter of its limit, and at most MOST_FILES."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_FILES if limit == resource.RLIM_INFINITY else max(1, min(MOST_FILES, limit // 4))


def opening(attempt: Callable[[], T]) -> T:
    """Return `attempt()`, which opens a file. If the process or the machine has too many, close ours and try again."""
    try:
        return attempt()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    with _lock:
        _kept.clear()
    return attempt()
