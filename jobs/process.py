"""Run a command as a process: signals before a run starts, the progress line, errors as one line, exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

from pipeline.errors import ChangedError, ConfigError, LatentmillError
from pipeline.output.wording import printable
from pipeline.runs.json_log import log_as_json
from pipeline.runs.stop import STATUS, leave
from pipeline.runs.summary import CONFIG, LEFT, RunSummary

S = TypeVar("S", bound=RunSummary)

Run = Callable[[Callable[[str], None], float], S]
"""A run that is given where its progress line goes, and how often, in seconds."""

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


def report_errors(name: str, body: Callable[[], int]) -> int:
    """Return the exit code of a command. An error of ours is one line, and then the summary that it carries."""
    log_to_stderr(logging.INFO)
    try:
        return body()
    except LatentmillError as error:
        print(printable(f"latentmill {name}: {error}"), file=sys.stderr)
        for summary in getattr(error, "__notes__", ()):
            print(printable(summary))
        return CONFIG if isinstance(error, ConfigError | ChangedError) else LEFT


def carry_out(run: Run[S], *, log_json: bool) -> S:
    """Run, show the progress meanwhile, print the summary and return it."""
    if log_json:
        log_as_json()
    in_terminal = sys.stderr.isatty() and not log_json
    echo = _no_line if log_json else redraw if in_terminal else _append
    summary = run(echo, 1.0 if in_terminal else 30.0)
    print(printable(("\n" if in_terminal else "") + summary.table()))
    return summary


def redraw(line: str) -> None:
    """Show the line in place of the one before. One longer than the terminal is wide would fill the screen."""
    width = os.get_terminal_size(sys.stderr.fileno()).columns
    shown = printable(line)
    print(f"\r\x1b[K{shown[: width - 1] if width else shown}", end="", file=sys.stderr, flush=True)


def _no_line(line: str) -> None:
    """The same numbers are in the log, as an event."""


def _append(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    """Shows control characters escaped, in messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _end(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped by {name} before the run started: run the same command again\n".encode())
    leave(STATUS[name])
