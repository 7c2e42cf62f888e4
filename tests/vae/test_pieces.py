"""Law: a convolution that is cut in time, because its tensors are too large, is the same convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import vae
from tests.vae.test_cost import real_encoder
from tests.vae.test_kernels import relative
from vae import kernels
from vae.kernels import pieces
from vae.kernels.pieces import frames_at_a_time, in_pieces, joined


def encode(schedule: str, dtype: torch.dtype, plain: bool) -> Tensor:
    model = vae.load_vae("tiny", dtype=dtype, schedule=schedule)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (1, 3, 17, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if not plain:
        return model.encode(pixels).parameters
    with kernels.plain():
        return model.encode(pixels).parameters


CASES = [
    (schedule, dtype, plain)
    for schedule in ("whole", "batched8")
    for dtype in (torch.float32, torch.bfloat16)
    for plain in (True, False)
]


@pytest.mark.parametrize(("schedule", "dtype", "plain"), CASES)
def test_an_encoder_in_pieces_is_the_encoder(
    schedule: str, dtype: torch.dtype, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 bit for bit; in float32 oneDNN sums in another order for another shape, which is 1e-7.

    Norms are over all frames in either case: with the statistics of a piece the error would be 0.3.
    """
    whole = encode(schedule, dtype, plain)
    monkeypatch.setattr(pieces, "MOST_ELEMENTS", 20_000)
    cut = encode(schedule, dtype, plain)
    if dtype == torch.bfloat16:
        assert torch.equal(cut, whole)
    assert relative(cut, whole.double()) < 1e-6


@pytest.mark.parametrize("mode", ["constant", "first", "reflect"])
@pytest.mark.parametrize("most", [1, 300, 700])
def test_a_convolution_in_pieces_pads_and_continues_as_a_whole_one(
    mode: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = vae.CausalConv3d(4, 4, 3, mode).double()  # type: ignore[arg-type]
    x = torch.randn(2, 4, 11, 3, 3).double()
    whole, (first, cache) = conv(x), conv.step(x[:, :, :7])
    rest, kept = conv.step(x[:, :, 7:], cache)
    monkeypatch.setattr(pieces, "MOST_ELEMENTS", most)
    assert conv.frames_at_a_time(x) < 11
    torch.testing.assert_close(conv(x), whole)
    again, cache = conv.step(x[:, :, :7])
    torch.testing.assert_close(again, first)
    again, last = conv.step(x[:, :, 7:], cache)
    torch.testing.assert_close(again, rest)
    assert torch.equal(last, kept)


def test_gradients_pass_through_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = vae.CausalConv3d(4, 4, 3, "first"), torch.randn(1, 4, 9, 3, 3, requires_grad=True)
    (whole,) = torch.autograd.grad(conv(x).square().sum(), x)
    monkeypatch.setattr(pieces, "MOST_ELEMENTS", 1)
    (cut,) = torch.autograd.grad(conv(x).square().sum(), x)
    torch.testing.assert_close(cut, whole)


def test_where_it_is_cut_follows_from_shape_dtype_and_device() -> None:
    def frames(num_frames: int, dtype: torch.dtype, device: str = "meta") -> int:
        x = torch.empty(1, 128, num_frames, 480, 720, dtype=dtype, device="meta")
        return frames_at_a_time(x if device == "meta" else FakeCPU(x), 128, extra=2, least=3)  # type: ignore[arg-type]

    assert frames(15, torch.float32) == 15, "no window of 480x720 is cut, so the self-check sees the engines of the job"
    assert frames(44, torch.bfloat16) == 44
    assert frames(49, torch.bfloat16) == 10
    assert frames(49, torch.float32) == 4
    assert frames(44, torch.float32, "cpu") == 44, "on a CPU only the number of elements counts"


class FakeCPU:
    """A tensor of the CPU without memory."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.shape, self.numel, self.element_size = torch.device("cpu"), x.shape, x.numel, x.element_size


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_pieces_keep_their_layout(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 7, 3, 5).contiguous(memory_format=layout)
    assert joined([x], 7) is x
    monkeypatch.setattr(pieces, "MOST_ELEMENTS", 200)
    assert frames_at_a_time(x, 4) < 7
    out = in_pieces(lambda piece: (piece + 1).contiguous(memory_format=layout), x, 4)
    assert torch.equal(out, x + 1)
    assert out.is_contiguous(memory_format=layout)


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes that tensors hold at a time, on `meta`, where nothing is allocated."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            storage = result.untyped_storage()
            reference = StorageWeakRef(storage)
            self._held[reference.cdata] = (reference, storage.nbytes())
        self._held = {name: one for name, one in self._held.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._held.values()))
        return result


def test_a_selfcheck_of_a_whole_clip_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on the plain path, counted in tensors of level 0 of 8.7 GB, without what cuDNN takes for itself."""
    encoder, x = real_encoder(), torch.empty(1, 3, 49, 480, 720, device="meta")
    tensor = 128 * 49 * 480 * 720 * 4

    def held() -> float:
        with torch.no_grad(), kernels.plain(), Held() as mode:
            encoder(x)
        return mode.peak / tensor

    cut = held()
    monkeypatch.setattr(pieces, "MOST_ELEMENTS", 2**62)
    monkeypatch.setattr(pieces, "MOST_BYTES", 2**62)
    whole = held()
    assert cut < 4.5 < 5 < whole, (cut, whole)
