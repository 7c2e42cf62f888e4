"""Laws: leaving disposable frames out changes no other frame; so a clip is the same whether frames were left out or
not, in health and in damage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure
from pipeline.decode.bitstream.disposable import is_disposable, nal_length_size
from pipeline.errors import CorruptVideoError
from tests.decode.shared_set import HEAVY, linear, manifest, names, read, same, small
from tests.videos import make_video

X264 = "keyint=60:min-keyint=60:scenecut=0:threads=1:"
STREAMS: dict[str, dict[str, Any]] = {
    "B-frames as references, too": {"codec_options": {"x264-params": X264 + "bframes=5:b-pyramid=normal"}},
    "B-frames as references never": {"codec_options": {"x264-params": X264 + "bframes=3:b-pyramid=none"}},
    "open GOPs": {"codec_options": {"x264-params": X264 + "bframes=3:open-gop=1"}},
    "slices": {"codec_options": {"x264-params": X264 + "bframes=3:slices=4"}},
    "high 4:4:4": {"pix_fmt": "yuv444p", "bframes": 3},
    "matroska": {"container": "matroska", "bframes": 3, "time_base": Fraction(1, 1000)},
}
GRID = [
    DecodeSpec(num_frames=num, fps=Fraction(fps), height=96, width=128, start=Fraction(start, 24))
    for num, fps, start in ((5, 3, 0), (4, 5, 11), (9, 8, 30), (2, 1, 50), (3, 8, 108))
]


def packets(data: bytes) -> Iterator[tuple[Any, int | None]]:
    """Packets of the video with the size of their lengths."""
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        assert stream is not None
        size = nal_length_size(stream)
        for packet in container.demux(stream):
            yield packet, size


def decoded(data: bytes, *, whole: bool) -> dict[int, bytes]:
    """Frames by timestamp: of every packet, or of those that are not disposable."""
    frames = {}
    for packet, size in packets(data):
        if whole or not packet.size or size is None or not is_disposable(packet, size):
            frames.update({frame.pts: frame.to_ndarray(format="gray").tobytes() for frame in packet.decode()})
    return frames


@pytest.mark.parametrize("name", STREAMS)
def test_nothing_is_predicted_from_a_disposable_frame(name: str) -> None:
    data = make_video(num_frames=120, **STREAMS[name])
    every, rest = decoded(data, whole=True), decoded(data, whole=False)
    assert len(every) == 120
    assert 20 < len(rest) < 100
    assert all(every[pts] == frame for pts, frame in rest.items())


@pytest.mark.parametrize("name", STREAMS)
def test_leaving_frames_out_changes_no_clip_and_saves_decoding(name: str) -> None:
    data = make_video(num_frames=120, **STREAMS[name])
    expected = linear(data, GRID)
    together = list(iter_clips(data, GRID))
    alone = [next(iter_clips(data, [spec])) for spec in GRID]
    assert all(map(same, expected, together))
    assert all(map(same, expected, alone))
    first = decode_clip(data, GRID[0])
    assert isinstance(expected[0], DecodedClip)
    assert first.stats.frames_decoded < expected[0].stats.frames_decoded


@pytest.mark.parametrize("name", [name for name in names() if name not in HEAVY])
def test_real_files_give_the_same_clips(shared: Path, name: str) -> None:
    data = read(shared, name)
    if not manifest(shared)[name].get("frames_decoded"):
        pytest.skip("holds no frame")
    timeline = measure(data)
    specs = [
        small(num, fps, start=timeline.duration * Fraction(k, 7)) for k in range(7) for num, fps in ((3, 4), (2, 9))
    ]
    assert all(map(same, linear(data, specs), iter_clips(data, specs)))


@pytest.mark.parametrize("name", ["moviepy__smpte-2997.mp4", "torchcodec__nasa_13013.mp4"])
def test_real_files_hold_disposable_frames(shared: Path, name: str) -> None:
    found = [
        size is not None and packet.size > 0 and is_disposable(packet, size)
        for packet, size in packets(read(shared, name))
    ]
    assert sum(found) > len(found) // 10


def test_the_loss_of_a_disposable_frame_costs_the_clips_that_want_it_alone() -> None:
    """Whether it is noticed (all frames are decoded) or not (it was left out), the others are as they should be."""
    data = make_video(num_frames=120, **STREAMS["B-frames as references never"])
    whole = linear(data, GRID)
    lost = [p for p, size in packets(data) if size and p.size and is_disposable(p, size)]
    wanted = {ticks for clip in whole if isinstance(clip, DecodedClip) for ticks in clip.ticks}
    needless = next(p for p in lost if p.pts not in wanted and p.pts > 0)
    needed = next(p for p in lost if p.pts in wanted and p.pts > 0)
    broken = spoil(data, needless)
    assert decode_clip(broken, small(100, None, on_error="skip", short="truncate")).stats.errors > 0
    assert all(map(same, whole, linear(broken, GRID)))
    assert all(map(same, whole, iter_clips(broken, GRID)))
    broken = spoil(data, needed)
    results = list(iter_clips(broken, GRID))
    for before, noticed, result in zip(whole, linear(broken, GRID), results, strict=True):
        assert isinstance(before, DecodedClip)
        assert same(noticed, result)
        assert isinstance(result, CorruptVideoError) if needed.pts in before.ticks else same(before, result)


def spoil(data: bytes, packet: Any) -> bytes:
    """The file with a packet's slices unreadable, and their headers as they were."""
    body = bytearray(bytes(packet))
    offset = 0
    while offset < len(body):
        size = int.from_bytes(body[offset : offset + 4])
        body[offset + 5 : offset + 4 + size] = b"\xff" * (size - 1)
        offset += 4 + size
    at = data.index(bytes(packet))
    return data[:at] + bytes(body) + data[at + len(body) :]


@pytest.mark.parametrize(
    "made",
    [
        {"codec_options": {"x264-params": "bframes=3:interlaced=1"}},
        {"container": "mpegts"},
        {"codec": "mpeg4"},
        {"codec": "libx265"},
    ],
)
def test_where_it_cannot_be_told_nothing_is_left_out(made: dict[str, Any]) -> None:
    assert {size for _, size in packets(make_video(num_frames=12, **made))} == {None}


def test_a_clip_at_its_limit_of_frames_is_refused_all_the_same() -> None:
    data = make_video(num_frames=120, bframes=3)
    for limit in range(20, 30):
        spec = replace(GRID[0], num_frames=4, max_decoded_frames=limit)
        assert all(map(same, linear(data, [spec]), iter_clips(data, [spec])))


class Context:
    name = "h264"

    def __init__(self, extradata: bytes) -> None:
        self.extradata = extradata


class Stream:
    def __init__(self, extradata: bytes) -> None:
        self.codec_context = Context(extradata)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_get_an_answer(extradata: bytes, packet: bytes) -> None:
    assert nal_length_size(Stream(b"\1" + extradata)) in (None, 1, 2, 3, 4)
    assert is_disposable(packet, 4) in (True, False)
