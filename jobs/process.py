"""Run a command as a process: handle signals before a run starts, and exit in one way."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pipeline.control.stop import STATUS, leave

QUIET = ("botocore", "aiobotocore")
"""Libraries that log at INFO where they found credentials."""

READER_GONE = 141
"""Exit code of a command whose output pipe was closed early: the code that a shell shows for SIGPIPE."""


def run_command(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with its code. A signal that `main` does not handle ends the process at once."""
    for name in STATUS:
        signal.signal(signal.Signals[name], _end)
    try:
        status = main()
    except SystemExit as parser_exit:  # after the parser printed help or an error
        status = parser_exit.code if isinstance(parser_exit.code, int) else int(parser_exit.code is not None)
    except BrokenPipeError:
        status = READER_GONE
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def log_to_stderr(level: int) -> None:
    """Log to stderr, one line a record."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


def _end(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} before the run started: run the same command again\n".encode())
    leave(STATUS[name])
