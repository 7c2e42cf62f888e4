"""Check the rows of an index, and replace its repeated values by codes: files, and shapes with their dtype."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentmill import format
from latentmill.errors import OpenError
from latentmill.index.file import FILE, SHAPE
from latentmill.store.files import Files
from latentmill.store.objects import Entry

TYPES = {
    "id": pa.string(),
    "latent_shape": format.SCHEMA.field("latent_shape").type,
    "latent_dtype": pa.string(),
    "latent_crc32": pa.uint32(),
} | {field.name: field.type for field in format.INDEX_COLUMNS}
"""The columns that every index has."""


class Coder:
    """Turns tables of an index into tables of an IndexFile. Checks each row and hashes them all."""

    def __init__(self, files: Files, listed: dict[str, Entry]) -> None:
        self._place = files.uri
        self._listed = listed
        self.files: dict[str, int] = {}
        self.shapes: dict[tuple[str, tuple[int, ...]], int] = {}
        self.nulls: dict[str, int] = {}
        self._digests = [hashlib.blake2b(digest_size=16) for _ in range(3)]

    @property
    def digest(self) -> str:
        """The hash of the rows so far."""
        shapes = json.dumps(list(self.shapes))
        return hashlib.blake2b(
            b"".join(one.digest() for one in self._digests) + shapes.encode(), digest_size=16
        ).hexdigest()

    def coded(self, table: pa.Table) -> pa.Table:
        """Return the same rows with codes in place of file, shape and dtype. Raises OpenError for what is no index."""
        table = self._typed(table).combine_chunks()
        shapes = self._shape_codes(table)
        codes = pa.array(self._file_codes(table), pa.int32())
        for digest, values in zip(self._digests, (None, table["latent_crc32"].to_numpy(), shapes), strict=True):
            digest.update(_text_bytes(table["id"]) if values is None else np.ascontiguousarray(values).tobytes())
        hidden = ("file", "latent_shape", "latent_dtype")
        columns = {name: table[name] for name in table.column_names if name not in hidden}
        for name, column in columns.items():
            self.nulls[name] = self.nulls.get(name, 0) + column.null_count
        return pa.table(columns | {FILE: codes, SHAPE: pa.array(shapes)})

    def _typed(self, table: pa.Table) -> pa.Table:
        """Return the table with the needed columns in the types of the format, none of them null."""
        for name, type_ in TYPES.items():
            column = table[name]
            found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if column.null_count:
                raise OpenError(f"{self._place}: the index has a row without {name}")
            if found != type_:
                try:
                    column = column.cast(type_)
                except pa.ArrowException as error:
                    raise OpenError(f"{self._place}: {name} of the index is {found}, and not {type_}") from error
                table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    def _file_codes(self, table: pa.Table) -> npt.NDArray[np.int32]:
        column = table["file"]
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        parts = [np.empty(0, np.int32)]
        for chunk in column.chunks:
            lookup = [self._file_code(name) for name in chunk.dictionary.to_pylist()]
            parts.append(np.array(lookup, np.int32)[chunk.indices.to_numpy()])
        return np.concatenate(parts)

    def _file_code(self, name: str) -> int:
        if name not in self.files and name not in self._listed:
            raise OpenError(f"{self._place}: the index has rows of {name}, which is not there")
        return self.files.setdefault(name, len(self.files))

    def _shape_codes(self, table: pa.Table) -> npt.NDArray[np.int16]:
        dtype = table["latent_dtype"]
        if pa.types.is_dictionary(dtype.type):
            dtype = dtype.cast(pa.string())
        if not len(table):
            return np.empty(0, np.int16)
        found, lengths = _runs(table["latent_shape"]), table["byte_length"].to_numpy()
        kinds = dtype.dictionary_encode().combine_chunks()
        kinds = kinds.chunk(0) if isinstance(kinds, pa.ChunkedArray) else kinds
        keys = kinds.indices.to_numpy().astype(np.int64) * len(found[0]) + found[1]
        values, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        codes = np.empty(len(values), np.int16)
        for i in np.argsort(first):  # codes follow the first occurrence, so they do not depend on where tables are cut
            value = values[i]
            name, shape = kinds.dictionary[value // len(found[0])].as_py(), found[0][value % len(found[0])]
            if name not in format.DTYPES:
                raise OpenError(f"{self._place}: dtype {name!r} is not one of {', '.join(format.DTYPES)}")
            if not shape or min(shape) < 1:
                raise OpenError(f"{self._place}: the index has a latent of shape {shape}")
            size = int(np.prod(shape)) * format.DTYPES[name].itemsize
            if (lengths[inverse == i] != size).any():
                raise OpenError(f"{self._place}: a latent {shape} of {name} has {size} bytes, the index says otherwise")
            codes[i] = self.shapes.setdefault((name, shape), len(self.shapes))
        return codes[inverse]


def _runs(shapes: pa.ChunkedArray) -> tuple[list[tuple[int, ...]], npt.NDArray[np.int64]]:
    """Return (distinct shapes, which of them each row has)."""
    array = shapes.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    ranks = array.value_lengths().to_numpy()
    values = array.flatten().to_numpy().astype(np.int64)
    if (ranks == 4).all() and values.size and values.max() < 1 << 15:
        keys = values.reshape(-1, 4) @ np.array([1 << 45, 1 << 30, 1 << 15, 1])
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        return [tuple(int(n) for n in values[4 * i : 4 * i + 4]) for i in first], inverse
    places: dict[tuple[int, ...], int] = {}
    codes = [places.setdefault(tuple(shape), len(places)) for shape in array.to_pylist()]
    return list(places), np.array(codes, np.int64)


def _text_bytes(column: pa.ChunkedArray) -> bytes:
    """Return the texts of a column, one after the other."""
    parts = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        if len(chunk) and data:
            begins = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            parts.append(data[int(begins[0]) : int(begins[-1])].to_pybytes())
    return b"".join(parts)
