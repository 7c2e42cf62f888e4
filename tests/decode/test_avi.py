"""AVI stores no times: each packet has a place in a row, at a fixed rate, and a dropped frame an empty one.

A player shows what the decoder gives out at each place. So a frame's time is that of the packet with which it comes
out, reordered or not.
"""

from __future__ import annotations

import subprocess
from fractions import Fraction
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.decode import DecodeSpec, decode_clip, iter_clips, measure
from tests.decode.shared_set import linear, same
from tests.videos import make_video, picture, read_number

NUM, FPS = 120, 30
DROPPED = {5, 6, 20, 21, 22, 50, 80, 81, 82, 83, 100, 101}
WANTED = [max(m for m in range(n + 1) if m not in DROPPED) for n in range(NUM)]
"""What is on screen at each thirtieth of a second: the last frame that was not dropped."""


def x264(bframes: int, more: str = "") -> dict[str, Any]:
    return {"codec_options": {"x264-params": f"keyint=30:scenecut=0:threads=1:bframes={bframes}{more}"}}


STREAMS: dict[str, dict[str, Any]] = {
    "h264": x264(0),
    "h264 with B-frames": x264(1),
    "h264 with B-frames as references": x264(3, ":b-pyramid=normal:b-adapt=0"),
    "mpeg4": {"codec": "mpeg4", "codec_options": {"b": "2M"}},
    "mpeg4 with B-frames": {"codec": "mpeg4", "codec_options": {"b": "2M", "bf": "2"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def with_dropped_frames(name: str) -> bytes:
    numbers = [n for n in range(NUM) if n not in DROPPED]
    return make_video(
        times=[Fraction(n, FPS) for n in numbers],
        images=[picture(n, 128, 96) for n in numbers],
        fps=FPS,
        container="avi",
        time_base=Fraction(1, FPS),
        **STREAMS[name],
    )


def spec(num_frames: int, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": Fraction(FPS), "height": 96, "width": 128} | changes))


def test_an_avi_that_was_written_to_a_pipe_is_as_long_as_it_is() -> None:
    """Its header says 2**30 frames. Where it is cut, it is truncated."""
    source = ["-f", "lavfi", "-i", "testsrc=s=128x96:r=24:d=3"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-c:v", "mjpeg", "-f", "avi", "pipe:1"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    whole, half = measure(data), measure(data[: len(data) // 2])
    assert (whole.promised, whole.is_truncated) == (3, False)
    assert half.is_truncated
    assert half.promised < 2


@pytest.mark.parametrize("name", STREAMS)
def test_each_frame_is_shown_until_the_next_that_was_not_dropped(name: str) -> None:
    data = with_dropped_frames(name)
    clip = decode_clip(data, spec(NUM))
    assert [read_number(frame) for frame in clip.frames] == WANTED
    shown = decode_clip(data, spec(NUM, fps=None, short="truncate"))
    assert shown.ticks == measure(data).ticks
    assert len(shown.ticks) == NUM - len(DROPPED)


@pytest.mark.parametrize("name", STREAMS)
def test_the_frames_are_those_of_the_ffmpeg_program(name: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "-", "-vf", f"fps={FPS}:round=down"]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        input=with_dropped_frames(name),
        capture_output=True,
        check=True,
    ).stdout
    assert [read_number(frame) for frame in np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3)] == WANTED


@pytest.mark.parametrize("name", STREAMS)
def test_a_clip_is_the_same_with_seeks_and_without(name: str) -> None:
    data = with_dropped_frames(name)
    specs = [spec(3, start=Fraction(k, 2), fps=fps) for k in range(8) for fps in (None, Fraction(7))]
    expected = linear(data, specs)
    assert all(map(same, expected, iter_clips(data, specs)))
    assert all(map(same, expected, [next(iter_clips(data, [one])) for one in specs]))
