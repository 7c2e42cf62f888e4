"""JSONL and CSV tables as text: byte ranges of so many rows, and the rows of a range.

Both cut at "\\n" alone, so that a range made by one is the range read by the other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.errors import ConfigError
from pipeline.sources.samples import parse_json
from pipeline.storage import Entry, open_uri
from pipeline.storage.addresses import redacted

MAX_RANGE_BYTES = 64 << 20
"""A range ends after `shard_size` rows or this many bytes, whichever comes first; no line may be longer."""


def jsonl_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    with _lines(uri, entry, start) as lines:
        first = start == 0
        stop, rows, position = start, 0, start
        for line in iter(lambda: lines.readline(MAX_RANGE_BYTES + 1), b""):
            _check_line(line, uri, position)
            position += len(line)
            if first and line.strip():
                first = False
                check_columns(_first_object(line, uri), uri)
            rows += bool(line.strip())
            if rows == shard_size or position - stop >= MAX_RANGE_BYTES:
                yield {"start": stop, "stop": position, "rows": rows}, position - stop
                stop, rows = position, 0
        if rows:
            yield {"start": stop, "stop": position, "rows": rows}, position - stop


def jsonl_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    for line in data.split(b"\n"):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                yield str(error)
                continue
            yield row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def csv_ranges(uri: str, entry: Entry, shard_size: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    with _lines(uri, entry, 0) as lines:
        counted = _CountedLines(lines, uri)
        try:
            columns = next(_csv_reader(counted), [])
        except csv.Error as error:
            raise ConfigError(f"{redacted(uri)}: {error} in the header") from error
        check_columns(columns, uri)
        header_stop = counted.position
    begin = max(start, header_stop)
    with _lines(uri, entry, begin) as lines:
        counted = _CountedLines(lines, uri, begin)
        stop, rows = begin, 0

        def found() -> tuple[dict[str, Any], int]:
            members = {"start": stop, "stop": counted.position, "rows": rows, "columns": columns}
            return members, counted.position - stop

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
                yield found()
                stop, rows = counted.position, 0
        if rows:
            yield found()


def csv_rows(data: bytes, columns: list[str]) -> Iterator[dict[str, Any] | str]:
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


def _lines(uri: str, entry: Entry, start: int) -> io.BufferedReader:
    storage, path = open_uri(uri)
    return io.BufferedReader(storage.stream(path, start=start, size=entry.size, etag=entry.etag), 1 << 20)


def _check_line(line: bytes, uri: str, position: int) -> None:
    if len(line) > MAX_RANGE_BYTES:
        raise ConfigError(f"{redacted(uri)}: the line at byte {position} is longer than {MAX_RANGE_BYTES} bytes")


def check_columns(columns: Any, uri: str) -> None:
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
