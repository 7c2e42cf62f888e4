"""Fixtures: a sound output of the same source, once with Parquet and once with NPY latents, and a copy to damage."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.outputs import CLIPS, make_output
from tests.small import LATENT
from tests.sources import make_tar
from tests.videos import cut, make_video


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars: three videos of 2, 1 and 1 clips, of which one is no video at all; and one more."""
    folder = tmp_path_factory.mktemp("source")
    long, short = make_video(num_frames=60, width=96, height=64), make_video(num_frames=33, width=96, height=64)
    members = [("a.mp4", long), ("a.txt", b"a caption"), ("b.mp4", b"no video"), ("c.mp4", short)]
    (folder / "one.tar").write_bytes(make_tar(members))
    (folder / "two.tar").write_bytes(make_tar([("d.mp4", short), ("e.mp4", cut(short, 0.3))]))
    return folder


@pytest.fixture(scope="module", params=["parquet", "npy"])
def made(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("made") / "out"
    make_output(source / "*.tar", where, CLIPS, replace(LATENT, format=request.param))
    return where


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))
