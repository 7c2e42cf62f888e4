"""Fused passes between two convolutions, for CUDA. Used through `vae.kernels` and `vae.fused` only.

ATen's group_norm on CUDA copies a channels-last tensor into another layout and back, and cuDNN's path adds a bias and a
residual in two more passes. Here a norm is three launches: statistics of blocks per channel, their join into a scale
and a shift, and one pass that normalises, activates and writes into the next convolution's buffer. `add` makes the
first of them needless where a residual block precedes.

On tensors of the device `meta` the launches are counted and not made (`vae.kernels.traffic`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn

from vae.kernels import passes, rms, traffic

TILE_ELEMENTS = 8192
"""Elements that a program holds at a time: 64 per thread with 4 warps."""

MOST_BLOCK_ROWS = 1024
"""Most pixels of a block: longer float32 sums would lose digits, and a block more costs 8 bytes a channel."""

ENOUGH_BLOCKS = 528
"""Programs that fill an H100: 4 for each of its 132 multiprocessors. Chosen, not measured."""

JOINED_BLOCKS = 256
"""Blocks that a program of `finalise` joins at a time."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and biased variance of blocks of pixels, per channel."""

    means: Tensor
    """(B, blocks, C) float32."""
    variances: Tensor
    """(B, blocks, C) float32."""
    block_rows: int
    """Pixels of each block; the last one may have fewer."""


def block_rows(num_rows: int, channels: int) -> int:
    """Return the pixels of a block of `num_rows` in all: a power of two, fixed by the shape, for ENOUGH_BLOCKS."""
    rows = MOST_BLOCK_ROWS
    while rows > _tile(channels) and rows * ENOUGH_BLOCKS > num_rows:
        rows //= 2
    return max(rows, _tile(channels))


