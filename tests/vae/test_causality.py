"""Laws of the causal convolution and of the encoder: no look-ahead, and a stream in pieces is the whole clip."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vae
from vae.encoder import EncoderCache, copy_cache

MODES = ["constant", "first", "reflect"]


def in_pieces(conv: vae.CausalConv3d, x: Tensor, lengths: list[int]) -> Tensor:
    cache, outputs, start = None, [], 0
    for length in lengths:
        y, cache = conv.step(x[:, :, start : start + length], cache)
        outputs.append(y)
        start += length
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [3, (3, 1, 1), [2, 3, 3], (1, 3, 3)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_future_frames_do_not_change_past_outputs(mode: str, kernel: object, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    conv = vae.CausalConv3d(4, 4, kernel, mode, stride=stride, dilation=dilation)  # type: ignore[arg-type]
    x = torch.randn(1, 4, 17, 5, 6)
    for cut in range(1, 17):
        # A mirror reads the clip's first frames: those are the past's boundary, not its future.
        if mode == "reflect" and cut <= conv.time_pad:
            continue
        changed = x.clone()
        changed[:, :, cut:] = torch.randn(1, 4, 17 - cut, 5, 6)
        before, after = conv(x), conv(changed)
        num_safe = sum(1 for t in range(before.shape[2]) if t * stride + conv.reach - conv.time_pad < cut)
        torch.testing.assert_close(before[:, :, :num_safe], after[:, :, :num_safe])
        if num_safe < before.shape[2]:
            assert not torch.allclose(before[:, :, num_safe:], after[:, :, num_safe:])


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    mode=st.sampled_from(MODES),
    kernel=st.sampled_from([1, 2, 3, 4]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    fast=st.booleans(),
)
def test_a_clip_in_pieces_is_the_whole_clip(
    data: st.DataObject, mode: str, kernel: int, stride: int, dilation: int, fast: bool
) -> None:
    torch.manual_seed(0)
    conv = vae.CausalConv3d(4, 3, (kernel, 3, 3), mode, stride=stride, dilation=dilation)  # type: ignore[arg-type]
    # The first piece must hold the frames that a mirror shows, and every piece must give an output.
    shortest = max(conv.time_pad + 1, conv.reach + 1 - conv.time_pad, stride)
    lengths = data.draw(st.lists(st.integers(shortest, 7 + shortest), min_size=1, max_size=4))
    if stride > conv.reach + 1:
        lengths = [length * stride for length in lengths]
    x = torch.randn(2, 4, sum(lengths), 4, 3)
    with torch.set_grad_enabled(not fast):
        torch.testing.assert_close(in_pieces(conv, x, lengths), conv(x), rtol=1e-4, atol=1e-5)


def test_the_cache_shares_no_memory_with_the_input() -> None:
    conv = vae.CausalConv3d(4, 4, 3, "first")
    x = torch.randn(1, 4, 5, 4, 4)
    _, cache = conv.step(x)
    kept = cache.clone()
    x.zero_()
    assert torch.equal(cache, kept)
    assert cache.shape[2] == 2
    assert cache.untyped_storage().nbytes() == cache.numel() * cache.element_size()


class Frozen(nn.GroupNorm):
    """GroupNorm with statistics that no input can change: the encoder's only look-ahead taken away."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None, None] + self.bias[:, None, None, None]


@pytest.fixture
def encoder() -> vae.Encoder3D:
    torch.manual_seed(0)
    return vae.Encoder3D(
        ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), in_channels=3, resolution=32, z_channels=4
    ).eval()


