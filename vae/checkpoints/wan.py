"""Wan's encoder in its two formats: a diffusers folder, and the original `.pth` (Wan2.1_VAE.pth, Wan2.2_VAE.pth).

    ours                        diffusers                              original
    conv_in.conv.*              encoder.conv_in.*                      encoder.conv1.*
    down.{i}.block.{j}.*        encoder.down_blocks.{n}.*              encoder.downsamples.{n}.*          Wan 2.1
                                encoder.down_blocks.{i}.resnets.{j}.*  encoder.downsamples.{i}.downsamples.{j}.*  2.2
    down.{i}.downsample.*       ... .resample.1.*                      ... .resample.1.*
    down.{i}.time_conv.conv.*   ... .time_conv.*                       ... .time_conv.*
    mid.block_{1,2}.*           encoder.mid_block.resnets.{0,1}.*      encoder.middle.{0,2}.*
    mid.attn_1.*                encoder.mid_block.attentions.0.*       encoder.middle.1.*
    norm_out.weight             encoder.norm_out.gamma                 encoder.head.0.gamma
    conv_out.conv.*             encoder.conv_out.*                     encoder.head.2.*
    quant_conv.*                quant_conv.*                           conv1.*

n counts blocks and downsamplings through all levels: n = i * (num_res_blocks + 1) + j. The original states no sizes and
no normalisation: sizes follow from the tensors, mean and standard deviation are those of Wan's code (wan/modules of
Wan-Video/Wan2.1 and Wan-Video/Wan2.2).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vae.checkpoints.configs import check_scaling
from vae.checkpoints.wan_latents import LATENTS
from vae.errors import CheckpointError
from vae.info import Scaling

log = logging.getLogger(__name__)

WAN_NAME = "AutoencoderKLWan"
WAN_CLASSES = (WAN_NAME, "AutoencoderKLQwenImage")
"""Classes of diffusers with this encoder. Qwen-Image's is Wan 2.1 with other weights."""

_TIME_COMPRESSION = 4
"""What the reference's windows of 1 + 4 + 4 + ... frames allow, and every published checkpoint has."""

_NESTED = re.compile(r"encoder\.(?:down_blocks|downsamples)\.(\d+)\.(?:resnets|downsamples)\.(\d+)\.(.+)")
_DOWNSAMPLER = re.compile(r"encoder\.down_blocks\.(\d+)\.downsampler\.(.+)")
_FLAT = re.compile(r"encoder\.(?:down_blocks|downsamples)\.(\d+)\.(.+)")
_ELSEWHERE = (
    (re.compile(r"encoder\.(?:mid_block\.resnets\.0|middle\.0)\.(.+)"), "mid.block_1."),
    (re.compile(r"encoder\.(?:mid_block\.resnets\.1|middle\.2)\.(.+)"), "mid.block_2."),
    (re.compile(r"encoder\.(?:mid_block\.attentions\.0|middle\.1)\.(.+)"), "mid.attn_1."),
    (re.compile(r"encoder\.(?:conv_in|conv1)\.(.+)"), "conv_in.conv."),
    (re.compile(r"encoder\.(?:norm_out|head\.0)\.(.+)"), "norm_out."),
    (re.compile(r"encoder\.(?:conv_out|head\.2)\.(.+)"), "conv_out.conv."),
    (re.compile(r"(?:quant_conv|conv1)\.(.+)"), "quant_conv."),
)
_LAYERS = (
    (re.compile(r"(?:norm1|residual\.0)\."), "norm1."),
    (re.compile(r"(?:conv1|residual\.2)\."), "conv1.conv."),
    (re.compile(r"(?:norm2|residual\.3)\."), "norm2."),
    (re.compile(r"(?:conv2|residual\.6)\."), "conv2.conv."),
    (re.compile(r"(?:conv_shortcut|shortcut)\."), "nin_shortcut."),
)
_RESAMPLING = ((re.compile(r"resample\.1\."), "downsample."), (re.compile(r"time_conv\."), "time_conv.conv."))


