"""python -m jobs.bench gpu: everything that only a GPU shows, in one table of under nine minutes, with random weights.

It needs torch, triton, numpy, safetensors and the package `vae`, and neither Ray nor PyAV: a checkout is enough. It
sets the flags of production. Operations are counted by torch's FlopCounterMode, bytes by the model in vae/cost.py.
`--tiny` runs the same code on a small encoder and small clips, also on a CPU, where its figures mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from traceback import print_exception
from typing import Any

import torch
from torch import Tensor

from jobs.bench.gpu_device import ROUNDS, Shape, Timer, our_model, pixels_of, text, their_model
from vae import VideoVAE, kernels
from vae.cost import Cost, cost_of_clip
from vae.encoder import Encoder3D
from vae.engines import MODE_B, Engines, cudnn_version, engines, make_deterministic
from vae.kernels.traffic import listening
from vae.turns import THREADS, Courier, Finish, Turns

MOST_SECONDS = 520.0
"""All ends within nine minutes: no part and no process starts after this time, and none runs on."""

CHOICES: tuple[Engines, ...] = ("instant", "mode_b", "searched")
KERNELS_SHOWN = 4
WIDTH = 120
"""Columns of the table."""

Row = tuple[str, str, str]
"""What, measured, and what to compare it with."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured."""

    channels: int
    """Of level 0."""
    clips: tuple[Shape, ...]
    """The first one is used wherever one is enough."""
    small: Shape
    """The clip that is compared with a CPU."""
    matrix: int
    """Rows of the matrix product."""
    copied: int
    """Bytes of the copy."""
    fed: int
    """Clips that pass through the turns of an actor."""


REAL = Size(128, ((49, 480, 720), (81, 480, 832)), (9, 64, 96), 8192, 2**32, 12)
TINY = Size(32, ((17, 16, 24), (9, 16, 16)), (9, 16, 16), 64, 2**16, 3)


