"""The memory of a decode worker for overlapping clips: each open picture is kept once (see decode/builder.py)."""

from __future__ import annotations

import math
from fractions import Fraction

from pipeline.settings.clip_rule import ClipRule, exact

SOURCE_FPS = Fraction(60)
"""Assumed highest frame rate of sources. It bounds the number of different pictures."""


def pictures_held(clip: ClipRule, num_frames: int) -> int:
    """Return how many different pictures overlapping clips of `num_frames` keep open at a time; 0 without overlap."""
    if clip.every is None:
        return 0
    every, rate = exact(clip.every), clip.rate or SOURCE_FPS
    span = num_frames / rate
    if every >= span:
        return 0
    times_a_second = 1 / _common_step(every, 1 / rate) if clip.rate else rate
    pictures = math.ceil(span * min(times_a_second, SOURCE_FPS))
    return min(pictures, math.ceil(span / every) * num_frames)


def bytes_held(clip: ClipRule) -> int:
    """Return the most bytes of pictures that a decode worker keeps for overlapping clips of sources of SOURCE_FPS.

    It is 0 without overlap.
    """
    return max(pictures_held(clip, frames) * height * width * 3 for frames, height, width in clip.shapes)


def _common_step(a: Fraction, b: Fraction) -> Fraction:
    """Return the largest step that divides both, so that all their sums are multiples of it."""
    numerator = math.gcd(a.numerator * b.denominator, b.numerator * a.denominator)
    return Fraction(numerator, a.denominator * b.denominator)
