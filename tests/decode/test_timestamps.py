"""Clocks that restart, are missing, or start anywhere; seeks that lie: the frames are the same as without seeking."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageOps

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, merge_facts, probe, timeline
from pipeline.errors import LimitExceededError, UnsupportedCodecError
from tests.videos import make_video, picture, read_number, without_pts

TICKS = {"time_base": Fraction(1, 24)}
MILLIS = {"time_base": Fraction(1, 1000)}
SEEKABLE: dict[str, dict[str, Any]] = {
    "mp4": {},
    "closed GOPs without B-frames": {"bframes": 0},
    "open GOPs": {
        "codec_options": {"x264-params": "keyint=24:min-keyint=24:open-gop=1:bframes=3:scenecut=0:threads=1"}
    },
    "HEVC with open GOPs": {
        "codec": "libx265",
        "codec_options": {"x265-params": "keyint=24:open-gop=1:log-level=none"},
    },
    "intra refresh": {"codec_options": {"x264-params": "keyint=24:intra-refresh=1:bframes=0:scenecut=0:threads=1"}},
    "fragmented mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mpegts": {"container": "mpegts"},
    "mpeg": {"container": "mpeg", "codec": "mpeg2video", **TICKS},
    "matroska": {"container": "matroska"},
    "webm": {"container": "webm", "codec": "libvpx-vp9", **MILLIS},
    "avi": {"container": "avi", "codec": "mpeg4", **TICKS},
    "avi with B-frames": {"container": "avi", **TICKS},
    "flv": {"container": "flv", **MILLIS},
    "asf": {"container": "asf", "codec": "msmpeg4", **TICKS},
    "all keyframes": {"container": "mov", "codec": "mjpeg", "pix_fmt": "yuvj420p", "gop": 1},
}


def spec(num_frames: int, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": None, "height": 96, "width": 128} | changes))


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", SEEKABLE)
def test_a_clip_reached_by_seeking_is_the_clip_reached_in_passing(name: str) -> None:
    data = make_video(num_frames=120, **({"gop": 24} | SEEKABLE[name]))
    linear = replace(measure(data), is_trusted=False)
    starts = [Fraction(k, 48) for k in (0, 1, 60, 77, 143, 144, 145, 200, 233)]
    specs = [spec(3, start=start, fps=fps) for start in starts for fps in (None, Fraction(24))]
    passing = list(iter_clips(data, specs, timeline=linear))
    for one, want in zip(specs, passing, strict=True):
        assert isinstance(want, DecodedClip)
        clip = decode_clip(data, one)
        assert clip.ticks == want.ticks
        assert np.array_equal(clip.frames, want.frames)
        assert clip.facts() == want.facts()


def test_thousands_of_clips_cost_one_pass() -> None:
    data = make_video(num_frames=240, width=64, height=48, gop=24)
    specs = [DecodeSpec(num_frames=1, fps=None, height=16, width=16, start=Fraction(i, 400)) for i in range(3900)]
    results = list(iter_clips(data, specs))
    assert len(results) == len(specs)
    last = results[-1]
    assert isinstance(last, DecodedClip)
    assert last.stats.frames_decoded <= 240


def test_a_clock_that_restarts_is_carried_on() -> None:
    """Two MPEG-TS recordings in one file, the second with the times of the first again."""
    data = make_video(num_frames=24, container="mpegts") + make_video(num_frames=24, container="mpegts")
    timeline = measure(data)
    assert not timeline.is_trusted
    assert timeline.num_frames == 48
    clip = decode_clip(data, spec(48))
    assert numbers(clip) == [*range(24), *range(24)]
    assert clip.timestamps == tuple(Fraction(i, 24) for i in range(48))
    assert clip.ticks == timeline.ticks
    assert clip.repaired == (False,) * 24 + (True,) * 24


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_recording_that_begins_in_mid_gop_begins_at_its_first_keyframe(codec: str) -> None:
    whole = make_video(num_frames=96, container="mpegts", codec=codec, gop=24, time_base=Fraction(1, 24))
    data = whole[len(whole) // 12 // 188 * 188 :]
    timeline = measure(data)
    clip = decode_clip(data, spec(72))
    assert numbers(clip) == list(range(24, 96))
    assert clip.timestamps[0] == 0
    assert clip.ticks == timeline.ticks


def test_a_stream_without_a_clock_runs_at_its_nominal_rate() -> None:
    data = make_video(num_frames=30, container="h264", fps=25)
    timeline = measure(data)
    assert timeline.synthetic
    assert timeline.num_frames == 30
    clip = decode_clip(data, spec(30))
    assert numbers(clip) == list(range(30))
    assert clip.timestamps == tuple(Fraction(i, 25) for i in range(30))
    assert all(clip.repaired)


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize(("codec", "bframes"), [("libx264", 0), ("libx264", 2), ("libx265", 2)])
def test_frames_that_have_no_time_among_others_that_have_stand_between_them(
    codec: str, bframes: int, every: int
) -> None:
    whole = make_video(codec=codec, container="mpegts", bframes=bframes, **TICKS)
    data = without_pts(whole, every)
    clip = decode_clip(data, spec(48))
    assert numbers(clip) == list(range(48))
    assert clip.timestamps == tuple(Fraction(i, 24) for i in range(48))
    assert sum(clip.repaired) == 48 // every
    timeline = measure(data)
    assert (timeline.num_frames, timeline.is_trusted) == (48, False)
    assert abs(timeline.duration - 2) <= Fraction(1, 24)
    grid = decode_clip(data, spec(5, fps=Fraction(8), start=Fraction(1, 2)))
    assert numbers(grid) == [12, 15, 18, 21, 24]


def test_avi_with_b_frames_gives_each_frame_its_own_time() -> None:
    data = make_video(num_frames=40, container="avi", bframes=3, **TICKS)
    clip = decode_clip(data, spec(40))
    assert numbers(clip) == list(range(40))
    assert clip.timestamps == tuple(Fraction(i, 24) for i in range(40))
    assert clip.ticks == measure(data).ticks


@pytest.mark.parametrize("first", [0, 1, 37, 3600])
def test_time_0_is_the_first_frame_wherever_the_clock_starts(first: int) -> None:
    times = [first + Fraction(i, 24) for i in range(48)]
    data = make_video(times=times, container="matroska", time_base=Fraction(1, 24000))
    clip = decode_clip(data, spec(5, fps=Fraction(8), start=Fraction(1)))
    assert numbers(clip) == [24, 27, 30, 33, 36]
    timeline = measure(data)
    assert not timeline.is_truncated
    assert abs(timeline.promised - 2) < Fraction(1, 100)


def test_the_video_is_the_stream_that_a_player_would_show() -> None:
    """The second stream is the default one."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        streams = [out.add_stream("libx264", rate=24) for _ in range(2)]
        for stream, (width, height) in zip(streams, ((32, 24), (128, 96)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for n in range(12):
            for stream in streams:
                image = picture(n + 100 * stream.index, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                frame.pts = n
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    data = buffer.getvalue()
    assert probe(data).width == 128
    assert numbers(decode_clip(data, spec(12))) == list(range(100, 112))


def test_metadata_that_is_not_utf8_is_no_obstacle() -> None:
    data = make_video(num_frames=12, metadata={"title": "XXXX"})
    broken = data.replace(b"XXXX", b"\xff\xfe\xfd\xfc")
    assert broken != data
    assert numbers(decode_clip(broken, spec(12))) == list(range(12))


def test_a_codec_that_nobody_knows_is_unsupported() -> None:
    data = make_video(num_frames=12).replace(b"avc1", b"xyz1")
    for look in (probe, measure, lambda src: decode_clip(src, spec(1))):
        with pytest.raises(UnsupportedCodecError):
            look(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_exif_says(orientation: int) -> None:
    """PyAV 18 has no name for EXIF side data and then refuses to list any; Pillow is the oracle."""
    image = Image.fromarray(picture(5, 128, 96))
    exif = image.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=98, subsampling=0)
    want = np.asarray(ImageOps.exif_transpose(Image.open(buffer))).astype(int)
    height, width = want.shape[:2]
    info = probe(buffer.getvalue())
    assert (info.display_height, info.display_width) == (height, width)
    clip = decode_clip(buffer.getvalue(), spec(1, height=height, width=width))
    assert np.abs(clip.frames[0] - want).mean() < 2


@pytest.mark.parametrize("fps", [None, Fraction(24)])
def test_facts_of_pieces_merge_into_those_of_the_clip(fps: Fraction | None) -> None:
    """Whether the frame size changes within a piece, where two meet, or where they overlap."""
    parts = [make_video(num_frames=12, container="mpegts", width=w, height=h) for w, h in ((128, 96), (160, 160))]
    data = parts[0] + parts[1] + parts[0]
    whole = decode_clip(data, spec(36, fps=fps)).facts()
    assert [change["frame"] for change in whole["changes"]] == [12, 24]
    for cuts in ([(0, 36)], [(0, 12), (12, 12), (24, 12)], [(0, 17), (11, 12), (20, 16)], [(0, 13), (12, 24)]):
        pieces = list(iter_clips(data, [spec(n, fps=fps, offset=offset) for offset, n in cuts]))
        assert merge_facts([piece.facts() for piece in pieces if isinstance(piece, DecodedClip)]) == whole


def test_a_video_of_more_frames_than_are_supported_is_refused(monkeypatch: Any) -> None:
    """Each packet of a few bytes takes hundreds of memory."""
    data = make_video(num_frames=20)
    monkeypatch.setattr(timeline, "_MAX_FRAMES", 20)
    assert measure(data).num_frames == 20
    monkeypatch.setattr(timeline, "_MAX_FRAMES", 19)
    with pytest.raises(LimitExceededError, match="more than 19 frames"):
        measure(data)
