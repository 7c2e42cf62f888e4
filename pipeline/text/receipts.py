"""What the stages of a text tell the driver, and the sums of it: progress lines and the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.output.captions import Captions
from pipeline.output.wording import duration, size
from pipeline.runs.progress import Metric, Progress
from pipeline.runs.summary import RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReceipt:
    """How the text of one shard ended in this pass."""

    shard: str
    state: Literal["done", "elsewhere", "open", "no encoder"]
    """done: its file stands. elsewhere: another run holds the shard. open: it failed, and `message` says why.
    no encoder: none is left, so the run ends, and `message` says why."""
    message: str = ""
    is_write: bool = False
    """Whether a write to the output failed."""
    rows: int = 0
    captions: int = 0
    """Distinct captions that were encoded."""
    tokens: int = 0
    """Of those captions."""
    filled: int = 0
    """Rows with a caption."""
    empty: int = 0
    """Rows whose caption is missing, or has nothing but white space once it is clean."""
    truncated: int = 0
    """Rows whose caption was cut to the length of the spec."""
    dropped: int = 0
    """Rows without text (--drop-empty)."""
    num_bytes: int = 0
    encode_seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> TextReceipt:
        return TextReceipt(**json.loads(text))


SUMMED = ("rows", "filled", "empty", "captions", "tokens", "truncated", "dropped", "num_bytes")


@dataclass(slots=True, kw_only=True)
class TextProgress(Progress):
    """The counts of one run."""

    doing: str = "waiting for the first shard: encoders load"
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))
    encode_seconds: float = 0.0

    def add(self, receipt: TextReceipt) -> None:
        """Count a receipt. A retried task repeats its receipt."""
        if receipt.state == "done" and receipt.shard not in self.done:
            self.encode_seconds += receipt.encode_seconds
            for name in SUMMED:
                self.sums[name] += getattr(receipt, name)

    def numbers(self) -> dict[str, object]:
        """Return the numbers of its own."""
        return {**self.sums, "encode_seconds": round(self.encode_seconds, 3)}

    def metrics(self) -> Iterator[Metric]:
        """Yield the numbers for Prometheus."""
        yield from Progress.metrics(self)
        yield Metric(name="captions", help="Distinct captions that were encoded", value=self.sums["captions"])
        yield Metric(name="tokens", help="Tokens of those captions", value=self.sums["tokens"])
        yield Metric(name="rows", help="Rows that have their text", value=self.sums["rows"])
        yield Metric(name="busy_seconds", help="Busy time of all encoders", value=self.encode_seconds)

    def head(self) -> str:
        """Return how the line begins."""
        return f"text {Progress.head(self)}  captions {self.sums['captions']}"

    def rates(self) -> str:
        """Return how the line ends."""
        return f"{self.sums['captions'] / max(self.elapsed, 1e-9):.1f} captions/s  ETA {self.eta()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSummary(RunSummary):
    """What the text holds at the end of a run, and what this run did."""

    name: str
    shards: int
    """Files that make the text whole: one for each committed shard, and the empty prompt."""
    done: int
    rows: int
    """This and the rest: of this run."""
    filled: int
    empty: int
    captions: int
    tokens: int
    truncated: int
    dropped: int
    num_bytes: int
    encode_seconds: float

    def lines(self) -> list[tuple[str, str]]:
        """Return the rows of the table."""
        counted = Captions(rows=self.filled + self.empty, empty=self.empty)
        return [
            ("text", self.name),
            ("shards", f"{self.done} of {self.shards}, the empty prompt included"),
            ("this run", f"{duration(self.wall_seconds)}, {self.rows} rows, {size(self.num_bytes)}"),
            *([("captions", f"{counted.line()}, {self.empty} are empty")] if counted.rows else []),
            *([("warning", warning)] if (warning := counted.warning()) else []),
            ("encoded", f"{self.captions} distinct, {self.tokens} tokens, in {duration(self.encode_seconds)}"),
            *((name, f"{n} rows") for name in ("truncated", "dropped") if (n := getattr(self, name))),
        ]
