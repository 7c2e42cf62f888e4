"""Processes below one of ours, from /proc: who they are, which are left, and an end to them. Linux only.

Orphans are followed by process id and start time, and not adopted (PR_SET_CHILD_SUBREAPER): Ray's workers take a parent
other than process 1 for a living raylet, and would never leave.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process that lived when it was looked up."""

    pid: int
    started: str
    """In clock ticks since boot: with the process id, this names a process for good."""
    title: str = field(compare=False)
    """Its command line; Ray's workers set theirs to `ray::<what they do>`."""

    @property
    def works(self) -> bool:
        """It may touch an output: not one of Ray's helpers, nor a worker that is still starting. Those need up to a
        minute to notice that their raylet is gone."""
        title = _title(self.pid)
        return "pipeline.guard.alone" in title or "tests.chaos." in title or ("ray::" in title and "Agent" not in title)

    @property
    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started

    def kill(self) -> bool:
        """SIGKILL; False if it was gone."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def below(root: int) -> list[Process]:
    """All living descendants of a process."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            children.setdefault(stat[0], []).append((int(entry.name), stat[1]))
    found, pending = [], [root]
    while pending:
        for pid, started in children.get(pending.pop(), ()):
            pending.append(pid)
            found.append(Process(pid, started, _title(pid)))
    return found


def sweep(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until these processes are gone, and kill Ray's helpers; after `seconds`, kill and return what is left."""
    end = time.monotonic() + seconds
    left = [process for process in processes if process.alive and (process.works or not process.kill())]
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [process for process in left if process.alive]
    left = [Process(process.pid, process.started, _title(process.pid)) for process in left]
    return [process for process in left if process.kill()]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _stat(pid: int) -> tuple[int, str] | None:
    """(parent, start) of a living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), fields[19])
