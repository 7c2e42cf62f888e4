"""GroupNorm and SiLU in two passes over channels-last memory, for CUDA. Used through `vae.kernels` only.

ATen's group_norm on CUDA copies a channels-last tensor into another layout and back. This module uses two kernels: the
first reads the tensor and writes each block's statistics per channel; torch joins the blocks (no atomics, so the order
is fixed); the second reads, normalises, activates and writes into the convolution's buffer. Block sizes are constants
and not autotuned, so the same input gives the same bits everywhere. The module's test uses Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from vae.kernels.statistics import join_blocks

_BLOCK_ROWS = 1024
"""Pixels per program of the first pass."""

_TILE_ELEMENTS = 8192
"""Elements that a program processes at a time: 64 per thread with 4 warps."""


@triton.jit  # type: ignore[untyped-decorator]
def _statistics(  # type: ignore[no-untyped-def]
    x, means, variances, num_rows, channels, COLS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute mean and biased variance of BLOCK rows, per channel: tiles merged by Chan's formula in float32."""
    block = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    in_cols = cols < channels
    count = 0.0
    mean = tl.zeros([COLS], dtype=tl.float32)
    spread = tl.zeros([COLS], dtype=tl.float32)
    for start in range(0, BLOCK, TILE):
        rows = block * BLOCK + start + tl.arange(0, TILE)
        inside = (rows < num_rows)[:, None] & in_cols[None, :]
        tile = tl.load(x + rows[:, None] * channels + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        num = tl.sum((rows < num_rows).to(tl.float32))
        safe = tl.maximum(num, 1.0)
        tile_mean = tl.sum(tile, axis=0) / safe
        away = tl.where(inside, tile - tile_mean[None, :], 0.0)
        gap = tile_mean - mean
        total = tl.maximum(count + num, 1.0)
        mean += gap * (num / total)
        spread += tl.sum(away * away, axis=0) + gap * gap * (count * num / total)
        count += num
    tl.store(means + block * channels + cols, mean, mask=in_cols)
    tl.store(variances + block * channels + cols, spread / count, mask=in_cols)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_shift_silu(  # type: ignore[no-untyped-def]
    x, out, scale, shift, num_rows, channels, COLS: tl.constexpr, TILE: tl.constexpr
):
    """Compute silu(x * scale + shift) of TILE rows, in float32, rounded once."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, COLS)
    inside = (rows < num_rows)[:, None] & (cols < channels)[None, :]
    where = rows[:, None] * channels + cols[None, :]
    factor = tl.load(scale + cols, mask=cols < channels, other=0.0)
    offset = tl.load(shift + cols, mask=cols < channels, other=0.0)
    y = tl.load(x + where, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + where, y.to(out.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, norm: nn.GroupNorm, out: Tensor) -> None:
    """Write silu(norm(x)) into `out`; every sample of both is dense in channels-last order."""
    assert norm.weight is not None
    weight, bias = norm.weight.float(), norm.bias.float()
    channels = x.shape[1]
    num_rows = x[0].numel() // channels
    cols = triton.next_power_of_2(channels)
    tile = max(_TILE_ELEMENTS // cols, 1)
    num_blocks = triton.cdiv(num_rows, _BLOCK_ROWS)
    sizes = torch.full((num_blocks,), float(_BLOCK_ROWS), dtype=torch.float64, device=x.device)
    sizes[-1] = num_rows - (num_blocks - 1) * _BLOCK_ROWS
    for source, target in zip(x, out, strict=True):
        means = torch.empty(num_blocks, channels, dtype=torch.float32, device=x.device)
        variances = torch.empty_like(means)
        _statistics[(num_blocks,)](
            source, means, variances, num_rows, channels, COLS=cols, TILE=tile, BLOCK=_BLOCK_ROWS
        )
        mean, variance = join_blocks(means, variances, sizes, norm.num_groups)
        scale = weight * torch.rsqrt(variance + norm.eps)
        shift = bias - mean * scale
        _scale_shift_silu[(triton.cdiv(num_rows, tile),)](
            source, target, scale, shift, num_rows, channels, COLS=cols, TILE=tile
        )
