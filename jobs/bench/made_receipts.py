"""Made receipts, as the stages hand them on: per video its number of clips, a part for each clip, some rejections."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from pipeline.receipts import ClipsReceipt, PartReceipt, Receipt, RejectionReceipt, VideosReceipt
from pipeline.records import ChunkId, Rejection

CLIPS_PER_SHARD = 100
CLIPS_PER_VIDEO = 2
REJECTED = 50
"""One clip in so many is rejected."""


def receipts_of(
    shard: str,
    *,
    num_videos: int = CLIPS_PER_SHARD // CLIPS_PER_VIDEO,
    clips_per_video: int = CLIPS_PER_VIDEO,
    rejected: int = REJECTED,
) -> Iterator[Receipt]:
    """Yield the receipts of a shard, the number of its videos first, as a fast reader tells it.

    One clip in `rejected` is rejected; none with 0.
    """
    yield VideosReceipt(shard=shard, count=num_videos)
    for video in range(num_videos):
        yield ClipsReceipt(shard=shard, video=video, count=clips_per_video, num_bytes=1 << 20, read_seconds=0.1)
        for clip in range(clips_per_video):
            id = ChunkId(shard=shard, video=video, clip=clip)
            if rejected and (video * clips_per_video + clip) % rejected == rejected - 1:
                rejection = Rejection(reason="truncated", stage="decode", message="it ends early", key=f"{video}")
                yield RejectionReceipt(id=id, rejection=rejection, decode_seconds=0.1)
            else:
                yield PartReceipt(id=id, num_bytes=1 << 20, decode_seconds=1.0, encode_seconds=0.3, stage_seconds=0.05)


def made(shards: Sequence[str], num_open: int, batch: int) -> Iterator[list[Receipt]]:
    """Yield batches of receipts of these shards, each of a random one of `num_open` open shards."""
    receipts = _interleaved(shards, num_open)
    while found := list(islice(receipts, batch)):
        yield found


def _interleaved(shards: Sequence[str], num_open: int) -> Iterator[Receipt]:
    rng = random.Random(0)
    waiting = map(receipts_of, shards)
    open_ = list(islice(waiting, num_open))
    while open_:
        place = rng.randrange(len(open_))
        receipt = next(open_[place], None)
        if receipt is not None:
            yield receipt
        elif (following := next(waiting, None)) is not None:
            open_[place] = following
        else:
            open_[place] = open_[-1]
            open_.pop()
