"""Laws: the self-check takes the memory of encoding, looks at every convolution, and finds what is wrong in one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vae
from tests.vae.test_cost import real_encoder
from tests.vae.test_pieces import Held
from vae import kernels
from vae.encoder import Encoder3D
from vae.engines import complaint
from vae.info import VAEInfo
from vae.kernels import selfcheck
from vae.shapes import Schedule
from vae.wan import WanEncoder


def on_meta(encoder: Encoder3D | WanEncoder, schedule: Schedule, dtype: torch.dtype) -> vae.VideoVAE:
    """A VAE without data, which computes as on CUDA."""
    info = VAEInfo(
        **dict(name="real", config={}, weights_sha256="", in_channels=3, latent_channels=16, time_compression=4),
        **dict(space_compression=16, scale=1.0, shift=0.0, schedule=schedule, windowed=True),
        only_accepted_lengths=schedule == "causal4",
    )
    return vae.VideoVAE(encoder.to(dtype), info)


def wan(**options: Any) -> WanEncoder:
    with torch.device("meta"):
        return WanEncoder(**options).eval()


MODELS: dict[str, Callable[[torch.dtype], vae.VideoVAE]] = {
    "CogVideoX": lambda dtype: on_meta(real_encoder(), "batched8", dtype),
    "Wan 2.1": lambda dtype: on_meta(wan(ch=96), "causal4", dtype),
    "Wan 2.2": lambda dtype: on_meta(wan(ch=160, z_channels=48, patch_size=2, shortcuts=True), "causal4", dtype),
}


NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

WEIGHTS = 2e9
"""Bytes that Wan 2.2 and small frames may take: the weights in float32 are most of it, and every card has them."""

SIZES = [
    ("CogVideoX", (9, 240, 368), 0.0),
    ("Wan 2.1", (81, 240, 416), 0.0),
    *(
        pytest.param(name, shape, WEIGHTS if name == "Wan 2.2" or shape[1] < 480 else 0.0, marks=pytest.mark.slow)
        for name in MODELS
        for shape in ((17, 256, 256), (49, 480, 720), (9, 704, 1280), (81, 1088, 1920))
    ),
]


@NEEDS_TRITON
@pytest.mark.parametrize(("name", "shape", "floor"), SIZES)
def test_the_check_holds_no_more_than_encoding(name: str, shape: selfcheck.Shape, floor: float) -> None:
    """Tensors alone, counted without data. Before, it held what `whole` does: twice as much."""

    def held(run: Callable[[vae.VideoVAE, selfcheck.Shape], object]) -> int:
        model = MODELS[name](torch.bfloat16)
        with Held() as mode:
            for weight in model.encoder.parameters():
                weight.detach()  # seen, so that the model's own weights count
            run(model, shape)
        return mode.peak

    checking, encoding, in_float32 = map(held, (selfcheck.compare, selfcheck.fast, selfcheck.whole))
    assert in_float32 > 1.4 * encoding
    assert checking <= max(encoding + 6 * selfcheck.STRIP_BYTES, floor), f"{checking / 1e9} of {encoding / 1e9} GB"


@NEEDS_TRITON
@pytest.mark.parametrize("name", list(MODELS))
def test_every_convolution_of_the_longest_window_is_compared(name: str) -> None:
    model = MODELS[name](torch.bfloat16)
    with Counted() as counted:
        selfcheck.fast(model, (49, 64, 64))
    assert counted.convolutions > 25
    assert len(selfcheck.compare(model, (49, 64, 64))[1]) == 2 + counted.convolutions


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count convolutions."""

    convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += func._schema.name == "aten::convolution"
        return func(*args, **(kwargs or {}))


class Broken(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A library whose bfloat16 convolutions are wrong in a part of their output, and say nothing."""

    def __init__(self, part: tuple[slice | int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::convolution" and result.dtype == torch.bfloat16:
            result[self._part] *= 1.5
        return result


GEOMETRIES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 8, 5, 12, 9), (4, 8, 3, 3, 3), {"padding": (0, 1, 1)}),
    ((2, 8, 4, 7, 9), (4, 8, 3, 3, 3), {"padding": 1}),
    ((1, 8, 6, 8, 8), (4, 8, 3, 1, 1), {"stride": (2, 1, 1)}),
    ((1, 8, 9, 6, 5), (4, 8, 3, 3, 3), {"padding": (2, 1, 1), "dilation": (2, 1, 1)}),
    ((1, 8, 2, 9, 6), (6, 4, 1, 1, 1), {"groups": 2}),
    ((3, 8, 13, 9), (4, 8, 3, 3), {"stride": 2}),
    ((2, 8, 12, 10), (4, 8, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("strip_bytes", [1, 2**11, 2**26])
@pytest.mark.parametrize(("x_shape", "weight_shape", "options"), GEOMETRIES)
def test_strips_are_the_convolution(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    options: dict[str, Any],
    strip_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selfcheck, "STRIP_BYTES", strip_bytes)
    conv: Callable[..., Tensor] = F.conv3d if len(x_shape) == 5 else F.conv2d
    x, weight, bias = torch.randn(x_shape), torch.randn(weight_shape), torch.randn(weight_shape[0])

    def error(dtype: torch.dtype, *broken: Broken) -> float:
        with selfcheck.Convolutions() if not broken else broken[0], selfcheck.Convolutions() as found:
            conv(x.to(dtype), weight.to(dtype), bias.to(dtype), **options)
        return float(found.errors[0])

    with torch.no_grad():
        assert error(torch.float32) < 1e-6
        assert error(torch.bfloat16) < 2**-8
        for part in ((..., slice(-1, None)), (..., slice(-1, None), slice(None)), (-1,)):
            assert error(torch.bfloat16, Broken(part)) > 0.05


def test_a_broken_convolution_is_found_wherever_it_is() -> None:
    """The plain path, because on a CPU the fast one takes oneDNN's own operations."""
    model = vae.load_vae("tiny", dtype=torch.bfloat16)
    with kernels.plain(), Broken((..., slice(-1, None))), selfcheck.Convolutions() as found:
        selfcheck.fast(model, (9, 16, 24))
    assert min(map(float, found.errors)) > 0.05


def test_a_check_on_a_cpu_is_the_small_clip_and_its_digest_is_that_of_the_bits() -> None:
    models = [vae.load_vae("tiny", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    first, half = (selfcheck.check(model, (17, 4096, 4096)) for model in models)
    assert first.error == models[0].selfcheck(selfcheck.SMALL) < 1e-5 < half.error < 0.05
    assert first == selfcheck.check(models[0])
    with torch.no_grad():
        next(models[0].encoder.parameters()).mul_(1 + 2**-20)
    assert first.digest != selfcheck.check(models[0]).digest != half.digest


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_the_worst(bad: float) -> None:
    model = vae.load_vae("tiny")
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(bad)
    assert not selfcheck.check(model).error <= 1e9


def test_bfloat16_is_refused_where_cudnn_has_no_convolution_for_it() -> None:
    assert "use --dtype float16" in complaint("bfloat16", (7, 5))
    assert "7.5" in complaint("bfloat16", (7, 5))
    accepted = [("float16", (7, 5)), ("float32", (7, 0)), ("bfloat16", (8, 0)), ("bfloat16", (12, 0))]
    assert [complaint(*one) for one in accepted] == [""] * 4
