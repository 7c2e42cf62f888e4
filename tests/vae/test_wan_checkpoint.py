"""Wan's two formats: the same weights give the same VAE and the same Spec; what does not fit is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vae
from tests.vae.wan_models import VARIANTS, moments, original_names, random_wan, relative
from vae.checkpoints.wan_latents import LATENTS

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(variant: str) -> Any:
    return random_wan(variant, **SMALL)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def pixels(info: vae.VAEInfo) -> Tensor:
    size = 2 * info.space_compression
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 3, 9, size, size), generator=generator, dtype=torch.uint8)


def test_both_formats_give_the_same_vae(model: Any, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "Wan_VAE.pth"
    torch.save(original_names(model), path)
    converted = tmp_path / "converted.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in original_names(model).items()}, converted)
    from_folder = vae.load_vae(str(folder))
    expected = from_folder.info.to_json()
    scale, shift = expected.pop("scale"), expected.pop("shift")
    assert expected["config"].pop("latents_mean") == shift
    assert expected["config"].pop("latents_std") == pytest.approx([1 / value for value in scale])
    assert shift == [0.01 * i for i in range(len(shift))]
    assert scale == [1 / (1 + 0.01 * i) for i in range(len(scale))]
    mean, std = LATENTS[len(scale)]
    for where in (path, converted):
        other = vae.load_vae(str(where))
        info = other.info.to_json()
        assert info.pop("shift") == info["config"].pop("latents_mean") == list(mean)
        assert info["config"].pop("latents_std") == pytest.approx(list(std))
        assert info.pop("scale") == [1 / value for value in std]
        assert info == expected
        x = pixels(other.info)
        assert torch.equal(other.encode(x).parameters, from_folder.encode(x).parameters)


def test_our_own_format_keeps_everything(folder: Path, tmp_path: Path) -> None:
    before = vae.load_vae(str(folder))
    vae.save_vae(before, tmp_path / "ours.safetensors")
    after = vae.load_vae(str(tmp_path / "ours.safetensors"))
    assert after.info == before.info
    assert torch.equal(after.encode(pixels(after.info)).parameters, before.encode(pixels(before.info)).parameters)


def test_info_says_what_a_job_needs(variant: str, folder: Path) -> None:
    info = vae.load_vae(str(folder)).info
    channels, space = (48, 16) if variant == "2.2" else (16, 8)
    assert (info.name, info.latent_channels, info.space_compression) == ("AutoencoderKLWan", channels, space)
    assert (info.schedule, info.windowed, info.time_compression) == ("causal4", True, 4)
    assert [info.accepts(n) for n in (1, 4, 5, 8, 9, 81)] == [True, False, True, False, True, True]
    assert info.latent_shape(81, 480, 832) == (channels, 21, 480 // space, 832 // space)
    with pytest.raises(ValueError, match=f"multiples of {space}"):
        info.latent_shape(81, 480 + 4, 832)
    json.dumps(info.to_json())


def test_decode_takes_scaled_latents_and_gives_the_models_pixels(model: Any, folder: Path) -> None:
    ours = vae.load_vae(str(folder))
    z = torch.randn(1, ours.info.latent_channels, 3, 2, 2)
    decoded = ours.decode(ours.scale(z))
    size = 2 * ours.info.space_compression
    assert tuple(decoded.shape) == (1, 3, 9, size, size)
    with torch.no_grad():
        torch.testing.assert_close(decoded, model.decode(z).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_an_original_file_has_no_decoder_here(model: Any, tmp_path: Path) -> None:
    torch.save(original_names(model), tmp_path / "Wan.pth")
    ours = vae.load_vae(str(tmp_path / "Wan.pth"))
    with pytest.raises(vae.CheckpointError, match="only a diffusers folder has one"):
        ours.decode(torch.zeros(1, ours.info.latent_channels, 1, 2, 2))


def test_selfcheck_runs(folder: Path) -> None:
    assert vae.load_vae(str(folder)).selfcheck((9, 32, 32)) < 1e-5


def test_qwen_image_is_wan_2_1(tmp_path: Path) -> None:
    """Its config names no compression, and `input_channels` instead of `in_channels`."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLQwenImage(base_dim=8, **SMALL).eval()
    theirs.save_pretrained(tmp_path)
    ours = vae.load_vae(str(tmp_path))
    assert ours.info.name == "AutoencoderKLQwenImage"
    assert (ours.info.time_compression, ours.info.space_compression) == (4, 8)
    assert ours.info.shift == tuple(theirs.config.latents_mean)
    for num_frames in (1, 9):
        x = torch.rand(1, 3, num_frames, 32, 48) * 2 - 1
        assert relative(ours.encode(x).parameters, moments(theirs, x)) <= 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_factor_temporal": 8}, "scale_factor_temporal is 8, but the layers compress by 4"),
        ({"scale_factor_spatial": 4}, "scale_factor_spatial is 4"),
        ({"temperal_downsample": [True, True, True], "scale_factor_temporal": 8}, "compress time by 4, got 8"),
        ({"latents_mean": [0.0] * 3}, "latents_mean has 3 values"),
        ({"latents_std": [0.0] * 48}, "cannot be built|48 values"),
        ({"attn_scales": [0.5]}, "attn_scales must be empty"),
        ({"base_dim": 16}, "of another shape"),
        ({"num_res_blocks": 2}, "missing"),
        ({"dim_mult": [1, 1, 2]}, "scale_factor_temporal is 4, but the layers compress by 2"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(vae.CheckpointError, match=message):
        vae.load_vae(str(folder))


@pytest.mark.parametrize("change", [{"num_res_blocks": 10**9}, {"base_dim": "wide"}])
def test_a_config_of_absurd_numbers_is_refused_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"} | change))
    save_file({"w": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(vae.CheckpointError, match=r"4000000000 residual blocks|cannot be built"):
        vae.load_vae(str(tmp_path))


@pytest.mark.parametrize("missing", ["conv1.weight", "encoder.middle.0.residual.3.gamma", "encoder.conv1.bias"])
def test_original_weights_are_loaded_strictly(model: Any, tmp_path: Path, missing: str) -> None:
    tensors = original_names(model)
    del tensors[missing]
    torch.save(tensors, tmp_path / "Wan.pth")
    with pytest.raises(vae.CheckpointError, match="missing"):
        vae.load_vae(str(tmp_path / "Wan.pth"))


def test_unknown_and_broken_tensors_are_refused(model: Any, tmp_path: Path) -> None:
    tensors = original_names(model)
    torch.save(tensors | {"encoder.other.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(vae.CheckpointError, match=r"unexpected: encoder\.other\.weight"):
        vae.load_vae(str(tmp_path / "a.pth"))
    tensors["conv1.bias"][0] = torch.nan
    torch.save(tensors, tmp_path / "b.pth")
    with pytest.raises(vae.CheckpointError, match=r"NaN or infinity in quant_conv\.bias"):
        vae.load_vae(str(tmp_path / "b.pth"))


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_with_code_is_refused(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(original_names(model) | {"extra": Bomb()}, tmp_path / "Wan.pth")
    with pytest.raises(vae.CheckpointError, match="objects other than tensors"):
        vae.load_vae(str(tmp_path / "Wan.pth"))
    assert not (tmp_path / "exploded").exists()


def test_a_width_that_wan_never_published_is_not_scaled(tmp_path: Path) -> None:
    torch.save(original_names(random_wan("2.1", z_dim=4, **SMALL)), tmp_path / "Wan.pth")
    info = vae.load_vae(str(tmp_path / "Wan.pth")).info
    assert (info.scale, info.shift, info.latent_channels) == (1.0, 0.0, 4)
