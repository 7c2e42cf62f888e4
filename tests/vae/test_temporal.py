"""The temporal blocks: which branch alpha weighs, what needs timesteps, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vae

SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 4,
}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if not name.endswith("mix_factor"):
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.mark.parametrize(("alpha", "spatial"), [(0.0, 1.0), (1.0, 0.0)])
def test_alpha_of_the_residual_block_weighs_the_temporal_branch(alpha: float, spatial: float) -> None:
    block = vae.VideoResBlock(32, in_channels=32, temb_channels=0, alpha=alpha, merge_strategy="fixed")
    randomised(block)
    x = torch.randn(6, 32, 4, 4)
    assert block.spatial_weight().item() == spatial
    same = torch.allclose(block(x, timesteps=3), block(x, skip_video=True))
    assert same == (alpha == 0.0)


@pytest.mark.parametrize(("alpha", "spatial"), [(0.0, 0.0), (1.0, 1.0)])
def test_alpha_of_the_attention_block_weighs_the_spatial_branch(alpha: float, spatial: float) -> None:
    block = vae.VideoBlock(32, alpha=alpha, merge_strategy="fixed")
    randomised(block)
    x = torch.randn(6, 32, 4, 4)
    assert block.spatial_weight().item() == spatial
    assert torch.allclose(block(x, 3), block(x, skip_video=True)) == (alpha == 1.0)


def test_a_learned_alpha_starts_halfway() -> None:
    for block in (vae.VideoResBlock(32, in_channels=32), vae.VideoBlock(32)):
        assert block.get_alpha().item() == 0.5
        assert isinstance(block.mix_factor, torch.nn.Parameter)
        assert "mix_factor" in block.state_dict()


def test_a_fresh_residual_block_is_its_image_part() -> None:
    block = vae.VideoResBlock(32, in_channels=32, temb_channels=0).eval()
    x = torch.randn(4, 32, 4, 4)
    torch.testing.assert_close(block(x, timesteps=2), block(x, skip_video=True))


def test_frames_of_different_clips_do_not_mix() -> None:
    decoder = randomised(vae.VideoDecoder(**SMALL, time_mode="all"))
    z = torch.randn(6, 4, 8, 8)
    both = decoder(z, timesteps=3)
    torch.testing.assert_close(both[:3], decoder(z[:3], timesteps=3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[3:], decoder(z[3:], timesteps=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("time_mode", ["all", "conv-only", "attn-only"])
def test_frames_of_one_clip_do_mix_and_can_be_kept_apart(time_mode: str) -> None:
    decoder = randomised(vae.VideoDecoder(**SMALL, time_mode=time_mode))
    z = torch.randn(3, 4, 8, 8)
    other = z.clone()
    other[2] += 1.0
    assert not torch.allclose(decoder(z, timesteps=3)[0], decoder(other, timesteps=3)[0])
    alone = decoder(z, skip_video=True)
    torch.testing.assert_close(alone[0], decoder(other, skip_video=True)[0])
    torch.testing.assert_close(alone[:1], decoder(z[:1], skip_video=True), rtol=1e-4, atol=1e-4)


def test_shape_of_the_documented_example() -> None:
    config = SMALL | {"ch_mult": [1, 1, 1, 1], "attn_resolutions": [], "resolution": 256}
    decoder = vae.VideoDecoder(**config, video_kernel_size=[3, 1, 1]).eval()
    with torch.no_grad():
        assert decoder(torch.randn(4, 4, 4, 4), timesteps=2).shape == (4, 3, 32, 32)


def test_timesteps_may_stand_in_the_constructor() -> None:
    decoder = randomised(vae.VideoDecoder(**SMALL, timesteps=2))
    z = torch.randn(4, 4, 8, 8)
    torch.testing.assert_close(decoder(z), decoder(z, timesteps=2))
    block = vae.VideoResBlock(32, in_channels=32, temb_channels=0, timesteps=2)
    assert block(torch.randn(4, 32, 4, 4)).shape == (4, 32, 4, 4)


def test_both_names_of_the_skip_flag() -> None:
    x = torch.randn(2, 32, 4, 4)
    for block in (vae.VideoBlock(32), vae.MemoryEfficientVideoBlock(32)):
        assert torch.equal(block(x, skip_video=True), block(x, skip_time_block=True))


def test_bfloat16_needs_no_autocast() -> None:
    decoder = vae.VideoDecoder(**SMALL, time_mode="all").bfloat16()
    assert decoder(torch.randn(2, 4, 8, 8, dtype=torch.bfloat16), timesteps=2).dtype == torch.bfloat16


def test_gradients_reach_every_parameter() -> None:
    decoder = vae.VideoDecoder(**SMALL, time_mode="all")
    decoder(torch.randn(2, 4, 8, 8), timesteps=2).square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_checkpointing_changes_memory_not_values() -> None:
    block = vae.VideoTransformerBlock(32, checkpoint=True)
    x = torch.randn(4, 5, 32, requires_grad=True)
    with_recompute = block(x, 2)
    block.checkpoint = False
    torch.testing.assert_close(with_recompute, block(x, 2))


@pytest.mark.parametrize(
    ("attn_type", "name"), [("vanilla", "VideoBlock"), ("vanilla-xformers", "MemoryEfficientVideoBlock")]
)
def test_make_time_attn_builds_blocks(attn_type: str, name: str) -> None:
    assert type(vae.make_time_attn(32, attn_type)).__name__ == name


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vae.VideoDecoder(**SMALL)(zeros(2, 4, 8, 8)), "timesteps .* must be given"),
        (lambda: vae.VideoDecoder(**SMALL)(zeros(3, 4, 8, 8), timesteps=2), "divide the 3 rows .* got 2"),
        (lambda: vae.VideoDecoder(**SMALL)(zeros(2, 3, 8, 8), timesteps=2), "z must be .*4, h, w.*got .2, 3, 8, 8"),
        (
            lambda: vae.VideoDecoder(**SMALL, time_mode="only-last-conv"),
            "all, conv-only, attn-only, got 'only-last-conv'",
        ),
        (lambda: vae.VideoDecoder(**SMALL, merge_strategy="none"), "fixed, learned, got 'none'"),
        (lambda: vae.VideoDecoder(**SMALL, attn_type="linear"), "vanilla-xformers, none, got 'linear'"),
        (lambda: vae.VideoDecoder(**SMALL, use_linear_attn=True), "use_linear_attn=True is not implemented"),
        (lambda: vae.VideoDecoder(**SMALL, video_kernel_size=2), "odd int or three of them, got 2"),
        (lambda: vae.VideoDecoder(**SMALL | {"ch": 40}), "multiple of 32 .* got 80"),
        (lambda: vae.make_time_attn(32, "none"), "vanilla, vanilla-xformers .* got 'none'"),
        (lambda: vae.make_time_attn(32, attn_kwargs={"a": 1}), "have no effect"),
        (
            lambda: vae.VideoResBlock(32, in_channels=32, temb_channels=0)(zeros(1, 32, 2, 2), zeros(1, 4)),
            "temb_channels=0",
        ),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="time_kernel"):
        vae.VideoDecoder(**SMALL, time_kernel=3)
