"""Find a checkpoint's format by its content and read it strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """Not a checkpoint that can be loaded. The message names the place, what was found and what was expected."""


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest names, dtypes, shapes and little-endian bytes, in the order of names.

    Given encoder tensors in MoVQ naming as stored (before any cast), it is the same for one set of weights whatever
    the file format, the place and the device.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
