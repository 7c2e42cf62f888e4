"""The fast kernels behind one seam: what a block asks for, done the best way that the situation allows.

Two paths give the same result up to rounding, and the tests hold them against each other:

    plain   ordinary differentiable torch operations. Taken when gradients are recorded and inside `with plain():`
    fast    no copies: activations are written straight into the convolution's input buffer, sums happen in place

Blocks call these functions and never ask which path is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.shapes import PoolRule

_PLAIN: ContextVar[bool] = ContextVar("latentmill_plain_kernels", default=False)


@contextmanager
def plain() -> Iterator[None]:
    """Take the plain path inside this block: the yardstick of the self-check and of the tests."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_fast() -> bool:
    """Whether the fast path may be taken: nobody asked for the plain one, and no gradient is recorded."""
    return not _PLAIN.get() and not torch.is_grad_enabled()


def norm_silu(x: Tensor, norm: nn.GroupNorm, out: Tensor | None = None) -> Tensor:
    """silu(norm(x)), into `out` if given: a tensor of x's shape, any strides (fast path only)."""
    normed = norm(x)
    if out is not None:
        return torch.ops.aten.silu.out(normed, out=out)  # type: ignore[no-any-return]
    return F.silu(normed, inplace=is_fast())


def conv3d(x: Tensor, conv: nn.Conv3d, residual: Tensor | None = None) -> Tensor:
    """conv(x), plus `residual` if given; on the fast path the sum is in place."""
    y: Tensor = conv(x)
    if residual is None:
        return y
    return y.add_(residual) if is_fast() else residual + y


def pool_time(x: Tensor, rule: PoolRule, edge: int) -> Tensor:
    """Average pairs of frames, and pad `edge` zero rows and columns at the bottom and right.

    (B, C, T, H, W) to (B, C, T', H + edge, W + edge). Frame 0 stays alone under rule `first`, and under `parity` when T
    is odd; a last frame without a pair is dropped.

    Raises:
        ValueError: rule `first` and T = 2.
    """
    batch, channels, num_frames, height, width = x.shape
    if rule == "first" and num_frames == 2:
        raise ValueError("cannot pool 2 frames in time: the first stays alone and the second has no pair")
    alone = 1 if rule == "first" or num_frames % 2 else 0
    num_pairs = (num_frames - alone) // 2
    left, right = x[:, :, alone::2][:, :, :num_pairs], x[:, :, alone + 1 :: 2]
    if not is_fast():
        return F.pad(torch.cat([x[:, :, :alone], (left + right) * 0.5], dim=2), (0, edge, 0, edge))
    pooled = torch.empty(
        (batch, channels, alone + num_pairs, height + edge, width + edge),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last_3d,
    )
    pooled[..., height:, :] = 0
    pooled[..., width:] = 0
    pooled[:, :, :alone, :height, :width] = x[:, :, :alone]
    pairs = pooled[:, :, alone:, :height, :width]
    torch.add(left, right, out=pairs)
    pairs.mul_(0.5)
    return pooled
