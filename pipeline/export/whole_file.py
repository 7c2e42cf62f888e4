"""A file that holds a whole piece: built in memory while it is small, else on the local disk, and put in one go."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.storage import Storage

IN_MEMORY_BYTES = 256 << 20
"""A piece with more bytes of latents than this is built in a temporary file."""


@contextlib.contextmanager
def whole_file(into: Storage, path: str, num_bytes: int) -> Iterator[IO[bytes]]:
    """Yield a file to write to. It is put at `path` when the body ends without an error.

    Args:
        num_bytes: about how large it will be.
    """
    if num_bytes <= IN_MEMORY_BYTES:
        memory = io.BytesIO()
        yield memory
        into.put(path, memory.getvalue())
        return
    with tempfile.NamedTemporaryFile("w+b") as file:
        yield file
        file.flush()
        into.put(path, Path(file.name))
