"""Parse CSV lines into records, so that damage costs the damaged line only and never the lines after it.

A quoted field may contain newlines, so with one missing quote a lenient reader takes the rest of the file as one
caption. This reader accepts a record of several lines only if it is correct: quotes as in RFC 4180, the right number of
fields, a video, at most MAX_RECORD_LINES. Otherwise only its first line is rejected, and the next record begins on the
next line. So each line belongs to exactly one record, and a byte range that ends between two records gives the same
records when it is read separately.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_LINE_BYTES = 64 << 20
MAX_RECORD_LINES = 1000
MAX_RECORD_BYTES = 4 << 20
"""Limit of a record of several lines: how far the reader looks for the closing quote."""

_OPENING = re.compile(rb',"(?:"")*(?:,|\r?\n?\Z)').search
"""A quote after a comma that would close a field from an earlier line. More likely, that field was never closed."""


class CsvRecord(NamedTuple):
    """One record, blank lines included."""

    fields: list[str]
    """Empty for a blank line and for a rejected record."""
    fault: str
    """Why the record is rejected, and which lines; "" if it is accepted."""
    size: int
    """Number of bytes of its lines."""


def csv_records(lines: Iterator[bytes], columns: Sequence[str] = ()) -> Iterator[CsvRecord]:
    """Yield the records of `lines`. With `columns`, a record with another number of fields is rejected."""
    # The csv module has one limit per process; its default, 128 KiB, is too small for some captions.
    csv.field_size_limit(MAX_LINE_BYTES)
    source = _Lines(lines)
    reader = csv.reader(source, strict=True)
    first = 1
    while True:
        source.taken.clear()
        try:
            fields = next(reader)
            fault = _fault(fields, source.taken, columns)
        except StopIteration:
            return
        except csv.Error as error:
            fields, fault = [], str(error)
        last = first + len(source.taken) - 1
        if fault and last > first:
            source.give_back()
            fault = f"lines {first} to {last}: {fault}; line {first} is refused, and line {first + 1} begins a new row"
        elif fault:
            fault = f"line {first}: {fault}"
        yield CsvRecord([] if fault else fields, fault, sum(map(len, source.taken)))
        first += len(source.taken)


def _fault(fields: list[str], lines: list[bytes], columns: Sequence[str]) -> str:
    if fields and columns and len(fields) != len(columns):
        return f"{len(fields)} fields, and the header has {len(columns)}"
    if len(lines) > 1 and columns and not fields[columns.index("video")]:
        return "no video, which makes it unlikely that these lines are one row"
    if len(lines) > 1 and sum(line.count(b'"') for line in lines) % 2:
        return "an odd number of quotes"
    if any(map(_OPENING, lines[1:])):
        return "a quoted field that ends in what looks like the beginning of another"
    return ""


class _Lines:
    """Lines for csv.reader, which reads as many as one record needs; all but the first can be given back."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.taken: list[bytes] = []
        self._lines = lines
        self._given_back = deque[bytes]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._lines)
        self.taken.append(line)
        if len(self.taken) > 1 and (len(self.taken) > MAX_RECORD_LINES or sum(map(len, self.taken)) > MAX_RECORD_BYTES):
            raise csv.Error(
                f"a quoted field of more than {MAX_RECORD_LINES} lines or {MAX_RECORD_BYTES} bytes, or a quote too few"
            )
        return line.decode("utf-8", "surrogateescape")

    def give_back(self) -> None:
        self._given_back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]
