"""Train `tiny`: every batch follows from the seed and its number, so a run in pieces is one run."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.train_tiny.clips import HEIGHT, Clip
from jobs.train_tiny.model import TinyVAE
from jobs.train_tiny.soap import SOAP
from jobs.train_tiny.start import start_linear
from vae.encoder import Level

LAST_PART_FROM = 0.7
"""The part of the steps after which crops are larger, and the encoder's block at the resolution of the pixels takes
part. That block doubles the time of a step, and begins as the identity."""
REAL_SHARE = 0.85
"""Share of real clips in the batches, if there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How `tiny` is trained. The defaults take two cores about 45 minutes."""

    steps: int = 18_000
    """Batches to train on."""
    batch_size: int = 4
    crop: int = 64
    """Height and width of a training crop, a multiple of 8; 9 frames."""
    rate: float = 0.4
    """Largest learning rate; see `optimizer_of`."""
    seed: int = 0
    threads: int = 2
    """Torch threads."""

    def __post_init__(self) -> None:
        if self.last_crop > HEIGHT:
            raise ValueError(
                f"crop times the root of batch_size must be at most {HEIGHT}, the height of a clip, got {self.crop}, "
                f"{self.batch_size}"
            )

    @property
    def last_crop(self) -> int:
        """Height and width of the single crop that is a batch in the last part: about as many pixels as before."""
        return math.isqrt(self.batch_size) * self.crop


def train(
    options: Training,
    real: Sequence[Clip],
    made: Sequence[Clip],
    work: Path,
    *,
    save_every: int = 250,
    most_steps: int | None = None,
) -> TinyVAE:
    """Return the trained networks: the average over the last steps.

    Args:
        real, made: clips to train on.
        work: the folder of the log `log.csv`, and of `state.pt`, from which the same call goes on after a stop.
        save_every: steps between two saves; the log has a line at least as often.
        most_steps: stop after so many steps; None: train to the end.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model, average = TinyVAE(), TinyVAE().eval()
    optimizer = optimizer_of(model, options.rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
    first, state = 0, work / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    else:
        start_linear(model, _sample([*real, *made], options.seed))
        average.load_state_dict(model.state_dict())
    began = time.monotonic()
    for step in range(first, min(options.steps, first + (most_steps or options.steps))):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _schedule(step, options.steps)
        is_last = step >= LAST_PART_FROM * options.steps
        _let_first_block_learn(model, is_last)
        loss, squared = _step(model, optimizer, options, _batch(options, real, made, step, is_last), step)
        _follow(average, model, min(0.998, step / (step + 20)))
        if (step + 1) % min(save_every, 50) == 0:
            _log(work / "log.csv", step + 1, loss, squared, time.monotonic() - began)
        if (step + 1) % save_every == 0 or step + 1 == options.steps:
            torch.save({"step": step + 1} | {name: part.state_dict() for name, part in parts.items()}, state)
    return average


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return SOAP with a learning rate for each size of layer.

    A step changes each weight by about its learning rate, so the output of a layer by that times the number of its
    inputs; the rate is divided by this number (Yang et al. 2022, "Tensor Programs V"). The start is already within 0.04
    of the pixels' range: at a common rate of 1e-3, the first step of Adam would change pixels by 0.5.
    """
    by_rate: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        share = 0.02 if parameter.ndim == 1 else 1 / parameter[0].numel()
        by_rate.setdefault(rate * share, []).append(parameter)
    groups = [{"params": parameters, "lr": lr} for lr, parameters in by_rate.items()]
    return SOAP(groups)


def _sample(clips: Sequence[Clip], seed: int) -> Tensor:
    """Draw 100 whole clips to fit the start on: float32 (B, 3, T, H, W) in [-1, 1]."""
    chosen = np.random.default_rng(seed).permutation(len(clips))[:100]
    return torch.stack([torch.from_numpy(clips[i].copy()) for i in chosen]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear start, then half a cosine to 2 %."""
    return min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _let_first_block_learn(model: TinyVAE, does: bool) -> None:
    level = model.encoder.down[0]
    assert isinstance(level, Level)
    block = level.block[0]
    block.__dict__.pop("forward", None)
    if not does:
        block.__dict__["forward"] = lambda h, **_: h


def _batch(options: Training, real: Sequence[Clip], made: Sequence[Clip], step: int, is_last: bool) -> Tensor:
    """Draw crops, mirrored, turned, darkened or played backwards at random: float32 (B, 3, T, H, W) in [-1, 1]."""
    random, count, size = np.random.default_rng([options.seed, step]), options.batch_size, options.crop
    if is_last:
        count, size = 1, options.last_crop
    crops = []
    for _ in range(count):
        clips = real if real and random.random() < REAL_SHARE else made
        clip = clips[int(random.integers(len(clips)))]
        top, left = random.integers(clip.shape[1] - size + 1), random.integers(clip.shape[2] - size + 1)
        crop = clip[:, top : top + size, left : left + size]
        crop = crop[:: random.choice((-1, 1)), :: random.choice((-1, 1)), :: random.choice((-1, 1))]
        crop = crop.transpose(0, 2, 1, 3) if random.random() < 0.25 else crop
        bright = (crop / 127.5 - 1) * random.uniform(0.7, 1.15) + random.uniform(-0.15, 0.15)
        crops.append(torch.from_numpy(bright.clip(-1, 1)))
    return torch.stack(crops).permute(0, 4, 1, 2, 3).float().contiguous()


def _step(
    model: TinyVAE, optimizer: torch.optim.Optimizer, options: Training, pixels: Tensor, step: int
) -> tuple[float, float]:
    """Change the weights once. Return the loss and the squared error."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    batch, _, num_frames, height, width = pixels.shape
    noise = torch.randn((batch, 16, 1 + (num_frames - 1) // 4, height // 8, width // 8), generator=generator)
    loss, squared = loss_of(model, pixels, noise)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float(squared.detach())


def loss_of(model: TinyVAE, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss, and the squared error alone.

    The loss is half the logarithm of each crop's squared error (its PSNR, up to a factor), the absolute error of the
    pixels and of their gradients, and a little of the KL divergence from N(0, 1).
    """
    with torch.autocast("cpu", torch.bfloat16):
        decoded, posterior = model(pixels, noise)
    error = decoded.float() - pixels
    squared = error.square().mean((1, 2, 3, 4))
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return 0.5 * squared.add(2e-4).log().mean() + 2 * error.abs().mean() + 0.5 * edges + 1e-4 * kl, squared.mean()


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)


def _log(path: Path, step: int, loss: float, squared: float, seconds: float) -> None:
    psnr = 10 * math.log10(4 / squared)
    print(f"step {step}  loss {loss:.4f}  psnr {psnr:.2f} dB  {seconds:.0f} s", flush=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(("step", "loss", "psnr", "seconds"))
        writer.writerow((step, f"{loss:.5f}", f"{psnr:.3f}", f"{seconds:.1f}"))
