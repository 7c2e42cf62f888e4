"""Join: values and byte ranges of another table, in the order of the index. Both lie in a folder of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentmill.index.file import ColumnFile
from latentmill.store.cache.kept import Kept
from latentmill.store.range import Range
from latentmill.store.ranges import RangeReader

Kind = tuple[str, tuple[int, ...]]
"""(dtype, shape) of a tensor."""

PARTS = ("file", "start", "length", "shape", "dtype", "crc32")

PLACE = pa.struct(
    [
        ("file", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("crc32", pa.uint32()),
    ]
)
"""Where the bytes of a tensor are: a struct of PARTS."""


class Join:
    """A joined table: the values, and the byte ranges of the tensors, of each row of the index. Pickles by path."""

    def __init__(self, kept: Kept, reader: RangeReader | None) -> None:
        self.folder = kept.folder
        self._reader = reader
        facts = kept.facts
        self.columns: list[str] = facts["columns"]
        """Columns of values."""
        self.tensors: list[str] = facts["tensors"]
        self.varying: list[str] = facts["varying"]
        """Tensors that become a list in a batch: rows differ in shape, or some rows have none."""
        self.nulls: dict[str, int] = facts["nulls"]
        self.file = ColumnFile(kept.files["rows.arrow"])

    def __getstate__(self) -> tuple[Path, RangeReader | None]:
        return self.folder, self._reader

    def __setstate__(self, state: tuple[Path, RangeReader | None]) -> None:
        folder, reader = state
        self.__init__(Kept(folder), reader)  # type: ignore[misc]

    @property
    def reader(self) -> RangeReader:
        assert self._reader
        return self._reader

    def batch(self, number: int) -> dict[str, pa.Array]:
        """Return the columns of values for a batch of the index."""
        batch = self.file.batch(number)
        return {name: batch.column(name) for name in self.columns}

    def ranges(
        self, rows: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, tuple[list[Range | None], list[Kind | None]]]:
        """Return the byte range and the (dtype, shape) of each row, by tensor column; None: the row has no value."""
        found: dict[str, tuple[list[Range | None], list[Kind | None]]] = {}
        for name in self.tensors:
            ranges: list[Range | None] = []
            kinds: list[Kind | None] = []
            for place, row in zip(self.file.values(f"_{name}", rows), rows, strict=True):
                if place is None:
                    ranges.append(None)
                    kinds.append(None)
                else:
                    file, start, length, shape, dtype, crc32 = (place[part] for part in PARTS)
                    ranges.append(Range(file, start, length, crc32, f"{name} of row {row}"))
                    kinds.append((dtype, tuple(shape)))
            found[name] = ranges, kinds
        return found
