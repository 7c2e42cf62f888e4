"""Oddities of files from the wild, made again: sound ones are decoded in full and in order, at the times they mean."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import count
from typing import Any

import av
import imageio_ffmpeg
import pytest
from PIL import Image

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, probe
from pipeline.errors import TruncatedVideoError, UnsupportedCodecError, VideoError
from tests.decode.shared_set import linear, same
from tests.videos import cut, make_video, picture, read_number


def spec(num_frames: int, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": None, "height": 96, "width": 128} | changes))


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def remuxed(data: bytes, change: Callable[[Any], list[Any]], container: str = "matroska") -> bytes:
    """The file with each packet replaced by what `change` makes of it."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            for changed in change(packet) if packet.size else []:
                changed.stream = stream
                out.mux(changed)
    return buffer.getvalue()


def test_an_empty_packet_repeats_the_frame_before_and_is_no_damage() -> None:
    def followed_by_nothing(packet: Any) -> list[Any]:
        nothing = av.Packet(b"")
        nothing.pts = nothing.dts = packet.pts + round(1 / 48 / packet.time_base)
        nothing.time_base = packet.time_base
        return [packet, nothing]

    whole = make_video(num_frames=24, codec="libvpx", container="webm", time_base=Fraction(1, 1000))
    data = remuxed(whole, followed_by_nothing, "nut")
    with av.open(io.BytesIO(data)) as container:
        assert [packet.size for packet in container.demux(video=0)][:-1].count(0) == 24
    assert measure(data).num_frames == 24
    assert numbers(decode_clip(data, spec(24))) == list(range(24))
    assert numbers(decode_clip(data, spec(8, fps=Fraction(48), start=Fraction(1, 96)))) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("start", [0, Fraction(3, 2)])
def test_mp4_without_composition_offsets_gives_each_frame_its_own_time(start: Fraction) -> None:
    """All its packets say that they are shown when they are decoded, and there are B-frames."""
    data = make_video(bframes=2, num_frames=96).replace(b"ctts", b"free").replace(b"edts", b"free")
    clip = decode_clip(data, spec(48, start=Fraction(start)))
    first = int(start * 24)
    assert numbers(clip) == list(range(first, first + 48))
    assert clip.timestamps == tuple(Fraction(i, 24) for i in range(first, first + 48))


@pytest.mark.parametrize("offset", [0, 1])
def test_nothing_is_left_out_where_times_do_not_tell_packets_apart(offset: int) -> None:
    """Every second frame is wanted, and what nothing is predicted from may be the other half, or this one."""
    data = make_video(bframes=1, gop=240, num_frames=97).replace(b"ctts", b"free").replace(b"edts", b"free")
    wanted = spec(40, fps=Fraction(12), start=Fraction(offset, 24))
    clip = decode_clip(data, wanted)
    assert numbers(clip) == [offset + 2 * i for i in range(40)]
    assert same(clip, linear(data, [wanted])[0])


@pytest.mark.parametrize("container", ["flv", "avi", "matroska"])
def test_an_aspect_that_only_the_stream_states_is_the_same_after_a_seek(container: str) -> None:
    """The first one counts where the container does not leave that to the stream."""
    make = partial(make_video, container="h264", bframes=0, gop=12)
    raw = make(num_frames=60) + make(num_frames=120, codec_options={"x264-params": "sar=2/1:keyint=12:bframes=0"})
    number = count()

    def timed(packet: Any) -> list[Any]:
        packet.pts = packet.dts = next(number)
        packet.time_base = Fraction(1, 24)
        return [packet]

    data = remuxed(raw, timed, container)
    late = spec(20, fps=Fraction(24), start=Fraction(6))
    _, passing = iter_clips(data, [spec(170, fps=Fraction(24)), late])
    assert same(passing, decode_clip(data, late))


def test_one_timestamp_that_comes_twice_moves_no_other_frame() -> None:
    whole = make_video(num_frames=24)
    times = measure(whole).ticks

    def repeat(packet: Any) -> list[Any]:
        if packet.pts == times[5]:
            packet.pts = times[4]
        return [packet]

    data = remuxed(whole, repeat)
    clip = decode_clip(data, spec(24))
    assert numbers(clip) == list(range(24))
    as_meant = measure(remuxed(whole, lambda packet: [packet])).ticks
    assert [i for i in range(24) if clip.ticks[i] != as_meant[i]] == [5] == [i for i in range(24) if clip.repaired[i]]


def test_columns_that_the_stream_crops_on_the_left_stay_hidden() -> None:
    data = make_video(num_frames=3, codec_options={"x264-params": "crop-rect=6,0,0,0:threads=1"})
    clip = decode_clip(data, spec(3))
    assert (probe(data).width, clip.kinds[0][1].width) == (122, 122)


def test_what_follows_the_last_image_of_a_gif_is_no_frame() -> None:
    whole = make_video(num_frames=8, fps=10, container="gif", codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100))
    data = whole.removesuffix(b";") + b"\x21\xfe\x05hello\x00;"
    assert len(data) > len(whole)
    assert measure(data).num_frames == 8
    assert len(decode_clip(data, spec(8)).frames) == 8


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_gif_without_its_trailer_is_cut_off(share: float) -> None:
    whole = make_video(num_frames=8, fps=10, container="gif", codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100))
    assert not measure(whole).is_truncated
    assert not measure(whole + b"\0\0").is_truncated
    assert measure(cut(whole, share)).is_truncated


def test_a_whole_file_with_one_picture_shows_it_as_long_as_the_header_says() -> None:
    data = bytearray(make_video(num_frames=1, container="matroska", time_base=Fraction(1, 1000)))
    at = data.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes
    data[at : at + 8] = struct.pack(">d", 1000.0)
    timeline = measure(bytes(data))
    assert (timeline.is_truncated, timeline.duration) == (False, 1)
    assert numbers(decode_clip(bytes(data), spec(8, fps=Fraction(8)))) == [0] * 8
    assert measure(bytes(data[:-20])).is_truncated


def test_a_truncated_avi_never_passes_as_complete() -> None:
    """FFmpeg computes its duration from the size of what is left."""
    whole = make_video(num_frames=240, container="avi", codec="mpeg4", time_base=Fraction(1, 24))
    assert not measure(whole).is_truncated
    data = cut(whole, 0.5)
    timeline = measure(data)
    assert (timeline.is_truncated, timeline.promised) == (True, 10)
    with pytest.raises(TruncatedVideoError):
        decode_clip(data, spec(240, short="truncate"))


@pytest.mark.parametrize("sizes", [("320x240", "160x120"), ("160x120", "320x240")])
def test_of_two_programs_in_a_transport_stream_the_first_is_taken(sizes: tuple[str, str]) -> None:
    """docs/frames.md says so; the ffmpeg command takes the largest picture."""
    inputs = [word for size in sizes for word in ("-f", "lavfi", "-i", f"testsrc=s={size}:r=24:d=1")]
    programs = ["-map", "0", "-map", "1", "-program", "title=a:st=0", "-program", "title=b:st=1"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, *programs, "-f", "mpegts", "pipe:1"]
    info = probe(subprocess.run(command, capture_output=True, check=True).stdout)
    assert f"{info.width}x{info.height}" == sizes[0]


def test_an_animated_webp_is_no_damaged_one() -> None:
    buffer = io.BytesIO()
    first, *others = [Image.fromarray(picture(n, 128, 96)) for n in range(3)]
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=100)
    with pytest.raises(UnsupportedCodecError, match="animated WebP"):
        probe(buffer.getvalue())
    for length in range(12, 40):
        with suppress(VideoError):
            probe(buffer.getvalue()[:length])
