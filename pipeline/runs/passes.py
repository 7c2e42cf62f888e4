"""Passes over the open shards, until none is open: the engine of every run. It knows no Ray, nor what is made.

One pass makes all open shards. Further passes take the shards that the first one could not finish: another run held
them and gave them up, or something of them was lost. The last pass is one that finishes nothing while no other run
holds a shard. If such a pass found something lost, another pass follows, at most LOSSES times.

An output that cannot be written ends the run soon, because all further work would be lost.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Generic, Protocol, TypeVar

from pipeline.errors import EncoderError, StorageError
from pipeline.runs.claims import RENEW_SECONDS
from pipeline.runs.events import event
from pipeline.runs.progress import Progress
from pipeline.runs.run_records import RunRecord
from pipeline.runs.stop import Stop
from pipeline.runs.summary import RunSummary
from pipeline.runs.timer import every
from pipeline.runs.work import Outcome, Work
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How often a run that waits for shards of another run looks whether they are done or given up."""

METRICS_SECONDS = 10.0
"""How often metrics change. Prometheus commonly reads them every 15 s."""

LOSSES = 3
"""Passes in a row that may finish nothing because something was lost."""

MAX_FAILED_WRITES = 5
"""Failures of one kind in a row to write to the output that end the run. Each was retried for about 12 s before, if the
error was a passing one."""

S = TypeVar("S", bound=RunSummary)


class Holder(Protocol):
    """What the engine needs of Claims."""

    def stop(self) -> None: ...
    def renew(self) -> None: ...
    def taken_over(self) -> list[tuple[str, str]]: ...
    def release_all(self) -> None: ...


class Passes(Generic[S]):
    """One run over the shards of a Work."""

    ended: S
    """The summary of the run, once it has ended."""

    def __init__(self, work: Work[S], output: Storage, echo: Callable[[str], None], echo_seconds: float) -> None:
        """`echo` gets a progress line every `echo_seconds`."""
        self.run_id = uuid.uuid4().hex[:12]
        self._work, self._output = work, output
        self._echo, self._echo_seconds = echo, echo_seconds
        self._elsewhere: set[str] = set()
        self._failed_writes: Counter[str] = Counter()
        self._gave_up = ""
        self._losses = 0
        self.has_lost = False
        """Whether something was lost in this pass: another one makes it again."""

    def drive(self, claims: Holder, stop: Stop, measure: Callable[[Progress], None] = lambda _: None) -> None:
        """Run passes until everything is done, a pass makes no progress, or a signal asks for a stop.

        `measure` is told the progress now and then.

        Raises:
            StorageError: the output cannot be written.
        """
        progress = self._work.progress
        with (
            every(self._echo_seconds, self._show),
            every(RENEW_SECONDS, lambda: _keep(claims)),
            every(METRICS_SECONDS, lambda: measure(progress)),
            stop.calling(claims.stop),
        ):
            try:
                while self._work.left() and not stop.asked:
                    self._one_pass(claims, stop)
                    if not self._next_pass(claims, stop):
                        break
            finally:
                with contextlib.suppress(StorageError):  # a claim also becomes stale; nothing may be writable
                    claims.release_all()
        self._show()
        measure(progress)

    @contextlib.contextmanager
    def recorded(self, stop: Stop, record: RunRecord | None = None) -> Iterator[None]:
        """Make the summary, and put the record, when the body ends. Its error, if any, has the summary as a note."""
        try:
            yield
        except (EncoderError, StorageError) as error:
            with contextlib.suppress(StorageError):  # where the output does not answer, nothing more is known
                self._work.look()
                self.end(stop)
                error.add_note(self.ended.table())
                if record:
                    record.put(self._output, self.ended, failure=str(error))
            raise
        self.end(stop)
        if record:
            record.put(self._output, self.ended)

    def end(self, stop: Stop) -> None:
        """Make the summary, `ended`, and log it as an event."""
        progress = self._work.progress
        self.ended = self._work.summary(
            {
                "wall_seconds": progress.elapsed,
                "stopped": stop.by,
                "gave_up": self._gave_up,
                "open_shards": {shard: progress.problems.get(shard, "not begun") for shard in self._work.left()},
            }
        )
        event("run_ended", **asdict(self.ended))

    def _show(self) -> None:
        self._echo(self._work.progress.line())
        event("progress", **self._work.progress.counts())

    def _one_pass(self, claims: Holder, stop: Stop) -> None:
        self._elsewhere.clear()
        self.has_lost = False
        event("pass_begun", shards=len(self._work.left()))
        with contextlib.closing(self._work.make()) as outcomes:
            for outcome in outcomes:
                self._take(outcome, claims, stop)
        _tell_taken_over(claims)

    def _take(self, outcome: Outcome, claims: Holder, stop: Stop) -> None:
        progress, shard = self._work.progress, outcome.shard
        if shard in progress.done:
            return  # a retried task repeats itself
        match outcome.state:
            case "done":
                self._failed_writes[outcome.write] = 0
                is_first = not progress.done
                progress.finish(shard)
                event("shard_committed", shard=shard, **outcome.facts)
                if is_first:  # shown at once: it says that the run works, and how
                    self._show()
            case "stored":
                self._failed_writes[outcome.write] = 0
            case "elsewhere":
                self._elsewhere.add(shard)
                progress.elsewhere.add(shard)
            case "lost":
                self.has_lost = True
            case "open":
                log.warning("shard=%s stays open: %s", shard, outcome.message)
                progress.problems[shard] = outcome.message
                if outcome.write:
                    self._count_failure(outcome)
            case "hopeless" if not stop.asked:
                self._gave_up = outcome.message
                claims.stop()
                stop.ask(outcome.message)

    def _count_failure(self, outcome: Outcome) -> None:
        """Count a failed write. Raise StorageError after MAX_FAILED_WRITES in a row."""
        self._failed_writes[outcome.write] += 1
        if self._failed_writes[outcome.write] >= MAX_FAILED_WRITES:
            raise StorageError(
                f"{redacted(self._output.uri)}: gave up after {MAX_FAILED_WRITES} failures in a row to write there, "
                f"the last: {outcome.message}. What is written stays: run the same command again to resume"
            )

    def _next_pass(self, claims: Holder, stop: Stop) -> bool:
        """Look what is open. Return whether another pass can make progress."""
        before = self._work.left()
        claims.release_all()
        self._work.look()
        left = self._work.left()
        self._work.progress.find(set(before) - set(left))
        held = self._elsewhere.intersection(left)
        if held and not stop.asked:
            self._work.progress.doing = f"waiting for {len(held)} shards that another run holds"
            stop.wait(POLL_SECONDS)
            return True
        has_progress = len(left) < len(before)
        self._losses = self._losses + 1 if self.has_lost and not has_progress else 0
        return has_progress or 0 < self._losses <= LOSSES


def _keep(claims: Holder) -> None:
    claims.renew()
    _tell_taken_over(claims)


def _tell_taken_over(claims: Holder) -> None:
    for shard, owner in claims.taken_over():
        event("claim_taken_over", shard=shard, owner=owner)
