"""The source of the chaos runs: small tars, seeded. A video's name says what a poisoned stage does to it."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from tests.sources import make_tar
from tests.videos import make_video, picture

CONTENTS = (
    ("plain", "segfault", "plain", "hang", "plain", "plain"),
    ("plain", "plain", "memory", "plain", "oom_always", "plain"),
    ("plain", "oom_once", "plain", "oom_twice", "broken", "plain"),
    ("plain", "plain", "short", "plain", "device_once", "plain"),
)
"""Kinds of the videos of each shard. "broken" and "short" are rejected in every run, the undisturbed one too; the
others are healthy unless a stage is poisoned."""

MARK = b"chaos:"


def make_source(folder: Path, seed: int) -> str:
    """Write the tars; return their glob."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for number, kinds in enumerate(CONTENTS):
        members = [(f"{kind}-{number}{at}.mp4", _video(kind, rng)) for at, kind in enumerate(kinds)]
        (folder / f"shard{number}.tar").write_bytes(make_tar(members))
    return f"{folder}/*.tar"


def poison_of(payload: bytes | memoryview) -> str:
    """What a poisoned decoder does to this file, by its content: the kind in its last box."""
    tail = bytes(payload[-64:])
    return tail.rpartition(MARK)[2].decode() if MARK in tail else ""


def _video(kind: str, rng: random.Random) -> bytes:
    """Two clips of two chunks each, every frame another picture; the kind in a `free` box, which demuxers skip."""
    if kind == "broken":
        return rng.randbytes(5000)
    first, num_frames = rng.randrange(1 << 15), 12 if kind == "short" else 36
    images = [picture(first + n, 96, 64) for n in range(num_frames)]
    video = make_video(width=96, height=64, num_frames=num_frames, images=images)
    mark = MARK + kind.encode()
    return video + struct.pack(">I4s", 8 + len(mark), b"free") + mark
