"""Made sources, tars and folders and tables, and what their shards come to."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.receipts import ClipsReceipt, RejectionReceipt, VideosReceipt
from pipeline.records import Video
from pipeline.shards import Shard
from pipeline.sources.listing import list_source
from pipeline.stages.read_shard import read_shard

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

Seen = list[tuple[str, str]]


def make_tar(members: list[tuple[str, bytes]], kind: str = "pax") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def outcomes(shard: Shard, **options: Any) -> Seen:
    """(key, "video" or the reason) in order of the ordinals; checks that every ordinal ends exactly once."""
    records = list(read_shard(shard, **options))
    seen: Seen = []
    announced = []
    for record in records[:-1]:
        if isinstance(record, Video):
            assert record.video == len(seen)
            seen.append((record.key, "video"))
        elif isinstance(record, RejectionReceipt):
            assert (record.id.clip_key, record.rejection.stage) == ((len(seen), 0), "read")
            seen.append((record.rejection.key, record.rejection.reason))
            announced.append(record.id.video)
        else:
            assert isinstance(record, ClipsReceipt)
            assert record.count == 1
            assert record.video == announced.pop()
    assert announced == []
    last = records[-1]
    assert isinstance(last, VideosReceipt)
    assert last.count == len(seen)
    return seen


def fill(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def videos(uri: str | Path, shard_size: int = 64) -> list[Video]:
    shards = list_source(str(uri), shard_size=shard_size)
    return [record for shard in shards for record in read_shard(shard) if isinstance(record, Video)]


def seen(uri: str | Path, **options: Any) -> list[tuple[str, str]]:
    return [pair for shard in list_source(str(uri), shard_size=64) for pair in outcomes(shard, **options)]


ROWS: list[dict[str, Any]] = [
    {"video": "a.mp4", "start": 0.1, "end": 2, "caption": "one, two\nthree", "n": 1},
    {"video": "../other/b c.mp4", "start": None, "end": None, "caption": '"quoted"', "n": 2},
    {"video": "s3://bucket/c.mp4", "start": 3, "end": None, "caption": None, "n": 3},
    {"video": "/abs/d.mp4", "start": None, "end": 0.3333333, "caption": "caf\u00e9 \u6587", "n": 4},
    {"video": "e.mp4", "start": 1e-3, "end": 1e3, "caption": "e", "n": None},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    fields = {"video": pa.string(), "start": pa.float64(), "end": pa.float64(), "caption": pa.string(), "n": pa.int64()}
    schema = pa.schema([*fields.items(), ("thumbnail", pa.binary())])
    pq.write_table(pa.Table.from_pylist([{**row, "thumbnail": b"x"} for row in rows], schema), path, row_group_size=2)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
