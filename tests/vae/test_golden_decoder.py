"""The temporal decoder family reproduces the reference: strict keys, relative max error <= 1e-5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vae
from tests.vae.golden import Case, assert_same, cases

DECODERS = [
    "video_decoder_all_fixed_k311",
    "video_decoder_all_learned_k311",
    "video_decoder_attnonly_learned",
    "video_decoder_convonly_fixed_k311_preend",
    "video_decoder_convonly_learned_k3",
]


@torch.no_grad()
def check(module: nn.Module, case: Case) -> None:
    module.load_state_dict(case.params, strict=True)
    module.eval()
    [(_, expected)] = case.outputs.items()
    assert_same(module(*case.inputs.values(), **case.call), expected, case.name)


@pytest.mark.parametrize("stem", ["video_resblock", "ae3dconv"])
def test_blocks(shared: Path, stem: str) -> None:
    for case in cases(shared, stem):
        check(getattr(vae, case.config["module"])(**case.init), case)


@pytest.mark.parametrize("name", ["VideoBlock", "MemoryEfficientVideoBlock"])
def test_video_block(shared: Path, name: str) -> None:
    for case in cases(shared, "video_block"):
        block = getattr(vae, name)(**case.init)
        if "tokens" not in case.inputs:
            check(block, case)
            continue
        block.load_state_dict(case.params, strict=True)
        actual = block.time_mix_block(case.inputs["tokens"], case.call["timesteps"])
        assert_same(actual, case.outputs["tokens"], case.name)


@pytest.mark.parametrize("stem", DECODERS)
def test_decoder(shared: Path, stem: str) -> None:
    for case in cases(shared, stem):
        decoder = vae.VideoDecoder(**case.init)
        check(decoder, case)
        assert list(decoder.z_shape) == case.config["z_shape"]
        for name, alpha in case.config["alpha_effective"].items():
            block = decoder.get_submodule(name.removesuffix(".mix_factor"))
            assert block.get_alpha().item() == pytest.approx(alpha, abs=1e-6)
        names = dict(decoder.named_parameters())
        assert decoder.get_last_layer() is names[case.config["last_layer"].split()[0]]
        assert decoder.get_last_layer(skip_time_mix=True) is names["conv_out.weight"]


@pytest.mark.parametrize("stem", DECODERS)
@pytest.mark.parametrize("prefix", ["", "decoder.", "first_stage_model.decoder."])
def test_weights_load_with_a_configuration_read_off_them(shared: Path, tmp_path: Path, stem: str, prefix: str) -> None:
    case = next(cases(shared, stem))
    other = {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)} if prefix.startswith("first") else {}
    torch.save({"state_dict": {prefix + name: t for name, t in case.params.items()} | other}, tmp_path / "w")
    told = ("merge_strategy", "tanh_out", "give_pre_end", "alpha")
    decoder = vae.load_video_decoder(
        str(tmp_path / "w"), config={key: case.init[key] for key in told if key in case.init}
    )
    check(decoder, case)


def test_decoder_weights_that_do_not_fit_are_refused(shared: Path, tmp_path: Path) -> None:
    params = next(cases(shared, DECODERS[0])).params
    path = tmp_path / "w"
    torch.save({"lm_head.weight": torch.zeros(1)}, path)
    with pytest.raises(vae.CheckpointError, match=r"has no video decoder.*lm_head"):
        vae.load_video_decoder(str(path))
    torch.save({name: t for name, t in params.items() if name != "mid.block_1.mix_factor"}, path)
    with pytest.raises(vae.CheckpointError, match=r"missing: mid\.block_1\.mix_factor"):
        vae.load_video_decoder(str(path))
    torch.save(params, path)
    with pytest.raises(vae.CheckpointError, match="merge_strategy must be one of fixed, learned, got 'none'"):
        vae.load_video_decoder(str(path), config={"merge_strategy": "none"})


def test_sinusoidal_embedding(shared: Path) -> None:
    for case in cases(shared, "sinusoidal", "timestep_embedding"):
        assert_same(vae.timestep_embedding(case.inputs["timesteps"], **case.init), case.outputs["emb"], case.name)
