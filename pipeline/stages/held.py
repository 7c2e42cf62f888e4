"""Reject as one clip a stretch in which a video shows one picture for hours, or claims hours that are missing.

Otherwise a slide, a paused recording or a forged timestamp of a few bytes would become thousands of equal clips. The
first `limit` seconds of such a stretch are ordinary clips.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction

from pipeline.decode import Timeline
from pipeline.errors import LimitExceededError, TruncatedVideoError, VideoError

Start = tuple[Fraction, VideoError | None]
"""The start of a clip in seconds after the first frame, and why the clip is rejected (None: it is not)."""


def on_grid(
    timeline: Timeline, begin: Fraction, stop: Fraction, limit: Fraction | None, stride: Fraction, last: Fraction
) -> Iterator[Start]:
    """Yield the clips that begin every `stride` seconds in [begin, stop) and last `last` seconds up to the last frame.

    If clips show a single picture that is held for longer than `limit` seconds, one rejected clip stands for all of
    them.
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
    """Yield clips of source frames, given as the times of their first and last frame. In a truncated file, one rejected
    clip stands for all clips that reach more than `limit` seconds beyond the last frame that exists."""
    end = timeline.time(timeline.num_frames - 1)
    for first, last in clips:
        if limit is not None and first > end and last - end > limit:
            yield first, _refusal(timeline, end, stop, limit)
            return
        yield first, None


def _on_screen(timeline: Timeline, at: Fraction, stop: Fraction) -> tuple[Fraction, Fraction]:
    """Return since when and until when the picture at this time is on screen."""
    index = bisect_right(timeline.ticks, timeline.times.last_by(at)) - 1
    return timeline.time(index), timeline.time(index + 1) if index + 1 < timeline.num_frames else stop


def _refusal(timeline: Timeline, since: Fraction, until: Fraction, limit: Fraction, num_alike: int = 0) -> VideoError:
    clips = f"the {num_alike} clips" if num_alike else "the clips"
    rest = f"{clips} more than limit_hold={float(limit):g} s after that are refused as one"
    if timeline.is_truncated and since == timeline.time(timeline.num_frames - 1):
        return TruncatedVideoError(f"the file breaks off at {float(since):.3f} s of {float(until):.3f} s; {rest}")
    return LimitExceededError(f"one picture is shown from {float(since):.3f} s to {float(until):.3f} s; {rest}")
