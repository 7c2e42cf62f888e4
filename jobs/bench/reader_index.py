"""The case `open` of `bench reader`: an index of many rows, its memory, the first batch and resuming."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import latentmill
from jobs.bench.reader_source import SHAPE, write_latents
from latentmill import format

ROWS_PER_SHARD = 100
WORKERS = 4
OPEN_SECONDS = 10.0
RESUME_SECONDS = 1.0
PRIVATE_BYTES = 200e6


def measure_open(folder: Path, num_rows: int) -> bool:
    """Print the figures. Return True if a target was missed."""
    output = folder / "many"
    size = write_index(output, num_rows)
    print(f"open: {num_rows} rows of {num_rows // ROWS_PER_SHARD} shards, index.parquet {size / 1e6:.0f} MB")
    few = folder / "few"
    write_latents(few, 24)
    with_few = _memory(few)
    started, cpu = time.perf_counter(), time.process_time()
    latents = latentmill.open(output)
    cold, cold_cpu = time.perf_counter() - started, time.process_time() - cpu
    copied = sum(path.stat().st_size for path in latents.index.folder.iterdir())
    started = time.perf_counter()
    latents = latentmill.open(output)
    warm = time.perf_counter() - started
    print(f"  first open on a machine {cold:.1f} s ({cold_cpu:.1f} CPU s), a copy of {copied / 1e9:.2f} GB")
    print(f"  later opens {warm:.2f} s")
    loader = latents.loader(batch_size=4, seed=1)
    started = time.perf_counter()
    next(iter(loader))
    print(f"  first batch after opening {time.perf_counter() - started:.3f} s")
    state = json.loads(json.dumps(loader.state_dict() | {"batches": loader.sampler.order.num_batches // 2}))
    started = time.perf_counter()
    resumed = latents.loader(batch_size=4, seed=1)
    resumed.load_state_dict(state)
    next(iter(resumed))
    resume = time.perf_counter() - started
    print(f"  first batch after a resume at the middle of the epoch {resume:.3f} s")
    extra = _memory(output) - with_few
    print(f"  memory of its own, trainer and {WORKERS} workers, beyond an index of 24 rows: {extra / 1e6:.0f} MB")
    return cold > OPEN_SECONDS or resume > RESUME_SECONDS or extra > PRIVATE_BYTES


def write_index(output: Path, num_rows: int) -> int:
    """Write the index of an output with sparse data files. Return its size in bytes."""
    few = output.with_name("template")
    write_latents(few, 3)
    (output / "data").mkdir(parents=True)
    (output / format.SPEC_PATH).write_bytes((few / format.SPEC_PATH).read_bytes())
    row = pq.read_table(few / format.SEAL_PATH).slice(0, 1)
    length = int(np.prod(SHAPE)) * 2
    names = [f"{i:06d}-{i:012x}" for i in range(num_rows // ROWS_PER_SHARD)]
    zeros = np.zeros(length, np.uint8).tobytes()
    with pq.ParquetWriter(output / format.SEAL_PATH, row.schema, compression="zstd") as writer:
        for begin in range(0, len(names), 500):
            shards = names[begin : begin + 500]
            count = len(shards) * ROWS_PER_SHARD
            numbers = range(begin * ROWS_PER_SHARD, begin * ROWS_PER_SHARD + count)
            first = pa.array(np.zeros(count, np.int64))
            columns: dict[str, Any] = {name: row[name].combine_chunks().take(first) for name in row.column_names}
            columns["id"] = pa.array([f"{n * 0x9E3779B97F4A7C15 % 2**128:032x}" for n in numbers])
            columns["key"] = pa.array([f"videos/{n:012d}" for n in numbers])
            columns["caption"] = pa.array([f"clip {n}: a captioner says about as much of it" for n in numbers])
            columns["file"] = pa.array(np.repeat([format.data_path(name) for name in shards], ROWS_PER_SHARD))
            columns["byte_offset"] = pa.array(np.tile(np.arange(ROWS_PER_SHARD) * length, len(shards)))
            columns["latent_crc32"] = pa.array(np.full(count, zlib.crc32(zeros), np.uint32))
            writer.write_table(pa.table([columns[name] for name in row.column_names], schema=row.schema))
    for name in names:
        with (output / format.data_path(name)).open("wb") as file:
            file.truncate(length * ROWS_PER_SHARD)  # a sparse file: no bytes on the disk
    return (output / format.SEAL_PATH).stat().st_size


def _memory(output: Path) -> float:
    """Return the private memory of a trainer and its workers in the middle of an epoch, in bytes: no mapped files."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_train, str(output)).result()


def _train(output: str) -> float:
    latents = latentmill.open(output)
    loader = latents.loader(batch_size=1, workers=WORKERS, multiprocessing_context="spawn", prefetch=1)
    steps = iter(loader)
    for _ in range(min(8, len(loader) - 8)):
        next(steps)
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return sum(_private(pid) for pid in (os.getpid(), *children))


def _private(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return float(fields["RssAnon"].split()[0]) * 1024
