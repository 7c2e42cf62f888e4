"""The VAEs that trainers are made for, and how the Spec of an output shows that its latents come from one of them.

A trainer's models understand the latents of one VAE. Latents of another VAE may have the same shape and would train
without an error, to nothing. So a family is recognised by the class, the latent channels and the compression of the VAE
in the Spec, and, where the trainer takes scaled latents, by the normalisation that the VAE's own config states. The
weights are not compared: a fine-tuned VAE of the class counts as the family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The VAE of one line of models."""

    title: str
    """As people call it: "Wan 2.1"."""
    name: str
    """Class of the VAE in its config.json."""
    channels: int
    """Channels of the latent."""
    compression: tuple[int, int]
    """Frames and pixels per latent cell."""
    scales: tuple[float, ...] = ()
    """The scaling factors of its published checkpoints, where the config in the Spec does not state them."""

    def __str__(self) -> str:
        time, space = self.compression
        return f"{self.title} ({self.name}, {self.channels} channels, {time}x{space}x{space})"

    def has_made(self, vae: dict[str, Any]) -> bool:
        """Return whether the VAE of a Spec is of this family."""
        found = (vae["name"], vae["latent_channels"], (vae["time_compression"], vae["space_compression"]))
        return found == (self.name, self.channels, self.compression)


WAN_21 = Family(title="Wan 2.1, Wan 2.2 A14B", name="AutoencoderKLWan", channels=16, compression=(4, 8))
WAN_22 = Family(title="Wan 2.2 5B", name="AutoencoderKLWan", channels=48, compression=(4, 16))
HUNYUAN = Family(title="HunyuanVideo", name="AutoencoderKLHunyuanVideo", channels=16, compression=(4, 8))
LTX_2 = Family(title="LTX-2", name="AutoencoderKLLTX2Video", channels=128, compression=(8, 32))
COGVIDEOX = Family(
    title="CogVideoX", name="AutoencoderKLCogVideoX", channels=16, compression=(4, 8), scales=(1.15258426, 0.7)
)


def family_of(vae: dict[str, Any], families: Iterable[Family]) -> Family | None:
    """Return the family among these that has made the VAE of a Spec; None: none of them has."""
    return next((family for family in families if family.has_made(vae)), None)


def described(vae: dict[str, Any]) -> str:
    """Return the VAE of a Spec as `Family` shows itself."""
    time, space = vae["time_compression"], vae["space_compression"]
    return f"{vae['name']}, {vae['latent_channels']} channels, {time}x{space}x{space}"


def foreign_scaling(vae: dict[str, Any], family: Family) -> str | None:
    """Return how the Spec's normalisation differs from the one that the VAE itself states; None: it does not.

    `encode --scale --shift` replaces the normalisation of the checkpoint. A config without one says nothing.
    """
    if family.scales and not any(np.allclose(np.ravel(vae["scale"]), scale, rtol=1e-4) for scale in family.scales):
        return f"scale {_short(vae['scale'])} in the Spec, {' or '.join(map(str, family.scales))} in its checkpoints"
    config = vae["config"]
    mean, std, factor = config.get("latents_mean"), config.get("latents_std"), config.get("scaling_factor") or 1.0
    stated: list[tuple[str, Any]] = []
    if mean is not None and std is not None:
        stated = [("shift", mean), ("scale", factor / np.asarray(std, np.float64))]
    elif config.get("scaling_factor") is not None:
        stated = [("shift", config.get("shift_factor") or 0.0), ("scale", factor)]
    for name, value in stated:
        if not np.allclose(np.ravel(vae[name]), np.ravel(value), rtol=1e-4, atol=1e-6):
            return f"{name} {_short(vae[name])} in the Spec, {_short(value)} in the VAE's config"
    return None


def _short(value: Any) -> str:
    numbers = np.ravel(value)
    return ", ".join(f"{number:.5g}" for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