def is_wan(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of an original checkpoint."""
    return "encoder.downsamples.0.residual.0.gamma" in tensors or _is_nested(tensors)


def config_from_wan(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Scaling, Scaling]:
    """Return WanEncoder's arguments, scale and shift from the config of a diffusers folder.

    Raises:
        CheckpointError: a value is missing or invalid, or WanEncoder does not implement it.
    """
    if config.get("attn_scales"):
        raise CheckpointError(f"{path}: attn_scales must be empty, got {config['attn_scales']!r}")
    try:
        multipliers = [int(n) for n in config.get("dim_mult", (1, 2, 4, 4))]
        halvings = [bool(n) for n in config.get("temperal_downsample", (False, True, True))]
        patch_size = int(config.get("patch_size") or 1)
        channels = int(config.get("in_channels", config.get("input_channels", 3)))
        ours = {
            "ch": int(config.get("base_dim", 96)),
            "ch_mult": multipliers,
            "num_res_blocks": int(config.get("num_res_blocks", 2)),
            "time_downsample": halvings[: len(multipliers) - 1],
            "in_channels": channels // patch_size**2,
            "z_channels": int(config.get("z_dim", 16)),
            "patch_size": patch_size,
            "shortcuts": bool(config.get("is_residual", False)),
        }
        mean, std = LATENTS[16]
        mean, std = config.get("latents_mean", mean), config.get("latents_std", std)
        scale, shift = tuple(1.0 / float(value) for value in std), tuple(float(value) for value in mean)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: a value in config.json cannot be built from: {error}") from error
    for name, values in (("latents_mean", shift), ("latents_std", scale)):
        if len(values) != ours["z_channels"]:
            raise CheckpointError(f"{path}: {name} has {len(values)} values for {ours['z_channels']} latent channels")
    _check_compression(ours, config, path)
    return ours, check_scaling(scale, path), check_scaling(shift, path, may_be_zero=True)


def wan_part(tensors: Mapping[str, Tensor], num_res_blocks: int) -> dict[str, Tensor]:
    """Return the encoder's tensors under our names; unknown ones keep theirs, so that the strict load rejects them."""
    dropped = ("decoder.", "post_quant_conv.", "conv2.")
    part = {}
    for name, tensor in tensors.items():
        if not name.startswith(dropped):
            part[_renamed(name, num_res_blocks)] = tensor.flatten() if name.endswith(".gamma") else tensor
    return part


def read_original(raw: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Any], Scaling, Scaling, dict[str, Tensor]]:
    """Return WanEncoder's arguments, scale, shift and tensors of an original checkpoint.

    Raises:
        CheckpointError: the tensors are not an encoder of this family.
    """
    try:
        num_res_blocks = _num_res_blocks(raw)
        tensors = wan_part(raw, num_res_blocks)
        num_levels = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("down."))
        widths = [tensors[f"down.{i}.block.0.conv1.conv.weight"].shape[0] for i in range(num_levels)]
        ch, channels = tensors["conv_in.conv.weight"].shape[:2]
        num_moments = tensors["quant_conv.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} has no encoder of Wan: {error} is missing") from error
    if num_moments % 2 or not ch or any(width % ch for width in widths):
        raise CheckpointError(f"{path}: cannot derive a configuration from {ch = }, {widths = }, {num_moments = }")
    patch_size = 2 if channels == 12 else 1
    config = {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": num_res_blocks,
        "time_downsample": [f"down.{i}.time_conv.conv.weight" in tensors for i in range(num_levels - 1)],
        "in_channels": channels // patch_size**2,
        "z_channels": num_moments // 2,
        "patch_size": patch_size,
        "shortcuts": _is_nested(raw),
    }
    _check_compression(config, {}, path)
    scale, shift = _published_scaling(num_moments // 2, path)
    return config, scale, shift, tensors


def _published_scaling(num_channels: int, path: Path) -> tuple[Scaling, Scaling]:
    if num_channels not in LATENTS:
        log.warning("scale=1.0 shift=0.0 path=%s: Wan publishes no normalisation of %d channels", path, num_channels)
        return 1.0, 0.0
    mean, std = LATENTS[num_channels]
    return tuple(1.0 / value for value in std), mean


def _check_compression(ours: Mapping[str, Any], stated: Mapping[str, Any], path: Path) -> None:
    time = 2 ** sum(ours["time_downsample"])
    space = ours["patch_size"] * 2 ** (len(ours["ch_mult"]) - 1)
    for name, value in (("scale_factor_temporal", time), ("scale_factor_spatial", space)):
        if stated.get(name, value) not in (value, None):
            raise CheckpointError(f"{path}: {name} is {stated[name]!r}, but the layers compress by {value}")
    if time != _TIME_COMPRESSION:
        raise CheckpointError(f"{path}: the layers must compress time by {_TIME_COMPRESSION}, got {time}")


def _is_nested(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.downsamples.0.downsamples.0.residual.0.gamma" in tensors


def _num_res_blocks(raw: Mapping[str, Tensor]) -> int:
    """Return the number of blocks before the first downsampling. Raises ValueError if there is none."""
    prefix = r"encoder\.downsamples\." + (r"0\.downsamples\." if _is_nested(raw) else "")
    return min(int(m[1]) for m in (re.fullmatch(prefix + r"(\d+)\.resample\.1\.weight", name) for name in raw) if m)


def _renamed(name: str, num_res_blocks: int) -> str:
    if match := _NESTED.fullmatch(name):
        return _in_level(int(match[1]), int(match[2]), match[3], name)
    if match := _DOWNSAMPLER.fullmatch(name):
        return _in_level(int(match[1]), num_res_blocks, match[2], name)
    if match := _FLAT.fullmatch(name):
        level, index = divmod(int(match[1]), num_res_blocks + 1)
        return _in_level(level, index, match[2], name)
    for pattern, place in _ELSEWHERE:
        if match := pattern.fullmatch(name):
            layer = _layer(match[1], _LAYERS) if place.startswith("mid.block") else match[1]
            return _weight(place + (layer or match[1]))
    return name


def _in_level(level: int, index: int, rest: str, name: str) -> str:
    if layer := _layer(rest, _RESAMPLING):
        return f"down.{level}.{layer}"
    if layer := _layer(rest, _LAYERS):
        return _weight(f"down.{level}.block.{index}.{layer}")
    return name


def _layer(rest: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, ours in table:
        if match := pattern.match(rest):
            return ours + rest[match.end() :]
    return None


def _weight(name: str) -> str:
    return name.removesuffix("gamma") + "weight" if name.endswith(".gamma") else name
