"""Presentation times of frames: from the timestamps of packets, repaired where these are missing or wrong."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from pipeline.decode.frame_times import Rate, recover
from pipeline.decode.spec import Times


def packet_ticks(packet: Any) -> int | None:
    """Return a packet's presentation timestamp, or its decoding timestamp if the container has no other."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return None if ticks is None else int(ticks)


def nominal_step(stream: Any) -> int:
    """Return the ticks per frame by the header's frame rate, at least 1. For missing times and last frames."""
    rate = stream.guessed_rate or stream.average_rate
    if not rate or not stream.time_base:
        return 1
    step: int = round(1 / (rate * stream.time_base))
    return max(1, step)


def rounded_from(ticks: Sequence[int], container: Any, stream: Any) -> Rate | None:
    """Return the rate from which the ascending timestamps of a stream were rounded; None if they are exact.

    In an MPEG program stream mostly keyframes have times; FFmpeg puts each other frame a duration of whole ticks after
    the last one. Over a GOP that drifts by up to 1 ms.
    """
    base = Fraction(stream.time_base)
    drift = round(1 / (1000 * base)) if container.format.name == "mpeg" else 1
    rates = (stream.codec_context.framerate, stream.average_rate, stream.guessed_rate)
    return recover(ticks, base, [Fraction(rate) for rate in rates if rate], drift)


def has_decoding_times_only(container: Any) -> bool:
    """Return whether libav invents the presentation times. AVI gives only the position of each packet in a sequence.

    With PyAV's `GENPTS`, a time for H.264 is the position of the next packet, which is wrong after dropped frames.
    """
    return bool(container.format.name == "avi")


def has_invented_times(container: Any, stream: Any) -> bool:
    """Return whether libav makes up the times of a raw stream of MPEG-1 or H.263.

    It does so before it knows the frame rate and that frames are reordered, so the first ones may be a step apart from
    the rest. Every frame lasts one step there. MPEG-2 is not among them: its frames may last one and a half.
    """
    return container.format.name == "h263" or bool(
        container.format.name == "mpegvideo" and stream.codec_context.name == "mpeg1video"
    )


def uses_ranked_times(container: Any, stream: Any) -> bool:
    """Return whether frames have only decoding times and leave the decoder in another order than they enter it."""
    return has_decoding_times_only(container) and bool(stream.codec_context.has_b_frames)


def with_untimed(shown: Sequence[tuple[int | None, int]], nominal: int) -> Iterator[tuple[int | None, int]]:
    """Yield times in ascending order, with missing times put into gaps between them; the rest follow at the end."""
    timed = sorted((ticks, duration) for ticks, duration in shown if ticks is not None)
    untimed = [duration for ticks, duration in shown if ticks is None]
    for i, (ticks, duration) in enumerate(timed):
        yield ticks, duration
        if not untimed or i + 1 == len(timed):
            continue
        at, step = ticks, untimed[-1] or nominal
        while untimed and 2 * (timed[i + 1][0] - at) > 3 * step:
            at += step
            yield at, untimed.pop()
    yield from ((None, duration) for duration in untimed)


def one_on(last: int, following: int | None, step: int) -> int:
    """Return `last` plus one step, or half way to the next known time, if that is nearer."""
    if following is not None and following <= last + step:
        return max(last + 1, (last + following) // 2)
    return last + step


class FrameClock:
    """Give decoded frames strictly ascending times, from the times of the packets submitted before."""

    def __init__(self, container: Any, stream: Any, times: Times = "exact") -> None:
        self._context = stream.codec_context
        self._is_ranked = uses_ranked_times(container, stream)
        self._is_unordered = "mov" in container.format.name.split(",")
        """In every packet of this MP4 so far, presentation time equals decoding time. With B-frames that is impossible;
        its times are then ranked too."""
        self._step = nominal_step(stream)
        self._is_untimed = times == "exact"
        """Whether no packet has a timestamp so far. FFmpeg's durations are not used then: in raw H.264 and HEVC without
        a frame rate, they are one tick after the first 50 frames."""
        self.is_late = False
        """Whether a packet came after a frame with a later time: the decoder's reorder delay was too short."""
        self.reset()

    def reset(self) -> None:
        """Start again, because the next packet is from another position in the stream."""
        self._pending: list[int] = []
        self._num_untimed = 0
        self._last: int | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether timestamps are right only as a set: the k-th frame shown has the k-th smallest of them.

        In AVI, the set starts with the packet whose submission gave the first frame, as in players.
        """
        return self._is_ranked or (self._is_unordered and bool(self._context.has_b_frames))

    def submit(self, packet: Any) -> None:
        """Record a packet whose frame will be shown."""
        self._is_unordered &= packet.pts == packet.dts
        if (ticks := packet_ticks(packet)) is None:
            self._num_untimed += 1
            return
        self._is_untimed = False
        self.is_late |= self.would_be_late(packet)
        heapq.heappush(self._pending, ticks)

    def would_be_late(self, packet: Any) -> bool:
        """Return whether the packet's frame is earlier than a frame that was already given out."""
        ticks = None if packet.is_discard else packet_ticks(packet)
        return ticks is not None and self._last is not None and ticks < self._last

    def lose(self, packet: Any) -> None:
        """Record that no frame will come from this packet."""
        if (ticks := packet_ticks(packet)) is None:
            self._num_untimed -= 1
        elif ticks in self._pending:
            self._pending.remove(ticks)
            heapq.heapify(self._pending)

    def time_of(self, frame: Any) -> int:
        """Return the time of the next frame: its own timestamp, if it is later than the last frame's."""
        own = frame.pts
        self._forget_up_to(self._last)
        if self._is_ranked and self._last is None:
            self._pending = self._pending and [max(self._pending)]
        if self.is_ranked:
            ticks = self._next_pending(own)
        elif own is not None and (self._last is None or own > self._last):
            ticks = int(own)
        elif own is not None or self._num_untimed > 0:
            self._num_untimed -= own is None
            ticks = self._between(frame)
        else:
            ticks = self._next_pending(own)
        self._forget_up_to(ticks)
        self._last = ticks
        return ticks

    def _between(self, frame: Any) -> int:
        """Return the time of a frame whose packet has no timestamp, or one that is not later than the last frame's."""
        following = self._pending[0] if self._pending else None
        is_nominal = frame.interlaced_frame or self._is_untimed  # a field has half of it
        step = self._step if is_nominal else int(frame.duration or self._step)
        if self._last is None:
            return 0 if following is None else following - step
        return one_on(self._last, following, step)

    def _next_pending(self, own: int | None) -> int:
        """Return the smallest submitted timestamp that was not given out yet, else the last time plus one step."""
        if self._pending:
            return self._pending[0]
        if self._last is not None:
            return self._last + self._step
        return 0 if own is None else own

    def _forget_up_to(self, ticks: int | None) -> None:
        while ticks is not None and self._pending and self._pending[0] <= ticks:
            heapq.heappop(self._pending)
