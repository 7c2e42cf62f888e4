"""Packets into pictures: decoded frames in presentation order, each with an exact time and a verdict on its health.

Errors are caught packet by packet, so what follows a damaged packet still comes out. What was lost is remembered:
a picture that was predicted from it, or that would be shown in its place, is not what the file meant to show.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any

import av
from av.video.frame import PictureType

from pipeline.decode.clock import FrameClock, packet_ticks
from pipeline.decode.disposable import is_disposable, nal_length_size
from pipeline.decode.geometry import pixel_aspect
from pipeline.decode.opening import Feed
from pipeline.errors import UnsupportedCodecError

_MAX_BARREN_ERRORS = 100
"""Damaged packets in a row, with no frame between, after which the rest counts as undecodable."""
_MAX_DEMUX_ERRORS = 8
_MAX_DEMUX_ERRORS_IN_ALL = 1000
"""Faults of the demuxer in a row, and in all, after which the file counts as over."""
_MAX_REORDERED = 32
"""Packets that may come between a frame and those shown before it: the 16 frames of H.264, as fields."""

_MPEG = {"mpeg1video", "mpeg2video", "mpeg4"}
_ASPECT_IN_STREAM = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "vvc"}
"""Containers that say nothing of a pixel's shape: what the stream says holds, and may change, as in broadcasts."""


@dataclass(slots=True, eq=False)
class Picture:
    """One decoded frame."""

    frame: Any
    ticks: int
    """Presentation time in the stream's time base, repaired so that it strictly increases."""
    repaired: bool
    """The timestamp was missing or did not increase."""
    tainted: bool
    """Predicted, as far as can be told, from a packet that was lost."""
    sar: Fraction
    """Sample aspect ratio: a pixel's width by its height."""
    converted: dict[Any, Any] = field(default_factory=dict)
    """Outputs by geometry: clips that overlap convert a frame once."""

    @property
    def corrupt(self) -> bool:
        """The decoder itself flags the frame."""
        return bool(self.frame.is_corrupt)


@dataclass(slots=True)
class _Damage:
    """A packet that was lost, or gave a frame that the decoder flags."""

    order: int
    """Its place in decoding order."""
    ticks: int | None
    """When its frame should have been shown; None if a frame is there, or nobody knows."""
    spreads: bool
    """Other frames may be predicted from it."""


