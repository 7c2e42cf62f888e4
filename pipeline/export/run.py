"""Export an output: refuse, plan the pieces, write them in parallel, and add what the trainer needs at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.control.spread import SpreadRule, spread
from pipeline.errors import LatentmillError
from pipeline.export.pieces import write_piece
from pipeline.export.place import CLAIM_PATH, begin, claimed, end, finished
from pipeline.export.plan import ExportJob, Plan, plan_export
from pipeline.export.trainer import Counts, Piece, trainer_of
from pipeline.output.captions import Captions
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class ExportSummary:
    """What an export holds at the end of a run."""

    rows: int
    """Rows that were asked for."""
    counts: Counts = field(default_factory=Counts)
    """Clips of the finished pieces, by the trainer's bucket."""
    pieces: int
    finished: int
    written: int = 0
    """Pieces that this run wrote."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a piece was not written, by its name."""
    captions: Captions = field(default_factory=Captions)
    """Of the rows."""
    note: str = ""
    """What is to be said about the text."""
    stopped: str = ""
    """The signal that stopped the run, or ""."""

    @property
    def is_whole(self) -> bool:
        """Whether every piece is finished."""
        return self.finished == self.pieces


def export(job: ExportJob, rule: SpreadRule, echo: Callable[[str], None] = log.info) -> ExportSummary:
    """Export an output, or what is left of it. Running it again continues.

    Raises:
        ConfigError: the output, or what was asked, does not suit the trainer, or the place is taken. Nothing was
            written.
        StorageError: the output cannot be read, the place not be written, or another run works there.
    """
    plan, into, finish = plan_export(job), Storage(job.into), trainer_of(job.to).finish
    there = finished(into, plan)
    summary = ExportSummary(rows=len(plan.latents), pieces=len(plan.pieces), finished=len(there))
    summary.captions, summary.note = plan.captions, plan.note
    summary.counts = sum(there.values(), Counts())
    if summary.is_whole and not finish and not into.exists(CLAIM_PATH):  # a run that was killed last of all leaves one
        return summary
    with claimed(into):
        begin(into, plan, there)
        _write(job, plan, [piece for piece in plan.pieces if piece.name not in there], summary, rule, echo)
        if summary.is_whole:
            if finish:
                finish([piece.name for piece in plan.pieces], summary.counts, into)
            end(into, plan)
    return summary


def _write(
    job: ExportJob, plan: Plan, todo: list[Piece], summary: ExportSummary, rule: SpreadRule, echo: Callable[[str], None]
) -> None:
    """Write the pieces, and count them in the summary."""
    with Stop(rule.grace) as stop, contextlib.suppress(GraceOverError), stop.limited():
        for piece, outcome in spread(write_piece, (job, plan.selection), todo, stop, rule):
            if isinstance(outcome, LatentmillError):
                summary.failures[piece.name] = str(outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                summary.counts += outcome
                summary.finished, summary.written = summary.finished + 1, summary.written + 1
            echo(f"pieces {summary.finished}/{summary.pieces}  clips {summary.counts.total()}/{summary.rows}")
    summary.stopped = stop.by
