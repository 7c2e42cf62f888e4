"""End this process if a call takes too long, or if it cannot continue."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

_STDERR = 2


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process, with all stacks on stderr, if the body takes longer. Not nestable: one timer per process."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def die() -> NoReturn:
    """End this process so that its attempt remains a strike.

    It uses SIGKILL, because Ray treats an exit as intended and does not retry (measured: the pool hangs).
    """
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
