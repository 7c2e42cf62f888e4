"""The one place that tries again. Stores turn what may pass by itself into TransientError; everything else is final.

The clients' own retries are switched off (see s3_store.py), so attempts do not multiply: eight tries with full jitter
under 0.2 * 2**i seconds, 10 at most, wait about 12 s in the mean and 25 s at worst before a shard is given up.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import TransientError

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 8
BASE_SECONDS = 0.2
CAP_SECONDS = 10.0


def retried(attempt: Callable[[], T]) -> T:
    """Return `attempt()`, tried again while it raises TransientError; the last TransientError passes through."""
    backoff = Backoff()
    while True:
        try:
            return attempt()
        except TransientError as error:
            backoff.wait(error)


class Backoff:
    """Waits between tries. `progress()` forgets the failures so far: a long stream may break many times."""

    def __init__(self) -> None:
        self.failures = 0

    def wait(self, error: TransientError) -> None:
        """Sleep a random time below the current cap, or raise `error` when the tries have run out."""
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise error
        log.info("storage try=%d failed: %s", self.failures, error)
        # Full jitter: a thousand tasks that were throttled together must not come back together.
        time.sleep(random.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2**self.failures)))

    def progress(self) -> None:
        self.failures = 0
