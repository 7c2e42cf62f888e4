"""Compute the statistics of one stored latent: the columns `latentmill.format.STATISTICS` of its row.

They come from the values as stored, after the cast, so a reader of the output finds the same numbers. Sums are float64,
one channel after the other, and the results are float32: they depend on the stored bytes alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latentmill.format import to_float32

Moments = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""(positions per channel, mean of each channel, variance of each channel)"""


def statistics(payload: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the statistics of a latent [C, T', H', W'] from its stored bytes. A std divides by n, not by n - 1."""
    values = to_float32(payload, dtype).reshape(shape)
    first, rest = _moments(values[:, :1]), _moments(values[:, 1:])
    row: dict[str, Any] = {}
    for prefix, (count, mean, variance) in (("", _joined(first, rest)), ("first_", first), ("rest_", rest)):
        row[f"latent_{prefix}mean"] = mean.astype(np.float32) if count else None
        row[f"latent_{prefix}std"] = np.sqrt(variance).astype(np.float32) if count else None
    return row | {"latent_max_abs": np.float32(max(values.max(), -values.min()))}


def same_statistics(found: Any, expected: Any) -> bool:
    """Return whether two values of a column are equal up to the rounding of float64 sums on another CPU."""
    if found is None or expected is None:
        return found is expected
    return np.shape(found) == np.shape(expected) and np.allclose(found, expected, rtol=1e-5, atol=1e-6)


def _moments(frames: npt.NDArray[np.float32]) -> Moments:
    """Return the moments of [C, T', H', W'], with one channel in memory as float64."""
    num_channels, count = len(frames), frames[0].size
    mean, variance = np.zeros(num_channels), np.zeros(num_channels)
    for i, channel in enumerate(frames if count else ()):
        values = channel.astype(np.float64).ravel()
        mean[i] = values.mean()
        values -= mean[i]
        variance[i] = np.square(values, out=values).mean()
    return count, mean, variance


def _joined(one: Moments, other: Moments) -> Moments:
    """Return the moments of both sets of positions together."""
    count = one[0] + other[0]
    share = other[0] / count
    distance = other[1] - one[1]
    mean = one[1] + share * distance
    return count, mean, (1 - share) * one[2] + share * other[2] + share * (1 - share) * distance**2
