"""One pass over a video that serves every clip wanted from it.

The pass runs forward. Before a stretch that no clip wants it may seek, if the packets' timestamps can be trusted and a
keyframe lies on the way; what comes after a seek is held against those timestamps, frame by frame, and at the first
disagreement everything unfinished is decoded again from the start. So a clip is the same however it was reached.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

import av

from pipeline.decode.builder import ClipBuilder
from pipeline.decode.clip import DecodedClip, DecodeStats
from pipeline.decode.info import stream_sar
from pipeline.decode.opening import Feed, Source, choose_stream, discard_others, open_container, open_feed
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.spec import DecodeSpec
from pipeline.decode.timeline import Timeline, measure_feed
from pipeline.errors import (
    ClipTooShortError,
    CorruptVideoError,
    LimitExceededError,
    NoFramesError,
    TruncatedVideoError,
    VideoError,
)

_MIN_SEEK_SECONDS = 1
"""Shorter gaps are decoded through: a seek costs a keyframe's way, and once a file its packets."""
_SEEK_EARLIER_SECONDS = (0, 2, 10)
"""Where a seek lands late or on nothing, it is tried again this much earlier (decode.md: then all but AVI agree)."""
_MAX_LEADING_CORRUPT = 64
"""Flagged frames that may precede the first clean one: an open GOP's leading pictures, a stream cut in mid-GOP."""


class _DistrustError(Exception):
    """What a seek led to does not agree with the packets."""


