"""Law: the reader takes a share of the open files of its process, and gives them back when others need them."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import pytest

import latentmill
from tests.reader.made import write_output

SHARDS = 45
LIMIT = 80


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "out"
    write_output(out, SHARDS, 1)
    return out


def _num_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _read_four_outputs(out: Path, says: Any) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    outputs = [latentmill.open(out) for _ in range(4)]
    before = _num_open()
    for row in range(SHARDS):
        for latents in outputs:
            latents[row]
    held = _num_open() - before
    others = []
    try:
        while True:
            others.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        os.close(others.pop())  # one is enough to go on with
    for latents in outputs:
        latents[0], latents[SHARDS - 1]
    for number in others:
        os.close(number)
    opened = latentmill.open(out)
    del outputs, latents
    says.send((held, _num_open() - before, len(opened)))


def test_four_outputs_fit_below_a_low_limit_and_the_reader_gives_way(many: Path, cache: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_read_four_outputs, args=(many, theirs))
    child.start()
    child.join()
    assert child.exitcode == 0
    held, after, rows = ours.recv()
    assert held <= LIMIT // 4
    assert after <= 2, "what an output opened is closed with it"
    assert rows == SHARDS
