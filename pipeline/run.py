"""The whole graph. Read this file first.

    shards not yet committed
      -> read     CPU task: a shard's samples (one streaming GET) or addresses; last, how many there were
      -> decode   CPU task: chunks of frames, in a fixed order; per video, how many clips it has
      -> encode   actors (GPU): frames in, scaled latent bytes out
      -> stage    CPU task: put the part, hand on a receipt
    driver: receipts -> ledger -> commit(shard): ONE file, and it exists = the shard is done

With `cluster`, all that knows Ray: stages take records and give records, and here they become operators.
Each operator has remote arguments of its own, because Ray fuses neighbours whose arguments are equal (seen: decode
inside the encode actor). Reading and staging wait for storage, so they ask for no CPU; their number is bounded. Killed
tasks and actors are retried for ever (Ray Data's default, which has no public switch); the guard ends what would kill
its worker for ever.

Ray is imported where the stream begins: it takes seconds, and a run with nothing left to do ends without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.control.claims import Claims, Owner
from pipeline.control.driver import Driver
from pipeline.control.pools import Pools, check_local, largest_chunk_bytes
from pipeline.control.stop import GraceOverError, Stop
from pipeline.decode import iter_clips, too_short
from pipeline.errors import StorageError
from pipeline.guard.strikes import attempt
from pipeline.output import run_records
from pipeline.output.commit import commit, seal, tidy
from pipeline.output.parts import stage
from pipeline.output.spec_file import check, write_spec
from pipeline.output.summary import Summary
from pipeline.plan.frozen import make_plan, plan_retries
from pipeline.records import Chunk, Latent, Receipt, Video
from pipeline.rows import from_table, to_table
from pipeline.settings import overlap
from pipeline.settings.job import Job
from pipeline.settings.resolve import largest_clip, resolve, writable
from pipeline.settings.spec import Spec
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decode, Decoder
from pipeline.stages.read_shard import MAX_BYTES, read_shard
from pipeline.storage import Storage

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

DECODES_PER_WORKER = 256
"""Decode tasks after which a worker process is replaced: what FFmpeg may leak does not add up. No other stage has it,
which keeps decode apart from encode even where both reserve one CPU."""

READ_ATTEMPTS = 20
"""Readers that may die over one shard before it is left open: machines get lost, but a file that ends every reader must
not be tried for ever."""

COMMIT_RETRIES = 3
"""How often a commit whose worker died is tried again in this pass."""


def graph(shards: list[Shard], pools: Pools, **stages: tuple[Any, dict[str, Any]]) -> Dataset:
    """The five operators, stages as (function or actor class, its settings). What comes out are receipts."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.control.ray_cluster import one_by_one

    (read, reading), (decode, decoding) = stages["read"], stages["decode"]
    (encode, encoding), (stage, staging) = stages["encode"], stages["stage"]
    tables: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
    readers, decoders, stagers = (TaskPoolStrategy(n) for n in (pools.readers, pools.decoders[1], pools.stagers))
    encoders = ActorPoolStrategy(min_size=pools.encoders[0], max_size=pools.encoders[1])
    return (
        one_by_one([shard.to_row() for shard in shards])  # a task a shard
        .map_batches(read, fn_kwargs=reading, num_cpus=0, compute=readers, **tables)
        .map_batches(
            decode,
            fn_kwargs=decoding,
            num_cpus=pools.decode_cpus,
            max_calls=DECODES_PER_WORKER,
            compute=decoders,
            **tables,
        )
        .map_batches(
            encode,
            fn_constructor_kwargs=encoding,
            num_cpus=pools.encoder_cpus,
            num_gpus=pools.encoder_gpus,
            compute=encoders,
            **tables,
        )
        .map_batches(stage, fn_kwargs=staging, num_cpus=0, compute=stagers, **tables)
    )


def load_encoder(*args: Any, **kwargs: Any) -> Callable[[Chunk], Latent]:
    """Make the Encoder of encode_chunk, imported here alone: torch costs every other worker seconds to start."""
    from pipeline.stages.encode_chunk import Encoder

    return Encoder(*args, **kwargs)


