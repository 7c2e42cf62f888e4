"""Law: a long clip of Wan, cut anywhere on its grid with the context that the receptive field asks for, is the clip."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vae
from tests.vae.wan_models import VARIANTS, random_wan, relative
from vae.autoencoder import VideoVAE

pytest.importorskip("diffusers")

NUM_FRAMES = 133


@pytest.fixture(scope="module", params=list(VARIANTS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoVAE:
    """Full depth, so that the receptive field is the published models'."""
    folder = tmp_path_factory.mktemp("wan")
    random_wan(request.param).save_pretrained(folder)
    return vae.load_vae(str(folder))


def clip() -> Tensor:
    return torch.rand(1, 3, NUM_FRAMES, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def in_chunks(model: VideoVAE, pixels: Tensor, info: vae.VAEInfo, chunk_windows: int) -> Tensor:
    spans = info.spans(pixels.shape[2], chunk_windows=chunk_windows, context=None)
    parts = [
        model.encode_windows(pixels[:, :, span.start : span.stop], span.windows, span.num_context_windows)
        for span in spans
    ]
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("chunk_windows", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_chunks_are_the_clip_bit_for_bit(model: VideoVAE, chunk_windows: int) -> None:
    pixels = clip()
    assert model.info.exact_context == 28
    spans = model.info.spans(NUM_FRAMES, chunk_windows=chunk_windows, context=None)
    assert spans[-1].start > 0, "the last chunk must not reach back to the start"
    assert all(span.body - span.start <= 112 for span in spans)
    whole = model.encode(pixels).parameters
    assert torch.equal(in_chunks(model, pixels, model.info, chunk_windows), whole)


def test_in_bfloat16_too(model: VideoVAE) -> None:
    half = VideoVAE(model.encoder.bfloat16(), model.info)
    try:
        assert torch.equal(in_chunks(half, clip(), model.info, 16), half.encode(clip()).parameters)
    finally:
        model.encoder.float()


@pytest.mark.slow
def test_less_context_is_an_approximation_that_gets_better(model: VideoVAE) -> None:
    pixels = clip()
    whole = model.encode(pixels).parameters
    errors = [relative(in_chunks(model, pixels, replace(model.info, exact_context=k), 25), whole) for k in (0, 2, 4, 8)]
    assert errors[3] < errors[0] / 2, errors
    assert all(after < before for before, after in pairwise(errors)), errors


def test_spans_of_a_clip(model: VideoVAE) -> None:
    """A clip of few windows is one chunk. The number that a job asks for has no effect, since exactness is cheap."""
    info = model.info
    (one,) = info.spans(81, chunk_windows=21, context=3)
    assert (one.windows, one.num_context_windows) == ((1, *[4] * 20), 0)
    spans = info.spans(385, chunk_windows=32, context=3)
    assert spans == info.spans(385, chunk_windows=32, context=None)
    assert [(span.start, span.body, span.stop) for span in spans] == [
        (0, 0, 125),
        (13, 125, 253),
        (141, 253, 381),
        (269, 381, 385),
    ]
    assert [span.num_context_windows for span in spans] == [0, 28, 28, 28]


def test_a_stream_continues_from_its_state(model: VideoVAE) -> None:
    pixels = clip()[:, :, :9]
    whole = model.encode(pixels).parameters
    first, state = model.encode_window(pixels[:, :, :1])
    again = [model.encode_window(pixels[:, :, 1:5], state)[0] for _ in range(2)]
    assert torch.equal(again[0], again[1])
    assert torch.equal(torch.cat([first, again[0]], dim=2), whole[:, :, :2])


def test_random_access_does_not_depend_on_the_past(tmp_path: Path) -> None:
    """The context may follow anything: frames before it change nothing."""
    random_wan("2.1", num_res_blocks=1, dim_mult=[1, 1, 2, 2]).save_pretrained(tmp_path)
    small = vae.load_vae(str(tmp_path))
    assert small.info.exact_context == 20
    pixels = clip()
    changed = pixels.clone()
    changed[:, :, : NUM_FRAMES - 4 * 21] = 0
    assert torch.equal(small.encode(pixels).parameters[:, :, -1], small.encode(changed).parameters[:, :, -1])
