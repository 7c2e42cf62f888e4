"""Choose the clips of one video that become rows, by the rule that the user states.

It goes from headers and timestamps to decode specs, without I/O and without decoding.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from pipeline.decode import DecodeSpec, Rate, Timeline, VideoInfo, too_short
from pipeline.errors import ClipTooShortError, FilteredError, LimitExceededError, VideoError
from pipeline.settings.clip_rule import ClipRule, exact
from pipeline.stages import held
from pipeline.stages.held import Start

MAX_CLIPS = 200_000
"""Most clips of one video. A day at 60 frames a second has 106,000 clips of 49 frames; more is a forgery."""
_NEAR_SECONDS = Fraction(1, 1000)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedClip:
    """One clip: it becomes a row or a Rejection."""

    clip: int
    """Index of the clip in its video."""
    start: Fraction
    """Seconds after the first presentable frame."""
    num_frames: int
    height: int
    width: int
    rule: ClipRule
    rate: Rate | None = None
    """The rate from which the video's times were rounded."""
    refused: VideoError | None = None
    """Why the clip is not decoded: it stands for a stretch of clips that is rejected as one."""

    @property
    def spec(self) -> DecodeSpec:
        """The DecodeSpec of the whole clip; its pieces differ in `offset` and `num_frames` only. It is not stored,
        because a video may have thousands of clips."""
        rule = self.rule
        return DecodeSpec(
            num_frames=self.num_frames,
            fps=rule.rate,
            height=self.height,
            width=self.width,
            start=self.start,
            fit=rule.fit,
            crop=(rule.crop_x, rule.crop_y),
            filter=rule.filter,
            untagged_colorspace=rule.untagged_colorspace,
            deinterlace=rule.deinterlace,
            hdr=rule.hdr,
            short="pad_last" if rule.short == "pad" else "error",
            on_error=rule.on_error,
            times=rule.times,
            rate=self.rate,
            max_hold=None if rule.max_hold is None else exact(rule.max_hold),
            min_motion=rule.min_motion,
            max_pixels=rule.max_pixels,
            max_decoded_frames=rule.max_decoded_frames,
        )


def plan_clips(
    info: VideoInfo,
    timeline: Timeline | None,
    rule: ClipRule,
    *,
    start: Fraction | None = None,
    end: Fraction | None = None,
    accepted: Callable[[int], int | None] = lambda n: n,
) -> list[PlannedClip]:
    """Return the clips of one video in order of time. With `start` and `end` (seconds) the grid lies in [start, end);
    with times="exact", each of them is moved to a frame that is very near, see `_near_frame`.

    A truncated file is planned with the length that it claims: its clips before the gap are decoded, and those in the
    missing part are rejected. A stretch that shows one picture, or is missing, for longer than `rule.limit_hold` is
    rejected as one clip. `timeline` may be None unless `rule.needs_timeline`. `accepted` gives the largest number of
    frames <= n that the VAE takes, for short="trim".

    Raises:
        FilteredError, LimitExceededError, ClipTooShortError: for the whole video.
    """
    _check_limits(info, timeline, rule)
    _check_filters(info, timeline, rule)
    if timeline is not None and rule.times == "exact":
        start, end = (None if at is None else _near_frame(timeline, at) for at in (start, end))
    begin = start or Fraction(0)
    stop = _stop(timeline, end)
    if stop is not None and stop <= begin:
        raise ClipTooShortError(f"the range from {float(begin):g} s to {float(stop):g} s holds no frame")
    if info.is_image:
        return [_image_clip(info, rule, begin)]
    rate = info.rate if timeline is None else timeline.rate
    room = _room(timeline, rule, begin, stop)
    shape = _choose_shape(info, rule, room)
    num_frames = shape[0]
    if room is not None and room < num_frames:
        if rule.short == "reject" or room == 0:
            raise ClipTooShortError(too_short.message(room, num_frames, rule.rate))
        if rule.short == "trim":
            fitting = accepted(room)
            if fitting is None or fitting < 1:
                raise ClipTooShortError(f"{room} frames fit, fewer than the model takes")
            num_frames = fitting
        starts: Iterator[Start] = iter([(begin, None)])
    else:
        starts = _starts(timeline, rule, begin, stop, num_frames)
    wanted = list(islice(starts, min(MAX_CLIPS + 1, rule.max_clips or MAX_CLIPS + 1)))
    if len(wanted) > MAX_CLIPS:
        raise LimitExceededError(f"more than {MAX_CLIPS} clips")
    return [
        _planned(rule, clip, at, (num_frames, *shape[1:]), rate, refused) for clip, (at, refused) in enumerate(wanted)
    ]


