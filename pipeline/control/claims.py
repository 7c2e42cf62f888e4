"""Claims: several runs on one output share its shards instead of repeating them. Correctness never depends on one.

A run takes `_claims/<shard>`, create-only, before it reads the shard, and renews what it holds. A claim that nobody
renewed for STALE_SECONDS belongs to a dead run and is taken over. Its age is told by the store's own clock, or, where
that clock was set back and the claim is dated in the future, by how long this run has seen it unchanged. A claim whose
driver ran on this very machine and is gone is taken over at once, which makes a restart after a kill immediate; one
that cannot be read is nobody's, and goes stale by age alone. Two runs that disagree do the same work twice and commit
the same bytes once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import NotFoundError
from pipeline.output.layout import claim_path, data_path
from pipeline.records import canonical_json

if TYPE_CHECKING:
    from pipeline.storage import Storage

STALE_SECONDS = 600.0
"""Age at which a claim counts as abandoned."""

RENEW_SECONDS = 120.0
"""A run renews its claims this often: four chances to be late before anybody takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The driver behind a claim, so that another process on its machine can tell whether it lives."""

    run: str
    machine: str
    """Boot id and process namespace; "" where the system tells neither."""
    pid: int
    started: str
    """Kernel ticks at the start of the process: a number that came back is another process."""

    @staticmethod
    def this_process(run: str) -> Owner:
        """The calling process as an owner."""
        return Owner(run=run, machine=_machine(), pid=os.getpid(), started=_started(os.getpid()))

    @staticmethod
    def parse(claim: bytes) -> Owner | None:
        """The owner that a claim names; None where it cannot be read."""
        try:
            return Owner(**json.loads(claim))
        except (TypeError, ValueError):
            return None

    def is_dead(self) -> bool:
        """Whether it certainly ended. Of a process on another machine nothing is certain."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


class Claims:
    """The shards that one run holds. `run` makes it an actor beside the driver: one answer for every attempt."""

    def __init__(self, output: Storage, owner: Owner, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._seen: dict[str, tuple[float, float]] = {}
        """Of claims by others: when they were renewed, by the store's clock, and when that was first seen, by ours."""
        self._owner = canonical_json(asdict(owner)).encode()
        self._answers: dict[str, bool] = {}
        self._stopped = False

    def take(self, shard: str) -> bool:
        """Whether this run processes the shard. The answer is sticky: a retried task must do what the first one did."""
        if shard not in self._answers:
            self._answers[shard] = not self._stopped and self._claim(claim_path(shard)) and self._is_open(shard)
        return self._answers[shard]

    def stop(self) -> None:
        """Take no further shard: what is open is finished, the rest is left."""
        self._stopped = True

    def renew(self) -> None:
        """Show that this run is alive."""
        for shard, ours in self._answers.items():
            if ours:
                self._output.put(claim_path(shard), self._owner)

    def release(self, shard: str) -> None:
        """The shard is committed, or given up."""
        if self._answers.pop(shard, False):
            self._output.delete(claim_path(shard))

    def release_all(self) -> None:
        """The end of the run, or of one of its passes."""
        for shard in list(self._answers):
            self.release(shard)

    def _is_open(self, shard: str) -> bool:
        """Whether the shard is still to be done: another run lets go of its claim once it has committed."""
        if self._output.exists(data_path(shard)):
            self._output.delete(claim_path(shard))
            return False
        return True

    def _claim(self, path: str) -> bool:
        try:
            if self._output.create(path, self._owner):
                return True
            holder = self._output.read(path)
            age = self._age(path)
        except NotFoundError:  # released meanwhile: its shard is done, or up for the next pass
            return False
        owner = Owner.parse(holder)
        if age < STALE_SECONDS and holder != self._owner and not (owner and owner.is_dead()):
            return False
        self._output.put(path, self._owner)
        return self._output.read(path) == self._owner

    def _age(self, path: str) -> float:
        """Seconds since a claim was renewed, at least."""
        renewed, now = self._output.entry(path).mtime, self._clock()
        if path not in self._seen or self._seen[path][0] != renewed:
            self._seen[path] = renewed, now
        return max(self._output.now() - renewed, now - self._seen[path][1])


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Field 22 of the process's stat (proc(5)); "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
