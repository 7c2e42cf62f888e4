"""CSV with a quote too few or too many: no line is lost in another one's field, whatever the parser makes of quotes.

What must come out is counted by the lines of the file here, and never by a CSV parser.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.receipts import RejectionReceipt
from pipeline.records import Video
from pipeline.shards import TableRange
from pipeline.sources.listing import list_source
from pipeline.stages.read_shard import read_shard

CAPTIONS = ["plain", "a man says, hello", 'he said "hi", twice', "", ", begins with a comma", '"', "caf\u00e9, \u6587"]
SEVERAL_LINES = [*CAPTIONS, "two\nlines", "\nbegins with one", "three, \n\n of them", 'quoted "\n" newline']


def written(captions: list[str], quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    """A table of as many rows; the last column is empty in every third."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator="\n")  # type: ignore[arg-type]
    writer.writerow(["video", "caption", "note"])
    writer.writerows([f"row-{i}.mp4", caption, "" if i % 3 else "n, m"] for i, caption in enumerate(captions))
    return buffer.getvalue().encode()


def assert_nothing_is_swallowed(path: Path, num_rows: int, shard_size: int) -> None:
    """Each row is a clip with its own fields only, or its line is among those that a rejection names; the number of
    what ends is planned, and a file in which every row is one line gives one for each line."""
    lines = path.read_bytes().split(b"\n")[1:-1]
    records: list[Video | RejectionReceipt] = []
    refused = set[int]()  # lines, counted after the header
    for shard in list_source(str(path), shard_size=shard_size):
        part = shard.members
        assert isinstance(part, TableRange)
        begin = path.read_bytes()[: part.start].count(b"\n") - 1
        of_shard = [record for record in read_shard(shard) if isinstance(record, Video | RejectionReceipt)]
        assert len(of_shard) == part.rows
        for record in of_shard:
            message = record.rejection.message if isinstance(record, RejectionReceipt) else ""
            if line := re.search(r"lines? (\d+)", message):
                refused.add(begin + int(line[1]) - 1)
        records += of_shard
    found = [record for record in records if isinstance(record, Video)]
    for number in range(num_rows):
        named = [record for record in found if f"row-{number}.mp4" in repr((record.key, record.caption, record.extra))]
        at = next(i for i, line in enumerate(lines) if f"row-{number}.mp4".encode() in line)
        alone = len(named) == 1 and f"row-{number}.mp4" in named[0].key
        assert alone or (not named and at in refused), number
    if len(lines) == num_rows:
        assert len(records) == num_rows


def without(data: bytes, position: int) -> bytes:
    return data[:position] + data[position + 1 :]


@pytest.mark.parametrize(("captions", "shard_size"), [(CAPTIONS, 64), (SEVERAL_LINES, 7)])
def test_any_one_quote_may_be_missing(tmp_path: Path, captions: list[str], shard_size: int) -> None:
    whole = written([captions[i % len(captions)] for i in range(50)])
    path = tmp_path / "t.csv"
    for match in re.finditer(b'"', whole):
        path.write_bytes(without(whole, match.start()))
        assert_nothing_is_swallowed(path, 50, shard_size)


@given(
    captions=st.lists(st.text(st.sampled_from('",ab \n'), max_size=6), min_size=1, max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    shard_size=st.integers(1, 4),
    which=st.integers(0),
    extra=st.booleans(),
)
@example(captions=["", "\n,", ",a"], quoting=csv.QUOTE_MINIMAL, shard_size=1, which=4, extra=False)
@settings(max_examples=100, deadline=None)
def test_no_row_vanishes_in_another_whatever_the_fields_hold(
    tmp_path_factory: pytest.TempPathFactory,
    captions: list[str],
    quoting: int,
    shard_size: int,
    which: int,
    extra: bool,
) -> None:
    """One quote more or fewer after the header."""
    whole = written(captions, quoting)
    body = whole.index(b"\n") + 1
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    quotes = [match.start() for match in re.finditer(b'"', whole) if match.start() >= body]
    if extra:
        # Not inside of a row's name, by which it is found again, nor after the last newline, where it is its own line.
        places = [match.end() for match in re.finditer(rb"row-\d+.mp4|[^r]", whole[:-1]) if match.start() >= body]
        position = places[which % len(places)]
        path.write_bytes(whole[:position] + b'"' + whole[position:])
    else:
        path.write_bytes(without(whole, quotes[which % len(quotes)]) if quotes else whole)
    assert_nothing_is_swallowed(path, len(captions), shard_size)
