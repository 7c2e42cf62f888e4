"""Start `tiny` as a linear code, so that training only has to add what a linear code cannot do.

Every residual block begins as the identity. The convolutions between them gather 2x2 patches and keep their principal
parts, each with variance 1. Least squares fits the decoder's `linear`. From random weights, 450 batches ended
12 dB below a linear code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.train_tiny.model import TinyVAE
from vae import kernels
from vae.blocks import DownSample3D, ResnetBlock3D
from vae.causal import CausalConv3d
from vae.encoder import Encoder3D, Level

KEPT = 32
"""Principal parts of a patch that go on to the next level, at most."""
SMALLEST = 0.004
"""Parts with a smaller root mean square, half a level of 255, are not raised to variance 1."""
CONSTANT = 8.0
"""The value of the constant channel in each group of the last normalisation, in standard deviations of a signal."""
LOGVAR = -6.0
"""Of the posterior at the start: a standard deviation of 0.05."""
RIDGE = 1e-3
"""Of the least squares, relative to the mean variance of the inputs."""


@torch.no_grad()
def start_linear(model: TinyVAE, pixels: Tensor) -> None:
    """Set the weights of a new model from clips, float32 (B, 3, T, H, W) in [-1, 1]."""
    encoder, decoder = model.encoder, model.decoder
    for block in model.modules():
        if isinstance(block, ResnetBlock3D):
            _zeros(block.conv2.conv)
    h, sizes = _gather_colours(encoder.conv_in, pixels)
    for level in encoder.down:
        assert isinstance(level, Level)
        shortcut = level.block[0].nin_shortcut
        if level.downsample is None:
            assert isinstance(shortcut, nn.Conv3d)
            _lay_out_pairs(shortcut)
            h = shortcut(h)
            continue
        if isinstance(shortcut, nn.Conv3d):
            weight, _ = _zeros(shortcut)
            weight[: shortcut.in_channels, :, 0, 0, 0] = torch.eye(shortcut.in_channels)
            h = shortcut(h)
        assert isinstance(level.downsample, DownSample3D)
        h, sizes = _gather(level.downsample, h, sizes)
    _fit_linear(decoder.linear.conv, _fit_latents(encoder, h), pixels)
    _zeros(decoder.conv_out.conv)


def _gather_colours(conv_in: CausalConv3d, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the first convolution: the principal parts of a pixel's colour and of half its change over two frames."""
    past = torch.cat([pixels[:, :, :1], pixels[:, :, :1], pixels], 2)[:, :, :-2]
    rows = torch.cat([pixels, (pixels - past) / 2], 1).movedim(1, -1).flatten(0, -2)
    basis, sizes = _principal(rows, 6)
    weight, bias = _parameters(conv_in.conv)
    weight[:6], bias[:6] = 0, 0
    weight[:6, :, 2, 1, 1] = (basis[:, :3] + basis[:, 3:] / 2) / sizes[:, None]
    weight[:6, :, 0, 1, 1] = -basis[:, 3:] / 2 / sizes[:, None]
    return torch.cat([conv_in(clip[None]) for clip in pixels]), sizes


def _gather(downsample: DownSample3D, h: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a strided convolution: the principal parts of 2x2 patches, each with variance 1.

    Args:
        downsample: its first output channels are set; the others stay random.
        h: its input. The first channels have variance 1 and stand for parts of these sizes; the others are not used.
        sizes: root mean squares of the parts, in pixels.

    Returns:
        Its output, and the sizes of its parts.
    """
    pooled = kernels.pool_time(h, "first", 0) if downsample.compress_time else h
    used = len(sizes)
    patches = pooled[:, :used].unfold(3, 2, 2).unfold(4, 2, 2)
    rows = patches.permute(0, 2, 3, 4, 1, 5, 6).reshape(-1, used, 4) * sizes[:, None]
    basis, found = _principal(rows.flatten(1), min(KEPT, used * 4))
    weight, bias = _parameters(downsample.conv)
    weight[: len(found)], bias[:] = 0, 0
    basis = basis.reshape(-1, used, 2, 2) * sizes[:, None, None] / found[:, None, None, None]
    weight[: len(found), :used, :2, :2] = basis
    return downsample(h), found


def _principal(rows: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the strongest directions of rows [N, D], [kept, D], and the root mean square of each, [kept]."""
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in torch.split(rows, 1 << 18):
        gram += part.double().T @ part.double()
    values, vectors = torch.linalg.eigh(gram / len(rows))
    sizes = values[-kept:].flip(0).clamp(min=SMALLEST**2).sqrt()
    return vectors[:, -kept:].flip(1).T.float(), sizes.float()


def _lay_out_pairs(conv: nn.Conv3d) -> None:
    """Lay out the groups of three channels of the last level: a signal, its negative, and a constant.

    GroupNorm takes the mean of a group away. Here it is that of the constant, so the brightness of a clip stays.
    """
    weight, bias = _zeros(conv)
    for i in range(KEPT):
        weight[3 * i, i], weight[3 * i + 1, i] = 1, -1
    bias[2::3] = CONSTANT


def _fit_latents(encoder: Encoder3D, h: Tensor) -> Tensor:
    """Set the last normalisation and convolution to give the 16 strongest signals; return them.

    A pair is x and -x after the normalisation, and silu(x) - silu(-x) = x.
    """
    norm, z = encoder.norm_out, encoder.z_channels
    norm.weight[:], norm.bias[:] = CONSTANT * math.sqrt(2) / 3, CONSTANT / 3
    norm.bias[2::3] = -CONSTANT * 2 / 3
    weight, bias = _zeros(encoder.conv_out.conv)
    bias[z:] = LOGVAR
    for i in range(z):
        weight[i, 3 * i, 2, 1, 1], weight[i, 3 * i + 1, 2, 1, 1] = 1, -1
    return torch.cat([encoder.conv_out(clip[None], norm=norm)[:, :z] for clip in h])


def _fit_linear(conv: nn.Conv3d, z: Tensor, pixels: Tensor) -> None:
    """Fit the decoder's `linear` by least squares: from the 3x3x3 cells around a cell to the pixels of the cell."""
    padded = F.pad(torch.cat([z[:, :, :1], z[:, :, :1], z], 2), (1, 1, 1, 1))
    cells = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    frames = torch.cat([pixels[:, :, :1]] * 3 + [pixels], 2)
    targets = frames.unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8)
    x, y = (part.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3) for part in (cells, targets))
    weight, bias = _parameters(conv)
    found, constant = _least_squares(x, y)
    weight.copy_(found.reshape(weight.shape))
    bias.copy_(constant)


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the best linear map from rows of x, [N, D], to rows of y, [N, E]."""
    mean_x, mean_y = x.double().mean(0), y.double().mean(0)
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    for part_x, part_y in zip(torch.split(x, 20_000), torch.split(y, 20_000), strict=True):
        centred = part_x.double() - mean_x
        gram += centred.T @ centred
        cross += centred.T @ (part_y.double() - mean_y)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, cross).T
    return weight.float(), (mean_y - weight @ mean_x).float()


def _parameters(conv: nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight, conv.bias


def _zeros(conv: nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor]:
    """Set weight and bias to 0 and return them."""
    weight, bias = _parameters(conv)
    return nn.init.zeros_(weight), nn.init.zeros_(bias)
