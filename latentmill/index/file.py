"""Keep the index of an output in a folder of local files that each process of a machine maps into memory.

    rows.arrow     Arrow IPC: record batches of BATCH_ROWS rows each, the last one shorter
    files.arrow    Arrow IPC: the file names; the column `_file` holds their numbers
    facts.json     {"digest", "num_rows", "shapes", "nulls"}, and what `Kept` checks

Ten million rows take next to no memory of the process itself: processes share the page cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentmill.store.cache.kept import Kept

BATCH_ROWS = 1 << 16

FILE, SHAPE = "_file", "_shape"
"""Columns of codes: positions in files.arrow, and in the shapes of facts.json."""

Rows = npt.NDArray[np.int64]


class ColumnFile:
    """Columns of a table in a mapped Arrow file. A row is found by its number in constant time."""

    def __init__(self, content: pa.Buffer) -> None:
        self._reader = pa.ipc.open_file(pa.BufferReader(content))
        self.schema: pa.Schema = self._reader.schema
        self.num_batches: int = self._reader.num_record_batches
        self._batches: dict[int, pa.RecordBatch] = {}
        self._arrays: dict[tuple[str, int], pa.Array] = {}
        self._views: dict[tuple[str, int], npt.NDArray[Any]] = {}

    def batch(self, number: int) -> pa.RecordBatch:
        """Return the batch that begins at row BATCH_ROWS * number. Nothing is copied."""
        if (batch := self._batches.get(number)) is None:
            batch = self._batches[number] = self._reader.get_batch(number)
        return batch

    def numbers(self, column: str, rows: Sequence[int] | Rows) -> npt.NDArray[Any]:
        """Return the values of a numeric column without nulls at the given rows."""
        picked = []
        for row in rows:
            number, at = divmod(int(row), BATCH_ROWS)
            if (view := self._views.get((column, number))) is None:
                view = self._views[column, number] = self._array(column, number).to_numpy(zero_copy_only=True)
            picked.append(view[at])
        return np.array(picked)

    def values(self, column: str, rows: Sequence[int] | Rows) -> list[Any]:
        """Return the values of any column at the given rows, as Python objects."""
        places = (divmod(int(row), BATCH_ROWS) for row in rows)
        return [self._array(column, number)[at].as_py() for number, at in places]

    def _array(self, column: str, number: int) -> pa.Array:
        if (array := self._arrays.get((column, number))) is None:
            array = self._arrays[column, number] = self.batch(number).column(column)
        return array

    def whole(self, column: str) -> npt.NDArray[Any]:
        """Return a copy of a numeric column without nulls."""
        parts = [self.batch(i).column(column).to_numpy(zero_copy_only=True) for i in range(self.num_batches)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def write_columns(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables as one column file, and return the number of rows. Holds a few batches in memory."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _evenly(tables):
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


def _evenly(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of BATCH_ROWS."""
    pending: list[pa.Table] = []
    num_rows = 0
    for table in tables:
        pending.append(table)
        num_rows += len(table)
        if num_rows >= BATCH_ROWS:
            whole = pa.concat_tables(pending)
            even = num_rows - num_rows % BATCH_ROWS
            for start in range(0, even, BATCH_ROWS):
                yield whole.slice(start, BATCH_ROWS).combine_chunks().to_batches()[0]
            pending, num_rows = [whole.slice(even)], num_rows - even
    if num_rows:
        yield pa.concat_tables(pending).combine_chunks().to_batches()[0]


class IndexFile:
    """An opened index. It pickles by path, and is checked again where it is unpickled."""

    def __init__(self, kept: Kept) -> None:
        self.folder = kept.folder
        facts = kept.facts
        self.digest: str = facts["digest"]
        """The hash of the ids, shapes and checksums of all rows in order. It does not depend on their files."""
        self.num_rows: int = facts["num_rows"]
        self.shapes: list[tuple[str, tuple[int, ...]]] = [(dtype, tuple(shape)) for dtype, shape in facts["shapes"]]
        """Each (dtype, shape) of a latent; the column `_shape` holds positions in this list."""
        self.nulls: dict[str, int] = facts["nulls"]
        """The number of missing values of each column."""
        self.columns = ColumnFile(kept.files["rows.arrow"])
        self._files = pa.ipc.open_file(pa.BufferReader(kept.files["files.arrow"]))
        self.files: pa.Array = self._files.get_batch(0).column(0)

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(Kept(folder))  # type: ignore[misc]

    def batch(self, number: int) -> pa.RecordBatch:
        """Return a record batch for people and filters: names and shapes in place of codes."""
        batch = self.columns.batch(number)
        shapes = pa.array([list(shape) for _, shape in self.shapes], pa.list_(pa.int32()))
        dtypes = pa.array([dtype for dtype, _ in self.shapes], pa.string())
        columns = {name: batch.column(name) for name in batch.schema.names if name not in (FILE, SHAPE)}
        columns["latent_shape"] = shapes.take(batch.column(SHAPE))
        columns["latent_dtype"] = dtypes.take(batch.column(SHAPE))
        columns["file"] = pa.DictionaryArray.from_arrays(batch.column(FILE), self.files)
        return pa.RecordBatch.from_pydict(columns)

    @property
    def schema(self) -> pa.Schema:
        """The schema of `batch`."""
        hidden = [self.columns.schema.get_field_index(name) for name in (FILE, SHAPE)]
        fields = [field for i, field in enumerate(self.columns.schema) if i not in hidden]
        shown = {
            "latent_shape": pa.list_(pa.int32()),
            "latent_dtype": pa.string(),
            "file": pa.dictionary(pa.int32(), pa.string()),
        }
        return pa.schema([*fields, *(pa.field(name, type_) for name, type_ in shown.items())])
