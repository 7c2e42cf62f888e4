"""Export an output: refuse, plan the pieces, write them in parallel, and add what the trainer needs at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from pipeline.control.spread import SpreadRule, Workers, workers_of
from pipeline.export.pieces import write_piece
from pipeline.export.place import CLAIM_PATH, begin, claimed, end, finished
from pipeline.export.plan import ExportJob, Plan, plan_export
from pipeline.export.trainer import Counts, trainer_of
from pipeline.output.captions import Captions
from pipeline.runs.claims import NoClaims
from pipeline.runs.passes import Passes
from pipeline.runs.progress import Metric, Progress
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.runs.summary import Ending, RunSummary
from pipeline.runs.work import Outcome, ended
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSummary(RunSummary):
    """What an export holds at the end of a run."""

    rows: int
    """Rows that were asked for."""
    counts: dict[str, int]
    """Clips of the finished pieces, by the trainer's bucket."""
    pieces: int
    finished: int
    written: int
    """Pieces that this run wrote."""
    captions: Captions
    """Of the rows."""
    notes: tuple[str, ...]
    """What is to be said about the text, and about shapes that differ."""
    made: str
    """For which trainer, and where."""

    @property
    def num_clips(self) -> int:
        """Clips of the finished pieces."""
        return sum(self.counts.values())

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the table: first the counts, as the trainer will see them."""
        return [
            ("bucket", "clips"),
            *((name, str(count)) for name, count in sorted(self.counts.items())),
            ("all", f"{self.num_clips} of {self.rows}"),
            ("pieces", f"{self.finished} of {self.pieces}, {self.written} written by this run"),
            ("captions", self.captions.line()),
            *(("warning", warning) for warning in [self.captions.warning()] if warning),
            *(("note", note) for note in self.notes),
            ("for", self.made),
        ]


@dataclass(slots=True, kw_only=True)
class ExportProgress(Progress):
    """The counts of one run."""

    num_rows: int
    counts_by_bucket: Counts = field(default_factory=Counts)
    """Clips of the finished pieces, by the trainer's bucket."""

    def numbers(self) -> dict[str, object]:
        """Return the numbers of its own."""
        return {"clips": self.counts_by_bucket.total()}

    def metrics(self) -> Iterator[Metric]:
        """Yield the numbers for Prometheus."""
        yield from Progress.metrics(self)
        yield Metric(
            name="clips", help="Clips of the finished pieces", value=self.counts_by_bucket.total(), is_total=False
        )

    def head(self) -> str:
        """Return how the line begins."""
        return f"pieces {self.num_done}/{self.num_all}  clips {self.counts_by_bucket.total()}/{self.num_rows}"


class ExportWork:
    """A Work: the pieces of an export. One run holds the whole place, so nothing is claimed piece by piece."""

    workers: Workers

    def __init__(self, job: ExportJob, plan: Plan, there: dict[str, Counts]) -> None:
        """`there` are the counts of the pieces that are finished."""
        self._job, self._plan = job, plan
        self._todo = [piece for piece in plan.pieces if piece.name not in there]
        self.progress = ExportProgress(
            num_shards=len(self._todo),
            num_done_before=len(there),
            num_rows=len(plan.latents),
            counts_by_bucket=sum(there.values(), Counts()),
            doing="starting",
        )

    def left(self) -> list[str]:
        return [piece.name for piece in self._todo]

    def look(self) -> None:
        self._todo = [piece for piece in self._todo if piece.name not in self.progress.done]

    def make(self) -> Generator[Outcome, None, None]:
        for piece, result in self.workers.spread(write_piece, (self._job, self._plan.selection), self._todo):
            counts = Counts() if isinstance(result, Exception) else result
            self.progress.counts_by_bucket += counts
            yield ended(piece.name, result, "file", {"clips": counts.total()})

    def summary(self, ending: Ending) -> ExportSummary:
        plan, trainer, counts = self._plan, trainer_of(self._job.to), dict(self.progress.counts_by_bucket)
        return ExportSummary(
            **ending,
            rows=len(plan.latents),
            counts=counts,
            pieces=len(plan.pieces),
            finished=len(plan.pieces) - len(self._todo),
            written=self.progress.num_shards - len(self._todo),
            captions=plan.captions,
            notes=tuple(note for note in (plan.note, trainer.mixed if len(counts) > 1 else "") if note),
            made=f"{trainer.title}, in {self._job.into}",
        )


def export(
    job: ExportJob, rule: SpreadRule, echo: Callable[[str], None] = log.info, echo_seconds: float = 30.0
) -> ExportSummary:
    """Export an output, or what is left of it. Running it again continues.

    Raises:
        ConfigError: the output, or what was asked, does not suit the trainer, or the place is taken. Nothing was
            written.
        StorageError: the output cannot be read, the place not be written, or another run works there.
    """
    plan, into, finish = plan_export(job), Storage(job.into), trainer_of(job.to).finish
    there = finished(into, plan)
    work, stop = ExportWork(job, plan, there), Stop(rule.grace)
    passes = Passes(work, into, echo, echo_seconds)
    with passes.recorded(stop):
        if work.left() or finish or into.exists(CLAIM_PATH):  # a run that was killed last of all leaves a claim
            with claimed(into):
                begin(into, plan, there)
                if work.left():
                    writing = workers_of(rule, stop, "latentmill_export")
                    with stop, contextlib.suppress(GraceOverError), writing as work.workers, stop.limited():
                        passes.drive(NoClaims(), stop, work.workers.measure)
                    work.look()
                if not work.left():
                    if finish:
                        finish([piece.name for piece in plan.pieces], work.progress.counts_by_bucket, into)
                    end(into, plan)
    return passes.ended
