"""python -m jobs.bench forecast: compare the clips/s that `latentmill plan` predicts with those of the next run.

The loads are those of `bench stream` and two others, on 2 cores, with as many encoders as the plan says. The run is
timed after start-up: from the first quarter of its latents to the last one. A ratio of 1.0 means that the plan was
right; above it, the run was slower than planned.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import tyro

from jobs.bench.stream import CASES, CORES, LARGE, Case, job, make_tars, spec_of
from pipeline.estimate.forecast import estimate, on_this_machine
from pipeline.estimate.sample import SHARDS, amount_of, measure
from pipeline.settings.clip_rule import ClipRule
from pipeline.sources.listing import list_source

LOADS = CASES | {
    "long": Case(
        size=(640, 360), clip=ClipRule(num_frames=49, fps="native", height=64, width=96), num_clips=120, encoders="auto"
    ),
    "large": Case(size=LARGE, clip=ClipRule(num_frames=17, height=256, width=384), num_clips=80, encoders="auto"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Options of the benchmark."""

    rounds: int = 3
    """Number of rounds, each of a plan and a run; medians are printed."""
    clips: int | None = None
    """Clips of a run. Default: each load has its number."""
    measured: int = 32
    """Clips that the plan decodes and encodes."""
    loads: tuple[Literal["encode-bound", "balanced", "decode-bound", "long", "large"], ...] = (
        "encode-bound",
        "balanced",
        "decode-bound",
        "long",
        "large",
    )
    """The loads, in this order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the loads and print one line for each."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench forecast", description=__doc__)
    for name in args.loads:
        with tempfile.TemporaryDirectory(prefix="lm") as folder:
            case = replace(LOADS[name], num_clips=args.clips or LOADS[name].num_clips)
            print(_ratio(Path(folder), name, case, args), flush=True)
    return 0


def _ratio(folder: Path, name: str, case: Case, args: Args) -> str:
    source = make_tars(folder, case, shards=SHARDS)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:CORES]))  # all workers inherit it
    planned, seen = [], []
    try:
        for round_ in range(args.rounds):
            rate, encoders = _plan(source, case, args.measured)
            planned.append(rate)
            done = job(
                source, replace(case, encoders=str(encoders)), folder / f"job{round_}", folder / f"stamps{round_}"
            )
            seen.append(done.encodes / done.seconds)
    finally:
        os.sched_setaffinity(0, cores)
    ratios = [one / other for one, other in zip(planned, seen, strict=True)]
    return (
        f"{name:<14}{median(ratios):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in ratios)})  "
        f"planned {median(planned):.2f} clips/s, run {median(seen):.2f} clips/s"
    )


def _plan(source: str, case: Case, clips: int) -> tuple[float, int]:
    shards = list(list_source(source, shard_size=64))
    samples = measure(shards, "tiny", spec_of(case)[0], clips=clips, processes=CORES, device="cpu")
    found = estimate(samples, sum(map(amount_of, shards)), len(shards), sum(shard.size for shard in shards))
    return on_this_machine(found, CORES)


if __name__ == "__main__":
    raise SystemExit(main())
