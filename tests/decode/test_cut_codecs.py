"""A file cut before its first keyframe shows no frame that the uncut file lacks, in any codec that FFmpeg makes here.

The oracle is the content of the frames: each picture of the test source differs from all others.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, measure
from pipeline.errors import NoFramesError

RATE, NUM_FRAMES, GOP = 25, 36, 8
ENCODERS = {
    "mpeg4": ("-c:v mpeg4 -bf 0 -q:v 3", "avi mp4 matroska mpegts"),
    "mpeg4 with B-frames": ("-c:v mpeg4 -bf 2 -q:v 3", "mp4 matroska mpegts"),
    "xvid": ("-c:v libxvid -q:v 3", "avi"),
    "msmpeg4": ("-c:v msmpeg4 -q:v 3", "avi asf"),
    "msmpeg4v2": ("-c:v msmpeg4v2 -q:v 3", "avi"),
    "wmv1": ("-c:v wmv1 -q:v 3", "asf"),
    "wmv2": ("-c:v wmv2 -q:v 3", "asf avi"),
    "flv": ("-c:v flv -q:v 3", "flv"),
    "h261": ("-c:v h261 -q:v 3", "matroska avi"),
    "h263": ("-c:v h263 -q:v 3", "mov 3gp"),
    "h263p": ("-c:v h263p -q:v 3", "matroska"),
    "theora": ("-c:v libtheora -q:v 6", "ogg matroska"),
    "qtrle": ("-c:v qtrle", "mov"),
    "cinepak": ("-c:v cinepak", "mov"),
    "msvideo1": ("-c:v msvideo1", "avi"),
    "rpza": ("-c:v rpza", "mov"),
    "flashsv": ("-c:v flashsv", "flv"),
    "svq1": ("-c:v svq1 -q:v 3", "mov"),
    "ffv1": ("-c:v ffv1 -context 1", "matroska"),
    "vp8": ("-c:v libvpx -b:v 1M -deadline realtime -cpu-used 8", "webm"),
    "h264": ("-c:v libx264 -bf 2 -preset veryfast", "mp4 matroska"),
    "mpeg2": ("-c:v mpeg2video -bf 2 -q:v 3", "matroska"),
}
CASES = [(name, container) for name, (_, containers) in ENCODERS.items() for container in containers.split()]
FEW = {("mpeg4", "avi"), ("mpeg4 with B-frames", "matroska"), ("h261", "avi"), ("rpza", "mov"), ("h264", "mp4")}


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    made = subprocess.run(command, capture_output=True, check=False)
    if b"Unknown encoder" in made.stderr:
        pytest.skip(made.stderr.decode())
    assert made.returncode == 0, made.stderr


def recording(name: str, container: str, path: Path) -> bytes:
    source = f"testsrc2=s=176x144:r={RATE}:d={NUM_FRAMES / RATE}"
    ffmpeg("-f", "lavfi", "-i", source, *ENCODERS[name][0].split(), "-g", str(GOP), "-f", container, str(path))
    return path.read_bytes()


def without_first(uncut: Path, number: int, container: str) -> bytes:
    """Copy the packets of a file but the first ones."""
    path = uncut.with_name("cut")
    drop = f"noise=drop=lt(n\\,{number})"
    ffmpeg("-i", str(uncut), "-c", "copy", "-copyinkf", "-bsf:v", drop, "-f", container, str(path))
    return path.read_bytes()


def whole(data: bytes) -> DecodedClip:
    return decode_clip(data, DecodeSpec(num_frames=NUM_FRAMES + 9, fps=None, height=144, width=176, short="truncate"))


@pytest.mark.parametrize(
    ("name", "container"),
    [pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow) for case in CASES],
)
def test_each_frame_that_comes_out_is_one_of_the_uncut_file(name: str, container: str, tmp_path: Path) -> None:
    path = tmp_path / "uncut"
    uncut = whole(recording(name, container, path))
    numbers = {frame.tobytes(): n for n, frame in enumerate(uncut.frames)}
    assert len(numbers) == len(uncut.frames) >= NUM_FRAMES - 2
    for number in (1, 3, GOP - 1) if (name, container) in FEW else (*range(1, GOP), GOP + 1):
        cut = without_first(path, number, container)
        try:
            clip = whole(cut)
        except NoFramesError:
            assert name == "rpza"  # FFmpeg's encoder makes no second keyframe
            continue
        shown = [numbers.get(frame.tobytes()) for frame in clip.frames]
        assert shown == list(range(len(uncut.frames) - len(shown), len(uncut.frames)))
        assert measure(cut).ticks == clip.ticks
        told = uncut.seconds[-len(shown) :]
        assert np.abs((clip.seconds - clip.seconds[0]) - (told - told[0])).max() < 0.0025  # twice a rounded millisecond
