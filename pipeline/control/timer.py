"""Call a function every so often while something else goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pipeline.control.stop import log
from pipeline.errors import StorageError


@contextlib.contextmanager
def every(seconds: float, function: Callable[[], None]) -> Iterator[None]:
    """Call a function every so often from a thread, while the body runs."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            try:
                function()
            except StorageError as error:  # the next time may work; the run itself finds out what matters
                log.warning("%s", error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
