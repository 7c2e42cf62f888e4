"""Read the committed rows of an output, sorted by shard, from whichever file has them whole.

`index.parquet`, the seal, holds most rows; `index/` those of each shard; both are derived from `data/`. A derived file
that is damaged or stale is passed by: the next one holds the same rows.
"""

from __future__ import annotations

import io
import json
import logging
from bisect import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentmill import checksum, format
from latentmill.errors import NotFoundError, OpenError, StorageError
from latentmill.index.codes import TYPES
from latentmill.index.file import BATCH_ROWS
from latentmill.index.rates import DERIVED, TIMES, with_rates
from latentmill.store.files import Files
from latentmill.store.objects import Entry

log = logging.getLogger(__name__)

NEEDED = tuple(TYPES)
"""Columns that are always opened."""
WIDE = ("source_uri", "timestamps_sec", "source_json", "extra_json", "npy_file", "npy_row", *format.STATISTICS.names)
"""Columns that are opened on request only: at ten million rows they take gigabytes."""

UNPARSABLE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError)
"""What a parser raises for a damaged file. StorageError is an OSError, too, and is no damage."""


SEAL = "parquet"
"""Where a remote seal is copied to, in the folder that is being built."""


class GrownError(Exception):
    """The seal has shards that were committed after `data/` was listed: list again."""


class Committed:
    """The committed rows of an output, table by table, sorted by shard."""

    def __init__(
        self, files: Files, listed: dict[str, Entry], columns: Sequence[str] | None, folder: Path, *, is_native: bool
    ) -> None:
        self._files = files
        self._listed = listed
        self._shards = sorted(format.shard_of(path) for path in listed if path.endswith(".parquet"))
        self._asked = columns
        self._folder = folder
        self._is_native = is_native

    def tables(self) -> Iterator[pa.Table]:
        """Yield the sealed rows, and between them those of the shards that the seal lacks."""
        sealed = self._sealed()
        starts = _starts(sealed) if sealed else {}
        if list(starts) != sorted(starts):
            sealed, starts = None, {}
        if gone := set(starts) - set(self._shards):
            name = format.data_path(min(gone))
            if name in self._files.list(format.DATA):
                raise GrownError
            raise OpenError(f"{self._files.uri}: {format.SEAL_PATH} has rows of {name}, which is not there")
        missing = [shard for shard in self._shards if shard not in starts]
        extra = iter(_in_order(self._of_shard, missing))
        names, places = list(starts), [*starts.values(), sealed.metadata.num_rows if sealed else 0]
        at = [places[bisect(names, shard)] for shard in missing]
        position = 0
        for table in _batches(sealed, self._columns(sealed.schema_arrow)) if sealed else ():
            begin, stop = position, position + len(table)
            while at and at[0] < stop:
                yield table.slice(position - begin, at[0] - position)
                position = at.pop(0)
                yield next(extra)
            yield table.slice(position - begin)
            position = stop
        yield from extra

    def pinned(self, uri: str) -> Iterator[pa.Table]:
        """Yield the rows of a file that `save_index` wrote. Raises OpenError if it is damaged, or no index."""
        place, _, name = uri.rpartition("/")
        data = io.BytesIO(Files(place or ".").read(name))
        try:
            checksum.check_file(data)
            file = pq.ParquetFile(data)
            tables = list(_batches(file, self._columns(file.schema_arrow)))
        except OpenError:
            raise
        except (checksum.DamagedError, *UNPARSABLE) as error:
            raise OpenError(f"index={uri} is no index of `save_index`, or it is damaged: {error}") from error
        yield from tables

    def _sealed(self) -> pq.ParquetFile | None:
        """Open the seal. None if there is none, or if it is damaged."""
        try:
            path = self._files.download(format.SEAL_PATH, self._folder / SEAL)
            with path.open("rb") as source:
                has_checksum = checksum.check_file(source)
            file = pq.ParquetFile(path, read_dictionary=["file", "latent_dtype"])
            if not has_checksum:  # of an older version
                _starts(file)
                for _ in _batches(file, self._columns(file.schema_arrow)):
                    pass
        except (NotFoundError, FileNotFoundError):
            return None
        except StorageError:
            raise
        except (checksum.DamagedError, *UNPARSABLE) as error:
            where = self._files.address(format.SEAL_PATH)
            log.warning("%s is damaged (%s); index/ is read instead, and the next run makes it again", where, error)
            return None
        return file

    def _of_shard(self, shard: str) -> pa.Table:
        try:
            data = io.BytesIO(self._files.read(format.index_path(shard)))
            checksum.check_file(data)
            file = pq.ParquetFile(data)
            facts = json.loads((file.metadata.metadata or {}).get(format.FOOTER_DERIVED.encode(), b"{}"))
            size = self._listed[format.data_path(shard)].size
            if facts.get("data_bytes", size) != size:
                raise ValueError("of another data file")
            table = file.read()
            table.validate(full=True)
            return table.select(self._columns(table.schema))
        except NotFoundError:  # the index is written after the data file; its writer may have died before
            pass
        except StorageError:
            raise
        except (checksum.DamagedError, *UNPARSABLE) as error:
            log.info("%s is damaged or stale: %s", self._files.address(format.index_path(shard)), error)
        table = self._files.parsed(format.data_path(shard), lambda source: format.index_of(source, shard))
        return table.select(self._columns(table.schema))

    def finished(self, table: pa.Table) -> pa.Table:
        """Return rows with the columns that are opened. Rows of `--fps native` get their rates."""
        if TIMES in table.column_names and self._is_native:
            table = with_rates(table)
            if not self._is_asked(TIMES):
                table = table.drop([TIMES])
        return table

    def _is_asked(self, name: str) -> bool:
        return name in NEEDED or (name not in WIDE if self._asked is None else name in self._asked)

    def _columns(self, schema: pa.Schema) -> list[str]:
        """Return the columns to read: those that are opened, and what `finished` needs."""
        if lacking := [name for name in NEEDED if name not in schema.names]:
            raise OpenError(f"{self._files.uri}: an index without the column {lacking[0]!r} is not one of latentmill")
        if unknown := sorted(set(self._asked or ()) - set(schema.names)):
            since = " (statistics came with format version 2)" if unknown[0] in format.STATISTICS.names else ""
            raise OpenError(f"{self._files.uri} has no column {unknown[0]!r}{since}; it has {', '.join(schema.names)}")
        needs_times = self._is_native and any(map(self._is_asked, DERIVED))
        return [name for name in schema.names if self._is_asked(name) or (needs_times and name == TIMES)]


