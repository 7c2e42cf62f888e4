"""Inputs as the world has them, for laws about rounding: pixels that are alike show what noise hides.

A sum in one float32 chain rounds equal terms the same way at each addition. Its error on noise grows with the root of
the length of the chain, and on flat frames with the length itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def activations(channels: int, frames: int, height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, float32 activations (1, C, T, H, W), channels last) with values of its own in each channel."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, channels, frames, height, width, generator=generator)
    level = torch.randn(1, channels, 1, 1, 1, generator=generator)
    flat = level.expand_as(noise)
    corner, middle = flat.clone(), flat.clone()
    corner[:, :, 0, 0, 0] += 50.0
    middle[:, :, frames // 2, height // 2, width // 2] += 50.0
    edged = flat.clone()
    edged[:, :, :, 0], edged[..., -1] = 0.3, -0.2
    letters = (torch.rand(1, 1, 1, height, width, generator=generator) < 0.1).float()
    kinds = {
        "noise": noise,
        "flat": flat,
        "flat with the edges of a padded convolution": edged,
        "gradient": level * torch.linspace(0, 1, width) + level,
        "fade": level * torch.linspace(1, 0, frames).view(-1, 1, 1),
        "dark noise": level + 0.01 * noise,
        "text on flat ground": level * letters + level,
        "a bright pixel": middle,
        "a bright first pixel": corner,
        "a mean of 100 deviations": noise + 100.0,
    }
    for name, x in kinds.items():
        yield name, x.expand_as(noise).contiguous(memory_format=torch.channels_last_3d)


def clips(frames: int, height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, pixels (1, 3, T, H, W), uint8)."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.zeros(1, 3, frames, height, width)
    letters = torch.rand(1, 1, 1, height, width, generator=generator) < 0.1
    spot = flat.clone()
    spot[..., height // 2, width // 2] = 255.0
    kinds = {
        "black": flat,
        "grey": flat + 127,
        "white": flat + 255,
        "fade": flat + torch.linspace(200, 20, frames).view(-1, 1, 1),
        "gradient": flat + torch.linspace(0, 255, width),
        "dark noise": torch.randint(0, 4, flat.shape, generator=generator).float(),
        "text on flat ground": flat + 16 + 219 * letters,
        "a bright pixel": spot,
        "noise": torch.randint(0, 256, flat.shape, generator=generator).float(),
    }
    for name, pixels in kinds.items():
        yield name, pixels.to(torch.uint8)
