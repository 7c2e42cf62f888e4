"""FFmpeg filter graphs, one per kind of frame: crop -> scale -> RGB -> turn upright. Only chosen frames are filtered.

The flags matter: without `full_chroma_int`, swscale's fast path darkens by 1.7 levels and shares chroma between pixel
pairs, 9 dB worse against a float reference (measured on 720p to 720x480). With it, swscale has vector code for planar
RGB only, so frames are converted to planar RGB first. The bytes are the same (except for upscaling with `bilinear` and
`area`, which may be off by one), in 2.4 ms instead of 6.1 for 1080p to 720x480, 1.3 instead of 3.9 for 720p.

A graph that gets a frame of another size silently continues with the wrong window, so graphs are keyed by every
property that they were built for.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EAGAIN
from fractions import Fraction
from typing import Any, Literal

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from pipeline.decode.geometry import UPRIGHT, Orientation, Picture, Placement, display_size, orientation, place
from pipeline.decode.spec import DecodeSpec
from pipeline.errors import CorruptVideoError, UnsupportedCodecError

_HD_LINES, _HD_COLUMNS = 720, 1280
_UNSPECIFIED = 2
_RESERVED = 3
_RGB = 0
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_SWSCALE_TRANSFERS = frozenset({1, 2, *range(4, 9), *range(11, 19)})
_SWSCALE_PRIMARIES = frozenset({1, 2, *range(4, 23)})
"""Values that swscale 9.5 accepts (each was tested); the others fail with "operation not supported"."""
_UNNAMED_SIDE_DATA = range(28, 40)
"""The first AVFrameSideDataType that PyAV 18's enumeration does not have."""
_TRANSPOSE = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
"""The `transpose` filter's `dir` by (hflip, vflip) after transposing."""

Alpha = Literal["black", "dropped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameKind:
    """The properties of a decoded frame that decide how it is converted, and that go into the row as facts."""

    width: int
    height: int
    pix_fmt: str
    colorspace: int
    color_range: int
    color_trc: int
    color_primaries: int
    sar: Fraction
    turn: Orientation
    is_interlaced: bool
    alpha: Alpha | None
    """How transparency is handled: the picture is composed on black, or treated as opaque."""

    @property
    def display_size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return display_size(self.width, self.height, self.sar, self.turn)

    @property
    def chroma(self) -> tuple[int, int]:
        """Number of pixels per chroma sample, horizontally and vertically."""
        samples = av.VideoFormat(self.pix_fmt)
        return 16 // samples.chroma_width(16), 16 // samples.chroma_height(16)


def drops_alpha(stream: Any) -> bool:
    """Return whether a video's transparency is ignored.

    In WebM it is stored beside the frames, and FFmpeg's decoders of VP8 and VP9 ignore it. In raw video the fourth byte
    is usually unused and zero; as transparency it would make the picture black.
    """
    context = stream.codec_context
    is_raw = context.name == "rawvideo" and context.pix_fmt is not None and _has_alpha(context.pix_fmt)
    return is_raw or stream.metadata.get("alpha_mode") == "1"


def frame_kind(frame: Any, sar: Fraction, *, drops_alpha: bool = False) -> FrameKind:
    """Return a frame's properties. `sar` is its sample aspect ratio, which PyAV's frames do not have."""
    alpha: Alpha | None = "black" if _has_alpha(frame.format.name) else None
    return FrameKind(
        width=frame.width,
        height=frame.height,
        pix_fmt=frame.format.name,
        colorspace=int(frame.colorspace),
        color_range=int(frame.color_range),
        color_trc=int(frame.color_trc),
        color_primaries=int(frame.color_primaries),
        sar=sar,
        turn=orientation(display_matrix(frame)),
        is_interlaced=bool(frame.interlaced_frame),
        alpha="dropped" if drops_alpha else alpha,
    )


def display_matrix(frame: Any) -> list[int] | None:
    """Return the frame's display matrix as 9 integers, or None.

    It does not use `frame.side_data`: the frame and the side data would reference each other, so decoded pictures stay
    in memory until garbage collection (measured at 1080p: 13.9 ms per frame instead of 11.9, mostly page faults).
    """
    side_data: Any = SideDataContainer  # whose stub has no constructor
    try:
        data = side_data(frame).get("DISPLAYMATRIX")
    except ValueError:
        data = side_data(_without_new_side_data(frame)).get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), dtype="<i4").tolist()


