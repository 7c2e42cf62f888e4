"""The kernels of the normalisation over channels, against exact arithmetic and torch's own functions."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vae.test_kernels import channels_last, relative
from vae import kernels
from vae.blocks import NormalizeChannels

HALF_A_UNIT = 2**-9
"""bfloat16: rounded once, half a unit in the last place."""


def norm_of(channels: int, dtype: torch.dtype) -> NormalizeChannels:
    torch.manual_seed(1)
    norm = NormalizeChannels(channels)
    with torch.no_grad():
        norm.weight.normal_()
    return norm.to(dtype)


def exact(x: Tensor, norm: NormalizeChannels) -> Tensor:
    gain = norm.weight.double().view(1, -1, 1, 1, 1) * math.sqrt(x.shape[1])
    return F.silu(F.normalize(x.double(), dim=1) * gain)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-7), (torch.bfloat16, HALF_A_UNIT)])
@pytest.mark.parametrize("shape", [(1, 64, 3, 20, 31), (2, 8, 2, 8, 8), (1, 96, 5, 48, 64), (1, 640, 1, 1, 1)])
def test_it_is_exact_and_writes_into_a_slice(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    x, norm = channels_last(*shape, dtype=dtype), norm_of(shape[1], dtype)
    batch, channels, num_frames, height, width = shape
    padded = channels_last(batch, channels, num_frames + 2, height, width, dtype=dtype)
    before = padded[:, :, :2].clone()
    with torch.no_grad():
        kernels.norm_silu(x, norm, padded[:, :, 2:])
    assert relative(padded[:, :, 2:], exact(x, norm)) < bound
    assert torch.equal(padded[:, :, :2], before)


def test_any_layout_gradients_and_zeros() -> None:
    norm = norm_of(16, torch.float32)
    x = torch.randn(2, 16, 3, 4, 5)
    x[:, :, 0] = 0.0
    out = torch.empty_like(x)
    with torch.no_grad():
        kernels.norm_silu(x, norm, out)
    assert relative(out, exact(x, norm)) < 3e-7
    assert torch.equal(out[:, :, 0], torch.zeros_like(out[:, :, 0]))
    kernels.norm_silu(x.requires_grad_(), norm).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad[:, :, 1:]).all()


def test_a_position_does_not_see_another() -> None:
    norm = norm_of(16, torch.float32)
    x = channels_last(1, 16, 3, 40, 50)
    with torch.no_grad():
        whole = kernels.norm_silu(x, norm, torch.empty_like(x))
        part = x[:, :, 1:2].contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(kernels.norm_silu(part, norm, torch.empty_like(part)), whole[:, :, 1:2])


def test_a_convolution_in_parts_is_the_convolution() -> None:
    """And its float32 error is smaller."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(64, 32, 3, padding=(0, 1, 1))
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
    x, residual = channels_last(2, 64, 5, 16, 24), channels_last(2, 32, 3, 16, 24)
    expected = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), padding=(0, 1, 1))  # type: ignore[union-attr]
    with torch.no_grad():
        for added in (None, residual):
            exactly = expected if added is None else expected + residual.double()
            apart = kernels.conv3d(x, conv, None if added is None else added.clone(), in_parts=True)
            together = kernels.conv3d(x, conv, None if added is None else added.clone())
            assert relative(apart, exactly) < 1e-6
            assert relative(apart, exactly) <= 1.2 * relative(together, exactly)


def test_a_dilated_convolution_is_not_taken_apart() -> None:
    conv = torch.nn.Conv3d(32, 32, 3, padding=(0, 1, 1), dilation=(2, 1, 1))
    x = channels_last(1, 32, 7, 5, 6)
    with torch.no_grad():
        assert relative(kernels.conv3d(x, conv, in_parts=True), copy.deepcopy(conv).double()(x.double())) < 1e-6


INTERPRETED = """
import torch
from tests.vae.test_kernels import channels_last, relative
from tests.vae.test_rms import exact, norm_of
from vae.kernels import cuda
for shape in ((1, 64, 3, 20, 31), (2, 32, 1, 5, 7), (1, 96, 2, 33, 20), (1, 640, 1, 3, 5)):
    for dtype, bound in ((torch.float32, 3e-7), (torch.bfloat16, 5e-3)):
        x, norm = channels_last(*shape, dtype=dtype), norm_of(shape[1], dtype)
        x[:, :, 0, 0, 0] = 0
        out = torch.empty_like(x)
        with torch.no_grad():
            cuda.rms_silu(x, norm, out)
        error = relative(out, exact(x, norm))
        assert error < bound, (shape, dtype, error)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernel_in_the_interpreter() -> None:
    """Its bfloat16 rounding truncates, so the bound is wider than the GPU's."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


@pytest.mark.needs_cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() and "FAIL_WITHOUT_CUDA" not in os.environ, reason="needs a GPU (FAIL_WITHOUT_CUDA)"
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, HALF_A_UNIT)])
def test_on_cuda(dtype: torch.dtype, bound: float) -> None:
    x, norm = channels_last(1, 96, 4, 60, 104, dtype=dtype).cuda(), norm_of(96, dtype).cuda()
    out = torch.empty_like(x)
    with torch.no_grad():
        kernels.norm_silu(x, norm, out)
    assert relative(out, exact(x, norm)) < bound
