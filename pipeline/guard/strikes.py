"""Strikes and deadlines: a clip that kills its worker costs that clip and nothing else.

Bad content raises and becomes a Rejection by itself. What is left is a clip whose decoding or encoding kills the
process (a segfault, memory) or never returns. Ray would retry it for ever, so:

1. A hang becomes a crash: `deadline` ends the process from a C thread that needs no GIL.
2. Every attempt at a video begins with a strike, taken back when the attempt ends; where one is left standing, every
   clip of that video is an attempt of its own (only then: the counter is in another process). Strikes only raise
   suspicion, since a lost machine strikes healthy clips too. What Ray's memory monitor ended is no strike, up
   to MAX_EXCUSED times.
3. After MAX_STRIKES of its own that one clip runs `alone` in a child process under the same deadline. Only its own
   death there rejects it, and that verdict is kept in staging, so that a rerun does not start over.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pipeline.guard.deadline import die

T = TypeVar("T")

MAX_STRIKES = 3
"""Unfinished attempts after which a clip is tried alone."""

MAX_EXCUSED = 9
"""Excused attempts after which the next ones count: it may be this very clip that eats the memory."""


class Guard(Protocol):
    """What a stage asks of the strike counter: the actor behind `run`, or a Strikes of its own in a unit test."""

    def begin(self, key: str) -> int: ...
    def end(self, key: str) -> None: ...
    def suspects(self, prefix: str) -> frozenset[str]: ...
    def starting(self) -> int: ...
    def started(self) -> None: ...


class Strikes:
    """Counts unfinished attempts by key. Pure; `run` makes it an actor beside the driver."""

    def __init__(self, excused: Callable[[str], bool] = lambda _: False) -> None:
        """`excused`: whether that process was ended for no doing of its own."""
        self._excused = excused
        self._unfinished: dict[str, list[str]] = {}
        self._num_excused: Counter[str] = Counter()
        self._starts = 0

    def begin(self, key: str, process: str = "") -> int:
        """An attempt begins: a strike, until it ends. Returns the strikes that stand at the key or below it (keys that
        start with it), without those of excused processes."""
        below = [other for other in self._unfinished if other.startswith(key)]
        for other in below:
            self._excuse(other)
        standing = sum(len(self._unfinished[other]) for other in below)
        self._unfinished.setdefault(key, []).append(process)
        return standing

    def _excuse(self, key: str) -> None:
        processes = self._unfinished[key]
        if len(processes) < MAX_STRIKES and self._num_excused[key] < MAX_EXCUSED:
            self._unfinished[key] = [process for process in processes if not self._excused(process)]
            self._num_excused[key] += len(processes) - len(self._unfinished[key])

    def end(self, key: str) -> None:
        """The attempt ended, well or with an exception. A suspect stays one: a retry must decide the same way."""
        if len(self._unfinished.get(key, ())) < MAX_STRIKES:
            self._unfinished.pop(key, None)
            self._num_excused.pop(key, None)

    def suspects(self, prefix: str) -> frozenset[str]:
        """Keys with the prefix that have MAX_STRIKES unfinished attempts."""
        return frozenset(
            key
            for key, processes in self._unfinished.items()
            if len(processes) >= MAX_STRIKES and key.startswith(prefix)
        )

    def starting(self) -> int:
        """An encoder begins to start. Returns how many did since the last that succeeded, this one included."""
        self._starts += 1
        return self._starts

    def started(self) -> None:
        """An encoder stands."""
        self._starts = 0


@contextlib.contextmanager
def attempt(guard: Guard, key: str) -> Iterator[int]:
    """Run the body as one attempt at `key`: a strike if this process dies inside. Gives the strikes that stand."""
    strikes = guard.begin(key)
    try:
        yield strikes
    except MemoryError:  # says nothing of the content, and an exception would leave the whole shard undone
        die()
    finally:  # an exception is an answer; only a dead process leaves the strike standing
        guard.end(key)
