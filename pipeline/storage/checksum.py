"""Checksums over whole files, looked at before anything parses them: a flipped bit may crash a parser, or pass it.

What is ours alone ends in its checksum (`append`, `strip`). A Parquet file must stay one: it names the checksum in its
footer, computed with zeros in that place (`MARK`, `stamp`, `check`). Those of older versions have none, and pass.
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
"""The end of a file, where its footer names the checksum."""

_STAMP = re.compile(rb"latentmill\.checksum.{1,4}?blake2b:([0-9a-f]{%d})" % _DIGITS, re.DOTALL)
_PIECE_BYTES = 1 << 20


class DamagedError(Exception):
    """The bytes are not those that were written."""

    def __init__(self) -> None:
        super().__init__("its checksum does not fit")


def append(data: bytes) -> bytes:
    """The data, followed by its checksum."""
    return data + _digest([data])


def strip(data: bytes) -> memoryview:
    """The data that `append` was given. Raises DamagedError."""
    body, tail = memoryview(data)[:-_BYTES], data[-_BYTES:]
    if _digest([body]) != tail:
        raise DamagedError
    return body


def stamp(file: IO[bytes]) -> None:
    """Put the checksum of a whole Parquet file in the place of its MARK."""
    head_bytes = max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES)
    file.seek(head_bytes)
    tail = file.read()
    found = _STAMP.search(tail)
    assert found
    file.seek(0)
    digest = _digest(chain(_pieces(file, head_bytes), [tail]))
    file.seek(head_bytes + found.start(1))
    file.write(digest.hex().encode())


def check(tail: bytes, head: Iterable[bytes]) -> None:
    """Hold a Parquet file against its stamp: its last TAIL_BYTES, and what comes before, read only if there is one.

    Raises:
        DamagedError: it is stamped, and the stamp does not fit.
    """
    found = _STAMP.search(tail)
    if not found:  # a stamp with one bit flipped is not that of an older version
        if any(part.encode() in tail for part in ("latentmill.checksum", "blake2b:")):
            raise DamagedError
        return
    zeroed = tail[: found.start(1)] + b"0" * _DIGITS + tail[found.end(1) :]
    if _digest(chain(head, [zeroed])).hex().encode() != found[1]:
        raise DamagedError


def _pieces(file: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(piece)
        yield piece


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
