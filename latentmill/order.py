"""Say which samples form which batch: a pure function of (seed, epoch, number of the batch).

Each bucket is permuted and cut into batches. Runs of batches of one bucket are permuted and form the epoch. Only then
are batches dealt to ranks, so the sequence of global batches is the same for any number of ranks and workers. The n-th
batch costs the same for every n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from latentmill.permutation import Permutation

Last = Literal["drop", "short", "wrap"]
"""What happens to the samples of a bucket that fill no batch.

    drop    this epoch leaves them out; another epoch leaves out others
    short   they form a smaller batch
    wrap    samples of the same bucket fill the batch and occur twice in this epoch
"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of the batches."""

    sizes: tuple[int, ...]
    """Samples in each bucket."""
    names: tuple[str, ...]
    """Name of each bucket. The order inside a bucket depends on nothing but its name, its size, seed and epoch."""
    batch_size: int
    seed: int = 0
    last: Last = "drop"
    shape_run: int = 1
    """Consecutive batches of one bucket. Set to the number of data-parallel ranks, it gives all ranks one shape at each
    step. `last` completes or drops the last run of a bucket; with "short", batches that fill no run come at the end of
    the epoch."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "shape_run"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.last not in ("drop", "short", "wrap"):
            raise ValueError(f"last must be 'drop', 'short' or 'wrap', got {self.last!r}")

    @cached_property
    def _runs(self) -> npt.NDArray[np.int64]:
        """Whole runs of each bucket. If a run is one batch, a short batch counts as a run."""
        run = self.batch_size * self.shape_run
        up = self.last == "wrap" or (self.last == "short" and self.shape_run == 1)
        return np.array([-(-size // run) if up else size // run for size in self.sizes], np.int64)

    @cached_property
    def _rests(self) -> npt.NDArray[np.int64]:
        """Batches of each bucket that belong to no run."""
        left = np.array(self.sizes, np.int64) - self._runs * self.batch_size * self.shape_run
        return np.maximum(-(-left // self.batch_size), 0) if self.last == "short" else left * 0

    @property
    def num_batches(self) -> int:
        """Global batches of an epoch."""
        return self._num_runs * self.shape_run + self._num_rests

    @property
    def num_dropped(self) -> int:
        """Samples that an epoch leaves out."""
        return sum(self.sizes) - self.num_samples if self.last == "drop" else 0

    @property
    def num_samples(self) -> int:
        """Samples of an epoch; one that occurs twice counts twice."""
        return sum(self.sizes) if self.last == "short" else self.num_batches * self.batch_size

    def unseen(self) -> list[str]:
        """Return the names of the buckets that every epoch drops, because they are too small for a batch."""
        return [name for name, runs in zip(self.names, self._runs, strict=True) if self.last == "drop" and not runs]

    def batch(self, epoch: int, number: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Return (bucket, positions of the samples in the bucket) of a global batch, 0 <= number < num_batches."""
        if not 0 <= number < self.num_batches:
            raise IndexError(f"an epoch has {self.num_batches} batches, there is no number {number}")
        run, within = divmod(number, self.shape_run)
        if run < self._num_runs:
            bucket, run = _place(self._runs, self._permuted(epoch, self._num_runs, "batches", run))
            first = (run * self.shape_run + within) * self.batch_size
        else:
            rest = number - self._num_runs * self.shape_run
            bucket, rest = _place(self._rests, self._permuted(epoch, self._num_rests, "rests", rest))
            first = (int(self._runs[bucket]) * self.shape_run + rest) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        size = self.sizes[bucket]
        places = places % size if self.last == "wrap" else places[places < size]
        return bucket, self._permutation(size, epoch, self.names[bucket])(places)

    @property
    def _num_runs(self) -> int:
        return int(self._runs.sum())

    @property
    def _num_rests(self) -> int:
        return int(self._rests.sum())

    def _permuted(self, epoch: int, size: int, name: str, number: int) -> int:
        return int(self._permutation(size, epoch, name)([number])[0])

    def _permutation(self, size: int, epoch: int, name: str) -> Permutation:
        return _permutation(size, self.seed, epoch, name)


@lru_cache(maxsize=256)
def _permutation(size: int, *key: object) -> Permutation:
    return Permutation(size, *key)


def _place(counts: npt.NDArray[np.int64], number: int) -> tuple[int, int]:
    """Return (bucket, number inside the bucket) of the number-th of all."""
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, number, side="right"))
    return bucket, number - int(ends[bucket] - counts[bucket])


def bucket_name(dtype: str, shape: Sequence[int]) -> str:
    """Return the name of a bucket, such as "16x13x60x90 bfloat16"."""
    return f"{'x'.join(map(str, shape))} {dtype}"
