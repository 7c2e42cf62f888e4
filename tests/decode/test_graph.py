"""Laws: the graph's detour by planar RGB changes no byte, and the pixels used are those of the stated window.

Whatever the frame's format, size, matrix and range.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import av
import av.filter
import numpy as np
import pytest

from pipeline.decode import DecodeSpec
from pipeline.decode.geometry import Box
from pipeline.decode.graph import Converter, filters, frame_kind, placement

SPEC = DecodeSpec(num_frames=1, fps=None, height=2, width=2, fit="stretch")
FORMATS = [
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuvj420p",
    "yuvj444p",
    "nv12",
    "yuyv422",
    "yuv420p10le",
    "yuv422p10le",
    "yuv444p16le",
    "yuva444p16le",
    "gray",
    "gray10le",
    "rgb24",
    "rgba",
    "bgr24",
    "gbrp",
    "gbrp10le",
    "rgb48le",
    "pal8",
]
SIZES = [(96, 64, 48, 32), (97, 63, 50, 30), (64, 48, 64, 48), (64, 48, 162, 98)]
"""Source and output: halved, odd, as it is, enlarged."""
TAGS = [(2, 0), (1, 1), (5, 2), (9, 1)]
"""Matrix and range: unspecified, BT.709 limited, BT.601 full, BT.2020 limited."""


def noise(pix_fmt: str, width: int, height: int, tags: tuple[int, int]) -> Any:
    """A frame of random samples."""
    frame = av.VideoFrame(width, height, pix_fmt)
    rng = np.random.default_rng(0)
    bits = max(component.bits for component in frame.format.components)
    for plane in frame.planes:
        wide = rng.integers(0, 1 << bits, plane.buffer_size // 2, np.uint16)
        plane.update(wide if bits > 8 else rng.bytes(plane.buffer_size))
    is_rgb = pix_fmt.startswith(("rgb", "bgr", "gbr", "pal"))
    frame.colorspace, frame.color_range = (0, tags[1]) if is_rgb else tags
    return frame


def straight(frame: Any, spec: DecodeSpec) -> np.ndarray:
    """Scaled to packed RGB in one step."""
    kind = frame_kind(frame, Fraction(1))
    graph = av.filter.Graph()
    graph.threads = 1
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    nodes = [graph.add("buffer", f"{size}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}")]
    chain = filters(kind, spec, placement(kind, spec))
    nodes += [graph.add(name, arguments) for name, arguments in chain if arguments != "pix_fmts=gbrp"]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes)
    graph.configure()
    graph.vpush(frame)
    return np.asarray(graph.vpull().to_ndarray())


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_by_way_of_planar_rgb_the_bytes_are_the_same(pix_fmt: str) -> None:
    for (width, height, out_width, out_height), tags in product(SIZES, TAGS):
        frame = noise(pix_fmt, width, height, tags)
        for name in ("bicubic", "lanczos", "area", "bilinear"):
            spec = replace(SPEC, height=out_height, width=out_width, filter=name)
            ours = np.empty((out_height, out_width, 3), np.uint8)
            Converter(frame_kind(frame, Fraction(1)), spec).into(frame, ours)
            may_differ = name in ("area", "bilinear") and out_height > height
            assert np.abs(ours.astype(int) - straight(frame, spec)).max() <= may_differ


def window(frame: Any, box: Box) -> Any:
    """The part of a planar frame within `box`, cut out plane by plane."""
    part = av.VideoFrame(box.width, box.height, frame.format.name)
    item = 2 if frame.format.components[0].bits > 8 else 1
    for number, (source, target) in enumerate(zip(frame.planes, part.planes, strict=True)):
        across, down = (source.width, source.height) if number else (frame.width, frame.height)
        step_x, step_y = -(-frame.width // across), -(-frame.height // down)
        assert (box.x % step_x, box.y % step_y) == (0, 0), "the window begins within a chroma sample"
        x, y = box.x // step_x, box.y // step_y
        lines = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)
        cut = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
        cut[: target.height, : target.width * item] = lines[y : y + target.height, x * item : (x + target.width) * item]
        target.update(cut.tobytes())
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    return part


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv440p", "yuv444p", "yuv411p", "yuv410p", "yuv420p10le"])
def test_the_pixels_used_are_those_of_the_stated_window(pix_fmt: str) -> None:
    sources, outputs = [(161, 108), (161, 161), (162, 107)], [(64, 96), (96, 64), (100, 30)]
    positions = [(0.5, 0.5), (1.0, 1.0), (0.3, 0.7)]
    for (width, height), (out_width, out_height), crop in product(sources, outputs, positions):
        frame = noise(pix_fmt, width, height, (1, 1))
        spec = replace(SPEC, width=out_width, height=out_height, fit="cover", crop=crop)
        converter = Converter(frame_kind(frame, Fraction(1)), spec)
        ours, wanted = np.empty((2, out_height, out_width, 3), np.uint8)
        converter.into(frame, ours)
        part = window(frame, converter.placement.crop)
        Converter(frame_kind(part, Fraction(1)), replace(spec, fit="stretch")).into(part, wanted)
        assert np.array_equal(ours, wanted)
