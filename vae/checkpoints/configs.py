"""Derive the arguments of Encoder3D from a diffusers config, or from the tensor shapes of weights without a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae.errors import CheckpointError
from vae.info import Scaling

_REQUIRED: dict[str, Any] = {
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "use_quant_conv": False,
}
"""Settings that are fixed in Encoder3D; every published CogVideoX VAE has these values."""

_NOMINAL_RESOLUTION = 256
"""`resolution` of every shipped SAT config. Weights show which levels have attention; `attn_resolutions` names these
levels by their nominal resolutions, so it needs this number."""


def config_from_diffusers(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Scaling, Scaling]:
    """Return Encoder3D's arguments, scale and shift from an AutoencoderKLCogVideoX config.

    Raises:
        CheckpointError: another class, or a setting that Encoder3D does not implement.
    """
    if config.get("_class_name") != "AutoencoderKLCogVideoX":
        raise CheckpointError(f"{path}: class {config.get('_class_name')!r} is not AutoencoderKLCogVideoX")
    for key, value in _REQUIRED.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} must be {value!r}, got {config[key]!r}")
    try:
        channels = [int(n) for n in config["block_out_channels"]]
        encoder_config = {
            "ch": channels[0],
            "ch_mult": [n // channels[0] for n in channels],
            "num_res_blocks": int(config["layers_per_block"]),
            "attn_resolutions": [],
            "in_channels": int(config["in_channels"]),
            "resolution": _NOMINAL_RESOLUTION,
            "z_channels": int(config["latent_channels"]),
            "double_z": True,
            "pad_mode": "first",
            "temporal_compress_times": int(config.get("temporal_compression_ratio", 4)),
        }
        scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)
    except (KeyError, TypeError, IndexError, ZeroDivisionError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: a value in config.json is missing or invalid: {error}") from error
    if any(n % channels[0] for n in channels):
        raise CheckpointError(f"{path}: block_out_channels must be multiples of the first, got {channels}")
    return encoder_config, check_scaling(scale, path), check_scaling(shift, path, may_be_zero=True)


def check_scaling(value: Scaling, path: Path, *, may_be_zero: bool = False) -> Scaling:
    """Return a scale or shift, or raise if it would make every latent useless (not finite, or a scale of 0)."""
    numbers = torch.tensor(value, dtype=torch.float64)
    if not torch.isfinite(numbers).all() or not (may_be_zero or (numbers != 0).all()):
        raise CheckpointError(f"{path}: scale and shift must be finite numbers, and scale not 0, got {value}")
    return value


def check_depth(config: Mapping[str, Any], num_tensors: int, path: Path | str) -> None:
    """Reject a configuration with more blocks than the file has tensors, before anything is built.

    A damaged or hostile file may ask for 1,000,000,000 blocks.

    Raises:
        CheckpointError: too many blocks, or values that are not numbers.
    """
    try:
        num_blocks = len(config["ch_mult"]) * int(config["num_res_blocks"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: a configuration value is missing or invalid: {error}: {config}") from error
    if num_blocks > num_tensors:
        raise CheckpointError(
            f"{path}: the configuration has {num_blocks} residual blocks, but the file only {num_tensors} tensors"
        )


def config_from_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return Encoder3D's arguments, derived from the shapes of an encoder's tensors under their MoVQ names.

    Shapes do not show the compression in time, the padding, or whether the output is mean and logvar. These are taken
    from the published checkpoints, which all agree: 4 (or less if there are too few levels), "first", and yes.

    Raises:
        CheckpointError: the tensors are not an encoder of this family.
    """
    try:
        out_channels = {name: tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".weight")}
        ch = out_channels["conv_in.conv.weight"]
        in_channels = tensors["conv_in.conv.weight"].shape[1]
        num_levels = 1 + max(_numbers(r"down\.(\d+)\.block\.0\.conv1\.conv\.weight", tensors))
        widths = [out_channels[f"down.{i}.block.0.conv1.conv.weight"] for i in range(num_levels)]
        num_moments = out_channels["conv_out.conv.weight"]
    except (KeyError, ValueError, IndexError) as error:
        bare = any("down_blocks." in name for name in tensors)
        raise CheckpointError(
            f"{path} holds diffusers' weights without their configuration: put the config.json of the checkpoint's "
            "`vae` folder beside them, and give that folder"
            if bare
            else f"{path} has no causal 3D encoder: {error} is missing; "
            f"it has {', '.join(sorted(tensors)[:5]) or 'no tensors'}"
        ) from error
    if num_moments % 2 or not ch or any(width % ch for width in widths):
        raise CheckpointError(f"{path}: cannot derive a configuration from {ch = }, {widths = }, {num_moments = }")
    return {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": 1 + max(_numbers(r"down\.0\.block\.(\d+)\.conv1\.conv\.weight", tensors)),
        "attn_resolutions": [
            _NOMINAL_RESOLUTION >> i for i in sorted(_numbers(r"down\.(\d+)\.attn\.0\.q\.weight", tensors))
        ],
        "resamp_with_conv": num_levels == 1 or "down.0.downsample.conv.weight" in tensors,
        "in_channels": in_channels,
        "resolution": _NOMINAL_RESOLUTION,
        "z_channels": num_moments // 2,
        "double_z": True,
        "pad_mode": "first",
        "temporal_compress_times": min(4, 2 ** (num_levels - 1)),
    }


def _numbers(pattern: str, names: Mapping[str, Any]) -> set[int]:
    return {int(match[1]) for match in (re.fullmatch(pattern, name) for name in names) if match}
