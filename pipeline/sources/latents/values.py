"""The bytes of a tensor as float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from latentmill.format import DTYPES


def as_float32(content: bytes, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Return float32 of the shape from little-endian bytes in C order.

    Raises:
        ValueError: the dtype is none that an output stores, or the number of bytes does not fit the shape.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    if not shape or len(content) != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{len(content)} bytes are no {dtype} of shape {list(shape)}")
    values = np.frombuffer(content, DTYPES[dtype])
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return values.astype(np.float32).reshape(shape)
