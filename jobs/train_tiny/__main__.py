"""python -m jobs.train_tiny: train the VAE `tiny`, and judge it beside the best linear code of the same size.

The same command continues a run that was stopped. In the end it writes the weights, `tiny.safetensors`, and a picture,
`tiny.png`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from jobs.process import run_command
from jobs.train_tiny.clips import clips_to_judge, clips_to_train_on, made_clip
from jobs.train_tiny.evaluate import LinearCode, judge, natural
from jobs.train_tiny.export import draw, standardise, stds, write_weights
from jobs.train_tiny.train import Training, train


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTiny:
    """Options of `python -m jobs.train_tiny`."""

    videos: Path | None = None
    """A folder of real videos. Those of clips.HELD_OUT are only judged."""
    work: Path = Path("train_tiny")
    """Where the state, the log, the weights and the picture are written."""
    made: int = 160
    """Number of made clips."""
    per_video: int = 20
    """Clips of each real video."""
    training: Training = field(default_factory=Training)


def main(argv: list[str] | None = None) -> int:
    """Train, judge, and write the result."""
    args = tyro.cli(TrainTiny, args=argv, prog="python -m jobs.train_tiny", description=__doc__)
    real, made = natural(clips_to_train_on(args.videos, args.per_video)), [made_clip(i) for i in range(args.made)]
    judged = clips_to_judge(args.videos)
    print(f"{len(real)} real and {len(made)} made clips to train on, {len(judged)} videos to judge", flush=True)
    model = train(args.training, real, made, args.work)
    scale = standardise(model, made)
    facts: dict[str, float] = {"scale": scale}
    rows = judge(model, LinearCode([*real, *made]), judged)
    if rows:
        ours, theirs = (float(np.mean([row[i] for row in rows])) for i in (1, 2))
        facts |= {"psnr": round(ours, 2), "linear_psnr": round(theirs, 2)}
        for name, one, other in [*rows, ("mean", ours, theirs)]:
            print(f"{name:45}{one:8.2f} dB   linear code {other:6.2f} dB   {one - other:+.2f} dB")
        unseen = stds(model, [clip for clips in judged.values() for clip in clips])
        print(f"std of the latents of these videos: {unseen.min():.2f} to {unseen.max():.2f} by channel")
    write_weights(model, args.work / "tiny.safetensors", facts)
    shown = [clips[0] for clips in judged.values()] or [made_clip(args.made + i) for i in range(4)]
    draw(model, shown, args.work / "tiny.png")
    return 0


if __name__ == "__main__":
    run_command(main)
