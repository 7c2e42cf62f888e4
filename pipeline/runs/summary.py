"""The summary at the end of a run, as far as it is the same for every kind of run; and the exit codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from pipeline.runs.stop import STATUS

OK, LEFT, CONFIG, REJECTED = 0, 1, 2, 3
"""Exit codes: all is done; something is left; wrong configuration; the run made nothing, or too little. A run that a
signal stopped has its STATUS."""

MOST_SHOWN = 10


class Ending(TypedDict):
    """How a run ended: the fields of a RunSummary."""

    wall_seconds: float
    stopped: str
    gave_up: str
    open_shards: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What stands there after a run, and what the run did."""

    wall_seconds: float = 0.0
    stopped: str = ""
    """The signal that stopped the run early, or ""."""
    gave_up: str = ""
    """Why the run itself stopped early, or ""."""
    open_shards: dict[str, str] = field(default_factory=dict)
    """Shards that are not done, each with what it waits for."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left."""
        return not self.open_shards

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the table that this kind of run has of its own, the first ones."""
        return []

    def exit_code(self) -> int:
        """Return the exit code of the run."""
        if self.gave_up:
            return REJECTED
        if self.is_whole:
            return OK
        return STATUS[self.stopped] if self.stopped else LEFT

    def table(self) -> str:
        """Return the table that is printed at the end of a run."""
        rows = self.lines()
        if self.gave_up:
            rows.append(("gave up", self.gave_up))
        if self.stopped and self.open_shards:
            rows.append(("stopped", f"by {self.stopped}: run the same command again to resume"))
        rows += [(f"left: {shard}", why) for shard, why in sorted(self.open_shards.items())[:MOST_SHOWN]]
        if len(self.open_shards) > MOST_SHOWN:
            rows.append(("left", f"{len(self.open_shards) - MOST_SHOWN} more"))
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
