"""PictureReader: packets to decoded frames in presentation order, each with its exact time and whether it is damaged.

Errors are caught per packet, so frames after a damaged packet are still decoded. Lost packets are remembered, because a
picture that was predicted from one, or is shown in its place, is not the picture that the file was meant to show.
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

from pipeline.decode.beginning import Beginning
from pipeline.decode.bitstream.disposable import is_disposable, nal_length_size
from pipeline.decode.bitstream.invisible import is_invisible
from pipeline.decode.clock import FrameClock, has_decoding_times_only, has_invented_times, packet_ticks
from pipeline.decode.damage import Damage, Place
from pipeline.decode.geometry import pixel_aspect
from pipeline.decode.opening import Feed
from pipeline.decode.spec import Times
from pipeline.errors import UnsupportedCodecError

_MAX_BARREN_ERRORS = 100
"""Damaged packets in a row, without a frame between them and including keyframes, after which the rest counts as
undecodable. Keyframes are required: a recording cut just after one begins with hundreds of packets that lack it."""
_MAX_BARREN_KEYFRAMES = 1
_MAX_DEMUX_ERRORS = 8
_MAX_DEMUX_ERRORS_IN_ALL = 1000
"""Faults of the demuxer in a row, and in total, after which the file counts as ended."""
_MAX_REORDERED = 32
"""Packets that may come between a frame and the frames shown before it: the 16 frames of H.264, as fields."""

_PREDICTED = {PictureType.P, PictureType.B}
_MPEG = {"mpeg1video", "mpeg2video", "mpeg4"}
_BARE = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "vvc"}
"""Containers in which the stream itself marks keyframes and gives the pixel aspect ratio, which may change, as in
broadcasts."""


@dataclass(slots=True, eq=False)
class Picture:
    """One decoded frame."""

    frame: Any
    ticks: int
    """Presentation time in the stream's time base, repaired so that it strictly increases."""
    repaired: bool
    """Whether the timestamp was missing or did not increase."""
    tainted: bool
    """Whether it was predicted, as far as is known, from a lost packet."""
    complete: bool
    """Whether it needs no earlier frame, as far as the file tells; see `beginning`."""
    sar: Fraction
    """Sample aspect ratio: width / height of a pixel."""
    converted: dict[Any, Any] = field(default_factory=dict)
    """Converted frames by geometry, so that overlapping clips convert a frame once."""

    @property
    def corrupt(self) -> bool:
        """Whether the decoder flags the frame as corrupt."""
        return bool(self.frame.is_corrupt)


