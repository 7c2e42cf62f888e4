"""Fixtures that every test may use. Nothing here needs the network; what is not there is skipped and says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden data and real videos: `$LATENTMILL_SHARED`, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("LATENTMILL_SHARED", Path(__file__).parents[2] / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set LATENTMILL_SHARED)")
    return folder
