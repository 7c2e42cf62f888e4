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
