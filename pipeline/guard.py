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
import faulthandler
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")

MAX_STRIKES = 3
"""Unfinished attempts after which a clip is tried alone."""

MAX_EXCUSED = 9
"""Excused attempts after which the next ones count: it may be this very clip that eats the memory."""

MEMORY_SHARE = 0.5
"""Of the memory of this machine, or of its container: what a call `within_memory` may take."""

ORPHAN_SECONDS = 10.0
"""How long a child may outlast the deadline of a parent that is gone."""

_STDERR = 2
_NOT_BEGUN = 70
"""Exit code of a child that could not even load its call: an installation at fault, not the clip."""


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


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process, with all its stacks on stderr, if the body takes longer. Not nestable: one timer a process."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def die() -> NoReturn:
    """End this process so that its attempt stays a strike.

    By SIGKILL, because Ray takes an exit for an intended one and does not retry (measured: the pool hangs).
    """
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class DiedAloneError(Exception):
    """The call killed its own child process, or outlasted the deadline there. `timed_out` tells which."""

    def __init__(self, message: str, timed_out: bool) -> None:
        super().__init__(message, timed_out)
        self.timed_out = timed_out

    def __str__(self) -> str:
        return str(self.args[0])


def alone(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """Call `function(*args)` in a fresh child process and return its result. Function and arguments must pickle.

    Raises:
        DiedAloneError: the child died or outlasted `seconds`.
        RuntimeError: the child could not load the call.
        Exception: whatever the function raised there.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "pipeline.guard"]  # -P: not the `pipeline` of the working folder, if any
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        try:
            answer, _ = child.communicate(pickle.dumps((seconds, function, args)), timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise DiedAloneError(f"did not finish in {seconds:g} s, tried alone", timed_out=True) from None
    if child.returncode == _NOT_BEGUN:
        raise RuntimeError(f"a child process could not begin {function!r}: see its traceback on stderr")
    if child.returncode != 0:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise DiedAloneError(f"killed its process ({how}), tried alone", timed_out=False)
    ok, value = pickle.loads(answer)
    if not ok:
        raise value
    return value  # type: ignore[no-any-return]


def within_memory(function: Callable[..., T], *args: Any) -> T:
    """Call `function(*args)` with MEMORY_SHARE as a limit for this process, for good: one that eats all memory dies of
    that. Otherwise Ray's memory monitor would end the worker that waits for it, again and again, without a verdict."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    share = min([int(_memory() * MEMORY_SHARE), *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (share, limits[1]))
    return function(*args)


def _memory() -> int:
    """Bytes of this machine, or of the control group that it runs in."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            sizes.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(sizes)


def _child() -> None:
    """The other end of `alone`: a call on stdin, its result on what was stdout; prints go to stderr."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(_STDERR, sys.stdout.fileno())
    try:
        seconds, function, args = pickle.load(sys.stdin.buffer)
    except Exception:
        traceback.print_exc()
        sys.exit(_NOT_BEGUN)
    # The parent keeps the deadline; this one ends a child that hangs after its parent was killed.
    faulthandler.dump_traceback_later(seconds + ORPHAN_SECONDS, exit=True, file=_STDERR)
    try:
        result = (True, function(*args))
    except MemoryError:
        die()
    except Exception as error:
        result = (False, error)
    with answer:
        pickle.dump(result, answer)


if __name__ == "__main__":
    _child()
