"""Cut a convolution in time where its tensors are too large: above 2^31 elements, or above a bound of memory.

cuDNN counts elements in 32 bits, and 49 frames of 480x720 with 128 channels are 2.2e9. A causal convolution in pieces
is the same convolution: each piece begins with the last frames of the one before. A norm is never cut, because its
statistics are those of all frames. Where the cuts are follows from the shape, the dtype and the device alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOST_ELEMENTS = 2**31 - 1
"""Elements of a tensor that a convolution may read or write at once."""

MOST_BYTES = 2**32
"""Bytes of the same on a GPU. A window of 9x480x720 takes 1.9 GB in float32, so it is never cut."""

PIECES = 4
"""A piece takes at most this part of the bound, so that the memory beside the whole tensors is small."""


def frames_at_a_time(x: Tensor, out_channels: int, *, extra: int = 0, least: int = 1, frames: int = 2) -> int:
    """Return how many frames of x a convolution takes at once: all of them if they are within the bounds.

    Args:
        x: the input.
        out_channels: of the convolution.
        extra: frames before x that the convolution reads, too.
        least: the fewest frames of a piece.
        frames: the dimension of the frames.
    """
    each = x.numel() // x.shape[frames] * max(x.shape[1], out_channels) // x.shape[1]
    most = MOST_ELEMENTS if x.device.type == "cpu" else min(MOST_ELEMENTS, MOST_BYTES // x.element_size())
    if (x.shape[frames] + extra) * each <= most:
        return x.shape[frames]
    return max(most // PIECES // each - extra, least)


def in_pieces(convolve: Callable[[Tensor], Tensor], x: Tensor, out_channels: int, frames: int = 2) -> Tensor:
    """Return convolve(x) of a convolution that reads one frame at a time."""
    step, num_frames = frames_at_a_time(x, out_channels, frames=frames), x.shape[frames]
    pieces = (x.narrow(frames, start, min(step, num_frames - start)) for start in range(0, num_frames, step))
    return joined(map(convolve, pieces), num_frames, frames)


def joined(pieces: Iterable[Tensor], num_frames: int, frames: int = 2) -> Tensor:
    """Return pieces as one tensor of `num_frames` in their layout; each piece is copied as it comes."""
    out: Tensor | None = None
    start = 0
    for piece in pieces:
        if out is None:
            if piece.shape[frames] == num_frames:
                return piece
            layout = {5: torch.channels_last_3d, 4: torch.channels_last}[piece.ndim]
            shape = (*piece.shape[:frames], num_frames, *piece.shape[frames + 1 :])
            layout = layout if piece.is_contiguous(memory_format=layout) else torch.contiguous_format
            out = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)
        out.narrow(frames, start, piece.shape[frames]).copy_(piece)
        start += piece.shape[frames]
    assert out is not None
    return out
