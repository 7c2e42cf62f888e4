"""A table of videos -> row ranges, and a range -> samples. Parquet, JSONL or CSV; one column must be `video`.

`start` and `end` are seconds, kept exactly; `caption` (or `text`) is the caption; every other column passes through,
except binary ones. A relative address starts at the table's folder. A row without a video, with a time that can't be
read or with start >= end is the Rejection `bad_row`; an address that a table may not name is `unsafe_uri`.

Ranges are rows of a Parquet file and bytes of the others. A Parquet range decodes its row group from the group's start:
write row groups of a few thousand rows, not of a million.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.addresses import folder_of, joined, redacted, refusal
from pipeline.errors import ConfigError
from pipeline.folders import shard_name
from pipeline.range_file import open_parquet
from pipeline.records import Rejection, Shard
from pipeline.samples import Sample, parse_json, parse_seconds, plain, refuse, suffix_of, take_caption
from pipeline.storage import Entry, open_uri

log = logging.getLogger(__name__)

MAX_RANGE_BYTES = 64 << 20
"""A range ends after `shard_size` rows or this many bytes, whichever comes first; no line may be longer."""


def list_table(uri: str, entry: Entry, *, shard_size: int, start: int) -> Iterator[Shard]:
    """Ranges of a table from `start` (a row or a byte: where the plan ends) to its end.

    Raises:
        ConfigError: no column `video`, or not the kind of file that its suffix says.
    """
    kind = suffix_of(uri)
    if kind == ".parquet":
        ranges = _parquet_ranges(uri, entry, shard_size, start)
    elif kind == ".csv":
        ranges = _csv_ranges(uri, entry, shard_size, start)
    else:
        ranges = _jsonl_ranges(uri, entry, shard_size, start)
    for members, size in ranges:
        name = shard_name(uri, PurePosixPath(uri).stem, f"{members['start']}-{members['stop']}")
        yield Shard(
            name=name,
            kind="table",
            uri=uri,
            size=size,
            etag=entry.etag,
            members=json.dumps(members, separators=(",", ":")),
        )


def table_end(uri: str, entry: Entry) -> int:
    """Where the last range of a table ends: its number of rows (Parquet) or of bytes."""
    return open_parquet(uri, entry.size, entry.etag).metadata.num_rows if suffix_of(uri) == ".parquet" else entry.size


def read_table(shard: Shard, members: dict[str, Any], *, allow_private: bool) -> Iterator[Sample | Rejection]:
    """The samples of one range, in order; every row is one."""
    start, stop = members["start"], members["stop"]
    rows: Iterator[dict[str, Any] | str]
    match suffix_of(shard.uri):
        case ".parquet":
            rows = _parquet_rows(shard.uri, members["table_size"], shard.etag, start, stop)
        case ".csv":
            rows = _csv_rows(_read_range(shard, start, stop), members["columns"])
        case _:
            rows = _jsonl_rows(_read_range(shard, start, stop))
    folder = folder_of(shard.uri)
    for number, row in enumerate(rows):
        if isinstance(row, str):
            yield refuse("bad_row", f"row {number} of the range: {row}", key="", uri=shard.uri)
        else:
            yield _sample(row, folder, f"row {number} of the range", shard.uri, allow_private=allow_private)


def _sample(row: dict[str, Any], folder: str, where: str, table_uri: str, *, allow_private: bool) -> Sample | Rejection:
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
        why = refusal(uri, allow_private=allow_private)
    except ValueError as error:  # ConfigError is one: credentials in the address, no bucket
        why = str(error)
    if why:
        return refuse("unsafe_uri", f"{where}: {why}", key=key, uri=table_uri)
    caption = take_caption(fields)
    return Sample(key=key, uri=uri, caption=caption, start=start, end=end, extra=fields)


def _jsonl_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    with _lines(uri, entry, start) as lines:
        first = start == 0
        stop, rows, position = start, 0, start
        for line in iter(lambda: lines.readline(MAX_RANGE_BYTES + 1), b""):
            _check_line(line, uri, position)
            position += len(line)
            if first and line.strip():
                first = False
                _check_columns(_first_object(line, uri), uri)
            rows += bool(line.strip())
            if rows == shard_size or position - stop >= MAX_RANGE_BYTES:
                yield {"start": stop, "stop": position}, position - stop
                stop, rows = position, 0
        if rows:
            yield {"start": stop, "stop": position}, position - stop


def _jsonl_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    for line in data.split(b"\n"):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                yield str(error)
                continue
            yield row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _csv_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    with _lines(uri, entry, 0) as lines:
        counted = _CountedLines(lines, uri)
        try:
            columns = next(_csv_reader(counted), [])
        except csv.Error as error:
            raise ConfigError(f"{redacted(uri)}: {error} in the header") from error
        _check_columns(columns, uri)
        header_stop = counted.position
    begin = max(start, header_stop)
    with _lines(uri, entry, begin) as lines:
        counted = _CountedLines(lines, uri, begin)
        stop, rows = begin, 0
        reader = _csv_reader(counted)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error:
                row = ["a row that the read stage will refuse"]
            rows += bool(row)
            if rows == shard_size or counted.position - stop >= MAX_RANGE_BYTES:
                yield {"start": stop, "stop": counted.position, "columns": columns}, counted.position - stop
                stop, rows = counted.position, 0
        if rows:
            yield {"start": stop, "stop": counted.position, "columns": columns}, counted.position - stop


def _csv_rows(data: bytes, columns: list[str]) -> Iterator[dict[str, Any] | str]:
    # Lines end at "\n" alone, as they did when the ranges were made.
    reader = _csv_reader(line.decode("utf-8", "surrogateescape") for line in io.BytesIO(data))
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(error)
            continue
        if len(row) == len(columns):
            yield {name: value or None for name, value in zip(columns, row, strict=True)}
        elif row:
            yield f"{len(row)} fields, and the header has {len(columns)}"


def _csv_reader(lines: Iterable[str]) -> Iterator[list[str]]:
    # The limit of the csv module is one for the process; its default, 128 KiB, is less than some captions.
    csv.field_size_limit(MAX_RANGE_BYTES)
    return csv.reader(lines)


class _CountedLines:
    """Lines of text for csv.reader, which takes as many as one row needs, and how many bytes they were."""

    def __init__(self, lines: io.BufferedReader, uri: str, position: int = 0) -> None:
        self.position = position
        self._lines, self._uri = lines, uri

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = self._lines.readline(MAX_RANGE_BYTES + 1)
        if not line:
            raise StopIteration
        _check_line(line, self._uri, self.position)
        self.position += len(line)
        return line.decode("utf-8-sig" if self.position == len(line) else "utf-8", "surrogateescape")


def _parquet_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    file = open_parquet(uri, entry.size, entry.etag)
    _check_columns(file.schema_arrow.names, uri)
    metadata = file.metadata
    largest = max((metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)), default=0)
    if largest > 100 * shard_size:
        log.warning(
            "table=%s has row groups of %d rows, and each shard of %d reads one: write smaller ones",
            *(redacted(uri), largest, shard_size),
        )
    for first in range(start, metadata.num_rows, shard_size):
        stop = min(first + shard_size, metadata.num_rows)
        share = entry.size * stop // metadata.num_rows - entry.size * first // metadata.num_rows
        yield {"start": first, "stop": stop, "table_size": entry.size}, share


def _parquet_rows(uri: str, size: int, etag: str, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
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
                    yield from batch.slice(skip, keep - skip).to_pylist()
                position += batch.num_rows
                if position >= stop:
                    break
        first = last


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _read_range(shard: Shard, start: int, stop: int) -> bytes:
    storage, path = open_uri(shard.uri)
    return storage.read(path, start, stop, etag=shard.etag)


def _lines(uri: str, entry: Entry, start: int) -> io.BufferedReader:
    storage, path = open_uri(uri)
    return io.BufferedReader(storage.stream(path, start=start, size=entry.size, etag=entry.etag), 1 << 20)


def _check_line(line: bytes, uri: str, position: int) -> None:
    if len(line) > MAX_RANGE_BYTES:
        raise ConfigError(f"{redacted(uri)}: the line at byte {position} is longer than {MAX_RANGE_BYTES} bytes")


def _check_columns(columns: Any, uri: str) -> None:
    if "video" not in columns:
        shown = ", ".join(list(columns)[:20])
        raise ConfigError(f"{redacted(uri)} has no column 'video', only: {shown or 'nothing'}")


def _first_object(line: bytes, uri: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{redacted(uri)}: the first line is {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{redacted(uri)}: the first line is a {type(row).__name__}, not an object")
    return row
