"""Compare an encoder's fast path with float32 before it encodes, within the memory that encoding takes.

Guards against a broken kernel or library: cuDNN 9.10.2 gave wrong bf16 Conv3d at large shapes without any error
(pytorch #163539). A whole window in float32 takes twice the memory of encoding it. On a GPU the check is therefore in
three parts:

    a small clip           the whole encoder against float32
    half a frame           the same, as wide as the job's frames and half as high: every kernel over many pixels
    the longest window     the fast path as the job runs it, and each of its convolutions against float32, which is
                           computed from the same input in strips of one frame
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vae import kernels
from vae.shapes import window_lengths

if TYPE_CHECKING:
    from vae.autoencoder import VideoVAE

Shape = tuple[int, int, int]
"""T, H, W."""

SMALL: Shape = (9, 64, 96)
"""The small clip. It is the only one on a CPU, where the real shape would take minutes in float32."""

STRIP_BYTES = 2**24
"""Most bytes of a strip of a convolution's input in float32, unless one row takes more. The few copies of a strip are
all that the third part adds to the memory of encoding, after the convolution has given its workspace back."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has found."""

    error: float
    """Largest relative L2 error: of moments, or of a convolution. About 1e-6 in float32 and 1e-2 in bfloat16; NaN or
    inf if anything is not finite."""
    digest: str
    """Of the fast path's moments of fixed noise: equal where an encoder gives the same bits."""


def check(model: VideoVAE, largest: Shape | None = None) -> Checked:
    """Check an encoder for a job whose largest clip has this shape. No memory stays reserved.

    Raises:
        torch.OutOfMemoryError: the device cannot hold the longest window.
    """
    moments, errors = compare(model, largest)
    found = [float(error) for error in errors]
    raw = moments.float().cpu().contiguous().numpy().tobytes()
    del moments, errors
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    worst = max(found, key=lambda error: math.inf if math.isnan(error) else error)
    return Checked(worst, hashlib.sha256(raw).hexdigest())


def compare(model: VideoVAE, largest: Shape | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return the fast path's moments of the longest window that is encoded, and all errors, on the model's device."""
    if largest is None or model.device.type == "cpu":
        moments, error = whole(model, SMALL)
        return moments, [error]
    (num_frames, height, width), step = largest, model.info.space_compression
    errors = [
        whole(model, (SMALL[0], min(SMALL[1], height), min(SMALL[2], width)))[1],
        whole(model, (1, max(height // 2 // step, 1) * step, width))[1],
    ]
    with Convolutions() as convolutions:
        moments = fast(model, (num_frames, height, width))
    return moments, errors + convolutions.errors


def whole(model: VideoVAE, shape_THW: Shape) -> tuple[Tensor, Tensor]:
    """Encode the longest window of a clip of noise by the fast path, and in float32 by the plain one.

    A VAE that takes certain lengths only gets the nearest of them.

    Returns:
        The fast path's moments, and their relative L2 error.
    """
    moments = fast(model, shape_THW)
    exact = copy.copy(model)
    exact.encoder = copy.deepcopy(model.encoder).float()
    # cuDNN stays on: without it torch unfolds every input, 43 GB at 9x480x720 (128 channels, 27 taps, float32).
    with kernels.plain(), exactly():
        return moments, relative(moments, fast(exact, shape_THW))


def fast(model: VideoVAE, shape_THW: Shape) -> Tensor:
    """Return the moments of the longest window of a clip of noise, which is the same in every process."""
    num_frames, height, width = shape_THW
    if model.info.only_accepted_lengths:
        below, above = model.info.nearest(num_frames)
        num_frames = above if below is None else below
    num_frames = max(window_lengths(num_frames, model.info.schedule))
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.info.in_channels, num_frames, height, width)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return model.encode_windows(pixels, (num_frames,), 0)


class Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compare each convolution inside this context with float32 from the same input."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors: list[Tensor] = []
        """The relative L2 error of each."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; after a convolution, compute its output again in strips."""
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::convolution":
            off, size = (torch.zeros((), dtype=torch.float64, device=result.device) for _ in range(2))
            with exactly():
                for part, strip in strips(result, *args):
                    off += (part.float() - strip).square().sum(dtype=torch.float64)
                    size += strip.square().sum(dtype=torch.float64)
            self.errors.append(torch.where(off == 0, off, (off / size).sqrt()))  # 0, not NaN, where all is zero
        return result


def strips(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _: list[int],
    groups: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the output y of a convolution in strips of rows of one frame, each with its float32 from x.

    Args:
        y: (B, C', T', H', W'), or without T'.
        x: (B, C, T, H, W), or without T; then as the arguments of `aten::convolution`.
    """
    assert not transposed
    if y.ndim == 4:
        y, x, weight = y.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    wide, wide_bias = weight.float(), None if bias is None else bias.float()
    reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    row_bytes = max(x.shape[1] * weight.shape[2] * x.shape[4], y.shape[1] * y.shape[4] * stride[1]) * 4
    rows = max((STRIP_BYTES // row_bytes - reach[1]) // stride[1], 1)
    for sample, frame, top in product(range(y.shape[0]), range(y.shape[2]), range(0, y.shape[3], rows)):
        part = y[sample : sample + 1, :, frame : frame + 1, top : top + rows]
        piece, edges = x[sample : sample + 1], []
        for axis, first, count in ((2, frame, 1), (3, top, part.shape[3])):
            begin = first * stride[axis - 2] - padding[axis - 2]
            end = begin + (count - 1) * stride[axis - 2] + reach[axis - 2] + 1
            inside = slice(max(begin, 0), min(end, x.shape[axis]))
            piece = piece.narrow(axis, inside.start, inside.stop - inside.start)
            edges.append((inside.start - begin, end - inside.stop))
        padded = F.pad(piece.float(), (0, 0, *edges[1], *edges[0]))
        yield part, F.conv3d(padded, wide, wide_bias, stride, (0, 0, padding[2]), dilation, groups)


def exactly() -> Any:
    """Let cuDNN compute float32 in float32 inside this context."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def relative(actual: Tensor, expected: Tensor) -> Tensor:
    """Return the relative L2 error."""
    error: Tensor = (actual.float() - expected).norm() / expected.norm()
    return error
