"""The data file of one shard: its rows, and in the footer the Spec, the number of clips and every rejection.

    data/<shard>.parquet                            EXISTS = DONE
    data/<shard>.<shape>.<sha256[:12]>.npy          with format npy: the latents of one shape; put first, named in rows
    index/<shard>.parquet                           every column except the bytes, plus file, byte offset, byte length
    rejected/<shard>.jsonl                          for people

`latentmill.format` defines the names, types and paths; this module writes them.

The bytes of the data file depend on Source and Spec only, never on time, host, run or attempt. Each clip has a row
group of its own, the latent column is not compressed, and each page holds one value. So a clip is one exact byte range
(measured: reading that range costs 1.01x of a raw preadv, other Parquet layouts 2x to 350x; the default
write_batch_size overflows a page at 8 x 300 MB).
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.format import DTYPES, FOOTER_SHARD, FOOTER_SPEC, schema_of
from pipeline.output.layout import npy_path
from pipeline.output.statistics import statistics
from pipeline.records import CompleteShard, Latent, canonical_json


def write(sink: IO[bytes], spec: str, shard: CompleteShard, rows: Iterable[dict[str, Any]]) -> None:
    """Write the data file.

    Args:
        shard: its rejections are read after the rows, so that one who finds them in reading rows can add them.
        rows: rows of `parquet_row` or `NpyArrays.rows`, in source order.
        spec: the Spec as canonical JSON.
    """
    schema = schema_of(json.loads(spec)["format_version"])
    with pq.ParquetWriter(
        sink,
        schema,
        compression=_compression(schema),
        use_dictionary=False,
        write_statistics=["id", "clip_index"],
        write_batch_size=1,
        data_page_version="1.0",
        version="2.6",
    ) as writer:
        for row in rows:
            columns = [pa.array([row[field.name]], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        rejections = [
            {"video": video, "clip": clip} | asdict(rejection) for (video, clip), rejection in shard.rejections.items()
        ]
        footer = {"shard": shard.name, "planned": shard.planned, "rejections": rejections}
        writer.add_key_value_metadata({FOOTER_SPEC: spec, FOOTER_SHARD: canonical_json(footer)})


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Return the codec of each column by its leaf: all but the latent are compressed."""
    leaves = {field.name: f"{field.name}.list.element" for field in schema if pa.types.is_list(field.type)}
    return {leaves.get(name, name): "none" if name == "latent" else "zstd" for name in schema.names}


def parquet_row(latent: Latent) -> dict[str, Any]:
    """Return the row of a clip whose latent is stored in the row itself."""
    return _columns(latent) | {"latent": latent.payload, "npy_file": None, "npy_row": None}


class NpyArrays:
    """The latents of one shard with format npy, stacked by shape. The name of each array contains its hash."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._rows: list[dict[str, Any]] = []
        self._latents: defaultdict[tuple[str, tuple[int, ...]], list[bytes | memoryview]] = defaultdict(list)

    def add(self, latent: Latent) -> None:
        """Append a clip, in source order."""
        latents = self._latents[latent.dtype, latent.shape]
        self._rows.append(_columns(latent) | {"latent": None, "npy_row": len(latents), "npy_file": None})
        latents.append(latent.payload)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield (path under the output, bytes) of each array. They must be put before the rows are written."""
        for (dtype, shape), payloads in self._latents.items():
            body = io.BytesIO()
            header = {"descr": DTYPES[dtype].str, "fortran_order": False, "shape": (len(payloads), *shape)}
            np.lib.format.write_array_header_1_0(body, header)
            for payload in payloads:
                body.write(payload)
            content = body.getvalue()
            digest = hashlib.sha256(content).hexdigest()
            path = npy_path(self._shard, shape, digest)
            for row in self._rows:
                if (row["latent_dtype"], tuple(row["latent_shape"])) == (dtype, shape):
                    row["npy_file"] = path
            yield path, content

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows. Call it after `files` has been consumed."""
        return self._rows


def _columns(latent: Latent) -> dict[str, Any]:
    """Return every column except those that hold or locate the latent."""
    facts = latent.facts
    duplicates, longest_hold = holds(facts.timestamps, facts.start, facts.fps)
    return {
        "id": facts.id,
        "latent_shape": latent.shape,
        "latent_dtype": latent.dtype,
        "latent_crc32": zlib.crc32(latent.payload),
        "key": facts.key,
        "caption": facts.caption,
        "source_uri": facts.uri,
        "video_index": latent.id.video,
        "clip_index": latent.id.clip,
        "start_sec": float(Fraction(facts.start)),
        "end_sec": facts.end and float(Fraction(facts.end)),
        "fps": facts.fps and float(Fraction(facts.fps)),
        "num_frames": facts.num_frames,
        "height": facts.height,
        "width": facts.width,
        "timestamps_sec": facts.timestamps,
        "num_duplicates": duplicates,
        "longest_hold_sec": longest_hold,
        "num_repaired": facts.num_repaired,
        "source_json": canonical_json(facts.source),
        "extra_json": canonical_json(facts.extra),
    } | statistics(latent.payload, latent.dtype, latent.shape)


def holds(timestamps: Sequence[float], start: str, fps: str | None) -> tuple[int, float]:
    """Return the number of frames that repeat the previous one, and the longest hold in seconds.

    A hold is the time from a chosen frame to the grid time that it is used for. `timestamps` are the source times in
    seconds of the chosen frames; `start` and `fps` define the grid as "p/q". Consecutive frames (fps None) are never
    held, and only padding repeats one of them. Example at 2 fps: [0, 0, 1] on the grid 0, 0.5, 1 has one duplicate,
    held for 0.5 s.
    """
    duplicates = sum(a == b for a, b in pairwise(timestamps))
    if fps is None:
        return duplicates, 0.0
    grid = (float(Fraction(start) + i / Fraction(fps)) for i in range(len(timestamps)))
    return duplicates, max(
        (max(target - time, 0.0) for target, time in zip(grid, timestamps, strict=True)), default=0.0
    )
