"""Laws of cutting a clip into chunks, on an encoder of CogVideoX's depth: a shallow one could not break them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from jobs.bench.chunking import chunk_error, full_depth_vae, steady_clip
from vae.autoencoder import VideoVAE
from vae.shapes import chunk_spans

NUM_FRAMES = 37
WINDOWS = (13, 8, 8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoVAE:
    return full_depth_vae(tmp_path_factory.mktemp("weights"), image_like=True)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return steady_clip(NUM_FRAMES, 16)


def in_chunks(model: VideoVAE, pixels: Tensor, chunk_windows: int, context: int | None) -> Tensor:
    spans = chunk_spans(pixels.shape[2], chunk_windows=chunk_windows, context=context)
    parts = [
        model.encode_windows(pixels[:, :, span.start : span.stop], span.windows, span.num_context_windows)
        for span in spans
    ]
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("chunk_windows", [1, 2, 3])
def test_context_all_the_way_back_is_exact(model: VideoVAE, pixels: Tensor, chunk_windows: int) -> None:
    whole = model.encode(pixels).parameters
    assert torch.equal(in_chunks(model, pixels, chunk_windows, len(WINDOWS)), whole)
    assert torch.equal(in_chunks(model, pixels, chunk_windows, None), whole)


def test_a_clip_of_few_windows_is_one_exact_chunk(model: VideoVAE, pixels: Tensor) -> None:
    assert torch.equal(in_chunks(model, pixels, len(WINDOWS), 0), model.encode(pixels).parameters)


def test_the_first_chunk_is_exact_and_the_shape_is_always_right(model: VideoVAE, pixels: Tensor) -> None:
    whole = model.encode(pixels).parameters
    cut = in_chunks(model, pixels, 2, 0)
    assert cut.shape == whole.shape
    assert torch.equal(cut[:, :, :6], whole[:, :, :6])
    assert not torch.allclose(cut[:, :, 6:], whole[:, :, 6:], atol=1e-2)


def test_the_error_falls_with_every_context_window(model: VideoVAE) -> None:
    pixels = steady_clip(57, 16)
    errors = [chunk_error(model, pixels, context) for context in range(6)]
    assert errors[0] > 0.1
    assert all(after < before for before, after in pairwise(errors)), errors
    assert errors[3] < 0.1 * errors[0], errors
    assert errors[5] == 0.0


@pytest.mark.slow
def test_the_error_falls_at_a_larger_size(model: VideoVAE) -> None:
    """The figures of docs/latents.md: a factor of at least 3 per context window."""
    pixels = steady_clip(73, 48)
    errors = [chunk_error(model, pixels, context) for context in range(5)]
    assert all(after < before / 2.5 for before, after in pairwise(errors)), errors
    assert errors[3] < 0.02, errors
