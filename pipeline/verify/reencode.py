"""Encode stored clips again from their source, with the stages of the job, and compare the latents.

If every recorded run had this machine's environment (run_records.environment), the bytes must be equal. Otherwise the
relative L2 difference of the latent must be below a bound that depends on the compute dtype: see BOUNDS.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from latentmill.format import STATISTICS, to_float32
from pipeline.output.layout import data_path
from pipeline.output.parts import join
from pipeline.output.read_latent import Row, payload_of
from pipeline.output.shard_file import parquet_row
from pipeline.plan.frozen import read_plan
from pipeline.records import Chunk, ClipKey, Latent
from pipeline.runs.run_records import environments
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decoder
from pipeline.stages.suspects import NonfiniteLatentError
from pipeline.storage import Storage
from pipeline.storage.range_file import open_parquet
from pipeline.verify.decode_again import clips_of, decode_again
from pipeline.verify.findings import Problem

BOUNDS = {"bfloat16": 0.05, "float16": 0.03, "float32": 0.03}
"""Largest relative L2 difference of a latent in another environment. bfloat16 has the bound of the encoder's self-check
at start. Measured with `tiny` on the same clip: other kernels or threads 0.014 in bfloat16 and 3e-6 in float32; one
pixel in ten rounded to the next level, as by another FFmpeg, 0.016 in float32 and 0.021 in bfloat16; storage in
bfloat16 0.0017. A clip that starts one frame later differs by 0.66."""

_LATENT_COLUMNS = ("latent", "latent_crc32", "npy_file", "npy_row", *STATISTICS.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The result of encoding one clip again."""

    file: str
    row: int
    difference: float = 0.0
    """Relative L2 difference of the latent; 0 for equal bytes."""
    problems: tuple[Problem, ...] = ()


def choose(rows: Mapping[str, int], count: int, seed: int) -> dict[str, list[int]]:
    """Choose `count` of all rows (given as number of rows by shard) by the seed. Return row numbers by shard."""
    shards = sorted(shard for shard, num_rows in rows.items() if num_rows)
    ends = list(accumulate(rows[shard] for shard in shards))
    total = ends[-1] if ends else 0
    chosen: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(random.Random(seed).sample(range(total), min(count, total))):
        position = bisect(ends, number)
        chosen[shards[position]].append(number - (ends[position] - rows[shards[position]]))
    return dict(chosen)


def differences(output: Storage, ours: dict[str, Any]) -> list[str]:
    """Return where this environment differs from those of the recorded runs: `torch: 2.9 now, 2.8 in runs/...`."""
    recorded = list(environments(output))
    lines = [
        f"{name}: {ours.get(name)} now, {theirs.get(name)} in {path}"
        for path, theirs in recorded
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    return lines if recorded else ["no run of this output recorded its environment"]


def recorded_threads(output: Storage) -> int:
    """Return the torch threads per encoder of the first run that recorded them, or 1, the default of the job."""
    for _, environment in environments(output):
        if threads := environment.get("threads_per_encoder"):
            return int(threads)
    return 1


def reencode(
    output: Storage,
    chosen: Mapping[str, list[int]],
    decoder: Decoder,
    encoder: Callable[[Chunk], Latent],
    bound: float | None,
) -> Iterator[Again]:
    """Encode the chosen rows again and compare each with what is stored.

    Args:
        chosen: row numbers by shard; see `choose`.
        decoder, encoder: the job's stages.
        bound: largest relative L2 difference; None requires equal bytes.
    """
    for shard in read_plan(output):
        if shard.name in chosen:
            yield from _shard_again(output, shard, chosen[shard.name], decoder, encoder, bound)


def _shard_again(
    output: Storage,
    shard: Shard,
    rows: list[int],
    decoder: Decoder,
    encoder: Callable[[Chunk], Latent],
    bound: float | None,
) -> Iterator[Again]:
    path = data_path(shard.name)
    entry = output.entry(path)
    file = open_parquet(output.address(path), entry.size, entry.etag)
    clips, settled = clips_of(file)
    wanted: dict[ClipKey, int] = {clips[row]: row for row in rows}
    for clip, result in _encoded(decode_again(shard, frozenset(wanted), settled, decoder), encoder):
        row = wanted.pop(clip, None)
        if row is None:  # a further chunk of a clip that already failed
            continue
        stored = file.read_row_group(row).to_pylist()[0]
        yield _compare(output, path, row, stored, result, bound)
    for clip, row in wanted.items():
        yield _failed(path, row, f"video {clip[0]} clip {clip[1]} does not come out of {shard.uri}")


def _encoded(
    decoded: Iterator[tuple[ClipKey, Chunk | str]], encoder: Callable[[Chunk], Latent]
) -> Iterator[tuple[ClipKey, Latent | str]]:
    """Yield the whole clips, encoded, or why not."""
    chunks: list[Latent] = []
    for clip, record in decoded:
        if isinstance(record, str):
            chunks.clear()
            yield clip, record
            continue
        is_last = record.id.chunk == record.id.num_chunks - 1
        try:
            chunks.append(encoder(record))
        except NonfiniteLatentError as error:
            yield clip, str(error)
            chunks.clear()
            continue
        if is_last and len(chunks) == record.id.num_chunks:
            yield clip, join(chunks)
        if is_last:
            chunks.clear()


def _compare(output: Storage, path: str, number: int, stored: Row, result: Latent | str, bound: float | None) -> Again:
    if isinstance(result, str):
        return _failed(path, number, result)
    problems = []
    made = parquet_row(result)
    for name in stored.keys() - {*_LATENT_COLUMNS}:
        value = list(made[name]) if isinstance(made[name], tuple) else made[name]
        if value != stored[name]:
            problems.append(_problem(path, number, f"{name}, encoded again", stored[name], value))
    theirs = payload_of(output, stored)
    difference = _relative(theirs, bytes(result.payload), stored["latent_dtype"])
    if bound is None and difference:
        problems.append(
            _problem(path, number, "latent, encoded again", f"other bytes (relative {difference:.2g})", "equal bytes")
        )
    elif bound is not None and not difference <= bound:
        problems.append(
            _problem(path, number, "latent, encoded again", f"relative difference {difference:.2g}", f"<= {bound:g}")
        )
    return Again(file=path, row=number, difference=difference, problems=tuple(problems))


def _relative(stored: bytes, made: bytes, dtype: str) -> float:
    """Return L2 of the difference / L2 of the new latent; 0 only for equal bytes, inf if it cannot be computed."""
    if stored == made:
        return 0.0
    if len(stored) != len(made):
        return float("inf")
    ours, theirs = to_float32(made, dtype), to_float32(stored, dtype)
    difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
    return difference if difference > 0 else float("inf")


def _failed(path: str, row: int, why: str) -> Again:
    return Again(file=path, row=row, problems=(_problem(path, row, "encoded again", why, "a latent"),))


def _problem(path: str, row: int, what: str, found: object, expected: object) -> Problem:
    return Problem(file=path, row=row, what=what, found=str(found), expected=str(expected))