def run(
    job: Job,
    *,
    read: Callable[[Shard], Iterator[Video | Receipt]] | None = None,
    decode: Decode = iter_clips,
    encode: Callable[..., Callable[[Chunk], Latent]] = load_encoder,
    echo: Callable[[str], None] = log.info,
    echo_seconds: float = 30.0,
) -> Summary:
    """Run a job to the end: plan, stream, commit, seal. Running it again takes up whatever is left.

    Args:
        job: what to do.
        read, decode, encode: the stages, for tests to replace. By default `read_shard`, as the job sets it.
        echo: gets a progress line every `echo_seconds`.

    Raises:
        ConfigError: something is wrong with the job, its source or its output; nothing was started.
        EncoderError: no encoder can start.
        StorageError: the output, or the listing of the source, failed for good.
    """
    began = datetime.now(UTC)
    spec, info = resolve(job)
    output = Storage(job.output)
    check(output, spec)
    check_local(job.workers)
    writable(output)
    log.info("planning: the source is listed and compared with the output")
    plan = make_plan(output, job.source, shard_size=job.shard_size, limit=job.limit, on_changed=job.on_changed)
    tidy(output, plan.done, plan.leftovers, spec.to_json())
    if job.retry_rejected:
        plan = plan_retries(output, job.retry_reasons)
    decoder = Decoder(clip=job.clip, latent=job.latent, info=info, deadline=job.workers.decode_deadline, decode=decode)
    threads, largest = job.workers.threads_per_encoder, largest_clip(job.clip)
    encoder = partial(encode, job.vae, spec, threads=threads, largest=largest)
    max_bytes = min(job.clip.max_bytes, MAX_BYTES)
    read = read or partial(
        read_shard, max_bytes=max_bytes, allow_private=job.allow_private, allow_local=job.allow_local
    )
    driver = Driver(output, plan, echo, echo_seconds, give_up_after=job.give_up_after)
    here: dict[str, Any] = {}
    with Stop(job.grace) as stop:
        if driver.todo:
            log.info("starting Ray: %d of %d shards are left", len(driver.todo), plan.num_shards)
            from pipeline.control.ray_cluster import ray_for

            chunk_bytes = largest_chunk_bytes(job.clip, job.latent, info)
            ray_here = ray_for(job.workers, chunk_bytes, stop, overlap.bytes_held(job.clip))
            with contextlib.suppress(GraceOverError), ray_here as pools, stop.limited():
                write_spec(output, spec)  # now that nothing is left to refuse
                here = run_records.environment("cuda" if pools.encoder_gpus else "cpu", threads)
                run_records.warn_of_differences(output, here)
                _stream(driver, stop, pools, job, spec, output, read=read, decoder=decoder, encoder=encoder)
            driver.look()
        log.info("sealing: the indexes of %d shards", len(plan.done | driver.done))
        with stop.limited():
            seal(output, sorted(plan.done | driver.done), spec.to_json(), plan.data_bytes)
        summary = driver.finish(stopped=stop.by)
        if not job.clip.buckets:
            summary = replace(summary, hint=too_short.hint(summary.too_short, lambda n: info.nearest(n)[0]))
        run_records.record(output, driver.run_id, spec.digest, here, summary, job=job, began=began)
    return summary


def _stream(
    driver: Driver,
    stop: Stop,
    pools: Pools,
    job: Job,
    spec: Spec,
    output: Storage,
    *,
    read: Callable[[Shard], Iterator[Video | Receipt]],
    decoder: Decoder,
    encoder: Callable[..., Callable[[Chunk], Latent]],
) -> None:
    """Let the driver drive the graph, with the claims and the strike counter beside it."""
    from pipeline.control.ray_cluster import Remote, RemoteStrikes, receipts, remotely

    guard = RemoteStrikes()
    claims = Remote(Claims, output, Owner.this_process(driver.run_id))
    encoding = {
        "make": partial(encoder, device="cuda" if pools.encoder_gpus else "cpu"),
        "guard": guard,
        "deadline": job.workers.encode_deadline,
        "pool": pools.encoders[1],
    }
    stages: dict[str, tuple[Any, dict[str, Any]]] = {
        "read": (_read, {"read": read, "claims": claims, "guard": guard}),
        "decode": (_decode, {"decoder": decoder, "guard": guard}),
        "encode": (_Encode, encoding),
        "stage": (_stage, {"output": output}),
    }
    remote_commit = remotely(commit, retries=COMMIT_RETRIES)
    driver.progress.slots = {"read": pools.readers, "decode": pools.decoders[0], "encode": pools.encoders[1]}

    def one_pass(shards: list[Shard]) -> Iterator[Receipt]:
        guard.started()  # encoders that were still starting when the last pass ended did not die
        return receipts(graph(shards, pools, **stages))

    driver.drive(one_pass, partial(remote_commit, output, spec.to_json()), claims, stop)


def _read(
    table: pa.Table, read: Callable[[Shard], Iterator[Video | Receipt]], claims: Any, guard: Any
) -> Iterator[pa.Table]:
    for row in table.to_pylist():
        shard = Shard.from_row(row)
        try:
            is_ours = claims.take(shard.name)
        except StorageError as error:
            yield to_table(Receipt(kind="unstored", shard=shard.name, message=str(error)))
            continue
        if not is_ours:
            yield to_table(Receipt(kind="elsewhere", shard=shard.name))
            continue
        try:
            with attempt(guard, f"{shard.name}/read") as strikes:
                if strikes >= READ_ATTEMPTS:
                    raise StorageError(f"{strikes} workers died while they read it")
                yield from map(to_table, read(shard))
        except StorageError as error:  # never a Rejection: what came so far is kept, the shard stays open
            yield to_table(Receipt(kind="fault", shard=shard.name, message=f"{shard.uri}: {error}"))


def _decode(table: pa.Table, decoder: Decoder, guard: Any) -> Iterator[pa.Table]:
    """Decode in a thread that runs when nothing else wants the core. Only the thread, because Ray gives this process
    other stages, too, and a process that once ran so cannot go back without privileges."""
    with ThreadPoolExecutor(1, initializer=_yield_to_others) as idle:
        for record in from_table(table):
            made = decoder(record, guard) if isinstance(record, Video) else iter([record])
            while (one := idle.submit(next, made, None).result()) is not None:
                yield to_table(one)


def _yield_to_others() -> None:
    """Decode tasks outnumber the cores, and an encoder that waits for a core is dear."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _Encode:
    def __init__(self, make: Callable[[], Callable[[Chunk], Latent]], guard: Any, deadline: float, pool: int) -> None:
        from pipeline.stages.encode_chunk import EncodeStage

        self._stage = EncodeStage(make, guard, deadline, pool)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield from map(to_table, map(self._stage, from_table(table)))


def _stage(table: pa.Table, output: Storage) -> Iterator[pa.Table]:
    for record in from_table(table):
        try:
            receipt = stage(record, output)
        except StorageError as error:  # as a receipt: an exception would be 65 lines of Ray's, for each part
            receipt = Receipt(kind="unstored", shard=record.shard, message=str(error))
        yield to_table(receipt)
