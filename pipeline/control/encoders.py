"""Say what the encoders of a run tell, and keep it for the record of the run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar

from pipeline.errors import StorageError
from pipeline.guard.starts import Told
from pipeline.runs.run_records import RunRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

ASK_SECONDS = 1.0
"""How often the driver asks at most."""


class Asked(Protocol):
    """What is needed of Strikes."""

    def new_pass(self) -> None: ...
    def encoders(self) -> tuple[list[Told], list[str], int]: ...


class Losing(Protocol):
    """What is needed of the engine."""

    has_lost: bool


class Encoders:
    """The encoders as the driver knows them."""

    def __init__(self, guard: Asked, record: RunRecord, driver: Losing) -> None:
        self._guard, self._record, self._driver = guard, record, driver
        self._asked = 0.0

    def heard(self, receipts: Iterator[T]) -> Iterator[T]:
        """Pass on the receipts of a pass. Ask the encoders before the first one counts, now and then, and at the end.

        An encoder tells what it is before it takes a chunk, so it is known before its first clip, or ASK_SECONDS later.
        If one left that had stood, chunks were lost with it: the engine is told that another pass will find them.
        """
        self._guard.new_pass()
        self._asked = 0.0
        try:
            for receipt in receipts:
                if time.monotonic() - self._asked >= ASK_SECONDS:
                    self._ask()
                yield receipt
        finally:
            with contextlib.suppress(StorageError):  # Ray has ended
                self._ask()

    def _ask(self) -> None:
        self._record.encoders, news, num_left = self._guard.encoders()
        self._driver.has_lost |= num_left > 0
        self._asked = time.monotonic()
        for line in news:
            log.warning("%s", line)
