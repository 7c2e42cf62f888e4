"""H.264 need not say how far it reorders its frames. None is lost for that, and none is shown in another's place.

FFmpeg takes what it has seen so far for the truth: with frames in order at first and B-frames later, it gives out the
first P-frame that B-frames precede at once, and drops those of them that should have been shown before.
"""

from __future__ import annotations

import io
import re
from fractions import Fraction
from typing import Any

import av
import pytest

from pipeline.decode import DecodeSpec, decode_clip, iter_clips
from tests.videos import make_video, read_number

IN_ORDER = 24
"""Frames without B-frames: more than FFmpeg's trial decode looks at."""
REORDERED = 24
GAP = 10
"""Seconds between the two."""


def clip_spec(num_frames: int, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": None, "height": 96, "width": 128} | changes))


@pytest.fixture(scope="module")
def video() -> bytes:
    """Frames 0 to 23 in order, then, ten seconds later, 0 to 23 with a pyramid of B-frames."""
    parts = [
        make_video(num_frames=IN_ORDER, container="mpegts", bframes=0, gop=48),
        make_video(
            num_frames=REORDERED,
            container="mpegts",
            codec_options={"x264-params": "keyint=48:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal:ref=4:threads=1"},
        ),
    ]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as out:
        stream = None
        for number, part in enumerate(parts):
            with av.open(io.BytesIO(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        out.mux(_silent(packet, stream, number * GAP * 90_000))
    return buffer.getvalue()


def test_the_decoder_by_itself_loses_a_frame(video: bytes) -> None:
    with av.open(io.BytesIO(video)) as container:
        container.streams.video[0].thread_type = "NONE"
        assert sum(1 for _ in container.decode(video=0)) < IN_ORDER + REORDERED


def test_no_frame_is_lost(video: bytes) -> None:
    clip = decode_clip(video, clip_spec(IN_ORDER + REORDERED))
    assert [read_number(frame) for frame in clip.frames] == [*range(IN_ORDER), *range(REORDERED)]
    assert not any(clip.repaired)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
@pytest.mark.parametrize("fps", [None, Fraction(24)])
def test_a_clip_is_the_same_wherever_it_ends(video: bytes, num_frames: int, fps: Fraction | None) -> None:
    """Also where it ends between a frame that came too early and the one that shows it."""
    times = decode_clip(video, clip_spec(IN_ORDER + REORDERED)).timestamps
    starts = [time - times[0] for time in times[IN_ORDER : len(times) - num_frames + 1]]
    specs = [clip_spec(num_frames, start=start, fps=fps) for start in starts]
    for first, (spec, together) in enumerate(zip(specs, iter_clips(video, specs), strict=True)):
        for clip in (together, decode_clip(video, spec)):
            assert not isinstance(clip, Exception)
            assert [read_number(frame) for frame in clip.frames] == [*range(first, first + num_frames)]


def _silent(packet: Any, stream: Any, shift: int) -> Any:
    """The packet, later by `shift`, with parameter sets that say nothing of reordering."""
    units = re.sub(
        rb"(?<=\x00\x00\x01)[\x67\x27].+?(?=\x00\x00\x01|\x00\x00\x00\x01)",
        lambda found: _without_usability(found[0]),
        bytes(packet),
        flags=re.DOTALL,
    )
    changed = av.Packet(units)
    changed.pts, changed.dts, changed.time_base = packet.pts + shift, packet.dts + shift, packet.time_base
    changed.is_keyframe, changed.stream = packet.is_keyframe, stream
    return changed


def _without_usability(unit: bytes) -> bytes:
    """An H.264 sequence parameter set (7.3.2.1.1 of the specification) without its usability information (VUI)."""
    bits = _Bits(re.sub(rb"\x00\x00\x03(?=[\x00-\x03])", b"\0\0", unit))
    bits.fixed(8)  # the header of the unit
    profile = bits.fixed(8)
    bits.fixed(16)
    bits.golomb()
    if profile >= 100:
        assert bits.golomb() == 1, "4:2:0"
        bits.golombs(2)
        assert bits.fixed(2) == 0, "no bypass, no scaling matrices"
    bits.golomb()
    if bits.golomb() == 0:  # pic_order_cnt_type
        bits.golomb()
    bits.golomb()
    bits.fixed(1)
    bits.golombs(2)
    assert bits.fixed(1), "no fields"
    bits.fixed(1)
    if bits.fixed(1):  # frame_cropping_flag
        bits.golombs(4)
    kept = bits.text[: bits.at] + "0" + "1"  # vui_parameters_present_flag, rbsp_stop_one_bit
    kept += "0" * (-len(kept) % 8)
    raw = bytes(int(kept[at : at + 8], 2) for at in range(0, len(kept), 8))
    return re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\0\0\3", raw)


class _Bits:
    """Reads fixed and Exp-Golomb codes."""

    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def fixed(self, length: int) -> int:
        self.at += length
        return int(self.text[self.at - length : self.at], 2)

    def golomb(self) -> int:
        num_zeros = self.text.index("1", self.at) - self.at
        self.at += num_zeros
        return self.fixed(num_zeros + 1) - 1

    def golombs(self, count: int) -> None:
        for _ in range(count):
            self.golomb()
