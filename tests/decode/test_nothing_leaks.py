"""Hundreds of files, whole and broken, finished and abandoned: memory, threads and descriptors stay where they were."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipeline.decode import DecodeSpec, iter_clips, measure, probe
from pipeline.errors import VideoError
from tests.decode.fuzz import corpus, mutated
from tests.videos import make_video

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="reads /proc")


def status(field: str) -> int:
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(field)).split()[1])


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def look(data: bytes, *, abandon: bool) -> None:
    spec = DecodeSpec(num_frames=3, fps=None, height=32, width=48, max_pixels=1 << 20)
    specs = [spec, DecodeSpec(num_frames=2, fps=Fraction(8), height=32, width=48, start=Fraction(1, 4))]
    with suppress(VideoError):
        probe(data)
        measure(data)
    clips = iter_clips(data, specs)
    if abandon:
        next(clips)
    else:
        list(clips)


def rounds(rng: random.Random, count: int) -> None:
    for _ in range(count):
        data = rng.choice(corpus()) if rng.random() < 0.5 else mutated(rng)
        look(data, abandon=rng.random() < 0.3)


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_memory_threads_and_descriptors_stay_flat(tmp_path: Path, count: int) -> None:
    rng = random.Random(5)
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(num_frames=12))
    rounds(rng, 60)
    gc.collect()
    before = status("VmRSS"), status("Threads"), num_descriptors()
    rounds(rng, count)
    for _ in range(count // 4):
        look(path, abandon=True)  # type: ignore[arg-type]
    gc.collect()
    assert status("VmRSS") - before[0] < 12 * 1024
    assert status("Threads") == before[1]
    assert num_descriptors() == before[2]


def test_frames_are_let_go_without_the_garbage_collector() -> None:
    """A frame in a reference cycle keeps megabytes until the collector comes."""
    data = make_video(num_frames=60)
    gc.collect()
    gc.disable()
    try:
        for clip in iter_clips(data, [DecodeSpec(num_frames=20, fps=None, height=32, width=48)] * 3):
            assert not isinstance(clip, VideoError)
        probe(data)
        assert sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()) < 4
    finally:
        gc.enable()


def test_no_thread_is_started() -> None:
    data = make_video(num_frames=24, width=640, height=360)
    num_threads = status("Threads")
    seen = []
    for clip in iter_clips(data, [DecodeSpec(num_frames=12, fps=None, height=96, width=128)] * 2):
        seen.append(status("Threads"))
        assert not isinstance(clip, VideoError)
    assert set(seen) == {num_threads}
    assert threading.active_count() <= num_threads
