"""Real files whose containers round times: each clip shows the frames that exact times give.

Frame n shows n, and the oracle computes with the exact times n / rate. The ffmpeg command line is another one.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vae
from pipeline.decode import measure, probe
from pipeline.guard.strikes import Strikes
from pipeline.receipts import RejectionReceipt
from pipeline.records import Chunk, Video
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule
from pipeline.stages.decode_video import Decoder
from tests.small import HEALTHY
from tests.videos import make_video, read_number

NTSC = Fraction(1000, 1001)
INFO = vae.load_vae("tiny").info
HEIGHT, WIDTH = 64, 96
NUM_FRAMES = 50
CONTAINERS: dict[str, dict[str, Any]] = {
    "Matroska": {"container": "matroska"},
    "WebM": {"container": "webm", "codec": "libvpx"},
    "FLV": {"container": "flv", "codec": "libx264"},
    "MP4 of milliseconds": {"container": "mp4", "container_options": {"video_track_timescale": "1000"}},
    "QuickTime of 1/600 s": {"container": "mov", "container_options": {"video_track_timescale": "600"}},
    "MPEG transport stream": {"container": "mpegts"},
    "MPEG program stream": {"container": "mpeg", "codec": "mpeg2video"},
    "ASF": {"container": "asf", "codec": "msmpeg4"},
    "MP4 of exact times": {"container": "mp4"},
}
QUICK = {
    *((name, Fraction(24)) for name in ("Matroska", "WebM", "MP4 of milliseconds", "ASF")),
    *((name, 24 * NTSC) for name in ("Matroska", "FLV", "QuickTime of 1/600 s", "MPEG program stream")),
    *(("MPEG transport stream", n * NTSC) for n in (24, 60)),
    ("MP4 of exact times", 24 * NTSC),
}
WHOLE = (24, 12, 15, 16, 18, 20, 25, 30, 48, 50, 60)
RATES = [*map(Fraction, WHOLE), *(n * NTSC for n in (24, 60, 12, 15, 16, 30, 48))]
MPEG2 = {24 * NTSC, Fraction(24), Fraction(25), 30 * NTSC, Fraction(30), Fraction(50), 60 * NTSC, Fraction(60)}
"""The rates that MPEG-2 has."""


def encoded(name: str, rate: Fraction, late: int = 0, num_frames: int = NUM_FRAMES) -> bytes:
    """A file of a constant rate that begins `late` frames after 0."""
    times = [(late + n) / rate for n in range(num_frames)]
    return make_video(times=times, fps=rate, time_base=1 / rate, width=WIDTH, height=HEIGHT, **CONTAINERS[name])


def clips_of(data: bytes, rule: ClipRule, **changes: Any) -> list[list[int]]:
    """The numbers of the frames of each clip, through the job's stage; an empty list for a rejected one."""
    decoder = Decoder(clip=rule, latent=LatentRule(), info=INFO, deadline=HEALTHY)
    clips = []
    for record in decoder(Video(shard="s", video=0, key="k", uri="u", payload=data, **changes), Strikes()):
        if isinstance(record, Chunk):
            clips.append([read_number(frame) for frame in record.frames])
        elif isinstance(record, RejectionReceipt):
            clips.append([])
    return clips


def on_grid(fps: Fraction | str, num_frames: int = 5, **changes: Any) -> ClipRule:
    settings = {"clips": "all"} | changes
    return ClipRule(num_frames=num_frames, fps=str(fps), height=HEIGHT, width=WIDTH, **settings)


def expected(rate: Fraction, fps: Fraction, num_frames: int = 5) -> list[list[int]]:
    """All whole clips of a video of NUM_FRAMES frames, by exact times."""
    total = math.ceil(NUM_FRAMES / rate * fps)
    shown = [math.floor(i / fps * rate) for i in range(total)]
    return [shown[at : at + num_frames] for at in range(0, total - num_frames + 1, num_frames)]


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        pytest.param(name, rate, id=f"{name} {rate}", marks=[] if (name, rate) in QUICK else [pytest.mark.slow])
        for name in CONTAINERS
        for rate in RATES
        if name != "MPEG program stream" or rate in MPEG2
    ],
)
def test_all_clips_show_what_exact_times_give(name: str, rate: Fraction) -> None:
    for late in (0, 1) if rate == 24 else (2,):
        data = encoded(name, rate, late)
        for fps in (rate, rate / 2, rate / 3, rate / 4, Fraction(8), Fraction(16), Fraction(24)):
            assert clips_of(data, on_grid(fps)) == expected(rate, fps)
            assert clips_of(data, on_grid(fps, clips="first")) == expected(rate, fps)[:1]
        assert clips_of(data, on_grid("native")) == [list(range(n, n + 5)) for n in range(0, NUM_FRAMES, 5)]
        assert measure(data).duration == NUM_FRAMES / rate


