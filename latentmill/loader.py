"""Loader: batches for training, read ahead, in an order that resumes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from latentmill.sampler import Batch, BatchSampler, DropLast

if TYPE_CHECKING:
    from latentmill.dataset import LatentDataset

log = logging.getLogger(__name__)


class Loader:
    """Yields {"latent": Tensor[B, C, T', H', W'], "id": list[str], "caption": list[str | None], ...} for one rank.

    It is a torch DataLoader around `BatchSampler`, which says how an epoch is cut into batches and dealt to ranks; and
    it counts what it has handed out. An `iter` goes on where the last one was left; at the end of an epoch the next
    one begins. Give every rank the same arguments but `rank`.

    Args:
        dataset: what `latentmill.open` returned, or a selection of it.
        batch_size: rows in a batch of one rank.
        seed: another seed, another order.
        rank: of this process.
        world_size: how many processes train.
        context_parallel_size: neighbouring ranks that get the same batches.
        drop_last: what becomes of rows that fill no batch: True, they are left out of this epoch; False, they form
            smaller batches; "wrap", rows of the same shape come a second time.
        shape_run: this many consecutive global batches have one shape.
        epoch: the first one.
        workers: processes that read. 0: threads of this process read, which is enough for most disks and networks.
        prefetch: batches that each worker, or this process, reads ahead.
        options: for torch's DataLoader: `pin_memory`, `multiprocessing_context`, `timeout`, `worker_init_fn`, ...
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
        workers: int = 0,
        prefetch: int = 2,
        **options: Any,
    ) -> None:
        from torch.utils.data import DataLoader

        from latentmill.tensors import collate

        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers must be at least 0 and prefetch at least 1, got {workers} and {prefetch}")
        self.dataset = dataset
        self.sampler = BatchSampler(
            dataset,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            context_parallel_size=context_parallel_size,
            drop_last=drop_last,
            shape_run=shape_run,
            epoch=epoch,
        )
        self.damaged: list[str] = []
        """Ids of the rows that were left out because their bytes are wrong, where `open` was told to skip them."""
        if workers:
            options = {"persistent_workers": True, "prefetch_factor": prefetch} | options
        self._torch: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=_Ahead(self.sampler, max(workers, 1), prefetch),
            num_workers=workers,
            **{"collate_fn": collate} | options,
        )

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rest of the epoch."""
        epoch = self.sampler.epoch
        for batch in self._torch:
            self.sampler.advance(1)
            if batch.get("damaged"):
                log.warning("damaged rows left out: %s", ", ".join(batch["damaged"]))
                self.damaged += batch["damaged"]
            yield batch
        self.sampler.finish(epoch)

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch. Right after `load_state_dict` of that epoch: stay where the state says."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after the last batch that was handed out: the same on every rank."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another run was, with any number of ranks and workers.

        Raises:
            StateError: it was saved with other rows or in another order; names each difference.
        """
        self.sampler.load_state_dict(state)


class _Ahead:
    """The batches of a sampler, each with those that come next to the same worker: torch deals them in turn."""

    def __init__(self, sampler: BatchSampler, workers: int, depth: int) -> None:
        self._sampler, self._workers, self._depth = sampler, workers, depth

    def __len__(self) -> int:
        return self._sampler.remaining()

    def __iter__(self) -> Iterator[Batch]:
        batches = self._sampler.rest()
        window: deque[Batch] = deque(islice(batches, self._workers * self._depth + 1))
        while window:
            batch = window.popleft()
            window.extend(islice(batches, 1))
            batch.ahead = tuple(list(one) for one in islice(window, self._workers - 1, None, self._workers))[
                : self._depth
            ]
            yield batch
