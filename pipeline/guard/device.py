"""Tell the faults of a device and of its memory from those of the code."""

from __future__ import annotations

import torch

from pipeline.errors import LatentmillError

DEVICE_SIGNS = (
    *("DefaultCPUAllocator", "failed to allocate", "out of memory"),
    *("cuDNN error", "unable to find an engine", "Unable to find a valid cuDNN algorithm"),
    *("CUDA error", "CUDA driver error", "No CUDA GPUs are available", "CUBLAS_STATUS", "cuFFT error", "Triton Error"),
)
"""Texts of the messages by which torch's libraries tell that memory or a device failed, in any case of letters. cuDNN
finds no engine where no workspace fits."""


class NoRoomError(LatentmillError):
    """Memory or the device failed while an encoder started, before it saw the chunk."""


def is_of_the_device(error: Exception) -> bool:
    """Return whether memory or the device failed, and not the code. torch raises a plain RuntimeError for host memory,
    cuDNN and cuBLAS, and Triton does so for every error of the driver."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError | MemoryError):
        return True
    message = str(error).casefold()
    return any(sign.casefold() in message for sign in DEVICE_SIGNS)
