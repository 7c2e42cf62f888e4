"""Pool the statistics of rows: exactly, over all their latents, from the index alone.

`Pool` takes tables of rows with the columns `latentmill.format.STATISTICS`. Each row counts with the number of its
positions, so the result is that of all latents in one array, up to float32 rounding of the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentmill.format import STATISTICS
from latentmill.index.file import BATCH_ROWS, SHAPE
from latentmill.rows import Rows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of each channel over some positions."""

    positions: int
    """Values of each channel."""
    mean: Floats
    """[C]."""
    std: Floats
    """[C], of the population."""

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and standard deviation over all channels together."""
        mean = float(self.mean.mean())
        return mean, float(np.sqrt(np.mean(self.std**2 + (self.mean - mean) ** 2)))

    def to_json(self) -> dict[str, Any]:
        """Return the moments as JSON types."""
        return {"positions": self.positions, "mean": self.mean.tolist(), "std": self.std.tolist()}


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of many latents as stored."""

    rows: int
    whole: Moments
    """Of all latent frames."""
    first: Moments
    """Of the first latent frame, which stands for one frame of video."""
    rest: Moments | None
    """Of the other latent frames; None if there are none."""
    max_abs: float
    """The largest magnitude."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        parts = {"whole": self.whole, "first": self.first, "rest": self.rest}
        moments = {name: part and part.to_json() for name, part in parts.items()}
        return {"rows": self.rows, **moments, "max_abs": self.max_abs}


class Pool:
    """Adds up rows, table by table."""

    def __init__(self) -> None:
        self._rows, self._max_abs = 0, 0.0
        self._moments: dict[str, tuple[int, Floats, Floats]] = {}

    def add(self, table: pa.Table | pa.RecordBatch) -> None:
        """Add rows. The columns are `latent_shape` and those of STATISTICS."""
        if not table.num_rows:
            return
        shapes = matrix(table.column("latent_shape")).astype(np.int64)
        area, frames = shapes[:, 2] * shapes[:, 3], shapes[:, 1]
        for prefix, positions in (("", frames * area), ("first_", area), ("rest_", (frames - 1) * area)):
            if (kept := positions[positions > 0]).size:
                columns = (matrix(table.column(f"latent_{prefix}{name}")) for name in ("mean", "std"))
                self._add(prefix, kept, *columns)
        self._rows += table.num_rows
        self._max_abs = max(self._max_abs, float(np.max(table.column("latent_max_abs").to_numpy())))

    def result(self) -> Statistics | None:
        """Return the statistics of the rows so far; None if there are none."""
        if not self._rows:
            return None
        found = {name: Moments(n, mean, np.sqrt(var)) for name, (n, mean, var) in self._moments.items()}
        return Statistics(self._rows, found[""], found["first_"], found.get("rest_"), self._max_abs)

    def _add(self, prefix: str, positions: npt.NDArray[np.int64], means: Floats, stds: Floats) -> None:
        """Pool rows: means and stds are [rows, C]."""
        count = int(positions.sum())
        shares = (positions / count)[:, None]
        mean = (shares * means).sum(0)
        variance = (shares * (stds.astype(np.float64) ** 2 + (means - mean) ** 2)).sum(0)
        if before := self._moments.get(prefix):
            share = count / (count + before[0])
            distance = mean - before[1]
            variance = share * variance + (1 - share) * before[2] + share * (1 - share) * distance**2
            mean, count = before[1] + share * distance, count + before[0]
        self._moments[prefix] = count, mean, variance


def matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """Return a column of lists of one length as an array [rows, length]. Rows without a list are left out."""
    column = column.drop_null()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    return values.reshape(len(column), -1)


def tables(rows: Rows) -> Iterator[tuple[int, pa.Table]]:
    """Yield (number of its first row, table) batch by batch: the rows with shapes and opened columns."""
    index = rows.index
    shapes = pa.array([shape for _, shape in index.shapes], pa.list_(pa.int32()))
    selected = rows.selection.all_numbers()
    for number in range(index.columns.num_batches):
        batch = index.columns.batch(number)
        begin, stop = np.searchsorted(selected, [number * BATCH_ROWS, number * BATCH_ROWS + batch.num_rows])
        table = pa.Table.from_batches([batch]).append_column("latent_shape", shapes.take(batch.column(SHAPE)))
        if stop - begin < batch.num_rows:
            table = table.take(pa.array(selected[begin:stop] - number * BATCH_ROWS))
        yield int(begin), table


def statistics_of(rows: Rows) -> Statistics | None:
    """Return the statistics of rows; None if the columns STATISTICS are not there or not opened."""
    if not set(STATISTICS.names) <= set(rows.index.columns.schema.names):
        return None
    pool = Pool()
    for _, table in tables(rows):
        pool.add(table)
    return pool.result()