@pytest.mark.parametrize("name", ["Matroska", "MPEG transport stream"])
def test_clips_that_are_reached_by_seeking_show_the_same(name: str) -> None:
    """And the video's own rate passes --min-fps, one frame too many is too many, and nothing counts as repeated."""
    rate = 24 * NTSC
    data = encoded(name, rate, num_frames=150)
    rule = on_grid(rate, clips="every", every=2.0, min_fps=23.976)
    assert clips_of(data, rule) == [[math.floor((2 * k + i / rate) * rate) for i in range(5)] for k in range(4)]
    later = on_grid(rate, num_frames=9, clips="first")
    assert clips_of(data, later, start=99 / rate) == [list(range(99, 108))]
    assert clips_of(data, later, start=141 / rate) == [list(range(141, 150))]
    assert clips_of(data, on_grid(rate, num_frames=150)) == [list(range(150))]
    assert clips_of(data, on_grid(rate, num_frames=151)) == [[]]


def test_the_clock_of_a_transport_stream_may_wrap() -> None:
    """After 2^33 ticks, in the middle of the video."""
    rate = 24 * NTSC
    late = math.floor((Fraction(2**33, 90_000) - 1) * rate)
    data = encoded("MPEG transport stream", rate, late)
    assert clips_of(data, on_grid(rate)) == expected(rate, rate)


@pytest.mark.parametrize("name", ["Matroska", "FLV", "MP4 of milliseconds", "MPEG transport stream"])
def test_the_ffmpeg_command_line_chooses_the_same_frames(name: str, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    for rate in (Fraction(24), 24 * NTSC):
        (tmp_path / "video").write_bytes(data := encoded(name, rate))
        command = [ffmpeg, "-v", "error", "-i", str(tmp_path / "video"), "-vf", f"fps={rate}", "-pix_fmt", "rgb24"]
        raw = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
        frames = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
        theirs = [read_number(frame) for frame in frames]
        assert len(theirs) >= NUM_FRAMES - 1  # ffmpeg ends early where a container gives the last frame no duration
        assert clips_of(data, on_grid(rate, num_frames=len(theirs))) == [theirs]


def written(k: int) -> Sequence[Fraction]:
    """Frame k of 30 a second, as programs write its time."""
    return [Fraction(str(k / 30)), Fraction(f"{k / 30:.3f}"), Fraction(k * 1000 // 30, 1000), Fraction(f"{k / 30:.6f}")]


@pytest.mark.parametrize("name", ["MP4 of exact times", "Matroska"])
def test_a_start_or_end_in_a_table_means_the_frame_that_is_very_near(name: str) -> None:
    data = encoded(name, Fraction(30))
    for k in (1, 13, 26):
        for start, end in zip(written(k), written(k + 5), strict=True):
            for fps in ("30", "native"):
                whole, longer = (on_grid(fps, num_frames=n, clips="first") for n in (5, 6))
                assert clips_of(data, whole, start=start, end=end) == [list(range(k, k + 5))]
                assert clips_of(data, longer, start=start, end=end) == [[]]


def test_a_start_between_two_frames_stays_there() -> None:
    data = encoded("MP4 of exact times", Fraction(30))
    rule = on_grid("30", clips="first")
    assert clips_of(data, rule, start=Fraction(45, 1000)) == [[1, 2, 3, 4, 5]]
    assert clips_of(data, rule, start=Fraction(65, 1000)) == [[1, 2, 3, 4, 5]]
    assert clips_of(data, on_grid("native", clips="first"), start=Fraction(65, 1000)) == [[2, 3, 4, 5, 6]]


def test_the_rule_of_earlier_versions_compares_what_is_stored() -> None:
    """Their outputs go on with it: frame 1 stands at 42 ms, and 1/24 s is earlier."""
    data = encoded("Matroska", Fraction(24))
    old = on_grid(24, num_frames=9, clips="first", times="as_stored")
    assert clips_of(data, old) == [[0, 0, 2, 3, 3, 5, 6, 6, 8]]
    assert clips_of(data, on_grid(30, clips="first", times="as_stored"), start=Fraction("0.041"))[0][0] == 0


def test_the_facts_name_the_rate() -> None:
    for name, fact in (("Matroska", "24000/1001"), ("MP4 of exact times", None)):
        data = encoded(name, 24 * NTSC)
        (chunk,) = (
            record
            for record in Decoder(clip=on_grid(24, clips="first"), latent=LatentRule(), info=INFO, deadline=HEALTHY)(
                Video(shard="s", video=0, key="k", uri="u", payload=data), Strikes()
            )
            if isinstance(record, Chunk)
        )
        assert chunk.facts.source.get("rate") == fact
        assert chunk.facts.timestamps[-1] == float(3 / (24 * NTSC))
        assert (probe(data, rate_until=Fraction(1)).rate is None) == (fact is None)
