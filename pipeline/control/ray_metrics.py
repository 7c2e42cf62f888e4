"""The numbers of a run as metrics of Ray, which each node serves to Prometheus. They need the extra `cluster`.

Ray Data itself serves the lengths of its queues (`ray_data_*`). Without the extra, Ray serves nothing and says nothing.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipeline.control.progress import Progress


class Metrics:
    """The counters and gauges of one run. Their names are in docs/cluster.md."""

    def __init__(self) -> None:
        self._counters = {
            "clips": Counter("latentmill_clips", "Clips that became latents"),
            "rejected": Counter("latentmill_rejected", "Clips that were rejected", ("reason",)),
            "busy": Counter("latentmill_busy_seconds", "Busy time of all workers of a stage", ("stage",)),
            "read": Counter("latentmill_read_bytes", "Encoded video that was read"),
            "latent": Counter("latentmill_latent_bytes", "Latents that were staged"),
        }
        self._shards = Gauge("latentmill_shards", "Shards of the plan", ("state",))
        self._workers = Gauge("latentmill_workers", "Tasks or actors of a stage that can work at a time", ("stage",))
        self._idle = Gauge("latentmill_encoder_idle_share", "Idle time of the encoders since the first clip ended")
        self._told: dict[tuple[str, str], float] = {}

    def update(self, progress: Progress) -> None:
        """Tell Ray what changed since the last call."""
        self._count("clips", "", progress.clips)
        self._count("read", "", progress.read_bytes)
        self._count("latent", "", progress.latent_bytes)
        for reason, clips in dict(progress.rejected).items():
            self._count("rejected", reason, clips)
        for stage, seconds in dict(progress.seconds).items():
            self._count("busy", stage, seconds)
        for state, shards in progress.shards().items():
            self._shards.set(shards, {"state": state})
        for stage, workers in progress.slots.items():
            self._workers.set(workers, {"stage": stage})
        if (idle := progress.encoder_idle_share()) is not None:
            self._idle.set(idle)

    def _count(self, name: str, tag: str, total: float) -> None:
        counter, key = self._counters[name], (name, tag)
        if (more := total - self._told.get(key, 0.0)) > 0:
            counter.inc(more, {"reason" if name == "rejected" else "stage": tag} if tag else None)
            self._told[key] = total