class Converter:
    """Convert frames of one kind to uint8 RGB of the size in one spec."""

    def __init__(self, kind: FrameKind, spec: DecodeSpec) -> None:
        self.placement = placement(kind, spec)
        self._kind, self._spec = kind, spec
        self._graph = self._new_graph()
        # The deinterlacer outputs a frame when it gets the next one, or at the end, so each frame has its own graph.
        self._is_one_way = _deinterlaces(kind, spec)

    def into(self, frame: Any, out: np.ndarray) -> None:
        """Convert `frame` into `out`, uint8 [height, width, 3]."""
        box = self.placement.placed
        try:
            self._graph.vpush(frame)
            if self._is_one_way:
                self._graph.vpush(None)
            rgb = self._graph.vpull()
        except (av.FFmpegError, BlockingIOError) as error:
            if getattr(error, "errno", None) == EAGAIN:
                raise AssertionError("the graph kept a frame back") from error
            raise CorruptVideoError(f"a frame could not be converted: {error}") from None
        plane = rgb.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        pixels = lines[: box.height, : box.width * 3].reshape(box.height, box.width, 3)
        if (box.width, box.height) != (out.shape[1], out.shape[0]):
            out[:] = 0
        out[box.y : box.y + box.height, box.x : box.x + box.width] = pixels
        if self._is_one_way:
            self._graph = self._new_graph()

    def _new_graph(self) -> Any:
        kind = self._kind
        try:
            return _build(kind, self._spec, self.placement)
        except (av.FFmpegError, ValueError) as error:
            raise UnsupportedCodecError(f"frames of {kind.pix_fmt}, {kind.width}x{kind.height}: {error}") from None


def placement(kind: FrameKind, spec: DecodeSpec) -> Placement:
    """Return the placement of a frame of `kind` in the output of `spec`."""
    source = Picture(
        size=(kind.width, kind.height),
        sar=kind.sar if spec.square_pixels else Fraction(1),
        turn=kind.turn if spec.autorotate else UPRIGHT,
        chroma=kind.chroma,
    )
    return place(source, (spec.width, spec.height), spec.fit, spec.crop)


def filters(kind: FrameKind, spec: DecodeSpec, where: Placement) -> list[tuple[str, str]]:
    """Return the graph between source and sink as (filter, arguments), as for `ffmpeg -vf`."""
    turn = kind.turn if spec.autorotate else UPRIGHT
    chain = []
    if unreadable := _unreadable_tags(kind):
        chain.append(("setparams", ":".join(f"{tag}=unknown" for tag in unreadable)))
    if _deinterlaces(kind, spec):
        chain.append(("estdif", "mode=frame:deint=interlaced"))
    crop = where.crop
    if (crop.width, crop.height) != (kind.width, kind.height):
        # Without `exact`, the filter rounds an odd window of subsampled chroma down.
        chain.append(("crop", f"{crop.width}:{crop.height}:{crop.x}:{crop.y}:exact=1"))
    chain += _scaled_rgb(kind, spec, where)
    if turn.transpose:
        chain.append(("transpose", f"dir={_TRANSPOSE[turn.hflip, turn.vflip]}"))
    else:
        chain += [("hflip", "")] * turn.hflip + [("vflip", "")] * turn.vflip
    return chain


def _scaled_rgb(kind: FrameKind, spec: DecodeSpec, where: Placement) -> list[tuple[str, str]]:
    """Scale and convert to packed RGB, in one step, or in two if swscale would be wrong."""
    flags = f"flags={spec.filter}+accurate_rnd+full_chroma_int"
    to_size = f"{where.scaled[0]}:{where.scaled[1]}:{flags}"
    matrix = ":in_color_matrix=bt709" if untagged_as(kind, spec) == "bt709" else ""
    if kind.alpha == "black":
        # swscale treats 0 as black in limited range too. So blend in RGB, and before hidden pixels are scaled in.
        to_rgba = [("scale", flags + matrix), ("format", "pix_fmts=gbrap")]
        steps = [*to_rgba, ("scale", f"{to_size}:alphablend=uniform_color")]
    elif _is_grey(kind) and kind.color_range == _LIMITED_RANGE:
        # swscale treats all grey as full range.
        as_full = [("scale", f"{to_size}:out_range=full"), ("format", f"pix_fmts=yuv444p{'10le' * _is_deep(kind)}")]
        steps = [*as_full, ("setparams", "range=limited"), ("scale", flags)]
    elif _is_deep(kind) and kind.color_range == _FULL_RANGE:
        # In the conversion to RGB, swscale treats 1023 of 10 bits as 1020: up to 0.8 of a level too bright.
        as_limited = [("scale", f"{to_size}:out_range=limited"), ("format", "pix_fmts=yuv444p10le")]
        steps = [*as_limited, ("scale", flags + matrix)]
    else:
        steps = [("scale", to_size + matrix)]
    return [*steps, ("format", "pix_fmts=gbrp"), ("format", "pix_fmts=rgb24")]


