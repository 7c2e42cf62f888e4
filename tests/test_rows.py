"""Law: a record survives its Arrow row unchanged, and its payload is never copied on the way in."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output.rows import ROW_SCHEMA, from_table, to_table
from pipeline.receipts import (
    ClipsReceipt,
    ElsewhereReceipt,
    FaultReceipt,
    PartReceipt,
    Receipt,
    Record,
    RejectionReceipt,
    UnstoredReceipt,
    VideosReceipt,
)
from pipeline.records import Chunk, ChunkId, Rejection, Video
from tests.small import latent

VIDEO = Video(
    shard="s",
    video=3,
    key="a/b",
    uri="s3://bucket/a.tar#b.mp4",
    payload=b"\x00bytes\xff",
    size=7,
    etag="e",
    caption="ein Hund\n\u2014",
    start=Fraction(1, 3),
    extra={"fps": 30, "tags": ["x"]},
    staged=((0, 0), (1, 2)),
    verdicts=(4,),
    read_seconds=0.5,
)
REJECTION = Rejection(reason="corrupt", stage="decode", message="m")
RECEIPTS: list[Receipt] = [
    PartReceipt(id=ChunkId(shard="s", video=1, clip=2, chunk=3, num_chunks=4), num_bytes=10, encode_seconds=2.0),
    RejectionReceipt(id=ChunkId(shard="s", video=1, clip=0), rejection=REJECTION),
    ClipsReceipt(shard="s", video=1, count=9),
    VideosReceipt(shard="s", count=2),
    FaultReceipt(shard="s", video=1, message="m", rejection=REJECTION),
    FaultReceipt(shard="s", message="m"),
    UnstoredReceipt(shard="s", message="m"),
    ElsewhereReceipt(shard="s"),
]
LATENT = replace(latent(0, 0), payload=b"1234", shape=(1, 1, 1, 2))


@pytest.mark.parametrize("record", [VIDEO, *RECEIPTS, LATENT])
def test_a_record_survives_its_row(record: Record) -> None:
    (back,) = from_table(to_table(record))
    assert back == record


def test_a_chunk_survives_its_row_and_is_wrapped_not_copied() -> None:
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    chunk = Chunk(
        id=ChunkId(shard="s", video=0, clip=1, num_chunks=2),
        frames=frames,
        windows=(1, 1),
        num_context=1,
        latent_start=1,
        clip_latent_frames=2,
        facts=replace(LATENT.facts, timestamps=(0.0, 0.5)),
    )
    table = to_table(chunk)
    (back,) = from_table(table)
    assert isinstance(back, Chunk)
    np.testing.assert_array_equal(back.frames, frames)
    assert (back.id, back.windows, back.num_context, back.facts) == (chunk.id, chunk.windows, 1, chunk.facts)
    assert np.shares_memory(back.frames, frames)


def test_records_keep_their_order_in_a_joined_block() -> None:
    table = pa.concat_tables([to_table(r) for r in (VIDEO, *RECEIPTS, LATENT)])
    assert table.schema == ROW_SCHEMA
    assert list(from_table(table)) == [VIDEO, *RECEIPTS, LATENT]
    assert list(from_table(table.slice(1, 2))) == RECEIPTS[:2]


def test_an_unknown_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="reason must be one of"):
        Rejection(reason="bad luck", stage="read", message="")
