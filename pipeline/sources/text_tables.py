"""JSONL and CSV tables: split the text into byte ranges by number of rows, and read the rows of a range.

Lines end only at "\\n", both when ranges are made and when they are read, so that the rows are the same.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ConfigError
from pipeline.shards import TableRange
from pipeline.sources.csv_records import MAX_LINE_BYTES, CsvRecord, csv_records
from pipeline.sources.samples import parse_json
from pipeline.storage import Entry, open_uri
from pipeline.storage.addresses import redacted

MAX_RANGE_BYTES = MAX_LINE_BYTES
"""A range ends after `shard_size` rows or this many bytes, whichever comes first; no line may be longer."""


def jsonl_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[TableRange, int]]:
    with _lines(uri, entry, start) as lines:
        first = start == 0
        stop, rows, position = start, 0, start
        for line in _checked_lines(lines, uri, position):
            position += len(line)
            if first and line.strip():
                first = False
                check_columns(_first_object(line, uri), uri)
            rows += bool(line.strip())
            if rows == shard_size or position - stop >= MAX_RANGE_BYTES:
                yield TableRange(start=stop, stop=position, rows=rows), position - stop
                stop, rows = position, 0
        if rows:
            yield TableRange(start=stop, stop=position, rows=rows), position - stop


def jsonl_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    for line in data.split(b"\n"):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                yield str(error)
                continue
            yield row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def csv_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[TableRange, int]]:
    with _lines(uri, entry, 0) as lines:
        header = next(csv_records(_checked_lines(lines, uri, 0)), CsvRecord([], "", 0))
    if header.fault:
        raise ConfigError(f"{redacted(uri)}: the header, {header.fault}")
    columns = [header.fields[0].removeprefix("\ufeff"), *header.fields[1:]] if header.fields else []
    check_columns(columns, uri)
    stop = position = max(start, header.size)
    with _lines(uri, entry, position) as lines:
        rows = 0
        for record in csv_records(_checked_lines(lines, uri, position), columns):
            position += record.size
            rows += bool(record.fields or record.fault)
            if rows == shard_size or position - stop >= MAX_RANGE_BYTES:
                yield TableRange(start=stop, stop=position, rows=rows, columns=tuple(columns)), position - stop
                stop, rows = position, 0
        if rows:
            yield TableRange(start=stop, stop=position, rows=rows, columns=tuple(columns)), position - stop


def csv_rows(data: bytes, columns: list[str]) -> Iterator[dict[str, Any] | str]:
    # Lines end only at "\n", as when the ranges were made.
    for record in csv_records(io.BytesIO(data), columns):
        if record.fault:
            yield record.fault
        elif record.fields:
            yield {name: value or None for name, value in zip(columns, record.fields, strict=True)}


def _lines(uri: str, entry: Entry, start: int) -> io.BufferedReader:
    storage, path = open_uri(uri)
    return io.BufferedReader(storage.stream(path, start=start, size=entry.size, etag=entry.etag), 1 << 20)


def _checked_lines(lines: io.BufferedReader, uri: str, position: int) -> Iterator[bytes]:
    for line in iter(lambda: lines.readline(MAX_RANGE_BYTES + 1), b""):
        if len(line) > MAX_RANGE_BYTES:
            raise ConfigError(f"{redacted(uri)}: the line at byte {position} is longer than {MAX_RANGE_BYTES} bytes")
        position += len(line)
        yield line


def check_columns(columns: Any, uri: str) -> None:
    if "video" not in columns:
        shown = ", ".join(list(columns)[:20])
        raise ConfigError(f"{redacted(uri)} has no column 'video', only: {shown or 'nothing'}")
    for name, count in Counter(list(columns)).items():
        if name and count > 1:
            raise ConfigError(f"{redacted(uri)} has more than one column {name!r}: rename all but one")


def _first_object(line: bytes, uri: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{redacted(uri)}: the first line is {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{redacted(uri)}: the first line is a {type(row).__name__}, not an object")
    return row
