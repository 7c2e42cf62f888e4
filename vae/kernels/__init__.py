"""The operations of the blocks, each with a fast kernel and a plain torch version.

Two paths give the same result up to rounding, and the tests compare them:

    plain   ordinary differentiable torch operations, used while gradients are recorded and inside `with plain():`
    fast    no copies: activations are written directly into the convolution's input buffer, sums are in place, and
            inside `with workspace():` all blocks share the same two big buffers

Blocks call these functions without knowing which path is used. Layout of every tensor: (B, C, T, H, W), channels last
in memory on the fast path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.kernels import cpu, rms
from vae.shapes import PoolRule

_GROUP_NORM = nn.GroupNorm.forward
_CONV = nn.Conv3d.forward

_PLAIN: ContextVar[bool] = ContextVar("latentmill_plain_kernels", default=False)
_EXACT: ContextVar[bool] = ContextVar("latentmill_exact_statistics", default=True)
_WORKSPACE: ContextVar[dict[str, Tensor] | None] = ContextVar("latentmill_workspace", default=None)

Norm = nn.GroupNorm | nn.RMSNorm
"""GroupNorm: over groups of channels, all pixels of a sample. RMSNorm: over the channels (axis 1) of each position."""

Slot = Literal["padded", "hidden"]
"""Buffers of a workspace. padded: a convolution's input with its past. hidden: the output of a first convolution."""


@contextmanager
def plain() -> Iterator[None]:
    """Use the plain path inside this context: the reference of the self-check and of the tests."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


@contextmanager
def statistics(*, exact: bool) -> Iterator[None]:
    """Choose how GroupNorm sums float32 statistics on a CPU: exactly, which is the default, or as before 2026-12.

    The earlier sums were off by up to 1e-2 of a latent on flat frames. Outputs that began with them keep their bytes.
    """
    token = _EXACT.set(exact)
    try:
        yield
    finally:
        _EXACT.reset(token)


@contextmanager
def workspace() -> Iterator[None]:
    """Share the big buffers between all blocks inside this context, and free them at its end.

    On a CPU every new buffer costs page faults: 24 ms for 57 MB, while the normalisation that fills it takes 10 ms.
    """
    token = _WORKSPACE.set({})
    try:
        yield
    finally:
        _WORKSPACE.reset(token)


def is_fast() -> bool:
    """Return whether the fast path may be used: outside of `plain()`, and while no gradient is recorded."""
    return not _PLAIN.get() and not torch.is_grad_enabled()


def buffer(slot: Slot, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised channels-last tensor: a new one, or the workspace's, valid until the slot's next use."""
    batch, channels, num_frames, height, width = shape
    slots = _WORKSPACE.get()
    if slots is None:
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
    size = math.prod(shape)
    flat = slots.get(slot)
    if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
        slots.pop(slot, None)
        flat = slots[slot] = torch.empty(size, dtype=like.dtype, device=like.device)
    return flat[:size].view(batch, num_frames, height, width, channels).permute(0, 4, 1, 2, 3)


def norm_silu(x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
    """Return silu(norm(x)), written into `out` if given: a tensor of x's shape with any strides (fast path only)."""
    if isinstance(norm, nn.RMSNorm):
        return _rms_silu(x, norm, out)
    if out is None:
        return F.silu(group_norm(x, norm), inplace=not torch.is_grad_enabled())
    if x.device.type == "cpu" and x.dtype in cpu.DTYPES and _can_norm(x, norm, out):
        cpu.norm_silu(x, norm, out, exact=_EXACT.get())
        return out
    if has_passes(x) and _can_norm(x, norm, out):
        from vae.kernels import cuda

        cuda.norm_silu(x, norm, out)
        return out
    return torch.ops.aten.silu.out(norm(x), out=out)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Return x / |x| * sqrt(C) * weight, |x| over the channels (axis 1) of each position."""
    return rms.rms_norm(x, norm)


def accumulator(x: Tensor, channels: int) -> Tensor | None:
    """Return zeros for a convolution of x to add its output to, or None where a new output tensor is as fast.

    Zeros are faster on a CPU in a workspace. Their memory is the slot "hidden", which the next call uses again.
    """
    if not is_fast() or _WORKSPACE.get() is None or x.device.type != "cpu":
        return None
    return buffer("hidden", (x.shape[0], channels, *x.shape[2:]), x).zero_()


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return norm(x), computed in NCDHW order.

    ATen's channels-last kernel is wrong by 2e-4 in float32 (32 channels of 9x240x360).
    """
    return norm(x.contiguous())  # type: ignore[no-any-return]


def conv3d(x: Tensor, conv: nn.Conv3d, residual: Tensor | None = None, *, in_parts: bool = False) -> Tensor:
    """Return conv(x), plus `residual` if given; on the fast path the sum may be written into residual's memory.

    With `in_parts`, float32 on a CPU sums in shorter chains, for a smaller rounding error.
    """
    if not is_fast():
        y: Tensor = conv(x)
        return y if residual is None else residual + y
    if cpu.can_convolve(x, conv, residual) and is_ordinary(conv, _CONV):
        has_parts = conv.kernel_size[0] > 1 and conv.stride == conv.dilation == (1, 1, 1)
        short = in_parts and has_parts and x.dtype == torch.float32
        return (cpu.conv3d_in_parts if short else cpu.conv3d)(x, conv, residual)
    y = conv(x)
    return y if residual is None else y.add_(residual)


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
    pooled = buffer("padded", (batch, channels, alone + num_pairs, height + edge, width + edge), x)
    if has_passes(x) and _is_dense(x):
        from vae.kernels import cuda

        cuda.pool_time(x, alone, pooled)
        return pooled
    pooled[..., height:, :] = 0
    pooled[..., width:] = 0
    pooled[:, :, :alone, :height, :width] = x[:, :, :alone]
    pairs = pooled[:, :, alone:, :height, :width]
    torch.add(left, right, out=pairs)
    pairs.mul_(0.5)
    return pooled


def has_passes(x: Tensor) -> bool:
    """Return whether the Triton kernels take x: on CUDA, in a known dtype. On `meta` they are counted and not run."""
    known = (torch.float32, torch.bfloat16, torch.float16)
    return x.device.type in ("cuda", "meta") and x.dtype in known and _has_triton()


def _rms_silu(x: Tensor, norm: nn.RMSNorm, out: Tensor | None) -> Tensor:
    if out is None:
        return F.silu(rms.rms_norm(x, norm), inplace=not torch.is_grad_enabled())
    if not (_is_dense(x) and _is_dense(out)):
        return out.copy_(F.silu(rms.rms_norm(x, norm)))
    if has_passes(x):
        from vae.kernels import cuda

        cuda.rms_silu(x, norm, out)
    else:
        rms.rms_silu(x, norm, out)
    return out


def _can_norm(x: Tensor, norm: nn.GroupNorm, out: Tensor) -> bool:
    """Return whether the fast kernels apply: one dtype, samples dense in channels-last order, an ordinary norm."""
    return x.dtype == out.dtype and _is_dense(x) and _is_dense(out) and is_ordinary(norm, _GROUP_NORM)


def _is_dense(x: Tensor) -> bool:
    """Return whether each sample is dense in channels-last order."""
    return all(sample.is_contiguous(memory_format=torch.channels_last_3d) for sample in x.unsqueeze(1).unbind(0))


def is_ordinary(module: nn.Module, forward: object) -> bool:
    """Return whether the module computes what its class does, `forward`.

    A module with its own computation (frozen statistics, an adapter) is called, never replaced by a kernel.
    """
    return (
        getattr(module.forward, "__func__", None) is forward
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
