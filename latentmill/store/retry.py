"""The only module that retries. Stores raise TransientError for temporary faults; every other error is final.

The clients' own retries are switched off (see s3.py), so that attempts do not multiply. Eight tries, with full
jitter below 0.2 * 2**i seconds (10 at most), wait about 12 s on average and 25 s at worst before a shard is given up.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from latentmill.errors import TransientError

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 8
BASE_SECONDS = 0.2
CAP_SECONDS = 10.0


def retried(attempt: Callable[[], T]) -> T:
    """Return `attempt()`, retried while it raises TransientError. The last TransientError is raised."""
    backoff = Backoff()
    while True:
        try:
            return attempt()
        except TransientError as error:
            backoff.wait(error)


class Backoff:
    """The waits between tries. `progress()` resets the failure count, because a long stream may break many times."""

    def __init__(self) -> None:
        self.failures = 0

    def wait(self, error: TransientError) -> None:
        """Sleep a random time below the current cap, or raise `error` if no tries are left."""
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise error
        log.info("storage try=%d failed: %s", self.failures, error)
        # Full jitter: a thousand tasks that were throttled together must not retry together.
        time.sleep(random.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2**self.failures)))

    def progress(self) -> None:
        self.failures = 0
