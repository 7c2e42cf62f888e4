"""AutoencoderKLCogVideoX as diffusers computed it: frame batching, its own key names, moments and posterior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vae
from tests.vae.golden import Case, assert_same, cases, paths

ENCODE = "encode_"


@pytest.fixture(scope="module")
def golden(shared: Path) -> list[Case]:
    return [case for case in cases(shared, "autoencoder_kl_cogvideox") if case.name.split("/")[-1].startswith(ENCODE)]


@pytest.fixture(scope="module")
def folder(golden: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder as `save_pretrained` would write it."""
    path = tmp_path_factory.mktemp("diffusers")
    config = {"_class_name": "AutoencoderKLCogVideoX", "in_channels": 3, "scaling_factor": 0.7, **golden[0].init}
    (path / "config.json").write_text(json.dumps(config))
    save_file(golden[0].params, path / "diffusion_pytorch_model.safetensors")
    return path


def test_encode_with_frame_batching(golden: list[Case], folder: Path) -> None:
    model = vae.load_vae(str(folder))
    plain_cases = [case for case in golden if "tiling" not in case.call]
    assert len(plain_cases) == 6
    for case in plain_cases:
        posterior = model.encode(case.inputs["x"])
        assert_same(posterior.parameters, case.outputs["moments"], case.name)
        assert_same(posterior.mode(), case.outputs["mode"], case.name)
        assert_same(posterior.logvar, case.outputs["logvar"], case.name)
        assert_same(posterior.mean + posterior.std * case.inputs["eps"], case.outputs["sample"], case.name)


def test_encode_in_tiles(golden: list[Case], folder: Path) -> None:
    model = vae.load_vae(str(folder))
    tiled = [case for case in golden if "tiling" in case.call]
    assert tiled
    for case in tiled:
        call = case.call["tiling"]
        tiling = vae.Tiling(
            height=call["tile_sample_min_height"],
            width=call["tile_sample_min_width"],
            overlap_height=call["tile_overlap_factor_height"],
            overlap_width=call["tile_overlap_factor_width"],
        )
        assert_same(model.encode(case.inputs["x"], tiling).parameters, case.outputs["moments"], case.name)
        small = case.inputs["x"][..., :32, :40]
        assert torch.equal(model.encode(small, tiling).parameters, model.encode(small).parameters)


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"height": 0, "width": 8}, "tile height and width must be at least 1, got 0x8"),
        ({"height": 8, "width": 8, "overlap_width": 1.0}, "must be in .0, 1., got .* and 1.0"),
    ],
)
def test_bad_tilings_are_refused(tiling: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.Tiling(**tiling)  # type: ignore[arg-type]


def test_tiles_off_the_latent_grid_are_refused(golden: list[Case], folder: Path) -> None:
    with pytest.raises(ValueError, match="do not fall on the grid of 8-pixel latent cells"):
        vae.load_vae(str(folder)).encode(torch.zeros(1, 3, 9, 64, 64), vae.Tiling(height=32, width=32))


def test_the_encoder_on_whole_clips(golden: list[Case], folder: Path) -> None:
    """The reference's encoder without batching pools by parity, as one long window does."""
    encoder = vae.load_vae(str(folder)).encoder
    for case in golden:
        if "encoder_whole" in case.outputs:
            for path, context in paths():
                with context:
                    whole, _ = encoder.step(case.inputs["x"])
                assert_same(whole, case.outputs["encoder_whole"], f"{case.name} {path}")


def test_scale_is_read_from_the_config(folder: Path) -> None:
    model = vae.load_vae(str(folder))
    assert (model.info.scale, model.info.shift) == (0.7, 0.0)
    assert model.info.name == "AutoencoderKLCogVideoX"
    torch.testing.assert_close(model.scale(torch.ones(1, 4, 1, 2, 2)), torch.full((1, 4, 1, 2, 2), 0.7))
