"""Law: where one card of two fails for good, in whatever way and whenever, the other makes every latent, with the bytes
of a run on sound cards; nothing is rejected, and a warning names host and device. Where all fail, the run ends and says
why."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import ray

from pipeline.errors import EncoderError
from pipeline.run import run
from pipeline.settings.job import Job, Workers
from pipeline.settings.spec import LatentRule
from tests.cards import OnCard, Plot, Way
from tests.small import CLIP
from tests.test_run import data, make_tar
from tests.videos import make_video

NUM_CLIPS = 12
SOUND: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def two_cards() -> Iterator[None]:
    """A Ray that hands out two GPUs."""
    folder = tempfile.mkdtemp(prefix="lm")  # sockets in it: paths are limited to 107 bytes
    os.environ["RAY_TMPDIR"] = folder
    store = 200_000_000
    ray.init(
        address="local", num_cpus=3, num_gpus=2, object_store_memory=store, include_dashboard=False, log_to_driver=False
    )
    yield
    ray.shutdown()
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many blocks as clips: with a few, the encoder that stands first would get them all."""
    folder = tmp_path_factory.mktemp("tars")
    for name in "abcdefghijkl":
        make_tar(folder / f"{name}.tar", {name: make_video(num_frames=48, width=96, height=64)})
    return folder


def job(tars: Path, output: Path) -> Job:
    return Job(
        source=(f"{tars}/*.tar",),
        output=str(output),
        vae="tiny",
        clip=CLIP,
        latent=LatentRule(dtype="float32"),
        workers=Workers(decode_cpus=1, encoders="2", gpus_per_encoder=1),
    )


@pytest.fixture(scope="module")
def sound(two_cards: None, tars: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    summary = run(job(tars, folder / "out"), encode=partial(OnCard, Plot("dies", SOUND, False, folder)))
    assert (summary.latents, summary.rejected, summary.open_shards) == (NUM_CLIPS, {}, {})
    return data(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("way", get_args(Way))
def test_one_card_that_fails_for_good_costs_nothing(
    way: Way, later: bool, sound: dict[str, bytes], tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plot = Plot(way, ("1",), later, tmp_path)
    summary = run(job(tars, tmp_path / "out"), encode=partial(OnCard, plot))
    assert (summary.latents, summary.rejected, summary.open_shards) == (NUM_CLIPS, {}, {})
    assert data(tmp_path / "out") == sound
    if plot.is_noticed():
        assert f"no encoder on {socket.gethostname()} cuda:1" in caplog.text
    assert "cuda:0" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("way", ["dies", "is wrong", "fails at work"])
def test_where_all_cards_fail_the_run_ends_and_says_why(
    way: Way, later: bool, two_cards: None, tars: Path, tmp_path: Path
) -> None:
    plot = Plot(way, ("0", "1"), later, tmp_path)
    with pytest.raises(EncoderError) as raised:
        run(job(tars, tmp_path / "out"), encode=partial(OnCard, plot))
    assert str(raised.value).startswith("no encoder ")
    reasons = {"dies": "in a row failed", "is wrong": "self-check", "fails at work": "die of noise"}
    assert reasons[way] in str(raised.value)
    assert not list((tmp_path / "out").glob("rejected/*"))
