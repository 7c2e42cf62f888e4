"""The summary at the end of a run: what the output holds, and what this run did."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.output.captions import Captions
from pipeline.output.wording import duration, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the output holds after a run, and what this run did."""

    planned_shards: int
    done_shards: int
    planned: int
    """Clips of the done shards."""
    latents: int
    rejected: dict[str, int]
    """By reason."""
    latent_bytes: int
    too_short: dict[int, int] = field(default_factory=dict)
    """Clips that were too short, by the number of frames that fit."""
    hint: str = ""
    """How many of them would fit with a smaller number of frames."""
    captions: Captions = field(default_factory=Captions)
    """Of the latents."""
    alarms: tuple[str, ...] = ()
    """Properties of the latents that are bad for training, from the statistics of all of them."""
    stopped: str = ""
    """The signal that stopped the run early, or ""."""
    gave_up: str = ""
    """Why the run itself stopped early, or ""."""
    began_whole: bool = False
    """Whether nothing was left to do when the run began."""
    parts_staged: int = 0
    """Chunks that this run itself encoded and staged."""
    clips_encoded: int = 0
    """Clips whose last chunk is one of them."""
    wall_seconds: float = 0.0
    busy_seconds: dict[str, float] = field(default_factory=dict)
    """Busy time of this run by stage, summed over its workers."""
    open_shards: dict[str, str] = field(default_factory=dict)
    """Shards that are not done, each with what it waits for."""

    @property
    def rejected_share(self) -> float:
        """Share of the planned clips that were rejected."""
        return sum(self.rejected.values()) / self.planned if self.planned else 0.0

    def table(self) -> str:
        """Return the table that is printed at the end of a run."""
        rows = [
            ("shards", f"{self.done_shards} of {self.planned_shards}"),
            ("planned", f"{self.planned} clips"),
            ("latents", f"{self.latents}  ({size(self.latent_bytes)})"),
            ("rejected", str(sum(self.rejected.values()))),
            *((f"  {reason}", str(n)) for reason, n in sorted(self.rejected.items())),
        ]
        if self.hint:
            rows.append(("  hint", f"of the clips that are too_short, {self.hint}"))
        if self.captions.rows:
            rows.append(("captions", self.captions.line()))
        rows += [("warning", line) for line in [self.captions.warning()] if line]
        rows += [("alarm", line) for line in self.alarms]
        if self.wall_seconds:
            busy = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.busy_seconds.items())
            rows += [("this run", f"{duration(self.wall_seconds)}, {self.parts_staged} chunks encoded"), ("busy", busy)]
        if self.gave_up:
            rows.append(("gave up", self.gave_up))
        if self.stopped and self.open_shards:
            rows.append(("stopped", f"by {self.stopped}: run the same command again to resume"))
        rows += [(f"left: {shard}", why) for shard, why in sorted(self.open_shards.items())[:10]]
        if len(self.open_shards) > 10:
            rows.append(("left", f"{len(self.open_shards) - 10} more"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
