"""latentmill stats: show the statistics that diffusion training depends on, and the normalisation that follows.

They are pooled exactly over all committed clips, from the index alone. Exit codes: 0; 1 storage failed; 2 no output
there, a wrong flag, or an output without statistics (format version 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow.compute as pc
import tyro

import latentmill
from jobs.ls import reading
from jobs.process import run_command
from latentmill.dataset import LatentDataset
from latentmill.format import STATISTICS
from latentmill.statistics.normalisation import alarms, dead_channels, fit, verdict
from latentmill.statistics.outliers import outliers
from pipeline.output.wording import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Options of `latentmill stats`."""

    output: str
    """Path or URL that `latentmill encode` wrote to."""
    as_json: Annotated[bool, tyro.conf.arg(name="json", aliases=("--as-json",))] = False
    """Print JSON instead of tables."""
    by: Literal["bucket"] | None = None
    """Also show the statistics of each bucket, which is a latent shape."""
    furthest: int = 10
    """How many of the clips that are furthest out to show."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the statistics of an output."""
    args = tyro.cli(Stats, args=argv, prog="latentmill stats", description=__doc__)
    return reading("stats", lambda: _stats(args))


def _stats(args: Stats) -> int:
    latents = latentmill.open(args.output, columns=("key", *STATISTICS.names))
    facts = stats(latents, args.furthest)
    buckets = {bucket.name: _of_bucket(latents, bucket.shape) for bucket in latents.buckets} if args.by else {}
    if args.as_json:
        print(json.dumps(facts | ({"buckets": buckets} if args.by else {}), indent=2))
        return 0
    print(printable(table(facts)))
    for name, found in buckets.items():
        print(f"\n{name}\n{_moments(found)}")
    return 0


def stats(latents: LatentDataset, furthest: int) -> dict[str, Any]:
    """Return the statistics of a dataset, with what follows from them, as JSON types."""
    found = latents.statistics
    assert found
    spec, fitted = latents.spec, fit(found, latents.spec)
    return found.to_json() | {
        "dead_channels": dead_channels(found, spec),
        "furthest": [outlier._asdict() for outlier in outliers(latents, furthest)],
        "normalisation": {"used": {name: spec["vae"][name] for name in ("scale", "shift")}}
        | {"fitted": fitted and fitted.to_json()},
        "verdict": verdict(found, spec),
        "alarms": alarms(found, spec),
    }


def _of_bucket(latents: LatentDataset, shape: tuple[int, ...]) -> dict[str, Any]:
    same = [pc.list_element(pc.field("latent_shape"), i) == length for i, length in enumerate(shape)]
    found = latents.where(same[0] & same[1] & same[2] & same[3]).statistics
    assert found
    return found.to_json()


def table(facts: dict[str, Any]) -> str:
    """Return the facts of `stats` as text."""
    lines = [_moments(facts), ""]
    lines += [f"furthest    {one['key']} ({one['id']}): {one['why']}" for one in facts["furthest"]]
    if fitted := facts["normalisation"]["fitted"]:
        lines += ["", "normalisation that fits, for all channels or for each:", f"  --scale={fitted['scale']:.6g}"]
        lines += [f"  --{name}={_numbers(fitted[f'channel_{name}'])}" for name in ("scale", "shift")]
    lines += ["", *(f"alarm       {line}" for line in facts["alarms"] if line != facts["verdict"])]
    return "\n".join([*lines, f"verdict     {facts['verdict']}"])


def _moments(facts: dict[str, Any]) -> str:
    """Return a table of mean and std of each channel: of all latent frames, of the first one, and of the others."""
    parts = [facts[name] for name in ("whole", "first", "rest") if facts[name]]
    lines = [
        f"rows        {facts['rows']}, {parts[0]['positions']} values in each channel",
        f"largest     {facts['max_abs']:.4g} in magnitude",
        f"{'channel':10}{'mean':>9}{'std':>9}{'first frame':>15}{'':>6}{'later frames':>15}{'':>6}",
    ]
    for i in range(len(parts[0]["mean"])):
        lines.append(f"{i:7}   " + "   ".join(f"{part['mean'][i]:9.3f}{part['std'][i]:9.3f}" for part in parts))
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return ",".join(f"{value:.5g}" for value in values)


if __name__ == "__main__":
    run_command(main)
