"""Tell the rate and the end of clips of consecutive source frames (`--fps native`), from the times of their frames.

The output stores neither: the rate of a video need not be constant. A row that is read has fps = 1 / the median step
between frames, as exports have, and end_sec = the time of the last frame + one such step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TIMES = "timestamps_sec"
DERIVED = ("fps", "end_sec")


def with_rates(table: pa.Table) -> pa.Table:
    """Return the rows with the columns DERIVED filled in where they are null and the clip has more than one time."""
    times = table[TIMES].combine_chunks()
    times = times.chunk(0) if isinstance(times, pa.ChunkedArray) else times
    steps, last = _steps(times.value_lengths().to_numpy(), times.flatten().to_numpy())
    known = steps > 0
    made = {"fps": 1 / np.where(known, steps, 1), "end_sec": last + steps}
    for name in DERIVED:
        if name in table.column_names:
            filled = pc.coalesce(table[name], pa.array(made[name], mask=~known))
            table = table.set_column(table.schema.get_field_index(name), name, filled)
    return table


def _steps(
    lengths: npt.NDArray[np.int32], times: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the median step of each row, in seconds, 0 if there is none; and its last time."""
    ends = np.cumsum(lengths, dtype=np.int64)
    steps, last = np.zeros(len(lengths)), np.zeros(len(lengths))
    for length in np.unique(lengths[lengths > 1]):
        rows = np.flatnonzero(lengths == length)
        whole = times[ends[rows][:, None] + np.arange(-length, 0)]
        last[rows] = whole[:, -1]
        gaps = np.diff(whole)
        even = (gaps > 0).all(1)
        steps[rows[even]] = np.median(gaps[even], axis=1)
        for row, some in zip(rows[~even], gaps[~even], strict=True):  # a frame was repeated
            steps[row] = np.median(some[some > 0]) if (some > 0).any() else 0.0
    return steps, last