def write_pinned(rows: pa.Table, uri: str) -> None:
    """Write rows for `Committed.pinned`, with a checksum."""
    rows = rows.set_column(at := rows.schema.get_field_index("file"), "file", rows.column(at).cast(pa.string()))
    content = io.BytesIO()
    with pq.ParquetWriter(content, rows.schema, compression="zstd") as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(checksum.MARK)
    checksum.stamp(content)
    with fsspec.open(uri, "wb") as file:
        file.write(content.getbuffer())


def _starts(file: pq.ParquetFile) -> dict[str, int]:
    """Return the first row of each shard in a sealed index. A shard that occurs twice counts where it occurs last."""
    starts: dict[str, int] = {}
    position, last = 0, None
    for batch in file.iter_batches(BATCH_ROWS, columns=["file"]):
        column = batch.column(0)
        names = [format.shard_of(name) for name in column.dictionary.to_pylist()]
        codes = column.indices.to_numpy()
        for i in (0, *(np.flatnonzero(np.diff(codes)) + 1)) if len(codes) else ():
            if (shard := names[codes[i]]) != last:
                starts.pop(shard, None)
                starts[shard] = position + int(i)
            last = shard
        position += len(codes)
    return starts


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.Table]:
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        batch.validate(full=True)
        yield pa.Table.from_batches([batch])


def _in_order(read: Any, shards: list[str]) -> Iterator[pa.Table]:
    """Yield `read(shard)` of each shard in order; 32 run at once."""
    with ThreadPoolExecutor(32) as pool:
        waiting = iter(shards)
        under_way = [pool.submit(read, shard) for shard in islice(waiting, 64)]
        while under_way:
            yield under_way.pop(0).result()
            under_way += [pool.submit(read, shard) for shard in islice(waiting, 1)]
