"""VideoInfo: the facts in the headers of a video, and the probe that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.decode.clock import rounded_from
from pipeline.decode.frame_times import Rate
from pipeline.decode.geometry import UPRIGHT, pixel_aspect
from pipeline.decode.graph import FrameKind, frame_kind
from pipeline.decode.opening import Source, choose_stream, discard_others, open_container, open_feed
from pipeline.decode.reader import PictureReader
from pipeline.decode.spec import DEFAULT_MAX_PIXELS


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """Header facts, plus the first frame's orientation and colour, which no header gives reliably."""

    container: str
    """FFmpeg's name of the format, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
    codec: str
    profile: str | None
    width: int
    height: int
    """As coded."""
    display_width: int
    display_height: int
    """Size as displayed: square pixels, upright."""
    sar: Fraction
    rotation: int
    """Degrees to turn the coded picture counter-clockwise, after mirroring it horizontally if `flipped`."""
    flipped: bool
    pix_fmt: str
    colorspace: int
    color_range: int
    color_trc: int
    color_primaries: int
    """Numbers of ISO/IEC 23091-2 (H.273); 2 is "unspecified". `color_range` is FFmpeg's: 1 limited, 2 full."""
    is_interlaced: bool
    is_image: bool
    """A still image: one frame, no clock."""
    size_bytes: int
    duration_from_header: Fraction | None
    """Duration in seconds according to the container, which may be wrong."""
    num_frames_from_header: int | None
    fps_from_header: Fraction | None
    """Only a hint: 1000/1 and 1/1 occur in ordinary 30 fps videos."""
    rate: Rate | None = None
    """The rate from which the first timestamps were rounded; None: they are exact, or `probe` did not look."""


def probe(src: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS, rate_until: Fraction | None = None) -> VideoInfo:
    """Read the headers of `src`, and the first frame unless the headers give more than `max_pixels`.

    With `rate_until`, also read the packets up to this time, in seconds, for `rate`. That costs about 3 us per packet.

    Raises:
        UnreadableError, NoVideoStreamError, UnsupportedCodecError, UnsupportedEditsError
        OSError: any error of the storage.
    """
    with open_feed(src) as feed, open_container(feed, with_trial=False) as container:
        stream = choose_stream(container, feed)
        discard_others(container, stream)
        kind = _header_kind(stream)
        reader = PictureReader(container, stream, feed)
        if rate_until is not None:
            reader.times_seen = []
        if kind.width * kind.height <= max_pixels:
            kind = _first_kind(reader) or kind
        display_width, display_height = kind.display_size
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            profile=stream.profile,
            width=kind.width,
            height=kind.height,
            display_width=display_width,
            display_height=display_height,
            sar=kind.sar,
            rotation=kind.turn.rotation,
            flipped=kind.turn.flipped,
            pix_fmt=kind.pix_fmt,
            colorspace=kind.colorspace,
            color_range=kind.color_range,
            color_trc=kind.color_trc,
            color_primaries=kind.color_primaries,
            is_interlaced=kind.is_interlaced,
            is_image=is_still(container.format.name),
            size_bytes=feed.size,
            duration_from_header=_duration(container, stream),
            num_frames_from_header=stream.frames or None,
            fps_from_header=Fraction(stream.guessed_rate) if stream.guessed_rate else None,
            rate=None if rate_until is None else _rate(reader, container, stream, rate_until),
        )


def is_still(format_name: str) -> bool:
    """Return whether a container format is a single image: jpeg_pipe, png_pipe, webp_pipe, image2, ..."""
    return format_name.endswith("_pipe") or format_name == "image2"


def _header_kind(stream: Any) -> FrameKind:
    context = stream.codec_context
    return FrameKind(
        width=int(context.width or 0),
        height=int(context.height or 0),
        pix_fmt=context.pix_fmt or "",
        colorspace=int(context.colorspace),
        color_range=int(context.color_range),
        color_trc=int(context.color_trc),
        color_primaries=int(context.color_primaries),
        sar=pixel_aspect(stream.sample_aspect_ratio),
        turn=UPRIGHT,
        is_interlaced=False,
        alpha=None,
    )


def _first_kind(reader: PictureReader) -> FrameKind | None:
    for picture in reader.pictures():
        return frame_kind(picture.frame, picture.sar)
    return None


def _rate(reader: PictureReader, container: Any, stream: Any, until: Fraction) -> Rate | None:
    """Return the rate of the frames up to `until`, in seconds. A frame is never decoded after it is shown."""
    seen = reader.times_seen
    assert seen is not None
    for packet in reader.rest():
        at = packet.dts if packet.dts is not None else packet.pts
        if seen and at is not None and (at - seen[0]) * stream.time_base > until:
            break
    return rounded_from(sorted(set(seen)), container, stream)


def _duration(container: Any, stream: Any) -> Fraction | None:
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    return Fraction(container.duration, 1_000_000) if container.duration else None
