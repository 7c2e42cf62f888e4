"""Check the texts of an output: each file of text/NAME/ against the rows of its shard and the spec of the text.

spec        spec.json can be read; the footer of each file has the same
rows        the ids and captions of the shard, in its order; only empty captions were dropped, if that was asked for
embeddings  shape, dtype and length as in the spec; crc32; finite values; equal captions share one
places      the footer names the byte range of each embedding
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.format import DTYPES, EMPTY, FOOTER_SHARD, TEXT_SCHEMA, is_finite, text_places_of, text_spec_of
from pipeline.errors import ConfigError, NotFoundError
from pipeline.output import layout
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel
from pipeline.text import spec as specs
from pipeline.text.captions import read_captions, text_names
from pipeline.text.clean import cleaner
from pipeline.text.records import Caption
from pipeline.text.spec import TextSpec
from pipeline.text.stages import is_dropped
from pipeline.verify.findings import Checked


def check_texts(output: Storage, done: set[str]) -> Iterator[Checked]:
    """Check every text. `done` are the shards with a data file. Raises StorageError only."""
    for name in text_names(output):
        found = {shard for shard, _ in layout.list_shards(output, layout.text_of(name))}
        whole = Checked()
        for shard in sorted(found - done - {EMPTY}):
            whole.wrong(layout.text_path(name, shard), "file", "a text", f"none: there is no {layout.data_path(shard)}")
        if lacking := len({*done, EMPTY} - found):
            whole.notes.append(f"text {name}: {lacking} of {len(done) + 1} files remain; `latentmill text` makes them")
        try:
            spec = specs.load(output, name)
            if spec and spec.drop_empty:
                cleaner(spec.clean)
        except ConfigError as error:
            whole.wrong(layout.text_spec_path(name), "spec", error, "the spec of a text")
            spec = None
        else:
            if spec is None:
                whole.wrong(layout.text_spec_path(name), "file", "none", "the spec of the text")
        yield whole
        if spec is not None:
            yield from in_parallel(partial(check_file, output, name, spec), sorted(found & {*done, EMPTY}))


def check_file(output: Storage, name: str, spec: TextSpec, shard: str) -> Checked:
    """Check the text file of a shard. Raises StorageError only."""
    check = _FileCheck(layout.text_path(name, shard), spec)
    try:
        captions = read_captions(output, shard, spec.caption_column)
    except (ConfigError, NotFoundError) as error:
        check.wrong("captions", error, "those of its shard")
        return check.checked
    if check.open(output, shard) and check.has_rows(captions):
        check.captions(captions, shard)
        for number in range(len(captions)):
            check.place(number)
            check.embedding(number)
        check.checked.texts = len(captions)
    return check.checked


class _FileCheck:
    """The check of one file: `open` first."""

    def __init__(self, path: str, spec: TextSpec) -> None:
        self.checked = Checked()
        self._path, self._spec = path, spec
        self._data = b""
        self._rows: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = []

    def open(self, output: Storage, shard: str) -> bool:
        """Read the file and check its footer. Return whether its rows can be read."""
        try:
            self._data = output.read(self._path)
            source = io.BytesIO(self._data)
            self._rows = pq.read_table(source).cast(TEXT_SCHEMA).to_pylist()
            self._places = text_places_of(source).to_pylist()
            spec, footer = text_spec_of(source), pq.read_metadata(source).metadata[FOOTER_SHARD.encode()]
            found = json.loads(footer)["shard"]
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, NotFoundError) as error:
            self.wrong("file", error, "a text file")
            return False
        if spec != self._spec.to_json():
            self.wrong("footer", spec, "the spec of the text")
        if found != shard:
            self.wrong("footer", f"shard {found}", shard)
        return True

    def has_rows(self, captions: Sequence[Caption]) -> bool:
        """Check the number of rows."""
        count = len(captions)
        if len(self._rows) != count or len(self._places) != count:
            self.wrong("rows", f"{len(self._rows)}, and {len(self._places)} places", count)
            return False
        return True

    def captions(self, captions: Sequence[Caption], shard: str) -> None:
        """Check ids, captions, and which row holds the embedding of each caption."""
        first: dict[str | None, int] = {}
        for number, (row, caption) in enumerate(zip(self._rows, captions, strict=True)):
            drops = is_dropped(self._spec, shard, caption.text)
            holder = None if drops else first.setdefault(caption.text, number)
            expected = {"id": caption.id, "caption_sha256": caption.sha256, "embedding_row": holder}
            for column, value in expected.items():
                if row[column] != value:
                    self.wrong(column, row[column], value, number)

    def embedding(self, number: int) -> None:
        """Check the bytes of a row that holds an embedding."""
        row = self._rows[number]
        if row["embedding_row"] != number:
            return
        payload, shape, dtype = row["embedding"] or b"", row["embedding_shape"] or [], row["embedding_dtype"]
        num_tokens = self._spec.max_length if self._spec.pad_tokens else row["length"]
        wanted = [num_tokens, self._spec.encoder["width"]]
        if shape != wanted or not 1 <= row["length"] <= self._spec.max_length:
            self.wrong("embedding_shape", shape, f"{wanted}, at most {self._spec.max_length} tokens", number)
        if dtype != self._spec.dtype:
            self.wrong("embedding_dtype", dtype, self._spec.dtype, number)
        elif len(payload) != prod(shape) * DTYPES[dtype].itemsize:
            self.wrong("embedding", f"{len(payload)} bytes", f"those of {dtype} {shape}", number)
        elif not is_finite(payload, dtype):
            self.wrong("embedding", "NaN or infinity", "finite values", number)
        if (crc := zlib.crc32(payload)) != row["embedding_crc32"]:
            self.wrong("embedding", f"bytes of crc32 {crc}", row["embedding_crc32"], number)

    def place(self, number: int) -> None:
        """Check what the footer says of a row."""
        row, place = self._rows[number], self._places[number]
        for column in ("id", "length", "truncated", "embedding_shape", "embedding_dtype", "embedding_crc32"):
            if place[column] != row[column]:
                self.wrong(f"{column} in the footer", place[column], row[column], number)
        if row["embedding_row"] is not None:
            start, length = place["byte_offset"] or 0, place["byte_length"] or 0
            if zlib.crc32(self._data[start : start + length]) != row["embedding_crc32"]:
                self.wrong("byte_offset", f"{start}, where other bytes are", "the embedding", number)

    def wrong(self, what: str, found: object, expected: object, row: int | None = None) -> None:
        self.checked.wrong(self._path, what, found, expected, row)
