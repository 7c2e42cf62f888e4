"""Laws: SIGKILL the driver at any moment and run the same command again: the same bytes as one undisturbed run, nothing
left in staging, no row twice or missing, and what was staged is not encoded again. On a disk, and over the S3 protocol.
SIGTERM ends a run with the code that says "resume me", at whatever moment it comes.

More moments, and kills of workers, actors and nodes: tests/chaos.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.runs.stop import STATUS
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule
from tests.driver import Driver
from tests.outputs import make_output
from tests.test_run import make_tar
from tests.videos import make_video

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]

NUM_SHARDS, CLIPS_PER_SHARD = 3, 6

FLAGS = ["--vae", "tiny", "--num-frames", "9", "--height", "64", "--width", "96", "--clips", "all"]
CLIP = ClipRule(num_frames=9, height=64, width=96, clips="all")
"""The same for an undisturbed run without Ray: the stages called one after the other."""


def make_sources(folder: Path) -> list[Path]:
    """Tars of two videos with three clips each, and one file that is no video."""
    video = make_video(num_frames=90, width=96, height=64)
    paths = [folder / f"{i}.tar" for i in range(NUM_SHARDS)]
    for path in paths:
        make_tar(path, {"a": video, "b": b"not a video", "c": video})
    return paths


def files(output: Path, pattern: str) -> list[Path]:
    return sorted(output.glob(pattern))


@pytest.mark.slow
def test_a_driver_killed_twice_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    make_sources(tmp_path)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"

    def command(where: Path) -> list[str]:
        return ["--source", f"{tmp_path}/*.tar", "--output", str(where), *FLAGS]

    make_output(f"{tmp_path}/*.tar", undisturbed, CLIP, LatentRule())

    Driver(command(output)).kill_when(lambda: bool(files(output, "_staging/*/*.part")))
    staged = len(files(output, "_staging/*/*.part")) + CLIPS_PER_SHARD * len(files(output, "data/*"))
    Driver(command(output)).kill_when(lambda: bool(files(output, "data/*")))
    committed = files(output, "data/*")
    mtimes = [path.stat().st_mtime_ns for path in committed]
    done = {path.stem for path in committed}  # the driver may be killed before it deletes their parts
    staged_later = sum(path.parent.name not in done for path in files(output, "_staging/*/*.part"))
    Driver(command(output)).finish()

    assert [p.read_bytes() for p in files(output, "data/*")] == [p.read_bytes() for p in files(undisturbed, "data/*")]
    assert [p.read_bytes() for p in files(output, "index/*")] == [p.read_bytes() for p in files(undisturbed, "index/*")]
    assert len(files(output, "rejected/*")) == NUM_SHARDS
    assert not files(output, "_staging/*/*.part")
    assert [path.stat().st_mtime_ns for path in committed] == mtimes
    (last_run,) = files(output, "runs/*")
    left = NUM_SHARDS * CLIPS_PER_SHARD - CLIPS_PER_SHARD * len(committed) - staged_later
    assert json.loads(last_run.read_text())["summary"]["parts_staged"] == left
    assert staged >= 1


def stoppable(folder: Path) -> list[str]:
    make_sources(folder)
    return ["--source", f"{folder}/*.tar", "--output", str(folder / "out"), *FLAGS, "--grace", "0.1"]


def test_a_stop_while_ray_starts_says_resume_me(tmp_path: Path) -> None:
    driver = Driver(stoppable(tmp_path))
    driver.signal_when(driver.starts_processes)
    driver.finish(STATUS["SIGTERM"])
    assert not files(tmp_path, "out/data/*")


@pytest.mark.slow
def test_a_stop_without_grace_says_resume_me_and_the_next_run_does(tmp_path: Path) -> None:
    command = stoppable(tmp_path)
    driver = Driver(command)
    driver.signal_when(lambda: bool(files(tmp_path, "out/_staging/*/*.part")))
    driver.finish(STATUS["SIGTERM"])
    Driver(command).finish()
    assert len(files(tmp_path, "out/data/*")) == NUM_SHARDS
    assert not files(tmp_path, "out/_claims/*")


@pytest.mark.slow
def test_s3_in_and_out_and_resumed_after_a_kill(tmp_path: Path, s3: S3) -> None:
    for path in make_sources(tmp_path)[:2]:
        s3.put(f"in/{path.name}", path.read_bytes())

    def command(name: str) -> list[str]:
        return ["--source", s3.uri("in/*.tar"), "--output", s3.uri(name), *FLAGS]

    def stored(prefix: str) -> dict[str, bytes]:
        return {path.removeprefix(prefix): s3.get(path) for path in s3.paths() if path.startswith(prefix)}

    make_output(s3.uri("in/*.tar"), s3.uri("undisturbed"), CLIP, LatentRule())
    Driver(command("killed")).kill_when(lambda: any(path.startswith("killed/data/") for path in s3.paths()))
    printed = Driver(command("killed")).finish()

    assert stored("killed/data/") == stored("undisturbed/data/")
    assert len(stored("killed/data/")) == 2
    assert not stored("killed/_staging/")
    assert "2 of 2" in printed
