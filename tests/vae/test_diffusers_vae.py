"""Other VAEs through diffusers: what the model itself computes, compression and normalisation as it states them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE
from vae.checkpoints.diffusers_vae import PROVEN
from vae.checkpoints.wan import WAN_CLASSES

diffusers = pytest.importorskip("diffusers")

TINY: dict[str, dict[str, Any]] = {
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.476986,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLHunyuanVideo15": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8, 8),
        "layers_per_block": 1,
        "scaling_factor": 1.03682,
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (16, 32, 64),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "AutoencoderKLMochi": {
        "latent_channels": 4,
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
        "latents_mean": (0.1, -0.2, 0.3, 0.0),
        "latents_std": (1.0, 2.0, 0.5, 1.5),
        "scaling_factor": 1.5,
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
        "latents_mean": [0.1 * i for i in range(8)],
        "latents_std": [1.0 + 0.1 * i for i in range(8)],
    },
}

COMPRESSION = {
    "AutoencoderKLHunyuanVideo": (4, 8),
    "AutoencoderKLLTXVideo": (8, 32),
    "AutoencoderKLHunyuanVideo15": (4, 16),
    "AutoencoderKLLTX2Video": (8, 32),
    "AutoencoderKLMochi": (6, 8),
    "AutoencoderKLCosmos": (8, 8),
}

WITH_BUFFERS = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")
"""Classes whose normalisation is in the weights and not in the config."""


@pytest.fixture(scope="module", params=list(TINY))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VideoVAE]:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**TINY[name]).eval()
    if name in WITH_BUFFERS:
        model.latents_mean.copy_(torch.linspace(-1, 1, 8))
        model.latents_std.copy_(torch.linspace(1, 2, 8))
    model.save_pretrained(folder)
    return model, vae.load_vae(str(folder))


def clip(info: vae.VAEInfo, num_latent: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = 2 * info.space_compression
    num_frames = 1 + (num_latent - 1) * info.time_compression
    return torch.randint(0, 256, (1, 3, num_frames, size, size), generator=generator, dtype=torch.uint8)


def test_moments_are_the_models_own(pair: tuple[Any, VideoVAE]) -> None:
    theirs, ours = pair
    pixels = clip(ours.info)
    with torch.no_grad():
        expected = theirs.encode(pixels.float() / 127.5 - 1.0).latent_dist
    actual = ours.encode(pixels)
    torch.testing.assert_close(actual.mode(), expected.mode())
    if hasattr(expected, "std"):
        torch.testing.assert_close(actual.std, expected.std)
    else:
        assert actual.std.max() < 1e-6


def test_moments_are_those_of_diffusers_own_preprocessing(pair: tuple[Any, VideoVAE]) -> None:
    """From uint8 frames on: the processor of the pipelines decides range, order and size, and none of our code."""
    theirs, ours = pair
    pixels = clip(ours.info, num_latent=3)
    processor = diffusers.video_processor.VideoProcessor(vae_scale_factor=ours.info.space_compression)
    prepared = processor.preprocess_video([Image.fromarray(frame) for frame in pixels[0].permute(1, 2, 3, 0).numpy()])
    with torch.no_grad():
        expected = theirs.encode(prepared).latent_dist.mode()
    actual = ours.encode(pixels).mode()
    assert (actual - expected).norm() <= 1e-6 * expected.norm()


def test_each_proven_class_is_compared_here() -> None:
    assert set(TINY) == set(PROVEN)


UNPROVEN = sorted(
    name
    for name in dir(diffusers)
    if name.startswith(("Autoencoder", "ConsistencyDecoderVAE", "VQ"))
    and name not in (*PROVEN, "AutoencoderKLCogVideoX", *WAN_CLASSES)
)
"""All other autoencoders of the installed diffusers, whatever they are called."""


@pytest.mark.parametrize("name", [*UNPROVEN, "AutoencoderKLNobody", "UNet2DModel", ""])
def test_a_class_that_is_not_proven_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    save_file({"w": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(vae.CheckpointError, match=f"its class is {name!r}.*Proven are AutoencoderKLCogVideoX"):
        vae.load_vae(str(tmp_path))


def test_info_is_what_the_model_states(pair: tuple[Any, VideoVAE]) -> None:
    theirs, ours = pair
    info = ours.info
    assert info.name == type(theirs).__name__
    assert (info.time_compression, info.space_compression) == COMPRESSION[info.name]
    pixels = clip(info, num_latent=2)
    assert tuple(ours.encode(pixels).mean.shape[1:]) == info.latent_shape(*pixels.shape[2:])
    assert not info.windowed
    assert info.schedule == "whole"
    json.dumps(info.to_json())


def test_decode_takes_scaled_latents_and_gives_the_models_pixels(pair: tuple[Any, VideoVAE]) -> None:
    theirs, ours = pair
    pixels = clip(ours.info)
    z = ours.encode(pixels).mode()
    decoded = ours.decode(ours.scale(z))
    assert decoded.shape == pixels.shape
    assert decoded.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(decoded, theirs.decode(z).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"latent must be \(B, \d+, T', H', W'\), got"):
        ours.decode(z[:, 1:])


def test_lengths_that_it_cannot_take_are_refused(pair: tuple[Any, VideoVAE]) -> None:
    info = pair[1].info
    assert info.accepts(1 + 2 * info.time_compression)
    assert not info.accepts(2 * info.time_compression)
    assert info.nearest(2 * info.time_compression) == (1 + info.time_compression, 1 + 2 * info.time_compression)
    with pytest.raises(ValueError, match=rf"takes 1 \+ {info.time_compression}k frames, got 4"):
        pair[1].encode(clip(info)[:, :, :1].repeat(1, 1, 4, 1, 1))
    with pytest.raises(ValueError, match="whole clips only"):
        pair[1].encode_window(clip(info))


def test_scaling_is_the_pipelines(pair: tuple[Any, VideoVAE]) -> None:
    """(z - mean) * factor / std, with whatever of the three the class has; per latent frame for Cosmos."""
    theirs, ours = pair
    z = torch.randn(1, ours.info.latent_channels, 2, 3, 3)
    config = TINY[ours.info.name]
    factor = config.get("scaling_factor", 1.0)
    mean, std = config.get("latents_mean", 0.0), config.get("latents_std", 1.0)
    if ours.info.name in WITH_BUFFERS:
        mean, std = theirs.latents_mean, theirs.latents_std
    mean, std = (torch.as_tensor(v).reshape(1, -1, 1, 1, 1) for v in (mean, std))
    if ours.info.name == "AutoencoderKLCosmos":
        mean, std = (v.reshape(1, 4, 2, 1, 1) for v in (mean, std))
    torch.testing.assert_close(ours.scale(z), (z - mean) * factor / std)
    torch.testing.assert_close(ours.unscale(ours.scale(z)), z)
    if ours.info.name == "AutoencoderKLCosmos":
        with pytest.raises(ValueError, match="scaling of 2 latent frames only, got 3"):
            ours.scale(torch.zeros(1, 4, 3, 2, 2))


def test_selfcheck_runs(pair: tuple[Any, VideoVAE]) -> None:
    pixels = clip(pair[1].info)
    assert pair[1].selfcheck((pixels.shape[2], pixels.shape[3], pixels.shape[4])) < 1e-5
    assert pair[1].selfcheck((pixels.shape[2] + 1, pixels.shape[3], pixels.shape[4])) < 1e-5


def saved(folder: Path, name: str, change: dict[str, Any] | None = None) -> str:
    """Save a random model, and change its config afterwards."""
    getattr(diffusers, name)(**TINY[name]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | (change or {})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("AutoencoderKLLTXVideo", {"temporal_compression_ratio": 16}, "expected latents"),
        ("AutoencoderKLMochi", {"latents_mean": [0.0] * 3}, "3 values for 4 latent channels"),
        ("AutoencoderKLHunyuanVideo", {"block_out_channels": [16] * 4}, "of another shape"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(vae.CheckpointError, match=message):
        vae.load_vae(saved(tmp_path, name, change))


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    where = saved(tmp_path, "AutoencoderKLHunyuanVideo")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["quant_conv.weight"]
    save_file(tensors, path)
    with pytest.raises(vae.CheckpointError, match=r"missing: quant_conv\.weight"):
        vae.load_vae(where)


@pytest.mark.parametrize("change", [{"layers_per_block": 10**9}, {"latent_channels": "wide"}])
def test_a_config_of_absurd_numbers_is_refused_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLHunyuanVideo"} | change))
    save_file({"w": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(vae.CheckpointError, match=r"layers_per_block = 1000000000|cannot be built"):
        vae.load_vae(str(tmp_path))


def test_tiling_in_time_stands_in_the_info_where_there_is_one(pair: tuple[Any, VideoVAE]) -> None:
    """diffusers encodes HunyuanVideo in tiles of 16 + 1 frames every 12, blended; no other class by default."""
    info = pair[1].info
    if info.name == "AutoencoderKLHunyuanVideo":
        assert info.time_tiling == (16, 12)
        assert info.to_json()["time_tiling"] == [16, 12]
    else:
        assert "time_tiling" not in info.to_json()
