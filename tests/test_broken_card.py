"""Law: a card that fails for good does not end the run; and encoders that give other bits are told apart."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.guard.starts import Told
from pipeline.guard.strikes import Strikes
from pipeline.records import Chunk, Latent
from pipeline.run import run
from pipeline.settings.job import Workers
from pipeline.stages.tables import Encode, load_encoder
from tests.test_run import data, job, make_tar
from tests.videos import make_video

pytest_plugins = ["tests.local_ray"]


class Card:
    """A card of two, which belongs to one process at a time. The second one fails at its first chunk, for good."""

    def __init__(self, folder: Path, *args: Any, **named: Any) -> None:
        self._broken = folder / "broken"
        for self._number in (0, 1):
            self._held = (folder / str(self._number)).open("w")
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
        if self._number and self._broken.exists():
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        self._encode: Encode = load_encoder(*args, **named)
        self.told = Told(device=f"card {self._number}", digest=str(self._number))

    def __call__(self, chunk: Chunk) -> Latent:
        if self._number:
            self._broken.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._encode(chunk)


def test_a_card_that_fails_for_good_does_not_end_the_run(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for i in range(4):
        make_tar(tars / f"{i}.tar", {f"v{j}": make_video(num_frames=60, width=96, height=64) for j in range(3)})
    output = tmp_path / "out"
    asked = job(tars, output, workers=Workers(decode_cpus=1, encoders="2"))
    with caplog.at_level(logging.WARNING):
        summary = run(asked, encode=partial(Card, tmp_path))
    assert (tmp_path / "broken").exists(), "the second card was never used"
    assert (summary.done_shards, summary.open_shards, summary.rejected) == (4, {}, 0)
    run(job(tars, tmp_path / "healthy"))
    assert data(output) == data(tmp_path / "healthy")
    assert "an encoder cannot start, the others go on: AcceleratorError: CUDA error: uncorrectable ECC" in caplog.text
    assert "an encoder on card 1 makes other bits" in caplog.text or "an encoder on card 0 makes other" in caplog.text
    (record,) = (output / "runs").iterdir()
    facts = json.loads(record.read_text())
    assert sorted(told["device"] for told in facts["encoders"]) == ["card 0", "card 1"]
    assert facts["environment"]["device"] == "card 0, card 1"


def test_who_stood_leaves_and_who_never_stood_waits_while_another_stands() -> None:
    strikes = Strikes()
    assert strikes.cannot_start("no memory", "a"), "nobody else works"
    strikes.started(None, "b")
    assert not strikes.cannot_start("no memory", "a")
    strikes.started(None, "a")
    assert strikes.cannot_start("broken", "a"), "its blocks must fail, for they cannot wait for ever"
    assert not strikes.cannot_start("broken", "c")
    assert strikes.cannot_start("broken", "b"), "the last one"
    assert strikes.cannot_start("broken", "c")
    strikes.started(None, "d")
    strikes.new_pass()
    assert strikes.cannot_start("broken", "e"), "a pass has encoders of its own"


def test_equal_encoders_are_told_once_and_unequal_ones_are_news() -> None:
    strikes = Strikes()
    first, twin, other = Told("A100", "0" * 64), Told("A100", "0" * 64), Told("H100", "1" * 64)
    for name, told in zip("abcde", (None, first, twin, other, other), strict=True):
        strikes.started(told, name)
    told_, news = strikes.encoders()
    assert told_ == [first, other]
    (line,) = news
    assert "on H100 makes other bits of the same frames than the first one, on A100" in line
    assert strikes.encoders() == ([first, other], [])
