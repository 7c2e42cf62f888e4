"""Damage files as disks and killed writers do."""

from __future__ import annotations

import random


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes cut, emptied, or with some of them changed."""
    match rng.randrange(8):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            return rng.randbytes(rng.randrange(200))
        case _:
            changed = bytearray(data)
            for _ in range(rng.choice([1, 1, 1, 5])):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(changed)