def decode_clip(src: Source, spec: DecodeSpec, *, timeline: Timeline | None = None) -> DecodedClip:
    """Decode one clip.

    Raises:
        VideoError: the content is at fault; see `iter_clips`.
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

    `specs` are sorted by start and may overlap; each gets one result, in order. A clip that can't be had gives its
    VideoError and the others follow. `timeline`, where the caller has measured one, saves measuring again.

    Raises:
        OSError: as the storage raised it; nothing is known of the clips that have not been yielded.
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


class _Pass:
    def __init__(self, feed: Feed, specs: Sequence[DecodeSpec], timeline: Timeline | None) -> None:
        self.feed = feed
        self.specs = specs
        self.timeline = timeline
        self.num_yielded = 0
        self.began = time.perf_counter()
        self.builders: list[ClipBuilder] = []
        self.frames_decoded = self.errors = self.seeks = 0
        self.may_seek = True
        self.sought: int | None = None

    def run(self) -> Iterator[DecodedClip | VideoError]:
        while self.num_yielded < len(self.specs):
            try:
                yield from self._once()
                return
            except _DistrustError:
                self.may_seek = False
                for builder in self.builders:
                    if builder.result is None:
                        builder.restart()

    def _once(self) -> Iterator[DecodedClip | VideoError]:
        """Open the video and go through it once, seeking where that is allowed."""
        max_pixels = max(spec.max_pixels for spec in self.specs)
        with open_container(self.feed) as container:
            stream = choose_stream(container, max_pixels)
            discard_others(container, stream)
            self.reader = PictureReader(container, stream, self.feed)
            self.stream = stream
            try:
                pictures = self._from_first_clean()
                first = next(pictures)
                self._make_builders(first)
                yield from self._walk(first, pictures)
            finally:
                self.frames_decoded += self.reader.frames_decoded
                self.errors += self.reader.errors

    def _from_first_clean(self) -> Iterator[Picture]:
        """Pictures from the first that the decoder does not flag; raises if there is none."""
        num_corrupt = 0
        pictures = self.reader.pictures()
        for picture in pictures:
            if picture.corrupt:
                num_corrupt += 1
                if num_corrupt > _MAX_LEADING_CORRUPT:
                    raise CorruptVideoError(f"the decoder flags the first {num_corrupt} frames as corrupt")
                continue
            yield picture
            yield from pictures
            return
        if num_corrupt or self.reader.errors:
            raise CorruptVideoError(f"no frame can be decoded: {self.reader.first_error or 'all flagged corrupt'}")
        raise NoFramesError("the video stream holds no frame")

    def _make_builders(self, first: Picture) -> None:
        if self.builders:
            return
        base = self.stream.time_base
        codec, sar = self.stream.codec_context.name, stream_sar(self.stream)
        self.builders = [ClipBuilder(spec, codec, sar, base, first.ticks) for spec in self.specs]
        self.origin = first.ticks
        for builder in self.builders:
            if builder.spec.output_bytes > builder.spec.max_output_bytes:
                limit = builder.spec.max_output_bytes
                builder.fail(LimitExceededError(f"{builder.spec.output_bytes} bytes exceed max_output_bytes={limit}"))

    def _walk(self, shown: Picture, pictures: Iterator[Picture]) -> Iterator[DecodedClip | VideoError]:
        """Go forward, showing each picture to the clips until the next one comes."""
        check: _Verifier | None = None
        while True:
            yield from self._emit()
            waiting = [b for b in self.builders[self.num_yielded :] if b.result is None]
            if not waiting:
                return
            found = self._seek_towards(min(b.first for b in waiting), shown, waiting)
            if found is not None:
                shown, pictures, check = found
            following = next(pictures, None)
            if check is not None:
                check.next(following, self.reader)
            until = following.ticks if following is not None else shown.ticks + self._last_step(shown)
            for builder in waiting:
                if builder.first < until:
                    builder.offer(shown, until, self.reader)
                    if builder.is_complete:
                        builder.finish(self._stats())
            if following is None:
                self._end(shown, waiting)
                yield from self._emit()
                return
            shown = following

    def _emit(self) -> Iterator[DecodedClip | VideoError]:
        while self.num_yielded < len(self.builders):
            builder = self.builders[self.num_yielded]
            if builder.result is None:
                return
            result, builder.result = builder.result, None
            builder.fail(_DONE)
            self.num_yielded += 1
            yield result

    def _end(self, last: Picture, waiting: list[ClipBuilder]) -> None:
        """The video is over: what is unfinished is padded, cut, or refused with the reason why it ended early."""
        for builder in waiting:
            if builder.result is not None:
                continue
            if self._is_truncated():
                builder.fail(
                    TruncatedVideoError(
                        f"the file breaks off at {self._seconds(last):.3f} s"
                        f" with {builder.num_done} of {builder.spec.num_frames} frames of the clip"
                        + (f": {self.reader.first_error}" if self.reader.first_error else "")
                    )
                )
            elif builder.spec.short == "pad_last":
                builder.hold(last, self.reader)
                builder.finish(self._stats())
            elif builder.spec.short == "truncate" and builder.num_done:
                builder.finish(self._stats())
            else:
                builder.fail(
                    ClipTooShortError(
                        f"the video ends at {self._seconds(last):.3f} s"
                        f" with {builder.num_done} of {builder.spec.num_frames} frames of the clip"
                    )
                )

    def _is_truncated(self) -> bool:
        return self.reader.is_cut or self._measured().is_truncated

    def _measured(self) -> Timeline:
        if self.timeline is None:
            self.timeline = measure_feed(self.feed)
        return self.timeline

    def _last_step(self, last: Picture) -> int:
        """How long the video's last picture stays, in ticks. Not from decoded neighbours: a seek may have none."""
        return int(last.frame.duration or 0) or self._measured().step

    def _seconds(self, picture: Picture) -> float:
        return float((picture.ticks - self.origin) * self.stream.time_base)

    def _stats(self) -> DecodeStats:
        return DecodeStats(
            frames_decoded=self.frames_decoded + self.reader.frames_decoded,
            errors=self.errors + self.reader.errors,
            seeks=self.seeks,
            seconds=time.perf_counter() - self.began,
        )

    def _seek_towards(
        self, target: int, shown: Picture, waiting: list[ClipBuilder]
    ) -> tuple[Picture, Iterator[Picture], _Verifier] | None:
        """Jump ahead if nobody wants what lies between; None to decode on."""
        base = self.stream.time_base
        if (
            not self.may_seek
            or target == self.sought
            or (target - shown.ticks) * base < _MIN_SEEK_SECONDS
            or any(b.is_active for b in waiting)
        ):
            return None
        timeline = self._measured()
        if (
            not timeline.is_trusted
            or self.reader.has_damage
            or self.origin not in timeline.ticks[:_MAX_LEADING_CORRUPT]
        ):
            self.may_seek = False
            return None
        for earlier in _SEEK_EARLIER_SECONDS:
            key = timeline.keyframe_before(target - int(earlier / base))
            if key is None or key <= shown.ticks:
                if self.sought != target:
                    return None
                break
            self.seeks += 1
            self.sought = target
            found = self._land(key, target, timeline)
            if found is not None and found[0].ticks > shown.ticks:
                return found
        raise _DistrustError

    def _land(self, key: int, target: int, timeline: Timeline) -> tuple[Picture, Iterator[Picture], _Verifier] | None:
        """Seek to a keyframe; the first keyframe picture that comes out, if it does so in time."""
        try:
            self.reader.seek(key)
        except (av.FFmpegError, ValueError):
            self.feed.check()
            return None
        pictures = self.reader.pictures()
        for picture in pictures:
            if picture.ticks > target or picture.corrupt or picture.repaired or self.reader.has_damage:
                return None
            if picture.frame.key_frame:
                check = _Verifier(timeline, picture)
                return picture, pictures, check
        return None


class _Verifier:
    """Holds pictures after a seek against the packets' timestamps."""

    def __init__(self, timeline: Timeline, first: Picture) -> None:
        self._ticks = timeline.ticks
        self._index = bisect_left(self._ticks, first.ticks)
        if self._index == len(self._ticks) or self._ticks[self._index] != first.ticks:
            raise _DistrustError

    def next(self, picture: Picture | None, reader: PictureReader) -> None:
        self._index += 1
        expected = self._ticks[self._index] if self._index < len(self._ticks) else None
        if reader.has_damage or (picture is not None and (picture.corrupt or picture.repaired)):
            raise _DistrustError
        if (picture.ticks if picture is not None else None) != expected:
            raise _DistrustError


_DONE = VideoError("yielded")
