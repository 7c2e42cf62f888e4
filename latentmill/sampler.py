"""BatchSampler: the batches of one rank, for a plain torch DataLoader.

sampler = latentmill.BatchSampler(latents, batch_size=4, seed=0, rank=rank, world_size=world)
loader = DataLoader(latents, batch_sampler=sampler, num_workers=4)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from latentmill.errors import StateError
from latentmill.order import Last, Order
from latentmill.rows import Rows

STATE_VERSION = 1

DropLast = bool | Literal["wrap"]
_LAST: dict[DropLast, Last] = {True: "drop", False: "short", "wrap": "wrap"}


class Batch(list[int]):
    """The positions of one batch in the dataset, and what a worker needs to read them."""

    def __init__(self, positions: Any = (), *, seed: int = 0, epoch: int = 0) -> None:
        super().__init__(positions)
        self.seed = seed
        """Seed of the noise for draws from stored moments."""
        self.epoch = epoch
        self.ahead: tuple[list[int], ...] = ()
        """The next batches of the same process. It may begin to read them."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of the global batches one rank gets.

    Ranks that share the work on one sample (context, tensor or pipeline parallel) are neighbours: ranks 0..n-1 form the
    first group and get the same batches.
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
        """The group of this rank."""
        return self.rank // self.context_parallel_size

    @property
    def num_groups(self) -> int:
        """The number of groups that get different batches: the data-parallel size."""
        return self.world_size // self.context_parallel_size


