"""RMS normalisation over channels, position by position, with torch operations. Used through `vae.kernels` only.

Wan normalises each position by itself: y = x / max(|x|, 1e-12) * sqrt(C) * weight, |x| over the C channels of one pixel
of one frame. No statistics run over time or space.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK_ELEMENTS = 1 << 16
"""Elements that a CPU normalises at a time: 256 kB of float32, which stay in the second-level cache of a core."""

LEAST = 1e-12
"""Smallest length to divide by, as in `torch.nn.functional.normalize`."""


def gain(norm: nn.RMSNorm, dtype: torch.dtype) -> Tensor:
    """Return sqrt(C) * weight, (C,)."""
    return norm.weight.to(dtype) * math.sqrt(norm.weight.numel())


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Return norm(x) over axis 1, computed in float32 or better and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = gain(norm, wide).view(-1, *(1,) * (x.ndim - 2))
    return (F.normalize(x.to(wide), dim=1, eps=LEAST) * weight).to(x.dtype)


def rms_silu(x: Tensor, norm: nn.RMSNorm, out: Tensor) -> None:
    """Write silu(norm(x)) into `out`, in float32 and rounded once; both are channels last in memory."""
    channels = x.shape[1]
    weight = gain(norm, torch.float32)
    rows_per_block = max(_BLOCK_ELEMENTS // channels, 1) if x.device.type == "cpu" else x[0].numel() // channels
    for sample, target in zip(x, out, strict=True):
        for rows, into in zip(_rows(sample, rows_per_block), _rows(target, rows_per_block), strict=True):
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(LEAST)
            if into.dtype == torch.float32:
                F.silu(torch.div(rows, length, out=into).mul_(weight), inplace=True)
            else:
                into.copy_(F.silu(torch.div(rows, length).mul_(weight), inplace=True))


def _rows(sample: Tensor, rows_per_block: int) -> tuple[Tensor, ...]:
    """View (C, T, H, W), channels last, as blocks of (pixels, C)."""
    return torch.split(sample.permute(1, 2, 3, 0).view(-1, sample.shape[0]), rows_per_block)
