"""Everything that can be known to be wrong before Ray starts, and the Spec that follows from a Job."""

from __future__ import annotations

from pathlib import Path

import vae
from pipeline.errors import ConfigError
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage
from vae.info import VAEInfo
from vae.shapes import WINDOW


def resolve(job: Job) -> tuple[Spec, VAEInfo]:
    """The Spec of a job, every value resolved, and the facts of its VAE.

    Raises:
        ConfigError: the VAE cannot be loaded, or cannot take the clips that were asked for.
    """
    try:
        info = vae.load_vae(job.vae, schedule=job.latent.schedule).info
    except (vae.CheckpointError, ValueError, OSError) as error:
        raise ConfigError(f"--vae {job.vae!r}: {error}") from error
    for num_frames, height, width in job.clip.shapes:
        _check_shape(num_frames, height, width, info, job.latent)
    return Spec(vae=info.to_json(), clip=job.clip, latent=job.latent), info


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
    """(T, H, W) of the largest clip, for the encoder's self-check, which takes its first window."""
    return max(clip.shapes, key=lambda shape: shape[0] * shape[1] * shape[2])


def writable(output: Storage) -> None:
    """Make the folder of a local output.

    Raises:
        ConfigError: it cannot be made.
    """
    if "://" not in output.uri:
        try:
            Path(output.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {output.uri} is not a folder and cannot be made: {error.strerror}") from error