class Bench:
    """One run: a size on a device, and its parts. Each part yields rows of the table."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.timer = Timer(device)
        self.began = time.perf_counter()
        self.matmul_rate = self.copy_rate = 0.0

    def rates(self) -> Iterator[Row]:
        """Measure the ceilings of the card: a matrix product and a copy."""
        n, num_bytes = self.size.matrix, self.size.copied
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        source = torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.matmul_rate = 2 * n**3 / self.timer.seconds(lambda: a @ b, 20)
        self.copy_rate = 2 * num_bytes / self.timer.seconds(lambda: target.copy_(source), 20)
        yield f"bf16 matrix product, {n} rows", f"{self.matmul_rate / 1e12:.1f} TFLOP/s", ""
        yield f"copy of {num_bytes / 1e9:.1f} GB", f"{self.copy_rate / 1e12:.2f} TB/s", "read and written"

    def exactness(self) -> Iterator[Row]:
        """Compare each dtype with float32 on a CPU, and bfloat16 with float32 on the device at the real size."""
        pixels = pixels_of(self.size.small)
        with kernels.plain():
            exact = self._model(torch.float32, torch.device("cpu")).encode(pixels).parameters
        for dtype, bound in ((torch.float32, 1e-4), (torch.float16, 0.01), (torch.bfloat16, 0.05)):
            make_deterministic(torch.get_num_threads(), float32=dtype == torch.float32)
            found = self._model(dtype).encode(pixels).parameters.float().cpu()
            error = float((found - exact).norm() / exact.norm())
            verdict = "ok" if error <= bound else "WRONG"
            yield (
                f"{str(dtype).removeprefix('torch.')} against float32 on a CPU",
                f"{error:.1e}",
                f"{bound:g}: {verdict}",
            )
        make_deterministic(torch.get_num_threads(), float32=False)
        error, shape = self._model().selfcheck(self.size.clips[0]), text(self.size.clips[0])
        yield f"bf16 against float32 here, first window of {shape}", f"{error:.1e}", "0.05 refuses to run"

    def clips(self) -> Iterator[Row]:
        """Time whole clips, beside the time that operations alone, and operations and bytes, would take."""
        model = self._model()
        for shape in self.size.clips:
            pixels, cost = pixels_of(shape).to(self.device), self._cost(model, shape)
            spent = self.timer.seconds(lambda p=pixels: model.encode(p))  # type: ignore[misc]
            yield (
                f"clip {text(shape)}, {cost.flop.total() / 1e12:.1f} TFLOP",
                f"{spent * 1e3:.1f} ms, {1 / spent:.2f} clips/s",
                f"{cost.flop.total() / self.matmul_rate / spent:.0%} of the matrix product's rate, "
                f"peak {self.timer.peak(lambda p=pixels: model.encode(p))}",  # type: ignore[misc]
            )
        cost = self._cost(model, self.size.clips[0])
        floor = cost.floor_seconds(self.matmul_rate, self.copy_rate)
        moved = cost.bytes_beside_convolutions()
        yield "beside convolutions, by the model", f"{moved / 1e9:.1f} GB", f"floor of the clip {floor * 1e3:.1f} ms"

    def levels(self) -> Iterator[Row]:
        """Time the parts of the encoder in one clip, and name the kernels that take most of it."""
        model, shape = self._model(), self.size.clips[0]
        pixels, cost = pixels_of(shape).to(self.device), self._cost(model, shape)
        model.encode(pixels)
        began: list[tuple[str, Callable[[], float]]] = []
        with listening(lambda part: began.append((part, self.timer.moment()))):
            model.encode(pixels)
        ends = [moment for _, moment in began[1:]] + [self.timer.moment()]
        self.timer.wait()
        spent: Counter[str] = Counter()
        for (part, start), end in zip(began, ends, strict=True):
            spent[part] += end() - start()  # type: ignore[assignment]
        for part, seconds in spent.items():
            rate = cost.flop[part] / seconds
            shares = f"{rate / self.matmul_rate:.0%} of the matrix product's rate"
            yield f"  {part}", f"{seconds * 1e3:.2f} ms, {seconds / spent.total():.0%}", shares
        with torch.profiler.profile() as profiler:
            model.encode(pixels)
            self.timer.wait()
        key = "self_device_time_total" if self.timer.cuda else "self_cpu_time_total"
        times = sorted(((getattr(e, key), e.key) for e in profiler.key_averages()), reverse=True)
        total = sum(time for time, _ in times) or 1.0
        for time_, name in times[:KERNELS_SHOWN]:
            yield "  kernel", f"{time_ / total:.0%}", name[:64].replace("|", "/")

    def processes(self) -> Iterator[Row]:
        """Compare speed and bytes of each way to choose engines, over two processes each."""
        for choice in CHOICES if self.timer.cuda else CHOICES[:1]:
            first, second = (self._child(choice) for _ in range(2))
            equal = "equal bytes in two processes" if first["sha"] == second["sha"] else "other bytes each time"
            production = " (production)" if choice == engines() else ""
            times = f"{first['ms']:.1f} and {second['ms']:.1f} ms"
            yield f"engines {choice}{production}", times, f"{equal}, {first['sha'][:12]}"

    def diffusers(self) -> Iterator[Row]:
        """Time diffusers' encoder beside ours, in turns."""
        if find_spec("diffusers") is None:
            yield "diffusers", "not installed", ""
            return
        theirs, ours, shape = their_model(self.size.channels, self.device), self._model(), self.size.clips[0]
        pixels = pixels_of(shape).to(self.device)
        floats = (pixels.float() / 127.5 - 1).bfloat16()

        @torch.inference_mode()
        def run_theirs() -> object:
            return theirs.encode(floats)

        pairs = [
            (self.timer.seconds(run_theirs, 1), self.timer.seconds(lambda: ours.encode(pixels), 1))
            for _ in range(ROUNDS)
        ]
        their_seconds, ratio = median(a for a, _ in pairs), median(a / b for a, b in pairs)
        rounds = ", ".join(f"{a / b:.2f}" for a, b in pairs)
        yield f"diffusers {text(shape)}", f"{their_seconds * 1e3:.1f} ms", f"ours {ratio:.2f}x ({rounds})"
        yield (
            "  peak memory, both models loaded",
            self.timer.peak(run_theirs),
            f"ours {self.timer.peak(lambda: ours.encode(pixels))}",
        )

    def actor(self) -> Iterator[Row]:
        """Feed clips as the encode actor does, and measure how long the device waits between two of them."""
        model, courier = self._model(), Courier(self.device)
        frames = pixels_of(self.size.clips[0])[0].permute(1, 2, 3, 0).contiguous().numpy()
        busy: list[tuple[Callable[[], float], Callable[[], float]]] = []

        def start(clip: Any) -> Callable[[], Finish[Tensor]]:
            receive = courier.send(clip)

            def compute() -> Finish[Tensor]:
                pixels, begin = receive(), self.timer.moment()
                moments = model.encode(pixels.permute(3, 0, 1, 2).unsqueeze(0)).parameters
                busy.append((begin, self.timer.moment()))
                fetched = courier.fetch(moments)
                return lambda: fetched.float().contiguous()

            return compute

        turns = Turns(start)
        turns(frames)
        busy.clear()
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(turns, [frames] * self.size.fed))
        self.timer.wait()
        spans = sorted((begin(), end()) for begin, end in busy)
        whole, computing = spans[-1][1] - spans[0][0], sum(end - begin for begin, end in spans)
        yield f"actor, {self.size.fed} clips: device idle", f"{1 - computing / whole:.1%}", "target below 2 %"

    def seconds_left(self) -> float:
        """Return the seconds until MOST_SECONDS are over."""
        return MOST_SECONDS - (time.perf_counter() - self.began)

    def _cost(self, model: VideoVAE, shape: Shape) -> Cost:
        assert isinstance(model.encoder, Encoder3D)
        return cost_of_clip(model.encoder, shape)

    def _model(self, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None) -> VideoVAE:
        return our_model(self.size.channels, device or self.device, dtype)

    def _child(self, choice: Engines) -> dict[str, Any]:
        """Encode one clip in a new process with this choice of engines: {"ms": time, "sha": digest of the moments}."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        environment[MODE_B] = "1" if choice == "mode_b" else "0"
        command = [sys.executable, "-m", "jobs.bench.gpu", "--child", choice]
        command += [] if self.size is REAL else ["--tiny"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=self.seconds_left())
        return dict(json.loads(done.stdout))

    def child(self, choice: Engines) -> dict[str, object]:
        """Encode as `_child` asks, and check that torch does choose engines so."""
        torch.backends.cudnn.benchmark = choice == "searched"
        assert engines() == choice, (engines(), choice)
        model, pixels = self._model(), pixels_of(self.size.clips[0]).to(self.device)
        spent = self.timer.seconds(lambda: model.encode(pixels))
        moments = model.encode(pixels).parameters.cpu().view(torch.int16)
        return {"ms": spent * 1e3, "sha": hashlib.sha256(moments.numpy().tobytes()).hexdigest()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every part, print its rows as they come, and then the table. 1 if a part failed or something is wrong."""
    parser = argparse.ArgumentParser("python -m jobs.bench gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small encoder and small clips, also on a CPU")
    parser.add_argument("--child", choices=CHOICES, help="used by the bench itself: encode one clip, print its digest")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        print("no GPU is here; --tiny runs the same code on a CPU", file=sys.stderr)
        return 2
    make_deterministic(torch.get_num_threads(), float32=False)
    bench = Bench(TINY if args.tiny else REAL, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if args.child:
        print(json.dumps(bench.child(args.child)))
        return 0
    rows = list(_run(bench))
    print("\n| what | measured | beside it |\n|---|---|---|")
    print("\n".join(line if len(line) <= WIDTH else line[: WIDTH - 2] + " |" for line in map(_line, rows)))
    return int(any(word in cell for row in rows for cell in row for word in ("failed", "WRONG", "other bytes")))


def _line(row: Row) -> str:
    return f"| {' | '.join(row)} |"


def _run(bench: Bench) -> Iterator[Row]:
    """Yield the rows of every part. A part that fails is a row, and the next part runs."""
    card = torch.cuda.get_device_name() if bench.timer.cuda else "CPU: figures mean nothing"
    triton = version("triton") if find_spec("triton") else "none"
    yield card, f"torch {torch.__version__}, cuDNN {cudnn_version()}", f"triton {triton}"
    parts = (bench.rates, bench.exactness, bench.clips, bench.levels, bench.actor, bench.diffusers, bench.processes)
    for part in parts:
        name = part.__name__
        if bench.seconds_left() < 0:
            yield name, "skipped", f"{MOST_SECONDS:.0f} s are over"
            continue
        try:
            for row in part():
                print(
                    f"{MOST_SECONDS - bench.seconds_left():5.0f} s  {name}: {' | '.join(row)}",
                    file=sys.stderr,
                    flush=True,
                )
                yield row
        except Exception as error:
            print_exception(error)
            yield name, "failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:70]
    yield "this bench", f"{MOST_SECONDS - bench.seconds_left():.0f} s", ""


if __name__ == "__main__":
    raise SystemExit(main())
