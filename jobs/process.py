"""A command as a process: what a signal does before a run has begun, and the one way in which every command ends."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pipeline.control.stop import STATUS, leave

READER_GONE = 141
"""Exit code of a command whose reader ended in the middle of its output: what a shell shows for SIGPIPE."""


def run_command(main: Callable[[], int]) -> NoReturn:
    """Call `main` and end the process with its code, or at once by a signal that `main` does not take."""
    for name in STATUS:
        signal.signal(signal.Signals[name], _end)
    try:
        status = main()
    except SystemExit as over:  # of the parser, once it has printed
        status = over.code if isinstance(over.code, int) else int(over.code is not None)
    except BrokenPipeError:
        status = READER_GONE
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def _end(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} before anything was begun: run the same command again\n".encode())
    leave(STATUS[name])
