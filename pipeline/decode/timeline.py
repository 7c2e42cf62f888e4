"""Timeline: the presentation times of a video's frames, from its packets, without decoding."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av

from pipeline.decode.bitstream.extent import breaks_off
from pipeline.decode.bitstream.invisible import is_invisible
from pipeline.decode.clock import nominal_step, one_on, packet_ticks, rounded_from, uses_ranked_times, with_untimed
from pipeline.decode.first_clean import first_shown
from pipeline.decode.frame_times import FrameTimes, Rate
from pipeline.decode.leading import Lead
from pipeline.decode.opening import Feed, Source, choose_stream, open_container, open_feed
from pipeline.decode.reader import PictureReader
from pipeline.decode.spec import Times
from pipeline.errors import LimitExceededError, NoFramesError

_HONEST_DURATION = {"matroska", "flv"}
"""Containers whose header states the duration. MPEG streams estimate it from the bit rate; in MP4 edit lists change its
meaning, and in AVI FFmpeg computes it from the file size, but both state the number of frames."""
_MPEG_STREAMS = {"mpegts", "mpeg"}
"""Containers in which a packet marked as corrupt follows a gap; in others, it was cut by the end of the file."""
_SLACK_SECONDS, _SLACK_SHARE = Fraction(1, 2), Fraction(1, 50)
"""How much shorter than the header's duration all streams may be before the file counts as truncated."""
_AVI_CHUNK = 8
"""Least bytes of a frame. A header with more frames than fit was written before: FFmpeg to a pipe says 2**30."""
_MAX_FRAMES = 4_000_000
"""Limit: 37 hours at 30 frames per second. Measuring takes 270 bytes of memory per frame: 1.1 GB at this limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Presentation times of the chosen video stream. Times are seconds after the first presentable frame; `times` turns
    ticks into them."""

    time_base: Fraction
    """Seconds per tick."""
    ticks: tuple[int, ...]
    """Presentation timestamps, ascending, without frames that an edit list drops."""
    keyframes: tuple[int, ...]
    """Timestamps of keyframes, ascending."""
    end: int
    """Ticks at which the last frame ends."""
    step: int
    """Median distance between neighbouring timestamps."""
    synthetic: bool
    """Whether the packets have no timestamps, and these are computed from the nominal frame rate."""
    is_trusted: bool
    """Whether timestamps are complete, unique and consistent with decoding order. If not, frames are found by decoding
    from the start, and their number and duration are estimates."""
    is_truncated: bool
    """Whether the file ends before the end that its header or container states."""
    promised: Fraction
    """Duration in seconds according to the header; never less than `duration`."""
    rate: Rate | None = None
    """The rate from which the timestamps were rounded; None: they are exact."""

    @property
    def origin(self) -> int:
        """Timestamp of the first presentable frame, according to the packets."""
        return self.ticks[0]

    @property
    def num_frames(self) -> int:
        return len(self.ticks)

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's start to the last one's end."""
        return self.times.time(self.end)

    @property
    def times(self) -> FrameTimes:
        return FrameTimes(self.time_base, self.origin, self.rate)

    @property
    def fps(self) -> Fraction | None:
        """Average frames per second; None for a single frame."""
        if len(self.ticks) < 2:
            return None
        return (len(self.ticks) - 1) / self.time(-1)

    def time(self, index: int) -> Fraction:
        """Return the time of frame `index`, in seconds after the first frame."""
        return self.times.time(self.ticks[index])

    def shown_at(self, ticks: int) -> int:
        """Return the timestamp of the frame that is on screen at `ticks`; before the first frame, the first one's."""
        return self.ticks[max(bisect_right(self.ticks, ticks) - 1, 0)]

    def num_between(self, first: int, last: int) -> int:
        """Return how many frames are on screen at some time from `first` to `last`."""
        return bisect_right(self.ticks, last) - bisect_right(self.ticks, first) + 1

    def keyframe_before(self, ticks: int) -> int | None:
        """Return the timestamp of the last keyframe at or before `ticks`."""
        index = bisect_right(self.keyframes, ticks)
        return self.keyframes[index - 1] if index else None


def measure(src: Source, times: Times = "exact") -> Timeline:
    """Read every packet of `src` and return its Timeline. Costs I/O and about 10 us per packet.

    Raises:
        UnreadableError, NoVideoStreamError, UnsupportedCodecError, UnsupportedEditsError
        NoFramesError: the video stream has no packet.
        LimitExceededError: it has too many frames to remember the times of.
        OSError: as the storage raised it.
    """
    with open_feed(src) as feed:
        return measure_feed(feed, times)


