"""python -m jobs.bench chunking: measure how accurate clips in chunks are. Prints the table of docs/latents.md."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE

CONTEXTS = range(8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Options of the benchmark."""

    vae: str | None = None
    """Checkpoint to use instead of random weights."""
    size: int = 48
    """Height and width of the clips."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the error of a chunk's latents by number of context windows, for several weights and clips."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench chunking", description=__doc__)
    torch.set_num_threads(1)
    models = {"its own": vae.load_vae(args.vae)} if args.vae else random_vaes()
    clips = {
        "steady": steady_clip(73, args.size),
        "noise": torch.rand(1, 3, 73, args.size, args.size) * 2 - 1,
    }
    print("| taps | clip |" + "".join(f" k={k} |" for k in CONTEXTS))
    print("|---|---|" + "---|" * len(CONTEXTS))
    for taps, model in models.items():
        for name, pixels in clips.items():
            errors = [chunk_error(model, pixels, context) for context in CONTEXTS]
            print(f"| {taps} | {name} |" + "".join(f" {error:.2g} |" for error in errors))
    return 0


def random_vaes() -> dict[str, VideoVAE]:
    """Return VAEs with random weights, by the kind of their temporal taps."""
    with tempfile.TemporaryDirectory() as folder:
        return {taps: full_depth_vae(Path(folder), image_like=taps == "image-like") for taps in ("image-like", "alike")}


def full_depth_vae(folder: Path, *, image_like: bool) -> VideoVAE:
    """Build a VAE with CogVideoX's depth, a quarter of its width, and random weights.

    `image_like` scales the temporal taps to 0.09, 0.3 and 1 (the current frame last), as in encoders that were
    initialised from image encoders. Otherwise the three have equal scale, which is the worst case for a cut.
    """
    torch.manual_seed(0)
    encoder = vae.Encoder3D(
        ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=3, attn_resolutions=(), in_channels=3, resolution=256, z_channels=16
    )
    if image_like:
        with torch.no_grad():
            for module in encoder.modules():
                if isinstance(module, vae.CausalConv3d):
                    module.conv.weight *= torch.tensor([0.09, 0.3, 1.0]).view(1, 1, 3, 1, 1)
    path = folder / "weights.safetensors"
    save_file(encoder.state_dict(), path)
    return vae.load_vae(str(path))


def steady_clip(num_frames: int, size: int) -> Tensor:
    """Return a smooth pattern that drifts slowly: (1, 3, T, size, size) in [-1, 1]."""
    t = torch.arange(num_frames).view(-1, 1, 1)
    y = torch.linspace(0, 6.28, size).view(1, -1, 1)
    x = torch.linspace(0, 6.28, size).view(1, 1, -1)
    frames = [0.5 * torch.sin((1 + c) * x + 0.08 * t) + 0.3 * torch.cos((2 - 0.5 * c) * y - 0.05 * t) for c in range(3)]
    return torch.stack(frames)[None]


def chunk_error(model: VideoVAE, pixels: Tensor, context: int) -> float:
    """Return the L2 error of the last chunk's mean (2 windows) against the uncut clip, over the reference's spread."""
    num_windows = len(vae.window_lengths(pixels.shape[2]))
    span = vae.chunk_spans(pixels.shape[2], chunk_windows=num_windows - 2, context=context)[-1]
    actual = model.encode_windows(pixels[:, :, span.start : span.stop], span.windows, span.num_context_windows)
    expected = model.encode(pixels).parameters[:, :, -actual.shape[2] :]
    mean, expected_mean = actual.chunk(2, dim=1)[0], expected.chunk(2, dim=1)[0]
    return float((mean - expected_mean).norm() / (expected_mean - expected_mean.mean()).norm())


if __name__ == "__main__":
    raise SystemExit(main())
