"""latentmill export: write the latents of an output, with text embeddings, as files that a trainer reads.

Run the same command again to resume, or after the output has grown: finished pieces are left alone. What the trainer
cannot take is refused before anything is written.

Exit codes: 0 everything is exported; 1 pieces are left: run it again; 2 the trainer cannot take this output, or a wrong
flag; 75 stopped by SIGTERM; 130 stopped by SIGINT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.process import carry_out, report_errors, run_command
from pipeline.control.spread import SpreadRule
from pipeline.export.plan import ExportJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Options of `latentmill export`."""

    job: Annotated[ExportJob, tyro.conf.arg(name="")]
    workers: Annotated[SpreadRule, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Export an output. The module docstring lists the exit codes."""
    return report_errors("export", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    from pipeline.export.run import export

    flags = (tyro.conf.OmitArgPrefixes,)
    args = tyro.cli(Export, args=argv, prog="latentmill export", description=__doc__, config=flags)
    rule = args.workers
    return carry_out(lambda echo, seconds: export(args.job, rule, echo, seconds), log_json=rule.log_json).exit_code()


if __name__ == "__main__":
    run_command(main)
