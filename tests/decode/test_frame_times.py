"""Rounded times of a constant rate are recovered, so that each choice of a frame is the one that exact times give.

Arithmetic alone: the oracle knows the exact times n / rate and never sees a rounded one. test_rounded_times.py asks the
same of files.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from fractions import Fraction

import pytest

from pipeline.decode.frame_times import FrameTimes, Rate, recover

NTSC = Fraction(1000, 1001)
RATES = [rate for n in range(12, 61) for rate in (Fraction(n), n * NTSC)]
BASES = {"ms": 1000, "QuickTime": 600, "MPEG": 90_000, "another": 12_800}
NUM_FRAMES = 40
WAYS: dict[str, Callable[[Fraction], int]] = {
    "to the nearest": lambda x: math.floor(x + Fraction(1, 2)),
    "down": math.floor,
    "up": math.ceil,
}


def rounded(rate: Fraction, base: Fraction, offset: Fraction, way: str, num_frames: int = NUM_FRAMES) -> list[int]:
    """What a container stores for frames at offset + n / rate."""
    return [WAYS[way]((offset + n / rate) / base) for n in range(num_frames)]


QUICK = {("ms", "to the nearest"), ("ms", "down"), ("QuickTime", "up"), ("MPEG", "to the nearest")}
EVERY = [(name, way) for name in BASES for way in WAYS]


@pytest.mark.parametrize(
    ("name", "way"), [pytest.param(*one, marks=[] if one in QUICK else [pytest.mark.slow]) for one in EVERY]
)
def test_each_choice_is_that_of_exact_times(name: str, way: str) -> None:
    base, rng = Fraction(1, BASES[name]), random.Random(name + way)
    for rate in RATES:
        offset = rng.choice([Fraction(0), Fraction(1, 3), Fraction(2**33, 90_000) - 1, Fraction(rng.random())])
        ticks = rounded(rate, base, offset, way)
        times = FrameTimes(base, ticks[0], recover(ticks, base, [rate]))
        assert [times.time(at) for at in ticks] == [n / rate for n in range(NUM_FRAMES)]
        for fps in (rate, rate / 2, rate / 3, rate / 4, Fraction(8), Fraction(16), Fraction(24)):
            start = rng.choice([Fraction(0), 7 / rate, Fraction(1, 2), Fraction(rng.random())])
            targets = [start + i / fps for i in range(math.ceil((NUM_FRAMES / rate - start) * fps))]
            chosen = [bisect_right(ticks, times.last_by(t)) - 1 for t in targets]
            assert chosen == [math.floor(t * rate) for t in targets]
            assert [bisect_left(ticks, times.first_from(t)) for t in targets] == [math.ceil(t * rate) for t in targets]


@pytest.mark.parametrize("name", ["ms", "MPEG"])
def test_a_long_stream_needs_no_stated_rate(name: str) -> None:
    for rate in RATES:
        ticks = rounded(rate, base := Fraction(1, BASES[name]), Fraction(1, 7), "to the nearest", 400)
        times = FrameTimes(base, ticks[0], recover(ticks, base, []))
        assert [times.time(at) for at in ticks] == [n / rate for n in range(400)]


@pytest.mark.parametrize("name", BASES)
def test_frames_may_be_missing(name: str) -> None:
    """As after mpdecimate, or in a recording that dropped some."""
    rng, base = random.Random(1), Fraction(1, BASES[name])
    kept = [0, *sorted(rng.sample(range(1, 300), 220))]
    for rate in (Fraction(24), Fraction(24), 30 * NTSC, 60 * NTSC):
        every = rounded(rate, base, Fraction(5), "down", 300)
        ticks = [every[n] for n in kept]
        times = FrameTimes(base, ticks[0], recover(ticks, base, [rate]))
        assert [times.time(at) for at in ticks] == [n / rate for n in kept]


def test_times_that_were_rounded_twice_are_recovered_from_the_coarser_rounding() -> None:
    """Matroska in milliseconds, made an MP4 of 1/16000 s or an MPEG transport stream of 1/90000 s."""
    for finer in (16, 90):
        ticks = [finer * at for at in rounded(Fraction(24), Fraction(1, 1000), Fraction(0), "to the nearest")]
        assert recover(ticks, Fraction(1, 1000 * finer), [Fraction(24)]) == Rate(Fraction(24), finer)


def test_a_stated_rate_may_be_written_with_three_digits() -> None:
    ticks = rounded(24 * NTSC, Fraction(1, 1000), Fraction(0), "to the nearest", 10)
    assert recover(ticks, Fraction(1, 1000), [Fraction("23.976")]) == Rate(24 * NTSC, 1)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([7] * 20, id="a constant rate of whole ticks"),
        pytest.param([7, 14, 7, 21, 7, 7], id="the same with frames missing"),
        pytest.param([33, 34, 33, 40, 33, 34, 33, 33, 34, 33], id="one late frame"),
        pytest.param([33, 33, 33, 33, 33, 33, 34, 33, 33, 33, 33, 33, 33, 33, 33, 33], id="slower by a hundredth"),
        pytest.param([17, 33, 700, 1, 34, 100], id="a variable rate"),
        pytest.param([2, 1, 2, 1, 2, 1, 2, 2], id="too few ticks a frame to tell"),
    ],
)
def test_all_other_times_stay_as_they_are(steps: list[int]) -> None:
    ticks = [1000 + sum(steps[:n]) for n in range(len(steps) + 1)]
    assert recover(ticks, Fraction(1, 1000), []) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_variable_rate_around_a_stated_one_stays_as_it_is(seed: int) -> None:
    rng = random.Random(seed)
    ticks = [round(1000 * n / 30 + rng.uniform(-6, 6)) for n in range(30)]
    assert recover(sorted(ticks), Fraction(1, 1000), [Fraction(30)]) is None


def test_ticks_and_times_are_each_others_inverse() -> None:
    rng = random.Random(3)
    for _ in range(5000):
        rate, unit = rng.choice(RATES), rng.choice([1, 16])
        base = Fraction(1, rng.choice([600, 1000, 90_000]) * unit)
        times = FrameTimes(base, rng.randrange(-99, 99), rng.choice([Rate(rate, unit), None]))
        at = rng.randrange(500) / rate + rng.choice([0, base, -base, Fraction(rng.random())])
        last, first = times.last_by(at), times.first_from(at)
        assert times.time(last) <= at < times.time(last + 1)
        assert times.time(first - 1) < at <= times.time(first)


def test_the_end_of_the_last_frame_is_recovered_with_its_duration() -> None:
    rate = Fraction(24)
    ticks = rounded(rate, base := Fraction(1, 1000), Fraction(1, 3), "to the nearest", 48)
    times = FrameTimes(base, ticks[0], recover(ticks, base, [rate]))
    for duration in (41, 42):
        assert times.time(times.end(ticks[-1] + duration)) == 2
    assert times.time(times.end(ticks[-1] + 700)) == Fraction(ticks[-1] + 700 - ticks[0], 1000)
    assert FrameTimes(base, 0).end(123) == 123
