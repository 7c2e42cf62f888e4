"""The tools of `jobs.bench.gpu`: a timer of a device, and the encoders, ours and diffusers', with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vae import VAEInfo, VideoVAE
from vae.encoder import Encoder3D

ROUNDS = 3

Shape = tuple[int, int, int]
"""Frames, height and width."""


class Timer:
    """Time calls and moments on a device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self._first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._first.record()

    def seconds(self, run: Callable[[], object], rounds: int = ROUNDS) -> float:
        """Return the median time of a call, after one that is not counted."""
        times = []
        for _ in range(1 + rounds):
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return median(times[1:])

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.cuda:
            torch.cuda.synchronize()

    def moment(self) -> Callable[[], float]:
        """Mark this moment of the device without waiting. The result gives it in seconds, after `wait`."""
        if not self.cuda:
            now = time.perf_counter()
            return lambda: now
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return lambda: self._first.elapsed_time(event) / 1e3

    def peak(self, run: Callable[[], object]) -> str:
        """Return the most memory of the device that is held during a call, as text."""
        if not self.cuda:
            return "not measured"
        torch.cuda.reset_peak_memory_stats()
        run()
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"


def our_model(channels: int, device: torch.device, dtype: torch.dtype) -> VideoVAE:
    """Return the encoder of CogVideoX with random weights, the same in every process."""
    torch.manual_seed(0)
    encoder = Encoder3D(
        ch=channels,
        ch_mult=(1, 2, 2, 4),
        num_res_blocks=3,
        attn_resolutions=[],
        in_channels=3,
        resolution=256,
        z_channels=16,
    )
    encoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        layout = {5: torch.channels_last_3d, 4: torch.channels_last}.get(parameter.ndim, torch.contiguous_format)
        parameter.data = parameter.data.clone(memory_format=layout)
    info = VAEInfo(
        name="random",
        config={},
        weights_sha256="",
        in_channels=3,
        latent_channels=16,
        time_compression=4,
        space_compression=8,
        scale=1.0,
        shift=0.0,
        schedule="batched8",
        windowed=True,
    )
    return VideoVAE(encoder, info)


def their_model(channels: int, device: torch.device) -> Any:
    """Return diffusers' encoder of the same size."""
    from diffusers import AutoencoderKLCogVideoX

    theirs = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(channels, 2 * channels, 2 * channels, 4 * channels),
        layers_per_block=3,
    )
    theirs.decoder = None
    return theirs.eval().to(device=device, dtype=torch.bfloat16)


def pixels_of(shape: Shape) -> Tensor:
    """Return the same noise in every process, uint8 (1, 3, T, H, W) on the CPU."""
    return torch.randint(0, 256, (1, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def text(shape: Shape) -> str:
    """49x480x720."""
    return "x".join(map(str, shape))
