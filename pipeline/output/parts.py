"""Parts: the staged latents of single chunks. Each is one file, and its name follows from its content.

    _staging/<shard>/v000012.c000003.k0001of0002.part     Arrow IPC, one row of ROW_SCHEMA
    _staging/<shard>/v000012.c000004.verdict.json         a rejection by the guard

Each file ends with a checksum over all its bytes, which is checked before the file is parsed. A file that fails the
check counts as not staged: the clip is open again, and its chunks are encoded again.

A retried or repeated task puts the same part under the same name, so staging needs no bookkeeping. Commit joins the
parts of a shard into its data file and deletes them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from latentmill import checksum
from latentmill.format import DTYPES
from pipeline.decode import merge_facts
from pipeline.errors import NotFoundError
from pipeline.output.layout import part_path, verdict_path
from pipeline.output.rows import from_table, to_table
from pipeline.receipts import PartReceipt, Receipt, Record, RejectionReceipt
from pipeline.records import ChunkId, ClipFacts, Latent, Rejection, canonical_json

if TYPE_CHECKING:
    from pipeline.storage import Storage


class MissingPartError(Exception):
    """The part or verdict at `path` is missing or damaged."""

    def __init__(self, path: str, damage: str = "") -> None:
        super().__init__(f"{path} is damaged: {damage}" if damage else f"{path} is not there")
        self.path = path
        self.is_damaged = bool(damage)


def stage(record: Record, output: Storage) -> Receipt:
    """Put a latent (or a verdict) into staging and return its receipt; any other receipt passes through."""
    if isinstance(record, Latent):
        started = time.perf_counter()
        output.put(part_path(record.id), checksum.append(_to_ipc(record)))
        return PartReceipt(
            id=record.id,
            num_bytes=len(record.payload),
            decode_seconds=record.decode_seconds,
            encode_seconds=record.encode_seconds,
            stage_seconds=time.perf_counter() - started,
        )
    assert isinstance(record, Receipt)
    if isinstance(record, RejectionReceipt) and record.verdict:
        path = verdict_path(record.shard, record.id.video, record.id.clip)
        output.put(path, checksum.append(canonical_json(asdict(record.rejection)).encode()))
    return record


def read_verdict(output: Storage, shard: str, video: int, clip: int) -> Rejection:
    """Read a verdict that an earlier run staged.

    Raises:
        MissingPartError: the verdict is missing or damaged.
    """
    path = verdict_path(shard, video, clip)
    with _of_this_version(path):
        return Rejection(**json.loads(bytes(_staged(output, path))))


def read_clip(output: Storage, shard: str, video: int, clip: int, num_chunks: int) -> Latent:
    """Read the staged parts of a clip and join them into its whole latent.

    Raises:
        MissingPartError: a part is missing or damaged.
    """
    first = ChunkId(shard=shard, video=video, clip=clip, num_chunks=num_chunks)
    return join([_read_part(output, replace(first, chunk=chunk)) for chunk in range(num_chunks)])


def join(chunks: list[Latent]) -> Latent:
    """Concatenate the bodies of one clip's chunks along time, and join their facts."""
    first = chunks[0]
    if len(chunks) == 1:
        return first
    arrays = [np.frombuffer(chunk.payload, DTYPES[chunk.dtype]).reshape(chunk.shape) for chunk in chunks]
    latent = np.concatenate(arrays, axis=1)
    facts = [chunk.facts for chunk in chunks]
    return Latent(
        id=replace(first.id, chunk=0, num_chunks=1),
        payload=latent.tobytes(),
        shape=latent.shape,
        dtype=first.dtype,
        facts=ClipFacts.joined(facts, merge_facts([one.source for one in facts])),
    )


def _to_ipc(record: Latent) -> bytes:
    table = to_table(record)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _staged(output: Storage, path: str) -> memoryview:
    """Read the staged file at `path` and return it without its checksum."""
    try:
        return checksum.strip(output.read(path))
    except NotFoundError:
        raise MissingPartError(path) from None
    except checksum.DamagedError as error:
        raise MissingPartError(path, str(error)) from None


def _read_part(output: Storage, id: ChunkId) -> Latent:
    """Read one part. A file that was moved to this path from another one is not this part."""
    path = part_path(id)
    with _of_this_version(path):
        (latent,) = from_table(pa.ipc.open_file(pa.py_buffer(_staged(output, path))).read_all())
    assert isinstance(latent, Latent)
    if latent.id != id:
        raise MissingPartError(path, f"it is the part of {latent.id}")
    return latent


@contextlib.contextmanager
def _of_this_version(path: str) -> Iterator[None]:
    """Treat a sound file that cannot be parsed as missing: another version may stage other fields."""
    try:
        yield
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise MissingPartError(path, f"staged by another version: {error}") from error
