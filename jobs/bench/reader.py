"""python -m jobs.bench reader: compare reading latents back with raw reads of the same bytes and with other readers.

    local    random clips on a local disk (page cache warm), against preadv of the same ranges
    s3       the same from a server on loopback, against plain ranged GETs with the same number of connections
    open     an index of ten million rows: opening, memory of a trainer with four workers, first batch, resume

Each reader delivers the clips of one epoch in its order, in new batches. Rounds are interleaved, figures are medians.
A ratio is the time of the raw reads over the time of the reader: 1.00 is as fast as raw, 0.50 takes twice as long.
Other readers are measured if they are installed: `datasets`, `lance`, `webdataset`, `streaming`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any, Literal

import torch
import tyro

import latentmill
from jobs.bench.reader_index import measure_open
from jobs.bench.reader_peers import peers
from jobs.bench.reader_source import serve, write_latents
from latentmill.store.range import Range

LOCAL_TARGET = S3_TARGET = 0.95
"""Of the raw reads, which compute no checksums either: what these cost is the line above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    cases: tuple[Literal["local", "s3", "open"], ...] = ("local", "s3", "open")
    """The cases to run."""
    clips: int = 192
    """Number of clips in the three data files; a clip has 2.2 MB."""
    batch_size: int = 4
    """Clips per batch."""
    connections: int = 16
    """Connections to the server in case s3."""
    rows: int = 10_000_000
    """Rows of the index in case open."""
    rounds: int = 5
    """Number of rounds in cases local and s3."""
    with_peers: bool = True
    """Measure other readers too."""


Epoch = Callable[[], Iterator[torch.Tensor]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures. Return 1 if our reader missed a target."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench reader", description=__doc__)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTMILL_CACHE"] = f"{folder}/cache"
        if {"local", "s3"} & set(args.cases):
            output = Path(folder) / "output"
            write_latents(output, args.clips)
        if "local" in args.cases:
            missed |= _local(args, output, Path(folder))
        if "s3" in args.cases:
            missed |= _s3(args, output)
        if "open" in args.cases:
            missed |= measure_open(Path(folder), args.rows)
    print(f"targets {'missed' if missed else 'met'}")
    return int(missed)


def _local(args: Args, output: Path, folder: Path) -> bool:
    latents = latentmill.open(output)
    batches = _order(latents, args.batch_size)

    def raw() -> Iterator[torch.Tensor]:
        files = {one.file: os.open(output / one.file, os.O_RDONLY) for batch in batches for one in batch}
        for batch in batches:
            buffer = torch.empty(len(batch), batch[0].length, dtype=torch.uint8)
            for one, view in zip(batch, buffer.numpy(), strict=True):
                os.preadv(files[one.file], [view], one.start)
            yield buffer
        for number in files.values():
            os.close(number)

    readers: dict[str, Epoch] = {"raw preadv, one thread": raw} | {
        "latentmill": _ours(latentmill.open(output), args.batch_size),
        "latentmill, no checksums": _ours(latentmill.open(output, verify=False), args.batch_size),
        "latentmill, 2 workers": _ours(latentmill.open(output), args.batch_size, workers=2),
    }
    if args.with_peers:
        readers |= peers(output, folder, [[one.row for one in batch] for batch in batches])
    ratios = _measure("local", readers, args.rounds, args.clips, batches[0][0].length)
    return ratios["latentmill, no checksums"] < LOCAL_TARGET


