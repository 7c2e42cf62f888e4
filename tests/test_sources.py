"""Folders, globs and tables as sources: sorted, grouped, complete; and a clear word where there is nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ChangedError, ConfigError, StorageError
from pipeline.folders import glob_matcher
from pipeline.records import Video
from pipeline.samples import VIDEO_SUFFIXES, parse_seconds
from pipeline.sources import list_source, read_shard
from pipeline.storage import read_object
from tests.test_sources_tars import outcomes
from tests.test_tar import make_tar

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]


def fill(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def videos(uri: str | Path, shard_size: int = 64) -> list[Video]:
    shards = list_source(str(uri), shard_size=shard_size)
    return [record for shard in shards for record in read_shard(shard) if isinstance(record, Video)]


def seen(uri: str | Path, **options: Any) -> list[tuple[str, str]]:
    return [pair for shard in list_source(str(uri), shard_size=64) for pair in outcomes(shard, **options)]


FOLDER: dict[str, bytes | str] = {
    "b.mp4": b"video b",
    "b.txt": " caption b\n",
    "b.json": '{"fps": 25}',
    "a/c.d.MKV": b"video c",
    "a/c.d.txt": "caption c",
    "a/c.txt": "of nobody",
    "a/c-1.mp4": b"video c-1",
    "a.d/x.webm": b"video x",
    "a.mp4": b"video a",
    "a.d.mp4": b"video a.d",
    "a.d.json": '{"caption": "caption a.d"}',
    "poster.jpg": b"alone",
    "b.jpg": b"poster of b",
    ".hidden.mp4": b"no",
    "notes.md": "no",
    "readme.txt": "no",
    "meta.csv": "video\nb.mp4\n",
}
FOLDER_VIDEOS = [
    ("a.d.mp4", "caption a.d", {}),
    ("a.d/x.webm", None, {}),
    ("a.mp4", None, {}),
    ("a/c-1.mp4", None, {}),
    ("a/c.d.MKV", "caption c", {}),
    ("b.mp4", "caption b", {"fps": 25}),
    ("poster.jpg", None, {}),
]


@pytest.mark.parametrize("shard_size", [1, 3, 64])
def test_a_folder_gives_its_videos_sorted_with_their_sidecars(tmp_path: Path, shard_size: int) -> None:
    fill(tmp_path / "clips", FOLDER)
    found = videos(tmp_path / "clips", shard_size)
    assert [(video.key, video.caption, video.extra) for video in found] == FOLDER_VIDEOS
    for video in found:
        assert video.payload is None
        data = FOLDER[video.key]
        assert read_object(video.uri, size=video.size, etag=video.etag) == data
    shards = list(list_source(str(tmp_path / "clips"), shard_size=shard_size))
    assert len(shards) == -(-len(FOLDER_VIDEOS) // shard_size)
    assert len({shard.name for shard in shards}) == len(shards)
    assert sum(shard.size for shard in shards) == sum(len(FOLDER[name]) for name, _, _ in FOLDER_VIDEOS)


def test_a_folder_on_s3_is_the_same_source(tmp_path: Path, s3: S3) -> None:
    for name, data in FOLDER.items():
        s3.put(f"some/clips/{name}", data if isinstance(data, bytes) else data.encode())
    for uri in (s3.uri("some/clips"), s3.uri("some/clips") + "/", s3.uri("some/clips/**")):
        found = videos(uri)
        assert [(video.key, video.caption, video.extra) for video in found] == FOLDER_VIDEOS
    assert read_object(found[0].uri, size=found[0].size, etag=found[0].etag) == b"video a.d"
    assert videos(s3.uri())[0].key == "some/clips/a.d.mp4"


def test_tars_in_a_folder_are_shards_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, {"x/1.tar": make_tar([("a.mp4", b"")]), "x/0.tar": make_tar([("b.mp4", b"")]), "x/c.mp4": b""})
    assert [shard.kind for shard in list_source(str(tmp_path), shard_size=9)] == ["tar", "tar", "files"]
    assert seen(tmp_path) == [("b", "video"), ("a", "video"), ("x/c.mp4", "video")]
    assert seen(tmp_path / "x" / "*.tar") == [("b", "video"), ("a", "video")]
    assert seen(tmp_path / "x" / "[1-9].tar") == [("a", "video")]


def test_one_video_is_a_source(tmp_path: Path) -> None:
    fill(tmp_path, {"a.mp4": b"1", "a.txt": "caption", "a-b.mp4": b"2"})
    (video,) = videos(tmp_path / "a.mp4")
    assert (video.key, video.caption) == ("a.mp4", "caption")


def test_a_name_with_glob_signs_is_first_a_name(tmp_path: Path) -> None:
    fill(tmp_path, {"clip[1].mp4": b"1", "clip1.mp4": b"2", "what?/a.mp4": b""})
    assert seen(tmp_path / "clip[1].mp4") == [("clip[1].mp4", "video")]
    assert seen(tmp_path / "what?") == [("a.mp4", "video")]
    assert seen(tmp_path / "clip?.mp4") == [("clip1.mp4", "video")]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.tar", "a.tar", True),
        ("*.tar", "a/b.tar", False),
        ("*/b.tar", "a/b.tar", True),
        ("**/*.tar", "a.tar", True),
        ("**/*.tar", "a/b/c.tar", True),
        ("**", "a/b", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[!a]x", "bx", True),
        ("[!a]x", "ax", False),
        ("[ab", "[ab", True),
        ("a.tar", "axtar", False),
        ("x+(1).mp4", "x+(1).mp4", True),
        ("*.mp4", "line\nbreak.mp4", True),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert glob_matcher(pattern)(path) is matches


@pytest.mark.parametrize("name", ["nothing", "nothing.tar", "*.tar", "empty", "x.zip", "notes"])
def test_where_there_is_nothing_the_error_says_what_was_looked_for(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"x.zip": b"", "notes/readme.txt": "", "notes/.hidden.mp4": b""})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds nothing to read\. Looked for a \.tar, a table .*\.csv"):
        list(list_source(str(tmp_path / name), shard_size=64))


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///x", "s3://key:secret@bucket/x"])
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(list_source(uri, shard_size=64))
    assert "secret" not in str(caught.value)


def test_a_folders_bad_sidecars_and_names_are_rejections(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "a.mp4": b"",
            "a.json": "{",
            "b.mp4": b"",
            "b.txt": b"\xff",
            "c.mp4": b"12345",
            "d.mp4": b"",
            "d.txt": "x" * 2**21,
        },
    )
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"")
    assert seen(tmp_path, max_bytes=4) == [
        ("a.mp4", "bad_sidecar"),
        ("b.mp4", "bad_sidecar"),
        ("c.mp4", "limit_exceeded"),
        ("d.mp4", "bad_sidecar"),
        ("\\udcff.mp4", "unsafe_member"),
    ]


def test_a_sidecar_that_changed_since_the_plan_is_no_rejection(tmp_path: Path) -> None:
    fill(tmp_path, {"a.mp4": b"", "a.txt": "caption"})
    (shard,) = list_source(str(tmp_path), shard_size=64)
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(ChangedError):
        outcomes(shard)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ChangedError):
        outcomes(shard)


def test_the_real_videos_are_all_found(shared: Path) -> None:
    found = videos(shared / "videos")
    names = {path.name for path in (shared / "videos").iterdir()} - {"MANIFEST.json", "README.md"}
    assert {video.key for video in found} == names
    assert {Path(name).suffix.lower() for name in names} <= VIDEO_SUFFIXES


ROWS: list[dict[str, Any]] = [
    {"video": "a.mp4", "start": 0.1, "end": 2, "caption": "one, two\nthree", "n": 1},
    {"video": "../other/b c.mp4", "start": None, "end": None, "caption": '"quoted"', "n": 2},
    {"video": "s3://bucket/c.mp4", "start": 3, "end": None, "caption": None, "n": 3},
    {"video": "/abs/d.mp4", "start": None, "end": 0.3333333, "caption": "caf\u00e9 \u6587", "n": 4},
    {"video": "e.mp4", "start": 1e-3, "end": 1e3, "caption": "e", "n": None},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    fields = {"video": pa.string(), "start": pa.float64(), "end": pa.float64(), "caption": pa.string(), "n": pa.int64()}
    schema = pa.schema([*fields.items(), ("thumbnail", pa.binary())])
    pq.write_table(pa.Table.from_pylist([{**row, "thumbnail": b"x"} for row in rows], schema), path, row_group_size=2)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


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
    expected = [(row["video"], "video") for row in ROWS]
    assert seen(uri) == [*expected, ("../../x.mp4", "unsafe_uri")]
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
    assert [reason for _, reason in seen(tmp_path / "t.csv")] == ["video", *["bad_row"] * 3, "video", "video"]


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
    monkeypatch.setattr("pipeline.tables.MAX_RANGE_BYTES", 1000)
    for name in ("t.jsonl", "t.csv"):
        fill(tmp_path, {name: b'{"video": "a"}\n' if name == "t.jsonl" else b"video\na\n"})
        with (tmp_path / name).open("ab") as file:
            file.write(b"x" * 5000)
        with pytest.raises(ConfigError, match="longer than 1000 bytes"):
            list(list_source(str(tmp_path / name), shard_size=64))


@given(
    rows=st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=12),
    shard_size=st.integers(1, 5),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=60, deadline=None)
def test_csv_ranges_cut_between_rows_whatever_the_fields_hold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], shard_size: int, newline: str
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=newline).writerows([("video", "n"), *rows])
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


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_holds_at_least_one(tmp_path: Path, shard_size: int) -> None:
    with pytest.raises(ConfigError, match="shard_size must be at least 1"):
        list(list_source(str(tmp_path), shard_size=shard_size))


def test_an_unreadable_source_is_a_storage_error_and_not_an_empty_one(s3: S3, faults: Any) -> None:
    from tests.fault_proxy import Status

    faults.add("ListObjectsV2", Status(403, "AccessDenied"), times=10)
    with pytest.raises(StorageError, match="403"):
        list(list_source(s3.uri("x"), shard_size=1))
