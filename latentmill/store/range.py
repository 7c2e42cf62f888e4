"""Range: the bytes of one value in a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes of one value."""

    file: str
    """Path under the output."""
    start: int
    length: int
    crc32: int | None
    """Checksum of the bytes; None: they are not checked."""
    row: str
    """The id of the row, for messages."""
