"""load_video_decoder: load VideoDecoder weights, alone or inside a full checkpoint, and derive their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vae.checkpoints.checkpoint import load_strict, model_file, read_tensors
from vae.checkpoints.keys import decoder_part
from vae.checkpoints.places import local_checkpoint
from vae.errors import CheckpointError
from vae.temporal_decoder.decoder import VideoDecoder


def load_video_decoder(
    where: str,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> VideoDecoder:
    """Load a VideoDecoder, strictly.

    Args:
        where: a local path, an fsspec URL or a Hugging Face repository id of a safetensors or torch file. Its decoder
            tensors have no prefix, or `decoder.`, or `first_stage_model.decoder.`.
        config: arguments of VideoDecoder that replace those derived from the tensor shapes. Shapes do not show
            `merge_strategy` (taken as "learned", as in Stable Video Diffusion), `tanh_out`, `give_pre_end` and `alpha`.
        dtype: None keeps the checkpoint's.
        device: device of the decoder.

    Raises:
        CheckpointError: nothing there can be loaded, or names, shapes or values do not fit.
    """
    path = local_checkpoint(where)
    tensors = decoder_part(read_tensors(model_file(path))[1])
    arguments = _config_from_tensors(tensors, where) | dict(config or {})
    try:
        with torch.device("meta"):
            decoder = VideoDecoder(**arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    load_strict(decoder, {name: tensor.clone() for name, tensor in tensors.items()}, where)
    return decoder.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _config_from_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    try:
        num_levels = 1 + max(_numbers(r"up\.(\d+)\.block\.0\.conv1\.weight", tensors))
        widths = [tensors[f"up.{i}.block.0.conv1.weight"].shape[0] for i in range(num_levels)]
        z_channels = tensors["conv_in.weight"].shape[1]
        out_ch = tensors["conv_out.weight"].shape[0]
        num_res_blocks = max(_numbers(r"up\.0\.block\.(\d+)\.conv1\.weight", tensors))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{where} has no video decoder: {error} is missing; it has {', '.join(sorted(tensors)[:5]) or 'no tensors'}"
        ) from error
    mixes_conv = "conv_out.time_mix_conv.weight" in tensors
    mixes_attn = "mid.attn_1.time_mix_block.norm1.weight" in tensors
    kernel = tensors["conv_out.time_mix_conv.weight"].shape[2:] if mixes_conv else (3, 1, 1)
    ch = min(widths)
    if not ch or any(width % ch for width in widths) or num_res_blocks > len(tensors):
        raise CheckpointError(f"{where}: cannot derive a configuration from {widths = }, {num_res_blocks = }")
    resolution = 256
    return {
        "ch": ch,
        "out_ch": out_ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": num_res_blocks,
        "attn_resolutions": [resolution >> i for i in sorted(_numbers(r"up\.(\d+)\.attn\.0\.q\.weight", tensors))],
        "resamp_with_conv": num_levels == 1 or "up.1.upsample.conv.weight" in tensors,
        "in_channels": out_ch,
        "resolution": resolution,
        "z_channels": z_channels,
        "attn_type": "vanilla" if "mid.attn_1.q.weight" in tensors else "none",
        "video_kernel_size": list(kernel),
        "time_mode": ("all" if mixes_attn else "conv-only") if mixes_conv else "attn-only",
    }


def _numbers(pattern: str, names: Mapping[str, Any]) -> set[int]:
    return {int(match[1]) for match in (re.fullmatch(pattern, name) for name in names) if match}
