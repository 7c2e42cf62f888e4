"""The summary at the end of a run of clips: what the output holds, and what this run did."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.output.captions import Captions
from pipeline.output.wording import duration, size
from pipeline.runs.summary import RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(RunSummary):
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
    began_whole: bool = False
    """Whether nothing was left to do when the run began."""
    parts_staged: int = 0
    """Chunks that this run itself encoded and staged."""
    clips_encoded: int = 0
    """Clips whose last chunk is one of them."""
    busy_seconds: dict[str, float] = field(default_factory=dict)
    """Busy time of this run by stage, summed over its workers."""

    @property
    def rejected_share(self) -> float:
        """Share of the planned clips that were rejected."""
        return sum(self.rejected.values()) / self.planned if self.planned else 0.0

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the table."""
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
        if self.busy_seconds:
            busy = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.busy_seconds.items())
            rows += [("this run", f"{duration(self.wall_seconds)}, {self.parts_staged} chunks encoded"), ("busy", busy)]
        return rows
