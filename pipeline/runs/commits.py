"""Commits under way: threads that wait for storage, so that the driver never does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from queue import SimpleQueue

from pipeline.output.commit import Committed
from pipeline.records import CompleteShard

COMMITS_IN_FLIGHT = 2
"""Least number of commits at a time. Each holds its data file in memory; more would compete with staging."""

ENCODERS_PER_COMMIT = 16
"""Encoders for which there is one commit at a time. At 50 ms a request, the commit of 64 clips takes 1.1 s; meanwhile
16 encoders of 3 clips/s make 53 clips."""


def commits_in_flight(encoders: float) -> int:
    """Return the number of commits at a time that keep up with these encoders."""
    return max(COMMITS_IN_FLIGHT, ceil(encoders / ENCODERS_PER_COMMIT))


class Commits:
    """The commits of one run. Each receipt asks it, so no call looks at all commits."""

    def __init__(
        self, commit: Callable[[CompleteShard], Committed], release: Callable[[str], None], encoders: float
    ) -> None:
        """Make the threads. `release` gives up the claim on a shard, which takes a request too."""
        self._commit, self._release = commit, release
        self._pool = ThreadPoolExecutor(commits_in_flight(encoders))
        self._names: set[str] = set()
        self._ended: SimpleQueue[tuple[CompleteShard, Future[Committed]]] = SimpleQueue()

    def __contains__(self, shard: str) -> bool:
        """Return whether the commit of this shard was begun, and `ended` has not told its end."""
        return shard in self._names

    def begin(self, shard: CompleteShard) -> None:
        """Commit a shard as soon as a thread is free."""
        self._names.add(shard.name)
        future = self._pool.submit(self._whole, shard)
        future.add_done_callback(lambda future: self._ended.put((shard, future)))

    def ended(self, *, wait: bool = False) -> Iterator[tuple[CompleteShard, Future[Committed]]]:
        """Yield each commit that has ended, once; with `wait`, until none is under way."""
        while not self._ended.empty() or (wait and self._names):
            shard, future = self._ended.get()
            self._names.discard(shard.name)
            yield shard, future

    def abandon(self) -> None:
        """Begin no further commit, and do not wait for those under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _whole(self, shard: CompleteShard) -> Committed:
        committed = self._commit(shard)
        if not committed.missing:
            self._release(shard.name)
        return committed
