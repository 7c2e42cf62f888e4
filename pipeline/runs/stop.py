"""Stop a run by a signal, and end a process with its status."""

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
"""Exit codes of a run that was stopped early, by signal."""

ONE_SIGNAL_SECONDS = 1.0
"""Signals within this time count as one: `timeout` and other parents send a signal to the process and to its group
(seen: the second one ended the grace period at once)."""

UNWIND_SECONDS = 10.0
"""Time that an interrupted body has to clean up before it is interrupted again."""

LOOK_SECONDS = 0.01
"""How often `Stop.done` installs the signal handlers again."""


class GraceOverError(BaseException):
    """The grace period after a signal is over. It is no Exception, so that no handler on the way catches it."""


class Stop:
    """Handle SIGTERM and SIGINT: set a flag, and interrupt a `limited` body after `grace` seconds.

    A second signal ends the grace period. A third signal ends the process at once, even if something hangs.
    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._event = threading.Event()
        self._deadline = math.inf
        self._signals: list[str] = []
        self._reason = ""
        self._last_signal = -math.inf
        self._calls: list[Callable[[], None]] = []
        self._before: list[tuple[int, Any]] = []
        self._is_limited = False

    @property
    def asked(self) -> bool:
        """Whether a signal, or this run itself, asked for a stop."""
        return self._event.is_set()

    @property
    def by(self) -> str:
        """Name of the first signal, or ""."""
        return self._signals[0] if self._signals else ""

    def ask(self, reason: str) -> None:
        """Ask for a stop from within the run. A signal that comes later is the first one."""
        self._reason = reason
        self._begin(self._grace)

    def wait(self, seconds: float) -> None:
        """Wait, but return at once when a signal comes."""
        self._event.wait(seconds)

    def done(self, future: Future[None], seconds: float) -> bool:
        """Wait for the future until `seconds` pass or a signal comes. Return whether the future is done.

        Meanwhile it installs the signal handlers again and again: when Ray starts, in any thread, its C++ side takes
        over SIGTERM and SIGALRM, and a signal would print a stack and kill the process. When Ray ends, it leaves
        SIGTERM without a handler.
        """
        deadline = time.monotonic() + seconds
        while not future.done() and not self.asked and time.monotonic() < deadline:
            self._listen()
            wait([future], timeout=LOOK_SECONDS)
        self._listen()
        return future.done()

    def sit_out(self, future: Future[None]) -> None:
        """Wait for the future whatever signals come, and keep the handlers installed as `done` does."""
        while not future.done():
            self._listen()
            wait([future], timeout=LOOK_SECONDS)
        self._listen()

    @contextlib.contextmanager
    def calling(self, function: Callable[[], None]) -> Iterator[None]:
        """Call the function as soon as a signal comes, while the body runs."""
        self._calls.append(function)
        yield
        self._calls.remove(function)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Interrupt the body when the grace period is over."""
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
        """Install the handlers; return those before them."""
        if threading.current_thread() is not threading.main_thread():
            return []
        handlers = {signal.SIGTERM: self._on_signal, signal.SIGINT: self._on_signal, signal.SIGALRM: self._give_up}
        return [(number, signal.signal(number, handler)) for number, handler in handlers.items()]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        before, self._last_signal = self._last_signal, time.monotonic()
        if self._last_signal - before < ONE_SIGNAL_SECONDS:
            return
        self._signals.append(signal.Signals(number).name)
        if len(self._signals) > 2:
            os._exit(STATUS[self.by])
        self._begin(self._grace if len(self._signals) == 1 else 0.0)

    def _begin(self, grace: float) -> None:
        is_first = not self.asked
        self._deadline = time.monotonic() + grace
        self._event.set()
        self._set_alarm()
        if is_first:  # a handler runs between any two instructions, so it must not wait for a lock
            threading.Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        if self.by:
            log.warning(
                "%s: finishing what is open, at most %g s; a second signal ends without waiting. "
                "Run the same command again to resume",
                self.by,
                self._grace,
            )
        else:
            log.warning("giving up, and finishing what is open: %s", self._reason)
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

    If the interpreter ended by itself, the status could become 134: threads of libraries still run (Arrow's pools,
    whose tasks hold Python objects, and the event loop of s3fs). A thread that asks for Python's lock after the end has
    begun is made to exit, which unwinds C++ frames that must not be unwound: "terminate called without an active
    exception". All `with` blocks have cleaned up by now; this function writes what is buffered.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # the reader of the pipe has closed it: `| head`
            pass
        except (OSError, RuntimeError, ValueError) as error:  # a full disk; a signal in the middle of a write; closed
            os.write(2, f"latentmill: not everything could be printed: {error}\n".encode())
            status = status or 1
    os._exit(status)
