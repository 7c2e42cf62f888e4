"""LatentDataset: the committed rows of an output as a map-style dataset for torch.

    latents = latentmill.open("s3://latents/v1")
    latents = latents.where(pc.field("height") == 480)
    latents[7]          # {"latent": Tensor[C, T', H', W'], "id": str, "key": str, "caption": str | None, ...}

Every method that narrows or changes what rows hold returns another dataset; nothing is read for it but the index. The
order of the rows is that of the output: by shard, then as in the source.
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

from latentmill.errors import EmptySelectionError, OpenError
from latentmill.index.file import FILE, SHAPE, ColumnFile, IndexFile
from latentmill.index.selection import Bucket, buckets_of, kept_rows
from latentmill.ranges import Range, RangeReader
from latentmill.shared_array import SharedArray

if TYPE_CHECKING:
    from latentmill.join import Join, Table
    from latentmill.loader import Loader
    from latentmill.tensors import Sample

ROW_COLUMNS = ("id", "key", "caption", "num_frames", "height", "width", "fps", "start_sec", "end_sec")
"""What a row holds beside the latent, unless `columns` or `select` say otherwise."""

Draw = Literal["sample", "mean", "moments"]


class LatentDataset:
    """Rows of an output. Made by `open`; pickles into workers, which map the same index and read by themselves."""

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
        """The index of all rows, selected or not."""
        self.reader = reader
        self.cache = cache
        """The folder for local copies."""
        self._rows: SharedArray | None = None  # the rows of the index that are selected; None: all
        self.spec = spec
        """All that decided what stands in the output, as `spec.json` has it."""
        self.columns = columns
        """What a row holds beside "latent"."""
        self.damaged = damaged
        self.joins: dict[str, Join] = {}
        """What was joined, by name."""
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
            IndexError: no such position.
            DamagedRowError: its bytes are not what was written.
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
        """Of the selected rows: ids, shapes and checksums, in their order. Equal on two ranks: they have equal rows."""
        if self._rows is None:
            return self.index.digest
        rows = np.ascontiguousarray(self._rows.values, "<i8")
        return hashlib.blake2b(self.index.digest.encode() + rows.tobytes(), digest_size=16).hexdigest()

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        """How many rows there are of each latent shape (C, T', H', W'), as stored."""
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
    def stored_posterior(self) -> str:
        """What the output holds: "mean", "sample" (one seeded draw), or "moments" (mean and log-variance)."""
        return str(self.spec["latent"]["posterior"])

    @property
    def draw(self) -> str:
        """What a row's latent is: as `posterior` chose, "sample" for stored moments, else as stored."""
        return self._draw or ("sample" if self.stored_posterior == "moments" else self.stored_posterior)

    def posterior(self, draw: Draw) -> LatentDataset:
        """Choose what becomes of stored moments.

        Args:
            draw: "sample": mean + std * noise, another draw in each epoch, fixed by (seed, epoch, id); "mean"; both are
                scaled as the Spec says. "moments": mean and log-variance stacked on channels, [2C, T', H', W'], as
                stored, unscaled.

        Raises:
            OpenError: the output holds no moments, and something else than what it holds is asked for.
        """
        if draw not in ("sample", "mean", "moments"):
            raise OpenError(f"posterior must be 'sample', 'mean' or 'moments', got {draw!r}")
        if self.stored_posterior not in ("moments", draw):
            raise OpenError(
                f"posterior {draw!r} needs an output of --posterior moments; this one holds {self.stored_posterior!r}"
            )
        return self._with(_draw=draw)

    def unscaled(self) -> LatentDataset:
        """Undo the scaling of the Spec: latents as the VAE gives and takes them, z = latent / scale + shift."""
        return self._with(is_unscaled=True)

    def select(self, columns: Sequence[str]) -> LatentDataset:
        """Choose what rows hold beside the latent and the id.

        Raises:
            OpenError: a column that was not opened.
        """
        names = tuple(dict.fromkeys(("id", *columns)))
        self._check_columns(names)
        return self._with(columns=names)

    def where(self, expression: pa.dataset.Expression) -> LatentDataset:
        """Keep the rows for which an expression over the columns of the index is true: `pc.field("height") == 480`.

        Raises:
            EmptySelectionError: it keeps no row.
            OpenError: it names a column that was not opened, or compares what cannot be compared.
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
            name: begins the names of the new columns: "text" and a column "score" give "text_score".
            table: path or URL of a Parquet file or of a folder of them, or a pyarrow.Table.
            on: the column that both have. Many rows may share one value of it here, but not in the table.
            missing: a row without a partner raises OpenError, is dropped, or has None in the new columns.
            options: `storage_options` of the table.
        """
        from latentmill.join import join

        return join(self, name, table, on=on, missing=missing, **options)

    def loader(self, **options: Any) -> Loader:
        """Batches for training, by rank, in an order that resumes: see `latentmill.Loader` for the options."""
        from latentmill.loader import Loader

        return Loader(self, **options)

    def to_arrow(self) -> pa.Table:
        """The index of these rows: every column that was opened, and `file`, `byte_offset`, `byte_length`."""
        table = pa.Table.from_batches([self._whole_batch(i) for i in range(self.index.columns.num_batches)])
        return table if self._rows is None else table.take(pa.array(self._rows.values))

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a Parquet file for `open(..., index=path)`: every rank and every later run has these rows,
        whatever is committed meanwhile."""
        table = self.to_arrow()
        names = [name for name in table.column_names if not any(name in join.columns for join in self.joins.values())]
        fields = [(name, pa.string() if name == "file" else table.schema.field(name).type) for name in names]
        pa.parquet.write_table(table.select(names).cast(pa.schema(fields)), os.fspath(path), compression="zstd")

    def rows(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows of the index at these positions."""
        chosen = np.asarray(positions, np.int64)
        return chosen if self._rows is None else np.asarray(self._rows.values[chosen], np.int64)

    def facts(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """Values of `columns` at these positions; nothing but the index is read."""
        rows = self.rows(positions)
        return {name: self._home(name)[0].values(name, rows) for name in self.columns}

    def ranges(self, positions: Sequence[int]) -> tuple[list[Range], list[tuple[str, tuple[int, ...]]]]:
        """Where the latents at these positions stand, and the (dtype, shape) of each."""
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
        """Columns of a row that stay lists in a batch: all but numbers, and whole numbers with gaps."""
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
        """The file that holds a column, and how many values are missing in its columns."""
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
