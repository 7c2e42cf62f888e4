"""FastVideo's Parquet files (pyarrow_schema_t2v of its dataloader/schema.py) as a source of latents.

Its own writer and reader use float32 whatever the dtype column says; a value of half the bytes has the dtype it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from latentmill.format import DTYPES, to_float32
from pipeline.errors import StorageError
from pipeline.records import Rejection
from pipeline.shards import Shard, TableRange, shard_name
from pipeline.sources.latents import BadRowError, ForeignLatent, ForeignSource, fps_of, taken
from pipeline.sources.samples import plain
from pipeline.storage import Storage
from pipeline.storage.range_file import open_parquet

NEEDED = ("vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype")
NAMES = ("file_name", "id")
EXTRA = ("id", "media_type", "num_frames", "height", "width", "duration_sec")
"""Columns that go to `extra_json`, as they stand there."""


def list_shards(place: Storage, shard_size: int, planned: frozenset[str]) -> Iterator[Shard]:
    """Yield the row ranges of each Parquet file."""
    for entry in place.list():
        uri = place.address(entry.path)
        if not entry.path.endswith(".parquet") or uri in planned:
            continue
        num_rows = open_parquet(uri, entry.size, entry.etag).metadata.num_rows
        for start in range(0, num_rows, shard_size):
            stop = min(start + shard_size, num_rows)
            yield Shard(
                name=shard_name(uri, PurePosixPath(entry.path).stem, f"{start}-{stop}"),
                kind="table",
                uri=uri,
                size=entry.size * (stop - start) // num_rows,
                etag=entry.etag,
                members=TableRange(start=start, stop=stop, rows=stop - start, table_size=entry.size),
            )


def read_shard(shard: Shard, key: str) -> Iterator[ForeignLatent | Rejection]:
    """Yield the rows of a range, with one row group in memory.

    Raises:
        ChangedError: the file is not the one that was planned.
    """
    del key
    rows = shard.members
    assert isinstance(rows, TableRange)
    assert rows.table_size is not None
    file = open_parquet(shard.uri, rows.table_size, shard.etag)
    there = file.schema_arrow.names
    names = [name for name in dict.fromkeys((*NEEDED, *NAMES, *EXTRA, "caption", "fps")) if name in there]
    number = 0
    for group in range(file.num_row_groups):
        length = file.metadata.row_group(group).num_rows
        if number < rows.stop and number + length > rows.start:
            try:
                table: pa.Table | Exception = file.read_row_group(group, columns=names)
            except StorageError:
                raise
            except (pa.ArrowException, OSError, ValueError) as error:  # its pages are damaged
                table = error
            for i in range(max(0, rows.start - number), min(length, rows.stop - number)):
                uri = f"{shard.uri}#{number + i}"
                yield taken(_key(table, i, uri), uri, partial(_latent, uri, table, i))
        number += length


def _key(table: pa.Table | Exception, i: int, uri: str) -> str:
    """Return the name of a row, or its number where it has none that can be read."""
    for name in NAMES:
        try:
            if isinstance(table, pa.Table) and name in table.column_names and (value := table[name][i].as_py()):
                return str(value)
        except ValueError:  # not UTF-8
            continue
    return uri.rpartition("/")[2]


def _latent(uri: str, table: pa.Table | Exception, i: int) -> ForeignLatent:
    if isinstance(table, Exception):
        raise table
    if lacking := [name for name in NEEDED if name not in table.column_names]:
        raise BadRowError(f"no column {lacking[0]!r}")
    row: dict[str, Any] = {name: table[name][i].as_py() for name in table.column_names}
    content, shape = row["vae_latent_bytes"] or b"", row["vae_latent_shape"] or []
    if len(shape) != 4 or min(shape) < 1:
        raise BadRowError(f"the shape must be [C, T, H, W], got {shape}")
    stated = "float32" if len(content) == 4 * prod(shape) else str(row["vae_latent_dtype"])
    if wrong := _what_is_wrong(content, stated, shape):
        raise BadRowError(wrong)
    return ForeignLatent(
        key=_key(table, i, uri),
        uri=uri,
        values=to_float32(content, stated).reshape(shape),
        dtype=stated,
        caption=row.get("caption") or None,
        fps=fps_of(row.get("fps")),
        extra=plain({name: row.get(name) for name in EXTRA}),
    )


def _what_is_wrong(content: bytes, dtype: str, shape: list[int]) -> str:
    """Return why the bytes are no tensor of an output's dtypes, or ""."""
    if dtype not in DTYPES:
        return f"dtype must be {', '.join(DTYPES)}, got {dtype!r}"
    if not shape or len(content) != prod(shape) * DTYPES[dtype].itemsize:
        return f"{len(content)} bytes are no {dtype} of shape {shape}"
    return ""


SOURCE = ForeignSource(list=list_shards, read=read_shard)
