"""Streams without times, and frames in two packets: a frame lasts one step of the stream's rate, and counts once."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.decode import DecodeSpec, decode_clip, measure
from tests.videos import make_video, picture, read_number

RAW: dict[str, dict[str, Any]] = {
    "HEVC without a rate": {
        "container": "hevc",
        "codec": "libx265",
        "codec_options": {"x265-params": "vui-timing-info=0:log-level=none"},
    },
    "MPEG-1": {"container": "mpeg1video", "codec": "mpeg1video"},
    "MPEG-1 without B-frames": {"container": "mpeg1video", "codec": "mpeg1video", "bframes": 0},
    "MPEG-2": {"container": "mpeg2video", "codec": "mpeg2video"},
    "H.263": {"container": "h263", "codec": "h263", "fps": Fraction(30000, 1001), "time_base": Fraction(1001, 30000)},
}


@pytest.mark.parametrize("name", RAW)
def test_each_frame_of_a_raw_stream_lasts_one_step(name: str) -> None:
    settings = {"fps": Fraction(25), "time_base": Fraction(1, 25)} | RAW[name]
    data = make_video(num_frames=80, width=128, height=96, **settings)
    _check_steps(data, settings["fps"])


def test_raw_h264_without_a_rate_is_taken_for_25_frames_a_second() -> None:
    """As FFmpeg does. Its packets last one tick after the first 50 frames."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-i", "-"]
    command += ["-c:v", "libopenh264", "-b:v", "2M", "-f", "h264", "-"]
    pictures = b"".join(picture(n, 128, 96).tobytes() for n in range(80))
    done = subprocess.run(command, input=pictures, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this ffmpeg has no libopenh264, whose streams state no rate")
    _check_steps(done.stdout, Fraction(25))


@pytest.mark.parametrize("rate", ["50/1", "60000/1001"])
def test_two_fields_in_two_packets_are_one_frame(rate: str, shared: Path, tmp_path: Path) -> None:
    """AVCHD of a camera, 50 fields a second, and the same with the times of 59.94: 1501 and 1502 ticks apart."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    source, path = shared / "videos/mde__Sony_ILCE-7M3_A7M3.mts", tmp_path / "fields.ts"
    if not source.is_file():
        pytest.skip("the folder of real videos is not here")
    times = ":".join(f"{kind.lower()}=round({kind}*50/({rate}))" for kind in ("PTS", "DTS"))
    command = [ffmpeg, "-v", "error", "-i", str(source), "-map", "0:v", "-c", "copy"]
    command += ["-bsf:v", f"h264_metadata=tick_rate={rate},setts={times}:duration=1501", "-f", "mpegts", str(path)]
    subprocess.run(command, check=True)
    clip = decode_clip(path, DecodeSpec(num_frames=99, fps=None, height=96, width=128, short="truncate"))
    timeline = measure(path)
    assert len(clip.frames) == timeline.num_frames == 13
    assert timeline.ticks == clip.ticks
    assert timeline.duration == 26 / Fraction(rate)


def _check_steps(data: bytes, rate: Fraction) -> None:
    timeline = measure(data)
    assert timeline.duration == 80 / rate
    clip = decode_clip(data, DecodeSpec(num_frames=80, fps=None, height=96, width=128))
    assert [read_number(frame) for frame in clip.frames] == list(range(80))
    assert clip.timestamps == tuple(n / rate for n in range(80))
    assert clip.ticks == timeline.ticks
    grid = decode_clip(data, DecodeSpec(num_frames=20, fps=Fraction(8), height=96, width=128))
    assert [read_number(frame) for frame in grid.frames] == [int(i * rate / 8) for i in range(20)]
