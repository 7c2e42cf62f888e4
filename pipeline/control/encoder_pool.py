"""Compute how many text encoders a machine or a cluster can hold, or refuse the job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from pipeline.control.pools import SPARE_CPUS, Cluster, needs_of_encoder
from pipeline.errors import ConfigError
from pipeline.settings.job import Workers, local_cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderPool:
    """The actors, fewest and most, and what each of them reserves."""

    size: tuple[int, int]
    cpus: float
    gpus: float

    @property
    def first(self) -> int:
        """How many encoders a pass begins with: see Pools."""
        return self.size[1 if self.gpus else 0]

    @property
    def device(self) -> str:
        """Where the encoders compute."""
        return "cuda" if self.gpus else "cpu"


def this_machine() -> Cluster:
    """Return what a local Ray would have."""
    import torch  # imported late: it costs seconds

    cpus = local_cpus() + SPARE_CPUS
    return Cluster(cpus=cpus, gpus=torch.cuda.device_count(), object_store=0, spare_cpus=SPARE_CPUS)


def check_encoder_pool(workers: Workers, output: str, weights_bytes: int) -> None:
    """Refuse encoders that do not fit on this machine, if the run starts a local Ray; else look at the cluster.

    Raises:
        ConfigError: they do not fit; or no cluster answers, or not every node of it sees a local output.
    """
    if workers.ray_address != "local":
        from pipeline.control.ray_cluster import check_cluster
        from pipeline.control.same_disk import check_same_output

        check_cluster(workers.ray_address, partial(check_same_output, output))
        return
    encoder_pool(workers, this_machine(), weights_bytes, most_useful=1)


def encoder_pool(workers: Workers, cluster: Cluster, weights_bytes: int, most_useful: int) -> EncoderPool:
    """Compute the pool. `auto` on CPUs starts no more encoders than memory holds weights, and than have work.

    Args:
        weights_bytes: size of the weights of one encoder.
        most_useful: number of shards.

    Raises:
        ConfigError: the encoders do not fit.
    """
    gpus, cpus = needs_of_encoder(workers, cluster.gpus)
    fitting = int(cluster.gpus / gpus) if gpus else int(cluster.cpus / cpus)
    if workers.encoders == "auto":
        fit = fitting if gpus else int((cluster.cpus - cluster.spare_cpus) / cpus)
        held = math.inf if gpus or not math.isfinite(cluster.memory) else int(cluster.memory / max(weights_bytes, 1))
        least, most = 1, max(1, int(min(fit, held)))
    else:
        least, most = workers.pool_size(cluster.cpus, cluster.gpus if gpus else 0)
    if least > fitting:
        each = f"{gpus:g} GPUs (--gpus-per-encoder)" if gpus else f"{cpus:g} CPUs (--threads-per-encoder)"
        has = f"{cluster.gpus:g} GPUs" if gpus else f"{cluster.cpus - cluster.spare_cpus:g} CPUs"
        raise ConfigError(f"--encoders {workers.encoders} of {each} each do not fit on the {has} that there are")
    most = max(1, min(most, most_useful))
    return EncoderPool(size=(min(least, most), most), cpus=cpus, gpus=gpus)
