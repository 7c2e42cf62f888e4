"""Open the index of an output: read the rows that are committed now, check them, and keep an IndexFile in the cache.

The list of `data/` decides which shards there are. `index.parquet` holds most of their rows; the others come from
`index/`, or from the data file itself where `index/` lacks it. Rows are sorted by shard, so the same shards give the
same order, whatever they were read from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentmill import format
from latentmill.errors import OpenError, ReadError
from latentmill.index.codes import Coder
from latentmill.index.committed import SEAL, Committed, GrownError
from latentmill.index.file import IndexFile, write_columns
from latentmill.store.cache.kept import Kept
from latentmill.store.files import Files
from latentmill.store.objects import Entry

LAYOUT = 2
"""Version of the files that IndexFile reads. A change makes new files in the cache."""


def open_index(
    files: Files, columns: Sequence[str] | None, cache: Path, index: str | None = None, *, is_native: bool = False
) -> IndexFile:
    """Return the index of the output at `files`.

    Args:
        columns: the columns to open beside NEEDED. None: all but WIDE.
        cache: a folder on a local disk that this user alone may write.
        index: path or URL of a Parquet file with the rows to open, in place of those committed now.
        is_native: the clips have consecutive source frames (`--fps native`), so that their rates are not stored.
    """
    while True:
        with contextlib.suppress(GrownError):
            return _open_listed(files, columns, cache, index, is_native)


def _open_listed(
    files: Files, columns: Sequence[str] | None, cache: Path, index: str | None, is_native: bool
) -> IndexFile:
    listed = files.list(format.DATA)
    names = sorted(columns) if columns is not None else None
    found = [entry[:3] for entry in listed.values()]  # without the time of the store's clock
    key = json.dumps([LAYOUT, files.uri, found, names, index and _digest_of_file(index), is_native])
    name = f"index-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return IndexFile(Kept.of(cache, name, partial(_build, files, listed, columns, index, is_native)))


def _build(
    files: Files,
    listed: dict[str, Entry],
    columns: Sequence[str] | None,
    index: str | None,
    is_native: bool,
    folder: Path,
) -> dict[str, Any]:
    source = Committed(files, listed, columns, folder, is_native=is_native)
    tables = map(source.finished, source.pinned(index) if index else source.tables())
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
    (folder / SEAL).unlink(missing_ok=True)
    return {"digest": coder.digest, "num_rows": num_rows, "shapes": list(coder.shapes), "nulls": coder.nulls}


def _chain(first: pa.Table, rest: Iterable[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _digest_of_file(uri: str) -> str:
    place, _, name = uri.rpartition("/")
    try:
        return hashlib.sha256(Files(place or ".").read(name)).hexdigest()
    except ReadError as error:
        raise OpenError(f"index={uri}: {error}") from error
