"""Laws: what the driver holds goes when shards are committed; a simulated run is as fast as its slowest part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.bench.driver import measure
from jobs.bench.simulate import Args, Result, Simulation
from pipeline.runs.commits import COMMITS_IN_FLIGHT, ENCODERS_PER_COMMIT, commits_in_flight

FREE = Args(
    encoders=(),
    clips_per_shard=8,
    encode_seconds=1.0,
    decode_seconds=1.0,
    read_seconds=0.0,
    request_ms=0.0,
    spread=0.0,
    receipt_us=0.0,
    unpack_us=0.0,
    commits=1,
    commit_cpu_ms=0.0,
)
"""Driver and store take no time."""


def simulated(args: Args, encoders: int) -> Result:
    return Simulation(args, encoders).run()


@pytest.mark.parametrize("encoders", [1, 10, 40])
def test_with_a_free_driver_and_store_the_clips_are_linear_in_the_encoders(encoders: int) -> None:
    got = simulated(FREE, encoders)
    assert got.clips_per_second == encoders
    assert got.limit == "encoders"


@pytest.mark.parametrize("encoders", [20, 40])
def test_a_slow_driver_takes_one_clip_in_its_time(encoders: int) -> None:
    got = simulated(replace(FREE, receipt_us=50_000.0), encoders)  # two receipts, so 10 clips/s
    assert got.clips_per_second == pytest.approx(10, rel=0.02)
    assert got.limit == "encoders, driver"


@pytest.mark.parametrize(
    ("slow", "limit"),
    [
        ({"commit_cpu_ms": 16_000.0}, "commits"),  # 2 s for a shard of 8 clips
        ({"request_ms": 2000 / 3, "claims": 1, "commits": 1000}, "claims"),  # three requests a shard, so 2 s
    ],
)
def test_slow_commits_or_claims_let_through_one_shard_in_their_time(slow: dict[str, float], limit: str) -> None:
    got = simulated(replace(FREE, seconds=400.0, **slow), 20)  # type: ignore[arg-type]
    assert got.committed_per_second == pytest.approx(4, rel=0.05)
    assert limit in got.limit


def test_the_same_seed_gives_the_same_run() -> None:
    args = replace(Args(), seconds=10.0)
    assert simulated(args, 10) == simulated(args, 10)
    assert simulated(args, 10) != simulated(replace(args, seed=1), 10)


@pytest.mark.parametrize(("shards", "open_shards"), [(5, 5), (40, 3)])
def test_nothing_is_held_of_a_committed_shard(shards: int, open_shards: int) -> None:
    got = measure(shards, open_shards)
    assert got.left == (0, 0)
    assert got.num_receipts == shards * (1 + 50 + 100)


def test_there_are_as_many_commits_at_a_time_as_the_encoders_need() -> None:
    assert [commits_in_flight(n) for n in (0, 1, 2 * ENCODERS_PER_COMMIT)] == [COMMITS_IN_FLIGHT] * 3
    assert commits_in_flight(10 * ENCODERS_PER_COMMIT + 1) == 11
