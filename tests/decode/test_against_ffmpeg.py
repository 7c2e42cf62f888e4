"""The graph gives the bytes of the ffmpeg command line with the same filters, and its upright is ffmpeg's upright."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import DecodedClip, decode_clip
from pipeline.decode.geometry import Orientation
from pipeline.decode.graph import filters, placement
from tests.decode.shared_set import DAMAGED, HEAVY, REFUSED, names, read, small

ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()

FILES = [n for n in names() if n not in HEAVY and n not in REFUSED and n not in DAMAGED and not n.endswith(".h264")]
FILES = [n for n in FILES if not n.startswith("libwebm")]
PLANAR = ("format", "pix_fmts=gbrp")
TURNED = [
    "decord__video_90.mov",
    "decord__video_180.mov",
    "rails__rotated_video.mp4",
    "torchcodec__nasa_13013_rotated.mp4",
    "androidx__sample_rotate_and_reflect.mp4",
]


def command_line(path: Path, chain: str, num_frames: int, *before: str) -> np.ndarray:
    """RGB bytes that ffmpeg writes for the first frames of a file."""
    command = [ffmpeg, "-v", "error", "-threads", "1", *before, "-i", str(path), "-an", "-sn", "-vf", chain]
    command += ["-fps_mode", "passthrough", "-frames:v", str(num_frames), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)


def straight_chain(clip: DecodedClip) -> str:
    """The clip's filters, scaling straight to packed RGB."""
    kind = clip.kinds[0][1]
    chain = [step for step in filters(kind, clip.spec, placement(kind, clip.spec)) if step != PLANAR]
    return ",".join(f"{name}={arguments}" if arguments else name for name, arguments in chain)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_ffmpegs(shared: Path, name: str) -> None:
    """Byte for byte in practice (FFmpeg 8.1 here, 9.0 there); half a level is what another swscale may differ by."""
    clip = decode_clip(read(shared, name), small(3, None, short="truncate"))
    theirs = command_line(shared / "videos" / name, straight_chain(clip), len(clip.frames), "-noautorotate")
    difference = np.abs(theirs.reshape(clip.frames.shape).astype(int) - clip.frames)
    assert difference.mean(axis=(1, 2, 3)).max() <= 0.5


@pytest.mark.parametrize("name", TURNED)
def test_upright_is_ffmpegs_autorotate(shared: Path, name: str) -> None:
    """Closer than any other of the eight ways to turn the picture, and close at that."""
    clip = decode_clip(read(shared, name), small(1, None, height=96, width=96, fit="stretch"))
    theirs = command_line(shared / "videos" / name, "scale=96:96:flags=bicubic+accurate_rnd+full_chroma_int", 1)
    upright = theirs.reshape(96, 96, 3).astype(int)
    right = np.abs(clip.frames[0].astype(int) - upright).mean()
    ways = [Orientation(transpose=t, hflip=h, vflip=v) for t in (0, 1) for h in (0, 1) for v in (0, 1)]
    others = [np.abs(_turn(clip.frames[0], way).astype(int) - upright).mean() for way in ways[1:]]
    assert right < 1.5
    assert right < min(others) / 2


def _turn(frame: np.ndarray, way: Orientation) -> np.ndarray:
    frame = frame.transpose(1, 0, 2) if way.transpose else frame
    frame = frame[:, ::-1] if way.hflip else frame
    return frame[::-1] if way.vflip else frame
