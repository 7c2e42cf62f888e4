"""Turn records into rows of one Arrow schema and back. Nothing else travels between the stages.

Each stage reads and writes tables of ROW_SCHEMA: an identity, one binary payload with shape and dtype, fixed-width
measurements, and all other fields as JSON in `meta`. Payloads are `large_binary`, so they cross Ray without a copy. All
but the `*_seconds` follow from source and Spec, and these have a fixed width: a retried task cuts the same blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.receipts import (
    ClipsReceipt,
    ElsewhereReceipt,
    FaultReceipt,
    NoEncoderReceipt,
    PartReceipt,
    Receipt,
    Record,
    RejectionReceipt,
    UnstoredReceipt,
    VideosReceipt,
)
from pipeline.records import Chunk, ChunkId, ClipFacts, Latent, Rejection, Video, canonical_json

ROW_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("shard", pa.string()),
        ("video", pa.int32()),
        ("clip", pa.int32()),
        ("chunk", pa.int32()),
        ("num_chunks", pa.int32()),
        ("payload", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("read_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("encode_seconds", pa.float64()),
        ("stage_seconds", pa.float64()),
        ("meta", pa.string()),
    ]
)

_IDENTITY = ("shard", "video", "clip", "chunk", "num_chunks")
_SECONDS = ("read_seconds", "decode_seconds", "encode_seconds", "stage_seconds")

_RECEIPTS: dict[str, type[Receipt]] = {
    "part": PartReceipt,
    "rejection": RejectionReceipt,
    "clips": ClipsReceipt,
    "videos": VideosReceipt,
    "fault": FaultReceipt,
    "unstored": UnstoredReceipt,
    "elsewhere": ElsewhereReceipt,
    "no encoder": NoEncoderReceipt,
}
_KINDS = {made: kind for kind, made in _RECEIPTS.items()}


def to_table(record: Record) -> pa.Table:
    """Return a record as a table of one row of ROW_SCHEMA. The payload is wrapped, not copied."""
    row: dict[str, Any] = {name: getattr(record, name, None) for name in (*_IDENTITY, *_SECONDS)}
    match record:
        case Video():
            row |= {"kind": "video", "payload": record.payload, "meta": _video_meta(record)}
        case Chunk():
            names = ("windows", "num_context", "latent_start", "clip_latent_frames")
            meta = {name: getattr(record, name) for name in names} | {"row": record.facts.to_row()}
            row |= {"kind": "chunk", "payload": record.frames, "shape": record.frames.shape, "meta": meta}
            row |= record.id.to_row()
        case Latent():
            row |= {"kind": "latent", "payload": record.payload, "shape": record.shape, "dtype": record.dtype}
            row |= record.id.to_row() | {"meta": {"row": record.facts.to_row()}}
        case _:
            row |= _receipt_fields(record)
    row["meta"] = canonical_json(row["meta"])
    columns = [
        _binary(row.get(name)) if name == "payload" else pa.array([row.get(name)], type_)
        for name, type_ in zip(ROW_SCHEMA.names, ROW_SCHEMA.types, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)


def from_table(table: pa.Table) -> Iterator[Record]:
    """Yield the records of a table of ROW_SCHEMA in order. Payloads are views into the memory of the table."""
    for batch in table.to_batches():
        payloads = batch.column("payload")
        for i, row in enumerate(batch.drop_columns(["payload"]).to_pylist()):
            meta = json.loads(row["meta"])
            identity = {name: row[name] for name in _IDENTITY}
            seconds = {name: row[name] for name in _SECONDS if row.get(name) is not None}
            payload = _view(payloads, i)
            match row["kind"]:
                case "video":
                    yield Video(
                        shard=row["shard"], video=row["video"], payload=payload, **seconds, **_video_fields(meta)
                    )
                case "chunk":
                    frames = np.frombuffer(_required(payload), np.uint8).reshape(row["shape"])
                    meta["windows"] = tuple(meta["windows"])
                    facts = ClipFacts.from_row(meta.pop("row"))
                    yield Chunk(id=ChunkId(**identity), frames=frames, facts=facts, **seconds, **meta)
                case "latent":
                    shape, dtype = tuple(row["shape"]), row["dtype"]
                    facts = ClipFacts.from_row(meta.pop("row"))
                    yield Latent(
                        id=ChunkId(**identity),
                        payload=_required(payload),
                        shape=shape,
                        dtype=dtype,
                        facts=facts,
                        **seconds,
                        **meta,
                    )
                case kind:
                    yield _receipt(kind, identity, seconds | meta)


def _receipt_fields(receipt: Receipt) -> dict[str, Any]:
    names = set(receipt.__slots__) - {"id", *_IDENTITY, *_SECONDS}
    meta = {name: getattr(receipt, name) for name in names}
    if isinstance(rejection := meta.get("rejection"), Rejection):
        meta["rejection"] = {name: getattr(rejection, name) for name in Rejection.__slots__}
    identity = receipt.id.to_row() if isinstance(receipt, PartReceipt | RejectionReceipt) else {}
    return {"kind": _KINDS[type(receipt)], "meta": meta} | identity


def _receipt(kind: str, identity: dict[str, Any], fields: dict[str, Any]) -> Receipt:
    made = _RECEIPTS[kind]
    if fields.get("rejection"):
        fields["rejection"] = Rejection(**fields["rejection"])
    if "id" in made.__slots__:
        fields["id"] = ChunkId(**identity)
    return made(**fields, **{name: identity[name] for name in _IDENTITY if name in made.__slots__})


def _video_meta(video: Video) -> dict[str, Any]:
    names = ("key", "uri", "size", "etag", "public_only", "caption", "extra", "only", "staged", "verdicts")
    times = {name: str(time) for name in ("start", "end") if (time := getattr(video, name)) is not None}
    return {name: getattr(video, name) for name in names} | times


def _video_fields(meta: dict[str, Any]) -> dict[str, Any]:
    staged = tuple((clip, chunk) for clip, chunk in meta["staged"])
    times = {name: Fraction(meta[name]) for name in ("start", "end") if name in meta}
    only = None if meta["only"] is None else tuple(meta["only"])
    return meta | times | {"only": only, "staged": staged, "verdicts": tuple(meta["verdicts"])}


def _binary(payload: Any) -> pa.Array:
    """Return a large_binary array of one value (or null) that uses the memory of the payload."""
    if payload is None:
        return pa.nulls(1, pa.large_binary())
    data = pa.py_buffer(payload)
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _view(column: pa.Array, i: int) -> memoryview | None:
    """Return value i of a large_binary array without a copy. (`column[i].as_buffer()` copies.)"""
    if column.slice(i, 1).null_count:
        return None
    _, offsets, data = column.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[column.offset + i : column.offset + i + 2].tolist()
    return memoryview(data)[start:stop].cast("B")


def _required(payload: memoryview | None) -> memoryview:
    if payload is None:
        raise ValueError("a chunk or latent row without payload")
    return payload
