"""A latent as stored bytes, and back. `latentmill.format` owns the stored dtypes and how numpy sees them."""

from __future__ import annotations

import numpy as np

from latentmill.format import DTYPES as DTYPES


def is_finite(payload: bytes, dtype: str) -> bool:
    """Whether a stored latent holds neither NaN nor infinity. bfloat16 is read by its bits: the exponent all ones."""
    array = np.frombuffer(payload, DTYPES[dtype])
    if dtype == "bfloat16":
        return not bool(((array & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def to_float32(payload: bytes | memoryview, dtype: str) -> np.ndarray:
    """The values of a stored latent as float32, flat. bfloat16 is the upper half of a float32's bits."""
    array = np.frombuffer(payload, DTYPES[dtype])
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