def _near_frame(timeline: Timeline, at: Fraction) -> Fraction:
    """Return the time of a frame, or the end of the video, that is less than 1 ms and a quarter of a step away, else
    `at`: programs write 1/30 s as 0.0333 or 0.033, and mean the frame that begins there."""
    index = bisect_left(timeline.ticks, timeline.times.first_from(at))
    times = [timeline.time(i) for i in (index - 1, index) if 0 <= i < timeline.num_frames]
    nearest = min([*times, timeline.promised], key=lambda time: abs(time - at))
    near = min(_NEAR_SECONDS, timeline.step * timeline.time_base / 4)
    return nearest if abs(nearest - at) < near else at


def _stop(timeline: Timeline | None, end: Fraction | None) -> Fraction | None:
    """Return the exclusive end of the grid in seconds, or None if it is unknown."""
    if timeline is None:
        return end
    return timeline.promised if end is None else min(end, timeline.promised)


def _room(timeline: Timeline | None, rule: ClipRule, begin: Fraction, stop: Fraction | None) -> int | None:
    """Return how many frames fit between `begin` and `stop`, or None if it is unknown."""
    if stop is None:
        return None
    if rule.rate is not None:
        return math.ceil((stop - begin) * rule.rate)
    return None if timeline is None else len(_NativeFrames(timeline, begin, stop))


def _starts(
    timeline: Timeline | None, rule: ClipRule, begin: Fraction, stop: Fraction | None, num_frames: int
) -> Iterator[Start]:
    """Return the ascending start times of all whole clips; a stretch that is rejected as one counts as one."""
    if rule.clips == "first" or stop is None:
        yield begin, None
        return
    assert timeline is not None
    limit = None if rule.limit_hold is None else exact(rule.limit_hold)
    if rule.rate is None:
        native = _native_starts(_NativeFrames(timeline, begin, stop), rule, begin, num_frames)
        yield from held.until_missing(timeline, stop, limit, native)
        return
    stride = Fraction(num_frames) / rule.rate if rule.every is None else exact(rule.every)
    last = Fraction(num_frames - 1) / rule.rate
    yield from held.on_grid(timeline, begin, stop, limit, stride, last)


def _native_starts(
    frames: _NativeFrames, rule: ClipRule, begin: Fraction, num_frames: int
) -> Iterator[tuple[Fraction, Fraction]]:
    """Return the times of the first and the last frame of each clip."""
    if rule.every is None:
        for first in range(frames.first, frames.stop - num_frames + 1, num_frames):
            yield frames.time(first), frames.time(first + num_frames - 1)
        return
    at, every = begin, exact(rule.every)
    while (index := frames.index_at(at)) + num_frames <= frames.stop:
        yield frames.time(index), frames.time(index + num_frames - 1)
        at += every * (math.floor((frames.time(index) - at) / every) + 1)  # across a gap, one clip begins after it


