"""The encoder family reproduces the reference: strict keys, error <= 1e-5, on the plain and the fast path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vae
from tests.vae.golden import Case, assert_same, cases, paths


def check(module: nn.Module, case: Case) -> None:
    module.load_state_dict(case.params, strict=True)
    module.eval()
    if case.raises:
        with pytest.raises(ValueError, match="frames"):
            module(torch.randn(case.input_shape))
        return
    [(_, expected)] = case.outputs.items()
    for path, context in paths():
        with context:
            actual = module(*(x.clone() for x in case.inputs.values()))
        assert_same(actual, expected, f"{case.name} ({path})")


@pytest.mark.parametrize("mode", ["first", "reflect", "constant_causal"])
def test_causal_conv(shared: Path, mode: str) -> None:
    for case in cases(shared, f"causal_conv3d_{mode}"):
        check(vae.CausalConv3d(**case.init), case)


def test_down_and_up_sample(shared: Path) -> None:
    for case in cases(shared, "down_up_sample3d"):
        check(getattr(vae, case.config["module"])(**case.init), case)


def test_resnet_block_and_attention(shared: Path) -> None:
    for case in cases(shared, "resnet3d_attn2d"):
        check(getattr(vae, case.config["module"])(**case.init), case)


@pytest.mark.parametrize(
    "stem",
    [
        "encoder3d_first_t4_doublez",
        "encoder3d_reflect_t2_attn",
        "encoder3d_first_t8_nin",
        "encoder3d_first_t1_avgpool",
        "sat_encoder3d",
    ],
)
def test_encoder_on_whole_clips(shared: Path, stem: str) -> None:
    for case in cases(shared, stem):
        check(vae.Encoder3D(**case.init), case)


def test_sinusoidal_embedding(shared: Path) -> None:
    for case in cases(shared, "sinusoidal", "get_timestep_embedding"):
        actual = vae.get_timestep_embedding(case.inputs["timesteps"], case.init["embedding_dim"])
        assert_same(actual, case.outputs["emb"], case.name)


def test_posterior(shared: Path) -> None:
    for case in cases(shared, "diagonal_gaussian"):
        posterior = vae.DiagonalGaussianDistribution(case.inputs["moments"])
        for name in ("mean", "logvar", "std", "var"):
            assert_same(getattr(posterior, name), case.outputs[name], name)
        assert_same(posterior.mean + posterior.std * case.inputs["eps"], case.outputs["sample"], "sample")
        assert_same(posterior.kl(dims=(1, 2, 3)), case.outputs["kl_ref"], "kl over C, T, H")
        assert_same(posterior.kl(), case.outputs["kl_ref"].sum(1), "kl")
        assert_same(posterior.nll(case.inputs["x"], dims=(1, 2, 3)), case.outputs["nll_ref"], "nll over C, T, H")
        assert_same(posterior.nll(case.inputs["x"]), case.outputs["nll_ref"].sum(1), "nll")
