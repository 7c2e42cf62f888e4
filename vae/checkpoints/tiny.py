"""`tiny`: a small VAE for tests, demos and dry runs, trained by `python -m jobs.train_tiny`. Not for real latents.

It has CogVideoX's compression (8x in space, 4x in time, 16 latent channels) and less than 3 million parameters.
`tiny.safetensors` holds encoder and decoder in float16, and its metadata the scale and how good it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from vae.decoder import Decoder3D

TINY_NAME = "tiny"

TINY_CONFIG: dict[str, Any] = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 3],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 256,
    "z_channels": 16,
    "double_z": True,
    "pad_mode": "first",
    "temporal_compress_times": 4,
}
DECODER_CONFIG: dict[str, Any] = {"channels": 64, "z_channels": 16}

WEIGHTS = Path(__file__).with_suffix(".safetensors")


class TinyWeights(NamedTuple):
    """What the file holds."""

    encoder: dict[str, Tensor]
    """float32."""
    decoder: dict[str, Tensor]
    """float32."""
    scale: float
    facts: dict[str, Any]
    """`psnr` and `linear_psnr`: dB on videos that it was not trained on, its own and of the best linear code."""


def read_tiny() -> TinyWeights:
    """Read the weights that come with the package."""
    with safe_open(WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["latentmill"])
    encoder, decoder = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("encoder.", "decoder.")
    )
    return TinyWeights(encoder, decoder, facts["scale"], facts)


def tiny_decoder(device: str | torch.device) -> Callable[[Tensor], Tensor]:
    """Return the decoder in float32: unscaled latents (B, 16, T', H', W') to pixels (B, 3, T, H, W)."""
    decoder = Decoder3D(**DECODER_CONFIG)
    decoder.load_state_dict(read_tiny().decoder)
    decoder.to(device).eval().requires_grad_(False)
    return lambda z: decoder(z.to(device))
