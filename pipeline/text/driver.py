"""The driver of a text: passes over the open shards. It gets receipts, and decides when to stop."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from pipeline.control.claims import RENEW_SECONDS, Claims, Owner
from pipeline.control.driver import MAX_FAILED_WRITES, POLL_SECONDS
from pipeline.control.encoder_pool import EncoderPool
from pipeline.control.stop import Stop
from pipeline.control.timer import every
from pipeline.errors import StorageError
from pipeline.output import layout
from pipeline.stages.tables import Shared
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from pipeline.text import stages
from pipeline.text.captions import open_shards
from pipeline.text.checkpoint import TextCheckpoint
from pipeline.text.receipts import TextProgress, TextReceipt, TextSummary
from pipeline.text.spec import TextSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do."""

    output: Storage
    name: str
    spec: TextSpec
    checkpoint: TextCheckpoint
    todo: list[str]
    """Shards without a text."""
    num_done: int
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


def sweep_claims(output: Storage, name: str) -> None:
    """Delete the claims on shards whose text stands: of runs that were killed between the two."""
    folder = layout.text_claim_path(name, "")
    for shard in {entry.path.removeprefix(folder) for entry in output.list(folder)} - set(open_shards(output, name)[0]):
        output.delete(layout.text_claim_path(name, shard))


class Driver:
    """Passes over the open shards, until none is open or a pass makes no progress."""

    def __init__(self, plan: Plan, echo: Callable[[str], None], echo_seconds: float) -> None:
        self._plan = plan
        self._echo, self._echo_seconds = echo, echo_seconds
        self._todo = plan.todo
        self.progress = TextProgress(num_shards=len(plan.todo) + plan.num_done, num_done_before=plan.num_done)
        self._failed_writes = 0

    def drive(self, make_encoder: stages.MakeEncoder, pool: EncoderPool, stop: Stop) -> None:
        """Stream until everything is done, a pass makes no progress, or a signal asks for a stop."""
        from pipeline.control.ray_objects import Remote, RemoteStrikes
        from pipeline.control.ray_text import Operators, stream

        output, name = self._plan.output, self._plan.name
        claim, done = partial(layout.text_claim_path, name), partial(layout.text_path, name)
        owner = Owner.this_process(self._plan.run_id)
        guard, claims = RemoteStrikes(), Remote(Claims, output, owner, claim=claim, done=done)
        work = stages.TextStages(output=output, name=name, spec=self._plan.spec, make_encoder=make_encoder)
        shared = Shared(claims, guard)
        operators = Operators(
            read=partial(stages.read, stages=work, shared=shared),
            encoder=stages.EncodeActor,
            encoder_args=(work, shared, pool.device, pool.size[1]),
            store=partial(stages.store, stages=work, shared=shared),
        )
        showing = every(self._echo_seconds, lambda: self._echo(self.progress.line()))
        with showing, every(RENEW_SECONDS, claims.renew), stop.calling(claims.stop):
            try:
                while self._todo and not stop.asked:
                    guard.new_pass()
                    is_held = self._one_pass(stages.receipts(stream(self._todo, operators, pool)))
                    claims.release_all()
                    if not self._goes_on(is_held, stop):
                        break
            finally:
                with contextlib.suppress(StorageError):  # a claim also becomes stale
                    claims.release_all()

    def _one_pass(self, receipts: Iterator[TextReceipt]) -> bool:
        """Take the receipts of one pass. Return whether another run holds a shard."""
        is_held = False
        for receipt in receipts:
            self.progress.add(receipt)
            is_held |= receipt.state == "elsewhere"
            if receipt.state == "open":
                log.warning("shard=%s its text stays open: %s", receipt.shard, receipt.message)
            if receipt.state != "elsewhere":
                self._failed_writes = self._failed_writes + 1 if receipt.is_write else 0
            if self._failed_writes >= MAX_FAILED_WRITES:
                raise StorageError(
                    f"{redacted(self._plan.output.uri)}: gave up after {MAX_FAILED_WRITES} failures in a row to write "
                    f"there, the last: {receipt.message}. What is stored stays: run the same command again to resume"
                )
        return is_held

    def _goes_on(self, is_held: bool, stop: Stop) -> bool:
        """Look what is open. Return whether another pass can make progress."""
        before = len(self._todo)
        if is_held:
            log.info("another run held %d shards of this pass", len(self.progress.elsewhere))
        left = set(open_shards(self._plan.output, self._plan.name)[0])
        self._todo = [shard for shard in self._todo if shard in left]
        self.progress.find(set(self._plan.todo) - left)
        if is_held and self._todo and not stop.asked:
            stop.wait(POLL_SECONDS)
            return True
        return len(self._todo) < before

    def summary(self, stopped: str) -> TextSummary:
        """Return the summary. `stopped` is the signal that ended the run early, or ""."""
        left = [shard for shard in self._plan.todo if shard not in self.progress.done]
        return TextSummary(
            name=self._plan.name,
            shards=self.progress.num_shards,
            done=self.progress.num_shards - len(left),
            encode_seconds=self.progress.encode_seconds,
            wall_seconds=self.progress.elapsed,
            stopped=stopped,
            open_shards={shard: self.progress.problems.get(shard, "not begun") for shard in left},
            **self.progress.counts,
        )
