"""The format of an output: its names, types and paths, and stored bytes as numbers.

`pipeline` writes it, this package reads it.

OUTPUT/
  spec.json                                   every setting that decides the bytes of data/
  data/<shard>.parquet                        rows of SCHEMA. The shard is done when this file exists
  data/<shard>.<shape>.<sha256[:12]>.npy      only with --format npy: the latents of one shape
  index/<shard>.parquet                       all columns but the latent, and INDEX_COLUMNS; may be missing
  index.parquet                               the indexes of all shards in one file, sorted by shard; may be older
  text/NAME/spec.json                         every setting that decides the bytes of text/NAME/
  text/NAME/<shard>.parquet                   rows of TEXT_SCHEMA, one for each row of the data file, in its order.
                                              The text of the shard is done when this file exists
  text/NAME/empty.parquet                     the empty prompt: one row of TEXT_SCHEMA, whose id is ""
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 2
"""A change that alters the bytes under `data/` for the same source raises it.

    1    without STATISTICS
    2    with STATISTICS
"""

READABLE_VERSIONS = (1, 2)
"""Format versions that this package reads, and in which a run continues an output that has one of them."""

DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
"""Stored dtypes and how numpy reads them. numpy has no bfloat16, so it reads the bits as uint16."""


def _numbers(name: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=nullable)


STATISTICS = pa.schema(
    [
        _numbers("latent_mean"),
        _numbers("latent_std"),
        _numbers("latent_first_mean"),
        _numbers("latent_first_std"),
        _numbers("latent_rest_mean", nullable=True),  # null if the latent has one frame
        _numbers("latent_rest_std", nullable=True),
        pa.field("latent_max_abs", pa.float32(), nullable=False),
    ]
)
"""Statistics of the stored latent, one number for each channel: of all latent frames, of the first one, and of the
others; and the largest magnitude. Since format version 2."""

_ROW = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("latent", pa.large_binary()),  # null with --format npy
        pa.field("latent_shape", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("latent_dtype", pa.string(), nullable=False),
        pa.field("latent_crc32", pa.uint32(), nullable=False),
        pa.field("npy_file", pa.string()),
        pa.field("npy_row", pa.int32()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("video_index", pa.int32(), nullable=False),
        pa.field("clip_index", pa.int32(), nullable=False),
        pa.field("start_sec", pa.float64(), nullable=False),
        pa.field("end_sec", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("timestamps_sec", pa.list_(pa.field("element", pa.float64(), nullable=False)), nullable=False),
        pa.field("num_duplicates", pa.int32(), nullable=False),
        pa.field("longest_hold_sec", pa.float64(), nullable=False),
        pa.field("num_repaired", pa.int32(), nullable=False),
        pa.field("source_json", pa.string(), nullable=False),
        pa.field("extra_json", pa.string(), nullable=False),
    ]
)

SCHEMA = pa.schema([*_ROW, *STATISTICS])
"""The rows of a data file of FORMAT_VERSION."""


def to_float32(payload: bytes | memoryview, dtype: str) -> np.ndarray:
    """Return stored values as float32, flat. bfloat16 is the upper half of a float32's bits."""
    array = np.frombuffer(payload, DTYPES[dtype])
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def is_finite(payload: bytes, dtype: str) -> bool:
    """Return whether stored values have no NaN and no infinity. bfloat16 is read by its bits: the exponent all ones."""
    array = np.frombuffer(payload, DTYPES[dtype])
    if dtype == "bfloat16":
        return not bool(((array & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def schema_of(version: int) -> pa.Schema:
    """Return the schema of the rows of a data file of one of READABLE_VERSIONS."""
    return SCHEMA if version >= 2 else _ROW


INDEX_COLUMNS = pa.schema(
    [pa.field("file", pa.string()), pa.field("byte_offset", pa.int64()), pa.field("byte_length", pa.int64())]
)
"""The columns that an index has in place of the latent: the path of its file, and its bytes in the file."""

TEXT_VERSION = 1
"""A change that alters the bytes under `text/NAME/` for the same captions raises it."""

TEXT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("caption_sha256", pa.string()),  # of the UTF-8 bytes; null if there is no caption
        pa.field("embedding_shape", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("embedding_dtype", pa.string()),
        pa.field("embedding_crc32", pa.uint32()),
        pa.field("embedding_row", pa.int32()),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("embedding", pa.large_binary()),  # null but in the first row of a caption; last, see `places`
    ]
)
"""The rows of a text file. `embedding_row` is the row of the same file whose `embedding` holds the bytes [S, E]: rows
with equal captions share them. A row that was dropped (--drop-empty) has length 0, and null in every `embedding*`."""

TEXT_PLACE = pa.schema(
    [
        *(TEXT_SCHEMA.field(name) for name in ("id", "length", "truncated")),
        *(TEXT_SCHEMA.field(name) for name in ("embedding_shape", "embedding_dtype", "embedding_crc32")),
        pa.field("byte_offset", pa.int64()),
        pa.field("byte_length", pa.int64()),
    ]
)
"""Where the bytes of each row's embedding are in its text file; null where there are none."""

FOOTER_SPEC = "latentmill.spec"
FOOTER_SHARD = "latentmill.shard"

FOOTER_TEXT = "latentmill.text"
"""The spec.json of a text, as canonical JSON, in the footer of each of its files. FOOTER_SHARD has {"shard"}."""

FOOTER_PLACES = "latentmill.places"
"""The columns of TEXT_PLACE as JSON, in the footer of a text file: a reader finds every embedding by one request for
the end of the file."""

FOOTER_DERIVED = "latentmill.derived"
"""An index names what it was made from: {"data_bytes": the size of its data file, "rejected": the sha256 of its JSONL
file, "" for none}. Indexes of older versions lack this."""

SPEC_PATH = "spec.json"
SEAL_PATH = "index.parquet"
DATA = "data/"
INDEX = "index/"
TEXT = "text/"

EMPTY = "empty"

TEXT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a text may be called. The name of a shard ends with a dash and 12 digits, so no shard is called `empty`."""


def data_path(shard: str) -> str:
    """Return the path of a shard's data file under the output. The shard is done when the file exists."""
    return f"{DATA}{shard}.parquet"


def index_path(shard: str) -> str:
    """Return the path of a shard's index under the output."""
    return f"{INDEX}{shard}.parquet"


def npy_path(shard: str, shape: tuple[int, ...], sha256: str) -> str:
    """Return the path of a shard's latents of one shape under the output."""
    return f"{DATA}{shard}.{'x'.join(map(str, shape))}.{sha256[:12]}.npy"


def text_of(name: str) -> str:
    """Return the folder of a text under the output."""
    return f"{TEXT}{name}/"


def text_spec_path(name: str) -> str:
    """Return the path of a text's spec under the output."""
    return f"{text_of(name)}{SPEC_PATH}"


def text_path(name: str, shard: str) -> str:
    """Return the path of a shard's text under the output. The text of the shard is done when the file exists."""
    return f"{text_of(name)}{shard}.parquet"


def text_empty_path(name: str) -> str:
    """Return the path of a text's empty prompt under the output."""
    return f"{text_of(name)}{EMPTY}.parquet"


def shard_of(path: str) -> str:
    """Return the shard of a file in data/ or index/. The name of a shard has no dot."""
    return path.rpartition("/")[2].partition(".")[0]


def index_of(source: IO[bytes], shard: str, npy_header_bytes: int = 128) -> pa.Table:
    """Return the index of a data file: SCHEMA without the latent, then INDEX_COLUMNS.

    The offsets come from the Parquet footer; they are not computed from the layout.
    """
    file = pq.ParquetFile(source)
    table = file.read(columns=[name for name in file.schema_arrow.names if name != "latent"])
    column = file.schema_arrow.get_field_index("latent")
    names, offsets, lengths = [], [], []
    for i, row in enumerate(table.select(["npy_file", "npy_row", "latent_shape", "latent_dtype"]).to_pylist()):
        length = int(np.prod(row["latent_shape"])) * DTYPES[row["latent_dtype"]].itemsize
        if row["npy_file"] is None:
            chunk = file.metadata.row_group(i).column(column)  # each list has one leaf, so leaves count as columns do
            names.append(data_path(shard))
            offsets.append(chunk.data_page_offset + chunk.total_compressed_size - length)
        else:
            names.append(row["npy_file"])
            offsets.append(npy_header_bytes + row["npy_row"] * length)
        lengths.append(length)
    for field, values in zip(INDEX_COLUMNS, (names, offsets, lengths), strict=True):
        table = table.append_column(field.name, pa.array(values, field.type))
    return table.replace_schema_metadata(None)


def text_places_of(source: IO[bytes]) -> pa.Table:
    """Return the rows of a text file as TEXT_PLACE. Reads the footer only; `source` may be the end of the file."""
    places = pq.read_metadata(source).metadata[FOOTER_PLACES.encode()]
    return pa.table(json.loads(places), schema=TEXT_PLACE)


def text_spec_of(source: IO[bytes]) -> str:
    """Return the spec of a text file as canonical JSON."""
    spec: bytes = pq.read_metadata(source).metadata[FOOTER_TEXT.encode()]
    return spec.decode()


def footer_of(source: IO[bytes]) -> tuple[str, dict[str, Any]]:
    """Return (Spec as canonical JSON, {"shard", "planned", "rejections"}) of a data file."""
    metadata = pq.ParquetFile(source).metadata.metadata
    return metadata[FOOTER_SPEC.encode()].decode(), json.loads(metadata[FOOTER_SHARD.encode()])
