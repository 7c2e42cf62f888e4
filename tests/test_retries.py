"""Laws of second chances: a committed file keeps its bytes; every rejection asked for is tried once more, in a shard
where planned = latents + rejections; what comes out now is what would have come out at once."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latentmill.format import footer_of
from pipeline.control.clip_work import ClipWork
from pipeline.decode import DecodedClip, DecodeSpec, iter_clips
from pipeline.errors import ConfigError, CorruptVideoError, VideoError
from pipeline.guard.strikes import MAX_STRIKES, Strikes
from pipeline.output.commit import tidy
from pipeline.output.parts import stage
from pipeline.output.rows import from_table, to_table
from pipeline.output.spec_file import write_spec
from pipeline.output.tally import tally, target
from pipeline.plan.frozen import Plan, make_plan, plan_retries, read_plan
from pipeline.plan.plan_file import load_members
from pipeline.plan.retries import only_chosen
from pipeline.receipts import Receipt, Record
from pipeline.records import Chunk, Video
from pipeline.runs.claims import Claims, Owner
from pipeline.runs.passes import Passes
from pipeline.runs.stop import Stop
from pipeline.settings.job import Job
from pipeline.settings.spec import LatentRule
from pipeline.shards import Retry, Shard
from pipeline.sources.samples import Sample, refuse
from pipeline.stages.decode_video import Decode, Decoder
from pipeline.stages.encode_chunk import Encoder
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from tests.deadly import dies_alone
from tests.small import CLIP, HEALTHY, spec
from tests.sources import fill, make_tar
from tests.videos import make_video
from vae.info import VAEInfo

RULE = replace(CLIP, num_frames=17, fps="24", clips="all")
LATENT = LatentRule(chunk_windows=1, context="1")  # two chunks a clip
SPEC = spec(RULE, LATENT)
SECOND = Fraction(17, 24)
"""Start of clip 1."""


class Stages:
    """The stages of a job without Ray. The encoder is loaded once for all tests."""

    def __init__(self) -> None:
        self._encoder = Encoder("tiny", SPEC)

    def run(
        self, output: Storage, decode: Decode = iter_clips, guard: Strikes | None = None, parts: int | None = None
    ) -> ClipWork:
        """Do what is left, until so many parts are staged."""
        plan = read_plan(output)
        tidy(output, plan.done, plan.leftovers)
        work = ClipWork(output, plan, SPEC)
        passes = Passes(work, output, lambda line: None, 60)
        decoder = Decoder(clip=RULE, latent=LATENT, info=VAEInfo(**SPEC.vae), deadline=HEALTHY, decode=decode)
        claims = Claims(output, Owner.this_process(passes.run_id))
        work.stream = partial(self._receipts, output, decoder, guard or Strikes(), parts)
        work.release = claims.release
        passes.drive(claims, Stop(60))
        return work

    def _receipts(
        self, output: Storage, decoder: Decoder, guard: Strikes, parts: int | None, shards: list[Shard]
    ) -> Iterator[Receipt]:
        for shard in shards:
            for read in map(carried, read_shard(Shard.from_row(shard.to_row()))):
                records = decoder(read, guard) if isinstance(read, Video) else iter([read])
                for record in records:
                    if isinstance(record, Chunk) and parts is not None:
                        if parts == 0:
                            return
                        parts -= 1
                    yield stage(self._encoder(record) if isinstance(record, Chunk) else record, output)


def carried(record: Record) -> Record:
    """The record as the next stage sees it."""
    (same,) = from_table(to_table(record))
    return same


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of two videos with three clips each, something that is no video between them, and a torn end."""
    folder = tmp_path_factory.mktemp("source")
    sound = {name: make_video(num_frames=n, width=96, height=64) for name, n in (("a", 54), ("b", 51))}
    members = [("a.mp4", sound["a"]), ("a.txt", b"of a"), ("no.mp4", b"not a video"), ("b.mp4", sound["b"])]
    tar = make_tar([*members, ("lost.mp4", b"x" * 5000)])
    fill(folder, {"clips.tar": tar[: tar.index(b"lost.mp4") + 1024]})
    return folder / "clips.tar"