def measure_feed(feed: Feed, times: Times) -> Timeline:
    """Measure a source that is already open; another container may read it at the same time."""
    with open_container(feed, with_trial=False) as container:
        tally = _Tally(container, choose_stream(container, feed), feed, times)
        return tally.timeline(None if tally.begins_complete else first_shown(feed, times))


class _Tally:
    def __init__(self, container: Any, stream: Any, feed: Feed, times: Times) -> None:
        self.container, self.stream, self.feed = container, stream, feed
        self.is_exact = times == "exact"
        self.shown: list[tuple[int | None, int]] = []
        self.restarts: list[int] = []
        self.keyframes: list[int] = []
        self.first_key: tuple[int, int] | None = None
        self.num_packets = self.num_untimed = 0
        self.is_ranked = uses_ranked_times(container, stream)
        self.first_out: int | None = None
        """With ranked times: the time of the packet whose submission gives the first frame."""
        self.ends: dict[int, int] = {}
        """End of each stream, in its ticks."""
        reader = PictureReader(container, stream, feed, times)
        last_dts: int | None = None
        lead: Lead | None = None
        is_short = False
        for packet in reader.packets(every_stream=len(container.streams) > 1):  # a file is as long as its longest
            if packet.dts is None and packet.pts is None and packet.size == 0:
                continue
            is_short = bool(packet.is_corrupt)
            self._note_end(packet)
            if packet.stream_index != stream.index:
                continue
            self.num_packets += 1
            if is_invisible(packet, stream):
                continue
            if packet.dts is not None:
                if last_dts is not None and packet.dts <= last_dts:
                    self.restarts.append(len(self.shown))
                last_dts = packet.dts
            ticks = packet_ticks(packet)
            self.num_untimed += packet.pts is None
            if packet.is_discard or (lead is not None and not self.restarts and lead.is_lost(packet, ticks)):
                continue
            if len(self.shown) == _MAX_FRAMES:
                raise LimitExceededError(f"the video has more than {_MAX_FRAMES} frames, which are the most supported")
            self.shown.append((ticks, int(packet.duration or 0)))
            if self.is_ranked and self.first_out is None and _gives_a_frame(packet):
                self.first_out = ticks
            if packet.is_keyframe and ticks is not None:
                self.keyframes.append(ticks)
                if self.first_key is None:
                    self.first_key = (len(self.shown) - 1, ticks)
                    if self.num_packets == 1 or container.format.name in _MPEG_STREAMS:
                        lead = Lead(packet, ticks, stream)
        is_found = container.format.name in _MPEG_STREAMS or (self.first_key is not None and self.first_key[0] == 0)
        self.begins_complete = not self.is_exact or (reader.beginning.is_held_back and is_found)
        self.is_cut = reader.is_cut or (is_short and container.format.name not in _MPEG_STREAMS)

    def timeline(self, begin: int | None) -> Timeline:  # without the frames before `begin`, in ticks
        if not self.shown:
            raise NoFramesError("the video stream holds no frame")
        synthetic = all(ticks is None for ticks, _ in self.shown)
        nominal = nominal_step(self.stream)
        if synthetic and self.is_exact:
            self.shown = [(None, nominal) for _ in self.shown]
        self._drop_before_first_keyframe()
        self._join_fields(nominal)
        shown = self._in_order_of_show(nominal)
        trusted = not (self.num_untimed or self.restarts or self.is_ranked)
        trusted &= len({t for t, _ in self.shown}) == len(shown)
        if begin is not None and not synthetic:
            shown = [(t, duration) for t, duration in shown if t >= begin] or shown[-1:]
        ticks = tuple(t for t, _ in shown)
        steps = sorted(b - a for a, b in pairwise(ticks))
        step = steps[len(steps) // 2] if steps else nominal
        end = ticks[-1] + (shown[-1][1] or step)
        promised, truncated = self._promise(end)
        base = Fraction(self.stream.time_base)
        end = end if truncated else max(end, math.floor(promised / base))
        rate = rounded_from(ticks, self.container, self.stream) if self.is_exact else None
        times = FrameTimes(base, ticks[0], rate)
        end = times.end(end)
        duration = times.time(end)
        return Timeline(
            time_base=base,
            ticks=ticks,
            keyframes=tuple(sorted(self.keyframes)),
            end=end,
            step=step,
            synthetic=synthetic,
            is_trusted=trusted,
            is_truncated=truncated,
            promised=max(promised - ticks[0] * base, duration) if truncated else duration,
            rate=rate,
        )

    def _drop_before_first_keyframe(self) -> None:
        """Drop the packets before the first keyframe of a recording that was cut at its beginning.

        Only for MPEG streams: their keyframes are found by the parser, not by the container, and the decoders of H.264,
        HEVC and MPEG-2 output nothing before the first one.
        """
        if self.container.format.name in _MPEG_STREAMS and not self.restarts and self.first_key is not None:
            self.shown = self.shown[self.first_key[0] :]

    def _join_fields(self, nominal: int) -> None:
        """Count two fields in separate packets, as AVCHD cameras write them, as one frame.

        In such a stream every second packet, in decoding order, is half a frame later than the previous one.
        """
        if self.container.format.name != "mpegts" or len(self.shown) % 2 or self.restarts:
            return
        firsts, seconds = self.shown[::2], self.shown[1::2]
        off = 1 if self.is_exact else 0  # half a frame is 1501 or 1502 ticks, where a frame is 3003
        pairs = zip(firsts, seconds, strict=True)
        if all(a and b and abs(2 * (b - a) - nominal) <= off for (a, _), (b, _) in pairs):
            self.shown = [(ticks, nominal if self.is_exact else 2 * duration) for ticks, duration in firsts]

    def _in_order_of_show(self, nominal: int) -> list[tuple[int, int]]:
        """Return (ticks, duration) as in decoding: ascending, plus one step where a clock is missing or restarts."""
        shown: list[tuple[int, int]] = []
        for start, stop in pairwise([0, *self.restarts, len(self.shown)]):
            told = list(with_untimed(self.shown[start:stop], nominal))
            times = [ticks for ticks, _ in told if ticks is not None]
            for ticks, duration in told:
                last = shown[-1][0] if shown else None
                if last is None:
                    ticks = ticks or 0
                elif ticks is None or ticks <= last:
                    later = bisect_right(times, last)
                    ticks = one_on(last, times[later] if later < len(times) else None, duration or nominal)
                shown.append((ticks, duration))
        if self.first_out is None:
            return shown
        num_early = sum(ticks < self.first_out for ticks, _ in shown)
        last = shown[-1][0]
        return shown[num_early:] + [(last + i * nominal, nominal) for i in range(1, num_early + 1)]

    def _note_end(self, packet: Any) -> None:
        if (ticks := packet_ticks(packet)) is not None:
            end = ticks + int(packet.duration or 0)
            self.ends[packet.stream_index] = max(self.ends.get(packet.stream_index, end), end)

    def _promise(self, end: int) -> tuple[Fraction, bool]:
        """Return the end of the video, in seconds, according to the header, and whether the file ends before it.

        If the file is complete and this end is later than the last packet, the last picture stays until this end.
        """
        seen = end * Fraction(self.stream.time_base)
        formats = set(self.container.format.name.split(","))
        promised = seen
        if self.container.duration and formats & _HONEST_DURATION:
            # Matroska counts from 0, not from the first frame; for a writer that does not, this requires too little.
            promised = max(seen, Fraction(self.container.duration, 1_000_000))
        slack = max(_SLACK_SECONDS, promised * _SLACK_SHARE)
        bases = {index: self.container.streams[index].time_base for index in self.ends}
        ends = [end * Fraction(bases[index]) for index, end in self.ends.items() if bases[index]]
        short = promised - max([seen, *ends]) > slack
        frames = self.stream.frames * Fraction(self.stream.time_base)
        if "avi" in formats and frames - seen > slack and self.stream.frames * _AVI_CHUNK <= self.feed.size:
            promised, short = frames, True
        if "mov" in formats and (num_listed := self._num_listed()) > self.num_packets:
            short = True
            promised = seen * num_listed / self.num_packets
        broken = breaks_off(self.feed, formats)
        if broken is False and "matroska" in formats and not self.is_cut:
            return (promised if short else seen), False
        truncated = self.is_cut or short or bool(broken)
        return (promised if truncated else seen), truncated

    def _num_listed(self) -> int:
        """Return the number of samples in the header of an MP4, within its edit list; 0 if fragments list them."""
        return min(int(self.stream.frames), len(self.stream.index_entries))


def _gives_a_frame(packet: Any) -> bool:
    try:
        return bool(packet.decode())
    except (av.FFmpegError, ValueError):
        return False
