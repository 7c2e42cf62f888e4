"""FrameTimes: which frame is shown at t, and which frames lie in [start, end). Every comparison of times is made here.

A container stores times in whole ticks. Where a frame does not last a whole number of ticks, its time was rounded:
frame 1 of 24 a second stands at 42 ms in Matroska. A rounded time must not be compared with an exact one: at
t = 1/24 s, frame 1 would not be there yet. So the times are recovered first, if they are those of a constant rate R:

* Each frame has a whole number n, ascending, so that (stored time - n / R) differs by less than one unit between any
  two frames. That holds for every way of rounding, wherever the clock begins. Frames may be missing.
* The usual (median) distance of two frames is less than one unit from 1 / R, and 1 / R is at least three units.
* A unit is a tick; or the largest number of ticks that divides all distances, as in an MP4 of 1/16000 s that was made
  from a Matroska of 1/1000 s; or, in an MPEG program stream, 1 ms. There, most frames have no time of their own; they
  get the last one plus durations of whole ticks.
* R is a whole number up to 240, or such a number x 1000/1001. The one that the stream states comes first. Otherwise
  the distances must not all be multiples of the smallest, which would make the times exact; then a whole number comes
  first, then the one nearest to the average.

Two frames then lie n / R apart, exactly. All other times are taken as they are: those of a variable rate were not
rounded from anything that could be known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

_MAX_RATE = 240
_NTSC = Fraction(1000, 1001)
_MIN_UNITS = 3
"""Fewest units per frame. GIF has 3.3 at 30 frames a second; with fewer, times of a variable rate fit by chance."""
_STATED_WITHIN = Fraction(1, 100_000)
"""How far a stated rate may be from the one that it means: 23.976 is 24000/1001. Two rates differ by 1/1000 or more."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A constant rate from which the times of a stream were rounded."""

    per_second: Fraction
    """Frames per second."""
    unit: int
    """Ticks of which the times were rounded to multiples."""


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The times of a stream's frames in seconds after the first presentable frame, and the way back to its ticks."""

    base: Fraction
    """Seconds per tick."""
    origin: int
    """Ticks of the first presentable frame."""
    rate: Rate | None = None
    """None: the ticks are exact."""

    def time(self, ticks: int) -> Fraction:
        """Return when a frame with this timestamp appears, in seconds. It never decreases with `ticks`."""
        since = ticks - self.origin
        if self.rate is not None:
            point = round(since / self._step) * self._step
            if abs(since - point) < self.rate.unit:
                return point * self.base
        return since * self.base

    def last_by(self, at: Fraction) -> int:
        """Return the largest timestamp with `time` <= `at`: the frame shown at `at` is the last one up to it."""
        since = at / self.base
        last = math.floor(since)
        if self.rate is not None:
            step, unit = self._step, self.rate.unit
            point = since // step * step
            last = max(min(last, math.floor(point + step - unit)), math.ceil(point + unit) - 1)
        return self.origin + last

    def first_from(self, at: Fraction) -> int:
        """Return the smallest timestamp with `time` >= `at`: a range that starts at `at` begins with it."""
        since = at / self.base
        first = math.ceil(since)
        if self.rate is not None:
            step, unit = self._step, self.rate.unit
            point = -(-since // step) * step
            first = min(max(first, math.ceil(point - step + unit)), math.floor(point - unit) + 1)
        return self.origin + first

    def end(self, ticks: int) -> int:
        """Return the end of the last frame, given in ticks, so that its `time` is exact. Both the time and the duration
        of the frame were rounded."""
        if self.rate is None:
            return ticks
        point = round((ticks - self.origin) / self._step) * self._step
        is_near = abs(ticks - self.origin - point) < 2 * self.rate.unit
        return self.origin + math.ceil(point) if is_near else ticks

    @property
    def _step(self) -> Fraction:
        """Ticks per frame."""
        assert self.rate is not None
        return 1 / (self.rate.per_second * self.base)


def recover(ticks: Sequence[int], base: Fraction, stated: Iterable[Fraction], drift: int = 1) -> Rate | None:
    """Return the rate from which ascending times were rounded, as the module says; None if they are exact.

    Args:
        base: seconds per tick.
        stated: frames per second according to the stream, the best one first.
        drift: another unit to try, in ticks.
    """
    steps = [b - a for a, b in pairwise(ticks)]
    if not steps:
        return None
    usual = sorted(steps)[len(steps) // 2]
    common = math.gcd(*steps)
    is_exact = common == min(steps)
    average = len(steps) / ((ticks[-1] - ticks[0]) * base)
    named = [_meant(rate) for rate in stated]
    for unit in sorted({1, common, drift}):
        fitting = [rate for rate in _near(usual, unit, base) if _fits(ticks, 1 / (rate * base), unit)]
        if not fitting:
            continue
        said = next((rate for rate in named if rate in fitting), None)
        if said is None and is_exact:
            continue
        best = said or min(fitting, key=lambda rate: (rate.denominator, abs(rate - average)))
        return None if (1 / (best * base)).denominator == 1 and unit == 1 else Rate(best, unit)
    return None


def _meant(stated: Fraction) -> Fraction | None:
    """Return the whole rate, or the one x 1000/1001, that a stated rate means."""
    candidates = (Fraction(round(stated)), round(stated / _NTSC) * _NTSC)
    return next((rate for rate in candidates if abs(rate - stated) <= _STATED_WITHIN * stated), None)


def _near(usual: int, unit: int, base: Fraction) -> Iterator[Fraction]:
    """Yield the rates whose frames last less than one unit more or less than the usual distance, in ticks."""
    if usual <= unit:
        return
    lowest, highest = 1 / ((usual + unit) * base), 1 / ((usual - unit) * base)
    for number in range(max(1, math.floor(lowest)), min(_MAX_RATE, math.ceil(highest / _NTSC)) + 1):
        for rate in (Fraction(number), number * _NTSC):
            if lowest < rate < highest and 1 / (rate * base) >= _MIN_UNITS * unit:
                yield rate


def _fits(ticks: Sequence[int], step: Fraction, unit: int) -> bool:
    """Return whether each time is one of n * step, with ascending n, rounded to units in one way."""
    num, den = step.numerator, step.denominator
    least = most = last = 0
    for since in (at - ticks[0] for at in ticks[1:]):
        number = (2 * since * den + num) // (2 * num)
        error = since * den - number * num
        least, most = min(least, error), max(most, error)
        if number <= last or most - least >= unit * den:
            return False
        last = number
    return True
