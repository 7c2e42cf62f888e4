"""Generate the demo's sources: two tars, a folder and a table of short videos, two of them broken.

tars/000000.tar     drift.mp4, upright.mp4 (rotated by metadata), not-a-video.mp4      captions in .txt and .json
tars/000001.tar     jitter.mp4 (variable frame rate), truncated.mkv, slow.mkv
folder/             long.mp4, wide.mov                                                 sidecars
table.jsonl         ranges (start, end) of the folder's videos
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from jobs.demo.scenes import Scene

_TIME_BASE = Fraction(1, 90_000)


def write_sources(root: Path) -> None:
    """Write the files listed above into the folder `root`. The bytes depend only on the encoder's version."""
    for folder in ("tars", "folder"):
        (root / folder).mkdir(parents=True)
    drift = make_video(even_times(48, 24), width=192, height=128, seed=1)
    upright = make_video(even_times(60, 30), width=160, height=96, seed=2, rotation=90)
    jitter = make_video(_jittered(50), width=144, height=96, seed=3)
    whole = make_video(even_times(75, 25), width=128, height=96, seed=4, container="matroska")  # opens though it is cut
    slow = make_video(even_times(30, Fraction(12_000, 1001)), width=128, height=128, seed=5, container="matroska")
    write_tar(
        root / "tars/000000.tar",
        {
            "drift.mp4": drift,
            "drift.txt": b"things drift over a texture",
            "upright.mp4": upright,
            "upright.json": json.dumps({"caption": "held upright", "license": "CC0", "score": 0.9}).encode(),
            "not-a-video.mp4": b"This is a text file that somebody named .mp4.\n" * 20,
        },
    )
    write_tar(
        root / "tars/000001.tar",
        {
            "jitter.mp4": jitter,
            "jitter.txt": b"frames come when they like",
            "slow.mkv": slow,
            "truncated.mkv": whole[: len(whole) // 2],
        },
    )
    (root / "folder/long.mp4").write_bytes(make_video(even_times(100, 24), width=192, height=128, seed=6))
    (root / "folder/long.txt").write_text("four seconds, encoded as overlapping chunks\n")
    (root / "folder/wide.mov").write_bytes(
        make_video(even_times(64, 30), width=256, height=96, seed=7, container="mov")
    )
    (root / "folder/wide.json").write_text(json.dumps({"text": "a wide one", "camera": "none"}))
    rows = [
        {"video": "folder/long.mp4", "start": 0.5, "end": 2, "caption": "the beginning", "take": 1},
        {"video": "folder/long.mp4", "start": 2, "end": 4, "caption": "the rest", "take": 2},
        {"video": "folder/wide.mov", "caption": "all of it", "take": 3},
        {"video": "folder/missing.mp4", "caption": "a row about nothing", "take": 4},
    ]
    (root / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def even_times(num_frames: int, fps: Fraction | int) -> list[Fraction]:
    return [Fraction(n) / fps for n in range(num_frames)]


def _jittered(num_frames: int) -> list[Fraction]:
    """Return frame times that are between 20 ms and 100 ms apart."""
    gaps = np.random.default_rng(0).integers(20, 100, num_frames).tolist()
    return [Fraction(sum(gaps[:n]), 1000) for n in range(num_frames)]


def make_video(
    times: Sequence[Fraction], *, width: int, height: int, seed: int, rotation: int = 0, container: str = "mp4"
) -> bytes:
    """Encode an H.264 file with a frame at each of `times` (seconds)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": "23", "g": "24"}
        if rotation:
            stream.set_display_rotation(rotation)
        scene = Scene(seed, height, width)
        for time in times:
            frame = av.VideoFrame.from_ndarray(scene.frame(float(time)), format="rgb24")
            frame.pts, frame.time_base = round(time / _TIME_BASE), _TIME_BASE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
