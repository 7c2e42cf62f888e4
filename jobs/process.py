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
from pipeline.output.wording import printable

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
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        status = 1
    leave(status)


def log_to_stderr(level: int) -> None:
    """Log to stderr, one line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    """Shows control characters escaped, in messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _end(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} before the run started: run the same command again\n".encode())
    leave(STATUS[name])