def test_the_encoder_looks_ahead_only_through_its_statistics(encoder: vae.Encoder3D) -> None:
    x = torch.randn(1, 3, 17, 8, 8)
    changed = x.clone()
    changed[:, :, 9:] = torch.randn(1, 3, 8, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(encoder(x)[:, :, :3], encoder(changed)[:, :, :3], atol=1e-3)
        for module in encoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.__class__ = Frozen
        torch.testing.assert_close(encoder(x)[:, :, :3], encoder(changed)[:, :, :3])
        assert not torch.allclose(encoder(x)[:, :, 3:], encoder(changed)[:, :, 3:], atol=1e-3)


def test_with_frozen_statistics_windows_are_the_whole_clip(encoder: vae.Encoder3D) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.__class__ = Frozen
    x = torch.randn(1, 3, 33, 8, 8)
    with torch.no_grad():
        cache: EncoderCache = {}
        parts = []
        for start, stop in zip((0, *accumulate((9, 8, 8, 8))), accumulate((9, 8, 8, 8)), strict=False):
            h, cache = encoder.step(x[:, :, start:stop], cache)
            parts.append(h)
        torch.testing.assert_close(torch.cat(parts, dim=2), encoder(x), rtol=1e-4, atol=1e-5)


def test_a_copied_cache_survives_a_step(encoder: vae.Encoder3D) -> None:
    x = torch.randn(1, 3, 8, 8, 8)
    with torch.no_grad():
        _, cache = encoder.step(x)
        kept = copy_cache(cache)
        first, _ = encoder.step(x, cache)
        second, _ = encoder.step(x, kept)
    assert torch.equal(first, second)


def test_plain_and_fast_paths_agree(encoder: vae.Encoder3D) -> None:
    x = torch.randn(2, 3, 9, 16, 24)
    slow = encoder(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), slow, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.step(x)[0], slow, rtol=1e-4, atol=1e-5)


def test_inputs_are_left_as_they_are(encoder: vae.Encoder3D) -> None:
    x = torch.randn(1, 3, 9, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    kept = x.clone()
    block = vae.ResnetBlock3D(in_channels=32, dropout=0.0, temb_channels=0, pad_mode="first")
    h = torch.randn(1, 32, 3, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    kept_h = h.clone()
    with torch.no_grad():
        encoder(x)
        block(h)
    assert torch.equal(x, kept)
    assert torch.equal(h, kept_h)


def test_gradients_reach_every_parameter(encoder: vae.Encoder3D) -> None:
    encoder.train()
    encoder(torch.randn(1, 3, 5, 8, 8)).square().mean().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


CONFIG = {
    "ch": 32,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "in_channels": 3,
    "resolution": 32,
    "z_channels": 4,
    "temporal_compress_times": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_compress_times": 6}, "power of two, got 6"),
        ({"temporal_compress_times": 4}, "at most 2 .2 levels., got 4"),
        ({"ch": 48}, "multiples of 32 .* got 48"),
        ({"ch_mult": ()}, "at least one level"),
        ({"num_res_blocks": 0}, "at least one level and one block"),
        ({"pad_mode": "replicate"}, "constant, first, reflect, got 'replicate'"),
    ],
)
def test_bad_configurations_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.Encoder3D(**CONFIG | change)  # type: ignore[arg-type]


def test_unknown_arguments_are_refused_and_idle_ones_accepted() -> None:
    with pytest.raises(TypeError, match="no argument chanels"):
        vae.Encoder3D(**CONFIG, chanels=3)  # type: ignore[arg-type]
    vae.Encoder3D(**CONFIG, gather_norm=True, out_ch=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 9, 8, 8), "must be .B, 3, T, H, W."),
        ((1, 4, 9, 8, 8), "must be .B, 3, T, H, W., got .1, 4, 9, 8, 8."),
        ((1, 3, 2, 8, 8), "2 frames cannot be compressed 2x"),
        ((1, 3, 9, 8, 1), "height and width must be at least 2"),
    ],
)
def test_bad_inputs_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.Encoder3D(**CONFIG)(torch.zeros(shape))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vae.CausalConv3d(4, 4, (3, 3)), "three of them"),
        (lambda: vae.CausalConv3d(4, 4, (3, 2, 3)), "must be odd, got .2, 3."),
        (lambda: vae.CausalConv3d(4, 4, 3, stride=0), "at least 1"),
        (lambda: vae.CausalConv3d(4, 4, 3)(torch.zeros(1, 3, 4, 4, 4)), "must be .B, 4, T, H, W."),
        (lambda: vae.CausalConv3d(4, 4, 3, stride=2)(torch.zeros(1, 4, 1, 4, 4)), "1 frames after 1 of the past"),
        (lambda: vae.CausalConv3d(4, 4, 1, stride=2).step(torch.zeros(1, 4, 3, 4, 4)), "multiples of the stride"),
        (lambda: vae.ResnetBlock3D(in_channels=48, dropout=0.0), "multiple of 32 .* got 48"),
        (lambda: vae.DownSample3D(4, False, out_channels=8), "needs with_conv=True"),
        (lambda: vae.get_timestep_embedding(torch.zeros(3), 3), "embedding_dim >= 4"),
    ],
)
def test_bad_arguments_of_blocks_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