def statistics(x: Tensor) -> Statistics:
    """Compute the statistics of blocks of x (B, C, T, H, W), each sample dense in channels-last order."""
    found = _empty_statistics(x)
    batch, num_blocks, channels = found.means.shape
    _launch(
        "statistics",
        passes.statistics,
        (num_blocks, batch),
        (x, found.means, found.variances, _num_rows(x), channels, _apart(x), found.block_rows),
        {"COLS": _cols(channels), "TILE": _tile(channels)},
        reads=[x],
        writes=[found.means, found.variances],
    )
    return found


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over a whole tensor, ready to be applied to it or to pieces of it in time: silu(x * scale + shift)."""

    scale: Tensor
    """(B, C) float32."""
    shift: Tensor
    """(B, C) float32."""

    def apply(self, x: Tensor, out: Tensor, kept: Tensor | None = None) -> None:
        """Write silu(norm(x)) into `out`, and its last frames into `kept` in the same pass.

        Args:
            x: (B, C, T, H, W), each sample dense in channels-last order.
            out: as x; a slice of a larger buffer in time.
            kept: as x, with no more frames.
        """
        batch, channels = self.scale.shape
        tail = out if kept is None else kept
        _launch(
            "norm",
            passes.scale_shift_silu,
            (triton.cdiv(_num_rows(x), _tile(channels)), batch),
            (
                *(x, out, tail, self.scale, self.shift, _num_rows(x), _num_rows(tail), channels),
                *(_apart(x), _apart(out), _apart(tail)),
            ),
            {"KEEP": kept is not None, "COLS": _cols(channels), "TILE": _tile(channels)},
            reads=[x, self.scale, self.shift],
            writes=[out] if kept is None else [out, kept],
        )


def measured(x: Tensor, norm: nn.GroupNorm, bias: Tensor | None = None, known: Statistics | None = None) -> Norm:
    """Measure x and return the norm of x + bias, ready to be applied to x.

    Args:
        x: (B, C, T, H, W), each sample dense in channels-last order.
        norm: its statistics run over T, H and W.
        bias: (C,), a convolution's, not yet added to x.
        known: statistics of x without the bias, if something has computed them already.
    """
    found = statistics(x) if known is None else known
    batch, num_blocks, channels = found.means.shape
    repeats = channels // norm.num_groups
    scale = torch.empty(batch, channels, dtype=torch.float32, device=x.device)
    shift = torch.empty_like(scale)
    blocks = [found.means, found.variances]
    affine = [norm.weight if bias is None else bias, norm.weight, norm.bias]
    _launch(
        "norm",
        passes.finalise,
        (norm.num_groups, batch),
        (*blocks, *affine, scale, shift, _num_rows(x), num_blocks, repeats, found.block_rows, norm.eps),
        {
            "HAS_BIAS": bias is not None,
            "COLS": triton.next_power_of_2(repeats),
            "JOINED": JOINED_BLOCKS,
        },
        reads=[*blocks, *blocks, *affine],
        writes=[scale, shift],
    )
    return Norm(scale, shift)


def norm_silu(x: Tensor, norm: nn.GroupNorm, out: Tensor) -> None:
    """Write silu(norm(x)) into `out`; each sample of both is dense in channels-last order."""
    measured(x, norm).apply(x, out)


def rms_silu(x: Tensor, norm: nn.RMSNorm, out: Tensor) -> None:
    """Write silu(norm(x)) into `out`, as `vae.kernels.rms.rms_silu`, in one pass: no position needs another one."""
    batch, channels = x.shape[:2]
    weight = rms.gain(norm, torch.float32)
    _launch(
        "norm",
        passes.rms_silu,
        (triton.cdiv(_num_rows(x), _tile(channels)), batch),
        (x, out, weight, _num_rows(x), channels, rms.LEAST, _apart(x), _apart(out)),
        {"COLS": _cols(channels), "TILE": _tile(channels)},
        reads=[x, weight],
        writes=[out],
    )


def add(
    y: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    residual_bias: Tensor | None = None,
    *,
    measure: bool = False,
) -> Statistics | None:
    """Compute y += bias + residual + residual_bias in one pass; with `measure`, also the statistics of the sum.

    Args:
        y: (B, C, T, H, W), each sample dense in channels-last order.
        bias: (C,).
        residual: as y.
        residual_bias: (C,), not yet added to the residual.
        measure: whether a norm reads y next.
    """
    found = _empty_statistics(y) if measure else None
    channels = y.shape[1]
    block = found.block_rows if found else _tile(channels)
    tables = [found.means, found.variances] if found else [bias, bias]
    other = y if residual is None else residual
    other_bias = bias if residual_bias is None else residual_bias
    _launch(
        "add",
        passes.add,
        (triton.cdiv(_num_rows(y), block), y.shape[0]),
        (y, bias, other, other_bias, *tables, _num_rows(y), channels, _apart(y), _apart(other), block),
        {
            "HAS_RESIDUAL": residual is not None,
            "HAS_RESIDUAL_BIAS": residual_bias is not None,
            "MEASURE": measure,
            "COLS": _cols(channels),
            "TILE": _tile(channels),
        },
        reads=[t for t in (y, bias, residual, residual_bias) if t is not None],
        writes=[y, *(tables if measure else [])],
    )
    return found


def pool_time(x: Tensor, alone: int, out: Tensor) -> None:
    """Write x into `out`: the first `alone` frames as they are, then means of pairs; rows and columns beyond x are 0.

    Args:
        x: (B, C, T, H, W), each sample dense in channels-last order.
        alone: frames without a partner.
        out: (B, C, alone + pairs, H + edge, W + edge), as x.
    """
    batch, channels, num_frames, height, width = x.shape
    read = min(num_frames, alone + 2 * (out.shape[2] - alone))
    _launch(
        "pool",
        passes.pool_time,
        (triton.cdiv(_num_rows(out), _tile(channels)), batch),
        (
            *(x, out, _num_rows(out), channels, height, width),
            *(alone, out.shape[3] - height, _apart(x), _apart(out)),
        ),
        {"COLS": _cols(channels), "TILE": _tile(channels)},
        reads=[x[:, :, :read]],
        writes=[out],
    )


def _launch(
    kind: str,
    kernel: Any,
    grid: tuple[int, int],
    arguments: tuple[object, ...],
    constants: dict[str, object],
    *,
    reads: Sequence[Tensor],
    writes: Sequence[Tensor],
) -> None:
    """Launch a kernel on the device of its tensors, and tell the traffic count what it reads and writes."""
    traffic.note(kind, reads, writes)
    # Triton 3.10 no longer fuses a product and a sum by default, which would change the last bits of a latent.
    options = constants | {"enable_fp_fusion": True}
    if writes[0].is_cuda:
        with torch.cuda.device(writes[0].device):
            kernel[grid](*arguments, **options)
    elif not writes[0].is_meta:  # Triton's interpreter
        kernel[grid](*arguments, **options)


def _empty_statistics(x: Tensor) -> Statistics:
    batch, channels = x.shape[:2]
    rows = block_rows(_num_rows(x), channels)
    means = torch.empty(batch, triton.cdiv(_num_rows(x), rows), channels, dtype=torch.float32, device=x.device)
    return Statistics(means, torch.empty_like(means), rows)


def _num_rows(x: Tensor) -> int:
    return x[0, 0].numel()


def _apart(x: Tensor) -> int:
    """Return how many rows lie from one sample to the next. Of one sample, any number will do."""
    rows, rest = divmod(x.stride(0), x.shape[1])
    assert not rest or x.shape[0] == 1, (x.shape, x.stride())
    return rows


def _cols(channels: int) -> int:
    return int(triton.next_power_of_2(channels))


def _tile(channels: int) -> int:
    return max(TILE_ELEMENTS // _cols(channels), 1)
