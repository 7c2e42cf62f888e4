"""The read stage: a shard in, its videos and receipts out. It does not use Ray.

A video that this stage rejects takes an ordinal, one RejectionReceipt (clip 0) and one ClipsReceipt (count 1). The rest
of a damaged tar counts as one video. The order and the ordinals depend on the source only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.plan.plan_file import load_members
from pipeline.plan.retries import only_chosen
from pipeline.receipts import ClipsReceipt, Receipt, RejectionReceipt, VideosReceipt
from pipeline.records import ChunkId, Rejection, Video
from pipeline.shards import FileGroup, Retry, Shard, TableRange
from pipeline.sources.folders import (
    read_files,
)
from pipeline.sources.samples import Sample
from pipeline.sources.tables import read_table
from pipeline.sources.webdataset import read_tar

MAX_BYTES = 4 << 30
"""Largest encoded video. A video of a tar is held in memory, and a node with eight GPUs reads eight at once."""


def read_shard(
    shard: Shard, *, max_bytes: int = MAX_BYTES, allow_private: bool = False, allow_local: bool = False
) -> Iterator[Video | Receipt]:
    """Yield the videos of a shard in source order, receipts for rejected videos, and at the end a VideosReceipt.

    Args:
        max_bytes: a larger video becomes the Rejection `limit_exceeded` and is not held in memory.
        allow_private: allow a table to name web addresses inside the local network.
        allow_local: allow a remote table to name files of this machine.

    Raises:
        StorageError: the source could not be read, or is not the planned one (ChangedError). The shard stays open.
    """
    parts: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    verdicts: defaultdict[int, list[int]] = defaultdict(list)
    for part in shard.staged.parts:
        parts[part.video].append((part.clip, part.chunk))
    for video, clip in shard.staged.verdicts:
        verdicts[video].append(clip)

    count = 0
    samples = _samples(shard, max_bytes=max_bytes, allow_private=allow_private, allow_local=allow_local)
    while True:
        started = time.perf_counter()
        sample = next(samples, None)
        if sample is None:
            break
        if isinstance(sample, Rejection):
            yield RejectionReceipt(id=ChunkId(shard=shard.name, video=count, clip=0), rejection=sample)
            yield ClipsReceipt(shard=shard.name, video=count, count=1)
        else:
            yield Video(
                shard=shard.name,
                video=count,
                key=sample.key,
                uri=sample.uri,
                payload=sample.payload,
                size=sample.size,
                etag=sample.etag,
                public_only=sample.public_only,
                caption=sample.caption,
                start=sample.start,
                end=sample.end,
                extra=sample.extra,
                only=sample.only,
                staged=tuple(parts[count]),
                verdicts=tuple(verdicts[count]),
                read_seconds=time.perf_counter() - started,
            )
        count += 1
    yield VideosReceipt(shard=shard.name, count=count)


def _samples(shard: Shard, *, max_bytes: int, **allowed: bool) -> Iterator[Sample | Rejection]:
    match load_members(shard):
        case FileGroup() as group:
            return read_files(shard.uri, group, max_bytes=max_bytes)
        case TableRange() as part:
            return read_table(shard, part, **allowed)
        case Retry() as retry:
            return only_chosen(_samples(retry.of, max_bytes=max_bytes, **allowed), retry)
        case _:
            hidden = shard.kind == "tar"
            return read_tar(shard.uri, size=shard.size, etag=shard.etag, max_bytes=max_bytes, with_hidden=hidden)
