"""Checksums over whole files, looked at before anything parses them: a flipped bit may crash a parser, or pass it."""

from __future__ import annotations

import hashlib

_BYTES = 16


class DamagedError(Exception):
    """The bytes are not those that were written."""


def append(data: bytes) -> bytes:
    """The data, followed by its checksum."""
    return data + _digest(data)


def strip(data: bytes) -> memoryview:
    """The data that `append` was given. Raises DamagedError."""
    body, tail = memoryview(data)[:-_BYTES], data[-_BYTES:]
    if _digest(body) != tail:
        raise DamagedError("its checksum does not fit")
    return body


def _digest(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
