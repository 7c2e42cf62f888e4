"""Storage: what is put is there, whole or not at all; create never replaces; the same laws for every kind of store."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import ChangedError, ConfigError, NotFoundError, StorageError
from pipeline.storage import Storage, open_uri, read_object, stream
from tests.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3", "tests.azure"]

ODD_NAMES = [
    "plain",
    "two words",
    "a#b",
    "50%25",
    "a+b",
    "q?x=1",
    "[x]*",
    "tab\tin",
    "line\nin",
    "caf\u00e9/\u6587",
    "x\\y",
    "'\"",
]


@pytest.fixture(params=["local", "s3", "memory", "azure"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    if request.param == "s3":
        bucket: S3 = request.getfixturevalue("s3")
        return Storage(bucket.uri("some/out"))
    if request.param == "azure":
        return Storage(f"{request.getfixturevalue('azure')}/some/out")
    return Storage(f"memory://{uuid.uuid4().hex}/out")


def paths(storage: Storage, path: str = "") -> list[str]:
    return [entry.path for entry in storage.list(path)]


def test_what_is_put_is_read_back_whole_and_in_ranges(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    storage.put("a/b.bin", data)
    assert storage.read("a/b.bin") == data
    for start, stop in [(0, 1), (5, 9000), (10239, None), (0, None), (7, 7), (9, 3), (100, 99999)]:
        assert storage.read("a/b.bin", start, stop) == data[start:stop]
    assert storage.read("a/b.bin", -8) == data[-8:]
    assert storage.size("a/b.bin") == len(data)
    assert read_object(storage.address("a/b.bin")) == data


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.put("empty", b"")
    assert storage.exists("empty")
    assert storage.read("empty") == b""


def test_put_replaces_and_takes_local_files(storage: Storage, tmp_path: Path) -> None:
    storage.put("x", b"first")
    (tmp_path / "local").write_bytes(b"second" * 1000)
    storage.put("x", tmp_path / "local")
    assert storage.read("x") == b"second" * 1000


def test_nothing_there_is_nothing(storage: Storage) -> None:
    assert paths(storage) == []
    assert paths(storage, "data/") == []
    assert not storage.exists("data/x")
    storage.delete("data/x")
    storage.delete("data/")
    for attempt in (storage.read, storage.size, lambda path: read_object(storage.address(path))):
        with pytest.raises(NotFoundError):
            attempt("data/x")


def test_listings_are_sorted_by_the_whole_path(storage: Storage) -> None:
    names = ["a-b/x", "a.txt", "a/b", "a/b.c/d", "a/b-c", "a0", "b", "\u00e9", "Z"]
    for name in names:
        storage.put(name, name.encode())
    assert paths(storage) == sorted(names)
    assert [entry.size for entry in storage.list()] == [len(name.encode()) for name in sorted(names)]


def test_a_listing_holds_the_object_and_what_is_below_it_but_not_its_namesakes(storage: Storage) -> None:
    for name in ("data/a", "data/b/c", "database", "data.txt"):
        storage.put(name, b"")
    assert paths(storage, "data") == paths(storage, "data/") == ["data/a", "data/b/c"]
    assert paths(storage, "data/a") == ["data/a"]
    assert paths(storage, "data/a/") == []


def test_listings_go_on_past_the_first_page(s3: S3) -> None:
    for number in range(43):  # the test's server lists 20 at a time
        s3.put(f"p/{number:04d}", b"")
    assert paths(Storage(s3.uri("p"))) == [f"{number:04d}" for number in range(43)]


def test_odd_names_are_names(storage: Storage) -> None:
    # moto has no route to a key with a newline.
    refused = {"s3": "\n", "az": "\n\t\\"}.get(storage.uri[:2], "")  # by moto's listings; by obstore and Azure
    names = [name for name in ODD_NAMES if not set(name) & set(refused)]
    for name in names:
        storage.put(name, name.encode())
    assert paths(storage) == sorted(names)
    for name in names:
        assert storage.read(name) == name.encode()
        if storage.uri.startswith(("/", "s3")):
            assert read_object(storage.address(name)) == name.encode()


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a/.."])
def test_paths_stay_inside_the_root(storage: Storage, path: str) -> None:
    if path.startswith("/") and not storage.uri.startswith("/"):
        assert storage.address(path) == f"{storage.uri}/{path}", "in a bucket it is a name below the root"
        return
    for attempt in (storage.read, storage.exists, storage.delete, lambda path: storage.put(path, b"")):
        with pytest.raises(ValueError, match="path"):
            attempt(path)


def test_create_never_replaces(storage: Storage) -> None:
    assert storage.create("data/x", b"first")
    assert storage.create("data/x", b"first"), "the same bytes are ours"
    assert not storage.create("data/x", b"other")
    assert not storage.create("data/x", b"firs")
    assert storage.read("data/x") == b"first"


def test_create_from_a_local_file(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 5000)
    (tmp_path / "b").write_bytes(b"b" * 5000)
    assert storage.create("x", tmp_path / "a")
    assert storage.create("x", tmp_path / "a")
    assert not storage.create("x", tmp_path / "b")
    assert storage.read("x") == b"a" * 5000


def contend(storage: Storage, path: str, number: int, barrier: threading.Barrier, wins: list[int]) -> None:
    barrier.wait()
    if storage.create(path, f"creator {number}".encode()):
        wins.append(number)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_many_creators_exactly_one_wins(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    storage = Storage(str(tmp_path) if kind == "local" else request.getfixturevalue("s3").uri("out"))
    assert storage.create_only
    for race in range(5):
        wins: list[int] = []
        barrier = threading.Barrier(8)
        threads = [
            threading.Thread(target=contend, args=(storage, f"x{race}", number, barrier, wins)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert storage.read(f"x{race}") == f"creator {wins[0]}".encode()


def test_other_stores_do_not_claim_create_only(caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    assert not storage.create_only
    assert not pickle.loads(pickle.dumps(storage)).create_only
    assert caplog.text.count("no atomic create") == 1


def test_delete_takes_one_object_or_one_folder(storage: Storage) -> None:
    for name in ("_staging/a/1", "_staging/a/b/2", "_staging/ab", "_staging/a2/3", "data/a"):
        storage.put(name, b"")
    storage.delete("_staging/a/")
    assert paths(storage) == ["_staging/a2/3", "_staging/ab", "data/a"]
    storage.delete("_staging/ab")
    storage.delete("_staging/")
    assert paths(storage) == ["data/a"]
    for everything in ("", "/", "//"):
        with pytest.raises(ValueError, match=r"whole root|relative"):
            storage.delete(everything)
    assert paths(storage) == ["data/a"]


def test_a_local_write_that_is_killed_leaves_nothing_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    seen = []

    def look(descriptor: int) -> None:
        seen.append([path for path in tmp_path.rglob("*") if path.is_file()])

    monkeypatch.setattr(os, "fsync", look)
    storage.put("_staging/a/1.part", b"1")
    storage.create("data/a", b"1")
    assert seen[0] == []
    assert seen[-2] == [tmp_path / "_staging/a/1.part"]


def test_a_store_without_unnamed_files_keeps_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    storage = Storage(str(tmp_path))
    assert storage.create("data/x", b"first")
    assert not storage.create("data/x", b"other")
    storage.put("data/y", b"1")
    storage.put("data/y", b"2")
    assert [storage.read(entry.path) for entry in storage.list()] == [b"first", b"2"]


def test_a_folder_that_is_swept_under_a_write_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)
    storage = Storage(str(tmp_path))
    real, sweeps = os.open, iter([True, True])

    def swept(path: object, *args: object, **options: object) -> int:
        if str(path).endswith("_staging/a") and next(sweeps, False):
            (tmp_path / "_staging/a").rmdir()
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swept)
    storage.put("_staging/a/1.part", b"1")
    assert storage.read("_staging/a/1.part") == b"1"


def test_a_local_folder_is_gone_with_its_last_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("_staging/a/b/c", b"")
    storage.delete("_staging/")
    assert list(tmp_path.iterdir()) == []


def test_the_clock_is_the_one_of_the_listing(storage: Storage) -> None:
    before = storage.now()
    storage.put("x", b"")
    after = storage.now()
    entry = storage.entry("x")
    assert before - 1 <= entry.mtime <= after + 1, "whole seconds on S3"


def test_etags_follow_the_content(storage: Storage) -> None:
    storage.put("x", b"first")
    first = storage.entry("x")
    assert first == next(storage.list("x"))
    storage.put("x", b"other")
    assert storage.entry("x").etag != first.etag


def test_an_expected_size_or_etag_is_held_against_the_object(storage: Storage) -> None:
    storage.put("x", b"12345")
    entry, uri = storage.entry("x"), storage.address("x")
    assert read_object(uri, size=5, etag=entry.etag) == b"12345"
    with pytest.raises(ChangedError, match="x"):
        read_object(uri, size=4)
    if not uri.startswith("memory"):  # fsspec does not tell the etag of an open file
        with pytest.raises(ChangedError, match="x"):
            read_object(uri, etag="0123-5")


def test_a_local_file_that_shrinks_while_it_is_read_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)
    (tmp_path / "x").write_bytes(b"x" * 1000)
    with stream(str(tmp_path / "x")) as body:
        assert body.read(100) == b"x" * 100
        os.truncate(tmp_path / "x", 500)
        with pytest.raises(StorageError):
            body.readall()


def test_a_failed_local_write_publishes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.put("data/x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for attempt in (lambda: storage.put("data/x", b"new"), lambda: storage.create("data/y", b"new")):
        with pytest.raises(StorageError, match="No space left"):
            attempt()
    monkeypatch.undo()
    assert paths(storage) == ["data/x"]
    assert storage.read("data/x") == b"old"


def test_storage_pickles_with_what_the_probe_found(faults: FaultProxy, s3: S3) -> None:
    storage = Storage(s3.uri("out"))
    assert storage.create_only
    probes = faults.count("PutObject")
    assert probes == 2
    for _ in range(2):
        storage = pickle.loads(pickle.dumps(storage))
        assert storage.create("x", b"")
    assert faults.count("PutObject") == probes + 2
    assert s3.paths() == ["out/x"], "the probe leaves nothing behind"


def _read_in_child(storage: Storage, answers: multiprocessing.Queue[bytes]) -> None:
    answers.put(storage.read("x"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_storage_that_was_used_works_in_a_child_process(s3: S3, method: str) -> None:
    storage = Storage(s3.uri("out"))
    storage.put("x", b"hello")
    assert storage.read("x") == b"hello"
    context = multiprocessing.get_context(method)
    answers: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=_read_in_child, args=(storage, answers))
    child.start()
    assert answers.get(timeout=60) == b"hello"
    child.join()


def test_a_missing_bucket_is_named(s3: S3) -> None:
    with pytest.raises(NotFoundError, match="no-such-bucket"):
        list(Storage("s3://no-such-bucket/x").list())


def test_folder_placeholders_are_not_objects(s3: S3) -> None:
    s3.put("a/", b"")
    s3.put("a/b", b"")
    assert paths(Storage(s3.uri("a"))) == ["b"]


def test_open_uri_splits_at_the_last_slash(tmp_path: Path) -> None:
    storage, path = open_uri(str(tmp_path / "x.tar"))
    assert (storage.uri, path) == (str(tmp_path), "x.tar")
    storage, path = open_uri("s3://bucket/x.tar")
    assert (storage.uri, path) == ("s3://bucket", "x.tar")
    with pytest.raises(ConfigError, match="not the address of an object"):
        open_uri("s3://bucket")


def test_a_file_that_is_rewritten_in_place_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """The bytes that were handed on are those of the planned file, though name, inode and size stay the same."""
    path = tmp_path / "a"
    path.write_bytes(b"1" * 3_000_000)
    os.utime(path, ns=(0, 0))
    planned = Storage(str(tmp_path)).entry("a")
    with stream(str(path), size=planned.size, etag=planned.etag) as body:
        assert body.read(1000) == b"1" * 1000
        with path.open("r+b") as file:
            file.write(b"2" * 3_000_000)
        with pytest.raises(ChangedError, match="was written to while it was read"):
            body.readall()


def test_a_file_that_is_replaced_under_its_name_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1" * 3_000_000)
    with stream(str(path)) as body:
        assert body.read(1000) == b"1" * 1000
        (tmp_path / "b").write_bytes(b"2" * 3_000_000)
        (tmp_path / "b").replace(path)
        assert body.readall() == b"1" * 2_999_000
