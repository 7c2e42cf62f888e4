"""Laws: memory is lent to one holder at a time, comes back when all views are gone, and what is kept is bounded."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from latentmill.store import memory


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    memory._free.clear()


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_is_used_again_when_the_last_view_is_gone_and_not_before() -> None:
    batch = torch.from_numpy(memory.take(1 << 20))
    first, view = address(batch), batch.view(torch.bfloat16)[7:].numpy
    kept = batch[5:9].numpy()
    del batch, view
    assert address(torch.from_numpy(memory.take(1 << 20))) != first, "numpy still holds a view"
    del kept
    assert address(torch.from_numpy(memory.take(1 << 20))) == first


def test_many_threads_never_hold_the_same_memory() -> None:
    def use(number: int) -> bool:
        for _ in range(200):
            lent = memory.take(4096)
            lent[:] = number
            if (np.asarray(lent) != number).any():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT_BYTES", 10_000)
    held = [memory.take(size) for size in (4000, 3000, 5000, 4000, 20_000)]
    held.clear()
    assert 0 < memory.kept_bytes() <= 10_000


def test_a_forked_process_has_none_of_its_parents_memory() -> None:
    memory.take(4096)
    assert memory.kept_bytes() == 4096
    if not (child := os.fork()):
        os._exit(memory.kept_bytes() != 0)
    assert os.waitpid(child, 0)[1] == 0
