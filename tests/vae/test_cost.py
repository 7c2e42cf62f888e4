"""The model of operations and bytes: what fusion saves, by shapes alone. None of it is a measurement."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vae
from vae import kernels
from vae.cost import cost_of_clip
from vae.encoder import Encoder3D
from vae.kernels.traffic import BIAS, CONVOLUTION

CLIP = (49, 480, 720)


def real_encoder(**changes: Any) -> Encoder3D:
    """The encoder of every published CogVideoX, without data."""
    settings: dict[str, Any] = {"ch": 128, "ch_mult": (1, 2, 2, 4), "num_res_blocks": 3, "attn_resolutions": []}
    with torch.device("meta"):
        return Encoder3D(in_channels=3, resolution=256, z_channels=16, **(settings | changes)).eval()


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_fusion_moves_a_third_less() -> None:
    """292 GB were counted by hand before fusion; the ordinary walk still pays for biases and residuals on their own."""
    cost = cost_of_clip(real_encoder(), CLIP)
    assert cost.bytes_beside_convolutions() <= 190e9
    assert cost.bytes_by_kind()[BIAS] == 0
    hooked = real_encoder()
    hooked.mid.register_forward_hook(lambda module, inputs, output: output)
    ordinary = cost_of_clip(hooked, CLIP)
    assert 280e9 < ordinary.bytes_beside_convolutions() < 292e9
    assert ordinary.bytes_by_kind()[BIAS] == pytest.approx(81e9, rel=0.01)
    assert ordinary.flop == cost.flop


def test_operations_are_those_of_the_convolutions() -> None:
    """149 TFLOP, 60 % of them at level 0."""
    cost = cost_of_clip(real_encoder(), CLIP)
    assert cost.flop.total() == pytest.approx(148.96e12, rel=1e-3)
    assert cost.flop["level 0"] / cost.flop.total() == pytest.approx(0.6, abs=0.02)
    assert list(cost.flop) == ["conv_in", "level 0", "level 1", "level 2", "level 3", "mid", "conv_out"]
    assert cost.floor_seconds(798e12, 3e12) == pytest.approx(
        cost.flop.total() / 798e12 + cost.bytes_beside_convolutions() / 3e12
    )


@pytest.mark.parametrize("schedule", ["batched8", "whole"])
def test_the_model_counts_what_a_real_run_does(schedule: str) -> None:
    """Each window counted once and multiplied: the same as every window of a real clip."""
    model = vae.load_vae("tiny", schedule=schedule)  # type: ignore[arg-type]
    cost = cost_of_clip(model.encoder, (25, 16, 24), schedule=schedule)  # type: ignore[arg-type]
    with kernels.plain(), FlopCounterMode(display=False) as counter:
        model.encode(torch.zeros(1, 3, 25, 16, 24, dtype=torch.uint8))
    assert cost.flop.total() == counter.get_total_flops()
    assert cost.bytes_by_kind()[CONVOLUTION] > 0
