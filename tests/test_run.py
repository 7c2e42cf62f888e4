"""Laws of the stream on a real Ray: the same bytes whatever the workers and the kills; planned = latents + rejections;
what is done is not done again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipeline.control.encoder_pool import EncoderPool
from pipeline.control.pools import Pools
from pipeline.control.ray_objects import answer
from pipeline.control.ray_text import Operators, stream
from pipeline.decode import DecodedClip, DecodeSpec, iter_clips
from pipeline.errors import ConfigError, EncoderError, StorageError, VideoError
from pipeline.guard.strikes import Strikes
from pipeline.output.rows import from_table, to_table
from pipeline.output.spec_file import write_spec
from pipeline.plan.frozen import plan_dry_run
from pipeline.receipts import ClipsReceipt, Receipt
from pipeline.records import Chunk, Latent, Video
from pipeline.run import graph, run
from pipeline.runs.passes import MAX_FAILED_WRITES
from pipeline.settings.job import Job, Workers
from pipeline.settings.resolve import resolve
from pipeline.settings.spec import LatentRule
from pipeline.shards import Shard
from pipeline.stages.read_shard import read_shard
from pipeline.stages.tables import READ_ATTEMPTS, EncodeActor, Shared, Stages, decode, stages_of
from pipeline.storage import Storage
from tests.small import CLIP
from tests.videos import cut, make_video

pytest_plugins = ["tests.local_ray"]


def make_tar(path: Path, videos: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, data in videos.items():
            for name, content in ((f"{key}.mp4", data), (f"{key}.json", json.dumps({"caption": f"of {key}"}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of four videos: two sound, one truncated, one no video at all."""
    folder = tmp_path_factory.mktemp("tars")
    sound = [make_video(num_frames=n, width=96, height=64) for n in (60, 90)]
    for i in range(3):
        bad = {"cut": cut(sound[1], 0.5), "text": b"not a video"}
        make_tar(folder / f"{i}.tar", {"short": sound[0], "long": sound[1]} | bad)
    return folder


def job(tars: Path, output: Path, **changes: object) -> Job:
    made = Job(
        source=(f"{tars}/*.tar",),
        output=str(output),
        vae="tiny",
        clip=replace(CLIP, clips="all"),
        latent=LatentRule(chunk_windows=1, context="1"),
        workers=Workers(decode_cpus=1, encoders="1"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def data(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "data").iterdir())}


