"""CPU operations of ATen and oneDNN that need no copies. Used through `vae.kernels` only.

ATen's group_norm cannot write into a given tensor. Its batch norm in inference mode can; it also takes float32
statistics for bfloat16 data and keeps channels last. If each channel gets the statistics of its group, it computes the
group norm.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.kernels.statistics import join_blocks

DTYPES = (torch.float32, torch.bfloat16)
"""What these operations take. On a CPU float16 is slower than either, and no checkpoint needs it there."""

_BLOCK_ROWS = 16384
"""Pixels whose statistics ATen sums in one float32 chain. The mean of alike bfloat16 pixels is exact: 8 bits of each
and 14 bits of their number fit into 24. float32 pixels that are alike are rounded the same way at each addition: up to
5e-4 of a mean or variance, where noise has 3e-6. That is below the rounding of bfloat16, and not of float32."""

_BLOCK_ELEMENTS = 1 << 17
"""Elements of a block of `_exact_block_statistics`: 512 kB, which stay in the second-level cache with their copy."""

_PIVOT_STRIDE = 16

Blocks = tuple[Tensor, Tensor, Tensor]
"""The arguments of `join_blocks`: (blocks, C) means, (blocks, C) variances, (blocks,) float64 sizes."""


def norm_silu(x: Tensor, norm: nn.GroupNorm, out: Tensor, *, exact: bool) -> None:
    """Write silu(norm(x)) into `out`; `exact` decides the statistics of float32 data."""
    assert norm.weight is not None
    blocks = _exact_block_statistics if exact and x.dtype == torch.float32 else _block_statistics
    weight, bias = norm.weight.float(), norm.bias.float()
    unused = torch.empty(0)
    for i in range(x.shape[0]):
        image, image_out = _as_image(x[i]), _as_image(out[i])
        mean, variance = join_blocks(*blocks(image), norm.num_groups)
        torch.ops.aten.native_batch_norm.out(
            image,
            weight,
            bias,
            mean,
            variance,
            False,
            0.0,
            norm.eps,
            out=image_out,
            save_mean=unused,
            save_invstd=unused,
        )
    F.silu(out, inplace=True)


def can_convolve(x: Tensor, conv: nn.Conv3d, residual: Tensor | None) -> bool:
    """Return whether `conv3d` applies: on a CPU with oneDNN, a known dtype, channels last."""
    return bool(
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and conv.bias is not None
        and torch._C._has_mkldnn
        and torch._C._get_mkldnn_enabled()
        and _is_dense(x)
        and (residual is None or _is_dense(residual))
    )


@cache
def takes_bfloat16() -> bool:
    """Return whether oneDNN has a bfloat16 convolution on this CPU. It needs AVX-512 or AVX-NE-CONVERT."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def conv3d(x: Tensor, conv: nn.Conv3d, residual: Tensor | None) -> Tensor:
    """Return conv(x), or residual += conv(x), summed in float32 and rounded once, with the operators of Inductor.

    The ordinary call uses a slower convolution with an unfolded input for small or three-channel float32 inputs on one
    thread, and its output is not channels last.

    If oneDNN has no bfloat16 convolution, the operands are converted to float32 and the sum is rounded once: the same
    arithmetic. ATen's own bfloat16 convolution is too slow (measured: `tiny`, 9x64x96, AVX2: 16 s instead of 0.2 s).
    """
    assert conv.bias is not None
    weight, bias = conv.weight, conv.bias
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    if x.dtype == torch.bfloat16 and not takes_bfloat16():
        wide = (x.float(), weight.float(), bias.float())
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(*wide, *geometry, "none", [], "").bfloat16()  # type: ignore[no-any-return]
        return residual.copy_(
            torch.ops.mkldnn._convolution_pointwise_.binary(
                residual.float(), *wide, *geometry, "add", 1.0, None, [], None
            )
        )
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")  # type: ignore[no-any-return]
    return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
        residual, x, weight, bias, *geometry, "add", 1.0, None, [], None
    )


