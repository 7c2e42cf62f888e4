"""LatentDataset: the committed rows of an output as a map-style dataset for torch.

    latents = latentmill.open("s3://latents/v1")
    latents = latents.where(pc.field("height") == 480)
    latents[7]          # {"latent": Tensor[C, T', H', W'], "id": str, "key": str, "caption": str | None, ...}

Every method that selects rows or changes what they hold returns a new dataset, and reads nothing but the index. Rows
keep the order of the output: by shard, then as in the source.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from latentmill.cache.shared_array import SharedArray
from latentmill.errors import EmptySelectionError, OpenError
from latentmill.index.committed import write_pinned
from latentmill.index.file import FILE, SHAPE, ColumnFile, IndexFile
from latentmill.index.selection import Bucket, buckets_of, kept_rows
from latentmill.ranges import Range, RangeReader

if TYPE_CHECKING:
    from latentmill.join import Join, Table
    from latentmill.loader import Loader
    from latentmill.statistics.pool import Statistics
    from latentmill.tensors import Sample
    from latentmill.text import Text

ROW_COLUMNS = ("id", "key", "caption", "num_frames", "height", "width", "fps", "start_sec", "end_sec")
"""What a row holds beside the latent, unless `columns` or `select` say otherwise."""

Draw = Literal["sample", "mean", "moments"]


class LatentDataset:
    """Rows of an output, made by `open`. It pickles into workers; they map the same index and read for themselves."""

    def __init__(
        self,
        index: IndexFile,
        reader: RangeReader,
        spec: dict[str, Any],
        columns: tuple[str, ...],
        cache: Path,
        damaged: str = "raise",
    ) -> None:
        self.index = index
        """The index of all rows, whether they are selected or not."""
        self.reader = reader
        self.cache = cache
        """The folder for local copies."""
        self._rows: SharedArray | None = None  # the rows of the index that are selected; None: all
        self.spec = spec
        """The content of `spec.json`: every setting that decided the bytes of the output."""
        self.columns = columns
        """The columns that a row has beside "latent"."""
        self.damaged = damaged
        self.joins: dict[str, Join] = {}
        """The joined tables by name."""
        self.text: Text | None = None
        """The text of `open(..., text=)`."""
        self.is_unscaled = False
        self._draw: Draw | None = None
        self._lists: frozenset[str] | None = None
        self._buckets: list[Bucket] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_waiting"}

    def __len__(self) -> int:
        return self.index.num_rows if self._rows is None else len(self._rows.values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{'x'.join(map(str, shape))}: {count}" for shape, count in self.shapes.items())
        return f"<LatentDataset of {len(self)} rows, {shapes}>"

    def __getitem__(self, position: int) -> Sample:
        """Read one row: {"latent": Tensor[C, T', H', W'], and `columns`}.

        Raises:
            IndexError: there is no such position.
            DamagedRowError: the bytes of the row are not those that were written.
        """
        from latentmill.tensors import read_batch

        position = range(len(self))[position]
        return read_batch(self, [position], "raise")[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """Read the rows of a batch at once, as torch's DataLoader asks for them. `collate` makes one batch of them."""
        from latentmill.tensors import read_ahead

        return read_ahead(self, positions)

    @property
    def digest(self) -> str:
        """A hash of the selected rows in order: ids, shapes, checksums. Ranks with equal digests have equal rows."""
        if self._rows is None:
            return self.index.digest
        rows = np.ascontiguousarray(self._rows.values, "<i8")
        return hashlib.blake2b(self.index.digest.encode() + rows.tobytes(), digest_size=16).hexdigest()

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
        if self._buckets is None:
            self._buckets = buckets_of(self.index, self._rows, self.cache)
        return self._buckets

    @property
    def statistics(self) -> Statistics | None:
        """The pooled statistics of these rows; None unless their columns were opened (`format.STATISTICS`)."""
        from latentmill.statistics.pool import statistics_of

        return statistics_of(self)

    @property
    def stored_posterior(self) -> str:
        """What the output stores: "mean", "sample" (one seeded draw), or "moments" (mean and log-variance)."""
        return str(self.spec["latent"]["posterior"])

    @property
    def draw(self) -> str:
        """What a row's latent is: the choice of `posterior`; else "sample" for stored moments, or what is stored."""
        return self._draw or ("sample" if self.stored_posterior == "moments" else self.stored_posterior)

    def posterior(self, draw: Draw) -> LatentDataset:
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
        return self._with(_draw=draw)

    def unscaled(self) -> LatentDataset:
        """Undo the scaling of the Spec, z = latent / scale + shift: the latents that the VAE gives and takes."""
        return self._with(is_unscaled=True)

    def select(self, columns: Sequence[str]) -> LatentDataset:
        """Choose the columns that rows have beside the latent and the id.

        Raises:
            OpenError: a column is unknown or was not opened.
        """
        names = tuple(dict.fromkeys(("id", *columns)))
        self._check_columns(names)
        return self._with(columns=names)

    def where(self, expression: pa.dataset.Expression) -> LatentDataset:
        """Keep the rows for which an expression over the columns of the index is true: `pc.field("height") == 480`.

        Raises:
            EmptySelectionError: the expression keeps no row.
            OpenError: the expression names an unknown column, or compares values that cannot be compared.
        """
        batches = (self._whole_batch(number) for number in range(self.index.columns.num_batches))
        rows = kept_rows(batches, expression)
        if self._rows is not None:
            rows = np.intersect1d(rows, self._rows.values, assume_unique=True)
        if not len(rows):
            raise EmptySelectionError(f"no row of {len(self)} is kept by {expression}")
        return self._of_rows(rows)

    def join(
        self,
        name: str,
        table: Table,
        *,
        on: str = "id",
        missing: Literal["raise", "drop", "null"] = "raise",
        **options: Any,
    ) -> LatentDataset:
        """Add the columns of another Parquet table, found by id: captions, scores, embeddings. See `latentmill.join`.

        Args:
            name: the new columns begin with it: the name "text" and the column "score" give "text_score".
            table: path or URL of a Parquet file or of a folder of them, or a pyarrow.Table.
            on: the column that the output and the table share. Each value occurs at most once in the table.
            missing: what happens to a row without a partner: it raises OpenError, is dropped, or has None.
            options: `storage_options` of the table.
        """
        from latentmill.join import join

        return join(self, name, table, on=on, missing=missing, **options)

    def loader(self, **options: Any) -> Loader:
        """Return the batches of one rank, in an order that resumes. `latentmill.Loader` describes the options."""
        from latentmill.loader import Loader

        return Loader(self, **options)

    def to_arrow(self) -> pa.Table:
        """Return the index of these rows: each opened column, and `file`, `byte_offset`, `byte_length`."""
        table = pa.Table.from_batches([self._whole_batch(i) for i in range(self.index.columns.num_batches)])
        return table if self._rows is None else table.take(pa.array(self._rows.values))

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Write the index of these rows to a Parquet file: `open(..., index=path)` gives every rank the same rows."""
        table, joined = self.to_arrow(), {name for join in self.joins.values() for name in join.columns}
        names = [name for name in table.column_names if name not in joined]
        write_pinned(table.select(names), os.fspath(path))

    def rows(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of the index at these positions."""
        chosen = np.asarray(positions, np.int64)
        return chosen if self._rows is None else np.asarray(self._rows.values[chosen], np.int64)

    def facts(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """Return the values of `columns` at these positions. This reads nothing but the index."""
        rows = self.rows(positions)
        return {name: self._home(name)[0].values(name, rows) for name in self.columns}

    def ranges(self, positions: Sequence[int]) -> tuple[list[Range], list[tuple[str, tuple[int, ...]]]]:
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

    @property
    def list_columns(self) -> frozenset[str]:
        """Columns that become a list in a batch, not a tensor: texts, and whole numbers if some are missing."""
        if self._lists is None:
            lists = {name for join in self.joins.values() for name in join.varying}
            for name in self.columns:
                file, nulls = self._home(name)
                type_ = file.schema.field(name).type
                whole = (pa.types.is_integer(type_) or pa.types.is_boolean(type_)) and not nulls.get(name)
                if not whole and not pa.types.is_floating(type_):
                    lists.add(name)
            self._lists = frozenset(lists)
        return self._lists

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
        joined = [name for join in self.joins.values() for name in join.columns]
        known = [*self.index.columns.schema.names, *joined]
        if unknown := [name for name in names if name not in known or name.startswith("_")]:
            shown = ", ".join(name for name in known if not name.startswith("_"))
            raise OpenError(
                f"column {unknown[0]!r} was not opened; there are {shown}; others: open(..., columns=[...])"
            )

    def _of_rows(self, rows: npt.NDArray[np.int64]) -> LatentDataset:
        kind = np.uint32 if self.index.num_rows < 1 << 32 else np.int64
        return self._with(_rows=SharedArray.of(rows.astype(kind), self.cache), _buckets=None)

    def _with(self, **changes: Any) -> LatentDataset:
        changed = copy(self)
        changed.__dict__.update({"_lists": None} | changes)
        changed.__dict__.pop("_waiting", None)
        return changed
