"""latentmill plan: say what a run will make, take and cost, before it is started. Writes nothing.

The source is listed; some clips of some shards are decoded and encoded on this machine; the rest is computed. Give the
options of `latentmill encode` that decide the clips.

Exit codes: 0; 1 storage failed; 2 wrong configuration, or no clip could be encoded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any

import tyro

from jobs.encode import FLAGS
from jobs.process import run_command
from pipeline.control.pools import largest_chunk_bytes
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.estimate.forecast import (
    Estimate,
    Forecast,
    Interval,
    bottleneck,
    estimate,
    on_gpus,
    on_this_machine,
    to_json,
)
from pipeline.output.wording import printable, size
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, local_cpus
from pipeline.settings.spec import LatentRule


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Options of `latentmill plan`."""

    source: tuple[str, ...]
    """As for encode."""
    vae: str
    """As for encode."""
    clip: ClipRule = field(default_factory=ClipRule)
    latent: LatentRule = field(default_factory=LatentRule)
    shard_size: int = 64
    """As for encode."""
    measure: int = 32
    """Number of clips to decode and encode on this machine."""
    sample_seed: int = 0
    """Random seed for the choice of shards."""
    gpus: int | None = None
    """Also say how a run on so many GPUs goes."""
    cores_per_gpu: float | None = None
    """CPU cores that there are for each of them. Default: as many as are needed."""
    gpu_seconds: float | None = None
    """Seconds of one GPU for a clip. Default: as measured, where this machine has a GPU."""
    gpu_price: float | None = None
    """Price of one GPU for an hour."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("measure", "gpus", "cores_per_gpu", "gpu_seconds", "gpu_price"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan. The module docstring lists the exit codes."""
    try:
        return _plan(tyro.cli(Plan, args=argv, prog="latentmill plan", description=__doc__, config=FLAGS))
    except (ConfigError, EncoderError) as error:
        print(printable(f"latentmill plan: {error}"), file=sys.stderr)
        return 2
    except StorageError as error:
        print(printable(f"latentmill plan: storage: {error}"), file=sys.stderr)
        return 1


def _plan(args: Plan) -> int:
    import torch

    from pipeline.estimate.sample import amount_of, choose, measure
    from pipeline.settings.resolve import resolve
    from pipeline.sources.listing import list_source

    has_gpu = torch.cuda.is_available()
    if args.gpus and not has_gpu and args.gpu_seconds is None:
        raise ConfigError(
            "--gpus needs --gpu-seconds, the seconds of one GPU for a clip: this machine has no GPU to measure them"
        )
    job = Job(source=args.source, output="", vae=args.vae, clip=args.clip, latent=args.latent)
    spec, info = resolve(job)
    shards = list(chain.from_iterable(list_source(uri, shard_size=args.shard_size) for uri in args.source))
    if not shards:
        raise ConfigError(f"--source {' '.join(args.source)}: there is no video in it, so nothing can be measured")
    cores, chosen = local_cpus(), choose(shards, args.sample_seed)
    print(f"{len(shards)} shards; {args.measure} clips of {len(chosen)} are encoded", file=sys.stderr)
    samples = measure(
        chosen,
        args.vae,
        spec,
        clips=args.measure,
        processes=1 if has_gpu else cores,
        device="cuda" if has_gpu else "cpu",
    )
    found = estimate(samples, sum(map(amount_of, shards)), len(shards), sum(shard.size for shard in shards))
    forecast = None
    if args.gpus:
        forecast = on_gpus(
            found,
            args.gpus,
            gpu_seconds=args.gpu_seconds or found.encode_seconds,
            price=args.gpu_price,
            chunk_bytes=largest_chunk_bytes(args.clip, args.latent, info),
        )
    here = None if has_gpu else on_this_machine(found, cores)
    if args.as_json:
        rate, encoders = here or (None, None)
        figures = {"clips_per_second_here": rate, "encoders_here": encoders}
        print(json.dumps(to_json(found, forecast) | figures, indent=2))
        return 0
    print(printable("\n".join(f"{name:<14}{text}" for name, text in _table(args, found, forecast, here))))
    return 0


def _table(
    args: Plan, found: Estimate, forecast: Forecast | None, here: tuple[float, int] | None
) -> list[tuple[str, str]]:
    rows = [
        ("source", f"{found.shards:,} shards, {size(found.source_bytes)}"),
        ("clips", _range(found.clips, "{:,.0f}")),
        ("video", _range(found.hours, "{:,.2f}") + " hours in the clips that become latents"),
        ("latents", _range(found.latent_bytes, size)),
        ("rejected", _range(found.rejected_share, "{:.1%}")),
        *((f"  {reason}", f"{share:.1%}") for reason, share in found.rejected.items()),
        ("decode", f"{found.decode_seconds:.3f} s of a core for each latent"),
        ("encode", f"{found.encode_seconds:.3f} s for each latent, {'on one core' if here else 'on the GPU'} here"),
    ]
    if here is not None:
        rate, encoders = here
        total = found.clips.value * (1 - found.rejected_share.value) / rate / 3600
        on = f"{local_cpus()} cores with --encoders {encoders}"
        rows.append(("here", f"{rate:.2f} clips/s on {on}, {total:,.2f} hours in all"))
    if forecast:
        cores = args.cores_per_gpu or math.ceil(forecast.cores_per_gpu)
        rows += [
            (f"{forecast.gpus} GPUs", f"{forecast.clips_per_second:,.2f} clips/s, {forecast.hours:,.2f} hours, "
                                      f"{forecast.gpu_hours:,.1f} GPU-hours"),
            ("cores", f"{forecast.cores_per_gpu:.1f} for each GPU keep it busy"),
            ("object store", f"{size(forecast.object_store_bytes)} of shared memory for each GPU of a node, at least"),
            ("network", f"{size(forecast.network_in)}/s in and {size(forecast.network_out)}/s out for each GPU"),
            ("bottleneck", bottleneck(forecast, cores)),
            ("flags", forecast.flags),
        ]  # fmt: skip
        if forecast.price is not None:
            rows.append(("price", f"{forecast.price:,.2f}"))
    return rows + [("unread", fault) for fault in found.faults[:3]]


def _range(one: Interval, form: Any) -> str:
    show = form.format if isinstance(form, str) else form
    return f"{show(one.value)} ({show(one.low)} to {show(one.high)})"


if __name__ == "__main__":
    run_command(main)
