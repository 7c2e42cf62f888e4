"""Which kernels cuDNN takes: fixed for a run, so that the same clip gives the same bits in every process.

cuDNN offers several engines for one convolution, and each may round in its own order. torch chooses in one of three
ways. The first two are functions of the problem, the card and the release of cuDNN, and so the same in every process;
the third depends on measured times.

    instant    cudnn.benchmark off: the first engine of cuDNN's instant heuristic. What production uses.
    mode_b     the same with cuDNN's heuristic mode B, if MODE_B is 1 in the environment before the first convolution
    searched   cudnn.benchmark on: the fastest of `cudnn.benchmark_limit` engines, measured at the first convolution

Nothing tells from Python which engine was taken. `latentmill bench gpu` compares speed and bytes of the three over two
processes. Until a GPU has shown that another choice is faster and equal in every process, production stays at instant.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

Engines = Literal["instant", "mode_b", "searched"]

MODE_B = "TORCH_CUDNN_USE_HEURISTIC_MODE_B"
"""The variable that torch reads once, at its first convolution (aten/src/ATen/native/ConvUtils.h)."""


def make_deterministic(threads: int, *, float32: bool) -> None:
    """Set what makes the same clip give the same bits in every process (docs/architecture.md, Encoding).

    Args:
        threads: torch threads on a CPU, on which the last bits depend.
        float32: whether the compute dtype is float32, in which TF32 would lose digits.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = not float32
    torch.backends.cudnn.allow_tf32 = not float32


def cudnn_version() -> int | None:
    """Return cuDNN's version as a number, 92000 for 9.20.0, or None without CUDA."""
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def engines() -> Engines:
    """Return how torch chooses engines in this process, by its flags and its environment."""
    if torch.backends.cudnn.benchmark:
        return "searched"
    return "mode_b" if os.environ.get(MODE_B) == "1" else "instant"
