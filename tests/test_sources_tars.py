"""Tars as sources: each member ends in one video or one rejection, whatever strangers put into the tar."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import ChangedError, StorageError
from pipeline.records import ChunkId, Video
from pipeline.shards import Shard, Staged
from pipeline.sources import webdataset
from pipeline.sources.listing import list_source
from pipeline.stages.read_shard import read_shard
from tests.fault_proxy import FaultProxy, Truncate
from tests.sources import Seen, make_tar, outcomes

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]


def shard_of(path: Path, members: list[tuple[str, bytes]] | bytes) -> Shard:
    path.write_bytes(members if isinstance(members, bytes) else make_tar(members))
    (shard,) = list_source(str(path), shard_size=64)
    return shard


def videos(shard: Shard) -> list[Video]:
    return [record for record in read_shard(shard) if isinstance(record, Video)]


def test_hidden_members_are_ignored_but_in_a_tar_that_was_planned_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["./a.mp4", "./.ipynb_checkpoints/a.mp4", "@eaDir/b.mp4", "__MACOSX/._c.mp4", "d/.Trash/e.txt", "d/e.mp4"]
    shard = shard_of(tmp_path / "s.tar", [(name, name.encode()) for name in names])
    assert [video.key for video in videos(shard)] == ["a", "d/e"]
    assert "4 hidden members are ignored" in caplog.text
    before = [record.video for record in read_shard(replace(shard, kind="tar")) if isinstance(record, Video)]
    assert before == [0, 1, 2, 4], "3 is the rejection of e.txt, and ._c.mp4 has no key"


def test_a_tar_gives_its_videos_in_order_with_what_stands_beside_them(tmp_path: Path) -> None:
    shard = shard_of(
        tmp_path / "shard 7.tar",
        [
            ("a.mp4", b"video a"),
            ("a.json", b'{"caption": "from json", "n": 1, "text": "kept"}'),
            ("sub/b.txt", "  caf\u00e9\n".encode()),
            ("sub/b.webm", b"video b"),
            ("sub/b.json", b'{"caption": "kept", "list": [1, null, {"x": NaN}]}'),
            ("./c.MOV", b"video c"),
            ("d.json", b'{"text": "from text"}'),
            ("d.png", b"image d"),
            ("d.cls", b"7"),
        ],
    )
    found = videos(shard)
    assert [(v.key, bytes(v.payload or b""), v.caption, v.extra, v.size) for v in found] == [
        ("a", b"video a", "from json", {"n": 1, "text": "kept"}, 7),
        ("sub/b", b"video b", "caf\u00e9", {"caption": "kept", "list": [1, None, {"x": None}]}, 7),
        ("c", b"video c", None, {}, 7),
        ("d", b"image d", "from text", {}, 7),
    ]
    assert found[1].uri == f"{tmp_path}/shard 7.tar#sub/b.webm"
    assert shard.name.startswith("shard_7-")
    assert len(shard.name) == len("shard_7-") + 12
    assert found == [*map(_untimed(found), videos(shard))], "a retry gives the same"


def _untimed(originals: list[Video]):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    times = iter(original.read_seconds for original in originals)
    return lambda video: replace(video, read_seconds=next(times))


CASES: dict[str, tuple[list[tuple[str, bytes]], Seen]] = {
    "no sidecars": ([("a.mp4", b"")], [("a", "video")]),
    "sidecars alone": (
        [("a.txt", b"x"), ("b.json", b"{}"), ("c.mp4", b"")],
        [("a", "bad_sidecar"), ("b", "bad_sidecar"), ("c", "video")],
    ),
    "other members": ([("a.npy", b""), ("README", b""), (".hidden.mp4", b""), ("x/._b.mp4", b"")], []),
    "bad json": ([("a.mp4", b""), ("a.json", b"{"), ("b.mp4", b"")], [("a", "bad_sidecar"), ("b", "video")]),
    "json list": ([("a.mp4", b""), ("a.json", b"[1]")], [("a", "bad_sidecar")]),
    "deep json": ([("a.mp4", b""), ("a.json", b"[" * 100_000)], [("a", "bad_sidecar")]),
    "long number": ([("a.mp4", b""), ("a.json", b'{"n": ' + b"9" * 5000 + b"}")], [("a", "bad_sidecar")]),
    "half a pair": ([("a.mp4", b""), ("a.json", b'{"caption": "\\ud800"}')], [("a", "bad_sidecar")]),
    "bad text": ([("a.mp4", b""), ("a.txt", b"\xff\xfe")], [("a", "bad_sidecar")]),
    "large sidecar": (
        [("a.mp4", b""), ("a.txt", b"x" * (1 << 21)), ("b.mp4", b"")],
        [("a", "bad_sidecar"), ("b", "video")],
    ),
    "sidecar twice": ([("a.mp4", b""), ("a.txt", b"1"), ("a.txt", b"2")], [("a", "bad_sidecar")]),
    "key comes back": (
        [("a.mp4", b"1"), ("b.mp4", b""), ("a.mp4", b"2")],
        [("a", "video"), ("b", "video"), ("a", "duplicate_key")],
    ),
    "sidecar comes late": (
        [("a.mp4", b"1"), ("b.mp4", b""), ("a.txt", b"2")],
        [("a", "video"), ("b", "video"), ("a", "duplicate_key")],
    ),
    "two videos": ([("a.mp4", b"1"), ("a.mkv", b"2"), ("a.txt", b"c")], [("a", "video"), ("a", "duplicate_key")]),
    "poster": ([("a.jpg", b"1"), ("a.mp4", b"2"), ("a.png", b"3")], [("a", "video")]),
    "dots": ([("a.cut.mp4", b"1"), ("a.cut.txt", b"c")], [("a", "video")]),
    "parent": (
        [("../a.mp4", b"1"), ("x/../../b.mp4", b"1"), ("c.mp4", b"")],
        [("../a", "unsafe_member"), ("x/../../b", "unsafe_member"), ("c", "video")],
    ),
    "absolute": ([("/etc/passwd.mp4", b"1"), ("c.mp4", b"")], [("/etc/passwd", "unsafe_member"), ("c", "video")]),
    "newlines": ([("a\nb/c\td.mp4", b"1")], [("a\nb/c\td", "video")]),
    "unicode": ([("\u6587/\U0001f3ac.mp4", b"1")], [("\u6587/\U0001f3ac", "video")]),
    "4 kB": (
        [("k" * 4000 + ".mp4", b"1"), ("k" * 5000 + ".mp4", b"1")],
        [("k" * 4000, "video"), ("k" * 4096, "unsafe_member")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_member_ends_once(tmp_path: Path, case: str) -> None:
    members, expected = CASES[case]
    before = sorted(tmp_path.parent.iterdir())
    assert outcomes(shard_of(tmp_path / "x.tar", members)) == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"], "nothing is written"
    assert sorted(tmp_path.parent.iterdir()) == before


def test_links_and_devices_are_refused_and_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        ):
            info = tarfile.TarInfo(f"{number}.mp4")
            info.type, info.linkname = kind, str(tmp_path / "secret.mp4")
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.mp4")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("good.mp4"))
    expected = [*((str(number), "unsafe_member") for number in range(5)), ("good", "video")]
    assert outcomes(shard_of(tmp_path / "x.tar", buffer.getvalue())) == expected


def test_names_that_are_not_utf8_are_shown_and_do_not_collide(tmp_path: Path) -> None:
    data = make_tar([("\udcff.mp4", b"1"), ("\udcfe.mp4", b"2")], "gnu")
    assert outcomes(shard_of(tmp_path / "x.tar", data)) == [("\\xff", "video"), ("\\xfe", "video")]


def test_what_is_too_large_is_skipped_without_being_held(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "x.tar", [("a.mp4", b"x" * 30_000_000), ("b.mp4", b"ok"), ("c.mp4", b"xx" * 1000)])
    tracemalloc.start()
    try:
        assert outcomes(shard, max_bytes=1000) == [("a", "limit_exceeded"), ("b", "video"), ("c", "limit_exceeded")]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_one_sample_is_held_at_a_time(tmp_path: Path) -> None:
    size = 3_000_000
    shard = shard_of(tmp_path / "x.tar", [(f"{number}.mp4", b"x" * size) for number in range(12)])
    tracemalloc.start()
    try:
        for record in read_shard(shard):
            del record
        # The one handed out, the next one already read, and two buffers of 1 MiB.
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (4 << 20)
    finally:
        tracemalloc.stop()


def test_a_tar_of_tiny_members_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_SAMPLES", 1000)
    monkeypatch.setattr(webdataset, "MAX_DUPLICATES", 10)
    shard = shard_of(tmp_path / "x.tar", [(f"{number}.mp4", b"") for number in range(1500)])
    seen = outcomes(shard)
    assert Counter(reason for _, reason in seen) == {"video": 1000, "limit_exceeded": 1}
    assert seen[-1] == ("", "limit_exceeded")
    shard = shard_of(tmp_path / "y.tar", [("a.mp4", b""), *((f"a.{number}.mp4", b"") for number in range(1500))])
    assert Counter(reason for _, reason in outcomes(shard)) == {"video": 1, "duplicate_key": 10}
    shard = shard_of(tmp_path / "z.tar", [(f"{number}.bin", b"") for number in range(1500)])
    assert outcomes(shard) == []


@pytest.mark.slow
def test_tiny_members_need_no_memory_however_many(tmp_path: Path) -> None:
    header = make_tar([("a.bin", b"")], "gnu")[:512]
    peaks = []
    for number in (20_000, 400_000):
        (tmp_path / "x.tar").write_bytes(header * number + bytes(1024))
        (shard,) = list_source(str(tmp_path / "x.tar"), shard_size=1)
        tracemalloc.start()
        assert outcomes(shard) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    (tmp_path / "x.tar").unlink()
    assert peaks[1] < peaks[0] + 100_000


@pytest.mark.parametrize("cut", [0, 100, 512, 1500, 2048, 3000, 3584, 4608, 6000])
def test_the_rest_of_a_damaged_tar_is_one_rejection_and_the_open_sample_belongs_to_it(tmp_path: Path, cut: int) -> None:
    # Blocks: a.mp4 0, data 1-2; a.txt 3, data 4; b.mp4 5, data 6-7; c.mp4 8, data 9-10; the end 11.
    members = [("a.mp4", b"A" * 1000), ("a.txt", b"x"), ("b.mp4", b"B" * 1000), ("c.mp4", b"C" * 1000)]
    data = make_tar(members, "gnu")[:cut]
    # A sample is closed by the header of the next one.
    closed = (cut >= 6 * 512) + (cut >= 9 * 512)
    assert outcomes(shard_of(tmp_path / "x.tar", data)) == [
        *((key, "video") for key in "ab"[:closed]),
        ("", "tar_damaged"),
    ]


def test_a_flipped_header_costs_the_rest_and_not_what_came_before(tmp_path: Path) -> None:
    data = bytearray(make_tar([(f"{number}.mp4", b"x" * 100) for number in range(5)], "gnu"))
    data[3 * 1024 + 5] ^= 1
    assert outcomes(shard_of(tmp_path / "x.tar", bytes(data))) == [("0", "video"), ("1", "video"), ("", "tar_damaged")]


def test_fewer_bytes_than_planned_leave_the_shard_open(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "x.tar", [("a.mp4", b"x" * 5000)])
    os.truncate(tmp_path / "x.tar", 3000)
    with pytest.raises(ChangedError):
        outcomes(shard)
    (tmp_path / "x.tar").unlink()
    with pytest.raises(StorageError):
        outcomes(shard)


def test_a_tar_on_s3_is_one_request_and_a_cut_body_is_no_damage(s3: S3, faults: FaultProxy) -> None:
    members = [(f"{number}.mp4", os.urandom(300_000)) for number in range(8)]
    uri = s3.put("x.tar", make_tar(members))
    (shard,) = list_source(uri, shard_size=1)
    faults.clear()
    assert [bytes(video.payload or b"") for video in videos(shard)] == [data for _, data in members]
    assert [operation for operation, _, _ in faults.requests] == ["GetObject"]
    faults.add("GetObject", Truncate(1_000_000), times=2)
    assert [bytes(video.payload or b"") for video in videos(shard)] == [data for _, data in members]
    assert faults.count("GetObject") == 4


def test_a_tar_that_was_replaced_is_not_read(s3: S3) -> None:
    uri = s3.put("x.tar", make_tar([("a.mp4", b"1")]))
    (shard,) = list_source(uri, shard_size=1)
    s3.put("x.tar", make_tar([("a.mp4", b"2")]))
    with pytest.raises(ChangedError):
        videos(shard)


def test_what_is_staged_travels_with_its_video(tmp_path: Path) -> None:
    from dataclasses import replace
    from functools import partial

    shard = shard_of(tmp_path / "x.tar", [(f"{number}.mp4", b"") for number in range(3)])
    place = partial(ChunkId, shard=shard.name)
    parts = (place(video=0, clip=0), *(place(video=2, clip=1, chunk=chunk, num_chunks=2) for chunk in (0, 1)))
    found = videos(replace(shard, staged=Staged(parts=parts, verdicts=((2, 5),))))
    assert [video.staged for video in found] == [((0, 0),), (), ((1, 0), (1, 1))]
    assert [video.verdicts for video in found] == [(), (), (5,)]


def test_a_tar_that_is_rewritten_in_place_gives_no_video_of_two_tars(tmp_path: Path) -> None:
    old, new = (make_tar([(f"{name}.mp4", digit * 2**21) for name in "abc"]) for digit in (b"1", b"2"))
    path = tmp_path / "t.tar"
    path.write_bytes(old)
    os.utime(path, ns=(0, 0))
    (shard,) = list_source(str(path), shard_size=64)
    records = read_shard(shard)
    first = next(records)
    with path.open("r+b") as file:
        file.write(new)
    assert isinstance(first, Video)
    assert first.payload == b"1" * 2**21
    with pytest.raises(ChangedError):
        next(records)
