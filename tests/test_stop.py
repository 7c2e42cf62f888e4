"""Law: SIGTERM begins no further shard, finishes those that are open, and commits them within the grace period."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.receipts import Receipt
from pipeline.records import Video
from pipeline.run import run
from pipeline.shards import Shard
from pipeline.stages.read_shard import read_shard
from tests.test_run import job, make_tar, staged
from tests.videos import make_video

pytest_plugins = ["tests.local_ray"]

NUM_SHARDS, READERS = 6, 2


@dataclass(frozen=True)
class Gated:
    """Reads a shard's first video, and the rest when the gate is there."""

    gate: Path

    def __call__(self, shard: Shard) -> Iterator[Video | Receipt]:
        for number, record in enumerate(read_shard(shard)):
            while number and not self.gate.exists():
                select.select([], [], [], 0.05)
            yield record


@pytest.mark.slow
def test_a_stop_finishes_what_is_open_and_begins_nothing(
    local_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = make_video(num_frames=60, width=96, height=64)
    for n in range(NUM_SHARDS):
        make_tar(tmp_path / f"{n}.tar", {"a": video, "b": video})
    output, gate = tmp_path / "out", tmp_path / "gate"
    echoes = 0

    def stop_when_two_are_open(line: str) -> None:
        nonlocal echoes
        if "finishing what is open" in caplog.text:
            echoes += 1
            if echoes == 20:  # 2 s later nobody may take another shard any more
                gate.touch()
        elif len(list(output.glob("_claims/*"))) == READERS:
            os.kill(os.getpid(), signal.SIGTERM)

    with caplog.at_level(logging.WARNING):
        summary = run(
            replace(job(tmp_path, output), grace=300.0),
            read=Gated(gate),
            echo=stop_when_two_are_open,
            echo_seconds=0.1,
        )
    assert summary.stopped
    assert (summary.done_shards, len(summary.open_shards)) == (READERS, NUM_SHARDS - READERS)
    assert summary.planned == summary.latents == READERS * 2 * 2
    assert len(list((output / "data").iterdir())) == READERS
    assert not staged(output)
    assert not list((output / "_claims").iterdir())
    assert run(job(tmp_path, output)).done_shards == NUM_SHARDS
