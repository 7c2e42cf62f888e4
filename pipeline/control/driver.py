"""The driver: receipts in, commits out, until no shard is open. It knows no Ray: `run` gives it a stream and a commit.

One pass streams all open shards. Further passes take the shards that the first one could not finish: another run held
them and gave them up, or a part was lost. The last pass is one that commits nothing while no other run holds a shard.
If such a pass found lost or damaged parts, another pass follows, at most LOSSES times.

An output that cannot be written ends the run soon, because all further decoding and encoding would be lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Protocol

from latentmill.statistics.normalisation import alarms
from pipeline.control.claims import RENEW_SECONDS
from pipeline.control.commits import Commits
from pipeline.control.events import event, tell_committed
from pipeline.control.first_shards import FirstShards
from pipeline.control.ledger import Ledger
from pipeline.control.progress import Progress
from pipeline.control.stop import Stop
from pipeline.control.timer import every
from pipeline.decode import too_short
from pipeline.errors import StorageError
from pipeline.output.commit import Committed, sweep
from pipeline.output.layout import verdict_path
from pipeline.output.parts import MissingPartError, read_verdict
from pipeline.output.summary import Summary
from pipeline.output.tally import tally
from pipeline.output.unreachable import Unreachable
from pipeline.plan.frozen import Plan, read_plan
from pipeline.receipts import ElsewhereReceipt, FaultReceipt, PartReceipt, Receipt, RejectionReceipt, UnstoredReceipt
from pipeline.records import ChunkId, CompleteShard
from pipeline.settings.resolve import accepted_frames
from pipeline.settings.spec import Spec
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How often a run that waits for shards of another run looks whether they are done or given up."""

METRICS_SECONDS = 10.0
"""How often metrics change. Prometheus commonly reads them every 15 s."""

LOSSES = 3
"""Passes in a row that may commit nothing because parts were lost."""

MAX_FAILED_WRITES = 5
"""Failures in a row to put a part, to take a claim or to commit a shard that end the run. Each was retried for about
12 s before, if the error was a passing one."""


class Holder(Protocol):
    """What the driver needs of Claims."""

    def stop(self) -> None: ...
    def renew(self) -> None: ...
    def taken_over(self) -> list[tuple[str, str]]: ...
    def release(self, shard: str) -> None: ...
    def release_all(self) -> None: ...


