"""Find the rows of an index that an expression keeps, and the rows of each shape."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset

from latentmill.cache.shared_array import SharedArray
from latentmill.errors import OpenError
from latentmill.index.file import BATCH_ROWS, SHAPE, IndexFile
from latentmill.order import bucket_name


class Bucket(NamedTuple):
    """The rows of one stored dtype and shape."""

    name: str
    shape: tuple[int, ...]
    """(C, T', H', W')."""
    positions: SharedArray | None
    """Positions in the dataset; None: all."""
    num_rows: int


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


def buckets_of(index: IndexFile, rows: SharedArray | None, cache: Path) -> list[Bucket]:
    """Return the bucket of each shape of the selected rows, sorted by shape. None selects all rows."""
    codes = index.columns.whole(SHAPE)
    if rows is not None:
        codes = codes[rows.values]
    counts = np.bincount(codes, minlength=len(index.shapes))
    found = sorted((shape, dtype, code) for code, (dtype, shape) in enumerate(index.shapes) if counts[code])
    return [
        Bucket(
            name=bucket_name(dtype, shape),
            shape=shape,
            positions=None if counts[code] == len(codes) else SharedArray.of(_where(codes == code), cache),
            num_rows=int(counts[code]),
        )
        for shape, dtype, code in found
    ]


def _where(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask).astype(np.int64)
