"""Strikes: count the attempts that killed their worker, so that only the clip that kills is rejected.

Bad content raises an exception and becomes a Rejection. But decoding or encoding a clip may also kill the process (a
segfault, out of memory) or never return. Ray would retry such a clip for ever. So:

1. A hang becomes a crash: `deadline` ends the process from a C thread that needs no GIL.
2. Every attempt at a video begins with a strike, which is removed when the attempt ends. If a strike remains, every
   clip of that video becomes a separate attempt (only then, because the counter is in another process). Strikes only
   raise suspicion: if a machine is lost, healthy clips get strikes too. A worker that Ray's memory monitor ended leaves
   no strike, up to MAX_EXCUSED times.
3. After MAX_STRIKES of its own, a clip runs `alone` in a child process under the same deadline. It is rejected only if
   this process dies. The Rejection is kept in staging, so that a rerun does not repeat all this.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pipeline.guard.deadline import die
from pipeline.guard.starts import Seat, Starts, Told, Verdict

T = TypeVar("T")

MAX_STRIKES = 3
"""Unfinished attempts after which a clip runs alone."""

BY_ENCODERS = ("/encode", "/text")
"""How the keys of the attempts of encoders end."""

MAX_EXCUSED = 9
"""Excused attempts after which further ones count as strikes: this clip may be the one that uses up the memory."""


class Guard(Protocol):
    """The strike counter as seen by a stage: the actor of `run`, or a local Strikes in a unit test."""

    def begin(self, key: str) -> int: ...
    def end(self, key: str) -> None: ...
    def suspects(self, prefix: str) -> frozenset[str]: ...
    def me(self) -> str: ...
    def starting(self, seat: Seat, pool: int) -> Verdict: ...
    def start_failed(self, seat: Seat, reason: str, pool: int) -> Verdict: ...
    def look(self, seat: Seat, pool: int, waited: float) -> Verdict: ...
    def why_out(self, seat: Seat) -> str: ...
    def started(self, seat: Seat, told: Told | None) -> None: ...
    def broken(self, seat: Seat, reason: str) -> None: ...


class Strikes:
    """Count unfinished attempts by key. No I/O; `run` makes it an actor on the driver's machine."""

    def __init__(self, excused: Callable[[str], bool] = lambda _: False) -> None:
        """`excused(process)` returns whether a process was ended for a reason other than its clip."""
        self._excused = excused
        self._unfinished: dict[str, list[str]] = {}
        self._num_excused: Counter[str] = Counter()
        self._encoders = Starts()

    def begin(self, key: str, process: str = "") -> int:
        """Add a strike for an attempt that begins; `end` removes it.

        Returns the number of earlier strikes of all keys that start with `key`, without those of excused processes.
        """
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
        """Remove the strikes of an attempt that ended, with or without an exception.

        A key with MAX_STRIKES keeps them, so that a retry decides in the same way.
        """
        if len(self._unfinished.get(key, ())) < MAX_STRIKES:
            self._unfinished.pop(key, None)
            self._num_excused.pop(key, None)

    def suspects(self, prefix: str) -> frozenset[str]:
        """Return the keys with this prefix that have MAX_STRIKES unfinished attempts."""
        return frozenset(
            key
            for key, processes in self._unfinished.items()
            if len(processes) >= MAX_STRIKES and key.startswith(prefix)
        )

    def new_pass(self) -> None:
        """Forget the encoders of the last pass: those that were still starting when it ended did not die."""
        self._encoders.new_pass()

    def me(self) -> str:
        """Return a name of this encoder that it keeps when it is restarted."""
        return ""

    def starting(self, seat: Seat, pool: int) -> Verdict:
        """See Starts.begin."""
        return self._encoders.begin(seat, pool)

    def start_failed(self, seat: Seat, reason: str, pool: int) -> Verdict:
        """See Starts.failed."""
        return self._encoders.failed(seat, reason, pool)

    def look(self, seat: Seat, pool: int, waited: float) -> Verdict:
        """See Starts.look."""
        return self._encoders.look(seat, pool, waited)

    def why_out(self, seat: Seat) -> str:
        """See Starts.why."""
        return self._encoders.why(seat)

    def started(self, seat: Seat, told: Told | None) -> None:
        """See Starts.stands."""
        self._encoders.stands(seat, told)

    def broken(self, seat: Seat, reason: str) -> None:
        """See Starts.break_. Forget the strikes of encoding: nobody knows which of them are the card's."""
        self._encoders.break_(seat.card, reason)
        for key in [key for key in self._unfinished if key.endswith(BY_ENCODERS)]:
            del self._unfinished[key]

    def encoders(self) -> tuple[list[Told], list[str], int]:
        """Return what the encoders told, what is new of them, and how many left in this pass: see Starts."""
        return self._encoders.told(), self._encoders.news(), self._encoders.num_left()


@contextlib.contextmanager
def attempt(guard: Guard, key: str) -> Iterator[int]:
    """Run the body as one attempt at `key`: a strike remains if this process dies. Yield the earlier strikes."""
    strikes = guard.begin(key)
    try:
        yield strikes
    except MemoryError:  # not evidence against the content, and an exception would leave the whole shard undone
        die()
    finally:  # an exception is a result; only a dead process leaves its strike
        guard.end(key)
