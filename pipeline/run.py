"""The whole graph. Read this file first.

    shards not yet committed
      -> read     CPU task: a shard's samples (one streaming GET) or addresses; last, how many there were
      -> decode   CPU task: chunks of frames, in a fixed order; per video, how many clips it has
      -> encode   actors (GPU): frames in, scaled latent bytes out
      -> stage    CPU task: put the part, hand on a receipt
    driver: receipts -> ledger -> commit(shard): ONE file, and it exists = the shard is done

Each operator has remote arguments of its own, because Ray fuses neighbours whose arguments are equal. Reading and
staging wait for storage, so they ask for no CPU; their number is bounded. Killed tasks and actors are retried for ever
(Ray Data's default, without a public switch); the guard ends what would kill its worker each time.

Ray, which takes seconds to import, is imported where the stream begins: a run with nothing to do ends without it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.control.clip_work import ClipWork
from pipeline.control.encoders import Encoders
from pipeline.control.pools import Pools, check_workers
from pipeline.control.summary import Summary
from pipeline.decode import iter_clips
from pipeline.output.commit import commit, seal, tidy
from pipeline.output.spec_file import check, write_spec
from pipeline.plan.frozen import make_plan, plan_retries
from pipeline.runs.claims import Claims, Owner
from pipeline.runs.passes import Passes
from pipeline.runs.run_records import RunRecord, environment
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.settings.job import Job
from pipeline.settings.resolve import resolve, writable
from pipeline.shards import Shard
from pipeline.stages import tables
from pipeline.stages.decode_video import Decode
from pipeline.storage import Storage

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

DECODES_PER_WORKER = 256
"""Decode tasks after which a worker is replaced: FFmpeg's leaks do not add up. No other stage has this argument."""
COMMIT_RETRIES = 3
"""How often a commit whose worker died is tried again in this pass."""


def graph(shards: list[Shard], pools: Pools, stages: tables.Stages, shared: tables.Shared) -> Dataset:
    """The five operators. What comes out are receipts."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.control.ray_cluster import A_ROW_A_CALL, one_by_one

    readers, decoders, stagers = map(TaskPoolStrategy, (pools.readers, pools.decoders[1], pools.stagers))
    encoders = ActorPoolStrategy(**pools.encoder_pool)
    decoding = {"num_cpus": pools.decode_cpus, "max_calls": DECODES_PER_WORKER}
    encoding: dict[str, Any] = {"num_cpus": pools.encoder_cpus, "num_gpus": pools.encoder_gpus, **A_ROW_A_CALL}
    encoder = (stages, shared, pools.device, pools.first_encoders, pools.encoder_threads)
    whole: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}  # a block a call
    return (
        one_by_one([shard.to_row() for shard in shards])  # a task a shard
        .map_batches(tables.read, fn_args=(stages, shared), compute=readers, num_cpus=0, **whole)
        .map_batches(tables.decode, fn_args=(stages, shared), compute=decoders, **decoding, **whole)
        .map_batches(tables.EncodeActor, fn_constructor_args=encoder, compute=encoders, **encoding)
        .map_batches(tables.stage, fn_args=(stages,), compute=stagers, num_cpus=0, **whole)
    )


def run(
    job: Job,
    *,
    read: tables.Read | None = None,
    decode: Decode = iter_clips,
    encode: Callable[..., tables.Encode] = tables.load_encoder,
    echo: Callable[[str], None] = log.info,
    echo_seconds: float = 30.0,
) -> Summary:
    """Run a job to the end: plan, stream, commit, seal. Running it again continues with what is left.

    `echo` gets a progress line every `echo_seconds`. Tests replace `read`, `decode` and `encode`.

    Raises:
        ConfigError: the job, its source or its output is wrong; nothing was started.
        EncoderError: no encoder can start, or none is left.
        StorageError: the output or the listing of the source failed permanently. Like EncoderError, it carries the
            summary as a note (`__notes__`).
    """
    spec, info = resolve(job)
    output = Storage(job.output)
    spec = check(output, spec)
    check_workers(job)
    writable(output)
    log.info("planning: the source is listed and compared with the output")
    plan = make_plan(output, job.source, shard_size=job.shard_size, limit=job.limit, on_changed=job.on_changed)
    tidy(output, plan.done, plan.leftovers, spec.to_json())
    if job.retry_rejected:
        plan = plan_retries(output, job.retry_reasons)
    work = ClipWork(output, plan, spec, give_up_after=job.give_up_after, keep_going=job.keeps_going)
    passes = Passes(work, output, echo, echo_seconds)
    record = RunRecord(job=job, run_id=passes.run_id, spec_digest=spec.digest)
    stages = tables.stages_of(job, spec, info, read=read, decode=decode, encode=encode)
    with Stop(job.grace) as stop, passes.recorded(stop, record):
        if plan.num_remaining:
            log.info("starting Ray: %d of %d shards are left", plan.num_remaining, plan.num_shards)
            from pipeline.control.ray_cluster import ray_for

            with contextlib.suppress(GraceOverError), ray_for(job, info, stop) as pools, stop.limited():
                write_spec(output, spec)  # now that nothing is left to refuse
                record.start(output, environment(pools.device, job.workers.threads_per_encoder))
                _stream(work, passes, stop, pools, stages, record)
            work.look()
        log.info("sealing: the indexes of %d shards", len(work.done | plan.done))
        with stop.limited():
            seal(output, sorted(work.done | plan.done), spec.to_json(), plan.data_bytes)
    return passes.ended


def _stream(
    work: ClipWork, passes: Passes[Summary], stop: Stop, pools: Pools, stages: tables.Stages, record: RunRecord
) -> None:
    """Let the engine drive the graph, with the claims and the strike counter beside it."""
    from pipeline.control.ray_cluster import receipts
    from pipeline.control.ray_metrics import Metrics
    from pipeline.control.ray_objects import Remote, RemoteStrikes, remotely

    guard, claims = RemoteStrikes(), Remote(Claims, stages.output, Owner.this_process(passes.run_id))
    shared = tables.Shared(claims, guard)
    work.progress.slots = pools.slots
    work.progress.doing = "waiting for the first clip: encoders load, videos are read"
    work.commit, work.release = remotely(commit, retries=COMMIT_RETRIES), claims.release
    work.stream = lambda shards: Encoders(guard, record, passes).heard(receipts(graph(shards, pools, stages, shared)))
    passes.drive(claims, stop, Metrics().update)
