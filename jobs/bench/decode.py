"""python -m jobs.bench decode: compare decoding with the ffmpeg command line and other decoders, by CPU time.

CPU time is user + system, children included, on one thread; the methods are interleaved and figures are medians. Other
work on the machine changes wall time, but CPU time very little. A ratio above 1 means that latentmill needs less. The
videos are generated: textured moving pictures with grain, H.264 at the bit rates of camera footage. `torchcodec` is
measured if it is installed.
"""

from __future__ import annotations

import importlib
import os
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import imageio_ffmpeg
import numpy as np
import torch
import tyro

from pipeline.decode import DecodedClip, DecodeSpec, iter_clips, probe
from pipeline.decode.geometry import UPRIGHT
from pipeline.decode.graph import FrameKind, filters, placement

OUT_HEIGHT, OUT_WIDTH = 480, 720
CHUNK = 30
TARGETS = {
    ("720p", "ffmpeg pipe, same filters"): 0.95,
    ("1080p", "ffmpeg pipe, same filters"): 1.0,
    ("720p", "torchcodec"): 1.1,
    ("1080p", "torchcodec"): 1.3,
    ("720p", "PyAV + torch resize"): 1.6,
    ("1080p", "PyAV + torch resize"): 1.6,
    ("49 of 60 s", "torchcodec"): 1.2,
}
"""Smallest allowed CPU time of the other methods, in multiples of ours."""

MEGABITS = {720: 5, 1080: 9}
"""Bit rate of the generated videos by height."""

Method = Callable[[], int]
"""A function that decodes once and returns the number of frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    rounds: int = 3
    """Number of rounds over all methods, after one warm-up round."""
    seconds: int = 5
    """Length of the video in the full decodes, in seconds."""
    cases: tuple[Literal["720p", "1080p", "49 of 60 s"], ...] = ("720p", "1080p", "49 of 60 s")
    """What to decode: every frame of a video, or 49 frames of a video of 60 seconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each case. Return 1 if a target was missed."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench decode", description=__doc__)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            methods = _sparse(Path(folder)) if case == "49 of 60 s" else _full(Path(folder), case, args.seconds)
            missed |= _report(case, _timed(methods, args.rounds))
    return int(missed)


def _timed(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds per frame of each method. The first of the interleaved rounds warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            before = _cpu_seconds()
            frames = method()
            if number:
                seconds[name].append((_cpu_seconds() - before) / frames * 1000)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _report(case: str, medians: dict[str, float]) -> bool:
    ours = medians["latentmill"]
    missed = False
    print(f"{case}: decode, crop and scale to {OUT_WIDTH}x{OUT_HEIGHT} RGB; CPU ms per frame, and in multiples of ours")
    for name, value in medians.items():
        target = TARGETS.get((case, name))
        verdict = "" if target is None else f"  target {target:.2f}: {'met' if value / ours >= target else 'MISSED'}"
        missed |= target is not None and value / ours < target
        print(f"  {name:28} {value:8.2f} {value / ours:6.2f}{verdict}")
    return missed


def _full(folder: Path, case: str, seconds: int) -> dict[str, Method]:
    """Return the methods that decode every frame of a 30 fps video."""
    height = int(case.removesuffix("p"))
    path = folder / f"{case}.mp4"
    num_frames = _make_footage(path, height=height, fps=30, seconds=seconds, gop=60, preset="medium")
    data = path.read_bytes()
    spec = DecodeSpec(num_frames=CHUNK, fps=None, height=OUT_HEIGHT, width=OUT_WIDTH)
    specs = [replace(spec, offset=offset) for offset in range(0, num_frames, CHUNK)]
    chain = _chain(data, spec)
    straight = chain.replace("format=pix_fmts=gbrp,", "")
    methods = {
        "latentmill": lambda: _ours(data, specs),
        "ffmpeg pipe, same filters": lambda: _ffmpeg(path, chain),
        "ffmpeg pipe, straight to RGB": lambda: _ffmpeg(path, straight),
        "ffmpeg pipe, bicubic only": lambda: _ffmpeg(path, straight.replace("+accurate_rnd+full_chroma_int", "")),
        "ffmpeg decode only": lambda: _ffmpeg(path, None),
        "PyAV decode only": lambda: _pyav(path, convert=False),
        "PyAV + torch resize": lambda: _pyav(path, convert=True),
    }

    def every_frame(decoder: Any) -> Iterator[Any]:
        for first in range(0, num_frames, CHUNK):
            yield decoder.get_frames_in_range(first, min(first + CHUNK, num_frames)).data

    return methods | _torchcodec(path, every_frame)


def _sparse(folder: Path) -> dict[str, Method]:
    """Return the methods that decode 49 frames at 8 fps from the middle of a minute at 60 fps, with a GOP of 250."""
    path = folder / "minute.mp4"
    _make_footage(path, height=720, fps=60, seconds=60, gop=250, preset="veryfast")  # medium would take minutes
    data = path.read_bytes()
    start = 27
    spec = DecodeSpec(num_frames=49, fps=Fraction(8), height=OUT_HEIGHT, width=OUT_WIDTH, start=Fraction(start))
    wanted = f"fps=8:round=up,{_chain(data, spec)}"
    methods: dict[str, Method] = {
        "latentmill": lambda: _ours(data, [spec]),
        "ffmpeg -ss pipe, fps filter": lambda: _ffmpeg(path, wanted, "-ss", str(start), "-t", "6.1"),
    }

    def wanted_frames(decoder: Any) -> Iterator[Any]:
        yield decoder.get_frames_played_at([start + i / 8 for i in range(49)]).data

    return methods | _torchcodec(path, wanted_frames)


def _ours(data: bytes, specs: list[DecodeSpec]) -> int:
    num_frames = 0
    for clip in iter_clips(data, specs):
        if not isinstance(clip, DecodedClip):
            raise clip
        num_frames += len(clip.frames)
    return num_frames


def _ffmpeg(path: Path, chain: str | None, *before: str) -> int:
    """Run the ffmpeg command line with one thread and read its raw frames from a pipe."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-filter_threads", "1", *before]
    command += ["-i", str(path), "-an", "-sn"]
    if chain is None:
        command += ["-f", "null", "-"]
        subprocess.run(command, check=True)
        return _num_frames(path)
    command += ["-vf", chain, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    frame_bytes, num_bytes = OUT_HEIGHT * OUT_WIDTH * 3, 0
    buffer = bytearray(frame_bytes)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while got := process.stdout.readinto(buffer):  # type: ignore[attr-defined]
            num_bytes += got
    return int(num_bytes // frame_bytes)


def _pyav(path: Path, *, convert: bool) -> int:
    """Decode with a common PyAV loop: every frame to RGB, then torch's antialiased bicubic resize, then the crop."""
    num_frames = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            num_frames += 1
            if convert:
                rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).permute(2, 0, 1)[None].float()
                width = frame.width * OUT_HEIGHT // frame.height
                small = torch.nn.functional.interpolate(rgb, (OUT_HEIGHT, width), mode="bicubic", antialias=True)
                left = (width - OUT_WIDTH) // 2
                small[0, :, :, left : left + OUT_WIDTH].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    return num_frames


