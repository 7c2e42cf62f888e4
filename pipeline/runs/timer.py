"""Call a function at intervals while something else runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pipeline.errors import StorageError
from pipeline.runs.stop import log


@contextlib.contextmanager
def every(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Call a function every `seconds` from a thread while the body runs."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            try:
                function()
            except StorageError as error:  # the next call may work; the run itself notices a lasting fault
                log.warning("%s", error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
