"""The laws of the order with real processes: ranks, workers, spawn and fork, SIGKILL in the middle of an epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

import latentmill

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Batches = list[list[Any]]
"""[epoch, ids, crc32 of the tensor] of each batch."""


def start(output: Path, folder: Path, rank: int, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.reader.trainer", output, folder / "state", folder / f"log{rank}"]
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return subprocess.Popen(
        [*map(str, command), "--rank", str(rank), *flags], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def logged(folder: Path, world: int, parallel: int = 1) -> Batches:
    """The global batches, in their order; ranks of one group must have got the same bytes."""
    logs = []
    for rank in range(world):
        path = folder / f"log{rank}"
        logs.append([json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [])
    for rank in range(world):
        assert logs[rank] == logs[rank // parallel * parallel]
    return [batch for step in zip_longest(*logs[::parallel]) for batch in step if batch]


def train(output: Path, folder: Path, world: int = 1, parallel: int = 1, **options: Any) -> Batches:
    folder.mkdir(exist_ok=True)
    ranks = [start(output, folder, rank, world=world, parallel=parallel, **options) for rank in range(world)]
    assert [one.communicate(timeout=500)[0] for one in ranks] == [b""] * world
    assert {one.returncode for one in ranks} == {0}
    return logged(folder, world, parallel)


@pytest.fixture(scope="module")
def alone(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Batches:
    """The global batches of one rank without workers."""
    batches = train(output, tmp_path_factory.mktemp("alone"))
    ids = [id_ for _, ids, _ in batches for id_ in ids]
    assert sorted(ids) == sorted(latentmill.open(output).to_arrow()["id"].to_pylist())
    return batches


@pytest.mark.parametrize(
    ("world", "workers", "method"), [(1, 1, "spawn"), (2, 0, "fork"), (2, 3, "fork"), (4, 1, "fork"), (8, 0, "fork")]
)
def test_ranks_and_workers_do_not_change_the_global_batches(
    alone: Batches, output: Path, tmp_path: Path, world: int, workers: int, method: str
) -> None:
    assert train(output, tmp_path / "run", world, workers=workers, method=method) == alone


def test_three_spawned_workers(alone: Batches, output: Path, tmp_path: Path) -> None:
    assert train(output, tmp_path / "run", workers=3, method="spawn") == alone


def test_ranks_of_a_context_parallel_group_get_equal_bytes(alone: Batches, output: Path, tmp_path: Path) -> None:
    """`logged` compares them."""
    assert train(output, tmp_path / "run", 4, parallel=2) == alone


@pytest.mark.parametrize(
    ("before", "after", "workers", "held"), [(1, 2, 0, 5), (2, 1, 2, 2), (4, 2, 0, 1), (2, 4, 1, 3)]
)
def test_killed_and_resumed_with_another_world(
    alone: Batches, output: Path, tmp_path: Path, before: int, after: int, workers: int, held: int
) -> None:
    """Every rank hangs after `held` steps, as at a collective, and is killed; the checkpoint is that of rank 0."""
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = [start(output, folder, rank, world=before, workers=workers, hold=held) for rank in range(before)]
    for one in ranks:
        assert one.stdout
        assert one.stdout.readline() == b"holding\n"
    for one in ranks:
        one.kill()
    for one in ranks:
        one.communicate()
    first = logged(folder, before)
    assert first == alone[: held * before]
    for path in folder.glob("log*"):
        path.unlink()
    resume = (folder / "state").rename(folder / "resume")  # rank 0 writes its own while others still start
    rest = train(output, folder, after, workers=2 - workers, resume=resume)
    assert rest == alone[held * before :]


def test_the_second_epoch_is_another_and_again_the_same_for_all(output: Path, tmp_path: Path, alone: Batches) -> None:
    two = train(output, tmp_path / "two", 2, workers=1, epochs=2)
    one = train(output, tmp_path / "one", epochs=2)
    assert sorted(map(str, two)) == sorted(map(str, one))
    assert {str(batch[1:]) for batch in one if batch[0] == 1} != {str(batch[1:]) for batch in one if batch[0] == 0}
