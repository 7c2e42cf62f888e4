"""A stop that is asked for with a signal, things to do every so often while a run goes on, and the end of a process."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType
from typing import Any, NoReturn, Self

log = logging.getLogger(__name__)

STATUS = {"SIGTERM": 75, "SIGINT": 130}
"""Exit codes of a run that a signal ended early, by the signal."""

ONE_SIGNAL_SECONDS = 1.0
"""Signals that come this soon after another are the same one: `timeout` and other parents send it to the process and to
its group (seen: the grace period was over at once)."""

UNWIND_SECONDS = 10.0
"""What an abandoned body may take to clean up before it is interrupted again."""

LOOK_SECONDS = 0.01
"""How often `Stop.done` takes the signals back."""


class GraceOverError(BaseException):
    """The grace period after a signal is over. Not an Exception: nothing on the way may swallow it."""


class Stop:
    """SIGTERM or SIGINT as a flag, and as the end of what is `limited` once `grace` seconds have passed.

    A second signal ends the grace period. A third one ends the process, whatever hangs.
    Outside the main thread, where Python takes no signals, it never asks.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._event = threading.Event()
        self._deadline = math.inf
        self._signals: list[str] = []
        self._last_signal = -math.inf
        self._calls: list[Callable[[], None]] = []
        self._before: list[tuple[int, Any]] = []
        self._is_limited = False

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    @property
    def by(self) -> str:
        """The signal that asked first, or ""."""
        return self._signals[0] if self._signals else ""

    def wait(self, seconds: float) -> None:
        """Wait, or return at once when a stop is asked for."""
        self._event.wait(seconds)

    def done(self, future: Future[None], seconds: float) -> bool:
        """Wait for the future, at most so long, and no longer than until a stop is asked for. Returns whether it is
        done.

        Takes the signals back all the while: when Ray starts, in whatever thread, its C++ side takes SIGTERM and
        SIGALRM for itself, prints a stack and dies of them.
        """
        deadline = time.monotonic() + seconds
        while not future.done() and not self.asked and time.monotonic() < deadline:
            self._listen()
            wait([future], timeout=LOOK_SECONDS)
        self._listen()
        return future.done()

    @contextlib.contextmanager
    def calling(self, function: Callable[[], None]) -> Iterator[None]:
        """Call this as soon as a stop is asked for."""
        self._calls.append(function)
        yield
        self._calls.remove(function)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Abandon the body when the grace period is over."""
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
        handlers = {signal.SIGTERM: self._ask, signal.SIGINT: self._ask, signal.SIGALRM: self._give_up}
        return [(number, signal.signal(number, handler)) for number, handler in handlers.items()]

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        before, self._last_signal = self._last_signal, time.monotonic()
        if self._last_signal - before < ONE_SIGNAL_SECONDS:
            return
        self._signals.append(signal.Signals(number).name)
        if len(self._signals) > 2:
            os._exit(STATUS[self.by])
        self._deadline = time.monotonic() + (self._grace if len(self._signals) == 1 else 0.0)
        self._event.set()
        self._set_alarm()
        if len(self._signals) == 1:  # a signal comes between any two instructions, and may not wait for locks
            threading.Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        log.warning(
            "%s: finishing what is open, at most %g s; a second signal ends without waiting. "
            "Run the same command again to resume",
            self.by,
            self._grace,
        )
        for call in self._calls:
            call()

    def _set_alarm(self) -> None:
        if self._is_limited and self._deadline < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(self._deadline - time.monotonic(), 0.001), UNWIND_SECONDS)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_limited:
            raise GraceOverError


def leave(status: int) -> NoReturn:
    """End this process with this status. Every command ends here.

    The interpreter's own end may replace the status by 134: threads of libraries still live then (Arrow's pools, whose
    tasks hold Python objects, and the event loop of s3fs). One that asks for Python's lock after the end has begun is
    made to exit by Python, which unwinds C++ frames that must not be unwound: "terminate called without an active
    exception". What must be cleaned up was cleaned up by `with`; what is buffered is written here.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # the reader of a pipe had enough: `| head`
            pass
        except (OSError, RuntimeError, ValueError) as error:  # a full disk; a signal in the middle of a write; closed
            os.write(2, f"latentmill: not everything could be printed: {error}\n".encode())
            status = status or 1
    os._exit(status)
