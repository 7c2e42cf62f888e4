"""Read the bytes of one stored latent by its row: from the data file, or from the NPY array that the row names."""

from __future__ import annotations

import io
from math import prod
from typing import Any

import numpy as np

from pipeline.storage import Storage

Row = dict[str, Any]


def npy_header(output: Storage, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape, the dtype and the offset of the first value of a stored NPY array. Raises ValueError."""
    head = io.BytesIO(output.read(path, 0, 4096))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return shape, dtype, head.tell()


def payload_of(output: Storage, row: Row) -> bytes:
    """Return the latent's bytes of a data file's row.

    Raises:
        NotFoundError: the NPY array of the row is missing.
        ValueError: the NPY array of the row is damaged.
    """
    if row["npy_file"] is None:
        return row["latent"] or b""
    _, dtype, start = npy_header(output, row["npy_file"])
    length = prod(row["latent_shape"]) * dtype.itemsize
    start += row["npy_row"] * length
    return output.read(row["npy_file"], start, start + length)
