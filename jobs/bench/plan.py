"""python -m jobs.bench plan: measure time and memory of planning and resuming, and how both grow.

The listings are synthetic, so the figures are of this program only: an object store adds its own time, about 0.1 s for
each 1,000 objects. Each case runs in a separate process, which gives its peak memory.

    tars     every shard is a tar
    files    every shard is a group of 100 loose videos: 100,000 shards are 10 million listed files
    seal     join the indexes of as many shards of 100 clips: `index.parquet` of 10 million rows
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

import vae
from jobs.demo.videos import even_times, make_video
from pipeline.guard.strikes import Strikes
from pipeline.output import layout
from pipeline.output.commit import commit, seal
from pipeline.output.parts import stage
from pipeline.plan.frozen import Plan, make_plan
from pipeline.records import Chunk, ChunkId, CompleteShard, Latent, Video, clip_id
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule, Spec
from pipeline.stages.decode_video import Decoder
from pipeline.storage import Entry, Storage

FILES_PER_SHARD = 100
TARGET_SECONDS = 60.0
TARGET_BYTES = 1e9

Kind = Literal["tars", "files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case: planning a new source, resuming it when half is done and 1 % is new, and the peak memory of both."""

    plan_seconds: float
    plan_cpu_seconds: float
    """CPU time of this process, which is the wall time on an idle machine."""
    resume_seconds: float
    resume_cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    shards: int = 100_000
    """Number of shards of the largest case; a quarter and a half of it run too."""
    kinds: tuple[Literal["tars", "files", "seal"], ...] = ("tars", "files", "seal")
    """What to measure."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each case. Return 1 if the largest missed its targets."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench plan", description=__doc__)
    print(f"{'source':8}{'shards':>9}{'clips':>10}{'plan s':>8}{'(cpu)':>7}{'resume s':>10}{'(cpu)':>7}{'peak MB':>9}")
    failed = False
    for kind in args.kinds:
        if kind == "seal":
            failed |= _seal(args.shards)
            continue
        for num_shards in (args.shards // 4, args.shards // 2, args.shards):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                got = pool.apply(measure, (kind, num_shards))
            print(
                f"{kind:8}{num_shards:9d}{num_shards * FILES_PER_SHARD:10d}{got.plan_seconds:8.1f}"
                f"{got.plan_cpu_seconds:7.1f}{got.resume_seconds:10.1f}{got.resume_cpu_seconds:7.1f}"
                f"{got.peak_bytes / 1e6:9.0f}"
            )
        # CPU seconds: this code never waits, and other work on the machine does not change them.
        slowest = max(got.plan_cpu_seconds, got.resume_cpu_seconds)
        failed |= slowest > TARGET_SECONDS or got.peak_bytes > TARGET_BYTES
    verdict = "missed" if failed else "met"
    print(f"target for the largest of each: {TARGET_SECONDS:.0f} CPU s and {TARGET_BYTES / 1e6:.0f} MB, {verdict}")
    return int(failed)


def measure(kind: Kind, num_shards: int) -> Measured:
    """Plan a source of `num_shards` shards, then plan it again with half of them done and 1 % new shards."""
    with tempfile.TemporaryDirectory() as folder:
        output = Storage(folder)
        started, cpu = time.perf_counter(), time.process_time()
        names = [shard.name for shard in planned(output, kind, num_shards, [])]
        plan_seconds, plan_cpu = time.perf_counter() - started, time.process_time() - cpu
        assert len(names) == num_shards
        started, cpu = time.perf_counter(), time.process_time()
        grown = num_shards + num_shards // 100
        plan = planned(output, kind, grown, names[::2])
        num_staged = sum(bool(shard.staged) for shard in plan.remaining())
        resume_seconds, resume_cpu = time.perf_counter() - started, time.process_time() - cpu
        assert (plan.num_shards, plan.num_remaining, num_staged) == (grown, grown - len(names[::2]), 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(
        plan_seconds=plan_seconds,
        plan_cpu_seconds=plan_cpu,
        resume_seconds=resume_seconds,
        resume_cpu_seconds=resume_cpu,
        peak_bytes=peak,
    )


def _seal(num_shards: int) -> bool:
    """Print time and memory of sealing the indexes of `num_shards` shards. Return True if it takes too much memory."""
    names = [f"{number:012x}" for number in range(num_shards)]
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        index = pool.apply(index_of_one_shard, (folder,))
        output = Storage(folder)
        for name in names:
            output.put(layout.index_path(name), renamed(index, name))
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            rows, cpu_seconds, peak_bytes = fresh.apply(measure_seal, (folder, names))
        num_bytes = output.entry(layout.SEAL_PATH).size
    print(
        f"seal: {rows} rows of {num_shards} shards, {num_bytes / 1e6:.0f} MB: {cpu_seconds:.0f} CPU s, "
        f"peak {peak_bytes / 1e6:.0f} MB"
    )
    assert rows == num_shards * FILES_PER_SHARD
    return bool(peak_bytes > TARGET_BYTES)


def measure_seal(folder: str, names: list[str]) -> tuple[int, float, int]:
    """Return (rows, CPU seconds, peak bytes) of sealing these shards."""
    cpu = time.process_time()
    rows = seal(Storage(folder), names)
    return rows, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def index_of_one_shard(folder: str) -> bytes:
    """Return the index of a shard of real rows: the row of one video, repeated for every clip of a shard."""
    output = Storage(f"{folder}/one")
    spec = stage_shard(output, "one", FILES_PER_SHARD)
    latents = {(number, 0): 1 for number in range(FILES_PER_SHARD)}
    commit(output, spec.to_json(), CompleteShard(name="one", planned=FILES_PER_SHARD, latents=latents, rejections={}))
    return output.read(layout.index_path("one"))


def stage_shard(output: Storage, shard: str, num_clips: int) -> Spec:
    """Stage one clip of each of `num_clips` videos, with the facts of a real one, and return the Spec."""
    chunk, spec = _one_clip()
    for number in range(num_clips):
        latent = Latent(
            id=ChunkId(shard=shard, video=number, clip=0),
            payload=bytes(2 * 16 * 13 * 8 * 12),
            shape=(16, 13, 8, 12),
            dtype="bfloat16",
            facts=replace(chunk.facts, id=clip_id(shard, number, 0)),
        )
        stage(latent, output)
    return spec


@cache
def _one_clip() -> tuple[Chunk, Spec]:
    info, rule = vae.load_vae("tiny").info, ClipRule(num_frames=49, height=64, width=96)
    decoder = Decoder(clip=rule, latent=LatentRule(), info=info, deadline=600)
    data = make_video(even_times(150, 24), width=96, height=64, seed=0)
    video = Video(shard="one", video=0, key="a.mp4", uri="a.tar", payload=data, caption="a caption of a few words")
    chunk = next(record for record in decoder(video, Strikes()) if isinstance(record, Chunk))
    return chunk, Spec(vae=info.to_json(), clip=rule, latent=LatentRule())


def renamed(index: bytes, name: str) -> bytes:
    """Return the index with different strings in every row, because equal strings compress to almost nothing."""
    table = pq.read_table(io.BytesIO(index))
    for index_of_column, field in enumerate(table.schema):
        if field.type == pa.string():
            own = [f"{field.name} of {name} {number}" for number in range(table.num_rows)]
            table = table.set_column(index_of_column, field, pa.array(own, field.type))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def planned(output: Storage, kind: Kind, num_shards: int, done: list[str]) -> Plan:
    """Plan a synthetic source of `num_shards` shards, of which `done` are committed."""
    real = Storage.list

    def listed(storage: Storage, path: str = "") -> Iterator[Entry]:
        if storage.uri.startswith("fake://"):
            return _source_entries(kind, num_shards, path and f"{path}/")
        if path == layout.DATA:
            return (Entry(path=layout.data_path(name), size=1, etag="", mtime=0.0) for name in done)
        return real(storage, path)

    with mock.patch.object(Storage, "list", listed):
        return make_plan(output, ["fake://source/clips"], shard_size=FILES_PER_SHARD)


def _source_entries(kind: Kind, num_shards: int, prefix: str) -> Iterator[Entry]:
    if kind == "tars":
        for number in range(num_shards):
            yield Entry(path=f"{prefix}{number:08d}.tar", size=1 << 28, etag=f"{number:032x}", mtime=0.0)
        return
    for number in range(num_shards * FILES_PER_SHARD):
        name = f"{prefix}{number // 1000:06d}/{number % 1000:04d}.mp4"
        yield Entry(path=name, size=1 << 20, etag=f"{number:032x}", mtime=0.0)
