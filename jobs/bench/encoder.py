"""python -m jobs.bench encoder: compare the encoder of CogVideoX or Wan with diffusers' class, with random weights.

Rounds alternate between the two in one process, and the ratio is the median of the rounds' ratios, so that other load
on the machine affects both. Read the ratio; absolute times mean little on a shared machine. The matmul rate is the rate
of a large matrix product in the same run: about the limit for convolutions (oneDNN's exceed it on a CPU). Operations
are counted by torch's FlopCounterMode, and the flags are those of production.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

import vae
from jobs.bench.peak import peak_memory
from vae.autoencoder import VideoVAE
from vae.cost import cost_of_clip
from vae.encoder import Encoder3D
from vae.engines import make_deterministic

REAL_CHANNELS = (128, 256, 256, 512)
"""block_out_channels of every published CogVideoX VAE."""

Model = Literal["cogvideox", "wan"]

WAN_FLOP_PER_PIXEL = 5.10e6
"""Floating-point operations of Wan 2.1 per input pixel and frame, counted with FlopCounterMode on 17x128x192."""

OPERATORS_SHOWN = 5

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip shape to measure, with its dtype and threads."""

    shape: tuple[int, int, int]
    """Frames, height, width."""
    dtype: Dtype = "bfloat16"
    threads: int = 1
    """Torch threads on a CPU."""


CASES = {
    "cpu": (
        Case(shape=(17, 128, 192)),
        Case(shape=(17, 128, 192), threads=2),
        Case(shape=(9, 64, 96), dtype="float32"),
    ),
    "cuda": (Case(shape=(49, 480, 720)),),
}
"""The default cases of each device, used if no shape is given."""

WAN_CASES = {
    "cpu": (Case(shape=(17, 128, 192)), Case(shape=(17, 128, 192), dtype="float32")),
    "cuda": (Case(shape=(81, 480, 832)),),
}
"""The same for `--vae wan`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Options of the benchmark."""

    vae: Model = "cogvideox"
    """Which encoder: CogVideoX's, or that of Wan 2.1 (dim 96, multipliers 1, 2, 4, 4)."""
    rounds: int = 3
    """Number of rounds, each of diffusers and ours, after one warm-up round."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    shape: tuple[int, int, int] | None = None
    """Frames, height and width of a single case that replaces the default cases."""
    dtype: Dtype = "bfloat16"
    """With --shape: the compute dtype."""
    threads: int = 1
    """With --shape: torch threads on a CPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print two lines each: the ratio, and the operators that take most of our time."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench encoder", description=__doc__)
    own = args.shape and Case(shape=args.shape, dtype=args.dtype, threads=args.threads)
    cases = (WAN_CASES if args.vae == "wan" else CASES)[args.device]
    for case in (own,) if own else cases:
        print(_compare(args.vae, case, torch.device(args.device), args.rounds), flush=True)
    return 0


def _compare(model: Model, case: Case, device: torch.device, rounds: int) -> str:
    make_deterministic(case.threads, float32=case.dtype == "float32")
    theirs, ours, pixels = _models(model, case, device)

    @torch.inference_mode()
    def run_theirs() -> Tensor:
        return theirs.encode(pixels).latent_dist.parameters  # type: ignore[no-any-return]

    def run_ours() -> Tensor:
        return ours.encode(pixels).parameters

    expected, actual = run_theirs().float(), run_ours().float()
    error = float((actual - expected).norm() / expected.norm())
    pairs = [(_seconds(run_theirs), _seconds(run_ours)) for _ in range(rounds)]
    ratios = [a.wall / b.wall for a, b in pairs]
    their_seconds, our_seconds = (median(one.wall for one in both) for both in zip(*pairs, strict=True))
    cpu = median(a.cpu / b.cpu for a, b in pairs)
    rate = _matmul_rate(pixels)
    floor = _flop(ours, case) / rate
    where = f"{case.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    return (
        f"{case.dtype} {'x'.join(map(str, case.shape))}, {where}: {median(ratios):.2f}x diffusers "
        f"({', '.join(f'{ratio:.2f}' for ratio in ratios)}; by CPU time {cpu:.2f}x); "
        f"diffusers {their_seconds:.2f} s, ours {our_seconds:.2f} s, {1 / our_seconds:.2f} clips/s, "
        f"{floor / our_seconds:.0%} of the matmul rate ({rate / 1e9:.0f} GFLOP/s); relative difference {error:.1e}"
        f"{_memory(run_theirs, run_ours, device)}\n  {_profile(run_ours, device)}"
    )


def _flop(ours: VideoVAE, case: Case) -> float:
    if isinstance(ours.encoder, Encoder3D):
        return cost_of_clip(ours.encoder, case.shape).flop.total()
    return WAN_FLOP_PER_PIXEL * math.prod(case.shape)


def _memory(run_theirs: Callable[[], object], run_ours: Callable[[], object], device: torch.device) -> str:
    if device.type == "cpu":
        their_peak, our_peak = (peak_memory(run) / 1e6 for run in (run_theirs, run_ours))
        return f"; peak memory above the models: diffusers {their_peak:.0f} MB, ours {our_peak:.0f} MB"
    peaks = []
    for run in (run_theirs, run_ours):
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated() / 1e9)
    return f"; peak memory, both models and the pixels included: diffusers {peaks[0]:.1f} GB, ours {peaks[1]:.1f} GB"


def _profile(run: Callable[[], object], device: torch.device) -> str:
    """Return the operators that take most of our time, as text."""
    with torch.profiler.profile() as profiler:
        run()
    name = f"self_{'cpu' if device.type == 'cpu' else 'device'}_time_total"
    seconds = {event.key: getattr(event, name) / 1e6 for event in profiler.key_averages()}
    total = sum(seconds.values())
    most = sorted(seconds.items(), key=lambda item: -item[1])[:OPERATORS_SHOWN]
    shares = ", ".join(f"{key.removeprefix('aten::')} {spent:.2f} s ({spent / total:.0%})" for key, spent in most)
    convolving = sum(spent for key, spent in seconds.items() if "conv" in key) / total
    rest = total - sum(spent for _, spent in most)
    others = f"{len(seconds) - len(most)} others {rest:.2f} s"
    return f"our time: {convolving:.0%} in convolutions; {shares}, {others}"


def _models(model: Model, case: Case, device: torch.device) -> tuple[Any, VideoVAE, Tensor]:
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    if model == "wan":
        theirs = AutoencoderKLWan().eval()
    else:
        theirs = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=REAL_CHANNELS,
            layers_per_block=3,
        ).eval()
    theirs.decoder = None
    if model == "wan":
        theirs.post_quant_conv = None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = vae.load_vae(folder, dtype=dtype, device=str(device))
    theirs = theirs.to(device=device, dtype=dtype)
    return theirs, ours, torch.rand(1, 3, *case.shape, device=device, dtype=dtype) * 2 - 1


class Seconds(NamedTuple):
    """What a run took."""

    wall: float
    cpu: float


def _seconds(run: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _matmul_rate(like: Tensor) -> float:
    """Measure the floating-point operations per second of a large matrix product: about the limit for convolutions."""
    size = 8192 if like.is_cuda else 2048
    a, b = (torch.randn(size, size, device=like.device, dtype=like.dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(_seconds(lambda: a @ b).wall for _ in range(5))


if __name__ == "__main__":
    raise SystemExit(main())
