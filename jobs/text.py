"""latentmill text: encode the captions of an output, for training. Run the same command again to resume.

The embeddings are written to OUTPUT/text/NAME, one file for each committed shard, and one for the empty prompt.

Exit codes: 0 every committed shard has its text; 1 some have not; 2 wrong configuration; 75 stopped by SIGTERM; 130
stopped by SIGINT.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

import tyro

from jobs.encode import CONFIG, FLAGS, LEFT, OK, redraw
from jobs.process import log_to_stderr, run_command
from pipeline.control.stop import STATUS
from pipeline.errors import ChangedError, ConfigError, EncoderError, StorageError
from pipeline.output.wording import printable
from pipeline.text.job import TextJob
from pipeline.text.receipts import TextSummary


def main(argv: Sequence[str] | None = None) -> int:
    """Encode the captions and print a summary. The module docstring lists the exit codes."""
    log_to_stderr(logging.INFO)
    try:
        job = tyro.cli(TextJob, args=argv, prog="latentmill text", description=__doc__, config=FLAGS)
        from pipeline.text.run import make_plan, run

        if job.dry_run:
            plan = make_plan(job)
            print(f"text    {plan.name}: {plan.num_done} shards done, {len(plan.todo)} left")
            print(f"spec    {json.dumps(asdict(plan.spec))}")
            return OK
        in_terminal = sys.stderr.isatty()
        summary = run(job, echo=redraw if in_terminal else _append, echo_seconds=1.0 if in_terminal else 30.0)
    except (ConfigError, EncoderError, StorageError) as error:
        print(printable(f"latentmill text: {error}"), file=sys.stderr)
        return CONFIG if isinstance(error, ConfigError | ChangedError) else LEFT
    print(printable(("\n" if in_terminal else "") + summary.table()))
    return exit_code(summary)


def exit_code(summary: TextSummary) -> int:
    """Return the exit code of a finished run, as the module docstring lists them."""
    if not summary.open_shards:
        return OK
    return STATUS[summary.stopped] if summary.stopped else LEFT


def _append(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