class Driver:
    """One run: which shards are open, in work and done."""

    def __init__(
        self,
        output: Storage,
        plan: Plan,
        echo: Callable[[str], None],
        echo_seconds: float,
        *,
        give_up_after: int | None = None,
        keep_going: bool = False,
    ) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        self._output = output
        self._echo, self._echo_seconds = echo, echo_seconds
        self.measure: Callable[[Progress], None] = lambda _: None
        """Told the progress now and then."""
        self._plan = plan
        self.todo = list(plan.remaining())
        self.progress = Progress(
            num_shards=len(self.todo),
            num_done_before=plan.num_shards - plan.num_remaining,
            source_bytes={shard.name: shard.size for shard in self.todo},
            num_videos=plan.num_videos(),
            doing="starting Ray",
        )
        self._num_open = len(self.todo)
        self.num_shards = plan.num_shards
        self.done = {shard.name for shard in plan} & plan.done
        """Committed shards of the plan."""
        self._unreachable = give_up_after and Unreachable(output, give_up_after)
        self._ledger = Ledger()
        self._elsewhere: set[str] = set()
        self._failed_writes: Counter[str] = Counter()
        self._first_shards = FirstShards()
        self._keep_going = keep_going
        self._gave_up = ""
        self._losses = 0
        self._has_lost = False

    def drive(
        self,
        stream: Callable[[list[Shard]], Iterator[Receipt]],
        commit: Callable[[CompleteShard], Committed],
        claims: Holder,
        stop: Stop,
    ) -> None:
        """Run passes until everything is committed, a pass makes no progress, or a signal asks for a stop."""
        self.progress.doing = "waiting for the first clip: encoders load, videos are read"
        self._commits = Commits(commit, claims.release, self.progress.slots.get("encode", 0))
        with (
            every(self._echo_seconds, self._show),
            every(RENEW_SECONDS, lambda: self._keep(claims)),
            every(METRICS_SECONDS, lambda: self.measure(self.progress)),
            stop.calling(claims.stop),
        ):
            try:
                while self.todo and not stop.asked:
                    self._one_pass(stream, claims, stop)
                    if not self._next_pass(claims, stop):
                        break
            finally:  # when the grace period is over, commits may still run: do not wait for them
                self._commits.abandon()
                with contextlib.suppress(
                    StorageError
                ):  # a claim also becomes stale; where nothing can be written, this fails too
                    claims.release_all()
        self._show()
        self.measure(self.progress)

    def _show(self) -> None:
        self._echo(self.progress.line())
        event("progress", **self.progress.counts())

    def _keep(self, claims: Holder) -> None:
        claims.renew()
        self._tell_taken_over(claims)

    def _tell_taken_over(self, claims: Holder) -> None:
        for shard, owner in claims.taken_over():
            event("claim_taken_over", shard=shard, owner=owner)

    def _one_pass(self, stream: Callable[[list[Shard]], Iterator[Receipt]], claims: Holder, stop: Stop) -> None:
        self._ledger = Ledger()
        self._elsewhere.clear()
        self._has_lost = False
        event("pass_begun", shards=len(self.todo))
        self.todo = [self._recall(shard) for shard in self.todo]
        for receipt in stream(self.todo):
            self.progress.add(receipt)
            self._take(receipt)
            self._reap()
            self._judge_first_shards(claims, stop)
        self._reap(wait=True)
        self._tell_taken_over(claims)

    def _judge_first_shards(self, claims: Holder, stop: Stop) -> None:
        if not (self._keep_going or stop.asked) and (verdict := self._first_shards.verdict()):
            self._gave_up = verdict
            claims.stop()
            stop.ask(verdict)

    def _recall(self, shard: Shard) -> Shard:
        """Add what earlier runs staged to the ledger. Return the shard with the verdicts that can be read."""
        if not shard.staged:
            return shard
        if self._unreachable:
            shard = self._unreachable.recall(shard)
        for part in shard.staged.parts:
            self._ledger.add(PartReceipt(id=part))
        verdicts = []
        for video, clip in shard.staged.verdicts:
            try:
                rejection = read_verdict(self._output, shard.name, video, clip)
            except MissingPartError as error:
                log.warning("shard=%s verdict lost: %s", shard.name, error)
                self._output.delete(verdict_path(shard.name, video, clip))
                continue
            verdicts.append((video, clip))
            id = ChunkId(shard=shard.name, video=video, clip=clip)
            self._ledger.add(RejectionReceipt(id=id, rejection=rejection))
        return replace(shard, staged=replace(shard.staged, verdicts=tuple(verdicts)))

    def _take(self, receipt: Receipt) -> None:
        name = receipt.shard
        if name in self.progress.committed or name in self._commits:
            return  # a retried task repeats its receipts
        match receipt:
            case ElsewhereReceipt():
                self._elsewhere.add(name)
            case PartReceipt():
                self._failed_writes["part"] = 0
            case FaultReceipt(message=message):
                log.warning("shard=%s stays open: %s", name, message)
            case UnstoredReceipt(message=message):
                self._count_failure("part", name, message)
        if complete := self._ledger.add(receipt):
            self._first_shards.add(complete)
            self._commits.begin(complete)
        if isinstance(receipt, FaultReceipt):
            self._give_up(receipt)

    def _give_up(self, fault: FaultReceipt) -> None:
        """Reject the video of a fault after --give-up-after runs."""
        if self._unreachable and not self._ledger.knows(fault.shard, fault.video):
            for receipt in self._unreachable.judge(fault):
                self.progress.add(receipt)
                self._take(receipt)

    def _reap(self, *, wait: bool = False) -> None:
        for complete, future in self._commits.ended(wait=wait):
            name = complete.name
            try:
                committed = future.result()
            except Exception as error:  # any error leaves this shard open, and the other shards continue
                self._count_failure("commit", name, f"commit failed: {type(error).__name__}: {error}")
                continue
            self._failed_writes["commit"] = 0
            if committed.missing:
                self._has_lost = True
                self._ledger.reopen(name, list(committed.missing))
                continue
            self._ledger.forget(name)
            self.progress.commit(name)
            tell_committed(complete)

    def _count_failure(self, what: str, shard: str, message: str) -> None:
        """Log a failed write. Raise StorageError after MAX_FAILED_WRITES in a row."""
        log.warning("shard=%s stays open: %s", shard, message)
        self._failed_writes[what] += 1
        if self._failed_writes[what] >= MAX_FAILED_WRITES:
            raise StorageError(
                f"{redacted(self._output.uri)}: gave up after {MAX_FAILED_WRITES} failures in a row to write there, "
                f"the last: {message}. What is staged and committed stays: run the same command again to resume"
            )

    def _next_pass(self, claims: Holder, stop: Stop) -> bool:
        """Update the list of open shards. Return whether another pass can make progress."""
        before = len(self.todo)
        claims.release_all()
        sweep(self._output, self.look().leftovers)
        held = [shard.name for shard in self.todo if shard.name in self._elsewhere]
        if held and not stop.asked:
            self.progress.doing = f"waiting for {len(held)} shards that another run holds"
            stop.wait(POLL_SECONDS)
            return True
        self._losses = self._losses + 1 if self._has_lost and len(self.todo) == before else 0
        return len(self.todo) < before or 0 < self._losses <= LOSSES

    def look(self) -> Plan:
        """Update the done and open shards from the output."""
        now, mine = read_plan(self._output), {shard.name for shard in self.todo}
        self.done |= mine & now.done
        for name in mine & now.done:
            self.progress.commit(name)
        self.todo = [shard for shard in now.remaining() if shard.name in mine]
        return now

    def finish(self, stopped: str, spec: Spec) -> Summary:
        """Return the summary: what the output held at the last look, and what this run did.

        `stopped` is the signal that ended the run early, or "".
        """
        counts = tally(self._output, sorted(self.done), self._plan.superseded(self.done))
        waiting = self._ledger.still_open()
        summary = Summary(
            planned_shards=self.num_shards,
            done_shards=len(self.done),
            planned=counts.planned,
            latents=counts.latents,
            rejected=counts.rejected,
            latent_bytes=counts.latent_bytes,
            too_short=counts.too_short,
            captions=counts.captions,
            hint=too_short.hint(counts.too_short, accepted_frames(spec)),
            alarms=tuple(alarms(counts.statistics, json.loads(spec.to_json())) if counts.statistics else ()),
            stopped=stopped,
            gave_up=self._gave_up,
            began_whole=not self._num_open,
            parts_staged=self.progress.parts,
            clips_encoded=self.progress.clips,
            wall_seconds=self.progress.elapsed,
            busy_seconds=dict(self.progress.seconds),
            open_shards={shard.name: waiting.get(shard.name, "not begun") for shard in self.todo},
        )
        event("run_ended", **asdict(summary))
        return summary
