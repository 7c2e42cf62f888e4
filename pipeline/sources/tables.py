"""Tables of videos: split a table into row ranges, and read a range as samples. Parquet, JSONL or CSV.

The column `video` is required. `start` and `end` are seconds, kept exactly; `caption` (or `text`) is the caption; all
other columns are copied to the output, except binary ones. A relative address is relative to the table's folder. A row
without a video, with an invalid time or with start >= end becomes the Rejection `bad_row`; an address that the table
may not name becomes `unsafe_uri`.

Ranges are rows of a Parquet file and bytes of the other formats. A Parquet range is decoded from the start of its row
group, so write row groups of a few thousand rows, not of a million.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.records import Rejection
from pipeline.shards import Shard, TableRange, shard_name
from pipeline.sources.samples import Sample, parse_seconds, plain, refuse, suffix_of, take_caption
from pipeline.sources.text_tables import check_columns, csv_ranges, csv_rows, jsonl_ranges, jsonl_rows
from pipeline.storage import Entry, open_uri
from pipeline.storage.addresses import folder_of, joined, redacted, refusal, scheme_of
from pipeline.storage.range_file import open_parquet

log = logging.getLogger(__name__)


def list_table(uri: str, entry: Entry, *, shard_size: int, start: int) -> Iterator[Shard]:
    """Yield the ranges of a table from `start` (a row or a byte: the end of the plan) to its end.

    Raises:
        ConfigError: there is no column `video`, or the file is not of the kind that its suffix says.
    """
    kind = suffix_of(uri)
    if kind == ".parquet":
        ranges = _parquet_ranges(uri, entry, shard_size, start)
    elif kind == ".csv":
        ranges = csv_ranges(uri, entry, shard_size, start)
    else:
        ranges = jsonl_ranges(uri, entry, shard_size, start)
    for part, size in ranges:
        name = shard_name(uri, PurePosixPath(uri).stem, f"{part.start}-{part.stop}")
        yield Shard(
            name=name,
            kind="table",
            uri=uri,
            size=size,
            etag=entry.etag,
            members=part,
        )


def table_end(uri: str, entry: Entry) -> int:
    """Return the end of a table's last range: its number of rows (Parquet) or bytes."""
    return open_parquet(uri, entry.size, entry.etag).metadata.num_rows if suffix_of(uri) == ".parquet" else entry.size


def read_table(
    shard: Shard, part: TableRange, *, allow_private: bool, allow_local: bool
) -> Iterator[Sample | Rejection]:
    """Yield the samples of one range, in order, one per row."""
    start, stop = part.start, part.stop
    rows: Iterator[dict[str, Any] | str]
    match suffix_of(shard.uri):
        case ".parquet":
            assert part.table_size is not None
            rows = _parquet_rows(shard.uri, part.table_size, shard.etag, start, stop)
        case ".csv":
            rows = csv_rows(_read_range(shard, start, stop), list(part.columns or ()))
        case _:
            rows = jsonl_rows(_read_range(shard, start, stop))
    folder = folder_of(shard.uri)
    unit = "rows" if suffix_of(shard.uri) == ".parquet" else "bytes"
    for number, row in enumerate(rows):
        where = f"row {number} of {unit} {start} to {stop}"
        if isinstance(row, str):
            yield refuse("bad_row", f"{where}: {row}", key="", uri=shard.uri)
        else:
            yield _sample(row, folder, where, shard.uri, allow_private=allow_private, allow_local=allow_local)


def _sample(
    row: dict[str, Any], folder: str, where: str, table_uri: str, *, allow_private: bool, allow_local: bool
) -> Sample | Rejection:
    video = row.pop("video", None)
    if not isinstance(video, str) or not video.strip():
        return refuse("bad_row", f"{where}: no video", key="", uri=table_uri)
    key = redacted(video)
    try:
        start, end = parse_seconds(row.pop("start", None)), parse_seconds(row.pop("end", None))
        if end is not None and (start or 0) >= end:
            raise ValueError(f"start {start or 0} is not before end {end}")
        fields = plain(row)
        plain({"video": video})
    except ValueError as error:
        return refuse("bad_row", f"{where}: {error}", key=key, uri=table_uri)
    try:
        uri = joined(folder, video)
        why = refusal(uri, folder, allow_private=allow_private, allow_local=allow_local)
    except ValueError as error:  # includes ConfigError: credentials in the address, no bucket
        why = str(error)
    if why:
        return refuse("unsafe_uri", f"{where}: {why}", key=key, uri=table_uri)
    caption = take_caption(fields)
    public_only = not allow_private and scheme_of(uri) in ("http", "https")
    return Sample(key=key, uri=uri, public_only=public_only, caption=caption, start=start, end=end, extra=fields)


def _parquet_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[TableRange, int]]:
    file = open_parquet(uri, entry.size, entry.etag)
    check_columns(file.schema_arrow.names, uri)
    metadata = file.metadata
    largest = max((metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)), default=0)
    if largest > 100 * shard_size:
        log.warning(
            "table=%s has row groups of %d rows, and each shard of %d rows reads a whole one: write smaller row groups",
            *(redacted(uri), largest, shard_size),
        )
    for first in range(start, metadata.num_rows, shard_size):
        stop = min(first + shard_size, metadata.num_rows)
        share = entry.size * stop // metadata.num_rows - entry.size * first // metadata.num_rows
        yield TableRange(start=first, stop=stop, rows=stop - first, table_size=entry.size), share


def _parquet_rows(uri: str, size: int, etag: str, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
    """Yield rows [start, stop). If a page cannot be decoded, each row in the rest of the range is rejected."""
    given = start
    try:
        for batch in _parquet_batches(uri, size, etag, start, stop):
            for row in _plain_rows(batch):
                given += 1
                yield row
        fault = "fewer rows than its metadata says"
    except (StorageError, MemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        fault = str(error)
    while given < stop:
        given += 1
        yield f"the table is damaged: {fault}"


def _parquet_batches(uri: str, size: int, etag: str, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    file = open_parquet(uri, size, etag)
    columns = [field.name for field in file.schema_arrow if not _is_binary(field.type)]
    first = 0
    for index in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(index).num_rows
        if first < stop and last > start:
            position = first
            for batch in file.iter_batches(batch_size=max(1, stop - start), row_groups=[index], columns=columns):
                skip, keep = max(0, start - position), min(batch.num_rows, stop - position)
                if keep > skip:
                    yield batch.slice(skip, keep - skip)
                position += batch.num_rows
                if position >= stop:
                    break
        first = last


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    for index in range(batch.num_rows):
        try:
            (row,) = batch.slice(index, 1).to_pylist()
        except MemoryError:
            raise
        except Exception as error:  # not UTF-8, a date out of range, an invalid time zone, or any other fault
            yield f"a value that cannot be read: {error}"
        else:
            yield row


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _read_range(shard: Shard, start: int, stop: int) -> bytes:
    storage, path = open_uri(shard.uri)
    return storage.read(path, start, stop, etag=shard.etag)
