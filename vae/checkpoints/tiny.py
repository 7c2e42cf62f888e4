"""`tiny`: a small UNTRAINED encoder for tests, demos and dry runs. Its latents mean nothing; their shapes are real.

It has CogVideoX's compression (8x in space, 4x in time, 16 latent channels) and 0.4 million parameters. The weights are
made from integers with a fixed seed, so they are the same bits on every machine. Their size is chosen so that latents
of ordinary video have a standard deviation near 1, and their posterior one near 0.05. Scale is 1.0, shift is 0.0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae.encoder import Encoder3D

TINY_NAME = "tiny-untrained"

TINY_CONFIG: dict[str, Any] = {
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 256,
    "z_channels": 16,
    "double_z": True,
    "pad_mode": "first",
    "temporal_compress_times": 4,
}

_SEED = 20240806
_LOGVAR = -6.0


def tiny_encoder() -> Encoder3D:
    """Build the encoder in float32 on the CPU, with its fixed weights."""
    encoder = Encoder3D(**TINY_CONFIG)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.weight.copy_(_uniform(module.weight.shape, generator))
                assert module.bias is not None
                module.bias.zero_()
        z = encoder.z_channels
        last = encoder.conv_out.conv
        assert last.bias is not None
        last.weight[z:] *= 0.1
        last.bias[z:] = _LOGVAR
    return encoder


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw uniform weights of variance 1 / fan_in from integers; the bits of `randn` depend on the CPU."""
    fan_in = math.prod(shape[1:])
    integers = torch.randint(-(2**20), 2**20 + 1, shape, generator=generator)
    return integers.float() * (math.sqrt(3.0 / fan_in) / 2**20)
