"""Wan's VAEs in diffusers with random weights, and the same weights under the names of the original files."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

VARIANTS: dict[str, dict[str, Any]] = {
    "2.1": {"z_dim": 16},
    "2.2": {
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
}
"""The published architectures but for their width."""


def random_wan(variant: str, base_dim: int = 8, **changes: Any) -> Any:
    """Random weights, gains of the norms included, with a normalisation of their own."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    config = VARIANTS[variant] | {"base_dim": base_dim, "decoder_base_dim": 8} | changes
    channels = config["z_dim"]
    config |= {
        "latents_mean": [0.01 * i for i in range(channels)],
        "latents_std": [1 + 0.01 * i for i in range(channels)],
    }
    model = AutoencoderKLWan(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def original_names(model: Any) -> dict[str, Tensor]:
    """Return the state dict of a model under the names of Wan2.1_VAE.pth or Wan2.2_VAE.pth."""
    num_blocks = model.config.num_res_blocks
    return {_original(name, num_blocks): tensor.clone() for name, tensor in model.state_dict().items()}


_RENAMES = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"mid_block\.attentions\.0\.", "middle.1."),
    (r"mid_block\.resnets\.0\.", "middle.0."),
    (r"mid_block\.resnets\.1\.", "middle.2."),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"downsamples.\1.downsamples.\2."),
    (r"down_blocks\.(\d+)\.downsampler\.", r"downsamples.\1.downsamples.{last}."),
    (r"down_blocks\.", "downsamples."),
    (r"(?<=\d\.)norm1\.", "residual.0."),
    (r"(?<=\d\.)conv1\.", "residual.2."),
    (r"(?<=\d\.)norm2\.", "residual.3."),
    (r"(?<=\d\.)conv2\.", "residual.6."),
    (r"conv_shortcut\.", "shortcut."),
)


def _original(name: str, num_blocks: int) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement.replace("{last}", str(num_blocks)), name)
    return name


def moments(model: Any, pixels: Tensor) -> Tensor:
    """Encode with diffusers."""
    with torch.no_grad():
        return model.encode(pixels).latent_dist.parameters


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 error, computed in float64."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
