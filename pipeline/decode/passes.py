"""Decode all clips of a video in one pass.

The pass runs forward and offers each picture to the clips until the next one comes. It may seek over parts that no clip
needs, and skip frames within the other parts; see `seeking`. The result does not depend on seeks and skipped frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

from pipeline.decode import too_short
from pipeline.decode.builder import ClipBuilder
from pipeline.decode.clip import DecodedClip, DecodeStats
from pipeline.decode.first_clean import from_first_clean
from pipeline.decode.frame_times import FrameTimes
from pipeline.decode.lineup import Lineup
from pipeline.decode.opening import Feed, Source, choose_stream, discard_others, open_container, open_feed
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.seeking import DistrustError, Seeker
from pipeline.decode.spec import DecodeSpec
from pipeline.decode.timeline import Timeline, measure_feed
from pipeline.errors import (
    ClipTooShortError,
    TruncatedVideoError,
    VideoError,
)

_WORTH_MEASURING = 50
"""Packets of the whole video per frame in the clips' span, up to which measuring the video in order to skip frames is
faster. A packet costs 10 us; a frame at 720p takes about 4 ms, and skipping saves a quarter of that."""

_MAX_ARRAYS = 2
"""Open clips that convert into their own array, without a copy; further ones share frames."""


def decode_clip(src: Source, spec: DecodeSpec, *, timeline: Timeline | None = None) -> DecodedClip:
    """Decode one clip.

    Raises:
        VideoError: the content is bad; see `iter_clips`.
        OSError: as the storage raised it.
    """
    (result,) = iter_clips(src, [spec], timeline=timeline)
    if isinstance(result, VideoError):
        raise result
    return result


def iter_clips(
    src: Source, specs: Sequence[DecodeSpec], *, timeline: Timeline | None = None
) -> Iterator[DecodedClip | VideoError]:
    """Decode several clips of one video in one pass.

    `specs` are sorted by start and may overlap, and have one `times` and one `rate`; each gives one result, in order: a
    clip, or a VideoError for this clip only. Pass the `timeline` if it is already measured, to save measuring it again.

    Raises:
        OSError: any error of the storage; the clips that were not yielded have no result.
    """
    if any(a.start > b.start for a, b in pairwise(specs)):
        raise ValueError("specs must be sorted by start")
    with open_feed(src) as feed:
        work = _Pass(feed, specs, timeline)
        try:
            yield from work.run()
        except VideoError as error:
            feed.check()
            for _ in range(len(specs) - work.num_yielded):
                yield error


class _LateError(Exception):
    """The decoder outputs frames too early, and drops frames that should have come before them."""


class _Pass:
    def __init__(self, feed: Feed, specs: Sequence[DecodeSpec], timeline: Timeline | None) -> None:
        self.feed = feed
        self.specs = specs
        self.timeline = timeline
        self.lineup: Lineup | None = None
        self.began = time.perf_counter()
        self.frames_decoded = self.errors = self.seeks = 0
        self.may_seek = True
        self.any_order = False

    def run(self) -> Iterator[DecodedClip | VideoError]:
        while self.num_yielded < len(self.specs):
            try:
                yield from self._once()
                return
            except (DistrustError, _LateError) as error:
                self.any_order |= isinstance(error, _LateError)
                self.may_seek &= isinstance(error, _LateError)
                self.seeks += self.seeker.num_seeks

    @property
    def num_yielded(self) -> int:
        return self.lineup.num_yielded if self.lineup else 0

    def _once(self) -> Iterator[DecodedClip | VideoError]:
        """Open the video and decode it once, with seeks if they are allowed."""
        max_pixels = max(spec.max_pixels for spec in self.specs)
        with open_container(self.feed) as container:
            self.stream = choose_stream(container, self.feed, max_pixels, any_order=self.any_order)
            discard_others(container, self.stream)
            self.reader = PictureReader(container, self.stream, self.feed, self.specs[0].times)
            try:
                pictures = from_first_clean(self.reader)
                first = next(pictures)
                self.seeker = Seeker(self.reader, self.feed, self.stream.time_base, first.ticks)
                lineup = self._lined_up(first)
                if self.may_seek and self._pays_to_leave_out(container):
                    self._leave_out(first)
                yield from self._walk(lineup, first, pictures)
            finally:
                self.frames_decoded += self.reader.frames_decoded
                self.errors += self.reader.errors

    def _lined_up(self, first: Picture) -> Lineup:
        """Return the Lineup of the clips that have no result yet, from the first picture on."""
        self.origin = first.ticks
        if self.lineup is None:
            times = FrameTimes(self.stream.time_base, first.ticks, self.specs[0].rate)
            self.lineup = Lineup(self.specs, self._builder_from(first.ticks), times)
        self.lineup.restart()
        return self.lineup

    def _builder_from(self, origin: int) -> Callable[[DecodeSpec], ClipBuilder]:
        return lambda spec: ClipBuilder(spec, self.stream, origin)

    def _walk(self, lineup: Lineup, shown: Picture, pictures: Iterator[Picture]) -> Iterator[DecodedClip | VideoError]:
        """Go forward and offer each picture to the clips that have begun, until all have a result."""
        begun: list[ClipBuilder] = []
        while (first := lineup.next_first) is not None or begun:
            if not begun and self.may_seek:
                assert first is not None
                found = self.seeker.towards(first, shown, self._measured)
                shown, pictures = found or (shown, pictures)
            following = next(pictures, None)
            if self._doubts_order and self.reader.clock.is_late:
                raise _LateError
            self.seeker.check(following)
            until = following.ticks if following is not None else shown.ticks + self._last_step(shown)
            going_on: list[ClipBuilder] = []
            for builder in chain(begun, lineup.beginning(until)):
                if not builder.num_done:
                    builder.shares = lineup.num_begun > _MAX_ARRAYS
                builder.offer(shown, until, self.reader)
                if builder.is_complete:
                    if self._doubts_order and self.reader.is_late_ahead():
                        raise _LateError
                    builder.finish(self._stats())
                if builder.is_finished:
                    yield from lineup.results()
                else:
                    going_on.append(builder)
            if following is None:
                for builder in lineup.left():
                    self._end(shown, builder)
                    yield from lineup.results()
                return
            begun, shown = going_on, following
        yield from lineup.results()

    @property
    def _doubts_order(self) -> bool:
        """Return whether frames may come too early: an H.264 stream may omit how far it reorders them."""
        return self.stream.codec_context.name == "h264" and not self.any_order

    def _pays_to_leave_out(self, container: Any) -> bool:
        """Return whether there may be frames to skip, and finding them costs less than it saves."""
        if not self.reader.can_skip or any(spec.fps is None or spec.on_error == "skip" for spec in self.specs):
            return False
        rate = self.stream.average_rate
        if self.timeline is not None or not rate:
            return self.timeline is not None
        num_packets = self.stream.frames or Fraction(container.duration or 0, 1_000_000) * rate
        num_spanned = sum(spec.target(spec.num_frames - 1) - spec.target(0) for spec in self.specs) * rate
        return bool(0 < num_packets <= _WORTH_MEASURING * num_spanned)

    def _leave_out(self, first: Picture) -> None:
        """Skip frames that no clip needs, unless a clip reaches its limit of source frames, where each one counts."""
        timeline = self._measured()
        wanted = {timeline.ticks[-1]}
        for builder in map(self._builder_from(self.origin), self.specs):
            num_frames = builder.spec.num_frames
            wanted.update(timeline.shown_at(builder.need(i)) for i in range(num_frames))
            if timeline.num_between(builder.first, builder.need(num_frames - 1)) > builder.spec.max_decoded_frames:
                return
        self.seeker.leave_out(frozenset(timeline.ticks) - wanted, first, timeline)

    def _end(self, last: Picture, builder: ClipBuilder) -> None:
        """Finish a clip without a result at the end of the video: pad it, truncate it, or reject it with the reason."""
        if builder.is_finished:
            return
        spec = builder.spec
        at = f"at {float((last.ticks - self.origin) * self.stream.time_base):.3f} s"
        short = f"{at} with {builder.num_done} of {spec.num_frames} frames of the clip"
        lost_the_end = spec.on_error == "raise" and self.reader.damage.lost_after(last.ticks)
        if lost_the_end or self.reader.is_cut or self._measured().is_truncated:
            cause = f": {self.reader.first_error}" if self.reader.first_error else ""
            builder.fail(TruncatedVideoError(f"the file breaks off {short}{cause}"))
        elif spec.short == "pad_last":
            builder.hold(last, self.reader)
            builder.finish(self._stats())
        elif spec.short == "truncate" and builder.num_done:
            builder.finish(self._stats())
        else:
            fitting, wanted = spec.offset + builder.num_done, spec.offset + spec.num_frames
            builder.fail(ClipTooShortError(too_short.message(fitting, wanted, spec.fps, f"the video ends {at}")))

    def _measured(self) -> Timeline:
        if self.timeline is None:
            self.timeline = measure_feed(self.feed, self.specs[0].times)
        return self.timeline

    def _last_step(self, last: Picture) -> int:
        """Return the duration of the video's last picture, in ticks. Decoded neighbours may be missing after a seek."""
        timeline = self._measured()
        return timeline.end - last.ticks if last.ticks == timeline.ticks[-1] else timeline.step

    def _stats(self) -> DecodeStats:
        return DecodeStats(
            frames_decoded=self.frames_decoded + self.reader.frames_decoded,
            errors=self.errors + self.reader.errors,
            seeks=self.seeks + self.seeker.num_seeks,
            seconds=time.perf_counter() - self.began,
        )
