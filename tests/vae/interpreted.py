"""The Triton kernels in Triton's interpreter, against exact arithmetic. `test_passes.py` runs it in another process.

    TRITON_INTERPRET=1 python -m tests.vae.interpreted quick      one dtype a shape; `full` takes every dtype

The interpreter truncates to bfloat16, where a GPU rounds, so a bfloat16 result may be off by a unit in the last place.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import vae
from tests.vae.test_kernels import channels_last, exact, norm_of, relative
from vae import fused, kernels
from vae.encoder import Encoder3D, EncoderCache
from vae.kernels import cuda, pieces
from vae.shapes import PoolRule

UNIT = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""A unit in the last place, relative; in float32, the error of a norm's statistics."""

FULL = "full" in sys.argv

REAL = ((128, 9, 8, 12), (128, 8, 8, 12), (256, 5, 4, 6), (256, 4, 4, 6), (256, 2, 2, 3), (512, 3, 1, 2))
"""Channels, frames, height and width of the levels of a 49x480x720 clip, 60 times smaller in height and width."""


def shapes(num_random: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Those of the real encoder, then random ones with odd sizes, two samples and 32 to 1024 channels."""
    yield from ((1, *shape) for shape in (REAL if FULL else REAL[::2]))
    chance = random.Random(0)
    for _ in range(num_random):
        batch, channels = chance.choice((1, 2)), 32 * chance.choice((1, 2, 3, 5, 8, 32))
        yield batch, channels, chance.randint(1, 5), chance.randint(1, 13), chance.randint(2, 17)


def close(actual: Tensor, expected: Tensor, what: object) -> None:
    """Each element within a unit of the last place of the exact value, or of the typical one where it is near zero."""
    unit = UNIT[actual.dtype]
    off = (actual.double() - expected).abs() / (expected.abs() + expected.square().mean().sqrt())
    assert off.max() < unit, (what, actual.dtype, off.max().item())


def inputs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A dense tensor, a padded buffer whose rest has the same shape, and a bias."""
    for i, (batch, channels, frames, height, width) in enumerate(shapes(6 if FULL else 2)):
        for dtype in list(UNIT) if FULL else [list(UNIT)[i % 3]]:
            x = channels_last(batch, channels, frames, height, width, dtype=dtype)
            padded = channels_last(batch, channels, frames + 2, height, width, dtype=dtype)
            yield x, padded, torch.randn(channels).to(dtype)


def norms() -> None:
    """silu(norm(x)) and silu(norm(x + bias)), written into a slice; the rest of the buffer stays."""
    for x, padded, bias in inputs():
        norm, before = norm_of(x.shape[1], x.dtype), padded[:, :, :2].clone()
        out = padded[:, :, 2:]
        cuda.norm_silu(x, norm, out)
        close(out, exact(x, norm), (x.shape, "norm"))
        kept = torch.empty_like(x[:, :, :1], memory_format=torch.channels_last_3d)
        cuda.measured(x, norm, bias).apply(x, out, kept)
        assert torch.equal(kept, out[:, :, -1:])
        close(out, exact(x.double() + bias.double().view(-1, 1, 1, 1), norm), (x.shape, "norm with bias"))
        assert torch.equal(padded[:, :, :2], before)


def sums() -> None:
    """y + bias + residual + bias, and the statistics of what was written, which are those of a pass of their own."""
    for x, padded, bias in inputs():
        residual, other_bias = padded[:, :, 2:], bias.flip(0).float()
        wide = bias.double().view(-1, 1, 1, 1)
        expected = x.double() + wide + residual.double() + other_bias.double().view(-1, 1, 1, 1)
        y = x.clone(memory_format=torch.channels_last_3d)
        found = cuda.add(y, bias, residual, other_bias, measure=True)
        close(y, expected, (x.shape, "sum"))
        again = cuda.statistics(y)
        assert found is not None
        assert torch.equal(found.means, again.means)
        assert torch.equal(found.variances, again.variances)
        norm, out = norm_of(x.shape[1], x.dtype), torch.empty_like(y)
        cuda.measured(y, norm, known=found).apply(y, out)
        close(out, exact(y, norm), (x.shape, "norm of a sum"))
        y = x.clone(memory_format=torch.channels_last_3d)
        assert cuda.add(y, bias) is None
        close(y, x.double() + wide, (x.shape, "bias alone"))


def pools() -> None:
    """Bit for bit what torch's operations give: a mean of two is rounded once either way."""
    for x, _, _ in inputs():
        for alone in {x.shape[2] % 2, 1, x.shape[2]}:
            for edge in (0, 1):
                batch, channels, frames, height, width = x.shape
                pairs = (frames - alone) // 2
                out = channels_last(batch, channels, alone + pairs, height + edge, width + edge, dtype=x.dtype)
                cuda.pool_time(x, alone, out)
                later = x[:, :, alone : alone + 2 * pairs].float()
                means = ((later[:, :, ::2] + later[:, :, 1::2]) * 0.5).to(x.dtype)
                expected = torch.nn.functional.pad(torch.cat([x[:, :, :alone], means], 2), (0, edge, 0, edge))
                if x.dtype == torch.bfloat16:
                    close(out, expected.double(), (x.shape, alone, edge))
                else:
                    assert torch.equal(out, expected), (x.shape, x.dtype, alone, edge)


def samples() -> None:
    """A sample's bits do not depend on its neighbours or on the run."""
    x, norm = channels_last(2, 96, 2, 7, 9, dtype=torch.float16), norm_of(96, torch.float16)
    out, alone = torch.empty_like(x), torch.empty_like(x[:1])
    cuda.norm_silu(x, norm, out)
    for i in range(2):
        cuda.norm_silu(x[i : i + 1], norm, alone)
        assert torch.equal(out[i : i + 1], alone)


def encode(encoder: Encoder3D, x: Tensor, lengths: tuple[int, ...] = ()) -> Tensor:
    """Walk as on CUDA: window by window, or the whole clip."""

    def walk(piece: Tensor, cache: EncoderCache | None, rule: PoolRule) -> Tensor:
        return fused.encode(encoder, piece.contiguous(memory_format=torch.channels_last_3d), cache, rule)

    assert fused.applies(encoder)
    if not lengths:
        return walk(x, None, "first")
    cache: EncoderCache = {}
    return torch.cat([walk(piece, cache, "parity") for piece in x.split(lengths, 2)], 2)


def walks() -> None:
    """The fused walk is the encoder: whole and windowed, with every kind of layer, in float32 and float16."""
    kinds = (
        {},
        {"pad_mode": "constant", "resamp_with_conv": False, "temporal_compress_times": 1},
        {"pad_mode": "reflect", "attn_resolutions": [16]},
    )
    for options in kinds if FULL else ():
        torch.manual_seed(0)
        settings = {"resolution": 32, "attn_resolutions": [], "temporal_compress_times": 2, **options}
        encoder = Encoder3D(ch=32, ch_mult=(1, 2), num_res_blocks=2, in_channels=3, z_channels=4, **settings)  # type: ignore[arg-type]
        x = torch.randn(2, 3, 9, 10, 14)
        with kernels.plain():
            whole = encoder(x)
            first, cache = encoder.step(x[:, :, :5])
            steps = torch.cat([first, encoder.step(x[:, :, 5:], cache)[0]], 2)
        assert relative(encode(encoder, x), whole.double()) < 1e-5, options
        assert relative(encode(encoder, x, (5, 4)), steps.double()) < 1e-5, options
        half = encode(encoder.half(), x.half(), (5, 4))
        assert relative(half, steps.double()) < 5e-3, options
    model = vae.load_vae("tiny")
    x = torch.rand(1, 3, 5, 8, 16) * 2 - 1
    assert isinstance(model.encoder, Encoder3D)
    with kernels.plain():
        exact_moments = model.encoder.step(x)[0].double()
    uncut = encode(model.encoder, x, (5,))
    assert relative(uncut, exact_moments) < 1e-5
    pieces.MOST_ELEMENTS, most = 2000, pieces.MOST_ELEMENTS
    assert model.encoder.conv_in.frames_at_a_time(x) < 5
    assert relative(encode(model.encoder, x, (5,)), uncut.double()) < 1e-6
    pieces.MOST_ELEMENTS = most


def shortcuts() -> None:
    """A block whose shortcut pads, and one whose shortcut does not, with a bias pending on their input."""
    for padded in (True, False):
        torch.manual_seed(0)
        block = vae.ResnetBlock3D(
            in_channels=32, out_channels=64, conv_shortcut=padded, dropout=0.0, temb_channels=0, pad_mode="first"
        )
        x, bias = channels_last(1, 32, 3, 4, 5), torch.randn(32)
        with kernels.plain():
            expected = block((x + bias.view(-1, 1, 1, 1)).contiguous())
        found = fused.block(block, fused.Pending(x, bias), None, measure=False)
        assert found.bias is None
        assert relative(found.data, expected.double()) < 1e-5


if __name__ == "__main__":
    with torch.no_grad():
        for law in (norms, sums, pools, samples, shortcuts, walks):
            law()
