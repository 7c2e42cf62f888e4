"""Laws of --give-up-after: only a source that failed in so many runs is rejected, and a retry takes it up again;
without the flag its shard stays open for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.output.tally import tally
from pipeline.plan.frozen import plan_retries
from pipeline.storage import Storage
from tests.test_driver import Run
from tests.videos import make_video


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A sound video, and one that cannot be read: a link to itself."""
    (tmp_path / "sound.mp4").write_bytes(make_video(num_frames=33, width=96, height=64))
    (tmp_path / "dead.mp4").symlink_to(tmp_path / "dead.mp4")
    path = tmp_path / "t.csv"
    path.write_text("video\nsound.mp4\ndead.mp4\n")
    return path


def rejections(output: Path) -> list[tuple[str, str]]:
    found = [json.loads(line) for path in (output / "rejected").iterdir() for line in path.read_text().splitlines()]
    return [(rejection["key"], rejection["reason"]) for rejection in found]


def test_a_source_that_fails_in_three_runs_is_given_up_and_taken_up_again(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        (why,) = Run(table, output, give_up_after=3).go().values()
        assert "dead.mp4" in why
    assert Run(table, output, give_up_after=3).go() == {}
    assert rejections(output) == [("dead.mp4", "unreachable")]
    assert [row for path in (output / "data").iterdir() for row in pq.read_table(path)["key"].to_pylist()] == [
        "sound.mp4"
    ]
    assert not list(Storage(str(output)).list("_staging/"))

    (tmp_path / "dead.mp4").unlink()
    (tmp_path / "dead.mp4").write_bytes((tmp_path / "sound.mp4").read_bytes())
    plan_retries(Storage(str(output)), frozenset({"unreachable"}))
    run = Run(table, output)
    assert run.go() == {}
    counts = tally(run.output, sorted(run.driver.done), run.driver._plan.superseded(run.driver.done))
    assert counts.latents == 2
    assert counts.rejected == {}


def test_a_source_that_comes_back_in_time_is_a_latent(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert Run(table, output, give_up_after=2).go()
    (tmp_path / "dead.mp4").unlink()
    (tmp_path / "dead.mp4").write_bytes((tmp_path / "sound.mp4").read_bytes())
    assert Run(table, output, give_up_after=2).go() == {}
    assert not (output / "rejected").exists()


def test_without_the_flag_its_shard_stays_open(table: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert Run(table, tmp_path / "out").go()
    assert not list((tmp_path / "out").glob("_staging/*/*.faults*"))
