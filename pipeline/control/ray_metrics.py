"""The numbers of a run as metrics of Ray, which each node serves to Prometheus. They need the extra `cluster`.

Ray Data itself serves the lengths of its queues (`ray_data_*`). Without the extra, Ray serves nothing and says nothing.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipeline.runs.progress import Progress


class Metrics:
    """The counters and gauges of one run. Their names are in docs/cluster.md."""

    def __init__(self, prefix: str = "latentmill") -> None:
        self._prefix = prefix
        self._made: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, str], float] = {}

    def update(self, progress: Progress) -> None:
        """Tell Ray what changed since the last call."""
        for metric in progress.metrics():
            name = f"{self._prefix}_{metric.name}"
            if name not in self._made:
                self._made[name] = (Counter if metric.is_total else Gauge)(name, metric.help, tuple(metric.tags))
            if not metric.is_total:
                self._made[name].set(metric.value, metric.tags)
                continue
            key = name, "".join(metric.tags.values())
            if (more := metric.value - self._told.get(key, 0.0)) > 0:
                self._made[name].inc(more, metric.tags)
                self._told[key] = metric.value
