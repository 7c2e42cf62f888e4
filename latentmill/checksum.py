"""Checksums of whole files, checked before a file is parsed: a flipped bit may crash a parser, or pass unnoticed.

Files in our own formats end with their checksum (`append`, `strip`). A Parquet file must remain readable as Parquet, so
its checksum is in the footer, computed with zeros in its place (`MARK`, `stamp`, `check`). Files of older versions have
no checksum and are accepted.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO

_BYTES = 16
_DIGITS = 2 * _BYTES

MARK = {"latentmill.checksum": f"blake2b:{'0' * _DIGITS}"}
"""Key and value for a Parquet footer, to be written last, and then stamped."""

TAIL_BYTES = 1 << 14
"""Length of the end of a file that contains the checksum of the footer."""

_STAMP = re.compile(rb"latentmill\.checksum.{1,4}?blake2b:([0-9a-f]{%d})" % _DIGITS, re.DOTALL)
_PIECE_BYTES = 1 << 20


class DamagedError(Exception):
    """The bytes are not those that were written."""

    def __init__(self) -> None:
        super().__init__("its checksum does not fit")


def append(data: bytes) -> bytes:
    """Return the data followed by its checksum."""
    return data + _digest([data])


def strip(data: bytes) -> memoryview:
    """Return the data without its checksum. Raises DamagedError if the checksum does not match."""
    body, tail = memoryview(data)[:-_BYTES], data[-_BYTES:]
    if _digest([body]) != tail:
        raise DamagedError
    return body


def stamp(file: IO[bytes]) -> None:
    """Replace the MARK in a Parquet file by the checksum of the whole file."""
    head_bytes = max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES)
    file.seek(head_bytes)
    tail = file.read()
    found = _STAMP.search(tail)
    assert found
    file.seek(0)
    digest = _digest(chain(_pieces(file, head_bytes), [tail]))
    file.seek(head_bytes + found.start(1))
    file.write(digest.hex().encode())


def check_file(file: IO[bytes]) -> bool:
    """Check an opened Parquet file as `check` does."""
    head_bytes = max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES)
    file.seek(head_bytes)
    tail = file.read()
    file.seek(0)
    return check(tail, _pieces(file, head_bytes))


def check(tail: bytes, head: Iterable[bytes]) -> bool:
    """Check a Parquet file against its checksum. Return False if it has none.

    Args:
        tail: its last TAIL_BYTES.
        head: everything before the tail; read only if there is a checksum.

    Raises:
        DamagedError: the checksum does not match.
    """
    found = _STAMP.search(tail)
    if not found:  # a checksum with a flipped bit must not look like a file of an older version
        if any(part.encode() in tail for part in ("latentmill.checksum", "blake2b:")):
            raise DamagedError
        return False
    zeroed = tail[: found.start(1)] + b"0" * _DIGITS + tail[found.end(1) :]
    if _digest(chain(head, [zeroed])).hex().encode() != found[1]:
        raise DamagedError
    return True


def _pieces(file: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(piece)
        yield piece


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
