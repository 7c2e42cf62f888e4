"""VideoVAE over `tiny`: one result however it is asked for, latents that invert, and errors that name the value."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE
from vae.checkpoints.checkpoint import weights_sha256
from vae.shapes import window_lengths


@pytest.fixture(scope="module")
def tiny() -> VideoVAE:
    return vae.load_vae("tiny")


def noise(num_frames: int, height: int = 16, width: int = 24, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (batch, 3, num_frames, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("num_frames", [1, 5, 9, 13, 16, 17, 33])
def test_windows_by_hand_are_encode(tiny: VideoVAE, num_frames: int) -> None:
    pixels = noise(num_frames)
    whole = tiny.encode(pixels)
    cache, start, moments = None, 0, []
    for length in window_lengths(num_frames, "batched8"):
        h, cache = tiny.encode_window(pixels[:, :, start : start + length], cache)
        moments.append(h)
        start += length
    assert torch.equal(torch.cat(moments, dim=2), whole.parameters)
    assert tuple(whole.mean.shape[1:]) == tiny.info.latent_shape(num_frames, 16, 24)


def test_a_checkpoint_without_a_decoder_says_so(tiny: VideoVAE, tmp_path: Path) -> None:
    vae.save_vae(tiny, tmp_path / "encoder.safetensors")
    with pytest.raises(vae.CheckpointError, match="has no decoder that can be run"):
        vae.load_vae(str(tmp_path / "encoder.safetensors")).decode(torch.zeros(1, 16, 1, 2, 2))


def test_a_state_can_be_continued_twice(tiny: VideoVAE) -> None:
    _, cache = tiny.encode_window(noise(9))
    first, _ = tiny.encode_window(noise(8), cache)
    again, _ = tiny.encode_window(noise(8), cache)
    fresh, _ = tiny.encode_window(noise(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, fresh)


def test_uint8_is_the_same_as_floats(tiny: VideoVAE) -> None:
    pixels = noise(9)
    floats = pixels.float() / 127.5 - 1.0
    assert floats.min() == -1.0
    assert floats.max() == 1.0
    assert torch.equal(tiny.encode(pixels).parameters, tiny.encode(floats).parameters)


def test_same_bits_at_every_position_of_a_run(tiny: VideoVAE) -> None:
    pixels = noise(17)
    first = tiny.encode(pixels).parameters
    tiny.encode(noise(33, 32, 16))
    assert torch.equal(tiny.encode(pixels.clone()).parameters, first)


def test_same_bits_in_every_process(tiny: VideoVAE) -> None:
    code = (
        f"import torch, vae; torch.set_num_threads({torch.get_num_threads()}); "
        "from tests.vae.test_autoencoder import noise; "
        "from vae.checkpoints.checkpoint import weights_sha256; "
        "print(weights_sha256({'z': vae.load_vae('tiny').encode(noise(17)).parameters}))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == weights_sha256({"z": tiny.encode(noise(17)).parameters})


def test_latents_can_be_trained_on(tiny: VideoVAE) -> None:
    weight = torch.ones(1, requires_grad=True)
    (tiny.encode(noise(5)).mode() * weight).sum().backward()
    assert weight.grad is not None


def test_a_batch_is_its_clips(tiny: VideoVAE) -> None:
    pixels = noise(9, batch=2)
    both = tiny.encode(pixels).parameters
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], tiny.encode(pixels[i : i + 1]).parameters, rtol=1e-4, atol=1e-4)


def test_whole_schedule_encodes_in_one_pass(tiny: VideoVAE) -> None:
    whole = vae.load_vae("tiny", schedule="whole")
    assert not whole.info.windowed
    torch.testing.assert_close(whole.encode(noise(9)).parameters, tiny.encode(noise(9)).parameters)
    assert not torch.allclose(whole.encode(noise(17)).parameters, tiny.encode(noise(17)).parameters, atol=1e-2)
    with pytest.raises(ValueError, match="whole clips only"):
        whole.encode_window(noise(9))
    with pytest.raises(ValueError, match="one window per clip"):
        whole.encode_windows(noise(17), (9, 8), 0)


def test_latents_of_tiny_have_sane_magnitude(tiny: VideoVAE) -> None:
    ramp = torch.linspace(0, 255, 48).expand(1, 3, 9, 32, 48).to(torch.uint8)
    for pixels in (noise(9, 32, 48), ramp):
        posterior = tiny.encode(pixels)
        assert 0.2 < float(posterior.mean.std()) < 5.0
        assert 0.001 < float(posterior.std.mean()) < 0.2


def test_compute_dtype_does_not_change_the_digest(tiny: VideoVAE) -> None:
    half = vae.load_vae("tiny", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.info == tiny.info
    assert half.encode(noise(9)).mean.dtype == torch.bfloat16


def test_info_is_json(tiny: VideoVAE) -> None:
    """A field that came later is left out at its default, so that the Spec of an older output keeps its bytes."""
    fields = asdict(tiny.info)
    assert [fields.pop(name) for name in ("exact_context", "time_tiling", "exact_statistics")] == [None, None, False]
    assert json.loads(json.dumps(tiny.info.to_json())) == fields
    assert replace(tiny.info, exact_context=3).to_json()["exact_context"] == 3


def test_scale_inverts(tiny: VideoVAE) -> None:
    z = torch.randn(2, 16, 3, 4, 5)
    shift = tuple(0.1 * i for i in range(16))
    scale = tuple(1.0 + 0.1 * i for i in range(16))
    other = VideoVAE(tiny.encoder, replace(tiny.info, scale=scale, shift=shift))
    scaled = other.scale(z)
    torch.testing.assert_close(scaled[:, 3], (z[:, 3] - 0.3) * 1.3)
    torch.testing.assert_close(other.unscale(scaled), z)


def test_selfcheck_measures_the_rounding(tiny: VideoVAE) -> None:
    assert tiny.selfcheck((17, 32, 32)) < 1e-5
    half = vae.load_vae("tiny", dtype=torch.bfloat16).selfcheck((17, 32, 32))
    assert 1e-4 < half < 0.05


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 9, 16, 16), "must be .B, 3, T, H, W., got .3, 9, 16, 16."),
        (torch.zeros(1, 4, 9, 16, 16), "got .1, 4, 9, 16, 16."),
        (torch.zeros(1, 3, 9, 17, 16), "multiples of 8, got 17x16"),
        (torch.zeros(1, 3, 9, 16, 4), "multiples of 8, got 16x4"),
        (torch.zeros(1, 3, 0, 16, 16), "at least 1, got 0"),
        (torch.zeros(0, 3, 9, 16, 16), "at least one clip"),
        (torch.zeros(1, 3, 9, 16, 16, dtype=torch.int64), "uint8 .* got torch.int64"),
    ],
)
def test_bad_pixels_are_refused(tiny: VideoVAE, pixels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encode(pixels)


def test_bad_windows_are_refused(tiny: VideoVAE) -> None:
    for windows, num_context in (((9, 8), 2), ((9, 7), 0), ((17,), -1), ((), 0)):
        with pytest.raises(ValueError, match="add up"):
            tiny.encode_windows(noise(17), windows, num_context)
    with pytest.raises(ValueError, match="3 frames cannot be compressed"):
        vae.load_vae("tiny", schedule="whole").encode(noise(3))
