"""Seek, and check every following frame against the timestamps of the packets.

Seeks are often wrong (8 of 67 real files gave other frames than linear decoding): they land late, after the data, or on
frames whose timestamps differ by a tick or two. So a seek is tried only if the packets' timestamps can be trusted. The
first picture must be a keyframe at or before the target, and every later one must have the next timestamp of the
packets. At the first difference, DistrustError makes the whole pass decode from the start again. Frames that no clip
needs and no frame is predicted from are skipped under the same check.
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
"""Shorter gaps are decoded: a seek costs the decoding from a keyframe and, once per file, reading all packets."""
_SEEK_EARLIER_SECONDS = (0, 2, 10)
"""If a seek lands late or finds nothing, it is tried again this much earlier (then all containers but AVI agree)."""
_MAX_LEADING = 64
"""Packets that may precede the first presentable frame."""


class DistrustError(Exception):
    """The frames after a seek do not agree with the packets."""


class Seeker:
    """Decide on the seeks of one pass, do them, and check the frames after seeks and skipped frames."""

    def __init__(self, reader: PictureReader, feed: Feed, time_base: Fraction, origin: int) -> None:
        self._reader, self._feed, self._base, self._origin = reader, feed, time_base, origin
        self._sought: int | None = None
        self._expected: Iterator[int] | None = None
        self.num_seeks = 0

    def towards(
        self, target: int, shown: Picture, measured: Callable[[], Timeline]
    ) -> tuple[Picture, Iterator[Picture]] | None:
        """Seek to the last keyframe at or before `target`, if that skips anything; return None to decode on.

        Raises:
            DistrustError: the seek found nothing, or landed after the target.
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
        """From `shown` on, skip the frames with these timestamps, unless other frames are predicted from them."""
        if self._trusts(timeline):
            self._reader.unwanted = unwanted
            self._follow(timeline, shown)

    def check(self, picture: Picture | None) -> None:
        """Compare the next picture (None at the end) with the packets, if anything was skipped.

        Raises:
            DistrustError
        """
        if self._expected is None:
            return
        if self._reader.clock.is_ranked:
            raise DistrustError  # packets are identified by their times, which belong to other packets
        if self._reader.has_damage or (picture is not None and (picture.corrupt or picture.repaired)):
            raise DistrustError
        if picture is not None and picture.frame.interlaced_frame and self._reader.skipped:
            raise DistrustError  # half of a frame may have been skipped
        foretold = next((ticks for ticks in self._expected if ticks not in self._reader.skipped), None)
        if foretold != (None if picture is None else picture.ticks):
            raise DistrustError

    def _trusts(self, timeline: Timeline) -> bool:
        begins_as_told = self._origin in timeline.ticks[:_MAX_LEADING]
        return timeline.is_trusted and begins_as_told and not (self._reader.has_damage or self._reader.clock.is_ranked)

    def _follow(self, timeline: Timeline, shown: Picture) -> None:
        """Start to compare every picture after `shown` with the timeline."""
        self._expected = iter(timeline.ticks[bisect_left(timeline.ticks, shown.ticks) :])
        self.check(shown)

    def _land(self, key: int, target: int, timeline: Timeline) -> tuple[Picture, Iterator[Picture]] | None:
        """Seek to a keyframe. Return the first keyframe picture and the rest, or None if it comes too late."""
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
