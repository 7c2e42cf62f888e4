"""Messages of clips that are too short, and how many of them a smaller --num-frames would accept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

_FITTING = re.compile(r"(\d+) frames fit\b")
_MOST_HINTS = 3


def message(fitting: int, wanted: int, rate: Fraction | None, where: str = "") -> str:
    """Return why a clip is rejected: `8 frames fit at 8 frames a second, a clip has 9`. No rate: source frames."""
    at_rate = "" if rate is None else f" at {rate} frames a second"
    return f"{fitting} frames fit{at_rate}, a clip has {wanted}" + (f": {where}" if where else "")


def num_fitting(said: str) -> int | None:
    """Return the number of frames that fit according to a message, or None."""
    found = _FITTING.match(said)
    return int(found[1]) if found else None


def hint(fitting: Mapping[int, int], accepted: Callable[[int], int | None]) -> str:
    """Return which smaller numbers of frames would accept how many of these clips, the largest first.

    `fitting` maps the number of frames that fit to clips; `accepted` gives the largest number <= n that the VAE takes.
    """
    numbers = sorted({number for n in fitting if n > 0 and (number := accepted(n))}, reverse=True)
    admitted = [(number, sum(clips for n, clips in fitting.items() if n >= number)) for number in numbers]
    return ", ".join(f"--num-frames {number} would admit {clips}" for number, clips in admitted[:_MOST_HINTS])
