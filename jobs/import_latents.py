"""latentmill import: take latents that were made elsewhere into an output, for the reader, statistics and reports.

Run the same command again to resume, or after the source has grown. `ls`, `stats`, `report`, `verify`, `export` and
`latentmill.open` work on the result; `encode` refuses it, because it could not make these latents again.

Exit codes: 0 everything is committed; 1 shards are left: run it again; 2 wrong configuration; 75 stopped by SIGTERM;
130 stopped by SIGINT.
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
from pipeline.export.import_job import ImportJob
from pipeline.export.import_run import ImportSummary, run_import
from pipeline.output.wording import printable, size
from pipeline.runs.stop import STATUS
from pipeline.runs.summary import CONFIG, LEFT, OK


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """Options of `latentmill import`."""

    job: Annotated[ImportJob, tyro.conf.arg(name="")]
    rule: Annotated[SpreadRule, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Import latents. The module docstring lists the exit codes."""
    log_to_stderr(logging.WARNING)
    try:
        flags = (tyro.conf.OmitArgPrefixes,)
        args = tyro.cli(Import, args=argv, prog="latentmill import", description=__doc__, config=flags)
        summary = run_import(args.job, args.rule, echo=lambda line: print(printable(line), file=sys.stderr, flush=True))
    except (ConfigError, EncoderError, StorageError) as error:
        print(printable(f"latentmill import: {error}"), file=sys.stderr)
        return CONFIG if isinstance(error, ConfigError | ChangedError) else LEFT
    print(printable(_table(summary)))
    for shard, why in summary.failures.items():
        print(printable(f"latentmill import: {shard} is left: {why}"), file=sys.stderr)
    return OK if summary.done == summary.shards else STATUS.get(summary.stopped, LEFT)


def _table(summary: ImportSummary) -> str:
    counts = summary.counts
    assert counts
    lines = [
        f"shards    {summary.done} of {summary.shards}",
        f"latents   {counts.latents}  ({size(counts.latent_bytes)})",
        f"rejected  {sum(counts.rejected.values())}",
    ]
    return "\n".join([*lines, *(f"  {reason}  {count}" for reason, count in sorted(counts.rejected.items()))])


if __name__ == "__main__":
    run_command(main)
