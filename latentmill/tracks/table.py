"""Join another Parquet table to the rows of an output: captions, scores, embeddings.

    latents.join("text", "s3://embeddings/t5", on="id")

Columns become `<name>_<column>`. There are two kinds:

    values    numbers, texts and small lists. They are copied next to the index
    tensors   a binary column `x` with `x_shape`, `x_dtype` (and `x_crc32`), written as an output's latents are:
              uncompressed, one row a row group, one value a page. They stay in the table, and byte ranges are read
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentmill import format
from latentmill.errors import EmptySelectionError, NotFoundError, OpenError
from latentmill.index.file import BATCH_ROWS, IndexFile, write_columns
from latentmill.index.selection import Selection
from latentmill.store.cache.kept import Kept, publish
from latentmill.store.cache.private_files import building
from latentmill.store.files import Files
from latentmill.store.ranges import RangeReader
from latentmill.tracks.join import PARTS, PLACE, Join

Table = str | Path | Any
"""A path, a URL or a pyarrow.Table."""
Missing = Literal["raise", "drop", "null"]

VALUE_BYTES = 64 << 10
"""A column with larger values on average must be a tensor, so that it can stay in the table."""

LAYOUT = 2
"""Version of the files in the cache."""


def joined(
    selection: Selection,
    name: str,
    table: Table,
    *,
    on: str,
    missing: Missing,
    storage_options: dict[str, Any] | None = None,
) -> tuple[Join, Selection]:
    """See `LatentDataset.join`. Return the joined columns, and the rows that are kept."""
    if not name.isidentifier():
        raise OpenError(f"a join needs a name of its own that is an identifier, got {name!r}")
    if missing not in ("raise", "drop", "null"):
        raise OpenError(f"missing must be 'raise', 'drop' or 'null', got {missing!r}")
    source = _Source(table, storage_options)
    theirs = source.table(on)
    places = _partners(selection.index, theirs, on)
    selected = selection.all_numbers()
    alone = selected[places[selected] < 0]
    if len(alone) and missing == "raise":
        values = selection.index.columns.values(on, alone[:3])
        raise OpenError(
            f"{source.label} has no row for {len(alone)} of {len(selection)}, such as {on} = {values}; "
            "missing='drop' leaves them out, 'null' keeps them"
        )
    made = _write(selection.cache, name, theirs, places, on, source)
    reader = RangeReader(source.files, concurrency=4 if source.files.root else 32) if source.files else None
    if len(alone) == len(selection) and missing == "drop":
        raise EmptySelectionError(f"{source.label} has no row for any of {len(selection)}")
    is_smaller = len(alone) > 0 and missing == "drop"
    return Join(made, reader), selection.narrowed(selected[places[selected] >= 0]) if is_smaller else selection


class _Source:
    """The table to join: in memory, a file, or a folder of files."""

    def __init__(self, table: Table, storage_options: dict[str, Any] | None) -> None:
        self.files: Files | None = None
        self._given: pa.Table | None = None
        self._names: list[str] = []
        self.label = "the table"
        if isinstance(table, pa.Table):
            self._given = table
            return
        self.label = str(table).rstrip("/")
        place, _, last = self.label.rpartition("/")
        if last.endswith(".parquet"):
            self.files, self._names = Files(place or ".", storage_options), [last]
        else:
            self.files = Files(self.label, storage_options)
            self._names = [path for path in self.files.list("") if path.endswith(".parquet")]
            if not self._names:
                raise OpenError(f"{self.label} holds no Parquet file")

    def table(self, on: str) -> pa.Table:
        """Return all rows. The column `_<name>` has the byte range of a tensor, a struct of PARTS, in its place."""
        if self._given is not None:
            tables = [self._given]
        else:
            assert self.files
            tables = [self._placed(name) for name in self._names]
        whole = pa.concat_tables(tables, promote_options="default")
        if on not in whole.column_names:
            raise OpenError(f"{self.label} has no column {on!r}; it has {', '.join(whole.column_names)}")
        for column in whole.column_names:
            if column != on and len(whole) and whole[column].nbytes / len(whole) > VALUE_BYTES:
                raise OpenError(
                    f"{self.label}: column {column!r} has {whole[column].nbytes // len(whole)} bytes a row, more than "
                    f"{VALUE_BYTES}: write it as a tensor ({column}, {column}_shape, {column}_dtype; uncompressed, one "
                    "row a row group)"
                )
        return whole

    def _placed(self, name: str) -> pa.Table:
        assert self.files
        try:
            with self.files.open(name) as source:
                file = pq.ParquetFile(source)
                names = file.schema_arrow.names
                tensors = [n for n in names if {f"{n}_shape", f"{n}_dtype"} <= set(names) and _is_binary(file, n)]
                hidden = {f"{n}{suffix}" for n in tensors for suffix in ("", "_shape", "_dtype", "_crc32")}
                table = file.read(columns=[n for n in names if n not in hidden])
                for tensor in tensors:
                    table = table.append_column(f"_{tensor}", self._places(file, name, tensor))
                return table.replace_schema_metadata(None)
        except (pa.ArrowException, FileNotFoundError, NotFoundError) as error:
            raise OpenError(f"{self.files.address(name)} is not a Parquet file: {error}") from error

    def _places(self, file: pq.ParquetFile, name: str, column: str) -> pa.Array:
        has_crc = f"{column}_crc32" in file.schema_arrow.names
        facts = file.read(columns=[f"{column}_shape", f"{column}_dtype", *([f"{column}_crc32"] if has_crc else [])])
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        leaf = leaves.index(column)
        places: list[dict[str, Any] | None] = []
        for i, row in enumerate(facts.to_pylist()):
            shape, dtype = row[f"{column}_shape"], row[f"{column}_dtype"]
            if shape is None:
                places.append(None)
                continue
            if dtype not in format.DTYPES:
                raise OpenError(f"{self.label}: dtype {dtype!r} of {column!r} is not one of {', '.join(format.DTYPES)}")
            length = int(np.prod(shape)) * format.DTYPES[dtype].itemsize
            chunk = file.metadata.row_group(i).column(leaf) if i < file.metadata.num_row_groups else None
            if file.metadata.num_row_groups != len(facts) or chunk is None or chunk.compression != "UNCOMPRESSED":
                raise OpenError(
                    f"{self.files and self.files.address(name)}: column {column!r} must be uncompressed, one row a row "
                    "group, one value a page (write_batch_size=1, use_dictionary=False), to be read by ranges"
                )
            start = chunk.data_page_offset + chunk.total_compressed_size - length
            values = (name, start, length, shape, dtype, row.get(f"{column}_crc32"))
            places.append(dict(zip(PARTS, values, strict=True)))
        return pa.array(places, PLACE)


def _is_binary(file: pq.ParquetFile, name: str) -> bool:
    type_ = file.schema_arrow.field(name).type
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _partners(index: IndexFile, theirs: pa.Table, on: str) -> npt.NDArray[np.int64]:
    """Return, for each row of the index, its row in the table; -1: there is none."""
    columns = index.columns
    if on not in columns.schema.names or on.startswith("_"):
        raise OpenError(f"the output has no column {on!r} to join on; open it with columns=[{on!r}, ...]")
    keys = theirs[on].combine_chunks()
    keys = keys.chunk(0) if isinstance(keys, pa.ChunkedArray) else keys
    if len(pc.unique(keys)) != len(keys):
        raise OpenError(f"the table has more than one row for some {on!r}: a join needs at most one")
    type_ = columns.schema.field(on).type
    keys = keys.cast(type_)
    found = [pc.index_in(columns.batch(i).column(on), value_set=keys) for i in range(columns.num_batches)]
    return np.concatenate([rows.fill_null(-1).to_numpy(zero_copy_only=False) for rows in found]).astype(np.int64)


def _write(cache: Path, name: str, theirs: pa.Table, places: npt.NDArray[np.int64], on: str, source: _Source) -> Kept:
    """Write the values in the order of the index, and return the folder, which is named by its content."""
    fields = {column: column for column in theirs.column_names if column != on and not column.startswith("_")}
    tensors = [column[1:] for column in theirs.column_names if column.startswith("_")]
    renamed = {f"{name}_{column}": column for column in fields}
    renamed |= {f"_{name}_{column}": f"_{column}" for column in tensors}
    if not renamed:
        raise OpenError(f"{source.label} has no column but {on!r}")
    schema = pa.schema([pa.field(new, theirs.schema.field(old).type) for new, old in renamed.items()])
    nulls = dict.fromkeys(renamed, 0)

    def tables() -> Iterator[pa.Table]:
        for begin in range(0, len(places), BATCH_ROWS):
            chosen = places[begin : begin + BATCH_ROWS]
            taken = theirs.take(pa.array(chosen, mask=chosen < 0))
            table = pa.table([taken[old] for old in renamed.values()], schema=schema)
            for column in table.column_names:
                nulls[column] += table[column].null_count
            yield table

    with building(cache) as folder:
        write_columns(folder / "rows.arrow", schema, tables())
        varying = [f"{name}_{t}" for t in tensors if nulls[f"_{name}_{t}"] or _num_shapes(theirs[f"_{t}"]) > 1]
        columns, names = [f"{name}_{column}" for column in fields], [f"{name}_{tensor}" for tensor in tensors]
        facts = {"columns": columns, "tensors": names, "varying": varying, "nulls": nulls}
        return publish(folder, cache / f"index-join-{_digest(folder, facts)}", facts)


def _num_shapes(places: pa.ChunkedArray) -> int:
    return len({(tuple(place["shape"]), place["dtype"]) for place in places.to_pylist() if place})


def _digest(folder: Path, facts: dict[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps([LAYOUT, facts]).encode(), digest_size=16)
    with (folder / "rows.arrow").open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
