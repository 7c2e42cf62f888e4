"""Compute how many workers of each stage a machine or a cluster can hold, or refuse the job."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.errors import ConfigError
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, Workers, local_cpus
from pipeline.settings.spec import LatentRule
from vae.info import VAEInfo

SPARE_CPUS = 1
"""CPUs that a local Ray counts beyond those of the machine. So `--encoders` may ask for one encoder on every core, and
decoding, which yields to encoders, still runs."""

IO_BLOCK_BYTES = 8_000_000
"""Size of a block that small samples and small chunks share. A block costs about 10 ms, and work is staged block by
block: larger blocks delay the first result, and a kill repeats more work."""


BLOCKS_IN_FLIGHT = 8
"""Blocks of the largest chunk that must fit into Ray Data's half of the object store: two each at the output of decode,
at the input of encode, and in transfer (measured: 597 MB peak at 50 MB a chunk; 8 blocks are 400)."""


def largest_chunk_bytes(clip: ClipRule, latent: LatentRule, info: VAEInfo) -> int:
    """Return the bytes of the largest chunk of frames of a run, context included."""
    return max(
        (span.stop - span.start) * height * width * 3
        for num_frames, height, width in clip.shapes
        for span in info.spans(num_frames, chunk_windows=latent.chunk_windows, context=latent.context_windows)
    )


def block_bytes(chunk_bytes: int) -> int:
    """Return Ray's target block size: just under one chunk, but at least IO_BLOCK_BYTES."""
    return max(int(0.9 * chunk_bytes), IO_BLOCK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many workers of each kind run on this cluster, and what each reserves."""

    readers: int
    stagers: int
    decode_cpus: float
    decoders: tuple[int, int]
    """Decode tasks at a time: the number that fits beside all encoders, and the largest number."""
    encoders: tuple[int, int]
    """Encode actors, fewest and most."""
    encoder_cpus: float
    encoder_gpus: float

    @property
    def slots(self) -> dict[str, float]:
        """How many tasks or actors of each stage can work at a time."""
        return {"read": self.readers, "decode": self.decoders[0], "encode": self.encoders[1], "stage": self.stagers}

    @property
    def encoder_threads(self) -> int:
        """How many chunks an encoder works on at a time: on a GPU, one computes while others are copied."""
        if not self.encoder_gpus:
            return 1
        from vae.turns import THREADS  # imported late: torch costs seconds

        return THREADS

    @property
    def first_encoders(self) -> int:
        """How many encoders a pass begins with. On GPUs all: the first one may get a broken card, and Ray Data starts
        no other one before the first stands."""
        return self.encoders[1 if self.encoder_gpus else 0]

    @property
    def encoder_pool(self) -> dict[str, Any]:
        """The pool of encoders, and how Ray Data calls an encoder, in its words."""
        (least, most), n = self.encoders, self.encoder_threads
        sizes = {"min_size": least, "max_size": most, "initial_size": self.first_encoders}
        return sizes | ({"max_concurrent_calls_per_actor": n, "enable_true_multi_threading": True} if n > 1 else {})

    @property
    def device(self) -> str:
        """Where the encoders compute."""
        return "cuda" if self.encoder_gpus else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What Ray has."""

    cpus: float
    gpus: float
    object_store: float
    """Bytes."""
    memory: float = math.inf
    """Bytes for tasks."""
    largest_node: float = 0.0
    """CPUs of the largest node; 0 if there is only one node."""
    spare_cpus: float = 0.0
    """CPUs that Ray counts beyond the real ones, so that each core has an encoder and decoding still runs."""


def check_workers(job: Job) -> None:
    """Refuse encoders that do not fit on this machine, if the run starts a local Ray; else look at the cluster.

    Raises:
        ConfigError: as check_encoders and check_cluster.
    """
    workers = job.workers
    if workers.ray_address != "local":
        from pipeline.control.ray_cluster import check_cluster
        from pipeline.control.same_disk import check_same_disk

        check_cluster(workers.ray_address, partial(check_same_disk, job))
        return
    ray = sys.modules.get("ray")  # if it is not imported, no Ray is running
    if not (ray and ray.is_initialized()):
        import torch  # imported late: it costs seconds in every worker that does not need it

        gpus = 0 if workers.gpus_per_encoder == 0 else torch.cuda.device_count()
        check_encoders(workers, cpus=local_cpus() + SPARE_CPUS, gpus=gpus, spare_cpus=SPARE_CPUS)


def check_encoders(workers: Workers, *, cpus: float, gpus: float, spare_cpus: float = 0) -> tuple[int, int]:
    """Return the (min, max) number of encode actors on a cluster of this size. `spare_cpus` as in Cluster.

    Raises:
        ConfigError: they leave no CPU for a decode task, or need more GPUs than there are.
    """
    per_encoder, encoder_cpus = needs_of_encoder(workers, gpus)
    least, most = workers.pool_size(cpus - spare_cpus, gpus if per_encoder else 0)
    if least * encoder_cpus + workers.decode_cpus > cpus:
        fitting = int((cpus - workers.decode_cpus) / encoder_cpus) if encoder_cpus else 0
        raise ConfigError(
            f"--encoders {workers.encoders} of {encoder_cpus:g} CPUs each (--threads-per-encoder) leave no room for a "
            f"decode task of --decode-cpus {workers.decode_cpus:g}: there are {cpus - spare_cpus:g} CPUs, and nothing "
            f"would ever be produced. At most {fitting} encoders fit"
        )
    if least * per_encoder > gpus:
        raise ConfigError(
            f"--encoders {workers.encoders} of --gpus-per-encoder {per_encoder:g} do not fit on the {gpus:g} GPUs "
            "that there are"
        )
    return least, most


def needs_of_encoder(workers: Workers, gpus: float) -> tuple[float, float]:
    """Return the GPUs and CPUs that an encode actor reserves."""
    on_gpus = workers.gpus_per_encoder if workers.gpus_per_encoder is not None else float(gpus > 0)
    return on_gpus, 0.0 if on_gpus else float(workers.threads_per_encoder)


def pools(
    workers: Workers,
    chunk_bytes: int,
    cluster: Cluster,
    overlap_bytes: int = 0,
) -> Pools:
    """Compute the pools. Refuse a job that would stand still without a message.

    Where there are few encoders, decode tasks must not fill the spare CPUs, except one task, which continues while Ray
    Data looks for the next one (2 cores, one encoder: two tasks leave 5 % of the cores' time idle when decoding is the
    bottleneck, three leave 1 %; four slow the encoder when the load is balanced, to 0.81 of the ideal overlap, where
    fewer give 0.83 to 0.90).

    Encoders on CPUs leave room for decode even when the largest node is lost: an actor keeps its CPU while it waits for
    frames that only a decode task can make again (seen: two encoders on the two CPUs that were left, for ever).

    `overlap_bytes` is what a decode task holds where clips overlap.

    Raises:
        ConfigError: the encoders leave no CPU for a decode task, need more GPUs than there are, the object store cannot
            hold the chunks in flight, or memory the clips that overlap.
    """
    per_encoder, encoder_cpus = needs_of_encoder(workers, cluster.gpus)
    least, most = check_encoders(workers, cpus=cluster.cpus, gpus=cluster.gpus, spare_cpus=cluster.spare_cpus)
    if BLOCKS_IN_FLIGHT * chunk_bytes > cluster.object_store / 2:
        raise ConfigError(
            f"the largest chunk is {chunk_bytes / 1e6:.0f} MB and Ray's object store "
            f"{cluster.object_store / 1e6:.0f} MB. Half of that must hold {BLOCKS_IN_FLIGHT} chunks. "
            "Lower --chunk-windows or raise --object-store-gb"
        )
    if encoder_cpus:
        most = max(least, min(most, int((cluster.cpus - cluster.largest_node - workers.decode_cpus) / encoder_cpus)))
    most_decoders = max(2, 1 + int((cluster.cpus - cluster.spare_cpus - encoder_cpus) / workers.decode_cpus))
    if most_decoders * overlap_bytes > cluster.memory:
        raise ConfigError(
            f"clips that overlap (--every) take up to {overlap_bytes / 1e6:.0f} MB in each of {most_decoders} decode "
            f"tasks, and there are {cluster.memory / 1e6:.0f} MB of memory for tasks. Raise --every to a multiple of "
            "the step between frames or beyond, or raise --decode-cpus"
        )
    beside_all = max(1, int((cluster.cpus - most * encoder_cpus) / workers.decode_cpus))
    waiting = max(2, int(cluster.cpus) // 2)
    return Pools(
        readers=waiting,
        stagers=waiting,
        decode_cpus=workers.decode_cpus,
        decoders=(min(beside_all, most_decoders), most_decoders),
        encoders=(least, max(most, least)),
        encoder_cpus=encoder_cpus,
        encoder_gpus=per_encoder,
    )
