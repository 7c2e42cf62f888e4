"""Time the encoder against diffusers' AutoencoderKLCogVideoX: the real architecture, random weights, the same process.

    python -m jobs.bench_encoder speed --dtype bfloat16 --shape 17x128x192 --threads 1 --rounds 3
    python -m jobs.bench_encoder profile --dtype bfloat16 --shape 17x128x192

Rounds alternate between the two, and the ratio is the median of the rounds' ratios: a neighbour's load hits both. Read
the ratio; absolute times on a shared machine mean little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE

REAL_CHANNELS = (128, 256, 256, 512)
"""block_out_channels of every published CogVideoX VAE."""


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
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    (speed if arguments.command == "speed" else profile)(arguments)
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
    ratios = [a / b for a, b in pairs]
    print(
        f"encoder dtype={arguments.dtype} shape={arguments.shape} device={arguments.device} threads={arguments.threads} "
        f"diffusers={statistics.median(a for a, _ in pairs):.2f}s ours={statistics.median(b for _, b in pairs):.2f}s "
        f"ratio={statistics.median(ratios):.2f} rounds={' '.join(f'{r:.2f}' for r in ratios)} difference={error:.1e}"
    )


def profile(arguments: argparse.Namespace) -> None:
    """Print where our time goes, by operator."""
    _, ours, pixels = _models(arguments)
    ours.encode(pixels)
    with torch.profiler.profile() as profiler:
        ours.encode(pixels)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


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


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
