"""BatchSampler: the batches of one rank, for a plain torch DataLoader.

sampler = latentmill.BatchSampler(latents, batch_size=4, seed=0, rank=rank, world_size=world)
loader = DataLoader(latents, batch_sampler=sampler, num_workers=4)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latentmill.errors import StateError
from latentmill.order import Last, Order

if TYPE_CHECKING:
    from latentmill.dataset import LatentDataset

STATE_VERSION = 1

DropLast = bool | Literal["wrap"]
_LAST: dict[DropLast, Last] = {True: "drop", False: "short", "wrap": "wrap"}


class Batch(list[int]):
    """Positions in the dataset of one batch, and what a worker must know beside them."""

    def __init__(self, positions: Any = (), *, seed: int = 0, epoch: int = 0) -> None:
        super().__init__(positions)
        self.seed = seed
        """Of the noise, where latents are drawn from stored moments."""
        self.epoch = epoch
        self.ahead: tuple[list[int], ...] = ()
        """Batches that come next to the same process, which it may begin to read."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of the global batches one rank gets.

    Ranks that work on one sample together (context, tensor or pipeline parallel) are neighbours: ranks 0..n-1 form the
    first group, and get the same batches.
    """

    rank: int = 0
    world_size: int = 1
    context_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1, got rank {self.rank} of {self.world_size}")
        if self.context_parallel_size < 1 or self.world_size % self.context_parallel_size:
            raise ValueError(
                f"context_parallel_size must divide world_size {self.world_size}, got {self.context_parallel_size}"
            )

    @property
    def group(self) -> int:
        """This rank's group."""
        return self.rank // self.context_parallel_size

    @property
    def num_groups(self) -> int:
        """Groups that get different batches: the data-parallel size."""
        return self.world_size // self.context_parallel_size


