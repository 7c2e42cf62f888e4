"""Run `latentmill text`: the committed shards of an output that lack a text get one.

    committed shards without a text
      -> read     CPU task: claim the shard, read its captions
      -> encode   actors (GPU or CPU): captions in, the embedding of each distinct caption out
      -> store    CPU task: text/NAME/<shard>.parquet, create-only; it exists = the shard's text is done
    driver: receipts -> counts

The empty prompt is one more shard, EMPTY. Ray, which takes seconds to import, is imported where the stream begins.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from latentmill.format import EMPTY
from pipeline.control.encoder_pool import EncoderPool, check_encoder_pool, encoder_pool
from pipeline.control.encoders import Encoders
from pipeline.control.pools import IO_BLOCK_BYTES
from pipeline.errors import ConfigError, StorageError
from pipeline.output import layout
from pipeline.output.captions import Captions
from pipeline.output.spec_file import load_spec
from pipeline.runs.claims import Claims, Owner
from pipeline.runs.passes import Passes
from pipeline.runs.run_records import RunRecord, environment
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.stages.tables import Shared
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel
from pipeline.text import spec as specs
from pipeline.text import stages
from pipeline.text.captions import check_column, open_shards, read_captions
from pipeline.text.checkpoint import TextCheckpoint, resolve
from pipeline.text.job import TextJob
from pipeline.text.receipts import TextSummary
from pipeline.text.work import Plan, TextWork, sweep_claims

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "ray")
"""What may change the last bits of an embedding."""


def make_plan(job: TextJob) -> Plan:
    """Resolve the settings and list what is left. Writes nothing.

    Raises:
        ConfigError: there is no such output, the checkpoint or a setting is wrong, or the text has another spec; with
            --strict, many captions are empty.
    """
    output = Storage(job.output)
    load_spec(output)
    checkpoint = TextCheckpoint.of(job)
    spec = resolve(job, checkpoint)
    name = job.name or str(spec.encoder["model_type"])
    specs.check(output, name, spec)
    todo, num_done = open_shards(output, name)
    check_column(output, todo, job.caption_column)
    if job.strict and not job.drop_empty:
        _check_captions(output, todo, spec)
    return Plan(output=output, name=name, spec=spec, checkpoint=checkpoint, todo=todo, num_done=num_done)


def _check_captions(output: Storage, shards: list[str], spec: specs.TextSpec) -> None:
    """Read the captions of these shards. Raises ConfigError if too many are empty."""
    read = partial(read_captions, output, column=spec.caption_column)
    counted = Captions()
    for captions in in_parallel(read, sorted(set(shards) - {EMPTY})):
        empty = sum(stages.is_empty(spec, caption.text) for caption in captions)
        counted += Captions(rows=len(captions), empty=empty)
    if counted.is_poor:
        raise ConfigError(
            f"--strict: {counted.warning()}. Leave their rows out with --drop-empty, or give them the empty prompt "
            "without --strict"
        )


def run(
    job: TextJob,
    *,
    encode: Callable[..., stages.Encode] = stages.load_encoder,
    echo: Callable[[str], None] = log.info,
    echo_seconds: float = 30.0,
) -> TextSummary:
    """Encode the captions of every committed shard that has no text yet. Running it again continues with what is left.

    `echo` gets a progress line every `echo_seconds`. Tests replace `encode`.

    Raises:
        ConfigError: a setting is wrong; nothing was started.
        EncoderError: no encoder can start.
        StorageError: the output failed permanently. What is stored stays.
    """
    plan = make_plan(job)
    if plan.todo and plan.spec.clean == "none" and plan.spec.encoder["model_type"] == "umt5":
        log.warning("captions are not cleaned: for Wan with diffusers, Automodel or musubi-tuner give --clean wan")
    workers, weights_bytes = job.workers.of_a_job(), plan.checkpoint.weights_bytes
    check_encoder_pool(workers, job.output, weights_bytes)
    work = TextWork(plan)
    passes = Passes(work, plan.output, echo, echo_seconds)
    record = RunRecord(job=job, run_id=passes.run_id, spec_digest=plan.spec.digest, folder=layout.text_runs(plan.name))
    with Stop(job.grace) as stop, passes.recorded(stop, record):
        if plan.todo:
            log.info("starting Ray: the text of %d of %d shards is left", len(plan.todo), work.progress.num_all)
            from pipeline.control.ray_cluster import cluster_of, set_up_data

            with contextlib.suppress(GraceOverError), cluster_of(workers, stop) as cluster, stop.limited():
                set_up_data(IO_BLOCK_BYTES)
                encoders = encoder_pool(workers, cluster, weights_bytes, len(plan.todo))
                specs.write(plan.output, plan.name, plan.spec)  # now that nothing is left to refuse
                packages = PACKAGES if plan.spec.clean == "none" else (*PACKAGES, "ftfy")
                record.start(plan.output, environment(encoders.device, workers.threads_per_encoder, packages))
                make = partial(encode, plan.checkpoint, plan.spec, threads=workers.threads_per_encoder)
                made = stages.TextStages(output=plan.output, name=plan.name, spec=plan.spec, make_encoder=make)
                _stream(work, passes, made, encoders, record, stop)
        with contextlib.suppress(StorageError):  # the next run sweeps, too
            sweep_claims(plan.output, plan.name)
            plan.output.sweep_temporary()
    return passes.ended


def _stream(
    work: TextWork,
    passes: Passes[TextSummary],
    made: stages.TextStages,
    pool: EncoderPool,
    record: RunRecord,
    stop: Stop,
) -> None:
    """Let the engine drive the graph, with the claims and the strike counter beside it."""
    from pipeline.control.ray_metrics import Metrics
    from pipeline.control.ray_objects import Remote, RemoteStrikes
    from pipeline.control.ray_text import Operators, stream

    claim, done = partial(layout.text_claim_path, made.name), partial(layout.text_path, made.name)
    owner = Owner.this_process(passes.run_id)
    guard, claims = RemoteStrikes(), Remote(Claims, made.output, owner, claim=claim, done=done)
    shared = Shared(claims, guard)
    operators = Operators(
        read=partial(stages.read, stages=made, shared=shared),
        encoder=stages.EncodeActor,
        encoder_args=(made, shared, pool.device, pool.first),
        store=partial(stages.store, stages=made, shared=shared),
    )
    work.progress.slots = {"encode": pool.size[1]}
    work.stream = lambda todo: Encoders(guard, record, passes).heard(stages.receipts(stream(todo, operators, pool)))
    passes.drive(claims, stop, Metrics("latentmill_text").update)
