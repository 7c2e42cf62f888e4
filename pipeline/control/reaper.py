"""End what a run started, whenever and however the run ends: `python -I -S reaper.py MARK FOLDER...`.

The kernel ends Ray's first processes with the thread that started them, but not what these have started: agents look
for their parent for a minute, and workers that are starting do not look at all. So a small process of its own waits
until its parent is gone or closes the pipe, ends each process with MARK in its environment, and removes the folders.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

LOOK_SECONDS = 1.0
"""How often it looks for its parent, beside the pipe: a child that the parent forked may hold the pipe open."""

LOOKS, PAUSE_SECONDS = 2, 0.05
"""Looks in a row that must find no process, and the pause between them: a process that starts another program has no
environment for a moment."""


def marked(mark: str) -> list[int]:
    """Return the living processes of this user that have the mark, `NAME=value`, in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's; a zombie's environment is empty
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def end_all(mark: str) -> None:
    """SIGKILL every process with the mark, until there is none."""
    looks = 0
    while looks < LOOKS:
        pids = marked(mark)
        looks = 0 if pids else looks + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def main(mark: str, *folders: str) -> None:
    """Wait, then end what is left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a scheduler signals every process of its job
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    while os.getppid() == parent and not select.select([0], [], [], LOOK_SECONDS)[0]:
        pass
    end_all(mark)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
