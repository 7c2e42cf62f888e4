"""The walk through Encoder3D on CUDA, with fewer passes over memory between two convolutions.

A convolution runs without its bias, because cuDNN's path would add it in a pass of its own. The bias stays pending
until a pass reads the tensor anyway:

    norm    its statistics and its shift take the bias in: silu(norm(h + b)) = silu(h * scale + shift), exactly
    add     conv2's bias, the residual and the residual's bias are added at once, and that pass also computes the
            statistics for the next norm

The order of modules is that of `Encoder3D`, the result is the same up to rounding, and a sum is rounded less often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import kernels
from vae.blocks import AttnBlock2D, DownSample3D, Normalize3D, ResnetBlock3D, as_clips
from vae.causal import Cache, CausalConv3d
from vae.encoder import Encoder3D, EncoderCache, Level, Mid
from vae.kernels import cuda
from vae.kernels.pieces import in_pieces, joined
from vae.kernels.traffic import begin
from vae.shapes import PoolRule

CHANNELS_AT_A_TIME = 8
"""Channels of the first convolution's input: cuDNN's tensor-core kernels want a multiple of 8, so 3 become 8."""

_ORDINARY: dict[type[nn.Module], object] = {
    kind: kind.forward
    for kind in (
        *(Encoder3D, Level, Mid, ResnetBlock3D, DownSample3D, AttnBlock2D, CausalConv3d, Normalize3D),
        *(nn.ModuleList, nn.Conv3d, nn.Conv2d, nn.Linear, nn.Dropout),
    )
}
"""The modules that the walk knows, with what they compute."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A tensor whose bias is not added yet."""

    data: Tensor
    """(B, C, T, H, W), each sample dense in channels-last order."""
    bias: Tensor | None = None
    """(C,)."""
    statistics: cuda.Statistics | None = None
    """Of `data` without the bias, if the pass that wrote it has computed them."""

    def settled(self) -> Tensor:
        """Return the tensor with its bias, added in place: do not use `self` after it."""
        if self.bias is not None:
            cuda.add(self.data, self.bias)
        return self.data


def applies(encoder: Encoder3D) -> bool:
    """Return whether every module is one that the walk knows, without hooks, and nothing is dropped at random.

    A module with a computation of its own (an adapter) must be called, so the ordinary walk serves it.
    """
    for module in encoder.modules():
        forward = _ORDINARY.get(type(module))
        if forward is None or not kernels.is_ordinary(module, forward):
            return False
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return False
    return True


def encode(encoder: Encoder3D, x: Tensor, cache: EncoderCache | None, rule: PoolRule) -> Tensor:
    """Compute what `Encoder3D` computes of (B, C, T, H, W), channels last; the cache is updated in place."""

    def part(name: str) -> Cache | None:
        return None if cache is None else cache.setdefault(name, {})

    begin("conv_in")
    h = _convolve(encoder.conv_in, Pending(x), part("conv_in"), "conv")
    for i, level in enumerate(encoder.down):
        assert isinstance(level, Level)
        begin(f"level {i}")
        for j, layer in enumerate(level.block):
            a_norm_follows = not level.attn and (level.downsample is None or j + 1 < len(level.block))
            h = block(layer, h, part(f"down.{i}.block.{j}"), measure=a_norm_follows)
            if level.attn:
                h = Pending(_channels_last(level.attn[j](h.settled())))
        if level.downsample is not None:
            h = _downsample(level.downsample, h, rule)
    begin("mid")
    h = block(encoder.mid.block_1, h, part("mid.block_1"), measure=True)
    h = block(encoder.mid.block_2, h, part("mid.block_2"), measure=True)
    begin("conv_out")
    return _convolve(encoder.conv_out, h, part("conv_out"), "conv", encoder.norm_out).settled()


