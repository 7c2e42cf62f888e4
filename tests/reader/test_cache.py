"""Law: what the cache holds is checked before it is believed: damaged is built again, in use is kept, ours alone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import latentmill
from latentmill.store.cache import private_files
from latentmill.store.cache.shared_array import SharedArray
from tests.reader.damage import flipped
from tests.reader.made import SHAPES, write_output

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def copies(cache: Path, kind: str = "index-") -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name.startswith(kind) and path.is_dir())


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = latentmill.open(out).to_arrow().to_pylist()
    return rows


@pytest.mark.parametrize("name", ["rows.arrow", "files.arrow", "facts.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbled", "gone"])
def test_a_damaged_copy_is_built_again(output: Path, cache: Path, name: str, damage: str) -> None:
    want = rows_of(output)
    (folder,) = copies(cache)
    file = folder / name
    data = file.read_bytes()
    made = {"cut": data[: len(data) // 2], "empty": b"", "garbled": bytes(reversed(data))}
    file.unlink() if damage == "gone" else file.write_bytes(made[damage])
    assert rows_of(output) == want
    assert file.read_bytes() == data, "it was built again"
    assert copies(cache) == [folder]


def test_a_copy_under_the_name_of_another_is_not_believed(output: Path, tmp_path: Path, cache: Path) -> None:
    write_output(tmp_path / "other", 1)
    want = rows_of(output)
    (ours,) = copies(cache)
    other = latentmill.open(tmp_path / "other").index.folder
    shutil.rmtree(ours)
    shutil.copytree(other, ours)
    assert rows_of(output) == want


def test_a_worker_that_finds_a_damaged_copy_says_what_to_do(output: Path, cache: Path) -> None:
    text = pickle.dumps(latentmill.open(output))
    (folder,) = copies(cache)
    (folder / "rows.arrow").write_bytes(b"garbage")
    with pytest.raises(latentmill.OpenError, match=r"is damaged .*: open the output again"):
        pickle.loads(text)
    latentmill.open(output)
    assert len(pickle.loads(text)) == 24


def test_a_damaged_array_is_written_again(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    values = np.arange(50_000, dtype=np.int64)
    SharedArray.of(values, cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[::-1])
    assert np.array_equal(SharedArray.of(values, cache).values, values)
    text = pickle.dumps(SharedArray.of(values, cache))
    file.write_bytes(b"")
    with pytest.raises(latentmill.OpenError, match="open the output again"):
        pickle.loads(text)


def test_a_damaged_join_is_written_again(output: Path, cache: Path) -> None:
    latents = latentmill.open(output)
    scores = pa.table({"id": latents.to_arrow()["id"], "score": np.arange(24.0)})
    want = latents.join("x", scores).to_arrow().to_pylist()
    (folder,) = copies(cache, "index-join-")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:40])
        assert latents.join("x", scores).to_arrow().to_pylist() == want


def _flips(output: Path, cache: str, seeds: range) -> None:
    """Damage the copy once for each seed, and open it. Runs in a process of its own: a parser may end it."""
    os.environ["LATENTMILL_CACHE"] = cache
    want = rows_of(output)
    for seed in seeds:
        rng = random.Random(seed)
        file = rng.choice(sorted(copies(Path(cache))[0].iterdir()))
        file.write_bytes(flipped(file.read_bytes(), rng))
        assert rows_of(output) == want, f"seed {seed}"


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(500), marks=pytest.mark.slow)])
def test_no_flip_in_a_copy_is_believed_or_ends_the_process(output: Path, cache: Path, seeds: range) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_flips, args=(output, str(cache), seeds))
    child.start()
    child.join()
    assert child.exitcode == 0


# Kept while it is used.


@pytest.fixture
def long_ago(cache: Path) -> Callable[[], None]:
    """Make all that is in the cache older than it is kept."""

    def age() -> None:
        then = time.time() - private_files.KEPT_SECONDS - 60
        for path in [*cache.rglob("*"), cache]:
            os.utime(path, (then, then), follow_symlinks=False)

    return age


def test_the_sweep_keeps_what_is_in_use_and_deletes_the_rest(
    output: Path, cache: Path, long_ago: Callable[[], None]
) -> None:
    latents = latentmill.open(output)
    text = pickle.dumps(latents)
    array = SharedArray.of(np.arange(50_000), cache)
    long_ago()
    private_files.sweep(cache)
    assert len(copies(cache)) == 1
    assert len(pickle.loads(text)) == 24, "a worker that starts now finds it"
    assert array._path
    assert array._path.exists()
    path = array._path
    del latents, array
    long_ago()
    private_files.sweep(cache)
    assert not copies(cache)
    assert not path.exists()


def test_what_was_opened_lately_is_kept(output: Path, cache: Path, long_ago: Callable[[], None]) -> None:
    latentmill.open(output)
    long_ago()
    latentmill.open(output)
    private_files.sweep(cache)
    assert len(copies(cache)) == 1


# Of this user alone.


def modes(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in [folder, *folder.rglob("*")]:
        yield path, path.lstat().st_mode & 0o777


def test_nobody_else_can_read_or_write_the_cache(output: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        latents = latentmill.open(output)
        SharedArray.of(np.arange(50_000), cache)
        latents.join("x", pa.table({"id": latents.to_arrow()["id"], "score": np.arange(24.0)}))
        latentmill.open(output, cache_bytes=1 << 20)
    finally:
        os.umask(before)
    assert {path: mode for path, mode in modes(cache) if mode & 0o077} == {}


def test_a_folder_that_others_may_write_gets_one_of_this_user(output: Path, tmp_path: Path) -> None:
    shared = tmp_path / "scratch"
    shared.mkdir()
    shared.chmod(0o1777)
    latents = latentmill.open(output, cache=shared)
    (ours,) = shared.iterdir()
    assert ours.name == f"latentmill-{os.geteuid()}"
    assert ours.stat().st_mode & 0o777 == 0o700
    assert latents.index.folder.parent == ours


def test_a_lock_that_is_a_link_leads_nowhere(output: Path, cache: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    latentmill.open(output)
    (folder,) = copies(cache)
    shutil.rmtree(folder)
    lock = folder.with_name(f"{folder.name}.lock")
    lock.unlink()
    lock.symlink_to(victim)
    assert len(latentmill.open(output)) == 24
    assert victim.read_text() == "precious"
    assert not lock.is_symlink()


@pytest.mark.parametrize("name", ["rows.arrow", "facts.json"])
def test_a_file_that_is_a_link_or_a_pipe_is_not_read(output: Path, cache: Path, tmp_path: Path, name: str) -> None:
    want = rows_of(output)
    file = copies(cache)[0] / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert rows_of(output) == want
    assert not file.is_symlink()
    file.unlink()
    os.mkfifo(file, 0o600)
    assert rows_of(output) == want
    assert file.is_file()


@as_root
@pytest.mark.parametrize("what", ["folder", "file", "array", "lock", "mode"])
def test_what_somebody_else_wrote_is_not_believed(output: Path, cache: Path, what: str) -> None:
    """A copy of another user with other captions and right checksums, at the name that we would compute."""
    want = rows_of(output)
    (folder,) = copies(cache)
    before = (folder / "rows.arrow").stat().st_ino
    match what:
        case "folder":
            for path in [folder, *folder.iterdir()]:
                os.chown(path, NOBODY, NOBODY)
        case "file":
            os.chown(folder / "facts.json", NOBODY, NOBODY)
        case "mode":
            (folder / "rows.arrow").chmod(0o666)
        case "lock":
            os.chown(folder.with_name(f"{folder.name}.lock"), NOBODY, NOBODY)
            (folder / "facts.json").unlink()
        case "array":
            values = np.arange(50_000)
            made = SharedArray.of(values, cache)
            assert made._path
            os.chown(made._path, NOBODY, NOBODY)
            assert np.array_equal(SharedArray.of(values, cache).values, values)
            assert made._path.stat().st_uid == 0
            return
    assert rows_of(output) == want
    assert (folder / "rows.arrow").stat().st_ino != before, "it was built again"
    assert {path.stat().st_uid for path in cache.rglob("*")} == {0}


def _as_nobody(output: Path, cache: str, says: Any) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ["LATENTMILL_CACHE"] = cache
    try:
        latents = latentmill.open(output)
        says.send((len(latents), str(latents.index.folder)))
    except latentmill.OpenError as error:
        says.send(("OpenError", str(error)))


@pytest.fixture
def scratch(output: Path) -> Iterator[Path]:
    """A disk that all users share, with an output that all can read: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder, "scratch")
        shared.mkdir()
        shutil.copytree(output, shared / "out")
        for path in [Path(folder), *shared.rglob("*")]:
            path.chmod(0o755)
        shared.chmod(0o1777)
        yield shared