def conv3d_in_parts(x: Tensor, conv: nn.Conv3d, residual: Tensor | None) -> Tensor:
    """Return conv(x), or residual += conv(x), for stride and dilation 1: one row of the kernel after another.

    oneDNN's channels-last convolution sums all products of an output in one chain, and its float32 rounding error grows
    with the root of the chain's length. Relative to float64, with a kernel of 3x3x3, in one part, by frames of the
    kernel, and by rows: 9.1e-7, 5.3e-7, 3.1e-7 for 96 channels; 1.0e-6, 1.0e-6, 6.1e-7 for 384. Rows take 2 to 15 %
    longer than frames. The rows of one frame are dense, so frames pass one by one.
    """
    assert conv.bias is not None
    depth, rows, _ = conv.kernel_size
    num_frames, height = x.shape[2] - depth + 1, x.shape[3]
    if residual is None:
        shape = (x.shape[0], conv.out_channels, num_frames, *x.shape[3:])
        residual = torch.empty(shape, dtype=x.dtype).to(memory_format=torch.channels_last_3d).zero_()
    geometry = ((0, 0, conv.padding[2]), conv.stride, conv.dilation, conv.groups)
    no_bias = torch.zeros_like(conv.bias)
    middle = rows // 2
    parts: list[tuple[int, int, Tensor, Tensor]] = []
    for i, j in sorted(product(range(depth), range(rows)), key=lambda part: part != (0, middle)):
        if abs(j - middle) >= height:
            continue  # it reads padding only
        weight = conv.weight[:, :, i : i + 1, j : j + 1].contiguous(memory_format=torch.channels_last_3d)
        parts.append((i, j - middle, weight, no_bias if parts else conv.bias))  # the middle row reaches every output
    for sample, total in zip(x.unsqueeze(1), residual.unsqueeze(1), strict=True):
        for frame in range(num_frames):
            for i, down, weight, bias in parts:
                first, last = max(0, -down), height - max(0, down)
                source = sample[:, :, frame + i : frame + i + 1, first + down : last + down]
                target = total[:, :, frame : frame + 1, first:last]
                torch.ops.mkldnn._convolution_pointwise_.binary(
                    target, source, weight, bias, *geometry, "add", 1.0, None, [], None
                )
    return residual


def _block_statistics(image: Tensor) -> Blocks:
    """Return the statistics of blocks as ATen's batch norm sums them: each channel in one chain of float32."""
    _, channels, num_rows, width = image.shape
    rows_per_block = max(_BLOCK_ROWS // width, 1)
    sizes, means, variances = [], [], []
    for start in range(0, num_rows, rows_per_block):
        block = image[:, :, start : start + rows_per_block]
        # Float32 running statistics are not used, but make the results float32 for bfloat16 data.
        mean, variance = torch.batch_norm_update_stats(block, torch.zeros(channels), torch.zeros(channels), 0.0)
        sizes.append(float(block.shape[2]))
        means.append(mean)
        variances.append(variance)
    return torch.stack(means), torch.stack(variances), torch.tensor(sizes).double()


def _exact_block_statistics(image: Tensor) -> Blocks:
    """Return the statistics of blocks of float32 pixels, as exact as float32 allows, whatever the pixels are.

    Sums run over differences from a pivot, which are small where pixels are alike, and ATen's `mean` adds like a tree.
    The pivot is the mean of every sixteenth pixel: at most sqrt(16) standard deviations away from the mean of all, so
    that the last subtraction costs the variance at most a factor of 16 in precision. Join the blocks in float64.
    """
    channels = image.shape[1]
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)  # a view: channels last
    blocks = torch.split(pixels, max(_BLOCK_ELEMENTS // channels, 1))
    scratch = torch.empty_like(blocks[0])
    sizes, means, variances = [], [], []
    for block in blocks:
        pivot = block[::_PIVOT_STRIDE].mean(0)
        away = torch.sub(block, pivot, out=scratch[: len(block)])
        drift = away.mean(0).double()
        sizes.append(float(len(block)))
        means.append(pivot + drift)
        variances.append((away.square_().mean(0) - drift.square()).clamp_min_(0.0))
    return torch.stack(means), torch.stack(variances), torch.tensor(sizes).double()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def _as_image(sample: Tensor) -> Tensor:
    """View one sample (C, T, H, W), channels last, as (1, C, T*H, W), channels last."""
    channels, num_frames, height, width = sample.shape
    rows = sample.permute(1, 2, 3, 0).view(1, num_frames * height, width, channels)
    return rows.permute(0, 3, 1, 2)
