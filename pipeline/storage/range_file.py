"""Open a stored Parquet file, which cannot be read sequentially."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.store.range_file import RangeFile
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import open_uri
from pipeline.storage.addresses import redacted


def open_parquet(uri: str, size: int, etag: str) -> pq.ParquetFile:
    """Open a Parquet file in any storage, read by ranges.

    Raises:
        ConfigError: it is not a Parquet file.
    """
    storage, path = open_uri(uri)
    try:
        ranged = RangeFile(lambda start, stop: storage.read(path, start, stop, etag=etag), size)
        file = pq.ParquetFile(io.BufferedReader(ranged, 1 << 16), pre_buffer=False)
        file.schema.to_arrow_schema().names.copy()  # decodes the names, which may not be UTF-8
    except StorageError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{redacted(uri)} is not a Parquet file: {error}") from error
    return file
