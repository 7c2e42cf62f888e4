"""One clip in the making: which pictures it takes, and whether they may be taken."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.decode.clip import DecodedClip, DecodeStats
from pipeline.decode.graph import Converter, FrameKind, drops_alpha, frame_kind, placement
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.spec import DecodeSpec
from pipeline.errors import CorruptVideoError, FilteredError, HdrError, LimitExceededError, VideoError

_HDR_TRANSFERS = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}


class ClipBuilder:
    """Collects one spec's frames from pictures that come in presentation order."""

    def __init__(self, spec: DecodeSpec, stream: Any, origin: int) -> None:
        self.spec = spec
        self._codec: str = stream.codec_context.name
        self._base: Fraction = stream.time_base
        self._origin = origin
        self._drops_alpha = drops_alpha(stream)
        self.result: DecodedClip | VideoError | None = None
        self.first = origin + math.ceil(spec.start / self._base)
        if spec.fps is not None:
            self.first = self.need(0)
        self._converters: dict[FrameKind, Converter] = {}
        self._frames: np.ndarray | None = None
        self.restart()

    def need(self, i: int) -> int:
        """Ticks that frame i stands for. Not with native frames, which are counted."""
        return self._origin + math.floor(self.spec.target(i) / self._base)

    def restart(self) -> None:
        """Forget every picture, unless there is a result: the pass begins again."""
        if self.result is not None:
            return
        self._done = 0
        self._seen = 0
        self._since = self.first - 1
        self._span = 0
        self._ticks: list[int] = []
        self._repaired: list[bool] = []
        self._kinds: list[FrameKind] = []
        self._clean: Picture | None = None

    def fail(self, error: VideoError) -> None:
        self.result = error
        self._frames = None

    def offer(self, shown: Picture, until: int, reader: PictureReader) -> None:
        """Take `shown`, which is on screen from its own ticks up to `until` (exclusive), where it is wanted."""
        if self.result is not None or self.is_complete:
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
                while not self.is_complete and shown.ticks <= (need := self.need(self._done)) < until:
                    self._take(shown, need, reader)
            if self._done and not self.is_complete:
                self._span += 1
                if self._span > self.spec.max_decoded_frames:
                    raise LimitExceededError(
                        f"the clip spans more source frames than max_decoded_frames={self.spec.max_decoded_frames}"
                    )
        except VideoError as error:
            self.fail(error)

    def hold(self, last: Picture, reader: PictureReader) -> None:
        """Fill the rest with the video's last picture."""
        try:
            while not self.is_complete and self.result is None:
                self._take(self._clean or last, last.ticks, reader)
        except VideoError as error:
            self.fail(error)

    @property
    def is_complete(self) -> bool:
        return self._done == self.spec.num_frames

    @property
    def num_done(self) -> int:
        return self._done

    def _offer_native(self, shown: Picture, reader: PictureReader) -> None:
        if shown.ticks < self.first:
            return
        # A frame lost since the last one, or since `start`, would shift every later one by a place.
        self._check_hole(self._since, shown.ticks, reader)
        self._since = shown.ticks
        self._seen += 1
        if self._seen > self.spec.offset:
            self._take(shown, shown.ticks, reader)

    def _take(self, shown: Picture, need: int, reader: PictureReader) -> None:
        """Make `shown` the next frame, standing for the time `need`."""
        self._check_health(shown, need, reader)
        is_repeat = bool(self._ticks) and self._ticks[-1] == shown.ticks
        kind = self._kinds[-1] if is_repeat else frame_kind(shown.frame, shown.sar, drops_alpha=self._drops_alpha)
        if self.spec.hdr == "reject" and kind.color_trc in _HDR_TRANSFERS:
            raise HdrError(f"the picture is HDR: {_HDR_TRANSFERS[kind.color_trc]}")
        out = self._row()
        if is_repeat:
            out[:] = self._frames_so_far()[-1]
        else:
            self._convert(shown, kind, out)
        self._done += 1
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
        """Refuse the clip if a frame that belongs after `since`, up to and including `until`, was lost."""
        if self.spec.on_error == "raise" and reader.hole_between(since, until):
            raise CorruptVideoError(
                f"the frame {self._at(until)}, or one just before it, is damaged: {reader.first_error}"
            )

    def _at(self, ticks: int) -> str:
        return f"at {float((ticks - self._origin) * self._base):.3f} s"

    def _convert(self, shown: Picture, kind: FrameKind, out: np.ndarray) -> None:
        spec = self.spec
        size = (spec.height, spec.width, spec.fit, spec.crop, spec.autorotate, spec.square_pixels)
        key = (*size, spec.filter, spec.untagged_colorspace, spec.deinterlace)
        if key in shown.converted:
            out[:] = shown.converted[key]
            return
        if kind not in self._converters:
            self._converters[kind] = Converter(kind, spec)
        self._converters[kind].into(shown.frame, out)
        shown.converted[key] = out

    def _row(self) -> Any:
        if self._frames is None:
            spec = self.spec
            self._frames = np.empty((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        return self._frames[self._done]

    def _frames_so_far(self) -> np.ndarray:
        assert self._frames is not None
        return self._frames[: self._done]

    def finish(self, stats: DecodeStats) -> None:
        """Turn what was collected into the result, or into what the spec's filters make of it."""
        if self.result is not None:
            return
        assert self._frames is not None
        runs: list[tuple[int, FrameKind, list[int], list[int]]] = []
        for i, kind in enumerate(replace(kind, is_interlaced=False) for kind in self._kinds):
            if not runs or runs[-1][1] != kind:
                where = placement(kind, self.spec)
                runs.append((self.spec.offset + i, kind, where.crop.as_list(), where.placed.as_list()))
        clip = DecodedClip(
            spec=self.spec,
            frames=self._frames if self.is_complete else self._frames_so_far().copy(),
            ticks=tuple(self._ticks),
            time_base=self._base,
            origin=self._origin,
            repaired=tuple(self._repaired),
            interlaced=tuple(k.is_interlaced for k in self._kinds),
            kinds=tuple(runs),
            codec=self._codec,
            stats=stats,
        )
        self._frames = None
        try:
            _filter(clip)
        except VideoError as error:
            self.fail(error)
        else:
            self.result = clip


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
