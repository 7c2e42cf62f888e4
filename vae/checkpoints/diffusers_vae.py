"""Other video VAEs behind the interface of VideoVAE: the diffusers classes of PROVEN.

Compression, latent channels and normalisation are read from the model and its config, then checked by encoding one tiny
clip. Such a VAE encodes whole clips with its own code; clips are never cut into chunks. Weights keep diffusers' memory
layout: another one changes the last bits of every latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae.checkpoints.checkpoint import load_strict, read_folder, weights_sha256
from vae.checkpoints.configs import check_scaling
from vae.checkpoints.wan import WAN_CLASSES
from vae.errors import CheckpointError
from vae.info import Scaling, VAEInfo

_NO_SPREAD = -30.0
"""Log variance of a posterior without a variance: the lower clamp of every Gaussian posterior of this family."""

_TIME = ("temporal_compression_ratio", "scale_factor_temporal", "time_compression_ratio")
_SPACE = ("spatial_compression_ratio", "scale_factor_spatial")
_CHANNELS = ("latent_channels", "z_dim")

PROVEN = (
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLLTX2Video",
    "AutoencoderKLMochi",
    "AutoencoderKLCosmos",
)
"""Classes whose latents equal those of diffusers' own preprocessing and `encode`, from uint8 frames on
(tests/vae/test_diffusers_vae.py). Any other class may want another range of pixels, another number of frames or tiles;
with MiniMax-H3, whose pixels are normalised as ImageNet's, moments were off by 0.62 and no error came."""


class DiffusersEncoder(nn.Module):
    """The encoding half of a diffusers VAE as a function from pixels to moments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to moments (B, 2C, T', H', W'). The log variance is -30 if the VAE gives none."""
        posterior = self.model.encode(pixels).latent_dist  # type: ignore[operator]
        if hasattr(posterior, "logvar"):
            return torch.cat([posterior.mean, posterior.logvar], dim=1)
        z: Tensor = posterior.mode()
        return torch.cat([z, torch.full_like(z, _NO_SPREAD)], dim=1)


def read_diffusers_vae(folder: Path, config: dict[str, Any]) -> tuple[DiffusersEncoder, VAEInfo]:
    """Load a diffusers VAE strictly, without its decoder.

    Raises:
        CheckpointError: diffusers is missing or does not know the class, the weights do not fit, or the config lacks a
            required value; or the class is not PROVEN.
    """
    name = config.get("_class_name", "")
    if name not in PROVEN:
        raise CheckpointError(
            f"{folder}: its class is {name!r}, whose latents were never compared with those of its own pipeline, so "
            "they may be wrong without an error. Proven are AutoencoderKLCogVideoX, "
            f"{', '.join(WAN_CLASSES)} and, through diffusers, {', '.join(PROVEN)}"
        )
    tensors = read_folder(folder)
    _check_depth(config, len(tensors), folder)
    model = build_model(name, config, folder)
    load_strict(model, tensors, folder)
    for part in ("decoder", "post_quant_conv"):
        if hasattr(model, part):
            setattr(model, part, None)
    model.eval().requires_grad_(False)
    channels = _first(model, _CHANNELS, folder)
    info = VAEInfo(
        name=name,
        config={key: value for key, value in config.items() if not key.startswith("_")},
        weights_sha256=weights_sha256(model.state_dict()),
        in_channels=3,
        latent_channels=channels,
        time_compression=_first(model, _TIME, folder),
        space_compression=_first(model, _SPACE, folder),
        scale=_scale(model, channels, folder),
        shift=_shift(model, channels, folder),
        schedule="whole",
        windowed=False,
        only_accepted_lengths=True,
        time_tiling=_time_tiling(model),
    )
    encoder = DiffusersEncoder(model)
    _check(encoder, info, folder)
    return encoder, info


