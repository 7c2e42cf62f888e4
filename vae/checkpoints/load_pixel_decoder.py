"""Load the decoder that belongs to an encoder: latents back to pixels, for a look at them. Encoding never needs it.

`tiny` has a decoder of its own. A diffusers folder is decoded by its class in diffusers, CogVideoX included. Other
files have no decoder that this package can run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae.checkpoints.checkpoint import diffusers_config, load_strict, model_folder, read_folder
from vae.checkpoints.diffusers_vae import build_model
from vae.checkpoints.places import local_checkpoint
from vae.checkpoints.tiny import tiny_decoder
from vae.errors import CheckpointError

PixelDecoder = Callable[[Tensor], Tensor]
"""Unscaled latents (B, C, T', H', W') to pixels (B, 3, T, H, W), about in [-1, 1]."""


def load_pixel_decoder(where: str, *, dtype: torch.dtype | None, device: str | torch.device) -> PixelDecoder:
    """Load the decoder of the checkpoint `where`, strictly, without its encoder.

    Raises:
        CheckpointError: there is no decoder, diffusers is not installed, or the weights do not fit.
    """
    if where == "tiny":
        return tiny_decoder(device)
    path = local_checkpoint(where)
    if (config := diffusers_config(path)) is None:
        raise CheckpointError(f"{where} has no decoder that can be run: only a diffusers folder has one")
    folder = model_folder(path)
    model = build_model(config.get("_class_name", ""), config, folder)
    load_strict(model, {name: tensor.clone() for name, tensor in read_folder(folder).items()}, folder)
    for part in ("encoder", "quant_conv"):
        if hasattr(model, part):
            setattr(model, part, None)
    model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    def decode(z: Tensor) -> Tensor:
        pixels: Tensor = model.decode(z.to(device=model.device, dtype=model.dtype)).sample
        return pixels

    return decode
