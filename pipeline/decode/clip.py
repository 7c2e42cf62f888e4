"""DecodedClip: the frames of one clip, and the facts about their source frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.decode.frame_times import FrameTimes
from pipeline.decode.graph import FrameKind, untagged_as
from pipeline.decode.spec import DecodeSpec

_CHANGING = (
    *("width", "height", "display_width", "display_height", "sar", "rotation", "flipped"),
    *("pix_fmt", "colorspace", "color_range", "color_trc", "color_primaries"),
    *("untagged_as", "alpha", "crop", "placed"),
)
"""Facts that may change within a stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeStats:
    """The cost of decoding. It depends on the seeks, so it is never part of a row's facts."""

    frames_decoded: int
    seeks: int
    errors: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodedClip:
    """The frames of one DecodeSpec, and the facts about these frames."""

    spec: DecodeSpec
    frames: np.ndarray
    """uint8 [T, H, W, 3], C-contiguous, owned. T is `spec.num_frames`, or less with short="truncate"."""
    ticks: tuple[int, ...]
    """Timestamp of the source frame chosen for each frame, in ticks, on the stream's clock."""
    times: FrameTimes
    """Turns ticks into seconds."""
    repaired: tuple[bool, ...]
    """Per frame: whether its timestamp was missing or out of order, and is reconstructed."""
    interlaced: tuple[bool, ...]
    kinds: tuple[tuple[int, FrameKind, list[int], list[int]], ...]
    """Runs of equal frame properties: (clip frame, properties, crop box, placed box)."""
    codec: str
    stats: DecodeStats

    @property
    def timestamps(self) -> tuple[Fraction, ...]:
        """Exact time of the source frame of each frame, in seconds after the first presentable frame."""
        return tuple(self.times.time(ticks) for ticks in self.ticks)

    @property
    def seconds(self) -> np.ndarray:
        """`timestamps` as float64 [T]."""
        return np.array([float(t) for t in self.timestamps], np.float64)

    @property
    def target_times(self) -> tuple[Fraction, ...]:
        """The times of the grid, in seconds after the first presentable frame; for native frames, the timestamps."""
        if self.spec.fps is None:
            return self.timestamps
        return tuple(self.spec.target(i) for i in range(len(self.ticks)))

    @property
    def num_duplicates(self) -> int:
        """Number of frames that show the same source frame as the previous frame."""
        return sum(a == b for a, b in pairwise(self.ticks))

    @property
    def longest_hold(self) -> Fraction:
        """Largest difference between a time on the grid and the time of its source frame, in seconds."""
        return max(t - s for t, s in zip(self.target_times, self.timestamps, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return the facts about the source frames, as JSON types: enough to find the same pixels again."""
        _, kind, crop, placed = self.kinds[0]
        facts = {
            "codec": self.codec,
            **self._kind_facts(kind),
            "crop": crop,
            "placed": placed,
            "interlaced": any(self.interlaced),
            "first_frame": self.spec.offset,
            "time_base": str(self.times.base),
            "origin_ticks": self.times.origin,
            **({"rate": str(self.times.rate.per_second)} if self.times.rate else {}),
        }
        if len(self.kinds) > 1:
            facts["changes"] = [
                {"frame": frame, **self._kind_facts(kind), "crop": crop, "placed": placed}
                for frame, kind, crop, placed in self.kinds[1:]
            ]
        return facts

    def _kind_facts(self, kind: FrameKind) -> dict[str, Any]:
        display_width, display_height = kind.display_size
        return {
            "width": kind.width,
            "height": kind.height,
            "display_width": display_width,
            "display_height": display_height,
            "sar": f"{kind.sar.numerator}/{kind.sar.denominator}",
            "rotation": kind.turn.rotation,
            "flipped": kind.turn.flipped,
            "pix_fmt": kind.pix_fmt,
            "colorspace": kind.colorspace,
            "color_range": kind.color_range,
            "color_trc": kind.color_trc,
            "color_primaries": kind.color_primaries,
            **({"untagged_as": assumed} if (assumed := self._assumed(kind)) else {}),
            **({"alpha": kind.alpha} if kind.alpha else {}),
        }

    def _assumed(self, kind: FrameKind) -> str | None:
        """Return the matrix that was assumed, if any. Specs with `ffmpeg` or `auto` are older than this fact: None."""
        return None if self.spec.untagged_colorspace in ("ffmpeg", "auto") else untagged_as(kind, self.spec)


def merge_facts(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the facts of a clip's pieces, in order, into those of the clip decoded whole.

    Pieces may overlap; changes are counted by clip frame.
    """
    starts = [
        {"frame": piece["first_frame"], **{key: piece[key] for key in _CHANGING if key in piece}} for piece in pieces
    ]
    changes = {c["frame"]: c for piece in pieces for c in piece.get("changes", [])}
    states = sorted([*starts, *changes.values()], key=lambda state: int(state["frame"]))
    merged = {key: value for key, value in pieces[0].items() if key != "changes"}
    merged["interlaced"] = any(piece["interlaced"] for piece in pieces)
    kept = [b for a, b in pairwise(states) if any(a.get(key) != b.get(key) for key in _CHANGING)]
    if kept:
        merged["changes"] = kept
    return merged
