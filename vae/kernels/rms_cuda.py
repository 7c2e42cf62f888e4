"""RMS normalisation over channels and SiLU in one pass over channels-last memory, for CUDA. Used through `vae.kernels`.

A program reads a tile of whole positions once and writes it once; nothing is joined between programs. The tile's size
is a constant and not autotuned, so the same input gives the same bits everywhere. The module's test uses Triton's
interpreter.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor, nn

_TILE_ELEMENTS = 8192
"""Elements of a program: 64 per thread with 4 warps."""


@triton.jit  # type: ignore[untyped-decorator]
def _rms_silu(  # type: ignore[no-untyped-def]
    x, out, weight, num_rows, channels, least, COLS: tl.constexpr, TILE: tl.constexpr
):
    """Compute silu(x / max(|x|, least) * weight) of TILE rows, in float32, rounded once."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, COLS)
    inside = (rows < num_rows)[:, None] & (cols < channels)[None, :]
    where = rows[:, None] * channels + cols[None, :]
    y = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(y * y, axis=1)), least)
    y = y / length[:, None] * tl.load(weight + cols, mask=cols < channels, other=0.0)[None, :]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + where, y.to(out.dtype.element_ty), mask=inside)


def rms_silu(x: Tensor, norm: nn.RMSNorm, out: Tensor, least: float) -> None:
    """Write silu(norm(x)) into `out`; every sample of both is dense in channels-last order."""
    channels = x.shape[1]
    weight = (norm.weight.float() * math.sqrt(channels)).contiguous()
    num_rows = x[0].numel() // channels
    cols = triton.next_power_of_2(channels)
    tile = max(_TILE_ELEMENTS // cols, 1)
    for source, target in zip(x, out, strict=True):
        _rms_silu[(triton.cdiv(num_rows, tile),)](
            source, target, weight, num_rows, channels, least, COLS=cols, TILE=tile
        )
