"""Measure a source: read, decode and encode some clips of some shards with the stages of the job. Writes nothing."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from multiprocessing import get_context

from pipeline.errors import StorageError
from pipeline.guard.strikes import Strikes
from pipeline.receipts import ClipsReceipt, FaultReceipt, RejectionReceipt
from pipeline.records import Chunk, Video
from pipeline.settings.job import Workers
from pipeline.settings.spec import Spec
from pipeline.shards import Shard, TableRange
from pipeline.stages.decode_video import Decoder
from pipeline.stages.encode_chunk import Encoder
from pipeline.stages.read_shard import read_shard
from pipeline.stages.suspects import NonfiniteLatentError
from vae.info import VAEInfo

SHARDS = 16
"""Shards that are looked at, if there are so many. The interval of an estimate is the spread between shards."""


@dataclass(slots=True, kw_only=True)
class ShardSample:
    """What was seen of one shard."""

    amount: float
    """How much of the shard was looked at, in the unit of `amount_of`."""
    clips: int = 0
    """Clips that the videos looked at have, whether they were encoded or not."""
    read_bytes: int = 0
    """Encoded bytes of these videos."""
    encoded: int = 0
    """Clips that were encoded."""
    seconds: float = 0.0
    """Of video in the encoded clips."""
    latent_bytes: int = 0
    """Of the encoded clips."""
    decode_seconds: float = 0.0
    """For the encoded clips and the rejected ones."""
    encode_seconds: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason, of the clips that were tried."""
    fault: str = ""
    """Why the shard could not be read."""


def amount_of(shard: Shard) -> float:
    """Return how much a shard holds: rows of a table, else bytes."""
    return shard.members.rows if isinstance(shard.members, TableRange) else shard.size


def choose(shards: Sequence[Shard], seed: int) -> list[Shard]:
    """Choose the shards to look at."""
    return random.Random(seed).sample(list(shards), min(SHARDS, len(shards)))


def measure(
    shards: Sequence[Shard], where: str, spec: Spec, *, clips: int, processes: int, device: str
) -> list[ShardSample]:
    """Look at shards, with all processes busy at the same time, as in a run.

    Args:
        shards: see `choose`.
        where: the VAE, as for `load_vae`.
        clips: to encode, of all shards together.
        processes: at a time, each with one thread for decoding and the run's threads for encoding.
        device: of the encoder. On a GPU there is one process.
    """
    quota = max(1, round(clips / len(shards)))
    groups = [shards[i::processes] for i in range(processes) if shards[i::processes]]
    look = partial(_look_at, where=where, spec=spec, quota=quota, device=device)
    with ProcessPoolExecutor(len(groups), mp_context=get_context("spawn")) as pool:
        return [sample for samples in pool.map(look, groups) for sample in samples]


def _look_at(shards: Sequence[Shard], *, where: str, spec: Spec, quota: int, device: str) -> list[ShardSample]:
    os.nice(5)
    encoder = Encoder(where, spec, device=device)
    decoder = Decoder(clip=spec.clip, latent=spec.latent, info=VAEInfo(**spec.vae), deadline=Workers().decode_deadline)
    return [_sample(shard, decoder, encoder, quota) for shard in shards]


def _sample(shard: Shard, decoder: Decoder, encoder: Encoder, quota: int) -> ShardSample:
    """Look at the videos of a shard in order until `quota` clips were tried."""
    sample = ShardSample(amount=0.0)
    rows = isinstance(shard.members, TableRange)
    try:
        for record in read_shard(shard):
            if isinstance(record, RejectionReceipt):
                sample.rejected[record.rejection.reason] += 1
            if isinstance(record, ClipsReceipt):  # of a video that was rejected as it was read
                sample.clips += record.count
                sample.amount += record.count if rows else record.num_bytes
            if isinstance(record, Video):
                before = sample.read_bytes
                _video(record, decoder, encoder, sample, quota)
                sample.amount += 1 if rows else sample.read_bytes - before
            if sample.encoded + sample.rejected.total() >= quota:
                break
        else:
            sample.amount = amount_of(shard)  # with the headers and sidecars of a tar
    except StorageError as error:
        sample.fault = str(error)
    return sample


def _video(video: Video, decoder: Decoder, encoder: Encoder, sample: ShardSample, quota: int) -> None:
    for record in decoder(video, Strikes()):
        match record:
            case ClipsReceipt():
                sample.clips += record.count
                sample.read_bytes += record.num_bytes
            case FaultReceipt():
                sample.fault = record.message
            case RejectionReceipt():
                sample.rejected[record.rejection.reason] += 1
                sample.decode_seconds += record.decode_seconds
            case Chunk():
                _chunk(record, encoder, sample)
        if sample.encoded + sample.rejected.total() >= quota:
            return


def _chunk(chunk: Chunk, encoder: Encoder, sample: ShardSample) -> None:
    sample.decode_seconds += chunk.decode_seconds
    try:
        latent = encoder(chunk)
    except NonfiniteLatentError:
        sample.rejected["nonfinite"] += 1
        return
    sample.encode_seconds += latent.encode_seconds
    sample.latent_bytes += len(latent.payload)
    if chunk.id.chunk == chunk.id.num_chunks - 1:
        sample.encoded += 1
        facts = chunk.facts
        sample.seconds += 0.0 if facts.end is None else float(Fraction(facts.end) - Fraction(facts.start))
