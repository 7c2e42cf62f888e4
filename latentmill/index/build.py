"""Open the index of an output: read the rows that are committed now, check them, and keep an IndexFile in the cache.

The list of `data/` decides which shards there are. `index.parquet` holds most of their rows; the others come from
`index/`, or from the data file itself where `index/` lacks it. Rows are sorted by shard, so the same shards give the
same order, whatever they were read from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import uuid
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentmill import format
from latentmill.errors import NotFoundError, OpenError, ReadError
from latentmill.files import Entry, Files
from latentmill.index.codes import Coder
from latentmill.index.file import BATCH_ROWS, IndexFile, write_columns

NEEDED = ("id", "latent_shape", "latent_dtype", "latent_crc32", "file", "byte_offset", "byte_length")
"""Columns that are always opened."""
WIDE = ("source_uri", "timestamps_sec", "source_json", "extra_json", "npy_file", "npy_row", *format.STATISTICS.names)
"""Columns that are opened on request only: at ten million rows they take gigabytes."""

KEPT_SECONDS = 30 * 86400
"""An index in the cache is deleted when nobody has opened it for this long."""

LAYOUT = 1
"""Version of the files that IndexFile reads. A change makes new files in the cache."""


class _GrownError(Exception):
    """The seal has shards that were committed after `data/` was listed: list again."""


def open_index(files: Files, columns: Sequence[str] | None, cache: Path, index: str | None = None) -> IndexFile:
    """Return the index of the output at `files`.

    Args:
        columns: the columns to open beside NEEDED. None: all but WIDE.
        cache: a folder on a local disk.
        index: path or URL of a Parquet file with the rows to open, in place of those committed now.
    """
    while True:
        with contextlib.suppress(_GrownError):
            return _open_listed(files, columns, cache, index)


def _open_listed(files: Files, columns: Sequence[str] | None, cache: Path, index: str | None) -> IndexFile:
    listed = files.list(format.DATA)
    names = sorted(columns) if columns is not None else None
    key = json.dumps([LAYOUT, files.uri, list(listed.items()), names, index and _digest_of_file(index)])
    folder = cache / f"index-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    with contextlib.suppress(OSError):
        return _opened(folder)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with one_at_a_time(folder.with_suffix(".lock")):
        with contextlib.suppress(OSError):
            return _opened(folder)
        _sweep(cache)
        building = Path(tempfile.mkdtemp(prefix=f"building-{uuid.uuid4().hex}-", dir=cache))
        try:
            _build(files, listed, columns, building, index)
            with contextlib.suppress(OSError):  # another process was faster
                building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return _opened(folder)


def default_cache() -> Path:
    """Return $LATENTMILL_CACHE, or else a folder of this user in the folder for temporary files."""
    if place := os.environ.get("LATENTMILL_CACHE"):
        return Path(place)
    folder = Path(tempfile.gettempdir()) / f"latentmill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise OpenError(f"{folder} belongs to somebody else: set LATENTMILL_CACHE to a folder of your own")
    return folder


def _opened(folder: Path) -> IndexFile:
    index = IndexFile(folder)
    os.utime(folder)
    return index


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process of this machine build while the others wait.

    The kernel frees the lock when a process dies. On a disk without locks, several processes build the same index.
    """
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(cache: Path) -> None:
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS and path.name.startswith(("index-", "building-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build(
    files: Files, listed: dict[str, Entry], columns: Sequence[str] | None, folder: Path, index: str | None
) -> None:
    source = _Committed(files, listed, columns, folder)
    tables = source.pinned(index) if index else source.tables()
    first = next(tables, None)
    if first is None:
        raise OpenError(f"{files.uri} holds no committed row yet")
    coder = Coder(files, listed)
    coded = map(coder.coded, _chain(first, tables))
    head = next(coded)
    num_rows = write_columns(folder / "rows.arrow", head.schema, _chain(head, coded))
    if not num_rows:
        raise OpenError(f"{files.uri} holds no committed row yet: every clip of its {len(listed)} shards was rejected")
    names = pa.table({"file": pa.array(list(coder.files), pa.string())}).combine_chunks()
    with pa.OSFile(str(folder / "files.arrow"), "wb") as sink, pa.ipc.new_file(sink, names.schema) as writer:
        writer.write_batch(names.to_batches()[0])
    facts = {"digest": coder.digest, "num_rows": num_rows, "shapes": list(coder.shapes), "nulls": coder.nulls}
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "parquet").unlink(missing_ok=True)