@pytest.fixture
def output(tmp_path: Path, source: Path) -> Storage:
    made = Storage(str(tmp_path / "out"))
    write_spec(made, SPEC)
    make_plan(made, [str(source)])
    return made


def fails(*starts: Fraction) -> Decode:
    """A decoder that finds the clips at these starts corrupt."""

    def decode(source: bytes | memoryview, specs: Sequence[DecodeSpec]) -> Iterator[DecodedClip | VideoError]:
        for piece, result in zip(specs, iter_clips(source, specs), strict=True):
            yield CorruptVideoError("bad luck") if piece.start in starts else result

    return decode


def retry(output: Storage, *reasons: str) -> Plan:
    return plan_retries(output, frozenset(reasons))


def retried(plan: Plan) -> list[Shard]:
    return [shard for shard in plan if shard.kind == "retry"]


def rows(output: Storage, shard: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(output.read(f"data/{shard}.parquet"))).to_pylist()  # type: ignore[no-any-return]


def ends(output: Storage, shard: str) -> list[tuple[str, int, str]]:
    """(key, clip index, "latent" or the reason), sorted; checks that every planned clip is in it."""
    _, footer = footer_of(io.BytesIO(output.read(f"data/{shard}.parquet")))
    found = [(row["key"], row["clip_index"], "latent") for row in rows(output, shard)]
    found += [(rejection["key"], rejection["clip"], rejection["reason"]) for rejection in footer["rejections"]]
    assert footer["planned"] == len(found)
    return sorted(found)


def objects(output: Storage, *folders: str) -> dict[str, bytes]:
    return {entry.path: output.read(entry.path) for folder in folders for entry in output.list(folder)}


def test_every_rejection_asked_for_is_tried_in_a_shard_of_its_own(output: Storage, stages: Stages) -> None:
    stages.run(output, fails(SECOND))
    (first,) = read_plan(output)
    whole = [("", 0, "tar_damaged"), ("no", 0, "unreadable")]
    before = objects(output, "data/", "plan/")
    assert ends(output, first.name) == sorted(
        [*whole, *((key, clip, "corrupt" if clip == 1 else "latent") for key in "ab" for clip in range(3))]
    )
    (again,) = retried(retry(output, "corrupt", "unreadable"))
    assert not stages.run(output).left()
    assert ends(output, again.name) == [("a", 1, "latent"), ("b", 1, "latent"), ("no", 0, "unreadable")]
    after = objects(output, "data/", "plan/")
    assert {path: after[path] for path in before} == before
    assert sorted(after.keys() - before.keys()) == [f"data/{again.name}.parquet", "plan/000001.parquet"]
    assert [str(problem) for checked in verify(output) for problem in checked.problems] == []
    latents = [row for name in (first.name, again.name) for row in rows(output, name)]
    assert sorted((row["key"], row["clip_index"]) for row in latents) == [(k, c) for k in "ab" for c in range(3)]
    assert len({row["id"] for row in latents}) == len(latents)


def test_a_clip_that_decodes_now_is_what_it_would_have_been(output: Storage, stages: Stages, tmp_path: Path) -> None:
    at_once = Storage(str(tmp_path / "at_once"))
    make_plan(at_once, [shard.uri for shard in read_plan(output)])
    stages.run(at_once)
    stages.run(output, fails(SECOND))
    (again,) = retried(retry(output, "corrupt"))
    stages.run(output)
    (sound,) = read_plan(at_once)
    expected = {(row["key"], row["clip_index"]): row for row in rows(at_once, sound.name)}
    for row in rows(output, again.name):
        other = expected[row["key"], row["clip_index"]]
        assert [name for name in row if row[name] != other[name]] in (["id"], ["id", "video_index"])
    assert [row["caption"] for row in rows(output, again.name)] == ["of a", None]


def test_asking_twice_plans_once(output: Storage, stages: Stages) -> None:
    stages.run(output, fails(SECOND))
    frozen = list(retry(output, "corrupt"))
    assert list(retry(output, "corrupt")) == frozen  # not begun
    stages.run(output)
    assert list(retry(output, "corrupt")) == frozen  # done
    plan = retry(output, "corrupt", "unreadable")
    assert len(retried(plan)) == 2
    stages.run(output)
    assert ends(output, retried(plan)[1].name) == [("no", 0, "unreadable")]
    assert list(make_plan(output, [frozen[0].uri])) == list(plan)
    assert list(retry(output, "hdr")) == list(plan)


