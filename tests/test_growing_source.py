"""Law: a run over a source that grows does only what is new, also while the run of the day before still goes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from latentmill.format import shard_of
from pipeline.settings.spec import LatentRule
from tests.driver import Driver
from tests.outputs import make_output
from tests.test_run import make_tar
from tests.test_run_kills import CLIP, FLAGS, files
from tests.videos import make_video

CLIPS_PER_SHARD = 3


def arrive(source: Path, *days: int) -> None:
    """Put two tars of each day into the source."""
    video = make_video(num_frames=90, width=96, height=64)
    for day in days:
        for number in range(2):
            make_tar(source / f"day{day}-{number}.tar", {"a": video, "b": b"not a video"})


def shards(output: Path, folder: str, day: int) -> list[str]:
    return sorted({shard_of(path.name) for path in files(output, f"{folder}/day{day}-*")})


@pytest.mark.slow
def test_three_days_of_which_the_second_run_still_goes_when_the_third_begins(tmp_path: Path) -> None:
    source, output, undisturbed = tmp_path / "source", tmp_path / "out", tmp_path / "undisturbed"
    source.mkdir()
    command = ["--source", f"{source}/*.tar", "--output", str(output), *FLAGS]

    arrive(source, 1)
    Driver(command).finish()
    first_day = {path: path.stat().st_mtime_ns for path in files(output, "data/*")}

    arrive(source, 2)
    second = Driver(command)
    second.signal_when(lambda: bool(files(output, "_staging/day2-*/*.part")), signal.SIGSTOP)
    held = shards(output, "_claims", 2)
    arrive(source, 3)
    third = Driver(command)
    third.wait_until(lambda: len(shards(output, "data", 3)) == 2)
    assert not set(held) & set(shards(output, "data", 2))
    second.signal_when(lambda: True, signal.SIGCONT)
    second.finish()
    third.finish()
    nothing_new = Driver(command).finish()

    make_output(f"{source}/*.tar", undisturbed, CLIP, LatentRule())
    assert [p.read_bytes() for p in files(output, "data/*")] == [p.read_bytes() for p in files(undisturbed, "data/*")]
    assert {path: path.stat().st_mtime_ns for path in first_day} == first_day
    runs = [json.loads(path.read_text())["summary"]["parts_staged"] for path in files(output, "runs/*")]
    assert (len(runs), runs[0], runs[-1]) == (4, 2 * CLIPS_PER_SHARD, 0)
    assert sum(runs) == 6 * CLIPS_PER_SHARD  # so no clip was encoded twice
    assert held
    assert len(files(output, "plan/*")) == 3
    assert not files(output, "_claims/*")
    assert not files(output, "_staging/*/*.part")
    assert "6 of 6" in nothing_new
