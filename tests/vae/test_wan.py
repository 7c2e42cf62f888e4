"""Wan 2.1 and Wan 2.2: the same weights in diffusers and here give the same moments, whole and window by window."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae
from tests.vae.wan_models import VARIANTS, moments, random_wan, relative
from vae import kernels
from vae.autoencoder import VideoVAE
from vae.wan import WanEncoder, grouped_mean, patchify

pytest.importorskip("diffusers")

Pair = tuple[Any, Any, VideoVAE]
"""diffusers in float32, diffusers in float64, ours."""


@pytest.fixture(scope="module", params=list(VARIANTS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Full depth, a twelfth of the width."""
    folder = tmp_path_factory.mktemp("wan")
    theirs = random_wan(request.param)
    theirs.save_pretrained(folder)
    return theirs, copy.deepcopy(theirs).double(), vae.load_vae(str(folder))


def noise(batch: int, num_frames: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, num_frames, height, width, generator=torch.Generator().manual_seed(num_frames)) * 2 - 1


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "batch"),
    [
        *((1, 48, 80, 1), (1, 32, 32, 2), (5, 48, 80, 2), (9, 48, 80, 1), (17, 48, 32, 1), (17, 32, 32, 2)),
        *((33, 32, 48, 1), (49, 32, 48, 1), (81, 32, 48, 1)),
    ],
)
def test_every_length(models: Pair, num_frames: int, height: int, width: int, batch: int) -> None:
    """Odd numbers of cells too (48x80 is 3x5 for Wan 2.2). The weights' exact result is diffusers' in float64.

    diffusers in float32 is 3e-7 to 8e-7 away from it by itself, so the two may differ by a little more.
    """
    theirs, exact, ours = models
    pixels = noise(batch, num_frames, height, width)
    actual = ours.encode(pixels).parameters
    assert relative(actual, moments(exact, pixels.double())) <= 1e-6
    assert relative(actual, moments(theirs, pixels)) <= 1e-6


def test_plain_and_fast_paths_agree(models: Pair) -> None:
    ours = models[2]
    pixels = noise(2, 9, 32, 48)
    with kernels.plain():
        expected = ours.encode(pixels).parameters
    assert relative(ours.encode(pixels).parameters, expected) <= 2e-6


def test_windows_of_any_length_are_the_whole_clip(models: Pair) -> None:
    encoder = models[2].encoder
    assert isinstance(encoder, WanEncoder)
    pixels = noise(1, 33, 32, 32)
    with torch.no_grad():
        whole = encoder(pixels)
        for lengths in ([1, *[4] * 8], [9, 8, 16], [5, 4, 12, 4, 8], [33]):
            parts, cache = [], None
            for piece in pixels.split(lengths, dim=2):
                h, cache = encoder.step(piece, cache)
                parts.append(h)
            assert relative(torch.cat(parts, dim=2), whole) <= 1e-6, lengths


def test_odd_sizes_of_wan_2_1() -> None:
    """diffusers takes sizes that are no multiple of 8 and drops the rest; so does the encoder, but not VideoVAE."""
    theirs = random_wan("2.1")
    encoder = WanEncoder(ch=8)
    encoder.load_state_dict(_tensors(theirs))
    pixels = noise(1, 9, 37, 51)
    with torch.no_grad():
        assert relative(encoder(pixels), moments(theirs, pixels)) <= 1e-6


