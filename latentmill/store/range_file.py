"""RangeFile: a stored object as a seekable file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """A stored object as a seekable file; each read is one ranged read."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        """Open an object of `size` bytes. `read` returns its bytes [start, stop)."""
        super().__init__()
        self._read, self._size = read, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._size, self._position + len(view))
        data = self._read(self._position, stop) if stop > self._position else b""
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