class PictureReader:
    """Pictures of one stream of an open container, from where it stands; `seek` moves it.

    Not thread-safe. `damage_between` and the counters refer to what was read since the last seek or the start.
    """

    def __init__(self, container: Any, stream: Any, feed: Feed) -> None:
        self._container = container
        self._stream = stream
        self._feed = feed
        self.frames_decoded = 0
        self.errors = 0
        self.first_error: str | None = None
        self.is_cut = False
        """The demuxer ran into a fault: the file goes on by its own account, but can't be read."""
        self.unwanted: frozenset[int] = frozenset()
        """Timestamps of frames that need not come."""
        self.skipped: set[int] = set()
        """Those of them that were left out, as nothing is predicted from them."""
        self._length_size = nal_length_size(stream)
        self._aspects: list[tuple[int, Fraction]] = []
        self._aspect_changes = container.format.name in _ASPECT_IN_STREAM
        self.clock = FrameClock(container, stream)
        self._reset()

    def _reset(self) -> None:
        self._ahead: deque[Any] = deque()
        self.clock.reset()
        self._fed: list[int] = []
        self._orders: dict[int, tuple[int, bool]] = {}
        self._order = 0
        self._damage: list[_Damage] = []
        self._keyframes: list[tuple[int, int]] = []
        if self._aspect_changes:
            self._aspects.clear()
        self._barren = 0
        self._demux_errors = 0

    def seek(self, ticks: int) -> None:
        """Go to the keyframe at or before `ticks`, by the container's own account, which may be wrong."""
        self._container.seek(ticks, stream=self._stream, backward=True, any_frame=False)
        self._reset()

    def pictures(self) -> Iterator[Picture]:
        """Pictures in presentation order until the end of the file."""
        self._packets = self.packets()
        while (packet := self._ahead.popleft() if self._ahead else next(self._packets, None)) is not None:
            is_flush = packet.size == 0 and packet.pts is None and packet.dts is None
            if packet.size == 0 and not is_flush:
                continue  # the frame before stays, as AVI and Theora say it
            if not is_flush:
                disposable = self._is_disposable(packet)
                if disposable and packet.pts in self.unwanted:
                    self.skipped.add(packet.pts)
                    continue
                self._submit(packet, disposable)
            try:
                frames = packet.decode()
            except av.error.DecoderNotFoundError as error:
                raise UnsupportedCodecError(f"no decoder: {error}") from None
            except (av.FFmpegError, ValueError) as error:
                self._feed.check()
                self._lose(packet, error)
                if self._barren > _MAX_BARREN_ERRORS:
                    return
                continue
            if self._aspect_changes:
                self._note_aspect()
            for frame in frames:
                self.frames_decoded += 1
                self._barren = 0
                yield self._picture(frame)

    def packets(self, *, every_stream: bool = False) -> Iterator[Any]:
        """Packets of the stream, or of all. A demuxer's error does not end them, unless it persists."""
        faults = 0
        wanted = () if every_stream else (self._stream,)
        while True:
            try:
                for packet in self._container.demux(*wanted):
                    self._feed.check()
                    yield packet
                    faults = 0
            except IndexError:
                # A stream that no header announced: PyAV has no object for it. The packet is not ours; go on.
                continue
            except (av.FFmpegError, ValueError) as error:
                self._feed.check()
                self._note(error)
                self.is_cut = True
                faults += 1
                self._demux_errors += 1
                if faults >= _MAX_DEMUX_ERRORS or self._demux_errors >= _MAX_DEMUX_ERRORS_IN_ALL:
                    return
                continue
            self._feed.check()
            return

    def is_late_ahead(self) -> bool:
        """Whether a packet is still to come whose frame should have been shown before the last picture."""
        self._ahead.extend(islice(self._packets, _MAX_REORDERED - len(self._ahead)))
        return any(self.clock.would_be_late(packet) and packet.pts not in self.unwanted for packet in self._ahead)

    def hole_between(self, ticks: int, until: int) -> bool:
        """Whether a frame that was lost should have been shown after `ticks`, up to and including `until`."""
        return any(d.ticks is not None and ticks < d.ticks <= until for d in self._damage)

    def lost_after(self, ticks: int) -> bool:
        """Whether a frame later than `ticks` was lost: at the end of a file, that it ends too early."""
        return any(d.ticks is not None and d.ticks > ticks for d in self._damage)

    @property
    def can_skip(self) -> bool:
        """Whether `unwanted` has any effect."""
        return self._length_size is not None

    @property
    def has_damage(self) -> bool:
        return bool(self._damage) or self.is_cut

    def _is_disposable(self, packet: Any) -> bool:
        return self._length_size is not None and not packet.is_discard and is_disposable(packet, self._length_size)

    def _submit(self, packet: Any, disposable: bool) -> None:
        self._order += 1
        if packet.is_discard:
            return
        self.clock.submit(packet)
        if (ticks := packet_ticks(packet)) is None:
            return
        self._orders[ticks] = (self._order, disposable)
        heapq.heappush(self._fed, ticks)
        if packet.is_keyframe:
            self._keyframes.append((self._order, ticks))

    def _lose(self, packet: Any, error: Exception) -> None:
        self._note(error)
        self._barren += 1
        if not packet.is_discard:
            self.clock.lose(packet)
            self._damage.append(_Damage(self._order, packet_ticks(packet), spreads=not self._is_disposable(packet)))

    def _note(self, error: Exception) -> None:
        self.errors += 1
        if self.first_error is None:
            self.first_error = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"

    def _picture(self, frame: Any) -> Picture:
        ticks = self.clock.time_of(frame)
        order, disposable = self._orders.get(ticks if frame.pts is None else frame.pts, (self._order, False))
        tainted = self._is_tainted(order, ticks)
        if frame.is_corrupt and not disposable and not self._is_never_referred_to(frame):
            self._damage.append(_Damage(order, None, spreads=True))
        while self._fed and self._fed[0] <= ticks:
            self._orders.pop(heapq.heappop(self._fed), None)
        repaired = frame.pts != ticks
        return Picture(frame=frame, ticks=ticks, repaired=repaired, tainted=tainted, sar=self._aspect_of(order))

    def _note_aspect(self) -> None:
        """Remember the aspect that the decoder knows now, by the place in decoding order from which on it holds."""
        by_container = None if self._aspect_changes else self._stream.sample_aspect_ratio
        aspect = pixel_aspect(by_container, self._stream.codec_context.sample_aspect_ratio)
        if not self._aspects or self._aspects[-1][1] != aspect:
            self._aspects.append((self._order, aspect))

    def _aspect_of(self, order: int) -> Fraction:
        if not self._aspects:
            self._note_aspect()
        return next((aspect for since, aspect in reversed(self._aspects) if since <= order), self._aspects[0][1])

    def _is_never_referred_to(self, frame: Any) -> bool:
        """Whether nothing is predicted from the frame: a B-frame before H.264 came."""
        return frame.pict_type == PictureType.B and self._stream.codec_context.name in _MPEG

    def _is_tainted(self, order: int, ticks: int) -> bool:
        """Whether damage precedes this frame in decoding order, with no keyframe between that both orders agree on."""
        if not self._damage:
            return False
        before = [d.order for d in self._damage if d.order < order and d.spreads]
        if not before:
            return False
        return not any(max(before) < key_order <= order and key <= ticks for key_order, key in self._keyframes)
