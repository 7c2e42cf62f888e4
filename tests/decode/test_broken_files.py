"""What is broken is refused with a reason, and nothing of it passes as whole; faults of the storage are not content."""

from __future__ import annotations

import io
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, probe
from pipeline.errors import (
    ClipTooShortError,
    CorruptVideoError,
    FilteredError,
    HdrError,
    LimitExceededError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnreadableError,
    VideoError,
)
from tests.videos import cut, flip_bytes, make_image, make_video, picture, read_number

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
CONTAINERS: dict[str, dict[str, Any]] = {
    "mp4": {"container": "mp4"},
    "fragmented mp4": {"container": "mp4", "container_options": FRAGMENTED},
    "matroska": {"container": "matroska"},
    "matroska with sound": {"container": "matroska", "audio_seconds": 5},
    "webm vp8": {"container": "webm", "codec": "libvpx", "time_base": Fraction(1, 1000)},
    "webm vp9": {"container": "webm", "codec": "libvpx-vp9", "time_base": Fraction(1, 1000)},
    "mpegts": {"container": "mpegts"},
    "mpeg": {"container": "mpeg", "codec": "mpeg2video", "time_base": Fraction(1, 24)},
    "avi": {"container": "avi", "codec": "mpeg4", "time_base": Fraction(1, 24)},
    "flv": {"container": "flv", "time_base": Fraction(1, 1000)},
    "asf": {"container": "asf", "codec": "msmpeg4", "time_base": Fraction(1, 24)},
    "ogg": {"container": "ogg", "codec": "libvpx", "time_base": Fraction(1, 24)},
}
SELF_DESCRIBING = ["fragmented mp4", "matroska", "matroska with sound", "webm vp8", "webm vp9", "flv", "ogg"]


def spec(num_frames: int = 72, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": None, "height": 96, "width": 128} | changes))


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return {name: make_video(num_frames=72, **settings) for name, settings in CONTAINERS.items()}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_whole_file_passes(whole: dict[str, bytes], name: str) -> None:
    assert [read_number(f) for f in decode_clip(whole[name], spec()).frames] == list(range(72))
    assert not measure(whole[name]).is_truncated


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_truncated_file_never_gives_a_full_clip(whole: dict[str, bytes], name: str) -> None:
    """Nor with padding, unless all its frames are still there and only an index is lost."""
    for share in (0.97, 0.9, 0.8, 0.61, 0.5, 0.33, 0.2, 0.1, 0.01):
        data = cut(whole[name], share)
        for short in ("error", "truncate", "pad_last"):
            try:
                clip = decode_clip(data, spec(short=short))
            except VideoError:
                continue
            shown = [read_number(f) for f in clip.frames]
            if name in SELF_DESCRIBING or short == "error":
                assert shown == list(range(72))
            else:  # the cut may have taken the last B-frames, which come after the frame that follows them
                num_sound = max(0, max(shown) - 2)
                assert shown[:num_sound] == list(range(num_sound))
                assert shown == sorted(shown)


def test_a_truncated_asf_is_told_by_its_size(whole: dict[str, bytes]) -> None:
    for share in (0.99, 0.75, 0.3):
        assert measure(cut(whole["asf"], share)).is_truncated


@pytest.mark.parametrize("name", SELF_DESCRIBING)
def test_a_truncated_file_says_so(whole: dict[str, bytes], name: str) -> None:
    data = cut(whole[name], 0.75)
    with pytest.raises(TruncatedVideoError, match="breaks off"):
        decode_clip(data, spec())
    timeline = measure(data)
    assert timeline.is_truncated
    first, rest = iter_clips(data, [spec(10), spec(72, start=Fraction(1))])
    assert isinstance(first, DecodedClip)
    assert isinstance(rest, TruncatedVideoError)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnreadableError),
        (b"\0" * 10_000, UnreadableError),
        (b"this is not a video, whatever its name says\n" * 200, UnreadableError),
        (b"#EXTM3U\n#EXTINF:1.0,\n/etc/hostname\n#EXT-X-ENDLIST\n", UnreadableError),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", UnreadableError),
    ],
)
def test_what_is_no_video_is_refused(data: bytes, error: type[VideoError]) -> None:
    for look in (probe, measure, lambda src: decode_clip(src, spec(1))):
        with pytest.raises(error):
            look(data)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_bytes(make_video(num_frames=24, container="mpegts"))
    for text in (
        f"#EXTM3U\n#EXTINF:1.0,\n{tmp_path}/a.ts\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/a.ts\n",
    ):
        with pytest.raises(VideoError):
            decode_clip(text.encode(), spec(1))


