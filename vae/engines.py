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


def complaint(dtype: str, capability: tuple[int, int]) -> str:
    """Return why a GPU of this compute capability does not encode in this dtype, or "".

    Below 8.0 cuDNN has no bfloat16 convolution. torch then unfolds every input without a word: 27 times the memory, and
    tens of times the time (aten/src/ATen/native/Convolution.cpp, use_cudnn).
    """
    if dtype != "bfloat16" or capability >= (8, 0):
        return ""
    return (
        f"--dtype bfloat16 needs a GPU of compute capability 8.0 or above, this one has {capability[0]}.{capability[1]}"
        " and no such convolution: use --dtype float16"
    )


def device_name(device: str) -> str:
    """Return the name of the GPU that "cuda" is; else, or if it does not answer, `device`."""
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device


def cudnn_version() -> int | None:
    """Return cuDNN's version as a number, 92000 for 9.20.0, or None without CUDA."""
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def engines() -> Engines:
    """Return how torch chooses engines in this process, by its flags and its environment."""
    if torch.backends.cudnn.benchmark:
        return "searched"
    return "mode_b" if os.environ.get(MODE_B) == "1" else "instant"
