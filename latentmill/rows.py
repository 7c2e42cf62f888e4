"""Rows: which rows of an output are selected, what each holds, and where its bytes are. Reads nothing but the index.

Rows are frozen: every method that selects some of them, or changes what they hold, returns new ones. They keep the
order of the output: by shard, then as in the source.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from latentmill.errors import EmptySelectionError, OpenError
from latentmill.index.committed import write_pinned
from latentmill.index.file import FILE, SHAPE, ColumnFile, IndexFile
from latentmill.index.selection import Bucket, Selection, kept_rows
from latentmill.store.range import Range
from latentmill.store.ranges import RangeReader
from latentmill.tracks.join import Join, Kind
from latentmill.tracks.table import Missing, Table, joined
from latentmill.tracks.text import LENGTH, NAME, Text

ROW_COLUMNS = ("id", "key", "caption", "num_frames", "height", "width", "fps", "start_sec", "end_sec")
"""What a row holds beside the latent, unless `columns` or `select` say otherwise."""

Draw = Literal["sample", "mean", "moments"]
Damaged = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rows:
    """Rows of an output. They pickle into workers, which map the same index and read for themselves."""

    selection: Selection
    """The rows of the index that are selected."""
    reader: RangeReader
    spec: dict[str, Any]
    """The content of `spec.json`: every setting that decided the bytes of the output."""
    columns: tuple[str, ...]
    """The columns that a row has beside "latent"."""
    damaged: Damaged = "raise"
    """What happens to a row whose bytes are wrong."""
    joins: Mapping[str, Join] = field(default_factory=dict)
    """The joined tables by name."""
    text: Text | None = None
    """The text of `open(..., text=)`."""
    is_unscaled: bool = False
    chosen_draw: Draw | None = None
    """The choice of `posterior`."""

    def __len__(self) -> int:
        return len(self.selection)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{'x'.join(map(str, shape))}: {count}" for shape, count in self.shapes.items())
        return f"<{type(self).__name__} of {len(self)} rows, {shapes}>"

    @property
    def index(self) -> IndexFile:
        """The index of all rows, whether they are selected or not."""
        return self.selection.index

    @property
    def cache(self) -> Path:
        """The folder for local copies."""
        return self.selection.cache

    @property
    def digest(self) -> str:
        """A hash of the selected rows in order: ids, shapes, checksums. Ranks with equal digests have equal rows."""
        return self.selection.digest

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        """The number of rows of each stored latent shape (C, T', H', W')."""
        counts: Counter[tuple[int, ...]] = Counter()
        for bucket in self.buckets:
            counts[bucket.shape] += bucket.num_rows
        return dict(counts)

    @property
    def buckets(self) -> list[Bucket]:
        """The rows of each shape, sorted by shape."""
        return self.selection.buckets

    @property
    def stored_posterior(self) -> str:
        """What the output stores: "mean", "sample" (one seeded draw), or "moments" (mean and log-variance)."""
        return str(self.spec["latent"]["posterior"])

    @property
    def draw(self) -> str:
        """What a row's latent is: the choice of `posterior`; else "sample" for stored moments, or what is stored."""
        return self.chosen_draw or ("sample" if self.stored_posterior == "moments" else self.stored_posterior)

    @property
    def survive_fork(self) -> bool:
        """Whether a worker that is forked can read these rows."""
        readers = [self.reader, *(join.reader for join in self.joins.values() if join.tensors)]
        return all(reader.survives_fork for reader in readers)

    def posterior(self, draw: Draw) -> Self:
        """Choose what a row makes of stored moments.

        Args:
            draw: "sample": mean + std * noise; the noise follows from (seed, epoch, id), so each epoch has its own.
                "mean": the mean. Both are scaled as the Spec says. "moments": mean and log-variance as stored,
                unscaled, one after the other on the channel axis, [2C, T', H', W'].

        Raises:
            OpenError: the output stores no moments, and `draw` is not what it stores.
        """
        if draw not in ("sample", "mean", "moments"):
            raise OpenError(f"posterior must be 'sample', 'mean' or 'moments', got {draw!r}")
        if self.stored_posterior not in ("moments", draw):
            raise OpenError(
                f"posterior {draw!r} needs an output of --posterior moments; this one holds {self.stored_posterior!r}"
            )
        return replace(self, chosen_draw=draw)

    def unscaled(self) -> Self:
        """Undo the scaling of the Spec, z = latent / scale + shift: the latents that the VAE gives and takes."""
        return replace(self, is_unscaled=True)

    def select(self, columns: Sequence[str]) -> Self:
        """Choose the columns that rows have beside the latent and the id.

        Raises:
            OpenError: a column is unknown or was not opened.
        """
        names = tuple(dict.fromkeys(("id", *columns)))
        self._check_columns(names)
        return replace(self, columns=names)

    def where(self, expression: pa.dataset.Expression) -> Self:
        """Keep the rows for which an expression over the columns of the index is true: `pc.field("height") == 480`.

        Raises:
            EmptySelectionError: the expression keeps no row.
            OpenError: the expression names an unknown column, or compares values that cannot be compared.
        """
        batches = (self._whole_batch(number) for number in range(self.index.columns.num_batches))
        selection = self.selection.narrowed(kept_rows(batches, expression))
        if not len(selection):
            raise EmptySelectionError(f"no row of {len(self)} is kept by {expression}")
        return replace(self, selection=selection)

    def join(
        self,
        name: str,
        table: Table,
        *,
        on: str = "id",
        missing: Missing = "raise",
        storage_options: dict[str, Any] | None = None,
    ) -> Self:
        """Add the columns of another Parquet table, found by id: captions, scores, embeddings.

        `latentmill.tracks.table` says which columns a table may have.

        Args:
            name: the new columns begin with it: the name "text" and the column "score" give "text_score".
            table: path or URL of a Parquet file or of a folder of them, or a pyarrow.Table.
            on: the column that the output and the table share. Each value occurs at most once in the table.
            missing: what happens to a row without a partner: it raises OpenError, is dropped, or has None.
            storage_options: what fsspec takes for the URL of the table.
        """
        if name in self.joins:
            raise OpenError(f"a join needs a name of its own that is an identifier, got {name!r}")
        made, selection = joined(self.selection, name, table, on=on, missing=missing, storage_options=storage_options)
        columns, joins = (*self.columns, *made.columns), {**self.joins, name: made}
        return replace(self, selection=selection, joins=joins, columns=columns)

    def with_text(self, text: Text) -> Self:
        """Add "text" and "text_length" to each row. Rows that were dropped are left out. Raises as `Text.join` does."""
        made, selection = text.join(self.selection)
        columns, joins = (*self.columns, LENGTH), {**self.joins, NAME: made}
        return replace(self, text=text, selection=selection, joins=joins, columns=columns)

    def to_arrow(self) -> pa.Table:
        """Return the index of these rows: each opened column, and `file`, `byte_offset`, `byte_length`."""
        whole = pa.Table.from_batches([self._whole_batch(i) for i in range(self.index.columns.num_batches)])
        chosen = self.selection.chosen
        return whole if chosen is None else whole.take(pa.array(chosen.values))

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Write the index of these rows to a Parquet file: `open(..., index=path)` gives every rank the same rows."""
        whole, others = self.to_arrow(), {name for join in self.joins.values() for name in join.columns}
        names = [name for name in whole.column_names if name not in others]
        write_pinned(whole.select(names), os.fspath(path))

    def rows(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of the index at these positions."""
        return self.selection.numbers(positions)

    def facts(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """Return the values of `columns` at these positions. This reads nothing but the index."""
        rows = self.rows(positions)
        return {name: self._home(name)[0].values(name, rows) for name in self.columns}

    def ranges(self, positions: Sequence[int]) -> tuple[list[Range], list[Kind]]:
        """Return the byte range of each latent at these positions, and its (dtype, shape)."""
        rows, columns = self.rows(positions), self.index.columns
        codes, files = columns.numbers(SHAPE, rows), columns.numbers(FILE, rows)
        starts, lengths = columns.numbers("byte_offset", rows), columns.numbers("byte_length", rows)
        checksums, ids = columns.numbers("latent_crc32", rows), columns.values("id", rows)
        ranges = [
            Range(self.index.files[int(file)].as_py(), int(start), int(length), int(crc32), id_)
            for file, start, length, crc32, id_ in zip(files, starts, lengths, checksums, ids, strict=True)
        ]
        return ranges, [self.index.shapes[code] for code in codes]

    @cached_property
    def list_columns(self) -> frozenset[str]:
        """Columns that become a list in a batch, not a tensor: texts, and whole numbers if some are missing."""
        lists = {name for join in self.joins.values() for name in join.varying}
        for name in self.columns:
            file, nulls = self._home(name)
            type_ = file.schema.field(name).type
            whole = (pa.types.is_integer(type_) or pa.types.is_boolean(type_)) and not nulls.get(name)
            if not whole and not pa.types.is_floating(type_):
                lists.add(name)
        return frozenset(lists)

    def _whole_batch(self, number: int) -> pa.RecordBatch:
        batch = self.index.batch(number)
        columns = {name: batch.column(name) for name in batch.schema.names}
        for join in self.joins.values():
            columns |= join.batch(number)
        return pa.RecordBatch.from_pydict(columns)

    def _home(self, name: str) -> tuple[ColumnFile, dict[str, int]]:
        """Return the file of a column, and how many values each column of that file lacks."""
        for join in self.joins.values():
            if name in join.columns:
                return join.file, join.nulls
        return self.index.columns, self.index.nulls

    def _check_columns(self, names: Sequence[str]) -> None:
        known = [*self.index.columns.schema.names, *(name for join in self.joins.values() for name in join.columns)]
        if unknown := [name for name in names if name not in known or name.startswith("_")]:
            shown = ", ".join(name for name in known if not name.startswith("_"))
            raise OpenError(
                f"column {unknown[0]!r} was not opened; there are {shown}; others: open(..., columns=[...])"
            )
