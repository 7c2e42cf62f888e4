"""What encoding a clip costs on CUDA, by a model: operations, and bytes of memory traffic. It needs no GPU.

The encoder walks over tensors without data (`meta`) as it would on CUDA. torch's FlopCounterMode counts operations;
`vae.kernels.traffic` counts bytes from the shapes of every kernel and operation. Measured rates of a card turn both
into a floor for the time; nothing here is a measurement.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vae import kernels
from vae.encoder import Encoder3D, EncoderCache
from vae.kernels.traffic import CONVOLUTION, Traffic, listening
from vae.shapes import Schedule, window_lengths


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations and bytes of one clip."""

    flop: Counter[str]
    """Floating-point operations by part of the encoder ("level 0"); a multiplication and its addition are two."""
    bytes: Counter[tuple[str, str]]
    """Memory traffic by part and by kind of pass, as in `vae.kernels.traffic.Traffic`."""

    def bytes_by_kind(self) -> Counter[str]:
        """Return the traffic of each kind of pass, the convolutions' own included."""
        kinds: Counter[str] = Counter()
        for (_, kind), num_bytes in self.bytes.items():
            kinds[kind] += num_bytes
        return kinds

    def bytes_beside_convolutions(self) -> int:
        """Return the traffic of all passes but the convolutions themselves."""
        return self.bytes.total() - self.bytes_by_kind()[CONVOLUTION]

    def floor_seconds(self, matmul_rate: float, copy_rate: float) -> float:
        """Return the least time: convolutions at a matrix product's rate, and every other pass at a copy's.

        Args:
            matmul_rate: operations per second of a large matrix product, measured on the card.
            copy_rate: bytes per second, read and written, of a large copy, measured on the card.
        """
        return self.flop.total() / matmul_rate + self.bytes_beside_convolutions() / copy_rate


def cost_of_clip(
    encoder: Encoder3D,
    shape_THW: tuple[int, int, int],
    *,
    schedule: Schedule = "batched8",
    dtype: torch.dtype = torch.bfloat16,
) -> Cost:
    """Count one clip of T frames of H x W: the operations that the encoder is, the bytes of the path that CUDA takes.

    Without Triton the bytes are those of the ordinary path, which is the path that CUDA takes without Triton.
    """
    shadow = copy.deepcopy(encoder).to(device="meta", dtype=dtype)
    windows = window_lengths(shape_THW[0], schedule)
    cost = Cost(Counter(), Counter())
    plain: EncoderCache = {}
    fast: EncoderCache = {}
    for i, length in enumerate(windows[:2]):  # all windows after the first one cost the same
        times = len(windows) - 1 if i else 1
        x = torch.empty(1, encoder.in_channels, length, *shape_THW[1:], dtype=dtype, device="meta")
        with kernels.plain(), FlopCounterMode(display=False) as counter:
            for part, flop in _by_part(shadow, x, plain, schedule, lambda: {"": counter.get_total_flops()}):
                cost.flop[part] += flop[""] * times
        with kernels.workspace(), Traffic() as traffic:
            for part, found in _by_part(shadow, x, fast, schedule, lambda: dict(traffic.bytes)):
                for kind, num_bytes in found.items():
                    cost.bytes[part, kind] += num_bytes * times
    return cost


@torch.no_grad()
def _by_part(
    encoder: Encoder3D, x: Tensor, cache: EncoderCache, schedule: Schedule, total: Callable[[], Mapping[str, int]]
) -> list[tuple[str, Counter[str]]]:
    """Walk over x, and return by how much each part of the encoder increased the totals."""
    began: list[tuple[str, Counter[str]]] = []
    with listening(lambda part: began.append((part, Counter(total())))):
        if schedule == "whole":
            encoder(x)
        else:
            encoder.step(x, cache)
    ends = [counts for _, counts in began[1:]] + [Counter(total())]
    return [(part, end - start) for (part, start), end in zip(began, ends, strict=True)]
