"""Judge a VAE on clips: its PSNR beside that of the best linear code of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from jobs.train_tiny.clips import Clip
from jobs.train_tiny.model import TinyVAE

LATENT_CHANNELS = 16
BLOCK = (4, 8, 8)
"""Frames, rows and columns that one latent cell stands for; the first frame has cells of its own."""

NATURAL = (21.0, 38.0)
"""dB. Test patterns are worse, black and still pictures better. 347 of 498 clips of real videos are within."""

Blocks = npt.NDArray[np.float64]


class LinearCode:
    """PCA of blocks to LATENT_CHANNELS numbers.

    The blocks of the first frame have a PCA of their own, which makes this code 0.06 dB better than one PCA for all.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._bases = [_principal(np.concatenate([_blocks(clip)[part] for clip in clips])) for part in (0, 1)]

    def __call__(self, clip: Clip) -> Clip:
        """Return a clip after coding and decoding."""
        parts = []
        for blocks, (mean, basis) in zip(_blocks(clip), self._bases, strict=True):
            parts.append((blocks - mean) @ basis @ basis.T + mean)
        return _unblocked(parts, clip.shape).round().clip(0, 255).astype(np.uint8)


def natural(clips: Sequence[Clip]) -> list[Clip]:
    """Return the clips that a linear code of all of them restores with a PSNR within NATURAL."""
    if not clips:
        return []
    linear, (least, most) = LinearCode(clips), NATURAL
    return [clip for clip in clips if least < _psnr(clip, linear(clip)) < most]


def judge(model: TinyVAE, linear: LinearCode, judged: dict[str, list[Clip]]) -> list[tuple[str, float, float]]:
    """Return of each video its name, the mean PSNR in dB of its clips, and that of the linear code."""

    def mean(code: Callable[[Clip], Clip], clips: list[Clip]) -> float:
        return float(np.mean([_psnr(clip, code(clip)) for clip in clips]))

    return [
        (name, mean(lambda clip: restored(model, clip), clips), mean(linear, clips)) for name, clips in judged.items()
    ]


def restored(model: TinyVAE, clip: Clip) -> Clip:
    """Return what comes back of a clip."""
    decoded = model.restore(as_pixels(clip))[0].permute(1, 2, 3, 0)
    frames: Clip = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return frames


def as_pixels(clip: Clip) -> Tensor:
    """Return float32 (1, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(clip.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _psnr(clip: Clip, other: Clip) -> float:
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(clip, other, data_range=255))


def _blocks(clip: Clip) -> tuple[Blocks, Blocks]:
    """Cut a clip [1 + 4k, H, W, 3] into blocks: the first frame's [n, 8*8*3], and the others' [k*n, 4*8*8*3]."""
    num_frames, height, width, _ = clip.shape
    t, y, x = BLOCK
    first = clip[0].reshape(height // y, y, width // x, x, 3).transpose(0, 2, 1, 3, 4)
    rest = clip[1:].reshape(num_frames // t, t, height // y, y, width // x, x, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    return first.reshape(-1, y * x * 3).astype(np.float64), rest.reshape(-1, t * y * x * 3).astype(np.float64)


def _unblocked(parts: Sequence[Blocks], shape: tuple[int, ...]) -> Blocks:
    num_frames, height, width, _ = shape
    t, y, x = BLOCK
    first = parts[0].reshape(height // y, width // x, y, x, 3).transpose(0, 2, 1, 3, 4).reshape(1, height, width, 3)
    rest = parts[1].reshape(num_frames // t, height // y, width // x, t, y, x, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    return np.concatenate([first, rest.reshape(num_frames - 1, height, width, 3)])


def _principal(blocks: Blocks) -> tuple[Blocks, Blocks]:
    mean = blocks.mean(0)
    _, vectors = np.linalg.eigh(np.cov(blocks - mean, rowvar=False))
    return mean, vectors[:, -LATENT_CHANNELS:]
