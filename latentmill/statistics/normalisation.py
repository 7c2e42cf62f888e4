"""Judge the normalisation of an output by its statistics, and fit another one.

Training latents are `(z - shift) * scale`. Diffusion training expects a standard deviation near 1, so that the noise
schedule fits (Rombach et al. 2022, section "Decreasing the signal-to-noise ratio by rescaling": scale = 1 / std).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentmill.statistics.pool import Moments, Statistics

EXPECTED_STD = (0.75, 1.33)
"""A std inside is near 1: a third away from it, as 1 / 1.33 = 0.75."""
TOLERATED_STD = (0.5, 2.0)
"""A std outside is an alarm: the signal stands 6 dB lower or higher against the noise than the schedule expects."""
DEAD = 0.01
"""A channel is dead if its std is below this part of the std of all channels."""
FAR = 30.0
"""A largest magnitude above so many stds is an alarm. Latents of the CogVideoX VAE stay below 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The normalisations that give these latents a std of 1, as `latentmill encode` takes them."""

    scale: float
    """`--scale` for all channels, beside the shift of the Spec."""
    channel_scale: list[float]
    """`--scale` of each channel, with `channel_shift`: mean 0 and std 1 in each channel."""
    channel_shift: list[float]
    """`--shift` of each channel."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return asdict(self)


def training(moments: Moments, spec: dict[str, Any]) -> Moments:
    """Return the moments of the latents that training sees: of stored moments, the scaled mean."""
    if spec["latent"]["posterior"] != "moments":
        return moments
    channels = len(moments.mean) // 2
    scale, shift = _factors(spec)
    mean, std = moments.mean[:channels], moments.std[:channels]
    return Moments(moments.positions, (mean - shift) * scale, std * np.abs(scale))


def fit(statistics: Statistics, spec: dict[str, Any]) -> Fit | None:
    """Return the normalisations that fit these latents; None if the Spec has one for each latent frame (Cosmos)."""
    if np.ndim(spec["vae"]["scale"]) == 2:
        return None
    scale, shift = _factors(spec)
    seen = training(statistics.whole, spec)
    mean, std = seen.mean / scale + shift, np.maximum(seen.std / np.abs(scale), 1e-12)
    _, overall = Moments(seen.positions, mean - shift, std).overall
    return Fit(scale=1 / overall, channel_scale=(1 / std).tolist(), channel_shift=mean.tolist())


def verdict(statistics: Statistics, spec: dict[str, Any]) -> str:
    """Return in one sentence whether the normalisation of the Spec fits these latents."""
    _, std = training(statistics.whole, spec).overall
    under = f"these latents have std {std:.2f} under {_named(spec)}"
    if _within(std, EXPECTED_STD):
        return f"{under}: near 1, as diffusion training expects"
    away = f"{20 * np.log10(max(std, 1e-12)):+.1f} dB from 1, which diffusion training expects"
    if _within(std, TOLERATED_STD):
        return f"{under}: {away}; training tolerates it"
    return f"{under}: {away}; your data are not what it was fitted on, see the normalisation that fits"


def dead_channels(statistics: Statistics, spec: dict[str, Any]) -> list[int]:
    """Return the channels that hold next to nothing."""
    seen = training(statistics.whole, spec)
    return [int(i) for i in np.flatnonzero(seen.std < DEAD * seen.overall[1])]


def alarms(statistics: Statistics, spec: dict[str, Any]) -> list[str]:
    """Return one line for each property of these latents that is bad for training; none if all is well."""
    lines = []
    _, std = training(statistics.whole, spec).overall
    if not _within(std, TOLERATED_STD):
        lines.append(verdict(statistics, spec))
    if dead := dead_channels(statistics, spec):
        lines.append(f"dead channels: {', '.join(map(str, dead))}: std below {DEAD:.0%} of that of all channels")
    if spec["latent"]["posterior"] != "moments" and 0 < FAR * std < statistics.max_abs:
        lines.append(f"largest magnitude {statistics.max_abs:.3g}: {statistics.max_abs / std:.0f} times the std")
    return lines


def _within(std: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= std <= bounds[1]


def _factors(spec: dict[str, Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scale and shift, each one number or [C]; of a scale for each latent frame, that of the first frame."""
    scale, shift = (np.asarray(spec["vae"][name], np.float64) for name in ("scale", "shift"))
    return (scale[:, 0] if scale.ndim == 2 else scale), (shift[:, 0] if shift.ndim == 2 else shift)


def _named(spec: dict[str, Any]) -> str:
    scale = spec["vae"]["scale"]
    return f"the scale {scale:.4g} of the Spec" if isinstance(scale, int | float) else "the scales of the Spec"
