"""ClipBuilder: collect the pictures of one clip, and check that they are undamaged and within the limits.

A clip converts pictures into its own array. If several clips are open at a time, as with clips that begin every few
frames, a picture is converted once, and the clips share it until they are handed out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.decode.clip import DecodedClip, DecodeStats
from pipeline.decode.frame_times import FrameTimes
from pipeline.decode.graph import Converter, FrameKind, drops_alpha, frame_kind, placement
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.spec import DecodeSpec
from pipeline.errors import CorruptVideoError, FilteredError, HdrError, LimitExceededError, VideoError

_HDR_TRANSFERS = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}


class ClipBuilder:
    """Collect the frames of one spec from pictures in presentation order."""

    def __init__(self, spec: DecodeSpec, stream: Any, origin: int) -> None:
        self.spec = spec
        self._codec: str = stream.codec_context.name
        self._times = FrameTimes(stream.time_base, origin, spec.rate)
        self._needed = -1, 0
        self._drops_alpha = drops_alpha(stream)
        self.shares = False
        """Whether its frames are shared with other clips. Set before the first frame is taken."""
        self._error: VideoError | None = None
        self._stats: DecodeStats | None = None
        self.first = self._times.first_from(spec.start) if spec.fps is None else self.need(0)
        self._converters: dict[FrameKind, Converter] = {}
        self.restart()
        if spec.output_bytes > spec.max_output_bytes:
            self.fail(LimitExceededError(f"{spec.output_bytes} bytes exceed max_output_bytes={spec.max_output_bytes}"))

    def need(self, i: int) -> int:
        """Return the time of frame i on the grid, in ticks. Not for native frames, which are counted."""
        if self._needed[0] != i:  # each picture asks for the same frame until it comes
            self._needed = i, self._times.last_by(self.spec.target(i))
        return self._needed[1]

    def restart(self) -> None:
        """Drop every picture, because the pass starts again."""
        self._frames: np.ndarray | None = None
        self._rows: list[np.ndarray] = []
        self._seen = 0
        self._since = self.first - 1
        self._span = 0
        self._ticks: list[int] = []
        self._repaired: list[bool] = []
        self._kinds: list[FrameKind] = []
        self._clean: Picture | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return self._error is not None or self._stats is not None

    def fail(self, error: VideoError) -> None:
        self._error = error
        self._frames = None
        self._rows.clear()

    def finish(self, stats: DecodeStats) -> None:
        """Make the collected frames the result."""
        self._stats = stats

    def offer(self, shown: Picture, until: int, reader: PictureReader) -> None:
        """Take `shown`, which is on screen from its ticks up to `until` (exclusive), for every frame that needs it."""
        if self.is_finished or self.is_complete:
            return
        try:
            if self.spec.on_error == "skip":
                if not shown.corrupt:
                    self._clean = shown
                elif self.spec.fps is None:
                    return
                shown = self._clean or shown
            if self.spec.fps is None:
                self._offer_native(shown, reader)
            else:
                while not self.is_complete and shown.ticks <= (need := self.need(self.num_done)) < until:
                    self._take(shown, need, reader)
            if self._rows and not self.is_complete:
                self._span += 1
                if self._span > self.spec.max_decoded_frames:
                    raise LimitExceededError(
                        f"the clip spans more source frames than max_decoded_frames={self.spec.max_decoded_frames}"
                    )
        except VideoError as error:
            self.fail(error)

    def hold(self, last: Picture, reader: PictureReader) -> None:
        """Fill the rest of the clip with the video's last picture."""
        try:
            while not self.is_complete and not self.is_finished:
                self._take(self._clean or last, last.ticks, reader)
        except VideoError as error:
            self.fail(error)

    @property
    def is_complete(self) -> bool:
        return self.num_done == self.spec.num_frames

    @property
    def num_done(self) -> int:
        return len(self._rows)

    def _offer_native(self, shown: Picture, reader: PictureReader) -> None:
        if shown.ticks < self.first:
            return
        # A frame lost since the last one, or since `start`, would shift every later frame by one.
        self._check_hole(self._since, shown.ticks, reader)
        self._since = shown.ticks
        self._seen += 1
        if self._seen > self.spec.offset:
            self._take(shown, shown.ticks, reader)

    def _take(self, shown: Picture, need: int, reader: PictureReader) -> None:
        """Make `shown` the next frame, for the time `need` on the grid."""
        self._check_health(shown, need, reader)
        is_repeat = bool(self._ticks) and self._ticks[-1] == shown.ticks
        kind = self._kinds[-1] if is_repeat else frame_kind(shown.frame, shown.sar, drops_alpha=self._drops_alpha)
        if self.spec.hdr == "reject" and kind.color_trc in _HDR_TRANSFERS:
            raise HdrError(f"the picture is HDR: {_HDR_TRANSFERS[kind.color_trc]}")
        self._rows.append(self._repeated() if is_repeat else self._converted(shown, kind))
        self._ticks.append(shown.ticks)
        self._repaired.append(shown.repaired)
        self._kinds.append(kind)

    def _check_health(self, shown: Picture, need: int, reader: PictureReader) -> None:
        if shown.corrupt:
            raise CorruptVideoError(f"the decoder flags the frame {self._at(need)} as corrupt")
        if shown.tainted and self.spec.on_error == "raise":
            cause = reader.first_error or "the decoder flags it"
            raise CorruptVideoError(f"the frame {self._at(need)} was predicted from a damaged one: {cause}")
        self._check_hole(shown.ticks, need, reader)
        width, height = shown.frame.width, shown.frame.height
        if width * height > self.spec.max_pixels:
            raise LimitExceededError(f"a frame of {width}x{height} exceeds max_pixels={self.spec.max_pixels}")

    def _check_hole(self, since: int, until: int, reader: PictureReader) -> None:
        """Reject the clip if a frame after `since`, up to and including `until`, was lost."""
        if self.spec.on_error == "raise" and reader.damage.hole_between(since, until):
            raise CorruptVideoError(
                f"the frame {self._at(until)}, or one just before it, is damaged: {reader.first_error}"
            )

    def _at(self, ticks: int) -> str:
        return f"at {float(self._times.time(ticks)):.3f} s"

    def _converted(self, shown: Picture, kind: FrameKind) -> np.ndarray:
        """Return the picture as a frame of this clip, uint8 [height, width, 3]."""
        spec = self.spec
        size = (spec.height, spec.width, spec.fit, spec.crop, spec.autorotate, spec.square_pixels)
        key = (*size, spec.filter, spec.untagged_colorspace, spec.deinterlace)
        known: np.ndarray | None = shown.converted.get(key)
        if known is not None and self.shares and known.base is None:
            return known
        row: np.ndarray = self._new_row()
        if known is not None:
            row[:] = known
        else:
            if kind not in self._converters:
                self._converters[kind] = Converter(kind, spec)
            self._converters[kind].into(shown.frame, row)
        shown.converted[key] = row
        return row

    def _repeated(self) -> np.ndarray:
        """Return the last frame again."""
        last = self._rows[-1]
        if self.shares:
            return last
        row: np.ndarray = self._new_row()
        row[:] = last
        return row

    def _new_row(self) -> Any:
        """Return memory for the next frame: a row of this clip's array, or an array of its own if frames are shared.

        A view would keep the whole array alive.
        """
        spec = self.spec
        if self.shares:
            return np.empty((spec.height, spec.width, 3), np.uint8)
        if self._frames is None:
            self._frames = np.empty((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        return self._frames[self.num_done]

    def result(self) -> DecodedClip | VideoError:
        """Return the clip or its error, after the spec's filters. Call it once: the frames are handed over."""
        if self._error is not None:
            return self._error
        frames = self._taken_frames()
        clip = self._clip(frames)
        try:
            _filter(clip)
        except VideoError as error:
            return error
        return clip

    def _taken_frames(self) -> np.ndarray:
        """Return the frames as an array that no other object references."""
        frames, rows = self._frames, self._rows
        self._frames, self._rows = None, []
        if frames is None:
            return np.stack(rows)
        return frames if len(rows) == len(frames) else frames[: len(rows)].copy()

    def _clip(self, frames: np.ndarray) -> DecodedClip:
        assert self._stats is not None
        runs: list[tuple[int, FrameKind, list[int], list[int]]] = []
        for i, kind in enumerate(replace(kind, is_interlaced=False) for kind in self._kinds):
            if not runs or runs[-1][1] != kind:
                where = placement(kind, self.spec)
                runs.append((self.spec.offset + i, kind, where.crop.as_list(), where.placed.as_list()))
        return DecodedClip(
            spec=self.spec,
            frames=frames,
            ticks=tuple(self._ticks),
            times=self._times,
            repaired=tuple(self._repaired),
            interlaced=tuple(k.is_interlaced for k in self._kinds),
            kinds=tuple(runs),
            codec=self._codec,
            stats=self._stats,
        )


def _filter(clip: DecodedClip) -> None:
    spec = clip.spec
    if spec.max_hold is not None and clip.longest_hold > spec.max_hold:
        raise FilteredError(
            "max_hold", f"one frame is held for {float(clip.longest_hold):.3f} s, more than {float(spec.max_hold):g} s"
        )
    if spec.min_motion is not None and len(clip.frames) > 1:
        small = clip.frames[:, ::4, ::4].astype(np.int16)
        motion = float(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)).max())
        if motion < spec.min_motion:
            raise FilteredError("static", f"no frame differs from the one before by {spec.min_motion:g} levels")
