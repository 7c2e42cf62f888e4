"""The plan: frozen once, grown at its end, the same for everybody; what is done and staged is seen in two listings."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import AccessError, ChangedError, ConfigError
from pipeline.output.commit import tidy
from pipeline.plan.frozen import Plan, make_plan, plan_dry_run, read_plan
from pipeline.plan.plan_file import ROWS_PER_GROUP
from pipeline.records import ChunkId
from pipeline.shards import Shard, Staged
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage
from tests.fault_proxy import DropResponse, FaultProxy, Status
from tests.sources import ROWS, WRITERS, fill, make_tar, outcomes

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def rows_of(plan: Plan) -> list[tuple[str, str]]:
    return [pair for shard in plan for pair in outcomes(shard)]


def plan_files(output: Storage) -> dict[str, bytes]:
    return {entry.path: output.read(entry.path) for entry in output.list("plan")}


def make_sources(root: Path) -> list[str]:
    fill(root / "tars", {f"{name}.tar": make_tar([(f"{name}{i}.mp4", b"x") for i in range(3)]) for name in "abc"})
    fill(root / "clips", {f"{number:02d}.mp4": b"x" * number for number in range(10)})
    for kind, write in WRITERS.items():
        write(root / f"t.{kind}", ROWS)
    return [str(root / "tars" / "*.tar"), str(root / "clips"), *(str(root / f"t.{kind}") for kind in WRITERS)]


def test_a_plan_is_frozen_and_covers_the_sources_once(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    plan = make_plan(output, sources, shard_size=4)
    assert [shard.kind for shard in plan] == ["webdataset"] * 3 + ["files"] * 3 + ["table"] * 6
    assert len({shard.name for shard in plan}) == plan.num_shards == plan.num_remaining == 12
    assert len(rows_of(plan)) == 9 + 10 + 15
    frozen = plan_files(output)
    assert list(frozen) == ["plan/000000.parquet"]
    for again in (make_plan(output, sources, shard_size=3), read_plan(output), make_plan(output, sources[::-1])):
        assert list(again) == list(plan), "another shard_size regroups nothing"
    assert plan_files(output) == frozen


def test_the_same_source_gives_the_same_plan_anywhere(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    plans = [make_plan(Storage(str(tmp_path / out)), sources) for out in ("1", "2")]
    shards = [[replace(shard, members=None) for shard in plan] for plan in plans]
    assert shards[0] == shards[1]


def test_a_source_given_twice_is_planned_once(tmp_path: Path, output: Storage) -> None:
    make_sources(tmp_path)
    tars = tmp_path / "tars"
    plan = make_plan(output, [str(tars), str(tars) + "/", str(tars / "*.tar"), str(tars / "a.tar")])
    assert plan.num_shards == 3


def test_growth_appends_and_touches_nothing_else(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    before = list(make_plan(output, sources, shard_size=4))
    frozen = plan_files(output)
    fill(tmp_path / "tars", {"0.tar": make_tar([("n.mp4", b"")])})
    fill(tmp_path / "clips", {"00-a.mp4": b"1", "05.txt": "late sidecar", "zz.mp4": b"2"})
    dry = list(plan_dry_run(output, sources, shard_size=4))
    assert plan_files(output) == frozen
    plan = make_plan(output, sources, shard_size=4)
    assert [shard.name for shard in dry] == [shard.name for shard in plan]
    assert list(plan)[: len(before)] == before
    assert [outcomes(shard) for shard in list(plan)[len(before) :]] == [
        [("n", "video")],
        [("00-a.mp4", "video"), ("zz.mp4", "video")],
    ]
    assert list(plan_files(output)) == ["plan/000000.parquet", "plan/000001.parquet"]
    assert frozen.items() <= plan_files(output).items()
    assert list(make_plan(output, sources, shard_size=4)) == list(plan)


def test_a_folder_that_grows_again_and_again_is_still_covered_once(tmp_path: Path, output: Storage) -> None:
    names: list[str] = []
    for step in range(6):
        new = [f"{(number * 7919 + step * 104729) % 1000:03d}-{step}/v.mp4" for number in range(5)]
        fill(tmp_path / "clips", dict.fromkeys(new, b""))
        names += new
        plan = make_plan(output, [str(tmp_path / "clips")], shard_size=3)
        assert sorted(key for key, _ in rows_of(plan)) == sorted(names)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_limit_takes_the_first_shards_and_the_next_run_goes_on_after_them(
    tmp_path: Path, output: Storage, kind: str
) -> None:
    WRITERS[kind](tmp_path / f"t.{kind}", ROWS * 5)
    sources = [str(tmp_path / f"t.{kind}")]
    assert len(rows_of(make_plan(output, sources, shard_size=4, limit=2))) == 8
    assert len(rows_of(make_plan(output, sources, shard_size=4, limit=2))) == 8
    assert len(plan_files(output)) == 1
    plan = make_plan(output, sources, shard_size=7)
    assert [key for key, _ in rows_of(plan)] == [row["video"] for row in ROWS * 5]
    assert make_plan(output, sources, limit=1).num_shards == 1
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        make_plan(output, sources, limit=0)


@pytest.mark.parametrize("changed", ["tars/b.tar", "clips/05.mp4", "clips/05.txt", "t.csv", "t.jsonl", "t.parquet"])
def test_a_changed_object_is_named_and_refused(tmp_path: Path, output: Storage, changed: str) -> None:
    sources = make_sources(tmp_path)
    fill(tmp_path / "clips", {"05.txt": "caption"})
    plan = make_plan(output, sources)
    frozen = plan_files(output)
    fill(tmp_path, {changed: b"something else"})
    with pytest.raises(ChangedError, match=changed.replace("05.txt", "05.mp4, its .txt")):
        make_plan(output, sources)
    assert plan_files(output) == frozen
    kept = make_plan(output, sources, on_changed="keep")
    assert list(kept) == list(plan)


def test_what_has_gone_from_a_source_stays_in_the_plan(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    plan = make_plan(output, sources)
    (tmp_path / "tars" / "b.tar").unlink()
    (tmp_path / "clips" / "05.mp4").unlink()
    assert list(make_plan(output, sources)) == list(plan)


def test_done_and_staged_are_what_the_listings_say(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    names = [shard.name for shard in make_plan(output, sources, shard_size=4)]
    output.put(f"data/{names[0]}.parquet", b"")
    output.put(f"data/{names[1]}.16x5x60x90.0123456789ab.npy", b"")
    output.put(f"_staging/{names[0]}/v000000.c000000.k0000of0001.part", b"")
    for name in ("v000000.c000000.k0001of0002.part", "v000012.c000003.verdict.json", "v1.c1.part", "deeper/x", "v0"):
        output.put(f"_staging/{names[2]}/{name}", b"")
    output.put("_staging/_tmp/0123", b"")
    plan = make_plan(output, sources, shard_size=4)
    assert plan.done == {names[0]}
    assert plan.leftovers == (names[0],)
    remaining = list(plan.remaining())
    assert [shard.name for shard in remaining] == names[1:]
    staged = {shard.name: shard.staged for shard in remaining if shard.staged}
    part = ChunkId(shard=names[2], video=0, clip=0, chunk=1, num_chunks=2)
    assert staged == {names[2]: Staged(parts=(part,), verdicts=((12, 3),))}
    assert plan.num_remaining == len(names) - 1
    assert plan.remaining_bytes == plan.num_bytes - next(iter(plan)).size
    assert [shard.staged for shard in plan] == [Staged()] * len(names)


def test_temporary_files_are_swept_when_they_are_old(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    output.put("_staging/_tmp/0123", b"")
    output.put("_staging/_tmp/4567", b"")
    os.utime(tmp_path / "out/_staging/_tmp/0123", (0, output.now() - 4000))
    plan = make_plan(output, sources)
    assert plan.leftovers == ()
    tidy(output, plan.done, plan.leftovers)
    assert [entry.path for entry in output.list("_staging/")] == ["_staging/_tmp/4567"]


def test_shards_do_not_carry_their_members_and_find_them_again(tmp_path: Path, output: Storage) -> None:
    number = ROWS_PER_GROUP + 44
    fill(tmp_path / "clips", {f"{i:04d}.mp4": b"" for i in range(number)})
    plan = make_plan(output, [str(tmp_path / "clips")], shard_size=1)
    shards = list(plan)
    assert max(len(shard.members_text) for shard in shards) < 200
    for index in (0, 1, ROWS_PER_GROUP - 1, ROWS_PER_GROUP, number - 1):
        assert outcomes(Shard.from_row(shards[index].to_row())) == [(f"{index:04d}.mp4", "video")]


def test_of_many_planners_all_have_one_plan(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    plans: list[Any] = [None] * 6
    barrier = threading.Barrier(len(plans))

    def plan(index: int) -> None:
        barrier.wait()
        # Different groups, so that the loser's file differs and can't pass for the winner's.
        plans[index] = list(make_plan(output, sources, shard_size=index + 1))

    threads = [threading.Thread(target=plan, args=(index,)) for index in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plan_files(output)) == 1
    assert all(shards == plans[0] for shards in plans)


def test_planners_with_different_sources_end_in_one_plan_of_both(tmp_path: Path, output: Storage) -> None:
    sources = make_sources(tmp_path)
    threads = [threading.Thread(target=make_plan, args=(output, [source])) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(read_plan(output))) == 9 + 10 + 15
    assert list(plan_files(output)) == [f"plan/{number:06d}.parquet" for number in range(len(sources))]


def test_a_plan_on_s3_is_the_same_plan(tmp_path: Path, s3: S3) -> None:
    make_sources(tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        s3.put(str(path.relative_to(tmp_path)), path.read_bytes())
    sources = [s3.uri("tars/*.tar"), s3.uri("clips"), s3.uri("t.csv"), s3.uri("t.jsonl"), s3.uri("t.parquet")]
    output = Storage(s3.uri("out"))
    plan = make_plan(output, sources, shard_size=4)
    assert len(rows_of(plan)) == 9 + 10 + 15
    s3.put("tars/d.tar", make_tar([("d.mp4", b"")]))
    assert make_plan(output, sources, shard_size=4).num_shards == plan.num_shards + 1
    s3.put("tars/a.tar", make_tar([("other.mp4", b"")]))
    with pytest.raises(ChangedError, match=r"tars/a\.tar"):
        make_plan(output, sources, shard_size=4)


def test_a_lost_answer_to_the_plan_is_no_second_plan(
    s3: S3, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)
    s3.put("x.tar", make_tar([("a.mp4", b"")]))
    output = Storage(s3.uri("out"))
    faults.add("PutObject", DropResponse(), path="plan")
    assert make_plan(output, [s3.uri("x.tar")]).num_shards == 1
    assert [path for path in s3.paths() if "plan" in path] == ["out/plan/000000.parquet"]
    faults.add("ListObjectsV2", Status(403, "AccessDenied"), path="data", times=1)
    with pytest.raises(AccessError):
        make_plan(output, [s3.uri("x.tar")])


def test_a_plan_without_sources_is_empty(output: Storage) -> None:
    assert list(read_plan(output)) == []
    assert read_plan(output).num_shards == 0


def test_videos_of_a_plan_are_read_in_the_order_of_the_source(tmp_path: Path, output: Storage) -> None:
    make_sources(tmp_path)
    (shard,) = make_plan(output, [str(tmp_path / "clips")])
    uris = [record.uri for record in read_shard(shard) if hasattr(record, "uri")]
    assert uris == [f"{tmp_path}/clips/{number:02d}.mp4" for number in range(10)]
