"""Law: the graph's detour by planar RGB changes no byte, whatever the frame's format, size, matrix and range."""

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
from pipeline.decode.graph import Converter, frame_kind

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
    graph = av.filter.Graph()
    graph.threads = 1
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    nodes = [
        graph.add("buffer", f"{size}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"),
        graph.add("scale", f"{spec.width}:{spec.height}:flags={spec.filter}+accurate_rnd+full_chroma_int"),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ]
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
