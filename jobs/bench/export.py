"""python -m jobs.bench export: compare an export with a plain copy of the files that it wrote.

One process exports an output of random latents to each format, and one process copies what it wrote: file by file, each
synced to the disk as an export syncs it. Rounds are interleaved, figures are medians; sources are in the page cache.
The ratio is the time of the copy over the time of the export: 1.00 is as fast as the copy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from jobs.bench.reader_source import write_latents
from pipeline.control.spread import SpreadRule
from pipeline.export.plan import ExportJob
from pipeline.export.run import export
from pipeline.export.trainer import Target

TARGET = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    formats: tuple[Target, ...] = ("pt", "webdataset")
    """The formats to export to."""
    clips: int = 384
    """Number of clips; a clip has 2.2 MB."""
    rounds: int = 5
    """Number of rounds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures. Return 1 if a format missed the target."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench export", description=__doc__)
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LATENTMILL_CACHE"] = f"{folder}/cache"
        write_latents(folder / "output", args.clips)
        for to in args.formats:
            missed |= _measure(to, folder, args) < TARGET
    print(f"targets {'missed' if missed else 'met'}")
    return int(missed)


def _measure(to: Target, folder: Path, args: Args) -> float:
    """Print the figures of a format, and return its ratio. The first round warms up."""
    into = folder / to
    seconds: dict[str, list[float]] = {"export": [], "copy": [], "copy without sync": []}
    for round_ in range(args.rounds + 1):
        shutil.rmtree(into, ignore_errors=True)
        begun = time.perf_counter()
        job = ExportJob(output=str(folder / "output"), to=to, into=str(into))
        export(job, SpreadRule(workers=1), echo=lambda _: None)
        found = {"export": time.perf_counter() - begun}
        found["copy"] = _copy(into, folder / "copy", sync=True)
        found["copy without sync"] = _copy(into, folder / "copy", sync=False)
        if round_:
            for kind, value in found.items():
                seconds[kind].append(value)
    num_bytes = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    print(f"{to}: {args.clips} clips, {num_bytes / 1e6:.0f} MB, {args.rounds} rounds")
    for kind, values in seconds.items():
        ratio = median(copied / value for copied, value in zip(seconds["copy"], values, strict=True))
        print(f"  {kind:20}{num_bytes / 1e6 / median(values):8.0f} MB/s  {ratio:6.2f} of copy", flush=True)
    return median(copied / value for copied, value in zip(seconds["copy"], seconds["export"], strict=True))


def _copy(source: Path, target: Path, *, sync: bool) -> float:
    """Copy every file, and return the seconds that it took."""
    shutil.rmtree(target, ignore_errors=True)
    begun = time.perf_counter()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
            if sync:
                number = os.open(copied, os.O_RDONLY)
                os.fsync(number)
                os.close(number)
    return time.perf_counter() - begun
