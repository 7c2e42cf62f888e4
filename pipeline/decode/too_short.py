"""What a clip lacked that was refused as too short, and how many such clips a smaller number of frames would admit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

_FITTING = re.compile(r"(\d+) frames fit\b")
_MOST_HINTS = 3


def message(fitting: int, wanted: int, rate: Fraction | None, where: str = "") -> str:
    """Why a clip is refused: `8 frames fit at 8 frames a second, a clip has 9`. Without a rate, of source frames."""
    at_rate = "" if rate is None else f" at {rate} frames a second"
    return f"{fitting} frames fit{at_rate}, a clip has {wanted}" + (f": {where}" if where else "")


def num_fitting(said: str) -> int | None:
    """The number of frames that a message names, or None."""
    found = _FITTING.match(said)
    return int(found[1]) if found else None


def hint(fitting: Mapping[int, int], accepted: Callable[[int], int | None]) -> str:
    """How many of these clips (number of frames that fit -> clips) some smaller numbers of frames would admit, the
    largest first. `accepted` gives the largest number <= n that the VAE takes."""
    numbers = sorted({number for n in fitting if n > 0 and (number := accepted(n))}, reverse=True)
    admitted = [(number, sum(clips for n, clips in fitting.items() if n >= number)) for number in numbers]
    return ", ".join(f"--num-frames {number} would admit {clips}" for number, clips in admitted[:_MOST_HINTS])
