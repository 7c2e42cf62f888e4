"""latentmill text: encode the captions of an output, for training. Run the same command again to resume.

The embeddings are written to OUTPUT/text/NAME, one file for each committed shard, and one for the empty prompt.

Exit codes: 0 every committed shard has its text; 1 some have not; 2 wrong configuration; 75 stopped by SIGTERM; 130
stopped by SIGINT.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import tyro

from jobs.encode import FLAGS
from jobs.process import carry_out, report_errors, run_command
from pipeline.runs.summary import OK
from pipeline.text.job import TextJob


def main(argv: Sequence[str] | None = None) -> int:
    """Encode the captions and print a summary. The module docstring lists the exit codes."""
    return report_errors("text", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    job = tyro.cli(TextJob, args=argv, prog="latentmill text", description=__doc__, config=FLAGS)
    from pipeline.text.run import make_plan, run

    if job.dry_run:
        plan = make_plan(job)
        print(f"text    {plan.name}: {plan.num_done} shards done, {len(plan.todo)} left")
        print(f"spec    {json.dumps(asdict(plan.spec))}")
        return OK
    return carry_out(lambda echo, seconds: run(job, echo=echo, echo_seconds=seconds), log_json=job.log_json).exit_code()


if __name__ == "__main__":
    run_command(main)
