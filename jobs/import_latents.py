"""latentmill import: take latents that were made elsewhere into an output, for the reader, statistics and reports.

Run the same command again to resume, or after the source has grown. `ls`, `stats`, `report`, `verify`, `export` and
`latentmill.open` work on the result; `encode` refuses it, because it could not make these latents again.

Exit codes: 0 everything is committed; 1 shards are left: run it again; 2 wrong configuration; 75 stopped by SIGTERM;
130 stopped by SIGINT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.process import carry_out, report_errors, run_command
from pipeline.control.spread import SpreadRule
from pipeline.export.import_job import ImportJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """Options of `latentmill import`."""

    job: Annotated[ImportJob, tyro.conf.arg(name="")]
    rule: Annotated[SpreadRule, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Import latents. The module docstring lists the exit codes."""
    return report_errors("import", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    from pipeline.export.import_run import run_import

    flags = (tyro.conf.OmitArgPrefixes,)
    args = tyro.cli(Import, args=argv, prog="latentmill import", description=__doc__, config=flags)
    job, rule = args.job, args.rule
    return carry_out(lambda echo, seconds: run_import(job, rule, echo, seconds), log_json=rule.log_json).exit_code()


if __name__ == "__main__":
    run_command(main)
