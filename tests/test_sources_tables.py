"""Tables as sources: the same rows however they are written; each row ends once, and a bad one costs itself."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ChangedError, ConfigError, StorageError
from pipeline.sources.listing import list_source
from pipeline.sources.samples import parse_seconds
from pipeline.stages.read_shard import read_shard
from tests.sources import ROWS, WRITERS, fill, outcomes, seen, videos

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("shard_size", [1, 2, 3, 64])
def test_a_table_gives_its_rows_in_order_however_it_is_written(tmp_path: Path, kind: str, shard_size: int) -> None:
    table = tmp_path / "lists" / f"table.{kind}"
    table.parent.mkdir()
    WRITERS[kind](table, ROWS)
    found = videos(table, shard_size)
    assert [video.uri for video in found] == [
        f"{tmp_path}/lists/a.mp4",
        f"{tmp_path}/other/b c.mp4",
        "s3://bucket/c.mp4",
        "/abs/d.mp4",
        f"{tmp_path}/lists/e.mp4",
    ]
    assert [video.key for video in found] == [row["video"] for row in ROWS]
    assert [video.caption for video in found] == [row["caption"] for row in ROWS]
    assert [(video.start, video.end) for video in found] == [
        (Fraction(1, 10), 2),
        (None, None),
        (3, None),
        (None, Fraction(3333333, 10**7)),
        (Fraction(1, 1000), 1000),
    ]
    numbers = [1, 2, 3, 4] if kind != "csv" else ["1", "2", "3", "4"]
    assert [video.extra for video in found] == [*({"n": number} for number in numbers), {}]
    shards = list(list_source(str(table), shard_size=shard_size))
    assert len(shards) == len({shard.name for shard in shards}) == -(-len(ROWS) // shard_size)
    assert abs(sum(shard.size for shard in shards) - table.stat().st_size) < 64


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_on_s3_is_the_same_and_its_rows_stay_in_its_bucket(tmp_path: Path, s3: S3, kind: str) -> None:
    local = tmp_path / f"t.{kind}"
    WRITERS[kind](local, [*ROWS, {**ROWS[0], "video": "../../x.mp4"}])
    uri = s3.put(f"lists/t.{kind}", local.read_bytes())
    # A file of this machine is for a table on this machine to name.
    expected = [(row["video"], "unsafe_uri" if row["video"] == "/abs/d.mp4" else "video") for row in ROWS]
    assert seen(uri) == [*expected, ("../../x.mp4", "unsafe_uri")]
    assert seen(uri, allow_local=True) == [*((row["video"], "video") for row in ROWS), ("../../x.mp4", "unsafe_uri")]
    assert videos(uri, 2)[1].uri == s3.uri("other/b c.mp4")
    s3.put(f"lists/t.{kind}", local.read_bytes() + b"\n")
    shards = list(list_source(uri, shard_size=2)) if kind != "parquet" else []
    s3.put(f"lists/t.{kind}", local.read_bytes())
    for shard in shards:
        with pytest.raises(ChangedError):
            outcomes(shard)


BAD_ROWS = [
    ({"start": 0}, "bad_row"),
    ({"video": ""}, "bad_row"),
    ({"video": None}, "bad_row"),
    ({"video": 7}, "bad_row"),
    ({"video": "a.mp4", "start": 2, "end": 2}, "bad_row"),
    ({"video": "a.mp4", "end": 0}, "bad_row"),
    ({"video": "a.mp4", "start": -1}, "bad_row"),
    ({"video": "a.mp4", "start": "1:30"}, "bad_row"),
    ({"video": "a.mp4", "start": "1e999999999"}, "bad_row"),
    ({"video": "a.mp4", "start": "1/1e-999999"}, "bad_row"),
    ({"video": "a.mp4", "end": "nan"}, "bad_row"),
    ({"video": "a.mp4", "end": "1/0"}, "bad_row"),
    ({"video": "a.mp4", "end": True}, "bad_row"),
    ({"video": "a.mp4", "end": "9" * 50}, "bad_row"),
    ({"video": "\ud800.mp4"}, "bad_row"),
    ({"video": "ftp://x/a.mp4"}, "unsafe_uri"),
    ({"video": "zip://a.mp4::s3://bucket/x.zip"}, "unsafe_uri"),
    ({"video": "simplecache::s3://bucket/x"}, "unsafe_uri"),
    ({"video": "ssh://host/a.mp4"}, "unsafe_uri"),
    ({"video": "s3://key:secret@bucket/a.mp4"}, "unsafe_uri"),
    ({"video": "s3:///a.mp4"}, "unsafe_uri"),
    ({"video": "http://localhost/a.mp4"}, "unsafe_uri"),
    ({"video": "http://127.0.0.1:8000/a.mp4"}, "unsafe_uri"),
    ({"video": "http://127.1/a.mp4"}, "unsafe_uri"),
    ({"video": "http://2130706433/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[::1]/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[::ffff:10.0.0.1]/a.mp4"}, "unsafe_uri"),
    ({"video": "https://10.1.2.3/a.mp4"}, "unsafe_uri"),
    ({"video": "https://192.168.0.1/a.mp4"}, "unsafe_uri"),
    ({"video": "http://169.254.169.254/latest/meta-data/x.mp4"}, "unsafe_uri"),
    ({"video": "HTTP://127.0.0.1/a.mp4"}, "unsafe_uri"),
    ({"video": "http://user:pw@127.0.0.1/a.mp4"}, "unsafe_uri"),
    ({"video": "http://:80/"}, "unsafe_uri"),
    ({"video": "http://[::]/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[fe80::1]/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[fd00::1]:80/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[64:ff9b::7f00:1]/a.mp4"}, "unsafe_uri"),
    ({"video": "http://[2002:7f00:1::]/a.mp4"}, "unsafe_uri"),
    ({"video": "http://a.localhost/a.mp4"}, "unsafe_uri"),
    ({"video": "http://0/a.mp4"}, "unsafe_uri"),
    ({"video": "http://93.184.216.34"}, "unsafe_uri"),
    ({"video": "s3://bucket"}, "unsafe_uri"),
    ({"video": "s3://bucket/x/.."}, "unsafe_uri"),
    ({"video": "file://relative/a.mp4"}, "unsafe_uri"),
    ({"video": "file://~nobody/a.mp4"}, "unsafe_uri"),
    ({"video": ".."}, "video"),
    ({"video": "http://[2606:4700::1111]/a.mp4"}, "video"),
    ({"video": "https://[2606:4700::1111]:8443/a::b.mp4"}, "unsafe_uri"),
    ({"video": "http://93.184.216.34/a.mp4"}, "video"),
    ({"video": "gs://bucket/a.mp4"}, "video"),
    ({"video": "a.mp4", "start": "1/3", "end": " 0.5 "}, "video"),
    ({"video": "a.mp4", "start": "", "end": None}, "video"),
    ({"video": "a\nb/" + "k" * 4000, "x": {"deep": [1]}}, "video"),
]


def test_each_row_ends_once_and_a_bad_one_costs_itself(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"video": "first.mp4"}, *(row for row, _ in BAD_ROWS), {"video": "last.mp4"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n[1]\n{\n\xff\n")
    reasons = [reason for _, reason in seen(tmp_path / "t.jsonl")]
    expected = ["video", *(reason for _, reason in BAD_ROWS), "video", *["bad_row"] * 3]
    wrong = [(row, got) for row, got, want in zip(rows, reasons, expected, strict=False) if got != want]
    assert wrong == []
    assert len(reasons) == len(expected)


def test_private_addresses_may_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"video": "http://127.0.0.1/a.mp4"}\n')
    assert seen(tmp_path / "t.jsonl", allow_private=True) == [("http://127.0.0.1/a.mp4", "video")]


def test_a_signature_in_an_address_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"video": "https://10.0.0.1/a.mp4?X-Amz-Signature=secret"}\n')
    (shard,) = list_source(str(tmp_path / "t.jsonl"), shard_size=64)
    assert "secret" not in repr(list(read_shard(shard)))


def test_csv_rows_that_do_not_fit_the_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'video,n\r\na.mp4,1\r\n\r\nb.mp4\r\nc.mp4,1,2\r\n\xff.mp4,3\r\n"d\r\n.mp4",4\r\ne.mp4,"5'
    )
    assert [reason for _, reason in seen(tmp_path / "t.csv")] == ["video", *["bad_row"] * 3, "video", "bad_row"]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("t.csv", b"url,n\na.mp4,1\n", "no column 'video', only: url, n"),
        ("t.csv", b"", "no column 'video'"),
        ("t.jsonl", b'{"url": "a.mp4"}\n', "no column 'video', only: url"),
        ("t.jsonl", b"not json\n", "first line"),
        ("t.jsonl", b"[1]\n", "first line is a list"),
        ("t.parquet", b"not parquet, not at all", "not a Parquet file"),
    ],
)
def test_a_table_that_is_none_is_a_configuration_error(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    fill(tmp_path, {name: data})
    with pytest.raises(ConfigError, match=match):
        list(list_source(str(tmp_path / name), shard_size=64))


def test_a_line_without_an_end_is_refused_and_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.text_tables.MAX_RANGE_BYTES", 1000)
    for name in ("t.jsonl", "t.csv"):
        fill(tmp_path, {name: b'{"video": "a"}\n' if name == "t.jsonl" else b"video\na\n"})
        with (tmp_path / name).open("ab") as file:
            file.write(b"x" * 5000)
        with pytest.raises(ConfigError, match="longer than 1000 bytes"):
            list(list_source(str(tmp_path / name), shard_size=64))


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_damaged_parquet_file_costs_rows_and_never_their_number(tmp_path: Path, compression: str) -> None:
    table = tmp_path / "t.parquet"
    columns = {"video": [f"{number}.mp4" for number in range(200)], "n": list(range(200))}
    pq.write_table(pa.table(columns), table, row_group_size=50, compression=compression)
    data = table.read_bytes()
    (whole, *_) = (shards := list(list_source(str(table), shard_size=100)))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for offset in range(4, footer, 53):
        table.write_bytes(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
        etag = next(list_source(str(table), shard_size=100)).etag
        assert [len(outcomes(replace(shard, etag=etag))) for shard in shards] == [100, 100], offset
    table.unlink()
    with pytest.raises(StorageError):
        outcomes(whole)


# Several lines, with a comma before the last quote, look like a quote that was forgotten: see csv_records.py.
_FIELDS = st.text().filter(lambda text: not ("\n" in text and "," in text))


@given(
    rows=st.lists(st.tuples(_FIELDS.filter(bool), _FIELDS), min_size=1, max_size=12),
    shard_size=st.integers(1, 5),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@example(rows=[("\n", "\r0")], shard_size=1, newline="\n")
@settings(max_examples=60, deadline=None)
def test_csv_ranges_cut_between_rows_whatever_the_fields_hold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], shard_size: int, newline: str
) -> None:
    buffer = io.StringIO(newline="")
    # The writer leaves a lone "\r" without quotes, where no reader takes it.
    quoting = csv.QUOTE_ALL if any("\r" in field for row in rows for field in row) else csv.QUOTE_MINIMAL
    csv.writer(buffer, lineterminator=newline, quoting=quoting).writerows([("video", "n"), *rows])
    table = tmp_path_factory.mktemp("csv") / "t.csv"
    table.write_bytes(buffer.getvalue().encode())
    shards = list(list_source(str(table), shard_size=shard_size))
    whole = list(list_source(str(table), shard_size=1000))
    assert [pair for shard in shards for pair in outcomes(shard)] == [
        pair for shard in whole for pair in outcomes(shard)
    ]
    assert sum(len(outcomes(shard)) for shard in shards) == len(rows)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0.1", Fraction(1, 10)),
        (0.1, Fraction(1, 10)),
        (7, 7),
        ("1e3", 1000),
        ("2/3", Fraction(2, 3)),
        (" 5 ", 5),
        ("", None),
    ],
)
def test_times_are_exactly_as_written(text: object, seconds: Fraction | None) -> None:
    assert parse_seconds(text) == seconds