def block(layer: nn.Module, x: Pending, cache: Cache | None, *, measure: bool) -> Pending:
    """Return x + conv2(silu(norm2(conv1(silu(norm1(x)))))); with `measure`, with its statistics."""
    assert isinstance(layer, ResnetBlock3D)
    assert isinstance(layer.norm1, Normalize3D)
    assert isinstance(layer.norm2, Normalize3D)
    if layer.conv_shortcut is not None:
        x = Pending(x.settled(), None, x.statistics)
        residual = _convolve(layer.conv_shortcut, x, cache, "conv_shortcut")
    else:
        residual = x if layer.nin_shortcut is None else _pointwise(layer.nin_shortcut, x)
    h = _convolve(layer.conv1, x, cache, "conv1", layer.norm1)
    y = _convolve(layer.conv2, h, cache, "conv2", layer.norm2)
    assert y.bias is not None
    return Pending(y.data, None, cuda.add(y.data, y.bias, residual.data, residual.bias, measure=measure))


def _pointwise(conv: nn.Conv3d, x: Pending) -> Pending:
    """Return the convolution with a kernel of 1x1x1. It reads no padding, so W (x + b) + c = W x + (W b + c)."""
    assert conv.bias is not None
    bias = conv.bias.float()
    if x.bias is not None:
        bias = bias + (conv.weight.flatten(1).float() * x.bias.float()).sum(1)
    return Pending(in_pieces(lambda piece: _without_bias(piece, conv), x.data, conv.out_channels), bias)


def _convolve(
    conv: CausalConv3d, x: Pending, cache: Cache | None, name: str, norm: nn.GroupNorm | None = None
) -> Pending:
    """Convolve x, or silu(norm(x)); the state of a stream is `name` in `cache`, as in `CausalConv3d.through`."""

    past = None if cache is None else cache.pop(name, None)
    ready = None if norm is None else cuda.measured(x.data, norm, x.bias, x.statistics)
    num_frames, length = x.data.shape[2], conv.frames_at_a_time(x.data)
    state = [past]

    def convolved() -> Iterator[Tensor]:
        for start in range(0, num_frames, length):
            keep = cache is not None or start + length < num_frames
            padded, state[0] = _fill(conv, x.data[:, :, start : start + length], state[0], ready, keep=keep)
            yield _without_bias(padded, conv.conv)

    y = joined(convolved(), num_frames)
    if cache is not None:
        assert state[0] is not None
        cache[name] = state[0]
    return Pending(y, conv.conv.bias)


def _fill(
    conv: CausalConv3d, x: Tensor, past: Tensor | None, norm: cuda.Norm | None, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the convolution's input, and with `keep` the frames that the next piece needs again.

    The pass that writes those frames writes them twice, unless they reach back beyond x.
    """
    kept = None
    if keep and norm is not None and conv.stride == 1 and conv.reach <= x.shape[2]:
        kept = torch.empty_like(x[:, :, : conv.reach], memory_format=torch.channels_last_3d)

    def write(body: Tensor) -> None:
        if norm is None:
            body.copy_(x)
        else:
            norm.apply(x, body, kept)

    real = conv.conv.in_channels
    padded = conv.fill(x, past, write, -(-real // CHANNELS_AT_A_TIME) * CHANNELS_AT_A_TIME)
    return padded, conv.tail(padded[:, :real]) if keep and kept is None else kept


def _without_bias(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Return the convolution of x without the bias, in channels-last order, whatever the backend returns."""
    weight = conv.weight
    if (missing := x.shape[1] - conv.in_channels) > 0:
        weight = _channels_last(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing)))
    return _channels_last(conv._conv_forward(x, weight, None))


def _downsample(down: nn.Module, x: Pending, rule: PoolRule) -> Pending:
    """Halve height and width, and first the number of frames where the module does."""
    assert isinstance(down, DownSample3D)
    if not down.with_conv:
        return Pending(_channels_last(down(x.settled(), rule)))
    frames = down.pooled(x.settled(), rule)
    conv = down.conv
    y = in_pieces(lambda piece: conv._conv_forward(piece, conv.weight, None), frames, conv.out_channels, frames=0)
    return Pending(_channels_last(as_clips(y, x.data.shape[0])), conv.bias)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