class PictureReader:
    """Read the pictures of one stream of an open container, from its current position; `seek` moves it.

    Not thread-safe. `damage` and the counters cover everything since the last seek or the start.
    """

    def __init__(self, container: Any, stream: Any, feed: Feed, times: Times = "exact") -> None:
        self._container = container
        self._has_invented_times = times == "exact" and has_invented_times(container, stream)
        self._stream = stream
        self._feed = feed
        self.frames_decoded = 0
        self.errors = 0
        self.first_error: str | None = None
        self.is_cut = False
        """Whether the demuxer failed before the end of the file."""
        self.unwanted: frozenset[int] = frozenset()
        """Timestamps of frames that may be skipped."""
        self.skipped: set[int] = set()
        """Timestamps of frames that were skipped, because no frame is predicted from them."""
        self._length_size = nal_length_size(stream)
        self._aspects: list[tuple[int, Fraction]] = []
        self._is_bare = container.format.name in _BARE
        self._lacks_pts = has_decoding_times_only(container)
        self.clock = FrameClock(container, stream, times)
        self.beginning = Beginning(container, stream, times)
        self._packets: Iterator[Any] | None = None
        self.times_seen: list[int] | None = None
        """If a list, the timestamps of the packets that were read and show a frame."""
        self._reset()

    def _reset(self) -> None:
        self._ahead: deque[Any] = deque()
        self.clock.reset()
        self._fed: list[int] = []
        self._places: dict[int, Place] = {}
        self._order = 0
        self.damage = Damage()
        if self._is_bare:
            self._aspects.clear()
        self._barren = self._barren_keyframes = 0
        self._demux_errors = 0
        self._follows_unseen = False
        """Whether a keyframe was decoded that an edit list hides: what follows needs no earlier frame."""

    def seek(self, ticks: int) -> None:
        """Go to the keyframe at or before `ticks` according to the container, which may be wrong."""
        self._container.seek(ticks, stream=self._stream, backward=True, any_frame=False)
        self._reset()

    def pictures(self) -> Iterator[Picture]:
        """Yield pictures in presentation order until the end of the file."""
        packets = self._packets = self.packets()
        while (packet := self._ahead.popleft() if self._ahead else next(packets, None)) is not None:
            is_flush = packet.size == 0 and packet.pts is None and packet.dts is None
            if packet.size == 0 and not is_flush:
                continue  # in AVI and Theora this means that the previous frame stays
            if not is_flush:
                disposable = self._is_disposable(packet)
                if disposable and packet.pts in self.unwanted:
                    self.skipped.add(packet.pts)
                    continue
                place = self._submit(packet, disposable)
            else:
                place = Place(self._order)
            try:
                frames = packet.decode()
            except av.error.DecoderNotFoundError as error:
                raise UnsupportedCodecError(f"no decoder: {error}") from None
            except (av.FFmpegError, ValueError) as error:
                self._feed.check()
                self._lose(packet, place, error)
                if self._barren > _MAX_BARREN_ERRORS and self._barren_keyframes > _MAX_BARREN_KEYFRAMES:
                    return
                continue
            if self._is_bare:
                self._note_aspect()
            for frame in frames:
                self.frames_decoded += 1
                self._barren = self._barren_keyframes = 0
                yield self._picture(frame)

    def rest(self) -> Iterator[Any]:
        """Yield the packets that `pictures` has not read."""
        return self.packets() if self._packets is None else self._packets

    def packets(self, *, every_stream: bool = False) -> Iterator[Any]:
        """Yield packets of the stream, or of all streams. They end at an error of the demuxer only if it persists."""
        faults = 0
        wanted = () if every_stream else (self._stream,)
        while True:
            try:
                for packet in self._container.demux(*wanted):
                    self._feed.check()
                    if self._lacks_pts and packet.stream_index == self._stream.index:
                        packet.pts = packet.dts
                    if self._has_invented_times:
                        packet.pts = packet.dts = None
                    if self.times_seen is not None and self._has_shown_time(packet):
                        self.times_seen.append(packet.pts)
                    yield packet
                    faults = 0
            except IndexError:
                # A packet of a stream that is in no header: PyAV has no object for it. It is not our stream.
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

    def _has_shown_time(self, packet: Any) -> bool:
        is_shown = packet.size and not packet.is_discard and not is_invisible(packet, self._stream)
        return bool(packet.pts is not None and is_shown)

    def is_late_ahead(self) -> bool:
        """Return whether a later packet has a frame that should have been shown before the last picture."""
        self._ahead.extend(islice(self.rest(), _MAX_REORDERED - len(self._ahead)))
        return any(self.clock.would_be_late(packet) and packet.pts not in self.unwanted for packet in self._ahead)

    @property
    def lacks_keyframe(self) -> bool:
        """Return whether every packet was lost, and none of them was a keyframe."""
        return self._is_bare and self._lost_all and not self._barren_keyframes

    @property
    def can_skip(self) -> bool:
        """Whether `unwanted` has any effect."""
        return self._length_size is not None

    @property
    def has_damage(self) -> bool:
        return bool(self.damage) or self.is_cut

    def _is_disposable(self, packet: Any) -> bool:
        return self._length_size is not None and not packet.is_discard and is_disposable(packet, self._length_size)

    def _submit(self, packet: Any, disposable: bool) -> Place:
        if packet.is_keyframe and self._order and self._lost_all:
            self._begin_anew()
        self._order += 1
        is_keyframe = self.beginning.is_keyframe(packet)
        if packet.is_discard:
            self._follows_unseen |= self.beginning.is_complete_unseen(packet)
            return Place(self._order)
        self.clock.submit(packet)
        if (ticks := packet_ticks(packet)) is None:
            return Place(self._order, disposable, is_keyframe)
        place = Place(self._order, disposable, is_keyframe)
        place = self._places[ticks] = self.damage.follow(packet, place, ticks)
        heapq.heappush(self._fed, ticks)
        return place

    def _begin_anew(self) -> None:
        """Treat this keyframe as the first packet, because all before it were lost, as in a cut recording.

        Otherwise the HEVC decoder expects that the keyframe's leading frames can be decoded, and raises for each.
        """
        self._stream.codec_context.flush_buffers()
        self.damage.forget()
        self.first_error = None

    @property
    def _lost_all(self) -> bool:
        return self._barren >= self._order

    def _lose(self, packet: Any, place: Place, error: Exception) -> None:
        self._note(error)
        self._barren += 1
        self._barren_keyframes += packet.is_keyframe
        if not packet.is_discard:
            self.clock.lose(packet)
            self.damage.lose(place, packet_ticks(packet))

    def _note(self, error: Exception) -> None:
        self.errors += 1
        if self.first_error is None:
            self.first_error = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"

    def _picture(self, frame: Any) -> Picture:
        ticks = self.clock.time_of(frame)
        place = self._places.get(ticks if frame.pts is None else frame.pts, Place(self._order))
        if place.keyframe and frame.pict_type in _PREDICTED:
            self.damage.refuse_keyframe(place)
        tainted = self.damage.reaches(place.order, ticks)
        if frame.is_corrupt and not place.disposable and not self._is_never_referred_to(frame):
            self.damage.flag(place)
        while self._fed and self._fed[0] <= ticks:
            self._places.pop(heapq.heappop(self._fed), None)
        return Picture(
            frame=frame,
            ticks=ticks,
            repaired=frame.pts != ticks,
            tainted=tainted,
            complete=self._follows_unseen or self.beginning.is_complete(frame, is_keyframe=place.keyframe),
            sar=self._aspect_of(place.order),
        )

    def _note_aspect(self) -> None:
        """Store the decoder's current pixel aspect ratio, with the place in decoding order from which it is valid."""
        by_container = None if self._is_bare else self._stream.sample_aspect_ratio
        aspect = pixel_aspect(by_container, self._stream.codec_context.sample_aspect_ratio)
        if not self._aspects or self._aspects[-1][1] != aspect:
            self._aspects.append((self._order, aspect))

    def _aspect_of(self, order: int) -> Fraction:
        if not self._aspects:
            self._note_aspect()
        return next((aspect for since, aspect in reversed(self._aspects) if since <= order), self._aspects[0][1])

    def _is_never_referred_to(self, frame: Any) -> bool:
        """Return whether no frame is predicted from it: a B-frame of a codec older than H.264."""
        return frame.pict_type == PictureType.B and self._stream.codec_context.name in _MPEG
