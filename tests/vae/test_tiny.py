"""`tiny` comes with the package: its decoder has the shapes of its encoder, and its weights are these."""

from __future__ import annotations

import pytest
import torch

import vae
from vae.checkpoints.tiny import DECODER_CONFIG, read_tiny
from vae.decoder import Decoder3D, spread


def decoder() -> Decoder3D:
    model = Decoder3D(**DECODER_CONFIG)
    model.load_state_dict(read_tiny().decoder)
    return model.eval()


@pytest.mark.parametrize("num_latent_frames", [1, 2, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2)])
def test_pixels_have_the_shape_that_was_encoded(num_latent_frames: int, height: int, width: int) -> None:
    model, num_frames = vae.load_vae("tiny"), 4 * num_latent_frames - 3
    latent = torch.randn(2, 16, num_latent_frames, height, width)
    pixels = model.decode(latent)
    assert pixels.shape == (2, 3, num_frames, 8 * height, 8 * width)
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    assert model.encode(pixels).mode().shape == latent.shape


def test_spreading_puts_each_channel_where_it_belongs() -> None:
    x = torch.randn(2, 3 * 2 * 4 * 4, 5, 6, 7)
    spreaded = spread(x, 2, 4)
    for colour, t, y, x_ in ((0, 0, 0, 0), (2, 1, 3, 2), (1, 0, 1, 3)):
        channel = ((colour * 2 + t) * 4 + y) * 4 + x_
        assert torch.equal(spreaded[:, colour, t::2, y::4, x_::4], x[:, channel])


def test_a_later_latent_frame_changes_no_earlier_frame_of_the_linear_part() -> None:
    model, z = decoder(), torch.randn(1, 16, 4, 3, 3)
    changed = z.clone()
    changed[:, :, 3] += 1
    before, after = (spread(model.linear(one), 4, 8)[:, :, 3:] for one in (z, changed))
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


@pytest.mark.parametrize("shape", [(16, 1, 2, 2), (1, 15, 1, 2, 2)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z must be \(B, 16, T', H', W'\), got"):
        decoder()(torch.zeros(shape))


def test_the_weights_are_these() -> None:
    """Outputs hold this digest in their Spec: other weights are another VAE, and need another name."""
    info = vae.load_vae("tiny").info
    assert info.name == "tiny"
    assert info.weights_sha256 == "1c5477231553c6d53255cefbfb2308bd5cb40ec61e92da11a5578f18f413c767"