def _tensors(model: Any) -> dict[str, Tensor]:
    from vae.checkpoints.wan import wan_part

    return wan_part(model.state_dict(), model.config.num_res_blocks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_latent_depends_on_112_frames_before_its_last_and_on_no_other(variant: str) -> None:
    """The receptive field in time that docs/latents.md states, by the gradient in float64."""
    theirs = random_wan(variant)
    encoder = WanEncoder(
        ch=8,
        z_channels=VARIANTS[variant]["z_dim"],
        patch_size=VARIANTS[variant].get("patch_size", 1),
        shortcuts=VARIANTS[variant].get("is_residual", False),
    ).double()
    encoder.load_state_dict(_tensors(theirs))
    assert encoder.reach == 112
    pixels = noise(1, 129, 16, 16).double().requires_grad_()
    latent = 31
    encoder(pixels)[:, :, latent].square().sum().backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    seen = pixels.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == list(range(4 * latent - 112, 4 * latent + 1))


@pytest.mark.slow  # diffusers takes seconds for it on a CPU without bfloat16
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_rounds_no_worse(tmp_path: Path, variant: str) -> None:
    theirs = random_wan(variant, base_dim=32)
    theirs.save_pretrained(tmp_path)
    pixels = noise(1, 17, 32, 48)
    exact = moments(copy.deepcopy(theirs).double(), pixels.double())
    their_error = relative(moments(theirs.bfloat16(), pixels.bfloat16()), exact)
    our_error = relative(vae.load_vae(str(tmp_path), dtype=torch.bfloat16).encode(pixels).parameters, exact)
    assert our_error <= their_error, (our_error, their_error)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "base_dim"), [("2.1", 96), ("2.2", 160)])
def test_real_width(tmp_path: Path, variant: str, base_dim: int) -> None:
    """Chains of 10,000 products round more: diffusers itself is 0.8e-6 to 1.5e-6 away from float64 here."""
    theirs = random_wan(variant, base_dim=base_dim)
    theirs.decoder = None
    tensors = _tensors(theirs)
    encoder = WanEncoder(
        ch=base_dim,
        z_channels=VARIANTS[variant]["z_dim"],
        patch_size=VARIANTS[variant].get("patch_size", 1),
        shortcuts=VARIANTS[variant].get("is_residual", False),
    )
    encoder.load_state_dict(tensors)
    pixels = noise(1, 17, 32, 48)
    with torch.no_grad():
        actual, expected = encoder(pixels), moments(theirs, pixels)
    assert relative(actual, expected) <= 3e-6
    assert relative(actual, moments(theirs.double(), pixels.double())) <= 2e-6


def test_patches_and_shortcuts_are_diffusers_own() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AvgDown3D
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify as their_patchify

    x = torch.randn(2, 6, 5, 8, 12)
    assert torch.equal(patchify(x, 2), their_patchify(x, 2))
    for time, space, channels in ((1, 2, 6), (2, 2, 12), (2, 2, 24), (2, 2, 6), (1, 1, 6), (2, 1, 6), (1, 2, 24)):
        for num_frames in (1, 4, 5):
            expected = AvgDown3D(6, channels, time, space)(x[:, :, :num_frames])
            actual = grouped_mean(x[:, :, :num_frames], time, space, channels)
            torch.testing.assert_close(actual, expected, msg=f"{time}x{space}, {channels} channels")
    with pytest.raises(ValueError, match="cannot average"):
        grouped_mean(x, 1, 2, 7)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 32, 32), r"1 \+ 4k or 4k frames at the start, got 3"),
        ((1, 4, 1, 32, 32), r"\(B, 3, T, H, W\)"),
        ((1, 3, 1, 4, 32), "at least 8"),
    ],
)
def test_wrong_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanEncoder(ch=8).step(torch.zeros(shape))


def test_frames_after_the_start_come_by_fours() -> None:
    encoder = WanEncoder(ch=8)
    with torch.no_grad():
        cache = encoder.step(torch.zeros(1, 3, 1, 16, 16))[1]
        with pytest.raises(ValueError, match="multiples of 4 frames, got 5"):
            encoder.step(torch.zeros(1, 3, 5, 16, 16), cache)
    with pytest.raises(ValueError, match=r"1 \+ 4k frames, got 4"):
        encoder(torch.zeros(1, 3, 4, 16, 16))


@pytest.mark.parametrize("changes", [{"ch": 0}, {"time_downsample": (True,)}, {"num_res_blocks": 0}])
def test_wrong_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|need time_downsample"):
        WanEncoder(**({"ch": 8} | changes))
