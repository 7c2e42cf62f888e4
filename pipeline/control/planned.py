"""The shards of a plan as the engine sees them: a shard is done when its data file exists."""

from __future__ import annotations

import json
from typing import Any

from latentmill.statistics.normalisation import alarms
from pipeline.control.summary import Summary
from pipeline.decode import too_short
from pipeline.output.commit import sweep
from pipeline.output.tally import tally
from pipeline.plan.frozen import Plan, read_plan
from pipeline.runs.summary import Ending
from pipeline.settings.resolve import accepted_frames
from pipeline.settings.spec import Spec
from pipeline.storage import Storage


class PlannedShards:
    """What is left of a plan. A Work takes it as its base."""

    def __init__(self, output: Storage, plan: Plan, spec: Spec) -> None:
        self._output, self._plan, self._spec = output, plan, spec
        self._todo = list(plan.remaining())
        self.done = {shard.name for shard in plan} & plan.done
        """Committed shards of the plan."""

    def left(self) -> list[str]:
        return [shard.name for shard in self._todo]

    def look(self) -> None:
        now, mine = read_plan(self._output), set(self.left())
        self.done |= mine & now.done
        self._todo = [shard for shard in now.remaining() if shard.name in mine]
        sweep(self._output, now.leftovers)

    def summed(self, ending: Ending, **own: Any) -> Summary:
        """Return the summary: what the output holds, and `own` of this run."""
        counts = tally(self._output, sorted(self.done), self._plan.superseded(self.done))
        return Summary(
            **ending,
            **own,
            planned_shards=self._plan.num_shards,
            done_shards=len(self.done),
            planned=counts.planned,
            latents=counts.latents,
            rejected=counts.rejected,
            latent_bytes=counts.latent_bytes,
            too_short=counts.too_short,
            captions=counts.captions,
            hint=too_short.hint(counts.too_short, accepted_frames(self._spec)),
            alarms=tuple(alarms(counts.statistics, json.loads(self._spec.to_json())) if counts.statistics else ()),
            began_whole=not self._plan.num_remaining,
        )
