"""A file that holds a whole piece: built on the local disk, and put in one go."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.storage import Storage


@contextlib.contextmanager
def whole_file(into: Storage, path: str) -> Iterator[IO[bytes]]:
    """Yield a file to write to. It is put at `path` when the body ends without an error.

    Building it in memory is slower, where pieces are large: each page of new memory costs a fault (454 MB/s and 597
    MB/s for tars of 144 MB on two busy cores).
    """
    with tempfile.NamedTemporaryFile("w+b") as file:
        yield file
        file.flush()
        into.put(path, Path(file.name))
