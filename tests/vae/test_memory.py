"""A long clip needs no more memory than a short one: what is allocated, not what the process holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from jobs.bench.chunking import full_depth_vae
from vae.autoencoder import VideoVAE


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest sum of torch's allocations while `run` runs, less what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    assert events
    held = peak = 0
    for _, num_bytes in events:
        held += num_bytes
        peak = max(peak, held)
    return peak


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoVAE:
    return full_depth_vae(tmp_path_factory.mktemp("weights"), image_like=True)


def peak_of_clip(model: VideoVAE, num_frames: int, height: int, width: int) -> int:
    pixels = torch.zeros(1, 3, num_frames, height, width, dtype=torch.uint8)
    return peak_bytes(lambda: model.encode(pixels))


def test_a_clip_needs_little_more_than_its_first_window(model: VideoVAE) -> None:
    one = peak_of_clip(model, 9, 32, 48)
    many = peak_of_clip(model, 49, 32, 48)
    frame = 32 * 32 * 48 * 4
    assert one > 20 * frame, "the measurement sees a window's activations"
    assert many <= 1.2 * one, f"{many / one:.3f}"


def test_memory_does_not_grow_with_the_clip(model: VideoVAE) -> None:
    some, many = (peak_of_clip(model, n, 16, 16) for n in (49, 481))
    moments = 32 * 121 * 2 * 2 * 4
    assert many <= some + 2 * moments, f"{many / some:.3f}"
