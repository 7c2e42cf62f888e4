"""Law: every norm, and the whole encoder, is as exact as diffusers on inputs as the world has them, not only on noise.

The oracle is float64; the measure is the error of torch's and diffusers' own float32, with a margin of about two.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vae
from tests.vae import test_rms
from tests.vae.test_kernels import exact, norm_of, relative
from tests.vae.wan_models import random_wan
from tests.vae.world import activations, clips
from vae import kernels
from vae.kernels import rms

FLOOR = 1e-7
"""Half a unit in the last place of float32 for each of the last steps: no kernel is asked for less."""

ROUNDED = 2**-8
"""bfloat16, rounded once: at most half a unit in the last place."""

MANY_PIXELS = (9, 64, 96)
"""Enough for three chains of 16,384."""


def test_group_norm_in_float32_is_as_exact_as_torchs() -> None:
    norm = norm_of(64, torch.float32)
    with torch.no_grad():
        for name, x in activations(64, *MANY_PIXELS):
            expected = exact(x, norm)
            ours = relative(kernels.norm_silu(x, norm, torch.empty_like(x)), expected)
            assert ours < 2 * relative(F.silu(norm(x.contiguous())), expected) + FLOOR, name


def test_group_norm_in_bfloat16_is_as_exact_as_its_roundings() -> None:
    norm = norm_of(64, torch.bfloat16)
    with torch.no_grad():
        for name, wide in activations(64, *MANY_PIXELS):
            x = wide.bfloat16()
            assert relative(kernels.norm_silu(x, norm, torch.empty_like(x)), exact(x, norm)) < ROUNDED, name


def test_group_norm_does_not_depend_on_how_many_pixels_there_are() -> None:
    """Blocks of one row, a last block of one pixel, one pixel in all."""
    norm = norm_of(1024, torch.float32)
    with torch.no_grad():
        for shape in ((1, 1, 1), (1, 1, 129), (3, 17, 43)):
            x = torch.randn(1, 1024, *shape).contiguous(memory_format=torch.channels_last_3d)
            assert relative(kernels.norm_silu(x, norm, torch.empty_like(x)), exact(x, norm)) < 3e-7, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 640])
def test_rms_is_as_exact_as_torchs(channels: int, dtype: torch.dtype) -> None:
    norm = test_rms.norm_of(channels, dtype)
    with torch.no_grad():
        for name, wide in activations(channels, 2, 16, 24):
            alike = wide[:, :1].expand_as(wide).contiguous(memory_format=torch.channels_last_3d)  # channels, too
            for x in (wide.to(dtype), alike.to(dtype)):
                expected = test_rms.exact(x, norm)
                gain = rms.gain(norm, torch.float32).view(-1, 1, 1, 1)
                torchs = relative(F.silu(F.normalize(x.float(), dim=1) * gain), expected)
                error = relative(kernels.norm_silu(x, norm, torch.empty_like(x)), expected)
                assert error < 2 * torchs + (FLOOR if dtype == torch.float32 else ROUNDED), name


INTERPRETED = """
import torch
import torch.nn.functional as F
from tests.vae import test_rms
from tests.vae.test_kernels import exact, norm_of, relative
from tests.vae.world import activations
from vae.kernels import cuda
norm, rms = norm_of(64, torch.float32), test_rms.norm_of(64, torch.float32)
bias = torch.randn(64)
with torch.no_grad():
    for name, x in activations(64, 3, 16, 40):
        expected, out = exact(x, norm), torch.empty_like(x)
        most = 2 * relative(F.silu(norm(x.contiguous())), expected) + 2e-5
        cuda.norm_silu(x, norm, out)
        assert relative(out, expected) < most, (name, relative(out, expected), most)
        y = x.clone(memory_format=torch.channels_last_3d)
        found = cuda.add(y, bias, measure=True)
        most = 2 * relative(F.silu(norm(y.contiguous())), exact(y, norm)) + 2e-5
        cuda.measured(y, norm, known=found).apply(y, out)
        assert relative(out, exact(y, norm)) < most, (name, "a sum", relative(out, exact(y, norm)), most)
        cuda.rms_silu(x, rms, out)
        assert relative(out, test_rms.exact(x, rms)) < 3e-7, (name, "rms")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernels_in_the_interpreter() -> None:
    """It adds the 128 rows of a tile in one chain, where a GPU adds like a tree: 1.1e-5 on flat ground, whose normed
    values are all rounding."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


def parameters(model: Any, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    moments: Tensor = model.encode(pixels.to(dtype) / 127.5 - 1).latent_dist.parameters
    return moments


def test_cogvideox_in_float32_is_as_exact_as_diffusers(tmp_path: Path) -> None:
    """Level 0 has chains of 16,384 pixels. What is left above diffusers' error comes from oneDNN's convolution."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        temporal_compression_ratio=2,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = vae.load_vae(str(tmp_path))
    precise = copy.deepcopy(theirs).double()
    with torch.no_grad():
        for name, pixels in clips(9, 40, 64):
            expected = parameters(precise, pixels, torch.float64)
            error = relative(ours.encode(pixels).parameters, expected)
            assert error < 2.5 * relative(parameters(theirs, pixels, torch.float32), expected) + FLOOR, name


def test_wan_in_float32_is_as_exact_as_diffusers(tmp_path: Path) -> None:
    theirs = random_wan("2.1", num_res_blocks=1)
    theirs.save_pretrained(tmp_path)
    ours = vae.load_vae(str(tmp_path))
    precise = copy.deepcopy(theirs).double()
    with torch.no_grad():
        for name, pixels in clips(5, 32, 48):
            expected = parameters(precise, pixels, torch.float64)
            error = relative(ours.encode(pixels).parameters, expected)
            assert error < 2 * relative(parameters(theirs, pixels, torch.float32), expected) + FLOOR, name
