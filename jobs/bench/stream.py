"""python -m jobs.bench stream: compare the job with a plain loop that calls the same functions on the same clips.

    encode-bound   plain loop, one process with a torch thread per core / job with one encoder per core
    balanced       ideal overlap of the two stages (the larger of their sums) / job
    decode-bound   plain loop, one process, scaled to all cores / job

on the same 2 cores.

The job is timed after start-up: from the latent that completes the first quarter, when every kind of worker has
started, to the last one. The plain loop processes the first of the four shards, before and after the job, because the
speed of a shared machine drifts. Its mean seconds per decode and per encode are multiplied by the numbers of decodes
and encodes in the job's time. A ratio of 1.0 means that the stream has no overhead; a short stream loses most at its
end.
Also printed: the CPU time of the decode processes, as a multiple of the plain loop's. The excess over 1 is the overhead
of the stage (tables, object store, guard, and the small tasks in the same process).
`memory` runs one shard of many clips in a small object store and prints the store's peak.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, NamedTuple

import ray
import tyro

import vae
from jobs.demo.videos import even_times, make_video, write_tar
from pipeline.decode import DecodedClip, DecodeSpec, iter_clips
from pipeline.errors import VideoError
from pipeline.guard.strikes import Strikes
from pipeline.output.parts import stage
from pipeline.records import Chunk, Latent, Video
from pipeline.run import run
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, Workers
from pipeline.settings.spec import LatentRule, Spec
from pipeline.sources.listing import list_source
from pipeline.stages.decode_video import Decoder
from pipeline.stages.read_shard import read_shard
from pipeline.stages.tables import load_encoder
from pipeline.storage import Storage

STORE_GB = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One case: the source, the clips and the workers."""

    size: tuple[int, int]
    """Width and height of the source."""
    clip: ClipRule
    num_clips: int
    encoders: str
    threads: int = 1
    """Torch threads in the plain loop."""
    is_balanced: bool = False
    """Whether to compare with the ideal overlap of the two stages."""


CORES = 2
NUM_SHARDS = 4
MEMORY_CLIPS = 500
"""Number of clips of 17x128x192 in the one shard of case memory."""

SMALL, LARGE = (192, 128), (1280, 720)
CASES = {
    "encode-bound": Case(
        size=SMALL, clip=ClipRule(num_frames=17, height=128, width=192), num_clips=240, encoders="2", threads=2
    ),
    "balanced": Case(
        size=LARGE,
        clip=ClipRule(num_frames=17, height=128, width=192),
        num_clips=400,
        encoders="1",
        is_balanced=True,
    ),
    "decode-bound": Case(size=LARGE, clip=ClipRule(num_frames=17, height=32, width=48), num_clips=240, encoders="1"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Options of the benchmark."""

    rounds: int = 3
    """Number of rounds, each of plain loop and job; medians are printed."""
    cases: tuple[Literal["encode-bound", "balanced", "decode-bound", "memory"], ...] = (
        "encode-bound",
        "balanced",
        "decode-bound",
    )
    """The cases to run, in this order."""
    clips: int | None = None
    """Number of clips. Default: each case has its number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print one line for each."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench stream", description=__doc__)
    for name in args.cases:
        with tempfile.TemporaryDirectory(prefix="lm") as folder:
            if name == "memory":
                print(_memory(Path(folder), args.clips or MEMORY_CLIPS), flush=True)
            else:
                case = replace(CASES[name], num_clips=args.clips or CASES[name].num_clips)
                print(_ratio(Path(folder), name, case, args.rounds), flush=True)
    return 0


def _ratio(folder: Path, name: str, case: Case, rounds: int) -> str:
    source = make_tars(folder, case, shards=NUM_SHARDS)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:CORES]))  # Ray and all its workers inherit it
    ideals: list[float] = []
    jobs: list[float] = []
    stages: list[float] = []
    try:
        before = _bare(source, case, folder / "bare")
        for round_ in range(rounds):
            did = job(source, case, folder / f"job{round_}", folder / f"stamps{round_}")
            after = _bare(source, case, folder / f"bare{round_}")
            decode, encode, decode_cpu = (mean(both) for both in zip(before, after, strict=True))
            both = did.decodes * decode, did.encodes * encode
            stages.append(did.decode_cpu / decode_cpu)
            ideals.append(max(both) if case.is_balanced else sum(both) * case.threads / CORES)
            jobs.append(did.seconds)
            before = after
    finally:
        os.sched_setaffinity(0, cores)
    ratios = [ideal / job for ideal, job in zip(ideals, jobs, strict=True)]
    against = "ideal overlap" if case.is_balanced else "plain loop"
    return (
        f"{name:<14}{median(ratios):.2f}  of {against}  ({', '.join(f'{ratio:.2f}' for ratio in ratios)})  "
        f"{case.num_clips} clips: {against} {median(ideals):.1f} s, job {median(jobs):.1f} s; "
        f"per clip: decode {decode:.3f} s, encode {encode:.3f} s; CPU of the decode stage {median(stages):.2f}x"
    )


