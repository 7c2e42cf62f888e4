"""VideoInfo: the facts in the headers of a video, and the probe that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.decode.geometry import UPRIGHT, pixel_aspect
from pipeline.decode.graph import FrameKind, frame_kind
from pipeline.decode.opening import Feed, Source, choose_stream, discard_others, open_container, open_feed
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


def probe(src: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> VideoInfo:
    """Read the headers of `src`, and the first frame unless the headers give more than `max_pixels`.

    Raises:
        OpenError, NoVideoStreamError, UnsupportedCodecError, UnsupportedEditsError
        OSError: any error of the storage.
    """
    with open_feed(src) as feed, open_container(feed, with_trial=False) as container:
        stream = choose_stream(container, feed)
        discard_others(container, stream)
        kind = _header_kind(stream)
        if kind.width * kind.height <= max_pixels:
            kind = _first_kind(container, stream, feed) or kind
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


def _first_kind(container: Any, stream: Any, feed: Feed) -> FrameKind | None:
    for picture in PictureReader(container, stream, feed).pictures():
        return frame_kind(picture.frame, picture.sar)
    return None


def _duration(container: Any, stream: Any) -> Fraction | None:
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    return Fraction(container.duration, 1_000_000) if container.duration else None
