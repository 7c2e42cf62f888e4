"""Folders, globs and tables as sources: sorted, grouped, complete; and a clear word where there is nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import ChangedError, ConfigError, NotFoundError, StorageError
from pipeline.sources.folders import glob_matcher
from pipeline.sources.listing import list_source
from pipeline.sources.samples import VIDEO_SUFFIXES
from pipeline.storage import read_object
from tests.sources import fill, make_tar, outcomes, seen, videos

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]


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


def test_keys_with_empty_folder_names_are_read(s3: S3) -> None:
    names = ["/first.mp4", "d//double.mp4", "d/single.mp4"]
    for name in names:
        s3.put(f"vids/{name}", name.encode())
        s3.put(f"vids/{name[:-4]}.txt", f"caption of {name}".encode())
    found = videos(s3.uri("vids"))
    assert [(video.key, video.caption) for video in found] == [(name, f"caption of {name}") for name in names]
    assert [read_object(video.uri, size=video.size, etag=video.etag) for video in found] == [n.encode() for n in names]
    table = s3.put("lists//t.csv", b"video\n../vids/d//double.mp4\n" + f"s3://{s3.bucket}/vids//first.mp4\n".encode())
    assert [read_object(video.uri) for video in videos(table)] == [b"d//double.mp4", b"/first.mp4"]


HIDDEN = [".ipynb_checkpoints/a.mp4", ".Trash-1000/x/a.tar", "d/@eaDir/a.mp4/SYNO.mp4", "__MACOSX/._a.mp4", "d/.b.mp4"]


def test_what_is_hidden_is_ignored_and_counted(tmp_path: Path, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    files = dict.fromkeys([*HIDDEN, "d/a.mp4", "d/a.mp4.json", "d/notes.md", "d/c.md", "LICENSE"], b"")
    fill(tmp_path / ".data", files)
    for name, data in files.items():
        s3.put(f".data/{name}", data)
    for uri in (tmp_path / ".data", s3.uri(".data")):
        caplog.clear()
        assert [video.key for video in videos(uri)] == ["d/a.mp4"]
        assert "9 files are ignored: 5 hidden, 2 .md, 1 without a suffix, 1 .json of no video" in caplog.text


def test_tars_in_a_folder_are_shards_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path, {"x/1.tar": make_tar([("a.mp4", b"")]), "x/0.tar": make_tar([("b.mp4", b"")]), "x/c.mp4": b""})
    assert [shard.kind for shard in list_source(str(tmp_path), shard_size=9)] == ["webdataset", "webdataset", "files"]
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
    with pytest.raises(ConfigError, match=r"has nothing to read\. Expected a \.tar, a table .*\.csv"):
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


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_holds_at_least_one(tmp_path: Path, shard_size: int) -> None:
    with pytest.raises(ConfigError, match="--shard-size must be at least 1"):
        list(list_source(str(tmp_path), shard_size=shard_size))


def test_an_unreadable_source_is_a_storage_error_and_not_an_empty_one(s3: S3, faults: Any) -> None:
    from tests.fault_proxy import Status

    faults.add("ListObjectsV2", Status(403, "AccessDenied"), times=10)
    with pytest.raises(StorageError, match="403"):
        list(list_source(s3.uri("x"), shard_size=1))


def test_links_that_lead_nowhere_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, {"a.mp4": b"", "elsewhere": b""})
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "gone.mp4").symlink_to("nothing")
    (tmp_path / "link.mp4").symlink_to("elsewhere")
    assert seen(tmp_path) == [("a.mp4", "video"), ("link.mp4", "video")]
    assert {name for name in ("loop.mp4", "gone.mp4", "link.mp4") if f"{name} is skipped" in caplog.text} == {
        "loop.mp4",
        "gone.mp4",
    }
    with pytest.raises(NotFoundError, match=r"loop\.mp4"):
        read_object(str(tmp_path / "loop.mp4"))