def staged(output: Path) -> list[Path]:
    return [path for path in (output / "_staging").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = run(job(tars, output))
    assert summary.open_shards == {}
    return output


def test_every_planned_clip_is_a_latent_or_a_rejection(undisturbed: Path) -> None:
    """2.5 s and 3.75 s hold 2 and 3 clips of 9 frames at 8 fps; the other two videos count as one each."""
    for path in (undisturbed / "data").iterdir():
        table = pq.read_table(path)
        assert table["key"].to_pylist() == ["short"] * 2 + ["long"] * 3
        assert table["caption"].to_pylist()[-1] == "of long"
        footer = json.loads(pq.ParquetFile(path).metadata.metadata[b"latentmill.shard"])
        assert footer["planned"] == 7
        assert [(r["key"], r["reason"]) for r in footer["rejections"]] == [
            ("cut", "unreadable"),
            ("text", "unreadable"),
        ]
    index = pq.read_table(undisturbed / "index.parquet")
    assert index.num_rows == len(set(index["id"].to_pylist())) == 15
    assert not staged(undisturbed)
    assert not list((undisturbed / "_claims").iterdir())


def test_running_again_finds_nothing_to_do(undisturbed: Path, tars: Path) -> None:
    before = data(undisturbed)
    summary = run(job(tars, undisturbed))
    assert (summary.parts_staged, summary.latents, summary.planned) == (0, 15, 21)
    assert data(undisturbed) == before


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_workers(undisturbed: Path, tars: Path, tmp_path: Path) -> None:
    others = Workers(decode_cpus=0.25, encoders="2", threads_per_encoder=1)
    names = sorted(str(path) for path in tars.iterdir())
    run(replace(job(tars, tmp_path / "out", workers=others), source=tuple(reversed(names))))
    assert data(tmp_path / "out") == data(undisturbed)


def test_what_is_refused_leaves_no_spec_behind(tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConfigError):
        run(replace(job(tars, output), source=(f"{tmp_path}/nothing/*.tar",)))
    with pytest.raises(ConfigError, match="nothing would ever be produced"):
        run(job(tars, output, workers=Workers(encoders="99")))
    assert not (output / "spec.json").exists()


def test_a_limited_run_keeps_the_whole_index(undisturbed: Path, tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    run(job(tars, output, limit=1))
    assert (output / "index.parquet").read_bytes() == (undisturbed / "index.parquet").read_bytes()


def test_another_spec_is_refused_naming_every_field(undisturbed: Path, tars: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    other = job(tars, undisturbed, clip=replace(CLIP, num_frames=5), latent=LatentRule(seed=3))
    with pytest.raises(ConfigError) as refused:
        run(other)
    for line in (
        "clip.num_frames: 5 in this run, 9 there",
        "latent.seed: 3 in this run, 0 there",
        "clip.clips: first in this run, all there",
    ):
        assert line in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def loses_clips(source: bytes | memoryview, specs: Sequence[DecodeSpec]) -> Iterator[DecodedClip | VideoError]:
    """Gives one result too few for the video with three clips."""
    results = list(iter_clips(source, specs))
    yield from results[:2]


def test_a_shard_whose_sum_fails_is_not_committed(local_ray: None, tars: Path, tmp_path: Path) -> None:
    summary = run(job(tars, tmp_path / "out", limit=1), decode=loses_clips)
    assert summary.done_shards == 0
    assert len(summary.open_shards) == 1
    assert not (tmp_path / "out" / "data").exists()


def fails_midway(shard: Shard) -> Iterator[Video | Receipt]:
    """Storage fails for one shard after its first video."""
    for record in read_shard(shard):
        if shard.uri.endswith("1.tar") and isinstance(record, Video) and record.video == 1:
            raise StorageError("SlowDown")
        yield record


def test_a_storage_fault_leaves_its_shard_open_and_the_next_run_takes_it_up(
    undisturbed: Path, tars: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = run(job(tars, output), read=fails_midway)
    assert first.done_shards == 2
    ((name, why),) = first.open_shards.items()
    assert name.startswith("1-")
    assert "SlowDown" in why
    assert len(staged(output)) == 2
    second = run(job(tars, output))
    assert second.parts_staged == 3
    assert data(output) == data(undisturbed)
    assert not staged(output)


def fails_its_selfcheck(*_: object, **__: object) -> Callable[[Chunk], Latent]:
    raise ConfigError("self-check: bfloat16 differs from float32 by 3")


def test_an_encoder_that_cannot_start_ends_the_run_and_says_why(tars: Path, tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(EncoderError, match=r"no encoder can start: .*self-check: bfloat16 differs from float32 by 3\n"):
        run(job(tars, tmp_path / "out"), encode=fails_its_selfcheck)
    assert not list((tmp_path / "out" / "_claims").iterdir())


@pytest.mark.slow
def test_an_output_that_cannot_be_written_ends_the_run_in_one_line(
    tars: Path, tmp_path: Path, local_ray: None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The folders of the parts are files: no part can be put, as on a full disk."""
    wanted = job(tars, tmp_path / "out", latent=LatentRule(chunk_windows=1, context="1", dtype="float32"))
    write_spec(Storage(wanted.output), resolve(wanted)[0])  # what is staged without a spec is refused
    blocked = [tmp_path / "out/_staging" / shard.name for shard in plan_dry_run(Storage(wanted.output), wanted.source)]
    blocked[0].parent.mkdir(parents=True, exist_ok=True)
    for path in blocked:
        path.touch()
    with pytest.raises(StorageError, match=f"{MAX_FAILED_WRITES} failures in a row.*File exists") as raised:
        run(wanted)
    (note,) = raised.value.__notes__
    assert re.match(rf"shards +0 of {len(blocked)}\n", note)
    (recorded,) = (tmp_path / "out/runs").iterdir()
    assert json.loads(recorded.read_text())["failure"] == str(raised.value)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in printed
    assert printed.count("stays open") == MAX_FAILED_WRITES
    assert not list((tmp_path / "out").glob("data/*"))
    for path in blocked:
        path.unlink()
    assert run(wanted).open_shards == {}


def test_a_call_whose_worker_always_dies_ends_as_a_storage_error(local_ray: None) -> None:
    with pytest.raises(StorageError, match="worker died"):
        answer(ray.remote(num_cpus=0, max_retries=1)(lambda: os._exit(1)).remote())
    with pytest.raises(ZeroDivisionError) as raised:
        answer(ray.remote(num_cpus=0)(lambda: 1 // 0).remote())
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_shard_that_kills_every_reader_is_left_open(tars: Path, tmp_path: Path, local_ray: None) -> None:
    wanted = job(tars, tmp_path / "out", limit=1, latent=LatentRule(dtype="float32"))
    (reason,) = run(wanted, read=lambda _: os._exit(1)).open_shards.values()
    assert f"{READ_ATTEMPTS} workers died" in reason


def logs(events: Path, what: str) -> None:
    """Appends are whole, so the file is an order of what the processes did."""
    with events.open("a") as file:
        file.write(f"{what}\n")


def logged_read(events: Path, shard: Shard) -> Iterator[Video | Receipt]:
    yield from read_shard(shard)
    logs(events, "read")


def logged_decode(
    events: Path, source: bytes | memoryview, specs: Sequence[DecodeSpec]
) -> Iterator[DecodedClip | VideoError]:
    logs(events, "decode")
    yield from iter_clips(source, specs)


@pytest.mark.slow
def test_shards_of_addresses_are_read_a_few_ahead_of_decoding(local_ray: None, tmp_path: Path) -> None:
    """Encoders stand on all CPUs but one, which a task of Ray Data's own must not keep from decoding."""
    (tmp_path / "v.mp4").write_bytes(make_video(num_frames=30, width=96, height=64))
    (tmp_path / "t.csv").write_text("video\n" + "v.mp4\n" * 80)
    events = tmp_path / "events"
    many = job(tmp_path, tmp_path / "out", source=(f"{tmp_path}/t.csv",), shard_size=1, workers=Workers(encoders="2"))
    summary = run(many, read=partial(logged_read, events), decode=partial(logged_decode, events))
    assert summary.latents == 80
    ahead = list(accumulate({"read": 1, "decode": -1}[line] for line in events.read_text().split()))
    assert max(ahead) <= 12  # two are being read, a block waits for each of five decode tasks, and five have one


class AllOurs:
    """Claims of a run that has no rival."""

    def take(self, shard: str) -> bool:
        return True


def two_receipts(shard: Shard) -> Iterator[Receipt]:
    for clips in (1, 2):
        yield ClipsReceipt(shard=shard.name, video=0, count=clips)


def no_encoder(*_: object, **__: object) -> Callable[[Chunk], Latent]:
    return unexpected


def unexpected(chunk: Chunk) -> Latent:
    raise AssertionError(chunk.id)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    wanted = job(tmp_path, tmp_path / "out")
    return stages_of(wanted, *resolve(wanted), read=two_receipts, decode=iter_clips, encode=no_encoder)


POOLS = Pools(readers=2, stagers=2, decode_cpus=1, decoders=(1, 2), encoders=(1, 1), encoder_cpus=1, encoder_gpus=0)
SHARD = Shard(name="s", kind="tar", uri="u", size=0, etag="")


def test_ray_data_takes_encoders_on_gpus(local_ray: None, stages: Stages) -> None:
    """It refuses some arguments only of actors with a GPU. Nothing runs, so none is needed."""
    graph([SHARD], replace(POOLS, encoder_cpus=0, encoder_gpus=0.5), stages, Shared(AllOurs(), Strikes()))
    operators = Operators(read=iter, encoder=EncodeActor, encoder_args=(), store=iter)
    stream(["s"], operators, EncoderPool(size=(1, 1), cpus=0, gpus=0.5))


def test_five_operators_and_none_fused(local_ray: None, stages: Stages) -> None:
    rows = graph([SHARD], POOLS, stages, Shared(AllOurs(), Strikes()))
    operators = [line for line in rows.materialize().stats().splitlines() if line.startswith("Operator")]
    assert len([line for line in operators if "FromItems" not in line]) == 5, operators
    assert not any("->" in line for line in operators), operators


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the scheduler has no such policy")
def test_decoding_yields_to_others_and_leaves_its_process_as_it_was(stages: Stages) -> None:
    """Ray gives the process other stages afterwards; without privileges a thread cannot go back to a normal policy."""
    policies = []

    def decoder(video: Video, _: object) -> Iterator[Receipt]:
        for clip in range(3):
            policies.append(os.sched_getscheduler(0))
            yield ClipsReceipt(shard=video.shard, video=video.video, count=clip)

    video = Video(shard="s", video=0, key="k", uri="u", payload=b"")
    before = os.sched_getscheduler(0)
    tables = []
    for table in decode(to_table(video), replace(stages, decode=decoder), Shared(AllOurs(), Strikes())):
        tables.append(table)
        assert os.sched_getscheduler(0) == before
    assert policies == [os.SCHED_IDLE] * 3
    assert [record.count for table in tables for record in from_table(table)] == [0, 1, 2]  # type: ignore[union-attr]
