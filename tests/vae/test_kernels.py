"""The fast kernels against exact arithmetic, against the plain path, and in every situation that they must decline."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae
from vae import kernels
from vae.kernels import cpu
from vae.kernels.statistics import join_blocks


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def norm_of(channels: int, dtype: torch.dtype) -> nn.GroupNorm:
    torch.manual_seed(1)
    norm = vae.Normalize3D(channels)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm.to(dtype)


def exact(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.silu(F.group_norm(x.double().contiguous(), 32, norm.weight.double(), norm.bias.double(), norm.eps))


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


TWO_ROUNDINGS = 2 * 2**-9
"""bfloat16: after the norm and after the activation, half a unit in the last place each."""


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, TWO_ROUNDINGS)])
@pytest.mark.parametrize("shape", [(1, 64, 3, 20, 31), (2, 32, 2, 8, 8), (1, 32, 9, 96, 128), (1, 96, 1, 1, 1)])
def test_norm_silu_is_exact_and_writes_into_a_slice(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    x, norm = channels_last(*shape, dtype=dtype), norm_of(shape[1], dtype)
    batch, channels, num_frames, height, width = shape
    padded = channels_last(batch, channels, num_frames + 2, height, width, dtype=dtype)
    before = padded[:, :, :2].clone()
    with torch.no_grad():
        kernels.norm_silu(x, norm, padded[:, :, 2:])
    assert relative(padded[:, :, 2:], exact(x, norm)) < bound
    assert torch.equal(padded[:, :, :2], before)


def test_statistics_of_bfloat16_data_are_float32() -> None:
    """A mean rounded to bfloat16 would be off by up to 0.06 here, with a deviation of 1."""
    x = (channels_last(1, 32, 3, 16, 16) / 2 + 30.0).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    norm, out = norm_of(32, torch.bfloat16), torch.empty_like(x)
    with torch.no_grad():
        kernels.norm_silu(x, norm, out)
    assert relative(out, exact(x, norm)) < TWO_ROUNDINGS


def test_a_norm_of_somebody_elses_is_called() -> None:
    x, norm = channels_last(1, 32, 2, 4, 4), norm_of(32, torch.float32)
    out = torch.ones_like(x)
    with torch.no_grad():
        handle = norm.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        kernels.norm_silu(x, norm, out)
        assert not out.any()
        handle.remove()
        kernels.norm_silu(x, norm, out)
        assert out.any()
        norm.forward = lambda x: torch.zeros_like(x)  # type: ignore[method-assign]
        kernels.norm_silu(x, norm, out)
    assert not out.any()


def test_a_convolution_of_somebody_elses_is_called() -> None:
    conv, x = nn.Conv3d(32, 32, 1), channels_last(1, 32, 2, 4, 4)
    conv.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        assert torch.equal(kernels.conv3d(x, conv, torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_convolution_adds_to_its_residual_in_place(dtype: torch.dtype) -> None:
    conv = nn.Conv3d(32, 64, 3, padding=(0, 1, 1)).to(dtype)
    x, residual = channels_last(1, 32, 5, 6, 7, dtype=dtype), channels_last(1, 64, 3, 6, 7, dtype=dtype)
    expected = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), padding=(0, 1, 1)) + residual.double()  # type: ignore[union-attr]
    in_place = cpu.can_convolve(x, conv, residual)
    assert in_place == (dtype != torch.float64)
    with torch.no_grad():
        actual = kernels.conv3d(x, conv, residual)
    assert relative(actual, expected) < (5e-3 if dtype == torch.bfloat16 else 1e-6)
    if in_place:
        assert actual.data_ptr() == residual.data_ptr()
        assert actual.is_contiguous(memory_format=torch.channels_last_3d)


def test_with_gradients_nothing_is_overwritten() -> None:
    conv = nn.Conv3d(32, 32, 1)
    x, residual = channels_last(1, 32, 2, 4, 4), channels_last(1, 32, 2, 4, 4)
    kept = residual.clone()
    kernels.conv3d(x, conv, residual).sum().backward()
    assert torch.equal(residual, kept)
    assert conv.weight.grad is not None


def test_a_workspace_is_one_memory_and_ends() -> None:
    like = torch.empty(0)
    with kernels.workspace():
        first = kernels.buffer("padded", (1, 32, 4, 8, 8), like)
        again = kernels.buffer("padded", (1, 64, 2, 4, 4), like)
        other = kernels.buffer("hidden", (1, 32, 4, 8, 8), like)
        assert first.data_ptr() == again.data_ptr() != other.data_ptr()
        assert again.is_contiguous(memory_format=torch.channels_last_3d)
        assert kernels.buffer("padded", (1, 64, 4, 8, 8), like).shape == (1, 64, 4, 8, 8)
    assert kernels.buffer("padded", (1, 2, 2, 2, 2), like).data_ptr() != first.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_whole_encoder_takes_either_path(dtype: torch.dtype, batch: int) -> None:
    model = vae.load_vae("tiny", dtype=dtype)
    pixels = torch.randint(0, 256, (batch, 3, 17, 32, 40), dtype=torch.uint8)
    fast = model.encode(pixels).parameters
    with kernels.plain():
        plain = model.encode(pixels).parameters
    assert not torch.equal(fast, plain)
    assert relative(fast, plain.double()) < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_blocks_join_to_the_statistics_of_the_whole() -> None:
    x = torch.randn(50, 8, dtype=torch.float64) * 3 + 100
    parts = x.split([16, 16, 18])
    means = torch.stack([part.mean(0) for part in parts]).float()
    variances = torch.stack([part.var(0, correction=0) for part in parts]).float()
    mean, variance = join_blocks(means, variances, torch.tensor([16.0, 16.0, 18.0]).double(), 4)
    groups = x.view(50, 4, 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, groups.mean(1).float().repeat_interleave(2))
    torch.testing.assert_close(variance, groups.var(1, correction=0).float().repeat_interleave(2), rtol=1e-5, atol=1e-5)


@pytest.mark.needs_cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() and "FAIL_WITHOUT_CUDA" not in os.environ, reason="needs a GPU (FAIL_WITHOUT_CUDA)"
)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, TWO_ROUNDINGS), (torch.float16, TWO_ROUNDINGS / 4)]
)
def test_norm_silu_on_cuda(dtype: torch.dtype, bound: float) -> None:
    x, norm = channels_last(1, 128, 9, 60, 90, dtype=dtype).cuda(), norm_of(128, dtype).cuda()
    out = torch.empty_like(x)
    with torch.no_grad():
        kernels.norm_silu(x, norm, out)
    assert relative(out, exact(x, norm)) < bound


@pytest.mark.needs_cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() and "FAIL_WITHOUT_CUDA" not in os.environ, reason="needs a GPU (FAIL_WITHOUT_CUDA)"
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_selfcheck_on_cuda(dtype: torch.dtype, bound: float) -> None:
    assert vae.load_vae("tiny", dtype=dtype, device="cuda").selfcheck((17, 128, 192)) < bound