def _s3(args: Args, output: Path) -> bool:
    with serve(output.parent) as port:
        endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "nobody", "secret": "nothing"}
        place = f"s3://{output.parent.name}/{output.name}"
        latents = latentmill.open(place, storage_options=endpoint, concurrency=args.connections)
        batches = _order(latents, args.batch_size)

        def raw() -> Iterator[torch.Tensor]:
            """Read ranges into batches with as many connections as ours; each takes the next range when it is free."""
            free: SimpleQueue[HTTPConnection] = SimpleQueue()
            for _ in range(args.connections):
                free.put(HTTPConnection("127.0.0.1", port))

            def get(one: Range, view: Any) -> None:
                connection = free.get()
                header = {"Range": f"bytes={one.start}-{one.start + one.length - 1}"}
                connection.request("GET", f"/{output.parent.name}/{output.name}/{one.file}", headers=header)
                answer, memory = connection.getresponse(), memoryview(view)
                while len(memory) and (count := answer.readinto(memory)):
                    memory = memory[count:]
                answer.read()
                free.put(connection)

            with ThreadPoolExecutor(args.connections) as pool:
                ahead = []
                for batch in batches:
                    buffer = torch.empty(len(batch), batch[0].length, dtype=torch.uint8)
                    pairs = zip(batch, buffer.numpy(), strict=True)
                    ahead.append((buffer, [pool.submit(get, *pair) for pair in pairs]))
                    if len(ahead) > args.connections // args.batch_size:
                        yield _waited(*ahead.pop(0))
                while ahead:
                    yield _waited(*ahead.pop(0))

        prefetch = args.connections // args.batch_size
        plain = latentmill.open(place, storage_options=endpoint, concurrency=args.connections, verify=False)
        readers: dict[str, Epoch] = {
            "plain ranged GETs": raw,
            "latentmill": _ours(latents, args.batch_size, prefetch=prefetch),
            "latentmill, no checksums": _ours(plain, args.batch_size, prefetch=prefetch),
            "s3fs cat_ranges": _s3fs(endpoint, place, batches),
        }
        ratios = _measure("s3", readers, args.rounds, args.clips, batches[0][0].length)
    return ratios["latentmill, no checksums"] < S3_TARGET


def _waited(buffer: torch.Tensor, futures: list[Any]) -> torch.Tensor:
    for future in futures:
        future.result()
    return buffer


def _s3fs(endpoint: dict[str, str], place: str, batches: list[list[Range]]) -> Epoch:
    from s3fs import S3FileSystem

    def epoch() -> Iterator[torch.Tensor]:
        filesystem = S3FileSystem(**endpoint)
        for batch in batches:
            paths = [f"{place.removeprefix('s3://')}/{one.file}" for one in batch]
            starts = [one.start for one in batch]
            stops = [one.start + one.length for one in batch]
            yield torch.frombuffer(bytearray(b"".join(filesystem.cat_ranges(paths, starts, stops))), dtype=torch.uint8)

    return epoch


def _order(latents: latentmill.LatentDataset, batch_size: int) -> list[list[Range]]:
    sampler = latentmill.BatchSampler(latents, batch_size=batch_size)
    return [latents.ranges(batch)[0] for batch in sampler]


def _ours(latents: latentmill.LatentDataset, batch_size: int, **options: Any) -> Epoch:
    loader = latents.loader(batch_size=batch_size, **options)

    def epoch() -> Iterator[torch.Tensor]:
        loader.set_epoch(0)
        for batch in loader:
            yield batch["latent"]

    return epoch


def _measure(case: str, readers: dict[str, Epoch], rounds: int, clips: int, clip_bytes: int) -> dict[str, float]:
    """Time interleaved rounds after a warm-up round. Return the ratio of each reader to the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for round_ in range(rounds + 1):
        for name, epoch in readers.items():
            started, num_bytes = time.perf_counter(), 0
            for batch in epoch():
                num_bytes += batch.numel() * batch.element_size()
            if round_:
                seconds[name].append((time.perf_counter() - started) / num_bytes * clip_bytes)
    (first, *_), ratios = readers, {}
    print(f"{case}: {clips} clips of {clip_bytes / 1e6:.2f} MB, {rounds} rounds")
    for name in readers:
        ratios[name] = median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        print(f"  {name:30}{median(seconds[name]) * 1e3:8.2f} ms/clip  {ratios[name]:6.3f} of {first}", flush=True)
    return ratios
