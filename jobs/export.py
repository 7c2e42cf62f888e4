"""latentmill export: write the latents of an output, with text embeddings, as files that a trainer reads.

Run the same command again to resume, or after the output has grown: finished pieces are left alone. What the trainer
cannot take is refused before anything is written.

Exit codes: 0 everything is exported; 1 pieces are left: run it again; 2 the trainer cannot take this output, or a wrong
flag; 75 stopped by SIGTERM; 130 stopped by SIGINT.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.process import log_to_stderr, run_command
from pipeline.control.spread import SpreadRule
from pipeline.errors import ChangedError, ConfigError, EncoderError, StorageError
from pipeline.export.plan import ExportJob
from pipeline.export.run import ExportSummary
from pipeline.export.trainer import trainer_of
from pipeline.output.wording import printable
from pipeline.runs.stop import STATUS
from pipeline.runs.summary import CONFIG, LEFT, OK


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Options of `latentmill export`."""

    job: Annotated[ExportJob, tyro.conf.arg(name="")]
    workers: Annotated[SpreadRule, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Export an output. The module docstring lists the exit codes."""
    log_to_stderr(logging.WARNING)
    from pipeline.export.run import export

    try:
        flags = (tyro.conf.OmitArgPrefixes,)
        args = tyro.cli(Export, args=argv, prog="latentmill export", description=__doc__, config=flags)
        summary = export(args.job, args.workers, echo=lambda line: print(printable(line), file=sys.stderr, flush=True))
    except (ConfigError, EncoderError, StorageError) as error:
        print(printable(f"latentmill export: {error}"), file=sys.stderr)
        return CONFIG if isinstance(error, ConfigError | ChangedError) else LEFT
    print(printable(_table(summary, args.job)))
    for piece, why in summary.failures.items():
        print(printable(f"latentmill export: {piece} is left: {why}"), file=sys.stderr)
    if summary.is_whole:
        return OK
    return STATUS.get(summary.stopped, LEFT)


def _table(summary: ExportSummary, job: ExportJob) -> str:
    """Return the counts as the trainer will see them."""
    width = max([6, *map(len, summary.counts)])
    lines = [f"{'bucket':{width}} {'clips':>10}"]
    lines += [f"{name:{width}} {count:>10}" for name, count in sorted(summary.counts.items())]
    lines += [f"{'all':{width}} {summary.counts.total():>10}   of {summary.rows}"]
    lines += [f"pieces {summary.finished} of {summary.pieces}, {summary.written} written by this run"]
    lines.append(f"captions {summary.captions.line()}")
    lines += [f"warning: {warning}" for warning in [summary.captions.warning()] if warning]
    lines += [f"note: {note}" for note in [summary.note] if note]
    trainer = trainer_of(job.to)
    if trainer.mixed and len(summary.counts) > 1:
        lines.append(f"note: {trainer.mixed}")
    return "\n".join([*lines, f"for {trainer.title}, in {job.into}"])


if __name__ == "__main__":
    run_command(main)