def untagged_as(kind: FrameKind, spec: DecodeSpec) -> Literal["bt601", "bt709"] | None:
    """Return the matrix for YUV without a matrix tag; None if there is a tag, and for RGB and grey."""
    samples = av.VideoFormat(kind.pix_fmt)
    is_yuv = not samples.is_rgb and len(samples.components) >= 3 and not kind.pix_fmt.startswith("xyz")
    if not is_yuv or _matrix(kind) != _UNSPECIFIED:
        return None
    match spec.untagged_colorspace:
        case "bt601" | "bt709" as given:
            return given
        case "ffmpeg":
            return "bt601"
        case "auto":
            return "bt709" if kind.height >= _HD_LINES else "bt601"
        case "by_size":
            return "bt709" if kind.height >= _HD_LINES or kind.width >= _HD_COLUMNS else "bt601"


def _build(kind: FrameKind, spec: DecodeSpec, where: Placement) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    # PyAV's add_buffer omits colour; libavfilter then negotiates it and warns about frames that differ.
    source = f"video_size={kind.width}x{kind.height}:pix_fmt={kind.pix_fmt}:time_base=1/1000:pixel_aspect=1/1"
    nodes = [graph.add("buffer", f"{source}:colorspace={_matrix(kind)}:range={kind.color_range}")]
    nodes += [graph.add(name, args or None) for name, args in filters(kind, spec, where)]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _without_new_side_data(frame: Any) -> Any:
    """Return the frame without side data types unknown to PyAV 18, which otherwise cannot list any side data.

    JPEG files with EXIF are the common case (type 31).
    """
    graph = av.filter.Graph()
    graph.threads = 1
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    drop = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in _UNNAMED_SIDE_DATA]
    graph.link_nodes(graph.add("buffer", size), *drop, graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()


def _is_grey(kind: FrameKind) -> bool:
    samples = av.VideoFormat(kind.pix_fmt)
    return len(samples.components) == 1 and not samples.has_palette


def _is_deep(kind: FrameKind) -> bool:
    """Return whether luma has more than 8 bits."""
    luma = av.VideoFormat(kind.pix_fmt).components[0]
    return bool(luma.is_luma and luma.bits > 8)


def _has_alpha(pix_fmt: str) -> bool:
    samples = av.VideoFormat(pix_fmt)
    return bool(samples.has_palette) or any(component.is_alpha for component in samples.components)


def _matrix(kind: FrameKind) -> int:
    """Return the YUV matrix. The reserved value 3, and "RGB" on a YUV format, count as unspecified."""
    samples = av.VideoFormat(kind.pix_fmt)
    is_rgb = samples.is_rgb or samples.has_palette
    return _UNSPECIFIED if kind.colorspace == _RESERVED or (kind.colorspace == _RGB and not is_rgb) else kind.colorspace


def _unreadable_tags(kind: FrameKind) -> list[str]:
    """Return tags that swscale rejects although the conversion does not use them: reserved values, log transfers."""
    tags = []
    if kind.colorspace != _matrix(kind):
        tags.append("colorspace")
    if kind.color_trc not in _SWSCALE_TRANSFERS:
        tags.append("color_trc")
    if kind.color_primaries not in _SWSCALE_PRIMARIES:
        tags.append("color_primaries")
    return tags


def _deinterlaces(kind: FrameKind, spec: DecodeSpec) -> bool:
    return spec.deinterlace == "spatial" and kind.is_interlaced