def build_model(name: str, config: dict[str, Any], folder: Path) -> Any:
    """Return a diffusers VAE with random weights.

    Raises:
        CheckpointError: diffusers is missing or does not know the class, or the config is wrong.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(f"{folder}: {name} needs diffusers: pip install diffusers") from error
    try:
        model_class = getattr(diffusers, name)
    except AttributeError as error:
        raise CheckpointError(f"{folder}: diffusers {diffusers.__version__} has no class {name!r}") from error
    if (
        not isinstance(model_class, type)
        or not issubclass(model_class, nn.Module)
        or not hasattr(model_class, "encode")
    ):
        raise CheckpointError(f"{folder}: {name} is not a VAE (no encode method)")
    try:
        return model_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # A foreign class may raise anything if it gets unexpected numbers.
        raise CheckpointError(f"{folder}: {name} cannot be built from config.json: {error!r}") from error


def _check_depth(config: dict[str, Any], num_tensors: int, folder: Path) -> None:
    """Reject a config with more layers than the files have tensors, before anything is built."""
    for key, value in config.items():
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int | float)]
        if ("layers" in key or "blocks" in key) and not key.endswith("channels") and sum(numbers) > num_tensors:
            raise CheckpointError(
                f"{folder}: config.json has {key} = {value!r}, but the files only {num_tensors} tensors"
            )


def _first(model: Any, names: tuple[str, ...], folder: Path) -> int:
    """Return the first of these values that the model has as an attribute or in its config."""
    for name in names:
        # Not getattr: a diffusers model warns about every name that is in its config only.
        value = vars(model).get(name) or model.config.get(name)
        if isinstance(value, int):
            return value
    raise CheckpointError(f"{folder}: {type(model).__name__} has none of {', '.join(names)}")


def _time_tiling(model: Any) -> tuple[int, int] | None:
    """Return the tiles in time that `encode` uses by default: HunyuanVideo's, 16 + 1 frames every 12."""
    if not vars(model).get("use_framewise_encoding", False):
        return None
    return int(model.tile_sample_min_num_frames), int(model.tile_sample_stride_num_frames)


def _scale(model: Any, channels: int, folder: Path) -> Scaling:
    factor = float(model.config.get("scaling_factor") or 1.0)
    std = _statistics(model, "latents_std", channels, folder)
    return check_scaling(factor if std is None else _as_scaling(factor / std), folder)


def _shift(model: Any, channels: int, folder: Path) -> Scaling:
    mean = _statistics(model, "latents_mean", channels, folder)
    shift = float(model.config.get("shift_factor") or 0.0) if mean is None else _as_scaling(mean)
    return check_scaling(shift, folder, may_be_zero=True)


def _statistics(model: Any, name: str, channels: int, folder: Path) -> Tensor | None:
    """Return float64 values from config or buffer: per channel, (C,), or per channel and latent frame, (C, n)."""
    stated = model.config.get(name)
    buffer = dict(model.named_buffers(recurse=False)).get(name)
    if stated is None and buffer is None:
        return None
    values = torch.as_tensor(buffer if stated is None else stated, dtype=torch.float64).flatten()
    if values.numel() % channels:
        raise CheckpointError(f"{folder}: {name} has {values.numel()} values for {channels} latent channels")
    return values if values.numel() == channels else values.view(channels, -1)


def _as_scaling(values: Tensor) -> Scaling:
    if values.ndim == 1:
        return tuple(values.tolist())
    return tuple(tuple(row) for row in values.tolist())


def _check(encoder: DiffusersEncoder, info: VAEInfo, folder: Path) -> None:
    """Encode a clip of two latent frames and compare the latent's shape with the one that `info` gives."""
    size = 2 * info.space_compression
    shape = (1, info.in_channels, 1 + info.time_compression, size, size)
    expected = info.latent_shape(*shape[2:])
    try:
        with torch.inference_mode():
            moments = encoder(torch.zeros(shape, dtype=next(encoder.parameters()).dtype))
    except Exception as error:  # A foreign class may raise anything; it cannot encode what its config promises.
        raise CheckpointError(f"{folder}: {info.name} cannot encode {shape}: {error}") from error
    if tuple(moments.shape[1:]) != (2 * expected[0], *expected[1:]):
        raise CheckpointError(
            f"{folder}: {info.name} turns {shape} into moments {tuple(moments.shape)}, expected latents {expected}"
        )