class _NativeFrames:
    """The frames of a range by their index in the video. Frames that a truncated file lacks are included, one step
    apart."""

    def __init__(self, timeline: Timeline, begin: Fraction, stop: Fraction) -> None:
        self._timeline = timeline
        self._last = timeline.time(timeline.num_frames - 1)
        self._step = timeline.step * timeline.time_base
        self.first, self.stop = self.index_at(begin), self.index_at(stop)
        """Indexes, the second exclusive."""

    def __len__(self) -> int:
        return max(0, self.stop - self.first)

    def index_at(self, at: Fraction) -> int:
        """Return the first frame at or after a time."""
        timeline = self._timeline
        if at <= self._last:
            return bisect_left(timeline.ticks, timeline.times.first_from(at))
        missing = math.ceil((at - self._last) / self._step) - 1 if timeline.is_truncated else 0
        return timeline.num_frames + missing

    def time(self, index: int) -> Fraction:
        """Return when a frame appears, in seconds after the first frame."""
        beyond = index - self._timeline.num_frames
        return self._timeline.time(index) if beyond < 0 else self._last + self._step * (beyond + 1)


def _choose_shape(info: VideoInfo, rule: ClipRule, room: int | None) -> tuple[int, int, int]:
    """Return the shape nearest in log aspect; of equal aspects the longest that fits, otherwise the shortest."""
    aspect = math.log(info.display_width / info.display_height) if info.display_height else 0.0

    def rank(shape: tuple[int, int, int]) -> tuple[float, bool, int]:
        num_frames, height, width = shape
        fits = room is None or num_frames <= room
        return (round(abs(aspect - math.log(width / height)), 9), not fits, -num_frames if fits else num_frames)

    return min(rule.shapes, key=rank)


def _image_clip(info: VideoInfo, rule: ClipRule, begin: Fraction) -> PlannedClip:
    if rule.images == "reject":
        raise ClipTooShortError("a still image, and images are refused")
    _, height, width = _choose_shape(info, rule, None)
    return _planned(rule, 0, begin, (1, height, width))


def _planned(
    rule: ClipRule,
    clip: int,
    at: Fraction,
    shape: tuple[int, int, int],
    rate: Rate | None = None,
    refused: VideoError | None = None,
) -> PlannedClip:
    num_frames, height, width = shape
    return PlannedClip(
        clip=clip, start=at, num_frames=num_frames, height=height, width=width, rule=rule, rate=rate, refused=refused
    )


def _check_limits(info: VideoInfo, timeline: Timeline | None, rule: ClipRule) -> None:
    if info.width * info.height > rule.max_pixels:
        raise LimitExceededError(f"frames of {info.width}x{info.height} exceed max_pixels={rule.max_pixels}")
    if info.size_bytes > rule.max_bytes:
        raise LimitExceededError(f"a file of {info.size_bytes} bytes exceeds max_bytes={rule.max_bytes}")
    if timeline is not None and timeline.promised > exact(rule.limit_duration):
        raise LimitExceededError(f"{float(timeline.promised):.3f} s exceed limit_duration={rule.limit_duration:g} s")


def _check_filters(info: VideoInfo, timeline: Timeline | None, rule: ClipRule) -> None:
    size = min(info.display_width, info.display_height)
    if rule.min_size is not None and size < rule.min_size:
        raise FilteredError("min_size", f"{info.display_width}x{info.display_height} is less than {rule.min_size}")
    if timeline is None or info.is_image:
        return
    seconds, fps = timeline.duration, timeline.fps
    if rule.min_duration is not None and seconds < exact(rule.min_duration):
        raise FilteredError("min_duration", f"{float(seconds):.3f} s is less than {rule.min_duration:g} s")
    if rule.max_duration is not None and seconds > exact(rule.max_duration):
        raise FilteredError("max_duration", f"{float(seconds):.3f} s is more than {rule.max_duration:g} s")
    if rule.min_fps is not None and fps is not None and fps < exact(rule.min_fps):
        raise FilteredError("min_fps", f"{float(fps):.3f} frames a second is less than {rule.min_fps:g}")
