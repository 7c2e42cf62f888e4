"""The text of an output: the embeddings that `latentmill text` wrote, read with the latents.

    latents = latentmill.open(uri, text="t5")
    latents[7]["text"]             # Tensor[S, E], no padding, unless the text was made with --pad-tokens
    latents[7]["text_length"]      # tokens of the caption: S without --pad-tokens
    latents.text.empty()           # Tensor[S, E] of the empty prompt, for classifier-free guidance

Opening reads the footer of each text file, which names the place of every embedding, and keeps the places in the cache,
as a Join does. An embedding is then one more byte range of the output, read at the same time as the latents.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentmill import format
from latentmill.errors import EmptySelectionError, NotFoundError, OpenError
from latentmill.index.file import FILE, IndexFile, write_columns
from latentmill.index.selection import Selection
from latentmill.store.cache.kept import Kept
from latentmill.store.files import Files
from latentmill.store.objects import Entry
from latentmill.store.range import Range
from latentmill.store.ranges import RangeReader
from latentmill.tracks.join import PLACE, Join

if TYPE_CHECKING:
    from torch import Tensor

LAYOUT = 2
"""Version of the files in the cache."""

FOOTER_BYTES = 256 << 10
"""How much of the end of a text file is read first: the footer of a file of 200 rows."""

AT_ONCE = 32
"""Footers that are read at once."""

NAME, LENGTH = "text", "text_length"


class Text:
    """The text of an opened output. It pickles."""

    def __init__(self, files: Files, reader: RangeReader, name: str, pad: bool | int = False) -> None:
        """Open the text.

        Args:
            pad: how `collate` pads. False: a batch has a list. True: to the longest of the batch. A number: to it.

        Raises:
            OpenError: there is no such text, or it is of a newer version.
        """
        self._files = files
        self._reader = reader
        self.name = name
        self.pads: dict[str, int | None] = {} if pad is False else {NAME: None if pad is True else pad}
        """The columns that `collate` pads, and their length; None: that of the longest."""
        if not format.TEXT_NAME.fullmatch(name):
            raise OpenError(f"text must be the name of a text, as `latentmill text --name` takes it, got {name!r}")
        self.spec: dict[str, Any] = {}
        """The content of its spec.json: every setting that decided the embeddings."""
        try:
            self.spec = json.loads(files.read(format.text_spec_path(name)))
            version = self.spec["text_version"]
        except NotFoundError:
            raise OpenError(f"{files.uri} has no text {name!r}: {self._remedy()}") from None
        except (ValueError, TypeError, KeyError) as error:
            where = files.address(format.text_spec_path(name))
            raise OpenError(f"{where} is not the spec of a text: {error!r}") from error
        if version != format.TEXT_VERSION:
            raise OpenError(
                f"text {name!r} of {files.uri} has version {version}, this latentmill reads {format.TEXT_VERSION}: "
                "install a newer one"
            )
        if not isinstance(pad, bool) and pad < self.spec["max_length"]:
            raise ValueError(f"pad_text must be at least {self.spec['max_length']}, the longest text, got {pad}")

    def join(self, selection: Selection) -> tuple[Join, Selection]:
        """Return the columns "text" and "text_length" for the rows of an index, and the rows that were not dropped.

        Raises:
            OpenError: some shard of the index has no text yet.
            EmptySelectionError: every row was dropped.
        """
        index = selection.index
        listed = self._listed(index)
        key = json.dumps(
            [LAYOUT, self._files.uri, self.name, index.digest, sorted(entry[:3] for entry in listed.values())]
        )
        name = f"index-text-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        join = Join(Kept.of(selection.cache, name, partial(self._build, index, listed)), self._reader)
        places = [join.file.batch(i).column(f"_{NAME}") for i in range(index.columns.num_batches)]
        kept = np.flatnonzero(np.concatenate([place.is_valid().to_numpy(zero_copy_only=False) for place in places]))
        if not len(kept):
            raise EmptySelectionError(f"text {self.name!r} of {self._files.uri} has no row: all captions are empty")
        return join, selection if len(kept) == index.num_rows else selection.narrowed(kept)

    def empty(self) -> Tensor:
        """Return the embedding of the empty prompt, [S, E], for classifier-free guidance."""
        import torch

        path = format.text_empty_path(self.name)
        (place,) = self._places(path, self._files.list(format.text_of(self.name))[path]).to_pylist()
        one = Range(path, place["byte_offset"], place["byte_length"], place["embedding_crc32"], "of the empty prompt")
        memory = bytearray(one.length)
        (read,) = self._reader.submit([one], [memoryview(memory)])
        read.result()
        dtype: torch.dtype = getattr(torch, place["embedding_dtype"])
        return torch.frombuffer(memory, dtype=dtype).reshape(place["embedding_shape"])

    def _listed(self, index: IndexFile) -> dict[str, Entry]:
        """Return the text file of each shard of the index. Raises OpenError if one is missing."""
        found = self._files.list(format.text_of(self.name))
        shards = sorted({format.shard_of(file) for file in index.files.to_pylist()})
        wanted = [format.text_path(self.name, shard) for shard in shards]
        lacking = [path for path in (*wanted, format.text_empty_path(self.name)) if path not in found]
        if lacking:
            raise OpenError(
                f"text {self.name!r} of {self._files.uri} is not complete: {len(lacking)} of {len(wanted) + 1} files "
                f"are missing, such as {lacking[0]}: {self._remedy()}"
            )
        return {path: found[path] for path in wanted}

    def _remedy(self) -> str:
        """Return the command that makes the text whole, with the settings that it began with."""
        flags = " ".join(_flags(self.spec))
        return (
            f"run `latentmill text --output {self._files.uri} --name {self.name} --encoder FOLDER {flags}".strip() + "`"
        )

    def _build(self, index: IndexFile, listed: dict[str, Entry], folder: Path) -> dict[str, Any]:
        schema = pa.schema([(LENGTH, pa.int32()), (f"_{NAME}", PLACE)])
        write_columns(folder / "rows.arrow", schema, self._tables(index, listed))
        return {"columns": [LENGTH], "tensors": [NAME], "varying": [NAME], "nulls": {}}

    def _tables(self, index: IndexFile, listed: dict[str, Entry]) -> Iterator[pa.Table]:
        """Yield the length and the place of each row, batch by batch of the index. A batch holds few shards."""
        read = lru_cache(maxsize=2 * AT_ONCE)(self._of_shard)
        names = [format.text_path(self.name, format.shard_of(file)) for file in index.files.to_pylist()]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in range(index.columns.num_batches):
                batch = index.columns.batch(number)
                paths = sorted({names[code] for code in pc.unique(batch.column(FILE)).to_pylist()})
                texts = pa.concat_tables(pool.map(lambda path: read(path, listed[path]), paths)).combine_chunks()
                at = pc.index_in(batch.column("id"), value_set=texts["id"].chunk(0))
                if at.null_count:
                    row = batch.column("id")[at.is_null().index(True).as_py()]
                    raise OpenError(f"text {self.name!r} of {self._files.uri} has no row {row}: verify the output")
                yield texts.select([LENGTH, f"_{NAME}"]).take(at)

    def _of_shard(self, path: str, entry: Entry) -> pa.Table:
        """Return the rows of a text file as (id, length, place). The place of a dropped row is null."""
        places = self._places(path, entry)
        parts = {
            "file": pa.repeat(path, len(places)),
            "start": places["byte_offset"],
            "length": places["byte_length"],
            "shape": places["embedding_shape"],
            "dtype": places["embedding_dtype"],
            "crc32": places["embedding_crc32"],
        }
        columns = [_array(part).cast(PLACE.field(name).type) for name, part in parts.items()]
        is_dropped = pc.is_null(_array(places["byte_offset"]))
        place = pa.StructArray.from_arrays(columns, fields=list(PLACE), mask=is_dropped)
        return pa.table({"id": places["id"], LENGTH: places["length"], f"_{NAME}": place})

    def _places(self, path: str, entry: Entry) -> pa.Table:
        start = max(0, entry.size - FOOTER_BYTES)
        tail = self._files.read(path, start)
        try:
            length = int.from_bytes(tail[-8:-4], "little") + 8
            if length > len(tail):
                tail = self._files.read(path, max(0, entry.size - length))
            return format.text_places_of(io.BytesIO(tail))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise OpenError(f"{self._files.address(path)} is not a text file: {error}") from error


def _flags(spec: dict[str, Any]) -> Iterator[str]:
    """Yield the options of `latentmill text` that give this spec, where they are not its defaults."""
    usual = {"dtype": "bfloat16", "layer": "last", "caption_column": "caption", "batch_size": 1, "clean": "none"}
    for name in ("max_length", *usual, "drop_empty", "pad_tokens"):
        if (value := spec.get(name)) not in (None, False, usual.get(name)):
            flag = f"--{name.replace('_', '-')}"
            yield flag if value is True else f"{flag}={shlex.quote(str(value))}"


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
