"""Law: torchdata's StatefulDataLoader around our sampler resumes with the rest of the epoch, each row once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import latentmill

pytest.importorskip("torchdata", reason="torchdata is not installed")

from torchdata.stateful_dataloader import StatefulDataLoader


def loader_of(output: Path, workers: int, **options: Any) -> Any:
    latents = latentmill.open(output)
    sampler = latentmill.BatchSampler(latents, batch_size=2, seed=5, drop_last=False)
    return StatefulDataLoader(latents, batch_sampler=sampler, num_workers=workers, **options)


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def two_epochs(output: Path) -> list[list[str]]:
    loader = latentmill.open(output).loader(batch_size=2, seed=5, drop_last=False)
    return [*ids(loader), *ids(loader)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stops", [(5,), (3, 7), (1, 1, 1, 1), (12, 1), (13, 4)])
def test_a_chain_of_resumes_gives_each_batch_once(output: Path, workers: int, stops: tuple[int, ...]) -> None:
    want = two_epochs(output)
    got: list[list[str]] = []
    state = None
    for stop in (*stops, 99):
        loader = loader_of(output, workers)
        if state:
            loader.load_state_dict(state)
        left = stop
        for _ in range(2):  # at the end of an epoch the loop begins again
            for batch in loader:
                got.append(batch["id"])
                left -= 1
                if not left:
                    state = copy.deepcopy(loader.state_dict())
                    break
            else:
                continue
            break
    assert got[: len(want)] == want


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_state_of_a_finished_epoch_begins_the_next(output: Path, workers: int) -> None:
    want = two_epochs(output)
    loader = loader_of(output, workers)
    first = ids(loader)
    resumed = loader_of(output, workers)
    resumed.load_state_dict(loader.state_dict())
    assert [*first, *ids(resumed)] == want


@pytest.mark.slow
def test_persistent_workers_go_on_with_the_next_epoch(output: Path) -> None:
    want = two_epochs(output)
    loader = loader_of(output, 2, persistent_workers=True)
    steps = iter(loader)
    first = [next(steps)["id"] for _ in range(4)]
    resumed = loader_of(output, 2, persistent_workers=True)
    resumed.load_state_dict(loader.state_dict())
    assert [*first, *ids(resumed), *ids(resumed)] == want


def test_a_state_of_other_rows_is_refused(output: Path) -> None:
    loader = loader_of(output, 0)
    next(iter(loader))
    latents = latentmill.open(output)
    sampler = latentmill.BatchSampler(latents, batch_size=2, seed=6, drop_last=False)
    other = StatefulDataLoader(latents, batch_sampler=sampler)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(latentmill.StateError, match="seed was 5, is 6"):
        next(iter(other))
