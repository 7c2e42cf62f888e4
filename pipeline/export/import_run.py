"""Import latents that were made elsewhere: freeze their files as shards, commit each shard, and seal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator

from pipeline.control.planned import PlannedShards
from pipeline.control.spread import SpreadRule, Workers, workers_of
from pipeline.control.summary import Summary
from pipeline.export.import_job import ImportJob
from pipeline.export.imported import import_shard, new_shards, spec_of
from pipeline.output.commit import seal, tidy
from pipeline.output.spec_file import check, write_spec
from pipeline.plan.frozen import Plan, plan_more
from pipeline.runs.claims import Claims, Owner
from pipeline.runs.passes import Passes
from pipeline.runs.progress import Progress
from pipeline.runs.run_records import RunRecord
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.runs.summary import Ending
from pipeline.runs.work import Outcome, ended
from pipeline.settings.resolve import writable
from pipeline.settings.spec import Spec
from pipeline.shards import Shard
from pipeline.storage import Storage

log = logging.getLogger(__name__)


class ImportWork(PlannedShards):
    """A Work: the files of a plan. The driver takes the claims, before a call begins."""

    workers: Workers
    claims: Claims

    def __init__(self, output: Storage, plan: Plan, spec: Spec, job: ImportJob) -> None:
        super().__init__(output, plan, spec)
        self._job = job
        self.progress = Progress(
            num_shards=plan.num_remaining, num_done_before=plan.num_shards - plan.num_remaining, doing="starting"
        )

    def make(self) -> Generator[Outcome, None, None]:
        elsewhere: list[str] = []
        shared = self._job, self._spec.to_json()
        for shard, result in self.workers.spread(import_shard, shared, self._claimed(elsewhere)):
            self.claims.release(shard.name)
            facts = {} if isinstance(result, Exception) else _facts(result)
            yield ended(shard.name, result, "file", facts)
        for name in elsewhere:
            yield Outcome(shard=name, state="elsewhere")

    def _claimed(self, elsewhere: list[str]) -> Iterator[Shard]:
        for shard in self._todo:
            if self.claims.take(shard.name):
                yield shard
            else:
                elsewhere.append(shard.name)

    def summary(self, ending: Ending) -> Summary:
        return self.summed(ending)


def _facts(counts: dict[str, int]) -> dict[str, object]:
    latents = counts.get("latents", 0)
    return {"latents": latents, "rejections": sum(counts.values()) - latents}


def run_import(
    job: ImportJob, rule: SpreadRule, echo: Callable[[str], None] = log.info, echo_seconds: float = 30.0
) -> Summary:
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
    work = ImportWork(output, plan, spec, job)
    passes = Passes(work, output, echo, echo_seconds)
    record = RunRecord(job=job, run_id=passes.run_id, spec_digest=spec.digest)
    with Stop(rule.grace) as stop, passes.recorded(stop, record):
        if plan.num_remaining:
            work.claims = Claims(output, Owner.this_process(passes.run_id))
            importing = workers_of(rule, stop, "latentmill_import")
            with contextlib.suppress(GraceOverError), importing as work.workers, stop.limited():
                passes.drive(work.claims, stop, work.workers.measure)
            work.look()
        with stop.limited():
            seal(output, sorted(work.done), spec.to_json(), plan.data_bytes)
    return passes.ended
