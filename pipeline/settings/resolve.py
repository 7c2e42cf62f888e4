"""Turn a Job into its Spec, and raise ConfigError for every error that can be found before Ray starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import vae
from pipeline.errors import ConfigError
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage
from vae.info import Scaling, VAEInfo
from vae.shapes import WINDOW

_RGB = 3
"""Channels of decoded frames."""


def resolve(job: Job) -> tuple[Spec, VAEInfo]:
    """Return the Spec of a job, with every value resolved, and the VAEInfo of its VAE.

    Raises:
        ConfigError: the VAE cannot be loaded, or cannot encode clips of the requested shape.
    """
    try:
        info = vae.load_vae(job.vae, schedule=job.latent.schedule).info
    except (vae.CheckpointError, ValueError, OSError) as error:
        raise ConfigError(f"--vae {job.vae!r}: {error}") from error
    if info.in_channels != _RGB:
        raise ConfigError(f"--vae {job.vae!r}: {info.name} takes {info.in_channels} channels, a video has {_RGB}")
    info = replace(
        info,
        scale=info.scale if job.scale is None else scaling_numbers("--scale", job.scale, info),
        shift=info.shift if job.shift is None else scaling_numbers("--shift", job.shift, info),
        exact_statistics=job.latent.dtype == "float32",
    )
    for num_frames, height, width in job.clip.shapes:
        _check_shape(num_frames, height, width, info, job.latent)
    return Spec(vae=info.to_json(), clip=job.clip, latent=job.latent), info


def scaling_numbers(option: str, text: str, info: VAEInfo) -> Scaling:
    """Parse one number, or one for each latent channel. A scale is above 0."""
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} must be numbers with commas between, got {text!r}") from None
    if len(values) not in (1, info.latent_channels):
        raise ConfigError(
            f"{option} must be one number or {info.latent_channels}, one for each channel, got {len(values)}"
        )
    if not all(math.isfinite(value) and (value > 0 or option == "--shift") for value in values):
        allowed = "finite" if option == "--shift" else "finite and above 0"
        raise ConfigError(f"{option} must be {allowed}, got {text!r}")
    return values[0] if len(values) == 1 else values


def _check_shape(num_frames: int, height: int, width: int, info: VAEInfo, latent: LatentRule) -> None:
    if not info.accepts(num_frames):
        below, above = info.nearest(num_frames)
        nearest = f"{above}" if below is None else f"{below} or {above}"
        raise ConfigError(
            f"--num-frames must be {info.frame_rule} for {info.name}, got {num_frames}; nearest: {nearest}"
        )
    try:
        info.latent_shape(num_frames, height, width)
    except ValueError as error:
        raise ConfigError(f"--num-frames {num_frames} --height {height} --width {width}: {error}") from error
    longest = latent.chunk_windows * WINDOW + WINDOW - 1
    if not info.windowed and num_frames > longest:
        raise ConfigError(
            f"--num-frames must be at most {longest} (--chunk-windows {latent.chunk_windows} of {WINDOW} frames), got "
            f"{num_frames}: --schedule {info.schedule} of {info.name} cannot be cut into chunks"
        )


def largest_clip(clip: ClipRule) -> tuple[int, int, int]:
    """Return (T, H, W) of the largest clip, for the encoder's self-check, which encodes its first window."""
    return max(clip.shapes, key=lambda shape: shape[0] * shape[1] * shape[2])


def writable(output: Storage) -> None:
    """Create the folder of a local output.

    Raises:
        ConfigError: it cannot be created.
    """
    if "://" not in output.uri:
        try:
            Path(output.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {output.uri} is no folder and cannot be created: {error.strerror}") from error


def accepted_frames(spec: Spec) -> Callable[[int], int | None]:
    """Return what tells the largest number of frames, at most n, that the VAE takes. None: no such number, or the
    buckets determine it."""
    info = VAEInfo(**spec.vae)
    return lambda n: None if spec.clip.buckets else info.nearest(n)[0]
