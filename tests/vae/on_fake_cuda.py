"""Laws: on CUDA every tensor of an encoder is on the card; convolutions and kernels get the layout that they are made
for; and the launches are those that are counted and compiled on the device `meta`.

The tensors are fake: torch works out device, shape, dtype and layout of each result as on a card, and computes nothing.
This takes a CUDA build of torch and no GPU. `test_fake_cuda.py` runs it so:

    CUDA_VISIBLE_DEVICES= python -m pytest --noconftest tests/vae/on_fake_cuda.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vae
from tests.vae.test_passes import FAMILIES, encode, special
from tests.vae.test_selfcheck import MODELS
from vae.kernels import cuda, selfcheck
from vae.kernels.traffic import Traffic
from vae.posterior import DiagonalGaussianDistribution

if torch.version.cuda is None:
    pytest.skip("needs a CUDA build of torch", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

LAYOUTS = {5: torch.channels_last_3d, 4: torch.channels_last}

UPLOAD = ("aten::_to_copy", "cuda")

SIZES = [(480, 720), (256, 256), (272, 432), (704, 1280)]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Look at the operands of every operation inside this context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: Counter[tuple[str, str]] = Counter()
        """Operations that see a tensor of the CPU and one of the card, and where the result is. Such a copy makes the
        CPU wait, unless its memory is pinned."""
        self.convolutions: Counter[tuple[str, bool, bool]] = Counter()
        """By device, and whether input and output are channels-last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.crossings[func._schema.name, result.device.type] += 1
        if func._schema.name == "aten::convolution" and not _takes_any_layout(args):
            x, layout = args[0], LAYOUTS[result.ndim]
            are_last = (y.is_contiguous(memory_format=layout) for y in (x, result))
            self.convolutions[(result.device.type, *are_last)] += 1
        return result


def _takes_any_layout(args: Any) -> bool:
    """Return whether a convolution of 1x1 may get or return NCDHW: MoVQ's attention, which reads a norm in that order,
    and the shortcut of a block on the first frame of a clip, where torch cannot tell the layouts apart. That costs a
    copy of the frame."""
    x, weight = args[:2]
    return weight.shape[2:].numel() == 1 and (x.ndim == 4 or x.shape[2] == 1)


@contextmanager
def launches() -> Iterator[Counter[tuple[object, ...]]]:
    """Count the launches that Triton compiles apart. None is made; every tensor must be where the first one is."""
    found: Counter[tuple[object, ...]] = Counter()
    inner = cuda._launch

    def launch(
        kind: str, kernel: Any, grid: object, arguments: Any, constants: Any, *, reads: Any, writes: Any
    ) -> None:
        tensors = [*reads, *writes, *(value for value in arguments if isinstance(value, Tensor))]
        assert {tensor.device.type for tensor in tensors} == {writes[0].device.type}, kernel.__name__
        found[(kernel.__name__, grid, *constants.items(), *special(kernel, arguments))] += 1

    cuda._launch = launch
    try:
        yield found
    finally:
        cuda._launch = inner


def in_float32(module: nn.Module) -> nn.Module:
    """Do what `Module.float` does, which cannot change the data of a fake parameter."""
    for part in module.modules():
        for name, old in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(old.float(), requires_grad=False))
    return module


def on_card(model: vae.VideoVAE) -> vae.VideoVAE:
    """Give a model of the device `meta` fake weights on the card, in the layout that `load_vae` gives them."""
    for module in model.encoder.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            new = torch.empty(old.shape, dtype=old.dtype, device="cuda")
            new = new.contiguous(memory_format=LAYOUTS.get(old.ndim, torch.contiguous_format))
            module.register_parameter(name, nn.Parameter(new, requires_grad=False))
    assert not list(model.encoder.buffers())
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_stays_on_the_card_and_launches_what_meta_launches(
    name: str, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    with launches() as counted, Traffic():
        encode(FAMILIES[name](dtype), size)
    model = FAMILIES[name](dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), launches() as launched, Watch() as watch:
        moments = encode(on_card(model), size)
        latent = model.scale(DiagonalGaussianDistribution(moments.float()).mean)
    assert {moments.device.type, latent.device.type} == {"cuda"}
    assert moments.dtype == dtype
    assert set(watch.convolutions) == {("cuda", True, True)}
    assert watch.crossings == {UPLOAD: 2}  # the tables of `scale`, once a clip
    assert launched == counted
    assert sum(launched.values()) > 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_the_selfcheck_stays_on_the_card(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are made on the CPU, so that they are the same everywhere."""
    monkeypatch.setattr(nn.Module, "float", in_float32)
    model = MODELS[name](dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), launches() as launched, Watch() as watch:
        moments, errors = selfcheck.compare(on_card(model), (17, 480, 720))
    assert {tensor.device.type for tensor in (moments, *errors)} == {"cuda"}
    assert {device for device, *_ in watch.convolutions} == {"cuda"}
    assert watch.crossings == {UPLOAD: 5}  # the frames of each run
    assert sum(launched.values()) > 30


def test_fake_tensors_notice_what_is_left_on_the_cpu() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.empty(3) + torch.empty(3, device="cuda")