def nobody_opens(scratch: Path) -> tuple[Any, str]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(scratch / "out", str(scratch), theirs))
    child.start()
    child.join()
    assert child.exitcode == 0
    found: tuple[Any, str] = ours.recv()
    return found


@as_root
def test_two_users_of_one_scratch_disk_keep_a_copy_each(scratch: Path) -> None:
    latentmill.open(scratch / "out", cache=scratch)
    rows, folder = nobody_opens(scratch)
    assert (rows, Path(folder).parent) == (24, scratch / f"latentmill-{NOBODY}")


@as_root
def test_a_folder_that_somebody_else_made_under_our_name_is_refused(scratch: Path) -> None:
    (scratch / f"latentmill-{NOBODY}").mkdir()
    rows, says = nobody_opens(scratch)
    assert rows == "OpenError"
    assert "belongs to somebody else, or others may write it: set LATENTMILL_CACHE to a folder of your own" in says


def test_a_cache_that_cannot_be_made_is_said(output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(latentmill.OpenError, match=r"no cache at .*/file.*: set LATENTMILL_CACHE to a folder"):
        latentmill.open(output, cache=tmp_path / "file")


def test_filters_work_on_a_copy_that_was_built_again(output: Path, cache: Path) -> None:
    latentmill.open(output)
    (copies(cache)[0] / "rows.arrow").write_bytes(b"")
    tall = latentmill.open(output).where(pc.field("height") == 32)
    assert tall.shapes == {SHAPES[1]: 9}
