"""A Ray that the tests of one file share; `run` joins a Ray that is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Start it, with room for three workers."""
    folder = tempfile.mkdtemp(prefix="lm")  # sockets in it: paths are limited to 107 bytes
    os.environ["RAY_TMPDIR"] = folder
    ray.init(address="local", num_cpus=3, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(folder, ignore_errors=True)
