"""latentmill vae PATH: say what a VAE is: its model family, the trainers that take its latents, its frames and sizes.

Exit codes: 0; 2 there is no VAE that can be loaded, or a wrong flag.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jobs.process import run_command
from pipeline.output.wording import printable
from vae.errors import CheckpointError
from vae.families import family_of
from vae.info import VAEInfo

_EXAMPLE = (81, 480, 832)
"""Frames, height and width of the clip that the text takes as an example, made to fit the VAE."""

_MOST_SHOWN = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which VAE to describe."""

    vae: Annotated[str, tyro.conf.Positional]
    """As for `latentmill encode --vae`: `tiny`, a folder, file, URL or Hugging Face repository id."""
    as_json: Annotated[bool, tyro.conf.arg(name="json", aliases=("--as-json",))] = False
    """Print JSON instead of text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what a VAE is."""
    args = tyro.cli(Options, args=argv, prog="latentmill vae", description=__doc__)
    from vae import load_vae

    try:
        info = load_vae(args.vae).info
    except (CheckpointError, ValueError, OSError) as error:
        print(printable(f"latentmill vae: {str(error) or repr(error)}"), file=sys.stderr)
        return 2
    facts = describe(info)
    print(json.dumps(facts, indent=2) if args.as_json else printable(_text(facts)))
    return 0


def describe(info: VAEInfo) -> dict[str, Any]:
    """Return what a person wants to know of a VAE, as JSON types."""
    family = family_of(info)
    step = info.space_compression
    num_frames = info.nearest(_EXAMPLE[0])[0] or 1
    clip = [num_frames, *(max(side // step, 1) * step for side in _EXAMPLE[1:])]
    return {
        "family": family.name,
        "models": list(family.models),
        "trainers": list(family.trainers),
        "class": info.name,
        "encoder": "diffusers" if info.schedule == "whole" else "latentmill",
        "weights_sha256": info.weights_sha256,
        "frames": info.frame_rule,
        "size_multiple": step,
        "latent_channels": info.latent_channels,
        "time_compression": info.time_compression,
        "space_compression": step,
        "example": {"clip": clip, "latent": list(info.latent_shape(*clip))},
        "scale": info.to_json()["scale"],
        "shift": info.to_json()["shift"],
        "schedule": info.schedule,
        "exact_context": info.exact_context,
        "time_tiling": info.to_json().get("time_tiling"),
    }


def _text(facts: dict[str, Any]) -> str:
    example = {name: "x".join(map(str, shape)) for name, shape in facts["example"].items()}
    lines = {
        "family": facts["family"],
        "models": ", ".join(facts["models"]) or "none that is known",
        "trainers": ", ".join(facts["trainers"]) or "none that is known",
        "class": f"{facts['class']}, encoded by {_ENCODERS[facts['encoder']]}",
        "weights": f"sha256 {facts['weights_sha256']}",
        "frames": f"{facts['frames']}: 1, {', '.join(str(1 + k * facts['time_compression']) for k in (1, 2, 3))}, ...",
        "size": f"height and width are multiples of {facts['size_multiple']}",
        "latent": f"{facts['latent_channels']} channels, {facts['time_compression']}x in time, "
        f"{facts['space_compression']}x in space: {example['clip']} becomes {example['latent']}",
        "scaling": f"(z - {_numbers(facts['shift'])}) * {_numbers(facts['scale'])}",
        "long clips": _long_clips(facts),
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())


_ENCODERS = {"latentmill": "latentmill's own encoder", "diffusers": "diffusers' code"}


def _long_clips(facts: dict[str, Any]) -> str:
    if facts["time_tiling"]:
        length, step = facts["time_tiling"]
        return f"encoded by diffusers in tiles of {length} + 1 frames, one every {step}, blended"
    if facts["exact_context"] is not None:
        return f"cut exactly: a latent depends on the {facts['exact_context']} windows before its own, and on no other"
    return {
        "batched8": "in windows of 8 frames; cut with --context windows, which is an approximation, or not at all",
        "whole": "never cut",
    }[facts["schedule"]]


def _numbers(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value[0], list):
        return f"[{len(value)} x {len(value[0])} numbers]"
    shown = ", ".join(f"{number:.4g}" for number in value[:_MOST_SHOWN])
    return f"[{shown}, ... {len(value)} channels]"


if __name__ == "__main__":
    run_command(main)
