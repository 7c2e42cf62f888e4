"""What a decode worker holds where clips overlap: the pictures under way, each once (see decode/builder.py)."""

from __future__ import annotations

import math
from fractions import Fraction

from pipeline.settings.clip_rule import ClipRule, exact

SOURCE_FPS = Fraction(60)
"""Frames a second that sources are taken to have at most: a video has no more pictures than frames."""


def pictures_held(clip: ClipRule, num_frames: int) -> int:
    """How many different pictures the clips of so many frames show that are under way at a time; 0 if none overlap."""
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
    """Bytes of the pictures that a decode worker holds for clips that overlap, at most, by source videos of SOURCE_FPS;
    0 if none overlap."""
    return max(pictures_held(clip, frames) * height * width * 3 for frames, height, width in clip.shapes)


def _common_step(a: Fraction, b: Fraction) -> Fraction:
    """The largest step that both are multiples of: all their sums lie on it."""
    numerator = math.gcd(a.numerator * b.denominator, b.numerator * a.denominator)
    return Fraction(numerator, a.denominator * b.denominator)
