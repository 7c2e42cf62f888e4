"""From a sample of a source to the whole of it, and to a cluster that encodes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.control.pools import BLOCKS_IN_FLIGHT
from pipeline.errors import ConfigError
from pipeline.estimate.sample import ShardSample

OVERLAP = 0.9
"""Share of the ideal throughput that a run reaches, where read, decode and encode overlap perfectly: `bench stream` on
two cores gives 0.86 to 0.93 (docs/speed.md)."""

OVERHEAD_SECONDS = 0.03
"""Seconds of a core for each clip that Ray, staging and committing take: 25 to 38 ms on three loads whose clips take
0.1 to 0.3 s (`bench forecast`). It matters for small clips only."""

RESAMPLES = 1000
"""Of the shards that were looked at, for an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate, and where it lies in 95 of 100 resamples of the shards that were looked at."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the source holds, and what one clip costs."""

    shards: int
    source_bytes: int
    clips: Interval
    """Planned clips: latents and rejections."""
    hours: Interval
    """Of video in the clips that become latents."""
    latent_bytes: Interval
    rejected_share: Interval
    rejected: dict[str, float]
    """Share of the planned clips by reason."""
    decode_seconds: float
    """Seconds of one core for one encoded clip: reading is not counted, rejected clips are."""
    encode_seconds: float
    """Seconds of one encoder for one clip, on this machine."""
    clip_bytes: float
    """Encoded video read for one clip."""
    looked_at: int
    """Clips that were tried."""
    faults: tuple[str, ...]
    """Why shards could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How a run on a cluster goes."""

    gpus: int
    clips_per_second: float
    hours: float
    """Wall time of the whole source."""
    gpu_hours: float
    cores_per_gpu: float
    """That keep a GPU busy."""
    object_store_bytes: float
    """For each GPU of a node."""
    network_in: float
    """Bytes a second for each GPU, from the source."""
    network_out: float
    """Bytes a second for each GPU, to the output."""
    price: float | None
    flags: str
    """Options of `latentmill encode`."""


def estimate(samples: Sequence[ShardSample], amount: float, shards: int, source_bytes: int) -> Estimate:
    """Scale a sample up to a source of this amount (see sample.amount_of).

    Raises:
        ConfigError: no clip could be encoded, so there is nothing to compute with.
    """
    encoded = sum(sample.encoded for sample in samples)
    rejected: Counter[str] = sum((sample.rejected for sample in samples), Counter())
    tried = encoded + rejected.total()
    faults = tuple(sample.fault for sample in samples if sample.fault)
    if not encoded:
        why = "; ".join([*faults[:3], *(f"{n} {reason}" for reason, n in rejected.most_common(3))])
        raise ConfigError(f"no clip of {len(samples)} shards could be encoded: {why or 'they hold no clips'}")

    def per_amount(chosen: Sequence[ShardSample]) -> float:
        return _ratio(chosen, "clips", "amount") * amount

    def kept(chosen: Sequence[ShardSample]) -> float:
        return _sum(chosen, "encoded") / max(_sum(chosen, "encoded") + _refused(chosen), 1)

    return Estimate(
        shards=shards,
        source_bytes=source_bytes,
        clips=_interval(samples, per_amount),
        hours=_interval(samples, lambda s: per_amount(s) * kept(s) * _ratio(s, "seconds", "encoded") / 3600),
        latent_bytes=_interval(samples, lambda s: per_amount(s) * kept(s) * _ratio(s, "latent_bytes", "encoded")),
        rejected_share=_interval(samples, lambda s: 1 - kept(s)),
        rejected={reason: count / tried for reason, count in rejected.most_common()},
        decode_seconds=_ratio(samples, "decode_seconds", "encoded"),
        encode_seconds=_ratio(samples, "encode_seconds", "encoded"),
        clip_bytes=_ratio(samples, "read_bytes", "clips"),
        looked_at=tried,
        faults=faults,
    )


def on_this_machine(found: Estimate, cores: int) -> tuple[float, int]:
    """Return the clips a second of a run that decodes and encodes on these cores, and the encoders that it needs.

    The rate is that after the start. Decoding takes what the encoders leave (docs/cluster.md).
    """
    both = found.decode_seconds + found.encode_seconds
    seconds = both / OVERLAP + OVERHEAD_SECONDS
    return cores / seconds, math.ceil(cores * found.encode_seconds / both)


def on_gpus(found: Estimate, gpus: int, *, gpu_seconds: float, price: float | None, chunk_bytes: int) -> Forecast:
    """Return the run on GPUs, each kept busy by enough cores.

    Args:
        gpu_seconds: of one GPU for one clip.
        price: of one GPU for one hour.
        chunk_bytes: of the largest chunk of frames.
    """
    per_gpu = OVERLAP / gpu_seconds
    latents = found.clips.value * (1 - found.rejected_share.value)
    hours = latents / (gpus * per_gpu) / 3600
    cores = per_gpu * (found.decode_seconds / OVERLAP + OVERHEAD_SECONDS)
    return Forecast(
        gpus=gpus,
        clips_per_second=gpus * per_gpu,
        hours=hours,
        gpu_hours=gpus * hours,
        cores_per_gpu=cores,
        object_store_bytes=2.0 * BLOCKS_IN_FLIGHT * chunk_bytes,
        network_in=per_gpu * found.clip_bytes,
        network_out=per_gpu * found.latent_bytes.value / max(latents, 1),
        price=None if price is None else gpus * hours * price,
        flags=f"--encoders {gpus} --gpus-per-encoder 1",
    )


def bottleneck(forecast: Forecast, cores_per_gpu: float) -> str:
    """Return what limits a run with so many cores for each GPU, in words."""
    share = cores_per_gpu / forecast.cores_per_gpu
    if share >= 1:
        return f"the GPUs: {cores_per_gpu:g} cores for each decode faster than it encodes"
    rate = share * forecast.clips_per_second
    return f"decoding: {cores_per_gpu:g} cores for each GPU keep it busy {share:.0%} of the time ({rate:.2f} clips/s)"


def to_json(found: Estimate, forecast: Forecast | None) -> dict[str, Any]:
    """Return both as JSON types."""
    return asdict(found) | {"forecast": forecast and asdict(forecast)}


def _interval(samples: Sequence[ShardSample], figure: Callable[[Sequence[ShardSample]], float]) -> Interval:
    """Return a figure of the sample with the interval of the bootstrap over shards (Efron 1979)."""
    random = np.random.default_rng(0)
    drawn = (random.integers(0, len(samples), len(samples)) for _ in range(RESAMPLES))
    values = [figure([samples[i] for i in chosen]) for chosen in drawn]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(value=figure(samples), low=float(low), high=float(high))


def _ratio(samples: Sequence[ShardSample], over: str, under: str) -> float:
    """Return the ratio of two sums, which is steadier than a mean of ratios; 0 for nothing."""
    return _sum(samples, over) / (_sum(samples, under) or 1.0)


def _sum(samples: Sequence[ShardSample], name: str) -> float:
    return float(sum(getattr(sample, name) for sample in samples))


def _refused(samples: Sequence[ShardSample]) -> int:
    return sum(sample.rejected.total() for sample in samples)
