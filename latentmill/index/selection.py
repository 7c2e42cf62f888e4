"""Selection: which rows of an index are meant, in its order, and the rows of each shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from latentmill.errors import OpenError
from latentmill.index.file import BATCH_ROWS, SHAPE, IndexFile
from latentmill.order import bucket_name
from latentmill.store.cache.shared_array import SharedArray


class Bucket(NamedTuple):
    """The rows of one stored dtype and shape."""

    name: str
    shape: tuple[int, ...]
    """(C, T', H', W')."""
    positions: SharedArray | None
    """Positions in the selection; None: all."""
    num_rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Some rows of an index. It pickles into workers, which map the same files."""

    index: IndexFile
    """The index of all rows, whether they are selected or not."""
    cache: Path
    """The folder for local copies."""
    chosen: SharedArray | None = None
    """The numbers of the selected rows in the index, ascending; None: all."""

    def __len__(self) -> int:
        return self.index.num_rows if self.chosen is None else len(self.chosen.values)

    @property
    def digest(self) -> str:
        """A hash of the selected rows in order: ids, shapes, checksums."""
        if self.chosen is None:
            return self.index.digest
        rows = np.ascontiguousarray(self.chosen.values, "<i8")
        return hashlib.blake2b(self.index.digest.encode() + rows.tobytes(), digest_size=16).hexdigest()

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The rows of each shape, sorted by shape."""
        codes = self.index.columns.whole(SHAPE)
        if self.chosen is not None:
            codes = codes[self.chosen.values]
        counts = np.bincount(codes, minlength=len(self.index.shapes))
        found = sorted((shape, dtype, code) for code, (dtype, shape) in enumerate(self.index.shapes) if counts[code])
        return [
            Bucket(
                name=bucket_name(dtype, shape),
                shape=shape,
                positions=None if counts[code] == len(codes) else SharedArray.of(_where(codes == code), self.cache),
                num_rows=int(counts[code]),
            )
            for shape, dtype, code in found
        ]

    def numbers(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers in the index of the rows at these positions of the selection."""
        asked = np.asarray(positions, np.int64)
        return asked if self.chosen is None else np.asarray(self.chosen.values[asked], np.int64)

    def all_numbers(self) -> npt.NDArray[np.int64]:
        """Return the numbers in the index of all selected rows."""
        return self.numbers(np.arange(len(self)))

    def narrowed(self, numbers: npt.NDArray[np.int64]) -> Selection:
        """Return the selection of those rows that have one of these ascending numbers in the index, too."""
        if self.chosen is not None:
            numbers = np.intersect1d(numbers, self.chosen.values, assume_unique=True)
        kind = np.uint32 if self.index.num_rows < 1 << 32 else np.int64
        return replace(self, chosen=SharedArray.of(numbers.astype(kind), self.cache))


def kept_rows(batches: Iterable[pa.RecordBatch], expression: pa.dataset.Expression) -> npt.NDArray[np.int64]:
    """Return the rows for which the expression is true. Every batch but the last has BATCH_ROWS rows.

    Raises:
        OpenError: the expression names an unknown column, or compares values that cannot be compared.
    """
    kept = []
    for number, batch in enumerate(batches):
        try:
            scanner = pa.dataset.Scanner.from_batches([batch], schema=batch.schema, columns={"keep": expression})
            mask = scanner.to_table()["keep"].combine_chunks()
            mask = mask.chunk(0) if isinstance(mask, pa.ChunkedArray) else mask
            kept.append(_where(mask.fill_null(False).to_numpy(zero_copy_only=False)) + number * BATCH_ROWS)
        except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
            names = ", ".join(batch.schema.names)
            reason = str(error).partition(" in id: ")[0]  # Arrow appends the schema
            raise OpenError(f"cannot filter by {expression}: {reason}. Columns: {names}") from error
    return np.concatenate(kept)


def _where(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask).astype(np.int64)
