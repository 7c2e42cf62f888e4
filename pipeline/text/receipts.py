"""What the stages of a text tell the driver, and the sums of it: progress lines and the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.output.captions import Captions
from pipeline.output.wording import duration, size


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReceipt:
    """How the text of one shard ended in this pass."""

    shard: str
    state: Literal["done", "elsewhere", "open"]
    """done: its file stands. elsewhere: another run holds the shard. open: it failed, and `message` says why."""
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
class TextProgress:
    """The counts of one run."""

    num_shards: int
    num_done_before: int
    clock: Callable[[], float] = time.monotonic
    done: set[str] = field(default_factory=set)
    """Shards whose text this run found or made."""
    elsewhere: set[str] = field(default_factory=set)
    """Shards that another run holds."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a shard is open."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))
    encode_seconds: float = 0.0
    started: float = 0.0
    _first: float | None = None
    """When the first shard was done. The time before it is start-up."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, receipt: TextReceipt) -> None:
        """Count a receipt. A retried task repeats its receipt."""
        if receipt.state == "done" and receipt.shard not in self.done:
            self._first = self._first or self.clock()
            self.find({receipt.shard})
            self.problems.pop(receipt.shard, None)
            self.encode_seconds += receipt.encode_seconds
            for name in SUMMED:
                self.counts[name] += getattr(receipt, name)
        elif receipt.state == "open":
            self.problems[receipt.shard] = receipt.message
        elif receipt.state == "elsewhere":
            self.elsewhere.add(receipt.shard)

    def find(self, shards: set[str]) -> None:
        """Count shards whose text stands."""
        self.done |= shards
        self.elsewhere -= shards

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started

    def line(self) -> str:
        """Return the progress line."""
        done = self.num_done_before + len(self.done)
        head = f"text shards {done}/{self.num_shards}  captions {self.counts['captions']}  "
        if self.elsewhere:
            head += f"held by another run {len(self.elsewhere)}  "
        if self._first is None:
            return f"{head}waiting for the first shard: encoders load ({duration(self.elapsed)})"
        left = self.num_shards - done
        seconds = (self.clock() - self._first) / max(len(self.done) - 1, 1)
        eta = "?" if len(self.done) < 2 else duration(left * seconds)
        return f"{head}{self.counts['captions'] / max(self.elapsed, 1e-9):.1f} captions/s  ETA {eta}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSummary:
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
    wall_seconds: float
    stopped: str
    """The signal that ended the run early, or ""."""
    open_shards: dict[str, str]
    """The shards that are left, with the reason."""

    def table(self) -> str:
        """Return the summary as text."""
        counted = Captions(rows=self.filled + self.empty, empty=self.empty)
        rows = [
            ("text", self.name),
            ("shards", f"{self.done} of {self.shards}, the empty prompt included"),
            ("this run", f"{duration(self.wall_seconds)}, {self.rows} rows, {size(self.num_bytes)}"),
            *([("captions", f"{counted.line()}, {self.empty} are empty")] if counted.rows else []),
            *([("warning", warning)] if (warning := counted.warning()) else []),
            ("encoded", f"{self.captions} distinct, {self.tokens} tokens, in {duration(self.encode_seconds)}"),
            *((name, f"{n} rows") for name in ("truncated", "dropped") if (n := getattr(self, name))),
            *((f"open {shard}", why) for shard, why in list(self.open_shards.items())[:10]),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
