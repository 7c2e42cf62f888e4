"""load_vae and save_vae: load an encoder from any supported format, and save one in our own."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch

from vae.autoencoder import VideoVAE
from vae.checkpoints.checkpoint import (
    EncoderCheckpoint,
    diffusers_config,
    load_strict,
    model_folder,
    read_encoder,
    weights_sha256,
    write_encoder,
)
from vae.checkpoints.configs import check_depth
from vae.checkpoints.diffusers_vae import read_diffusers_vae
from vae.checkpoints.load_pixel_decoder import load_pixel_decoder
from vae.checkpoints.places import local_checkpoint
from vae.checkpoints.tiny import TINY_CONFIG, TINY_NAME, read_tiny
from vae.checkpoints.wan import WAN_CLASSES
from vae.encoder import Encoder3D
from vae.errors import CheckpointError
from vae.info import VAEInfo
from vae.shapes import CAUSAL_WINDOW, Schedule
from vae.wan import WanEncoder

log = logging.getLogger(__name__)

_CHOICES = ("batched8", "whole")

_STATED = ("latents_mean", "latents_std")
"""What Wan's config says beside the arguments of the network: exports compare a Spec's scaling with it."""


def load_vae(
    where: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", schedule: Schedule = "batched8"
) -> VideoVAE:
    """Load a VAE's encoder.

    Args:
        where: `tiny`, a local path, an fsspec URL or a Hugging Face repository id. Its content decides the format: a
            diffusers folder (of any class that diffusers_vae.py takes), SAT's `3d-vae.pt` or a full SAT checkpoint,
            MoVQ weights, Wan's `.pth`, or a file written by `save_vae`.
        dtype: compute dtype; None keeps the checkpoint's.
        device: device of the encoder.
        schedule: `batched8` (diffusers parity) or `whole` (SAT parity). Classes other than CogVideoX's ignore it:
            the `info.schedule` of Wan is `causal4`, and of those that encode clips with diffusers' code `whole`.

    Raises:
        CheckpointError: nothing there can be loaded, or names, shapes or values do not fit.
        ValueError: an unknown schedule.
    """
    if schedule not in _CHOICES:
        raise ValueError(f"schedule must be one of {', '.join(_CHOICES)}, got {schedule!r}")
    if where == "tiny":
        weights = read_tiny()
        checkpoint = EncoderCheckpoint(
            name=TINY_NAME, config=TINY_CONFIG, scale=weights.scale, shift=0.0, tensors=weights.encoder
        )
        return _build(checkpoint, where, dtype, device, schedule)
    path = local_checkpoint(where)
    config = diffusers_config(path)
    if config is not None and config.get("_class_name") not in ("AutoencoderKLCogVideoX", *WAN_CLASSES):
        other, info = read_diffusers_vae(model_folder(path), config)
        return VideoVAE(
            other.to(device=device, dtype=dtype),
            info,
            partial(load_pixel_decoder, where, dtype=dtype, device=device),
        )
    return _build(read_encoder(path), where, dtype, device, schedule)


def save_vae(vae: VideoVAE, path: str | Path) -> None:
    """Write an encoder in our own format, which `load_vae` reads back: one safetensors file with config and scaling."""
    info = vae.info
    if not isinstance(vae.encoder, Encoder3D | WanEncoder):
        raise ValueError(f"only an Encoder3D or a WanEncoder can be saved in our format, got {info.name}")
    tensors = vae.encoder.state_dict()
    config = {name: value for name, value in info.config.items() if name not in _STATED}
    write_encoder(
        Path(path),
        EncoderCheckpoint(name=info.name, config=config, scale=info.scale, shift=info.shift, tensors=tensors),
    )


def _build(
    checkpoint: EncoderCheckpoint,
    where: str,
    dtype: torch.dtype | None,
    device: str | torch.device,
    schedule: Schedule,
) -> VideoVAE:
    check_depth(checkpoint.config, len(checkpoint.tensors), where)
    is_wan = checkpoint.name in WAN_CLASSES
    try:
        with torch.device("meta"):
            encoder = (WanEncoder if is_wan else Encoder3D)(**checkpoint.config)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # also from impossible tensor sizes
        raise CheckpointError(f"{where}: {error}") from error
    load_strict(encoder, checkpoint.tensors, where)
    info = (
        _info_of_wan(encoder, checkpoint)
        if isinstance(encoder, WanEncoder)
        else _info(encoder, checkpoint, where, schedule)
    )
    return VideoVAE(
        _ready(encoder, dtype, device), info, partial(load_pixel_decoder, where, dtype=dtype, device=device)
    )


def _info(encoder: Encoder3D, checkpoint: EncoderCheckpoint, where: str, schedule: Schedule) -> VAEInfo:
    if not encoder.double_z:
        raise CheckpointError(f"{where}: double_z=False has no posterior; use Encoder3D directly")
    return VAEInfo(
        name=checkpoint.name,
        config=checkpoint.config,
        weights_sha256=weights_sha256(checkpoint.tensors),
        in_channels=encoder.in_channels,
        latent_channels=encoder.z_channels,
        time_compression=encoder.temporal_compress_times,
        space_compression=encoder.spatial_compress_times,
        scale=checkpoint.scale,
        shift=checkpoint.shift,
        schedule=schedule,
        windowed=schedule == "batched8",
    )


def _info_of_wan(encoder: WanEncoder, checkpoint: EncoderCheckpoint) -> VAEInfo:
    # The first latent of a chunk is that of the chunk's first 4 frames, and depends on `reach` frames before the last.
    frames_before = encoder.reach - (CAUSAL_WINDOW - 1)
    config = dict(checkpoint.config)
    if isinstance(checkpoint.scale, tuple) and isinstance(checkpoint.shift, tuple):
        std = [1.0 / float(value) for value in checkpoint.scale]  # type: ignore[arg-type]
        config |= {"latents_mean": list(checkpoint.shift), "latents_std": std}
    return VAEInfo(
        name=checkpoint.name,
        config=config,
        weights_sha256=weights_sha256(checkpoint.tensors),
        in_channels=encoder.in_channels,
        latent_channels=encoder.z_channels,
        time_compression=encoder.time_compression,
        space_compression=encoder.space_compression,
        scale=checkpoint.scale,
        shift=checkpoint.shift,
        schedule="causal4",
        windowed=True,
        only_accepted_lengths=True,
        exact_context=-(-frames_before // CAUSAL_WINDOW),
    )


def _ready(
    encoder: Encoder3D | WanEncoder, dtype: torch.dtype | None, device: str | torch.device
) -> Encoder3D | WanEncoder:
    """Cast, move and freeze the encoder, and give convolution weights the memory layout of the activations.

    The weights are copied, so that no memory-mapped file stays open.
    """
    encoder = encoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if torch.device(device).type == "cuda":
        _warn_of_cudnn()
    for parameter in encoder.parameters():
        layout = {5: torch.channels_last_3d, 4: torch.channels_last}.get(parameter.ndim, torch.contiguous_format)
        parameter.data = parameter.data.clone(memory_format=layout)
    return encoder


def _warn_of_cudnn() -> None:
    """Warn about the two library releases whose bfloat16 Conv3d is known to be slow or wrong."""
    version: int = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    if torch.__version__.startswith("2.9.") and version < 91500:
        log.warning("torch=%s cudnn=%s: bf16 Conv3d is 3-17x slower (pytorch #166643)", torch.__version__, version)
    if version == 91002:
        log.warning("cudnn=%s: bf16 Conv3d may be wrong at large shapes (pytorch #163539); run selfcheck", version)