class BatchSampler:
    """Yields the batches of one rank, each a list of positions in the dataset, all of one shape.

    The global batches of an epoch are a pure function of (rows, batch_size, seed, epoch, drop_last, shape_run). Step s
    of rank group g is global batch `first + s * groups + g`. At the end of an epoch:

        drop_last=True     every rank has the same number of full batches; rows that fill no batch or step are left out
        drop_last=False    every row occurs once; the last batch of a bucket may be smaller, and in the last step some
                           ranks may have no batch
        drop_last="wrap"   every row occurs at least once; rows of the same bucket fill its last batch, and the first
                           batches of the epoch fill the last step

    `iter` continues at the current state, and at the end of an epoch the next one begins: epochs differ without
    `set_epoch`. Ranks do not communicate: give each the same arguments except `rank`. What `iter` returns has its own
    state, which torchdata's StatefulDataLoader saves.

    Args:
        dataset: what `latentmill.open` returned, or a selection of it.
        batch_size: rows in a batch of one rank.
        seed: decides the order of the rows, and the noise of draws from stored moments.
        rank: the rank of this process.
        world_size: the number of processes that train.
        context_parallel_size: how many neighbouring ranks get the same batches.
        drop_last: what happens to rows that fill no batch; see above.
        shape_run: the number of consecutive global batches of one shape. The number of data-parallel ranks gives all
            ranks one shape at each step.
        epoch: the number of the first epoch.
        same_epoch: each `iter` begins `epoch` anew, also after a loop that was left early, and `set_epoch` changes
            nothing: the same batches each time, for validation.
    """

    def __init__(
        self,
        dataset: Rows,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        context_parallel_size: int = 1,
        drop_last: DropLast = True,
        shape_run: int = 1,
        epoch: int = 0,
        same_epoch: bool = False,
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
        self.epoch = _whole("epoch", epoch)
        self.same_epoch = same_epoch
        self._first = 0  # global batches of this epoch that are consumed
        self._begun = (epoch, 0)  # where the last `iter` began
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
        """Return the number of batches of this rank in a whole epoch, also in the middle of one."""
        return self._steps(0)

    def remaining(self) -> int:
        """Return the number of batches of this rank that the next `iter` yields."""
        return self._steps(0 if self.same_epoch else self._first)

    def __iter__(self) -> Batches:
        """Return the batches that are left of the epoch. At their end the sampler goes to the next epoch."""
        return Batches(self)

    def begin(self) -> tuple[int, int]:
        """Begin to yield. Return the epoch, and how many global batches of it are consumed."""
        self._just_loaded = False
        if self.same_epoch:
            self._first = 0
        self._begun = self.epoch, self._first
        return self._begun

    def rest(self) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch. The caller counts them with `advance` and `finish`."""
        epoch, first = self.begin()
        for step in range(self._steps(first)):
            yield self.batch(epoch, first + step * self.ranks.num_groups + self.ranks.group)

    def batch(self, epoch: int, number: int) -> Batch:
        """Return a global batch. With "wrap", its number may lie beyond the end of the epoch."""
        bucket, places = self.order.batch(epoch, number % self.order.num_batches)
        members = self._members[bucket]
        positions = places if members is None else members.values[places]
        return Batch(np.asarray(positions).tolist(), seed=self.order.seed, epoch=epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch.

        Between `load_state_dict` of the same epoch and the next `iter` this changes nothing, even if called twice.
        """
        epoch = _whole("epoch", epoch)
        if not self.same_epoch and not (self._just_loaded and epoch == self.epoch):
            self.epoch, self._first, self._just_loaded = epoch, 0, False

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return where this run is. It is the same on every rank.

        Args:
            steps: batches that were consumed since the last `iter` began. The sampler cannot know them: a DataLoader
                with workers asks for batches before it yields them. `Loader` counts them.
        """
        if steps is None:
            return self.state_at(self.epoch, self._first)
        epoch, first = self._begun
        is_over = steps >= self._steps(first)
        return self.state_at(*self.after(epoch) if is_over else (epoch, first + steps * self.ranks.num_groups))

    def state_at(self, epoch: int, batches: int) -> dict[str, Any]:
        """Return the state of a run that has consumed so many global batches of an epoch."""
        return {"version": STATE_VERSION, "epoch": epoch, "batches": batches, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another run stopped, with any number of ranks and workers.

        Raises:
            StateError: the state was saved with other rows or in another order. The message names each difference.
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
        try:
            epoch, batches = (_whole(name, state.get(name)) for name in ("epoch", "batches"))
        except ValueError as error:
            raise StateError(f"not a state of latentmill: {error}") from error
        self.epoch, self._first, self._just_loaded = epoch, batches, True

    def advance(self, steps: int) -> None:
        """Count steps as consumed. The next `iter` begins after them."""
        self._first += steps * self.ranks.num_groups

    def finish(self, epoch: int) -> None:
        """End an epoch: go to the next one, unless `set_epoch` or `load_state_dict` went elsewhere meanwhile."""
        if self.epoch == epoch:
            self.epoch, self._first = self.after(epoch)

    def after(self, epoch: int) -> tuple[int, int]:
        """Return the epoch that begins when one is over, and that no batch of it is consumed."""
        return epoch if self.same_epoch else epoch + 1, 0

    def _steps(self, first: int) -> int:
        left = max(self.order.num_batches - first, 0)
        groups, group = self.ranks.num_groups, self.ranks.group
        if self.order.last == "short":
            return max(-(-(left - group) // groups), 0)
        return -(-left // groups) if self.order.last == "wrap" else left // groups


class Batches(Iterator[Batch]):
    """The batches that are left of an epoch, for one `iter` of a sampler.

    torchdata's StatefulDataLoader takes the sampler for stateful and saves this state, too: it tells how far the epoch
    is, which the sampler itself cannot know.
    """

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler = sampler
        self._begin()

    def _begin(self) -> None:
        self._epoch, self._first = self._sampler.begin()
        self._steps = self._sampler.remaining()
        self._step = 0
        self._is_over = False

    def __next__(self) -> Batch:
        if self._step == self._steps:
            if not self._is_over:
                self._is_over = True
                self._sampler.finish(self._epoch)
            raise StopIteration
        ranks = self._sampler.ranks
        number = self._first + self._step * ranks.num_groups + ranks.group
        self._step += 1
        return self._sampler.batch(self._epoch, number)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last yielded batch."""
        sampler = self._sampler
        consumed = self._first + self._step * sampler.ranks.num_groups
        return sampler.state_at(*sampler.after(self._epoch) if self._is_over else (self._epoch, consumed))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was yielded before. Raises StateError as `BatchSampler` does."""
        self._sampler.load_state_dict(state)
        self._begin()


def _whole(name: str, value: Any) -> int:
    """Return a whole number that is at least 0. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    return int(value)
