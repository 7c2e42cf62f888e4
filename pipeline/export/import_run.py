"""Import latents that were made elsewhere: freeze their files as shards, commit each shard, and seal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.control.spread import SpreadRule, spread
from pipeline.errors import LatentmillError
from pipeline.export.import_job import ImportJob
from pipeline.export.imported import import_shard, new_shards, spec_of
from pipeline.output.commit import seal, tidy
from pipeline.output.spec_file import check, write_spec
from pipeline.output.tally import Tally, tally
from pipeline.plan.frozen import plan_more
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.settings.resolve import writable
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class ImportSummary:
    """What the output holds at the end of a run."""

    shards: int
    done: int
    counts: Tally | None = None
    failures: dict[str, str] = field(default_factory=dict)
    """Why a shard was not committed, by its name."""
    stopped: str = ""
    """The signal that stopped the run, or ""."""


def run_import(job: ImportJob, rule: SpreadRule, echo: Callable[[str], None] = log.info) -> ImportSummary:
    """Import a source, or what is left of it. Running it again continues.

    Raises:
        ConfigError: the source has nothing to go by, or the output has another Spec. Nothing was written.
        StorageError: the source cannot be listed, or the output not be written.
    """
    output, spec = Storage(job.output), spec_of(job)
    spec = check(output, spec)
    writable(output)
    write_spec(output, spec)
    plan = plan_more(output, lambda files: new_shards(job, files))
    tidy(output, plan.done, plan.leftovers, spec.to_json())
    todo, done, sizes = list(plan.remaining()), set(plan.done), dict(plan.data_bytes)
    summary = ImportSummary(shards=plan.num_shards, done=len(done))
    with Stop(rule.grace) as stop, contextlib.suppress(GraceOverError), stop.limited():
        for shard, outcome in spread(import_shard, (job, spec.to_json()), todo, stop, rule):
            if isinstance(outcome, LatentmillError):
                summary.failures[shard.name] = str(outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                done.add(shard.name)
            echo(f"shards {len(done)}/{plan.num_shards}")
    summary.stopped, summary.done = stop.by, len(done)
    seal(output, sorted(done), spec.to_json(), sizes)
    summary.counts = tally(output, sorted(done), {})
    return summary
