"""Poisoned stages, by name. They take the place of `iter_clips` and of the encoder, and do that one's work, too.

A poison strikes the second clip of a video of that kind (see shards.py), when it is armed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.decode import DecodedClip, DecodeSpec, iter_clips
from pipeline.errors import VideoError
from pipeline.records import Chunk, Latent
from tests.chaos.shards import poison_of

MEMORY_BYTES = 1 << 30
"""Address space that a decoder may eat before the system refuses: reserved, never touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What goes wrong in one run."""

    armed: tuple[str, ...] = ()
    """Kinds of poison."""
    pause: float = 0.0
    """Seconds that each chunk takes longer in both stages, so that kills meet work under way."""
    diary: str
    """A file that gets a line for each chunk that an encoder begins."""


def decode(plot: Plot, source: bytes | memoryview, specs: Sequence[DecodeSpec]) -> Iterator[DecodedClip | VideoError]:
    """`iter_clips` with poison."""
    kind = poison_of(source)
    stream = iter_clips(source, specs)
    for spec in specs:
        time.sleep(plot.pause)
        if kind in plot.armed and spec.start > 0:
            _decode_poison(kind)
        yield next(stream)


def _decode_poison(kind: str) -> None:
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "hang":
        ctypes.PyDLL(None).sleep(100_000)  # PyDLL holds the GIL: no Python thread can end this
    elif kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, most))
        bytearray(4 * MEMORY_BYTES)


def load_encoder(plot: Plot, *args: Any, **kwargs: Any) -> Callable[[Chunk], Latent]:
    """The encoder with poison. torch is imported in the actor only."""
    from tests.chaos.encoder import PoisonedEncoder

    return PoisonedEncoder(plot, *args, **kwargs)


def note(plot: Plot, line: str) -> None:
    """Append a line to the diary: one write, so that processes do not mix."""
    descriptor = os.open(plot.diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
