"""Export an output: refuse, plan the pieces, write them in parallel, and add what the trainer needs at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentmill.errors import ReadError
from pipeline.control.stop import GraceOverError, Stop
from pipeline.errors import LatentmillError
from pipeline.export.pieces import check_place, claim_place, finished, write_piece
from pipeline.export.plan import ExportJob, plan_export
from pipeline.export.trainer import Counts, Piece, trainer_of
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
    stopped: str = ""
    """The signal that stopped the run, or ""."""

    @property
    def is_whole(self) -> bool:
        """Whether every piece is finished."""
        return self.finished == self.pieces


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How an export is spread."""

    workers: int = 0
    """Pieces written at a time. 0: one for each CPU; 1: in this process, without Ray."""
    ray_address: str = "local"
    """`local` starts a Ray on this machine; `auto` or an address joins a cluster."""
    grace: float = 60.0
    """Seconds that the pieces under way have after SIGTERM or Ctrl-C."""


def export(job: ExportJob, workers: Workers, echo: Callable[[str], None] = log.info) -> ExportSummary:
    """Export an output, or what is left of it. Running it again continues.

    Raises:
        ConfigError: the output, or what was asked, does not suit the trainer, or the place is taken. Nothing was
            written.
        StorageError: the output cannot be read, or the place not be written.
    """
    plan, into = plan_export(job), Storage(job.into)
    there = finished(into, plan.pieces) if check_place(into, plan.record) else {}
    todo = [piece for piece in plan.pieces if piece.name not in there]
    summary = ExportSummary(rows=len(plan.latents), pieces=len(plan.pieces), finished=len(there))
    summary.counts = sum(there.values(), Counts())
    if todo:
        claim_place(into, plan.record, plan.latents)
    with Stop(workers.grace) as stop, contextlib.suppress(GraceOverError), stop.limited():
        for piece, outcome in _written((job, plan.latents.digest), todo, stop, workers):
            if isinstance(outcome, LatentmillError | ReadError):
                summary.failures[piece.name] = str(outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                summary.counts += outcome
                summary.finished, summary.written = summary.finished + 1, summary.written + 1
            echo(f"pieces {summary.finished}/{summary.pieces}  clips {summary.counts.total()}/{summary.rows}")
    summary.stopped = stop.by
    if summary.is_whole and (finish := trainer_of(job.to).finish):
        finish([piece.name for piece in plan.pieces], summary.counts, into)
    return summary


def _written(
    shared: tuple[ExportJob, str], pieces: Sequence[Piece], stop: Stop, workers: Workers
) -> Iterator[tuple[Piece, Any]]:
    """Write the pieces here or on Ray. Yield each with its counts, or with the exception that its writing raised."""
    if workers.workers != 1 and pieces:
        from pipeline.control.ray_pieces import on_ray

        address, most = workers.ray_address, workers.workers
        yield from on_ray(write_piece, shared, pieces, stop, address=address, workers=most)
        return
    for piece in pieces:
        if stop.asked:
            return
        try:
            yield piece, write_piece(*shared, piece)
        except Exception as error:
            yield piece, error
