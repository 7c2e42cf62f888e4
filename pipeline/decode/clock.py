"""When frames are shown: what packets say of it, and what is made of it where they say nothing, or nonsense."""

from __future__ import annotations

import heapq
from typing import Any


def packet_ticks(packet: Any) -> int | None:
    """A packet's presentation timestamp, or its decoding timestamp where the container has no other."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return None if ticks is None else int(ticks)


def nominal_step(stream: Any) -> int:
    """Ticks from one frame to the next by the header's frame rate; at least 1. For synthetic times and last frames."""
    rate = stream.guessed_rate or stream.average_rate
    if not rate or not stream.time_base:
        return 1
    step: int = round(1 / (rate * stream.time_base))
    return max(1, step)


def has_decoding_times_only(container: Any) -> bool:
    """Whether what libav gives for presentation times is made up: AVI has a place in a row for each packet, no more.

    With PyAV's `GENPTS` it is the next packet's place for H.264, which is wrong where frames were dropped in between.
    """
    return bool(container.format.name == "avi")


def uses_ranked_times(container: Any, stream: Any) -> bool:
    """Whether frames with decoding times only come out in another order than they went in."""
    return has_decoding_times_only(container) and bool(stream.codec_context.has_b_frames)


def one_on(last: int, following: int | None, step: int) -> int:
    """One step on from `last`, or half way to the next time that is known, if that is nearer."""
    if following is not None and following <= last + step:
        return max(last + 1, (last + following) // 2)
    return last + step


class FrameClock:
    """Times of decoded frames, strictly ascending, out of those of the packets that went in before."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._context = stream.codec_context
        self._is_ranked = uses_ranked_times(container, stream)
        self._is_unordered = "mov" in container.format.name.split(",")
        """So far every packet of this MP4 says that it is shown when it is decoded. With B-frames that cannot be, and
        its times are ranked, too."""
        self._step = nominal_step(stream)
        self.is_late = False
        """A packet came after a frame that is shown later than its own: the decoder did not wait long enough."""
        self.reset()

    def reset(self) -> None:
        """What comes next is somewhere else in the stream."""
        self._pending: list[int] = []
        self._num_untimed = 0
        self._last: int | None = None

    @property
    def is_ranked(self) -> bool:
        """The timestamps of frames are right as a multitude only: the k-th frame shown has the k-th smallest.

        In AVI, of those from the packet on that the first frame came out with: a player shows what comes out.
        """
        return self._is_ranked or (self._is_unordered and bool(self._context.has_b_frames))

    def submit(self, packet: Any) -> None:
        """A packet goes in whose frame is to be shown."""
        self._is_unordered &= packet.pts == packet.dts
        if (ticks := packet_ticks(packet)) is None:
            self._num_untimed += 1
            return
        self.is_late |= self.would_be_late(packet)
        heapq.heappush(self._pending, ticks)

    def would_be_late(self, packet: Any) -> bool:
        """Whether its frame is shown before one that has come out."""
        ticks = None if packet.is_discard else packet_ticks(packet)
        return ticks is not None and self._last is not None and ticks < self._last

    def lose(self, packet: Any) -> None:
        """That packet's frame will not come."""
        if (ticks := packet_ticks(packet)) is None:
            self._num_untimed -= 1
        elif ticks in self._pending:
            self._pending.remove(ticks)
            heapq.heapify(self._pending)

    def time_of(self, frame: Any) -> int:
        """When the next frame is shown: by its own timestamp, if it has one that is later than the last frame's."""
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
        """The time of a frame whose packet had none, or one that is past."""
        following = self._pending[0] if self._pending else None
        step = self._step if frame.interlaced_frame else int(frame.duration or self._step)  # of a field: half of it
        if self._last is None:
            return 0 if following is None else following - step
        return one_on(self._last, following, step)

    def _next_pending(self, own: int | None) -> int:
        """The smallest timestamp that was fed in and has not come out, else one step on."""
        if self._pending:
            return self._pending[0]
        if self._last is not None:
            return self._last + self._step
        return 0 if own is None else own

    def _forget_up_to(self, ticks: int | None) -> None:
        while ticks is not None and self._pending and self._pending[0] <= ticks:
            heapq.heappop(self._pending)
