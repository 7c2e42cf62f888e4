"""A stored object as a seekable file, for Parquet, which cannot be read sequentially."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import open_uri
from pipeline.storage.addresses import redacted


def open_parquet(uri: str, size: int, etag: str) -> pq.ParquetFile:
    """Open a Parquet file in any storage, read by ranges.

    Raises:
        ConfigError: it is not a Parquet file.
    """
    try:
        file = pq.ParquetFile(io.BufferedReader(_RangeFile(uri, size, etag), 1 << 16), pre_buffer=False)
        file.schema.to_arrow_schema().names.copy()  # decodes the names, which may not be UTF-8
    except StorageError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{redacted(uri)} is not a Parquet file: {error}") from error
    return file


class _RangeFile(io.RawIOBase):
    """A stored object as a seekable file; each read is one ranged read."""

    def __init__(self, uri: str, size: int, etag: str) -> None:
        super().__init__()
        self._storage, self._path = open_uri(uri)
        self._size, self._etag = size, etag
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
        data = self._storage.read(self._path, self._position, stop, etag=self._etag)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
