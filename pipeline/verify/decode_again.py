"""Decode stored clips again from their source, with the stages of the job: to compare latents, or to look at frames."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace

import pyarrow.parquet as pq

from latentmill.format import FOOTER_SHARD
from pipeline.errors import StorageError
from pipeline.guard.strikes import Strikes
from pipeline.receipts import FaultReceipt, RejectionReceipt
from pipeline.records import Chunk, ClipKey, Video
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decoder
from pipeline.stages.read_shard import read_shard


def clips_of(file: pq.ParquetFile) -> tuple[list[ClipKey], set[ClipKey]]:
    """Return the clip of each row of a data file, and all clips of its shard: those of rows and of rejections."""
    table = file.read(columns=["video_index", "clip_index"])
    rows: list[ClipKey] = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    rejections = json.loads(file.metadata.metadata[FOOTER_SHARD.encode()])["rejections"]
    return rows, {*rows, *((rejection["video"], rejection["clip"]) for rejection in rejections)}


def decode_again(
    shard: Shard, wanted: Collection[ClipKey], settled: Collection[ClipKey], decoder: Decoder
) -> Iterator[tuple[ClipKey, Chunk | str]]:
    """Yield the chunks of some clips of a shard in order, or once the reason why a clip does not come.

    The source is read up to the last of these clips only.

    Args:
        settled: all clips of the shard; see `clips_of`.
        decoder: the job's stage.
    """
    left = {video for video, _ in wanted}
    try:
        for record in read_shard(shard):
            if not left:
                return
            if not isinstance(record, Video) or record.video not in left:
                continue
            left.remove(record.video)
            # Clips that are not wanted are skipped just as a resumed run skips clips that the guard rejected.
            others = tuple(clip for video, clip in {*settled} - {*wanted} if video == record.video)
            yield from _video_again(replace(record, verdicts=others), wanted, decoder)
    except StorageError as error:
        for clip in sorted(clip for clip in wanted if clip[0] in left):
            yield clip, str(error)


def _video_again(video: Video, wanted: Collection[ClipKey], decoder: Decoder) -> Iterator[tuple[ClipKey, Chunk | str]]:
    for record in decoder(video, Strikes()):
        if isinstance(record, FaultReceipt):
            yield from ((clip, record.message) for clip in sorted(wanted) if clip[0] == video.video)
        elif isinstance(record, RejectionReceipt) and record.id.clip_key in wanted:
            yield record.id.clip_key, f"{record.rejection.reason}: {record.rejection.message}"
        elif isinstance(record, Chunk):
            yield record.id.clip_key, record