class BatchSampler:
    """Yields the batches of one rank, each a list of positions in the dataset, all of one shape.

    The global batches of an epoch are a pure function of (rows, batch_size, seed, epoch, drop_last, shape_run). Step s
    of rank group g is global batch `first + s * groups + g`. At the end of an epoch:

        drop_last=True     every rank has the same number of full batches; what fills no batch or no step is left out
        drop_last=False    every row comes once; a bucket ends in a smaller batch, and the last step may have batches
                           for some of the ranks only
        drop_last="wrap"   every row comes at least once; the last batch of a bucket is filled with rows of that bucket,
                           the last step with the first batches of the epoch

    An `iter` goes on where the state says, and at the end of an epoch the next one begins: epochs differ without
    `set_epoch`. There is no communication between ranks: give each the same arguments but `rank`.

    Args:
        dataset: what `latentmill.open` returned, or a selection of it.
        batch_size: rows in a batch of one rank.
        seed: another seed, another order; also of the noise where latents are drawn from moments.
        rank: of this process.
        world_size: how many processes train.
        context_parallel_size: neighbouring ranks that get the same batches.
        drop_last: what becomes of rows that fill no batch.
        shape_run: this many consecutive global batches have one shape. Give the number of data-parallel ranks to have
            all of them work on one shape at each step.
        epoch: the first one.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        context_parallel_size: int = 1,
        drop_last: DropLast = True,
        shape_run: int = 1,
        epoch: int = 0,
    ) -> None:
        self.dataset = dataset
        self.ranks = Ranks(rank=rank, world_size=world_size, context_parallel_size=context_parallel_size)
        if drop_last not in _LAST:
            raise ValueError(f"drop_last must be True, False or 'wrap', got {drop_last!r}")
        buckets = dataset.buckets
        self.order = Order(
            sizes=tuple(bucket.num_rows for bucket in buckets),
            names=tuple(bucket.name for bucket in buckets),
            batch_size=batch_size,
            seed=seed,
            last=_LAST[drop_last],
            shape_run=shape_run,
        )
        self._members = [bucket.positions for bucket in buckets]
        if unseen := self.order.unseen():
            warnings.warn(
                f"never seen: shapes with fewer than {batch_size * shape_run} rows: {', '.join(unseen)}; "
                "drop_last=False or 'wrap' keeps them",
                stacklevel=2,
            )
        self.epoch = epoch
        self._first = 0  # global batches of this epoch that were consumed
        self._begun = (epoch, 0)  # where the last iter began
        self._just_loaded = False
        fields = {"seed": seed, "batch_size": batch_size, "drop_last": drop_last, "shape_run": shape_run}
        self._identity = fields | {"rows": dataset.digest}

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    @property
    def drop_last(self) -> bool:
        return self.order.last == "drop"

    def __len__(self) -> int:
        """Batches of this rank from the start of an epoch to its end."""
        return self._steps(0)

    def remaining(self) -> int:
        """Batches of this rank that are left in the current epoch."""
        return self._steps(self._first)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; then the next epoch is the current one."""
        epoch = self.epoch
        yield from self.rest()
        self.finish(epoch)

    def rest(self) -> Iterator[Batch]:
        """Yield the rest of the epoch, and leave the count to `advance` and `finish`."""
        self._just_loaded = False
        epoch, first = self._begun = self.epoch, self._first
        for step in range(self._steps(first)):
            yield self.batch(epoch, first + step * self.ranks.num_groups + self.ranks.group)

    def batch(self, epoch: int, number: int) -> Batch:
        """The global batch of this number, which may lie beyond the end of the epoch when batches wrap."""
        bucket, places = self.order.batch(epoch, number % self.order.num_batches)
        members = self._members[bucket]
        positions = places if members is None else members.values[places]
        return Batch(np.asarray(positions).tolist(), seed=self.order.seed, epoch=epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch. Right after `load_state_dict` of that epoch: stay where the state says."""
        if not (self._just_loaded and epoch == self.epoch):
            self.epoch, self._first = epoch, 0
        self._just_loaded = False

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Where this run is: the same on every rank.

        Args:
            steps: batches that were consumed since the last `iter` began. A DataLoader with workers asks for batches
                before it hands them out, so the sampler itself cannot know. (`Loader` counts them.)
        """
        epoch, batches = self.epoch, self._first
        if steps is not None:
            epoch, first = self._begun
            batches = first + steps * self.ranks.num_groups
            if steps >= self._steps(first):
                epoch, batches = epoch + 1, 0
        return {"version": STATE_VERSION, "epoch": epoch, "batches": batches, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another run was, with any number of ranks and workers.

        Raises:
            StateError: it was saved with other rows or in another order; names each difference.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise StateError(f"not a state of this version of latentmill: {state!r}")
        ours = self._identity
        differing = [
            f"{name} was {state.get(name)!r}, is {ours[name]!r}" for name in ours if state.get(name) != ours[name]
        ]
        if differing:
            hint = ""
            if state.get("rows") != ours["rows"]:
                hint = ". Rows that were committed since? `save_index` and `open(..., index=)` keep those of the start"
            raise StateError(f"the state belongs to another order: {'; '.join(differing)}{hint}")
        self.epoch, self._first = int(state["epoch"]), int(state["batches"])
        self._just_loaded = True

    def advance(self, steps: int) -> None:
        """Count steps as consumed: the next `iter` begins after them."""
        self._first += steps * self.ranks.num_groups

    def finish(self, epoch: int) -> None:
        """End an epoch: the next one is current, unless somebody went elsewhere meanwhile."""
        if self.epoch == epoch:
            self.epoch, self._first = epoch + 1, 0

    def _steps(self, first: int) -> int:
        left = max(self.order.num_batches - first, 0)
        groups, group = self.ranks.num_groups, self.ranks.group
        if self.order.last == "short":
            return max(-(-(left - group) // groups), 0)
        return -(-left // groups) if self.order.last == "wrap" else left // groups
