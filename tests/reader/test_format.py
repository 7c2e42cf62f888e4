"""Law: an output that this version writes, this version reads."""

from __future__ import annotations

from latentmill import format


def test_the_version_that_is_written_is_read() -> None:
    assert format.FORMAT_VERSION in format.READABLE_VERSIONS
