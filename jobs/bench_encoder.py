"""Time the encoder against diffusers' AutoencoderKLCogVideoX: the real architecture, random weights, the same process.

    python -m jobs.bench_encoder speed --dtype bfloat16 --shape 17x128x192 --threads 1 --rounds 3
    python -m jobs.bench_encoder profile --dtype bfloat16 --shape 17x128x192
    python -m jobs.bench_encoder chunking                     # the table of docs/chunking.md; no diffusers needed

Rounds alternate between the two, and the ratio is the median of the rounds' ratios: a neighbour's load hits both. Read
the ratio, and `cpu_ratio` (processor time) where the machine is shared; absolute times mean little there. `floor` is
what the convolutions would take at the rate of a large matrix product in the same run: about the limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE

REAL_CHANNELS = (128, 256, 256, 512)
"""block_out_channels of every published CogVideoX VAE."""

FLOP_PER_PIXEL = 9.26e6
"""Of this encoder per input pixel and frame, counted with torch's FlopCounterMode on 9x128x192."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bench and print its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench_encoder", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("speed", "ratio to diffusers"), ("profile", "where our time goes")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
        command.add_argument("--shape", default="17x128x192", help="frames x height x width")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--threads", type=int, default=1, help="on a CPU")
        command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("chunking", help="error of a chunk by its number of context windows")
    command.add_argument("--size", type=int, default=48, help="height and width")
    command.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    {"speed": speed, "profile": profile, "chunking": chunking}[arguments.command](arguments)
    return 0


def speed(arguments: argparse.Namespace) -> None:
    """Alternate diffusers and ours, print medians and the median ratio."""
    theirs, ours, pixels = _models(arguments)

    def run_theirs() -> Tensor:
        with torch.inference_mode():
            return theirs.encode(pixels).latent_dist.parameters  # type: ignore[no-any-return]

    def run_ours() -> Tensor:
        return ours.encode(pixels).parameters

    expected, actual = run_theirs().float(), run_ours().float()
    error = float((actual - expected).norm() / expected.norm())
    pairs = [(_seconds(run_theirs), _seconds(run_ours)) for _ in range(arguments.rounds)]
    ratios = [a.wall / b.wall for a, b in pairs]
    cpu_ratio = statistics.median(a.cpu / b.cpu for a, b in pairs)
    rate = _matmul_rate(pixels.dtype, pixels.device)
    num_frames, height, width = pixels.shape[2:]
    floor = FLOP_PER_PIXEL * num_frames * height * width / rate
    print(
        f"encoder dtype={arguments.dtype} shape={arguments.shape} device={arguments.device} "
        f"threads={arguments.threads} "
        f"diffusers={statistics.median(a.wall for a, _ in pairs):.2f}s "
        f"ours={statistics.median(b.wall for _, b in pairs):.2f}s ratio={statistics.median(ratios):.2f} "
        f"rounds={' '.join(f'{r:.2f}' for r in ratios)} cpu_ratio={cpu_ratio:.2f} difference={error:.1e} "
        f"matmul={rate / 1e9:.0f}GFLOP/s floor={floor:.2f}s"
    )


def profile(arguments: argparse.Namespace) -> None:
    """Print where our time goes, by operator."""
    _, ours, pixels = _models(arguments)
    ours.encode(pixels)
    with torch.profiler.profile() as profiler:
        ours.encode(pixels)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


def chunking(arguments: argparse.Namespace) -> None:
    """Print, for kinds of weights and of clips, the error of a chunk's latents against the uncut clip."""
    with tempfile.TemporaryDirectory() as folder:
        models = {
            taps: full_depth_vae(Path(folder), image_like=taps == "image-like") for taps in ("image-like", "alike")
        }
    clips = {
        "steady": steady_clip(73, arguments.size),
        "noise": torch.rand(1, 3, 73, arguments.size, arguments.size) * 2 - 1,
    }
    print("| taps | clip |" + "".join(f" k={k} |" for k in range(8)))
    print("|---|---|" + "---|" * 8)
    for taps, model in models.items():
        for name, pixels in clips.items():
            errors = [chunk_error(model, pixels, context) for context in range(8)]
            print(f"| {taps} | {name} |" + "".join(f" {error:.2g} |" for error in errors))


def full_depth_vae(folder: Path, *, image_like: bool) -> VideoVAE:
    """CogVideoX's depth with a quarter of its width, random weights.

    `image_like` scales the temporal taps to 0.09, 0.3 and 1 (the frame itself last), as in encoders that were grown out
    of image encoders; otherwise the three are alike, which is the worst case for a cut.
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
    """A smooth pattern that drifts slowly: (1, 3, T, size, size) in [-1, 1]."""
    t = torch.arange(num_frames).view(-1, 1, 1)
    y = torch.linspace(0, 6.28, size).view(1, -1, 1)
    x = torch.linspace(0, 6.28, size).view(1, 1, -1)
    frames = [0.5 * torch.sin((1 + c) * x + 0.08 * t) + 0.3 * torch.cos((2 - 0.5 * c) * y - 0.05 * t) for c in range(3)]
    return torch.stack(frames)[None]


def chunk_error(model: VideoVAE, pixels: Tensor, context: int) -> float:
    """Relative L2 error of the last chunk's mean (2 windows) against the uncut clip, over the reference's spread."""
    num_windows = len(vae.window_lengths(pixels.shape[2]))
    span = vae.chunk_spans(pixels.shape[2], chunk_windows=num_windows - 2, context=context)[-1]
    actual = model.encode_windows(pixels[:, :, span.start : span.stop], span.windows, span.num_context_windows)
    expected = model.encode(pixels).parameters[:, :, -actual.shape[2] :]
    mean, expected_mean = actual.chunk(2, dim=1)[0], expected.chunk(2, dim=1)[0]
    return float((mean - expected_mean).norm() / (expected_mean - expected_mean.mean()).norm())


def _models(arguments: argparse.Namespace) -> tuple[Any, VideoVAE, Tensor]:
    from diffusers import AutoencoderKLCogVideoX

    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    theirs = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=REAL_CHANNELS,
        layers_per_block=3,
    ).eval()
    theirs.decoder = None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = vae.load_vae(folder, dtype=dtype, device=arguments.device)
    theirs = theirs.to(device=arguments.device, dtype=dtype)
    num_frames, height, width = (int(n) for n in arguments.shape.split("x"))
    pixels = torch.rand(1, 3, num_frames, height, width, device=arguments.device, dtype=dtype) * 2 - 1
    return theirs, ours, pixels


class Seconds(NamedTuple):
    """What a run took, by the clock and in processor time of this process."""

    wall: float
    cpu: float


def _seconds(run: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product: the machine's limit for convolutions."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(_seconds(lambda: a @ b).wall for _ in range(5))


if __name__ == "__main__":
    raise SystemExit(main())
