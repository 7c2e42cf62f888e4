"""A stop that is asked for with SIGTERM, and things to do every so often while a run goes on."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from pipeline.errors import StorageError

log = logging.getLogger(__name__)


class GraceOverError(BaseException):
    """The grace period after SIGTERM is over. Not an Exception: nothing on the way may swallow it."""


class Stop:
    """SIGTERM as a flag, and as the end of what is `limited` once `grace` seconds have passed.

    Outside the main thread, where Python takes no signals, it never asks.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._event = threading.Event()
        self._deadline = math.inf
        self._calls: list[Callable[[], None]] = []
        self._before: list[tuple[int, Any]] = []
        self._is_limited = False

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, or return at once when a stop is asked for."""
        self._event.wait(seconds)

    @contextlib.contextmanager
    def calling(self, function: Callable[[], None]) -> Iterator[None]:
        """Call this as soon as a stop is asked for."""
        self._calls.append(function)
        yield
        self._calls.remove(function)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Abandon the body when the grace period is over."""
        self._listen()  # Ray's C++ side took both signals when it started: its SIGALRM aborts
        try:
            self._is_limited = True
            self._set_alarm()
            yield
        except GraceOverError:
            pass
        finally:
            self._is_limited = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __enter__(self) -> Self:
        self._before = self._listen()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _listen(self) -> list[tuple[int, Any]]:
        """Take the signals; return who had them before."""
        if threading.current_thread() is not threading.main_thread():
            return []
        handlers = ((signal.SIGTERM, self._ask), (signal.SIGALRM, self._give_up))
        return [(number, signal.signal(number, handler)) for number, handler in handlers]

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        log.warning("stop asked for: finishing what is open, at most %g s", self._grace)
        self._deadline = min(self._deadline, time.monotonic() + self._grace)
        self._event.set()
        self._set_alarm()
        for call in self._calls:
            call()

    def _set_alarm(self) -> None:
        if self._is_limited and self._deadline < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(self._deadline - time.monotonic(), 0.001))

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_limited:
            raise GraceOverError


def leave(code: int) -> NoReturn:
    """End this process with an exit code that a stop, asked for on the way out, does not replace."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


@contextlib.contextmanager
def every(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Call a function every so often from a thread, while the body runs."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            try:
                function()
            except StorageError as error:  # the next time may work; the run itself finds out what matters
                log.warning("%s", error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
