"""Make the file of `tiny` of trained networks: latents with a standard deviation of 1, weights in float16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from jobs.train_tiny.clips import Clip
from jobs.train_tiny.evaluate import as_pixels, restored
from jobs.train_tiny.model import TinyVAE

GAIN = 4
"""The picture shows |decoded - source| times this."""


@torch.no_grad()
def standardise(model: TinyVAE, clips: Sequence[Clip]) -> float:
    """Give every latent channel a standard deviation of 1 over these clips, and return the scale that remains.

    The factor goes into the last convolution of the encoder and into the first ones of the decoder, so the pixels that
    come back are the same. Means stay: taking them out would change the zeros at the border of a latent. The scale is
    1 over the standard deviation of all channels together, as in Rombach et al. 2022.
    """
    latents = torch.cat([model.encode(as_pixels(clip)).flatten(2) for clip in clips], 2)
    size = latents.std((0, 2))
    last, channels = model.encoder.conv_out.conv, len(size)
    assert last.bias is not None
    last.weight[:channels] /= size[:, None, None, None, None]
    last.bias[:channels] /= size
    last.bias[channels:] -= 2 * size.log()
    for convolution in (model.decoder.linear.conv, model.decoder.conv_in.conv):
        convolution.weight *= size[:, None, None, None]
    return float(1 / (latents / size[:, None]).std())


def write_weights(model: TinyVAE, path: Path, facts: dict[str, Any]) -> None:
    """Write the file that `vae.checkpoints.tiny` reads."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"latentmill": json.dumps(facts, sort_keys=True)})


def draw(model: TinyVAE, clips: Sequence[Clip], path: Path) -> None:
    """Write a picture with the middle frame of each clip: source, what comes back, and the difference."""
    rows = []
    for clip in clips:
        middle = len(clip) // 2
        source, decoded = clip[middle], restored(model, clip)[middle]
        difference = (np.abs(decoded.astype(np.int16) - source) * GAIN).clip(0, 255).astype(np.uint8)
        rows.append(np.concatenate([source, decoded, difference], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def stds(model: TinyVAE, clips: Sequence[Clip]) -> Tensor:
    """Return the standard deviation of each channel over these clips, [C]."""
    return torch.cat([model.encode(as_pixels(clip)).flatten(2) for clip in clips], 2).std((0, 2))
