"""The text of an output as the engine sees it: which shards lack it, and how their receipts count."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from pipeline.output import layout
from pipeline.runs.summary import Ending
from pipeline.runs.work import Outcome
from pipeline.storage import Storage
from pipeline.text.captions import open_shards
from pipeline.text.checkpoint import TextCheckpoint
from pipeline.text.receipts import TextProgress, TextReceipt, TextSummary
from pipeline.text.spec import TextSpec


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


def sweep_claims(output: Storage, name: str) -> None:
    """Delete the claims on shards whose text stands: of runs that were killed between the two."""
    folder = layout.text_claim_path(name, "")
    for shard in {entry.path.removeprefix(folder) for entry in output.list(folder)} - set(open_shards(output, name)[0]):
        output.delete(layout.text_claim_path(name, shard))


class TextWork:
    """A Work: the shards that lack a text."""

    stream: Callable[[list[str]], Iterator[TextReceipt]]
    """Makes the text of these shards."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._left = plan, plan.todo
        self.progress = TextProgress(num_shards=len(plan.todo), num_done_before=plan.num_done)

    def left(self) -> list[str]:
        return self._left

    def look(self) -> None:
        left = set(open_shards(self._plan.output, self._plan.name)[0])
        self._left = [shard for shard in self._left if shard in left]

    def make(self) -> Generator[Outcome, None, None]:
        for receipt in self.stream(self._left):
            self.progress.add(receipt)
            assert receipt.state != "no encoder"  # `stages.receipts` raises it
            yield Outcome(
                shard=receipt.shard,
                state=receipt.state,
                message=receipt.message,
                write="file" if receipt.is_write or receipt.state == "done" else "",
                facts={"rows": receipt.rows, "captions": receipt.captions, "num_bytes": receipt.num_bytes},
            )

    def summary(self, ending: Ending) -> TextSummary:
        progress = self.progress
        return TextSummary(
            **ending,
            name=self._plan.name,
            shards=progress.num_all,
            done=progress.num_all - len(self._left),
            encode_seconds=progress.encode_seconds,
            **progress.sums,
        )
