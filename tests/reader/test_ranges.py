"""Laws: a flipped bit is found, joined reads give the same bytes, and a shared cache stays bounded and right."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import latentmill
from latentmill.store import ranges as ranges_module
from latentmill.store.cache.range_cache import RangeCache
from latentmill.store.files import Files
from latentmill.store.range import Range
from latentmill.store.ranges import RangeReader
from tests.reader.made import write_output
from tests.small import LATENT

CONTENT = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "a").write_bytes(CONTENT)
    (folder / "b").write_bytes(CONTENT[::-1])
    return folder


def read(reader: RangeReader, wanted: list[Range]) -> list[bytes | Exception]:
    buffers = [bytearray(one.length) for one in wanted]
    futures = reader.submit(wanted, [memoryview(buffer) for buffer in buffers])
    return [future.exception() or bytes(buffer) for future, buffer in zip(futures, buffers, strict=True)]  # type: ignore[misc]


spans = st.tuples(st.sampled_from("ab"), st.integers(0, len(CONTENT) - 1), st.integers(0, 70_000))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(spans, max_size=12), gap=st.sampled_from([0, 1000, 1 << 20]))
def test_every_range_gets_its_own_bytes(
    place: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[tuple[str, int, int]], gap: int
) -> None:
    monkeypatch.setattr(ranges_module, "GAP_BYTES", gap)
    asked, want = [], []
    for file, start, length in wanted:
        content = (CONTENT if file == "a" else CONTENT[::-1])[start : start + length]
        want.append(content)
        asked.append(Range(file, start, len(content), zlib.crc32(content), "row"))
    assert read(RangeReader(Files(place), concurrency=3), asked) == want


def test_neighbours_are_read_in_one_request(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, int, int]] = []
    real = Files.read_into

    def spy(self: Files, path: str, start: int, views: Any) -> None:
        requests.append((path, start, sum(map(len, views))))
        real(self, path, start, views)

    monkeypatch.setattr(Files, "read_into", spy)
    far = ranges_module.GAP_BYTES + 1000
    asked = [Range(*where, None, "r") for where in [("a", 500, 100), ("b", 0, 10), ("a", 0, 100), ("a", 600 + far, 9)]]
    assert [len(got) for got in read(RangeReader(Files(place), concurrency=1), asked)] == [100, 10, 100, 9]  # type: ignore[arg-type]
    assert sorted(requests) == [("a", 0, 600), ("a", 600 + far, 9), ("b", 0, 10)]


def test_a_short_file_and_a_wrong_range_cost_only_themselves(place: Path) -> None:
    good = Range("a", 0, 10, zlib.crc32(CONTENT[:10]), "good")
    wrong = Range("a", 20, 10, 1, "wrong")
    beyond = Range("a", len(CONTENT) - 5, 10, 1, "beyond")
    gone = Range("nowhere", 0, 10, 1, "gone")
    got = read(RangeReader(Files(place), concurrency=2), [good, wrong, beyond, gone])
    assert got[0] == CONTENT[:10]
    assert all(isinstance(error, latentmill.DamagedRowError) for error in got[1:])
    assert "row wrong: bytes 20..30 of" in str(got[1])
    assert f"row beyond: {place}/a ends at byte {len(CONTENT)}" in str(got[2])
    assert "row gone: " in str(got[3])
    assert "nowhere does not exist" in str(got[3])


@pytest.fixture(scope="module", params=["parquet", "npy"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sound") / "out"
    write_output(where, 2, 6, replace(LATENT, format=request.param))
    return where


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 11), data=st.data())
def test_a_flipped_bit_is_found_wherever_it_is(sound: Path, tmp_path: Path, row: int, data: st.DataObject) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(sound, out)
    latents = latentmill.open(out)
    (where,), _ = latents.ranges([row])
    bit = data.draw(st.integers(0, 8 * where.length - 1))
    path = out / where.file
    content = bytearray(path.read_bytes())
    content[where.start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(latentmill.DamagedRowError, match=rf"row {where.row}: bytes .*{where.file} have crc32"):
        latents[row]
    others = [position for position in range(12) if position != row]
    assert all(torch.equal(latents[i]["latent"], latentmill.open(sound)[i]["latent"]) for i in others[:2])


def _damage(out: Path, latents: latentmill.LatentDataset, row: int) -> str:
    (where,), _ = latents.ranges([row])
    content = bytearray((out / where.file).read_bytes())
    content[where.start] ^= 1
    (out / where.file).write_bytes(content)
    return where.row


def test_damaged_rows_are_left_out_and_named_when_asked(sound: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    latents = latentmill.open(out, damaged="skip")
    bad = _damage(out, latents, 3)
    loader = latents.loader(batch_size=2, drop_last=False)
    batches = list(loader)
    assert sorted(id_ for batch in batches for id_ in batch["id"]) == sorted(
        id_ for id_ in latents.to_arrow()["id"].to_pylist() if id_ != bad
    )
    assert loader.damaged == [bad]
    assert [batch["damaged"] for batch in batches if batch["damaged"]] == [[bad]]
    (short,) = [batch for batch in batches if batch["damaged"]]
    assert short["latent"].shape[0] == len(short["id"]) == 1
    want = latents.to_arrow()["id"].to_pylist().index(short["id"][0])
    assert torch.equal(short["latent"][0], latents[want]["latent"])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_collate_function_may_return_anything_and_damaged_rows_still_count(
    sound: Path, tmp_path: Path, workers: int
) -> None:
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    latents = latentmill.open(out, damaged="skip")
    bad = _damage(out, latents, 3)
    loader = latents.loader(batch_size=2, drop_last=False, collate_fn=len, workers=workers)
    assert sum(loader) == len(latents) - 1
    assert loader.damaged == [bad]


def test_a_batch_with_nothing_left_raises(sound: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    latents = latentmill.open(out, damaged="skip")
    bad = _damage(out, latents, 3)
    with pytest.raises(latentmill.DamagedRowError, match=bad):
        latents.__getitems__([3])


def test_without_verification_wrong_bytes_pass(sound: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    latents = latentmill.open(out, verify=False)
    _damage(out, latents, 3)
    assert latents[3]["latent"].shape == latents[0]["latent"].shape


# The cache.


def cached(place: Path, folder: Path, limit: int) -> RangeReader:
    return RangeReader(Files(place), concurrency=2, cache=RangeCache(folder, limit, str(place)))


def some(count: int, length: int = 1000) -> list[Range]:
    return [
        Range("a", i * length, length, zlib.crc32(CONTENT[i * length : (i + 1) * length]), f"r{i}")
        for i in range(count)
    ]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_read_once_is_read_from_the_cache(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = cached(place, tmp_path / "ranges", 1 << 20)
    first = read(reader, some(5))
    monkeypatch.setattr(Files, "read_into", None)
    assert read(reader, some(5)) == first


def test_a_damaged_file_in_the_cache_is_a_miss(place: Path, tmp_path: Path) -> None:
    reader = cached(place, tmp_path / "ranges", 1 << 20)
    want = read(reader, some(4))
    for i, path in enumerate(path for path in (tmp_path / "ranges").rglob("*") if path.is_file()):
        path.write_bytes([b"", b"short", bytes(1000), bytes(2000)][i])
    assert read(reader, some(4)) == want
    assert size_of(tmp_path / "ranges") == 4000


def test_the_cache_is_bounded_and_keeps_what_was_used_last(place: Path, tmp_path: Path) -> None:
    reader = cached(place, tmp_path / "ranges", 64_000)
    for one in some(300):
        read(reader, [one])
        assert size_of(tmp_path / "ranges") <= 64_000
    assert size_of(tmp_path / "ranges") > 40_000


def test_a_range_larger_than_an_eighth_of_the_cache_is_not_kept(place: Path, tmp_path: Path) -> None:
    read(cached(place, tmp_path / "ranges", 7000), some(2))
    assert not (tmp_path / "ranges").exists()


CHURN = """
import sys
from pathlib import Path
from tests.reader.test_ranges import cached, read, some
place, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
reader = cached(place, folder, 64_000)
want = read(cached(place, folder / "no", 1), some(200))
for i in range(400):
    one = (i * 7919 + seed * 31) % 200
    assert read(reader, [some(200)[one]]) == [want[one]]
"""


@pytest.mark.slow
def test_several_processes_share_a_cache(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranges"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHURN, str(place), str(folder)]
    running = [subprocess.Popen([*command, str(i)], cwd=root, stderr=subprocess.PIPE) for i in range(4)]
    while any(one.poll() is None for one in running):
        assert sum(_size(path) for path in folder.rglob("*")) <= 64_000
    assert [one.communicate()[1].decode() for one in running] == [""] * 4


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0
