"""Every export test keeps its index in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reader.made import write_output


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of eight rows of three shapes, of the tiny VAE; only to be read."""
    where = tmp_path_factory.mktemp("exports") / "out"
    write_output(where)
    return where
