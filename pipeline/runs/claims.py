"""Claims: several runs on one output divide its shards. Correctness never depends on a claim.

A run creates `_claims/<shard>` (create-only) before it reads the shard, and renews its claims. A claim that was not
renewed for STALE_SECONDS belongs to a dead run, and another run takes it over. The clock of the store gives the age of
a claim. If that clock was set back, so that the claim has a date in the future, the age is the time for which this run
has seen the claim unchanged. If the driver of a claim ran on this machine and has ended, the claim is taken over at
once, so a restart after a kill does not wait. A claim that cannot be read has no owner and becomes stale by age only.
Two runs that both believe to hold a shard do the same work twice and commit the same bytes once.
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
"""How often a run renews its claims: four renewals may be late before another run takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The driver that holds a claim: another process on its machine can tell whether it still runs."""

    run: str
    machine: str
    """Boot id and process namespace; "" if the system does not tell them."""
    pid: int
    started: str
    """Kernel ticks at the start of the process: they tell it from a later process with the same number."""

    @staticmethod
    def this_process(run: str) -> Owner:
        """Return the calling process as an owner."""
        return Owner(run=run, machine=_machine(), pid=os.getpid(), started=_started(os.getpid()))

    @staticmethod
    def parse(claim: bytes) -> Owner | None:
        """Return the owner that a claim names, or None if the claim cannot be read."""
        try:
            return Owner(**json.loads(claim))
        except (TypeError, ValueError):
            return None

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended. Nothing is certain about a process on another machine."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


class Claims:
    """The shards that one run holds. It is an actor beside the driver, so all attempts of a task get one answer.

    Several threads may call it.
    """

    AT_A_TIME = 16
    """Calls at a time: at 50 ms a request, one after the other gives seven shards a second."""

    def __init__(
        self,
        output: Storage,
        owner: Owner,
        clock: Callable[[], float] = time.monotonic,
        *,
        claim: Callable[[str], str] = claim_path,
        done: Callable[[str], str] | None = data_path,
    ) -> None:
        """Hold claims at the path `claim(shard)`. A shard needs none once `done(shard)` exists, if given."""
        self._output = output
        self._clock = clock
        self._path, self._done = claim, done
        self._seen: dict[str, tuple[float, float]] = {}
        """Claims of other runs: the time of the last renewal (clock of the store), and when this run first saw it."""
        self._owner = canonical_json(asdict(owner)).encode()
        self._answers: dict[str, bool] = {}
        self._taken_over: list[tuple[str, str]] = []
        self._stopped = False

    def take(self, shard: str) -> bool:
        """Claim the shard and return whether this run processes it. A retried task gets the answer of the first one."""
        if shard not in self._answers:
            answer = not self._stopped and self._claim(shard) and self._is_open(shard)
            self._answers.setdefault(shard, answer)
        return self._answers[shard]

    def stop(self) -> None:
        """Refuse further shards. Shards that are open can be finished."""
        self._stopped = True

    def renew(self) -> None:
        """Renew every claim of this run."""
        for shard, ours in list(self._answers.items()):
            if ours and shard in self._answers:
                self._output.put(self._path(shard), self._owner)
                if shard not in self._answers:  # released meanwhile
                    self._output.delete(self._path(shard))

    def release(self, shard: str) -> None:
        """Delete the claim on a shard that is committed or left open."""
        if self._answers.pop(shard, False):
            self._output.delete(self._path(shard))

    def release_all(self) -> None:
        """Delete every claim, at the end of a run or of a pass."""
        for shard in list(self._answers):
            self.release(shard)

    def _is_open(self, shard: str) -> bool:
        """Return whether the shard is not done: another run deletes its claim after it committed."""
        if self._done and self._output.exists(self._done(shard)):
            self._output.delete(self._path(shard))
            return False
        return True

    def _claim(self, shard: str) -> bool:
        path = self._path(shard)
        try:
            if self._output.create(path, self._owner):
                return True
            holder = self._output.read(path)
            age = self._age(path)
        except NotFoundError:  # it was just released: the shard is done, or the next pass gets it
            return False
        owner = Owner.parse(holder)
        if age < STALE_SECONDS and holder != self._owner and not (owner and owner.is_dead()):
            return False
        self._output.put(path, self._owner)
        is_ours = self._output.read(path) == self._owner
        if is_ours and holder != self._owner:
            self._taken_over.append((shard, owner.run if owner else ""))
        return is_ours

    def taken_over(self) -> list[tuple[str, str]]:
        """Return, once, each shard whose claim this run took over, and the run that had it ("" if unknown)."""
        taken = self._taken_over.copy()
        del self._taken_over[: len(taken)]
        return taken

    def _age(self, path: str) -> float:
        """Return the least number of seconds since a claim was renewed."""
        renewed, now = self._output.entry(path).mtime, self._clock()
        if path not in self._seen or self._seen[path][0] != renewed:
            self._seen[path] = renewed, now
        return max(self._output.now() - renewed, now - self._seen[path][1])


class NoClaims:
    """The claims of a run that is alone, or that holds its place as a whole."""

    def stop(self) -> None:
        """Do nothing, as the other methods."""

    def renew(self) -> None: ...
    def taken_over(self) -> list[tuple[str, str]]:
        return []

    def release_all(self) -> None: ...


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return field 22 of the stat of a process (proc(5)), or "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
