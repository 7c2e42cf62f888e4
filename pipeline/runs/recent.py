"""Rates of the last minute, from counts and a clock."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 60.0
MIN_SAMPLES = 30
"""The window holds a minute, and at least so many samples: slow clips need longer to show a rate."""

STEP_SECONDS = 1.0
"""Least time between two samples."""


class Recent:
    """How fast some counts grew lately. The window begins with the first sample at the earliest."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()

    def is_due(self, now: float) -> bool:
        """Return whether it is time for the next sample."""
        return not self._samples or now - self._samples[-1][0] >= STEP_SECONDS

    def add(self, now: float, *counts: float) -> None:
        """Take a sample of the counts."""
        self._samples.append((now, counts))
        while len(self._samples) > MIN_SAMPLES and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def rates(self, now: float, *counts: float) -> tuple[float, ...]:
        """Return by how much each count grew in a second of the window that ends now; () where there is none yet."""
        if not self._samples or now <= self._samples[0][0]:
            return ()
        began, before = self._samples[0]
        return tuple((count - old) / (now - began) for count, old in zip(counts, before, strict=True))
