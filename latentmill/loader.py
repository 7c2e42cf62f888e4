"""Loader: batches for training that are read ahead, in an order that resumes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from latentmill.rows import Rows
from latentmill.sampler import Batch, BatchSampler, DropLast
from latentmill.tensors import ReadAhead, Sample, collate

log = logging.getLogger(__name__)


class Loader:
    """Yields {"latent": Tensor[B, C, T', H', W'], "id": list[str], "caption": list[str | None], ...} for one rank.

    It is a torch DataLoader around `BatchSampler`, and it counts the batches that it has yielded. The sampler cuts an
    epoch into batches and deals them to ranks. `iter` continues where the last one stopped; at the end of an epoch the
    next one begins. Give every rank the same arguments except `rank`.

    Args:
        dataset: what `latentmill.open` returned, or a selection of it.
        batch_size: rows in a batch of one rank.
        seed: decides the order of the rows.
        rank: the rank of this process.
        world_size: the number of processes that train.
        context_parallel_size: how many neighbouring ranks get the same batches.
        drop_last: what happens to rows that fill no batch. True: this epoch leaves them out. False: they form smaller
            batches. "wrap": rows of the same shape fill the batch and occur twice.
        shape_run: the number of consecutive global batches of one shape.
        epoch: the number of the first epoch.
        same_epoch: each `iter` begins `epoch` anew, and `set_epoch` changes nothing: the same batches, for validation.
        workers: processes that read. 0: threads of this process read; this suffices for most disks and networks.
        prefetch: batches that each worker, or this process, reads ahead.
        options: other arguments of torch's DataLoader: `pin_memory`, `multiprocessing_context`, `timeout`, ...
            `collate_fn` may return anything; the loader yields it as it is.
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
        workers: int = 0,
        prefetch: int = 2,
        **options: Any,
    ) -> None:
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
            same_epoch=same_epoch,
        )
        self.damaged: list[str] = []
        """With `open(..., damaged="skip")`: ids of the rows that were left out because their bytes are wrong."""
        if workers:
            options = {"persistent_workers": True, "prefetch_factor": prefetch} | options
            if not dataset.survive_fork:
                options = {"multiprocessing_context": "spawn"} | options
        self._torch: DataLoader[Any] = DataLoader(
            _Reads(dataset),  # type: ignore[arg-type]
            batch_sampler=_Ahead(self.sampler, max(workers, 1), prefetch),
            num_workers=workers,
            collate_fn=_Collate(options.pop("collate_fn", None) or collate),
            **options,
        )

    def __len__(self) -> int:
        """Return the number of batches of this rank in a whole epoch, also after a resume in the middle of one."""
        return len(self.sampler)

    def remaining(self) -> int:
        """Return the number of batches of this rank that the next `iter` yields."""
        return self.sampler.remaining()

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches that are left of the epoch."""
        epoch = self.sampler.epoch
        for batch, damaged in self._torch:
            self.sampler.advance(1)
            if damaged:
                log.warning("damaged rows left out: %s", ", ".join(damaged))
                self.damaged += damaged
            yield batch
        self.sampler.finish(epoch)

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. Between `load_state_dict` of it and the next `iter` this changes nothing."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue after the last yielded batch: the same on every rank."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another run stopped, with any number of ranks and workers.

        Raises:
            StateError: the state was saved with other rows or in another order. The message names each difference.
        """
        self.sampler.load_state_dict(state)


class _Reads:
    """The rows as torch's DataLoader asks for them: batch by batch."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._ahead = rows, ReadAhead()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        return self._ahead.samples(self._rows, positions)


class _Collate:
    """Makes a batch, and tells the ids of the rows that it leaves out, whatever the batch is."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> tuple[Any, list[str]]:
        return self._collate(samples), samples[0].damaged or []


class _Ahead:
    """Yields the batches of a sampler. Each carries the next batches of the same worker; torch deals them in turn."""

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
