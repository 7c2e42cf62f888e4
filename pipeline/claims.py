"""Claims: several runs on one output share its shards instead of repeating them. Correctness never depends on one.

A run takes `_claims/<shard>`, create-only, before it reads the shard, and renews what it holds. A claim that nobody
renewed for STALE_SECONDS, by the store's own clock, belongs to a dead run and is taken over. Two runs that disagree do
the same work twice and commit the same bytes once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.storage import Storage

CLAIMS = "_claims"

STALE_SECONDS = 600.0
"""Age at which a claim counts as abandoned."""

RENEW_SECONDS = 120.0
"""A run renews its claims this often: four chances to be late before anybody takes over."""


class Claims:
    """The shards that one run holds. `run` makes it an actor beside the driver: one answer for every attempt."""

    def __init__(self, output: Storage, run: str) -> None:
        self._output = output
        self._run = run.encode()
        self._answers: dict[str, bool] = {}
        self._stopped = False

    def take(self, shard: str) -> bool:
        """Whether this run processes the shard. The answer is sticky: a retried task must do what the first one did."""
        if shard not in self._answers:
            self._answers[shard] = not self._stopped and self._claim(f"{CLAIMS}/{shard}")
        return self._answers[shard]

    def stop(self) -> None:
        """Take no further shard: what is open is finished, the rest is left."""
        self._stopped = True

    def renew(self) -> None:
        """Show that this run is alive."""
        for shard, ours in self._answers.items():
            if ours:
                self._output.put(f"{CLAIMS}/{shard}", self._run)

    def release(self, shard: str) -> None:
        """The shard is committed, or given up."""
        if self._answers.pop(shard, False):
            self._output.delete(f"{CLAIMS}/{shard}")

    def release_all(self) -> None:
        """The end of the run, or of one of its passes."""
        for shard in list(self._answers):
            self.release(shard)

    def _claim(self, path: str) -> bool:
        if self._output.create(path, self._run):
            return True
        entry = next((entry for entry in self._output.list(path) if entry.path == path), None)
        if entry is not None and self._output.now() - entry.mtime < STALE_SECONDS:
            return self._output.read(path) == self._run
        self._output.put(path, self._run)
        return self._output.read(path) == self._run