def test_sound_with_cover_art_is_no_video() -> None:
    with pytest.raises(NoVideoStreamError, match="audio"):
        probe(with_cover_art(video=False))


def test_cover_art_is_not_the_video() -> None:
    data = with_cover_art(video=True)
    assert (probe(data).width, probe(data).height) == (128, 96)
    assert [read_number(f) for f in decode_clip(data, spec(12)).frames] == list(range(12))


def with_cover_art(*, video: bool) -> bytes:
    """An MP4 with a large attached picture, and a small video or sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        other = out.add_stream("libx264", rate=24) if video else out.add_stream("aac", rate=8000)
        if video:
            other.width, other.height, other.pix_fmt = 128, 96, "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture(1, 640, 480), format="rgb24").reformat(format="yuvj420p")
        frame.pts = 0
        out.mux(cover.encode(frame))
        out.mux(cover.encode())
        for n in range(12):
            if not video:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 8000, n * 1024
            else:
                frame = av.VideoFrame.from_ndarray(picture(n, 128, 96), format="rgb24").reformat(format="yuv420p")
                frame.pts = n
            out.mux(other.encode(frame))
        out.mux(other.encode())
    return buffer.getvalue()


def test_damage_spoils_what_depends_on_it_and_no_more() -> None:
    """A packet destroyed in the second of four GOPs: clips before and after it come out, the one across is refused."""
    data = make_video(num_frames=96, gop=24, bframes=0, container="matroska")
    with av.open(io.BytesIO(data)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    at = data.index(bytes(packets[30]))
    broken = flip_bytes(data, at + 4, at + packets[30].size)
    before, across, after = iter_clips(
        broken, [spec(24), spec(10, start=Fraction(28, 24)), spec(40, start=Fraction(48, 24))]
    )
    assert isinstance(before, DecodedClip)
    assert isinstance(across, CorruptVideoError)
    assert isinstance(after, DecodedClip)
    assert [read_number(f) for f in after.frames] == list(range(48, 88))


def test_a_lost_slice_of_hevc_is_not_shown_as_a_hole() -> None:
    """The decoder skips a NAL unit that it cannot read and gives the frame out, unflagged, unless told to raise."""
    options = {"x265-params": "keyint=12:slices=4:log-level=none"}
    size: dict[str, Any] = {"width": 256, "height": 256}
    data = make_video(num_frames=12, codec="libx265", bframes=0, container="matroska", codec_options=options, **size)
    with av.open(io.BytesIO(data)) as container:
        first = bytes(next(p for p in container.demux(video=0) if p.size))
    whole = decode_clip(data, spec(12)).frames.astype(int)
    at, num_refused = data.index(first), 0
    offsets = range(len(first) // 2, len(first) - 40, 12)
    for offset in offsets:
        broken = data[: at + offset] + bytes(40) + data[at + offset + 40 :]
        try:
            shown = decode_clip(broken, spec(12)).frames
        except VideoError:
            num_refused += 1
        else:
            assert np.abs(shown - whole).mean() < 60
    assert num_refused / len(offsets) > 0.3, "0.22 without err_detect, 0.39 with it; the rest decodes as something"


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx", "libvpx-vp9", "mpeg4"])
def test_what_was_predicted_from_a_lost_frame_is_refused(codec: str) -> None:
    """The clip holds neither the lost frame nor, in most codecs, one that the decoder flags. It is not the video."""
    data = make_video(num_frames=48, gop=24, bframes=0, container="matroska", codec=codec, time_base=Fraction(1, 24))
    with av.open(io.BytesIO(data)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    at = data.index(bytes(packets[6]))
    broken = data[:at] + b"\xff" * packets[6].size + data[at + packets[6].size :]
    predicted, after = iter_clips(broken, [spec(4, start=Fraction(10, 24)), spec(4, start=Fraction(30, 24))])
    assert isinstance(predicted, CorruptVideoError)
    assert isinstance(after, DecodedClip)
    assert [read_number(f) for f in after.frames] == [30, 31, 32, 33]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_what_was_predicted_from_a_flagged_frame_is_refused(codec: str) -> None:
    """One transport packet of the first keyframe is missing: that frame is flagged, those predicted from it are not."""
    noise = np.random.default_rng(2).integers(0, 256, (96, 128, 3), np.uint8)
    images = [np.roll(noise, 2 * n, axis=1) for n in range(30)]
    size: dict[str, Any] = {"num_frames": 30, "container": "mpegts", "time_base": Fraction(1, 24)}
    data = make_video(images=images, codec=codec, bframes=0, **size)
    broken = data[: 188 * 12] + data[188 * 13 :]
    whole = decode_clip(data, spec(30)).frames
    specs = [spec(3, start=Fraction(start, 24)) for start in (0, 4, 13)]
    first, predicted, after = iter_clips(broken, specs)
    assert isinstance(first, CorruptVideoError)
    assert isinstance(predicted, CorruptVideoError)
    assert isinstance(after, DecodedClip)
    at = [n for n in range(28) if (whole[n : n + 3] == after.frames).all()]
    assert len(at) == 1
    assert at[0] >= 12


def test_a_hole_is_not_filled_with_the_frame_before_it() -> None:
    data = make_video(num_frames=48, gop=1, bframes=0, fps=20, container="matroska", codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(io.BytesIO(data)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    at = data.index(bytes(packets[20]))
    broken = data[:at] + b"\0" * packets[20].size + data[at + packets[20].size :]
    grid = {"fps": Fraction(20), "start": Fraction(18, 20)}
    with pytest.raises(CorruptVideoError):
        decode_clip(broken, spec(5, **grid))
    held = decode_clip(broken, spec(5, on_error="skip", **grid))
    assert [read_number(f) for f in held.frames] == [18, 19, 19, 21, 22]


def test_limits_hold_before_anything_large_is_made() -> None:
    data = make_video(num_frames=24)
    with pytest.raises(LimitExceededError, match="128x96"):
        decode_clip(data, spec(1, max_pixels=128 * 95))
    with pytest.raises(LimitExceededError, match="max_output_bytes"):
        decode_clip(data, spec(1 << 40, short="truncate"))
    with pytest.raises(LimitExceededError, match="max_decoded_frames"):
        decode_clip(data, spec(3, fps=Fraction(2), max_decoded_frames=5, short="truncate"))
    assert probe(data, max_pixels=1).width == 128


def test_filters_refuse_with_their_own_reasons() -> None:
    still = make_video(num_frames=24, images=[picture(7, 128, 96)] * 24)
    with pytest.raises(FilteredError) as static:
        decode_clip(still, spec(8, min_motion=0.5))
    assert static.value.reason == "filtered_static"
    assert len(decode_clip(make_video(num_frames=24), spec(8, min_motion=0.5)).frames) == 8
    slow = make_video(times=[0, Fraction(1, 10), 2, Fraction(21, 10)], time_base=Fraction(1, 1000))
    with pytest.raises(FilteredError) as held:
        decode_clip(slow, spec(12, fps=Fraction(8), max_hold=Fraction(1)))
    assert held.value.reason == "filtered_max_hold"
    hdr = make_video(num_frames=4, pix_fmt="yuv420p10le", color_trc=16)
    with pytest.raises(HdrError, match="PQ"):
        decode_clip(hdr, spec(2, hdr="reject"))
    assert decode_clip(hdr, spec(2)).facts()["color_trc"] == 16


def test_every_error_and_clip_crosses_a_process_boundary() -> None:
    errors = [ClipTooShortError("a"), FilteredError("static", "b"), HdrError("c"), TruncatedVideoError("d")]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.reason) == (type(error), str(error), error.reason)
    clip = decode_clip(make_image(), spec(1))
    copy = pickle.loads(pickle.dumps(clip))
    assert copy.facts() == clip.facts()
    assert (copy.frames == clip.frames).all()


@pytest.mark.parametrize("codec", ["png", "mjpeg", "libwebp"])
def test_images_are_clips_of_one_frame(codec: str) -> None:
    data = make_image(n=77, codec=codec)
    assert probe(data).is_image
    for fps in (None, Fraction(8)):
        assert [read_number(f) for f in decode_clip(data, spec(1, fps=fps)).frames] == [77]
