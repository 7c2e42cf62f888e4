"""latentmill encode: encode shards of video to shards of scaled latents. Run the same command again to resume.

Exit codes: 0 all shards are committed; 1 some shards are not committed; 2 wrong configuration; 3 nearly every clip was
rejected, or a larger share than --max-rejected (committed shards stay); 75 stopped by SIGTERM; 130 stopped by SIGINT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from jobs.process import carry_out, report_errors, run_command
from pipeline.control.summary import Summary
from pipeline.output.layout import data_path
from pipeline.output.wording import printable
from pipeline.runs.summary import OK, REJECTED
from pipeline.settings.job import Job

NEARLY_ALL = 0.99
"""The share of rejected clips beyond which a run made nothing, where --max-rejected is not given."""

FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction)


def main(argv: Sequence[str] | None = None) -> int:
    """Run an encode job and print its summary. The module docstring lists the exit codes."""
    return report_errors("encode", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    job = parse(argv)
    if job.dry_run:
        print(printable(_dry_run(job)))
        return OK
    from pipeline.run import run

    summary = carry_out(lambda echo, seconds: run(job, echo=echo, echo_seconds=seconds), log_json=job.log_json)
    code = exit_code(summary, job)
    if code == REJECTED and not summary.gave_up:
        print(f"latentmill encode: {_refused(summary)}", file=sys.stderr)
    return code


def parse(argv: Sequence[str] | None) -> Job:
    """Parse a command line into a Job. Wrong syntax prints the usage and exits with code 2."""
    return tyro.cli(Job, args=argv, prog="latentmill encode", description=__doc__, config=FLAGS)


def _dry_run(job: Job) -> str:
    """Return a description of what the run would do, without writing anything."""
    from pipeline.output.spec_file import check
    from pipeline.output.wording import size
    from pipeline.plan.frozen import plan_dry_run
    from pipeline.settings.resolve import resolve
    from pipeline.storage import Storage

    spec, info = resolve(job)
    output = Storage(job.output)
    spec = check(output, spec)
    shards = list(
        plan_dry_run(output, job.source, shard_size=job.shard_size, limit=job.limit, on_changed=job.on_changed)
    )
    done = sum(output.exists(data_path(shard.name)) for shard in shards)
    shapes = ", ".join(f"{t}x{h}x{w} -> {info.latent_shape(t, h, w)}" for t, h, w in job.clip.shapes)
    return (
        f"source  {len(shards)} shards, {size(sum(shard.size for shard in shards))}\n"
        f"done    {done} shards in {job.output}\n"
        f"latent  {shapes}, {job.latent.posterior}, {job.latent.store_dtype}\n"
        f"spec    {spec.digest[:12]}"
    )


def exit_code(summary: Summary, job: Job) -> int:
    """Return the exit code of a finished run, as the module docstring lists them."""
    return summary.exit_code() or (REJECTED if summary.rejected_share > _most_rejected(summary, job) else OK)


def _most_rejected(summary: Summary, job: Job) -> float:
    """Return the share of clips that may be rejected. An output that was whole before keeps the limit of its last run:
    up to version 0.1 this was 1 by default."""
    if job.max_rejected is not None:
        return job.max_rejected
    limit = None
    if summary.began_whole and summary.rejected_share > NEARLY_ALL:
        from pipeline.runs.run_records import job_before
        from pipeline.storage import Storage

        limit = job_before(Storage(job.output)).get("max_rejected")
    return float(limit) if isinstance(limit, int | float) else NEARLY_ALL


def _refused(summary: Summary) -> str:
    most = max(summary.rejected, key=lambda reason: summary.rejected[reason])
    return (
        f"{sum(summary.rejected.values())} of {summary.planned} clips were rejected, most as {most}. "
        "`latentmill report` shows them; --max-rejected 1 accepts it"
    )


if __name__ == "__main__":
    run_command(main)
