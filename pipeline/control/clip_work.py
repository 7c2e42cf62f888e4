"""The clips of the open shards as the engine sees them: receipts in, commits out. It knows no Ray: `run` gives it a
stream and a commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial

from pipeline.control.first_shards import FirstShards
from pipeline.control.planned import PlannedShards
from pipeline.control.progress import ClipProgress
from pipeline.control.summary import Summary
from pipeline.output.commit import Committed, commit
from pipeline.output.layout import verdict_path
from pipeline.output.parts import MissingPartError, read_verdict
from pipeline.output.unreachable import Unreachable
from pipeline.plan.frozen import Plan
from pipeline.receipts import ElsewhereReceipt, FaultReceipt, PartReceipt, Receipt, RejectionReceipt, UnstoredReceipt
from pipeline.records import ChunkId, CompleteShard
from pipeline.runs.commits import Commits
from pipeline.runs.events import event
from pipeline.runs.ledger import Ledger
from pipeline.runs.summary import Ending
from pipeline.runs.work import Outcome
from pipeline.settings.spec import Spec
from pipeline.shards import Shard
from pipeline.storage import Storage

log = logging.getLogger(__name__)

STORED = Outcome(shard="", state="stored", write="part")


class ClipWork(PlannedShards):
    """A Work: the clips of the shards of a plan."""

    stream: Callable[[list[Shard]], Iterator[Receipt]]
    """Reads, decodes, encodes and stages these shards."""
    release: Callable[[str], None]
    """Gives up the claim on a committed shard."""

    def __init__(
        self, output: Storage, plan: Plan, spec: Spec, *, give_up_after: int | None = None, keep_going: bool = False
    ) -> None:
        super().__init__(output, plan, spec)
        self.commit: Callable[[Storage, str, CompleteShard], Committed] = commit
        """Commits a shard: in this process, or elsewhere."""
        self.progress = ClipProgress(
            num_shards=len(self._todo),
            num_done_before=plan.num_shards - plan.num_remaining,
            source_bytes={shard.name: shard.size for shard in self._todo},
            num_videos=plan.num_videos(),
            doing="starting Ray",
        )
        self._unreachable = give_up_after and Unreachable(output, give_up_after)
        self._ledger = Ledger()
        self._first_shards = FirstShards()
        self._keep_going = keep_going

    def make(self) -> Generator[Outcome, None, None]:
        self._ledger = Ledger()
        commit = partial(self.commit, self._output, self._spec.to_json())
        self._commits = Commits(commit, self.release, self.progress.slots.get("encode", 0))
        try:
            self._todo = [self._recall(shard) for shard in self._todo]
            for receipt in self.stream(self._todo):
                self.progress.add(receipt)
                yield from self._take(receipt)
                yield from self._reap()
            yield from self._reap(wait=True)
        finally:  # when the grace period is over, commits may still run: do not wait for them
            self._commits.abandon()

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

    def _take(self, receipt: Receipt) -> Iterator[Outcome]:
        name = receipt.shard
        if name in self.progress.done or name in self._commits:
            return  # a retried task repeats its receipts
        match receipt:
            case ElsewhereReceipt():
                yield Outcome(shard=name, state="elsewhere")
            case PartReceipt():
                yield STORED
            case FaultReceipt(message=message):
                yield Outcome(shard=name, state="open", message=message)
            case UnstoredReceipt(message=message):
                yield Outcome(shard=name, state="open", message=message, write="part")
        if complete := self._ledger.add(receipt):
            self._first_shards.add(complete)
            self._commits.begin(complete)
            if not self._keep_going and (verdict := self._first_shards.verdict()):
                yield Outcome(shard=name, state="hopeless", message=verdict)
        if isinstance(receipt, FaultReceipt):
            yield from self._give_up(receipt)

    def _give_up(self, fault: FaultReceipt) -> Iterator[Outcome]:
        """Reject the video of a fault after --give-up-after runs."""
        if self._unreachable and not self._ledger.knows(fault.shard, fault.video):
            for receipt in self._unreachable.judge(fault):
                self.progress.add(receipt)
                yield from self._take(receipt)

    def _reap(self, *, wait: bool = False) -> Iterator[Outcome]:
        for complete, future in self._commits.ended(wait=wait):
            name = complete.name
            try:
                committed = future.result()
            except Exception as error:  # any error leaves this shard open, and the other shards continue
                message = f"commit failed: {type(error).__name__}: {error}"
                yield Outcome(shard=name, state="open", message=message, write="commit")
                continue
            if committed.missing:
                self._ledger.reopen(name, list(committed.missing))
                yield Outcome(shard=name, state="lost")
                continue
            self._ledger.forget(name)
            facts = {"latents": len(complete.latents), "rejections": len(complete.rejections)}
            yield Outcome(shard=name, state="done", write="commit", facts=facts)
            for (video, clip), rejection in complete.rejections.items():
                said = {"reason": rejection.reason, "stage": rejection.stage, "message": rejection.message}
                event("clip_rejected", shard=name, video=video, clip=clip, key=rejection.key, **said)

    def summary(self, ending: Ending) -> Summary:
        waiting = self._ledger.still_open()
        ending["open_shards"] |= {name: waiting[name] for name in waiting.keys() & ending["open_shards"]}
        return self.summed(
            ending,
            parts_staged=self.progress.parts,
            clips_encoded=self.progress.clips,
            busy_seconds=dict(self.progress.seconds),
        )
