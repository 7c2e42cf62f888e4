"""Commit and seal: the staged parts become the one data file of their shard; then the derived files are made.

    1. read the parts, join chunks into clips          if one is missing: adopt the data file, or reopen the clip
    2. put data/<shard>.parquet, create-only           <- only this step makes the shard done
    3. index/<shard>.parquet, rejected/<shard>.jsonl   derived; if this run dies before, the next run makes them
    4. delete _staging/<shard>/

If the run is killed between any two steps, the next run ends with the same files.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill import checksum
from pipeline.output import layout, shard_file
from pipeline.output.derived import derive, restored
from pipeline.output.parts import MissingPartError, read_clip
from pipeline.records import ClipKey, CompleteShard, Latent
from pipeline.settings.spec import Spec
from pipeline.storage import Storage
from pipeline.storage.parallel import READERS, in_parallel, read_ahead

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 1 << 30
"""A data file above this size is built in a temporary file instead of in memory."""


AHEAD_BYTES = 1 << 26
"""Clips that are read ahead hold about this much; one clip is read in any case."""

INDEX_GROUP_ROWS = 50_000
"""Smallest number of rows in a row group of index.parquet; only the last group may have fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The result of a commit."""

    shard: str
    missing: tuple[ClipKey, ...] = ()
    """Clips with a missing part: they are open again, and nothing was committed."""
    adopted: bool = False
    """Whether another run put the data file first; that file is kept."""
    num_bytes: int = 0


def commit(output: Storage, spec: str, shard: CompleteShard) -> Committed:
    """Commit a complete shard, as the module describes. `spec` is canonical JSON."""
    path = layout.data_path(shard.name)
    staged_bytes = sum(entry.size for entry in output.list(layout.staging_of(shard.name)))
    latents = _latents(output, shard, clips_ahead(staged_bytes, len(shard.latents)))
    with _scratch(staged_bytes) as sink:
        try:
            _build(output, spec, shard, latents, sink)
        except _MissingPartsError as error:
            if not output.exists(path):
                return Committed(shard=shard.name, missing=error.clips)
            derive(output, shard.name, spec)
            sweep(output, [shard.name])
            return Committed(shard=shard.name, adopted=True, num_bytes=output.size(path))
        num_bytes = sink.seek(0, io.SEEK_END)
        data = sink.getvalue() if isinstance(sink, io.BytesIO) else Path(sink.name)
        ours = output.create(path, data)
        if not ours:
            _compare(output, path, sink)
    derive(output, shard.name, spec)
    sweep(output, [shard.name])
    return Committed(shard=shard.name, adopted=not ours, num_bytes=num_bytes)


def tidy(output: Storage, done: Iterable[str], leftovers: Iterable[str], spec: str | None = None) -> None:
    """Finish the steps that a killed run did not reach after it put a data file, and sweep what kills left.

    Args:
        output: root of the output.
        done: committed shards; those without an index get one.
        leftovers: committed shards that still have files in staging, which are deleted.
        spec: the Spec of the output, as canonical JSON.

    Raises:
        ConfigError: a data file without an index is damaged, or does not belong to this output.
    """
    indexed = {shard for shard, _ in layout.list_shards(output, layout.INDEX)}
    done = set(done)
    for shard in sorted(done - indexed):
        derive(output, shard, spec)
    sweep(output, leftovers)
    sweep_claims(output, layout.CLAIMS, done)
    output.sweep_temporary()


def sweep_claims(output: Storage, folder: str, done: Set[str]) -> None:
    """Delete the claims on done shards: a run that was killed after it committed one leaves its claim.

    Nobody needs them: where another run still holds one, it deletes it, too.
    """
    for entry in output.list(folder):
        if entry.path.removeprefix(folder) in done:
            output.delete(entry.path)


def sweep(output: Storage, shards: Iterable[str]) -> None:
    """Delete the staged files of committed shards: a retried task or another run may have staged some late."""
    for shard in shards:
        output.delete(layout.staging_of(shard))


def seal(
    output: Storage, shards: Iterable[str], spec: str | None = None, data_bytes: Mapping[str, int] | None = None
) -> int:
    """Stream the indexes of these shards into index.parquet and return its number of rows.

    The data files are the truth; index.parquet may be older. The derived files of each shard are read, and made again
    if they are missing, damaged, or made from a data file whose size is not `data_bytes`.

    Raises:
        ConfigError: a data file was cut, emptied or replaced; see `derive`.
    """
    sizes = data_bytes or {}
    rows = 0
    with _scratch(IN_MEMORY_BYTES + 1) as sink:
        writer: pq.ParquetWriter | None = None
        for table in _in_large_groups(
            in_parallel(lambda shard: restored(output, shard, spec, sizes.get(shard))[0], shards)
        ):
            writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table)
            rows += table.num_rows
        if writer is None:
            return 0
        writer.add_key_value_metadata(checksum.MARK)
        writer.close()
        checksum.stamp(sink)
        sink.flush()
        output.put(layout.SEAL_PATH, Path(sink.name))
    return rows


class _MissingPartsError(Exception):
    def __init__(self, clips: tuple[ClipKey, ...]) -> None:
        super().__init__(clips)
        self.clips = clips


def _build(output: Storage, spec: str, shard: CompleteShard, latents: Iterator[Latent], sink: IO[bytes]) -> None:
    """Write the data file into `sink`. NPY arrays are put before the data file."""
    if Spec.from_json(spec).latent.format == "parquet":
        shard_file.write(sink, spec, shard, (shard_file.parquet_row(latent) for latent in latents))
    else:
        arrays = shard_file.NpyArrays(shard.name)
        for latent in latents:
            arrays.add(latent)
        for path, content in arrays.files():
            output.put(path, content)
        shard_file.write(sink, spec, shard, arrays.rows())
    sink.flush()


def clips_ahead(staged_bytes: int, num_clips: int) -> int:
    """Return how many clips to read at a time: READERS, or fewer if they would hold more than AHEAD_BYTES."""
    return max(1, min(READERS, AHEAD_BYTES * num_clips // max(staged_bytes, 1)))


def _latents(output: Storage, shard: CompleteShard, ahead: int) -> Iterator[Latent]:
    """Yield every clip in source order, with `ahead` clips in memory.

    All clips are read before missing parts are reported, so that every clip with a missing part is opened again.
    """
    missing: list[ClipKey] = []
    reads = (partial(read_clip, output, shard.name, *clip, chunks) for clip, chunks in shard.latents.items())
    for (video, clip), read in zip(shard.latents, read_ahead(reads, ahead), strict=True):
        try:
            latent = read.result()
        except MissingPartError as error:
            log.warning("shard=%s part missing: %s", shard.name, error)
            missing.append((video, clip))
            if error.is_damaged:  # otherwise every later run would count it as staged
                output.delete(error.path)
        else:
            if not missing:
                yield latent
    if missing:
        raise _MissingPartsError(tuple(missing))


def _compare(output: Storage, path: str, ours: IO[bytes]) -> None:
    ours.seek(0)
    if output.read(path) != ours.read():
        log.warning("path=%s was committed by another run with other bytes; that file is kept", path)


def _scratch(num_bytes: int) -> IO[bytes]:
    return io.BytesIO() if num_bytes <= IN_MEMORY_BYTES else tempfile.NamedTemporaryFile("w+b", suffix=".parquet")


def _in_large_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join the tables into tables of at least INDEX_GROUP_ROWS rows.

    A footer with one row group for each of 100,000 shards would take 5 GB.
    """
    pending: list[pa.Table] = []
    num_rows = 0
    for table in tables:
        pending.append(table)
        num_rows += len(table)
        if num_rows >= INDEX_GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending, num_rows = [], 0
    if pending:
        yield pa.concat_tables(pending)
