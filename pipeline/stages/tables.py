"""The four stages as Ray Data calls them: a table of records in, tables of records out. The module does not use Ray.

The stages raise storage faults. This module turns each into a receipt, because an exception would end the run after 65
lines of Ray's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.guard.starts import LastEncoderError
from pipeline.guard.strikes import Guard, attempt
from pipeline.output import parts
from pipeline.output.rows import from_table, to_table
from pipeline.receipts import ElsewhereReceipt, FaultReceipt, NoEncoderReceipt, Receipt, Record, UnstoredReceipt
from pipeline.records import Chunk, Latent, Video
from pipeline.settings.job import Job
from pipeline.settings.resolve import largest_clip
from pipeline.settings.spec import Spec
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decode, Decoder
from pipeline.stages.read_shard import MAX_BYTES, read_shard
from pipeline.storage import Storage
from vae.info import VAEInfo

READ_ATTEMPTS = 20
"""Readers of one shard that may die before the shard is left open. A lost machine kills a reader once; a file that
kills every reader must not be tried for ever."""

Read = Callable[[Shard], Iterator[Video | Receipt]]
Encode = Callable[[Chunk], Latent]


class MakeEncoder(Protocol):
    """Start an encoder on a device, "cpu" or "cuda"."""

    def __call__(self, *, device: str) -> Encode: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What each stage does. It pickles, because every worker gets it."""

    read: Read
    decode: Callable[[Video, Guard], Iterator[Chunk | Receipt]]
    make_encoder: MakeEncoder
    encode_deadline: float
    """Seconds for one chunk."""
    output: Storage


@dataclass(frozen=True, slots=True)
class Shared:
    """Objects beside the driver that all workers of a run share."""

    claims: Any
    """Claims."""
    guard: Any
    """Strikes."""


def stages_of(
    job: Job,
    spec: Spec,
    info: VAEInfo,
    *,
    read: Read | None,
    decode: Decode,
    encode: Callable[..., Encode],
) -> Stages:
    """Return the stages with the settings of a job. `read` is `read_shard` by default."""
    max_bytes, private, local = min(job.clip.max_bytes, MAX_BYTES), job.allow_private, job.allow_local
    threads, largest = job.workers.threads_per_encoder, largest_clip(job.clip)
    deadline = job.workers.decode_deadline
    return Stages(
        read=read or partial(read_shard, max_bytes=max_bytes, allow_private=private, allow_local=local),
        decode=Decoder(clip=spec.clip, latent=spec.latent, info=info, deadline=deadline, decode=decode),
        make_encoder=partial(encode, job.vae, spec, threads=threads, largest=largest),
        encode_deadline=job.workers.encode_deadline,
        output=Storage(job.output),
    )


def load_encoder(*args: Any, **kwargs: Any) -> Encode:
    """Make the Encoder of encode_chunk. It is imported late, because importing torch costs every worker seconds."""
    from pipeline.stages.encode_chunk import Encoder

    return Encoder(*args, **kwargs)


def read(table: pa.Table, stages: Stages, shared: Shared) -> Iterator[pa.Table]:
    """Claim each shard and read it, unless another run holds it."""
    for row in table.to_pylist():
        shard = Shard.from_row(row)
        try:
            is_ours = shared.claims.take(shard.name)
        except StorageError as error:
            yield to_table(UnstoredReceipt(shard=shard.name, message=str(error)))
            continue
        if not is_ours:
            yield to_table(ElsewhereReceipt(shard=shard.name))
            continue
        try:
            with attempt(shared.guard, f"{shard.name}/read") as strikes:
                if strikes >= READ_ATTEMPTS:
                    raise StorageError(f"{strikes} workers died while they read it")
                yield from map(to_table, stages.read(shard))
        except StorageError as error:  # never a Rejection: the records so far are kept, and the shard stays open
            yield to_table(FaultReceipt(shard=shard.name, message=f"{shard.uri}: {error}"))


def decode(table: pa.Table, stages: Stages, shared: Shared) -> Iterator[pa.Table]:
    """Decode in a thread that runs only when nothing else needs the core. Not the whole process: Ray gives it other
    stages too, and without privileges a process cannot return from this scheduling class."""
    with ThreadPoolExecutor(1, initializer=_yield_to_others) as idle:
        for record in from_table(table):
            made = stages.decode(record, shared.guard) if isinstance(record, Video) else iter([record])
            while (one := idle.submit(next, made, None).result()) is not None:
                yield to_table(one)


def _yield_to_others() -> None:
    """Lower the priority of this thread: decode tasks outnumber the cores, and an encoder must not wait for one."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class EncodeActor:
    """The encode actor: it holds one encoder. Ray Data calls it from `threads` threads at a time."""

    def __init__(self, stages: Stages, shared: Shared, device: str, pool: int, threads: int) -> None:
        """Start the encoder of a pool that begins with `pool` encoders; it raises what `start_encoder` raises."""
        from pipeline.stages.encode_chunk import EncodeStage

        make, seconds = partial(stages.make_encoder, device=device), stages.encode_deadline
        try:
            stage = EncodeStage(make, shared.guard, seconds, pool, threads=threads, device=device)
        except LastEncoderError as error:
            self._stage: Callable[[Record], Latent | Receipt] = partial(_no_encoder, str(error))
        else:
            self._stage = stage

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield from map(to_table, map(self._stage, from_table(table)))


def _no_encoder(message: str, record: Record) -> Receipt:
    return NoEncoderReceipt(shard=record.shard, message=message)


def stage(table: pa.Table, stages: Stages) -> Iterator[pa.Table]:
    """Put each latent into staging and yield its receipt."""
    for record in from_table(table):
        try:
            receipt: Receipt = parts.stage(record, stages.output)
        except StorageError as error:
            receipt = UnstoredReceipt(shard=record.shard, message=str(error))
        yield to_table(receipt)