def _bare(source: str, case: Case, output: Path) -> tuple[float, float, float]:
    """Call the stages in turn. Return seconds per clip: (read and decode, encode and stage, CPU of the former)."""
    spec, info = spec_of(case)
    encoder = load_encoder("tiny", spec, threads=case.threads)
    decoder = Decoder(clip=case.clip, latent=spec.latent, info=info, deadline=600)
    storage, guard = Storage(str(output)), Strikes()
    start, encode_seconds = time.perf_counter(), 0.0
    cpu_start, encode_cpu = time.process_time(), 0.0
    num_clips = 0
    first = next(iter(list_source(source, shard_size=64)))
    for video in read_shard(first):
        for record in decoder(video, guard) if isinstance(video, Video) else ():
            if isinstance(record, Chunk):
                began, cpu_began = time.perf_counter(), time.process_time()
                stage(encoder(record), storage)
                encode_seconds += time.perf_counter() - began
                encode_cpu += time.process_time() - cpu_began
                num_clips += 1
    decode_seconds = time.perf_counter() - start - encode_seconds
    decode_cpu = time.process_time() - cpu_start - encode_cpu
    return decode_seconds / num_clips, encode_seconds / num_clips, decode_cpu / num_clips


class _Done(NamedTuple):
    """Figures of the job from the first quarter of its latents to the last latent."""

    seconds: float
    decodes: int
    encodes: int
    decode_cpu: float
    """CPU seconds per clip of the decode processes, between their first and last clip."""


def job(source: str, case: Case, output: Path, stamps: Path) -> _Done:
    """Run the real job."""
    stamps.mkdir()
    workers = Workers(encoders=case.encoders, object_store_gb=STORE_GB)
    job = Job(source=(source,), output=str(output), vae="tiny", clip=case.clip, workers=workers)
    run(job, decode=partial(_stamped_decode, stamps), encode=partial(_Stamped, stamps))
    processes = [[line.split() for line in path.read_text().splitlines()] for path in stamps.iterdir()]
    ends = {
        stage: sorted(float(at) for lines in processes for what, at, _ in lines if what == stage)
        for stage in ("decode", "encode")
    }
    first, last = ends["encode"][case.num_clips // 4], ends["encode"][-1]
    decoders = [[float(cpu) for what, _, cpu in lines if what == "decode"] for lines in processes]
    return _Done(
        seconds=last - first,
        decodes=sum(first < at <= last for at in ends["decode"]),
        encodes=sum(first < at <= last for at in ends["encode"]),
        decode_cpu=sum(cpu[-1] - cpu[0] for cpu in decoders if cpu) / sum(len(cpu) - 1 for cpu in decoders if cpu),
    )


def _stamp(folder: Path, what: str) -> None:
    with (folder / str(os.getpid())).open("a") as file:
        file.write(f"{what} {time.time()} {time.process_time()}\n")


def _stamped_decode(
    stamps: Path, source: bytes | memoryview, specs: Sequence[DecodeSpec]
) -> Iterator[DecodedClip | VideoError]:
    for clip in iter_clips(source, specs):
        _stamp(stamps, "decode")
        yield clip


class _Stamped:
    def __init__(self, stamps: Path, *args: Any, **kwargs: Any) -> None:
        self._stamps = stamps
        self._encoder = load_encoder(*args, **kwargs)

    def __call__(self, chunk: Chunk) -> Latent:
        latent = self._encoder(chunk)
        _stamp(self._stamps, "encode")
        return latent


def _memory(folder: Path, num_clips: int) -> str:
    clip = ClipRule(num_frames=17, height=128, width=192)
    source = make_tars(folder, Case(size=SMALL, clip=clip, num_clips=num_clips, encoders="1"), shards=1)
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(Exception):  # Ray is not there yet, or not any more
                whole, free = ray.cluster_resources(), ray.available_resources()
                peak[0] = max(peak[0], (whole["object_store_memory"] - free["object_store_memory"]) / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        workers = Workers(object_store_gb=STORE_GB)
        summary = run(Job(source=(source,), output=str(folder / "out"), vae="tiny", clip=clip, workers=workers))
    finally:
        over.set()
        watcher.join()
    return (
        f"memory        peak {peak[0]:.0f} MiB of a {STORE_GB * 1e3:.0f} MB object store: "
        f"{summary.latents} latents of one shard, {num_clips * 17 * 128 * 192 * 3 / 1e6:.0f} MB of frames"
    )


def spec_of(case: Case) -> tuple[Spec, vae.VAEInfo]:
    info = vae.load_vae("tiny").info
    return Spec(vae=info.to_json(), clip=case.clip, latent=LatentRule()), info


def make_tars(folder: Path, case: Case, *, shards: int) -> str:
    """Write tars of equal videos with one clip each. Return their glob."""
    width, height = case.size
    data = make_video(even_times(54, 24), width=width, height=height, seed=0)
    for shard in range(shards):
        write_tar(folder / f"{shard}.tar", {f"{i:06d}.mp4": data for i in range(shard, case.num_clips, shards)})
    return f"{folder}/*.tar"


if __name__ == "__main__":
    raise SystemExit(main())
