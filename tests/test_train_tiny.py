"""Laws: training in pieces is one run; it begins as good as a linear code; what is written decodes as what was trained;
SOAP does not depend on the basis that weights are written in, and of a bias it is Adam.
And of the weights that come with the package: they are small, their latents have a std near 1, and they are as good as
they say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vae
from jobs.train_tiny.clips import clips_to_judge, made_clip
from jobs.train_tiny.evaluate import LinearCode, as_pixels, judge, natural, restored
from jobs.train_tiny.export import standardise, stds
from jobs.train_tiny.model import TinyVAE
from jobs.train_tiny.soap import BETAS, SOAP
from jobs.train_tiny.start import start_linear
from jobs.train_tiny.train import Training, train
from vae.checkpoints.tiny import WEIGHTS, read_tiny

SHORT = Training(steps=3, batch_size=1, crop=32, threads=1)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [made_clip(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def started(clips: list[np.ndarray]) -> TinyVAE:
    torch.manual_seed(0)
    model = TinyVAE().eval()
    start_linear(model, torch.cat([as_pixels(clip) for clip in clips]))
    return model


def shipped() -> TinyVAE:
    model, weights = TinyVAE().eval(), read_tiny()
    model.encoder.load_state_dict(weights.encoder)
    model.decoder.load_state_dict(weights.decoder)
    return model


@pytest.mark.slow
def test_training_in_pieces_is_one_run(clips: list[np.ndarray], tmp_path: Path) -> None:
    whole = train(SHORT, clips, clips, tmp_path / "whole", save_every=1)
    for _ in range(SHORT.steps):
        piece = train(SHORT, clips, clips, tmp_path / "pieces", save_every=1, most_steps=1)
    for ours, theirs in zip(whole.state_dict().values(), piece.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert len((tmp_path / "pieces/log.csv").read_text().splitlines()) == 1 + SHORT.steps


def test_soap_does_not_depend_on_the_basis() -> None:
    """Weights and gradients turned by orthogonal matrices take the same way, turned. That of Adam differs."""
    turns = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (6, 5)]

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oikl,op,iq->pqkl", x, *turns)

    start = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    plain, other = (torch.nn.Parameter(x.clone()) for x in (start, turned(start)))
    optimizers = [SOAP([{"params": [weight], "lr": 0.1}]) for weight in (plain, other)]
    for _ in range(25):
        gradient = torch.randn(6, 5, 3, 3, dtype=torch.float64)
        plain.grad, other.grad = gradient, turned(gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert float((plain.detach() - start).abs().max()) > 0.1
    torch.testing.assert_close(turned(plain.detach()), other.detach(), rtol=0, atol=1e-6)


def test_soap_of_a_bias_is_adam() -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    optimizers = [SOAP([{"params": [ours], "lr": 0.1}]), torch.optim.Adam([theirs], lr=0.1, betas=BETAS)]
    for _ in range(25):
        ours.grad = theirs.grad = torch.randn(7)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_begins_as_good_as_a_linear_code(started: TinyVAE, clips: list[np.ndarray]) -> None:
    ((_, ours, theirs),) = judge(started, LinearCode(clips), {"made": clips})
    assert ours > theirs - 0.3


@pytest.mark.slow
def test_standard_deviations_become_1_and_pixels_stay(started: TinyVAE, clips: list[np.ndarray]) -> None:
    before = restored(started, clips[0]).astype(int)
    standardise(started, clips)
    torch.testing.assert_close(stds(started, clips), torch.ones(16), rtol=0, atol=1e-4)
    assert abs(restored(started, clips[0]) - before).max() <= 1


def test_what_comes_with_the_package_is_small_and_scaled() -> None:
    model = shipped()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert WEIGHTS.stat().st_size <= 6_000_000
    scale = read_tiny().scale
    found = scale * stds(model, [made_clip(1000 + seed) for seed in range(16)])
    assert 0.7 < float(found.min()) < float(found.max()) < 1.4


def test_the_decoder_of_tiny_undoes_its_encoder() -> None:
    """Well enough to see what is there, through the scaling and the interface that a user has."""
    tiny, clip = vae.load_vae("tiny"), made_clip(1000)
    latent = tiny.scale(tiny.encode(as_pixels(clip)).mode())
    expected = shipped().restore(as_pixels(clip)).clamp(-1, 1)
    torch.testing.assert_close(tiny.decode(latent), expected, rtol=0, atol=1e-6)


def test_only_natural_clips_are_trained_on(clips: list[np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, clips[0].shape, np.uint8)
    kept = natural([*clips, noise, np.zeros_like(noise)])
    assert [id(clip) for clip in kept] == [id(clip) for clip in clips]
    assert natural([]) == []


def test_a_crop_larger_than_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at most 128, the height of a clip, got 96, 4"):
        Training(crop=96)


@pytest.mark.slow
def test_it_is_as_good_as_it_says_on_videos_that_it_has_not_seen(shared: Path) -> None:
    facts = read_tiny().facts
    model, judged = shipped(), clips_to_judge(shared / "videos")
    rows = judge(model, lambda clip: clip, judged)
    assert float(np.mean([ours for _, ours, _ in rows])) == pytest.approx(facts["psnr"], abs=0.05)
    assert facts["psnr"] >= max(24, facts["linear_psnr"] + 1.5)