def test_of_many_who_ask_at_once_all_get_one_plan(output: Storage, stages: Stages) -> None:
    stages.run(output, fails(SECOND))
    askers = [["corrupt"], ["corrupt", "unreadable"], ["unreadable"]] * 2
    threads = [threading.Thread(target=retry, args=(output, *reasons)) for reasons in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tried = [end for shard in retried(read_plan(output)) for end in _wanted(shard)]
    assert sorted(tried) == ["a", "b", "no"]


def _wanted(shard: Shard) -> list[str]:
    return [record.key for record in read_shard(shard) if isinstance(record, Video)]


def test_what_is_rejected_again_can_be_tried_again(output: Storage, stages: Stages) -> None:
    third = 2 * SECOND
    stages.run(output, fails(SECOND, third))
    names = []
    for decode in (fails(SECOND, third), fails(third), iter_clips):
        names.append(retried(retry(output, "corrupt"))[-1].name)
        stages.run(output, decode)
    corrupt = [(key, clip, "corrupt") for key in "ab" for clip in (1, 2)]
    assert ends(output, names[0]) == corrupt
    assert [end for end in ends(output, names[1]) if end not in corrupt] == [("a", 1, "latent"), ("b", 1, "latent")]
    assert ends(output, names[2]) == [("a", 2, "latent"), ("b", 2, "latent")]
    plan = retry(output, "corrupt")
    assert len(retried(plan)) == 3
    counts = tally(output, sorted(plan.done), plan.superseded(plan.done))
    unasked = {"unreadable": 1, "tar_damaged": 1}
    assert (counts.latents, counts.rejected) == (6, unasked), "a clip counts once: as what became of it at last"


def test_who_takes_up_open_retries_tries_no_clip_a_second_time(
    output: Storage, source: Path, tmp_path: Path, stages: Stages
) -> None:
    shutil.copy(source, tmp_path / "other.tar")
    make_plan(output, [str(source), str(tmp_path / "other.tar")])
    stages.run(output, fails(SECOND))
    plan = retry(output, "corrupt")
    one, other = retried(plan)
    stages.run(output, fails(SECOND))
    assert read_plan(output).done >= {one.name, other.name}  # corrupt again
    output.delete(f"data/{other.name}.parquet")
    assert list(retry(output, "corrupt")) == list(plan)
    stages.run(output, fails(SECOND))
    assert len(retried(retry(output, "corrupt"))) == 4


def test_a_verdict_is_not_remembered(output: Storage, stages: Stages) -> None:
    (first,) = read_plan(output)
    guard = Strikes()
    for _ in range(MAX_STRIKES):
        guard.begin(f"{first.name}/0/1/decode")
    stages.run(output, dies_alone, guard)
    assert ("a", 1, "decode_crashed") in ends(output, first.name)
    (again,) = retried(retry(output, "decode_crashed"))
    stages.run(output, iter_clips, guard)
    assert ends(output, again.name) == [("a", 1, "latent")]


def test_a_retry_that_broke_off_is_resumed(output: Storage, stages: Stages) -> None:
    stages.run(output, fails(SECOND, 2 * SECOND))
    (again,) = retried(retry(output, "corrupt"))
    broken = stages.run(output, parts=3)
    assert broken.left() == [again.name]
    resumed = stages.run(output)
    assert resumed.progress.parts == 8 - 3
    assert ends(output, again.name) == [(key, clip, "latent") for key in "ab" for clip in (1, 2)]
    assert not list(output.list("_staging/"))


def test_a_video_that_came_late_gives_all_its_clips(tmp_path: Path, stages: Stages) -> None:
    late = {"video": "late.mp4", "start": 0.25, "caption": "late"}
    fill(tmp_path, {"t.jsonl": "\n".join(json.dumps(row) for row in ({"video": ""}, {"video": "gone.mp4"}, late))})
    output = Storage(str(tmp_path / "out"))
    (first,) = make_plan(output, [str(tmp_path / "t.jsonl")])
    stages.run(output)
    assert {reason for _, _, reason in ends(output, first.name)} == {"not_found", "bad_row"}
    fill(tmp_path, {"late.mp4": make_video(num_frames=52, width=96, height=64)})
    (again,) = retried(retry(output, "not_found"))
    output = Storage(str(shutil.move(output.uri, tmp_path / "moved")))
    stages.run(output)
    assert ends(output, again.name) == [
        ("gone.mp4", 0, "not_found"),
        ("late.mp4", 0, "latent"),
        ("late.mp4", 1, "latent"),
    ]
    assert rows(output, again.name)[0]["start_sec"] == 0.25


def test_files_are_found_again(tmp_path: Path, stages: Stages) -> None:
    video = make_video(num_frames=52, width=96, height=64)
    fill(tmp_path / "clips", {"a.mp4": video, "b.mp4": b"", "c.mp4": video, "c.txt": "of c", "d.mp4": b"x"})
    output = Storage(str(tmp_path / "out"))
    make_plan(output, [str(tmp_path / "clips")], shard_size=3)
    stages.run(output, fails(SECOND))
    shards = retried(retry(output, "corrupt", "unreadable"))
    stages.run(output)
    assert [ends(output, shard.name) for shard in shards] == [
        [("a.mp4", 1, "latent"), ("b.mp4", 0, "unreadable"), ("c.mp4", 1, "latent")],
        [("d.mp4", 0, "unreadable")],
    ]
    assert [row["caption"] for row in rows(output, shards[0].name)] == [None, "of c"]


def test_the_rest_of_a_tar_is_tried_again(output: Storage, stages: Stages) -> None:
    stages.run(output)
    for times in (1, 2):
        shards = retried(retry(output, "tar_damaged"))
        stages.run(output)
        assert len(shards) == times
        assert ends(output, shards[-1].name) == [("", 0, "tar_damaged")]
    rests = [retry.rest for retry in map(load_members, shards) if isinstance(retry, Retry)]
    assert rests == [3, 0]  # from the torn sample on, however many come


def test_what_is_chosen_travels_on_and_nothing_behind_it_is_read() -> None:
    def samples() -> Iterator[Any]:
        for name in "abcde":
            yield Sample(key=name, uri=name) if name != "d" else refuse("bad_sidecar", "m", key="d", uri="d")

    def chosen(rest: int | None, *videos: Any) -> list[tuple[str, Any]]:
        before = Shard(name="s", kind="tar", uri="u", size=0, etag="")
        found = only_chosen(stream, Retry(of=before, videos=videos, rest=rest))
        return [(sample.key, sample.only if isinstance(sample, Sample) else sample.reason) for sample in found]

    stream = samples()
    assert chosen(None, (0, (4, 5)), (2, None)) == [("a", (4, 5)), ("c", None)]
    assert next(stream).key == "d"
    stream = samples()
    assert chosen(2, (1, (0,))) == [("b", (0,)), ("c", None), ("d", "bad_sidecar"), ("e", None)]
    stream = samples()
    assert chosen(None, (3, None), (7, None)) == [("d", "bad_sidecar"), ("", "not_found")]


def test_a_clip_that_is_gone_is_itself_and_not_the_whole_video() -> None:
    gone, whole = ({"video": 3, "clip": clip, "start": None} for clip in (7, 0))
    assert (target(gone), target(whole)) == ((3, 7), (3, None))
    assert target({"video": 3, "clip": 0, "start": "0"}) == (3, 0)


def test_only_reasons_of_rejections_can_be_asked_for() -> None:
    job = partial(Job, source=("x",), output="y", vae="tiny")
    assert job(retry_rejected=("corrupt,too_short", "hdr")).retry_reasons == {"corrupt", "too_short", "hdr"}
    assert job().retry_reasons == frozenset()
    for wrong in ("bad_luck", "corrupt,", ""):
        with pytest.raises(ConfigError, match=r"retry-rejected must name reasons among bad_row, .*got \['"):
            job(retry_rejected=(wrong,))
    with pytest.raises(ConfigError, match="does not take --limit, got 3"):
        job(retry_rejected=("corrupt",), limit=3)
