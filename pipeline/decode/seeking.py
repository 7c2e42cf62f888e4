"""Skipping ahead without being lied to: what follows is held against the packets' timestamps, frame by frame.

Seeking lies in many ways (of 67 real files 8 disagreed with linear decoding): it lands late, past the data, or on
frames whose timestamps are off by a tick or two. So it is tried only where the packets' timestamps can be trusted, the
first picture taken is a keyframe at or before the target, every later one must be the one that the packets foretell,
and at the first disagreement `DistrustError` sends the whole pass back to decode from the start. Frames that nobody
wants and nothing is predicted from are left out on the same terms.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from fractions import Fraction

import av

from pipeline.decode.opening import Feed
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.timeline import Timeline

_MIN_SEEK_SECONDS = Fraction(1)
"""Shorter gaps are decoded through: a seek costs a keyframe's way, and once a file its packets."""
_SEEK_EARLIER_SECONDS = (0, 2, 10)
"""Where a seek lands late or on nothing, it is tried again this much earlier (decode.md: then all but AVI agree)."""
_MAX_LEADING = 64
"""Packets that may precede the first presentable frame."""


class DistrustError(Exception):
    """What a seek led to does not agree with the packets."""


class Seeker:
    """Decides on seeks in one pass, does them, and checks what follows them and what was left out."""

    def __init__(self, reader: PictureReader, feed: Feed, time_base: Fraction, origin: int) -> None:
        self._reader, self._feed, self._base, self._origin = reader, feed, time_base, origin
        self._sought: int | None = None
        self._foretold: Iterator[int] | None = None
        self.num_seeks = 0

    def towards(
        self, target: int, shown: Picture, measured: Callable[[], Timeline]
    ) -> tuple[Picture, Iterator[Picture]] | None:
        """Jump to the last keyframe at or before `target`, if that skips anything; None to decode on.

        Raises:
            DistrustError: the seek led nowhere, or too far.
        """
        if target == self._sought or (target - shown.ticks) * self._base < _MIN_SEEK_SECONDS:
            return None
        self._sought = target
        timeline = measured()
        if not self._trusts(timeline):
            return None
        key = timeline.keyframe_before(target)
        if key is None or key <= shown.ticks:
            return None
        for earlier in _SEEK_EARLIER_SECONDS:
            key = timeline.keyframe_before(target - int(earlier / self._base))
            if key is None or key <= shown.ticks:
                break
            self.num_seeks += 1
            found = self._land(key, target, timeline)
            if found is not None and found[0].ticks > shown.ticks:
                return found
        raise DistrustError

    def leave_out(self, unwanted: frozenset[int], shown: Picture, timeline: Timeline) -> None:
        """From `shown` on, do not decode the frames of these timestamps, unless others are predicted from them."""
        if self._trusts(timeline):
            self._reader.unwanted = unwanted
            self._follow(timeline, shown)

    def check(self, picture: Picture | None) -> None:
        """Compare the next picture (None: the end) with the packets, if anything was skipped.

        Raises:
            DistrustError
        """
        if self._foretold is None:
            return
        if self._reader.clock.is_ranked:
            raise DistrustError  # packets are told by their times, and those are others' here
        if self._reader.has_damage or (picture is not None and (picture.corrupt or picture.repaired)):
            raise DistrustError
        if picture is not None and picture.frame.interlaced_frame and self._reader.skipped:
            raise DistrustError  # half of a frame may have been left out
        foretold = next((ticks for ticks in self._foretold if ticks not in self._reader.skipped), None)
        if foretold != (None if picture is None else picture.ticks):
            raise DistrustError

    def _trusts(self, timeline: Timeline) -> bool:
        begins_as_told = self._origin in timeline.ticks[:_MAX_LEADING]
        return timeline.is_trusted and begins_as_told and not (self._reader.has_damage or self._reader.clock.is_ranked)

    def _follow(self, timeline: Timeline, shown: Picture) -> None:
        """Hold every picture from `shown` on against the timeline."""
        self._foretold = iter(timeline.ticks[bisect_left(timeline.ticks, shown.ticks) :])
        self.check(shown)

    def _land(self, key: int, target: int, timeline: Timeline) -> tuple[Picture, Iterator[Picture]] | None:
        """Seek to a keyframe; the first keyframe picture that comes out, if it does so in time."""
        try:
            self._reader.seek(key)
        except (av.FFmpegError, ValueError):
            self._feed.check()
            return None
        pictures = self._reader.pictures()
        for picture in pictures:
            if picture.ticks > target or picture.corrupt or picture.repaired or self._reader.has_damage:
                return None
            if picture.frame.key_frame:
                self._follow(timeline, picture)
                return picture, pictures
        return None
