"""Run a suspect alone: call a function in a child process, under a deadline and a memory limit.

`python -m pipeline.guard.alone` is the child. A clip is rejected only if this child process dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.guard.deadline import _STDERR, die
from pipeline.guard.strikes import T

MEMORY_SHARE = 0.5
"""Share of the memory of this machine, or of its container, that a call `within_memory` may use."""


ORPHAN_SECONDS = 10.0
"""Seconds after the deadline at which a child ends itself if its parent is dead."""


_NOT_BEGUN = 70
"""Exit code of a child that could not load its call: the installation is broken, not the clip."""


class DiedAloneError(Exception):
    """The call killed its child process, or exceeded the deadline (`timed_out`)."""

    def __init__(self, message: str, timed_out: bool) -> None:
        super().__init__(message, timed_out)
        self.timed_out = timed_out

    def __str__(self) -> str:
        return str(self.args[0])


def alone(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """Call `function(*args)` in a new child process and return its result. Function and arguments must pickle.

    Raises:
        DiedAloneError: the child died or took longer than `seconds`.
        RuntimeError: the child could not load the call.
        Exception: any exception of the function.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [
        sys.executable,
        "-P",
        "-m",
        "pipeline.guard.alone",
    ]  # -P: never import a `pipeline` in the working folder
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        try:
            answer, _ = child.communicate(pickle.dumps((seconds, function, args)), timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise DiedAloneError(f"did not finish in {seconds:g} s, tried alone", timed_out=True) from None
    if child.returncode == _NOT_BEGUN:
        raise RuntimeError(f"a child process could not load {function!r}: see its traceback on stderr")
    if child.returncode != 0:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise DiedAloneError(f"killed its process ({how}), tried alone", timed_out=False)
    ok, value = pickle.loads(answer)
    if not ok:
        raise value
    return value  # type: ignore[no-any-return]


def within_memory(function: Callable[..., T], *args: Any) -> T:
    """Call `function(*args)` after limiting the memory of this process to MEMORY_SHARE, for the rest of its life.

    A call that needs more kills its own process. Without the limit, Ray's memory monitor would end the worker that
    waits for it, again and again, and the clip would never be rejected.
    """
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    share = min([int(_memory() * MEMORY_SHARE), *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (share, limits[1]))
    return function(*args)


def _memory() -> int:
    """Return the memory of this machine, or of the control group of this process, in bytes."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number
            sizes.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(sizes)


def _child() -> None:
    """Run in the child: read a call from stdin, write its result to the original stdout. Prints go to stderr."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(_STDERR, sys.stdout.fileno())
    try:
        seconds, function, args = pickle.load(sys.stdin.buffer)
    except Exception:
        traceback.print_exc()
        sys.exit(_NOT_BEGUN)
    # The parent enforces the deadline; this timer ends a child that hangs after its parent was killed.
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