def _torchcodec(path: Path, frames: Callable[[Any], Iterator[Any]]) -> dict[str, Method]:
    """Return torchcodec with its own resize and crop, if it is installed and finds its libraries."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        transforms = importlib.import_module("torchcodec.transforms")
    except (ImportError, OSError, RuntimeError):
        return {}

    info = decoders.VideoDecoder(str(path)).metadata
    resize = transforms.Resize((OUT_HEIGHT, round(info.width * OUT_HEIGHT / info.height)))
    crop = transforms.CenterCrop((OUT_HEIGHT, OUT_WIDTH))

    def run() -> int:
        decoder = decoders.VideoDecoder(str(path), num_ffmpeg_threads=1, transforms=[resize, crop])
        return sum(len(batch) for batch in frames(decoder))

    return {"torchcodec": run}


def _chain(data: bytes, spec: DecodeSpec) -> str:
    """Return the filter graph of a DecodeSpec as an argument of `ffmpeg -vf`."""
    info = probe(data)
    kind = FrameKind(
        width=info.width,
        height=info.height,
        pix_fmt=info.pix_fmt,
        colorspace=info.colorspace,
        color_range=info.color_range,
        color_trc=info.color_trc,
        color_primaries=info.color_primaries,
        sar=info.sar,
        turn=UPRIGHT,
        is_interlaced=False,
        alpha=None,
    )
    return ",".join(f"{name}={arguments}" for name, arguments in filters(kind, spec, placement(kind, spec)))


def _num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return int(container.streams.video[0].frames)


def _make_footage(path: Path, *, height: int, fps: int, seconds: int, gop: int, preset: str) -> int:
    """Write a video of a textured 16:9 picture with grain that drifts and pulses. Return the number of frames."""
    width = height * 16 // 9
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : height + 64, 0 : width + 64]
    texture = 128 + 50 * np.sin(x / 17) * np.cos(y / 29) + 30 * np.sin(np.hypot(x - width / 2, y - height / 2) / 9)
    grains = [rng.normal(0, 5, (height, width)) for _ in range(8)]
    num_frames = fps * seconds
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = MEGABITS[height] * 1_000_000
        stream.options = {"preset": preset, "x264-params": f"keyint={gop}:scenecut=0"}
        for n in range(num_frames):
            dx, dy = int(32 + 30 * np.sin(n / 40)), int(32 + 30 * np.cos(n / 55))
            luma = np.clip(texture[dy : dy + height, dx : dx + width] + grains[n % 8], 0, 255).astype(np.uint8)
            planes = [luma, _chroma(luma, 128 + n % 40), _chroma(luma, 150)]
            frame = av.VideoFrame.from_ndarray(_packed(planes, width, height), format="yuv420p")
            frame.pts = n
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return num_frames


def _chroma(luma: np.ndarray, level: int) -> np.ndarray:
    return np.clip(luma[::2, ::2].astype(np.int16) // 4 + level - 32, 0, 255).astype(np.uint8)


def _packed(planes: list[np.ndarray], width: int, height: int) -> Any:
    return np.concatenate([plane.reshape(-1) for plane in planes]).reshape(height * 3 // 2, width)
