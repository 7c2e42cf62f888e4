"""Edit lists of MP4 and MOV: plain ones show each frame when a viewer sees it, all others are refused by name."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, probe
from pipeline.decode.bitstream.edits import check_edits
from pipeline.decode.opening import Feed
from pipeline.errors import TruncatedVideoError, UnsupportedEditsError
from pipeline.records import REASONS
from tests.videos import make_video, read_number

Edit = tuple[int, int, float]
"""(milliseconds, where the media starts in ticks or -1, rate)"""
SECOND, EMPTY = 15_000, -1
REORDERED, IN_ORDER = 1000, 0
"""Ticks of the first frame with two B-frames and with none."""


def spec(num_frames: int, fps: int | None = 8, **changes: Any) -> DecodeSpec:
    rate = None if fps is None else Fraction(fps)
    return DecodeSpec(**({"num_frames": num_frames, "fps": rate, "height": 96, "width": 128} | changes))


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


@pytest.fixture(scope="module")
def reordered() -> bytes:
    """Three seconds at 30 frames a second, with B-frames and sound."""
    return make_video(num_frames=90, fps=30, time_base=Fraction(1, SECOND), audio_seconds=3)


@pytest.fixture(scope="module")
def in_order() -> bytes:
    return make_video(num_frames=90, fps=30, time_base=Fraction(1, SECOND), bframes=0, container="mov")


def with_edits(data: bytes, edits: Sequence[Edit], *, track: int = 0, version: int = 0) -> bytes:
    """The file with another edit list in one of its tracks."""
    assert data.index(b"mdat") < data.index(b"moov"), "the media would move"
    layout = ">QqI" if version else ">IiI"
    entries = b"".join(struct.pack(layout, ms, start, round(rate * 65536)) for ms, start, rate in edits)
    trak, edts = (nth(data, kind, track) for kind in (b"trak", b"edts"))
    old = int.from_bytes(data[edts : edts + 4])
    new = box(b"edts", box(b"elst", struct.pack(">B3xI", version, len(edits)) + entries))
    changed = bytearray(data[:edts] + new + data[edts + old :])
    for at in (nth(data, b"moov", 0), trak):
        changed[at : at + 4] = (int.from_bytes(data[at : at + 4]) + len(new) - old).to_bytes(4)
    return bytes(changed)


def nth(data: bytes, kind: bytes, number: int) -> int:
    """Where the box of that kind begins, by its place in the file."""
    at = data.index(b"moov")
    for _ in range(number + 1):
        at = data.index(kind, at) + 4
    return at - 8


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


REFUSED: dict[str, list[Edit]] = {
    "a pause in the middle": [(1000, REORDERED, 1), (500, EMPTY, 1), (2000, REORDERED + SECOND, 1)],
    "a pause at the end": [(1000, REORDERED, 1), (500, EMPTY, 1)],
    "two pieces that meet": [(1000, REORDERED, 1), (2000, REORDERED + SECOND, 1)],
    "a piece twice": [(1000, REORDERED, 1), (1000, REORDERED, 1)],
    "a later piece first": [(1000, REORDERED + SECOND, 1), (1000, REORDERED, 1)],
    "twice as fast": [(1500, REORDERED, 2)],
    "slower after a delay": [(100, EMPTY, 1), (6000, REORDERED, 0.5)],
    "a frame that stands": [(3000, REORDERED, 0)],
}


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_a_list_of_which_ffmpeg_makes_wrong_times_is_refused(reordered: bytes, name: str, version: int) -> None:
    data = with_edits(reordered, REFUSED[name], version=version)
    for look in (probe, measure, lambda src: decode_clip(src, spec(8))):
        with pytest.raises(UnsupportedEditsError, match="edit list of track 1"):
            look(data)
    assert [type(result) for result in iter_clips(data, [spec(8), spec(8)])] == [UnsupportedEditsError] * 2
    assert UnsupportedEditsError.reason in REASONS


def test_a_refusal_names_the_edits(in_order: bytes) -> None:
    data = with_edits(in_order, [(10, EMPTY, 1), (1000, 0, 1), (500, EMPTY, 1), (2000, SECOND, 1)])
    told = "shows media from 0 at rate 1 for 1000, nothing for 500, media from 15000 at rate 1 for 2000; supported are"
    with pytest.raises(UnsupportedEditsError, match=told):
        measure(data)


PLAIN: dict[str, list[Edit]] = {
    "no edit": [],
    "one edit": [(3000, REORDERED, 1)],
    "a delay": [(500, EMPTY, 1), (3000, REORDERED, 1)],
    "two delays": [(200, EMPTY, 1), (300, EMPTY, 1), (3000, REORDERED, 1)],
}


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_list_shows_every_frame_at_its_time(reordered: bytes, name: str, version: int) -> None:
    data = with_edits(reordered, PLAIN[name], version=version)
    assert numbers(decode_clip(data, spec(24))) == [30 * i // 8 for i in range(24)]
    assert numbers(decode_clip(data, spec(90, None))) == list(range(90))


def test_the_edits_of_other_tracks_do_not_matter(reordered: bytes) -> None:
    data = with_edits(reordered, [(1000, 0, 1), (500, EMPTY, 1), (1000, 8000, 1)], track=1)
    assert numbers(decode_clip(data, spec(24))) == [30 * i // 8 for i in range(24)]


@pytest.mark.parametrize("frame", [0, 24, 30])
@pytest.mark.parametrize("made", ["reordered", "in_order"])
def test_a_trimmed_video_is_whole(request: pytest.FixtureRequest, made: str, frame: int) -> None:
    """What its one edit leaves out, at the end or before the keyframe, is not missing."""
    first = REORDERED if made == "reordered" else IN_ORDER
    data = with_edits(request.getfixturevalue(made), [(1000, first + frame * SECOND // 30, 1)])
    timeline = measure(data)
    assert (timeline.is_truncated, timeline.num_frames, timeline.duration, timeline.promised) == (False, 30, 1, 1)
    assert numbers(decode_clip(data, spec(30, None))) == list(range(frame, frame + 30))
    assert len(decode_clip(data, spec(16, short="truncate")).frames) == 8


def test_a_trimmed_video_that_is_cut_off_is_truncated(reordered: bytes) -> None:
    """Told by the samples that the header lists within its edit: `mdat` may have any size, and no packet is cut."""
    data = header_first(with_edits(reordered, [(1500, REORDERED, 1)]))
    assert not measure(data).is_truncated
    assert numbers(decode_clip(data, spec(45, None))) == list(range(45))
    with av.open(io.BytesIO(data)) as container:
        damaged = data[: [packet.pos for packet in container.demux(video=0)][30]]
    assert measure(damaged).is_truncated
    with pytest.raises(TruncatedVideoError):
        decode_clip(damaged, spec(45, None, short="truncate"))


def header_first(data: bytes) -> bytes:
    """The file with `moov` before `mdat`, which now reaches to the end of the file, however long that is."""
    mdat, moov = data.index(b"mdat") - 4, data.index(b"moov") - 4
    header = bytearray(data[moov:])
    at = -1
    while (at := header.find(b"stco", at + 1)) >= 0:
        for entry in range(at + 12, at + 12 + 4 * int.from_bytes(header[at + 8 : at + 12]), 4):
            header[entry : entry + 4] = (int.from_bytes(header[entry : entry + 4]) + len(header)).to_bytes(4)
    return data[:mdat] + header + bytes(4) + data[mdat + 4 : moov]


class Stream:
    id = 1


@given(st.lists(st.tuples(st.sampled_from([b"moov", b"trak", b"tkhd", b"edts", b"elst"]), st.binary(max_size=40))))
def test_any_bytes_get_an_answer(parts: list[tuple[bytes, bytes]]) -> None:
    header = box(b"tkhd", struct.pack(">12xI", 1))
    inside = b"".join(box(kind, content) for kind, content in parts)
    for data in (inside, box(b"moov", box(b"trak", header + box(b"edts", inside)))):
        with suppress(UnsupportedEditsError):
            check_edits(Feed(data), Stream())
