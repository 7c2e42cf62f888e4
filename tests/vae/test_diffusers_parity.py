"""The same weights in diffusers and here give the same moments: every length, non-square sizes, batches, bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE

pytest.importorskip("diffusers")


def saved_by_diffusers(folder: Path, channels: tuple[int, ...]) -> Any:
    """Random weights, biases and norms included, as `save_pretrained` writes them."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    model = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=channels,
        layers_per_block=3,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm" in name or "norm_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model


def moments(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.encode(pixels).latent_dist.parameters


def relative(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VideoVAE]:
    """Full depth, a quarter of the width."""
    folder = tmp_path_factory.mktemp("small")
    return saved_by_diffusers(folder, (32, 64, 64, 128)), vae.load_vae(str(folder))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 8, 9, 10, 13, 15, 16, 17, 25])
def test_every_length(small: tuple[Any, VideoVAE], num_frames: int) -> None:
    theirs, ours = small
    pixels = torch.rand(1, 3, num_frames, 16, 24) * 2 - 1
    assert relative(ours.encode(pixels).parameters, moments(theirs, pixels)) <= 1e-5


def test_batches_and_scaling(small: tuple[Any, VideoVAE]) -> None:
    theirs, ours = small
    pixels = torch.rand(2, 3, 17, 24, 16) * 2 - 1
    assert relative(ours.encode(pixels).parameters, moments(theirs, pixels)) <= 1e-5
    assert ours.info.scale == theirs.config.scaling_factor
    assert ours.info.latent_shape(17, 24, 16) == tuple(moments(theirs, pixels).chunk(2, dim=1)[0].shape[1:])


def test_decode_gives_the_models_pixels(small: tuple[Any, VideoVAE]) -> None:
    theirs, ours = small
    z = torch.randn(1, ours.info.latent_channels, 3, 4, 6)
    decoded = ours.decode(ours.scale(z))
    assert tuple(decoded.shape) == (1, 3, 9, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(decoded, theirs.decode(z).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_sampling_takes_the_same_noise(small: tuple[Any, VideoVAE]) -> None:
    theirs, ours = small
    pixels = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    actual = ours.encode(pixels).sample(torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = theirs.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # diffusers takes 20 s for it on a CPU without bfloat16
def test_bfloat16_rounds_no_worse(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path, (32, 64, 64, 128))
    pixels = torch.rand(1, 3, 17, 32, 48) * 2 - 1
    exact = moments(theirs, pixels)
    their_error = relative(moments(theirs.bfloat16(), pixels.bfloat16()), exact)
    our_error = relative(vae.load_vae(str(tmp_path), dtype=torch.bfloat16).encode(pixels).parameters, exact)
    assert our_error <= their_error, (our_error, their_error)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VideoVAE]:
    """128, 256, 256, 512 channels: 92 million parameters."""
    folder = tmp_path_factory.mktemp("real")
    theirs = saved_by_diffusers(folder, (128, 256, 256, 512))
    theirs.decoder = None
    return theirs, vae.load_vae(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_frames", "height", "width", "batch"),
    [
        *((1, 64, 96, 2), (5, 48, 32, 1), (9, 32, 64, 2), (13, 48, 32, 1)),
        *((16, 32, 48, 1), (17, 40, 64, 1), (33, 32, 48, 1), (49, 48, 32, 1)),
    ],
)
def test_real_architecture_in_float32(
    real: tuple[Any, VideoVAE], num_frames: int, height: int, width: int, batch: int
) -> None:
    theirs, ours = real
    pixels = torch.rand(batch, 3, num_frames, height, width) * 2 - 1
    assert relative(ours.encode(pixels).parameters, moments(theirs, pixels)) <= 1e-5


@pytest.mark.slow
def test_real_architecture_in_bfloat16(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path, (128, 256, 256, 512))
    theirs.decoder = None
    pixels = torch.rand(1, 3, 17, 64, 96) * 2 - 1
    exact = moments(theirs, pixels)
    their_error = relative(moments(theirs.bfloat16(), pixels.bfloat16()), exact)
    our_error = relative(vae.load_vae(str(tmp_path), dtype=torch.bfloat16).encode(pixels).parameters, exact)
    assert our_error <= their_error, (our_error, their_error)
