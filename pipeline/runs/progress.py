"""How far a run is: the progress line, the numbers of its events and its metrics. It uses no storage and no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

from pipeline.output.wording import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of a run for Prometheus."""

    name: str
    help: str
    value: float
    tags: dict[str, str] = field(default_factory=dict)
    is_total: bool = True
    """Whether it only grows."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The counts that every run has. A kind of run adds its own."""

    num_shards: int
    """Shards that were open when this run began."""
    num_done_before: int = 0
    """Shards that earlier runs committed."""
    slots: dict[str, float] = field(default_factory=dict)
    """Tasks or actors of each stage that can work at a time."""
    clock: Callable[[], float] = time.monotonic
    doing: str = ""
    """What the run waits for before something is made. It is shown instead of rates, which would all be 0."""
    done: set[str] = field(default_factory=set)
    """Shards that this run or another one finished since this run began."""
    elsewhere: set[str] = field(default_factory=set)
    """Shards that another run holds."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a shard is open."""
    started: float = 0.0
    _first_done: float | None = None
    """When the first shard was done. The time before it is start-up and says nothing about speed."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def finish(self, shard: str) -> None:
        """Count a shard that this run or another one finished."""
        self._first_done = self.clock() if self._first_done is None else self._first_done
        self.doing = ""
        self.done.add(shard)
        self.elsewhere.discard(shard)
        self.problems.pop(shard, None)

    def find(self, shards: Set[str]) -> None:
        """Count shards of which the output holds the file."""
        for shard in shards - self.done:
            self.finish(shard)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started

    @property
    def num_all(self) -> int:
        """Shards of this run and of those before it."""
        return self.num_done_before + self.num_shards

    @property
    def num_done(self) -> int:
        """Those of them that are done."""
        return self.num_done_before + len(self.done)

    def num_open(self) -> int:
        """Return how many shards are in work here, as far as that is known."""
        return 0

    def shards(self) -> dict[str, int]:
        """Return the number of shards that are done, in work here, held by another run, and not begun."""
        states = {"done": self.num_done, "open": self.num_open(), "elsewhere": len(self.elsewhere)}
        return states | {"waiting": max(self.num_all - sum(states.values()), 0)}

    def time_left(self) -> float | None:
        """Return the seconds left, at the speed since the first shard was done; None while that is not known."""
        if self._first_done is None or len(self.done) < 2:
            return None
        return (self.num_all - self.num_done) * (self.clock() - self._first_done) / (len(self.done) - 1)

    def numbers(self) -> dict[str, object]:
        """Return the numbers that this kind of run has of its own, as JSON values."""
        return {}

    def counts(self) -> dict[str, object]:
        """Return the numbers of the line, as JSON values."""
        left = self.time_left()
        return {
            "shards_done": self.num_done,
            "shards": self.num_all,
            "shards_held_elsewhere": len(self.elsewhere),
            **self.numbers(),
            "elapsed_seconds": round(self.elapsed, 3),
            "seconds_left": None if left is None else round(left, 3),
        }

    def metrics(self) -> Iterator[Metric]:
        """Yield the numbers for Prometheus."""
        for state, shards in self.shards().items():
            yield Metric(name="shards", help="Shards of the plan", value=shards, tags={"state": state}, is_total=False)
        workers = "Tasks or actors of a stage that can work at a time"
        for stage, number in self.slots.items():
            yield Metric(name="workers", help=workers, value=number, tags={"stage": stage}, is_total=False)

    def head(self) -> str:
        """Return how the line begins: what is done, of how much."""
        return f"shards {self.num_done}/{self.num_all}"

    def rates(self) -> str:
        """Return how the line ends once something is made."""
        return f"ETA {self.eta()}"

    def eta(self) -> str:
        """Return the time left as text."""
        left = self.time_left()
        return "?" if left is None else duration(left)

    def line(self) -> str:
        """Return the line: what is done, and the time left, or what the run waits for. What matters least stands last,
        where a narrow terminal cuts it."""
        head = f"{self.head()}  "
        if self.elsewhere:
            head += f"held by another run {len(self.elsewhere)}  "
        return f"{head}{self.doing} ({duration(self.elapsed)})" if self.doing else f"{head}{self.rates()}"