class _Committed:
    """The committed rows of an output, table by table, sorted by shard."""

    def __init__(self, files: Files, listed: dict[str, Entry], columns: Sequence[str] | None, folder: Path) -> None:
        self._files = files
        self._listed = listed
        self._shards = sorted(format.shard_of(path) for path in listed if path.endswith(".parquet"))
        self._asked = columns
        self._folder = folder

    def tables(self) -> Iterator[pa.Table]:
        """Yield the sealed rows, and between them those of the shards that the seal lacks."""
        sealed = self._sealed()
        starts = _starts(sealed) if sealed else {}
        if list(starts) != sorted(starts):
            sealed, starts = None, {}
        if gone := set(starts) - set(self._shards):
            name = format.data_path(min(gone))
            if name in self._files.list(format.DATA):
                raise _GrownError
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
        """Yield the rows of a file that `save_index` wrote."""
        place, _, name = uri.rpartition("/")
        with Files(place or ".").open(name) as source:
            file = pq.ParquetFile(source)
            yield from _batches(file, self._columns(file.schema_arrow))

    def _sealed(self) -> pq.ParquetFile | None:
        try:
            path = self._files.download(format.SEAL_PATH, self._folder / "parquet")
            return pq.ParquetFile(path, read_dictionary=["file", "latent_dtype"])
        except (NotFoundError, FileNotFoundError):
            return None
        except pa.ArrowException as error:
            raise OpenError(f"{self._files.address(format.SEAL_PATH)} is not an index: {error}") from error

    def _of_shard(self, shard: str) -> pa.Table:
        try:
            data = self._files.read(format.index_path(shard))
        except NotFoundError:  # the index is written after the data file; its writer may have died before
            data = b""
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            facts = json.loads((file.metadata.metadata or {}).get(format.FOOTER_DERIVED.encode(), b"{}"))
            size = self._listed[format.data_path(shard)].size
            if facts.get("data_bytes", size) != size:
                raise ValueError("of another data file")
            table = file.read()
        except (pa.ArrowException, OSError, ValueError):  # damaged
            with self._files.open(format.data_path(shard)) as source:
                table = format.index_of(source, shard)
        return table.select(self._columns(table.schema))

    def _columns(self, schema: pa.Schema) -> list[str]:
        if lacking := [name for name in NEEDED if name not in schema.names]:
            raise OpenError(f"{self._files.uri}: an index without the column {lacking[0]!r} is not one of latentmill")
        if self._asked is None:
            return [name for name in schema.names if name not in WIDE]
        if unknown := sorted(set(self._asked) - set(schema.names)):
            since = " (statistics came with format version 2)" if unknown[0] in format.STATISTICS.names else ""
            raise OpenError(f"{self._files.uri} has no column {unknown[0]!r}{since}; it has {', '.join(schema.names)}")
        return [name for name in schema.names if name in NEEDED or name in self._asked]


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
        yield pa.Table.from_batches([batch])


def _in_order(read: Any, shards: list[str]) -> Iterator[pa.Table]:
    """Yield `read(shard)` of each shard in order; 32 run at once."""
    with ThreadPoolExecutor(32) as pool:
        waiting = iter(shards)
        under_way = [pool.submit(read, shard) for shard in islice(waiting, 64)]
        while under_way:
            yield under_way.pop(0).result()
            under_way += [pool.submit(read, shard) for shard in islice(waiting, 1)]


def _chain(first: pa.Table, rest: Iterable[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _digest_of_file(uri: str) -> str:
    place, _, name = uri.rpartition("/")
    try:
        return hashlib.sha256(Files(place or ".").read(name)).hexdigest()
    except ReadError as error:
        raise OpenError(f"index={uri}: {error}") from error
