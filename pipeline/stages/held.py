"""Where a video shows one picture for hours, or claims hours that are not there: such a stretch is refused as one clip.

A slide, a paused recording or a forged timestamp of a few bytes would otherwise become thousands of clips that are all
alike. The first `limit` seconds of a stretch are clips like any other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction

from pipeline.decode import Timeline
from pipeline.errors import LimitExceededError, TruncatedVideoError, VideoError

Start = tuple[Fraction, VideoError | None]
"""When a clip begins, in seconds after the first frame, and why it is refused."""


def on_grid(
    timeline: Timeline, begin: Fraction, stop: Fraction, limit: Fraction | None, stride: Fraction, last: Fraction
) -> Iterator[Start]:
    """Clips that begin every `stride` seconds in [begin, stop), and whose last frame is `last` seconds after the first.

    Where clips show nothing but one picture, and have it for longer than `limit` seconds, one refused clip stands for
    all of them.
    """
    at = begin
    while at + last < stop:
        since, until = _on_screen(timeline, at, stop)
        if limit is None or at + last >= until or at + last - since <= limit:
            yield at, None
            at += stride
            continue
        num_alike = math.ceil((until - last - at) / stride)
        yield at, _refusal(timeline, since, until, limit, num_alike)
        at += num_alike * stride


def until_missing(
    timeline: Timeline, stop: Fraction, limit: Fraction | None, clips: Iterator[tuple[Fraction, Fraction]]
) -> Iterator[Start]:
    """Clips of source frames, given as the times of their first and last frame. Of those that a truncated file lacks,
    one refused clip stands for all that reach further than `limit` seconds after the last frame that is there."""
    there = timeline.time(timeline.num_frames - 1)
    for first, last in clips:
        if limit is not None and first > there and last - there > limit:
            yield first, _refusal(timeline, there, stop, limit)
            return
        yield first, None


def _on_screen(timeline: Timeline, at: Fraction, stop: Fraction) -> tuple[Fraction, Fraction]:
    """Since when, and until when, the picture is shown that is on screen at a time."""
    index = bisect_right(timeline.ticks, timeline.origin + math.floor(at / timeline.time_base)) - 1
    return timeline.time(index), timeline.time(index + 1) if index + 1 < timeline.num_frames else stop


def _refusal(timeline: Timeline, since: Fraction, until: Fraction, limit: Fraction, num_alike: int = 0) -> VideoError:
    clips = f"the {num_alike} clips" if num_alike else "the clips"
    rest = f"{clips} more than limit_hold={float(limit):g} s after that are refused as one"
    if timeline.is_truncated and since == timeline.time(timeline.num_frames - 1):
        return TruncatedVideoError(f"the file breaks off at {float(since):.3f} s of {float(until):.3f} s; {rest}")
    return LimitExceededError(f"one picture is shown from {float(since):.3f} s to {float(until):.3f} s; {rest}")
