"""Laws: the line counts each clip once, whatever its chunks and retries say; rates and time left follow the clock."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pipeline.control.progress import ClipProgress
from pipeline.control.summary import Summary
from pipeline.output.wording import duration, size
from pipeline.receipts import ClipsReceipt, PartReceipt, Receipt, RejectionReceipt, VideosReceipt
from pipeline.records import ChunkId, Reason, Rejection


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def part(clip: int = 0, chunk: int = 0, num_chunks: int = 1, video: int = 0, **seconds: float) -> Receipt:
    id = ChunkId(shard="a", video=video, clip=clip, chunk=chunk, num_chunks=num_chunks)
    return PartReceipt(id=id, num_bytes=10, **seconds)  # type: ignore[arg-type]


def refused(clip: int = 0, chunk: int = 0, reason: Reason = "corrupt") -> Receipt:
    rejection = Rejection(reason=reason, stage="decode", message="", key="k", uri="u")
    return RejectionReceipt(id=ChunkId(shard="a", video=0, clip=clip, chunk=chunk), rejection=rejection)


def test_the_line_tells_shards_clips_rates_rejections_time_left_and_the_bottleneck() -> None:
    clock = Clock()
    made = ClipProgress(num_shards=4, source_bytes=dict.fromkeys("abcd", 5_000_000), num_done_before=6, clock=clock)
    made.slots = {"read": 1, "decode": 8, "encode": 2}
    assert "shards 6/10  clips 0" in made.line()
    assert "ETA ?" in made.line()
    clock.now += 50
    made.add(ClipsReceipt(shard="a", video=0, count=3, num_bytes=5_000_000, read_seconds=9))
    for chunk in range(3):
        made.add(part(0, chunk, 3, decode_seconds=24.0, encode_seconds=10.0))
    clock.now += 50
    made.add(part(1, encode_seconds=1.0))
    made.add(refused(2))
    made.finish("a")
    line = "shards 7/10  clips 2/2+  0.02 clips/s  ETA 3:45  rejected 1  bottleneck encode  0 B/s in"
    assert made.line() == line  # rates of the 50 s since the first clip
    made.add(part(1, decode_seconds=60.0))
    assert "bottleneck decode" in made.line()  # 132 s of 8 slots, 31 s of 2
    made.add(ClipsReceipt(shard="b", video=0, count=1, read_seconds=9))
    assert "bottleneck read" in made.line()


@pytest.mark.parametrize("num_videos", [{}, {"a": 2}])
def test_the_time_left_follows_the_clips_and_not_the_shards_that_are_whole(num_videos: dict[str, int]) -> None:
    """A shard of two videos of ten clips each, one clip a second, after a minute of starting up."""
    clock = Clock()
    made = ClipProgress(num_shards=1, source_bytes={"a": 2000}, num_videos=num_videos, clock=clock)
    clock.now += 60
    for video in range(2):
        made.add(ClipsReceipt(shard="a", video=video, count=10, num_bytes=1000))
        for clip in range(10):
            made.add(part(clip, video=video))
            done = 10 * video + clip + 1
            left = made.time_left()
            if done > 1:  # of the first clip the time is not known
                assert left is not None
                assert abs(left - (20 - done)) < 1e-6
            clock.now += 1
    assert made.time_left() == 0


def test_while_no_clip_ends_the_line_tells_what_is_waited_for() -> None:
    clock = Clock()
    made = ClipProgress(num_shards=2, source_bytes={"a": 1, "b": 1}, doing="starting Ray", clock=clock)
    clock.now += 7
    assert made.line() == "shards 0/2  clips 0  starting Ray (7.0 s)"
    made.elsewhere.add("b")
    assert made.line() == "shards 0/2  clips 0  held by another run 1  starting Ray (7.0 s)"
    made.add(part())
    assert "held by another run 1  ? clips/s" in made.line()
    made.finish("b")
    assert made.line().startswith("shards 1/2  clips 1  ? clips/s")


def test_a_clip_is_rejected_once_however_many_of_its_chunks_are() -> None:
    made = ClipProgress(num_shards=1, source_bytes={"a": 1})
    for chunk in range(3):
        made.add(refused(0, chunk))
    made.add(refused(1, reason="truncated"))
    assert made.rejected == {"corrupt": 1, "truncated": 1}


def test_the_table_tells_what_stands_there_and_what_is_left() -> None:
    text = Summary(
        planned_shards=30,
        done_shards=18,
        planned=9,
        latents=6,
        rejected={"truncated": 1, "corrupt": 2},
        latent_bytes=1_234_567,
        parts_staged=7,
        wall_seconds=3723.4,
        busy_seconds={"read": 0.5, "decode": 61.0},
        open_shards={f"s{i:02}": "the number of its videos" for i in range(12)},
    ).table()
    lines = text.splitlines()
    assert lines[:9] == [
        "shards       18 of 30",
        "planned      9 clips",
        "latents      6  (1.23 MB)",
        "rejected     3",
        "  corrupt    2",
        "  truncated  1",
        "this run     1:02:03, 7 chunks encoded",
        "busy         read 0.5 s, decode 1:01",
        "left: s00    the number of its videos",
    ]
    assert len(lines) == 8 + 10 + 1
    assert lines[-1] == "left         2 more"


def test_units() -> None:
    assert [duration(s) for s in (0.04, 59.9, 60, 3599.6)] == ["0.0 s", "59.9 s", "1:00", "1:00:00"]
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 5e15)] == ["0 B", "999 B", "1 kB", "12.3 MB", "5e+03 TB"]


def test_the_rate_is_that_of_the_last_minute_and_the_time_left_follows_it() -> None:
    """3,000 clips of 20 shards: after 90 s of start-up one encoder, a minute later four."""
    clock = Clock()
    made = ClipProgress(num_shards=20, source_bytes=dict.fromkeys(map(str, range(20)), 150_000), clock=clock)
    clock.now += 90
    times = [clock.now + n / 2 for n in range(120)] + [clock.now + 60 + n / 8 for n in range(2880)]
    for n, now in enumerate(times):
        shard, clip = str(n // 150), n % 150
        clock.now = now
        if clip == 0:
            made.add(VideosReceipt(shard=shard, count=1))
            made.add(ClipsReceipt(shard=shard, video=0, count=150, num_bytes=150_000))
        id = ChunkId(shard=shard, video=0, clip=clip, chunk=0, num_chunks=1)
        made.add(PartReceipt(id=id, num_bytes=10))
        if clip == 149:
            made.finish(shard)
        left = made.time_left()
        if 1000 <= n < 2999:
            assert left is not None
            assert abs(left - (times[-1] - now)) <= 0.25 * (times[-1] - now) + 0.5
    assert "clips 3000/3000  8 clips/s  ETA 0.0 s" in made.line()


def test_the_line_is_cut_to_the_terminal() -> None:
    """In a terminal of 80 columns nothing wraps: seen by the program at its other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    script = "from jobs.process import redraw; redraw('x' * 100)"
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, cwd=Path(__file__).parents[1])
    shown = os.read(ours, 1000).decode()
    os.close(ours)
    os.close(theirs)
    assert shown.removeprefix("\r\x1b[K") == "x" * 79
